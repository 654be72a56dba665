//! Writes safetensors, the same bytes for the same content: the format's own crate orders metadata as it comes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use safetensors::tensor::Dtype;
use serde::Serialize;

use crate::Error;

/// What a header's length is a multiple of, so that tensors are aligned.
const ALIGNMENT: usize = 8;

/// A tensor as a file has it.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Its name.
    pub name: String,
    /// Its numbers' type.
    pub dtype: Dtype,
    /// Its sizes, the slowest first.
    pub shape: Vec<usize>,
    /// Little-endian numbers, the last size the fastest.
    pub data: Cow<'a, [u8]>,
}

/// Writes a file, and waits until the disk has it: texts of the metadata by key; tensors by size of their numbers, the
/// largest first, and then by name.
///
/// # Errors
/// [`Error::Io`] when it cannot be written.
///
/// # Panics
/// When a tensor's data are not of its shape, or a name is there twice: whoever makes them knows.
pub fn write(to: &Path, metadata: &BTreeMap<&str, &str>, mut entries: Vec<Entry<'_>>) -> Result<(), Error> {
    entries.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));
    let header = header(metadata, &entries);
    let put = || {
        let mut out = BufWriter::new(File::create(to)?);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        entries.iter().try_for_each(|entry| out.write_all(&entry.data))?;
        // A power cut after the rename must not leave an empty file under the final name.
        out.into_inner()?.sync_all()
    };
    put().map_err(|source| Error::Io { path: to.to_path_buf(), source })
}

/// Declared fields and sorted keys: a map of JSON orders as its crate's features say.
#[derive(Serialize)]
#[serde(untagged)]
enum Described<'a> {
    Texts(&'a BTreeMap<&'a str, &'a str>),
    Tensor { dtype: String, shape: &'a [usize], data_offsets: [usize; 2] },
}

fn header(metadata: &BTreeMap<&str, &str>, entries: &[Entry<'_>]) -> String {
    let mut header = BTreeMap::from([("__metadata__", Described::Texts(metadata))]);
    let mut from = 0;
    for Entry { name, dtype, shape, data } in entries {
        let bits = shape.iter().product::<usize>() * dtype.bitsize();
        assert!(bits == data.len() * 8, "tensor {name} of shape {shape:?} has {} bytes", data.len());
        let data_offsets = [from, from + data.len()];
        let described = Described::Tensor { dtype: dtype.to_string(), shape, data_offsets };
        assert!(header.insert(name, described).is_none(), "tensor {name} is there once");
        from += data.len();
    }
    let mut header = serde_json::to_string(&header).expect("texts and numbers");
    let padding = header.len().next_multiple_of(ALIGNMENT) - header.len();
    header.extend(std::iter::repeat_n(' ', padding));
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Format, quantise};
    use crate::tensors::Tensors;

    fn entry(name: &str, dtype: Dtype, shape: &[usize], data: Vec<u8>) -> Entry<'static> {
        Entry { name: name.into(), dtype, shape: shape.to_vec(), data: data.into() }
    }

    #[test]
    fn what_is_written_is_read_and_depends_on_no_order() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.safetensors");
        let metadata = BTreeMap::from([("family", "x"), ("config", "{\"a\":\"\u{e9}\\\n\u{1}\"}")]);
        let rounded = quantise(&[0.5; 64]);
        let entries = [
            entry("b", Dtype::U8, &[1, 2, 34], rounded.clone()),
            entry("c", Dtype::F16, &[3], vec![1; 6]),
            entry("a", Dtype::F32, &[2, 1], vec![2; 8]),
        ];
        write(&file, &metadata, entries.to_vec()).unwrap();
        let first = std::fs::read(&file).unwrap();
        write(&file, &metadata, entries.iter().rev().cloned().collect()).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), first);
        let tensors = Tensors::parse(first).unwrap();
        assert!(tensors.start.is_multiple_of(ALIGNMENT));
        let (stored, texts) = tensors.stored();
        assert_eq!(texts, metadata);
        for (stored, written) in stored.iter().zip([&entries[2], &entries[0], &entries[1]]) {
            assert_eq!((&stored.name, stored.dtype, &stored.shape), (&written.name, written.dtype, &written.shape));
            assert_eq!(stored.data, written.data);
        }
        let matrix = tensors.matrix("b", 1, 64).unwrap();
        assert_eq!((matrix.format, matrix.data), (Format::Q8_0, rounded.as_slice()));
        let missing = folder.path().join("no/x");
        assert!(matches!(write(&missing, &metadata, Vec::new()), Err(Error::Io { .. })));
    }
}
