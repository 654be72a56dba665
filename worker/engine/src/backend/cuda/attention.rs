//! Attention over the paged cache: single rows by flash decoding, prompts in tiles.

use super::kernels::{PAGED_WIDTHS, fitting};
use super::rows::{kind, rope_extent};
use super::{Buf, Cuda, Kv, int, pointer};
use crate::Error;
use crate::backend::{Reach, Turn};
use crate::cuda::{Address, Argument, Extent, Kind};

/// Threads of a block: of prompts, and of single rows with heads of more than 128 numbers.
const THREADS: u32 = 128;
/// Threads of a block of other single rows.
const SINGLE_THREADS: u32 = 256;
/// Query heads of a group that are taken together.
const GROUP: usize = 8;
/// Blocks that keep a multiprocessor busy with single rows.
const BLOCKS_EACH: usize = 2;
/// Parts that a long sequence is cut into at most; kernels take fewer for a short one.
const SPLITS_MAX: usize = 128;

/// Query heads, key-value heads, and their width.
#[derive(Clone, Copy)]
struct Heads {
    queries: usize,
    keys: usize,
    width: usize,
}

impl Heads {
    /// Of rows (queries | keys | values).
    fn of(qkv: &Buf, kv: &Kv) -> Heads {
        let (keys, width) = (kv.shape.heads, kv.shape.width);
        Heads { queries: qkv.width() / width - 2 * keys, keys, width }
    }

    fn group(self) -> usize {
        self.queries / self.keys
    }
}

impl Cuda {
    /// Turns queries and keys, and writes keys and values to the cache.
    pub(super) fn turn_and_write(&mut self, qkv: &Buf, turn: &Turn<'_, Buf>, (kv, layer): (&Kv, usize)) {
        let heads = Heads::of(qkv, kv);
        let rows = self.step.rows().1;
        let [bias, queries, keys, epsilon, rope, rotated] = turned(turn);
        let arguments = [
            pointer(qkv.address()),
            kind(qkv),
            int(rows),
            int(heads.queries),
            int(heads.keys),
            int(heads.width),
            rotated,
            bias,
            queries,
            keys,
            epsilon,
            rope,
            pointer(self.step.positions()),
            pointer(self.step.table_starts()),
            pointer(self.step.tables()),
            pointer(kv.address()),
            int(layer),
            int(kv.shape.layers),
        ];
        let extent = rope_extent(rows, heads.queries + 2 * heads.keys);
        self.run(self.kernels.rope_write, extent, &arguments);
    }

    /// Attention of spans of one row.
    pub(super) fn look_at_single_rows(&mut self, qkv: &Buf, (kv, layer, reach): (&Kv, usize, Reach), out: &Buf) {
        if let Some((width, extent, arguments)) = self.single_rows((qkv, out), kv, (layer, reach)) {
            self.run(self.kernels.decode[width], extent, &arguments);
        }
    }

    /// The same of a step that has no others: turned and written to the cache in the same kernel.
    pub(super) fn turn_and_look(
        &mut self,
        (qkv, out): (&Buf, &Buf),
        turn: &Turn<'_, Buf>,
        (kv, layer, reach): (&Kv, usize, Reach),
    ) {
        if let Some((width, extent, arguments)) = self.single_rows((qkv, out), kv, (layer, reach)) {
            let arguments = [arguments, turned(turn).to_vec()].concat();
            self.run(self.kernels.turn_decode[width], extent, &arguments);
        }
    }

