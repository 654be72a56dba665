//! What encoders ask.

use std::ops::Range;

use super::attention::tile_shared;
use super::kernels::{ENCODE_WIDTHS, fitting};
use super::products::Finish;
use super::rows::{kind, mean_extent, spread};
use super::step::tile_rows;
use super::{Buf, Cuda, Weight, int, line, pointer};
use crate::Error;
use crate::backend::dense::{Activation, Attended, Dense, Heads, Mask, Span, View, Window};
use crate::backend::{Epilogue, Matrix};
use crate::cuda::{Address, Argument, Extent, Kind};
use crate::tensors::little_endian;

/// A processor's batches leave a GPU idle: its multiprocessors take a hundred times as much.
const APPETITE: usize = 16;
/// Numbers that are sent at a time.
const SENT: usize = 16 << 10;
/// Threads of a block.
const THREADS: u32 = 256;
/// Threads of a block of attention.
const ATTEND_THREADS: u32 = 128;

impl Dense for Cuda {
    fn appetite(&self) -> usize {
        APPETITE
    }

    fn pack_for_many(&mut self, parts: &[Matrix<'_>]) -> Result<Weight, Error> {
        Weight::pack(&self.gpu, parts)
    }

    fn write(&mut self, parts: &[&[f32]], out: &mut Buf) {
        let numbers: usize = parts.iter().map(|part| part.len()).sum();
        out.set_rows(numbers / out.width());
        match out.kind() {
            Kind::F32 => self.send(parts, out.address()),
            Kind::Bf16 => self.send_rounded(parts, numbers, out),
        }
    }

    fn gather(&mut self, table: &Weight, rows: &[u32], out: &mut Buf) {
        out.set_rows(rows.len());
        if let Some(ids) = self.place(rows) {
            self.gather_ids(table, ids, out);
        }
    }

    fn add_rows(&mut self, x: &Buf, rows: &[u32], out: &mut Buf) {
        if let Some(ids) = self.place(rows) {
            self.add_ids(x, ids, out);
        }
    }

    fn add(&mut self, x: &Buf, out: &mut Buf) {
        self.add_ids(x, Address::default(), out);
    }

    fn bias(&mut self, bias: &Buf, activation: Activation, x: &mut Buf) {
        self.bias_rows(bias, activation, x);
    }

    fn affine(
        &mut self,
        (x, weight): (&Buf, &Weight),
        (bias, activation): (&Buf, Activation),
        epilogue: Epilogue,
        out: &mut Buf,
    ) {
        if epilogue == Epilogue::Store {
            out.set_rows(x.rows());
        }
        self.product((x, None), weight, &Finish { bias: Some(bias), activation, epilogue }, out);
    }

    fn layer_norm(&mut self, x: &Buf, affine: (&Buf, &Buf), epsilon: f32, out: &mut Buf) {
        out.set_rows(x.rows());
        self.layer_norm_rows(x, affine, epsilon, out);
    }

    fn attend(&mut self, inputs: Attended<'_, Buf>, spans: &[Span], heads: Heads, mask: Mask, out: &mut Buf) {
        out.set_rows(spans.last().map_or(0, |span| span.queries.end));
        let (tiles, limits) = cut(spans, mask, tile_rows(heads.width));
        let Some(places) = self.place(&tiles) else { return };
        let limits = match mask {
            Mask::Full => Address::default(),
            Mask::Causal => match self.place(&limits) {
                Some(limits) => limits,
                None => return,
            },
        };
        let tile_count = tiles.len() / 4;
        let rest =
            [int(heads.count), int(heads.width), pointer(places), pointer(limits), pointer(out.address()), kind(out)];
        let views = [inputs.queries, inputs.keys, inputs.values];
        let grid = (heads.count as u32, tile_count as u32, 1);
        let halves = views.iter().all(|view| view.rows.kind() == Kind::Bf16) && heads.width.is_multiple_of(8);
        match fitting(&ENCODE_WIDTHS, heads.width).filter(|_| halves) {
            Some(width) => {
                let sources = views.map(|view| [pointer(view.rows.column(view.column)), int(view.rows.width())]);
                let arguments = [sources.concat(), rest.to_vec()].concat();
                let shared = tile_shared(ENCODE_WIDTHS[width]);
                self.run(self.kernels.encode[width], Extent { grid, threads: ATTEND_THREADS, shared }, &arguments);
            }
            None => {
                let arguments = [views.map(plain_view).concat(), rest.to_vec()].concat();
                let extent = Extent { grid, threads: ATTEND_THREADS, shared: 0 };
                self.run(self.kernels.attend_plain, extent, &arguments);
            }
        }
    }

    fn attention_weights(
        &mut self,
        inputs: Attended<'_, Buf>,
        span: &Span,
        (heads, head): (Heads, usize),
        weights: &mut Vec<f32>,
    ) {
        let numbers = span.queries.len() * span.keys.len();
        let room = self.scratch.parts(&self.gpu, numbers * Kind::F32.bytes());
        let Some(out) = self.note(room) else { return };
        let arguments = [
            [plain_view(inputs.queries), plain_view(inputs.keys)].concat(),
            vec![
                int(heads.width),
                int(head),
                int(span.queries.start),
                int(span.queries.len()),
                int(span.keys.start),
                int(span.keys.len()),
                pointer(out),
            ],
        ]
        .concat();
        let extent = Extent { grid: (span.queries.len() as u32, 1, 1), threads: ATTEND_THREADS, shared: 0 };
        self.run(self.kernels.attention_weights, extent, &arguments);
        let mut bytes = vec![0; numbers * Kind::F32.bytes()];
        let read = self.gpu.download(out, &mut bytes);
        self.note(read);
        weights.extend(bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)));
    }

    fn scatter(&mut self, x: View<'_, Buf>, rows: &[u32], out: &mut Buf) {
        let Some(ids) = self.place(rows) else { return };
        let last = rows.iter().max().map_or(0, |row| *row as usize + 1);
        out.set_rows(out.rows().max(last));
        let arguments = [
            pointer(x.rows.address()),
            kind(x.rows),
            int(x.rows.width()),
            int(x.column),
            pointer(ids),
            int(rows.len()),
            int(out.width()),
            pointer(out.address()),
            kind(out),
        ];
        self.run(self.kernels.scatter, line(rows.len(), THREADS), &arguments);
    }

    fn mean(&mut self, x: &Buf, spans: &[Range<usize>], out: &mut Buf) {
        out.set_rows(spans.len());
        let list: Vec<u32> = spans.iter().flat_map(|span| [span.start as u32, span.end as u32]).collect();
        let Some(places) = self.place(&list) else { return };
        let arguments = [
            pointer(x.address()),
            kind(x),
            pointer(places),
            int(spans.len()),
            int(x.width()),
            pointer(out.address()),
            kind(out),
        ];
        self.run(self.kernels.mean, mean_extent(spans.len(), x.width()), &arguments);
    }

    fn unfold(&mut self, x: &Buf, window: &Window, out: &mut Buf) {
        let Some(places) = Places::of(x, window) else { return };
        out.set_rows(places.outputs());
        let arguments = [places.arguments(x), vec![pointer(out.address()), kind(out)]].concat();
        self.run(self.kernels.unfold, spread(out.rows() * out.width()), &arguments);
    }

    fn depthwise(
        &mut self,
        (x, kernel): (&Buf, &Buf),
        (bias, activation): (&Buf, Activation),
        window: &Window,
        out: &mut Buf,
    ) {
        let Some(places) = Places::of(x, window) else { return };
        out.set_rows(places.outputs());
        let rest = vec![
            pointer(kernel.address()),
            pointer(bias.address()),
            Argument::Int(activation as i32),
            pointer(out.address()),
            kind(out),
        ];
        self.run(self.kernels.depthwise, spread(out.rows() * out.width()), &[places.arguments(x), rest].concat());
    }
}

