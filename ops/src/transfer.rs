//! One pinned file on its way here: hashed as it comes, taken up again where it broke off.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};
use ureq::http::{Response, StatusCode, header};

use crate::index::{Index, Link};
use crate::progress::Progress;
use crate::web::{Failure, Reply, broken, host};
use crate::wheel::{Wheel, hex};

/// No pinned file comes near this: whatever does is not what we asked for, and would fill the disk.
const BYTES_MAX: u64 = 64 << 30;
const CHUNK: usize = 128 << 10;

/// What has come so far.
struct Part {
    file: File,
    hash: Sha256,
    bytes: u64,
    /// Whether it came in one piece.
    pieces: Pieces,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pieces {
    One,
    Several,
}

impl Part {
    fn create(path: &Path) -> io::Result<Part> {
        Ok(Part { file: File::create(path)?, hash: Sha256::new(), bytes: 0, pieces: Pieces::One })
    }

    fn restart(&mut self) -> io::Result<()> {
        use std::io::Seek;
        self.file.set_len(0)?;
        self.file.rewind()?;
        (self.hash, self.bytes, self.pieces) = (Sha256::new(), 0, Pieces::One);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// Fetches a wheel into a file, with as many tries as the web's patience allows.
pub(crate) struct Transfer<'a> {
    index: &'a Index,
    wheel: &'a Wheel,
    link: Option<Link>,
    part: Part,
    progress: Progress,
}

impl<'a> Transfer<'a> {
    /// Nothing is asked yet.
    pub(crate) fn into(file: &Path, index: &'a Index, wheel: &'a Wheel) -> io::Result<Transfer<'a>> {
        let progress = Progress::of(wheel.to_string());
        Ok(Transfer { index, wheel, link: None, part: Part::create(file)?, progress })
    }

    /// Until the file is there, as pinned. A try that brought something new does not count as failed.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let patience = self.index.web.patience;
        let (mut furthest, mut failed, mut pause) = (0, 0, patience.pause);
        loop {
            let why = match self.attempt() {
                Err(Failure::Passing(why)) => why,
                done => return done,
            };
            if self.part.bytes > furthest {
                (furthest, failed, pause) = (self.part.bytes, 0, patience.pause);
            }
            failed += 1;
            if failed >= patience.tries {
                return Err(Failure::Lasting(format!("{why}; tried {failed} times")));
            }
            let next = format!("{why}; trying again in {} s ({} of {})", pause.as_secs(), failed + 1, patience.tries);
            self.progress.say(&next);
            std::thread::sleep(pause);
            pause *= 2;
        }
    }

    fn attempt(&mut self) -> Result<(), Failure> {
        let link = match self.link.take() {
            Some(link) => link,
            None => self.index.link(self.wheel)?,
        };
        let link = self.link.insert(link);
        let range = format!("bytes={}-", self.part.bytes);
        let mut headers = vec![("accept-encoding", "identity")];
        if self.part.bytes > 0 {
            headers.push(("range", &range));
        }
        let Reply { url, response } = self.index.web.get(&link.url, &headers)?;
        self.place(&response)?;
        let total = response.body().content_length().map(|rest| self.part.bytes + rest);
        self.progress.begin(&host(&url), self.part.bytes, total);
        self.receive(response, total)?;
        self.check()
    }

    /// Where what comes belongs: behind what is here, or in its place.
    fn place(&mut self, response: &Response<ureq::Body>) -> Result<(), Failure> {
        let begins = response.headers().get(header::CONTENT_RANGE).and_then(|range| begin(range.to_str().ok()?));
        match response.status() {
            StatusCode::PARTIAL_CONTENT if begins == Some(self.part.bytes) => {
                self.part.pieces = Pieces::Several;
                Ok(())
            }
            StatusCode::OK => self.part.restart().map_err(Failure::Disk),
            status => {
                self.part.restart().map_err(Failure::Disk)?;
                Err(Failure::Passing(format!("the transfer cannot be taken up again ({status})")))
            }
        }
    }

    fn receive(&mut self, response: Response<ureq::Body>, total: Option<u64>) -> Result<(), Failure> {
        let mut body = response.into_body().into_reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = body.read(&mut chunk).map_err(|error| broken(&error))?;
            if read == 0 {
                return Ok(());
            }
            if self.part.bytes + read as u64 > BYTES_MAX {
                return Err(Failure::Lasting("the file has no end".to_owned()));
            }
            self.part.append(&chunk[..read]).map_err(Failure::Disk)?;
            self.progress.at(self.part.bytes, total);
        }
    }

    fn check(&mut self) -> Result<(), Failure> {
        let found = hex(&self.part.hash.clone().finalize());
        if found == self.wheel.sha256 {
            return Ok(());
        }
        if self.part.pieces == Pieces::Several {
            self.part.restart().map_err(Failure::Disk)?;
            return Err(Failure::Passing("its pieces do not fit together".to_owned()));
        }
        Err(Failure::Lasting(format!(
            "what comes has sha256 {found}, but {} is pinned: the index or a proxy serves another file; nothing was installed",
            self.wheel.sha256
        )))
    }
}