    /// Which kernel single rows take, how it is launched, and with what.
    fn single_rows(
        &mut self,
        (qkv, out): (&Buf, &Buf),
        kv: &Kv,
        (layer, reach): (usize, Reach),
    ) -> Option<(usize, Extent, Vec<Argument>)> {
        let (rows, heads) = (self.step.single_rows(), Heads::of(qkv, kv));
        let Some(width) = fitting(&PAGED_WIDTHS, heads.width).filter(|_| heads.width.is_multiple_of(8)) else {
            self.refuse_width(heads.width);
            return None;
        };
        if rows == 0 {
            return None;
        }
        let columns = heads.keys * heads.group().div_ceil(GROUP);
        let splits = self.splits(rows * columns, heads.width);
        let floats = rows * heads.queries * splits * (heads.width + 2);
        let room = self.scratch.counted_parts(&self.gpu, floats * Kind::F32.bytes(), rows * columns);
        let (parts, counters) = self.note(room)?;
        let arguments = vec![
            pointer(qkv.address()),
            kind(qkv),
            int(qkv.width()),
            int(heads.queries),
            int(heads.keys),
            int(heads.width),
            pointer(self.step.singles()),
            pointer(self.step.positions()),
            pointer(self.step.table_starts()),
            pointer(self.step.tables()),
            pointer(kv.address()),
            int(layer),
            int(kv.shape.layers),
            window(reach),
            int(splits),
            pointer(parts),
            pointer(counters),
            pointer(out.address()),
            kind(out),
        ];
        let grid = (splits as u32, columns as u32, rows as u32);
        let threads = if heads.width <= 128 { SINGLE_THREADS } else { THREADS };
        Some((width, Extent { grid, threads, shared: 0 }, arguments))
    }

    /// Into how many parts the pages of each of `blocks` sequences and heads are cut.
    fn splits(&self, blocks: usize, width: usize) -> usize {
        // Tokens that make a part worth its merging.
        let least = if width <= 128 { 128 } else { 64 };
        let most = self.step.longest().map_or(SPLITS_MAX, |tokens| tokens.div_ceil(least));
        (self.multiprocessors * BLOCKS_EACH).div_ceil(blocks).clamp(1, most.clamp(1, SPLITS_MAX))
    }

    /// Attention of spans of more rows than one.
    pub(super) fn look_at_prompts(&mut self, qkv: &Buf, (kv, layer, reach): (&Kv, usize, Reach), out: &Buf) {
        let heads = Heads::of(qkv, kv);
        let (tiles, count) = self.step.tiles(heads.width);
        let Some(width) = fitting(&PAGED_WIDTHS, heads.width) else { return };
        let arguments = [
            pointer(qkv.address()),
            kind(qkv),
            int(qkv.width()),
            int(heads.queries),
            int(heads.keys),
            int(heads.width),
            pointer(tiles),
            pointer(self.step.tables()),
            pointer(kv.address()),
            int(layer),
            int(kv.shape.layers),
            window(reach),
            pointer(out.address()),
            kind(out),
        ];
        let shared = tile_shared(PAGED_WIDTHS[width]);
        let grid = (heads.queries as u32, count as u32, 1);
        self.run(self.kernels.prefill[width], Extent { grid, threads: THREADS, shared }, &arguments);
    }

    fn refuse_width(&mut self, width: usize) {
        self.note::<()>(Err(Error::Device(format!("attention heads of {width} numbers"))));
    }
}

/// What becomes of rows, as kernels are told.
fn turned(turn: &Turn<'_, Buf>) -> [Argument; 6] {
    let optional = |buffer: Option<&Buf>| pointer(buffer.map_or(Address::default(), Buf::address));
    let norms = turn.norms.as_ref();
    [
        optional(turn.bias),
        optional(norms.map(|norms| norms.queries)),
        optional(norms.map(|norms| norms.keys)),
        Argument::Float(norms.map_or(0.0, |norms| norms.epsilon)),
        pointer(turn.rope.address()),
        int(turn.rope.width()),
    ]
}

fn window(reach: Reach) -> Argument {
    Argument::Int(i32::try_from(reach.window()).unwrap_or(i32::MAX))
}

/// Shared memory of tiles of heads of at most this width: see `attend.cu`.
pub(super) fn tile_shared(width: usize) -> u32 {
    match width {
        ..=32 => 20_480,
        33..=64 => 36_864,
        65..=128 => 69_632,
        _ => 101_376,
    }
}
