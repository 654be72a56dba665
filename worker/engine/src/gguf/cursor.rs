//! A reader over bytes that cannot run past their end.

/// What is wrong, without saying where: the caller knows which key or tensor it reads.
pub(super) type Fault = String;

/// Bytes and a position in them.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// Offset of the next byte.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes not yet read.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        if len > self.left() {
            return Err(format!("needs {len} bytes, {} are left", self.left()));
        }
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `each` bytes: refused if above `max`, or if they cannot fit in what is left.
    pub(super) fn count(&mut self, max: usize, each: usize) -> Result<usize, Fault> {
        let count = self.u64()?;
        let count = usize::try_from(count)
            .ok()
            .filter(|count| *count <= max)
            .ok_or_else(|| format!("count {count} exceeds {max}"))?;
        match count.checked_mul(each) {
            Some(bytes) if bytes <= self.left() => Ok(count),
            _ => Err(format!("count {count} does not fit in {} bytes", self.left())),
        }
    }

    /// A string of at most `max` bytes, which must be UTF-8.
    pub(super) fn text(&mut self, max: usize) -> Result<&'a str, Fault> {
        let len = self.count(max, 1)?;
        std::str::from_utf8(self.take(len)?).map_err(|_| "string is not UTF-8".to_owned())
    }
}
