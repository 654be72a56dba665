//! Our tokens against those of the reference implementation, built from the same model file, on random texts.

use std::time::{Duration, Instant};

use engine::fixture;
use engine::gguf::{Gguf, GgufBuilder};
use engine::text::{Special, Tokenizer};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokenizers::SplitDelimiterBehavior;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

/// The published scheme of Llama 3, and with `{1}` for `{1,3}` that of Qwen 2.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The reference's tokenizer with the vocabulary of `gguf` and the pre-tokenizer called `scheme`.
fn reference(gguf: &Gguf, scheme: &str) -> tokenizers::Tokenizer {
    let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap();
    let vocabulary: Vocab = (0..).zip(tokens).map(|(id, text)| (text.to_owned(), id)).collect();
    let merges = gguf.strings("tokenizer.ggml.merges").unwrap();
    let merges: Vec<(String, String)> = merges
        .into_iter()
        .map(|merge| merge.split_once(' ').unwrap())
        .map(|(left, right)| (left.to_owned(), right.to_owned()))
        .collect();
    let model =
        BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(scheme == "llama-bpe").build().unwrap();
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let split = |pattern: String| {
        let pattern = SplitPattern::Regex(pattern);
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap().into()
    };
    tokenizer.with_pre_tokenizer(Some(Sequence::new(match scheme {
        "smollm" => vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()],
        "gpt-2" => vec![ByteLevel::new(false, true, true).into()],
        "llama-bpe" => vec![split(LLAMA3.to_owned()), ByteLevel::new(false, true, false).into()],
        _ => vec![split(LLAMA3.replace("{1,3}", "{1}")), ByteLevel::new(false, true, false).into()],
    })));
    tokenizer
}

/// Our tokenizer with the vocabulary of `gguf` and the pre-tokenizer called `scheme`.
fn ours(gguf: &Gguf, scheme: &str) -> Tokenizer {
    let mut file = GgufBuilder::new();
    file.str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", scheme)
        .strings("tokenizer.ggml.tokens", &gguf.strings("tokenizer.ggml.tokens").unwrap())
        .strings("tokenizer.ggml.merges", &gguf.strings("tokenizer.ggml.merges").unwrap())
        .i32s("tokenizer.ggml.token_type", &gguf.i32s("tokenizer.ggml.token_type").unwrap());
    Tokenizer::from_gguf(&Gguf::parse(file.bytes()).unwrap()).unwrap()
}

#[test]
fn random_texts_have_the_tokens_of_the_reference() {
    let gguf = Gguf::open(&fixture::smollm2()).unwrap();
    for scheme in ["smollm", "gpt-2", "llama-bpe", "qwen2"] {
        let (ours, theirs) = (ours(&gguf, scheme), reference(&gguf, scheme));
        let words = prop::collection::vec(
            prop_oneof![
                "[a-zA-Z]{1,9}",
                "[ \t\r\n\u{a0}\u{3000}]{1,4}",
                "[0-9½٣Ⅷ]{1,4}",
                "[!-/:-@'{-~—…]{1,4}",
                "'(s|t|re|ve|m|ll|d|S|LL|ſ|x)",
                "[à-ÿα-ω漢字かな가나אבहि\u{301}\u{200d}😀-😎]{1,5}",
                any::<String>(),
            ],
            0..30,
        );
        let mut config = ProptestConfig::with_cases(400);
        config.failure_persistence = None;
        let verdict = TestRunner::new(config).run(&words, |words| {
            let text = words.concat();
            let expected = theirs.encode_fast(text.as_str(), false).unwrap();
            let tokens = ours.encode(&text, Special::Plain).unwrap();
            prop_assert_eq!(tokens, expected.get_ids(), "{}: {:?}", scheme, text);
            Ok(())
        });
        verdict.unwrap();
    }
}

#[test]
fn a_hundred_kilobytes_take_milliseconds() {
    let begun = Instant::now();
    let gguf = Gguf::open(&fixture::smollm2()).unwrap();
    let opened = begun.elapsed();
    let ours = Tokenizer::from_gguf(&gguf).unwrap();
    let built = begun.elapsed() - opened;
    let theirs = reference(&gguf, "smollm");
    let text: String = include_str!("../src/text/tokenizer.rs").repeat(9).chars().take(100_000).collect();
    let time = |encode: &dyn Fn() -> usize| {
        let begun = Instant::now();
        let count = encode();
        (begun.elapsed(), count)
    };
    let (our_time, our_count) = time(&|| ours.encode(&text, Special::Plain).unwrap().len());
    let (their_time, their_count) = time(&|| theirs.encode_fast(text.as_str(), false).unwrap().len());
    assert_eq!(our_count, their_count);
    println!(
        "open {opened:?}, vocabulary {built:?}, encode {our_time:?}, reference {their_time:?}, {our_count} tokens"
    );
    if !cfg!(debug_assertions) {
        assert!(our_time < Duration::from_millis(100), "{our_time:?}");
    }
}
