//! Cases 19 to 33: the same key again, with the same request or another.

use std::collections::BTreeSet;

use onlyonce_testkit::{Client, Request, Signal, Upstream, eventually};

use crate::{expect_executed, expect_replay, expect_same, gateway, post, program, setup};
use onlyonce_testkit::Setup;

/// The second request is refused as another request under a used key, learns nothing of the
/// first, and changes nothing.
#[track_caller]
fn expect_mismatch(first: &Request, second: &Request) {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let answer = gateway.send(first);
    expect_executed(&answer, 200);
    for _ in 0..2 {
        let refused = gateway.send(second);
        refused
            .expect_problem(422, "key-reused")
            .expect_retry(false);
        assert!(
            !refused.text().contains("execution"),
            "it shows the first answer"
        );
        assert_eq!(refused.header("idempotent-replayed"), None);
    }
    expect_replay(&gateway.send(first), &answer);
    assert_eq!(upstream.hits(), 1);
}

fn put(path: &str, key: &str, body: &str) -> Request {
    Request::new("PUT", path).key(key).body(body)
}

/// Case: a used key with another method. Answer: 422 `key-reused`, nothing is sent or shown.
#[test]
fn hostile_019_another_method_is_another_request() {
    expect_mismatch(&post("/x", "k", "b"), &put("/x", "k", "b"));
}

/// Case: a used key with another path. Answer: 422 `key-reused`, nothing is sent or shown.
#[test]
fn hostile_020_another_path_is_another_request() {
    expect_mismatch(&post("/x", "k", "b"), &post("/y", "k", "b"));
    // A boundary that moves must not give the same fingerprint.
    expect_mismatch(&post("/x", "k", "yb"), &post("/xy", "k", "b"));
}

/// Case: a used key with another query. Answer: 422 `key-reused`, nothing is sent or shown.
#[test]
fn hostile_021_another_query_is_another_request() {
    expect_mismatch(&post("/x?a=1", "k", "b"), &post("/x?a=2", "k", "b"));
    expect_mismatch(&post("/x?a=1", "k", "b"), &post("/x", "k", "b"));
}

/// Case: a used key with another byte in the body. Answer: 422 `key-reused`, nothing is sent or shown.
#[test]
fn hostile_022_one_byte_of_the_body_makes_another_request() {
    expect_mismatch(&post("/x", "k", "abc"), &post("/x", "k", "abd"));
    expect_mismatch(&post("/x", "k", "abc"), &post("/x", "k", "abc\n"));
    expect_mismatch(&post("/x", "k", "abc"), &post("/x", "k", ""));
}

/// Case: a used key with the members of its JSON in another order. Answer: 422 `key-reused`, nothing is
/// sent or shown.
#[test]
fn hostile_023_the_same_json_in_another_order_is_another_request() {
    let json = |body: &str| post("/x", "k", body).header("Content-Type", "application/json");
    expect_mismatch(&json(r#"{"a":1,"b":2}"#), &json(r#"{"b":2,"a":1}"#));
}

/// Case: a used key with another content type or coding. Answer: 422 `key-reused`, nothing is sent or
/// shown.
#[test]
fn hostile_024_another_content_type_or_encoding_is_another_request() {
    let typed = |kind: &str| post("/x", "k", "{}").header("Content-Type", kind);
    expect_mismatch(&typed("application/json"), &typed("text/plain"));
    expect_mismatch(&typed("application/json"), &post("/x", "k", "{}"));
    let encoded = |kind: &str| post("/x", "k", "{}").header("Content-Encoding", kind);
    expect_mismatch(&encoded("gzip"), &encoded("br"));
}

/// Case: two tenants use one key. Answer: two operations.
#[test]
fn hostile_025_tenants_are_independent() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let of = |credential: &str| post("/x", "k", "b").header("Authorization", credential);
    let one = gateway.send(&of("Bearer one"));
    let two = gateway.send(&of("Bearer two"));
    expect_executed(&one, 200);
    expect_executed(&two, 200);
    assert_ne!(one.text(), two.text());
    // Another request under the same key is no mismatch either: it is another operation.
    let three = gateway.send(&post("/y", "k", "c").header("x-api-key", "three"));
    expect_executed(&three, 200);
    expect_replay(&gateway.send(&of("Bearer one")), &one);
    expect_replay(&gateway.send(&of("Bearer two")), &two);
    assert_eq!(upstream.hits(), 3);
}

/// Case: a configured tenant comes with its new credential. Answer: a replay.
#[test]
fn hostile_026_a_rotated_credential_of_a_configured_tenant_replays() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .extra("[[tenant]]\nname = \"acme\"\ncredentials = [\"env:OLD\", \"env:NEW\"]")
        .env("OLD", "sk-old-credential")
        .env("NEW", "sk-new-credential")
        .start();
    let of = |credential: &str| post("/x", "k", "b").header("Authorization", credential);
    let first = gateway.send(&of("Bearer sk-old-credential"));
    expect_executed(&first, 200);
    expect_replay(&gateway.send(&of("Bearer sk-new-credential")), &first);
    expect_replay(
        &gateway.send(&post("/x", "k", "b").header("x-api-key", "sk-new-credential")),
        &first,
    );
    expect_executed(&gateway.send(&of("Bearer sk-of-somebody-else")), 200);
    assert_eq!(upstream.hits(), 2);
    assert!(
        gateway
            .control()
            .operations("k")
            .iter()
            .any(|op| op["tenant"] == "acme")
    );
}

