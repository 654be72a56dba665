//! Inverted residuals of large pictures, row by row: what is widened, the most numbers of a picture by far, is used
//! while it is near, and never leaves the second-level cache.

use std::ops::Range;

use super::dense::pictures;
use super::inputs::Room;
use super::layer::Layer;
use super::{Buf, Cpu, Local};
use crate::backend::dense::{Activation, InvertedResidual, Residual, Window};
use crate::pool::Strip;
use crate::simd::affine::Finish;
use crate::simd::tile::Begin;
use crate::simd::window::{Filter, Ring, depthwise};
use crate::simd::{Level, affine};

/// Widened numbers of a picture from which this pays; with fewer, the weights are what is read.
const LARGE: usize = 64 << 10;
/// Widened numbers that are held at a time, about.
const HELD: usize = 64 << 10;
/// Rows that make a good product, at least.
const PRODUCT_ROWS: usize = 48;
/// Strips for each thread, so that a slow one leaves work to the others.
const STRIPS_EACH: usize = 4;

/// What a thread holds between layers.
#[derive(Debug, Default)]
pub(super) struct Between {
    pub(super) unfolded: Vec<f32>,
    widened: Vec<f32>,
    filtered: Vec<f32>,
    /// Inputs of rows that begin the ring anew.
    wrapped: Room,
}

/// A block as the strips see it.
struct Strips<'a> {
    level: Level,
    x: &'a Buf,
    block: &'a InvertedResidual<'a, Cpu>,
    expand: Option<Layer<'a>>,
    project: Layer<'a>,
    /// Height and width of the output.
    places: (usize, usize),
    /// Rows of the output that are computed together.
    group: usize,
}

impl Cpu {
    /// How many strips a picture is best cut into; `None` where layer by layer is faster.
    pub(super) fn strips(&self, x: &Buf, block: &InvertedResidual<'_, Cpu>) -> Option<usize> {
        let (window, threads) = (block.window, self.pool.threads());
        let (pictures, (height, _)) = pictures(x, window);
        // Rows that neighbours share are computed twice: at most a quarter of all.
        let most = match window.kernel.0.saturating_sub(window.stride.0) {
            0 => height,
            shared => window.size.0 / (4 * shared) + 1,
        };
        let strips = (STRIPS_EACH * threads).div_ceil(pictures.max(1)).min(most).min(height);
        let large = window.size.0 * window.size.1 * block.filter.0.width >= LARGE;
        (large && pictures * strips >= threads).then_some(strips)
    }

    /// The whole of a block, so many strips of a picture's output.
    pub(super) fn by_strips(&mut self, x: &Buf, block: &InvertedResidual<'_, Cpu>, strips: usize, out: &mut Buf) {
        let (pictures, places) = pictures(x, block.window);
        let then = |bias, activation| Finish { begin: Begin::Zero, bias: Buf::row(bias, 0), activation };
        let expand = block.expand.map(|(weight, bias)| self.layer(weight, then(bias, block.activation)));
        let project = self.layer(block.project.0, then(block.project.1, Activation::None));
        let (channels, width) = (block.filter.0.width, out.width);
        let inputs = expand.as_ref().map_or(x.width, Layer::outputs);
        assert!(inputs == channels && project.outputs() == width, "widths of a block agree");
        self.blocks.cut_pictures(pictures, places, strips);
        let group = group(block.window, channels, places.1);
        let strips = Strips { level: self.level, x, block, expand, project, places, group };
        let out = (out.begin_rows(pictures * places.0 * places.1), width);
        let rows = &self.blocks.rows;
        self.pool.tiles(out, (rows, width, 1), &mut self.locals, |local, (strip, _), out| {
            strips.run(rows[strip].clone(), out, local);
        });
    }
}

/// Rows of the output that are computed together: as many as fit, but enough to make a good product.
fn group(window: &Window, channels: usize, width: usize) -> usize {
    let held = HELD / (window.size.1 * channels);
    let fit = held.saturating_sub(window.kernel.0) / window.stride.0 + 1;
    fit.max(PRODUCT_ROWS.div_ceil(width))
}