/// `bytes 500-999/1000` begins at 500.
fn begin(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::index::Source;
    use crate::stage::{Answer, Asked, Stage};
    use crate::web::Patience;

    const PATIENCE: Patience = Patience { tries: 3, pause: Duration::ZERO, silence: Duration::from_secs(60) };
    const FILE: &str = "x-1-py3-none-any.whl";

    fn whole() -> Vec<u8> {
        (0..100_000u32).flat_map(u32::to_le_bytes).collect()
    }

    /// An index of one file, whose answers depend on how often it was asked for.
    fn stage(answer: impl Fn(usize, &Asked) -> Answer + Send + 'static) -> Stage {
        let times = AtomicUsize::new(0);
        Stage::open(move |asked| match asked.path.as_str() {
            "/x/" => Answer::text(&format!("<a href='/{FILE}'>")),
            _ => answer(times.fetch_add(1, Ordering::Relaxed), asked),
        })
    }

    /// What came, and how often the file was asked for from which byte on.
    fn fetch(stage: &Stage, patience: Patience) -> (Result<Vec<u8>, Failure>, Vec<Option<String>>) {
        let dir = fresh_folder();
        let wheel = Wheel { name: "x".into(), version: "1".into(), sha256: hex(&Sha256::digest(whole())) };
        let source = Source::of_a_test(&stage.url("/"), patience);
        let file = dir.join(FILE);
        let done = Transfer::into(&file, source.index().unwrap(), &wheel).unwrap().run();
        let came = done.map(|()| fs::read(&file).unwrap());
        fs::remove_dir_all(&dir).unwrap();
        let asked = stage.asked().into_iter().filter(|asked| asked.path != "/x/");
        (came, asked.map(|asked| asked.header("range")).collect())
    }

    fn fresh_folder() -> std::path::PathBuf {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("flotilla-transfer-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn from(asked: &Asked) -> usize {
        asked.header("range").map_or(0, |range| range[6..range.len() - 1].parse().unwrap())
    }

    #[test]
    fn a_cut_transfer_goes_on_where_it_was_cut_as_often_as_it_gets_further() {
        let stage = stage(|time, asked| {
            let rest = match from(asked) {
                0 => Answer::bytes(&whole()),
                from => Answer::rest(&whole(), from),
            };
            if time < 6 { rest.cut_after(50_000) } else { rest }
        });
        let (came, ranges) = fetch(&stage, PATIENCE);
        assert_eq!(came.unwrap(), whole());
        let cuts = (1..=6).map(|cut| Some(format!("bytes={}-", cut * 50_000)));
        assert_eq!(ranges, [None].into_iter().chain(cuts).collect::<Vec<_>>());
        assert_eq!(stage.paths().iter().filter(|path| *path == "/x/").count(), 1, "the page is read once");
    }

    #[test]
    fn a_server_that_cannot_go_on_begins_anew() {
        let stage =
            stage(|time, _| if time == 0 { Answer::bytes(&whole()).cut_after(1000) } else { Answer::bytes(&whole()) });
        let (came, ranges) = fetch(&stage, PATIENCE);
        assert_eq!(came.unwrap(), whole());
        assert_eq!(ranges, [None, Some("bytes=1000-".to_owned())]);
    }

    #[test]
    fn pieces_of_different_files_are_fetched_anew() {
        let stage = stage(|time, asked| match time {
            0 => Answer::bytes(&[7; 400_000]).cut_after(1000),
            1 => Answer::rest(&whole(), from(asked)),
            _ => Answer::bytes(&whole()),
        });
        let (came, ranges) = fetch(&stage, PATIENCE);
        assert_eq!(came.unwrap(), whole());
        assert_eq!(ranges, [None, Some("bytes=1000-".to_owned()), None]);
    }

    #[test]
    fn a_range_that_is_refused_is_given_up() {
        let stage = stage(|time, _| match time {
            0 => Answer::bytes(&whole()).cut_after(1000),
            1 => Answer::status("416 Range Not Satisfiable"),
            _ => Answer::bytes(&whole()),
        });
        let (came, ranges) = fetch(&stage, PATIENCE);
        assert_eq!(came.unwrap(), whole());
        assert_eq!(ranges, [None, Some("bytes=1000-".to_owned()), None]);
    }

    #[test]
    fn a_server_that_falls_silent_is_left() {
        let stage = stage(|time, asked| match time {
            0 => Answer::bytes(&whole()).silent_after(1000),
            _ => Answer::rest(&whole(), from(asked)),
        });
        let (came, ranges) = fetch(&stage, Patience { silence: Duration::from_millis(100), ..PATIENCE });
        assert_eq!(came.unwrap(), whole());
        assert_eq!(ranges.len(), 2);
    }

    #[test]
    fn one_that_never_gets_further_is_given_up() {
        let sick = stage(|_, _| Answer::status("502 Bad Gateway"));
        let (came, ranges) = fetch(&sick, PATIENCE);
        assert!(matches!(came, Err(Failure::Lasting(why)) if why.contains("502") && why.contains("3 times")));
        assert_eq!(ranges.len(), 3);
    }

    #[test]
    fn another_file_than_the_pinned_one_is_refused_at_once() {
        let other = stage(|_, _| Answer::text("not what was pinned"));
        let (came, ranges) = fetch(&other, PATIENCE);
        assert!(matches!(came, Err(Failure::Lasting(why)) if why.contains("is pinned")));
        assert_eq!(ranges.len(), 1);
    }

    #[test]
    fn a_disk_that_is_full_is_told_from_a_web_that_fails() {
        let stage = stage(|_, _| Answer::bytes(&whole()));
        let source = Source::of_a_test(&stage.url("/"), PATIENCE);
        let wheel = Wheel { name: "x".into(), version: "1".into(), sha256: String::new() };
        // A device on which no space is ever left.
        let full = Path::new("/dev/full");
        let mut transfer = Transfer::into(full, source.index().unwrap(), &wheel).unwrap();
        let reply = source.index().unwrap().web.get(&stage.url("/x.whl"), &[]).unwrap();
        let failure = transfer.receive(reply.response, None).unwrap_err();
        assert!(matches!(failure, Failure::Disk(error) if error.kind() == io::ErrorKind::StorageFull));
    }
}
