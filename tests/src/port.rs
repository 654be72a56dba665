//! A port that is nobody else's while it is held, by which a server can be known before it starts.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use rand::Rng;

/// Under the ports that a system hands to outgoing connections, any of which could sit on a free one before its
/// server starts.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

/// A port of this machine. The lock on its file keeps it from the other tests, whose processes choose at the same time.
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Takes one at which nobody listens.
    ///
    /// # Panics
    /// When there is none, or the locks cannot be written.
    #[must_use]
    pub fn take() -> Self {
        let folder = std::env::temp_dir().join("flotilla-ports");
        std::fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let first = rand::rng().random_range(RANGE);
        (first..RANGE.end)
            .chain(RANGE.start..first)
            .find_map(|number| Self::hold(number, &folder))
            .expect("a free port below those of outgoing connections")
    }

    fn hold(number: u16, folder: &Path) -> Option<Self> {
        let lock = File::create(folder.join(number.to_string())).ok()?;
        lock.try_lock().ok()?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        Some(Self { number, _lock: lock })
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Where it is reached.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }
}
