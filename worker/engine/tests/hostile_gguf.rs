//! Any bytes at all, and real headers with bytes changed: reading them ends in an answer or an error, never in a panic,
//! and takes memory in proportion to the bytes that are there, whatever they claim.
#![allow(unsafe_code)] // an allocator that counts can only be written so; it passes everything on to the system's

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use engine::fixture;
use engine::gguf::{Gguf, GgufBuilder};
use proptest::prelude::*;

/// Bytes that reading may allocate for each byte of the file: maps of names cost more than names.
const MULTIPLE: usize = 16;
/// Bytes that it may allocate in any case.
const BASE: usize = 16 << 10;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator with the arguments it came with; the counter is a plain cell.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.with(|total| total.set(total.get() + layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Reads everything there is in `bytes`, and counts.
fn read(bytes: Vec<u8>) {
    let len = bytes.len();
    let before = ALLOCATED.with(Cell::get);
    if let Ok(gguf) = Gguf::parse(bytes) {
        // The sum of all tensors, as they may overlap, does not count: they are borrowed.
        let tensors = gguf.tensors().map(|tensor| tensor.data.len()).max();
        assert!(tensors.unwrap_or(0) <= len);
        for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "general.name"] {
            let _ = (gguf.strings(key), gguf.i32s(key), gguf.u32(key), gguf.str(key));
        }
        let _ = engine::text::Template::from_gguf(&gguf).map(drop);
        let _ = engine::text::Tokenizer::from_gguf(&gguf).map(drop);
        let _ = engine::model::ModelConfig::from_gguf(&gguf).map(drop);
        return;
    }
    let allocated = ALLOCATED.with(Cell::get) - before;
    assert!(allocated <= BASE + MULTIPLE * len, "{allocated} bytes for a file of {len}");
}

fn header() -> Vec<u8> {
    let mut bytes = fixture::tiny_llama_bytes(3);
    bytes.truncate(9 << 10);
    bytes
}

/// A header that has a bit of everything in few bytes, so that most mutations hit a length or a type.
fn dense() -> Vec<u8> {
    let mut file = GgufBuilder::new();
    file.u32("a", 1).str("b", "c").strings("d", &["e", "f"]).i32s("g", &[1, 2]);
    file.list_tensor("h", &[2, 2], 0, 0).list_tensor("i", &[32], 8, 32);
    let mut bytes = file.bytes();
    bytes.resize(bytes.len() + 128, 0);
    bytes
}

/// A vocabulary with scores, a family with windows, and tensors of super-blocks.
fn scored() -> Vec<u8> {
    let mut file = GgufBuilder::new();
    let scores: Vec<u8> = [0.0_f32, -1.0, -2.0, f32::NAN].iter().flat_map(|score| score.to_le_bytes()).collect();
    let array = [&6_u32.to_le_bytes()[..], &4_u64.to_le_bytes(), &scores].concat();
    file.str("general.architecture", "gemma3")
        .str("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &["<s>", "a", "<0x0A>", "aa"])
        .i32s("tokenizer.ggml.token_type", &[3, 1, 6, 1])
        .raw("tokenizer.ggml.scores", 9, &array)
        .u32("gemma3.embedding_length", 256)
        .u32("gemma3.attention.head_count", 1)
        .u32("gemma3.attention.sliding_window", 4)
        .u32("gemma3.attention.sliding_window_pattern", 2);
    for (name, format, offset) in [("token_embd.weight", 12, 0), ("j", 13, 160), ("k", 14, 352)] {
        file.list_tensor(name, &[256, 1], format, offset);
    }
    let mut bytes = file.bytes();
    bytes.resize(bytes.len() + 576, 0);
    bytes
}

#[test]
fn the_scored_file_is_good_before_it_is_spoilt() {
    let gguf = Gguf::parse(scored()).unwrap();
    assert_eq!(gguf.tensors().map(|tensor| tensor.data.len()).collect::<Vec<_>>(), [144, 176, 210]);
    assert!(engine::text::Tokenizer::from_gguf(&gguf).is_ok());
}

#[test]
fn many_small_entries_stay_in_proportion() {
    let mut file = GgufBuilder::new();
    for n in 0..16_000u32 {
        file.raw(&format!("{n:x}"), 0, &[1]);
        file.list_tensor(&format!("{n:x}"), &[1], 99, 0);
    }
    let bytes = file.bytes();
    let (len, before) = (bytes.len(), ALLOCATED.with(Cell::get));
    let gguf = Gguf::parse(bytes).unwrap();
    let allocated = ALLOCATED.with(Cell::get) - before;
    assert!(gguf.has("3e7f"));
    assert!(allocated <= BASE + MULTIPLE * len, "{allocated} bytes for a file of {len}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600), counts in any::<(u16, u16)>()) {
        read(bytes.clone());
        let mut magic = b"GGUF\x03\0\0\0".to_vec();
        magic.extend(u64::from(counts.0 % 4).to_le_bytes());
        magic.extend(u64::from(counts.1 % 4).to_le_bytes());
        magic.extend(bytes);
        read(magic);
    }

    #[test]
    fn mutated_headers(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        for mut bytes in [header(), dense(), scored()] {
            for (at, value) in &edits {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            read(bytes.clone());
            bytes.truncate(cut.index(bytes.len()));
            read(bytes);
        }
    }
}
