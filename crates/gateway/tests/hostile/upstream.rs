//! Cases 61 to 74: an upstream that refuses, breaks, stalls or floods.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use onlyonce_testkit::{Gateway, Refusing, Request, Response, Setup, Signal, Upstream};

use crate::{expect_executed, expect_replay, gateway, post, program, setup};

/// The upstream cannot be reached: 502, and the key is free again.
#[track_caller]
fn expect_unreachable(gateway: &Gateway) {
    for _ in 0..2 {
        let answer = gateway.post("/x", "k", "b");
        answer
            .expect_problem(502, "upstream-unreachable")
            .expect_retry(true);
        assert_eq!(answer.header("idempotent-replayed"), None);
        let states = gateway.control().operations("k");
        assert!(
            states.iter().all(|op| op["state"] == "released"),
            "{states:?}"
        );
    }
}

/// Case: the upstream refuses, has no address, or fails at TLS. Answer: 502 `upstream-unreachable`,
/// released.
#[test]
fn hostile_061_a_refused_connection_releases() {
    let refusing = Refusing::new();
    let gateway = Gateway::before(program(), &refusing.url());
    expect_unreachable(&gateway);
    // Once it listens, the same key runs.
    let listener = refusing.listen();
    let served = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut wire = onlyonce_testkit::Wire::new(stream);
        wire.take_head().unwrap();
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nback")
            .unwrap();
    });
    let answer = gateway.post("/x", "k", "b");
    expect_executed(&answer, 200);
    assert_eq!(answer.text(), "back");
    served.join().unwrap();
}

#[test]
fn hostile_061_a_name_that_does_not_resolve_releases() {
    expect_unreachable(&Gateway::before(program(), "http://no-such-host.invalid:9"));
}

#[test]
fn hostile_061_a_failed_tls_handshake_releases() {
    let upstream = Upstream::raw(|mut wire, _| {
        let _ = wire.fill();
        let _ = wire.send(b"HTTP/1.1 400 this is no TLS\r\n\r\n");
    });
    let gateway = Gateway::before(program(), &format!("https://{}", upstream.addr()));
    expect_unreachable(&gateway);
    assert_eq!(upstream.hits(), 0);
}

/// The outcome is unknown, and every retry is told so: nothing more is sent.
#[track_caller]
pub fn expect_unknown_from_now_on(gateway: &Gateway, request: &Request, key: &str) {
    for _ in 0..2 {
        let retry = gateway.send(request);
        assert!(
            matches!(retry.status(), 502 | 504),
            "{:?} {}",
            retry.head,
            retry.text()
        );
        retry
            .expect_problem(retry.status(), "outcome-unknown")
            .expect_retry(false);
    }
    let operation = gateway.control().operation(key);
    assert_eq!(operation["state"], "unknown", "{operation}");
    assert!(
        operation["reason"].as_str().is_some_and(|r| !r.is_empty()),
        "{operation}"
    );
}

/// Case: the upstream resets after any byte of the request. Answer: 502 `outcome-unknown`, from then on.
#[test]
fn hostile_062_a_reset_anywhere_in_the_request_is_unknown() {
    const BODY: &str = "the body";
    let length = Arc::new(AtomicUsize::new(0));
    let measured = Arc::clone(&length);
    let upstream = Upstream::raw(move |mut wire, number| {
        if number == 1 {
            // How long a request is as the gateway sends it.
            let head = wire.take_through(b"\r\n\r\n").unwrap();
            wire.take(BODY.len()).unwrap();
            measured.store(head.len() + BODY.len(), Ordering::SeqCst);
            wire.reset();
        } else if wire.take(number - 1).is_ok() {
            // The n-th one after it is reset after n bytes of its request.
            wire.reset();
        }
    });
    let gateway = gateway(&upstream);
    let request = |n: usize| post("/x", &format!("k{n:03}"), BODY);
    gateway.send(&request(0));
    let length = length.load(Ordering::SeqCst);
    assert!(length > 80, "{length}");
    for n in 1..=length {
        let answer = gateway.send(&request(n));
        answer
            .expect_problem(502, "outcome-unknown")
            .expect_retry(false);
        assert_eq!(upstream.connections(), n + 1, "a reset is not retried");
        expect_unknown_from_now_on(&gateway, &request(n), &format!("k{n:03}"));
    }
    assert_eq!(upstream.connections(), length + 1);
}

