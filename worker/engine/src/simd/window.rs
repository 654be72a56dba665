//! Convolution of pictures, channel by channel.

use super::lanes::Lanes;
use super::{Kernel, LANES, Level};
use crate::backend::dense::Window;

/// Places of a row that are computed together where their windows lie inside the picture.
const PLACES: usize = 4;

/// One row of the output: every channel's windows under every channel's kernel.
///
/// `picture` is (height, width, channels), `kernel` (kernel y, kernel x, channels), `out` (width of the output, channels).
/// A number is one chain of fused multiply-adds over the taps inside the picture, in order.
///
/// # Panics
/// When shapes disagree.
pub fn depthwise(level: Level, picture: &[f32], kernel: &[f32], (window, row): (&Window, usize), out: &mut [f32]) {
    let channels = kernel.len() / (window.kernel.0 * window.kernel.1);
    assert_eq!(picture.len(), window.size.0 * window.size.1 * channels, "a picture of the window's size");
    assert_eq!(kernel.len(), window.kernel.0 * window.kernel.1 * channels, "a kernel for every channel");
    assert!(channels > 0 && out.len().is_multiple_of(channels), "whole places");
    let places = out.len() / channels;
    let last = window.taps(row, places.saturating_sub(1)).1;
    assert!(last.picture + last.count <= window.size.1, "windows begin inside the picture");
    let work = Depthwise { picture, kernel, window, rows: window.taps(row, 0).0, channels, out };
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
    picture: &'a [f32],
    kernel: &'a [f32],
    window: &'a Window,
    rows: Taps,
    channels: usize,
    out: &'a mut [f32],
}

/// Kernels of `K` columns at steps of `S`; of any width and step if zero.
struct Of<'a, const K: usize, const S: usize>(Depthwise<'a>);

impl<const K: usize, const S: usize> Kernel for Of<'_, K, S> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Of(mut work) = self;
        let places = work.out.len() / work.channels;
        let mut place = 0;
        while place < places {
            let end = place + PLACES;
            // The first and the last window that are computed together lie inside.
            let inside = K > 0
                && end <= places
                && work.window.taps(0, place).1.count == K
                && work.window.taps(0, end - 1).1.count == K;
            // SAFETY: as `depthwise` checked.
            unsafe {
                if inside {
                    work.together::<V, K, S>(place);
                    place = end;
                } else {
                    work.alone::<V>(place);
                    place += 1;
                }
            }
        }
    }
}

impl Depthwise<'_> {
    /// # Safety
    /// The tap and the place of the picture are inside.
    #[inline(always)]
    unsafe fn rows(&self, y: usize, tap: usize, column: usize) -> (*const f32, *const f32) {
        // SAFETY: the caller's.
        unsafe {
            let tap = (self.rows.kernel + y) * self.window.kernel.1 + tap;
            let pixel = (self.rows.picture + y) * self.window.size.1 + column;
            (self.kernel.as_ptr().add(tap * self.channels), self.picture.as_ptr().add(pixel * self.channels))
        }
    }

    /// One place, whatever of its window lies inside the picture.
    #[inline(always)]
    unsafe fn alone<V: Lanes>(&mut self, place: usize) {
        let columns = self.window.taps(0, place).1;
        for channel in (0..self.channels).step_by(LANES) {
            let lanes = LANES.min(self.channels - channel);
            // SAFETY: taps are inside; no more channels are touched than there are.
            unsafe {
                let mut sum = V::splat(0.0);
                for y in 0..self.rows.count {
                    let (tap, pixel) = self.rows(y, columns.kernel, columns.picture);
                    for x in 0..columns.count {
                        let at = x * self.channels + channel;
                        sum = V::fma(some::<V>(pixel.add(at), lanes), some::<V>(tap.add(at), lanes), sum);
                    }
                }
                put::<V>(self.out.as_mut_ptr().add(place * self.channels + channel), sum, lanes);
            }
        }
    }

    /// [`PLACES`] places whose windows lie inside: taps are read once for all of them.
    #[inline(always)]
    unsafe fn together<V: Lanes, const K: usize, const S: usize>(&mut self, place: usize) {
        let column = self.window.taps(0, place).1.picture;
        for channel in (0..self.channels).step_by(LANES) {
            let lanes = LANES.min(self.channels - channel);
            // SAFETY: taps are inside; no more channels are touched than there are.
            unsafe {
                let mut sums = [V::splat(0.0); PLACES];
                for y in 0..self.rows.count {
                    let (tap, pixel) = self.rows(y, 0, column);
                    for x in 0..K {
                        let tap = some::<V>(tap.add(x * self.channels + channel), lanes);
                        for p in 0..PLACES {
                            let pixel = some::<V>(pixel.add((p * S + x) * self.channels + channel), lanes);
                            sums[p] = V::fma(pixel, tap, sums[p]);
                        }
                    }
                }
                for p in 0..PLACES {
                    put::<V>(self.out.as_mut_ptr().add((place + p) * self.channels + channel), sums[p], lanes);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn some<V: Lanes>(from: *const f32, lanes: usize) -> V::F {
    // SAFETY: the caller's pointer is valid for so many numbers.
    unsafe { if lanes == LANES { V::load(from) } else { V::load_first(from, lanes) } }
}

#[inline(always)]
unsafe fn put<V: Lanes>(to: *mut f32, x: V::F, lanes: usize) {
    // SAFETY: the caller's pointer is valid for so many numbers.
    unsafe { if lanes == LANES { V::store(to, x) } else { V::store_first(to, x, lanes) } }
}
