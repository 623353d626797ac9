//! Routes of kind `mcp`, before a server that the tests script.

use onlyonce_testkit::{Gateway, Refusing, Request, Response, Setup, Signal, Upstream, eventually};
use serde_json::{Value, json};

use crate::{BIN, setup};

const KEY_NAME: &str = "dev.onlyonce/idempotency-key";

/// A gateway with one route of the kind before this server.
fn mcp(upstream: &Upstream) -> Setup {
    setup(upstream).route("kind = \"mcp\"")
}

/// A message in this session; in none where that is empty.
fn post(session: &str, message: &Value) -> Request {
    let request = Request::post("/mcp")
        .header("Content-Type", "application/json")
        .header("Accept", "application/json, text/event-stream")
        .body(message.to_string());
    match session {
        "" => request,
        session => request.header("Mcp-Session-Id", session),
    }
}

fn call(id: impl Into<Value>, tool: &str, arguments: Value) -> Value {
    let params = json!({ "name": tool, "arguments": arguments });
    json!({ "jsonrpc": "2.0", "id": id.into(), "method": "tools/call", "params": params })
}

fn pay(id: impl Into<Value>) -> Value {
    call(id, "pay", json!({ "amount": 5 }))
}

/// The call with a key and a progress token in its `_meta`.
fn keyed(mut call: Value, key: &str, token: Option<&str>) -> Value {
    let mut meta = json!({ KEY_NAME: key });
    if let Some(token) = token {
        meta["progressToken"] = json!(token);
    }
    call["params"]["_meta"] = meta;
    call
}

/// The text of the result of a call, and its id.
#[track_caller]
fn result(answer: &Response) -> (Value, String) {
    let message = match answer.header("content-type") {
        Some("text/event-stream") => {
            let text = answer.text();
            let data: Vec<_> = text
                .lines()
                .filter_map(|line| line.strip_prefix("data: "))
                .collect();
            serde_json::from_str(data.last().expect("an event")).expect("JSON")
        }
        _ => answer.json(),
    };
    let text = message["result"]["content"][0]["text"].as_str();
    (
        message["id"].clone(),
        text.unwrap_or_else(|| panic!("{message}")).to_owned(),
    )
}

