//! What is heard of an answer, on standard output.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use anyhow::Result;

use crate::client::{Answers, Collected, Heard, Summary, Took};
use crate::show;

/// How an answer that is no text is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Labels as lines, vectors shortened, words with their times.
    ForPeople,
    /// As it came.
    AsSent,
}

/// Prints what is heard of an answer.
pub(super) struct Printer {
    answers: Answers,
    shown: Shown,
    names: Vec<String>,
    collected: Collected,
    first: Option<Instant>,
}

impl Printer {
    pub(super) fn new(answers: Answers, shown: Shown, names: Vec<String>) -> Self {
        Self { answers, shown, names, collected: Collected::default(), first: None }
    }

    /// When the first of a text came.
    pub(super) fn first(&self) -> Option<Instant> {
        self.first
    }

    /// Prints what was heard; whether more is to come in any case.
    pub(super) fn print(&mut self, heard: &Heard, out: &mut impl Write) -> Result<bool> {
        match (heard, self.answers) {
            (Heard::Accepted { body, .. }, _) => writeln!(out, "{body}")?,
            (Heard::Chunk { body, .. }, Answers::Json) => {
                self.first.get_or_insert_with(Instant::now);
                writeln!(out, "{body}")?;
            }
            (Heard::Chunk { attempt, seq, kind, body }, Answers::Text) => {
                self.first.get_or_insert_with(Instant::now);
                let took = self.collected.take(*attempt, *seq, kind, body)?;
                let body = self.legible(kind, body)?;
                match took {
                    Took::More => write!(out, "{body}")?,
                    Took::Next => write!(out, "\n{body}")?,
                    Took::Anew => write!(out, "\n[a worker was lost; another one begins again]\n{body}")?,
                    Took::Old => {}
                }
            }
            (Heard::Whole { body, .. }, Answers::Json) => {
                writeln!(out, "{}", body.trim_end_matches('\n'))?;
                return Ok(false);
            }
            (Heard::Whole { kind, body }, Answers::Text) => {
                if !self.collected.text.is_empty() {
                    writeln!(out)?;
                }
                writeln!(out, "{}", self.legible(kind, body)?.trim_end_matches('\n'))?;
                return Ok(false);
            }
            (Heard::End(summary), answers) => {
                if answers == Answers::Text {
                    if !self.collected.text.is_empty() {
                        writeln!(out)?;
                    }
                    self.collected.check(summary)?;
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Texts come as they are; everything else is an object.
    fn legible(&self, kind: &str, body: &str) -> Result<String> {
        let objects = match kind {
            "labels" | "embedding" | "score" => true,
            // Only one that has times is an object.
            "transcript" => body.starts_with('{') || body.starts_with("[{"),
            _ => false,
        };
        if !objects || self.shown == Shown::AsSent {
            return Ok(body.to_owned());
        }
        Ok(show::outputs_for_people(&show::outputs(body)?, &self.names))
    }
}

/// What an answer took, as a line.
#[allow(clippy::cast_precision_loss, reason = "counts of tokens are small")]
pub(super) fn figures(summary: &Summary, asked: Instant, first: Option<Instant>) -> String {
    let Summary { input_tokens, output_tokens, model, cache, .. } = summary;
    let total = asked.elapsed().as_secs_f64();
    let first = first.map_or(total, |first| first.duration_since(asked).as_secs_f64());
    let rate = *output_tokens as f64 / total.max(1e-6);
    let (dim, plain) = if io::stderr().is_terminal() { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    format!(
        "{dim}{model}: {input_tokens} tokens in, {output_tokens} out in {total:.2} s, {rate:.1} tokens/s, first after {first:.2} s, cache {cache}{plain}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(answers: Answers, shown: Shown, heard: &[Heard]) -> String {
        let mut printer = Printer::new(answers, shown, vec![]);
        let mut out = Vec::new();
        for heard in heard {
            printer.print(heard, &mut out).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    fn chunk(attempt: u32, seq: u64, kind: &str, body: &str) -> Heard {
        Heard::Chunk { attempt, seq, kind: kind.into(), body: body.into() }
    }

    fn whole(kind: &str, body: &str) -> Heard {
        Heard::Whole { kind: kind.into(), body: body.into() }
    }

    #[test]
    fn a_stream_is_printed_as_one_text_and_a_second_attempt_is_told() {
        let end = Heard::End(Summary::default());
        let text = |heard: &[Heard]| printed(Answers::Text, Shown::ForPeople, heard);
        assert_eq!(text(&[chunk(0, 0, "text", "a"), chunk(0, 1, "text", " b"), end.clone()]), "a b\n");
        let second = text(&[chunk(0, 0, "text", "a"), chunk(1, 0, "text", "c"), end.clone()]);
        assert!(second.starts_with("a\n[") && second.ends_with("]\nc\n"), "{second}");
        let json = [chunk(0, 0, "text", "{}"), whole("text", "{}"), end.clone()];
        assert_eq!(printed(Answers::Json, Shown::ForPeople, &json), "{}\n{}\n");
        assert_eq!(text(&[whole("text", "x\n")]), "x\n");
        let steps = [chunk(0, 0, "transcript", "Who?"), chunk(0, 1, "text", "Ada"), chunk(0, 2, "text", "."), end];
        assert_eq!(text(&steps), "Who?\nAda.\n");
    }

    #[test]
    fn labels_are_for_people_unless_json_is_asked_for() {
        let body = r#"{"type":"labels","labels":[{"label":"tabby, tabby cat","score":0.5}]}"#;
        let heard = [whole("labels", body), Heard::End(Summary::default())];
        assert_eq!(printed(Answers::Text, Shown::ForPeople, &heard), "tabby   50.0 %\n");
        assert_eq!(printed(Answers::Json, Shown::ForPeople, &heard), format!("{body}\n"));
        let transcript = r#"{"type":"transcript","text":"Go.","language":"en","segments":[]}"#;
        assert_eq!(
            printed(Answers::Text, Shown::AsSent, &[whole("transcript", transcript)]),
            format!("{transcript}\n")
        );
        assert_eq!(printed(Answers::Text, Shown::ForPeople, &[whole("transcript", "Go.")]), "Go.\n");
    }
}
