//! Cases 49 and 50: HTTP/2 frames that no honest client sends (RFC 9113).

use std::io;
use std::time::Duration;

use onlyonce_testkit::{Gateway, Setup, Signal, Upstream, Wire, eventually};

use crate::upstream::{expect_unknown_from_now_on, release};
use crate::{expect_executed, expect_replay, gateway, memory_of, post, program};

/// Requests of a flood.
const FLOOD: u32 = 20_000;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// Settings that allow one stream at a time (RFC 9113 section 6.5.2).
const ONE_STREAM: [u8; 6] = [0, 3, 0, 0, 0, 1];

/// Settings that leave room for one byte in each stream.
const ONE_BYTE: [u8; 6] = [0, 4, 0, 0, 0, 1];

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

/// One frame: its kind, its flags, its stream.
fn next_frame(wire: &mut Wire) -> io::Result<(u8, u8, u32)> {
    let head = wire.take(9)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    wire.take(usize::try_from(length).unwrap())?;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
    Ok((head[3], head[4], stream))
}

/// Begins to serve HTTP/2 on a connection of the gateway's, with these settings.
fn accept(wire: &mut Wire, settings: &[u8]) {
    wire.take(24).unwrap();
    wire.send(&frame(SETTINGS, 0, 0, settings)).unwrap();
    wire.send(&frame(SETTINGS, ACK, 0, &[])).unwrap();
}

/// Reads until a request has come whole, and says in which stream.
fn take_request(wire: &mut Wire) -> io::Result<u32> {
    loop {
        let (kind, flags, stream) = next_frame(wire)?;
        if [HEADERS, DATA].contains(&kind) && flags & END_STREAM != 0 {
            return Ok(stream);
        }
    }
}

/// A gateway before an upstream that speaks HTTP/2.
fn before_http2(upstream: &Upstream) -> Setup {
    Setup::new(program(), &upstream.url()).upstream("http2 = true")
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

/// A reset with `NO_ERROR`, by which proxies pass on what broke off behind them, is no end of the request.
#[test]
fn hostile_057_a_request_that_is_reset_without_an_error_is_not_sent_on() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    for length in [None, Some("30")] {
        let mut headers = vec![("idempotency-key", "k")];
        headers.extend(length.map(|length| ("content-length", length)));
        let mut wire = connect(&gateway);
        let block = request_block("POST", &headers);
        wire.send(&frame(HEADERS, END_HEADERS, 1, &block)).unwrap();
        wire.send(&frame(DATA, 0, 1, b"pay 100 EUR to ")).unwrap();
        wire.send(&frame(RST_STREAM, 0, 1, &0_u32.to_be_bytes()))
            .unwrap();
        // What comes behind the reset is served, so that the reset was seen.
        let block = request_block("POST", &[("idempotency-key", "other")]);
        let after = frame(HEADERS, END_STREAM | END_HEADERS, 3, &block);
        wire.send(&after).unwrap();
        read_until(&mut wire, |kind, stream| kind == HEADERS && stream == 3).unwrap();
    }
    assert!(gateway.control().operations("k").is_empty());
    expect_executed(&gateway.send(&post("/x", "k", "pay 100 EUR to bob")), 200);
    assert_eq!(upstream.hits(), 2);
}

/// Nor is it the end of an answer; of one that is as long as it was to be, or has had its trailers, the reset says no more
/// (RFC 9113 section 8.1).
#[test]
fn hostile_069_an_answer_that_is_reset_without_an_error_is_unknown() {
    const ANSWER: &[u8] = b"as far as it goes";
    for ends_by in ["nothing", "its length", "trailers"] {
        let upstream = Upstream::raw(move |mut wire, _| {
            accept(&mut wire, &[]);
            while let Ok(stream) = take_request(&mut wire) {
                let length = ANSWER.len().to_string();
                let mut head = vec![(":status", "200")];
                let has_length = ends_by == "its length";
                head.extend(has_length.then_some(("content-length", length.as_str())));
                let flags = if has_length { END_STREAM } else { 0 };
                let mut bytes = frame(HEADERS, END_HEADERS, stream, &block(&head));
                bytes.extend(frame(DATA, flags, stream, ANSWER));
                if ends_by == "trailers" {
                    let trailers = block(&[("x-sum", "7")]);
                    let flags = END_STREAM | END_HEADERS;
                    bytes.extend(frame(HEADERS, flags, stream, &trailers));
                }
                bytes.extend(frame(RST_STREAM, 0, stream, &0_u32.to_be_bytes()));
                if wire.send(&bytes).is_err() {
                    return;
                }
            }
        });
        let gateway = before_http2(&upstream).start();
        let request = post("/x", "k", "b");
        let answer = gateway.send(&request);
        if ends_by != "nothing" {
            expect_executed(&answer, 200);
            expect_replay(&gateway.send(&request), &answer);
        } else {
            assert!(answer.status() == 502 || !answer.whole(), "{answer:?}");
            expect_unknown_from_now_on(&gateway, &request, "k");
        }
    }
}

