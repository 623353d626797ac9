//! `key = "observe"`: requests pass as if the gateway did nothing, and what looks like a repeat is
//! counted beside them.

use onlyonce_testkit::{Gateway, Request, Setup, Signal, Upstream, eventually, run_to_exit};
use serde_json::{Value, json};

use crate::usage::{CHAT, JSON, SSE, chat, messages};
use crate::{BIN, setup};

fn observing(upstream: &Upstream) -> Setup {
    setup(upstream)
        .upstream("preset = \"openai\"")
        .route("key = \"observe\"")
}

fn suspects(gateway: &Gateway) -> Value {
    gateway.control().json("/v1/suspects")
}

fn times(gateway: &Gateway) -> u64 {
    suspects(gateway)["total"]["times"].as_u64().unwrap()
}

/// Nothing is in the store, whatever came.
fn expect_nothing_stored(gateway: &Gateway) {
    let control = gateway.control();
    let operations = control.json("/v1/operations");
    assert_eq!(operations["operations"], json!([]));
    let health = control.json("/v1/health");
    assert_eq!(health["store"]["records"], 0);
    assert_eq!(health["store"]["committed_writes"], 0);
}

fn chat_request(body: &str) -> Request {
    Request::post(CHAT)
        .header("Content-Type", "application/json")
        .header("Authorization", "Bearer sk-one")
        .header("User-Agent", "OpenAI/Python 2.8.1")
        .header("x-stainless-lang", "python")
        .body(body)
}

