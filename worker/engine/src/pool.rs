//! Threads that wait for the next piece of a step, and the ways to share memory among them.
//!
//! A step of a small model is some two hundred short computations. Threads therefore spin a little between them, and
//! sleep only when nothing comes: an idle engine costs no processor. The caller works as thread 0.
//! Which thread computes what never decides a result, only its time.
#![allow(unsafe_code)] // reason: hands disjoint parts of one slice to several threads

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Turns of spinning for the next round, longer than most gaps within a step: letting others run costs microseconds.
const SPINS: u32 = 5_000;
/// How often others are let run after that, in case the caller waits for this processor, before the thread sleeps: some
/// hundred microseconds.
const YIELDS: u32 = 300;
/// Turns of spinning before the caller lets others run, in case they share its processor.
const SPINS_BEFORE_YIELD: u32 = 1_000;
/// Pieces for each thread: few enough to cost nothing, enough that a slow thread leaves work to the others.
const PIECES_EACH: usize = 16;
/// The same for tiles, which differ much in size.
const TILE_PIECES_EACH: usize = 32;

/// Set in [`Shared::state`] while threads may join the round.
const OPEN: u64 = 1 << 31;
/// Threads that are in the round, besides the caller.
const JOINED: u64 = OPEN - 1;

/// A fixed set of threads, the caller among them.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    others: Vec<JoinHandle<()>>,
}

/// What is done with a piece: called with the thread's number and the piece's.
type Work = dyn Fn(usize, usize) + Sync;

/// Pieces that lie side by side, as what they read does: one thread takes them in order, the others what it leaves. In
/// lines of the cache of its own, so that it disturbs nobody.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Share {
    /// The next piece that nobody has taken.
    next: AtomicUsize,
    end: AtomicUsize,
}

#[derive(Debug)]
struct Shared {
    /// Number of the round in the upper half, then [`OPEN`] and [`JOINED`]. The caller opens and closes rounds; the
    /// others join and leave. A thread that comes late finds the round closed, and nobody has waited for it.
    state: AtomicU64,
    /// Of each thread.
    shares: Box<[Share]>,
    /// Written by the caller between rounds only, when no other thread is in one.
    work: UnsafeCell<Option<*const Work>>,
    /// Threads that sleep or are about to.
    sleepers: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    bell: Mutex<()>,
    ring: Condvar,
}

