//! Model files in safetensors form, read with distrust: texts and tensors by name, borrowed from the map.
//!
//! One file holds all that a model is, so that one digest covers it: beside the tensors, `__metadata__` has the keys
//! [`FAMILY`], [`CONFIG`], [`TOKENIZER`] and [`LABELS`]. The header is checked at open, against caps and against the
//! bytes that are there; no tensor's page is touched before it is asked for.
//!
//! The form has no blocks under a scale. A matrix of them, as [`Format::Q8_0`], is (rows, blocks, bytes of a block) of
//! unsigned bytes, and is found here as (rows, columns).

mod write;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors, TensorInfo};

use crate::Error;
use crate::backend::Matrix;
use crate::map::{Bytes, Map};
use crate::quant::{Format, dequantise_row};
pub use write::{Entry, write};

/// Key of the network's family: `bert`, `efficientnet`, `whisper`, `clip`.
pub const FAMILY: &str = "family";
/// Key of the network's numbers: JSON.
pub const CONFIG: &str = "config";
/// Key of the text of a `tokenizer.json`.
pub const TOKENIZER: &str = "tokenizer";
/// Key of the names of classes: a JSON array of strings.
pub const LABELS: &str = "labels";

/// Bytes of a header: above a tokenizer of a quarter million tokens, below what would hurt to read.
const HEADER_BYTES_MAX: u64 = 32 << 20;
/// Tensors of a file.
const TENSORS_MAX: usize = 1 << 14;
/// Dimensions of a tensor.
const RANK_MAX: usize = 8;
/// Names of classes.
const LABELS_MAX: usize = 1 << 16;
/// Bytes before the header: its length.
const PREFIX: usize = size_of::<u64>();

/// A model file, checked.
pub struct Tensors {
    bytes: Bytes,
    header: Metadata,
    /// Rows and columns of matrices in blocks.
    blocks: HashMap<String, [usize; 2]>,
    /// Where the tensors begin.
    start: usize,
}

/// One tensor of a file.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Slowest dimension first: a matrix is `[rows, columns]`.
    pub shape: &'a [usize],
    /// How its numbers are stored: F32, F16, BF16 or Q8_0.
    pub format: Format,
    /// Exactly its numbers, little-endian, at no particular alignment.
    pub data: &'a [u8],
}

impl Tensors {
    /// Maps and checks the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Malformed`] when it breaks the format or a cap.
    pub fn open(path: &Path) -> Result<Arc<Tensors>, Error> {
        match Tensors::read(Bytes::Mapped(Map::open(path)?)) {
            Ok(tensors) => Ok(Arc::new(tensors)),
            Err(Error::Malformed(why)) => Err(Error::Malformed(format!("{}: {why}", path.display()))),
            Err(other) => Err(other),
        }
    }

    /// Checks a file that is in memory already.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it breaks the format or a cap.
    pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Tensors, Error> {
        Tensors::read(Bytes::Owned(bytes.into()))
    }

    fn read(bytes: Bytes) -> Result<Tensors, Error> {
        let all = &bytes;
        let prefix = all.first_chunk().ok_or_else(|| Error::Malformed("shorter than its header's length".into()))?;
        let claimed = u64::from_le_bytes(*prefix);
        if claimed > HEADER_BYTES_MAX {
            return Err(Error::Malformed(format!("a header of {claimed} bytes, more than {HEADER_BYTES_MAX}")));
        }
        let (len, header) = SafeTensors::read_metadata(all).map_err(|error| Error::Malformed(said(&error)))?;
        let infos = header.tensors();
        if infos.len() > TENSORS_MAX {
            return Err(Error::Malformed(format!("{} tensors, more than {TENSORS_MAX}", infos.len())));
        }
        if let Some(info) = infos.values().find(|info| info.shape.len() > RANK_MAX) {
            return Err(Error::Malformed(format!("{} dimensions, more than {RANK_MAX}", info.shape.len())));
        }
        let blocks = infos.iter().filter_map(|(name, info)| Some((name.clone(), in_blocks(info)?))).collect();
        drop(infos);
        Ok(Tensors { header, blocks, start: PREFIX + len, bytes })
    }

