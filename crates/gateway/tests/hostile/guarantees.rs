//! Guarantees that no numbered case shows by itself. Each test carries the guarantee's name.

use std::path::Path;
use std::time::{Duration, Instant};

use onlyonce_testkit::{Signal, Upstream, eventually};

use crate::faults::Faults;
use crate::{expect_executed, expect_replay, gateway, memory_of, noise, post, setup};

#[test]
fn i02_the_claim_is_durable_before_the_first_byte_goes_upstream() {
    let upstream = Upstream::counting();
    let faults = Faults::new();
    let gateway = faults.on(setup(&upstream)).start();
    faults.set("hang");
    let mut client = gateway.begin(&post("/x", "k", "b"));
    faults.wait_until_struck();
    // The claim is on its way to the disk and not there: the upstream knows of nothing, not
    // even of a request's first byte.
    let hung = Instant::now();
    while hung.elapsed() < Duration::from_millis(300) {
        assert_eq!(upstream.hits(), 0);
        std::thread::yield_now();
    }
    faults.clear();
    expect_executed(&client.response(), 200);
    assert_eq!(upstream.hits(), 1);
}

/// An upstream that answers `begun`, waits for the signal, and ends with `and ended`.
fn held() -> (Upstream, Signal) {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[]);
        x.chunk("begun, ");
        wait.wait();
        x.chunk("and ended");
        x.end_chunks();
    });
    (upstream, go)
}

#[test]
fn i03_the_end_waits_for_the_durable_record() {
    let (upstream, go) = held();
    let faults = Faults::new();
    let gateway = faults.on(setup(&upstream)).start();
    let mut client = gateway.begin(&post("/x", "k", "b"));
    client.read_head();
    client.read_until("begun");
    faults.set("hang");
    go.fire();
    faults.wait_until_struck();
    client.patience(Duration::from_millis(300));
    while let Ok(more) = client.step() {
        assert!(more, "the client saw the end before the record was durable");
    }
    faults.clear();
    client.patience(onlyonce_testkit::PATIENCE);
    let answer = client.finish();
    assert!(answer.whole());
    assert_eq!(answer.text(), "begun, and ended");
    expect_replay(&gateway.post("/x", "k", "b"), &answer);
}

#[test]
fn i03_the_last_byte_of_a_counted_body_waits_for_the_durable_record() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.read_body();
        x.send_head(200, &[("Content-Length", "10")]);
        x.send(b"01234");
        wait.wait();
        x.send(b"56789");
    });
    let faults = Faults::new();
    let gateway = faults.on(setup(&upstream)).start();
    let mut client = gateway.begin(&post("/x", "k", "b"));
    client.read_head();
    client.read_until("01234");
    faults.set("hang");
    go.fire();
    faults.wait_until_struck();
    // Ten bytes would be the whole answer, whatever comes after them.
    client.patience(Duration::from_millis(300));
    while client.step().is_ok() {
        assert!(
            client.body().len() < 10,
            "the last byte came before the record was durable"
        );
    }
    faults.clear();
    client.patience(onlyonce_testkit::PATIENCE);
    let answer = client.finish();
    assert!(answer.whole());
    assert_eq!(answer.text(), "0123456789");
    expect_replay(&gateway.post("/x", "k", "b"), &answer);
}

#[test]
fn i03_a_route_that_forwards_after_durable_shows_nothing_before() {
    let (upstream, go) = held();
    let faults = Faults::new();
    let gateway = faults
        .on(setup(&upstream))
        .route("forward = \"after-durable\"")
        .start();
    let mut client = gateway.begin(&post("/x", "k", "b"));
    upstream.wait_for_hits(1);
    // The simulator found that who joined was shown bytes as they came.
    let mut joiner = gateway.begin(&post("/x", "k", "b"));
    faults.set("hang");
    go.fire();
    faults.wait_until_struck();
    for waiting in [&mut client, &mut joiner] {
        waiting.patience(Duration::from_millis(300));
        assert!(
            waiting.try_read_head().is_err(),
            "a byte before the record was durable"
        );
    }
    faults.clear();
    for waiting in [&mut client, &mut joiner] {
        waiting.patience(onlyonce_testkit::PATIENCE);
    }
    let answer = client.response();
    expect_executed(&answer, 200);
    assert_eq!(answer.text(), "begun, and ended");
    let joined = joiner.response();
    joined.expect_status(200).expect_mark("joined");
    assert_eq!(joined.body, answer.body);
    expect_replay(&gateway.post("/x", "k", "b"), &answer);
}

