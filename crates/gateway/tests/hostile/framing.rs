//! Cases 34 to 51: message framing, methods and protocols.

use onlyonce_testkit::{Client, Gateway, Request, Signal, Upstream};

use crate::{expect_executed, expect_replay, gateway, post, setup};

/// Bytes that are no valid request: answered 400 and the connection closed, nothing sent.
#[track_caller]
fn expect_refused_bytes(requests: &[&str]) {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    for request in requests {
        let mut client = gateway.connect();
        let answer = client.try_send_bytes(request.as_bytes()).response();
        assert_eq!(answer.status(), 400, "{request:?}: {:?}", answer.head);
        assert!(client.closed(), "{request:?}: the connection stays open");
    }
    assert_eq!(upstream.hits(), 0);
    nothing_is_claimed(&gateway);
}

#[track_caller]
fn nothing_is_claimed(gateway: &Gateway) {
    let all = gateway.control().json("/v1/operations");
    assert_eq!(all["operations"].as_array().map(Vec::len), Some(0), "{all}");
}

/// Case: a length and chunks in one request. Answer: 400, closed.
#[test]
fn hostile_034_a_length_and_chunks_together_are_refused() {
    expect_refused_bytes(&[
        "POST /x HTTP/1.1\r\nHost: h\r\nIdempotency-Key: k\r\nContent-Length: 6\r\n\
         Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
        "POST /x HTTP/1.1\r\nHost: h\r\nIdempotency-Key: k\r\nTransfer-Encoding: chunked\r\n\
         Content-Length: 6\r\n\r\n0\r\n\r\nX",
        "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n\
         0\r\n\r\nX",
    ]);
}

/// Case: two lengths. Answer: 400, closed.
#[test]
fn hostile_035_two_lengths_are_refused() {
    expect_refused_bytes(&[
        "POST /x HTTP/1.1\r\nHost: h\r\nIdempotency-Key: k\r\nContent-Length: 1\r\n\
         Content-Length: 2\r\n\r\nab",
        "POST /x HTTP/1.1\r\nHost: h\r\nIdempotency-Key: k\r\nContent-Length: 1, 2\r\n\r\nab",
        "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    ]);
}

/// Case: a length with a sign, in hexadecimal, empty, or too large. Answer: 400, closed.
#[test]
fn hostile_036_a_length_that_is_no_number_is_refused() {
    for length in [
        "+5",
        "0x5",
        "",
        "5 5",
        "-5",
        "5a",
        "99999999999999999999999",
    ] {
        expect_refused_bytes(&[&format!(
            "POST /x HTTP/1.1\r\nHost: h\r\nIdempotency-Key: k\r\nContent-Length: {length}\r\n\r\n\
             hello"
        )]);
    }
}

/// Case: an unknown transfer coding. Answer: 400, closed.
#[test]
fn hostile_037_an_unknown_transfer_encoding_is_refused() {
    for coding in ["xchunked", "chunked, gzip", "identity", "chunked\u{b}"] {
        expect_refused_bytes(&[&format!(
            "POST /x HTTP/1.1\r\nHost: h\r\nIdempotency-Key: k\r\nTransfer-Encoding: {coding}\r\n\
             \r\n0\r\n\r\n"
        )]);
    }
}

/// Case: chunks in HTTP/1.0. Answer: 400, closed.
#[test]
fn hostile_038_chunks_in_http_1_0_are_refused() {
    expect_refused_bytes(&["POST /x HTTP/1.0\r\nHost: h\r\nIdempotency-Key: k\r\n\
         Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"]);
}

/// Case: chunk lines with a bare LF or CR, or with a size that cannot be. Answer: 400, closed.
#[test]
fn hostile_039_a_broken_chunk_line_is_refused() {
    for chunks in [
        "1\na\r\n0\r\n\r\n",
        "1\ra\r\n0\r\n\r\n",
        "1;x\ny\r\na\r\n0\r\n\r\n",
        "fffffffffffffffff\r\na",
        "-1\r\na",
        "1\r\nabc\r\n0\r\n\r\n",
        "zz\r\n",
    ] {
        expect_refused_bytes(&[&format!(
            "POST /x HTTP/1.1\r\nHost: h\r\nIdempotency-Key: k\r\nTransfer-Encoding: chunked\r\n\
             \r\n{chunks}"
        )]);
    }
}

/// Case: a folded header, and a space before a colon. Answer: 400, closed.
#[test]
fn hostile_040_folded_headers_and_a_space_before_the_colon_are_refused() {
    expect_refused_bytes(&[
        "POST /x HTTP/1.1\r\nHost: h\r\nIdempotency-Key: k\r\n folded\r\nContent-Length: 0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: h\r\nIdempotency-Key : k\r\nContent-Length: 0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length : 0\r\n\r\n",
    ]);
}

/// Case: a key in the trailers. Answer: does not count.
#[test]
fn hostile_041_a_key_in_trailers_is_ignored() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    for hit in 1..=2 {
        let answer = gateway
            .connect()
            .send_bytes(
                b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\
                  Trailer: Idempotency-Key\r\n\r\n1\r\na\r\n0\r\nIdempotency-Key: k\r\n\r\n",
            )
            .response();
        answer.expect_status(200);
        assert_eq!(answer.mark(), None);
        assert_eq!(upstream.hits(), hit);
    }
    nothing_is_claimed(&gateway);
}

/// Case: no Host, or two. Answer: 400, closed.
#[test]
fn hostile_042_two_hosts_or_none_are_refused() {
    expect_refused_bytes(&[
        "POST /x HTTP/1.1\r\nHost: a\r\nHost: b\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n",
        "POST /x HTTP/1.1\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n",
        "GET /x HTTP/1.1\r\n\r\n",
    ]);
}

/// Case: a target elsewhere, and CONNECT. Answer: 400, nothing is sent.
#[test]
fn hostile_043_a_request_for_elsewhere_is_refused() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    for head in [
        "POST http://elsewhere.test/x HTTP/1.1\r\nHost: elsewhere.test\r\n",
        "GET http://elsewhere.test/x HTTP/1.1\r\nHost: h\r\n",
        "CONNECT elsewhere.test:443 HTTP/1.1\r\nHost: elsewhere.test:443\r\n",
    ] {
        let request = format!("{head}Idempotency-Key: k\r\nContent-Length: 0\r\n\r\n");
        let answer = gateway
            .connect()
            .try_send_bytes(request.as_bytes())
            .response();
        assert_eq!(answer.status(), 400, "{head:?}: {:?}", answer.head);
    }
    assert_eq!(upstream.hits(), 0);
    nothing_is_claimed(&gateway);
}

