//! Event streams, and whatever else reads an answer as it passes.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use onlyonce_http::mcp::{Answered, Requests, Retry, Rewriter};
use onlyonce_ledger::{Asked, End, Meter, MeterMemory, RawFormat, UsageFormat, UsageHider};
use serde_json::json;

use crate::Target;
use crate::input::{Input, pieces};

pub(crate) const TARGET: Target = Target {
    name: "events",
    holds: "what is read in a stream, and what is passed on of it, does not depend on where it is cut",
    run,
    seeds,
    words: &[
        "data: ",
        "\n\n",
        "\r\n",
        "\r",
        "event: ",
        "id: 1\n",
        ": \n",
        "data: [DONE]\n\n",
        "\u{feff}",
        "\"usage\":",
        "null",
        "{\"prompt_tokens\":1}",
        "\"choices\":[]",
        "\"id\":1",
        "\"method\":",
        "\"result\":{}",
        "\"jsonrpc\":\"2.0\"",
        "\\u0022",
        "retry: 1",
    ],
};

fn seeds() -> Vec<Vec<u8>> {
    let chat = "data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[{}],\"usage\":null}\n\n\
                data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\r\n\r\n\
                data: [DONE]\n\n";
    let call = ": hello\n\nevent: message\nid: 7\ndata: {\"jsonrpc\":\"2.0\",\n\
                data: \"id\":3,\"result\":{}}\n\ndata: {\"jsonrpc\":\"2.0\",\"id\":9,\"method\":\"ping\"}\n\n";
    let json =
        "{\"id\":\"c\",\"model\":\"m\",\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}";
    let mut seeds = Vec::new();
    for reader in 0..4 {
        for (kind, text) in [(0, chat), (0, call), (1, json), (2, json)] {
            seeds.push([&[reader, kind, 5], text.as_bytes()].concat());
        }
    }
    // A stored block of gzip.
    let gzip = [
        &[0, 0x10, 3][..],
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x01\x07\0\xf8\xffdata: a\0\0\0\0\x07\0\0\0",
    ];
    seeds.push(gzip.concat());
    seeds
}

fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (reader, kind, cut) = (input.byte(), input.byte(), input.byte());
    let stream = input.0;
    match reader % 4 {
        0 => metered(stream, kind, cut),
        1 => hidden(stream, cut),
        2 => rewritten(stream, kind, cut),
        _ => answered(stream, kind, cut),
    }
}

fn format() -> Arc<UsageFormat> {
    let raw: RawFormat = serde_json::from_value(json!({
        "name": "chat",
        "paths": "**/chat",
        "provider": "openai",
        "model": "/model",
        "response_id": "/id",
        "at": "/usage",
        "complete": "[DONE]",
        "units": {"input": "/prompt_tokens", "output": "/completion_tokens"},
    }))
    .expect("a format");
    Arc::new(UsageFormat::compile(raw).expect("a format that can be used"))
}

fn metered(stream: &[u8], kind: u8, cut: u8) {
    let formats = [format()];
    let kinds = [
        "text/event-stream",
        "application/json",
        "application/x-ndjson",
        "application/vnd.amazon.eventstream",
    ];
    let mut headers = HeaderMap::new();
    let content_type = kinds[usize::from(kind % 4)];
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    let codings = ["", "gzip", "deflate", "br", "zstd"];
    let coding = codings[usize::from(kind >> 4) % codings.len()];
    if !coding.is_empty() {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
    }
    let memory = MeterMemory::new(64 << 20);
    let of = |bytes: &mut dyn Iterator<Item = &[u8]>| {
        let asked = Asked {
            path: "/v1/chat",
            model: None,
        };
        let meter = Meter::of(&formats, asked, 200, &headers, &memory);
        let mut meter = meter.expect("the format is for this path");
        bytes.for_each(|piece| meter.see(piece));
        (meter.gave_up(), meter.finish(End::Clean))
    };
    let (whole, cut) = (
        of(&mut std::iter::once(stream)),
        of(&mut pieces(stream, cut)),
    );
    // When a decoder finds out that its input is broken depends on what it has to write yet.
    if coding.is_empty() || (whole.0.is_none() && cut.0.is_none()) {
        assert_eq!(cut, whole, "{content_type} {coding}");
    }
    assert_eq!(memory.used(), 0, "memory of meters is given back");
}

fn hidden(stream: &[u8], cut: u8) {
    let of = |bytes: &mut dyn Iterator<Item = &[u8]>| {
        let mut hider = UsageHider::default();
        let mut out: Vec<u8> = Vec::new();
        bytes.for_each(|piece| out.extend_from_slice(&hider.push(Bytes::copy_from_slice(piece))));
        out.extend_from_slice(&hider.finish());
        out
    };
    let whole = of(&mut std::iter::once(stream));
    assert_eq!(
        of(&mut pieces(stream, cut)).escape_ascii().to_string(),
        whole.escape_ascii().to_string()
    );
    if !contains(stream, b"usage") {
        assert_eq!(whole, stream, "nothing to hide");
    }
    // Whatever is passed on came, in that order.
    let mut came = stream.iter();
    assert!(
        whole.iter().all(|byte| came.any(|one| one == byte)),
        "something was added"
    );
}

fn rewritten(stream: &[u8], kind: u8, cut: u8) {
    let is_stream = kind & 1 == 0;
    let requests = match kind & 2 {
        0 => Requests::Keep,
        _ => Requests::LeaveOut,
    };
    let of = |bytes: &mut dyn Iterator<Item = &[u8]>| {
        let retry = Retry {
            id: "\"again\"".into(),
            token: (kind & 4 != 0).then(|| "5".into()),
        };
        let executed = (kind & 8 != 0).then(|| "1".into());
        let mut rewriter = Rewriter::new(retry, executed, is_stream, requests);
        let mut out = Vec::new();
        bytes.for_each(|piece| out.append(&mut rewriter.push(piece)));
        out.append(&mut rewriter.finish());
        out.escape_ascii().to_string()
    };
    let whole = of(&mut std::iter::once(stream));
    assert_eq!(of(&mut pieces(stream, cut)), whole);
}

fn answered(stream: &[u8], kind: u8, cut: u8) {
    let ids: Vec<Box<str>> = ["1", "2", "\"again\""].map(Into::into).into();
    let ids = &ids[..usize::from(kind >> 1 & 3)];
    let of = |bytes: &mut dyn Iterator<Item = &[u8]>| {
        let mut answered = Answered::new(kind & 1 == 0, ids, kind & 8 != 0);
        bytes.for_each(|piece| answered.see(piece));
        (
            answered.is_whole(),
            answered.has_begun(),
            answered.is_refused(&[-32602]),
            answered.is_resumable(),
            answered.takes_an_event(),
        )
    };
    let whole = of(&mut std::iter::once(stream));
    assert_eq!(of(&mut pieces(stream, cut)), whole);
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}
