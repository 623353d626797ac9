//! Cases 52 to 60: bodies that are too big, too slow, or that end early; clients that leave.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use onlyonce_testkit::{Signal, Upstream, eventually};

use crate::{expect_executed, expect_replay, gateway, memory_of, noise, post, setup};

/// Case: a body over the limit. Answer: 413 `body-too-large`, nothing is claimed.
#[test]
fn hostile_052_a_body_over_the_limit_is_refused_and_claims_nothing() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).limits("request_body = \"1KiB\"").start();
    let big = post("/x", "k", &"b".repeat(1025));
    gateway
        .send(&big)
        .expect_problem(413, "body-too-large")
        .expect_retry(false);
    // Without a length it only shows while the body comes.
    let chunked = big
        .clone()
        .no_length()
        .header("Transfer-Encoding", "chunked");
    let mut client = gateway.connect();
    client.send_bytes(&chunked.body("").head_bytes());
    client.try_send_bytes(format!("401\r\n{}\r\n0\r\n\r\n", "b".repeat(1025)).as_bytes());
    client
        .response()
        .expect_problem(413, "body-too-large")
        .expect_retry(false);
    assert_eq!(upstream.hits(), 0);
    assert!(gateway.control().operations("k").is_empty());
    // The limit itself fits, and the key is still free.
    expect_executed(&gateway.post("/x", "k", &"b".repeat(1024)), 200);
}

/// Case: headers that do not come. Answer: 408 `request-timeout`, nothing is claimed.
#[test]
fn hostile_053_slow_headers_time_out() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .server("header_timeout = \"300ms\"")
        .start();
    let mut client = gateway.connect();
    client.send_bytes(b"POST /x HTTP/1.1\r\nHost: h\r\nIdempotency-Key: k\r\n");
    client.response().expect_problem(408, "request-timeout");
    assert!(client.closed());
    assert_eq!(upstream.hits(), 0);
    assert!(gateway.control().operations("k").is_empty());
}

/// Case: a body that does not come. Answer: 408 `request-timeout`, nothing is claimed.
#[test]
fn hostile_054_a_slow_body_times_out_and_claims_nothing() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).server("body_timeout = \"300ms\"").start();
    let mut client = gateway.connect();
    client
        .send_bytes(&post("/x", "k", "0123456789").head_bytes())
        .send_bytes(b"012");
    client.response().expect_problem(408, "request-timeout");
    assert!(client.closed());
    assert_eq!(upstream.hits(), 0);
    assert!(gateway.control().operations("k").is_empty());
}

/// Case: a client that stops reading. Answer: cut off at its deadline; the record is completed.
#[test]
fn hostile_055_a_slow_reader_has_a_deadline_and_the_record_still_completes() {
    // More than the kernel takes off the gateway for a reader that stands still.
    const SIZE: usize = 32 << 20;
    let upstream = Upstream::scripted(|x| x.answer(200, &[], &noise(SIZE)));
    let gateway = setup(&upstream).server("write_timeout = \"500ms\"").start();
    let mut slow = gateway.begin(&post("/x", "k", "b"));
    // It reads nothing, and the record completes.
    gateway.control().wait_for_state("k", "completed");
    let whole = gateway.post("/x", "k", "b");
    whole.expect_status(200).expect_mark("replayed");
    assert_eq!(whole.body.len(), SIZE);
    // The gateway gave up on the slow reader: its connection ends before the body does.
    eventually("one connection less", || {
        gateway.control().metric("onlyonce_connections", "") < 1.0
    });
    slow.read_head();
    let cut = slow.finish();
    assert!(
        !cut.whole() && cut.body.len() < SIZE,
        "{:?} {}",
        cut.end,
        cut.body.len()
    );
    assert_eq!(upstream.hits(), 1);
}

/// Case: a client that closes its sending half. Answer: answered.
#[test]
fn hostile_056_a_client_that_closes_its_sending_half_is_answered() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        wait.wait();
        x.answer(200, &[], b"done");
    });
    let gateway = gateway(&upstream);
    for request in [
        post("/x", "k", "b"),
        post("/x", "", "b").without("Idempotency-Key"),
    ] {
        let mut client = gateway.begin(&request);
        client.wire().half_close();
        upstream.wait_for_hits(1);
        go.fire();
        let answer = client.response();
        assert_eq!(answer.expect_status(200).text(), "done");
    }
    assert_eq!(upstream.hits(), 2);
}