/// Case: `Expect: 100-continue` on a retry. Answer: the final answer.
#[test]
fn hostile_044_a_replay_answers_an_expectation_with_the_final_answer() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let request = post("/x", "k", "body").header("Expect", "100-continue");
    let mut client = gateway.connect();
    client.send_bytes(&request.head_bytes());
    assert_eq!(
        client.read_head().status(),
        100,
        "it has to see the body to know the request"
    );
    client.send_bytes(b"body");
    let first = client.response();
    expect_executed(&first, 200);
    // The fingerprint takes the body, so a 100 may come first; the final answer must follow.
    let mut client = gateway.connect();
    client.send_bytes(&request.head_bytes());
    let head = client.read_head();
    if head.status() == 100 {
        client.send_bytes(b"body");
        client.read_head();
    }
    expect_replay(&client.finish(), &first);
    assert_eq!(upstream.hits(), 1);
    assert_eq!(upstream.seen()[0].body.as_deref(), Some(&b"body"[..]));
}

/// Case: an upgrade with a key. Answer: 400 `upgrade-refused`.
#[test]
fn hostile_045_an_upgrade_with_a_key_is_refused() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    for kind in ["websocket", "h2c"] {
        let request = Request::post("/x")
            .key("k")
            .header("Connection", "Upgrade")
            .header("Upgrade", kind)
            .body("b");
        gateway
            .send(&request)
            .expect_problem(400, "upgrade-refused")
            .expect_retry(false);
    }
    assert_eq!(upstream.hits(), 0);
    nothing_is_claimed(&gateway);
}

/// Case: an answer is due while the request's body is unread. Answer: the body is drained within a bound,
/// or the connection closed; a replay waits for the body.
#[test]
fn hostile_046_an_answer_before_the_body_was_read_leaves_the_connection_in_order() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let refused = post("/x", "bad,key", &"b".repeat(2_000_000));
    // The body never comes: the answer does.
    let mut client = gateway.connect();
    client.send_bytes(&refused.head_bytes());
    client.response().expect_problem(400, "key-malformed");
    drop(client);
    // The body comes late: either it is drained and the next request is served, or the
    // connection is closed. Never is the body taken for a request.
    let mut client = gateway.connect();
    client.send_bytes(&refused.head_bytes());
    client.response().expect_problem(400, "key-malformed");
    client.try_send_bytes(&b"POST /smuggled HTTP/1.1\r\nHost: h\r\n\r\n".repeat(50_000));
    if client.try_read_head().is_ok() {
        let answer = client.finish();
        panic!("the body was answered as a request: {:?}", answer.head);
    }
    assert_eq!(upstream.hits(), 0);
    // A small body that is there already: the connection may go on.
    let mut client = gateway.connect();
    client.send(&post("/x", "bad,key", "b"));
    client.response().expect_problem(400, "key-malformed");
    nothing_is_claimed(&gateway);
}

