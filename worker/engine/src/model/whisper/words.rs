//! When each word was said: how tokens look at the sound, smoothed, walked through in time, and cut into words.
//!
//! As faster-whisper does it (`add_word_timestamps`, `find_alignment`) over CTranslate2's `align`.

use super::clip::Piece;
use super::decoder::Observed;
use super::vocabulary::Spelled;

/// Positions of a window in a second.
const POSITIONS_PER_SECOND: f64 = 50.0;
/// Positions around one whose median it becomes.
const MEDIAN: usize = 7;
/// What joins the word after it, and what joins the word before it.
const PREPENDED: &str = "\"'“¿([{-";
const APPENDED: &str = "\"'.。,，!！?？:：”)]}、";
/// What ends a sentence.
const SENTENCE_END: &str = ".。!！?？";
/// No median of words' durations is taken for more, in seconds.
const MEDIAN_DURATION_MAX: f64 = 0.7;
/// A first word that begins so much before its segment, or a last that ends so much after it, is cut to it.
const OVERHANG: f64 = 0.5;

/// A word and when it was said, in seconds from the clip's beginning.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Timed {
    pub(super) text: String,
    pub(super) tokens: usize,
    pub(super) start: f64,
    pub(super) end: f64,
}

/// Times the words of `pieces`, and moves the pieces' ends to their words'. `words` are those of all pieces in a row,
/// `jumps` the positions where their tokens begin, `offset` the window's beginning, `last` the end of the word before.
pub(super) fn place(pieces: &mut [Piece], words: &[Spelled], jumps: &[usize], offset: f64, mut last: f64) {
    let mut timed = times(words, jumps);
    let median = median_duration(&timed);
    shorten_at_sentence_ends(&mut timed, 2.0 * median);
    merge_punctuation(&mut timed);
    let mut left = timed.into_iter().peekable();
    for piece in pieces {
        let (wanted, mut taken) = (piece.text_tokens, 0);
        while let Some(word) = left.next_if(|_| taken < wanted) {
            taken += word.tokens;
            if !word.text.is_empty() {
                let (start, end) = (rounded(offset + word.start), rounded(offset + word.end));
                piece.words.push(Timed { start, end, ..word });
            }
        }
        shorten_first(&mut piece.words, last, median);
        last = meet(piece, median).unwrap_or(last);
    }
}

/// The position where each token begins, and where the last ends: one number more than there are tokens of text.
///
/// `before` tokens lead, one more is `no timestamps`, and the end follows the text.
pub(super) fn jumps(observed: Observed, before: usize, text: usize) -> Vec<usize> {
    let Observed { positions, mut weights } = observed;
    let tokens = before + text + 2;
    if positions == 0 || weights.is_empty() {
        return vec![0; text + 1];
    }
    let heads = weights.len() / (tokens * positions);
    let mut mean = vec![0.0; (text + 1) * positions];
    let mut smooth = vec![0.0; positions];
    for head in weights.chunks_exact_mut(tokens * positions) {
        normalise(head, positions);
        for (row, mean) in head.chunks_exact(positions).skip(before).zip(mean.chunks_exact_mut(positions)) {
            median_filter(row, &mut smooth);
            mean.iter_mut().zip(&smooth).for_each(|(mean, number)| *mean += number / heads as f32);
        }
    }
    walk(&mean, positions)
}

/// Every column to mean 0 and deviation 1.
fn normalise(rows: &mut [f32], columns: usize) {
    let count = (rows.len() / columns) as f32;
    let mut sums = vec![(0.0f32, 0.0f32); columns];
    for row in rows.chunks_exact(columns) {
        row.iter().zip(&mut sums).for_each(|(number, sum)| sum.0 += number / count);
    }
    for row in rows.chunks_exact(columns) {
        row.iter().zip(&mut sums).for_each(|(number, sum)| sum.1 += (number - sum.0).powi(2) / count);
    }
    for row in rows.chunks_exact_mut(columns) {
        for (number, (mean, variance)) in row.iter_mut().zip(&sums) {
            *number = if *variance > 0.0 { (*number - mean) / variance.sqrt() } else { 0.0 };
        }
    }
}

/// Each number becomes the median of those around it, mirrored at the ends.
fn median_filter(row: &[f32], out: &mut [f32]) {
    let side = MEDIAN / 2;
    if row.len() <= side {
        out.copy_from_slice(row);
        return;
    }
    for (index, out) in out.iter_mut().enumerate() {
        let mut near = [0.0; MEDIAN];
        for (step, near) in near.iter_mut().enumerate() {
            let at = (index + step).abs_diff(side);
            *near = row[if at < row.len() { at } else { 2 * row.len() - 2 - at }];
        }
        near.sort_unstable_by(f32::total_cmp);
        *out = near[side];
    }
}

