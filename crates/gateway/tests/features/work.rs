//! The operations API: workers that claim, beat, complete, release and fail, over the real binary.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use onlyonce_testkit::{Client, Control, Gateway, Request, Response, Setup, Upstream, eventually};
use serde_json::{Value, json};

use crate::{gateway, setup};

const HOURS: &str = "1h";

fn begin(control: &Control, body: &Value) -> Value {
    let begun = control.post("/v1/work", body);
    assert_eq!(begun.status(), 200, "{}", begun.text());
    begun.json()
}

/// A claim of this key: the operation's id and what proves the claim.
fn grant(control: &Control, key: &str) -> (String, String) {
    grant_of(control, &json!({ "key": key, "lease": HOURS }))
}

fn grant_of(control: &Control, body: &Value) -> (String, String) {
    let begun = begin(control, body);
    assert_eq!(begun["decision"], "execute", "{begun}");
    let text = |name: &str| begun[name].as_str().unwrap().to_owned();
    (text("operation"), text("claim"))
}

fn settle(control: &Control, id: &str, verb: &str, body: &Value) -> Response {
    control.post(&format!("/v1/work/{id}/{verb}"), body)
}

fn complete(control: &Control, id: &str, claim: &str, result: &Value) -> Response {
    settle(
        control,
        id,
        "complete",
        &json!({ "claim": claim, "result": result }),
    )
}

/// Panics unless this is a refusal of that kind, with what to do.
#[track_caller]
fn expect_problem(refused: &Response, status: u16, name: &str) {
    assert_eq!(refused.status(), status, "{}", refused.text());
    let problem = refused.json();
    assert_eq!(problem["type"], format!("/problems/{name}"));
    assert!(problem["next"].as_str().unwrap().len() > 10);
}

fn state(control: &Control, id: &str) -> Value {
    control.json(&format!("/v1/work/{id}"))["state"].clone()
}

#[test]
fn i01_a_worker_executes_once_and_everybody_else_gets_its_result() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let control = gateway.control();
    let (id, claim) = grant(&control, "report-1");
    let second = begin(&control, &json!({ "key": "report-1" }));
    assert_eq!(second["decision"], "in_flight");
    assert_eq!(second["operation"], *id);
    let waiting = {
        let control = control.clone();
        thread::spawn(move || begin(&control, &json!({ "key": "report-1", "wait": "20s" })))
    };
    eventually("it is joined", || {
        control.operation("report-1")["attempts"] == 3
    });
    let result = json!({ "pages": 3, "total": 12345678901234567890_u64 });
    let done = complete(&control, &id, &claim, &result);
    assert_eq!(done.status(), 200, "{}", done.text());
    assert_eq!(done.json()["state"], "completed");
    let joined = waiting.join().unwrap();
    assert_eq!(joined["decision"], "join");
    assert_eq!(joined["result"], result);
    let replayed = begin(&control, &json!({ "key": "report-1" }));
    assert_eq!(replayed["decision"], "replay");
    assert_eq!(replayed["result"], result);
    assert_eq!(control.json(&format!("/v1/work/{id}"))["result"], result);
    // It is an operation as any other.
    let operation = control.operation("report-1");
    assert_eq!(operation["state"], "completed");
    assert_eq!(operation["method"], "WORK");
    assert_eq!(operation["attempts"], 4);
    let page = control.get(&format!("/console/operations/{id}"));
    assert!(page.text().contains("report-1"));
    assert_eq!(upstream.hits(), 0);
}

#[test]
fn i04_a_result_is_given_byte_for_byte() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let control = gateway.control();
    let (id, claim) = grant(&control, "k");
    let body = format!("{{\"claim\":\"{claim}\",\"result\":{{\"b\":1.0,  \"a\":1e2}}}}");
    let sent = onlyonce_testkit::Request::post(&format!("/v1/work/{id}/complete"))
        .without("Host")
        .header("Host", &gateway.control_addr().to_string())
        .header("Content-Type", "application/json")
        .body(body);
    let done = onlyonce_testkit::Client::connect(gateway.control_addr()).ask(&sent);
    assert_eq!(done.status(), 200, "{}", done.text());
    let replayed = control.post("/v1/work", &json!({ "key": "k" }));
    let text = replayed.text();
    assert!(
        text.contains("\"result\":{\"b\":1.0,  \"a\":1e2}"),
        "{text}"
    );
}

