//! Writes small model files, for tests and fixtures.

use crate::quant::Format;

const ALIGNMENT: usize = 32;

/// A model file in the making.
#[derive(Clone, Debug, Default)]
pub struct GgufBuilder {
    keys: u64,
    metadata: Vec<u8>,
    tensors: u64,
    list: Vec<u8>,
    data: Vec<u8>,
}

impl GgufBuilder {
    /// An empty file.
    #[must_use]
    pub fn new() -> GgufBuilder {
        GgufBuilder::default()
    }

    /// Adds an integer.
    pub fn u32(&mut self, key: &str, value: u32) -> &mut GgufBuilder {
        self.raw(key, 4, &value.to_le_bytes())
    }

    /// Adds a float.
    pub fn f32(&mut self, key: &str, value: f32) -> &mut GgufBuilder {
        self.raw(key, 6, &value.to_le_bytes())
    }

    /// Adds a truth value.
    pub fn bool(&mut self, key: &str, value: bool) -> &mut GgufBuilder {
        self.raw(key, 7, &[u8::from(value)])
    }

    /// Adds a text.
    pub fn str(&mut self, key: &str, value: &str) -> &mut GgufBuilder {
        let mut body = Vec::new();
        put_text(&mut body, value.as_bytes());
        self.raw(key, 8, &body)
    }

    /// Adds an array of texts.
    pub fn strings(&mut self, key: &str, values: &[impl AsRef<str>]) -> &mut GgufBuilder {
        let mut body = array_head(8, values.len());
        for value in values {
            put_text(&mut body, value.as_ref().as_bytes());
        }
        self.raw(key, 9, &body)
    }

    /// Adds an array of integers.
    pub fn i32s(&mut self, key: &str, values: &[i32]) -> &mut GgufBuilder {
        let mut body = array_head(5, values.len());
        for value in values {
            body.extend_from_slice(&value.to_le_bytes());
        }
        self.raw(key, 9, &body)
    }

    /// Adds a key with a type number and a body as they are, right or wrong.
    pub fn raw(&mut self, key: &str, kind: u32, body: &[u8]) -> &mut GgufBuilder {
        put_text(&mut self.metadata, key.as_bytes());
        self.metadata.extend_from_slice(&kind.to_le_bytes());
        self.metadata.extend_from_slice(body);
        self.keys += 1;
        self
    }

    /// Adds a tensor; `shape` is fastest dimension first, `data` its blocks.
    pub fn tensor(&mut self, name: &str, shape: &[u64], format: Format, data: &[u8]) -> &mut GgufBuilder {
        let offset = self.data.len() as u64;
        self.list_tensor(name, shape, format.ggml(), offset);
        self.data.extend_from_slice(data);
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    /// Adds an entry to the list of tensors as it is, right or wrong, without data.
    pub fn list_tensor(&mut self, name: &str, shape: &[u64], format: u32, offset: u64) -> &mut GgufBuilder {
        put_text(&mut self.list, name.as_bytes());
        let rank = u32::try_from(shape.len()).expect("a test's shape is short");
        self.list.extend_from_slice(&rank.to_le_bytes());
        for dim in shape {
            self.list.extend_from_slice(&dim.to_le_bytes());
        }
        self.list.extend_from_slice(&format.to_le_bytes());
        self.list.extend_from_slice(&offset.to_le_bytes());
        self.tensors += 1;
        self
    }

    /// The file's bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend_from_slice(&3u32.to_le_bytes());
        out.extend_from_slice(&self.tensors.to_le_bytes());
        out.extend_from_slice(&self.keys.to_le_bytes());
        out.extend_from_slice(&self.metadata);
        out.extend_from_slice(&self.list);
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend_from_slice(&self.data);
        out
    }
}

fn array_head(kind: u32, len: usize) -> Vec<u8> {
    let mut head = kind.to_le_bytes().to_vec();
    head.extend_from_slice(&(len as u64).to_le_bytes());
    head
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text);
}
