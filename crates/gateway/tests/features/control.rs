//! The control listener: health, operations, recordings, settling by hand.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use onlyonce_testkit::{Client, Gateway, Request, Upstream, eventually};
use serde_json::{Value, json};

use crate::{expect_executed, expect_replay, gateway, held, post, setup};

fn ids(page: &Value) -> Vec<String> {
    page["operations"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|op| op["id"].as_str().expect("an id").to_owned())
        .collect()
}

/// An operation whose outcome is unknown: its upstream hung up.
fn unknown() -> (Upstream, Gateway, String) {
    let upstream = Upstream::scripted(|x| match x.number {
        1 => x.reset(),
        n => x.answer(200, &[], format!("execution {n}").as_bytes()),
    });
    let gateway = gateway(&upstream);
    let answer = gateway.post("/x", "k", "b");
    answer.expect_problem(502, "outcome-unknown");
    let id = gateway.control().operation("k")["id"]
        .as_str()
        .unwrap()
        .to_owned();
    (upstream, gateway, id)
}

#[test]
fn it_says_that_it_lives_and_is_ready() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    assert_eq!(gateway.control().get("/healthz").status(), 200);
    assert_eq!(gateway.control().get("/readyz").status(), 200);
    assert_eq!(gateway.control().get("/nothing").status(), 404);
}

#[test]
fn metrics_count_requests_by_how_they_were_answered() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    gateway.post("/x", "k", "b");
    gateway.post("/x", "k", "b");
    gateway.post("/x", "k", "b");
    gateway.post("/x", "k", "c");
    gateway.send(&Request::get("/x"));
    let control = gateway.control();
    let count = |status: &str| control.metric("onlyonce_requests_total", &format!("\"{status}\""));
    for (status, expected) in [
        ("executed", 1.0),
        ("replayed", 2.0),
        ("refused", 1.0),
        ("passed", 1.0),
    ] {
        eventually(&format!("{expected} {status}"), || {
            (count(status) - expected).abs() < f64::EPSILON
        });
    }
}

#[test]
fn every_problem_has_a_page() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let control = gateway.control();
    assert_eq!(control.get("/problems").status(), 200);
    for name in [
        "operation-in-flight",
        "key-reused",
        "key-missing",
        "key-malformed",
        "outcome-unknown",
        "operation-unfinished",
        "upstream-unreachable",
        "store-unavailable",
        "body-too-large",
        "headers-too-large",
        "quota-exceeded",
        "storage-full",
        "credential-missing",
        "request-timeout",
        "bad-request",
        "route-not-found",
        "shutting-down",
        "upgrade-refused",
        "claim-lost",
        "already-settled",
    ] {
        let page = control.get(&format!("/problems/{name}"));
        assert_eq!(page.status(), 200, "{name}");
        assert!(page.text().contains(name), "{name}: {}", page.text());
    }
    assert_eq!(control.get("/problems/no-such-problem").status(), 404);
}

#[test]
fn problem_types_are_absolute_with_a_public_address() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .server("public_url = \"https://once.test/\"")
        .start();
    let refused = gateway.post("/x", "a,b", "b");
    assert_eq!(
        refused.json()["type"],
        "https://once.test/problems/key-malformed"
    );
}

