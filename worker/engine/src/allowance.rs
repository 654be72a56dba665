//! How much may be done at once on a device that turned out to have less room than was thought.

/// Successes until an allowance is whole again, at most.
const GROWTH: usize = 64;

/// Units that may be tried together. What others hold of a device comes and goes, so it shrinks at once and grows back
/// little by little.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    most: usize,
    now: usize,
}

impl Allowance {
    /// All of it.
    pub(crate) fn whole(most: usize) -> Self {
        Self { most, now: most }
    }

    /// So many now.
    pub(crate) fn now(self) -> usize {
        self.now
    }

    /// There was no room for so many: half of them may be tried.
    pub(crate) fn halve(&mut self, tried: usize) {
        self.now = self.now.min(tried / 2);
    }

    /// There was room.
    pub(crate) fn grow(&mut self) {
        self.now = self.now.saturating_add(self.most.div_ceil(GROWTH)).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shrinks_at_once_and_is_whole_again_in_time() {
        for most in [1, 5, 64, 1000, usize::MAX] {
            let mut allowance = Allowance::whole(most);
            allowance.halve(4);
            assert_eq!(allowance.now(), most.min(2));
            allowance.halve(30);
            assert_eq!(allowance.now(), most.min(2), "what was tried before it shrank does not raise it");
            (0..GROWTH).for_each(|_| allowance.grow());
            assert_eq!(allowance.now(), most);
        }
    }
}
