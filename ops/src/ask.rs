//! `flotilla ask`: one question, its answer on standard output, its figures on standard error.

mod printer;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use indicatif::DecimalBytes;
use protocol::request::{BODY_BYTES_MAX, Blob, Params, Task, TranscriptFormat};

use crate::client::{self, Answers, Heard, Input, Part, Question};
use crate::fleet;
use printer::{Printer, Shown, figures};

/// `flotilla ask`
#[derive(Clone, Debug, Args)]
pub(crate) struct Ask {
    /// The question; `-` reads it from standard input. Beside pictures or sounds it is what is asked about them.
    #[arg(required_unless_present_any = ["image", "audio", "embed"])]
    text: Option<String>,
    /// A picture, once or several times. Without a question it gets labels.
    #[arg(long, short, env = "FLOTILLA_IMAGE", value_name = "FILE")]
    image: Vec<PathBuf>,
    /// A sound, once or several times. Without a question it is written down.
    #[arg(long, short, env = "FLOTILLA_AUDIO", value_name = "FILE")]
    audio: Vec<PathBuf>,
    /// Texts that become vectors, and are compared where there are several.
    #[arg(long, short, env = "FLOTILLA_EMBED", value_name = "TEXT", num_args = 1.., conflicts_with_all = ["text", "image", "audio"])]
    embed: Vec<String>,
    /// Labels of your own, with commas between, for models that take them.
    #[arg(long, env = "FLOTILLA_LABELS", value_delimiter = ',')]
    labels: Vec<String>,
    /// Most labels of a picture.
    #[arg(long, env = "FLOTILLA_TOP")]
    top: Option<u32>,
    /// Language of the speech, as in `en`; heard from it where it is not given.
    #[arg(long, env = "FLOTILLA_LANGUAGE")]
    language: Option<String>,
    /// How the transcript is written: text, json, srt, vtt.
    #[arg(long, env = "FLOTILLA_FORMAT", value_parser = written)]
    format: Option<TranscriptFormat>,
    /// Show the time of each word.
    #[arg(long, env = "FLOTILLA_WORDS")]
    words: bool,
    /// Conversation that it belongs to: later questions know the earlier ones.
    #[arg(long, short, env = "FLOTILLA_SESSION")]
    session: Option<String>,
    /// Print the answer as it is made.
    #[arg(long, env = "FLOTILLA_STREAM")]
    stream: bool,
    /// Print the fleet's own JSON; with --stream one object a line.
    #[arg(long, short, env = "FLOTILLA_JSON")]
    json: bool,
    /// Model, if not the fleet's own choice.
    #[arg(long, short, env = "FLOTILLA_MODEL")]
    model: Option<String>,
    /// Most tokens of the answer.
    #[arg(long, env = "FLOTILLA_MAX_TOKENS")]
    max_tokens: Option<u32>,
    /// 0 always gives the same answer; up to 2 gives ever freer ones.
    #[arg(long, env = "FLOTILLA_TEMPERATURE")]
    temperature: Option<f32>,
    /// Seconds until the answer is of no use any more.
    #[arg(long, env = "FLOTILLA_TIMEOUT", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Do not use the response cache.
    #[arg(long, env = "FLOTILLA_NO_CACHE")]
    no_cache: bool,
}

fn written(name: &str) -> Result<TranscriptFormat, String> {
    Ok(match name {
        "text" => TranscriptFormat::Text,
        "json" => TranscriptFormat::Json,
        "srt" => TranscriptFormat::Srt,
        "vtt" => TranscriptFormat::Vtt,
        _ => return Err("text, json, srt or vtt".to_owned()),
    })
}

impl Ask {
    /// Asks and prints.
    pub(crate) async fn run(self, url: &str) -> Result<()> {
        self.applied().send(url).await
    }

    /// Without what the environment says for questions of other kinds.
    fn applied(mut self) -> Self {
        if self.image.is_empty() {
            (self.labels, self.top) = (Vec::new(), None);
        }
        if self.audio.is_empty() {
            (self.language, self.format, self.words) = (None, None, false);
        }
        if !self.embed.is_empty() {
            (self.session, self.stream) = (None, false);
        }
        self
    }

    async fn send(self, url: &str) -> Result<()> {
        let answers = if self.json { Answers::Json } else { Answers::Text };
        // Whoever names a format wants the fleet's own document.
        let shown = if self.format.is_some() { Shown::AsSent } else { Shown::ForPeople };
        let names = self.names();
        let question = self.question()?;
        let client = fleet::connect(url).await?;
        let mut answer = client::ask(&client, &question, answers).await?;
        let mut printer = Printer::new(answers, shown, names);
        let mut out = io::stdout().lock();
        loop {
            let heard = answer.next().await?;
            let more = printer.print(&heard, &mut out)?;
            out.flush()?;
            match (more, heard) {
                (true, _) => {}
                (false, Heard::End(summary)) => {
                    eprintln!("{}", figures(&summary, answer.asked, printer.first()));
                    return Ok(());
                }
                (false, _) if question.stream => {}
                (false, _) => return Ok(()),
            }
        }
    }

    /// What several outputs belong to.
    fn names(&self) -> Vec<String> {
        let files = self.image.iter().chain(&self.audio).map(|file| file.display().to_string());
        if self.embed.is_empty() { files.collect() } else { self.embed.clone() }
    }

    fn question(self) -> Result<Question> {
        let params = self.params();
        let task = (!self.embed.is_empty()).then_some(Task::Embed);
        Ok(Question {
            task,
            params,
            cache: if self.no_cache { "bypass" } else { "use" },
            deadline_ms: self.timeout * 1000,
            stream: self.stream,
            input: input(self.text, &self.image, &self.audio, self.embed)?,
            model: self.model,
            session: self.session,
        })
    }

