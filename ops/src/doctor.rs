//! `flotilla doctor`: each check says what it saw and, where something is wrong, the command that mends it.

use std::time::Duration;

use clap::Args;
use protocol::heartbeat::{EXPIRY, INTERVAL};
use protocol::stream::{INGRESS, JOBS, RESULTS};
use runtime::config::{Common, Faults};
use serde::Serialize;

use crate::fleet;
use crate::home::Home;
use crate::machine::{Machine, disk_free_bytes, gib};
use crate::provision::{self, Server, version_in};
use crate::shelf::{Shelf, Standing};
use crate::state::{Phase, State};

/// Less than this and the streams' caps may not fit.
const DISK_FREE_MIN: u64 = 8 << 30;
/// The model, the servers and room to work.
const MEMORY_MIN: u64 = 1 << 30;
/// What the contract's largest body needs.
const MAX_PAYLOAD_MIN: usize = 8_000_000;
const REDIS_WAIT: Duration = Duration::from_secs(2);

/// `flotilla doctor`
#[derive(Clone, Debug, Args)]
pub(crate) struct Doctor {
    /// Print JSON.
    #[arg(long, short, env = "FLOTILLA_JSON")]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One check's outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    saw: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

fn ok(name: &'static str, saw: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Ok, saw: saw.into(), mend: None }
}

fn warn(name: &'static str, saw: impl Into<String>, mend: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Warn, saw: saw.into(), mend: Some(mend.into()) }
}

fn fail(name: &'static str, saw: impl Into<String>, mend: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Fail, saw: saw.into(), mend: Some(mend.into()) }
}

/// What is looked at.
pub(crate) struct Patient<'a> {
    /// Where things lie.
    pub(crate) home: &'a Home,
    /// Address of the NATS server.
    pub(crate) nats: &'a str,
    /// As the roles would read it.
    pub(crate) config: Result<Common, Faults>,
}

impl Doctor {
    /// Checks and prints. Whether nothing failed.
    pub(crate) async fn run(self, patient: Patient<'_>) -> bool {
        let mut checks = vec![machine(), memory(), disk(patient.home)];
        checks.extend([server(&provision::NATS, patient.home), server(&provision::REDIS, patient.home)]);
        checks.push(config(&patient));
        checks.extend(models(&patient));
        checks.extend(local_fleet(patient.home));
        checks.extend(bus(&patient).await);
        checks.push(redis(&patient).await);
        if self.json {
            println!("{}", serde_json::to_string_pretty(&checks).expect("checks always encode"));
        } else {
            checks.iter().for_each(print);
        }
        checks.iter().all(|check| check.verdict != Verdict::Fail)
    }
}

fn print(check: &Check) {
    let word = match check.verdict {
        Verdict::Ok => "ok  ",
        Verdict::Warn => "warn",
        Verdict::Fail => "FAIL",
    };
    println!("{word}  {}: {}", check.name, check.saw);
    if let Some(mend) = &check.mend {
        println!("      -> {mend}");
    }
}

fn machine() -> Check {
    let machine = Machine::look();
    let saw = machine.to_string();
    if cfg!(target_os = "linux") {
        return ok("machine", saw);
    }
    warn("machine", saw, "the local fleet is made for Linux; elsewhere use docker compose up")
}

fn memory() -> Check {
    match Machine::look().memory_bytes {
        Some(bytes) if bytes < MEMORY_MIN => {
            warn("memory", format!("{:.1} GiB", gib(bytes)), "give the machine or container 1 GiB at least")
        }
        Some(bytes) => ok("memory", format!("{:.1} GiB", gib(bytes))),
        None => ok("memory", "could not be read"),
    }
}

fn disk(home: &Home) -> Check {
    match disk_free_bytes(&home.root) {
        Some(free) if free < DISK_FREE_MIN => {
            let saw = format!("{:.1} GiB free at {}", gib(free), home.root.display());
            warn("disk", saw, "free 8 GiB, or lower jobs_bytes_max and results_bytes_max in [streams] of flotilla.toml")
        }
        Some(free) => ok("disk", format!("{:.1} GiB free", gib(free))),
        None => ok("disk", "could not be read"),
    }
}

