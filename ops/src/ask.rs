//! `flotilla ask`: one question, its answer on standard output, its figures on standard error.

use std::io::{self, IsTerminal, Read, Write};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::client::{self, Answers, Collected, Heard, Params, Question, Summary, Took};
use crate::fleet;

/// `flotilla ask`
#[derive(Clone, Debug, Args)]
pub(crate) struct Ask {
    /// The question; `-` reads it from standard input.
    text: String,
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

impl Ask {
    /// Asks and prints.
    pub(crate) async fn run(self, url: &str) -> Result<()> {
        let answers = if self.json { Answers::Json } else { Answers::Text };
        let question = self.question()?;
        let client = fleet::connect(url).await?;
        let mut answer = client::ask(&client, &question, answers).await?;
        let mut printer = Printer { answers, collected: Collected::default(), first: None };
        let mut out = io::stdout().lock();
        loop {
            let heard = answer.next().await?;
            let more = printer.print(&heard, &mut out)?;
            out.flush()?;
            match (more, heard) {
                (true, _) => {}
                (false, Heard::End(summary)) => {
                    eprintln!("{}", figures(&summary, answer.asked, printer.first));
                    return Ok(());
                }
                (false, _) if question.stream => {}
                (false, _) => return Ok(()),
            }
        }
    }

    fn question(self) -> Result<Question> {
        let mut input = self.text;
        if input == "-" {
            input.clear();
            io::stdin().read_to_string(&mut input).context("read the question from standard input")?;
        }
        Ok(Question {
            input,
            model: self.model,
            session: self.session,
            stream: self.stream,
            deadline_ms: self.timeout * 1000,
            cache: if self.no_cache { "bypass" } else { "use" },
            params: Params { max_tokens: self.max_tokens, temperature: self.temperature },
        })
    }
}

struct Printer {
    answers: Answers,
    collected: Collected,
    first: Option<Instant>,
}

impl Printer {
    /// Prints what was heard; whether more is to come in any case.
    fn print(&mut self, heard: &Heard, out: &mut impl Write) -> Result<bool> {
        match (heard, self.answers) {
            (Heard::Accepted { body, .. }, _) => writeln!(out, "{body}")?,
            (Heard::Chunk { body, .. }, Answers::Json) => {
                self.first.get_or_insert_with(Instant::now);
                writeln!(out, "{body}")?;
            }
            (Heard::Chunk { attempt, seq, body }, Answers::Text) => {
                self.first.get_or_insert_with(Instant::now);
                match self.collected.take(*attempt, *seq, body)? {
                    Took::More => write!(out, "{body}")?,
                    Took::Anew => write!(out, "\n[a worker was lost; another one begins again]\n{body}")?,
                    Took::Old => {}
                }
            }
            (Heard::Whole(body), _) => {
                writeln!(out, "{}", body.trim_end_matches('\n'))?;
                return Ok(false);
            }
            (Heard::End(summary), answers) => {
                if answers == Answers::Text {
                    writeln!(out)?;
                    self.collected.check(summary)?;
                }
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of tokens are small")]
fn figures(summary: &Summary, asked: Instant, first: Option<Instant>) -> String {
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

    fn printed(answers: Answers, heard: &[Heard]) -> String {
        let mut printer = Printer { answers, collected: Collected::default(), first: None };
        let mut out = Vec::new();
        for heard in heard {
            printer.print(heard, &mut out).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_stream_is_printed_as_one_text_and_a_second_attempt_is_told() {
        let chunk = |attempt, seq, body: &str| Heard::Chunk { attempt, seq, body: body.into() };
        let end = Heard::End(Summary::default());
        assert_eq!(printed(Answers::Text, &[chunk(0, 0, "a"), chunk(0, 1, " b"), end.clone()]), "a b\n");
        let second = printed(Answers::Text, &[chunk(0, 0, "a"), chunk(1, 0, "c"), end.clone()]);
        assert!(second.starts_with("a\n[") && second.ends_with("]\nc\n"), "{second}");
        assert_eq!(printed(Answers::Json, &[chunk(0, 0, "{}"), Heard::Whole("{}".into()), end]), "{}\n{}\n");
        assert_eq!(printed(Answers::Text, &[Heard::Whole("x\n".into())]), "x\n");
    }
}
