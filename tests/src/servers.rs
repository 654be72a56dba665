//! Real servers as child processes: free ports, folders of their own, killed on drop, restartable on the same port.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::port::Port;

/// A server that does not answer by then never will.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A nats-server with JetStream.
pub struct NatsServer(Server);

/// Three nats-servers that keep every stream three times.
pub struct NatsCluster(Vec<Server>);

/// A valkey-server or redis-server that keeps nothing over a restart.
pub struct RedisServer(Server);

impl NatsServer {
    /// Starts one.
    ///
    /// # Panics
    /// When there is no binary, or it does not start.
    #[must_use]
    pub fn start() -> Self {
        Self(Server::start(&Kind {
            binary: find(&["nats-server"]),
            arguments: |port, folder| {
                let conf = folder.join("nats.conf");
                std::fs::write(&conf, "max_payload: 8MB\njetstream { strict: true }\n").expect("a writable folder");
                vec!["-c".into(), text(&conf), "-a".into(), "127.0.0.1".into(), "-p".into(), port.to_string()]
                    .into_iter()
                    .chain(["-sd".into(), text(&folder.join("data"))])
                    .collect()
            },
            hello: b"",
            greeting: b"INFO ",
        }))
    }

    /// Where clients find it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.0.address())
    }

    /// Kills it, as a crash would. What it stored stays.
    pub fn stop(&mut self) {
        self.0.stop();
    }

    /// Starts it again on the same port, with what it stored.
    pub fn start_again(&mut self) {
        self.0.start_again();
    }

    /// Starts it again on the same port with an empty store: its volume was lost.
    ///
    /// # Panics
    /// When the store cannot be removed.
    pub fn start_empty(&mut self) {
        self.0.stop();
        std::fs::remove_dir_all(self.0.folder.path().join("data")).expect("a store that can be removed");
        self.0.start_again();
    }
}

impl NatsCluster {
    /// Starts all three, without waiting for them to have a leader.
    ///
    /// # Panics
    /// When there is no binary, or they do not start.
    #[must_use]
    pub fn start() -> Self {
        let binary = find(&["nats-server"]);
        let routes = [Port::take(), Port::take(), Port::take()];
        let numbers = routes.each_ref().map(Port::number);
        let members = routes.into_iter().enumerate();
        let mut servers: Vec<Server> = members.map(|(own, route)| member(&binary, own, route, &numbers)).collect();
        servers.iter_mut().for_each(Server::run);
        Self(servers)
    }

    /// Where clients find them: with commas between.
    #[must_use]
    pub fn url(&self) -> String {
        let urls: Vec<String> = self.0.iter().map(|server| format!("nats://{}", server.address())).collect();
        urls.join(",")
    }

    /// Kills one by its name, as a crash would. What it stored stays. Its number.
    ///
    /// # Panics
    /// When none has this name.
    pub fn stop(&mut self, name: &str) -> usize {
        let number = (0..self.0.len()).find(|&number| member_name(number) == name).expect("a name of the cluster");
        self.0[number].stop();
        number
    }

    /// Starts one again on the same ports, with what it stored.
    pub fn start_again(&mut self, number: usize) {
        self.0[number].start_again();
    }
}

fn member_name(number: usize) -> String {
    format!("nats-{number}")
}

fn member(binary: &Path, own: usize, route: Port, routes: &[u16]) -> Server {
    let (folder, port) = (TempDir::new().expect("a folder for the server"), Port::take());
    let urls: Vec<String> = routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
    let text = format!(
        "server_name: {name}\nlisten: \"{address}\"\nmax_payload: 8MB\n\
         jetstream {{ strict: true, store_dir: \"{data}\" }}\n\
         cluster {{ name: tests, listen: \"{route}\", routes: [{urls}] }}\n",
        name = member_name(own),
        address = port.address(),
        data = folder.path().join("data").display(),
        route = route.address(),
        urls = urls.join(", "),
    );
    let conf = folder.path().join("nats.conf");
    std::fs::write(&conf, text).expect("a writable folder");
    let arguments = vec!["-c".to_owned(), self::text(&conf)];
    Server {
        binary: binary.to_owned(),
        arguments,
        hello: b"",
        greeting: b"INFO ",
        port,
        _route: Some(route),
        child: None,
        folder,
    }
}

impl RedisServer {
    /// Starts one.
    ///
    /// # Panics
    /// When there is no binary, or it does not start.
    #[must_use]
    pub fn start() -> Self {
        Self(Server::start(&Kind {
            binary: find(&["valkey-server", "redis-server"]),
            arguments: |port, folder| {
                let words = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"];
                let own = [port.to_string(), "--dir".to_owned(), text(folder)];
                words.iter().map(|&word| word.to_owned()).chain(own).collect()
            },
            hello: b"PING\r\n",
            greeting: b"+PONG",
        }))
    }

    /// Where clients find it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.0.address())
    }

    /// Kills it, as a crash would. What it held is lost.
    pub fn stop(&mut self) {
        self.0.stop();
    }

    /// Starts it again on the same port, empty.
    pub fn start_again(&mut self) {
        self.0.start_again();
    }
}

/// How a server is started, and known to answer.
struct Kind {
    binary: PathBuf,
    arguments: fn(u16, &Path) -> Vec<String>,
    hello: &'static [u8],
    greeting: &'static [u8],
}

struct Server {
    binary: PathBuf,
    arguments: Vec<String>,
    hello: &'static [u8],
    greeting: &'static [u8],
    port: Port,
    /// Where a member of a cluster is reached by the others.
    _route: Option<Port>,
    child: Option<Child>,
    /// Removed with the server.
    folder: TempDir,
}

impl Server {
    fn start(kind: &Kind) -> Self {
        let (folder, port) = (TempDir::new().expect("a folder for the server"), Port::take());
        let mut server = Self {
            binary: kind.binary.clone(),
            arguments: (kind.arguments)(port.number(), folder.path()),
            hello: kind.hello,
            greeting: kind.greeting,
            port,
            _route: None,
            child: None,
            folder,
        };
        server.run();
        server
    }

    fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Starts the process and waits until it answers.
    fn run(&mut self) {
        let path = self.folder.path().join("log");
        let log = File::create(&path).expect("a writable folder");
        let command = Command::new(&self.binary)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log)
            .spawn();
        let child = self.child.insert(command.expect("a server that can be run"));
        let start = Instant::now();
        while start.elapsed() < START_TIMEOUT && child.try_wait().expect("our own child").is_none() {
            if greets(self.port.address(), self.hello, self.greeting) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let log = std::fs::read_to_string(path).unwrap_or_default();
        panic!("{} does not start:\n{log}", self.binary.display());
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }

    fn start_again(&mut self) {
        self.stop();
        self.run();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn greets(address: SocketAddr, hello: &[u8], greeting: &[u8]) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut answer = vec![0; greeting.len()];
    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
        && stream.write_all(hello).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer == greeting
}

/// A server's binary: from `$FLOTILLA_BIN`, from what the set-up put into `.flotilla/bin`, else from `PATH`.
fn find(names: &[&str]) -> PathBuf {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.flotilla/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::var_os("FLOTILLA_BIN")
        .map(PathBuf::from)
        .into_iter()
        .chain([ours])
        .chain(std::env::split_paths(&path))
        .collect();
    let found =
        folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name))).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("no {} found: run ./ops/quickstart or ./ops/test first", names.join(" or ")))
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path of characters").to_owned()
}