/// Panics unless it is an error of JSON-RPC to this request that stands for this problem.
#[track_caller]
fn expect_error(answer: &Response, id: impl Into<Value>, name: &str) -> Value {
    answer.expect_status(200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let message = answer.json();
    expect_error_in(&message, id, name);
    message["error"].clone()
}

#[track_caller]
fn expect_error_in(message: &Value, id: impl Into<Value>, name: &str) {
    assert_eq!(message["id"], id.into(), "{message}");
    assert_eq!(
        message["error"]["data"]["type"],
        format!("/problems/{name}"),
        "{message}"
    );
    let text = message["error"]["message"].as_str().expect("a text");
    for part in ["detail", "next"] {
        let part = message["error"]["data"][part].as_str().expect("a text");
        assert!(text.contains(part), "{text}");
    }
}

/// What a server says to a message: in JSON, or as an event after a notification of progress.
fn said(message: &Value, number: usize) -> Value {
    let text = format!("execution {number} of {}", message["params"]["name"]);
    let result = json!({ "content": [{ "type": "text", "text": text }], "isError": false });
    json!({ "jsonrpc": "2.0", "id": message["id"], "result": result })
}

/// What it says of its progress, where it is asked to.
fn progress(message: &Value) -> String {
    let token = &message["params"]["_meta"]["progressToken"];
    if token.is_null() {
        return ": working\n\n".to_owned();
    }
    let params = json!({ "progressToken": token, "progress": 1 });
    let note = json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": params });
    format!("event: message\ndata: {note}\n\n")
}

const JSON: (&str, &str) = ("Content-Type", "application/json");
const EVENTS: (&str, &str) = ("Content-Type", "text/event-stream");

/// A server that names each execution in its answer.
fn server() -> Upstream {
    Upstream::scripted(|x| {
        let message: Value = serde_json::from_slice(&x.read_body()).expect("JSON");
        let said = said(&message, x.number).to_string();
        x.answer(
            200,
            &[JSON, ("Mcp-Session-Id", "of-the-server")],
            said.as_bytes(),
        );
    })
}

/// The same, as an event stream.
fn streaming() -> Upstream {
    Upstream::scripted(|x| {
        let message: Value = serde_json::from_slice(&x.read_body()).expect("JSON");
        x.start_chunked(200, &[EVENTS]);
        x.chunk(progress(&message));
        x.chunk(format!("data: {}\n\n", said(&message, x.number)));
        x.end_chunks();
    })
}

#[test]
fn a_call_that_is_posted_again_in_its_session_runs_once() {
    for upstream in [server(), streaming()] {
        let gateway = mcp(&upstream).start();
        let first = gateway.send(&post("s-1", &pay(1)));
        first.expect_mark("executed");
        let again = gateway.send(&post("s-1", &pay(1)));
        again.expect_mark("replayed");
        assert_eq!(again.body, first.body);
        // A session opens to who knows its name: no answer of another caller tells it.
        assert_eq!(again.header("mcp-session-id"), None);
        // Ids are typed, and count within their session and for their caller.
        let other = |request: Request| gateway.send(&request).expect_mark("executed").body.clone();
        other(post("s-1", &pay(2)));
        other(post("s-1", &pay("1")));
        other(post("s-2", &pay(1)));
        other(post("s-1", &pay(1)).header("Authorization", "Bearer another"));
        assert_eq!(upstream.hits(), 5);
    }
}

#[test]
fn a_key_in_meta_is_answered_in_another_session_with_its_own_id_and_token() {
    for (upstream, has_progress) in [(server(), false), (streaming(), true)] {
        let gateway = mcp(&upstream).start();
        let first = gateway.send(&post("s-1", &keyed(pay(1), "k", Some("t-1"))));
        first.expect_mark("executed");
        let text = first.text();
        let again = gateway.send(&post("s-2", &keyed(pay("long-id"), "k", Some("t-2"))));
        again.expect_mark("replayed");
        let expected = text
            .replace("\"id\":1", "\"id\":\"long-id\"")
            .replace("t-1", "t-2");
        assert_eq!(again.text(), expected);
        assert_eq!(again.text().contains("t-2"), has_progress);
        // Who asked for no progress is told of none.
        let quiet = gateway.send(&post("", &keyed(pay(1), "k", None)));
        assert!(!quiet.text().contains("progress"), "{}", quiet.text());
        assert_eq!(result(&quiet), result(&first));
        assert_eq!(upstream.hits(), 1);
        let operation = gateway.control().operation("k");
        assert_eq!(operation["path"], "/mcp#pay", "{operation}");
    }
}

#[test]
fn a_header_goes_before_meta_and_that_before_the_session() {
    let upstream = server();
    let gateway = setup(&upstream)
        .route("kind = \"mcp\"\n[route.mcp]\nmeta_keys = [\"com.example/key\", \"other\"]")
        .start();
    let mut meta = pay(1);
    meta["params"]["_meta"] = json!({ "other": "m" });
    gateway.send(&post("s-1", &meta)).expect_mark("executed");
    gateway.send(&post("s-2", &meta)).expect_mark("replayed");
    gateway.send(&post("s-1", &pay(1))).expect_mark("executed");
    gateway
        .send(&post("s-1", &meta).key("h"))
        .expect_mark("executed");
    gateway
        .send(&post("s-3", &pay(7)).key("h"))
        .expect_mark("replayed");
    assert_eq!(upstream.hits(), 3);
    // The server gets the message as it came.
    let seen = upstream.seen();
    assert_eq!(seen[0].body.as_deref(), Some(meta.to_string().as_bytes()));
    assert_eq!(seen[2].head.header("idempotency-key"), Some("h"));
}

#[test]
fn calls_at_once_join_and_each_gets_its_own_id() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        let message: Value = serde_json::from_slice(&x.read_body()).expect("JSON");
        x.start_chunked(200, &[EVENTS]);
        x.chunk(progress(&message));
        wait.wait();
        x.chunk(format!("data: {}\n\n", said(&message, x.number)));
        x.end_chunks();
    });
    let gateway = mcp(&upstream).start();
    let mut first = gateway.begin(&post("s-1", &keyed(pay(1), "k", Some("t-1"))));
    first.read_head();
    first.read_until("t-1");
    let mut second = gateway.begin(&post("s-2", &keyed(pay(2), "k", Some("t-2"))));
    second.read_head();
    second.read_until("t-2");
    go.fire();
    let (first, second) = (first.finish(), second.finish());
    first.expect_mark("executed");
    second.expect_mark("joined");
    assert!(first.whole() && second.whole());
    assert_eq!(result(&first).0, 1);
    assert_eq!(result(&second).0, 2);
    assert_eq!(result(&second).1, result(&first).1);
    assert!(!second.text().contains("t-1"));
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn another_argument_under_a_used_key_is_an_error_that_says_what_to_do() {
    let upstream = server();
    let gateway = mcp(&upstream).start();
    gateway.send(&post("s", &keyed(pay(1), "k", None)));
    let reworded = call("r", "pay", json!({ "amount": 6 }));
    let refused = gateway.send(&post("s", &keyed(reworded, "k", None)));
    let error = expect_error(&refused, "r", "key-reused");
    assert_eq!(error["data"]["status"], 422);
    refused.expect_retry(false);
    assert_eq!(refused.header("onlyonce-operation"), None);
    let other_tool = keyed(call(1, "refund", json!({ "amount": 5 })), "k", None);
    expect_error(&gateway.send(&post("s", &other_tool)), 1, "key-reused");
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn what_is_no_call_passes_as_it_is() {
    let upstream = Upstream::scripted(|x| match x.head.word(0) {
        "GET" => {
            x.start_chunked(200, &[EVENTS]);
            x.chunk(": hello\n\ndata: {\"method\":\"notifications/message\"}\n\n");
            x.end_chunks();
        }
        "DELETE" => x.answer(204, &[], b""),
        _ => {
            let message: Value = serde_json::from_slice(&x.read_body()).expect("JSON");
            match message.get("id") {
                Some(_) => x.answer(200, &[JSON, ("Mcp-Session-Id", "s-1")], b"{ \"id\":1}"),
                None => x.answer(202, &[], b""),
            }
        }
    });
    let gateway = mcp(&upstream).route("key = \"required\"").start();
    let initialize = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {} });
    let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    let answer = json!({ "jsonrpc": "2.0", "id": 1, "result": { "method": "tools/call" } });
    for _ in 0..2 {
        // A client may send the same header with all that it sends.
        let opened = gateway.send(&post("", &initialize).key("k"));
        opened.expect_status(200);
        assert_eq!(opened.text(), "{ \"id\":1}");
        assert_eq!(opened.header("mcp-session-id"), Some("s-1"));
        assert_eq!(opened.mark(), None);
        gateway.send(&post("s-1", &initialized)).expect_status(202);
        gateway.send(&post("s-1", &answer)).expect_status(200);
        let stream = gateway.send(&Request::get("/mcp").header("Mcp-Session-Id", "s-1"));
        assert_eq!(
            stream.text(),
            ": hello\n\ndata: {\"method\":\"notifications/message\"}\n\n"
        );
        let ended = Request::new("DELETE", "/mcp")
            .header("Mcp-Session-Id", "s-1")
            .key("k");
        gateway.send(&ended).expect_status(204);
    }
    assert_eq!(upstream.hits(), 10);
    let sent = initialize.to_string();
    assert_eq!(upstream.seen()[0].body.as_deref(), Some(sent.as_bytes()));
}