#[test]
fn i06_another_input_under_a_used_key_is_refused_and_reveals_nothing() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let control = gateway.control();
    let first = json!({ "key": "k", "input": { "to": "a", "n": 1 }, "lease": HOURS });
    let (id, claim) = grant_of(&control, &first);
    let other = json!({ "key": "k", "input": { "to": "b", "n": 1 } });
    let refused = control.post("/v1/work", &other);
    expect_problem(&refused, 422, "key-reused");
    assert!(!refused.text().contains(&id));
    // In the words of who has sent no request of HTTP to any upstream.
    let said = refused.text();
    assert!(
        said.contains("another input") && !said.contains("upstream"),
        "{said}"
    );
    let malformed = control.post("/v1/work", &json!({ "key": "a b" }));
    expect_problem(&malformed, 400, "key-malformed");
    assert!(!malformed.text().contains("header"), "{}", malformed.text());
    // The same input in another order is the same.
    let same = json!({ "key": "k", "input": { "n": 1, "to": "a" } });
    assert_eq!(begin(&control, &same)["decision"], "in_flight");
    complete(&control, &id, &claim, &json!(1));
    expect_problem(&control.post("/v1/work", &other), 422, "key-reused");
}

#[test]
fn i14_a_begin_that_is_sent_again_with_its_nonce_gets_the_same_claim() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let control = gateway.control();
    let body = json!({ "key": "k", "nonce": "n-1", "lease": HOURS });
    let first = grant_of(&control, &body);
    assert_eq!(grant_of(&control, &body), first);
    let other = json!({ "key": "k", "nonce": "n-2" });
    assert_eq!(begin(&control, &other)["decision"], "in_flight");
}

#[test]
fn hostile_064_a_lease_that_passes_is_unknown_and_the_late_result_is_taken() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let control = gateway.control();
    let (id, claim) = grant_of(&control, &json!({ "key": "k", "lease": "1s" }));
    control.wait_for_state("k", "unknown");
    let refused = control.post("/v1/work", &json!({ "key": "k" }));
    expect_problem(&refused, 409, "outcome-unknown");
    assert_eq!(refused.json()["operation"], *id);
    let beat = settle(&control, &id, "heartbeat", &json!({ "claim": claim }));
    expect_problem(&beat, 409, "already-settled");
    let released = settle(&control, &id, "release", &json!({ "claim": claim }));
    expect_problem(&released, 409, "already-settled");
    let done = complete(&control, &id, &claim, &json!("late"));
    assert_eq!(done.status(), 200, "{}", done.text());
    let replayed = begin(&control, &json!({ "key": "k" }));
    assert_eq!(replayed["result"], "late");
}

#[test]
fn i09_a_late_result_after_a_rerun_is_refused() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let control = gateway.control();
    let (id, old) = grant_of(&control, &json!({ "key": "k", "lease": "1s" }));
    control.wait_for_state("k", "unknown");
    let rerun = json!({ "key": "k", "on_unknown": "rerun", "lease": HOURS });
    let (again, new) = grant_of(&control, &rerun);
    assert_eq!(again, id);
    for verb in ["heartbeat", "release", "fail"] {
        let refused = settle(&control, &id, verb, &json!({ "claim": old }));
        expect_problem(&refused, 409, "claim-lost");
    }
    let refused = complete(&control, &id, &old, &json!("old"));
    expect_problem(&refused, 409, "claim-lost");
    assert_eq!(complete(&control, &id, &new, &json!("new")).status(), 200);
    let refused = complete(&control, &id, &old, &json!("old"));
    expect_problem(&refused, 409, "claim-lost");
    assert_eq!(begin(&control, &json!({ "key": "k" }))["result"], "new");
}