#[test]
fn a_repeat_is_counted_with_what_it_cost_and_who_sent_it() {
    let upstream = Upstream::scripted(|x| x.answer(200, &[JSON], chat().as_bytes()));
    let gateway = observing(&upstream).start();
    let body = r#"{"model":"gpt-4o","messages":[]}"#;
    let first = gateway.send(&chat_request(body));
    assert_eq!(times(&gateway), 0);
    // Whatever key it has: what is asked for counts.
    for key in ["a", "b"] {
        let again = gateway.send(&chat_request(body).key(key));
        assert_eq!(again.body, first.body);
        assert_eq!(again.mark(), None);
        assert_eq!(again.header("onlyonce-operation"), None);
    }
    gateway.send(&chat_request(r#"{"model":"gpt-4o","messages":[1]}"#));
    let told = suspects(&gateway);
    let expected = json!({
        "times": 2, "input_tokens": 2000, "output_tokens": 4000, "cost_usd": "0.044", "unpriced": 0,
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&told["total"][name], value, "{told:#}");
        assert_eq!(&told["suspects"][0][name], value, "{told:#}");
    }
    let one = &told["suspects"][0];
    assert_eq!(one["client"], "OpenAI/Python python");
    assert_eq!(one["model"], "gpt-4o-2024-08-06");
    assert_eq!(one["route"], "up");
    assert_eq!(told["observing"], json!(["up"]));
    assert_eq!(told["suspects"].as_array().unwrap().len(), 1);
    let metric = |name| gateway.control().metric(name, "route=\"up\"");
    assert!((metric("onlyonce_suspects_total") - 2.0).abs() < f64::EPSILON);
    assert_eq!(upstream.hits(), 4);
    expect_nothing_stored(&gateway);
    // For people.
    let control = format!("http://{}", gateway.control_addr());
    let run = run_to_exit(BIN, &["ledger", "suspects", "--control", &control], &[]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(
        run.stdout
            .starts_with("at least 2 requests look like repeats since ")
    );
    assert!(run.stdout.contains(": $0.044\n"), "{}", run.stdout);
    assert!(
        run.stdout
            .contains("OpenAI/Python python  gpt-4o-2024-08-06  up")
    );
    let page = gateway.control().get("/console").text();
    assert!(
        page.contains("2 of them from OpenAI/Python python"),
        "{page}"
    );
}

#[test]
fn i07_two_tenants_never_match() {
    let upstream = Upstream::counting();
    let gateway = observing(&upstream)
        .extra("[[tenant]]\nname = \"acme\"\ncredentials = [\"sk-new\", \"sk-old\"]\n")
        .start();
    let of = |credential: &str| {
        let request =
            Request::post("/v1/x").header("Authorization", &format!("Bearer {credential}"));
        gateway.send(&request.body("b")).expect_status(200);
        times(&gateway)
    };
    assert_eq!(of("sk-one"), 0);
    assert_eq!(of("sk-two"), 0);
    assert_eq!(of("sk-new"), 0);
    gateway.send(&Request::post("/v1/x").body("b"));
    assert_eq!(times(&gateway), 0);
    // A tenant with a name keeps it over its credentials.
    assert_eq!(of("sk-old"), 1);
    assert_eq!(suspects(&gateway)["suspects"][0]["tenant"], "acme");
    assert_eq!(suspects(&gateway)["suspects"][0]["unpriced"], 1);
}

#[test]
fn what_makes_another_request_is_no_repeat_and_what_does_not_run_is_none() {
    let upstream = Upstream::scripted(|x| {
        x.read_body();
        match x.path() {
            "/full" => x.answer(429, &[], b""),
            _ => x.answer(200, &[], b"ok"),
        }
    });
    let gateway = observing(&upstream).start();
    let base = || Request::post("/v1/x?a=1").header("Content-Type", "text/plain");
    for request in [
        base().body("b"),
        base().body("c"),
        base().body(""),
        Request::post("/v1/x?a=2")
            .header("Content-Type", "text/plain")
            .body("b"),
        Request::post("/v1/y?a=1")
            .header("Content-Type", "text/plain")
            .body("b"),
        Request::post("/v1/x?a=1")
            .header("Content-Type", "text/html")
            .body("b"),
        Request::new("PUT", "/v1/x?a=1")
            .header("Content-Type", "text/plain")
            .body("b"),
        base().header("OpenAI-Project", "p").body("b"),
        Request::get("/v1/x"),
        Request::get("/v1/x"),
        Request::post("/full").body("b"),
        Request::post("/full").body("b"),
    ] {
        gateway.send(&request);
    }
    assert_eq!(times(&gateway), 0, "{:#}", suspects(&gateway));
    for _ in 0..2 {
        gateway.send(&base().body(""));
    }
    assert_eq!(times(&gateway), 2);
    assert_eq!(upstream.hits(), 14);
}

#[test]
fn i15_no_more_than_so_many_are_remembered() {
    let upstream = Upstream::counting();
    let gateway = observing(&upstream).limits("observed = 2").start();
    for body in ["a", "b", "c", "a"] {
        gateway.send(&Request::post("/x").body(body));
    }
    assert_eq!(times(&gateway), 0);
    gateway.send(&Request::post("/x").body("c"));
    gateway.send(&Request::post("/x").body("a"));
    assert_eq!(times(&gateway), 2);
}

#[test]
fn bodies_and_answers_that_stream_are_seen_as_they_pass() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        if x.number == 2 {
            // The answer begins before the request has come whole.
            x.wire().take_through(b"first").unwrap();
            x.start_chunked(200, &[SSE]);
            x.chunk(&messages()[0]);
            x.wire().take_through(b"0\r\n\r\n").unwrap();
            wait.wait();
        } else {
            x.read_body();
            x.start_chunked(200, &[SSE]);
            x.chunk(&messages()[0]);
        }
        x.chunk(messages()[1..].concat());
        x.end_chunks();
    });
    let gateway = setup(&upstream)
        .upstream("preset = \"anthropic\"")
        .route("key = \"observe\"")
        .start();
    let body = r#"{"x":"first","y":"second"}"#;
    let (begins, ends) = body.split_at(14);
    let whole = gateway.send(&Request::post("/v1/messages").body(body));
    assert_eq!(whole.text(), messages().concat());

    let request = Request::post("/v1/messages")
        .no_length()
        .header("Transfer-Encoding", "chunked");
    let chunk = |piece: &str| format!("{:x}\r\n{piece}\r\n", piece.len());
    let mut client = gateway.connect();
    client.send_bytes(&request.head_bytes());
    client.send_bytes(chunk(begins).as_bytes());
    client.read_head();
    client.read_until("message_start");
    client
        .send_bytes(chunk(ends).as_bytes())
        .send_bytes(b"0\r\n\r\n");
    go.fire();
    assert_eq!(client.finish().text(), messages().concat());
    eventually("it is counted", || times(&gateway) == 1);
    let total = &suspects(&gateway)["total"];
    assert_eq!(
        (&total["input_tokens"], &total["output_tokens"]),
        (&json!(20), &json!(90))
    );
    assert_eq!(total["cost_usd"], "0.00141");
    expect_nothing_stored(&gateway);
}