#[test]
fn a_stream_of_the_server_may_be_silent_for_long() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        let is_stream = x.head.word(0) == "GET";
        x.start_chunked(200, &[EVENTS]);
        x.chunk(": hello\n\n");
        match is_stream {
            true => wait.wait(),
            false => x.wait_for_close(),
        }
        x.chunk("data: {}\n\n");
        x.end_chunks();
    });
    let gateway = mcp(&upstream)
        .route("between_bytes_timeout = \"100ms\"")
        .start();
    let mut stream = gateway.begin(&Request::get("/mcp"));
    stream.read_head();
    stream.read_until("hello");
    // What answers a message is cut off in the meantime.
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    for _ in 0..2 {
        assert!(!gateway.send(&post("s", &ping)).whole());
    }
    go.fire();
    assert!(stream.finish().whole());
}

#[test]
fn without_session_and_key_a_call_passes_where_the_route_allows_it() {
    let upstream = server();
    let gateway = mcp(&upstream).start();
    for number in 1..=2 {
        let answer = gateway.send(&post("", &pay(1)));
        assert_eq!(answer.mark(), None);
        assert_eq!(result(&answer).1, format!("execution {number} of \"pay\""));
    }
    let gateway = mcp(&upstream).route("key = \"required\"").start();
    let refused = gateway.send(&post("", &pay(1)));
    expect_error(&refused, 1, "key-missing");
    gateway.send(&post("s", &pay(1))).expect_mark("executed");
    assert_eq!(upstream.hits(), 3);
    let derived = mcp(&upstream).route("key = \"derived\"").start();
    derived.send(&post("", &pay(1))).expect_mark("executed");
    let again = derived.send(&post("", &pay(2)));
    again.expect_mark("replayed");
    assert_eq!(result(&again).0, 2);
}

/// A call of a tool that is always to be an operation is refused where nothing makes it one. Of others it is said
/// once that they are not, and counted.
#[test]
fn a_call_of_a_protected_tool_never_passes_for_want_of_a_key() {
    let upstream = server();
    let mut gateway = setup(&upstream)
        .route("kind = \"mcp\"\n[route.mcp]\nprotect = [\"pay\"]")
        .start();
    let unprotected = |gateway: &Gateway| {
        gateway
            .control()
            .metric("onlyonce_mcp_unprotected_total", "")
    };
    for message in [pay(1), json!([pay(1), call(2, "other", json!({}))])] {
        let refused = gateway.send(&post("", &message));
        let error = match message.is_array() {
            true => refused.expect_status(400).json()["error"].clone(),
            false => expect_error(&refused, 1, "key-missing"),
        };
        refused.expect_retry(false);
        let next = error["data"]["next"].as_str().expect("a text");
        assert!(next.contains(&format!("_meta[\"{KEY_NAME}\"]")), "{next}");
    }
    // Without an id there is no telling one from another, whatever the session.
    let mut unasked = pay(1);
    unasked.as_object_mut().expect("an object").remove("id");
    gateway.send(&post("s", &unasked)).expect_status(400);
    assert_eq!((upstream.hits(), unprotected(&gateway)), (0, 0.0));
    gateway.send(&post("s", &pay(1))).expect_mark("executed");
    gateway
        .send(&post("", &keyed(pay(1), "k", None)))
        .expect_mark("executed");
    for _ in 0..3 {
        let passed = gateway.send(&post("", &call(1, "send mail", json!({}))));
        assert_eq!(passed.mark(), None);
    }
    assert_eq!((upstream.hits(), unprotected(&gateway)), (5, 3.0));
    let told = |log: &str| log.matches("nothing protects them").count();
    eventually("a line in the log", || told(&gateway.stderr()) > 0);
    gateway.terminate();
    let log = gateway.wait_for_run().stderr;
    assert_eq!(told(&log), 1, "{log}");
    assert!(
        log.contains("send%20mail") && log.contains("protect"),
        "{log}"
    );
}

/// A server that answers the first message so, and each later one with a result.
fn first_says(
    status: u16,
    kind: (&'static str, &'static str),
    body: impl Fn(&Value) -> String + Send + Sync + 'static,
) -> Upstream {
    Upstream::scripted(move |x| {
        let message: Value = serde_json::from_slice(&x.read_body()).expect("JSON");
        if x.number > 1 {
            let said = said(&message, x.number).to_string();
            return x.answer(200, &[JSON], said.as_bytes());
        }
        // Head and body apart: what the answer is shows only in its body.
        x.start_chunked(status, &[kind]);
        x.chunk(body(&message));
        x.end_chunks();
    })
}

