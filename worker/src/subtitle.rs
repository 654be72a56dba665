//! Transcripts as SubRip and WebVTT, in pieces that are cues: pure.

use std::fmt::Write;

use engine::encode::Segment;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SubRip.
    Srt,
    /// WebVTT.
    Vtt,
}

/// The pieces of the document, which in a row are all of it. Segments without a word have no cue.
#[must_use]
pub fn pieces(kind: Kind, segments: &[Segment]) -> Vec<String> {
    let mut pieces = Vec::new();
    if kind == Kind::Vtt {
        pieces.push("WEBVTT\n\n".to_owned());
    }
    let spoken =
        segments.iter().map(|segment| (segment, line(kind, &segment.text))).filter(|(_, line)| !line.is_empty());
    for (number, (segment, line)) in spoken.enumerate() {
        let mut cue = String::new();
        if kind == Kind::Srt {
            let _ = writeln!(cue, "{}", number + 1);
        }
        let start = milliseconds(segment.start);
        let end = milliseconds(segment.end).max(start);
        let _ = write!(cue, "{} --> {}\n{line}\n\n", time(kind, start), time(kind, end));
        pieces.push(cue);
    }
    pieces
}

/// A cue's text on one line: an empty line would end it, an arrow would begin another.
fn line(kind: Kind, text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match kind {
        Kind::Srt => line.replace("-->", "->"),
        Kind::Vtt => line.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"),
    }
}

fn milliseconds(seconds: f32) -> u64 {
    // Rounded half away from zero; what is no number, or before the beginning, is the beginning.
    (f64::from(seconds) * 1000.0).round().max(0.0) as u64
}

fn time(kind: Kind, milliseconds: u64) -> String {
    let (seconds, rest) = (milliseconds / 1000, milliseconds % 1000);
    let mark = match kind {
        Kind::Srt => ',',
        Kind::Vtt => '.',
    };
    format!("{:02}:{:02}:{:02}{mark}{rest:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments() -> Vec<Segment> {
        let segment = |start, end, text: &str| Segment { start, end, text: text.to_owned(), words: Vec::new() };
        vec![segment(0.0, 2.5, " Hello\n\nworld."), segment(2.5, 2.5, "  "), segment(3661.5, 3600.0, " a --> b & <c>")]
    }

    #[test]
    fn subrip_is_numbered_cues() {
        assert_eq!(
            pieces(Kind::Srt, &segments()).concat(),
            "1\n00:00:00,000 --> 00:00:02,500\nHello world.\n\n\
             2\n01:01:01,500 --> 01:01:01,500\na -> b & <c>\n\n"
        );
        assert_eq!(pieces(Kind::Srt, &[]).concat(), "");
    }

    #[test]
    fn webvtt_has_a_head_and_escapes() {
        assert_eq!(
            pieces(Kind::Vtt, &segments()).concat(),
            "WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nHello world.\n\n\
             01:01:01.500 --> 01:01:01.500\na --&gt; b &amp; &lt;c&gt;\n\n"
        );
        assert_eq!(pieces(Kind::Vtt, &[]).concat(), "WEBVTT\n\n");
    }
}