/// The way through (tokens, positions) that sees the most, forward in both: where it enters each token.
fn walk(seen: &[f32], positions: usize) -> Vec<usize> {
    #[derive(Clone, Copy)]
    enum Step {
        Both,
        Token,
        Position,
    }
    let tokens = seen.len() / positions;
    let width = positions + 1;
    let mut cost = vec![f32::INFINITY; (tokens + 1) * width];
    let mut steps = vec![Step::Position; (tokens + 1) * width];
    cost[0] = 0.0;
    for token in 1..=tokens {
        for position in 1..=positions {
            let at = token * width + position;
            let (both, down, right) = (cost[at - width - 1], cost[at - width], cost[at - 1]);
            let (least, step) = if both < down && both < right {
                (both, Step::Both)
            } else if down < both && down < right {
                (down, Step::Token)
            } else {
                (right, Step::Position)
            };
            cost[at] = least - seen[(token - 1) * positions + position - 1];
            steps[at] = step;
        }
    }
    let mut entered = vec![0; tokens];
    let (mut token, mut position) = (tokens, positions);
    while token > 0 && position > 0 {
        entered[token - 1] = position - 1;
        match steps[token * width + position] {
            Step::Both => (token, position) = (token - 1, position - 1),
            Step::Token => token -= 1,
            Step::Position => position -= 1,
        }
    }
    entered
}

fn times(words: &[Spelled], jumps: &[usize]) -> Vec<Timed> {
    let mut token = 0;
    let seconds = |token: usize| jumps.get(token).or(jumps.last()).map_or(0.0, |at| *at as f64 / POSITIONS_PER_SECOND);
    let time = |word: &Spelled| {
        let first = token;
        token += word.tokens.len();
        Timed { text: word.text.clone(), tokens: word.tokens.len(), start: seconds(first), end: seconds(token) }
    };
    words.iter().map(time).collect()
}

fn median_duration(words: &[Timed]) -> f64 {
    let mut durations: Vec<f64> = words.iter().map(|word| word.end - word.start).filter(|d| *d != 0.0).collect();
    durations.sort_unstable_by(f64::total_cmp);
    let (low, high) = (durations.len().saturating_sub(1) / 2, durations.len() / 2);
    match durations.get(low).zip(durations.get(high)) {
        Some((low, high)) => ((low + high) / 2.0).min(MEDIAN_DURATION_MAX),
        None => 0.0,
    }
}

/// A mark that ends a sentence, or a word after one, is no longer than `longest`.
fn shorten_at_sentence_ends(words: &mut [Timed], longest: f64) {
    for index in 1..words.len() {
        if words[index].end - words[index].start <= longest || longest == 0.0 {
            continue;
        }
        if SENTENCE_END.contains(&words[index].text) {
            words[index].end = words[index].start + longest;
        } else if SENTENCE_END.contains(&words[index - 1].text) {
            words[index].start = words[index].end - longest;
        }
    }
}

/// Marks join the word they belong to; what they were is left empty.
fn merge_punctuation(words: &mut [Timed]) {
    let mut following = words.len().saturating_sub(1);
    for previous in (0..following).rev() {
        let mark = words[previous].text.starts_with(' ') && PREPENDED.contains(words[previous].text.trim());
        if mark {
            let (text, tokens) =
                (std::mem::take(&mut words[previous].text), std::mem::take(&mut words[previous].tokens));
            words[following].text.insert_str(0, &text);
            words[following].tokens += tokens;
        } else {
            following = previous;
        }
    }
    let mut previous = 0;
    for following in 1..words.len() {
        if !words[previous].text.ends_with(' ') && APPENDED.contains(&words[following].text) {
            let (text, tokens) =
                (std::mem::take(&mut words[following].text), std::mem::take(&mut words[following].tokens));
            words[previous].text.push_str(&text);
            words[previous].tokens += tokens;
        } else {
            previous = following;
        }
    }
}

