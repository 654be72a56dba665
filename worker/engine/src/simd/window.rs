//! Windows of pictures: convolution channel by channel, and windows as rows.

use std::ops::Range;

use super::lanes::Lanes;
use super::tile::{Bounds, put, some};
use super::{Kernel, LANES, Level, affine};
use crate::backend::dense::{Activation, Window};
use crate::pool::Strip;

/// Some channels of some rows of a picture, (rows, width, channels). Each row stands at its number modulo how many there
/// are: all of them, or the last of those that were made.
#[derive(Clone, Debug)]
pub struct Ring<'a> {
    /// Their numbers.
    pub numbers: &'a [f32],
    /// How many.
    pub rows: usize,
    /// Which channels.
    pub channels: Range<usize>,
}

/// What a depthwise convolution has of each of all channels.
#[derive(Clone, Copy, Debug)]
pub struct Filter<'a> {
    /// (kernel y, kernel x, channels)
    pub kernel: &'a [f32],
    /// What is added.
    pub bias: &'a [f32],
    /// What the result passes through.
    pub activation: Activation,
}

/// Rows of the output: every channel's windows under every channel's kernel, and what follows.
///
/// `picture` has all rows under the kernel, `out` is (rows, width of the output, all channels), of which those of
/// `picture` are written. A number is one chain of fused multiply-adds over the taps inside the picture, in order.
///
/// # Panics
/// When shapes disagree.
pub fn depthwise(
    level: Level,
    picture: Ring<'_>,
    filter: Filter<'_>,
    (window, rows): (&Window, Range<usize>),
    out: &mut [f32],
) {
    let channels = filter.bias.len();
    assert_eq!(filter.kernel.len(), window.kernel.0 * window.kernel.1 * channels, "a kernel for every channel");
    assert_eq!(
        picture.numbers.len(),
        picture.rows * window.size.1 * picture.channels.len(),
        "rows of the window's width"
    );
    assert!(picture.channels.end <= channels, "channels of the kernel");
    assert!(channels > 0 && out.len().is_multiple_of(channels * rows.len().max(1)), "whole places");
    if out.is_empty() {
        return;
    }
    let places = out.len() / channels / rows.len();
    let last = window.taps(rows.end - 1, places - 1);
    assert!(last.1.picture + last.1.count <= window.size.1, "windows begin inside the picture");
    assert!(window.kernel.0.min(window.size.0) <= picture.rows, "rows under the kernel");
    let Filter { kernel, bias, activation } = filter;
    let ((bounds, then), part) = (Bounds::of(activation), picture.channels.clone());
    let work = Depthwise { picture, kernel, bias, bounds, window, rows, places, channels, out: &mut *out };
    // SAFETY: taps lie inside the picture and the kernel, whose sizes were checked.
    unsafe {
        match (window.kernel.1, window.stride.1) {
            (3, 1) => level.run(Of::<3, 1>(work)),
            (3, 2) => level.run(Of::<3, 2>(work)),
            (5, 1) => level.run(Of::<5, 1>(work)),
            (5, 2) => level.run(Of::<5, 2>(work)),
            _ => level.run(Of::<0, 0>(work)),
        }
    }
    affine::activate(level, then, &mut Strip::whole(out, channels).part(part));
}

/// The window of one place as a row, (kernel y, kernel x, channels): zeros where it lies outside the picture.
///
/// # Panics
/// When shapes disagree.
pub fn unfold(level: Level, picture: &[f32], (window, place): (&Window, (usize, usize)), out: &mut [f32]) {
    let channels = out.len() / (window.kernel.0 * window.kernel.1);
    assert_eq!(out.len(), window.kernel.0 * window.kernel.1 * channels, "a row holds a window");
    assert_eq!(picture.len(), window.size.0 * window.size.1 * channels, "a picture of the window's size");
    let (rows, columns) = window.taps(place.0, place.1);
    let inside = |taps: Taps, size: usize| taps.count == 0 || taps.picture + taps.count <= size;
    assert!(inside(rows, window.size.0) && inside(columns, window.size.1), "taps inside the picture");
    if (rows.count, columns.count) != window.kernel {
        out.fill(0.0);
    }
    // SAFETY: the assertions above.
    unsafe { level.run(Unfold { picture, window, taps: (rows, columns), channels, out }) };
}

struct Unfold<'a> {
    picture: &'a [f32],
    window: &'a Window,
    taps: (Taps, Taps),
    channels: usize,
    out: &'a mut [f32],
}

