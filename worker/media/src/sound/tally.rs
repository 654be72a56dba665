//! What was read so far, against what reading a sound may cost, whatever tracks and tables a file has.

use std::time::{Duration, Instant};

use crate::Error;

/// Packets that may fail before the sound is given up: noise that looks like a format here and there.
const FAILED_MAX: u64 = 1_000;
/// Packets read at most; a clip of 4 hours in frames of 2.5 ms has fewer.
const PACKETS_MAX: u64 = 8_000_000;
/// Packets of other tracks; a film of 4 hours with 120 pictures a second has fewer.
const PASSED_OVER_MAX: u64 = 2_000_000;
/// How often a file may be read over: packets of a table may all lie in the same place, those of a real file lie beside
/// each other.
const READ_OVER_MAX: u64 = 2;

/// What decoding may take, however little comes of it: a table of a file may make each of its packets cost what all of
/// them should.
const TIME: Duration = Duration::from_secs(60);
/// It may take this part of the time that the sound lasts, beside: the slowest machine is a few times faster than that.
const TIME_PART: u32 = 10;

/// Counts packets, and the time that they take.
#[derive(Debug)]
pub(super) struct Tally {
    packets: u64,
    passed_over: u64,
    failed: u64,
    /// Bytes that packets may still have.
    bytes_left: u64,
    started: Instant,
    /// See [`TIME`].
    time: Duration,
}

impl Tally {
    /// Of a file of so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let bytes_left = bytes as u64 * READ_OVER_MAX;
        Self { packets: 0, passed_over: 0, failed: 0, bytes_left, started: Instant::now(), time: TIME }
    }

    /// A packet of so many bytes, of any track, when so much of the sound was heard.
    pub(super) fn read(&mut self, bytes: usize, heard: Duration) -> Result<(), Error> {
        if self.started.elapsed() > self.time + heard / TIME_PART {
            return Err(Error::TooLarge {
                what: format!("decoding the sound takes too long: {} seconds of it were decoded", heard.as_secs()),
                limit: format!("{} seconds and 1/{TIME_PART} of the sound", self.time.as_secs()),
            });
        }
        self.packets += 1;
        if self.packets > PACKETS_MAX {
            return Err(too_many(PACKETS_MAX));
        }
        let left = self.bytes_left.checked_sub(bytes as u64);
        self.bytes_left = left.ok_or_else(|| Error::Malformed("the packets of the sound overlap".into()))?;
        Ok(())
    }

    /// It belongs to another track.
    pub(super) fn passed_over(&mut self) -> Result<(), Error> {
        self.passed_over += 1;
        if self.passed_over > PASSED_OVER_MAX { Err(too_many(PASSED_OVER_MAX)) } else { Ok(()) }
    }

    /// It cannot be decoded.
    pub(super) fn failed(&mut self) -> Result<(), Error> {
        self.failed += 1;
        if self.failed <= FAILED_MAX {
            return Ok(());
        }
        Err(Error::Malformed(format!("{} packets of the sound cannot be decoded", self.failed)))
    }

    /// There are no more: at least half of the sound's must have been decoded.
    pub(super) fn finish(&self) -> Result<(), Error> {
        let (failed, of) = (self.failed, self.packets - self.passed_over);
        if failed * 2 <= of {
            return Ok(());
        }
        Err(Error::Malformed(format!("{failed} of the {of} packets of the sound cannot be decoded")))
    }
}

fn too_many(limit: u64) -> Error {
    Error::TooLarge { what: "the sound's file has too many packets".into(), limit: format!("{limit} packets") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the sound.
    const SOME: Duration = Duration::from_secs(1);

    #[test]
    fn what_comes_of_the_packets_is_worth_their_time() {
        let mut tally = Tally { time: Duration::ZERO, ..Tally::new(0) };
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(tally.read(0, Duration::from_secs(3_600)), Ok(()));
        let error = tally.read(0, Duration::ZERO).unwrap_err();
        assert!(matches!(&error, Error::TooLarge { limit, .. } if limit.contains("seconds")), "{error}");
    }

    #[test]
    fn packets_that_lie_upon_each_other_are_no_sound() {
        let mut tally = Tally::new(100);
        for _ in 0..2 {
            assert_eq!(tally.read(100, SOME), Ok(()));
        }
        assert!(matches!(tally.read(1, SOME), Err(Error::Malformed(_))));
    }

    #[test]
    fn other_tracks_are_passed_over_for_a_while() {
        let mut tally = Tally::new(0);
        for _ in 0..PASSED_OVER_MAX {
            assert_eq!(tally.read(0, SOME).and_then(|()| tally.passed_over()), Ok(()));
        }
        assert!(matches!(tally.passed_over(), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn half_of_the_packets_may_fail_and_not_one_more() {
        let mut tally = Tally::new(0);
        (0..2).for_each(|_| tally.read(0, SOME).unwrap());
        tally.failed().unwrap();
        assert_eq!(tally.finish(), Ok(()));
        tally.failed().unwrap();
        assert!(matches!(tally.finish(), Err(Error::Malformed(_))));
    }
}
