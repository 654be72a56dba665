//! Memory that is zero, page-aligned, and resident only where it was touched.

use std::marker::PhantomData;

use memmap2::{Advice, MmapMut};

use crate::Error;

mod sealed {
    pub trait Plain {}
    impl Plain for u8 {}
    impl Plain for u16 {}
    impl Plain for f32 {}
    impl Plain for crate::simd::brains::Line {}
}

/// A slice of plain numbers on anonymous pages.
#[derive(Debug)]
pub struct Arena<T> {
    map: MmapMut,
    len: usize,
    number: PhantomData<T>,
}

/// How an arena is used, which decides the size of its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Read or written from end to end: large pages save address translations.
    Dense,
    /// Touched here and there: small pages keep the rest out of memory.
    Sparse,
}

impl<T: sealed::Plain> Arena<T> {
    /// `len` zeros.
    pub fn zeroed(len: usize, usage: Use) -> Result<Self, Error> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| Error::Device("arena size overflows".into()))?;
        let map =
            MmapMut::map_anon(bytes.max(1)).map_err(|e| Error::Device(format!("{bytes} bytes of memory: {e}")))?;
        #[cfg(target_os = "linux")]
        {
            // Advice only: a kernel without large pages still gives memory.
            let advice = if usage == Use::Dense { Advice::HugePage } else { Advice::NoHugePage };
            let _ = map.advise(advice);
        }
        Ok(Arena { map, len, number: PhantomData })
    }
}

impl<T: sealed::Plain> std::ops::Deref for Arena<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the map holds `len` numbers, is aligned to a page, and any bits are a valid `T` (sealed to numbers).
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

impl<T: sealed::Plain> std::ops::DerefMut for Arena<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len) }
    }
}