// SAFETY: `work` is written only while no thread is in a round (closed, none joined), and read only by threads in one;
// joining acquires what opening released. The closure behind it is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is used only while `Pool::run` borrows the closure.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads, the caller included; at least one.
    #[must_use]
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            shares: (0..threads.max(1)).map(|_| Share::default()).collect(),
            work: UnsafeCell::new(None),
            sleepers: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            bell: Mutex::new(()),
            ring: Condvar::new(),
        });
        let others = (1..threads.max(1))
            .map_while(|thread| {
                let shared = Arc::clone(&shared);
                let builder = std::thread::Builder::new().name(format!("engine-{thread}"));
                builder.spawn(move || shared.attend(thread)).ok()
            })
            .collect();
        Pool { shared, others }
    }

    /// Threads, the caller included. Fewer than asked for where the system refused some.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.others.len() + 1
    }

    /// Calls `work` once with every piece, on whichever threads come, and returns when all are done. A thread that is
    /// not scheduled meanwhile takes no piece, and is not waited for.
    ///
    /// # Panics
    /// When `work` does on any thread.
    pub fn run(&mut self, pieces: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        if self.others.is_empty() || pieces <= 1 {
            return (0..pieces).for_each(|piece| work(0, piece));
        }
        let shared = &*self.shared;
        let erased: *const (dyn Fn(usize, usize) + Sync + '_) = work;
        // SAFETY: only the lifetime changes; this function neither returns nor unwinds while a thread is in the round.
        let erased: *const Work = unsafe { std::mem::transmute(erased) };
        // SAFETY: `&mut self`, and the round before is closed and left: no other thread reads `work`.
        unsafe { *shared.work.get() = Some(erased) };
        shared.share(pieces);
        let round = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        shared.state.store(round << 32 | OPEN, Ordering::SeqCst);
        shared.wake();
        let own = catch_unwind(AssertUnwindSafe(|| shared.take_pieces(0, work)));
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0_u32;
        while shared.state.load(Ordering::Acquire) & JOINED > 0 {
            std::hint::spin_loop();
            spins = spins.saturating_add(1);
            if spins > SPINS_BEFORE_YIELD {
                std::thread::yield_now();
            }
        }
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a thread of the pool panicked");
    }

    /// Cuts the columns of a (rows, stride) matrix into strips of whole units of columns, and calls `work` with each
    /// strip and the local state of the thread that does it.
    ///
    /// # Panics
    /// When `out` is not whole rows, or there are fewer locals than threads.
    pub fn strips<L: Send>(
        &mut self,
        out: (&mut [f32], usize),
        unit: usize,
        locals: &mut [L],
        work: impl Fn(&mut L, Range<usize>, &mut Strip<'_>) + Sync,
    ) {
        let (out, stride) = out;
        assert_eq!(out.len() % stride, 0, "a matrix of whole rows");
        assert!(locals.len() >= self.threads(), "a local state for every thread");
        let (rows, units) = (out.len() / stride, stride.div_ceil(unit));
        let pieces = if self.threads() == 1 { 1 } else { units.min(self.threads() * PIECES_EACH) };
        let out = Pointer(out.as_mut_ptr());
        let locals = Pointer(locals.as_mut_ptr());
        self.run(pieces, &move |thread, piece| {
            let first = (units * piece / pieces * unit).min(stride);
            let end = (units * (piece + 1) / pieces * unit).min(stride);
            // SAFETY: pieces share no column, threads no local; both outlive the round.
            let (local, mut strip) = unsafe {
                let strip = Strip { at: out.get().add(first), rows, columns: end - first, stride, out: PhantomData };
                (&mut *locals.get().add(thread), strip)
            };
            work(local, first..end, &mut strip);
        });
    }

    /// Calls `work` with every `width`-long item of `out` and its index; threads take the next `grain` items as they
    /// come free. What one grain holds, the caller does alone.
    ///
    /// # Panics
    /// When `out` is not whole items, or there are fewer locals than threads.
    pub fn items<L: Send, T: Send>(
        &mut self,
        out: (&mut [T], usize),
        grain: usize,
        locals: &mut [L],
        work: impl Fn(&mut L, usize, &mut [T]) + Sync,
    ) {
        let (out, width) = out;
        assert_eq!(out.len() % width, 0, "whole items");
        assert!(locals.len() >= self.threads(), "a local state for every thread");
        let items = out.len() / width;
        let pieces = items.div_ceil(grain);
        let out = Pointer(out.as_mut_ptr());
        let locals = Pointer(locals.as_mut_ptr());
        self.run(pieces, &|thread, piece| {
            // SAFETY: every thread has an index of its own; the locals outlive the round.
            let local = unsafe { &mut *locals.get().add(thread) };
            for index in piece * grain..items.min((piece + 1) * grain) {
                // SAFETY: every piece, and so every item, is given out once; `out` outlives the round.
                let item = unsafe { std::slice::from_raw_parts_mut(out.get().add(index * width), width) };
                work(local, index, item);
            }
        });
    }
}

impl Pool {
    /// Calls `work` with every tile of a (rows, stride) matrix: the columns of each range of rows, `width` at a time,
    /// with the numbers of the range and of the group of columns. What `grain` tiles hold, the caller does alone.
    ///
    /// # Panics
    /// When `out` is not whole rows, ranges of rows overlap or are out of order, or there are fewer locals than threads.
    pub fn tiles<L: Send>(
        &mut self,
        out: (&mut [f32], usize),
        (rows, width, grain): (&[Range<usize>], usize, usize),
        locals: &mut [L],
        work: impl Fn(&mut L, (usize, usize), &mut Strip<'_>) + Sync,
    ) {
        let (out, stride) = out;
        assert!(out.len() % stride == 0 && stride % width == 0, "a matrix of whole rows, of whole groups of columns");
        assert!(locals.len() >= self.threads(), "a local state for every thread");
        let mut end = 0;
        for rows in rows {
            assert!(end <= rows.start && rows.start <= rows.end, "rows in order");
            end = rows.end;
        }
        assert!(end <= out.len() / stride, "rows of the matrix");
        let groups = stride / width;
        let tiles = rows.len() * groups;
        let grain = (tiles / (self.threads() * TILE_PIECES_EACH)).max(grain);
        let out = Pointer(out.as_mut_ptr());
        let locals = Pointer(locals.as_mut_ptr());
        self.run(tiles.div_ceil(grain), &|thread, piece| {
            // SAFETY: every thread has an index of its own; the locals outlive the round.
            let local = unsafe { &mut *locals.get().add(thread) };
            for tile in piece * grain..tiles.min((piece + 1) * grain) {
                let (index, group) = (tile / groups, tile % groups);
                let rows = &rows[index];
                // SAFETY: the rows are inside, and no two tiles share a number, as checked above.
                let at = unsafe { out.get().add(rows.start * stride + group * width) };
                let mut strip = Strip { at, rows: rows.len(), columns: width, stride, out: PhantomData };
                work(local, (index, group), &mut strip);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.state.fetch_add(1 << 32, Ordering::SeqCst);
        drop(self.shared.bell.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.ring.notify_all();
        for other in self.others.drain(..) {
            // A panic of that thread has been reported by `run`.
            let _ = other.join();
        }
    }
}

impl Shared {
    /// The life of a thread of the pool.
    fn attend(&self, thread: usize) {
        let mut seen = 0;
        loop {
            let state = self.next_round(seen);
            seen = state >> 32;
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if self.join(state) {
                // SAFETY: this thread is in the round, so the closure is there until it leaves.
                let work = unsafe { (*self.work.get()).map(|work| &*work) };
                let work = work.expect("an open round has work");
                if catch_unwind(AssertUnwindSafe(|| self.take_pieces(thread, work))).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
                self.state.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Joins the round of `state`, unless it was closed.
    fn join(&self, mut state: u64) -> bool {
        let round = state >> 32;
        while state & OPEN != 0 && state >> 32 == round {
            match self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    /// Gives each thread as many pieces.
    fn share(&self, pieces: usize) {
        let threads = self.shares.len();
        for (thread, share) in self.shares.iter().enumerate() {
            share.next.store(pieces * thread / threads, Ordering::Relaxed);
            share.end.store(pieces * (thread + 1) / threads, Ordering::Relaxed);
        }
    }

    /// Does the thread's own pieces, and then what is left of those of the others.
    fn take_pieces(&self, thread: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        let (before, own) = self.shares.split_at(thread);
        for share in own.iter().chain(before) {
            let end = share.end.load(Ordering::Relaxed);
            // Looked at first: whoever comes to an empty share does not write to it.
            while share.next.load(Ordering::Relaxed) < end {
                let piece = share.next.fetch_add(1, Ordering::Relaxed);
                if piece < end {
                    work(thread, piece);
                }
            }
        }
    }

    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.bell.lock().unwrap_or_else(PoisonError::into_inner));
            self.ring.notify_all();
        }
    }

    /// The state of the first round seen that is not `seen`.
    fn next_round(&self, seen: u64) -> u64 {
        for turn in 0..SPINS + YIELDS {
            let state = self.state.load(Ordering::Acquire);
            if state >> 32 != seen {
                return state;
            }
            if turn < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        // Counted before the round is looked at again: the caller either sees a sleeper, or this sees its round.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut bell = self.bell.lock().unwrap_or_else(PoisonError::into_inner);
        while self.state.load(Ordering::SeqCst) >> 32 == seen {
            bell = self.ring.wait(bell).unwrap_or_else(PoisonError::into_inner);
        }
        drop(bell);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        self.state.load(Ordering::SeqCst)
    }
}

/// A pointer that threads may share, because each goes to its own part.
struct Pointer<T>(*mut T);

impl<T> Pointer<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

impl<T> Clone for Pointer<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Pointer<T> {}

// SAFETY: users of the pointer touch disjoint parts, and the numbers behind it may be sent.
unsafe impl<T: Send> Sync for Pointer<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Pointer<T> {}

/// Some columns of every row of a matrix, writable by one thread.
#[derive(Debug)]
pub struct Strip<'a> {
    at: *mut f32,
    rows: usize,
    columns: usize,
    stride: usize,
    out: PhantomData<&'a mut [f32]>,
}

impl<'a> Strip<'a> {
    /// All columns of a matrix.
    ///
    /// # Panics
    /// When `out` is not whole rows.
    pub fn whole(out: &'a mut [f32], stride: usize) -> Strip<'a> {
        assert_eq!(out.len() % stride, 0, "a matrix of whole rows");
        Strip { at: out.as_mut_ptr(), rows: out.len() / stride, columns: stride, stride, out: PhantomData }
    }

    /// Rows of the matrix.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the strip.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Columns of the matrix: the distance of rows.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The first column of the first row.
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.at
    }

    /// The strip's part of a row.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "a row of the matrix");
        // SAFETY: the strip's columns of a row are its own, and borrowed with it.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(row * self.stride), self.columns) }
    }

    /// All numbers of a strip of whole rows.
    ///
    /// # Panics
    /// When it is narrower than its matrix.
    pub fn all(&mut self) -> &mut [f32] {
        assert_eq!(self.columns, self.stride, "whole rows");
        // SAFETY: whole rows lie one after the other, and are the strip's own.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.rows * self.stride) }
    }

    /// Some rows of the strip.
    ///
    /// # Panics
    /// When the strip has fewer.
    pub fn band(&mut self, rows: Range<usize>) -> Strip<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows of the strip");
        let at = self.at.wrapping_add(rows.start * self.stride);
        Strip { at, rows: rows.len(), out: PhantomData, ..*self }
    }

    /// Some columns of the strip, counted from its first.
    ///
    /// # Panics
    /// When the strip is narrower.
    pub fn part(&mut self, columns: Range<usize>) -> Strip<'_> {
        assert!(columns.start <= columns.end && columns.end <= self.columns, "columns of the strip");
        let at = self.at.wrapping_add(columns.start);
        Strip { at, columns: columns.len(), out: PhantomData, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once_a_round() {
        let mut pool = Pool::new(4);
        let done: Vec<AtomicUsize> = (0..9).map(|_| AtomicUsize::new(0)).collect();
        for round in 1..=5_000 {
            pool.run(done.len(), &|thread, piece| {
                assert!(thread < 4);
                done[piece].fetch_add(1, Ordering::Relaxed);
            });
            assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == round));
        }
    }

    #[test]
    fn a_thread_begins_with_its_own_share_and_takes_what_others_leave() {
        const NONE: usize = usize::MAX;
        let mut pool = Pool::new(2);
        let (first, done) = (AtomicUsize::new(NONE), AtomicUsize::new(0));
        let wait = |until: &dyn Fn() -> bool| {
            while !until() {
                std::thread::yield_now();
            }
        };
        pool.run(8, &|thread, piece| {
            if thread == 1 {
                let _ = first.compare_exchange(NONE, piece, Ordering::SeqCst, Ordering::SeqCst);
            }
            done.fetch_add(1, Ordering::SeqCst);
            match piece {
                // The caller stays until the other thread has come, and that with its first piece until all are done.
                0 => wait(&|| first.load(Ordering::SeqCst) != NONE),
                4 => wait(&|| done.load(Ordering::SeqCst) == 8),
                _ => {}
            }
        });
        assert_eq!(first.into_inner(), 4);
    }

    #[test]
    fn sleepers_wake_for_the_next_round() {
        let mut pool = Pool::new(3);
        for _ in 0..3 {
            while pool.shared.sleepers.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            // The pieces wait for each other, so the round ends only with all three threads awake.
            let meeting = std::sync::Barrier::new(3);
            pool.run(3, &|_, _| {
                meeting.wait();
            });
        }
    }

    #[test]
    fn strips_cover_every_column_once() {
        for (threads, stride, unit) in [(1, 16, 16), (3, 40, 16), (4, 48, 16), (5, 7, 1), (2, 16, 16)] {
            let mut pool = Pool::new(threads);
            let mut out = vec![0.0; 3 * stride];
            let mut locals = vec![0_usize; threads];
            pool.strips((&mut out, stride), unit, &mut locals, |local, range, strip| {
                *local += range.len();
                assert_eq!(strip.columns(), range.len());
                for row in 0..strip.rows() {
                    for column in 0..strip.columns() {
                        // SAFETY: inside the strip.
                        unsafe { *strip.as_mut_ptr().add(row * strip.stride() + column) += 1.0 };
                    }
                }
            });
            assert!(out.iter().all(|x| *x == 1.0), "{threads} threads, {stride} columns");
            assert_eq!(locals.iter().sum::<usize>(), stride);
        }
    }

    #[test]
    fn items_are_given_out_once() {
        let mut pool = Pool::new(3);
        for grain in [1, 7, 100] {
            let mut out = vec![0.0; 100 * 3];
            let mut locals = [0_usize; 3];
            pool.items((&mut out, 3), grain, &mut locals, |done, index, item| {
                *done += 1;
                item.iter_mut().for_each(|x| *x += index as f32 + 1.0);
            });
            assert!(out.chunks(3).enumerate().all(|(index, item)| item == [index as f32 + 1.0; 3]));
            assert_eq!(locals.iter().sum::<usize>(), 100);
        }
    }

    #[test]
    fn tiles_cover_their_rows_once() {
        for threads in [1, 3] {
            let mut pool = Pool::new(threads);
            let mut out = vec![0.0; 10 * 6];
            let mut locals = vec![(); threads];
            pool.tiles((&mut out, 6), (&[0..1, 1..4, 5..10], 2, 1), &mut locals, |(), (index, group), strip| {
                assert_eq!((strip.rows(), strip.columns()), ([1, 3, 5][index], 2));
                for row in 0..strip.rows() {
                    for column in 0..2 {
                        // SAFETY: inside the tile.
                        unsafe { *strip.as_mut_ptr().add(row * strip.stride() + column) += 1.0 + group as f32 };
                    }
                }
            });
            for (row, numbers) in out.chunks(6).enumerate() {
                let truth = if row == 4 { [0.0; 6] } else { [1.0, 1.0, 2.0, 2.0, 3.0, 3.0] };
                assert_eq!(numbers, truth, "row {row}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows in order")]
    fn tiles_that_share_rows_are_refused() {
        Pool::new(1).tiles((&mut [0.0; 8], 2), (&[0..2, 1..3], 1, 1), &mut [()], |(), _, _| {});
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(2);
        for bad in 0..2 {
            let round = AssertUnwindSafe(|| pool.run(2, &|_, piece| assert!(piece != bad, "on purpose")));
            assert!(catch_unwind(round).is_err());
        }
        pool.run(2, &|_, _| {});
    }
}
