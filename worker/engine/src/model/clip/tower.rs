//! The transformer that both sides of CLIP are: norms before each part, residual connections around it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::config::{Curve, TowerConfig};
use crate::Error;
use crate::backend::Epilogue;
use crate::backend::dense::{Activation, Attended, Dense, Heads, Mask, Span, View};
use crate::model::affine::{Affine, Loader, Norm};

/// Layers, and what they write to.
pub(super) struct Tower<B: Dense> {
    config: TowerConfig,
    layers: Vec<Layer<B>>,
    last: Norm<B>,
    /// (projection, width)
    projection: B::Weight,
    scratch: Scratch<B>,
}

struct Layer<B: Dense> {
    before_attention: Norm<B>,
    /// (queries | keys | values, width)
    qkv: Affine<B>,
    /// (width, width)
    attention_out: Affine<B>,
    before_inner: Norm<B>,
    /// (inner, width)
    up: Affine<B>,
    /// (width, inner)
    down: Affine<B>,
}

struct Scratch<B: Dense> {
    /// (rows, width) residual stream
    x: B::Buf,
    /// (rows, width) the same, normed
    y: B::Buf,
    /// (rows, queries | keys | values)
    qkv: B::Buf,
    /// (rows, width)
    attended: B::Buf,
    /// (rows, inner)
    inner: B::Buf,
    /// (inputs, width) of the rows that stand for their inputs
    chosen: B::Buf,
    /// (inputs, width)
    normed: B::Buf,
    /// (inputs, projection)
    projected: B::Buf,
}

/// How a tower's tensors are called.
pub(super) struct Names {
    /// Before the layers.
    pub(super) tower: &'static str,
    /// The norm of what stands for an input.
    pub(super) last: &'static str,
    /// The way into the common space.
    pub(super) projection: &'static str,
}

/// How much a tower has room for.
#[derive(Clone, Copy)]
pub(super) struct Room {
    /// Rows of all inputs.
    pub(super) rows: usize,
    /// Inputs.
    pub(super) inputs: usize,
    /// Width of the common space.
    pub(super) projection: usize,
}

/// Which rows look at which, and stand for their inputs.
#[derive(Default)]
pub(super) struct Layout {
    /// One for each input.
    pub(super) spans: Vec<Span>,
    /// A row for each input.
    pub(super) chosen: Vec<std::ops::Range<usize>>,
}

impl<B: Dense> Tower<B> {
    /// Packs the tower's weights.
    ///
    /// # Errors
    /// When the file lacks one, or the device cannot hold them.
    pub(super) fn load(
        loader: &mut Loader<'_, B>,
        config: TowerConfig,
        names: &Names,
        room: Room,
    ) -> Result<Tower<B>, Error> {
        let (width, inner) = (config.width, config.inner);
        let layers = (0..config.layers)
            .map(|layer| Layer::load(loader, &config, &format!("{}.encoder.layers.{layer}", names.tower)))
            .collect::<Result<_, _>>()?;
        let last = loader.norm(&format!("{}.{}", names.tower, names.last), width)?;
        let projection = loader.product(names.projection, width, room.projection)?;
        let rows = |width| loader.backend.buffer(room.rows, width);
        let products = |width| loader.backend.inputs(room.rows, width);
        let inputs = |width| loader.backend.buffer(room.inputs, width);
        let scratch = Scratch {
            x: rows(width)?,
            y: products(width)?,
            qkv: products(3 * width)?,
            attended: products(width)?,
            inner: products(inner)?,
            chosen: inputs(width)?,
            normed: loader.backend.inputs(room.inputs, width)?,
            projected: inputs(room.projection)?,
        };
        Ok(Tower { config, layers, last, projection, scratch })
    }

    /// Where a batch's rows are to be written.
    pub(super) fn rows(&mut self) -> &mut B::Buf {
        &mut self.scratch.x
    }

    /// Where they are to be written if [`Tower::norm_rows`] follows.
    pub(super) fn rows_to_norm(&mut self) -> &mut B::Buf {
        &mut self.scratch.y
    }

    /// Norms what was written.
    pub(super) fn norm_rows(&mut self, backend: &mut B, norm: &Norm<B>) {
        norm.apply(backend, &self.scratch.y, self.config.epsilon, &mut self.scratch.x);
    }

    /// Runs all layers over the rows; replaces `projected` by what the chosen ones are in the common space.
    pub(super) fn run(
        &mut self,
        backend: &mut B,
        (layout, mask): (&Layout, Mask),
        progress: &AtomicU64,
        projected: &mut Vec<f32>,
    ) {
        let Tower { config, layers, last, projection, scratch: s } = self;
        let heads = Heads { count: config.heads, width: config.width / config.heads };
        let activation = match config.activation {
            Curve::QuickGelu => Activation::QuickGelu,
            Curve::Gelu => Activation::Gelu,
        };
        for layer in layers {
            layer.before_attention.apply(backend, &s.x, config.epsilon, &mut s.y);
            layer.qkv.replace(backend, &s.y, Activation::None, &mut s.qkv);
            let part = |place: usize| View { rows: &s.qkv, column: place * config.width };
            let inputs = Attended { queries: part(0), keys: part(1), values: part(2) };
            backend.attend(inputs, &layout.spans, heads, mask, &mut s.attended);
            layer.attention_out.add(backend, &s.attended, &mut s.x);
            progress.fetch_add(1, Ordering::Relaxed);

            layer.before_inner.apply(backend, &s.x, config.epsilon, &mut s.y);
            layer.up.replace(backend, &s.y, activation, &mut s.inner);
            layer.down.add(backend, &s.inner, &mut s.x);
            progress.fetch_add(1, Ordering::Relaxed);
        }
        backend.mean(&s.x, &layout.chosen, &mut s.chosen);
        last.apply(backend, &s.chosen, config.epsilon, &mut s.normed);
        backend.linear(&s.normed, projection, Epilogue::Store, &mut s.projected);
        backend.download(&s.projected, projected);
    }
}

impl<B: Dense> Layer<B> {
    fn load(loader: &mut Loader<'_, B>, config: &TowerConfig, name: &str) -> Result<Layer<B>, Error> {
        let (width, inner) = (config.width, config.inner);
        let part = |part: &str| format!("{name}.{part}");
        let qkv = ["q", "k", "v"].map(|which| part(&format!("self_attn.{which}_proj")));
        Ok(Layer {
            before_attention: loader.norm(&part("layer_norm1"), width)?,
            qkv: loader.affine(&qkv, width, width)?,
            attention_out: loader.affine(&[part("self_attn.out_proj")], width, width)?,
            before_inner: loader.norm(&part("layer_norm2"), width)?,
            up: loader.affine(&[part("mlp.fc1")], width, inner)?,
            down: loader.affine(&[part("mlp.fc2")], inner, width)?,
        })
    }
}