#[test]
fn i09_a_later_claim_has_a_higher_epoch_and_every_answer_says_it() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let control = gateway.control();
    let asked = json!({ "key": "k", "lease": HOURS, "nonce": "n" });
    let epoch = |answer: &Value| answer["epoch"].as_u64().unwrap();

    let first = begin(&control, &asked);
    assert_eq!(begin(&control, &asked)["epoch"], first["epoch"]);
    let (id, claim) = grant_of(&control, &asked);
    let proof = json!({ "claim": claim });
    assert_eq!(
        settle(&control, &id, "heartbeat", &proof).json()["epoch"],
        first["epoch"],
        "it is still this claim"
    );
    let other = json!({ "key": "k" });
    assert_eq!(begin(&control, &other)["epoch"], first["epoch"]);
    settle(&control, &id, "release", &proof);

    let second = begin(&control, &other);
    assert!(epoch(&second) > epoch(&first), "{second} after {first}");
    let proof = json!({ "claim": second["claim"] });
    settle(&control, &id, "fail", &proof);
    let refused = control.post("/v1/work", &other);
    expect_problem(&refused, 409, "outcome-unknown");
    assert_eq!(refused.json()["operation"], *id);
    assert_eq!(refused.json()["epoch"], second["epoch"]);

    let rerun = json!({ "key": "k", "on_unknown": "rerun" });
    let third = begin(&control, &rerun);
    assert!(epoch(&third) > epoch(&second), "{third} after {second}");
    complete(&control, &id, third["claim"].as_str().unwrap(), &json!(1));
    let replayed = begin(&control, &other);
    assert_eq!(replayed["decision"], "replay");
    assert_eq!(replayed["epoch"], third["epoch"]);
    let shown = control.json(&format!("/v1/work/{id}"));
    assert_eq!(shown["epoch"], third["epoch"]);
    // Who sends something else is told nothing of the operation (I6).
    let reused = control.post("/v1/work", &json!({ "key": "k", "input": 2 }));
    expect_problem(&reused, 422, "key-reused");
    assert_eq!(reused.json().get("epoch"), None);
}

#[test]
fn heartbeats_keep_a_claim_and_a_release_frees_the_key() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let control = gateway.control();
    let (id, claim) = grant_of(&control, &json!({ "key": "k", "lease": "2s" }));
    let beat = settle(
        &control,
        &id,
        "heartbeat",
        &json!({ "claim": claim, "lease": HOURS }),
    );
    assert_eq!(beat.status(), 200, "{}", beat.text());
    let (lost, _) = grant_of(&control, &json!({ "key": "lost", "lease": "2s" }));
    // The same lease passes for the one that has not said anything.
    control.wait_for_state("lost", "unknown");
    assert_eq!(state(&control, &lost), "unknown");
    assert_eq!(state(&control, &id), "in_flight");
    let waiting = {
        let control = control.clone();
        thread::spawn(move || begin(&control, &json!({ "key": "k", "wait": "20s" })))
    };
    eventually("it is joined", || control.operation("k")["attempts"] == 2);
    for _ in 0..2 {
        let released = settle(&control, &id, "release", &json!({ "claim": claim }));
        assert_eq!(released.json()["state"], "released", "said twice");
    }
    assert_eq!(waiting.join().unwrap()["decision"], "released");
    grant(&control, "k");
}

#[test]
fn what_workers_hold_outlives_a_restart_and_a_kill_of_the_gateway() {
    let upstream = Upstream::counting();
    let mut gateway = gateway(&upstream);
    let (id, claim) = grant(&gateway.control(), "restarted");
    gateway.terminate();
    gateway.wait_for_exit();
    gateway.start_again();
    assert_eq!(state(&gateway.control(), &id), "in_flight");
    let (killed, proof) = grant(&gateway.control(), "killed");
    let passed = grant_of(
        &gateway.control(),
        &json!({ "key": "passed", "lease": "1s" }),
    );
    gateway.kill();
    gateway.start_again();
    let control = gateway.control();
    for (id, claim) in [(&id, &claim), (&killed, &proof)] {
        assert_eq!(state(&control, id), "in_flight");
        let beat = settle(&control, id, "heartbeat", &json!({ "claim": claim }));
        assert_eq!(beat.status(), 200, "{}", beat.text());
        assert_eq!(complete(&control, id, claim, &json!(1)).status(), 200);
    }
    control.wait_for_state("passed", "unknown");
    let late = complete(&control, &passed.0, &passed.1, &json!(1));
    assert_eq!(late.status(), 200, "{}", late.text());
    gateway.kill();
    gateway.start_again();
    for key in ["restarted", "killed", "passed"] {
        let replayed = begin(&gateway.control(), &json!({ "key": key }));
        assert_eq!(replayed["decision"], "replay", "{key}");
    }
}

