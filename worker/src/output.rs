//! What an engine computed to what a client gets. The form is decided at admission, before anything is computed; the
//! rest is arithmetic. Pure.

use std::sync::Arc;

use engine::encode::{self, Transcript};
use protocol::Refusal;
use protocol::answer::{Label, Output, Segment, Word};
use protocol::job::Job;
use protocol::request::{Task, TranscriptFormat};

use crate::model::Model;
use crate::subtitle::{self, Kind};

/// Labels of an answer where nobody says how many.
const TOP_DEFAULT: u32 = 5;

/// The form of a job's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// Generated text, as it comes.
    Text,
    /// A vector for each input.
    Vectors {
        /// The first so many numbers, of length 1 again; `None` keeps all.
        dimensions: Option<usize>,
    },
    /// How alike the first input is to each of the others.
    Scores,
    /// The likeliest classes of each picture.
    Classes {
        /// Their names.
        names: Arc<[String]>,
        /// Most labels of a picture.
        top: usize,
    },
    /// Which of the caller's texts fits each picture best. The texts' vectors follow the pictures'.
    Choice {
        /// The texts.
        texts: Vec<String>,
        /// What a cosine is multiplied with before they are weighed against each other.
        likeness: f32,
        /// Most labels of a picture.
        top: usize,
    },
    /// What was said.
    Transcript(TranscriptFormat),
}

/// Decides the form of a job's answer, or says why the model cannot give it.
pub fn form(job: &Job, model: &Model) -> Result<Form, Refusal> {
    let params = &job.params;
    let top = params.top.unwrap_or(TOP_DEFAULT) as usize;
    match &job.task {
        Task::Embed => {
            let dimensions = params.dimensions.map(|dimensions| dimensions as usize);
            if let (Some(wanted), Some(width)) = (dimensions, model.traits.width)
                && wanted > width
            {
                return Err(Refusal::invalid(format!(
                    "params.dimensions must be at most {width}, the width of the model's vectors, not {wanted}"
                )));
            }
            Ok(Form::Vectors { dimensions })
        }
        Task::Score => Ok(Form::Scores),
        Task::Classify => match (&params.labels, model.traits.likeness) {
            (Some(texts), Some(likeness)) => Ok(Form::Choice { texts: texts.clone(), likeness, top }),
            (Some(_), None) => Err(Refusal::invalid(format!(
                "{} knows its own labels only and reads no text: leave params.labels out",
                job.model
            ))),
            (None, _) if model.traits.labels.is_empty() => {
                Err(Refusal::invalid(format!("{} has no labels of its own: name some in params.labels", job.model)))
            }
            (None, _) => Ok(Form::Classes { names: Arc::clone(&model.traits.labels), top }),
        },
        Task::Transcribe => Ok(Form::Transcript(params.format.unwrap_or_default())),
        Task::Chat | Task::Complete | Task::Pipeline(_) => Ok(Form::Text),
    }
}

impl Form {
    /// What a client may hear of a chunk after `said`; `None` where the answer is not made of chunks. A transcript
    /// begins with its first letter; subtitles need times, which come with the end.
    #[must_use]
    pub fn chunk(&self, said: &str, text: String) -> Option<String> {
        let text = match self {
            Form::Text => text,
            Form::Transcript(TranscriptFormat::Text | TranscriptFormat::Json) if said.is_empty() => {
                text.trim_start().to_owned()
            }
            Form::Transcript(TranscriptFormat::Text | TranscriptFormat::Json) => text,
            _ => return None,
        };
        (!text.is_empty()).then_some(text)
    }

    /// The answer's outputs, and all that streams of them in pieces: [`unsaid`] leaves what was not heard yet.
    ///
    /// # Errors
    /// When the engine computed something else, or something that is no number: a fault of ours.
    pub fn outputs(&self, found: Vec<encode::Output>) -> Result<(Vec<Output>, Vec<String>), String> {
        let outputs: Result<Vec<Output>, String> = match self {
            Form::Text => Err("outputs of an encoder for a text".to_owned()),
            Form::Vectors { dimensions } => found.into_iter().map(|found| embedding(found, *dimensions)).collect(),
            Form::Scores => scores(found),
            Form::Classes { names, top } => found.into_iter().map(|found| classes(found, names, *top)).collect(),
            Form::Choice { texts, likeness, top } => choices(found, texts, *likeness, *top),
            Form::Transcript(format) => {
                let [found] = <[encode::Output; 1]>::try_from(found).map_err(|_| unlike("one transcript"))?;
                let encode::Output::Transcript(transcript) = found else { return Err(unlike("a transcript")) };
                let (output, pieces) = written(transcript, *format);
                return Ok((vec![output], pieces));
            }
        };
        outputs.map(|outputs| (outputs, Vec::new()))
    }
}