    /// A text of the metadata, if the file has it.
    #[must_use]
    pub fn find_text(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// A text of the metadata.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is absent.
    pub fn text(&self, key: &str) -> Result<&str, Error> {
        self.find_text(key).ok_or_else(|| Error::Malformed(format!("metadata `{key}` is missing")))
    }

    /// The network's numbers, read as `T`; what `T` does not name is ignored.
    ///
    /// # Errors
    /// [`Error::Malformed`] when they are absent, or not what `T` needs.
    pub fn config<T: serde::de::DeserializeOwned>(&self) -> Result<T, Error> {
        let text = self.text(CONFIG)?;
        serde_json::from_str(text).map_err(|error| Error::Malformed(format!("metadata `{CONFIG}`: {error}")))
    }

    /// Names of classes; none where the file has none.
    ///
    /// # Errors
    /// [`Error::Malformed`] when they are not a JSON array of texts, or too many.
    pub fn labels(&self) -> Result<Vec<String>, Error> {
        let Some(text) = self.find_text(LABELS) else { return Ok(Vec::new()) };
        let labels: Vec<String> =
            serde_json::from_str(text).map_err(|error| Error::Malformed(format!("metadata `{LABELS}`: {error}")))?;
        match labels.len() {
            0..=LABELS_MAX => Ok(labels),
            many => Err(Error::Malformed(format!("{many} labels, more than {LABELS_MAX}"))),
        }
    }

    /// Whether the file has a tensor of this name, of whatever type.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// Whether a tensor is stored so.
    #[must_use]
    pub fn holds(&self, format: Format) -> bool {
        self.floats().any(|(_, tensor)| tensor.format == format)
    }

    /// Numbers in all tensors.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let numbers = |(name, info): (String, &TensorInfo)| {
            let shape = self.blocks.get(&name).map_or(info.shape.as_slice(), <[usize; 2]>::as_slice);
            shape.iter().product::<usize>() as u64
        };
        self.header.tensors().into_iter().map(numbers).fold(0, u64::saturating_add)
    }

    /// Every tensor as the file has it, by name, and every text of its metadata.
    #[must_use]
    pub fn stored(&self) -> (Vec<Entry<'_>>, BTreeMap<&str, &str>) {
        let entry = |(name, info): (String, &TensorInfo)| Entry {
            name,
            dtype: info.dtype,
            shape: info.shape.clone(),
            data: Cow::Borrowed(self.data(info)),
        };
        let mut entries: Vec<Entry<'_>> = self.header.tensors().into_iter().map(entry).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let texts = self.header.metadata().iter().flatten().map(|(key, text)| (key.as_str(), text.as_str()));
        (entries, texts.collect())
    }

    /// All tensors of floats with their names, in no order.
    pub fn floats(&self) -> impl Iterator<Item = (String, Tensor<'_>)> {
        let names = self.header.tensors().into_keys();
        names.filter_map(|name| self.tensor(&name).ok().map(|tensor| (name, tensor)))
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.header.data_len() as u64
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::Malformed`] when there is none, [`Error::Unsupported`] when it is not of floats.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        let info = self.header.info(name).ok_or_else(|| Error::Malformed(format!("tensor `{name}` is missing")))?;
        let format = match info.dtype {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::BF16 => Format::BF16,
            Dtype::U8 if self.blocks.contains_key(name) => Format::Q8_0,
            other => return Err(Error::Unsupported(format!("tensor `{name}` as {other}"))),
        };
        let shape = self.blocks.get(name).map_or(info.shape.as_slice(), <[usize; 2]>::as_slice);
        Ok(Tensor { shape, format, data: self.data(info) })
    }

    fn data(&self, info: &TensorInfo) -> &[u8] {
        let (from, to) = info.data_offsets;
        &self.bytes[self.start + from..self.start + to]
    }

    /// The tensor of this name, which has to have this shape.
    ///
    /// # Errors
    /// As [`Tensors::tensor`]; [`Error::Malformed`] for another shape.
    pub fn shaped(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, Error> {
        let tensor = self.tensor(name)?;
        match tensor.shape == shape {
            true => Ok(tensor),
            false => Err(Error::Malformed(format!("tensor `{name}` has shape {:?}, not {shape:?}", tensor.shape))),
        }
    }

    /// A matrix of `rows` rows, to be packed.
    ///
    /// # Errors
    /// As [`Tensors::shaped`].
    pub fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix<'_>, Error> {
        let Tensor { format, data, .. } = self.shaped(name, &[rows, columns])?;
        Ok(Matrix { format, columns, data })
    }

    /// The numbers of a tensor, slowest dimension first.
    ///
    /// # Errors
    /// As [`Tensors::shaped`].
    pub fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        Ok(self.shaped(name, shape)?.numbers())
    }
}

impl Tensor<'_> {
    /// Its numbers, slowest dimension first.
    #[must_use]
    pub fn numbers(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.data.len() / self.format.block_bytes() * self.format.block_len()];
        dequantise_row(self.format, self.data, &mut numbers);
        numbers
    }
}

impl std::fmt::Debug for Tensors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tensors")
            .field("bytes", &&self.bytes.len())
            .field("tensors", &self.header.tensors().len())
            .finish()
    }
}

/// Numbers as [`Matrix::data`] holds them in single precision: for weights that are computed before they are packed.
#[must_use]
pub fn little_endian(numbers: &[f32]) -> Vec<u8> {
    // Number by number and not byte by byte: a batch of pictures is many.
    let mut bytes = vec![0; size_of_val(numbers)];
    bytes.as_chunks_mut().0.iter_mut().zip(numbers).for_each(|(bytes, number)| *bytes = number.to_le_bytes());
    bytes
}

/// Rows and columns of a tensor that is a matrix in blocks.
fn in_blocks(info: &TensorInfo) -> Option<[usize; 2]> {
    match (info.dtype, info.shape.as_slice()) {
        (Dtype::U8, [rows, blocks, bytes]) if *bytes == Format::Q8_0.block_bytes() => {
            Some([*rows, blocks.saturating_mul(Format::Q8_0.block_len())])
        }
        _ => None,
    }
}

/// What is wrong, in a line whatever the file's names are.
fn said(error: &SafeTensorError) -> String {
    const CHARS: usize = 200;
    error.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::tensors_file;

    fn sample() -> Vec<u8> {
        let metadata = [(FAMILY, "bert"), (CONFIG, r#"{"width": 3}"#), (LABELS, r#"["cat", "dog"]"#)];
        tensors_file(&metadata, &[("m", &[2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.5]), ("v", &[2], vec![-1.0, 0.5])])
    }

    /// A file whose header is `json`, with `len` bytes of tensors.
    fn file(json: &str, len: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.bytes());
        bytes.resize(bytes.len() + len, 0x3c);
        bytes
    }

    fn malformed<T>(result: Result<T, Error>) -> bool {
        matches!(result, Err(Error::Malformed(_)))
    }

    #[test]
    fn texts_and_numbers_are_found_by_name() {
        #[derive(serde::Deserialize)]
        struct Config {
            width: usize,
        }
        let tensors = Tensors::parse(sample()).unwrap();
        assert_eq!(tensors.text(FAMILY).unwrap(), "bert");
        assert_eq!(tensors.config::<Config>().unwrap().width, 3);
        assert_eq!(tensors.labels().unwrap(), ["cat", "dog"]);
        assert_eq!(tensors.numbers("m", &[2, 3]).unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.5]);
        let matrix = tensors.matrix("m", 2, 3).unwrap();
        assert_eq!((matrix.format, matrix.columns), (Format::F32, 3));
        assert_eq!(matrix.data, little_endian(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.5]));
        assert_eq!((tensors.parameters(), tensors.has("v"), tensors.has("w")), (8, true, false));
    }

    #[test]
    fn what_is_not_there_or_of_another_shape_is_malformed() {
        let tensors = Tensors::parse(sample()).unwrap();
        assert!(malformed(tensors.text(TOKENIZER)));
        assert!(malformed(tensors.tensor("w")));
        assert!(malformed(tensors.numbers("m", &[3, 2])) && malformed(tensors.matrix("v", 1, 2)));
        assert!(malformed(tensors.config::<Vec<u8>>()));
    }

    #[test]
    fn halves_are_widened_and_integers_refused() {
        let entry = |name: &str, kind: &str, from: usize, to: usize| {
            format!(r#""{name}":{{"dtype":"{kind}","shape":[2],"data_offsets":[{from},{to}]}}"#)
        };
        let json = [entry("h", "F16", 0, 4), entry("b", "BF16", 4, 8), entry("i", "I16", 8, 12)].join(",");
        let tensors = Tensors::parse(file(&format!("{{{json}}}"), 12)).unwrap();
        let names: std::collections::BTreeSet<String> = tensors.floats().map(|(name, _)| name).collect();
        assert!(names.iter().eq(["b", "h"]), "{names:?}");
        assert_eq!(tensors.numbers("h", &[2]).unwrap(), [half::f16::from_bits(0x3c3c).to_f32(); 2]);
        assert_eq!(tensors.numbers("b", &[2]).unwrap(), [half::bf16::from_bits(0x3c3c).to_f32(); 2]);
        assert!(matches!(tensors.tensor("i"), Err(Error::Unsupported(_))));
        assert!(tensors.labels().unwrap().is_empty());
    }

    #[test]
    fn blocks_are_a_matrix_of_rounded_numbers() {
        let entry = |shape: &str| format!(r#"{{"x":{{"dtype":"U8","shape":{shape},"data_offsets":[0,136]}}}}"#);
        let tensors = Tensors::parse(file(&entry("[2,2,34]"), 136)).unwrap();
        let number = half::f16::from_bits(0x3c3c).to_f32() * f32::from(0x3c_u8);
        assert_eq!(tensors.numbers("x", &[2, 64]).unwrap(), [number; 128]);
        let matrix = tensors.matrix("x", 2, 64).unwrap();
        assert_eq!((matrix.format, matrix.columns, matrix.data.len()), (Format::Q8_0, 64, 136));
        assert!(malformed(tensors.matrix("x", 2, 68)) && malformed(tensors.matrix("x", 4, 34)));
        assert_eq!((tensors.parameters(), tensors.holds(Format::Q8_0), tensors.holds(Format::F32)), (128, true, false));
        for bytes in ["[136]", "[4,34]", "[2,34,2]", "[1,2,2,34]"] {
            let tensors = Tensors::parse(file(&entry(bytes), 136)).unwrap();
            assert!(matches!(tensors.tensor("x"), Err(Error::Unsupported(_))), "{bytes}");
        }
        let nothing = r#"{"x":{"dtype":"U8","shape":[0,576460752303423488,34],"data_offsets":[0,0]}}"#;
        assert_eq!(Tensors::parse(file(nothing, 0)).unwrap().parameters(), 0);
    }

    #[test]
    fn lies_of_a_header_are_malformed() {
        let one = |shape: &str, from: u64, to: u64| {
            format!(r#"{{"x":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
        };
        assert!(Tensors::parse(file(&one("[2]", 0, 8), 8)).is_ok());
        for (json, len) in [
            (one("[2]", 0, 8), 7),
            (one("[2]", 0, 8), 9),
            (one("[2]", 4, 12), 12),
            (one("[2]", 8, 0), 8),
            (one("[3]", 0, 8), 8),
            (one("[4611686018427387904, 8]", 0, 0), 0),
            (one("[1,1,1,1,1,1,1,1,1]", 0, 4), 4),
            (one("[2]", 0, u64::MAX), 8),
            ("[".repeat(100_000), 0),
            (String::new(), 0),
        ] {
            assert!(malformed(Tensors::parse(file(&json, len))), "{}", &json[..json.len().min(80)]);
        }
        for claimed in [HEADER_BYTES_MAX, HEADER_BYTES_MAX + 1, u64::MAX] {
            assert!(malformed(Tensors::parse(claimed.to_le_bytes())));
        }
        assert!(malformed(Tensors::parse([])));
    }
}