#[test]
fn operations_are_found_by_key_tenant_state_and_time() {
    let upstream = Upstream::scripted(|x| {
        let status = if x.path() == "/busy" { 429 } else { 200 };
        x.answer(status, &[], b"answer");
    });
    let gateway = setup(&upstream)
        .extra("[[tenant]]\nname = \"acme\"\ncredentials = [\"env:ACME\"]")
        .env("ACME", "credential-of-acme")
        .start();
    let one = gateway.post("/x", "k1", "b");
    gateway.send(&post("/x", "k2", "b").header("x-api-key", "credential-of-acme"));
    gateway.post("/busy", "k3", "b").expect_status(429);
    let control = gateway.control();
    let count = |query: &str| ids(&control.json(&format!("/v1/operations?{query}"))).len();
    assert_eq!(count(""), 3);
    assert_eq!(count("key=k1"), 1);
    assert_eq!(count("key=k"), 0);
    assert_eq!(count("tenant=acme"), 1);
    assert_eq!(count("tenant=anonymous"), 2);
    assert_eq!(count("state=completed"), 2);
    assert_eq!(count("state=released"), 1);
    assert_eq!(count("state=unknown"), 0);
    assert_eq!(count("state=completed&tenant=acme&key=k2"), 1);
    let created = control.operation("k1")["created_at"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(count(&format!("since={created}")), 3);
    assert_eq!(count("since=2999-01-01T00:00:00Z"), 0);
    assert_eq!(count("until=2001-01-01T00:00:00Z"), 0);
    for wrong in [
        "state=lost",
        "since=yesterday",
        "limit=0",
        "limit=x",
        "cursor=nonsense",
    ] {
        assert_eq!(
            control.get(&format!("/v1/operations?{wrong}")).status(),
            400,
            "{wrong}"
        );
    }

    let operation = control.operation("k1");
    assert_eq!(operation["id"].as_str(), one.header("onlyonce-operation"));
    for (field, value) in [
        ("tenant", json!("anonymous")),
        ("namespace", json!("up")),
        ("key", json!("k1")),
        ("state", json!("completed")),
        ("reason", Value::Null),
        ("route", json!("up")),
        ("method", json!("POST")),
        ("path", json!("/x")),
        ("status", json!(200)),
        ("response_bytes", json!(6)),
        ("attempts", json!(1)),
    ] {
        assert_eq!(operation[field], value, "{field} of {operation}");
    }
    for field in ["created_at", "completed_at", "expires_at"] {
        let text = operation[field]
            .as_str()
            .unwrap_or_else(|| panic!("{field} of {operation}"));
        assert_eq!(text.len(), "2026-01-01T00:00:00.000Z".len(), "{text}");
        assert!(text.ends_with('Z'));
    }
}

#[test]
fn a_long_list_comes_in_pages() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let mut client = gateway.connect();
    for n in 0..25 {
        expect_executed(&client.ask(&post("/x", &format!("k{n}"), "b")));
    }
    let control = gateway.control();
    let all = ids(&control.json("/v1/operations?limit=100"));
    assert_eq!(all.len(), 25);
    let mut paged = Vec::new();
    let mut cursor = String::new();
    let mut pages = 0;
    loop {
        let page = control.json(&format!("/v1/operations?limit=10{cursor}"));
        paged.extend(ids(&page));
        pages += 1;
        // A key that comes between two pages neither shifts nor repeats what is left.
        client.ask(&post("/x", &format!("between-{pages}"), "b"));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
        assert!(pages < 10, "the pages do not end");
    }
    paged.retain(|id| all.contains(id));
    assert_eq!(paged.len(), 25);
    let mut sorted = paged.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), 25, "one appears twice");
}

#[test]
fn one_operation_shows_its_attempts_and_its_answer() {
    let upstream = Upstream::scripted(|x| x.answer(201, &[("X-A", "1"), ("X-A", "2")], b"made"));
    let gateway = gateway(&upstream);
    let first = gateway.post("/x", "k", "b");
    first.expect_status(201);
    gateway.send(&post("/x", "k", "b").header("X-Stainless-Retry-Count", "1"));
    gateway.post("/x", "k", "other").expect_status(422);
    let control = gateway.control();
    let id = first.header("onlyonce-operation").unwrap();
    let detail = || control.json(&format!("/v1/operations/{id}"));
    eventually("two attempts or more are listed", || {
        detail()["attempts_log"]
            .as_array()
            .is_some_and(|log| log.len() >= 2)
    });
    let detail = detail();
    assert_eq!(
        (&detail["id"], &detail["state"]),
        (&json!(id), &json!("completed"))
    );
    let log = detail["attempts_log"].as_array().unwrap();
    assert_eq!(log[0]["number"], 1);
    assert_eq!(log[0]["got"], "executed");
    assert!(
        log[0]["peer"]
            .as_str()
            .is_some_and(|peer| peer.starts_with("127.0.0.1")),
        "{log:?}"
    );
    assert!(log[0]["at"].as_str().is_some_and(|at| at.ends_with('Z')));
    assert_eq!(log[1]["number"], 2);
    assert_eq!(log[1]["got"], "replayed");
    assert_eq!(log[1]["sdk_retry_count"], 1);
    let headers = detail["response_headers"].as_array().unwrap();
    let many: Vec<_> = headers
        .iter()
        .filter(|pair| {
            pair[0]
                .as_str()
                .is_some_and(|n| n.eq_ignore_ascii_case("x-a"))
        })
        .map(|pair| pair[1].as_str().unwrap())
        .collect();
    assert_eq!(many, ["1", "2"]);
    for wrong in ["op_01890a5d-ac96-774b-bcce-b302099a8057", "nonsense"] {
        let status = control.get(&format!("/v1/operations/{wrong}")).status();
        assert!(status == 404 || status == 400, "{wrong}: {status}");
    }
}

