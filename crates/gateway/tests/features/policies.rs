//! What a route can choose: `concurrent`, `on_unknown`, `client_gone`, `release`, the fingerprint,
//! the gateway's own retries, time-outs.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use onlyonce_testkit::{PATIENCE, Refusing, Setup, Signal, Upstream};
use socket2::{Domain, Socket, Type};

use crate::faults::Faults;
use crate::{BIN, expect_executed, expect_replay, gateway, held, post, setup};

#[test]
fn a_joiner_that_waits_too_long_is_told_to_come_again() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        wait.wait();
        x.answer(200, &[], b"done");
    });
    let gateway = setup(&upstream).route("join_timeout = \"300ms\"").start();
    let mut first = gateway.begin(&post("/x", "k", "b"));
    upstream.wait_for_hits(1);
    let waited = Instant::now();
    let joiner = gateway.post("/x", "k", "b");
    joiner
        .expect_problem(409, "operation-in-flight")
        .expect_retry(true);
    assert!(
        joiner
            .header("retry-after")
            .is_some_and(|v| v.parse::<u32>().is_ok())
    );
    assert!(waited.elapsed().as_millis() >= 300);
    go.fire();
    let first = first.response();
    expect_executed(&first);
    expect_replay(&gateway.post("/x", "k", "b"), &first);
    assert_eq!(upstream.hits(), 1);
}

/// An upstream that breaks the first exchange and answers the others.
fn breaks_once() -> Upstream {
    Upstream::scripted(|x| match x.number {
        1 => x.reset(),
        _ => x.answer(200, &[], b"at last"),
    })
}

#[test]
fn an_upstream_that_honours_keys_gets_the_same_key_again() {
    let upstream = breaks_once();
    let gateway = setup(&upstream)
        .route("on_unknown = \"resend\"\nupstream_honours_keys = true")
        .start();
    gateway
        .post("/x", "\"k\"", "b")
        .expect_problem(502, "outcome-unknown");
    let second = gateway.post("/x", "k", "b");
    expect_executed(&second);
    assert_eq!(second.text(), "at last");
    expect_replay(&gateway.post("/x", "k", "b"), &second);
    let keys: Vec<_> = upstream
        .seen()
        .iter()
        .map(|seen| {
            seen.head
                .header("idempotency-key")
                .map(|key| key.trim_matches('"').to_owned())
        })
        .collect();
    assert_eq!(keys, [Some("k".to_owned()), Some("k".to_owned())]);
}

#[test]
fn a_resend_that_may_run_twice_needs_these_words() {
    let upstream = breaks_once();
    let gateway = setup(&upstream)
        .route("on_unknown = \"resend:may-run-twice\"")
        .start();
    gateway
        .post("/x", "k", "b")
        .expect_problem(502, "outcome-unknown");
    // Another request under the key is refused all the same.
    gateway
        .post("/x", "k", "c")
        .expect_problem(422, "key-reused");
    expect_executed(&gateway.post("/x", "k", "b"));
    assert_eq!(upstream.hits(), 2);
}

