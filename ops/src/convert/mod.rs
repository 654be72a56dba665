//! What others publish becomes one safetensors file that holds everything a worker needs: weights, and as strings of its
//! metadata `family`, `config`, `tokenizer` and `labels`. The same input gives the same bytes, so the result is pinned.

mod bert;
mod ctranslate2;
mod efficientnet;
mod pickle;
mod safetensors;
mod torch;
mod whisper;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use runtime::config::Convert;

/// No weights that are converted come near this; they are held in memory meanwhile.
const WEIGHTS_BYTES_MAX: u64 = 2 << 30;
/// A configuration or a tokenizer.
const TEXT_BYTES_MAX: u64 = 32 << 20;

/// What a conversion reads.
#[derive(Clone, Debug)]
pub(crate) struct Material {
    /// The file of the weights, its parts joined.
    pub(crate) weights: PathBuf,
    /// Further files, by what they are.
    pub(crate) files: BTreeMap<String, PathBuf>,
}

impl Material {
    fn weights(&self) -> Result<Vec<u8>> {
        read(&self.weights, WEIGHTS_BYTES_MAX)
    }

    fn text(&self, what: &str) -> Result<String> {
        let file = self.files.get(what).with_context(|| format!("no file is named as its {what}"))?;
        String::from_utf8(read(file, TEXT_BYTES_MAX)?).with_context(|| format!("its {what} is no text"))
    }

    fn json<T: serde::de::DeserializeOwned>(&self, what: &str) -> Result<T> {
        serde_json::from_str(&self.text(what)?).with_context(|| format!("its {what} is not what is expected"))
    }
}

/// Makes the model's file at `to`.
pub(crate) fn convert(kind: Convert, material: &Material, to: &Path) -> Result<()> {
    match kind {
        Convert::Bert => bert::convert(material, to),
        Convert::Efficientnet => efficientnet::convert(material, to),
        Convert::Whisper => whisper::convert(material, to),
    }
}

fn read(file: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let mut reader = File::open(file).with_context(|| format!("open {}", file.display()))?;
    let bytes = reader.metadata()?.len();
    if bytes > bytes_max {
        bail!("{} has {bytes} bytes, {bytes_max} at most can be converted", file.display());
    }
    let mut content = Vec::with_capacity(usize::try_from(bytes)?);
    reader.by_ref().take(bytes_max).read_to_end(&mut content).with_context(|| format!("read {}", file.display()))?;
    Ok(content)
}

/// Joins files in order into the first of them.
pub(crate) fn join(parts: &[PathBuf]) -> Result<()> {
    let Some((first, rest)) = parts.split_first() else { return Ok(()) };
    let mut whole = File::options().append(true).open(first).with_context(|| format!("open {}", first.display()))?;
    for part in rest {
        let mut reader = File::open(part).with_context(|| format!("open {}", part.display()))?;
        std::io::copy(&mut reader, &mut whole).with_context(|| format!("join {}", part.display()))?;
        fs::remove_file(part)?;
    }
    Ok(())
}
