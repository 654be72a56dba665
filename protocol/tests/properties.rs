//! Decoding never panics, and what is encoded decodes to itself; every refusal carries the right code.

use bytes::Bytes;
use proptest::prelude::*;
use protocol::ErrorCode;
use protocol::header::{self, Headers};
use protocol::job::Job;
use protocol::media::Modality;
use protocol::record::Record;
use protocol::request::{
    self, Blob, CachePolicy, Content, Format, Incoming, Mode, Params, Part, Priority, Request, Role, Stop, Task,
};
use protocol::token::{ModelRef, SessionId, Token};

fn decode(body: &[u8], headers: Headers) -> Result<Request, protocol::Refusal> {
    let body = Bytes::copy_from_slice(body);
    Request::decode(&Incoming { body: &body, headers: &headers, modality: None })
}

fn typed(mime: &str) -> Headers {
    Headers::new().with(header::CONTENT_TYPE, mime)
}

fn part() -> impl Strategy<Value = Part> {
    let role = prop_oneof![Just(Role::System), Just(Role::User), Just(Role::Assistant)];
    let gif = |tail: Vec<u8>| [b"GIF89a".as_slice(), &tail].concat();
    let media = proptest::collection::vec(any::<u8>(), 0..64).prop_map(move |tail| Content::Media {
        modality: Modality::Image,
        mime: "image/gif".into(),
        data: Blob(gif(tail).into()),
    });
    (role, prop_oneof![any::<String>().prop_map(Content::Text), media])
        .prop_map(|(role, content)| Part { role, content })
}

fn params() -> impl Strategy<Value = Params> {
    (
        proptest::option::of(1u32..100_000),
        proptest::option::of(0.0f32..=2.0),
        proptest::option::of(0u32..=1000),
        proptest::option::of(proptest::collection::vec("[a-z\n]{1,8}", 1..4)),
        proptest::option::of(any::<u64>()),
    )
        .prop_map(|(max_tokens, temperature, top_k, stop, seed)| Params {
            max_tokens,
            temperature,
            top_k,
            stop: stop.map(Stop::Many),
            seed,
            ..Params::default()
        })
}