#[test]
fn i07_a_token_of_a_tenant_works_for_that_tenant_alone() {
    const OPS: &str = "the-operators-token-which-is-long-enough";
    const ACME: &str = "the-token-of-acmes-workers-long-enough";
    const OTHER: &str = "the-token-of-others-workers-long-enough";
    const READER: &str = "a-token-that-only-reads-and-is-long-enough";
    let upstream = Upstream::counting();
    let token = |name: &str, rest: &str| {
        let env = name.to_uppercase();
        format!("[[server.token]]\nname = \"{name}\"\ntoken = \"env:{env}\"\n{rest}\n")
    };
    let gateway = setup(&upstream)
        .server("control_token = \"env:OPS\"")
        .extra(&token("acme", "tenant = \"acme\"\nrights = [\"work\"]"))
        .extra(&token("other", "tenant = \"other\"\nrights = [\"work\"]"))
        .extra(&token("reader", "rights = [\"read\"]"))
        .env("OPS", OPS)
        .env("ACME", ACME)
        .env("OTHER", OTHER)
        .env("READER", READER)
        .start();
    let by = |token| gateway.control().with_token(token);
    let (id, claim) = grant(&by(ACME), "k");
    let listed = by(OPS).operation("k");
    assert_eq!(listed["tenant"], "acme");
    // Another tenant's key of that name is another operation.
    let (others, _) = grant(&by(OTHER), "k");
    assert_ne!(others, id);
    let refused = by(OTHER).post("/v1/work", &json!({ "key": "x", "tenant": "acme" }));
    assert_eq!(refused.status(), 403);
    let control = by(OTHER);
    assert_eq!(control.get(&format!("/v1/work/{id}")).status(), 404);
    assert_eq!(complete(&control, &id, &claim, &json!(1)).status(), 404);
    assert_eq!(by(READER).get(&format!("/v1/work/{id}")).status(), 403);
    assert_eq!(by(ACME).get("/v1/operations").status(), 403);
    assert_eq!(complete(&by(ACME), &id, &claim, &json!(1)).status(), 200);
    let body = json!({ "key": "k", "tenant": "acme" });
    assert_eq!(begin(&by(OPS), &body)["decision"], "replay");
}

#[test]
fn i15_results_and_waiters_have_limits_and_nothing_is_lost() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .limits("work_result = \"1KiB\"\nwork_waiters = 1\nwork_wait = \"300ms\"")
        .start();
    let control = gateway.control();
    let (id, claim) = grant(&control, "k");
    let refused = complete(&control, &id, &claim, &json!("x".repeat(1023)));
    assert_eq!(refused.status(), 413);
    assert!(refused.text().contains("limits.work_result"));
    assert_eq!(state(&control, &id), "in_flight");
    // A wait ends with the bound, whatever was asked for.
    let waited = control.json(&format!("/v1/work/{id}?wait=1h"));
    assert_eq!(waited["state"], "in_flight");
    let mut events = Events::of(gateway.control_addr(), &id);
    events.expect("state");
    let refused = control.get(&format!("/v1/work/{id}?wait=1s"));
    assert_eq!(refused.status(), 429);
    assert!(refused.text().contains("limits.work_waiters"));
    drop(events);
    eventually("the place is free", || {
        control.get(&format!("/v1/work/{id}?wait=1ms")).status() == 200
    });
    let done = complete(&control, &id, &claim, &json!("x".repeat(1022)));
    assert_eq!(done.status(), 200, "{}", done.text());
}

#[test]
fn who_waits_is_told_at_once_in_one_answer_or_by_events() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let control = gateway.control();
    let (id, claim) = grant(&control, "k");
    let mut events = Events::of(gateway.control_addr(), &id);
    assert_eq!(events.expect("state")["state"], "in_flight");
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let (control, id) = (control.clone(), id.clone());
            thread::spawn(move || control.json(&format!("/v1/work/{id}?wait=20s")))
        })
        .collect();
    let result = json!({ "lines": "a\nb" });
    assert_eq!(complete(&control, &id, &claim, &result).status(), 200);
    for one in waiting {
        let seen = one.join().unwrap();
        assert_eq!(seen["state"], "completed");
        assert_eq!(seen["result"], result);
    }
    assert_eq!(events.expect("state")["state"], "completed");
    assert_eq!(events.expect("result")["result"], result);
    assert_eq!(events.next(), None);
    // Nobody who looks is an attempt.
    assert_eq!(control.operation("k")["attempts"], 1);
}

