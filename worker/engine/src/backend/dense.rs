//! What encoders ask of a device beside [`Backend`]: whole inputs at once, nothing paged, nothing sampled.
//!
//! Inputs of a batch lie one after the other as rows, ragged, without padding; [`Span`]s tell them apart. Pictures are
//! rows too: (input, y, x) with their channels side by side, so that a 1x1 convolution is [`Backend::linear`].
//! No operation lets a row depend on the rows of another input: batched equals alone.

use std::ops::Range;

use super::{Backend, Epilogue, Matrix};
use crate::Error;

/// What follows a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `x * Φ(x)` by the error function, as BERT, ViT and Whisper were trained.
    Gelu,
    /// `x * sigmoid(1.702 x)`, as CLIP was trained.
    QuickGelu,
    /// `min(max(x, 0), 6)`, as EfficientNet-Lite was trained.
    Relu6,
}

/// Some columns of a buffer's rows.
#[derive(Debug)]
pub struct View<'a, B> {
    /// The rows.
    pub rows: &'a B,
    /// The first column.
    pub column: usize,
}

/// What attention looks at.
#[derive(Debug)]
pub struct Attended<'a, B> {
    /// Who looks.
    pub queries: View<'a, B>,
    /// What is compared.
    pub keys: View<'a, B>,
    /// What is taken.
    pub values: View<'a, B>,
}

impl<B> Clone for View<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for View<'_, B> {}

impl<B> Clone for Attended<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Attended<'_, B> {}

/// Rows that attend to each other, or to another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Rows of queries, and of the output.
    pub queries: Range<usize>,
    /// Rows of keys and values.
    pub keys: Range<usize>,
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of its span.
    Full,
    /// The last query of a span sees all keys, each one before it one key less.
    Causal,
}

/// Heads of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// How many.
    pub count: usize,
    /// Numbers in each; scores are divided by its root.
    pub width: usize,
}

/// Zeros around a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Above and below.
    pub rows: (usize, usize),
    /// Left and right.
    pub columns: (usize, usize),
}

/// A convolution's geometry over pictures of equal size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Height and width of the input.
    pub size: (usize, usize),
    /// Height and width of the kernel.
    pub kernel: (usize, usize),
    /// Step in both directions.
    pub stride: (usize, usize),
    /// Zeros around the input.
    pub padding: Padding,
}

/// What becomes of a block's input at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// It is added to the output, which has its shape.
    Added,
    /// Nothing.
    None,
}

/// A block that widens its pictures, filters every channel, and narrows: Sandler et al., arXiv 1801.04381, section 3.
#[derive(Debug)]
pub struct InvertedResidual<'a, B: Backend + ?Sized> {
    /// Weight and bias of what widens; `None` where nothing does.
    pub expand: Option<(&'a B::Weight, &'a B::Buf)>,
    /// Kernel, (kernel y * kernel x, channels), and bias of what filters.
    pub filter: (&'a B::Buf, &'a B::Buf),
    /// Where the filter's windows lie.
    pub window: &'a Window,
    /// What follows both.
    pub activation: Activation,
    /// Weight and bias of what narrows.
    pub project: (&'a B::Weight, &'a B::Buf),
    /// What becomes of the input.
    pub residual: Residual,
}

