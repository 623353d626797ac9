//! The official SDK of the Model Context Protocol for Python, at both ends.

use onlyonce_testkit::{Gateway, Request, eventually};
use serde_json::{Value, json};

use crate::kit::{Call, Provider, Said, attempts, base, run, run_once, setup};

const CLIENT: &str = "mcp_client.py";

fn gateway(server: &Provider) -> Gateway {
    setup(server, "generic").route("kind = \"mcp\"").start()
}

fn job(gateway: &Gateway, calls: Value) -> Value {
    json!({ "base": base(gateway), "calls": calls })
}

fn charge(amount: u32, key: &str) -> Value {
    json!({ "tool": "charge", "arguments": { "amount": amount }, "key": key })
}

/// How often a tool ran.
#[track_caller]
fn ran(server: &Provider, tool: &str) -> u64 {
    let counts = server.ask(&Request::get("/counts"));
    counts[tool].as_u64().unwrap_or(0)
}

fn let_go(server: &Provider) {
    server.ask(&Request::post("/go").body("{}"));
}

/// Panics unless it is the SDK's own exception, with this status in its data and this in its text.
#[track_caller]
fn expect_error(said: &Said, status: u64, texts: &[&str]) {
    said.failed_with(status);
    let Said::Error(text, _) = said else {
        panic!("{said:?}")
    };
    for wanted in ["MCPError: "].iter().chain(texts) {
        assert!(text.contains(wanted), "no {wanted:?} in {text}");
    }
}

#[test]
fn a_sessions_life_is_as_it_is_without_the_gateway() {
    for in_json in [true, false] {
        let server = Provider::mcp(in_json);
        let gateway = gateway(&server);
        let calls =
            json!(["list", "listen", charge(5, "k"), { "tool": "fail" }, { "tool": "none" }]);
        let said = run(CLIENT, &job(&gateway, calls));
        let text = |said: &Said| said.text().to_owned();
        assert_eq!(text(&said[0]), "charge fail slow look");
        assert_eq!(text(&said[1]), "listening");
        assert_eq!(said[2].marked("executed"), "execution 1 of charge: 5");
        assert_eq!(text(&said[3]), "failed: Error executing tool fail");
        assert_eq!(text(&said[4]), "failed: Unknown tool: none");
        // initialize, initialized, the list, the stream, and the end of the session.
        let passed = || {
            gateway
                .control()
                .metric("onlyonce_requests_total", "passed")
        };
        eventually("what passes", || passed() >= 5.0);
        let refused = gateway
            .control()
            .metric("onlyonce_requests_total", "refused");
        assert_eq!(refused, 0.0);
    }
}

/// The connection dies below the SDK, and the same message is sent again in the same session.
#[test]
fn a_call_that_is_sent_again_below_the_sdk_runs_once() {
    for in_json in [true, false] {
        let server = Provider::mcp(in_json);
        let gateway = gateway(&server);
        let call = json!({ "tool": "charge", "arguments": { "amount": 5 } });
        let mut job = job(&gateway, json!([call, call]));
        job["cut"] = json!(true);
        let said = run(CLIENT, &job);
        // The SDK leaves a stream at its answer, a moment before the record is complete.
        assert_eq!(said[0].recorded(), "execution 1 of charge: 5");
        // Another call of the session is another operation.
        assert_eq!(said[1].marked("executed"), "execution 2 of charge: 5");
        assert_eq!(ran(&server, "charge"), 2);
    }
}

/// An agent dies while its tool runs; the next one asks with the same key, in a session and with an id of its own.
#[test]
fn a_killed_client_is_followed_by_one_that_joins_and_one_that_is_replayed() {
    let server = Provider::mcp(false);
    let gateway = gateway(&server);
    let slow = json!({ "tool": "slow", "key": "run-7/step-3", "progress": true });
    let first = Call::start(CLIENT, &job(&gateway, json!([slow])));
    first.wait_for_piece("1.0 of 2.0");
    first.kill();
    let second = Call::start(CLIENT, &job(&gateway, json!(["list", slow])));
    assert_eq!(
        second.next().expect("a list")["text"],
        "charge fail slow look"
    );
    // Progress reaches the second one under its own token.
    second.wait_for_piece("1.0 of 2.0");
    let_go(&server);
    let said = second.finish();
    assert_eq!(said[0].marked("joined"), "execution 1 of slow");
    gateway
        .control()
        .wait_for_state("run-7/step-3", "completed");
    let third = run(CLIENT, &job(&gateway, json!(["list", "list", slow])));
    assert_eq!(third[2].marked("replayed"), "execution 1 of slow");
    assert_eq!(attempts(&gateway, "run-7/step-3"), 3);
    assert_eq!(ran(&server, "slow"), 1);
}

