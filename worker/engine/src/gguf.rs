//! GGUF model files, read with distrust: metadata and tensors by name, borrowed from the map.
//!
//! Everything is checked at open, and checked before it is allocated: counts against caps and against the bytes that
//! are left, lengths, nesting, alignment, offsets and sizes, duplicate names. What follows may rely on it. Opening
//! reads the header only; no tensor's page is touched, and long arrays are decoded when asked for.
//! Knows nothing of what keys or tensors mean: that is the model's and the tokenizer's business.

mod build;
mod cursor;
mod parse;
mod value;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::Error;
use crate::map::{Bytes, Map};
use crate::quant::Format;

#[doc(hidden)]
pub use build::GgufBuilder;
pub use value::{Array, Kind, Value};

use parse::Entry;
use value::Slot;

/// A model file, checked.
pub struct Gguf {
    bytes: Bytes,
    metadata: HashMap<Box<str>, Slot>,
    /// In the order of the file.
    tensors: Vec<Entry>,
    /// Name to place in `tensors`.
    index: HashMap<Box<str>, usize>,
}

/// One tensor of a file.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Fastest dimension first: a matrix is `[cols, rows]`. One to four dimensions, none zero.
    pub shape: &'a [u64],
    /// How its numbers are stored.
    pub format: Format,
    /// Exactly its blocks; aligned as the file says, at least to 8 bytes from the file's beginning.
    pub data: &'a [u8],
}

impl Tensor<'_> {
    /// How many numbers it holds.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

impl Gguf {
    /// Maps and checks the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Malformed`] when it breaks the format or a cap.
    pub fn open(path: &Path) -> Result<Arc<Gguf>, Error> {
        let bytes = Bytes::Mapped(Map::open(path)?);
        match Gguf::read(bytes) {
            Ok(gguf) => Ok(Arc::new(gguf)),
            Err(Error::Malformed(why)) => Err(Error::Malformed(format!("{}: {why}", path.display()))),
            Err(other) => Err(other),
        }
    }

    /// Checks a file that is in memory already.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it breaks the format or a cap.
    pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Gguf, Error> {
        Gguf::read(Bytes::Owned(bytes.into()))
    }

    fn read(bytes: Bytes) -> Result<Gguf, Error> {
        let header = parse::header(&bytes)?;
        Ok(Gguf { bytes, metadata: header.metadata, tensors: header.tensors, index: header.index })
    }

    /// The value of `key`, if the file has it.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        self.metadata.get(key).map(|slot| slot.resolve(&self.bytes))
    }

    /// All keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(AsRef::as_ref)
    }

    /// An integer of any width that fits.
    ///
    /// # Errors
    /// [`Error::Malformed`] when `key` is absent or of another type; so for all typed readers.
    pub fn u32(&self, key: &str) -> Result<u32, Error> {
        self.typed(key, "an integer of 32 bits", |value| match value {
            Value::Unsigned(n) => u32::try_from(n).ok(),
            Value::Signed(n) => u32::try_from(n).ok(),
            _ => None,
        })
    }

    /// A float.
    ///
    /// # Errors
    /// As [`Gguf::u32`].
    pub fn f32(&self, key: &str) -> Result<f32, Error> {
        self.typed(key, "a float", |value| match value {
            #[allow(clippy::cast_possible_truncation)] // files hold 32-bit floats
            Value::Float(x) => Some(x as f32),
            _ => None,
        })
    }

    /// A truth value.
    ///
    /// # Errors
    /// As [`Gguf::u32`].
    pub fn bool(&self, key: &str) -> Result<bool, Error> {
        self.typed(key, "a bool", |value| match value {
            Value::Bool(truth) => Some(truth),
            _ => None,
        })
    }

    /// A text.
    ///
    /// # Errors
    /// As [`Gguf::u32`].
    pub fn str(&self, key: &str) -> Result<&str, Error> {
        self.typed(key, "a string", |value| match value {
            Value::Text(text) => Some(text),
            _ => None,
        })
    }

    /// An array of texts, decoded now.
    ///
    /// # Errors
    /// As [`Gguf::u32`]; also when an element is not UTF-8.
    pub fn strings(&self, key: &str) -> Result<Vec<&str>, Error> {
        self.typed(key, "an array of UTF-8 strings", |value| match value {
            Value::Array(array) => array.strings(),
            _ => None,
        })
    }

    /// An array of unsigned integers of 32 bits, decoded now.
    ///
    /// # Errors
    /// As [`Gguf::u32`].
    pub fn u32s(&self, key: &str) -> Result<Vec<u32>, Error> {
        self.typed(key, "an array of u32", |value| match value {
            Value::Array(array) => array.words(Kind::U32, u32::from_le_bytes),
            _ => None,
        })
    }

    /// An array of signed integers of 32 bits, decoded now.
    ///
    /// # Errors
    /// As [`Gguf::u32`].
    pub fn i32s(&self, key: &str) -> Result<Vec<i32>, Error> {
        self.typed(key, "an array of i32", |value| match value {
            Value::Array(array) => array.words(Kind::I32, i32::from_le_bytes),
            _ => None,
        })
    }

    /// An array of floats of 32 bits, decoded now.
    ///
    /// # Errors
    /// As [`Gguf::u32`].
    pub fn f32s(&self, key: &str) -> Result<Vec<f32>, Error> {
        self.typed(key, "an array of f32", |value| match value {
            Value::Array(array) => array.words(Kind::F32, f32::from_le_bytes),
            _ => None,
        })
    }

    fn typed<'a, T>(&'a self, key: &str, wanted: &str, read: impl FnOnce(Value<'a>) -> Option<T>) -> Result<T, Error> {
        let value = self.value(key).ok_or_else(|| Error::Malformed(format!("key `{key}` is missing")))?;
        read(value).ok_or_else(|| Error::Malformed(format!("key `{key}` is not {wanted}")))
    }

    /// Whether the file has a tensor of this name, of whatever format.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::Malformed`] when there is none, [`Error::Unsupported`] when this engine does not run its format.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        let place = self.index.get(name).ok_or_else(|| Error::Malformed(format!("tensor `{name}` is missing")))?;
        let entry = &self.tensors[*place];
        self.resolve(entry)
            .ok_or_else(|| Error::Unsupported(format!("tensor `{name}` has format number {}", entry.format)))
    }

    /// All tensors whose format this engine runs, in the order of the file.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.tensors.iter().filter_map(|entry| self.resolve(entry))
    }

    fn resolve<'a>(&'a self, entry: &'a Entry) -> Option<Tensor<'a>> {
        let (format, range) = entry.known.clone()?;
        Some(Tensor { name: &entry.name, shape: &entry.dims[..entry.rank], format, data: &self.bytes[range] })
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gguf")
            .field("bytes", &&self.bytes.len())
            .field("keys", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .finish()
    }
}

#[cfg(test)]
mod tests;
