//! The header: magic, counts, metadata, tensor list, in this order.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::ops::Range;

use super::cursor::{Cursor, Fault};
use super::value::Slot;
use crate::Error;
use crate::quant::Format;

const MAGIC: [u8; 4] = *b"GGUF";
/// Versions 2 and 3 differ in nothing that we read; version 1 had narrower counts and is extinct.
const VERSIONS: [u32; 2] = [2, 3];
/// Most metadata keys; files have dozens.
const KEYS_MAX: usize = 1 << 14;
/// Most tensors; the largest mixtures have some thousands.
const TENSORS_MAX: usize = 1 << 16;
/// Longest key or tensor name.
const NAME_BYTES_MAX: usize = 1 << 10;
/// Most dimensions of a tensor.
const DIMS_MAX: usize = 4;
/// Alignment of tensors where the file does not say.
const ALIGNMENT_DEFAULT: u64 = 32;
/// Largest alignment; one large page is already generous.
const ALIGNMENT_MAX: u64 = 1 << 16;
/// Least alignment: no number format needs more to be read in place.
const ALIGNMENT_MIN: u64 = 8;
const ALIGNMENT_KEY: &str = "general.alignment";
/// Least bytes of a metadata entry: length of its key, type, value.
const KEY_BYTES_MIN: usize = 13;
/// Least bytes of a tensor entry: length of its name, dimensions, one dimension, format, offset.
const TENSOR_BYTES_MIN: usize = 32;
/// How much of a hostile name an error repeats.
const SHOWN_CHARS_MAX: usize = 80;

/// What a header says, all of it checked.
pub(super) struct Header {
    pub(super) metadata: HashMap<Box<str>, Slot>,
    pub(super) tensors: Vec<Entry>,
    pub(super) index: HashMap<Box<str>, usize>,
}

/// A tensor's entry in the list.
pub(super) struct Entry {
    pub(super) name: Box<str>,
    pub(super) dims: [u64; DIMS_MAX],
    pub(super) rank: usize,
    /// The format's number in the file.
    pub(super) format: u32,
    /// Format and bytes within the file; `None` for formats that this engine does not run.
    pub(super) known: Option<(Format, Range<usize>)>,
}

/// An entry whose place in the file is not checked yet, because the data begin after the last entry.
struct Listed {
    entry: Entry,
    offset: u64,
}

pub(super) fn header(bytes: &[u8]) -> Result<Header, Error> {
    let mut cursor = Cursor::new(bytes);
    let (tensor_count, key_count) = counts(&mut cursor).map_err(|why| Error::Malformed(format!("header: {why}")))?;
    let metadata = metadata(&mut cursor, key_count)?;
    let alignment = alignment(&metadata)?;
    let listed = list(&mut cursor, tensor_count)?;
    let data = (cursor.at() as u64).next_multiple_of(alignment);
    let mut tensors = Vec::with_capacity(listed.len());
    let mut index = HashMap::with_capacity(listed.len());
    for (place, Listed { mut entry, offset }) in listed.into_iter().enumerate() {
        let fault = |why: Fault| malformed("tensor", &entry.name, &why);
        let start = start(offset, data, alignment).map_err(fault)?;
        let known = locate(&entry, start, bytes.len() as u64).map_err(fault)?;
        if index.insert(entry.name.clone(), place).is_some() {
            return Err(malformed("tensor", &entry.name, "appears twice"));
        }
        entry.known = known;
        tensors.push(entry);
    }
    Ok(Header { metadata, tensors, index })
}

fn counts(cursor: &mut Cursor<'_>) -> Result<(usize, usize), Fault> {
    if cursor.array()? != MAGIC {
        return Err("not a GGUF file".to_owned());
    }
    let version = cursor.u32()?;
    if VERSIONS.contains(&version.swap_bytes()) {
        return Err("big-endian files are not read".to_owned());
    }
    if !VERSIONS.contains(&version) {
        return Err(format!("version {version} is not 2 or 3"));
    }
    let tensors = cursor.count(TENSORS_MAX, TENSOR_BYTES_MIN).map_err(|why| format!("tensors: {why}"))?;
    let keys = cursor.count(KEYS_MAX, KEY_BYTES_MIN).map_err(|why| format!("keys: {why}"))?;
    Ok((tensors, keys))
}

