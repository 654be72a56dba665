//! A client that is not ours: the README's snippets, run as they stand.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tests::client::{Ask, Client};
use tests::fleet::{Fleet, FleetOptions, Model};

/// The client library, one line: `name==version`.
const REQUIREMENTS: &str = include_str!("../../clients/requirements.txt");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate stands in the workspace").to_path_buf()
}

fn done(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; this test needs python3 with its venv module"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).expect("a text")
}

/// A virtual environment with the client library, made when it is missing.
fn python() -> PathBuf {
    let venv = root().join(".flotilla/venv");
    let python = venv.join("bin/python3");
    let pinned = REQUIREMENTS.trim_end();
    let check = format!("import importlib.metadata as m; assert 'nats-py==' + m.version('nats-py') == '{pinned}'");
    let there = Command::new(&python).args(["-c", &check]).output().is_ok_and(|output| output.status.success());
    if !there {
        done(Command::new("python3").args(["-m", "venv"]).arg(&venv));
        done(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", pinned]));
    }
    python
}

async fn run(python: &Path, script: &str, url: &str) -> String {
    run_with(python, script, &[], url).await
}

async fn run_with(python: &Path, script: &str, arguments: &[PathBuf], url: &str) -> String {
    let mut command = Command::new(python);
    command.arg(root().join("tests/clients").join(script)).args(arguments).env("NATS_URL", url);
    tokio::task::spawn_blocking(move || done(&mut command)).await.expect("a finished script")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_in_python_get_their_answers() {
    let python = python();
    let (fleet, client) = Fleet::start(FleetOptions { model: Model::SmolLm2, ..FleetOptions::default() }).await;
    let url = fleet.nats.url();
    let expected = expected(&client).await;
    assert!(expected.contains("Paris"), "{expected}");

    assert_eq!(run(&python, "raw.py", &url).await.trim_end(), expected);
    assert_eq!(run(&python, "stream.py", &url).await.trim_end(), expected);
    let json: Value = serde_json::from_str(&run(&python, "ask_json.py", &url).await).expect("JSON");
    assert_eq!(json["output"][0]["text"], expected);
    assert_eq!(json["model"], fleet.model());
}

async fn expected(client: &Client) -> String {
    client.ask(&Ask::raw("What is the capital of France?").header("Flotilla-Cache", "bypass")).await.answer()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voice_message_is_part_of_the_conversation() {
    let python = python();
    let (fleet, _client) = Fleet::start(FleetOptions { model: Model::Every, ..FleetOptions::default() }).await;
    let recording = root().join("ops/examples/sentence.flac");
    let told: Value =
        serde_json::from_str(&run_with(&python, "voice.py", &[recording], &fleet.nats.url()).await).expect("JSON");
    assert_eq!(told["written"], told["alone"], "{told}");
    assert!(told["spoken"].as_str().is_some_and(|answer| !answer.trim().is_empty()), "{told}");
}