    fn params(&self) -> Params {
        let words = self.words.then_some(true);
        Params {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            labels: (!self.labels.is_empty()).then(|| self.labels.clone()),
            top: self.top,
            language: self.language.clone(),
            // Only JSON has the times of words.
            format: self.format.or(words.map(|_| TranscriptFormat::Json)),
            words,
            ..Params::default()
        }
    }
}

/// A text alone stays one; beside anything else it comes last, as the question about it.
fn input(text: Option<String>, images: &[PathBuf], audios: &[PathBuf], embed: Vec<String>) -> Result<Input> {
    let text = match text.as_deref() {
        Some("-") => {
            let name = "the question from standard input";
            let content = bounded(io::stdin().lock(), name, "a shorter one will do")?;
            Some(String::from_utf8(content).with_context(|| format!("read {name}"))?)
        }
        _ => text,
    };
    if images.is_empty() && audios.is_empty() && embed.is_empty() {
        return Ok(Input::Text(text.unwrap_or_default()));
    }
    let mut parts = Vec::new();
    for image in images {
        parts.push(Part::Image { data: file(image)? });
    }
    for audio in audios {
        parts.push(Part::Audio { data: file(audio)? });
    }
    parts.extend(embed.into_iter().chain(text).map(|text| Part::Text { text }));
    Ok(Input::Parts(parts))
}

fn file(path: &Path) -> Result<Blob> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("open {name}"))?;
    let content = bounded(file, &name.to_string(), "a smaller picture or a shorter or compressed sound will do")?;
    if content.is_empty() {
        bail!("{name} is empty");
    }
    Ok(Blob(content.into()))
}

/// All that there is to read, and no more of it than a request may hold.
fn bounded(from: impl Read, name: &str, instead: &str) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    from.take(BODY_BYTES_MAX as u64 + 1).read_to_end(&mut content).with_context(|| format!("read {name}"))?;
    if content.len() > BODY_BYTES_MAX {
        let most = DecimalBytes(BODY_BYTES_MAX as u64);
        bail!("{name} is larger than a request may be ({most}): {instead}");
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The command line as a person writes it.
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        ask: Ask,
    }

    fn ask(line: &[&str]) -> Result<Ask, clap::Error> {
        <Line as clap::Parser>::try_parse_from(std::iter::once(&"ask").chain(line)).map(|line| line.ask)
    }

    /// To clap a variable is as good as an argument.
    #[test]
    fn what_the_environment_says_for_other_questions_is_left_out() {
        let sent = |line: &[&str]| serde_json::to_value(ask(line).unwrap().applied().question().unwrap()).unwrap();
        let plain = sent(&["hi"]);
        let everything = ["--labels", "a,b", "--top", "3", "--language", "en", "--format", "srt", "--words"];
        assert_eq!(sent(&[&["hi"][..], &everything].concat()), plain);
        let embed = ["--embed", "a", "b"];
        let line = [&embed[..], &everything, &["--session", "s", "--stream"]].concat();
        assert_eq!(sent(&line), sent(&embed));
        let chat = sent(&["hi", "--session", "s", "--stream"]);
        assert_eq!((&chat["session"], &chat["stream"]), (&"s".into(), &true.into()));
    }

    #[test]
    fn what_is_read_is_bounded() {
        assert_eq!(bounded(io::repeat(b'a').take(9), "it", "").unwrap(), [b'a'; 9]);
        assert_eq!(bounded(io::repeat(b'a').take(BODY_BYTES_MAX as u64), "it", "").unwrap().len(), BODY_BYTES_MAX);
        let error = bounded(io::repeat(b'a'), "it", "").unwrap_err().to_string();
        assert!(error.contains("larger than"), "{error}");
    }

    #[test]
    fn what_is_asked_follows_from_what_is_given() {
        let dir = std::env::temp_dir().join(format!("flotilla-ask-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (picture, empty) = (dir.join("a.png"), dir.join("empty"));
        std::fs::write(&picture, b"\x89PNG").unwrap();
        std::fs::write(&empty, b"").unwrap();
        let (picture, empty) = (picture.to_str().unwrap(), empty.to_str().unwrap());
        let sent = |line: &[&str]| serde_json::to_value(ask(line).unwrap().applied().question().unwrap()).unwrap();
        assert_eq!(sent(&["hi"])["input"], "hi");
        let embed = sent(&["--embed", "a", "b"]);
        assert_eq!((&embed["task"], embed["input"].as_array().unwrap().len()), (&"embed".into(), 2));
        let asked = sent(&["--image", picture, "what is it?", "--labels", "cat,dog", "--top", "2"]);
        assert_eq!(
            (&asked["input"][0]["data"], &asked["input"][1]["text"]),
            (&"iVBORw==".into(), &"what is it?".into())
        );
        assert_eq!((&asked["params"]["labels"][1], &asked["params"]["top"]), (&"dog".into(), &2.into()));
        assert!(asked.get("task").is_none());
        let heard = sent(&["--audio", picture, "--words", "--language", "en"]);
        assert_eq!((&heard["params"]["format"], &heard["params"]["words"]), (&"json".into(), &true.into()));
        assert_eq!(sent(&["--audio", picture, "--format", "srt"])["params"]["format"], "srt");
        for wrong in [[].as_slice(), &["hi", "--embed", "a"], &["--audio", picture, "--format", "doc"]] {
            assert!(ask(wrong).is_err(), "{wrong:?}");
        }
        for (file, words) in [("/nowhere.png", "open /nowhere.png"), (empty, "is empty"), ("/dev/zero", "larger than")]
        {
            let error = format!("{:#}", ask(&["--image", file]).unwrap().question().unwrap_err());
            assert!(error.contains(words), "{error}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