impl Cuda {
    /// Where the device has a list; a fault is noted.
    fn place(&mut self, list: &[u32]) -> Option<Address> {
        let place = self.indices.place(&self.gpu, list);
        self.note(place)
    }

    /// Sends numbers, some at a time: those stay in the processor's cache on their way.
    fn send(&mut self, parts: &[&[f32]], mut to: Address) {
        for numbers in parts.iter().flat_map(|part| part.chunks(SENT)) {
            let sent = self.gpu.upload(&little_endian(numbers), to);
            self.note(sent);
            to = to.plus(size_of_val(numbers));
        }
    }

    /// Sends numbers to rows that hold fewer bits of them.
    fn send_rounded(&mut self, parts: &[&[f32]], numbers: usize, out: &Buf) {
        let room = self.scratch.inputs(&self.gpu, numbers * Kind::F32.bytes());
        let Some(room) = self.note(room) else { return };
        self.send(parts, room);
        self.cast((room, Kind::F32), (out.address(), out.kind()), numbers);
    }

    /// Copies numbers from one way of holding them to another.
    pub(super) fn cast(&mut self, (from, held): (Address, Kind), (to, wanted): (Address, Kind), count: usize) {
        let arguments =
            [pointer(from), Argument::Int(held as i32), int(count), pointer(to), Argument::Int(wanted as i32)];
        self.run(self.kernels.cast, spread(count), &arguments);
    }
}

/// Where a convolution's windows lie.
struct Places {
    pictures: usize,
    window: Window,
    output: (usize, usize),
}

impl Places {
    fn of(x: &Buf, window: &Window) -> Option<Places> {
        // A kernel that does not fit is refused when a model is loaded.
        let output = window.output().ok()?;
        let pictures = x.rows() / (window.size.0 * window.size.1);
        Some(Places { pictures, window: *window, output })
    }

    fn outputs(&self) -> usize {
        self.pictures * self.output.0 * self.output.1
    }

    fn arguments(&self, x: &Buf) -> Vec<Argument> {
        let Window { size, kernel, stride, padding } = self.window;
        let sizes = [
            self.pictures,
            size.0,
            size.1,
            x.width(),
            kernel.0,
            kernel.1,
            stride.0,
            stride.1,
            padding.rows.0,
            padding.columns.0,
            self.output.0,
            self.output.1,
        ];
        [vec![pointer(x.address()), kind(x)], sizes.map(int).to_vec()].concat()
    }
}

/// Spans as tiles of queries, and how many keys the first query of each sees where each sees one more than the one before.
fn cut(spans: &[Span], mask: Mask, most: usize) -> (Vec<u32>, Vec<u32>) {
    let (mut tiles, mut limits) = (Vec::new(), Vec::new());
    for span in spans {
        for first in span.queries.clone().step_by(most) {
            let queries = most.min(span.queries.end - first);
            tiles.extend([first, queries, span.keys.start, span.keys.len()].map(|word| word as u32));
            if mask == Mask::Causal {
                let before = first - span.queries.start;
                limits.push((span.keys.len() + 1 + before - span.queries.len()) as u32);
            }
        }
    }
    (tiles, limits)
}

fn plain_view(view: View<'_, Buf>) -> Vec<Argument> {
    vec![pointer(view.rows.column(view.column)), kind(view.rows), int(view.rows.width())]
}
