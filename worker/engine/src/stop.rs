//! Stop strings over streamed text.
//!
//! Text comes in pieces of complete characters. The first stop string to be *completed* ends the text, and where two
//! are completed by the same character the longer one counts; so the answer does not depend on how the text was cut
//! into pieces. What may be the beginning of a stop string is held back until the next piece decides.

/// The stop strings of one job, and the text held back for them.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Read and not given out: the longest end of the text that begins some stop string.
    held: String,
}

/// Whether a stop string was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// Not yet: the text goes on.
    No,
    /// The text is over, and complete.
    Yes,
}

impl StopStrings {
    /// Empty strings are ignored: they would stop every text at its start.
    #[must_use]
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new() }
    }

    /// Reads a piece and appends to `out` what is certain not to belong to a stop string. After [`Met::Yes`] the
    /// text is over: what follows is to be dropped by the caller.
    pub fn push(&mut self, piece: &str, out: &mut String) -> Met {
        if self.stops.is_empty() {
            out.push_str(piece);
            return Met::No;
        }
        self.held.push_str(piece);
        if let Some(start) = self.first_completed() {
            out.push_str(&self.held[..start]);
            self.held.clear();
            return Met::Yes;
        }
        let certain = self.held.len() - self.beginning();
        out.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        Met::No
    }

    /// The text has ended without a stop string: appends what was held back.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// Start of the stop string that is completed first.
    fn first_completed(&self) -> Option<usize> {
        self.stops
            .iter()
            .filter_map(|stop| {
                let start = self.held.find(stop.as_str())?;
                Some((start + stop.len(), start))
            })
            .min()
            .map(|(_, start)| start)
    }

    /// Length of the longest end of the held text that begins a stop string.
    fn beginning(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |stop: &String| {
            let most = held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&length| held.ends_with(&stop.as_bytes()[..length]))
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds the pieces, asserts that only certain text is given out, and returns the text and whether it was stopped.
    fn read(stops: &[&str], pieces: &[&str]) -> (String, Met) {
        let mut filter = StopStrings::new(stops.iter().map(ToString::to_string).collect());
        let mut out = String::new();
        for piece in pieces {
            if filter.push(piece, &mut out) == Met::Yes {
                return (out, Met::Yes);
            }
        }
        filter.finish(&mut out);
        (out, Met::No)
    }

    /// The definition: of all occurrences in the whole text the one that ends first, then the one that starts first.
    fn naive(stops: &[&str], text: &str) -> (String, Met) {
        let occurrences = stops.iter().filter(|stop| !stop.is_empty()).flat_map(|stop| {
            let starts = (0..text.len()).filter(|&at| text.as_bytes()[at..].starts_with(stop.as_bytes()));
            starts.map(|start| (start + stop.len(), start))
        });
        match occurrences.min() {
            Some((_, start)) => (text[..start].to_string(), Met::Yes),
            None => (text.to_string(), Met::No),
        }
    }

    #[test]
    fn text_ends_before_the_stop_string() {
        assert_eq!(read(&["END"], &["abc EN", "D def"]), ("abc ".into(), Met::Yes));
        assert_eq!(read(&["END"], &["abc ", "E", "N", "D"]), ("abc ".into(), Met::Yes));
        assert_eq!(read(&["END"], &["END"]), (String::new(), Met::Yes));
    }

    #[test]
    fn a_beginning_that_came_to_nothing_is_text() {
        assert_eq!(read(&["END"], &["E", "N", "E", "N"]), ("ENEN".into(), Met::No));
        let mut filter = StopStrings::new(vec!["\n\nUser:".into()]);
        let mut out = String::new();
        assert_eq!(filter.push("one\n", &mut out), Met::No);
        assert_eq!(out, "one");
        assert_eq!(filter.push("\nUs", &mut out), Met::No);
        assert_eq!(out, "one");
        assert_eq!(filter.push("e it", &mut out), Met::No);
        assert_eq!(out, "one\n\nUse it");
    }

    #[test]
    fn a_beginning_may_lie_within_a_beginning() {
        assert_eq!(read(&["aab"], &["a", "a", "a", "b"]), ("a".into(), Met::Yes));
        assert_eq!(read(&["abac"], &["ab", "ab", "ac"]), ("ab".into(), Met::Yes));
    }

    #[test]
    fn the_first_completed_counts_and_of_equals_the_longer() {
        assert_eq!(read(&["abcd", "bc"], &["abcd"]), ("a".into(), Met::Yes));
        assert_eq!(read(&["abcd", "bc"], &["a", "b", "c", "d"]), ("a".into(), Met::Yes));
        assert_eq!(read(&["d", "bcd"], &["abc", "d"]), ("a".into(), Met::Yes));
    }

    #[test]
    fn characters_of_many_bytes_stay_whole() {
        assert_eq!(read(&["é!"], &["caf", "é", "?", "é", "!"]), ("café?".into(), Met::Yes));
        assert_eq!(read(&["日本"], &["今日", "は日", "本"]), ("今日は".into(), Met::Yes));
        // 'ê' and 'é' share their first byte.
        assert_eq!(read(&["é"], &["têt", "e"]), ("tête".into(), Met::No));
    }

    #[test]
    fn empty_stop_strings_stop_nothing() {
        assert_eq!(read(&[""], &["abc"]), ("abc".into(), Met::No));
        assert_eq!(read(&[], &["abc"]), ("abc".into(), Met::No));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
            pieces in prop::collection::vec("[abéc]{0,5}", 0..12),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(read(&stops, &pieces), naive(&stops, &pieces.concat()));
        }
    }
}
