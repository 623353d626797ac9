//! Where a key comes from and where it goes: `key`, `key_headers`, `derived_window`, `forward_key`.

use onlyonce_testkit::{Request, Upstream, eventually};

use crate::{expect_executed, expect_replay, post, setup};

fn unkeyed(body: &str) -> Request {
    Request::post("/x").body(body)
}

#[test]
fn a_derived_key_makes_equal_requests_one() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .route("key = \"derived\"\nderived_window = \"1h\"")
        .start();
    let first = gateway.send(&unkeyed("a"));
    expect_executed(&first);
    let key = first
        .header("onlyonce-key")
        .expect("the derived key is announced")
        .to_owned();
    let again = gateway.send(&unkeyed("a"));
    expect_replay(&again, &first);
    assert_eq!(again.header("onlyonce-key"), Some(key.as_str()));
    // Another body, path or tenant is another action.
    let other = gateway.send(&unkeyed("b"));
    expect_executed(&other);
    assert_ne!(other.header("onlyonce-key"), Some(key.as_str()));
    expect_executed(&gateway.send(&Request::post("/y").body("a")));
    expect_executed(&gateway.send(&unkeyed("a").header("x-api-key", "someone")));
    assert_eq!(upstream.hits(), 4);
    // The upstream never sees a key that the client did not send.
    assert!(
        upstream
            .seen()
            .iter()
            .all(|seen| seen.head.header("idempotency-key").is_none())
    );
}

#[test]
fn a_derived_key_is_over_with_its_window() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .route("key = \"derived\"\nderived_window = \"300ms\"")
        .start();
    expect_executed(&gateway.send(&unkeyed("a")));
    eventually("the same request runs again", || {
        gateway.send(&unkeyed("a")).mark() == Some("executed")
    });
    assert_eq!(upstream.hits(), 2);
}

#[test]
fn where_keys_are_derived_a_key_that_came_counts() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).route("key = \"derived\"").start();
    let first = gateway.post("/x", "k1", "a");
    expect_executed(&first);
    expect_executed(&gateway.post("/x", "k2", "a"));
    expect_replay(&gateway.post("/x", "k1", "a"), &first);
    assert_eq!(first.header("onlyonce-key"), None);
    // Safe methods have no key, derived or not.
    for _ in 0..2 {
        assert_eq!(gateway.send(&Request::get("/x")).mark(), None);
    }
    assert_eq!(upstream.hits(), 4);
}

#[test]
fn other_headers_can_carry_the_key() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .route("key_headers = [\"PayPal-Request-Id\", \"X-Request-Key\"]")
        .start();
    let with = |name: &str| unkeyed("a").header(name, "k");
    let first = gateway.send(&with("paypal-request-id"));
    expect_executed(&first);
    expect_replay(&gateway.send(&with("X-Request-Key")), &first);
    gateway
        .send(&with("PayPal-Request-Id").header("X-Request-Key", "k"))
        .expect_problem(400, "key-malformed");
    // The usual header is any other header here.
    assert_eq!(gateway.post("/x", "k", "a").expect_status(200).mark(), None);
    assert_eq!(upstream.hits(), 2);
}

#[test]
fn a_key_goes_upstream_as_it_came() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).start();
    expect_executed(&gateway.post("/x", "k1", "a"));
    expect_executed(&gateway.post("/x", "\"k2\"", "a"));
    let keys: Vec<_> = upstream
        .seen()
        .iter()
        .map(|s| s.head.header("idempotency-key").map(str::to_owned))
        .collect();
    assert_eq!(keys, [Some("k1".to_owned()), Some("\"k2\"".to_owned())]);
}

#[test]
fn a_key_can_be_kept_from_the_upstream() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).route("forward_key = \"\"").start();
    expect_executed(&gateway.post("/x", "k1", "a"));
    assert_eq!(upstream.seen()[0].head.header("idempotency-key"), None);
}

#[test]
fn a_key_can_go_upstream_in_another_header_a_derived_one_too() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .route("forward_key = \"X-Idem\"\nkey = \"derived\"")
        .start();
    expect_executed(&gateway.post("/x", "k1", "a"));
    let derived = gateway.send(&unkeyed("a"));
    expect_executed(&derived);
    let seen = upstream.seen();
    assert_eq!(seen[0].head.header("x-idem"), Some("k1"));
    assert_eq!(seen[0].head.header("idempotency-key"), None);
    assert_eq!(
        seen[1].head.header("x-idem"),
        derived.header("onlyonce-key")
    );
}

#[test]
fn an_upstreams_own_view_of_a_malformed_key_is_not_asked() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).route("key = \"derived\"").start();
    // A key that is there and broken is refused: it is not replaced by a derived one.
    gateway
        .send(&post("/x", "a,b", "a"))
        .expect_problem(400, "key-malformed");
    assert_eq!(upstream.hits(), 0);
}