#[test]
fn hostile_046_a_replay_waits_for_the_body_that_makes_it_one() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).server("body_timeout = \"500ms\"").start();
    let request = post("/x", "k", "body");
    let first = gateway.send(&request);
    expect_executed(&first, 200);
    // Without its body nobody can tell that it is the same request: not a byte of the answer is shown.
    let mut client = gateway.connect();
    client.send_bytes(&request.head_bytes()).send_bytes(b"bod");
    client.response().expect_problem(408, "request-timeout");
    assert!(client.closed());
    // With it the answer is there, and the connection still in order.
    let mut client = gateway.connect();
    client.send_bytes(&request.head_bytes()).send_bytes(b"bod");
    client.send_bytes(b"y");
    expect_replay(&client.response(), &first);
    expect_replay(&client.ask(&request), &first);
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn hostile_046_a_body_without_end_after_the_answer_is_read_within_a_bound() {
    const MOST: usize = 64 << 20;
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let mut client = gateway.connect();
    let endless = post("/x", "bad,key", "")
        .no_length()
        .header("Transfer-Encoding", "chunked");
    client.send_bytes(&endless.head_bytes());
    client.response().expect_problem(400, "key-malformed");
    let chunk = [b"10000\r\n", &vec![b'x'; 0x1_0000][..], b"\r\n"].concat();
    let sent = (0..MOST / chunk.len())
        .take_while(|_| client.wire().send(&chunk).is_ok())
        .count();
    assert!(
        sent < MOST / chunk.len(),
        "64 MiB were read for a request that was answered"
    );
    assert_eq!(upstream.hits(), 0);
    nothing_is_claimed(&gateway);
}

/// Case: `Connection: idempotency-key`. Answer: it is the key all the same.
#[test]
fn hostile_047_a_key_named_as_hop_by_hop_still_counts() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let request = post("/x", "k", "b").header("Connection", "idempotency-key");
    let first = gateway.send(&request);
    expect_executed(&first, 200);
    expect_replay(&gateway.send(&request), &first);
    expect_replay(&gateway.post("/x", "k", "b"), &first);
    assert_eq!(upstream.hits(), 1);
}

/// Case: requests that do not wait for each other on one connection. Answer: answered in order.
#[test]
fn hostile_048_pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let mut both = post("/1", "k1", "b").bytes();
    both.extend(post("/2", "k2", "b").bytes());
    both.extend(post("/1", "k1", "b").bytes());
    let mut client = gateway.connect();
    client.send_bytes(&both);
    let (first, second, third) = (client.response(), client.response(), client.response());
    expect_executed(&first, 200);
    expect_executed(&second, 200);
    assert_eq!(first.text(), "execution 1 of POST /1");
    assert_eq!(second.text(), "execution 2 of POST /2");
    expect_replay(&third, &first);
    assert_eq!(upstream.hits(), 2);
}

#[test]
fn hostile_048_a_pipelined_retry_while_its_first_attempt_runs_is_answered_after_it() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        wait.wait();
        x.answer(200, &[], b"done");
    });
    let gateway = gateway(&upstream);
    let mut client: Client = gateway.connect();
    client.send_bytes(&post("/1", "k", "b").bytes().repeat(2));
    upstream.wait_for_hits(1);
    go.fire();
    let first = client.response();
    expect_executed(&first, 200);
    expect_replay(&client.response(), &first);
    assert_eq!(upstream.hits(), 1);
}

/// Case: GET, HEAD and OPTIONS with a key. Answer: pass through, without a record.
#[test]
fn hostile_051_safe_methods_pass_through() {
    let upstream = Upstream::scripted(|x| {
        let text = format!("execution {}", x.number);
        match x.head.word(0) {
            // A length without a body, as RFC 9110 section 9.3.2 allows.
            "HEAD" => {
                x.send_head(200, &[("Content-Length", "11")]);
            }
            _ => x.answer(200, &[], text.as_bytes()),
        }
    });
    let gateway = gateway(&upstream);
    for (round, method) in ["GET", "HEAD", "OPTIONS", "GET"].into_iter().enumerate() {
        let mut client = gateway.connect();
        let answer = client.ask(&Request::new(method, "/x").key("k"));
        answer.expect_status(200);
        assert_eq!(answer.mark(), None, "{method}");
        assert_eq!(upstream.hits(), round + 1);
        // The connection is still in order.
        if method != "HEAD" {
            assert_eq!(answer.text(), format!("execution {}", round + 1));
        }
    }
    nothing_is_claimed(&gateway);
}