fn error(message: &Value, code: i32) -> String {
    let error = json!({ "code": code, "message": "no" });
    json!({ "jsonrpc": "2.0", "id": message["id"], "error": error }).to_string()
}

#[test]
fn an_answer_that_says_that_nothing_ran_frees_the_key() {
    for code in [-32700, -32600, -32601, -32602] {
        let as_event = move |message: &Value| format!("data: {}\n\n", error(message, code));
        for upstream in [
            first_says(200, JSON, move |message| error(message, code)),
            first_says(200, EVENTS, as_event),
        ] {
            let gateway = mcp(&upstream).start();
            let first = gateway.send(&post("s", &pay(1)));
            first.expect_status(200).expect_mark("released");
            assert!(first.text().contains(&code.to_string()));
            gateway.send(&post("s", &pay(1))).expect_mark("executed");
            assert_eq!(upstream.hits(), 2);
        }
    }
    for status in [400, 404, 503] {
        let upstream = first_says(status, JSON, |message| error(message, -32603));
        let gateway = mcp(&upstream).start();
        let first = gateway.send(&post("s", &pay(1)));
        first.expect_status(status).expect_mark("released");
        gateway.send(&post("s", &pay(1))).expect_mark("executed");
    }
    let unreachable = Refusing::new();
    let gateway = Setup::new(BIN, &unreachable.url())
        .route("kind = \"mcp\"")
        .start();
    let refused = gateway.send(&post("s", &pay(1)));
    expect_error(&refused, 1, "upstream-unreachable");
    refused.expect_retry(true);
}

/// Who called was told "unknown" by then: that it did not run is an operator's word to write.
#[test]
fn a_late_answer_that_says_that_nothing_ran_settles_nothing() {
    let (go, answered) = (Signal::new(), Signal::new());
    let (wait, tell) = (go.clone(), answered.clone());
    let upstream = Upstream::scripted(move |x| {
        let message: Value = serde_json::from_slice(&x.read_body()).expect("JSON");
        if message["params"]["name"] == "pay" {
            wait.wait();
            x.answer(200, &[JSON], error(&message, -32602).as_bytes());
            return tell.fire();
        }
        tell.wait();
        let said = said(&message, x.number).to_string();
        x.answer(200, &[JSON], said.as_bytes());
    });
    let gateway = mcp(&upstream)
        .route("first_byte_timeout = \"100ms\"")
        .start();
    for (tool, key) in [("pay", "not-run"), ("look", "ran")] {
        let late = gateway.send(&post("s", &keyed(call(1, tool, json!({})), key, None)));
        let error = expect_error(&late, 1, "outcome-unknown");
        assert_eq!(error["data"]["status"], 504);
    }
    go.fire();
    // One that comes after it, and says that it ran, completes its record.
    gateway.control().wait_for_state("ran", "completed");
    let again = post("s", &keyed(call(2, "pay", json!({})), "not-run", None));
    expect_error(&gateway.send(&again), 2, "outcome-unknown");
    assert_eq!(upstream.hits(), 2);
}

#[test]
fn an_error_of_the_tool_itself_is_recorded() {
    let failed = |message: &Value| {
        let result = json!({ "content": [], "isError": true });
        json!({ "jsonrpc": "2.0", "id": message["id"], "result": result }).to_string()
    };
    for upstream in [
        first_says(200, JSON, failed),
        first_says(200, JSON, |message| error(message, -32603)),
        first_says(500, JSON, |message| error(message, -32602)),
    ] {
        let gateway = mcp(&upstream).start();
        let first = gateway.send(&post("s", &pay(1)));
        first.expect_mark("executed");
        let again = gateway.send(&post("s", &pay(1)));
        again.expect_mark("replayed");
        assert_eq!(again.body, first.body);
        assert_eq!(upstream.hits(), 1);
    }
}

/// A server whose stream ends, or breaks off, after a notification, once it is told to.
fn without_answer(resets: bool, go: &Signal) -> Upstream {
    let wait = go.clone();
    Upstream::scripted(move |x| {
        x.read_body();
        x.start_chunked(200, &[EVENTS]);
        x.chunk("data: {\"method\":\"notifications/message\"}\n\n");
        wait.wait();
        match resets {
            true => x.reset(),
            false => drop(x.end_chunks()),
        }
    })
}

#[test]
fn i05_a_stream_that_ends_without_its_answer_is_unknown_and_says_so_in_it() {
    for resets in [false, true] {
        let go = Signal::new();
        let upstream = without_answer(resets, &go);
        let gateway = mcp(&upstream).start();
        let mut first = gateway.begin(&post("s", &keyed(pay(1), "k", None)));
        first.read_head();
        first.read_until("notifications/message");
        go.fire();
        let first = first.finish();
        assert!(!first.whole());
        let text = first.text();
        let (_, event) = text
            .rsplit_once("event: message\ndata: ")
            .expect("an event");
        let message = serde_json::from_str(event.trim_end()).expect("JSON");
        expect_error_in(&message, 1, "outcome-unknown");
        gateway.control().wait_for_state("k", "unknown");
        let again = gateway.send(&post("s", &keyed(pay("x"), "k", None)));
        expect_error(&again, "x", "outcome-unknown");
        again.expect_retry(false);
        assert_eq!(upstream.hits(), 1);
    }
}