/// Case: a client that leaves before its request is whole. Answer: nothing is claimed.
#[test]
fn hostile_057_a_client_gone_mid_request_claims_nothing() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    for by_reset in [false, true] {
        let mut client = gateway.connect();
        client
            .send_bytes(&post("/x", "k", "0123456789").head_bytes())
            .send_bytes(b"012");
        if by_reset {
            client.reset();
        } else {
            drop(client);
        }
    }
    eventually("both connections are gone", || {
        gateway.control().metric("onlyonce_connections", "") < 1.0
    });
    assert!(gateway.control().operations("k").is_empty());
    assert_eq!(upstream.hits(), 0);
    let first = gateway.post("/x", "k", "0123456789");
    expect_executed(&first, 200);
    assert_eq!(first.header("onlyonce-attempt"), Some("1"));
}

/// Case: a client that leaves while its request runs. Answer: it is finished and recorded.
#[test]
fn hostile_058_a_client_gone_after_the_claim_leaves_an_execution_that_finishes() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        wait.wait();
        x.answer(200, &[], b"done");
    });
    let gateway = gateway(&upstream);
    let client = gateway.begin(&post("/x", "k", "b"));
    upstream.wait_for_hits(1);
    client.reset();
    eventually("the client's connection is gone", || {
        gateway.control().metric("onlyonce_connections", "") < 1.0
    });
    assert_eq!(gateway.control().operation("k")["state"], "in_flight");
    go.fire();
    gateway.control().wait_for_state("k", "completed");
    let replay = gateway.post("/x", "k", "b");
    replay.expect_status(200).expect_mark("replayed");
    assert_eq!(replay.text(), "done");
    assert_eq!(upstream.hits(), 1);
}

/// Case: a client that leaves in the middle of the answer. Answer: its retry gets all of it.
#[test]
fn hostile_059_a_client_gone_mid_response_gets_the_whole_on_its_retry() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[]);
        x.chunk("begun, ");
        wait.wait();
        x.chunk("and ended");
        x.end_chunks();
    });
    let gateway = gateway(&upstream);
    let mut client = gateway.begin(&post("/x", "k", "b"));
    client.read_head();
    client.read_until("begun");
    client.reset();
    let mut retry = gateway.begin(&post("/x", "k", "b"));
    assert_eq!(retry.read_head().header("onlyonce-status"), Some("joined"));
    go.fire();
    let whole = retry.finish();
    assert!(whole.whole());
    assert_eq!(whole.text(), "begun, and ended");
    expect_replay(&gateway.post("/x", "k", "b"), &whole);
    assert_eq!(upstream.hits(), 1);
}

/// Case: gzip bombs, in requests and in answers. Answer: passed on as they are, inflated no further than a
/// bound.
#[test]
fn hostile_060_a_gzip_bomb_is_passed_on_and_inflated_within_a_bound() {
    // A real one: 128 MiB of white space in an eighth of a MiB, which JSON may hold, as an answer whose use is
    // looked for and as a request whose JSON is asked for its members.
    const INFLATED: usize = 128 << 20;
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    bomb.write_all(b"{\"usage\":").unwrap();
    let spaces = vec![b' '; 1 << 20];
    for _ in 0..INFLATED >> 20 {
        bomb.write_all(&spaces).unwrap();
    }
    bomb.write_all(b"{\"prompt_tokens\":1,\"completion_tokens\":2}}")
        .unwrap();
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 1 << 18, "{}", bomb.len());
    let answer = bomb.clone();
    let upstream = Upstream::scripted(move |x| {
        let headers = [
            ("Content-Encoding", "gzip"),
            ("Content-Type", "application/json"),
        ];
        x.answer(200, &headers, &answer);
    });
    let gateway = setup(&upstream)
        .upstream("preset = \"openai\"")
        .route("fingerprint_body = \"json\"")
        .start();
    let request = post("/v1/chat/completions", "k", "")
        .body(&bomb)
        .header("Content-Encoding", "gzip")
        .header("Content-Type", "application/json");
    let before = peak_bytes(gateway.pid());
    let first = gateway.send(&request);
    expect_executed(&first, 200);
    assert_eq!(first.body, bomb);
    assert_eq!(first.header("content-encoding"), Some("gzip"));
    expect_replay(&gateway.send(&request), &first);
    assert_eq!(upstream.seen()[0].body.as_deref(), Some(&bomb[..]));
    let growth = peak_bytes(gateway.pid()).saturating_sub(before);
    assert!(growth < INFLATED / 2, "{growth} bytes more at the most");
    assert_eq!(upstream.hits(), 1);
}

/// The most memory that a process has had at once.
fn peak_bytes(pid: u32) -> usize {
    memory_of(pid, "VmHWM:")
}
