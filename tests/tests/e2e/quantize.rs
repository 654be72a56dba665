//! `flotilla models quantize`: the new file becomes a model of the fleet by the entry that is printed.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tests::client::{Ask, Client};
use tests::fleet::{FleetOptions, Model, configuration};
use tests::role::{Role, programs};
use tests::servers::{NatsServer, RedisServer};

const TEXTS: [&str; 3] = ["a cup of coffee", "an espresso", "a railway station"];

/// `flotilla models quantize --int8 MODEL` over the files of `folder`.
fn quantize(folder: &Path, model: &str) -> Output {
    let mut command = Command::new(programs().join("flotilla"));
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("FLOTILLA_")) {
        command.env_remove(key);
    }
    command.args(["models", "quantize", "--int8", model]).arg("--home").arg(folder);
    command.arg("--config").arg(folder.join("flotilla.toml")).output().expect("build first: cargo build --workspace")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn refused(folder: &Path, model: &str) -> String {
    let output = quantize(folder, model);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{output:?}");
    text(&output.stderr)
}

/// An entry of a sentence encoder whose file has these bytes.
fn entry(name: &str, bytes: &[u8]) -> String {
    format!(
        "[[model]]\nname = \"{name}\"\ntasks = [\"embed\"]\nmodality = \"text\"\nfile = \"{name}.f32.safetensors\"\n\
         sha256 = \"{:x}\"\nprecision = \"f32\"\ncontext = 48\n",
        Sha256::digest(bytes)
    )
}

fn put(folder: &Path, name: &str, bytes: &[u8]) {
    let file = folder.join("models").join(name).join(format!("{name}.f32.safetensors"));
    std::fs::create_dir_all(file.parent().expect("a folder")).expect("a temporary folder");
    std::fs::write(file, bytes).expect("a temporary file");
}

async fn vectors(client: &Client, model: &str) -> Vec<Vec<f64>> {
    let input: Vec<Value> = TEXTS.iter().map(|text| json!({"type": "text", "text": text})).collect();
    let ask = json!({"input": input, "task": "embed", "model": model, "cache": "bypass"});
    let reply = client.ask(&Ask::json(&ask)).await;
    assert_eq!(reply.status(), "done", "{reply:?}");
    let numbers = |output: &Value| serde_json::from_value(output["vector"].clone()).expect("numbers");
    reply.value()["output"].as_array().expect("outputs").iter().map(numbers).collect()
}

#[tokio::test]
async fn a_rounded_model_is_served_beside_the_stored_one() {
    let (nats, redis, folder) = (NatsServer::start(), RedisServer::start(), tempfile::tempdir().unwrap());
    let (folder, options) = (folder.path(), FleetOptions { model: Model::Tiny, ..FleetOptions::default() });
    let (bytes, file) = (engine::fixture::tiny_bert_bytes(5, &[]), folder.join("flotilla.toml"));
    put(folder, "encoder", &bytes);
    let catalogue = configuration(&nats.url(), &redis, &options, folder) + &entry("encoder", &bytes);
    std::fs::write(&file, &catalogue).unwrap();
    let output = quantize(folder, "encoder");
    let said = text(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("tensors rounded") && said.contains("least cosine"), "{said}");
    let (_, printed) = said.split_once("[[model]]").expect("an entry");
    std::fs::write(&file, format!("{catalogue}[[model]]{printed}")).unwrap();
    let mut roles = [Role::start("dispatcher", "dispatcher", folder), Role::start("worker", "worker", folder)];
    for role in &mut roles {
        role.ready().await;
    }
    let client = Client::connect(&nats.url()).await;
    let (stored, rounded) = (vectors(&client, "encoder").await, vectors(&client, "encoder-int8").await);
    assert_ne!(stored, rounded);
    for (stored, rounded) in stored.iter().zip(&rounded) {
        let cosine: f64 = stored.iter().zip(rounded).map(|(a, b)| a * b).sum();
        assert!(cosine >= 0.999, "{cosine}");
    }
    // Once more: the same bytes, which the catalogue has already.
    let again = quantize(folder, "encoder");
    assert!(again.status.success() && text(&again.stdout).contains("in the catalogue already"), "{again:?}");
}

#[test]
fn what_cannot_be_quantised_is_said_in_a_sentence() {
    let (redis, folder) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let folder = folder.path();
    let narrow = engine::fixture::tensors_file(&[("family", "bert")], &[("x.weight", &[2, 31], vec![0.5; 62])]);
    let options = FleetOptions { model: Model::Tiny, ..FleetOptions::default() };
    let mut catalogue = configuration("nats://127.0.0.1:1", &redis, &options, folder);
    catalogue += &entry("absent", b"");
    catalogue += &entry("narrow", &narrow);
    catalogue += &entry("other", b"its pin");
    put(folder, "narrow", &narrow);
    put(folder, "other", b"another file");
    std::fs::write(folder.join("flotilla.toml"), catalogue).unwrap();
    for (model, words) in [
        ("nobody", "models list"),
        ("absent", "flotilla models pull absent"),
        ("other", "flotilla models pull other"),
        ("tiny", "already"),
        ("narrow", "blocks of 32"),
    ] {
        let said = refused(folder, model);
        assert!(said.contains(words), "{model}: {said}");
    }
    let left: Vec<_> =
        std::fs::read_dir(folder.join("models")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("int8")), "{left:?}");
}
