//! What must not be in this repository: the invariants of ARCHITECTURE that no compiler checks.

mod containers;

use std::fs;
use std::path::{Path, PathBuf};

use protocol::ErrorCode;

/// Longest source file: past this a file has more than one noun.
const LINES_MAX: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate stands in the workspace").to_path_buf()
}

/// Every Rust source below `folders`, with its path relative to the root.
fn sources(folders: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in folders {
        walk(&root().join(folder), &mut found);
    }
    assert!(!found.is_empty(), "no sources under {folders:?}");
    found
}

fn walk(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target" && name != "fuzz") {
            walk(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The production part of a file: what stands before its tests.
fn production(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or_default()
}

/// Lines of production code under `folders` that hold one of `words`, but for files whose path ends with one of `allowed`.
fn offenders(folders: &[&str], words: &[&str], allowed: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, text) in sources(folders) {
        if path.contains("/tests/") || allowed.iter().any(|end| path.contains(end)) {
            continue;
        }
        for (number, line) in production(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if words.iter().any(|word| code.contains(word)) {
                lines.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    lines
}

#[track_caller]
fn none(what: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{what}:\n{}", offenders.join("\n"));
}

const PRODUCTION: [&str; 7] = [
    "protocol/src",
    "protocol/runtime/src",
    "dispatcher/src",
    "worker/src",
    "worker/engine/src",
    "worker/engine/kernels/src",
    "ops/src",
];

#[test]
fn files_have_one_noun() {
    let mut all = PRODUCTION.to_vec();
    all.push("tests");
    let long: Vec<String> = sources(&all)
        .into_iter()
        .filter(|(_, text)| text.lines().count() > LINES_MAX)
        .map(|(path, text)| format!("{path}: {} lines", text.lines().count()))
        .collect();
    none("files over the limit", &long);
}

#[test]
fn unsafe_stands_only_where_the_design_allows_it() {
    let allowed = [
        "worker/engine/src/simd",
        "worker/engine/src/map.rs",
        "worker/engine/src/pool.rs",
        "worker/engine/src/cuda",
        "worker/engine/kernels/src",
    ];
    none(
        "unsafe outside simd, map, pool, cuda and kernels",
        &offenders(&PRODUCTION, &["unsafe {", "unsafe fn", "unsafe impl"], &allowed),
    );
}

/// A closure does not have the target features of the kernel it stands in: where the compiler does not inline it, each
/// instruction becomes a call, and the kernel twenty times as slow.
#[test]
fn no_closure_computes_in_registers() {
    let body = |line: &str| ["(|", "= |"].iter().find_map(|word| line.split_once(word).map(|cut| cut.1.to_owned()));
    let calls = |body: &str| body.split("V::").skip(1).any(|name| name.starts_with(char::is_lowercase));
    let computes = |path: &str, line: &str| {
        let level = path.ends_with("/avx2.rs") || path.ends_with("/avx512.rs");
        body(line).is_some_and(|body| level || calls(&body) || body.contains("_mm"))
    };
    let mut found = Vec::new();
    for (path, text) in sources(&["worker/engine/src/simd"]) {
        let lines = production(&text).lines().enumerate().filter(|(_, line)| computes(&path, line));
        found.extend(lines.map(|(number, line)| format!("{path}:{}: {}", number + 1, line.trim())));
    }
    none("closures over registers", &found);
}

#[test]
fn only_protocol_subject_writes_subjects() {
    let roots = [
        "\"jobs.",
        "\"result.",
        "\"done.",
        "\"id.",
        "\"step.",
        "\"forgotten.",
        "\"forgiven.",
        "\"dead.",
        "\"cancel.",
        "\"fleet.",
        "\"submit.",
        "\"infer.",
    ];
    let folders = ["protocol/runtime/src", "dispatcher/src", "worker/src", "ops/src"];
    none("subjects written outside protocol::subject", &offenders(&folders, &roots, &[]));
}

#[test]
fn only_settle_ingress_and_steps_ack() {
    let acks = ["double_ack", "AckKind::Ack", "AckKind::Nak", "AckKind::Term", ".ack()"];
    let allowed = ["worker/src/settle", "dispatcher/src/ingress", "dispatcher/src/steps"];
    none("acks elsewhere", &offenders(&PRODUCTION, &acks, &allowed));
}

#[test]
fn only_main_reads_the_environment() {
    let folders = ["protocol/src", "protocol/runtime/src", "dispatcher/src", "worker/src", "worker/engine/src"];
    let words = ["std::env::var", "env::vars", "env::var(", "env::var_os", "signal::unix", "signal::ctrl_c"];
    none(
        "environment or signals outside main.rs",
        &offenders(&folders, &words, &["/main.rs", "engine/src/fixture.rs"]),
    );
}

#[test]
fn crates_know_only_what_they_may() {
    let absent = [
        ("protocol/Cargo.toml", &["tokio", "async-nats", "redis", "cudarc", "axum"][..]),
        ("worker/engine/Cargo.toml", &["tokio", "async-nats", "redis", "protocol", "runtime", "axum"][..]),
        ("dispatcher/Cargo.toml", &["engine", "worker", "cudarc"][..]),
        ("worker/Cargo.toml", &["axum", "dispatcher"][..]),
    ];
    for (manifest, names) in absent {
        let text = fs::read_to_string(root().join(manifest)).unwrap();
        let dependencies = text.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
        for name in names {
            let known = dependencies.lines().any(|line| line.split(['.', ' ', '=']).next() == Some(name));
            assert!(!known, "{manifest} may not know {name}");
        }
    }
}

#[test]
fn every_dependency_has_its_reason() {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let listed = text.split("[workspace.dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let outside = listed.lines().filter(|line| line.contains('=') && !line.contains("path ="));
    let bare: Vec<String> = outside.filter(|line| !line.contains('#')).map(str::to_owned).collect();
    none("dependencies without a reason", &bare);
}

#[test]
fn every_error_code_has_its_page() {
    let missing: Vec<String> = ErrorCode::ALL
        .iter()
        .map(|code| format!("ops/runbooks/{code}.md"))
        .filter(|page| !root().join(page).is_file())
        .collect();
    none("error codes without a page", &missing);
}

#[test]
fn nothing_is_left_unfinished() {
    let mut folders = PRODUCTION.to_vec();
    folders.push("tests/src");
    let words = ["todo!(", "unimplemented!(", "dbg!(", "#[ignore", "FIXME"];
    none("unfinished", &offenders(&folders, &words, &[]));
}

#[test]
fn every_metric_is_named_in_a_metrics_file() {
    let macros = ["counter!(\"", "gauge!(\"", "histogram!(\""];
    none("metric names outside metrics.rs", &offenders(&PRODUCTION, &macros, &["metrics.rs"]));
}
