//! A model file with weights of a byte, and what that costs: both files are asked the same.

use std::path::Path;

use engine::encode::{Input, InputKey, Loaded, Output, Settings, Transcript, Turn, load};
use engine::model::Rounded;
use engine::tensors::Tensors;
use protocol::rounding::{Loss, Report, Worst};

use super::samples::samples;
use crate::error::Error;

/// Writes the model file at `from` to `to` with its products rounded, and measures what that costs.
///
/// # Errors
/// When there is nothing to round, a file cannot be read or written, or a model fails.
pub fn round(from: &Path, to: &Path) -> Result<Report, Error> {
    let tensors = Tensors::open(from)?;
    let file = Rounded::of(&tensors)?;
    let (rounded, kept, folded, error) = (file.roundings().len(), file.kept(), file.folded(), file.error());
    let worst = Worst { tensor: file.worst().name.clone(), error: file.worst().error() };
    file.write(to)?;
    let settings = Settings::stored(std::thread::available_parallelism().map_or(1, usize::from));
    let stored = load(from, settings)?;
    let inputs = samples(from, &stored)?;
    let before = answers(stored, &inputs)?;
    let loss = loss(&before, &answers(load(to, settings)?, &inputs)?);
    let (bytes_before, bytes_after) = (bytes(from)?, bytes(to)?);
    Ok(Report { rounded, kept, folded, bytes_before, bytes_after, error, worst, loss })
}

fn bytes(path: &Path) -> Result<u64, Error> {
    let meta = path.metadata().map_err(|error| Error::Setup(format!("{}: {error}", path.display())))?;
    Ok(meta.len())
}

/// What a model makes of inputs, each alone.
fn answers(mut loaded: Loaded, inputs: &[Input]) -> Result<Vec<Output>, Error> {
    let mut answers = Vec::with_capacity(inputs.len());
    for (key, input) in (0..).map(InputKey).zip(inputs) {
        let mut turns = Vec::new();
        loop {
            loaded.encoder.encode(&[(key, input)], &mut turns)?;
            match turns.pop() {
                Some(Turn::Done(answer)) => break answers.push(answer),
                Some(Turn::More(_)) => {}
                Some(Turn::Failed(why)) => return Err(Error::Setup(format!("an input of ours: {why}"))),
                None => return Err(Error::Setup("an input of ours: no answer".into())),
            }
        }
        loaded.encoder.forget(key);
    }
    Ok(answers)
}

/// How far answers are from those before; inputs of a model all have answers of one kind.
fn loss(before: &[Output], after: &[Output]) -> Loss {
    let (mut cosines, mut difference, mut margin, mut same, mut words) = (Vec::new(), 0.0_f64, 0.0_f64, 0, 0);
    for pair in before.iter().zip(after) {
        match pair {
            (Output::Vector(before), Output::Vector(after)) => cosines.push(cosine(before, after)),
            (Output::Classes(before), Output::Classes(after)) => {
                let (was, is) = (likeliest(before), likeliest(after));
                same += usize::from(was == is);
                margin = margin.max(f64::from(before[was] - before[is]));
                difference = before.iter().zip(after).map(|(a, b)| f64::from((a - b).abs())).fold(difference, f64::max);
            }
            (Output::Transcript(before), Output::Transcript(after)) => {
                let (before, after) = (said(before), said(after));
                same += usize::from(before == after);
                words += before.len();
            }
            _ => {}
        }
    }
    match before.first() {
        Some(Output::Transcript(_)) => Loss::Words { words, same: same == before.len() },
        Some(Output::Classes(_)) => Loss::Labels { inputs: before.len(), difference, same, margin },
        _ => {
            let least = cosines.iter().copied().fold(1.0, f64::min);
            let mean = cosines.iter().sum::<f64>() / cosines.len().max(1) as f64;
            Loss::Directions { inputs: cosines.len(), least, mean }
        }
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Of at least one class: no model without is loaded.
fn likeliest(classes: &[f32]) -> usize {
    (0..classes.len()).max_by(|a, b| classes[*a].total_cmp(&classes[*b])).unwrap_or(0)
}

fn said(transcript: &Transcript) -> Vec<&str> {
    transcript.segments.iter().flat_map(|segment| segment.text.split_whitespace()).collect()
}

#[cfg(test)]
mod tests {
    use engine::encode::Segment;

    use super::*;

    #[test]
    fn a_loss_is_told_as_the_answers_are() {
        let vector = |numbers: [f32; 2]| Output::Vector(numbers.to_vec());
        let directions = loss(&[vector([1.0, 0.0]), vector([0.0, 1.0])], &[vector([1.0, 0.0]), vector([3.0, 4.0])]);
        assert_eq!(directions, Loss::Directions { inputs: 2, least: 0.8, mean: 0.9 });
        let classes = |numbers: [f32; 2]| Output::Classes(numbers.to_vec());
        let before = [classes([0.75, 0.25]), classes([0.5625, 0.4375])];
        let labels = loss(&before, &[classes([0.5625, 0.4375]), classes([0.4375, 0.5625])]);
        assert_eq!(labels, Loss::Labels { inputs: 2, difference: 0.1875, same: 1, margin: 0.125 });
        let transcript = |text: &str| {
            let segment = Segment { start: 0.0, end: 1.0, text: text.to_owned(), words: Vec::new() };
            Output::Transcript(Transcript { language: "en".into(), segments: vec![segment] })
        };
        let words = loss(&[transcript(" a b c")], &[transcript("a  b c")]);
        assert_eq!(words, Loss::Words { words: 3, same: true });
        assert_eq!(loss(&[transcript("a b")], &[transcript("a c")]), Loss::Words { words: 2, same: false });
    }

    #[test]
    fn a_small_encoder_is_rounded_and_measured() {
        let folder = std::env::temp_dir().join(format!("flotilla-rounding-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (from, to) = (folder.join("from.safetensors"), folder.join("to.safetensors"));
        engine::fixture::tiny_bert(&from, 3);
        let report = round(&from, &to).unwrap();
        assert_eq!((report.rounded, report.kept, report.folded), (12, 25, 0));
        assert!(report.worst.error >= report.error && report.error > 0.0, "{report:?}");
        assert!(report.worst.tensor.starts_with("encoder.layer."), "{report:?}");
        assert_eq!((report.bytes_before, report.bytes_after), (bytes(&from).unwrap(), bytes(&to).unwrap()));
        let Loss::Directions { inputs: 12, least, mean } = report.loss else { panic!("{report:?}") };
        assert!(least > 0.999 && mean >= least && mean < 1.0, "{report:?}");
        assert!(matches!(round(&to, &from), Err(Error::Engine(engine::Error::Unsupported(_)))));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
