//! A lease as it stands in the place of the answer to come.

use protocol::request::Priority;
use protocol::token::Token;

/// What a lease begins with. No answer does: MessagePack begins a map with a byte above all letters.
const MARK: &str = "lease/";

/// Who wants to compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its job.
    pub job: Token,
    /// How urgent it is.
    pub priority: Priority,
}

impl Claim {
    /// Whether this one follows the holder: another job, no less urgent.
    pub(super) fn waits_for(&self, holder: &Claim) -> bool {
        self.job != holder.job && holder.priority <= self.priority
    }

    /// As scripts read it, too: see `renew.lua`.
    pub(super) fn written(&self) -> String {
        format!("{MARK}{}/{}", self.job, self.priority.as_str())
    }

    /// `None` where the bytes are no lease.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (job, priority) = std::str::from_utf8(bytes).ok()?.strip_prefix(MARK)?.split_once('/')?;
        let priority = Priority::ALL.into_iter().find(|known| known.as_str() == priority)?;
        Some(Self { job: Token::parse("job", job).ok()?, priority })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(job: &str, priority: Priority) -> Claim {
        Claim { job: Token::parse("job", job).unwrap(), priority }
    }

    #[test]
    fn what_is_written_is_read() {
        for priority in Priority::ALL {
            let written = claim("a-1", priority);
            assert_eq!(Claim::read(written.written().as_bytes()), Some(written));
        }
        for other in ["", "lease/", "lease/a", "lease/a/urgent", "lease//batch", "\u{81}lease/a/batch"] {
            assert_eq!(Claim::read(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn nobody_waits_for_a_slower_lane_or_for_himself() {
        let (urgent, slow) = (claim("a", Priority::Interactive), claim("b", Priority::Batch));
        assert!(slow.waits_for(&urgent) && !urgent.waits_for(&slow));
        assert!(urgent.waits_for(&claim("c", Priority::Interactive)));
        assert!(!slow.waits_for(&slow) && !claim("b", Priority::Batch).waits_for(&claim("b", Priority::Interactive)));
    }
}