/// What is left of `pieces` after the `said` beginning of them; nothing where it is no beginning, and all has to be said
/// again.
#[must_use]
pub fn unsaid(pieces: Vec<String>, said: &str) -> Vec<String> {
    let mut said = said;
    let mut rest = Vec::new();
    for piece in pieces {
        if let Some(left) = said.strip_prefix(piece.as_str()) {
            said = left;
        } else if let Some(new) = piece.strip_prefix(said) {
            rest.push(new.to_owned());
            said = "";
        } else {
            return Vec::new();
        }
    }
    rest
}

fn unlike(wanted: &str) -> String {
    format!("the engine's outputs are not what was asked for: {wanted}")
}

fn vector(found: encode::Output) -> Result<Vec<f32>, String> {
    match found {
        encode::Output::Vector(numbers) if numbers.iter().all(|number| number.is_finite()) => Ok(numbers),
        encode::Output::Vector(_) => Err("a vector holds what is no number".to_owned()),
        _ => Err(unlike("a vector")),
    }
}

/// Cutting is for models that were trained for it; the rest has length 1 again.
fn embedding(found: encode::Output, dimensions: Option<usize>) -> Result<Output, String> {
    let mut vector = vector(found)?;
    if let Some(dimensions) = dimensions.filter(|&dimensions| dimensions != vector.len()) {
        if dimensions > vector.len() {
            return Err(unlike("a wider vector"));
        }
        vector.truncate(dimensions);
        let length = dot(&vector, &vector).sqrt();
        if length > 0.0 {
            vector.iter_mut().for_each(|number| *number = (f64::from(*number) / length) as f32);
        }
    }
    Ok(Output::Embedding { vector })
}

/// Vectors have length 1, so their product is the cosine.
fn dot(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(&left, &right)| f64::from(left) * f64::from(right)).sum()
}

fn vectors(found: Vec<encode::Output>) -> Result<Vec<Vec<f32>>, String> {
    let vectors = found.into_iter().map(vector).collect::<Result<Vec<_>, _>>()?;
    let same = vectors.windows(2).all(|pair| pair[0].len() == pair[1].len());
    if same { Ok(vectors) } else { Err(unlike("vectors of one width")) }
}

fn scores(found: Vec<encode::Output>) -> Result<Vec<Output>, String> {
    let vectors = vectors(found)?;
    let Some((first, others)) = vectors.split_first() else { return Err(unlike("vectors")) };
    Ok(others.iter().map(|other| Output::Score { score: dot(first, other).clamp(-1.0, 1.0) as f32 }).collect())
}

fn classes(found: encode::Output, names: &[String], top: usize) -> Result<Output, String> {
    match found {
        encode::Output::Classes(scores) if scores.len() == names.len() => likeliest(&scores, names, top),
        _ => Err(unlike("a probability for each class")),
    }
}

/// Likeliest first; of equal ones that which the model names first.
fn likeliest(scores: &[f32], names: &[String], top: usize) -> Result<Output, String> {
    if !scores.iter().all(|score| score.is_finite()) {
        return Err("a probability is no number".to_owned());
    }
    let mut labels: Vec<(&String, f32)> = names.iter().zip(scores.iter().copied()).collect();
    labels.sort_by(|(_, left), (_, right)| right.total_cmp(left));
    labels.truncate(top);
    let labels = labels.into_iter().map(|(label, score)| Label { label: label.clone(), score }).collect();
    Ok(Output::Labels { labels })
}

fn choices(found: Vec<encode::Output>, texts: &[String], likeness: f32, top: usize) -> Result<Vec<Output>, String> {
    let vectors = vectors(found)?;
    let count = vectors.len().checked_sub(texts.len()).ok_or_else(|| unlike("a vector for each text"))?;
    let (pictures, meanings) = vectors.split_at(count);
    let choice = |picture: &Vec<f32>| {
        let near: Vec<f64> = meanings.iter().map(|text| f64::from(likeness) * dot(picture, text)).collect();
        likeliest(&softmax(&near), texts, top)
    };
    pictures.iter().map(choice).collect()
}

