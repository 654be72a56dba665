//! Puts compiled kernels into the program, where `flotilla kernels build` has made them; without them everything builds.

use std::fs;
use std::path::Path;

#[allow(dead_code, unreachable_pub)] // reason: the crate uses the rest, and shows it
#[path = "kernels/src/recipe.rs"]
mod recipe;

const KERNELS: &str = "kernels";

fn main() {
    println!("cargo::rerun-if-changed={KERNELS}");
    println!("cargo::rerun-if-changed=kernels/src/recipe.rs");
    let built = Path::new(KERNELS).join("built");
    let found = if built.is_dir() { embedded(&built) } else { Vec::new() };
    let text = format!("const BUILT: &[Built] = &[{}];\n", found.concat());
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&out).join("built.rs"), text).expect("write into OUT_DIR");
}

/// Every compiled kernel as an element of the list; none where they are stale.
fn embedded(built: &Path) -> Vec<String> {
    let files = sources();
    if fs::read_to_string(built.join(recipe::MADE_OF)).ok() != Some(recipe::made_of(&files)) {
        stale(built);
        return Vec::new();
    }
    let stems: Vec<&str> = files.keys().filter_map(|name| name.strip_suffix(".cu")).collect();
    let each = stems.iter().flat_map(|stem| recipe::TARGETS.map(|target| (*stem, target)));
    each.map(|(stem, target)| element(built, stem, target)).collect()
}

fn element(built: &Path, stem: &str, target: recipe::Target) -> String {
    let file = built.join(target.file(stem));
    let file = file.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    format!("Built {{ stem: {stem:?}, target: Target::{target:?}, code: include_bytes!({file:?}) }},")
}

fn sources() -> recipe::Files {
    let folder = fs::read_dir(KERNELS).expect("the folder of kernels");
    let paths = folder.map(|entry| entry.expect("an entry of it").path());
    let named = paths.filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path)));
    let sources = named.filter(|(name, _)| recipe::is_source(name));
    sources.map(|(name, path)| (name, fs::read_to_string(path).expect("a source of kernels"))).collect()
}

/// A release must not run kernels of other sources than its own.
fn stale(built: &Path) {
    let said = format!(
        "worker/engine/{} is older than its sources: flotilla kernels build, or remove it to build without kernels",
        built.display()
    );
    let release = std::env::var("PROFILE").as_deref() == Ok("release");
    println!("cargo::{}={said}", if release { "error" } else { "warning" });
}