#[test]
fn a_recording_is_read_from_any_byte() {
    let upstream = Upstream::scripted(|x| {
        x.start_chunked(200, &[]);
        for n in 0..10 {
            x.chunk(format!("{n}"));
        }
        x.end_chunks();
    });
    let gateway = gateway(&upstream);
    let first = gateway.post("/x", "k", "b");
    let id = first.header("onlyonce-operation").unwrap();
    let control = gateway.control();
    let from = |query: &str| control.get(&format!("/v1/operations/{id}/recording{query}"));
    assert_eq!(from("").text(), "0123456789");
    assert_eq!(from("?from=0").text(), "0123456789");
    assert_eq!(from("?from=7").text(), "789");
    assert_eq!(from("?from=10").text(), "");
    assert!(from("?from=11").status() >= 400);
    assert_eq!(from("?from=x").status(), 400);
}

#[test]
fn a_recording_is_followed_while_it_grows() {
    let (upstream, go) = held();
    let gateway = gateway(&upstream);
    let mut first = gateway.begin(&post("/x", "k", "b"));
    first.read_head();
    first.read_until("begun");
    let id = gateway.control().operation("k")["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut follower = Client::connect(gateway.control_addr());
    follower.send(&Request::get(&format!(
        "/v1/operations/{id}/recording?from=2"
    )));
    follower.read_head();
    follower.read_until("gun, ");
    go.fire();
    let followed = follower.finish();
    assert!(followed.whole());
    assert_eq!(followed.text(), "gun, and ended");
    assert!(first.finish().whole());
}

#[test]
fn a_recording_that_breaks_breaks_its_followers() {
    let go = onlyonce_testkit::Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[]);
        x.chunk("begun");
        wait.wait();
        x.reset();
    });
    let gateway = gateway(&upstream);
    let mut first = gateway.begin(&post("/x", "k", "b"));
    first.read_head();
    first.read_until("begun");
    let id = gateway.control().operation("k")["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut follower = Client::connect(gateway.control_addr());
    follower.send(&Request::get(&format!("/v1/operations/{id}/recording")));
    follower.read_head();
    follower.read_until("begun");
    go.fire();
    assert!(
        !follower.finish().whole(),
        "a broken recording ended cleanly"
    );
}

#[test]
fn an_operator_who_knows_that_it_did_not_run_frees_the_key() {
    let (upstream, gateway, id) = unknown();
    let control = gateway.control();
    let resolved = control.resolve(
        &id,
        &json!({"outcome": "released", "reason": "not in their log"}),
    );
    assert_eq!(resolved.status(), 200, "{}", resolved.text());
    assert_eq!(resolved.json()["state"], "released");
    let again = gateway.post("/x", "k", "b");
    expect_executed(&again);
    assert_eq!(again.text(), "execution 2");
    assert_eq!(upstream.hits(), 2);
}

#[test]
fn an_operator_who_knows_the_answer_completes_the_operation() {
    let (upstream, gateway, id) = unknown();
    let control = gateway.control();
    let answer = json!({
        "outcome": "completed", "status": 201, "headers": [["x-found", "in the ledger"]],
        "body_base64": STANDARD.encode("made after all"), "reason": "looked it up",
    });
    let resolved = control.resolve(&id, &answer);
    assert_eq!(resolved.status(), 200, "{}", resolved.text());
    assert_eq!(resolved.json()["state"], "completed");
    let replay = gateway.post("/x", "k", "b");
    replay.expect_status(201).expect_mark("replayed");
    assert_eq!(replay.text(), "made after all");
    assert_eq!(replay.header("x-found"), Some("in the ledger"));
    assert_eq!(upstream.hits(), 1);
    // It is completed for good.
    for with in [answer, json!({"outcome": "released", "reason": "no"})] {
        let refused = control.resolve(&id, &with).status();
        assert!((400..500).contains(&refused), "{refused}");
    }
    expect_replay(&gateway.post("/x", "k", "b"), &replay);
}

