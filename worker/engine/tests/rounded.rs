//! Files with weights of a byte compute what weights rounded at load do, bit for bit: the bars of those hold for them.

use std::path::{Path, PathBuf};

use engine::encode::{Clip, Input, InputKey, Output, Pixels, Settings, Turn, Words, load};
use engine::fixture::{efficientnet, minilm, whisper_tiny_en};
use engine::model::Rounded;
use engine::tensors::Tensors;
use engine::text::{Encoded, Excess};
use media::picture::{Filter, Framing, Limits, decode};
use media::sound;

const THREADS: usize = 2;

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn answers(path: &Path, settings: Settings, inputs: &[Input]) -> Vec<Output> {
    let mut encoder = load(path, settings).unwrap().encoder;
    let answer = |(key, input)| {
        let mut turns = Vec::new();
        loop {
            encoder.encode(&[(InputKey(key), input)], &mut turns).unwrap();
            match turns.pop() {
                Some(Turn::Done(answer)) => return answer,
                Some(Turn::More(_)) => {}
                other => panic!("no answer: {other:?}"),
            }
        }
    };
    (0..).zip(inputs).map(answer).collect()
}

/// Rounds the file at `from`; how much of it is left.
fn check(from: &Path, inputs: &[Input]) -> f64 {
    let (folder, stored) = (tempfile::tempdir().unwrap(), Tensors::open(from).unwrap());
    let to: PathBuf = folder.path().join("rounded.safetensors");
    Rounded::of(&stored).unwrap().write(&to).unwrap();
    let at_load = answers(from, Settings::int8(THREADS), inputs);
    assert_eq!(answers(&to, Settings::stored(THREADS), inputs), at_load);
    assert_eq!(answers(&to, Settings::int8(THREADS), &inputs[..1]), at_load[..1]);
    assert_eq!(load(&to, Settings::stored(THREADS)).unwrap().info.precision, "Q8_0");
    to.metadata().unwrap().len() as f64 / from.metadata().unwrap().len() as f64
}

#[test]
fn directions_have_the_bits_of_weights_rounded_at_load() {
    let loaded = load(&minilm(), Settings::stored(THREADS)).unwrap();
    let (encoder, limit) = (loaded.tokens.unwrap(), loaded.info.context.unwrap());
    let golden: serde_json::Value = serde_json::from_slice(&golden("golden/minilm/texts.json")).unwrap();
    let texts = golden["texts"].as_array().unwrap().iter().step_by(4).map(|text| text["text"].as_str().unwrap());
    let inputs: Vec<Input> = texts
        .map(|text| match encoder.encode(text, limit, Excess::Cut).unwrap() {
            Encoded::Whole(tokens) | Encoded::Cut(tokens) => Input::Tokens(tokens),
            other => panic!("{other:?}"),
        })
        .collect();
    // Half of it are words, which are looked up.
    let left = check(&minilm(), &inputs);
    assert!(left < 0.7, "{left}");
}

#[test]
fn labels_have_the_bits_of_weights_rounded_at_load() {
    let framing = Framing {
        shorter: 256,
        crop: 224,
        filter: Filter::Bicubic,
        mean: [0.485, 0.456, 0.406],
        deviation: [0.229; 3],
    };
    let picture = |name: &str| {
        let picture = decode(&golden(&format!("tests/golden/{name}.jpg")), &Limits::default()).unwrap();
        Input::Pixels(Pixels { height: 224, width: 224, numbers: picture.framed(&framing) })
    };
    let left = check(&efficientnet(), &["astronaut", "chelsea", "coffee", "rocket"].map(picture));
    assert!(left < 0.6, "{left}");
}

#[test]
fn transcripts_have_the_bits_of_weights_rounded_at_load() {
    let sound = sound::decode(&golden("../../ops/examples/sentence.flac"), &sound::Limits::default()).unwrap();
    let clip = Clip { samples: sound.samples, language: None, words: Words::Timed };
    let left = check(&whisper_tiny_en(), &[Input::Clip(clip)]);
    assert!(left < 0.6, "{left}");
}