/// The first words after a pause are no longer than twice the median.
fn shorten_first(words: &mut [Timed], last: f64, median: f64) {
    let longest = 2.0 * median;
    let Some(first) = words.first().cloned() else { return };
    let second = words.get(1).cloned();
    let long_pair = second.as_ref().is_some_and(|second| second.end - first.start > 2.0 * longest);
    if first.end - last <= 4.0 * median || (first.end - first.start <= longest && !long_pair) {
        return;
    }
    if let Some(second) = second.filter(|second| second.end - second.start > longest) {
        let boundary = (second.end / 2.0).max(second.end - longest);
        (words[0].end, words[1].start) = (boundary, boundary);
    }
    words[0].start = (words[0].end - longest).max(0.0);
}

/// Words that stick out of their segment are cut, else the segment ends where they do: its end.
fn meet(piece: &mut Piece, median: f64) -> Option<f64> {
    let first = piece.words.first_mut()?;
    if piece.start < first.end && piece.start - OVERHANG > first.start {
        first.start = (first.end - median).min(piece.start).max(0.0);
    } else {
        piece.start = first.start;
    }
    let last = piece.words.last_mut()?;
    if piece.end > last.start && piece.end + OVERHANG < last.end {
        last.end = (last.start + median).max(piece.end);
    } else {
        piece.end = last.end;
    }
    Some(piece.end)
}

/// To hundredths.
fn rounded(seconds: f64) -> f64 {
    (seconds * 100.0).round_ties_even() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str, start: f64, end: f64) -> Timed {
        Timed { text: text.into(), tokens: 1, start, end }
    }

    fn piece(start: f64, end: f64, text_tokens: usize) -> Piece {
        Piece { start, end, tokens: vec![], text_tokens, words: vec![] }
    }

    #[test]
    fn the_walk_enters_each_token_where_it_is_seen() {
        let (yes, no) = (1.0, -1.0);
        let seen = [[yes, yes, no, no, no, no], [no, no, yes, no, no, no], [no, no, no, yes, yes, yes]];
        assert_eq!(walk(&seen.concat(), 6), [0, 2, 3]);
    }

    #[test]
    fn a_single_flash_is_smoothed_away_and_ends_are_mirrored() {
        let mut out = vec![0.0; 9];
        median_filter(&[0.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0], &mut out);
        assert_eq!(out, [0.0; 9]);
        median_filter(&[5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0], &mut out);
        assert_eq!(out[0], 3.0, "of 2 3 4 5 4 3 2: {out:?}");
        median_filter(&[1.0, 2.0], &mut out[..2]);
        assert_eq!(out[..2], [1.0, 2.0]);
    }

    #[test]
    fn columns_that_never_change_say_nothing() {
        let mut rows = vec![1.0, 2.0, 1.0, 4.0];
        normalise(&mut rows, 2);
        assert_eq!(rows, [0.0, -1.0, 0.0, 1.0]);
    }

    #[test]
    fn marks_join_their_words() {
        let texts = [" \"", "Yes", ",", " said", " (", "he", ")."];
        let mut words: Vec<Timed> = texts.iter().map(|text| word(text, 0.0, 0.1)).collect();
        merge_punctuation(&mut words);
        let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
        assert_eq!(texts, ["", " \"Yes,", "", " said", "", " (he", ")."]);
        assert_eq!(words.iter().map(|word| word.tokens).sum::<usize>(), 7);
    }

    #[test]
    fn words_fall_to_their_pieces_and_move_their_ends() {
        let spelled = |text: &str, tokens| Spelled { text: text.into(), tokens: vec![1; tokens] };
        let words = [spelled(" one", 1), spelled(" two", 2), spelled(".", 1), spelled(" three", 1)];
        let mut pieces = [piece(10.0, 11.0, 4), piece(11.0, 12.0, 1)];
        place(&mut pieces, &words, &[5, 15, 20, 25, 30, 60], 10.0, 9.0);
        let found: Vec<_> = pieces.iter().flat_map(|p| &p.words).map(|w| (w.text.as_str(), w.start, w.end)).collect();
        assert_eq!(found, [(" one", 10.1, 10.3), (" two.", 10.3, 10.5), (" three", 10.8, 11.2)]);
        assert_eq!((pieces[0].start, pieces[0].end, pieces[1].end), (10.1, 10.5, 11.2));
    }

    #[test]
    fn without_positions_nothing_is_timed_and_nothing_fails() {
        assert_eq!(jumps(Observed::default(), 1, 3), [0; 4]);
        let mut pieces = [piece(1.0, 2.0, 2)];
        place(&mut pieces, &[], &[0], 1.0, 0.0);
        assert!(pieces[0].words.is_empty());
    }
}