#[test]
fn calls_at_once_with_one_key_run_once() {
    for in_json in [true, false] {
        let server = Provider::mcp(in_json);
        let gateway = gateway(&server);
        let calls: Vec<_> = (0..8).map(|_| charge(5, "at-once")).collect();
        let mut job = job(&gateway, json!(calls));
        job["at_once"] = json!(true);
        let said = run(CLIENT, &job);
        assert_eq!(said.len(), 8);
        for one in &said {
            assert_eq!(one.text(), "execution 1 of charge: 5");
        }
        assert_eq!(attempts(&gateway, "at-once"), 8);
        assert_eq!(ran(&server, "charge"), 1);
    }
}

#[test]
fn a_reworded_argument_is_an_exception_that_says_what_to_do() {
    let server = Provider::mcp(false);
    let gateway = gateway(&server);
    let said = run(
        CLIENT,
        &job(
            &gateway,
            json!([charge(5, "k"), charge(6, "k"), charge(5, "k")]),
        ),
    );
    assert_eq!(said[0].text(), "execution 1 of charge: 5");
    expect_error(
        &said[1],
        422,
        &[
            "The key was used for another request",
            "Use a new key for a new call",
        ],
    );
    assert_eq!(said[2].recorded(), "execution 1 of charge: 5");
    assert_eq!(ran(&server, "charge"), 1);
}

#[test]
fn a_tool_that_is_declared_read_only_runs_each_time() {
    let server = Provider::mcp(false);
    let gateway = gateway(&server);
    let look = json!({ "tool": "look", "key": "k" });
    let said = run(CLIENT, &job(&gateway, json!(["list", look, look])));
    assert_eq!(said[1], Said::Text("execution 1 of look".into(), None));
    assert_eq!(said[2], Said::Text("execution 2 of look".into(), None));
}

#[test]
fn a_server_that_dies_within_a_call_is_an_exception_that_says_that_nobody_knows() {
    let texts = [
        "Nobody can say whether the operation ran",
        "Find out at the upstream",
    ];
    for in_json in [true, false] {
        let server = Provider::mcp(in_json);
        let gateway = gateway(&server);
        let slow = json!({ "tool": "slow", "key": "k", "progress": true });
        let second = Call::prepare(CLIENT, &job(&gateway, json!([slow])));
        let first = Call::start(CLIENT, &job(&gateway, json!([slow])));
        match in_json {
            true => eventually("the call", || ran(&server, "slow") == 1),
            false => first.wait_for_piece("1.0 of 2.0"),
        }
        drop(server);
        expect_error(&first.finish()[0], 502, &texts);
        gateway.control().wait_for_state("k", "unknown");
        expect_error(&second.go().finish()[0], 502, &texts);
    }
}

/// The revision 2026-07-28 has no sessions: there, the key makes the operation.
#[test]
fn a_key_counts_where_there_is_no_session() {
    let server = Provider::mcp(false);
    let gateway = gateway(&server);
    let mut job = job(&gateway, json!([charge(5, "k"), charge(5, "k")]));
    job["mode"] = json!("2026-07-28");
    let said = run(CLIENT, &job);
    assert_eq!(said[0].marked("executed"), "execution 1 of charge: 5");
    assert_eq!(said[1].recorded(), "execution 1 of charge: 5");
    job["calls"] = json!([{ "tool": "charge", "arguments": { "amount": 5 } }]);
    let unprotected = run_once(CLIENT, &job);
    assert_eq!(
        unprotected,
        Said::Text("execution 2 of charge: 5".into(), None)
    );
    // One that is always to be an operation is refused without, and the agent told what it lacks.
    let protect = "kind = \"mcp\"\n[route.mcp]\nprotect = [\"charge\"]";
    let strict = setup(&server, "generic").route(protect).start();
    job["base"] = json!(base(&strict));
    let refused = run_once(CLIENT, &job);
    expect_error(&refused, 400, &["_meta[\"dev.onlyonce/idempotency-key\"]"]);
    assert_eq!(ran(&server, "charge"), 2);
}
