//! Cases 1 to 18: what counts as a key, and which texts are the same key.

use onlyonce_testkit::{Request, Upstream};

use crate::{expect_executed, expect_replay, gateway, post, setup};

/// Every one of these values is refused, and nothing is sent.
#[track_caller]
fn expect_malformed(values: &[&str]) {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    for value in values {
        let answer = gateway.post("/x", value, "b");
        answer
            .expect_problem(400, "key-malformed")
            .expect_retry(false);
    }
    assert_eq!(upstream.hits(), 0);
}

/// All of these values name one operation: one hit.
#[track_caller]
fn expect_one_key(values: &[&str]) {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let first = gateway.post("/x", values[0], "b");
    expect_executed(&first, 200);
    for value in &values[1..] {
        expect_replay(&gateway.post("/x", value, "b"), &first);
    }
    assert_eq!(upstream.hits(), 1);
}

/// Case: no key, where the route requires one. Answer: 400 `key-missing`, nothing is sent.
#[test]
fn hostile_001_a_missing_key_is_refused_where_one_is_required() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).route("key = \"required\"").start();
    let answer = gateway.send(&Request::post("/x").body("b"));
    answer
        .expect_problem(400, "key-missing")
        .expect_retry(false);
    assert_eq!(upstream.hits(), 0);
    expect_executed(&gateway.post("/x", "k", "b"), 200);
}

/// Case: no key, where none is required. Answer: passes, without a mark and without a record.
#[test]
fn hostile_002_without_a_key_a_request_passes_through_unmarked() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    for hit in 1..=2 {
        let answer = gateway.send(&Request::post("/x").body("b"));
        assert_eq!(
            answer.expect_status(200).text(),
            format!("execution {hit} of POST /x")
        );
        let marks = |name: &str| name.to_ascii_lowercase().starts_with("onlyonce-");
        assert!(
            !answer.head.headers.iter().any(|(name, _)| marks(name)),
            "{:?}",
            answer.head
        );
        assert_eq!(answer.header("idempotent-replayed"), None);
        assert_eq!(upstream.hits(), hit);
    }
    let all = gateway.control().json("/v1/operations");
    assert_eq!(all["operations"].as_array().map(Vec::len), Some(0));
}

/// Case: a key without a character, bare or in quotes. Answer: 400 `key-malformed`.
#[test]
fn hostile_003_an_empty_key_is_refused() {
    expect_malformed(&["", "\"\""]);
}

/// Case: a key of spaces and tabs. Answer: 400 `key-malformed`.
#[test]
fn hostile_004_a_key_of_white_space_is_refused() {
    expect_malformed(&["    ", "\"   \"", "\t"]);
}

/// Case: a key of a single character. Answer: taken.
#[test]
fn hostile_005_one_character_is_a_key() {
    expect_one_key(&["k", "k"]);
}

/// Case: a key as long as is allowed. Answer: taken.
#[test]
fn hostile_006_255_characters_are_a_key() {
    let key = "k".repeat(255);
    expect_one_key(&[&key, &format!("\"{key}\"")]);
}

/// Case: a key that is one character too long. Answer: 400 `key-malformed`.
#[test]
fn hostile_007_256_characters_are_refused() {
    let key = "k".repeat(256);
    expect_malformed(&[&key, &format!("\"{key}\"")]);
}

/// Case: 64 KiB of key. Answer: 431 `headers-too-large`.
#[test]
fn hostile_008_64_kib_of_key_are_too_much_header() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let request = post("/x", &"k".repeat(64 * 1024), "b");
    let mut client = gateway.connect();
    let answer = client.try_send_bytes(&request.bytes()).response();
    answer
        .expect_problem(431, "headers-too-large")
        .expect_retry(false);
    assert_eq!(upstream.hits(), 0);
}

/// Case: the header twice, with one value. Answer: 400 `key-malformed`.
#[test]
fn hostile_009_two_headers_with_the_same_key_are_refused() {
    two_headers("k", "k");
}

/// Case: the header twice, with two values. Answer: 400 `key-malformed`.
#[test]
fn hostile_010_two_headers_with_different_keys_are_refused() {
    two_headers("k", "l");
}

#[track_caller]
fn two_headers(one: &str, other: &str) {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let answer = gateway.send(&post("/x", one, "b").key(other));
    answer
        .expect_problem(400, "key-malformed")
        .expect_retry(false);
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert!(
        detail.contains("idempotency-key was sent more than once"),
        "{detail}"
    );
    assert_eq!(upstream.hits(), 0);
}