fn any_request() -> impl Strategy<Value = Request> {
    let names = (
        proptest::option::of("[a-z][a-z0-9-]{0,20}"),
        proptest::option::of("[a-zA-Z0-9./:-]{1,20}(@[a-z0-9_]{1,8})?"),
        proptest::option::of("[^\\p{C}]{1,128}"),
        proptest::option::of("[a-h][a-zA-Z0-9_-]{0,63}"),
    );
    let settings = (
        any::<bool>(),
        proptest::option::of(0usize..3),
        proptest::option::of(1u64..86_400_000),
        proptest::option::of(prop_oneof![
            Just(CachePolicy::Use),
            Just(CachePolicy::Bypass),
            Just(CachePolicy::Refresh)
        ]),
    );
    (proptest::collection::vec(part(), 1..4), names, settings, params()).prop_map(|(input, names, settings, params)| {
        Request {
            input,
            task: names.0.map(Task::from),
            model: names.1.map(|name| ModelRef::parse(&name).unwrap()),
            session: names.2.map(|name| SessionId::parse(&name).unwrap()),
            mode: if settings.0 { Mode::Stream } else { Mode::Whole },
            priority: settings.1.map(|at| Priority::ALL[at]),
            deadline: settings.2.map(std::time::Duration::from_millis),
            cache: settings.3,
            id: names.3.map(|name| Token::parse_client_id(&name).unwrap()),
            params,
            format: Format::Json,
            subtitles: None,
        }
    })
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_itself(request in any_request()) {
        for (format, mime) in [(Format::Json, "application/json"), (Format::Msgpack, "application/msgpack")] {
            let decoded = decode(&request::encode(&request, format), typed(mime)).unwrap();
            prop_assert_eq!(decoded, Request { format, ..request.clone() });
        }
    }

    #[test]
    fn decoding_never_panics(body in proptest::collection::vec(any::<u8>(), 0..2048), mime in "(application/json|application/msgpack|image/png|text/plain|[a-z/]{0,20})") {
        let _ = decode(&body, typed(&mime));
        let _ = decode(&body, Headers::new());
        let _ = Job::decode(&body);
        let _ = Record::decode(&body);
    }

    #[test]
    fn mutated_envelopes_never_panic(request in any_request(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        for (format, mime) in [(Format::Json, "application/json"), (Format::Msgpack, "application/msgpack")] {
            let mut body = request::encode(&request, format).to_vec();
            let at = at.index(body.len());
            body[at] = byte;
            let _ = decode(&body, typed(mime));
            body.truncate(at);
            let _ = decode(&body, typed(mime));
        }
    }
}

fn code(body: &[u8], headers: Headers) -> ErrorCode {
    decode(body, headers).expect_err("this must be refused").code
}

#[test]
fn bad_input_gets_its_code() {
    use ErrorCode::{InvalidRequest, TooLarge, UnsupportedMedia};
    let json = |text: &str| code(text.as_bytes(), typed("application/json"));
    assert_eq!(code(b"", Headers::new()), InvalidRequest);
    assert_eq!(code(b"\xff\xfe\xfd text", Headers::new()), UnsupportedMedia);
    assert_eq!(code(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", Headers::new()), UnsupportedMedia);
    assert_eq!(code(b"%PDF-1.7", typed("image/png")), UnsupportedMedia);
    assert_eq!(code(b"plain", typed("image/png")), UnsupportedMedia);
    assert_eq!(json("{"), InvalidRequest);
    assert_eq!(json(r#"{"input":[]}"#), InvalidRequest);
    assert_eq!(json(r#"{"input":"x","colour":"red"}"#), InvalidRequest);
    assert_eq!(json(r#"{"input":7}"#), InvalidRequest);
    assert_eq!(json(r#"{"input":"x","params":{"max_tokens":-1}}"#), InvalidRequest);
    assert_eq!(json(r#"{"input":"x","params":{"max_tokens":99999999999999999999}}"#), InvalidRequest);
    assert_eq!(json(r#"{"input":"x","params":{"temperature":3}}"#), InvalidRequest);
    assert_eq!(json(r#"{"input":"x","deadline_ms":0}"#), InvalidRequest);
    assert_eq!(json(r#"{"input":"x","deadline_ms":86400001}"#), InvalidRequest);
    assert_eq!(json(r#"{"input":"x","id":"i77"}"#), InvalidRequest);
    assert_eq!(json(r#"{"input":"x","id":"a.b"}"#), InvalidRequest);
    assert_eq!(json(r#"{"input":[{"type":"image","data":"AAAA"}]}"#), UnsupportedMedia);
    assert_eq!(json(r#"{"input":[{"type":"image","data":"?"}]}"#), InvalidRequest);
    assert_eq!(json(r#"{"input":[{"type":"text","text":"x","data":"AAAA"}]}"#), InvalidRequest);
    assert_eq!(code(&vec![b'a'; request::BODY_BYTES_MAX + 1], Headers::new()), TooLarge);
    assert_eq!(code(b"x", Headers::new().with("Flotilla-Modell", "x")), InvalidRequest);
    assert_eq!(code(b"x", Headers::new().with(header::PRIORITY, "urgent")), InvalidRequest);
    assert_eq!(code(b"x", Headers::new().with("X", "v".repeat(header::BYTES_MAX))), TooLarge);
}

#[test]
fn an_unknown_field_is_named() {
    let refusal = decode(br#"{"input":"x","colour":"red"}"#, Headers::new()).unwrap_err();
    assert!(refusal.message.contains("colour"), "{refusal}");
}

#[test]
fn a_refusal_quotes_no_content() {
    for body in [
        r#"{"input":"x","deadline_ms":"secret"}"#,
        r#"{"input":"x","priority":"secret"}"#,
        r#"{"input":"x","params":{"max_tokens":"secret"}}"#,
        r#"{"input":[{"type":"secret"}]}"#,
        r#"{"input":["secret"]}"#,
        r#"{"input":"x","params":"secret"}"#,
    ] {
        let value: serde_json::Value = serde_json::from_str(body).unwrap();
        let packed = rmp_serde::to_vec_named(&value).unwrap();
        for refusal in [decode(body.as_bytes(), Headers::new()), decode(&packed, typed("application/msgpack"))] {
            let message = refusal.unwrap_err().message;
            assert!(!message.contains("secret"), "{message}");
        }
    }
}

#[test]
fn words_that_look_like_magic_numbers_are_text() {
    for body in
        ["BMW makes cars", "SQLi attacks", "MAC addresses", "What does %PDF-1.7 mean?", "%PDF-1.7", "GIF89a\t\r\n"]
    {
        let request = decode(body.as_bytes(), Headers::new()).unwrap();
        assert_eq!((request.input[0].text(), request.format), (Some(body), Format::Raw));
    }
    let gif = decode(b"GIF89a\x01\0\x01\0", Headers::new()).unwrap();
    assert_eq!(gif.input[0].modality(), Modality::Image);
}

#[test]
fn depth_bombs_are_refused_quickly() {
    let json = format!(r#"{{"input":{}"#, "[".repeat(1_000_000));
    assert_eq!(code(json.as_bytes(), typed("application/json")), ErrorCode::InvalidRequest);
    let unknown = format!(r#"{{"x":{}{},"input":"a"}}"#, "[".repeat(500_000), "]".repeat(500_000));
    assert_eq!(code(unknown.as_bytes(), Headers::new()), ErrorCode::InvalidRequest);
    let msgpack = vec![0x91u8; 1_000_000];
    assert_eq!(code(&msgpack, typed("application/msgpack")), ErrorCode::InvalidRequest);
    // A map that promises four thousand million entries, and bytes that promise as many.
    assert_eq!(code(b"\xdf\xff\xff\xff\xff", typed("application/msgpack")), ErrorCode::InvalidRequest);
    let lying = b"\x81\xa5input\x91\x82\xa4type\xa5image\xa4data\xc6\xff\xff\xff\xff";
    assert_eq!(code(lying, typed("application/msgpack")), ErrorCode::InvalidRequest);
}

#[test]
fn text_that_looks_like_json_is_text_unless_it_is_an_envelope() {
    let text = |body: &str| decode(body.as_bytes(), Headers::new()).unwrap();
    assert_eq!(text("{not json").format, Format::Raw);
    assert_eq!(text(r#"{"output": 1}"#).format, Format::Raw);
    assert_eq!(text(r#"  {"input": "x"}"#).format, Format::Json);
    assert_eq!(decode(br#"{"input": "x"}"#, typed("text/plain")).unwrap().format, Format::Raw);
}