#[test]
fn hostile_062_a_reset_of_a_pooled_connection_after_the_request_is_unknown() {
    let upstream = Upstream::scripted(|x| {
        if x.number == 1 {
            x.answer(200, &[], b"one");
        } else {
            x.reset();
        }
    });
    let gateway = gateway(&upstream);
    expect_executed(&gateway.post("/x", "k1", "b"), 200);
    gateway
        .post("/x", "k2", "b")
        .expect_problem(502, "outcome-unknown")
        .expect_retry(false);
    expect_unknown_from_now_on(&gateway, &post("/x", "k2", "b"), "k2");
    assert_eq!(
        upstream.hits(),
        2,
        "a request that was sent is never sent again"
    );
}

/// Answers with the first n bytes of a response, for the n-th request, and ends as told.
#[track_caller]
fn cut_everywhere(response: &'static str, reset: bool) {
    let upstream = Upstream::scripted(move |x| {
        x.read_body();
        let cut = x.number - 1;
        x.send(&response.as_bytes()[..cut]);
        if reset { x.reset() } else { x.close() }
    });
    let gateway = gateway(&upstream);
    for n in 0..response.len() {
        let key = format!("k{n}");
        let request = post("/x", &key, "b");
        let mut client = gateway.begin(&request);
        client.read_head();
        let answer = client.finish();
        if answer.status() == 502 {
            answer
                .expect_problem(502, "outcome-unknown")
                .expect_retry(false);
        } else {
            assert!(
                !answer.whole(),
                "a cut after {n} bytes reads as whole: {answer:?}"
            );
        }
        expect_unknown_from_now_on(&gateway, &request, &key);
    }
    assert_eq!(upstream.hits(), response.len());
}

/// Case: the upstream resets after any byte of its answer. Answer: a broken body, then `outcome-unknown`.
#[test]
fn hostile_063_a_reset_anywhere_in_the_response_is_unknown() {
    cut_everywhere(
        "HTTP/1.1 200 OK\r\nContent-Length: 12\r\nX-A: b\r\n\r\nhello, world",
        true,
    );
}

#[test]
fn hostile_063_a_reset_anywhere_in_a_chunked_response_is_unknown() {
    cut_everywhere(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n",
        true,
    );
}

#[test]
fn hostile_063_readers_who_joined_are_broken_too() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[]);
        x.chunk("begun");
        wait.wait();
        x.reset();
    });
    let gateway = gateway(&upstream);
    let request = post("/x", "k", "b");
    let mut readers: Vec<_> = (0..5).map(|_| gateway.begin(&request)).collect();
    for reader in &mut readers {
        assert_eq!(reader.read_head().status(), 200);
        reader.read_until("begun");
    }
    go.fire();
    for reader in &mut readers {
        let answer = reader.finish();
        assert!(!answer.whole(), "{answer:?}");
    }
    expect_unknown_from_now_on(&gateway, &request, "k");
    assert_eq!(upstream.hits(), 1);
}

/// An operator says that what ran under `key`, and is unknown, did not run.
#[track_caller]
pub fn release(gateway: &Gateway, key: &str) {
    let id = gateway.control().operation(key)["id"].clone();
    let looked_up = json!({"outcome": "released", "reason": "looked it up"});
    gateway
        .control()
        .resolve(id.as_str().unwrap(), &looked_up)
        .expect_status(200);
}