/// Case: several keys in one header, with commas. Answer: 400 `key-malformed`.
#[test]
fn hostile_011_a_list_in_one_header_is_refused() {
    expect_malformed(&["k, l", "k,k", "\"k\", \"l\"", "\"k\",\"k\""]);
}

/// Case: a key with and without quotes. Answer: one operation.
#[test]
fn hostile_012_a_quoted_and_a_bare_key_are_one_key() {
    expect_one_key(&["\"k-1\"", "k-1", "  k-1  ", "\"k-1\""]);
}

/// Case: a quote that has no partner. Answer: 400 `key-malformed`.
#[test]
fn hostile_013_a_quote_that_is_not_closed_is_refused() {
    expect_malformed(&["\"k", "k\"", "\"", "\"k\\\"", "\"k\"l"]);
}

/// Case: bytes that are not ASCII. Answer: 400 `key-malformed`.
#[test]
fn hostile_014_a_key_that_is_not_ascii_is_refused() {
    // Latin-1, and the bytes of UTF-8, bare and quoted.
    expect_malformed(&["k\u{e9}", "\u{c3}\u{a9}", "\"\u{c3}\u{a9}\"", "k\u{ff}"]);
}

/// Case: NUL, CR, LF, TAB and other control characters. Answer: 400, closed.
#[test]
fn hostile_015_a_control_character_in_a_key_is_refused_and_the_connection_closed() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    for key in [
        "a\0b", "a\rb", "a\nb", "a\tb", "\"a\tb\"", "a\x07b", "a\x7fb",
    ] {
        let mut client = gateway.connect();
        let answer = client.send(&post("/x", key, "b")).response();
        assert_eq!(answer.status(), 400, "{key:?}: {:?}", answer.head);
        assert!(client.closed(), "{key:?}: the connection stays open");
    }
    assert_eq!(upstream.hits(), 0);
}

/// Case: keys that differ in upper and lower case. Answer: an operation each.
#[test]
fn hostile_016_another_case_is_another_key() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    for (hit, key) in ["Key", "key", "KEY"].into_iter().enumerate() {
        let answer = gateway.post("/x", key, "b");
        expect_executed(&answer, 200);
        assert_eq!(answer.text(), format!("execution {} of POST /x", hit + 1));
    }
    assert_eq!(upstream.hits(), 3);
}

/// Case: keys that look like paths, SQL, commands of Redis, patterns, scripts. Answer: plain text, an
/// operation each.
#[test]
fn hostile_017_paths_sql_resp_and_globs_are_opaque() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let keys = [
        "\"../../../etc/passwd\"",
        "\"..%2f..%2f\"",
        "\"';DROP/**/TABLE/**/operations;--\"",
        "\"'OR'1'='1\"",
        "\"*3$3SET$1k$1v\"",
        "\"k*\"",
        "\"k?\"",
        "\"[a-z]*\"",
        "\"k1\"",
        "\"{k}\"",
        "\"%s%n$(id)`id`\"",
        "\"<script>\"",
    ];
    let firsts: Vec<_> = keys
        .iter()
        .map(|key| gateway.post("/x", key, "b"))
        .collect();
    firsts.iter().for_each(|first| expect_executed(first, 200));
    for (key, first) in keys.iter().zip(&firsts) {
        expect_replay(&gateway.post("/x", key, "b"), first);
        let listed = gateway.control().operation(key.trim_matches('"'));
        assert_eq!(listed["id"].as_str(), first.header("onlyonce-operation"));
    }
    assert_eq!(upstream.hits(), keys.len());
}

/// Case: structured fields with parameters, with escapes, of other types. Answer: parameters are dropped,
/// escapes undone; 400 for what is neither a string nor a plain token.
#[test]
fn hostile_018_parameters_of_a_quoted_key_are_ignored() {
    expect_one_key(&["\"k\"", "\"k\";a=1", "\"k\";a=1;b=\"x\"", "\"k\";c", "k"]);
}

#[test]
fn hostile_018_escapes_in_a_quoted_key_are_undone() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    expect_executed(&gateway.post("/x", r#""a\"b""#, "b"), 200);
    expect_executed(&gateway.post("/x", r#""a\\b""#, "b"), 200);
    assert_eq!(gateway.control().operation("a\"b")["state"], "completed");
    assert_eq!(gateway.control().operation("a\\b")["state"], "completed");
    assert_eq!(upstream.hits(), 2);
}

#[test]
fn hostile_018_other_structured_fields_are_refused_unless_a_plain_token() {
    expect_malformed(&["k;a=1", ":aGVsbG8=:", "(a b)", "a b", "\"a\\qb\""]);
    expect_one_key(&["42", "\"42\"", "42"]);
}
