//! How a model wants its pictures, for whoever decodes and resizes them.

use serde::Deserialize;

use crate::Error;
use crate::tensors::Tensors;

/// Longest side of a model's input.
const SIDE_MAX: u32 = 1_024;

/// What resizes a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resizing {
    /// A triangle, widened by the reduction.
    Bilinear,
    /// Keys' cubic with a = -0.5, widened by the reduction.
    Bicubic,
}

/// How a model wants its pictures: the shorter side resized, the middle cut out, the numbers normalised.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Picturing {
    /// Width and height of the input: the middle that is cut out.
    pub size: u32,
    /// Pixels of the shorter side after resizing, at least `size`.
    pub resize: u32,
    /// What resizes.
    pub filter: Resizing,
    /// Subtracted from each channel (red, green, blue) of 0 to 1.
    pub mean: [f32; 3],
    /// Each channel is divided by it then.
    pub std: [f32; 3],
}

impl Picturing {
    /// What the metadata `config` of a model file says.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is absent or cannot be.
    pub fn read(tensors: &Tensors) -> Result<Self, Error> {
        let picturing: Self = tensors.config()?;
        let sides = picturing.size > 0 && picturing.size <= picturing.resize && picturing.resize <= SIDE_MAX;
        let divisors = picturing.std.iter().all(|std| std.is_finite() && *std > 0.0);
        match sides && divisors && picturing.mean.iter().all(|mean| mean.is_finite()) {
            true => Ok(picturing),
            false => Err(Error::Malformed(format!("pictures of {picturing:?}; sides of 1 to {SIDE_MAX} are run"))),
        }
    }
}
