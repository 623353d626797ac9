//! Cases 49 and 50: HTTP/2 frames that no honest client sends (RFC 9113).

use std::io;
use std::time::Duration;

use onlyonce_testkit::{Gateway, Upstream, Wire, eventually};

use crate::{expect_executed, gateway, memory_of, post};

/// Requests of a flood.
const FLOOD: u32 = 20_000;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame as it goes over the wire.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Headers as HPACK literals that touch no table (RFC 7541 section 6.2.2).
fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in headers {
        bytes.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "a short literal");
            bytes.push(u8::try_from(text.len()).unwrap());
            bytes.extend(text.bytes());
        }
    }
    bytes
}

fn request_block(method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut headers = vec![
        (":method", method),
        (":scheme", "http"),
        (":authority", "h"),
        (":path", "/x"),
    ];
    headers.extend(more);
    block(&headers)
}

/// A connection with the preface and empty settings sent.
fn connect(gateway: &Gateway) -> Wire {
    let mut wire = Wire::connect(gateway.addr());
    wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    wire.send(&frame(SETTINGS, 0, 0, &[])).unwrap();
    wire
}

/// Reads frames until one is of interest; settings are acknowledged.
fn read_until(wire: &mut Wire, wanted: impl Fn(u8, u32) -> bool) -> Option<(u8, Vec<u8>)> {
    loop {
        let head = wire.take(9).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let payload = wire.take(usize::try_from(length).unwrap()).ok()?;
        if head[3] == SETTINGS && head[4] & ACK == 0 {
            wire.send(&frame(SETTINGS, ACK, 0, &[])).ok()?;
        }
        if wanted(head[3], stream) {
            return Some((head[3], payload));
        }
    }
}

/// Case: HTTP/2: floods of resets and of continuations. Answer: hung up on within a bound; others are
/// served.
#[test]
fn hostile_049_a_flood_of_resets_is_bounded() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let mut wire = connect(&gateway);
    let cancel = 8_u32.to_be_bytes();
    let before = memory_of(gateway.pid(), "VmHWM:");
    let mut ended = false;
    for n in 0..FLOOD {
        let stream = 2 * n + 1;
        let key = format!("flood-{n}");
        let block = request_block("POST", &[("idempotency-key", &key)]);
        let mut both = frame(HEADERS, END_STREAM | END_HEADERS, stream, &block);
        both.extend(frame(RST_STREAM, 0, stream, &cancel));
        if wire.send(&both).is_err() {
            ended = true;
            break;
        }
    }
    // It hangs up on such a client: it says so, or the connection is gone already.
    if !ended {
        let _ = read_until(&mut wire, |kind, _| kind == GOAWAY);
        wire.patience(Duration::from_secs(5));
        let end = wire.take_to_end();
        let waits = |e: &io::Error| e.kind() == io::ErrorKind::WouldBlock;
        assert!(!end.is_err_and(|e| waits(&e)), "the connection goes on");
    }
    drop(wire);
    // What was claimed before it was reset is executed, and that is a small part of the flood.
    eventually("what was begun is over", || {
        gateway.control().metric("onlyonce_live_operations", "") < 1.0
    });
    let hits = upstream.hits();
    assert!(hits < FLOOD as usize / 10, "{hits} of them were sent on");
    let growth = memory_of(gateway.pid(), "VmHWM:") - before;
    assert!(growth < 32 << 20, "{growth} bytes more at the most");
    expect_executed(&gateway.post("/x", "k", "b"), 200);
}

#[test]
fn hostile_049_a_flood_of_continuations_is_bounded() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let mut wire = connect(&gateway);
    wire.send(&frame(HEADERS, END_STREAM, 1, &request_block("POST", &[])))
        .unwrap();
    // Headers of 16 KiB a frame that never end.
    let filler = block(&[("x-filler", &"f".repeat(100))]).repeat(140);
    let continuation = frame(CONTINUATION, 0, 1, &filler);
    let sent = (0..4096)
        .take_while(|_| wire.send(&continuation).is_ok())
        .count();
    assert!(sent < 4096, "64 MiB of headers were taken");
    assert_eq!(upstream.hits(), 0);
    expect_executed(&gateway.post("/x", "k", "b"), 200);
}

/// Case: HTTP/2: a length that the data does not have. Answer: an error of that stream, nothing is claimed.
#[test]
fn hostile_050_a_length_that_the_data_does_not_have_is_a_stream_error() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    for body in ["short", "longer than ten bytes"] {
        let mut wire = connect(&gateway);
        let block = request_block(
            "POST",
            &[("idempotency-key", "k"), ("content-length", "10")],
        );
        wire.send(&frame(HEADERS, END_HEADERS, 1, &block)).unwrap();
        wire.send(&frame(DATA, END_STREAM, 1, body.as_bytes()))
            .unwrap();
        let got = read_until(&mut wire, |kind, stream| {
            (stream == 1 && (kind == RST_STREAM || kind == HEADERS)) || kind == GOAWAY
        });
        let (kind, payload) = got.expect("a word before the connection ends");
        assert_eq!(kind, RST_STREAM, "{body:?}");
        assert_eq!(payload, 1_u32.to_be_bytes(), "PROTOCOL_ERROR");
    }
    assert_eq!(upstream.hits(), 0);
    assert!(gateway.control().operations("k").is_empty());
    // The key is free.
    expect_executed(&gateway.send(&post("/x", "k", "0123456789")), 200);
}
