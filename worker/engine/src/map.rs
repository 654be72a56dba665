//! Model files as memory: read-only maps, so that pages come in when a tensor is touched and are shared by processes.
#![allow(unsafe_code)] // a map is only as constant as its file; the one block below says why ours is

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use crate::Error;

/// A file's bytes, mapped read-only.
#[derive(Debug)]
pub struct Map {
    inner: memmap2::Mmap,
}

impl Map {
    /// Maps the whole file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Map, Error> {
        let io = |source| Error::Io { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is private and read-only. Its bytes change only if another process writes the file in place;
        // model files are written under a temporary name, renamed into place and never edited afterwards, and every
        // reader here copies or bounds-checks, so that even torn bytes could only give wrong numbers.
        let inner = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Ok(Map { inner })
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.inner
    }
}

/// A model file's bytes, wherever they are.
pub(crate) enum Bytes {
    Mapped(Map),
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}
