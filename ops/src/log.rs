//! What child processes say: kept in one file a process, and shown with its name before each line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// A log that grows beyond this becomes `NAME.log.1`, and that one goes.
const BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Columns for names on the console.
const NAME_WIDTH: usize = 10;

/// Where lines of children are shown, besides their files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Console {
    /// On the terminal, each in the colour of its process.
    Colour,
    /// On the terminal or into a pipe.
    Plain,
    /// Nowhere: nobody watches.
    Silent,
}

impl Console {
    /// What suits standard output. `no_colour` is the user's wish.
    pub(crate) fn of_stdout(no_colour: Option<&str>) -> Console {
        match no_colour {
            None | Some("") if io::stdout().is_terminal() => Console::Colour,
            _ => Console::Plain,
        }
    }
}

/// Log of one process.
#[derive(Debug)]
pub(crate) struct Log {
    name: String,
    colour: u8,
    console: Console,
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Log {
    /// Opens it at its end; `number` chooses the colour.
    pub(crate) fn open(path: &Path, name: &str, number: usize, console: Console) -> io::Result<Log> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        let colour = 31 + u8::try_from((number + 1) % 6).expect("below six");
        Ok(Log { name: name.to_owned(), colour, console, path: path.to_path_buf(), file, bytes })
    }

    /// One line, without its end. A full disk or a closed terminal must not end the fleet, so failures are let go.
    pub(crate) fn line(&mut self, line: &[u8]) {
        if self.bytes > BYTES_MAX {
            self.turn();
        }
        let kept = [line, b"\n"].concat();
        self.bytes += kept.len() as u64;
        let _ = self.file.write_all(&kept);
        let shown = self.shown(&String::from_utf8_lossy(line));
        if let Some(shown) = shown {
            let _ = io::stdout().write_all(shown.as_bytes());
        }
    }

    fn shown(&self, line: &str) -> Option<String> {
        let Log { name, colour, .. } = self;
        match self.console {
            Console::Colour => Some(format!("\x1b[{colour}m{name:<NAME_WIDTH$} |\x1b[0m {line}\n")),
            Console::Plain => Some(format!("{name:<NAME_WIDTH$} | {line}\n")),
            Console::Silent => None,
        }
    }

    fn turn(&mut self) {
        let _ = fs::rename(&self.path, self.path.with_extension("log.1"));
        if let Ok(file) = OpenOptions::new().create(true).append(true).open(&self.path) {
            self.file = file;
            self.bytes = 0;
        }
    }
}

/// The last lines of a log, for a failure's message.
pub(crate) fn tail(path: &Path, count: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_prefixed_and_a_long_log_turns() {
        let dir = std::env::temp_dir().join(format!("flotilla-log-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("nats.log");
        let mut log = Log::open(&path, "nats", 0, Console::Silent).unwrap();
        log.line(b"one");
        log.line(b"two \xff");
        assert_eq!(tail(&path, 1), "two \u{fffd}");
        assert_eq!(log.shown("one"), None);
        log.console = Console::Plain;
        assert_eq!(log.shown("one").unwrap(), "nats       | one\n");
        log.console = Console::Silent;
        log.bytes = BYTES_MAX + 1;
        log.line(b"three");
        assert_eq!(tail(&path, 9), "three");
        assert_eq!(tail(&dir.join("nats.log.1"), 9), "one\ntwo \u{fffd}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