/// A device for encoders.
pub trait Dense: Backend {
    /// How many times as many inputs are best computed side by side as on a processor.
    fn appetite(&self) -> usize {
        1
    }
    /// Packs matrices as [`Backend::pack`] does, for products that mostly have many rows.
    ///
    /// # Errors
    /// As [`Backend::pack`].
    fn pack_for_many(&mut self, parts: &[Matrix<'_>]) -> Result<Self::Weight, Error> {
        self.pack(parts)
    }
    /// Replaces a buffer's rows with numbers of the host, part after part.
    fn write(&mut self, parts: &[&[f32]], out: &mut Self::Buf);
    /// `out[i] = table[rows[i]]`.
    fn gather(&mut self, table: &Self::Weight, rows: &[u32], out: &mut Self::Buf);
    /// `out[i] += x[rows[i]]`: positions, residual connections.
    fn add_rows(&mut self, x: &Self::Buf, rows: &[u32], out: &mut Self::Buf);
    /// `out += x`.
    fn add(&mut self, x: &Self::Buf, out: &mut Self::Buf);
    /// `x = activation(x + bias)`, row by row.
    fn bias(&mut self, bias: &Self::Buf, activation: Activation, x: &mut Self::Buf);
    /// `out = activation(x * weight^T + bias)`, or the same of what `out` holds and the product together.
    fn affine(
        &mut self,
        (x, weight): (&Self::Buf, &Self::Weight),
        (bias, activation): (&Self::Buf, Activation),
        epilogue: Epilogue,
        out: &mut Self::Buf,
    ) {
        self.linear(x, weight, epilogue, out);
        self.bias(bias, activation, out);
    }
    /// `out = (x - mean) / deviation * weight + bias`, row by row.
    fn layer_norm(&mut self, x: &Self::Buf, affine: (&Self::Buf, &Self::Buf), epsilon: f32, out: &mut Self::Buf);
    /// Attention of every span's queries over its keys: `out` has `heads.count * heads.width` columns. Spans come in
    /// the order of their queries, which they do not share; keys they may share.
    #[allow(clippy::too_many_arguments)] // reason: five things that differ from call to call, each a type of its own
    fn attend(
        &mut self,
        inputs: Attended<'_, Self::Buf>,
        spans: &[Span],
        heads: Heads,
        mask: Mask,
        out: &mut Self::Buf,
    );
    /// The weights by which one head of a span attends, (queries, keys), appended: for the times of words.
    fn attention_weights(
        &mut self,
        inputs: Attended<'_, Self::Buf>,
        span: &Span,
        head: (Heads, usize),
        weights: &mut Vec<f32>,
    );
    /// `out[rows[i]] = x[i]` from `x.column` on, as wide as `out`: keys and values to their places. `out` has as many
    /// rows as the last place written needs, and keeps those it had.
    fn scatter(&mut self, x: View<'_, Self::Buf>, rows: &[u32], out: &mut Self::Buf);
    /// `out[i] = mean of x[spans[i]]`.
    fn mean(&mut self, x: &Self::Buf, spans: &[Range<usize>], out: &mut Self::Buf);
    /// Every window of every picture as one row: (kernel y, kernel x, channels).
    fn unfold(&mut self, x: &Self::Buf, window: &Window, out: &mut Self::Buf);
    /// A convolution of all channels: `out = activation(windows * weight^T + bias)`, of `x` and where its windows lie.
    /// `unfolded` has room for every window, and is anybody's afterwards.
    fn convolve(
        &mut self,
        (x, window): (&Self::Buf, &Window),
        (weight, bias, activation): (&Self::Weight, &Self::Buf, Activation),
        unfolded: &mut Self::Buf,
        out: &mut Self::Buf,
    ) {
        self.unfold(x, window, unfolded);
        self.affine((unfolded, weight), (bias, activation), Epilogue::Store, out);
    }
    /// Convolves every channel of a picture by itself: `of` has the picture and the kernel, (kernel y * kernel x,
    /// channels). `out = activation(that + bias)`.
    fn depthwise(
        &mut self,
        of: (&Self::Buf, &Self::Buf),
        bias: (&Self::Buf, Activation),
        window: &Window,
        out: &mut Self::Buf,
    );
    /// A whole block. `between` has room for what is widened and what is filtered, and is anybody's afterwards.
    fn inverted_residual(
        &mut self,
        x: &Self::Buf,
        block: &InvertedResidual<'_, Self>,
        between: (&mut Self::Buf, &mut Self::Buf),
        out: &mut Self::Buf,
    ) {
        layer_by_layer(self, x, block, between, out);
    }
}

/// A block as the layers it consists of.
pub(super) fn layer_by_layer<B: Dense + ?Sized>(
    backend: &mut B,
    x: &B::Buf,
    block: &InvertedResidual<'_, B>,
    (widened, filtered): (&mut B::Buf, &mut B::Buf),
    out: &mut B::Buf,
) {
    let wide = match block.expand {
        Some((weight, bias)) => {
            backend.affine((x, weight), (bias, block.activation), Epilogue::Store, widened);
            &*widened
        }
        None => x,
    };
    let (kernel, bias) = block.filter;
    backend.depthwise((wide, kernel), (bias, block.activation), block.window, filtered);
    let (weight, bias) = block.project;
    backend.affine((filtered, weight), (bias, Activation::None), Epilogue::Store, out);
    if block.residual == Residual::Added {
        backend.add(x, out);
    }
}

impl Window {
    /// Height and width of the output.
    ///
    /// # Errors
    /// When the kernel is larger than the padded input.
    pub fn output(&self) -> Result<(usize, usize), Error> {
        let side = |size: usize, padding: (usize, usize), kernel: usize, stride: usize| {
            (size + padding.0 + padding.1).checked_sub(kernel).map(|room| room / stride.max(1) + 1)
        };
        let height = side(self.size.0, self.padding.rows, self.kernel.0, self.stride.0);
        let width = side(self.size.1, self.padding.columns, self.kernel.1, self.stride.1);
        height.zip(width).ok_or_else(|| Error::Unsupported(format!("a kernel larger than its input: {self:?}")))
    }
}