#[test]
fn the_ledger_has_what_workers_say_that_they_used() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let control = gateway.control();
    let (id, claim) = grant(&control, "k");
    let wrong = json!({ "claim": claim, "result": 1, "metered": { "usage": { "inputs": 1 } } });
    let refused = settle(&control, &id, "complete", &wrong);
    assert_eq!(refused.status(), 400);
    assert!(refused.text().contains("did you mean input?"));
    let used = json!({
        "claim": claim, "result": 1,
        "metered": {
            "provider": "openai", "model": "gpt-4o-mini", "operation": "chat",
            "usage": { "input": 1_000_000, "output": 0 },
        },
    });
    let done = settle(&control, &id, "complete", &used);
    assert_eq!(done.status(), 200, "{}", done.text());
    let metered = control.operation("k")["metered"].clone();
    assert_eq!(metered["source"], "provider");
    assert_eq!(metered["usage"]["input"], 1_000_000);
    assert_eq!(metered["cost"]["usd"], "0.15");
    eventually("it is in the ledger", || {
        control
            .json("/v1/ledger?by=model")
            .to_string()
            .contains("gpt-4o-mini")
    });
}

#[test]
fn a_worker_that_fails_leaves_an_outcome_that_a_person_settles() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let control = gateway.control();
    let (id, claim) = grant(&control, "k");
    let failed = settle(&control, &id, "fail", &json!({ "claim": claim }));
    assert_eq!(failed.json()["state"], "unknown");
    let resolved = control.resolve(&id, &json!({ "outcome": "released", "reason": "no trace" }));
    assert_eq!(resolved.status(), 200, "{}", resolved.text());
    let late = complete(&control, &id, &claim, &json!(1));
    expect_problem(&late, 409, "already-settled");
    let (again, _) = grant(&control, "k");
    assert_eq!(again, id);
}

#[test]
fn what_is_no_begin_is_refused_with_what_to_do() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let control = gateway.control();
    for (body, word) in [
        (json!({ "key": "" }), "key"),
        (json!({ "key": "a b" }), "key"),
        (json!({ "key": "k", "lease": "1ms" }), "lease"),
        (json!({ "key": "k", "lease": "48h" }), "lease"),
        (json!({ "key": "k", "wait": "soon" }), "wait"),
        (json!({ "key": "k", "namespace": "" }), "namespace"),
        (json!({ "key": "k", "nonce": "x".repeat(256) }), "nonce"),
    ] {
        let refused = control.post("/v1/work", &body);
        assert_eq!(refused.status(), 400, "{body}");
        let problem = refused.json();
        assert!(
            problem["detail"].as_str().unwrap().contains(word),
            "{problem}"
        );
        assert!(problem["next"].as_str().unwrap().len() > 10, "{problem}");
    }
    assert_eq!(control.json("/v1/operations")["operations"], json!([]));
}

#[test]
fn an_operation_of_a_route_is_no_workers() {
    let upstream = Upstream::counting();
    let gateway: Gateway = gateway(&upstream);
    gateway.post("/x", "k", "b").expect_status(200);
    let control = gateway.control();
    let id = control.operation("k")["id"].as_str().unwrap().to_owned();
    assert_eq!(control.get(&format!("/v1/work/{id}")).status(), 404);
    let guess = complete(&control, &id, &"0".repeat(64), &json!(1));
    assert_eq!(guess.status(), 404);
    // Nor is one that was granted for something else.
    let (_, claim) = grant(&control, "w");
    assert_eq!(complete(&control, &id, &claim, &json!(1)).status(), 404);
}