fn softmax(logits: &[f64]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|logit| (logit - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| (power / sum) as f32).collect()
}

/// A transcript as an output, and its text in pieces: cues of subtitles, else all of it.
fn written(transcript: Transcript, format: TranscriptFormat) -> (Output, Vec<String>) {
    let pieces = match format {
        TranscriptFormat::Text | TranscriptFormat::Json => {
            let text: String = transcript.segments.iter().map(|segment| segment.text.as_str()).collect();
            vec![text.trim_start().to_owned()]
        }
        TranscriptFormat::Srt => subtitle::pieces(Kind::Srt, &transcript.segments),
        TranscriptFormat::Vtt => subtitle::pieces(Kind::Vtt, &transcript.segments),
    };
    let text = pieces.concat();
    let segments = transcript.segments.into_iter().map(segment).collect();
    (Output::Transcript { text, language: transcript.language, segments, format }, pieces)
}

fn segment(segment: encode::Segment) -> Segment {
    let word = |word: encode::Word| Word { start: word.start, end: word.end, text: word.text.trim().to_owned() };
    Segment {
        start: segment.start,
        end: segment.end,
        text: segment.text.trim().to_owned(),
        words: segment.words.into_iter().map(word).collect(),
    }
}

#[cfg(test)]
mod tests {
    use protocol::ErrorCode;
    use protocol::media::Modality;
    use protocol::request::Part;

    use super::*;
    use crate::fake;

    fn asks(modality: Modality) -> (Job, Model) {
        let input = match modality {
            Modality::Text => vec![Part::user("a"), Part::user("b")],
            Modality::Image => vec![fake::picture(b"red")],
            Modality::Audio => vec![fake::sound(b"hello")],
        };
        (fake::job_on(modality, "j1", input), fake::encoder(modality))
    }

    fn unit(numbers: &[f32]) -> encode::Output {
        let length = dot(numbers, numbers).sqrt() as f32;
        encode::Output::Vector(numbers.iter().map(|number| number / length).collect())
    }