/// Case: no answer in time. Answer: 504 `outcome-unknown`; a late answer completes the record.
#[test]
fn hostile_064_no_answer_in_time_is_unknown() {
    let upstream = Upstream::scripted(|x| {
        x.read_body();
        x.wait_for_close();
    });
    let gateway = setup(&upstream)
        .route("first_byte_timeout = \"200ms\"\nlate_answer = \"200ms\"")
        .start();
    let request = post("/x", "k", "b");
    gateway
        .send(&request)
        .expect_problem(504, "outcome-unknown")
        .expect_retry(false);
    gateway.control().wait_for_state("k", "unknown");
    expect_unknown_from_now_on(&gateway, &request, "k");
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn hostile_064_a_late_answer_completes_the_record() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.read_body();
        wait.wait();
        x.answer(200, &[], b"late");
    });
    let gateway = setup(&upstream)
        .route("first_byte_timeout = \"200ms\"\nlate_answer = \"60s\"")
        .start();
    let request = post("/x", "k", "b");
    gateway
        .send(&request)
        .expect_problem(504, "outcome-unknown")
        .expect_retry(false);
    assert_eq!(upstream.hits(), 1);
    go.fire();
    gateway.control().wait_for_state("k", "completed");
    let late = gateway.send(&request);
    late.expect_status(200).expect_mark("replayed");
    assert_eq!(late.text(), "late");
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn hostile_064_i09_a_late_answer_changes_nothing_once_the_key_ran_again() {
    let (go, over) = (Signal::new(), Signal::new());
    let (wait, ended) = (go.clone(), over.clone());
    let upstream = Upstream::scripted(move |x| {
        if x.number > 1 {
            return x.answer(200, &[], b"again");
        }
        x.read_body();
        wait.wait();
        x.answer(200, &[("Connection", "close")], b"late");
        x.wait_for_close();
        ended.fire();
    });
    let gateway = setup(&upstream)
        .route("first_byte_timeout = \"200ms\"\nlate_answer = \"60s\"")
        .start();
    let request = post("/x", "k", "b");
    gateway
        .send(&request)
        .expect_problem(504, "outcome-unknown");
    release(&gateway, "k");
    let again = gateway.send(&request);
    expect_executed(&again, 200);
    assert_eq!(again.text(), "again");
    go.fire();
    over.wait();
    expect_replay(&gateway.send(&request), &again);
    assert_eq!(gateway.control().operation("k")["state"], "completed");
    assert_eq!(upstream.hits(), 2);
}