#[test]
fn i04_every_complete_answer_is_the_same_over_a_restart() {
    let upstream = Upstream::scripted(|x| {
        x.start_chunked(
            201,
            &[("Content-Type", "text/event-stream"), ("X-Id", "one")],
        );
        for n in 0..200 {
            x.chunk(format!("data: {n}\n\n"));
        }
        x.chunk([0_u8, 255, 13, 10].as_slice());
        x.send(b"0\r\nX-Sum: 7\r\n\r\n");
    });
    let mut gateway = gateway(&upstream);
    let request = post("/x", "k", "b").header("TE", "trailers");
    let first = gateway.send(&request);
    expect_executed(&first, 201);
    for _ in 0..2 {
        expect_replay(&gateway.send(&request), &first);
        gateway.start_again();
        let again = gateway.send(&request);
        expect_replay(&again, &first);
        assert_eq!(again.body, first.body);
    }
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn i11_a_running_operation_never_expires_into_a_new_one() {
    let (upstream, go) = held();
    let gateway = setup(&upstream)
        .route("window = \"300ms\"")
        .store("lease = \"1s\"")
        .start();
    let mut first = gateway.begin(&post("/x", "k", "b"));
    first.read_head();
    first.read_until("begun");
    let start = Instant::now();
    eventually("several windows and leases have passed", || {
        let mut joined = gateway.begin(&post("/x", "k", "b"));
        assert_eq!(joined.read_head().header("onlyonce-status"), Some("joined"));
        start.elapsed() > Duration::from_millis(2500)
    });
    go.fire();
    let answer = first.finish();
    assert!(answer.whole());
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn i15_a_reader_that_stands_still_does_not_hold_a_body_in_memory() {
    const SIZE: usize = 240 << 20;
    let upstream = Upstream::scripted(|x| {
        x.read_body();
        x.send_head(200, &[("Content-Length", &SIZE.to_string())]);
        let piece = noise(1 << 20);
        for _ in 0..SIZE / piece.len() {
            x.send(&piece);
        }
    });
    let gateway = setup(&upstream).store("cache_bytes = \"4MiB\"").start();
    let before = memory_of(gateway.pid(), "VmRSS:");
    let mut slow = gateway.begin(&post("/x", "k", "b"));
    slow.read_head();
    gateway.control().wait_for_state("k", "completed");
    let growth = memory_of(gateway.pid(), "VmRSS:").saturating_sub(before);
    assert!(
        growth < SIZE / 2,
        "{growth} bytes more for a body of {SIZE}"
    );
    // It goes on from the store and gets every byte.
    let answer = slow.finish();
    assert!(answer.whole(), "{:?}", answer.end);
    assert_eq!(answer.body.len(), SIZE);
    assert_eq!(upstream.hits(), 1);
}

/// The files below a folder that contain these bytes.
fn files_with(folder: &Path, needle: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, needle));
        } else if std::fs::read(&path)
            .unwrap()
            .windows(needle.len())
            .any(|w| w == needle)
        {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn i16_no_credential_is_stored_or_logged() {
    let upstream = Upstream::scripted(|x| x.answer(200, &[], b"the answer"));
    let gateway = setup(&upstream)
        .env("RUST_LOG", "trace")
        .env("ONLYONCE_LOG", "trace")
        .extra("[[tenant]]\nname = \"acme\"\ncredentials = [\"env:CREDENTIAL\"]")
        .env("CREDENTIAL", "secret-of-acme")
        .start();
    let credentials = [
        ("Authorization", "Bearer secret-in-bearer"),
        ("Authorization", "Bearer secret-of-acme"),
        ("Authorization", "Basic c2VjcmV0LWluLWJhc2ljOg=="),
        ("x-api-key", "secret-in-x-api-key"),
        ("x-goog-api-key", "secret-in-goog-key"),
        ("Cookie", "session=secret-in-cookie"),
        ("Proxy-Authorization", "Basic secret-in-proxy"),
    ];
    for (n, (name, value)) in credentials.iter().enumerate() {
        let request = post("/x", &format!("k{n}"), "secret-in-body").header(name, value);
        expect_executed(&gateway.send(&request), 200);
        // And where it is refused.
        gateway.send(&post("/x", "bad,key", "secret-in-body").header(name, value));
    }
    let asked = gateway.send(&post("/x?key=secret-in-query", "k", "b"));
    expect_executed(&asked, 200);
    let errors = gateway.stderr();
    for secret in ["secret-", "c2VjcmV0LWluLWJhc2lj"] {
        let found = files_with(gateway.data(), secret.as_bytes());
        assert!(found.is_empty(), "{secret} in {found:?}");
        assert!(!errors.contains(secret), "{secret} in the log");
    }
    let listed = gateway.control().get("/v1/operations?limit=100").text();
    assert!(!listed.contains("secret-"), "{listed}");
}

#[test]
fn i16_keys_and_bodies_at_rest_are_encrypted() {
    let upstream = Upstream::scripted(|x| {
        x.answer(200, &[("X-Detail", "private-header")], b"private-answer");
    });
    let mut gateway = setup(&upstream)
        .extra("[store.encryption]\nactive = 1\nkeys = [{ id = 1, key = \"env:KEY_1\" }]")
        .env("KEY_1", &"07".repeat(32))
        .start();
    let first = gateway.post("/x", "private-key", "private-request");
    expect_executed(&first, 200);
    gateway.terminate();
    assert_eq!(gateway.wait_for_exit(), Some(0));
    let found = files_with(gateway.data(), b"private-");
    assert!(found.is_empty(), "in the clear in {found:?}");
    gateway.start_again();
    expect_replay(
        &gateway.post("/x", "private-key", "private-request"),
        &first,
    );
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn i17_messages_are_written_anew_and_never_copied() {
    let upstream = Upstream::scripted(|x| {
        x.read_body();
        x.send(b"HTTP/1.1 200 Fine   \r\nX-A:b   \r\ncontent-length:2\r\n\r\nok");
    });
    let gateway = gateway(&upstream);
    let mut client = gateway.connect();
    client.send_bytes(
        b"POST /x HTTP/1.1\r\nhOsT:h\r\nidempotency-KEY:   k  \r\nX-Odd:\t a b \t\r\n\
          Transfer-Encoding: chunked\r\n\r\n2;ext=1\r\nab\r\n000\r\n\r\n",
    );
    let answer = client.response();
    expect_executed(&answer, 200);
    assert_eq!(
        (answer.header("x-a"), answer.text().as_str()),
        (Some("b"), "ok")
    );
    let seen = upstream.seen().remove(0);
    assert_eq!(seen.body.as_deref(), Some(&b"ab"[..]));
    assert_eq!(seen.head.header("x-odd"), Some("a b"));
    let framings = seen.head.all("content-length").len() + seen.head.all("transfer-encoding").len();
    assert_eq!(framings, 1, "one framing: {:?}", seen.head);
    assert_eq!(
        seen.head.header("host"),
        Some(upstream.addr().to_string().as_str())
    );
}

#[test]
fn l1_a_client_that_leaves_while_its_claim_is_written_is_executed_all_the_same() {
    let upstream = Upstream::counting();
    let faults = Faults::new();
    let gateway = faults.on(setup(&upstream)).start();
    faults.set("hang");
    let client = gateway.begin(&post("/x", "k", "b"));
    faults.wait_until_struck();
    client.reset();
    eventually("the client's connection is gone", || {
        gateway.control().metric("onlyonce_connections", "") < 1.0
    });
    assert_eq!(upstream.hits(), 0);
    faults.clear();
    // Whoever leaves a slow store again and again would begin anew each time, and never get there.
    gateway.control().wait_for_state("k", "completed");
    let retry = gateway.post("/x", "k", "b");
    retry.expect_status(200).expect_mark("replayed");
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn l5_one_stuck_key_stalls_nobody_else() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        if x.path() == "/stuck" {
            wait.wait();
        }
        x.answer(200, &[], b"done");
    });
    let gateway = gateway(&upstream);
    let mut stuck: Vec<_> = (0..50)
        .map(|_| gateway.begin(&post("/stuck", "k", "b")))
        .collect();
    upstream.wait_for_hits(1);
    for n in 0..50 {
        expect_executed(&gateway.post("/free", &format!("f{n}"), "b"), 200);
    }
    go.fire();
    for client in &mut stuck {
        assert_eq!(client.response().expect_status(200).text(), "done");
    }
    assert_eq!(upstream.hits_of("/stuck"), 1);
}
