//! What a well-formed file reads as, and which lies are caught at open.

use std::time::{Duration, Instant};

use super::*;
use crate::fixture;

fn refused(file: &GgufBuilder, why: &str) {
    refused_bytes(file.bytes(), why);
}

fn refused_bytes(bytes: Vec<u8>, why: &str) {
    match Gguf::parse(bytes) {
        Err(Error::Malformed(text)) => assert!(text.contains(why), "{text:?} lacks {why:?}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted, should say {why:?}"),
    }
}

/// An array's body: type of its elements, count, bytes.
fn array(kind: u32, count: u64, body: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), body].concat()
}

#[test]
fn what_was_written_is_read() {
    let mut file = GgufBuilder::new();
    file.u32("n", 7)
        .f32("x", 0.5)
        .bool("yes", true)
        .str("text", "héllo")
        .strings("words", &["a", "", "ß"])
        .i32s("signed", &[-1, 2])
        .raw("big", 10, &u64::MAX.to_le_bytes())
        .raw("minus", 5, &(-3i32).to_le_bytes())
        .raw("nested", 9, &array(9, 1, &array(0, 2, &[1, 2])))
        .tensor("norm", &[3], Format::F32, &[7; 12])
        .tensor("w", &[64, 2], Format::Q8_0, &[9; 136]);
    let gguf = Gguf::parse(file.bytes()).unwrap();
    assert_eq!(gguf.u32("n").unwrap(), 7);
    assert_eq!(gguf.f32("x").unwrap(), 0.5);
    assert!(gguf.bool("yes").unwrap());
    assert_eq!(gguf.str("text").unwrap(), "héllo");
    assert_eq!(gguf.strings("words").unwrap(), ["a", "", "ß"]);
    assert_eq!(gguf.i32s("signed").unwrap(), [-1, 2]);
    assert_eq!(gguf.value("big"), Some(Value::Unsigned(u64::MAX)));
    assert!(matches!(gguf.value("nested"), Some(Value::Array(Array { kind: Kind::Array, len: 1, .. }))));
    for (key, error) in [
        ("big", gguf.u32("big").unwrap_err()),
        ("minus", gguf.u32("minus").unwrap_err()),
        ("absent", gguf.str("absent").unwrap_err()),
        ("words", gguf.u32s("words").unwrap_err()),
    ] {
        assert!(error.to_string().contains(key), "{error}");
    }
    let tensor = gguf.tensor("w").unwrap();
    assert_eq!((tensor.shape, tensor.format, tensor.data), (&[64, 2][..], Format::Q8_0, &[9; 136][..]));
    assert_eq!(gguf.tensor("norm").unwrap().data, [7; 12]);
    assert!(gguf.has("norm") && !gguf.has("x"));
    assert!(gguf.tensor("absent").unwrap_err().to_string().contains("absent"));
}

#[test]
fn other_formats_are_listed_and_refused_in_use() {
    let mut file = GgufBuilder::new();
    file.list_tensor("exotic", &[256], 21, 0);
    let gguf = Gguf::parse(file.bytes()).unwrap();
    assert!(gguf.has("exotic"));
    assert_eq!(gguf.tensors().count(), 0);
    let error = gguf.tensor("exotic").unwrap_err();
    assert!(matches!(&error, Error::Unsupported(why) if why.contains("exotic") && why.contains("21")));
}

#[test]
fn lies_in_the_header_are_refused() {
    refused_bytes(Vec::new(), "needs 4 bytes");
    refused_bytes(b"GGML\x03\0\0\0".to_vec(), "not a GGUF file");
    refused_bytes(b"GGUF\x01\0\0\0".to_vec(), "version 1");
    refused_bytes(b"GGUF\0\0\0\x03".to_vec(), "big-endian");
    let mut bytes = GgufBuilder::new().bytes();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    refused_bytes(bytes.clone(), "tensors: count");
    bytes[8..16].copy_from_slice(&1000u64.to_le_bytes());
    refused_bytes(bytes, "does not fit");
}

#[test]
fn lies_in_metadata_are_refused_by_key() {
    let lie = |kind: u32, body: &[u8], why: &str| {
        refused(GgufBuilder::new().raw("the.key", kind, body), why);
        refused(GgufBuilder::new().raw("the.key", kind, body), "the.key");
    };
    lie(13, &[], "type number 13");
    lie(7, &[2], "not a bool");
    lie(8, &u64::MAX.to_le_bytes(), "count");
    lie(8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff], "UTF-8");
    lie(9, &array(4, u64::MAX, &[]), "exceeds");
    lie(9, &array(4, 1 << 20, &[0; 64]), "does not fit");
    lie(9, &array(8, 2, &[0xff; 32]), "count");
    lie(9, &array(9, 1, &array(9, 1, &array(9, 0, &[]))), "nest deeper");
    refused(GgufBuilder::new().u32("twice", 1).u32("twice", 1), "twice");
    for alignment in [0, 1, 4, 48, 1 << 17] {
        refused(GgufBuilder::new().u32("general.alignment", alignment), "power of two");
    }
    refused(GgufBuilder::new().str("general.alignment", "32"), "power of two");
}

#[test]
fn lies_about_tensors_are_refused_by_name() {
    let lie = |shape: &[u64], format: u32, offset: u64, why: &str| {
        let mut file = GgufBuilder::new();
        file.tensor("good", &[8], Format::F32, &[0; 32]);
        file.list_tensor("bad", shape, format, offset);
        refused(&file, why);
        refused(&file, "bad");
    };
    lie(&[], 0, 0, "dimensions");
    lie(&[1; 5], 0, 0, "dimensions");
    lie(&[4, 0], 0, 0, "zero");
    lie(&[u64::MAX, 2], 0, 0, "overflow");
    lie(&[1 << 62, 2], 0, 0, "ends beyond");
    lie(&[9], 0, 0, "ends beyond");
    lie(&[1], 0, 4096, "begins at");
    lie(&[1], 99, 4096, "begins at");
    lie(&[1], 0, 8, "not aligned");
    lie(&[1], 0, u64::MAX - 31, "overflows");
    lie(&[33], 8, 0, "whole blocks");
    let mut twice = GgufBuilder::new();
    twice.tensor("good", &[1], Format::F32, &[0; 4]).list_tensor("good", &[1], 0, 0);
    refused(&twice, "appears twice");
}

#[test]
fn the_real_model_opens_at_once() {
    let begun = Instant::now();
    let gguf = Gguf::open(&fixture::smollm2()).unwrap();
    let took = begun.elapsed();
    assert_eq!(gguf.tensors().count(), 272);
    assert_eq!(gguf.str("general.architecture").unwrap(), "llama");
    let embedding = gguf.tensor("token_embd.weight").unwrap();
    assert_eq!((embedding.shape, embedding.format), (&[576, 49_152][..], Format::Q8_0));
    assert_eq!(embedding.data.len(), 49_152 * 576 / 32 * 34);
    // A few milliseconds in a release build; generous for loaded machines and debug builds.
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn an_absent_file_is_named() {
    let error = Gguf::open(Path::new("/nowhere/model.gguf")).unwrap_err();
    assert!(matches!(error, Error::Io { path, .. } if path == Path::new("/nowhere/model.gguf")));
}
