//! EfficientNet-Lite0 out of a checkpoint whose tensors are named as in `efficientnet-pytorch`: they get the names that
//! timm has for them. Batch normalisation is not folded in.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::pickle::Kind;
use super::safetensors::{Dtype, Tensor, write};
use super::{Material, torch};

/// The classes of ImageNet-1k in order, as timm lists them (`data/_info/imagenet_synset_to_lemma.txt`, Apache-2.0).
const LABELS: &str = include_str!("imagenet.txt");

/// How it was trained to see: timm's `efficientnet_lite0`.
const CONFIG: &str = r#"{"architecture":"efficientnet_lite0","size":224,"resize":256,"filter":"bicubic","crop":0.875,"mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225]}"#;

/// Counts how often a network was trained on; nothing reads it.
const COUNTER: &str = ".num_batches_tracked";
/// The bias of the last layer: a number a class.
const CLASSES: &str = "_fc.bias";

/// Blocks of each stage.
const STAGES: [usize; 7] = [1, 2, 2, 3, 3, 4, 1];
/// Layers outside of the blocks, there and here.
const OUTSIDE: [(&str, &str); 5] =
    [("_conv_stem", "conv_stem"), ("_bn0", "bn1"), ("_conv_head", "conv_head"), ("_bn1", "bn2"), ("_fc", "classifier")];
/// Layers of a block of the first stage, which does not widen.
const PLAIN: [(&str, &str); 4] =
    [("_depthwise_conv", "conv_dw"), ("_bn1", "bn1"), ("_project_conv", "conv_pw"), ("_bn2", "bn2")];
/// Layers of every other block.
const WIDENING: [(&str, &str); 6] = [
    ("_expand_conv", "conv_pw"),
    ("_bn0", "bn1"),
    ("_depthwise_conv", "conv_dw"),
    ("_bn1", "bn2"),
    ("_project_conv", "conv_pwl"),
    ("_bn2", "bn3"),
];

/// What timm calls a tensor.
fn renamed(name: &str) -> Option<String> {
    let called = |layers: &[(&str, &'static str)], layer: &str| {
        layers.iter().find(|(theirs, _)| *theirs == layer).map(|(_, ours)| *ours)
    };
    let Some(inside) = name.strip_prefix("_blocks.") else {
        let (layer, part) = name.split_once('.')?;
        return Some(format!("{}.{part}", called(&OUTSIDE, layer)?));
    };
    let (number, rest) = inside.split_once('.')?;
    let (layer, part) = rest.split_once('.')?;
    let mut block: usize = number.parse().ok()?;
    for (stage, blocks) in STAGES.into_iter().enumerate() {
        if block < blocks {
            let layer = if stage == 0 { called(&PLAIN, layer)? } else { called(&WIDENING, layer)? };
            return Some(format!("blocks.{stage}.{block}.{layer}.{part}"));
        }
        block -= blocks;
    }
    None
}

/// Makes the model's file: tensors, `config`, `labels`.
pub(crate) fn convert(material: &Material, to: &Path) -> Result<()> {
    let (mut tensors, mut classes) = (Vec::new(), None);
    let labels: Vec<&str> = LABELS.lines().collect();
    for array in torch::read(&material.weights()?)? {
        if array.name.ends_with(COUNTER) {
            continue;
        }
        let torch::Array { name, kind, shape, data } = array;
        if name == CLASSES {
            classes = shape.first().copied();
            ensure!(shape == [labels.len()], "it tells {shape:?} classes apart, not {}", labels.len());
        }
        match kind {
            Kind::Float => {
                let name = renamed(&name).with_context(|| format!("{name} is no tensor of EfficientNet-Lite0"))?;
                tensors.push(Tensor { name, dtype: Dtype::F32, shape, data: data.into() });
            }
            other => bail!("tensor {name} is of type {other:?}, not Float"),
        }
    }
    ensure!(classes.is_some(), "it has no {CLASSES}");
    let metadata = BTreeMap::from([
        ("family", "efficientnet".to_owned()),
        ("config", CONFIG.to_owned()),
        ("labels", serde_json::to_string(&labels)?),
    ]);
    write(to, &metadata, tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::torch::tests::{SMALL, file};

    #[test]
    fn there_is_a_label_a_class() {
        let labels: Vec<&str> = LABELS.lines().collect();
        assert_eq!((labels.len(), labels[0], labels[207]), (1000, "tench, Tinca tinca", "golden retriever"));
        assert!(labels.iter().all(|label| !label.is_empty() && label.trim() == *label));
        serde_json::from_str::<serde_json::Value>(CONFIG).unwrap();
    }

    #[test]
    fn names_become_those_of_timm() {
        for (theirs, ours) in [
            ("_conv_stem.weight", Some("conv_stem.weight")),
            ("_bn1.running_var", Some("bn2.running_var")),
            ("_blocks.0._bn2.bias", Some("blocks.0.0.bn2.bias")),
            ("_blocks.0._project_conv.weight", Some("blocks.0.0.conv_pw.weight")),
            ("_blocks.2._bn0.weight", Some("blocks.1.1.bn1.weight")),
            ("_blocks.15._project_conv.weight", Some("blocks.6.0.conv_pwl.weight")),
            ("_blocks.0._expand_conv.weight", None),
            ("_blocks.16._bn0.weight", None),
            ("_blocks.x._bn0.weight", None),
            ("_swish.weight", None),
        ] {
            assert_eq!(renamed(theirs).as_deref(), ours, "{theirs}");
        }
    }

    #[test]
    fn a_checkpoint_becomes_one_file_and_another_kind_is_refused() {
        let dir = std::env::temp_dir().join(format!("flotilla-efficientnet-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let material = Material { weights: dir.join("weights"), files: BTreeMap::new() };
        let out = dir.join("out");
        let bias = vec![0.5; 1000];
        let counter = ("_bn0.num_batches_tracked", [].as_slice(), [].as_slice(), [3.0].as_slice());
        let last = (CLASSES, [1000].as_slice(), [1].as_slice(), bias.as_slice());
        let turned = ("_blocks.5._expand_conv.weight", SMALL[1].1, SMALL[1].2, SMALL[1].3);
        std::fs::write(&material.weights, file(&[turned, counter, last])).unwrap();
        convert(&material, &out).unwrap();
        let made = std::fs::read(&out).unwrap();
        let tensors = ::safetensors::SafeTensors::deserialize(&made).unwrap();
        assert_eq!(tensors.tensor("blocks.3.0.conv_pw.weight").unwrap().shape(), [2, 3]);
        assert_eq!((tensors.len(), tensors.tensor("classifier.bias").unwrap().shape()), (2, [1000].as_slice()));
        std::fs::write(&material.weights, file(&[turned])).unwrap();
        assert!(convert(&material, &out).unwrap_err().to_string().contains(CLASSES));
        std::fs::write(&material.weights, file(&[last, SMALL[0]])).unwrap();
        assert!(convert(&material, &out).unwrap_err().to_string().contains("plain is no tensor"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