fn server(server: &Server, home: &Home) -> Check {
    match server.installed(&home.bin()) {
        Some((major, minor)) => ok(server.name, format!("{major}.{minor} in {}", home.bin().display())),
        None => warn(server.name, "not here yet, or too old", "flotilla provision"),
    }
}

fn config(patient: &Patient<'_>) -> Check {
    let file = patient
        .home
        .config
        .as_ref()
        .map_or_else(|| "no flotilla.toml: defaults".to_owned(), |file| file.display().to_string());
    match &patient.config {
        Ok(_) => ok("configuration", file),
        Err(faults) => {
            fail("configuration", format!("{file}: {}", faults.0.join("; ")), "mend these lines; all are listed")
        }
    }
}

fn models(patient: &Patient<'_>) -> Vec<Check> {
    let Ok(config) = &patient.config else { return vec![] };
    let shelf = Shelf::of(patient.home);
    let check = |model: &runtime::config::ModelEntry| {
        let pull = format!("flotilla models pull {}", model.name);
        match shelf.examine(model) {
            Ok(Standing::Pinned) => ok("model", format!("{}, sha256 as pinned", model.name)),
            Ok(Standing::Other(_)) => {
                fail("model", format!("{} differs from its pin", shelf.file(model).display()), pull)
            }
            Ok(Standing::Absent) => warn("model", format!("{} is not here", model.name), pull),
            Err(error) => {
                fail("model", format!("{error:#}"), format!("let this user read {}", shelf.file(model).display()))
            }
        }
    };
    config.models.iter().map(check).collect()
}

fn local_fleet(home: &Home) -> Option<Check> {
    const NAME: &str = "local fleet";
    Some(match State::read(home) {
        Err(error) => fail(NAME, format!("{error:#}"), format!("rm '{}/state.json'", home.run().display())),
        Ok(None) => warn(NAME, "not up", "flotilla up --detach"),
        Ok(Some(state)) if !state.supervised() && state.leftovers() => {
            fail(NAME, "its supervisor was killed and left processes behind", "flotilla down")
        }
        Ok(Some(state)) if !state.supervised() => warn(NAME, "its supervisor was killed", "flotilla up --detach"),
        Ok(Some(state)) => {
            let restarts: u32 = state.children.iter().map(|child| child.restarts).sum();
            let missing: Vec<&str> = state
                .children
                .iter()
                .filter(|child| child.process.is_none())
                .map(|child| child.name.as_str())
                .collect();
            let saw =
                format!("{} processes, {restarts} restarts, {:?}", state.children.len(), state.phase).to_lowercase();
            if state.phase == Phase::Ready && missing.is_empty() && restarts == 0 {
                ok(NAME, saw)
            } else {
                let missing = if missing.is_empty() { String::new() } else { format!(", down: {}", missing.join(" ")) };
                warn(NAME, saw + &missing, format!("tail -n 20 {}/*.log", home.logs().display()))
            }
        }
    })
}

async fn bus(patient: &Patient<'_>) -> Vec<Check> {
    const UP: &str = "flotilla up --detach, or name another server with --nats";
    let Ok(client) = fleet::connect(patient.nats).await else {
        return vec![fail("NATS", format!("no server answers at {}", patient.nats), UP)];
    };
    let info = client.server_info();
    let at = format!("{} at {}", info.version, patient.nats);
    let mut checks = vec![match version_in(&info.version) {
        Some(version) if version >= (2, 12) => ok("NATS", at),
        _ => fail("NATS", at, "the fleet needs nats-server 2.12 or later: upgrade this server"),
    }];
    checks.push(if !info.jetstream {
        fail("JetStream", "off", "start the server with -js, or with ops/nats/flotilla.conf")
    } else if info.max_payload < MAX_PAYLOAD_MIN {
        let saw = format!("on, but max_payload is {} bytes", info.max_payload);
        warn(
            "JetStream",
            saw,
            "set max_payload: 8MB in the server's configuration; larger bodies are refused until then",
        )
    } else {
        ok("JetStream", format!("on, max_payload {} bytes", info.max_payload))
    });
    checks.push(streams(&client).await);
    let dispatchers = fleet::dispatchers(&client, Duration::from_millis(500)).await.unwrap_or_default();
    checks.push(match dispatchers.len() {
        0 => fail(
            "dispatchers",
            "none answers",
            "flotilla up --detach; if it is up: tail -n 20 .flotilla/log/dispatcher.log",
        ),
        count => ok("dispatchers", count.to_string()),
    });
    let workers = fleet::workers(&client, INTERVAL * 2).await.unwrap_or_default();
    checks.push(match workers.len() {
        0 => {
            let saw = format!("no heartbeat; a silent worker counts as dead after {} s", EXPIRY.as_secs());
            fail("workers", saw, "flotilla up --detach; if it is up: tail -n 20 .flotilla/log/worker-1.log")
        }
        count => ok("workers", format!("{count}, {} free slots", workers.iter().map(|w| w.slots_free).sum::<u32>())),
    });
    checks
}

