use super::*;
use crate::backend::cpu::Cpu;
use crate::backend::{Activations, StepLimits, Weights};
use crate::encode::{Budget, Encoder, Input, InputKey, Pixels, Turn};
use crate::fixture::{tensors_file, tiny_bert_bytes};
use crate::model::{Bert, Clip};
use crate::simd::Level;
use crate::tensors::CONFIG;
use std::time::Duration;

const CLIP: &[u8] = include_bytes!("../../../tests/golden/clip.safetensors");
const BUDGET: Budget = Budget { units: 64, inputs: 8, max_wait: Duration::ZERO };

fn device(weights: Weights) -> Cpu {
    let limits = StepLimits { rows: 1, outputs: 1, blocks: 1 };
    Cpu::new(Level::detect(), 1, limits).with(Activations::default()).holding(weights)
}

/// The file, written and read again.
fn again(rounded: Rounded<'_>) -> Tensors {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.safetensors");
    rounded.write(&file).unwrap();
    Tensors::parse(std::fs::read(file).unwrap()).unwrap()
}

fn turns(mut encoder: impl Encoder, inputs: &[Input]) -> Vec<Turn> {
    let mut turns = Vec::new();
    for input in inputs {
        encoder.encode(&[(InputKey(0), input)], &mut turns).unwrap();
    }
    turns
}

fn texts() -> Vec<Input> {
    [[3, 7, 40, 49], [9, 2, 11, 49]].map(|tokens| Input::Tokens(tokens.to_vec())).to_vec()
}

#[test]
fn a_file_of_rounded_products_computes_as_those_rounded_at_load() {
    let stored = Tensors::parse(tiny_bert_bytes(5, &[])).unwrap();
    let rounded = Rounded::of(&stored).unwrap();
    assert_eq!((rounded.roundings().len(), rounded.kept(), rounded.folded()), (12, 25, 0));
    assert!((0.001..0.01).contains(&rounded.error()), "{}", rounded.error());
    let file = again(rounded);
    let table = "embeddings.word_embeddings.weight";
    assert_eq!(file.tensor(table).unwrap().data, stored.tensor(table).unwrap().data);
    assert_eq!((file.parameters(), file.text(CONFIG).unwrap()), (stored.parameters(), stored.text(CONFIG).unwrap()));
    assert!(file.bytes() < stored.bytes());
    let load = |tensors, weights| Bert::load(tensors, BUDGET, device(weights)).unwrap();
    let at_load = turns(load(&stored, Weights::Int8), &texts());
    assert_eq!(turns(load(&file, Weights::Stored), &texts()), at_load);
    assert_eq!(turns(load(&file, Weights::Int8), &texts()), at_load);
    assert_ne!(turns(load(&stored, Weights::Stored), &texts()), at_load);
}

#[test]
fn both_towers_of_clip_are_rounded_and_its_tables_are_not() {
    let stored = Tensors::parse(CLIP).unwrap();
    let file = again(Rounded::of(&stored).unwrap());
    let numbers = (0..13 * 13 * 3).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    let picture = Input::Pixels(Pixels { height: 13, width: 13, numbers });
    let inputs = [&texts()[..], &[picture]].concat();
    let load = |tensors, weights| Clip::load(tensors, BUDGET, device(weights)).unwrap();
    assert_eq!(turns(load(&file, Weights::Stored), &inputs), turns(load(&stored, Weights::Int8), &inputs));
    for (name, format) in [
        ("text_model.embeddings.token_embedding.weight", Format::F32),
        ("vision_model.embeddings.position_embedding.weight", Format::F32),
        ("text_model.encoder.layers.0.mlp.fc2.weight", Format::F32),
        ("text_model.encoder.layers.0.mlp.fc1.weight", Format::Q8_0),
        ("visual_projection.weight", Format::Q8_0),
    ] {
        assert_eq!(file.tensor(name).unwrap().format, format, "{name}");
    }
}

#[test]
fn kernels_become_the_matrices_that_products_read() {
    let kernel: Vec<f32> = (0..192).map(|number| (number % 127) as f32).collect();
    let metadata = [(FAMILY, "whisper")];
    let stored = Tensors::parse(tensors_file(&metadata, &[("conv.weight", &[2, 32, 3], kernel.clone())])).unwrap();
    let file = again(Rounded::of(&stored).unwrap());
    let rows = channels_last(&kernel, &[2, 32, 3]);
    let rounded = quantise(&rows);
    assert_eq!(file.matrix("conv.weight", 2, 96).unwrap().data, rounded.as_slice());
}

#[test]
fn what_cannot_be_rounded_is_unsupported() {
    let of = |family: &str, shape: &[usize]| {
        let numbers = vec![0.5; shape.iter().product()];
        let file = tensors_file(&[(FAMILY, family)], &[("layer.weight", shape, numbers)]);
        let tensors = Tensors::parse(file).unwrap();
        Rounded::of(&tensors).map(again)
    };
    let unsupported = |result| matches!(result, Err(Error::Unsupported(_)));
    assert!(of("bert", &[2, 32]).is_ok());
    assert!(unsupported(of("llama", &[2, 32])) && unsupported(of("bert", &[2, 31])) && unsupported(of("bert", &[32])));
    assert!(unsupported(of("efficientnet", &[2, 32, 1, 1])));
    let rounded = of("bert", &[2, 32]).unwrap();
    assert!(unsupported(Rounded::of(&rounded).map(again)));
}

#[test]
fn the_error_is_that_of_all_numbers_together() {
    let rounding = |squares, wrong| Rounding { name: String::new(), squares, wrong };
    let of = |roundings: &[Rounding]| {
        let (entries, metadata) = (Vec::new(), BTreeMap::new());
        Rounded { entries, metadata, roundings: roundings.to_vec(), kept: 0, folded: 0 }.error()
    };
    let all = [rounding(16.0, 1.0), rounding(9.0, 0.0), rounding(0.0, 0.0)];
    assert_eq!(all.clone().map(|one| one.error()), [0.25, 0.0, 0.0]);
    assert!((of(&all) - 0.2).abs() < 1e-12);
}
