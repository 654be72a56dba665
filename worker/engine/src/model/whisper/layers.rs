//! What both of Whisper's towers are made of: products with a bias, norms, feed-forwards, by their names in the file.

use crate::Error;
use crate::backend::dense::{Activation, Dense};
use crate::model::affine::{Affine, Loader, Norm, Rows};
use crate::model::kernel::Kernel;

/// As PyTorch's layer norm has it.
pub(super) const EPSILON: f32 = 1e-5;

/// A norm and two products with a GELU between.
pub(super) struct FeedForward<D: Dense> {
    norm: Norm<D>,
    up: Affine<D>,
    down: Affine<D>,
}

/// Whether a product has a bias of its own; the keys of Whisper do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bias {
    Stored,
    Zero,
}

/// Takes the parts of one side out of a file.
pub(super) struct Source<'a, D> {
    pub(super) loader: Loader<'a, D>,
    pub(super) width: usize,
}

impl<D: Dense> Source<'_, D> {
    /// The same side, for products of all that was heard.
    pub(super) fn many(&mut self) -> Source<'_, D> {
        let Loader { tensors, ref mut backend, .. } = self.loader;
        Source { loader: Loader { tensors, backend, rows: Rows::Many }, width: self.width }
    }

    /// (outputs, inputs) products of equal shape under `prefix`, side by side.
    pub(super) fn fused(&mut self, prefix: &str, parts: &[(&str, Bias)]) -> Result<Affine<D>, Error> {
        let (mut matrices, mut biases) = (Vec::new(), Vec::new());
        for (name, bias) in parts {
            let (weight, bias_name) = (format!("{prefix}.{name}.weight"), format!("{prefix}.{name}.bias"));
            matrices.push(self.loader.tensors.matrix(&weight, self.width, self.width)?);
            match bias {
                Bias::Stored => biases.extend(self.loader.tensors.numbers(&bias_name, &[self.width])?),
                Bias::Zero => biases.resize(biases.len() + self.width, 0.0),
            }
        }
        self.loader.pack(&matrices, &biases)
    }

    /// A product of `inputs` numbers to `outputs`.
    pub(super) fn linear(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<Affine<D>, Error> {
        self.loader.affine(&[name.to_owned()], inputs, outputs)
    }

    /// A convolution over three neighbours, as a product of (neighbour, channel).
    pub(super) fn convolution(&mut self, name: &str, outputs: usize, channels: usize) -> Result<Affine<D>, Error> {
        let kernel = Kernel::read(self.loader.tensors, &format!("{name}.weight"), &[outputs, channels, 3])?;
        let bias = self.loader.tensors.numbers(&format!("{name}.bias"), &[outputs])?;
        self.loader.pack(&[kernel.matrix()], &bias)
    }

    pub(super) fn norm(&mut self, name: &str) -> Result<Norm<D>, Error> {
        self.loader.norm(name, self.width)
    }

    pub(super) fn feed_forward(&mut self, layer: &str, inner: usize) -> Result<FeedForward<D>, Error> {
        Ok(FeedForward {
            norm: self.norm(&format!("{layer}.final_layer_norm"))?,
            up: self.linear(&format!("{layer}.fc1"), inner, self.width)?,
            down: self.linear(&format!("{layer}.fc2"), self.width, inner)?,
        })
    }

    /// (rows, width) numbers to be added to rows.
    pub(super) fn positions(&mut self, name: &str, rows: usize) -> Result<D::Buf, Error> {
        let numbers = self.loader.tensors.numbers(name, &[rows, self.width])?;
        self.loader.backend.upload(&numbers, self.width)
    }
}

impl<D: Dense> FeedForward<D> {
    /// Adds to `x`; `normed` and `hidden` are overwritten.
    pub(super) fn add(&self, device: &mut D, x: &mut D::Buf, normed: &mut D::Buf, hidden: &mut D::Buf) {
        self.norm.apply(device, x, EPSILON, normed);
        self.up.replace(device, normed, Activation::Gelu, hidden);
        self.down.add(device, hidden, x);
    }
}
