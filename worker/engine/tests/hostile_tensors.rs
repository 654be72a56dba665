//! Any bytes at all, and real safetensors headers with bytes changed: reading them ends in an answer or an error, never
//! in a panic, and takes memory in proportion to the bytes that are there, whatever they claim.
#![allow(unsafe_code)] // an allocator that counts can only be written so; it passes everything on to the system's

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use engine::Error;
use engine::fixture::tensors_file;
use engine::tensors::{CONFIG, FAMILY, LABELS, Tensors};
use proptest::prelude::*;

/// Bytes that reading may allocate, all in all, for each byte of the file: a JSON number of one digit is a value of 32.
const MULTIPLE: usize = 64;
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

const NAMES: [&str; 3] = ["matrix", "vector", "cube"];

fn sample() -> Vec<u8> {
    let metadata = [(FAMILY, "bert"), (CONFIG, r#"{"width": 4}"#), (LABELS, r#"["a", "b"]"#)];
    let numbers = |len: usize| (0..len).map(|n| n as f32).collect();
    let tensors: [(&str, &[usize], Vec<f32>); 3] =
        [(NAMES[0], &[4, 4], numbers(16)), (NAMES[1], &[4], numbers(4)), (NAMES[2], &[2, 2, 3], numbers(12))];
    tensors_file(&metadata, &tensors)
}

/// Reads everything there is in `bytes`, and counts.
fn read(bytes: Vec<u8>) {
    let len = bytes.len();
    let before = ALLOCATED.with(Cell::get);
    let parsed = Tensors::parse(bytes);
    let allocated = ALLOCATED.with(Cell::get) - before;
    assert!(allocated <= BASE + MULTIPLE * len, "{allocated} bytes for a file of {len}");
    match parsed {
        Ok(tensors) => {
            let _ = (tensors.labels(), tensors.config::<serde_json::Value>(), tensors.text(FAMILY));
            for name in NAMES {
                if let Ok(tensor) = tensors.tensor(name) {
                    let numbers = tensors.numbers(name, tensor.shape).unwrap();
                    assert_eq!(numbers.len(), tensor.shape.iter().product::<usize>());
                    assert!(tensor.data.len() <= len && tensors.parameters() >= numbers.len() as u64);
                }
            }
        }
        Err(error) => assert!(matches!(error, Error::Malformed(_)), "{error}"),
    }
}

#[test]
fn many_small_numbers_stay_in_proportion() {
    let json = format!(r#"{{"x":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,4]}}}}"#, "1,".repeat(500_000));
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.bytes().chain([0; 4]));
    read(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600), len in any::<u16>()) {
        read(bytes.clone());
        let mut prefixed = u64::from(len % 600).to_le_bytes().to_vec();
        prefixed.extend(bytes);
        read(prefixed);
    }

    #[test]
    fn mutated_headers(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        digits in prop::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9'), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let sample = sample();
        let is_digit = |at: &usize| sample[*at].is_ascii_digit();
        let places: Vec<usize> = (8..sample.len()).filter(is_digit).collect();
        let mut numbers = sample.clone();
        for (at, digit) in &digits {
            numbers[places[at.index(places.len())]] = *digit;
        }
        read(numbers.clone());
        for (at, value) in &edits {
            let at = at.index(numbers.len());
            numbers[at] = *value;
        }
        read(numbers.clone());
        numbers.truncate(cut.index(numbers.len()));
        read(numbers);
    }
}