/// Workers that reach no other port than that of the requests.
#[test]
fn a_route_of_workers_serves_them_and_nobody_else() {
    const WORKER: &str = "the-token-of-workers-which-is-long-enough";
    const READER: &str = "a-token-that-only-reads-and-is-long-enough";
    let upstream = Upstream::counting();
    let token = |name: &str, right: &str| {
        let env = name.to_uppercase();
        format!(
            "[[server.token]]\nname = \"{name}\"\ntoken = \"env:{env}\"\nrights = [\"{right}\"]\n"
        )
    };
    let gateway = setup(&upstream)
        .extra("[[route]]\nkind = \"work\"")
        .extra("[[route]]\nkind = \"work\"\npath_prefix = \"/for\"\nhost = \"workers\"")
        .extra(&token("worker", "work"))
        .extra(&token("reader", "read"))
        .env("WORKER", WORKER)
        .env("READER", READER)
        .start();
    let workers = Control::new(gateway.addr()).with_token(WORKER);
    let (id, claim) = grant(&workers, "report-1");
    assert_eq!(state(&workers, &id), "in_flight");
    let mut events = Events::at(
        gateway.addr(),
        &id,
        &format!("Authorization: Bearer {WORKER}\r\n"),
    );
    assert_eq!(events.expect("state")["state"], "in_flight");
    let beat = settle(&workers, &id, "heartbeat", &json!({ "claim": claim }));
    assert_eq!(beat.status(), 200, "{}", beat.text());
    let done = complete(&workers, &id, &claim, &json!({ "pages": 3 }));
    assert_eq!(done.status(), 200, "{}", done.text());
    assert_eq!(events.expect("state")["state"], "completed");
    assert_eq!(events.expect("result")["result"]["pages"], 3);
    let replayed = begin(&workers, &json!({ "key": "report-1" }));
    assert_eq!(replayed["decision"], "replay");
    // The same operations as on the control listener, from the same peer as any request.
    let control = gateway.control().with_token(WORKER);
    assert_eq!(
        begin(&control, &json!({ "key": "report-1" }))["operation"],
        *id
    );

    let nobody = Control::new(gateway.addr());
    let begun = json!({ "key": "k" });
    assert_eq!(nobody.post("/v1/work", &begun).status(), 401);
    let guessing = nobody
        .clone()
        .with_token("a-token-that-nobody-was-ever-given-long");
    assert_eq!(guessing.post("/v1/work", &begun).status(), 401);
    let reading = nobody.clone().with_token(READER);
    assert_eq!(reading.post("/v1/work", &begun).status(), 403);
    assert_eq!(reading.get(&format!("/v1/work/{id}")).status(), 403);
    assert_eq!(workers.get("/v1/work/nothing/of/it").status(), 404);
    assert_eq!(upstream.hits(), 0);

    // Everything else is the upstream's, other parts of the control listener's paths included.
    for path in ["/v1/workers", "/v1/operations", "/metrics", "/for/v1/work"] {
        gateway.send(&Request::get(path)).expect_status(200);
    }
    assert_eq!(upstream.hits(), 4);
    let elsewhere = Request::get(&format!("/for/v1/work/{id}?wait=1s"))
        .without("Host")
        .header("Host", "workers")
        .header("Authorization", &format!("Bearer {WORKER}"));
    let shown = gateway.send(&elsewhere);
    assert_eq!(shown.status(), 200, "{}", shown.text());
    assert_eq!(shown.json()["result"]["pages"], 3);
    assert_eq!(upstream.hits(), 4);
}

/// A stream of events.
struct Events {
    lines: BufReader<TcpStream>,
}

impl Events {
    fn of(addr: SocketAddr, id: &str) -> Self {
        Self::at(addr, id, "")
    }

    /// With more lines of the head.
    fn at(addr: SocketAddr, id: &str, head: &str) -> Self {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        // Version 1.0, so that the body comes as it is and ends with the connection.
        write!(
            stream,
            "GET /v1/work/{id} HTTP/1.0\r\nHost: {addr}\r\nAccept: text/event-stream\r\n{head}\r\n"
        )
        .unwrap();
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "no head");
        }
        Self { lines }
    }

    /// The next event: its name and its data.
    fn next(&mut self) -> Option<(String, Value)> {
        let (mut name, mut data) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                let mut rest = String::new();
                let _ = self.lines.read_to_string(&mut rest);
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("event", text)) => text.clone_into(&mut name),
                Some(("data", text)) => data.push_str(text),
                Some(_) => {}
                None if name.is_empty() => {}
                None => return Some((name, serde_json::from_str(&data).unwrap())),
            }
        }
    }

    #[track_caller]
    fn expect(&mut self, name: &str) -> Value {
        let (found, data) = self.next().expect("an event");
        assert_eq!(found, name, "{data}");
        data
    }
}

const WORKER: &str = "the-token-of-workers-which-is-long-enough";

/// A token with the rights of a worker of `tenant`.
fn token_of(setup: Setup, tenant: &str, token: &str) -> Setup {
    let env = tenant.to_uppercase();
    let table = format!(
        "[[server.token]]\nname = \"{tenant}\"\ntoken = \"env:{env}\"\ntenant = \"{tenant}\"\n\
         rights = [\"work\", \"read\"]\n"
    );
    setup.extra(&table).env(&env, token)
}