#[test]
fn one_that_comes_while_the_first_runs_is_a_repeat_and_one_that_breaks_off_cost_so_much_at_least() {
    let [end, reset] = [Signal::new(), Signal::new()];
    let (wait_end, wait_reset) = (end.clone(), reset.clone());
    let upstream = Upstream::scripted(move |x| {
        x.read_body();
        x.start_chunked(200, &[SSE]);
        x.chunk(&messages()[0]);
        match x.number {
            1 => {
                wait_end.wait();
                x.end_chunks();
            }
            _ => {
                wait_reset.wait();
                x.reset();
            }
        }
    });
    let gateway = setup(&upstream)
        .upstream("preset = \"anthropic\"")
        .route("key = \"observe\"")
        .start();
    let begin = || {
        let mut client = gateway.begin(&Request::post("/v1/messages").body("{}"));
        client.read_head();
        client.read_until("message_start");
        client
    };
    let (mut first, mut second) = (begin(), begin());
    reset.fire();
    assert!(!second.finish().whole());
    end.fire();
    assert!(first.finish().whole());
    eventually("it is counted", || times(&gateway) == 1);
    assert_eq!(suspects(&gateway)["total"]["input_tokens"], 20);
}

#[test]
fn without_a_route_that_observes_nothing_is_seen() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).start();
    for _ in 0..2 {
        gateway.send(&Request::post("/x").body("b"));
    }
    assert_eq!(times(&gateway), 0);
    assert_eq!(suspects(&gateway)["observing"], json!([]));
    let control = format!("http://{}", gateway.control_addr());
    let run = run_to_exit(BIN, &["ledger", "suspects", "--control", &control], &[]);
    assert_eq!(
        run.stdout,
        "no route observes: set key = \"observe\" on one\n"
    );
}