#[test]
fn what_runs_cannot_be_settled_by_hand() {
    let (upstream, go) = held();
    let gateway = gateway(&upstream);
    let mut first = gateway.begin(&post("/x", "k", "b"));
    upstream.wait_for_hits(1);
    let id = gateway.control().operation("k")["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let refused = gateway
        .control()
        .resolve(&id, &json!({"outcome": "released", "reason": "?"}));
    assert!((400..500).contains(&refused.status()), "{}", refused.text());
    go.fire();
    expect_executed(&first.response());
}

#[test]
fn a_broken_request_to_settle_changes_nothing() {
    let (_upstream, gateway, id) = unknown();
    let control = gateway.control();
    for wrong in [
        json!({}),
        json!({"outcome": "finished"}),
        json!({"outcome": "completed", "status": 99, "headers": [], "body_base64": ""}),
        json!({"outcome": "completed", "status": 200, "headers": [["bad name", "v"]], "body_base64": ""}),
        json!({"outcome": "completed", "status": 200, "headers": [], "body_base64": "%%%"}),
    ] {
        let refused = control.resolve(&id, &wrong).status();
        assert!((400..500).contains(&refused), "{wrong}: {refused}");
    }
    assert_eq!(control.operation("k")["state"], "unknown");
}

#[test]
fn a_purge_forgets_what_it_names_and_nothing_that_runs() {
    let (upstream, go) = held();
    let gateway = gateway(&upstream);
    let mut running = gateway.begin(&post("/x", "running", "b"));
    upstream.wait_for_hits(1);
    go.fire();
    expect_executed(&running.response());
    expect_executed(&gateway.send(&post("/x", "k1", "b").header("x-api-key", "one")));
    expect_executed(&gateway.send(&post("/x", "k2", "b").header("x-api-key", "two")));
    let control = gateway.control();
    let tenant = control.operation("k1")["tenant"]
        .as_str()
        .unwrap()
        .to_owned();
    let purged = control.post("/v1/purge", &json!({"tenant": tenant}));
    assert_eq!(
        (purged.status(), purged.json()["purged"].as_u64()),
        (200, Some(1))
    );
    assert!(control.operations("k1").is_empty());
    assert_eq!(control.operation("k2")["state"], "completed");
    let rest = control.post("/v1/purge", &json!({"state": "completed"}));
    assert_eq!(rest.json()["purged"], 2);
    expect_executed(&gateway.send(&post("/x", "k1", "b").header("x-api-key", "one")));
}

#[test]
fn a_purge_leaves_alone_what_runs() {
    let (upstream, go) = held();
    let gateway = gateway(&upstream);
    let mut running = gateway.begin(&post("/x", "k", "b"));
    upstream.wait_for_hits(1);
    let purged = gateway.control().post("/v1/purge", &json!({}));
    assert_eq!(purged.json()["purged"], 0, "{}", purged.text());
    go.fire();
    let first = running.response();
    expect_executed(&first);
    expect_replay(&gateway.post("/x", "k", "b"), &first);
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn a_token_guards_it() {
    let upstream = Upstream::counting();
    let token = "a-token-of-more-than-thirty-two-characters";
    let gateway = setup(&upstream)
        .server("control_token = \"env:TOKEN\"")
        .env("TOKEN", token)
        .start();
    gateway.post("/x", "k", "b");
    let open = gateway.control();
    assert_eq!(open.get("/v1/operations").status(), 401);
    assert_eq!(
        open.clone()
            .with_token("wrong")
            .get("/v1/operations")
            .status(),
        401
    );
    assert_eq!(open.post("/v1/purge", &json!({})).status(), 401);
    let guarded = open.clone().with_token(token);
    assert_eq!(guarded.operation("k")["state"], "completed");
    // Health is for the machine that restarts it, and tells nothing.
    assert_eq!(open.get("/healthz").status(), 200);
    assert!(!gateway.stderr().contains(token));
}