/// Case: no credential. Answer: a scope of its own, or 401 `credential-missing` where that is not allowed.
#[test]
fn hostile_027_no_credential_has_a_scope_of_its_own_where_allowed() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let first = gateway.post("/x", "k", "b");
    expect_executed(&first, 200);
    expect_executed(
        &gateway.send(&post("/x", "k", "b").header("Authorization", "Bearer s")),
        200,
    );
    expect_replay(&gateway.post("/x", "k", "b"), &first);
    assert_eq!(upstream.hits(), 2);
    assert!(
        gateway
            .control()
            .operations("k")
            .iter()
            .any(|op| op["tenant"] == "anonymous")
    );
}

#[test]
fn hostile_027_no_credential_is_refused_where_not_allowed() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).server("allow_anonymous = false").start();
    let refused = gateway.post("/x", "k", "b");
    refused
        .expect_problem(401, "credential-missing")
        .expect_retry(false);
    assert_eq!(upstream.hits(), 0);
    expect_executed(
        &gateway.send(&post("/x", "k", "b").header("Authorization", "Bearer s")),
        200,
    );
}

/// An upstream whose answers start with `begun`, wait for the signal, and end.
fn held() -> (Upstream, Signal) {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[("Content-Type", "text/plain")]);
        x.chunk(format!("execution {} begun, ", x.number));
        wait.wait();
        x.chunk("and ended");
        x.end_chunks();
    });
    (upstream, go)
}

/// Case: the key of a request that still runs. Answer: joins it.
#[test]
fn hostile_028_the_same_key_in_flight_joins() {
    let (upstream, go) = held();
    let gateway = gateway(&upstream);
    let mut first = gateway.begin(&post("/x", "k", "b"));
    assert_eq!(
        first.read_head().header("onlyonce-status"),
        Some("executed")
    );
    first.read_until("begun");

    let mut second = gateway.begin(&post("/x", "k", "b"));
    let head = second.read_head();
    assert_eq!(head.header("onlyonce-status"), Some("joined"));
    assert_eq!(head.header("idempotent-replayed"), Some("true"));
    second.read_until("begun");

    go.fire();
    let (first, second) = (first.finish(), second.finish());
    assert_eq!(first.text(), "execution 1 begun, and ended");
    assert!(first.whole() && second.whole());
    expect_same(&second, &first);
    expect_replay(&gateway.post("/x", "k", "b"), &first);
    assert_eq!(upstream.hits(), 1);
}

/// Case: a thousand clients use one key at once. Answer: one execution, a thousand equal answers.
#[test]
fn hostile_029_a_thousand_at_once_run_once() {
    let (upstream, go) = held();
    let gateway = gateway(&upstream);
    let mut clients: Vec<Client> = (0..1000)
        .map(|_| gateway.begin(&post("/x", "k", "b")))
        .collect();
    let mut marks = Vec::new();
    for client in &mut clients {
        marks.push(
            client
                .read_head()
                .header("onlyonce-status")
                .unwrap()
                .to_owned(),
        );
        client.read_until("begun");
    }
    assert_eq!(marks.iter().filter(|m| *m == "executed").count(), 1);
    assert_eq!(marks.iter().filter(|m| *m == "joined").count(), 999);
    go.fire();
    let answers: Vec<_> = clients.iter_mut().map(Client::finish).collect();
    assert!(answers.iter().all(onlyonce_testkit::Response::whole));
    for answer in &answers {
        expect_same(answer, &answers[0]);
    }
    let attempts: BTreeSet<_> = answers
        .iter()
        .filter_map(|a| a.header("onlyonce-attempt"))
        .collect();
    assert_eq!(
        attempts.len(),
        1000,
        "every attempt has a number of its own"
    );
    assert_eq!(upstream.hits(), 1);
}