/// An upstream of all kinds of answers, by path.
fn of_all_kinds() -> Upstream {
    const DATE: (&str, &str) = ("Date", "Thu, 26 Nov 2026 12:00:00 GMT");
    Upstream::scripted(|x| {
        x.read_body();
        let path = x.path().to_owned();
        match path.split('?').next().unwrap_or_default() {
            "/marks" => x.answer(
                200,
                &[
                    DATE,
                    ("Onlyonce-Status", "executed"),
                    ("Idempotent-Replayed", "true"),
                ],
                b"ok",
            ),
            "/cookies" => x.answer(
                200,
                &[DATE, ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")],
                b"ok",
            ),
            "/no-content" => {
                x.send(b"HTTP/1.1 204 No Content\r\nDate: Thu, 26 Nov 2026 12:00:00 GMT\r\n\r\n");
            }
            "/hints" => {
                x.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
                x.answer(200, &[DATE], b"ok");
            }
            "/error" => x.answer(500, &[DATE], b"no"),
            "/busy" => x.answer(429, &[DATE, ("Retry-After", "1")], b"busy"),
            "/chunks" => {
                x.send(
                    b"HTTP/1.1 200 OK\r\nDate: Thu, 26 Nov 2026 12:00:00 GMT\r\nTrailer: X-T\r\n\
                      Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\nX-T: t\r\n\r\n",
                );
            }
            "/broken" => {
                x.send(
                    b"HTTP/1.1 200 OK\r\nDate: Thu, 26 Nov 2026 12:00:00 GMT\r\n\
                      Content-Length: 10\r\n\r\nhalf",
                );
                x.close();
            }
            _ => x.answer(200, &[DATE, JSON], chat().as_bytes()),
        }
    })
}

/// All that the gateway answers to `bytes`, but for the dates of its own answers.
fn answered(gateway: &Gateway, bytes: &[u8]) -> String {
    let mut client = gateway.connect();
    client.send_bytes(bytes);
    client.wire().half_close();
    let all = client.wire().take_to_end().unwrap_or_default();
    let all = String::from_utf8_lossy(&all).into_owned();
    let lines = all.split_inclusive("\r\n");
    lines
        .filter(|line| !line.to_ascii_lowercase().starts_with("date:"))
        .collect()
}

/// HOSTILE 2 to 18 (keys), 34 to 51 (framing and methods), 65 to 80 (answers), as far as what passes
/// has them: the observed route against one that does nothing, byte by byte, both ways.
#[test]
fn hostile_002_034_to_080_an_observed_request_passes_as_if_nobody_looked() {
    let upstream = of_all_kinds();
    // What is no key there passes there.
    let plain = setup(&upstream)
        .upstream("preset = \"openai\"")
        .route("key_headers = [\"X-Not-Used\"]")
        .start();
    let observed = observing(&upstream).start();
    let long_key = "k".repeat(300);
    let post = |path: &str, headers: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{headers}\r\n{body}")
    };
    let with_length = |path: &str, headers: &str, body: &str| {
        post(
            path,
            &format!("{headers}Content-Length: {}\r\n", body.len()),
            body,
        )
    };
    let mut cases = vec![
        with_length("/v1/chat/completions?a=%20&b", "X-B: 2\r\nX-A: 1\r\nX-B: 1\r\n", "{}"),
        post("/x", "Transfer-Encoding: chunked\r\nTrailer: X-T\r\n", "2\r\n{}\r\n0\r\nX-T: t\r\n\r\n"),
        with_length("/x", "", ""),
        post("/x", "", ""),
        with_length("/x", "Expect: 100-continue\r\n", "{}"),
        with_length("/x", "Content-Encoding: gzip\r\n", "\u{1}\u{2}"),
        with_length("/x", "Content-Type: multipart/form-data; boundary=b\r\n", "--b\r\n\r\nx\r\n--b--\r\n"),
        with_length("/x", "Connection: idempotency-key\r\nIdempotency-Key: k\r\n", "{}"),
        // Framing that is refused.
        post("/x", "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", "{}"),
        post("/x", "Content-Length: 2\r\nContent-Length: 2\r\n", "{}"),
        post("/x", "Content-Length: +2\r\n", "{}"),
        post("/x", "Transfer-Encoding: xchunked\r\n", "{}"),
        post("/x", "Transfer-Encoding: chunked\r\n", "2\n{}\n0\n\n"),
        post("/x", "X-A: a\r\n b\r\n", ""),
        post("/x", "X-A : a\r\n", ""),
        post("/x", "Host: b.test\r\n", ""),
        "POST /x HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
        "POST /x HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "POST http://elsewhere.test/x HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "CONNECT elsewhere.test:443 HTTP/1.1\r\nHost: elsewhere.test\r\n\r\n".to_owned(),
        // One after the other.
        format!(
            "POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\n{{}}{}",
            with_length("/x", "", "{}")
        ),
    ];
    for method in ["GET", "HEAD", "OPTIONS", "DELETE", "PUT", "PATCH"] {
        cases.push(format!(
            "{method} /x HTTP/1.1\r\nHost: a.test\r\nIdempotency-Key: k\r\nConnection: close\r\n\r\n"
        ));
    }
    for key in [
        "k", "\"k\"", "", "\"\"", "a, b", "\"open", "é", "k y", &long_key,
    ] {
        cases.push(with_length(
            "/x",
            &format!("Idempotency-Key: {key}\r\n"),
            "{}",
        ));
    }
    cases.push(with_length(
        "/x",
        "Idempotency-Key: a\r\nIdempotency-Key: b\r\n",
        "{}",
    ));
    for path in [
        "/marks",
        "/cookies",
        "/no-content",
        "/hints",
        "/error",
        "/busy",
        "/chunks",
        "/broken",
    ] {
        cases.push(with_length(path, "", "{}"));
    }
    for case in cases.iter().chain(&cases) {
        let hits = upstream.hits();
        let expected = answered(&plain, case.as_bytes());
        let passed = upstream.hits() - hits;
        assert_eq!(answered(&observed, case.as_bytes()), expected, "{case}");
        assert_eq!(upstream.hits() - hits, 2 * passed, "{case}");
        let seen = upstream.seen().split_off(hits);
        let (one, other) = seen.split_at(passed);
        for (one, other) in one.iter().zip(other) {
            assert_eq!(
                format!("{:?}", one.head),
                format!("{:?}", other.head),
                "{case}"
            );
            assert_eq!(one.body, other.body, "{case}");
        }
    }
    assert!(times(&observed) > 20, "{:#}", suspects(&observed));
    expect_nothing_stored(&observed);
}
