//! Page-locked memory of the host, through which bytes go to a device and come from it: only from there are copies truly
//! queued, and fast.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use cudarc::driver::sys;

use super::context::{Context, check};
use crate::Error;

/// Bytes that are filled before they are sent, where there are many.
const PIECE: usize = 2 << 20;
/// So that one is filled while others are on their way.
const UPWARD: usize = 4;
/// So that one is emptied while the other is filled.
const DOWNWARD: usize = 2;
/// Where within a piece bytes begin: a line of the processor's cache.
const ALIGNMENT: usize = 64;

/// Pieces of locked memory, each with an event that tells when its last copy was done.
struct Locked<const PIECES: usize> {
    start: NonNull<u8>,
    done: [sys::CUevent; PIECES],
    queued: [bool; PIECES],
}

impl<const PIECES: usize> Locked<PIECES> {
    fn new(flags: u32) -> Result<Locked<PIECES>, Error> {
        let mut start = ptr::null_mut();
        // SAFETY: the context is bound, the place outlives the call.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut start, PIECE * PIECES, flags) })?;
        let start = NonNull::new(start.cast()).ok_or_else(|| Error::Device("cuMemHostAlloc gave nothing".into()))?;
        let mut locked = Locked { start, done: [ptr::null_mut(); PIECES], queued: [false; PIECES] };
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        for event in &mut locked.done {
            // SAFETY: as above.
            check("cuEventCreate", unsafe { sys::cuEventCreate(event, flags) })?;
        }
        Ok(locked)
    }

    /// `at` bytes into a piece.
    fn place(&self, piece: usize, at: usize) -> *mut u8 {
        assert!(piece < PIECES && at < PIECE, "beyond the locked memory");
        // SAFETY: within the allocation, as was just seen.
        unsafe { self.start.as_ptr().add(piece * PIECE + at) }
    }

    /// Notes that the copies of a piece are queued.
    fn mark(&mut self, piece: usize, stream: sys::CUstream) -> Result<(), Error> {
        // SAFETY: event and stream are alive.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.done[piece], stream) })?;
        self.queued[piece] = true;
        Ok(())
    }

    /// Waits until the copies of a piece are done.
    fn settle(&mut self, piece: usize) -> Result<(), Error> {
        if self.queued[piece] {
            // SAFETY: the event is alive.
            check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.done[piece]) })?;
            self.queued[piece] = false;
        }
        Ok(())
    }
}

impl<const PIECES: usize> Drop for Locked<PIECES> {
    fn drop(&mut self) {
        // SAFETY: made once and freed once; who drops it has waited for the stream and bound the context.
        unsafe {
            for event in self.done.into_iter().filter(|event| !event.is_null()) {
                let _ = sys::cuEventDestroy_v2(event);
            }
            let _ = sys::cuMemFreeHost(self.start.as_ptr().cast());
        }
    }
}

/// The way up and the way down.
pub(super) struct Staging {
    up: Locked<UPWARD>,
    down: Locked<DOWNWARD>,
    /// The piece that is being filled, and how far.
    piece: usize,
    filled: usize,
}

// SAFETY: the memory is this value's alone, the events are the driver's, which takes them from any thread.
unsafe impl Send for Staging {}

impl Staging {
    /// The context is bound.
    pub(super) fn new() -> Result<Staging, Error> {
        // What the host only writes need not go through its caches; what it reads must.
        let up = Locked::new(sys::CU_MEMHOSTALLOC_WRITECOMBINED)?;
        Ok(Staging { up, down: Locked::new(0)?, piece: 0, filled: 0 })
    }

    /// Queues a copy to the device; the bytes are the caller's again on return.
    pub(super) fn upload(&mut self, context: &Context, bytes: &[u8], to: u64) -> Result<(), Error> {
        let mut rest = bytes;
        let mut to = to;
        while !rest.is_empty() {
            if self.filled == PIECE {
                self.turn(context)?;
            }
            let (now, later) = rest.split_at(rest.len().min(PIECE - self.filled));
            let place = self.up.place(self.piece, self.filled);
            // SAFETY: the place has room for the part, as its length says; no copy of it is on its way; the device's memory
            // is the caller's to vouch for.
            let result = unsafe {
                ptr::copy_nonoverlapping(now.as_ptr(), place, now.len());
                sys::cuMemcpyHtoDAsync_v2(to, place.cast::<c_void>(), now.len(), context.stream)
            };
            check("cuMemcpyHtoDAsync", result)?;
            self.filled = (self.filled + now.len()).next_multiple_of(ALIGNMENT);
            to += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Goes on to the next piece, once its last copies are done.
    fn turn(&mut self, context: &Context) -> Result<(), Error> {
        self.up.mark(self.piece, context.stream)?;
        let next = (self.piece + 1) % UPWARD;
        self.up.settle(next)?;
        (self.piece, self.filled) = (next, 0);
        Ok(())
    }

    /// Copies from the device, after all that is queued.
    pub(super) fn download(&mut self, context: &Context, from: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let count = bytes.len();
        self.fetch(context, from, (0, count))?;
        for (number, part) in bytes.chunks_mut(PIECE).enumerate() {
            self.fetch(context, from, (number + 1, count))?;
            let piece = number % DOWNWARD;
            self.down.settle(piece)?;
            // SAFETY: the piece holds the part, whose copy is done.
            unsafe { ptr::copy_nonoverlapping(self.down.place(piece, 0), part.as_mut_ptr(), part.len()) };
        }
        Ok(())
    }

    /// Queues the copy of a part, of so many bytes in all; there may be none left.
    fn fetch(&mut self, context: &Context, from: u64, (number, count): (usize, usize)) -> Result<(), Error> {
        let at = number * PIECE;
        if at >= count {
            return Ok(());
        }
        let (piece, bytes) = (number % DOWNWARD, (count - at).min(PIECE));
        let place = self.down.place(piece, 0).cast::<c_void>();
        // SAFETY: the piece has room for the part, and was emptied; the device's memory is the caller's to vouch for.
        let result = unsafe { sys::cuMemcpyDtoHAsync_v2(place, from + at as u64, bytes, context.stream) };
        check("cuMemcpyDtoHAsync", result)?;
        self.down.mark(piece, context.stream)
    }
}