/// What an operator says that it did not run, since the upstream has nothing of it, does not run afterwards: what the
/// gateway still had to send of it is not sent, nor what lay with the system when its answer was given up.
#[test]
fn hostile_064_i01_a_request_that_an_operator_released_is_not_sent_to_its_end() {
    // More than the sockets between them hold; and less than that, but more than the upstream's does.
    const MORE: usize = 32 << 20;
    const LESS: usize = 200 << 10;
    for (length, says, late_answer) in [
        (MORE, "", "60s"),
        (LESS, "", "0s"),
        (LESS, "nonsense\r\n\r\n", "60s"),
        (MORE, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", "60s"),
    ] {
        let (unknown, released, over) = (Signal::new(), Signal::new(), Signal::new());
        let (is_late, go, ended) = (unknown.clone(), released.clone(), over.clone());
        let came_whole = Arc::new(AtomicUsize::new(0));
        let whole = Arc::clone(&came_whole);
        let upstream = Upstream::scripted(move |x| {
            if x.number == 1 {
                // It stops to read in the middle of the body.
                if length == MORE {
                    is_late.wait();
                }
                x.wire().send(says.as_bytes()).unwrap();
                go.wait();
            }
            let is_whole = x.read_body().len() == length;
            whole.fetch_add(usize::from(is_whole), Ordering::SeqCst);
            match x.number {
                1 => ended.fire(),
                _ => x.answer(200, &[], b"again"),
            }
        });
        let gateway = setup(&upstream)
            .route(&format!(
                "first_byte_timeout = \"3s\"\nlate_answer = \"{late_answer}\""
            ))
            .start();
        let request = post("/x", "k", &"b".repeat(length));
        let answer = gateway.send(&request);
        assert_eq!(answer.problem().as_deref(), Some("outcome-unknown"));
        unknown.fire();
        release(&gateway, "k");
        released.fire();
        over.wait();
        expect_executed(&gateway.send(&request), 200);
        assert_eq!(
            came_whole.load(Ordering::SeqCst),
            1,
            "{length} bytes, {says:?}"
        );
    }
}

/// Each part of a request that goes out puts the deadline off, but no further than the exchange may take in all.
#[test]
fn l1_a_request_that_goes_out_slowly_is_not_waited_for_without_end() {
    // More than the sockets between them hold, and seven times what is read until then.
    const LENGTH: usize = 32 << 20;
    let told = Signal::new();
    let until = told.clone();
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let upstream = Upstream::scripted(move |x| {
        while !until.wait_at_most(Duration::from_millis(100)) {
            match x.wire().take(256 << 10) {
                Ok(bytes) => count.fetch_add(bytes.len(), Ordering::SeqCst),
                Err(_) => break,
            };
        }
    });
    let gateway = setup(&upstream)
        .route("first_byte_timeout = \"2s\"\ntotal_timeout = \"2s\"")
        .start();
    let request = post("/x", "k", &"b".repeat(LENGTH));
    gateway
        .send(&request)
        .expect_problem(504, "outcome-unknown");
    told.fire();
    let taken = taken.load(Ordering::SeqCst);
    assert!(taken < LENGTH - (256 << 10), "it was waited for all of it");
}

/// Case: chunks that are cut short. Answer: a broken body, then `outcome-unknown`.
#[test]
fn hostile_069_chunks_cut_short_are_unknown() {
    cut_everywhere(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        false,
    );
}

/// Case: a body shorter than its length. Answer: a broken body, then `outcome-unknown`.
#[test]
fn hostile_070_a_body_shorter_than_its_length_is_unknown() {
    cut_everywhere(
        "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nhello, world",
        false,
    );
}

/// Case: a body longer than its length. Answer: the rest is dropped, with the connection.
#[test]
fn hostile_071_what_comes_after_the_length_is_discarded_with_the_connection() {
    let upstream = Upstream::scripted(|x| {
        x.read_body();
        x.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\
              HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
        );
    });
    let gateway = gateway(&upstream);
    for key in ["k1", "k2", "k3"] {
        let answer = gateway.post("/x", key, "b");
        expect_executed(&answer, 200);
        assert_eq!(answer.text(), "hello");
        expect_replay(&gateway.post("/x", key, "b"), &answer);
    }
    assert_eq!((upstream.hits(), upstream.connections()), (3, 3));
}

/// A transfer coding that is not `chunked` says no more of where a body ends; and one below it would be lost.
#[test]
fn hostile_072_another_transfer_coding_is_no_end() {
    for coding in ["identity", "gzip", "gzip, chunked"] {
        let upstream = Upstream::scripted(move |x| {
            x.read_body();
            let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n");
            x.send(head.as_bytes());
            x.send(b"5\r\nbytes\r\n0\r\n\r\n");
            x.close();
        });
        let gateway = gateway(&upstream);
        let request = post("/x", "k", "b");
        let answer = gateway.send(&request);
        assert!(answer.status() == 502 || !answer.whole(), "{answer:?}");
        expect_unknown_from_now_on(&gateway, &request, "k");
        assert_eq!(upstream.hits(), 1, "{coding}");
    }
}

/// An answer without a length that ends by the end of the connection.
fn ends_by_close() -> Upstream {
    Upstream::scripted(|x| {
        x.read_body();
        x.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nto the end");
        x.close();
    })
}