impl Kernel for Unfold<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let (rows, columns) = self.taps;
        let len = columns.count * self.channels;
        for y in 0..rows.count {
            let to = ((rows.kernel + y) * self.window.kernel.1 + columns.kernel) * self.channels;
            let from = ((rows.picture + y) * self.window.size.1 + columns.picture) * self.channels;
            for at in (0..len).step_by(LANES) {
                let lanes = LANES.min(len - at);
                // SAFETY: taps lie inside the picture and the row.
                unsafe {
                    let numbers = some::<V>(self.picture.as_ptr().add(from + at), lanes);
                    put::<V>(self.out.as_mut_ptr().add(to + at), numbers, lanes);
                }
            }
        }
    }
}

/// What of a kernel falls into the picture, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taps {
    /// The first of the kernel.
    pub kernel: usize,
    /// What of the picture it falls on.
    pub picture: usize,
    /// How many.
    pub count: usize,
}

impl Window {
    /// Those of the first `places` of a row whose windows' columns all lie inside the picture.
    fn inside(&self, places: usize) -> Range<usize> {
        let (before, stride) = (self.padding.columns.0, self.stride.1);
        let end = (self.size.1 + before).checked_sub(self.kernel.1).map_or(0, |room| room / stride + 1).min(places);
        before.div_ceil(stride).min(end)..end
    }

    /// The rows and the columns that the kernel and the picture share at a place of the output.
    #[must_use]
    pub fn taps(&self, row: usize, column: usize) -> (Taps, Taps) {
        let taps = |place: usize, size: usize, (before, stride): (usize, usize), kernel: usize| {
            // Counted in the padded picture.
            let first = place * stride;
            let (from, to) = (first.max(before), (first + kernel).min(before + size));
            Taps { kernel: from - first, picture: from - before, count: to.saturating_sub(from) }
        };
        (
            taps(row, self.size.0, (self.padding.rows.0, self.stride.0), self.kernel.0),
            taps(column, self.size.1, (self.padding.columns.0, self.stride.1), self.kernel.1),
        )
    }
}

struct Depthwise<'a> {
    picture: Ring<'a>,
    kernel: &'a [f32],
    bias: &'a [f32],
    bounds: Bounds,
    window: &'a Window,
    /// Of the output.
    rows: Range<usize>,
    /// Of a row.
    places: usize,
    /// All of the kernel and of the output.
    channels: usize,
    out: &'a mut [f32],
}

/// Kernels of `K` columns at steps of `S`; of any width and step if zero.
struct Of<'a, const K: usize, const S: usize>(Depthwise<'a>);

impl<const K: usize, const S: usize> Kernel for Of<'_, K, S> {
    /// A group of channels goes through all rows: what two rows of the output share is still near.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Of(mut work) = self;
        let inside = if K > 1 { work.window.inside(work.places) } else { 0..0 };
        let held = work.picture.channels.len();
        for channel in (0..held).step_by(LANES) {
            let lanes = LANES.min(held - channel);
            for row in 0..work.rows.len() {
                let mut rows = work.window.taps(work.rows.start + row, 0).0;
                rows.picture %= work.picture.rows;
                // SAFETY: as `depthwise` checked.
                unsafe {
                    match lanes {
                        LANES if rows.count == K => {
                            work.line::<V, K, S>((row, Taps { count: K, ..rows }), &inside, (channel, LANES));
                        }
                        lanes => work.line::<V, K, S>((row, rows), &inside, (channel, lanes)),
                    }
                }
            }
        }
    }
}

