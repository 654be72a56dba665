//! EfficientNet-Lite with weights of chance: alone and in company, on the processor and on the oracle.

use super::*;
use crate::backend::cpu::Cpu;
use crate::backend::scalar::Scalar;
use crate::backend::{Activations, StepLimits, Weights};
use crate::encode::Pixels;
use crate::fixture::tensors_file;
use crate::model::Rounded;
use crate::simd::Level;
use crate::tensors::{CONFIG, FAMILY, Tensors};

/// Side of the pictures: small, and odd at two of the halvings.
const SIDE: usize = 40;
const LIMITS: StepLimits = StepLimits { rows: 1, outputs: 1, blocks: 1 };

/// Numbers of -1 to 1, always the same ones.
struct Chance(u64);

impl Chance {
    fn numbers(&mut self, len: usize, scale: f32) -> Vec<f32> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next() * scale).collect()
    }
}

/// A model file of `classes` classes in the shape of `efficientnet_lite0`.
fn model(padding: &str) -> Tensors {
    const CLASSES: usize = 7;
    let mut chance = Chance(5);
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    let mut kernel = |name: String, shape: Vec<usize>| {
        let inputs: usize = shape[1..].iter().product();
        let numbers = chance.numbers(shape.iter().product(), (3.0 / inputs as f32).sqrt());
        tensors.push((name, shape, numbers));
    };
    let mut norms: Vec<(String, usize)> = vec![("bn1".into(), 32), ("bn2".into(), 1280)];
    kernel("conv_stem.weight".into(), vec![32, 3, 3, 3]);
    let mut channels = 32;
    let stages =
        [(1, 3, 1, 16), (2, 3, 6, 24), (2, 5, 6, 40), (3, 3, 6, 80), (3, 5, 6, 112), (4, 5, 6, 192), (1, 3, 6, 320)];
    for (stage, (repeats, side, expansion, outputs)) in stages.into_iter().enumerate() {
        for repeat in 0..repeats {
            let (name, wide) = (format!("blocks.{stage}.{repeat}"), channels * expansion);
            kernel(format!("{name}.conv_dw.weight"), vec![wide, 1, side, side]);
            if expansion == 1 {
                kernel(format!("{name}.conv_pw.weight"), vec![outputs, wide, 1, 1]);
                norms.extend([(format!("{name}.bn1"), wide), (format!("{name}.bn2"), outputs)]);
            } else {
                kernel(format!("{name}.conv_pw.weight"), vec![wide, channels, 1, 1]);
                kernel(format!("{name}.conv_pwl.weight"), vec![outputs, wide, 1, 1]);
                norms.extend([(format!("{name}.bn1"), wide), (format!("{name}.bn2"), wide)]);
                norms.push((format!("{name}.bn3"), outputs));
            }
            channels = outputs;
        }
    }
    kernel("conv_head.weight".into(), vec![1280, 320, 1, 1]);
    kernel("classifier.weight".into(), vec![CLASSES, 1280]);
    tensors.push(("classifier.bias".into(), vec![CLASSES], chance.numbers(CLASSES, 1.0)));
    for (name, channels) in norms {
        let about_one = |numbers: Vec<f32>| numbers.into_iter().map(|number| 1.0 + number).collect();
        tensors.push((format!("{name}.weight"), vec![channels], about_one(chance.numbers(channels, 0.3))));
        tensors.push((format!("{name}.bias"), vec![channels], chance.numbers(channels, 0.3)));
        tensors.push((format!("{name}.running_mean"), vec![channels], chance.numbers(channels, 0.2)));
        tensors.push((format!("{name}.running_var"), vec![channels], about_one(chance.numbers(channels, 0.5))));
    }
    let config = format!(
        r#"{{"architecture":"efficientnet_lite0","size":{SIDE},"resize":48,"filter":"bicubic","padding":"{padding}",
        "mean":[0.5,0.5,0.5],"std":[0.5,0.5,0.5]}}"#
    );
    let tensors: Vec<(&str, &[usize], Vec<f32>)> =
        tensors.iter().map(|(name, shape, numbers)| (name.as_str(), shape.as_slice(), numbers.clone())).collect();
    Tensors::parse(tensors_file(&[(FAMILY, "efficientnet"), (CONFIG, &config)], &tensors)).unwrap()
}

fn pictures(count: usize) -> Vec<Input> {
    let mut chance = Chance(11);
    let mut picture =
        || Input::Pixels(Pixels { height: SIDE, width: SIDE, numbers: chance.numbers(SIDE * SIDE * 3, 2.0) });
    (0..count).map(|_| picture()).collect()
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
    // Each but the classifier has a normalisation of four parts behind it.
    assert_eq!(folded, 4 * (products - 1));
    assert!(!file.has("bn2.weight") && file.has("conv_head.bias") && file.has("bn1.weight"));
    let load = |tensors, weights| {
        let device = Cpu::new(Level::detect(), 2, LIMITS).with(Activations::default()).holding(weights);
        encode(&mut EfficientNet::load(tensors, device).unwrap(), &pictures(2))
    };
    let at_load = load(&stored, Weights::Int8);
    assert_eq!(load(&file, Weights::Stored), at_load);
    assert_ne!(load(&stored, Weights::Stored), at_load);
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
