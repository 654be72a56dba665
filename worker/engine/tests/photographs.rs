//! Photographs through decoding, resizing and EfficientNet-Lite0, against what timm sees in the same files.

use std::collections::BTreeMap;
use std::path::Path;

use engine::backend::Weights;
use engine::encode::{Encoder, Input, InputKey, Output, Pixels, Settings, Turn, processor};
use engine::fixture;
use engine::model::EfficientNet;
use engine::simd::Level;
use engine::tensors::Tensors;
use media::picture::{Filter, Framing, Limits, decode};

/// Decoders round differently, and weights of a byte are rounded.
const TOLERANCE: [(Weights, f32); 2] = [(Weights::Stored, 0.005), (Weights::Int8, 0.05)];

#[test]
fn labels_are_timms() {
    for (weights, tolerance) in TOLERANCE {
        labels_of(weights, tolerance);
    }
}

fn labels_of(weights: Weights, tolerance: f32) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let golden: BTreeMap<String, Vec<(usize, f32)>> =
        serde_json::from_slice(&std::fs::read(folder.join("labels.json")).unwrap()).unwrap();
    let tensors = Tensors::open(&fixture::efficientnet()).unwrap();
    let cpu = processor(&tensors, Settings { threads: 2, weights }, Level::detect()).unwrap();
    let mut model = EfficientNet::load(&tensors, cpu).unwrap();
    let picturing = *model.picturing();
    let side = picturing.size as usize;
    let framing = Framing {
        shorter: picturing.resize,
        crop: picturing.size,
        filter: Filter::Bicubic,
        mean: picturing.mean,
        deviation: picturing.std,
    };
    let inputs: Vec<Input> = golden
        .keys()
        .map(|name| {
            let picture = decode(&std::fs::read(folder.join(name)).unwrap(), &Limits::default()).unwrap();
            Input::Pixels(Pixels { height: side, width: side, numbers: picture.framed(&framing) })
        })
        .collect();
    let batch: Vec<(InputKey, &Input)> = inputs.iter().map(|input| (InputKey(0), input)).collect();
    let mut turns = Vec::new();
    model.encode(&batch, &mut turns).unwrap();
    for ((name, top), turn) in golden.iter().zip(turns) {
        let Turn::Done(Output::Classes(classes)) = turn else { panic!("{name}: {turn:?}") };
        let best = (0..classes.len()).max_by(|a, b| classes[*a].total_cmp(&classes[*b])).unwrap();
        assert_eq!(best, top[0].0, "{name}, {weights:?}");
        for &(class, probability) in top {
            assert!(
                (classes[class] - probability).abs() < tolerance,
                "{name}, {weights:?}: {} for {class}",
                classes[class]
            );
        }
    }
}
