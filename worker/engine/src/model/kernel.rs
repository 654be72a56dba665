//! Kernels of convolutions as matrices of products: what a window holds is read place by place, its channels side by
//! side, while files of PyTorch have channel by channel. A kernel that a file has as a matrix is so already.

use std::borrow::Cow;

use crate::Error;
use crate::backend::Matrix;
use crate::quant::Format;
use crate::tensors::{Tensors, little_endian};

/// Dimensions of a matrix.
pub(super) const MATRIX: usize = 2;

/// A kernel to be packed.
pub(super) struct Kernel<'a> {
    format: Format,
    columns: usize,
    data: Cow<'a, [u8]>,
}

impl<'a> Kernel<'a> {
    /// The tensor of this name: (outputs, channels, places...), or (outputs, places * channels).
    ///
    /// # Errors
    /// When the file lacks it, or has it in another shape.
    pub(super) fn read(tensors: &'a Tensors, name: &str, shape: &[usize]) -> Result<Kernel<'a>, Error> {
        let columns = shape[1..].iter().product();
        if tensors.tensor(name)?.shape.len() == MATRIX {
            let Matrix { format, data, .. } = tensors.matrix(name, shape[0], columns)?;
            return Ok(Kernel { format, columns, data: Cow::Borrowed(data) });
        }
        let rows = channels_last(&tensors.numbers(name, shape)?, shape);
        Ok(Kernel { format: Format::F32, columns, data: Cow::Owned(little_endian(&rows)) })
    }

    /// As devices pack it.
    pub(super) fn matrix(&self) -> Matrix<'_> {
        Matrix { format: self.format, columns: self.columns, data: &self.data }
    }
}

/// (outputs, channels, places...) to (outputs, places, channels).
pub(super) fn channels_last(kernel: &[f32], shape: &[usize]) -> Vec<f32> {
    let (channels, places) = (shape[1], shape[2..].iter().product::<usize>());
    let number = |at: usize| {
        let (output, place, channel) = (at / (places * channels), at / channels % places, at % channels);
        kernel[(output * channels + channel) * places + place]
    };
    (0..kernel.len()).map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::tensors_file;

    #[test]
    fn a_kernel_is_turned_unless_it_is_a_matrix() {
        let numbers: Vec<f32> = (0..12).map(|number| number as f32).collect();
        let turned = [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0];
        let file = tensors_file(&[], &[("k", &[2, 2, 3], numbers), ("m", &[2, 6], turned.to_vec())]);
        let tensors = Tensors::parse(file).unwrap();
        for name in ["k", "m"] {
            let kernel = Kernel::read(&tensors, name, &[2, 2, 3]).unwrap();
            let Matrix { format, columns, data } = kernel.matrix();
            assert_eq!((format, columns, data), (Format::F32, 6, little_endian(&turned).as_slice()), "{name}");
            assert!(Kernel::read(&tensors, name, &[2, 2, 2]).is_err());
        }
    }
}