/// As `hostile_064_i01_a_request_that_an_operator_released_is_not_sent_to_its_end`, where the rest of it waits for room
/// on a connection that others share.
#[test]
fn hostile_064_i01_a_request_that_waits_for_room_in_its_stream_is_not_sent_once_it_is_released() {
    let (released, begun, over) = (Signal::new(), Signal::new(), Signal::new());
    let (go, has_come, ended) = (released.clone(), begun.clone(), over.clone());
    let upstream = Upstream::raw(move |mut wire, _| {
        accept(&mut wire, &ONE_BYTE);
        let first = take_request(&mut wire).unwrap();
        let head = block(&[(":status", "204")]);
        let answer = frame(HEADERS, END_STREAM | END_HEADERS, first, &head);
        wire.send(&answer).unwrap();
        let second = loop {
            let (kind, _, stream) = next_frame(&mut wire).unwrap();
            if kind == HEADERS {
                break stream;
            }
        };
        has_come.fire();
        go.wait();
        let room = 1_000_u32.to_be_bytes();
        wire.send(&frame(WINDOW_UPDATE, 0, second, &room)).unwrap();
        // Whatever comes now is not the whole of it.
        loop {
            let (kind, flags, stream) = next_frame(&mut wire).unwrap();
            let is_request = kind == DATA && stream == second;
            assert!(!is_request || flags & END_STREAM == 0, "it came whole");
            if kind == RST_STREAM && stream == second {
                break;
            }
        }
        ended.fire();
    });
    // Each worker has connections of its own.
    let gateway = before_http2(&upstream)
        .server("workers = 1")
        .route("first_byte_timeout = \"300ms\"\nlate_answer = \"60s\"")
        .start();
    expect_executed(&gateway.post("/x", "first", ""), 204);
    let ask = post("/x", "k", "a body of more than a byte");
    gateway.send(&ask).expect_problem(504, "outcome-unknown");
    begun.wait();
    release(&gateway, "k");
    released.fire();
    over.wait();
}

/// L5: no exchange waits for a stream that another one holds, however few an upstream takes on a connection.
#[test]
fn l5_an_exchange_that_lasts_keeps_no_other_from_its_turn() {
    let (begun, over) = (Signal::new(), Signal::new());
    let (has_come, until) = (begun.clone(), over.clone());
    let upstream = Upstream::raw(move |mut wire, connection| {
        accept(&mut wire, &ONE_STREAM);
        while let Ok(stream) = take_request(&mut wire) {
            if connection == 1 {
                has_come.fire();
                until.wait();
            }
            let head = block(&[(":status", "200")]);
            let answer = frame(HEADERS, END_STREAM | END_HEADERS, stream, &head);
            wire.send(&answer).unwrap();
        }
    });
    // Each worker has connections of its own.
    let gateway = before_http2(&upstream).server("workers = 1").start();
    let mut first = gateway.begin(&post("/x", "long", "b"));
    begun.wait();
    for key in ["k1", "k2", "k3"] {
        expect_executed(&gateway.post("/x", key, "b"), 200);
    }
    // The three came one after the other.
    assert_eq!(upstream.connections(), 2);
    over.fire();
    expect_executed(&first.response(), 200);
}