    #[test]
    fn vectors_are_cut_and_of_length_one_again() {
        let (mut job, model) = asks(Modality::Text);
        job.params.dimensions = Some(2);
        let form = form(&job, &model).unwrap();
        let (outputs, chunks) = form.outputs(vec![unit(&[3.0, 4.0, 12.0]), unit(&[0.0, 0.0, 1.0])]).unwrap();
        let [Output::Embedding { vector }, Output::Embedding { vector: nothing }] = &outputs[..] else {
            panic!("{outputs:?}")
        };
        assert!((vector[0] - 0.6).abs() < 1e-6 && (vector[1] - 0.8).abs() < 1e-6, "{vector:?}");
        assert_eq!((nothing, chunks.len()), (&vec![0.0, 0.0], 0));
        let width = model.traits.width.unwrap();
        job.params.dimensions = Some(u32::try_from(width).unwrap());
        assert!(super::form(&job, &model).is_ok());
        job.params.dimensions = Some(u32::try_from(width).unwrap() + 1);
        let refusal = super::form(&job, &model).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::InvalidRequest);
        assert!(refusal.message.contains(&width.to_string()), "{refusal}");
    }

    #[test]
    fn what_was_not_asked_for_is_a_fault_of_ours() {
        let all = Form::Vectors { dimensions: None };
        assert!(all.outputs(vec![encode::Output::Vector(vec![f32::NAN])]).is_err());
        assert!(all.outputs(vec![encode::Output::Classes(vec![1.0])]).is_err());
        assert!(Form::Vectors { dimensions: Some(3) }.outputs(vec![unit(&[1.0, 2.0])]).is_err());
        assert!(Form::Scores.outputs(vec![unit(&[1.0, 2.0]), unit(&[1.0])]).is_err());
        assert!(Form::Transcript(TranscriptFormat::Text).outputs(Vec::new()).is_err());
        let names = Arc::from(["a".to_owned(), "b".to_owned()]);
        let classes = Form::Classes { names, top: 5 };
        assert!(classes.outputs(vec![encode::Output::Classes(vec![1.0])]).is_err());
        assert!(classes.outputs(vec![encode::Output::Classes(vec![1.0, f32::INFINITY])]).is_err());
    }

    #[test]
    fn the_first_text_is_scored_against_each_other() {
        let (outputs, _) = Form::Scores
            .outputs(vec![unit(&[1.0, 0.0]), unit(&[1.0, 0.0]), unit(&[1.0, 1.0]), unit(&[-1.0, 0.0])])
            .unwrap();
        let score = |output: &Output| match output {
            Output::Score { score } => (score * 1000.0).round(),
            other => panic!("{other:?}"),
        };
        assert_eq!(outputs.iter().map(score).collect::<Vec<_>>(), [1000.0, 707.0, -1000.0]);
    }

    fn labels(output: &Output) -> Vec<(&str, f32)> {
        match output {
            Output::Labels { labels } => labels.iter().map(|label| (label.label.as_str(), label.score)).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn labels_come_likeliest_first_and_only_so_many() {
        let names: Arc<[String]> = ["a", "b", "c", "d"].map(str::to_owned).into();
        let form = Form::Classes { names, top: 3 };
        let (outputs, _) = form.outputs(vec![encode::Output::Classes(vec![0.1, 0.2, 0.5, 0.2])]).unwrap();
        assert_eq!(labels(&outputs[0]), [("c", 0.5), ("b", 0.2), ("d", 0.2)], "equal ones in the model's order");
    }

    #[test]
    fn own_labels_need_a_model_that_reads() {
        let (mut job, mut model) = asks(Modality::Image);
        assert!(matches!(form(&job, &model), Ok(Form::Classes { top: 5, .. })));
        job.params.labels = Some(vec!["cat".to_owned(), "dog".to_owned()]);
        assert_eq!(form(&job, &model).unwrap_err().code, ErrorCode::InvalidRequest);
        model.traits.likeness = Some(100.0);
        let choice = form(&job, &model).unwrap();
        let found = vec![unit(&[1.0, 0.0]), unit(&[0.0, 1.0]), unit(&[1.0, 0.1]), unit(&[0.0, 1.0])];
        let (outputs, _) = choice.outputs(found).unwrap();
        assert_eq!(outputs.len(), 2, "the texts' vectors are no pictures");
        assert_eq!((labels(&outputs[0])[0].0, labels(&outputs[1])[0].0), ("cat", "dog"));
        let sum: f32 = labels(&outputs[0]).iter().map(|(_, score)| score).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert!(choice.outputs(vec![unit(&[1.0])]).is_err());
        model.traits.labels = Arc::default();
        job.params.labels = None;
        assert_eq!(form(&job, &model).unwrap_err().code, ErrorCode::InvalidRequest, "it has none of its own");
    }

    fn transcript() -> Transcript {
        let word = |start, end, text: &str| encode::Word { start, end, text: text.to_owned() };
        let segment = |start, end, text: &str, words| encode::Segment { start, end, text: text.to_owned(), words };
        Transcript {
            language: "en".to_owned(),
            segments: vec![
                segment(0.0, 1.0, " Hello.", vec![word(0.0, 1.0, " Hello.")]),
                segment(1.0, 2.0, " World.", Vec::new()),
            ],
        }
    }

    #[test]
    fn chunks_in_a_row_are_the_text_of_the_answer() {
        for format in [TranscriptFormat::Text, TranscriptFormat::Json, TranscriptFormat::Srt, TranscriptFormat::Vtt] {
            let form = Form::Transcript(format);
            let mut said = String::new();
            // What the last window says comes with the end.
            for chunk in [" ", " Hello."] {
                said.push_str(&form.chunk(&said, chunk.to_owned()).unwrap_or_default());
            }
            let (outputs, pieces) = form.outputs(vec![encode::Output::Transcript(transcript())]).unwrap();
            let rest = unsaid(pieces, &said).concat();
            said.push_str(&rest);
            let [Output::Transcript { text, language, segments, format: written }] = &outputs[..] else { panic!() };
            assert_eq!((text, written), (&said, &format));
            assert_eq!((language.as_str(), segments.len(), segments[0].text.as_str()), ("en", 2, "Hello."));
            assert_eq!(segments[0].words[0].text, "Hello.");
        }
        assert_eq!(Form::Scores.chunk("", "x".to_owned()), None);
    }

    #[test]
    fn what_was_heard_is_not_said_again() {
        let rest = |said: &str| unsaid(["one ", "two ", "three"].map(str::to_owned).to_vec(), said).concat();
        assert_eq!(rest(""), "one two three");
        assert_eq!(rest("one "), "two three");
        assert_eq!(rest("one tw"), "o three");
        assert_eq!(rest("one two three"), "");
        assert_eq!(rest("once"), "", "something else was said");
    }
}
