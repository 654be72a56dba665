//! What a local fleet consists of: ports, programs, arguments and environment, decided before anything is started.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::child::Spec;
use crate::home::Home;
use crate::machine::{NATS_PORT, REDIS_PORT, free_port};
use crate::provision;
use crate::state::Role;

/// Metrics and health of the dispatcher; workers follow.
const TELEMETRY_PORT: u16 = 9464;
/// The server's configuration where no clone has one.
const NATS_CONF: &str = include_str!("../nats/flotilla.conf");

/// A fleet before it is started.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Address of its NATS server.
    pub(crate) nats: String,
    /// Address of its Redis.
    pub(crate) redis: String,
    /// Ports of the two servers.
    pub(crate) ports: [u16; 2],
    /// Its processes, in the order of starting.
    pub(crate) specs: Vec<Spec>,
    /// What a person should know.
    pub(crate) remarks: Vec<String>,
}

impl Plan {
    /// A dispatcher and so many workers, whose programs lie in `programs`.
    pub(crate) fn make(workers: usize, home: &Home, programs: &Path) -> Result<Plan> {
        let mut remarks = Vec::new();
        let mut port = |wanted: u16, whose: &str| -> Result<u16> {
            let port = free_port(wanted).context("find a free port")?;
            if port != wanted {
                remarks.push(format!("port {wanted} is taken: {whose} listens on {port}"));
            }
            Ok(port)
        };
        let ports = [port(NATS_PORT, "NATS")?, port(REDIS_PORT, "Redis")?];
        let nats = format!("nats://127.0.0.1:{}", ports[0]);
        let redis = format!("redis://127.0.0.1:{}", ports[1]);
        let common = vec![
            ("FLOTILLA_NATS__URL".to_owned(), nats.clone()),
            ("FLOTILLA_REDIS__SESSIONS".to_owned(), redis.clone()),
            ("FLOTILLA_REDIS__CACHE".to_owned(), redis.clone()),
            ("FLOTILLA_TELEMETRY__LOG".to_owned(), "pretty".to_owned()),
            ("NO_COLOR".to_owned(), "1".to_owned()),
        ];
        let mut specs = vec![nats_server(home, ports[0])?, redis_server(home, ports[1])?];
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut telemetry = TELEMETRY_PORT;
        let mut role = |name: String, role: Role, own: Vec<(String, String)>| -> Result<Spec> {
            let program = programs.join(if role == Role::Worker { "worker" } else { "dispatcher" });
            let listen = format!("127.0.0.1:{}", free_port(telemetry).context("find a free port")?);
            telemetry += 1;
            let mut environment = common.clone();
            environment.push(("FLOTILLA_TELEMETRY__LISTEN".to_owned(), listen.clone()));
            environment.extend(own);
            let telemetry = Some(format!("http://{listen}"));
            Ok(Spec { name, role, program, arguments: arguments(home), environment, telemetry })
        };
        specs.push(role("dispatcher".to_owned(), Role::Dispatcher, vec![])?);
        for number in 1..=workers {
            specs.push(role(
                format!("worker-{number}"),
                Role::Worker,
                worker_environment(home, threads(cores, workers)),
            )?);
        }
        Ok(Plan { nats, redis, ports, specs, remarks })
    }
}

/// Threads of each worker: the cores shared out, and one at least.
fn threads(cores: usize, workers: usize) -> usize {
    (cores / workers.max(1)).max(1)
}

fn arguments(home: &Home) -> Vec<String> {
    home.config.as_ref().map(|file| vec!["--config".to_owned(), file.display().to_string()]).unwrap_or_default()
}

fn worker_environment(home: &Home, threads: usize) -> Vec<(String, String)> {
    vec![
        ("FLOTILLA_WORKER__THREADS".to_owned(), threads.to_string()),
        ("FLOTILLA_WORKER__MODELS_DIR".to_owned(), home.models().display().to_string()),
    ]
}

fn nats_server(home: &Home, port: u16) -> Result<Spec> {
    let data = made(home.data("nats"))?;
    let mut conf = home.root.join("ops/nats/flotilla.conf");
    if !conf.is_file() {
        conf = made(home.run())?.join("nats.conf");
        fs::write(&conf, NATS_CONF).with_context(|| format!("write {}", conf.display()))?;
    }
    let arguments = ["-c", &text(&conf), "-a", "127.0.0.1", "-p", &port.to_string(), "-sd", &text(&data)];
    Ok(server("nats", Role::Nats, home.bin().join(provision::NATS.name), &arguments))
}

/// Sessions must outlive a restart of the fleet, so they are written out; nothing is evicted, everything has a time to live.
fn redis_server(home: &Home, port: u16) -> Result<Spec> {
    let data = made(home.data("redis"))?;
    let (port, data) = (port.to_string(), text(&data));
    let arguments = ["--bind", "127.0.0.1", "--port", &port, "--dir", &data, "--save", "60 1", "--appendonly", "no"];
    Ok(server("redis", Role::Redis, home.bin().join(provision::REDIS.name), &arguments))
}

fn server(name: &str, role: Role, program: PathBuf, arguments: &[&str]) -> Spec {
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    Spec { name: name.to_owned(), role, program, arguments, environment: vec![], telemetry: None }
}

fn made(dir: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_shared_out() {
        assert_eq!([threads(8, 1), threads(8, 3), threads(2, 4), threads(1, 0)], [8, 2, 1, 1]);
    }

    #[test]
    fn a_fleet_of_two_workers_has_five_processes_with_their_own_ports() {
        let dir = std::env::temp_dir().join(format!("flotilla-plan-{}", std::process::id()));
        let home = Home::find(Some(dir.clone()), &dir);
        let plan = Plan::make(2, &home, Path::new("/bin")).unwrap();
        let names: Vec<&str> = plan.specs.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names, ["nats", "redis", "dispatcher", "worker-1", "worker-2"]);
        let mut ports: Vec<&str> = plan.specs.iter().filter_map(|spec| spec.telemetry.as_deref()).collect();
        ports.dedup();
        assert_eq!(ports.len(), 3);
        assert!(plan.specs[3].environment.contains(&("FLOTILLA_NATS__URL".to_owned(), plan.nats.clone())));
        fs::remove_dir_all(&dir).unwrap();
    }
}
