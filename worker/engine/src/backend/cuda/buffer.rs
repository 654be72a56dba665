//! Rows, matrices and caches in the GPU's memory.

use std::sync::Arc;

use half::bf16;

use super::integers::Integers;
use crate::Error;
use crate::backend::{KvShape, Matrix, each_row};
use crate::cuda::{Address, Gpu, Kind, Memory};
use crate::plan::{BLOCK_TOKENS, BlockId};

/// Bytes that are converted before they are sent.
pub(super) const CHUNK: usize = 8 << 20;

/// Activations: (rows, width).
pub struct Buf {
    memory: Memory,
    width: usize,
    kind: Kind,
    /// Rows that mean something.
    rows: usize,
    /// Rows that are computed: those and, in a graph, what fills its bucket.
    padded: usize,
    room: usize,
}

impl Buf {
    /// Without rows, with room for so many.
    pub(super) fn new(gpu: &Arc<dyn Gpu>, room: usize, width: usize, kind: Kind) -> Result<Buf, Error> {
        let numbers = room.checked_mul(width).filter(|numbers| i32::try_from(*numbers).is_ok());
        let bytes = numbers.ok_or_else(|| Error::Device(format!("{room} rows of {width} numbers")))? * kind.bytes();
        Ok(Buf { memory: Memory::new(gpu, bytes.max(1))?, width, kind, rows: 0, padded: 0, room })
    }

    pub(super) fn address(&self) -> Address {
        self.memory.address()
    }

    /// The address of a column of the first row.
    pub(super) fn column(&self, column: usize) -> Address {
        self.address().plus(column * self.kind.bytes())
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn padded(&self) -> usize {
        self.padded
    }

    /// From here on it has `rows` rows, of `padded` that are computed.
    pub(super) fn set(&mut self, rows: usize, padded: usize) {
        assert!(rows <= padded && padded <= self.room, "a buffer has room for its rows");
        (self.rows, self.padded) = (rows, padded);
    }

    pub(super) fn set_rows(&mut self, rows: usize) {
        self.set(rows, rows);
    }

    /// Appends the numbers of its rows.
    pub(super) fn read(&self, gpu: &dyn Gpu, numbers: &mut Vec<f32>) -> Result<(), Error> {
        let mut bytes = vec![0; self.rows * self.width * self.kind.bytes()];
        gpu.download(self.address(), &mut bytes)?;
        match self.kind {
            Kind::F32 => numbers.extend(bytes.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number))),
            Kind::Bf16 => {
                numbers.extend(bytes.as_chunks().0.iter().map(|number| bf16::from_le_bytes(*number).to_f32()))
            }
        }
        Ok(())
    }
}

/// A matrix: (outputs, inputs), bf16, and the integers that it was made of if few rows should read those.
pub struct Weight {
    memory: Memory,
    pub(super) integers: Option<Integers>,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

impl Weight {
    /// Matrices of equal inputs, their outputs side by side.
    pub(super) fn pack(gpu: &Arc<dyn Gpu>, parts: &[Matrix<'_>]) -> Result<Weight, Error> {
        let inputs = parts.first().map_or(0, |part| part.columns);
        let mut outputs = 0;
        for part in parts {
            let (len, bytes) = (part.format.block_len(), part.format.block_bytes());
            let row = inputs / len * bytes;
            if part.columns != inputs || inputs == 0 || !inputs.is_multiple_of(len) || part.data.len() % row != 0 {
                return Err(Error::Unsupported("matrices that cannot be packed side by side".into()));
            }
            outputs += part.data.len() / row;
        }
        if outputs == 0 {
            return Err(Error::Unsupported("a matrix without rows".into()));
        }
        let weight = Weight::empty(gpu, outputs, inputs)?;
        send(gpu.as_ref(), parts, weight.address())?;
        Ok(weight)
    }

    /// Of no particular numbers.
    pub(super) fn empty(gpu: &Arc<dyn Gpu>, outputs: usize, inputs: usize) -> Result<Weight, Error> {
        let numbers = outputs.checked_mul(inputs).filter(|numbers| i32::try_from(*numbers).is_ok());
        let numbers =
            numbers.ok_or_else(|| Error::Device(format!("a matrix of {outputs} rows of {inputs} numbers")))?;
        Ok(Weight { memory: Memory::new(gpu, numbers * Kind::Bf16.bytes())?, integers: None, outputs, inputs })
    }

    /// The same, of which few rows read these integers.
    pub(super) fn with_integers(self, integers: Option<Integers>) -> Weight {
        Weight { integers, ..self }
    }

    /// Where it begins.
    pub(crate) fn address(&self) -> Address {
        self.memory.address()
    }

    /// How much its numbers take in bf16.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}

/// Sends the parts' numbers, some rows at a time.
fn send(gpu: &dyn Gpu, parts: &[Matrix<'_>], mut to: Address) -> Result<(), Error> {
    let (mut chunk, mut sent) = (Vec::with_capacity(CHUNK), Ok(()));
    let mut flush = |chunk: &mut Vec<u8>| {
        let result = gpu.upload(chunk, to);
        to = to.plus(chunk.len());
        chunk.clear();
        result
    };
    each_row(parts, |_, row| {
        chunk.extend(row.iter().flat_map(|number| bf16::from_f32(*number).to_le_bytes()));
        if chunk.len() >= CHUNK && sent.is_ok() {
            sent = flush(&mut chunk);
        }
    })?;
    sent.and_then(|()| flush(&mut chunk))
}

/// Keys and values: (blocks, layers, keys then values, heads, tokens of a block, width), bf16.
pub struct Kv {
    memory: Memory,
    pub(super) shape: KvShape,
}

impl Kv {
    pub(super) fn new(gpu: &Arc<dyn Gpu>, shape: KvShape) -> Result<Kv, Error> {
        let bytes = block_bytes(shape).checked_mul(shape.blocks);
        let bytes = bytes.ok_or_else(|| Error::Device(format!("a cache of {shape:?}")))?;
        Ok(Kv { memory: Memory::new(gpu, bytes.max(1))?, shape })
    }

    pub(super) fn address(&self) -> Address {
        self.memory.address()
    }

    /// Where a block begins.
    pub(super) fn block(&self, block: BlockId) -> Address {
        self.address().plus(block.0 as usize * self.block_bytes())
    }

    /// Bytes of a block, all layers.
    pub(super) fn block_bytes(&self) -> usize {
        block_bytes(self.shape)
    }
}

fn block_bytes(shape: KvShape) -> usize {
    BLOCK_TOKENS * shape.layers * 2 * shape.heads * shape.width * Kind::Bf16.bytes()
}
