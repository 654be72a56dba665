//! EfficientNet-Lite with weights of chance: alone and in company, on the processor and on the oracle.

use super::*;
use crate::backend::StepLimits;
use crate::backend::cpu::Cpu;
use crate::backend::scalar::Scalar;
use crate::encode::{Pixels, Settings, processor};
use crate::fixture::{Noise, efficientnet_bytes, tensors_file};
use crate::model::Rounded;
use crate::simd::Level;
use crate::tensors::{CONFIG, Tensors};

/// Side of the pictures: small, and odd at two of the halvings.
const SIDE: usize = 40;
const LIMITS: StepLimits = StepLimits { rows: 1, outputs: 1, blocks: 1 };

/// A model file of seven classes in the shape of `efficientnet_lite0`.
fn model(padding: &str) -> Tensors {
    Tensors::parse(efficientnet_bytes(5, (SIDE, 7), padding)).unwrap()
}

fn pictures(count: usize) -> Vec<Input> {
    let mut noise = Noise(11);
    let mut numbers = || noise.numbers(SIDE * SIDE * 3).into_iter().map(|number| 2.0 * number).collect();
    (0..count).map(|_| Input::Pixels(Pixels { height: SIDE, width: SIDE, numbers: numbers() })).collect()
}

fn encode<B: Dense>(model: &mut EfficientNet<B>, inputs: &[Input]) -> Vec<Turn> {
    let batch: Vec<(InputKey, &Input)> =
        inputs.iter().enumerate().map(|(at, input)| (InputKey(at as u64), input)).collect();
    let mut turns = Vec::new();
    model.encode(&batch, &mut turns).unwrap();
    turns
}

fn classes(turn: &Turn) -> &[f32] {
    match turn {
        Turn::Done(Output::Classes(classes)) => classes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn in_company_as_alone_bit_for_bit() {
    let mut model = EfficientNet::load(&model("symmetric"), Cpu::new(Level::detect(), 2, LIMITS)).unwrap();
    let inputs = pictures(2 * GROUP + 1);
    let together = encode(&mut model, &inputs);
    for (input, turn) in inputs.iter().zip(&together) {
        assert_eq!(&encode(&mut model, std::slice::from_ref(input))[0], turn);
        assert!((classes(turn).iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
    assert!(together.windows(2).all(|pair| pair[0] != pair[1]), "pictures differ, so answers do");
}

#[test]
fn the_processor_agrees_with_the_oracle() {
    for padding in ["symmetric", "same"] {
        let tensors = model(padding);
        let inputs = pictures(1);
        let ours = encode(&mut EfficientNet::load(&tensors, Cpu::new(Level::detect(), 2, LIMITS)).unwrap(), &inputs);
        let theirs = encode(&mut EfficientNet::load(&tensors, Scalar::new(LIMITS)).unwrap(), &inputs);
        for (ours, theirs) in classes(&ours[0]).iter().zip(classes(&theirs[0])) {
            assert!((ours - theirs).abs() < 1e-4, "{padding}: {ours} and {theirs}");
        }
    }
}

#[test]
fn a_file_of_rounded_products_computes_as_those_rounded_at_load() {
    let (stored, folder) = (model("same"), tempfile::tempdir().unwrap());
    let path = folder.path().join("x.safetensors");
    let rounded = Rounded::of(&stored).unwrap();
    let (products, folded) = (rounded.roundings().len(), rounded.folded());
    rounded.write(&path).unwrap();
    let file = Tensors::parse(std::fs::read(path).unwrap()).unwrap();
    // Each has a normalisation of four parts behind it; the classifier, of few classes, stays.
    assert_eq!(folded, 4 * products);
    assert!(!file.has("bn2.weight") && file.has("conv_head.bias") && file.has("bn1.weight"));
    let load = |tensors, settings| {
        let device = processor(tensors, settings, Level::detect()).unwrap();
        encode(&mut EfficientNet::load(tensors, device).unwrap(), &pictures(2))
    };
    let at_load = load(&stored, Settings::int8(2));
    assert_eq!(load(&file, Settings::stored(2)), at_load);
    assert_ne!(load(&stored, Settings::stored(2)), at_load);
}

#[test]
fn what_does_not_fit_fails_alone() {
    let mut model = EfficientNet::load(&model("symmetric"), Cpu::new(Level::detect(), 2, LIMITS)).unwrap();
    let mut inputs = pictures(3);
    inputs[1] = Input::Pixels(Pixels { height: 2, width: SIDE, numbers: vec![0.0; 2 * SIDE * 3] });
    inputs.push(Input::Tokens(vec![1]));
    let turns = encode(&mut model, &inputs);
    assert!(matches!(&turns[1], Turn::Failed(why) if why.contains("40 x 40")), "{:?}", turns[1]);
    assert!(matches!(&turns[3], Turn::Failed(_)));
    assert_eq!(turns[0], encode(&mut model, &inputs[..1])[0]);
    assert_eq!(turns[2], encode(&mut model, &inputs[2..3])[0]);
    assert_eq!(model.cost(&inputs[0]).unwrap().units, SIDE * SIDE);
}

#[test]
fn a_file_that_lacks_something_is_refused() {
    let parse = |config: &str| Tensors::parse(tensors_file(&[(CONFIG, config)], &[("x", &[1], vec![0.0])])).unwrap();
    let load = |config: &str| EfficientNet::load(&parse(config), Scalar::new(LIMITS)).err().unwrap();
    assert!(matches!(load("{}"), Error::Malformed(_)));
    assert!(matches!(load(r#"{"architecture":"resnet50"}"#), Error::Unsupported(_)));
    assert!(matches!(load(r#"{"architecture":"efficientnet_lite0"}"#), Error::Malformed(_)));
    let large = r#"{"architecture":"efficientnet_lite0","size":100000,"resize":100000,"filter":"bicubic",
        "mean":[0,0,0],"std":[1,1,1]}"#;
    assert!(matches!(load(large), Error::Malformed(_)));
}
