//! What sentence encoders and CLIP end with.

use crate::encode::{Output, Turn};

/// The direction of `numbers`, at length 1.
pub(super) fn direction(numbers: &[f32]) -> Turn {
    let length = numbers.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if !length.is_normal() {
        return Turn::Failed("the model found no direction".into());
    }
    Turn::Done(Output::Vector(numbers.iter().map(|x| (f64::from(*x) / length) as f32).collect()))
}