/// Case: another request under the key of one that still runs. Answer: 422 `key-reused` at once.
#[test]
fn hostile_030_a_mismatch_in_flight_is_told_at_once() {
    for concurrent in ["join", "reject"] {
        let go = Signal::new();
        let wait = go.clone();
        let upstream = Upstream::scripted(move |x| {
            wait.wait();
            x.answer(200, &[], b"done");
        });
        let gateway = setup(&upstream)
            .route(&format!("concurrent = \"{concurrent}\""))
            .start();
        let mut first = gateway.begin(&post("/x", "k", "b"));
        upstream.wait_for_hits(1);
        gateway
            .post("/x", "k", "other")
            .expect_problem(422, "key-reused")
            .expect_retry(false);
        if concurrent == "reject" {
            // The same request is told that it is still running, by this route's policy.
            let running = gateway.post("/x", "k", "b");
            running
                .expect_problem(409, "operation-in-flight")
                .expect_retry(true);
            assert!(running.header("retry-after").is_some());
        }
        go.fire();
        expect_executed(&first.response(), 200);
        assert_eq!(upstream.hits(), 1);
    }
}

/// Case: one key before two upstreams. Answer: two operations.
#[test]
fn hostile_031_upstreams_are_independent() {
    let (one, two) = (Upstream::counting(), Upstream::counting());
    let gateway = Setup::new(program(), &one.url())
        .extra(&format!(
            "[[upstream]]\nname = \"two\"\nurl = \"{}\"\n\
             [[route]]\nupstream = \"two\"\npath_prefix = \"/two\"\nstrip_prefix = true",
            two.url()
        ))
        .start();
    let first = gateway.post("/x", "k", "b");
    let second = gateway.post("/two/x", "k", "b");
    expect_executed(&first, 200);
    expect_executed(&second, 200);
    assert_eq!(second.text(), "execution 1 of POST /x");
    expect_replay(&gateway.post("/two/x", "k", "b"), &second);
    expect_replay(&gateway.post("/x", "k", "b"), &first);
    assert_eq!((one.hits(), two.hits()), (1, 1));
}

/// Case: the upstream answers 429. Answer: released: the next attempt executes.
#[test]
fn hostile_032_a_key_released_by_429_runs_again() {
    let upstream = Upstream::scripted(|x| match x.number {
        1 => x.answer(429, &[("Retry-After", "7")], b"slow down"),
        _ => x.answer(200, &[], b"done"),
    });
    let gateway = gateway(&upstream);
    let released = gateway.post("/x", "k", "b");
    released.expect_status(429).expect_mark("released");
    assert_eq!(
        (released.text().as_str(), released.header("retry-after")),
        ("slow down", Some("7"))
    );
    assert_eq!(released.header("idempotent-replayed"), None);
    let first = gateway.post("/x", "k", "b");
    expect_executed(&first, 200);
    expect_replay(&gateway.post("/x", "k", "b"), &first);
    assert_eq!(upstream.hits(), 2);
}

/// Case: ten attempts at once, and the upstream says that nothing ran. Answer: ten equal answers, one
/// request sent.
#[test]
fn hostile_033_those_who_joined_share_the_release() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        wait.wait();
        x.answer(503, &[], format!("refusal {}", x.number).as_bytes());
    });
    let gateway = gateway(&upstream);
    let mut clients: Vec<Client> = (0..10)
        .map(|_| gateway.begin(&post("/x", "k", "b")))
        .collect();
    upstream.wait_for_hits(1);
    eventually("ten attempts at one operation", || {
        gateway
            .control()
            .operations("k")
            .iter()
            .any(|op| op["attempts"] == 10)
    });
    go.fire();
    for client in &mut clients {
        let answer = client.response();
        answer.expect_status(503).expect_mark("released");
        assert_eq!(answer.text(), "refusal 1");
    }
    assert_eq!(upstream.hits(), 1);
}
