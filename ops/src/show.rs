//! Answers that are no text, for people: labels, vectors, scores, transcripts with times.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use protocol::answer::{Label, Output, Segment};

use crate::table::table;

/// Numbers of a vector that are shown.
const NUMBERS_SHOWN: usize = 6;
/// Characters of a text in a table.
const TEXT_SHOWN: usize = 40;

/// What a raw answer of JSON holds: one output, or a list.
pub(crate) fn outputs(body: &str) -> Result<Vec<Output>> {
    if body.trim_start().starts_with('[') {
        return serde_json::from_str(body).context("the answer is not what this client knows");
    }
    Ok(vec![serde_json::from_str(body).context("the answer is not what this client knows")?])
}

/// Every output, each named by what it belongs to where there are several: files, or texts.
pub(crate) fn outputs_for_people(outputs: &[Output], names: &[String]) -> String {
    let vectors: Vec<&[f32]> = outputs.iter().filter_map(vector).collect();
    if vectors.len() == outputs.len() && outputs.len() > 1 {
        return similarities(&vectors, names);
    }
    let blocks = outputs.iter().enumerate().map(|(index, output)| match names.get(index) {
        Some(name) if outputs.len() > 1 => format!("{name}\n{}", one(output)),
        _ => one(output),
    });
    blocks.collect::<Vec<_>>().join("\n\n")
}

fn vector(output: &Output) -> Option<&[f32]> {
    match output {
        Output::Embedding { vector } => Some(vector),
        _ => None,
    }
}

fn one(output: &Output) -> String {
    match output {
        Output::Text { text } => text.clone(),
        Output::Transcript { text, segments, .. } => times(text, segments),
        Output::Labels { labels } => self::labels(labels),
        Output::Embedding { vector } => short(vector),
        Output::Score { score } => format!("{score:.4}"),
    }
}

/// `golden retriever  93.1 %`; of several names for one thing the first.
pub(crate) fn labels(labels: &[Label]) -> String {
    let name = |label: &Label| label.label.split(',').next().unwrap_or_default().trim().to_owned();
    let width = labels.iter().map(|label| name(label).chars().count()).max().unwrap_or(0);
    let line = |label: &Label| format!("{:<width$}  {:>5.1} %", name(label), label.score * 100.0);
    labels.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Words with their times where there are any, else segments.
fn times(text: &str, segments: &[Segment]) -> String {
    if segments.is_empty() {
        return text.to_owned();
    }
    let mut lines = String::new();
    for Segment { start, end, text, words, .. } in segments {
        if words.is_empty() {
            let _ = writeln!(lines, "{start:>8.2} {end:>8.2}  {}", text.trim());
        }
        for word in words {
            let _ = writeln!(lines, "{:>8.2} {:>8.2}  {}", word.start, word.end, word.text.trim());
        }
    }
    lines.trim_end().to_owned()
}

fn short(vector: &[f32]) -> String {
    let numbers: Vec<String> = vector.iter().take(NUMBERS_SHOWN).map(|number| format!("{number:.4}")).collect();
    let more = if vector.len() > NUMBERS_SHOWN { " ..." } else { "" };
    format!("{} numbers: {}{more}", vector.len(), numbers.join(" "))
}

/// The beginning of each vector, then how alike each text is to each other.
fn similarities(vectors: &[&[f32]], names: &[String]) -> String {
    let name = |index: usize| {
        let name = names.get(index).map_or("", String::as_str);
        let short: String = name.chars().take(TEXT_SHOWN).collect();
        if short == name { format!("{}: {short}", index + 1) } else { format!("{}: {short}...", index + 1) }
    };
    let lines = vectors.iter().enumerate().map(|(index, vector)| format!("{}\n   {}", name(index), short(vector)));
    let heads: Vec<String> = (1..=vectors.len()).map(|number| number.to_string()).collect();
    let head: Vec<&str> = std::iter::once("cosine").chain(heads.iter().map(String::as_str)).collect();
    let row = |(index, vector): (usize, &&[f32])| {
        let cells = vectors.iter().map(|other| format!("{:.3}", cosine(vector, other)));
        std::iter::once(format!("{:>6}", index + 1)).chain(cells).collect::<Vec<_>>()
    };
    let rows: Vec<Vec<String>> = vectors.iter().enumerate().map(row).collect();
    format!("{}\n\n{}", lines.collect::<Vec<_>>().join("\n"), table(&head, &rows))
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { (dot(a, b) / lengths) as f32 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_lines_with_percents() {
        let body = r#"{"type":"labels","labels":[{"label":"golden retriever","score":0.9312},{"label":"tabby, tabby cat","score":0.05}]}"#;
        let shown = outputs_for_people(&outputs(body).unwrap(), &["dog.jpg".into()]);
        assert_eq!(shown, "golden retriever   93.1 %\ntabby               5.0 %");
        let two = outputs_for_people(&outputs(&format!("[{body},{body}]")).unwrap(), &["a.jpg".into(), "b.jpg".into()]);
        assert!(two.starts_with("a.jpg\ngolden") && two.contains("\n\nb.jpg\n"), "{two}");
        assert!(outputs("{\"type\":\"smell\"}").is_err());
    }

    #[test]
    fn one_vector_is_shortened_and_several_are_compared() {
        let one = outputs(r#"{"type":"embedding","vector":[0.5,0.5,0.5,0.5,0,0,0,0]}"#).unwrap();
        assert_eq!(outputs_for_people(&one, &[]), "8 numbers: 0.5000 0.5000 0.5000 0.5000 0.0000 0.0000 ...");
        let all = outputs(
            r#"[{"type":"embedding","vector":[1,0]},{"type":"embedding","vector":[0,2]},{"type":"embedding","vector":[0,0]}]"#,
        );
        let shown = outputs_for_people(&all.unwrap(), &["x".into(), "y".repeat(50), "z".into()]);
        assert!(shown.contains("1: x\n   2 numbers: 1.0000 0.0000\n2: "), "{shown}");
        assert!(shown.contains(&format!("{}...", "y".repeat(TEXT_SHOWN))), "{shown}");
        assert!(shown.ends_with("cosine      1      2      3\n     1  1.000  0.000  0.000\n     2  0.000  1.000  0.000\n     3  0.000  0.000  0.000"), "{shown}");
    }

    #[test]
    fn a_transcript_shows_the_times_of_its_words_or_else_of_its_segments() {
        let words = r#"{"type":"transcript","text":"Go on.","language":"en","segments":[{"start":0,"end":1.5,"text":" Go on.","words":[{"start":0.1,"end":0.5,"text":" Go"},{"start":0.5,"end":1.25,"text":" on."}]}]}"#;
        assert_eq!(outputs_for_people(&outputs(words).unwrap(), &[]), "    0.10     0.50  Go\n    0.50     1.25  on.");
        let plain = r#"{"type":"transcript","text":"Go on.","language":"en","segments":[{"start":0,"end":1.5,"text":" Go on."}]}"#;
        assert_eq!(outputs_for_people(&outputs(plain).unwrap(), &[]), "    0.00     1.50  Go on.");
        let none = r#"{"type":"transcript","text":"","language":"en","segments":[]}"#;
        assert_eq!(outputs_for_people(&outputs(none).unwrap(), &[]), "");
    }
}
