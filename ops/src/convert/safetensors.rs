//! Writes safetensors, the same bytes for the same content: the format's own crate orders metadata as it comes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
}

impl Dtype {
    /// Bytes of one number.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 => 2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
        }
    }
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(crate) struct Tensor<'a> {
    /// Its name.
    pub(crate) name: String,
    /// Its numbers' type.
    pub(crate) dtype: Dtype,
    /// Its sizes, the slowest first.
    pub(crate) shape: Vec<usize>,
    /// Little-endian numbers, the last size the fastest.
    pub(crate) data: Cow<'a, [u8]>,
}

/// Writes a file: metadata by key, tensors by size of their numbers and then by name, so that each is aligned.
pub(crate) fn write(to: &Path, metadata: &BTreeMap<&str, String>, mut tensors: Vec<Tensor<'_>>) -> Result<()> {
    tensors.sort_by(|a, b| b.dtype.bytes().cmp(&a.dtype.bytes()).then_with(|| a.name.cmp(&b.name)));
    let mut names = BTreeSet::new();
    for tensor in &tensors {
        let numbers = tensor.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        if numbers.and_then(|numbers| numbers.checked_mul(tensor.dtype.bytes())) != Some(tensor.data.len()) {
            bail!("tensor {} of shape {:?} has {} bytes", tensor.name, tensor.shape, tensor.data.len());
        }
        if !names.insert(&tensor.name) {
            bail!("tensor {} is there twice", tensor.name);
        }
    }
    let header = header(metadata, &tensors);
    let file = File::create(to).with_context(|| format!("create {}", to.display()))?;
    let mut out = BufWriter::new(file);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    tensors.iter().try_for_each(|tensor| out.write_all(&tensor.data))?;
    // A power cut after the rename must not leave an empty file under the final name.
    out.into_inner()?.sync_all().with_context(|| format!("write {}", to.display()))
}

/// Padded with spaces, so that the data begin at a multiple of 8.
fn header(metadata: &BTreeMap<&str, String>, tensors: &[Tensor<'_>]) -> String {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let entries: Vec<String> = metadata.iter().map(|(key, value)| format!("{}:{}", text(key), text(value))).collect();
    let mut header = format!("{{\"__metadata__\":{{{}}}", entries.join(","));
    let mut from = 0;
    for Tensor { name, dtype, shape, data } in tensors {
        let to = from + data.len();
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        let (name, dtype, shape) = (text(name), dtype.name(), shape.join(","));
        write!(header, ",{name}:{{\"dtype\":\"{dtype}\",\"shape\":[{shape}],\"data_offsets\":[{from},{to}]}}")
            .expect("a string takes everything");
        from = to;
    }
    header.push('}');
    let padding = header.len().next_multiple_of(8) - header.len();
    header.extend(std::iter::repeat_n(' ', padding));
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> Tensor<'static> {
        let numbers: usize = shape.iter().product();
        let data = (0..numbers * dtype.bytes()).map(|byte| byte as u8).collect::<Vec<_>>();
        Tensor { name: name.into(), dtype, shape: shape.to_vec(), data: data.into() }
    }

    #[test]
    fn what_is_written_is_read_by_the_formats_own_crate_and_depends_on_no_order() {
        let file = std::env::temp_dir().join(format!("flotilla-safetensors-{}", std::process::id()));
        let metadata =
            BTreeMap::from([("family", "x".to_owned()), ("config", "{\"a\":\"\u{e9}\\\n\u{1}\"}".to_owned())]);
        let tensors = [tensor("b", Dtype::F16, &[3]), tensor("c", Dtype::F32, &[2, 1]), tensor("a", Dtype::F32, &[])];
        write(&file, &metadata, tensors.to_vec()).unwrap();
        let first = std::fs::read(&file).unwrap();
        write(&file, &metadata, tensors.iter().rev().cloned().collect()).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), first);
        let (bytes, read) = ::safetensors::SafeTensors::read_metadata(&first).unwrap();
        assert_eq!(bytes % 8, 0);
        let said = read.metadata().as_ref().unwrap();
        assert!(metadata.iter().all(|(key, value)| said[*key] == *value), "{said:?}");
        let all = ::safetensors::SafeTensors::deserialize(&first).unwrap();
        for wanted in &tensors {
            let found = all.tensor(&wanted.name).unwrap();
            assert_eq!((found.shape(), found.data()), (wanted.shape.as_slice(), &*wanted.data));
        }
        let lying = Tensor { shape: vec![4], ..tensors[0].clone() };
        assert!(write(&file, &metadata, vec![lying]).unwrap_err().to_string().contains("tensor b"));
        let twice = vec![tensors[0].clone(), tensors[0].clone()];
        assert!(write(&file, &metadata, twice).unwrap_err().to_string().contains("twice"));
        std::fs::remove_file(&file).unwrap();
    }
}