async fn streams(client: &async_nats::Client) -> Check {
    const NAME: &str = "streams";
    match fleet::queues(client).await {
        Err(error) => fail(NAME, format!("{error:#}"), "flotilla status shows what answers"),
        Ok((streams, lanes)) => {
            let absent: Vec<&str> =
                [INGRESS, JOBS, RESULTS].into_iter().filter(|name| streams.iter().all(|s| s.name != *name)).collect();
            let dead = streams.iter().find(|s| s.name == protocol::stream::DEADLETTER).map_or(0, |s| s.messages);
            if !absent.is_empty() {
                fail(
                    NAME,
                    format!("missing: {}", absent.join(" ")),
                    "a dispatcher makes them at start: flotilla up --detach",
                )
            } else if dead > 0 {
                warn(NAME, format!("{dead} dead letters"), "nats stream view DEADLETTER shows them with their reasons")
            } else {
                ok(NAME, format!("{}, {} lanes, no dead letters", streams.len(), lanes.len()))
            }
        }
    }
}

/// A local fleet says itself where its Redis is; else the configuration does.
async fn redis(patient: &Patient<'_>) -> Check {
    const NAME: &str = "Redis";
    let local = State::read(patient.home).ok().flatten().filter(State::supervised).map(|state| state.redis);
    let Some(url) = local.or_else(|| patient.config.as_ref().ok().map(|config| config.redis.sessions.clone())) else {
        return warn(NAME, "not looked for: the configuration cannot be read", "mend the configuration first");
    };
    match tokio::time::timeout(REDIS_WAIT, eviction(&url)).await {
        Ok(Ok(policy)) if policy.starts_with("allkeys") => {
            let saw = format!("answers, but maxmemory-policy is {policy}: sessions may vanish");
            warn(
                NAME,
                saw,
                "redis-cli config set maxmemory-policy noeviction, or a server of its own for [redis] cache",
            )
        }
        Ok(Ok(policy)) => ok(NAME, format!("answers, maxmemory-policy {policy}")),
        Ok(Err(_)) | Err(_) => {
            // The address may hold a password.
            let host = url.rsplit_once('@').map_or(url.as_str(), |(_, host)| host);
            let saw = format!("no answer from {host}: work without sessions goes on, uncached");
            warn(NAME, saw, "flotilla up --detach, or set [redis] sessions in flotilla.toml")
        }
    }
}

async fn eviction(url: &str) -> redis::RedisResult<String> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    redis::cmd("PING").query_async::<()>(&mut connection).await?;
    // A managed server may refuse the question; it answers, and that is what counts.
    let policy =
        redis::cmd("CONFIG").arg("GET").arg("maxmemory-policy").query_async::<Vec<String>>(&mut connection).await;
    Ok(policy.ok().and_then(|pair| pair.into_iter().nth(1)).unwrap_or_else(|| "unknown".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_comes_with_what_mends_it() {
        for check in [warn("a", "b", "c"), fail("a", "b", "c")] {
            assert!(check.mend.is_some());
        }
        let json = serde_json::to_string(&ok("disk", "100 GiB free")).unwrap();
        assert_eq!(json, r#"{"name":"disk","verdict":"ok","saw":"100 GiB free"}"#);
    }
}
