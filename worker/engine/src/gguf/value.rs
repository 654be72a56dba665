//! Metadata values: where they lie in the file, and how they read.

use std::ops::Range;

use super::cursor::{Cursor, Fault};

/// Longest string; the longest known are chat templates, far under 1 MiB.
const STRING_BYTES_MAX: usize = 16 << 20;
/// Longest array; the longest known are merges, about half a million.
const ARRAY_LEN_MAX: usize = 8 << 20;
/// Deepest array of arrays.
const NESTING_MAX: usize = 2;

/// A metadata value, integers and floats widened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// An unsigned integer of any width.
    Unsigned(u64),
    /// A signed integer of any width.
    Signed(i64),
    /// A float of any width.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(&'a str),
    /// An array, still encoded.
    Array(Array<'a>),
}

/// An array whose lengths are checked and whose elements are decoded when asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    /// What its elements are.
    pub kind: Kind,
    /// How many elements it has.
    pub len: usize,
    body: &'a [u8],
}

/// The type of a value as files number it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the documentation
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

/// A value's place in the file, or the value itself where it is small.
#[derive(Clone, Debug)]
pub(super) enum Slot {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    Array { kind: Kind, len: usize, body: Range<usize> },
}

impl Kind {
    fn from_id(id: u32) -> Result<Kind, Fault> {
        const KINDS: [Kind; 13] = [
            Kind::U8,
            Kind::I8,
            Kind::U16,
            Kind::I16,
            Kind::U32,
            Kind::I32,
            Kind::F32,
            Kind::Bool,
            Kind::Text,
            Kind::Array,
            Kind::U64,
            Kind::I64,
            Kind::F64,
        ];
        usize::try_from(id)
            .ok()
            .and_then(|id| KINDS.get(id).copied())
            .ok_or_else(|| format!("type number {id} is unknown"))
    }

    /// Least bytes that a value of this type takes.
    fn bytes_min(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::U64 | Kind::I64 | Kind::F64 | Kind::Text => 8,
            Kind::Array => 12, // its own type and count
        }
    }
}

impl Slot {
    /// Reads a type number and the value that follows.
    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Slot, Fault> {
        let kind = Kind::from_id(cursor.u32()?)?;
        Ok(match kind {
            Kind::U8 => Slot::Unsigned(u8::from_le_bytes(cursor.array()?).into()),
            Kind::U16 => Slot::Unsigned(u16::from_le_bytes(cursor.array()?).into()),
            Kind::U32 => Slot::Unsigned(u32::from_le_bytes(cursor.array()?).into()),
            Kind::U64 => Slot::Unsigned(u64::from_le_bytes(cursor.array()?)),
            Kind::I8 => Slot::Signed(i8::from_le_bytes(cursor.array()?).into()),
            Kind::I16 => Slot::Signed(i16::from_le_bytes(cursor.array()?).into()),
            Kind::I32 => Slot::Signed(i32::from_le_bytes(cursor.array()?).into()),
            Kind::I64 => Slot::Signed(i64::from_le_bytes(cursor.array()?)),
            Kind::F32 => Slot::Float(f32::from_le_bytes(cursor.array()?).into()),
            Kind::F64 => Slot::Float(f64::from_le_bytes(cursor.array()?)),
            Kind::Bool => match cursor.array::<1>()? {
                [0] => Slot::Bool(false),
                [1] => Slot::Bool(true),
                [other] => return Err(format!("{other} is not a bool")),
            },
            Kind::Text => {
                let text = cursor.text(STRING_BYTES_MAX)?;
                Slot::Text(cursor.at() - text.len()..cursor.at())
            }
            Kind::Array => read_array(cursor)?,
        })
    }

    /// The value, over the `file` it was read from.
    pub(super) fn resolve<'a>(&self, file: &'a [u8]) -> Value<'a> {
        match self {
            Slot::Unsigned(n) => Value::Unsigned(*n),
            Slot::Signed(n) => Value::Signed(*n),
            Slot::Float(x) => Value::Float(*x),
            Slot::Bool(truth) => Value::Bool(*truth),
            // A mapped file that is edited under us may turn into anything; an empty text is then as good as any.
            Slot::Text(range) => Value::Text(std::str::from_utf8(&file[range.clone()]).unwrap_or_default()),
            Slot::Array { kind, len, body } => {
                Value::Array(Array { kind: *kind, len: *len, body: &file[body.clone()] })
            }
        }
    }
}

fn read_array(cursor: &mut Cursor<'_>) -> Result<Slot, Fault> {
    let kind = Kind::from_id(cursor.u32()?)?;
    let len = cursor.count(ARRAY_LEN_MAX, kind.bytes_min())?;
    let start = cursor.at();
    skip(cursor, kind, len, 1)?;
    Ok(Slot::Array { kind, len, body: start..cursor.at() })
}

/// Passes over the elements of an array at nesting `depth`, checking every length on the way.
fn skip(cursor: &mut Cursor<'_>, kind: Kind, len: usize, depth: usize) -> Result<(), Fault> {
    match kind {
        Kind::Text => {
            for _ in 0..len {
                let bytes = cursor.count(STRING_BYTES_MAX, 1)?;
                cursor.take(bytes)?;
            }
        }
        Kind::Array if depth == NESTING_MAX => {
            return Err(format!("arrays nest deeper than {NESTING_MAX}"));
        }
        Kind::Array => {
            for _ in 0..len {
                let inner = Kind::from_id(cursor.u32()?)?;
                let count = cursor.count(ARRAY_LEN_MAX, inner.bytes_min())?;
                skip(cursor, inner, count, depth + 1)?;
            }
        }
        fixed => {
            cursor.take(len * fixed.bytes_min())?;
        }
    }
    Ok(())
}

impl<'a> Array<'a> {
    /// The elements, if they are UTF-8 texts.
    #[must_use]
    pub fn strings(&self) -> Option<Vec<&'a str>> {
        if self.kind != Kind::Text {
            return None;
        }
        let mut cursor = Cursor::new(self.body);
        let mut out = Vec::with_capacity(self.len);
        for _ in 0..self.len {
            out.push(cursor.text(STRING_BYTES_MAX).ok()?);
        }
        Some(out)
    }

    /// The elements, if they are of `kind`, a type of four bytes.
    pub(super) fn words<T>(&self, kind: Kind, decode: fn([u8; 4]) -> T) -> Option<Vec<T>> {
        if self.kind != kind {
            return None;
        }
        let (words, _) = self.body.as_chunks::<4>();
        Some(words.iter().copied().map(decode).collect())
    }
}