impl Depthwise<'_> {
    /// A row of the output, of some lanes from a channel on. The last of its places may be computed twice.
    #[inline(always)]
    unsafe fn line<V: Lanes, const K: usize, const S: usize>(
        &mut self,
        (row, rows): (usize, Taps),
        inside: &Range<usize>,
        (channel, lanes): (usize, usize),
    ) {
        let mut at = At { row, place: 0, rows, channel, lanes };
        while at.place < self.places {
            // SAFETY: the caller's.
            unsafe {
                at.place = match self.places {
                    7.. if K > 1 && V::ACCUMULATORS >= 24 => self.tile::<V, K, S, 7>(at, inside),
                    4.. if K > 1 => self.tile::<V, K, S, 4>(at, inside),
                    _ => self.alone::<V>(at),
                };
            }
        }
    }

    /// `P` places, or the last `P` of the row. Returns the next.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const K: usize, const S: usize, const P: usize>(
        &mut self,
        at: At,
        inside: &Range<usize>,
    ) -> usize {
        let at = At { place: at.place.min(self.places - P), ..at };
        // SAFETY: the caller's.
        unsafe {
            match inside.start <= at.place && at.place + P <= inside.end {
                true => self.together::<V, K, S, P, false>(at),
                false => self.together::<V, K, S, P, true>(at),
            }
        }
        at.place + P
    }

    /// # Safety
    /// The tap and the place of the picture are inside.
    #[inline(always)]
    unsafe fn under(&self, at: At, y: usize, (tap, column): (usize, usize)) -> (*const f32, *const f32) {
        let tap = (at.rows.kernel + y) * self.window.kernel.1 + tap;
        let row = at.rows.picture + y;
        let row = if row < self.picture.rows { row } else { row - self.picture.rows };
        let pixel = row * self.window.size.1 + column;
        let (kernel, picture) = (self.kernel.as_ptr(), self.picture.numbers.as_ptr());
        // SAFETY: the caller's; every row under the kernel is held at its number modulo their count.
        unsafe {
            let tap = kernel.add(tap * self.channels + self.picture.channels.start + at.channel);
            (tap, picture.add(pixel * self.picture.channels.len() + at.channel))
        }
    }

    #[inline(always)]
    unsafe fn put<V: Lanes>(&mut self, at: At, place: usize, x: V::F) {
        let channel = self.picture.channels.start + at.channel;
        let to = (at.row * self.places + place) * self.channels + channel;
        // SAFETY: the place is one of the row, and has as many lanes; every channel has a bias.
        unsafe {
            let sum = V::add(x, some::<V>(self.bias.as_ptr().add(channel), at.lanes));
            put::<V>(self.out.as_mut_ptr().add(to), self.bounds.hold::<V>(sum), at.lanes);
        }
    }

    /// One place, whatever of its window lies inside the picture. Returns the next.
    #[inline(always)]
    unsafe fn alone<V: Lanes>(&mut self, at: At) -> usize {
        let columns = self.window.taps(0, at.place).1;
        // SAFETY: taps are inside; no more lanes are touched than there are.
        unsafe {
            let mut sum = V::splat(0.0);
            for y in 0..at.rows.count {
                let (tap, pixel) = self.under(at, y, (columns.kernel, columns.picture));
                for x in 0..columns.count {
                    let tap = some::<V>(tap.add(x * self.channels), at.lanes);
                    let pixel = some::<V>(pixel.add(x * self.picture.channels.len()), at.lanes);
                    sum = V::fma(pixel, tap, sum);
                }
            }
            self.put::<V>(at, at.place, sum);
        }
        at.place + 1
    }

    /// `P` places side by side: taps are read once for all of them. Columns outside are zeros, where there are any.
    #[inline(always)]
    unsafe fn together<V: Lanes, const K: usize, const S: usize, const P: usize, const OUTSIDE: bool>(
        &mut self,
        at: At,
    ) {
        const ZEROS: [f32; LANES] = [0.0; LANES];
        let (width, wide) = (self.window.size.1, self.picture.channels.len());
        // Before the picture, it is beyond its end.
        let first = (at.place * S).wrapping_sub(self.window.padding.columns.0);
        // SAFETY: rows and taps are inside, and columns are, or zeros are read; no more lanes are touched than there are.
        unsafe {
            let mut sums = [V::splat(0.0); P];
            for y in 0..at.rows.count {
                let (tap, row) = self.under(at, y, (0, 0));
                let begin = row.wrapping_add(first.wrapping_mul(wide));
                for x in 0..K {
                    let tap = some::<V>(tap.add(x * self.channels), at.lanes);
                    for p in 0..P {
                        let outside = OUTSIDE && first.wrapping_add(p * S + x) >= width;
                        let pixel = begin.wrapping_add((p * S + x) * wide);
                        let pixel = if outside { ZEROS.as_ptr() } else { pixel };
                        sums[p] = V::fma(some::<V>(pixel, at.lanes), tap, sums[p]);
                    }
                }
            }
            for p in 0..P {
                self.put::<V>(at, at.place + p, sums[p]);
            }
        }
    }
}

/// Some lanes of a place of the output.
#[derive(Clone, Copy)]
struct At {
    row: usize,
    place: usize,
    /// What the kernel sees there of the rows that are held.
    rows: Taps,
    /// Of those that are held.
    channel: usize,
    lanes: usize,
}