/// Case: a body that ends with the connection. Answer: `outcome-unknown`; recorded where the route allows
/// it.
#[test]
fn hostile_072_an_end_by_close_is_unknown() {
    let upstream = ends_by_close();
    let gateway = gateway(&upstream);
    let request = post("/x", "k", "b");
    let answer = gateway.send(&request);
    assert!(answer.status() == 502 || !answer.whole(), "{answer:?}");
    expect_unknown_from_now_on(&gateway, &request, "k");
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn hostile_072_an_end_by_close_is_recorded_where_the_route_allows_it() {
    let upstream = ends_by_close();
    let gateway = setup(&upstream)
        .route("allow_close_delimited = true")
        .start();
    let answer = gateway.post("/x", "k", "b");
    expect_executed(&answer, 200);
    assert_eq!(answer.text(), "to the end");
    expect_replay(&gateway.post("/x", "k", "b"), &answer);
    assert_eq!(upstream.hits(), 1);
}

/// A chunked answer that goes on until the gateway hangs up.
fn endless(pause: Duration, piece: usize) -> Upstream {
    let never = Arc::new(Signal::new());
    Upstream::scripted(move |x| {
        x.start_chunked(200, &[]);
        while x.chunk("x".repeat(piece)) && !never.wait_at_most(pause) {}
        x.wait_for_close();
    })
}

#[track_caller]
fn expect_cut_off(upstream: &Upstream, gateway: &Gateway) {
    let request = post("/x", "k", "b");
    let answer: Response = gateway.send(&request);
    assert!(!answer.whole(), "an endless answer ended: {:?}", answer.end);
    gateway.control().wait_for_state("k", "unknown");
    expect_unknown_from_now_on(gateway, &request, "k");
    assert_eq!(upstream.hits(), 1);
}

/// Case: an answer without an end. Answer: cut off by size and by time, then `outcome-unknown`.
#[test]
fn hostile_073_an_answer_without_end_meets_the_size_cap() {
    let upstream = endless(Duration::ZERO, 4096);
    let gateway = setup(&upstream).limits("response_body = \"1MiB\"").start();
    expect_cut_off(&upstream, &gateway);
}

#[test]
fn hostile_073_an_answer_longer_than_the_cap_by_its_own_length_is_cut_off() {
    let upstream = Upstream::scripted(|x| x.answer(200, &[], &vec![b'x'; 100_000]));
    let gateway = setup(&upstream).limits("response_body = \"64KiB\"").start();
    let request = post("/x", "k", "b");
    let answer = gateway.send(&request);
    assert!(
        answer.status() == 502 || !answer.whole(),
        "{:?}",
        answer.head
    );
    expect_unknown_from_now_on(&gateway, &request, "k");
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn hostile_073_an_answer_without_end_meets_the_time_cap() {
    let upstream = endless(Duration::from_millis(20), 1);
    let gateway = setup(&upstream).route("total_timeout = \"500ms\"").start();
    expect_cut_off(&upstream, &gateway);
}

#[test]
fn hostile_073_an_answer_that_stalls_is_cut_off() {
    let upstream = endless(Duration::from_secs(60), 1);
    let gateway = setup(&upstream)
        .route("between_bytes_timeout = \"300ms\"")
        .start();
    expect_cut_off(&upstream, &gateway);
}

/// Case: huge and malformed headers in the answer. Answer: 502 `outcome-unknown`.
#[test]
fn hostile_074_huge_or_malformed_headers_are_unknown() {
    let huge = format!(
        "HTTP/1.1 200 OK\r\nX-Huge: {}\r\nContent-Length: 0\r\n\r\n",
        "x".repeat(2_000_000)
    );
    let many = format!(
        "HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n",
        "X-Many: y\r\n".repeat(20_000)
    );
    let answers = [
        huge.as_str(),
        many.as_str(),
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nabc",
        "SSH-2.0-OpenSSH_9.6\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
    ]
    .map(str::to_owned);
    let count = answers.len();
    let upstream = Upstream::scripted(move |x| {
        x.read_body();
        let answer = answers[x.number - 1].clone();
        x.send(answer.as_bytes());
        x.close();
    });
    let gateway = Setup::new(program(), &upstream.url()).start();
    for n in 0..count {
        let key = format!("k{n}");
        let request = post("/x", &key, "b");
        gateway
            .send(&request)
            .expect_problem(502, "outcome-unknown")
            .expect_retry(false);
        expect_unknown_from_now_on(&gateway, &request, &key);
    }
    assert_eq!(upstream.hits(), count);
}
