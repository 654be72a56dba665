//! Normalisation by a batch's statistics, folded into the weights before it.

use super::load::{Config, behind};
use crate::Error;
use crate::model::rounding::{Fold, Product};
use crate::tensors::{Tensor, Tensors};

/// Tensors of a normalisation.
const PARTS: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];

/// Inputs and outputs from which on a matrix is rounded. The narrow ones are a third of all multiply-adds, and what they
/// lose is in all layers behind them: of 120 cuts of photographs the probabilities would be off by up to 0.14, not 0.05.
const ROUNDED: usize = 96;

/// Whether a matrix (outputs, inputs) is rounded where weights are of a byte.
pub(super) fn rounds((outputs, inputs): (usize, usize)) -> bool {
    outputs.min(inputs) >= ROUNDED
}

/// The product that a tensor of a file becomes, if it does.
///
/// # Errors
/// When the file lacks what belongs to it.
pub(in crate::model) fn product(
    tensors: &Tensors,
    (name, tensor): (&str, &Tensor<'_>),
) -> Result<Option<Product>, Error> {
    match (name.strip_suffix(".weight"), tensor.shape) {
        (Some("classifier"), &[classes, columns]) if rounds((classes, columns)) => {
            Ok(Some(Product { columns, rows: tensor.numbers(), fold: None }))
        }
        (Some(kernel), &[outputs, inputs, 1, 1]) => {
            let Some(norm) = behind(kernel).filter(|_| rounds((outputs, inputs))) else { return Ok(None) };
            let epsilon = tensors.config::<Config>()?.epsilon;
            let Folded { rows, shift } = fold(tensors, (kernel, &norm), (inputs, outputs), epsilon)?;
            let gone = PARTS.map(|part| format!("{norm}.{part}")).to_vec();
            let fold = Fold { bias: (format!("{kernel}.bias"), shift), gone };
            Ok(Some(Product { columns: inputs, rows, fold: Some(fold) }))
        }
        _ => Ok(None),
    }
}

/// A 1x1 convolution with the normalisation behind it, as one product.
pub(super) struct Folded {
    /// (outputs, inputs)
    pub(super) rows: Vec<f32>,
    pub(super) shift: Vec<f32>,
}

pub(super) fn fold(
    tensors: &Tensors,
    (kernel, norm): (&str, &str),
    (inputs, outputs): (usize, usize),
    epsilon: f32,
) -> Result<Folded, Error> {
    let mut rows = tensors.numbers(&format!("{kernel}.weight"), &[outputs, inputs, 1, 1])?;
    let Affine { scale, shift } = normalisation(tensors, norm, outputs, epsilon)?;
    for (row, scale) in rows.chunks_exact_mut(inputs).zip(&scale) {
        row.iter_mut().for_each(|number| *number *= scale);
    }
    Ok(Folded { rows, shift })
}

/// Scale and shift of a normalisation.
pub(super) struct Affine {
    pub(super) scale: Vec<f32>,
    pub(super) shift: Vec<f32>,
}

pub(super) fn normalisation(tensors: &Tensors, name: &str, channels: usize, epsilon: f32) -> Result<Affine, Error> {
    let [weight, bias, mean, variance] = PARTS.map(|part| tensors.numbers(&format!("{name}.{part}"), &[channels]));
    let (weight, bias, mean, variance) = (weight?, bias?, mean?, variance?);
    let epsilon = f64::from(epsilon);
    let scales = weight.iter().zip(&variance);
    let scale: Vec<f32> = scales
        .map(|(weight, variance)| (f64::from(*weight) / (f64::from(*variance) + epsilon).sqrt()) as f32)
        .collect();
    let shift = bias.iter().zip(&mean).zip(&scale).map(|((bias, mean), scale)| bias - mean * scale).collect();
    Ok(Affine { scale, shift })
}