#[test]
fn i15_counts_that_nobody_can_have_used_are_refused() {
    // Three of them made a counter wrap around, and the sums of all tenants stand still.
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let control = gateway.control();
    let (id, claim) = grant(&control, "k");
    let most = 1_u64 << 53;
    for (verb, count, status) in [
        ("complete", u64::MAX, 400),
        ("fail", u64::MAX, 400),
        ("complete", most + 1, 400),
        ("complete", most, 200),
    ] {
        let mut body = json!({
            "claim": claim,
            "metered": { "provider": "p", "usage": { "input": count } },
        });
        if verb == "complete" {
            body["result"] = json!(1);
        }
        let settled = settle(&control, &id, verb, &body);
        assert_eq!(settled.status(), status, "{}", settled.text());
        if status == 400 {
            assert_eq!(state(&control, &id), "in_flight");
        }
    }
}

#[test]
fn i07_nobody_begins_what_could_pass_for_a_step() {
    // What was there was not counted, and kept the completer from operations of others.
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let control = gateway.control();
    let body = json!({ "key": "op_1/x", "namespace": "anything/steps" });
    let refused = control.post("/v1/work", &body);
    assert_eq!(refused.status(), 400, "{}", refused.text());
    assert!(refused.text().contains("/steps"), "{}", refused.text());
    assert_eq!(control.json("/v1/operations")["operations"], json!([]));
}

#[test]
fn i07_no_request_passes_for_an_operation_of_a_worker() {
    // A token with the right to work alone read the answer that an upstream had given to such a request.
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).route("name = \"work\"").start();
    for method in ["WORK", "EXEC", "RUN", "STEP"] {
        let request = Request::new(method, "/v1/work").key("k");
        gateway.send(&request).expect_problem(400, "bad-request");
    }
    assert_eq!(upstream.hits(), 0);
    gateway
        .send(&Request::new("WORKS", "/v1/work").key("k"))
        .expect_status(200);
}

#[test]
fn l5_one_tenants_waiters_leave_places_for_the_next_one() {
    // Five streams of one tenant took all places, and another tenant could not begin with a wait.
    let upstream = Upstream::counting();
    let beta = "the-token-of-beta-which-is-long-enough-too";
    let gateway = token_of(setup(&upstream), "acme", WORKER);
    let gateway = token_of(gateway, "beta", beta)
        .limits("work_waiters = 5")
        .start();
    let control = |token: &str| gateway.control().with_token(token);
    let (id, _) = grant(&control(WORKER), "k");
    let head = format!("Authorization: Bearer {WORKER}\r\n");
    let streams: Vec<_> = (0..3)
        .map(|_| {
            let mut events = Events::at(gateway.control_addr(), &id, &head);
            events.expect("state");
            events
        })
        .collect();
    let refused = control(WORKER).get(&format!("/v1/work/{id}?wait=1s"));
    assert_eq!(refused.status(), 429);
    let begun = begin(&control(beta), &json!({ "key": "k", "wait": "5s" }));
    assert_eq!(begun["decision"], "execute", "{begun}");
    drop(streams);
}

#[test]
fn l5_wrong_tokens_among_the_requests_lock_nobody_out_of_the_console() {
    // Ten of them from one address, and the right token was refused there for a minute.
    let upstream = Upstream::counting();
    let gateway = token_of(setup(&upstream), "acme", WORKER)
        .extra("[[route]]\nkind = \"work\"\npath_prefix = \"/w\"")
        .start();
    let guess = Control::new(gateway.addr()).with_token("a-token-that-nobody-was-given");
    let guesses: Vec<u16> = (0..12)
        .map(|_| guess.post("/w/v1/work", &json!({ "key": "k" })).status())
        .collect();
    assert_eq!((guesses[0], guesses[11]), (401, 429));
    let host = gateway.control_addr().to_string();
    let login = Request::post("/console/login")
        .without("Host")
        .header("Host", &host)
        .header("Origin", &format!("http://{host}"))
        .header("Sec-Fetch-Site", "same-origin")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body(format!("token={WORKER}"));
    let entered = Client::connect(gateway.control_addr()).ask(&login);
    assert_eq!(entered.status(), 303, "{}", entered.text());
}