/// L5: nor where it comes before the upstream has said how many it takes.
#[test]
fn l5_an_exchange_waits_for_no_stream_that_the_upstream_has_not_promised() {
    let (begun, over) = (Signal::new(), Signal::new());
    let (has_come, until) = (begun.clone(), over.clone());
    let upstream = Upstream::raw(move |mut wire, connection| {
        wire.take(24).unwrap();
        let stream = take_request(&mut wire).unwrap();
        if connection == 1 {
            has_come.fire();
            until.wait();
        }
        wire.send(&frame(SETTINGS, 0, 0, &ONE_STREAM)).unwrap();
        let head = block(&[(":status", "200")]);
        let answer = frame(HEADERS, END_STREAM | END_HEADERS, stream, &head);
        wire.send(&answer).unwrap();
        while next_frame(&mut wire).is_ok() {}
    });
    // Each worker has connections of its own.
    let gateway = before_http2(&upstream).server("workers = 1").start();
    let mut first = gateway.begin(&post("/x", "first", "b"));
    begun.wait();
    expect_executed(&gateway.post("/x", "second", "b"), 200);
    assert_eq!(upstream.connections(), 2);
    over.fire();
    expect_executed(&first.response(), 200);
}

/// L6: a connection that the upstream lets go of carries nothing more.
#[test]
fn l6_a_connection_that_the_upstream_ends_is_not_used_again() {
    for while_it_answers in [false, true] {
        let (told, over) = (Signal::new(), Signal::new());
        let (has_heard, until) = (told.clone(), over.clone());
        let upstream = Upstream::raw(move |mut wire, connection| {
            accept(&mut wire, &[]);
            while let Ok(stream) = take_request(&mut wire) {
                let head = block(&[(":status", "200")]);
                let answer = frame(HEADERS, END_STREAM | END_HEADERS, stream, &head);
                if connection > 1 {
                    wire.send(&answer).unwrap();
                    continue;
                }
                if !while_it_answers {
                    wire.send(&answer).unwrap();
                }
                // This stream is the last one. Whoever answers a ping has read so.
                let last = [stream.to_be_bytes(), [0; 4]].concat();
                wire.send(&frame(GOAWAY, 0, 0, &last)).unwrap();
                wire.send(&frame(PING, 0, 0, &[0; 8])).unwrap();
                while next_frame(&mut wire).is_ok_and(|(kind, ..)| kind != PING) {}
                has_heard.fire();
                if while_it_answers {
                    until.wait();
                    wire.send(&answer).unwrap();
                }
            }
        });
        // Each worker has connections of its own.
        let gateway = before_http2(&upstream).server("workers = 1").start();
        let mut first = gateway.begin(&post("/x", "first", "b"));
        told.wait();
        for key in ["k1", "k2"] {
            expect_executed(&gateway.post("/x", key, "b"), 200);
        }
        assert_eq!(upstream.connections(), 2);
        over.fire();
        expect_executed(&first.response(), 200);
    }
}

/// L5: who does not read the answer to a request without a key holds up none with one, neither by the room that it takes
/// on a connection nor by its stream.
#[test]
fn l5_an_answer_that_nobody_reads_holds_up_none_that_is_recorded() {
    let stuck = Signal::new();
    let asked = stuck.clone();
    let upstream = Upstream::raw(move |mut wire, connection| {
        accept(&mut wire, &ONE_STREAM);
        let stream = take_request(&mut wire).unwrap();
        let head = block(&[(":status", "200")]);
        wire.send(&frame(HEADERS, END_HEADERS, stream, &head))
            .unwrap();
        match connection {
            // As far as the first windows let it, and never to its end.
            1 => {
                for _ in 0..3 {
                    let data = frame(DATA, 0, stream, &[b'.'; 16_384]);
                    wire.send(&data).unwrap();
                }
                asked.fire();
            }
            _ => wire
                .send(&frame(DATA, END_STREAM, stream, b"read"))
                .unwrap(),
        }
        let _ = wire.take_to_end();
    });
    // Each worker has connections of its own.
    let gateway = before_http2(&upstream).server("workers = 1").start();
    let mut idle = Wire::connect(gateway.addr());
    idle.send(b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n").unwrap();
    stuck.wait();
    let answer = gateway.post("/x", "k", "b");
    expect_executed(&answer, 200);
    assert_eq!(answer.body, b"read");
    drop(idle);
}