#[test]
fn a_server_that_dies_before_it_says_anything_leaves_an_error_that_says_unknown() {
    let upstream = Upstream::scripted(|x| {
        x.read_body();
        x.reset();
    });
    let gateway = mcp(&upstream).start();
    for id in [1, 2] {
        let told = gateway.send(&post("s", &keyed(pay(id), "k", None)));
        let error = expect_error(&told, id, "outcome-unknown");
        assert_eq!(error["data"]["status"], 502);
        told.expect_retry(false);
        assert!(told.header("onlyonce-operation").is_some());
    }
    assert_eq!(upstream.hits(), 1);
}

/// With ids, a client asks the server itself for the rest.
#[test]
fn a_stream_that_can_be_resumed_breaks_without_a_word() {
    let upstream = Upstream::scripted(|x| {
        if x.head.word(0) == "GET" {
            let said = said(&pay(1), x.number);
            return x.answer(200, &[EVENTS], format!("data: {said}\n\n").as_bytes());
        }
        x.read_body();
        x.start_chunked(200, &[EVENTS]);
        x.chunk("id: 7\ndata:\n\n");
        x.end_chunks();
    });
    let gateway = mcp(&upstream).start();
    let first = gateway.send(&post("s", &keyed(pay(1), "k", None)));
    assert!(!first.whole());
    assert_eq!(first.text(), "id: 7\ndata:\n\n");
    let rest = gateway.send(&Request::get("/mcp").header("Last-Event-ID", "7"));
    assert_eq!(result(&rest).0, 1);
    // What passes there settles nothing here.
    gateway.control().wait_for_state("k", "unknown");
}

/// A server with three tools, of which two are declared harmless, each on a page of its own.
fn with_tools() -> Upstream {
    Upstream::scripted(|x| {
        let message: Value = serde_json::from_slice(&x.read_body()).expect("JSON");
        if message["method"] != "tools/list" {
            let said = said(&message, x.number).to_string();
            return x.answer(200, &[JSON], said.as_bytes());
        }
        let (tools, next) = match message["params"]["cursor"].as_str() {
            None => (
                json!([{ "name": "look", "annotations": { "readOnlyHint": true } }, { "name": "pay" }]),
                json!("2"),
            ),
            Some(_) => (
                json!([{ "name": "set", "annotations": { "idempotentHint": true } }]),
                Value::Null,
            ),
        };
        let result = json!({ "tools": tools, "nextCursor": next });
        let list = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result });
        match next.is_null() {
            true => x.answer(200, &[EVENTS], format!("data: {list}\n\n").as_bytes()),
            false => x.answer(200, &[JSON], list.to_string().as_bytes()),
        }
    })
}

/// The tools whose calls run each time, after both pages of the list have passed.
fn that_pass(settings: &str) -> Vec<&'static str> {
    let upstream = with_tools();
    let gateway = setup(&upstream)
        .route(&format!("kind = \"mcp\"\n[route.mcp]\n{settings}"))
        .start();
    // Nothing is known yet.
    let early = call(0, "look", json!({}));
    gateway.send(&post("s", &early));
    let protects = gateway.send(&post("s", &early)).mark().is_some();
    assert!(
        protects || settings.contains("pass = [\"look\"]"),
        "{settings}"
    );
    for params in [json!({}), json!({ "cursor": "2" })] {
        let list = json!({ "jsonrpc": "2.0", "id": "l", "method": "tools/list", "params": params });
        let listed = gateway.send(&post("s", &list));
        assert!(listed.text().contains("tools"));
    }
    let tools = ["look", "pay", "set", "other"];
    let pass = |tool: &&str| {
        let again =
            |id: i32| gateway.send(&post("s", &keyed(call(id, tool, json!({})), tool, None)));
        let (first, second) = (again(1), again(2));
        match result(&first).1 == result(&second).1 {
            true => second.expect_mark("replayed").mark().is_none(),
            false => first.mark().is_none() && second.mark().is_none(),
        }
    };
    tools.into_iter().filter(pass).collect()
}

#[test]
fn tools_that_are_declared_harmless_pass() {
    assert_eq!(that_pass(""), ["look", "set"]);
    assert_eq!(that_pass("protect = [\"look\"]"), ["set"]);
    assert_eq!(that_pass("pass = [\"pay\"]"), ["look", "pay", "set"]);
    assert!(that_pass("trust_annotations = false").is_empty());
    assert_eq!(
        that_pass("trust_annotations = false\npass = [\"look\"]"),
        ["look"]
    );
}

#[test]
fn a_batch_with_a_call_is_one_operation() {
    let upstream = Upstream::scripted(|x| {
        let batch: Value = serde_json::from_slice(&x.read_body()).expect("JSON");
        let said: Vec<_> = batch
            .as_array()
            .expect("a batch")
            .iter()
            .map(|one| said(one, x.number))
            .collect();
        x.start_chunked(200, &[EVENTS]);
        for one in said {
            x.chunk(format!("data: {one}\n\n"));
        }
        x.end_chunks();
    });
    let gateway = mcp(&upstream).start();
    let batch = json!([pay(1), call(2, "look", json!({}))]);
    let first = gateway.send(&post("s", &batch));
    first.expect_mark("executed");
    let again = gateway.send(&post("s", &batch));
    again.expect_mark("replayed");
    assert_eq!(again.body, first.body);
    gateway
        .send(&post("s", &json!([pay(1)])))
        .expect_mark("executed");
    let ping = json!({ "jsonrpc": "2.0", "id": 3, "method": "ping" });
    assert_eq!(gateway.send(&post("s", &json!([ping]))).mark(), None);
    assert_eq!(upstream.hits(), 3);
}

