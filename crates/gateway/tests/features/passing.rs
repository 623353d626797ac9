//! Traffic without a key: it passes through untouched, streaming both ways.

use onlyonce_testkit::{Request, Signal, Upstream};

use crate::{gateway, setup};

#[test]
fn a_request_body_streams_through() {
    let read = Signal::new();
    let tell = read.clone();
    let upstream = Upstream::scripted(move |x| {
        let first = x.wire().take(8).unwrap();
        assert_eq!(first, b"3\r\none\r\n");
        tell.fire();
        let rest = x.wire().take_through(b"0\r\n\r\n").unwrap();
        assert_eq!(rest, b"3\r\ntwo\r\n0\r\n\r\n");
        x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        x.close();
    });
    let gateway = gateway(&upstream);
    let request = Request::post("/x")
        .no_length()
        .header("Transfer-Encoding", "chunked");
    let mut client = gateway.connect();
    client
        .send_bytes(&request.head_bytes())
        .send_bytes(b"3\r\none\r\n");
    // The upstream has the first part before the client sent the second.
    read.wait();
    client.send_bytes(b"3\r\ntwo\r\n0\r\n\r\n");
    assert_eq!(client.response().expect_status(200).text(), "ok");
}

#[test]
fn a_response_body_streams_through() {
    let (upstream, go) = crate::held();
    let gateway = gateway(&upstream);
    let mut client = gateway.begin(&Request::post("/x").body("b"));
    client.read_head();
    client.read_until("begun");
    go.fire();
    let answer = client.finish();
    assert!(answer.whole());
    assert_eq!(answer.text(), "begun, and ended");
}

#[test]
fn a_broken_response_stays_broken() {
    let upstream = Upstream::scripted(|x| {
        x.start_chunked(200, &[]);
        x.chunk("half");
        x.reset();
    });
    let answer = gateway(&upstream).send(&Request::post("/x").body("b"));
    assert!(answer.status() == 502 || !answer.whole(), "{answer:?}");
    assert_eq!(upstream.hits(), 1, "nothing is retried without a key");
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    let gone = Signal::new();
    let tell = gone.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[]);
        x.chunk("begun");
        x.wait_for_close();
        tell.fire();
    });
    let gateway = gateway(&upstream);
    let mut client = gateway.begin(&Request::post("/x").body("b"));
    client.read_head();
    client.read_until("begun");
    client.reset();
    gone.wait();
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn bodies_have_no_limit_without_a_key() {
    let upstream = Upstream::scripted(|x| {
        let body = x.read_body();
        x.answer(200, &[], &body);
    });
    let gateway = setup(&upstream)
        .limits("request_body = \"1KiB\"\nresponse_body = \"1KiB\"")
        .start();
    let body = "0123456789".repeat(100_000);
    let answer = gateway.send(&Request::post("/x").body(&body));
    answer.expect_status(200);
    assert!(answer.text() == body, "the echo differs");
    assert_eq!(upstream.seen()[0].head.content_length(), Some(body.len()));
}

#[test]
fn headers_pass_in_their_order_and_number() {
    let upstream = Upstream::scripted(|x| {
        x.answer(
            200,
            &[
                ("X-B", "1"),
                ("Set-Cookie", "a=1"),
                ("X-B", "2"),
                ("Set-Cookie", "b=2"),
            ],
            b"",
        );
    });
    let gateway = gateway(&upstream);
    let answer = gateway.send(
        &Request::get("/a%2Fb?q=%20&q")
            .header("X-A", "2")
            .header("X-A", "1")
            .header("Cookie", "c=d"),
    );
    assert_eq!(answer.head.all("x-b"), ["1", "2"]);
    assert_eq!(answer.head.all("set-cookie"), ["a=1", "b=2"]);
    let seen = upstream.seen().remove(0).head;
    assert_eq!(seen.word(1), "/a%2Fb?q=%20&q");
    assert_eq!(seen.all("x-a"), ["2", "1"]);
    assert_eq!(seen.header("cookie"), Some("c=d"));
    assert_eq!(
        seen.header("host"),
        Some(upstream.addr().to_string().as_str())
    );
}

#[test]
fn an_upstream_that_is_away_is_a_problem_document() {
    let refusing = onlyonce_testkit::Refusing::new();
    let gateway = onlyonce_testkit::Gateway::before(crate::BIN, &refusing.url());
    gateway
        .send(&Request::post("/x").body("b"))
        .expect_problem(502, "upstream-unreachable");
}

#[test]
fn a_keep_alive_connection_serves_many() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let mut client = gateway.connect();
    for n in 1..=50 {
        let answer = client.ask(&Request::post("/x").body("b"));
        assert_eq!(
            answer.expect_status(200).text(),
            format!("execution {n} of POST /x")
        );
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn the_end_of_a_passed_answer_may_be_the_end_of_the_connection() {
    let upstream = Upstream::scripted(|x| {
        x.read_body();
        x.send(b"HTTP/1.1 200 OK\r\n\r\nto the end");
        x.close();
    });
    let answer = gateway(&upstream).send(&Request::post("/x").body("b"));
    assert_eq!(answer.expect_status(200).text(), "to the end");
}