#[test]
fn an_execution_can_be_cancelled_with_its_caller() {
    let gone = Signal::new();
    let tell = gone.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[]);
        x.chunk("begun");
        x.wait_for_close();
        tell.fire();
    });
    let gateway = setup(&upstream).route("client_gone = \"cancel\"").start();
    let mut client = gateway.begin(&post("/x", "k", "b"));
    client.read_head();
    client.read_until("begun");
    client.reset();
    gone.wait();
    gateway.control().wait_for_state("k", "unknown");
    gateway
        .post("/x", "k", "b")
        .expect_problem(502, "outcome-unknown")
        .expect_retry(false);
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn a_retry_in_the_moment_of_a_cancel_is_told_that_the_outcome_is_unknown() {
    let gone = Signal::new();
    let tell = gone.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[]);
        x.chunk("begun");
        x.wait_for_close();
        tell.fire();
    });
    let faults = Faults::new();
    let gateway = faults
        .on(setup(&upstream).route("client_gone = \"cancel\""))
        .start();
    let mut client = gateway.begin(&post("/x", "k", "b"));
    client.read_head();
    client.read_until("begun");
    // The store takes its time, so that the moment lasts.
    faults.set("hang");
    client.reset();
    gone.wait();
    faults.wait_until_struck();
    let mut retry = gateway.begin(&post("/x", "k", "b"));
    retry.patience(Duration::from_millis(300));
    let early = retry.try_read_head();
    assert!(early.is_err(), "an answer that cannot end: {early:?}");
    faults.clear();
    retry
        .patience(PATIENCE)
        .response()
        .expect_problem(502, "outcome-unknown")
        .expect_retry(false);
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn an_execution_that_others_joined_is_not_cancelled() {
    let (upstream, go) = held();
    let gateway = setup(&upstream).route("client_gone = \"cancel\"").start();
    let mut first = gateway.begin(&post("/x", "k", "b"));
    first.read_head();
    first.read_until("begun");
    let mut second = gateway.begin(&post("/x", "k", "b"));
    second.read_head();
    second.read_until("begun");
    first.reset();
    go.fire();
    let answer = second.finish();
    assert!(answer.whole());
    assert_eq!(answer.text(), "begun, and ended");
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn the_statuses_that_release_can_be_chosen() {
    let upstream = Upstream::scripted(|x| {
        let status = if x.path() == "/400" { 400 } else { 503 };
        x.answer(status, &[], format!("answer {}", x.number).as_bytes());
    });
    let gateway = setup(&upstream).route("release = [400]").start();
    for _ in 0..2 {
        gateway
            .post("/400", "k1", "b")
            .expect_status(400)
            .expect_mark("released");
    }
    let first = gateway.post("/503", "k2", "b");
    first.expect_status(503).expect_mark("executed");
    expect_replay(&gateway.post("/503", "k2", "b"), &first);
    assert_eq!((upstream.hits_of("/400"), upstream.hits_of("/503")), (2, 1));
}

#[test]
fn headers_can_enter_the_fingerprint() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .route("fingerprint_headers = [\"X-Model\"]")
        .start();
    let with = |model: &str| post("/x", "k", "b").header("X-Model", model);
    let first = gateway.send(&with("a"));
    expect_executed(&first);
    gateway.send(&with("b")).expect_problem(422, "key-reused");
    gateway
        .post("/x", "k", "b")
        .expect_problem(422, "key-reused");
    // Others do not.
    expect_replay(&gateway.send(&with("a").header("X-Trace", "1")), &first);
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn json_can_be_compared_by_its_meaning() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .route("fingerprint_body = \"json\"\nignore_pointers = [\"/meta/trace\"]")
        .start();
    let json = |body: &str| {
        post("/x", "k", body).header("Content-Type", "application/json; charset=utf-8")
    };
    let first = gateway.send(&json(r#"{"a":1,"b":[1,2],"meta":{"trace":"x"}}"#));
    expect_executed(&first);
    for same in [
        r#"{"b":[1,2],"a":1,"meta":{"trace":"x"}}"#,
        r#"{ "b": [1, 2.0], "a": 1e0, "meta": {} }"#,
        r#"{"meta":{"trace":"y"},"\u0061":1,"b":[1,2]}"#,
    ] {
        expect_replay(&gateway.send(&json(same)), &first);
    }
    for other in [
        r#"{"a":1,"b":[2,1],"meta":{"trace":"x"}}"#,
        r#"{"a":"1","b":[1,2],"meta":{"trace":"x"}}"#,
        r#"{"a":1,"b":[1,2],"meta":{"trace":"x","more":1}}"#,
        r#"{"a":1,"b":[1,2],"meta":{"trace":"x"}"#,
    ] {
        gateway.send(&json(other)).expect_problem(422, "key-reused");
    }
    assert_eq!(upstream.hits(), 1);
    // What went upstream is what came.
    let sent = upstream.seen()[0].body.clone().unwrap();
    assert_eq!(sent, br#"{"a":1,"b":[1,2],"meta":{"trace":"x"}}"#);
}

#[test]
fn numbers_beyond_a_double_are_not_merged() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .route("fingerprint_body = \"json\"")
        .start();
    let json = |body: &str| post("/x", "k", body).header("Content-Type", "application/json");
    expect_executed(&gateway.send(&json(r#"{"id":9007199254740993}"#)));
    gateway
        .send(&json(r#"{"id":9007199254740992}"#))
        .expect_problem(422, "key-reused");
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn the_gateway_retries_what_provably_did_not_run() {
    let upstream = Upstream::scripted(|x| match x.number {
        1 => x.answer(503, &[], b"not now"),
        2 => x.answer(429, &[("Retry-After", "0")], b"slower"),
        _ => x.answer(200, &[], b"done"),
    });
    let gateway = setup(&upstream)
        .route("retries = { max = 3, backoff = \"5ms\", budget = 1.0 }")
        .start();
    let answer = gateway.post("/x", "k", "the body");
    expect_executed(&answer);
    assert_eq!(answer.text(), "done");
    assert_eq!(upstream.hits(), 3);
    let bodies: Vec<_> = upstream
        .seen()
        .iter()
        .map(|seen| seen.body.clone().unwrap())
        .collect();
    assert!(bodies.iter().all(|body| body == b"the body"));
    let keys: Vec<_> = upstream
        .seen()
        .iter()
        .map(|s| s.head.header("idempotency-key").unwrap().to_owned())
        .collect();
    assert_eq!(keys, ["k", "k", "k"]);
    expect_replay(&gateway.post("/x", "k", "the body"), &answer);
}

#[test]
fn retries_end_and_the_last_answer_is_released() {
    let upstream = Upstream::scripted(|x| {
        x.answer(503, &[], format!("refusal {}", x.number).as_bytes());
    });
    let gateway = setup(&upstream)
        .route("retries = { max = 2, backoff = \"5ms\", budget = 1.0 }")
        .start();
    let answer = gateway.post("/x", "k", "b");
    answer.expect_status(503).expect_mark("released");
    assert_eq!(answer.text(), "refusal 3");
    assert_eq!(upstream.hits(), 3);
}

#[test]
fn retries_stay_within_their_budget() {
    let upstream = Upstream::scripted(|x| x.answer(503, &[], b"no"));
    let gateway = setup(&upstream)
        .route("retries = { max = 5, backoff = \"1ms\", budget = 0.1 }")
        .start();
    for n in 0..40 {
        gateway.post("/x", &format!("k{n}"), "b").expect_status(503);
    }
    let retries = upstream.hits() - 40;
    // A tenth of 40 and whatever the budget starts with, far from five for each.
    assert!(retries <= 30, "{retries} retries of 40 requests");
}

#[test]
fn what_may_have_run_is_never_retried() {
    let upstream = Upstream::scripted(|x| x.reset());
    let gateway = setup(&upstream)
        .route("retries = { max = 3, backoff = \"1ms\", budget = 1.0 }")
        .start();
    gateway
        .post("/x", "k", "b")
        .expect_problem(502, "outcome-unknown")
        .expect_retry(false);
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn what_never_reached_the_upstream_is_retried() {
    let refusing = Refusing::new();
    let gateway = Setup::new(BIN, &refusing.url())
        .route("retries = { max = 50, backoff = \"20ms\", max_backoff = \"20ms\", budget = 1.0 }")
        .start();
    let mut client = gateway.begin(&post("/x", "k", "b"));
    // The claim is there, so the first tries fail; then somebody listens.
    gateway.control().wait_for_state("k", "in_flight");
    let listener: TcpListener = refusing.listen();
    let (stream, _) = listener.accept().unwrap();
    let mut wire = onlyonce_testkit::Wire::new(stream);
    wire.take_head().unwrap();
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")
        .unwrap();
    let answer = client.response();
    expect_executed(&answer);
    assert_eq!(answer.text(), "done");
}

#[test]
fn a_connection_that_is_not_made_in_time_releases() {
    // A full backlog: the kernel leaves further connections without an answer.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    let _full: Vec<_> = (0..4)
        .map(|_| {
            let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            filler.set_nonblocking(true).unwrap();
            let _ = filler.connect(&addr.into());
            filler
        })
        .collect();
    let gateway = Setup::new(BIN, &format!("http://{addr}"))
        .route("connect_timeout = \"300ms\"")
        .start();
    let answer = gateway.post("/x", "k", "b");
    answer
        .expect_problem(502, "upstream-unreachable")
        .expect_retry(true);
    assert_eq!(gateway.control().operation("k")["state"], "released");
}

#[test]
fn after_durable_gives_the_whole_answer_and_its_marks() {
    let (upstream, go) = held();
    let gateway = setup(&upstream)
        .route("forward = \"after-durable\"")
        .start();
    let mut first = gateway.begin(&post("/x", "k", "b"));
    upstream.wait_for_hits(1);
    let mut second = gateway.begin(&post("/x", "k", "b"));
    go.fire();
    let (first, second) = (first.response(), second.response());
    expect_executed(&first);
    assert_eq!(first.text(), "begun, and ended");
    assert_eq!(second.text(), first.text());
    assert!(first.header("onlyonce-expires").is_some());
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn after_durable_shows_nothing_of_an_answer_that_broke() {
    let upstream = Upstream::scripted(|x| {
        x.start_chunked(200, &[]);
        x.chunk("half");
        x.reset();
    });
    let gateway = setup(&upstream)
        .route("forward = \"after-durable\"")
        .start();
    let answer = gateway.post("/x", "k", "b");
    answer
        .expect_problem(502, "outcome-unknown")
        .expect_retry(false);
    assert!(!answer.text().contains("half"));
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn without_retries_a_release_is_the_clients_to_retry() {
    let upstream = Upstream::scripted(|x| x.answer(503, &[], b"no"));
    let gateway = gateway(&upstream);
    gateway
        .post("/x", "k", "b")
        .expect_status(503)
        .expect_mark("released");
    assert_eq!(upstream.hits(), 1);
}