#[test]
fn a_message_that_two_servers_may_read_differently_is_not_sent() {
    let upstream = server();
    let gateway = mcp(&upstream).limits("mcp_message = \"2KiB\"").start();
    let twice = r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}"#;
    let request = post("s", &pay(1));
    for (refused, status, name) in [
        (request.clone().body(twice), 400, "bad-request"),
        (request.clone().body("{"), 400, "bad-request"),
        (
            request.clone().header("Content-Encoding", "gzip"),
            400,
            "bad-request",
        ),
        (
            request.clone().header("Mcp-Session-Id", "t"),
            400,
            "bad-request",
        ),
        (post("s", &keyed(pay(1), "", None)), 400, "key-malformed"),
        (
            post("s", &call(1, "pay", json!("x".repeat(3000)))),
            413,
            "body-too-large",
        ),
        (request.clone().key("a").key("b"), 200, "key-malformed"),
    ] {
        let answer = gateway.send(&refused);
        answer.expect_status(status);
        let id = if status == 200 { json!(1) } else { Value::Null };
        expect_error_in(&answer.json(), id, name);
    }
    assert_eq!(upstream.hits(), 0);
}

#[test]
fn a_caller_without_a_credential_is_asked_for_one_by_the_status() {
    let upstream = server();
    let gateway = mcp(&upstream).server("allow_anonymous = false").start();
    let refused = gateway.send(&post("s", &pay(1)));
    refused.expect_status(401);
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    expect_error_in(&refused.json(), 1, "credential-missing");
    let known = post("s", &pay(1)).header("Authorization", "Bearer t");
    gateway.send(&known).expect_mark("executed");
}

#[test]
fn each_tool_has_its_price_and_its_name_in_the_ledger() {
    let upstream = first_says(200, JSON, |message| error(message, -32602));
    let formats = "[[usage]]\nname = \"pay\"\npaths = \"/mcp/pay\"\nprovider = \"mcp\"\nper_call = \"0.25\"\n\
                   [[usage]]\nname = \"tools\"\npaths = \"/mcp/{model}\"\nprovider = \"mcp\"\nper_call = \"0.01\"\n";
    let gateway = setup(&upstream)
        .route("kind = \"mcp\"\nusage = [\"pay\", \"tools\"]")
        .extra(formats)
        .start();
    // The first one did not run.
    for (id, tool, mark) in [
        (1, "pay", "released"),
        (1, "pay", "executed"),
        (1, "pay", "replayed"),
        (2, "look", "executed"),
    ] {
        gateway
            .send(&post("s", &call(id, tool, json!({}))))
            .expect_mark(mark);
    }
    let spent = |tool: &str, dollars: f64| {
        let labels = format!("model=\"{tool}\"");
        assert_eq!(
            gateway
                .control()
                .metric("onlyonce_spent_usd_total", &labels),
            dollars
        );
    };
    spent("pay", 0.25);
    spent("look", 0.01);
    // A price of the route is one for all tools, and the tool is named all the same.
    let gateway = mcp(&upstream).route("per_call = \"0.5\"").start();
    gateway.send(&post("s", &pay(1))).expect_mark("executed");
    let labels = "model=\"pay\"";
    assert_eq!(
        gateway.control().metric("onlyonce_spent_usd_total", labels),
        0.5
    );
}