fn metadata(cursor: &mut Cursor<'_>, count: usize) -> Result<HashMap<Box<str>, Slot>, Error> {
    let mut metadata = HashMap::with_capacity(count);
    for n in 0..count {
        let key = cursor.text(NAME_BYTES_MAX).map_err(|why| Error::Malformed(format!("name of key {n}: {why}")))?;
        let slot = Slot::read(cursor).map_err(|why| malformed("key", key, &why))?;
        match metadata.entry(key.into()) {
            Place::Occupied(_) => return Err(malformed("key", key, "appears twice")),
            Place::Vacant(place) => place.insert(slot),
        };
    }
    Ok(metadata)
}

fn alignment(metadata: &HashMap<Box<str>, Slot>) -> Result<u64, Error> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(ALIGNMENT_DEFAULT),
        Some(Slot::Unsigned(n)) if n.is_power_of_two() && (ALIGNMENT_MIN..=ALIGNMENT_MAX).contains(n) => Ok(*n),
        Some(_) => {
            Err(malformed("key", ALIGNMENT_KEY, &format!("is not a power of two in {ALIGNMENT_MIN}..={ALIGNMENT_MAX}")))
        }
    }
}

fn list(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<Listed>, Error> {
    let mut listed = Vec::with_capacity(count);
    for n in 0..count {
        let name = cursor.text(NAME_BYTES_MAX).map_err(|why| Error::Malformed(format!("name of tensor {n}: {why}")))?;
        listed.push(read_entry(cursor, name).map_err(|why| malformed("tensor", name, &why))?);
    }
    Ok(listed)
}

fn read_entry(cursor: &mut Cursor<'_>, name: &str) -> Result<Listed, Fault> {
    let rank = cursor.u32()?;
    let rank = usize::try_from(rank)
        .ok()
        .filter(|rank| (1..=DIMS_MAX).contains(rank))
        .ok_or_else(|| format!("{rank} dimensions are not 1 to {DIMS_MAX}"))?;
    let mut dims = [1; DIMS_MAX];
    for dim in &mut dims[..rank] {
        *dim = cursor.u64()?;
        if *dim == 0 {
            return Err("a dimension is zero".to_owned());
        }
    }
    let entry = Entry { name: name.into(), dims, rank, format: cursor.u32()?, known: None };
    let offset = cursor.u64()?;
    Ok(Listed { entry, offset })
}

/// Where a tensor begins in the file.
fn start(offset: u64, data: u64, alignment: u64) -> Result<u64, Fault> {
    if !offset.is_multiple_of(alignment) {
        return Err(format!("offset {offset} is not aligned to {alignment}"));
    }
    data.checked_add(offset).ok_or_else(|| format!("offset {offset} overflows"))
}

/// The tensor's bytes within the file, where its format tells how many they are.
fn locate(entry: &Entry, start: u64, file: u64) -> Result<Option<(Format, Range<usize>)>, Fault> {
    let elements = entry.dims[..entry.rank]
        .iter()
        .try_fold(1u64, |product, dim| product.checked_mul(*dim))
        .ok_or_else(|| "its elements overflow".to_owned())?;
    if start > file {
        return Err(format!("begins at {start}, the file has {file} bytes"));
    }
    let Some(format) = Format::from_ggml(entry.format) else {
        return Ok(None);
    };
    let block = format.block_len() as u64;
    if !entry.dims[0].is_multiple_of(block) {
        return Err(format!("{} columns are not whole blocks of {block}", entry.dims[0]));
    }
    (elements / block)
        .checked_mul(format.block_bytes() as u64)
        .and_then(|bytes| start.checked_add(bytes))
        .filter(|end| *end <= file)
        .and_then(|end| Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?))
        .map(|range| Some((format, range)))
        .ok_or_else(|| format!("begins at {start} and ends beyond the file's {file} bytes"))
}

fn malformed(what: &str, name: &str, why: &str) -> Error {
    let shown: String = name.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    Error::Malformed(format!("{what} `{shown}`: {why}"))
}
