//! `cargo fuzz run envelope`: the first byte chooses the content type, the rest is the body.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use protocol::header::{self, Headers};
use protocol::request::{Incoming, Request};

fuzz_target!(|data: &[u8]| {
    let Some((choice, body)) = data.split_first() else { return };
    let headers = match choice % 3 {
        0 => Headers::new(),
        1 => Headers::new().with(header::CONTENT_TYPE, "application/json"),
        _ => Headers::new().with(header::CONTENT_TYPE, "application/msgpack"),
    };
    let body = Bytes::copy_from_slice(body);
    if let Ok(request) = Request::decode(&Incoming { body: &body, headers: &headers, modality: None }) {
        assert!(!request.input.is_empty());
    }
});