#[test]
fn a_large_answer_has_its_id_wherever_that_stands() {
    let long = "x".repeat(300_000);
    let upstream = Upstream::scripted(move |x| {
        let message: Value = serde_json::from_slice(&x.read_body()).expect("JSON");
        let body = format!("{{\"result\":\"{long}\",\"id\":{}}}", message["id"]);
        x.answer(200, &[JSON], body.as_bytes());
    });
    let gateway = mcp(&upstream).start();
    let ask = |id: Value| gateway.send(&post("s", &keyed(pay(id), "k", None)));
    let first = ask(json!(1));
    first.expect_mark("executed");
    let again = ask(json!("another"));
    again.expect_mark("replayed");
    assert!(again.whole());
    assert!(again.text() == first.text().replace("\"id\":1", "\"id\":\"another\""));
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn a_request_of_the_server_is_not_made_again_by_a_replay() {
    let asks =
        "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"elicitation/create\",\"params\":{}}\n\n";
    let upstream = Upstream::scripted(move |x| {
        let message: Value = serde_json::from_slice(&x.read_body()).expect("JSON");
        let said = said(&message, x.number);
        x.answer(200, &[EVENTS], format!("{asks}data: {said}\n\n").as_bytes());
    });
    let gateway = mcp(&upstream).start();
    let first = gateway.send(&post("s", &pay(1)));
    assert!(first.text().starts_with(asks));
    let again = gateway.send(&post("s", &pay(1)));
    again.expect_mark("replayed");
    assert_eq!(again.text(), first.text().replacen(asks, "", 1));
}

/// What the gateway says of itself names the kind and what belongs to it.
#[test]
fn the_configuration_in_force_shows_the_kind() {
    let upstream = server();
    let gateway = mcp(&upstream).start();
    let route = &gateway.control().json("/v1/config")["route"][0];
    assert_eq!(route["kind"], "mcp");
    assert_eq!(route["mcp"]["meta_keys"], json!([KEY_NAME]));
    assert_eq!(
        route["mcp"]["release_codes"],
        json!([-32700, -32600, -32601, -32602])
    );
}

/// Of one reader it was JSON, of the other it was none, and so it was no call: three posts under one key ran
/// three times, unmarked, also where a key is required.
#[test]
fn i01_a_call_with_a_number_beyond_a_double_runs_once() {
    let upstream = Upstream::scripted(|x| {
        x.read_body();
        let said = said(&pay(1), x.number).to_string();
        x.answer(200, &[JSON], said.as_bytes());
    });
    let gateway = mcp(&upstream).route("key = \"required\"").start();
    let digits = "7".repeat(400);
    for (ran, number) in ["1e999", "[{\"y\":-1e400}]", &*digits]
        .into_iter()
        .enumerate()
    {
        let body = pay(1).to_string().replace(":5", &format!(":{number}"));
        let request = post("s", &pay(1)).body(body);
        let key = format!("k-{ran}");
        gateway
            .send(&request.clone().key(&key))
            .expect_mark("executed");
        gateway.send(&request.key(&key)).expect_mark("replayed");
        assert_eq!(upstream.hits(), ran + 1);
    }
    let no_session = post("", &pay(1)).body(pay(1).to_string().replace(":5", ":1e999"));
    expect_error(&gateway.send(&no_session), 1, "key-missing");
    assert_eq!(upstream.hits(), 3);
}

/// The answer to a batch of two comes as events: the one that is wrong is refused first.
#[test]
fn i10_a_refused_call_of_a_batch_does_not_release_the_one_that_runs() {
    let upstream = Upstream::scripted(|x| {
        let batch: Value = serde_json::from_slice(&x.read_body()).expect("JSON");
        x.start_chunked(200, &[EVENTS]);
        x.chunk(format!("data: {}\n\n", error(&batch[1], -32602)));
        x.chunk(format!("data: {}\n\n", said(&batch[0], x.number)));
        x.end_chunks();
    });
    let gateway = mcp(&upstream).start();
    let batch = json!([pay(1), call(2, "pay", json!({ "bad": true }))]);
    let first = gateway.send(&post("s", &batch));
    first.expect_mark("executed");
    for _ in 0..2 {
        let again = gateway.send(&post("s", &batch));
        again.expect_mark("replayed");
        assert_eq!(again.body, first.body);
    }
    assert_eq!(upstream.hits(), 1);
    let refused = Upstream::scripted(|x| {
        let batch: Value = serde_json::from_slice(&x.read_body()).expect("JSON");
        let both = [error(&batch[0], -32602), error(&batch[1], -32601)];
        x.answer(200, &[JSON], format!("[{}]", both.join(",")).as_bytes());
    });
    let gateway = mcp(&refused).start();
    for _ in 0..2 {
        gateway.send(&post("s", &batch)).expect_mark("released");
    }
    assert_eq!(refused.hits(), 2);
}

/// Each of these freed the key of a call that ran, or was recorded as the answer.
#[test]
fn i10_what_is_no_answer_to_the_call_neither_releases_nor_ends_it() {
    let foreign =
        |id: &str| format!("{{\"id\":{id},\"error\":{{\"code\":-32602,\"message\":\"\"}}}}");
    let noted = "{\"method\":\"notifications/message\",\"error\":{\"code\":-32602}}".to_owned();
    for first in [foreign("\"other\""), foreign("null"), noted] {
        let upstream = Upstream::scripted(move |x| {
            let message: Value = serde_json::from_slice(&x.read_body()).expect("JSON");
            x.start_chunked(200, &[EVENTS]);
            x.chunk(format!("data: {first}\n\n"));
            x.chunk(format!("data: {}\n\n", said(&message, x.number)));
            x.end_chunks();
        });
        let gateway = mcp(&upstream).start();
        let executed = gateway.send(&post("s", &keyed(pay(1), "k", None)));
        executed.expect_mark("executed");
        let again = gateway.send(&post("t", &keyed(pay(2), "k", None)));
        again.expect_mark("replayed");
        // I4: what is for somebody else is not made this caller's.
        let expected = executed.text().replace("\"id\":1", "\"id\":2");
        assert_eq!(again.text(), expected);
        assert_eq!(again.header("onlyonce-executed-id"), None);
        assert_eq!(upstream.hits(), 1);
    }
    let result = "{\"id\":1,\"result\":{}}";
    let events = |message: &str| format!("data: {message}\n\n");
    for (kind, said) in [
        (EVENTS, events("{\"id\":\"other\",\"result\":{}}")),
        (JSON, "{\"id\":\"other\",\"result\":{}}".to_owned()),
        (JSON, result[..result.len() - 2].to_owned()),
        (JSON, format!("{}{result}", foreign("1"))),
    ] {
        let upstream = first_says(200, kind, move |_| said.clone());
        let gateway = mcp(&upstream).start();
        let first = gateway.send(&post("s", &keyed(pay(1), "k", None)));
        assert!(!first.text().contains("execution"));
        gateway.control().wait_for_state("k", "unknown");
        let again = gateway.send(&post("s", &keyed(pay(2), "k", None)));
        expect_error(&again, 2, "outcome-unknown");
        assert_eq!(upstream.hits(), 1);
    }
}

/// Servers take these for JSON, and the gateway took them for something else.
#[test]
fn i01_a_call_of_any_content_type_is_a_call() {
    let upstream = server();
    let gateway = mcp(&upstream).start();
    for (ran, kind) in [
        "text/plain, application/json",
        "application/json, text/event-stream",
        "text/plain",
        "",
    ]
    .into_iter()
    .enumerate()
    {
        let session = format!("s-{ran}");
        let request = post(&session, &pay(1))
            .without("Content-Type")
            .header("Content-Type", kind);
        gateway.send(&request).expect_mark("executed");
        gateway.send(&request).expect_mark("replayed");
        assert_eq!(upstream.hits(), ran + 1);
    }
    let none = post("s", &pay(1)).without("Content-Type");
    gateway.send(&none).expect_mark("executed");
    let no_json = post("s", &pay(1)).without("Content-Type").body("a=b");
    gateway.send(&no_json).expect_status(400);
}

/// What one of them declares read-only switched off the protection of the other.
#[test]
fn i01_servers_behind_one_route_do_not_speak_for_each_other() {
    let upstream = Upstream::scripted(|x| {
        let message: Value = serde_json::from_slice(&x.read_body()).expect("JSON");
        if message["method"] != "tools/list" {
            let said = said(&message, x.number).to_string();
            return x.answer(200, &[JSON], said.as_bytes());
        }
        let is_docs = x.path() == "/mcp/docs";
        let tools = json!([{ "name": "pay", "annotations": { "readOnlyHint": is_docs } }]);
        let list = json!({ "id": message["id"], "result": { "tools": tools } });
        x.answer(200, &[JSON], list.to_string().as_bytes());
    });
    let gateway = mcp(&upstream).start();
    let at = |path: &str, message: &Value| {
        Request::post(path)
            .header("Content-Type", "application/json")
            .header("Mcp-Session-Id", "s")
            .body(message.to_string())
    };
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    for path in ["/mcp/shop", "/mcp/docs"] {
        gateway.send(&at(path, &list)).expect_status(200);
    }
    assert_eq!(gateway.send(&at("/mcp/docs", &pay(2))).mark(), None);
    let paid = at("/mcp/shop", &pay(2));
    gateway.send(&paid).expect_mark("executed");
    gateway.send(&paid).expect_mark("replayed");
}

/// All who have no session were in one, and a new client got another one's answer.
#[test]
fn i07_an_empty_session_is_none() {
    let upstream = server();
    let gateway = mcp(&upstream).start();
    for _ in 0..2 {
        let request = post("", &pay(1)).header("Mcp-Session-Id", "");
        assert_eq!(gateway.send(&request).mark(), None);
    }
    assert_eq!(upstream.hits(), 2);
}

/// A message waits on disk until it is whole, and is passed on from there.
#[test]
fn i15_a_large_message_is_a_call_as_any_other() {
    let upstream = server();
    let gateway = mcp(&upstream).start();
    let large = call(1, "pay", json!("x".repeat(3 << 20)));
    gateway.send(&post("s", &large)).expect_mark("executed");
    gateway.send(&post("s", &large)).expect_mark("replayed");
    let sent = large.to_string();
    assert_eq!(upstream.seen()[0].body.as_deref(), Some(sent.as_bytes()));
    let list = json!({ "id": 2, "method": "ping", "params": { "x": "x".repeat(3 << 20) } });
    gateway.send(&post("s", &list)).expect_status(200);
    let sent = list.to_string();
    assert_eq!(upstream.seen()[1].body.as_deref(), Some(sent.as_bytes()));
}

/// Who has no credential where a call needs one sends no large message either.
#[test]
fn i15_a_large_message_of_nobody_is_not_taken_in() {
    let upstream = server();
    let gateway = mcp(&upstream).server("allow_anonymous = false").start();
    let large = call(1, "pay", json!("x".repeat(70 << 10)));
    gateway.send(&post("s", &large)).expect_status(401);
    let ping = json!({ "id": 1, "method": "initialize" });
    gateway.send(&post("", &ping)).expect_status(200);
    let known = post("s", &large).header("Authorization", "Bearer t");
    gateway.send(&known).expect_mark("executed");
}

/// A batch was booked as free.
#[test]
fn a_batch_of_calls_counts_as_not_metered_and_one_call_in_a_batch_has_its_price() {
    let upstream = Upstream::scripted(|x| {
        let batch: Value = serde_json::from_slice(&x.read_body()).expect("JSON");
        let batch = batch.as_array().expect("a batch");
        let said: Vec<_> = batch.iter().map(|one| said(one, x.number)).collect();
        x.answer(200, &[JSON], json!(said).to_string().as_bytes());
    });
    let gateway = setup(&upstream)
        .route("kind = \"mcp\"\nusage = [\"pay\"]")
        .extra("[[usage]]\nname = \"pay\"\npaths = \"/mcp/pay\"\nprovider = \"mcp\"\nper_call = \"0.25\"\n")
        .start();
    for batch in [json!([pay(1), pay(2)]), json!([pay(3)])] {
        gateway.send(&post("s", &batch)).expect_mark("executed");
    }
    eventually("both are booked", || {
        let report = gateway.control().json("/v1/ledger?by=model");
        let rows = report["rows"].as_array().cloned().unwrap_or_default();
        let row = |model: &str| rows.iter().find(|row| row["model"] == model).cloned();
        let (Some(one), Some(two)) = (row("pay"), row("pay+pay")) else {
            return false;
        };
        let spent = one["spent_usd"].as_str().unwrap_or_default();
        let is_priced = spent.trim_end_matches('0') == "0.25" && one["unmetered"] == 0;
        is_priced && two["unmetered"] == 1
    });
}