impl Strips<'_> {
    /// Computes the outputs `range`, whole rows of one picture.
    fn run(&self, range: Range<usize>, out: &mut Strip<'_>, local: &mut Local) {
        let (height, width) = self.places;
        let (picture, rows) = (range.start / (height * width), range.start / width % height);
        let rows = rows..rows + range.len() / width;
        let mut between = std::mem::take(&mut local.between);
        let mut widened = 0;
        for first in rows.clone().step_by(self.group) {
            let group = first..rows.end.min(first + self.group);
            let seen = seen(self.block.window, group.clone());
            let new = seen.start.max(widened)..seen.end.max(widened);
            widened = new.end;
            self.compute(picture, (new, group.clone()), &mut between, local);
            let mut out = out.band((group.start - rows.start) * width..(group.end - rows.start) * width);
            self.project.run(&between.filtered, &mut out, local);
        }
        local.between = between;
        if self.block.residual == Residual::Added {
            for (row, place) in range.enumerate() {
                affine::add(self.level, self.x.row(place), out.row(row));
            }
        }
    }

    /// Widens the rows `new` of a picture beside those before, and filters to the rows `out`.
    fn compute(
        &self,
        picture: usize,
        (new, out): (Range<usize>, Range<usize>),
        between: &mut Between,
        local: &mut Local,
    ) {
        let (Window { size: (height, width), .. }, channels) = (*self.block.window, self.block.filter.0.width);
        let row = width * self.x.width;
        let x = &self.x.all()[picture * height * row..][..height * row];
        let Between { widened, filtered, wrapped: anew, .. } = between;
        filtered.resize(out.len() * self.places.1 * channels, 0.0);
        match &self.expand {
            None => self.filter(Ring { numbers: x, rows: height, channels: 0..channels }, out, filtered),
            Some(expand) => {
                let rows = self.held();
                widened.resize(rows * width * channels, 0.0);
                let pieces = pieces(new, rows);
                let [first, wrapped] =
                    pieces.each_ref().map(|rows| (&x[rows.start * row..rows.end * row], rows.len() * width));
                let inputs = [expand.inputs(first, &mut local.room), expand.inputs(wrapped, anew)];
                for first in (0..channels).step_by(expand.strip()) {
                    let channels = first..channels.min(first + expand.strip());
                    let ring = &mut widened[rows * width * first..][..rows * width * channels.len()];
                    for (piece, inputs) in pieces.iter().zip(inputs) {
                        let place = piece.start % rows * width * channels.len();
                        let out = &mut ring[place..][..piece.len() * width * channels.len()];
                        let out = &mut Strip::whole(out, channels.len());
                        expand.run_some(inputs, channels.clone(), out, &mut local.scratch);
                    }
                    self.filter(Ring { numbers: ring, rows, channels }, out.clone(), filtered);
                }
            }
        }
    }

    /// Rows that are held of what is widened.
    fn held(&self) -> usize {
        let Window { size, kernel, stride, .. } = self.block.window;
        ((self.group - 1) * stride.0 + kernel.0).min(size.0)
    }

    fn filter(&self, wide: Ring<'_>, rows: Range<usize>, out: &mut [f32]) {
        let (kernel, bias) = self.block.filter;
        let filter = Filter { kernel: kernel.all(), bias: bias.row(0), activation: self.block.activation };
        depthwise(self.level, wide, filter, (self.block.window, rows), out);
    }
}

/// Rows as they lie in a ring of `held`: those up to its end, and those that begin it anew.
fn pieces(rows: Range<usize>, held: usize) -> [Range<usize>; 2] {
    let lap = (rows.start / held + 1) * held;
    let middle = rows.end.min(lap).max(rows.start);
    [rows.start..middle, middle..rows.end]
}

/// Rows of a picture that fall under the kernel somewhere in `rows` of the output.
fn seen(window: &Window, rows: Range<usize>) -> Range<usize> {
    let taps = rows.map(|row| window.taps(row, 0).0).filter(|taps| taps.count > 0);
    let rows = taps.map(|taps| taps.picture..taps.picture + taps.count);
    rows.reduce(|all, rows| all.start.min(rows.start)..all.end.max(rows.end)).unwrap_or(0..0)
}
