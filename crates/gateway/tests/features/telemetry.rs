//! Traces: what a collector gets to see of requests, and that none of them ever waits for it.

use std::collections::HashSet;

use onlyonce_testkit::{
    Client, Collector, Gateway, Refusing, Request, Setup, Signal, Upstream, eventually,
};

use crate::peers::{Certificate, Peer};
use crate::{expect_executed, expect_replay, held, post, setup, usage};

/// The context of a caller that keeps its trace.
const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// The same, of one that does not.
const NOT_KEPT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
/// Of another call of the same caller.
const LATER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// What every attempt says, which one test looks at.
const USUAL: [&str; 8] = [
    "http.request.method",
    "url.path",
    "http.route",
    "client.address",
    "onlyonce.route",
    "onlyonce.tenant",
    "server.address",
    "server.port",
];

fn telemetry(upstream: &Upstream, endpoint: &str, lines: &str) -> Setup {
    setup(upstream).extra(&format!("[telemetry]\nendpoint = \"{endpoint}\"\n{lines}"))
}

fn traced(upstream: &Upstream, collector: &Collector) -> Gateway {
    telemetry(upstream, &collector.url(), "").start()
}

fn in_trace(request: Request, context: &str) -> Request {
    request.header("traceparent", context)
}

#[track_caller]
fn expect_tree(collector: &Collector, spans: usize, expected: &str) {
    let tree = collector.wait_for_spans(spans).tree_without(&USUAL);
    assert_eq!(tree, expected, "{tree}");
}

fn spans_metric(gateway: &Gateway, result: &str) -> f64 {
    let name = format!("onlyonce_telemetry_{result}_total");
    gateway.control().metric(&name, "signal=\"spans\"")
}

#[test]
fn i16_no_key_and_no_credential_is_in_a_span() {
    let upstream = Upstream::counting();
    let collector = Collector::new();
    let gateway = traced(&upstream, &collector);
    let request = |body| {
        post("/v1/charges?secret=1", "the-key", body)
            .header("Authorization", "Bearer the-credential")
    };
    expect_executed(&gateway.send(&request("the-body")));
    gateway
        .send(&request("another-body"))
        .expect_problem(422, "key-reused");
    collector.wait_for_spans(4);
    for message in collector.server().seen() {
        let body = String::from_utf8_lossy(&message.body.unwrap()).into_owned();
        for secret in ["the-key", "-body", "the-credential", "secret"] {
            assert!(!body.contains(secret), "{secret} in {body}");
        }
    }
}

#[test]
fn an_execution_stands_under_its_attempt_in_the_callers_trace() {
    let upstream = Upstream::counting();
    let collector = Collector::new();
    let gateway = traced(&upstream, &collector);
    let request = post("/v1/charges?secret=1", "the-key", "the-body")
        .header("x-stainless-retry-count", "2")
        .header("Authorization", "Bearer the-credential");
    expect_executed(&gateway.send(&in_trace(request, CALLER)));
    let tree = collector.wait_for_spans(3).tree();
    let tenant = tree
        .lines()
        .find(|line| line.contains("onlyonce.tenant"))
        .unwrap();
    let expected = format!(
        "\
SERVER POST /* in 4bf92f3577b34da6a3ce929d0e0e4736 under 00f067aa0ba902b7
| http.request.method = POST
| url.path = /v1/charges
| http.route = /*
| client.address = 127.0.0.1
| http.request.resend_count = 2
| http.response.status_code = 200
| onlyonce.route = up
{tenant}
| onlyonce.attempt.got = executed
| onlyonce.operation.id = op-1
| onlyonce.attempt.number = 1
  INTERNAL onlyonce.operation
  | onlyonce.operation.id = op-1
  | onlyonce.operation.outcome = completed
  | onlyonce.operation.joined = 0
    CLIENT POST
    | http.request.method = POST
    | server.address = 127.0.0.1
    | server.port = PORT
    | http.response.status_code = 200
"
    );
    assert_eq!(tree, expected, "{tree}");
    let (_, tenant) = tenant.split_once(" = ").unwrap();
    let shown = gateway.control().operation("the-key");
    assert_eq!(shown["tenant"], tenant);
}

#[test]
fn i15_what_callers_make_up_is_bounded() {
    let upstream = Upstream::counting();
    let collector = Collector::new();
    let gateway = traced(&upstream, &collector);
    let path = format!("/{}", "x".repeat(5_000));
    let request = Request::new(&"M".repeat(500), &path).key("k").body("b");
    expect_executed(&gateway.send(&in_trace(request, CALLER)));
    let tree = collector.wait_for_spans(3).tree();
    assert!(tree.starts_with("SERVER HTTP /* in "), "{tree}");
    assert_eq!(tree.matches("| http.request.method = _OTHER\n").count(), 2);
    let kept = &path[..1_024];
    assert!(tree.contains(&format!("| url.path = {kept}\n")), "{tree}");
}

#[test]
fn a_replay_is_linked_to_the_operation_and_runs_nothing() {
    let upstream = Upstream::counting();
    let collector = Collector::new();
    let gateway = traced(&upstream, &collector);
    let first = gateway.send(&in_trace(post("/x", "k", "b"), CALLER));
    collector.wait_for_spans(3);
    let again = gateway.send(&in_trace(post("/x", "k", "b"), LATER));
    expect_replay(&again, &first);
    expect_tree(
        &collector,
        4,
        "\
SERVER POST /* in 4bf92f3577b34da6a3ce929d0e0e4736 under 00f067aa0ba902b7
| http.response.status_code = 200
| onlyonce.attempt.got = executed
| onlyonce.operation.id = op-1
| onlyonce.attempt.number = 1
  INTERNAL onlyonce.operation
  | onlyonce.operation.id = op-1
  | onlyonce.operation.outcome = completed
  | onlyonce.operation.joined = 0
    CLIENT POST
    | http.response.status_code = 200
SERVER POST /* in 0af7651916cd43dd8448eb211c80319c under b7ad6b7169203331
| http.response.status_code = 200
| onlyonce.attempt.got = replayed
| onlyonce.operation.id = op-1
| onlyonce.attempt.number = 2
> onlyonce.operation op-1
",
    );
}

#[test]
fn a_replay_after_a_restart_is_linked_too() {
    let upstream = Upstream::counting();
    let collector = Collector::new();
    let mut gateway = traced(&upstream, &collector);
    gateway.send(&in_trace(post("/x", "with", "b"), CALLER));
    gateway.send(&post("/x", "without", "b"));
    collector.wait_for_spans(6);
    gateway.start_again();
    gateway
        .send(&in_trace(post("/x", "with", "b"), LATER))
        .expect_mark("replayed");
    gateway
        .send(&in_trace(post("/x", "without", "b"), LATER))
        .expect_mark("replayed");
    let tree = collector.wait_for_spans(8).tree_without(&USUAL);
    for operation in ["op-1", "op-2"] {
        assert!(
            tree.contains(&format!("\n> onlyonce.operation {operation}\n")),
            "{tree}"
        );
    }
}

#[test]
fn an_operation_that_nobody_traces_has_its_own_trace() {
    let upstream = Upstream::counting();
    let collector = Collector::new();
    let gateway = traced(&upstream, &collector);
    gateway.post("/x", "k", "b");
    expect_tree(
        &collector,
        3,
        "\
SERVER POST /* in the trace of op-1
| http.response.status_code = 200
| onlyonce.attempt.got = executed
| onlyonce.operation.id = op-1
| onlyonce.attempt.number = 1
  INTERNAL onlyonce.operation
  | onlyonce.operation.id = op-1
  | onlyonce.operation.outcome = completed
  | onlyonce.operation.joined = 0
    CLIENT POST
    | http.response.status_code = 200
",
    );
}

/// The trace of each attempt at `k`, as the control API tells it.
fn attempts_traces(gateway: &Gateway) -> Vec<Option<String>> {
    let control = gateway.control();
    let id = control.operation("k")["id"].as_str().unwrap().to_owned();
    let detail = control.get(&format!("/v1/operations/{id}")).json();
    let log = detail["attempts_log"].as_array().unwrap().iter();
    log.map(|attempt| attempt["trace_id"].as_str().map(str::to_owned))
        .collect()
}

fn trace_of(context: &str) -> Option<String> {
    Some(context[3..35].to_owned())
}

#[test]
fn every_attempt_is_kept_with_the_trace_of_its_span() {
    let upstream = Upstream::counting();
    let collector = Collector::new();
    let gateway = traced(&upstream, &collector);
    gateway.post("/x", "k", "b");
    gateway.send(&in_trace(post("/x", "k", "b"), LATER));
    collector.wait_for_spans(4);
    gateway.post("/x", "k", "b");
    let spans = collector.wait_for_spans(5).spans();
    let own = |place: usize| {
        let hex = |byte: &u8| format!("{byte:02x}");
        Some(spans[place].trace_id.iter().map(hex).collect::<String>())
    };
    assert_eq!(attempts_traces(&gateway), [own(0), trace_of(LATER), own(4)]);
    assert_ne!(own(0), own(4));
}

#[test]
fn without_telemetry_an_attempt_is_kept_with_the_trace_of_its_caller() {
    let upstream = Upstream::counting();
    let gateway = crate::gateway(&upstream);
    gateway.send(&in_trace(post("/x", "k", "b"), CALLER));
    gateway.post("/x", "k", "b");
    gateway.send(&in_trace(post("/x", "k", "b"), LATER));
    assert_eq!(
        attempts_traces(&gateway),
        [trace_of(CALLER), None, trace_of(LATER)]
    );
}

#[test]
fn who_joins_is_linked_and_counted() {
    let (upstream, go) = held();
    let collector = Collector::new();
    let gateway = traced(&upstream, &collector);
    let mut first = gateway.begin(&in_trace(post("/x", "k", "b"), CALLER));
    first.read_head();
    first.read_until("begun");
    let mut second = gateway.begin(&in_trace(post("/x", "k", "b"), LATER));
    second.read_head();
    second.read_until("begun");
    go.fire();
    let bodies = [&mut first, &mut second].map(|client: &mut Client| client.finish().body);
    assert_eq!(bodies[0], bodies[1]);
    expect_tree(
        &collector,
        4,
        "\
SERVER POST /* in 4bf92f3577b34da6a3ce929d0e0e4736 under 00f067aa0ba902b7
| http.response.status_code = 200
| onlyonce.attempt.got = executed
| onlyonce.operation.id = op-1
| onlyonce.attempt.number = 1
  INTERNAL onlyonce.operation
  | onlyonce.operation.id = op-1
  | onlyonce.operation.outcome = completed
  | onlyonce.operation.joined = 1
    CLIENT POST
    | http.response.status_code = 200
SERVER POST /* in 0af7651916cd43dd8448eb211c80319c under b7ad6b7169203331
| http.response.status_code = 200
| onlyonce.attempt.got = joined
| onlyonce.operation.id = op-1
| onlyonce.attempt.number = 2
> onlyonce.operation op-1
",
    );
}

#[test]
fn i06_who_is_refused_for_another_request_is_told_of_no_operation() {
    let upstream = Upstream::counting();
    let collector = Collector::new();
    let gateway = traced(&upstream, &collector);
    gateway.send(&in_trace(post("/x", "k", "b"), CALLER));
    collector.wait_for_spans(3);
    let other = gateway.send(&in_trace(post("/x", "k", "other"), LATER));
    other.expect_problem(422, "key-reused");
    let tree = collector.wait_for_spans(4).tree_without(&USUAL);
    let (_, refused) = tree.split_at(tree.find("SERVER POST /* in 0af7").unwrap());
    assert_eq!(
        refused,
        "\
SERVER POST /* in 0af7651916cd43dd8448eb211c80319c under b7ad6b7169203331
| http.response.status_code = 422
| onlyonce.attempt.got = refused
",
        "{tree}"
    );
}

#[test]
fn what_did_not_run_is_released() {
    let upstream = Upstream::scripted(|x| match x.number {
        1 => x.answer(429, &[], b"busy"),
        _ => x.answer(200, &[], b"done"),
    });
    let collector = Collector::new();
    let gateway = traced(&upstream, &collector);
    gateway
        .send(&in_trace(post("/x", "k", "b"), CALLER))
        .expect_mark("released");
    collector.wait_for_spans(3);
    // The same operation again, in the same trace: spans of its own.
    gateway
        .send(&in_trace(post("/x", "k", "b"), CALLER))
        .expect_mark("executed");
    expect_tree(
        &collector,
        6,
        "\
SERVER POST /* in 4bf92f3577b34da6a3ce929d0e0e4736 under 00f067aa0ba902b7
| http.response.status_code = 429
| onlyonce.attempt.got = executed
| onlyonce.operation.id = op-1
| onlyonce.attempt.number = 1
  INTERNAL onlyonce.operation
  | onlyonce.operation.id = op-1
  | onlyonce.operation.outcome = released
  | onlyonce.operation.joined = 0
    CLIENT POST FAILED
    | http.response.status_code = 429
    | error.type = 429
SERVER POST /* in 4bf92f3577b34da6a3ce929d0e0e4736 under 00f067aa0ba902b7
| http.response.status_code = 200
| onlyonce.attempt.got = executed
| onlyonce.operation.id = op-1
| onlyonce.attempt.number = 2
  INTERNAL onlyonce.operation
  | onlyonce.operation.id = op-1
  | onlyonce.operation.outcome = completed
  | onlyonce.operation.joined = 0
    CLIENT POST
    | http.response.status_code = 200
",
    );
}

#[test]
fn what_was_never_sent_is_released() {
    let nobody = Refusing::new();
    let collector = Collector::new();
    let lines = format!("[telemetry]\nendpoint = \"{}\"", collector.url());
    let gateway = Setup::new(crate::BIN, &nobody.url()).extra(&lines).start();
    let answer = gateway.send(&in_trace(post("/x", "k", "b"), CALLER));
    answer.expect_problem(502, "upstream-unreachable");
    expect_tree(
        &collector,
        3,
        "\
SERVER POST /* FAILED in 4bf92f3577b34da6a3ce929d0e0e4736 under 00f067aa0ba902b7
| http.response.status_code = 502
| onlyonce.attempt.got = executed
| onlyonce.operation.id = op-1
| onlyonce.attempt.number = 1
| error.type = 502
  INTERNAL onlyonce.operation
  | onlyonce.operation.id = op-1
  | onlyonce.operation.outcome = released
  | onlyonce.operation.joined = 0
    CLIENT POST FAILED
    | error.type = not_sent
",
    );
}

#[test]
fn an_unknown_outcome_is_a_failure_and_says_why() {
    let upstream = Upstream::scripted(|x| x.reset());
    let collector = Collector::new();
    let gateway = traced(&upstream, &collector);
    let request = in_trace(post("/x", "k", "b"), CALLER);
    gateway
        .send(&request)
        .expect_problem(502, "outcome-unknown");
    collector.wait_for_spans(3);
    let request = in_trace(post("/x", "k", "b"), LATER);
    gateway
        .send(&request)
        .expect_problem(502, "outcome-unknown");
    expect_tree(
        &collector,
        4,
        "\
SERVER POST /* FAILED in 4bf92f3577b34da6a3ce929d0e0e4736 under 00f067aa0ba902b7
| http.response.status_code = 502
| onlyonce.attempt.got = executed
| onlyonce.operation.id = op-1
| onlyonce.attempt.number = 1
| error.type = 502
  INTERNAL onlyonce.operation FAILED
  | onlyonce.operation.id = op-1
  | onlyonce.operation.outcome = unknown
  | onlyonce.operation.unknown_reason = broke
  | onlyonce.operation.joined = 0
  | error.type = outcome-unknown
    CLIENT POST FAILED
    | error.type = broke
SERVER POST /* FAILED in 0af7651916cd43dd8448eb211c80319c under b7ad6b7169203331
| http.response.status_code = 502
| onlyonce.attempt.got = refused
| onlyonce.operation.id = op-1
| onlyonce.attempt.number = 2
| error.type = 502
> onlyonce.operation op-1
",
    );
}

#[test]
fn i05_an_answer_that_breaks_off_is_a_failure() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[]);
        x.chunk("begun");
        wait.wait();
        x.reset();
    });
    let collector = Collector::new();
    let gateway = traced(&upstream, &collector);
    let mut client = gateway.begin(&in_trace(post("/x", "k", "b"), CALLER));
    client.read_head();
    client.read_until("begun");
    go.fire();
    assert!(!client.finish().whole());
    expect_tree(
        &collector,
        3,
        "\
SERVER POST /* FAILED in 4bf92f3577b34da6a3ce929d0e0e4736 under 00f067aa0ba902b7
| http.response.status_code = 200
| onlyonce.attempt.got = executed
| onlyonce.operation.id = op-1
| onlyonce.attempt.number = 1
| error.type = broken-answer
  INTERNAL onlyonce.operation FAILED
  | onlyonce.operation.id = op-1
  | onlyonce.operation.outcome = unknown
  | onlyonce.operation.unknown_reason = truncated
  | onlyonce.operation.joined = 0
  | error.type = outcome-unknown
    CLIENT POST FAILED
    | http.response.status_code = 200
    | error.type = truncated
",
    );
}

/// The three headers as the upstream's latest request has them.
fn context_at(upstream: &Upstream) -> [Option<String>; 3] {
    let seen = upstream.seen();
    let head = &seen.last().unwrap().head;
    ["traceparent", "tracestate", "baggage"].map(|name| head.header(name).map(str::to_owned))
}

fn with_context(request: Request, context: &str) -> Request {
    in_trace(request, context)
        .header("tracestate", "vendor=1")
        .header("baggage", "user=2")
}

#[test]
fn a_context_passes_as_it_came_without_telemetry() {
    let upstream = Upstream::counting();
    let gateway = crate::gateway(&upstream);
    let came = [CALLER, "vendor=1", "user=2"].map(|text| Some(text.to_owned()));
    gateway.send(&with_context(post("/x", "k", "b"), CALLER));
    assert_eq!(context_at(&upstream), came);
    gateway.send(&with_context(Request::get("/x"), CALLER));
    assert_eq!(context_at(&upstream), came);
}

#[test]
fn the_upstream_stands_under_the_execution() {
    let upstream = Upstream::counting();
    let collector = Collector::new();
    let gateway = traced(&upstream, &collector);
    gateway.send(&with_context(post("/x", "k", "b"), CALLER));
    collector.wait_for_spans(3);
    let execution = collector
        .spans()
        .into_iter()
        .find(|span| span.name == "POST")
        .unwrap();
    let id: String = execution
        .span_id
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let [parent, state, baggage] = context_at(&upstream);
    let expected = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{id}-01");
    assert_eq!(parent, Some(expected));
    assert_eq!(state.as_deref(), Some("vendor=1"));
    assert_eq!(baggage.as_deref(), Some("user=2"));
    // Without a key, nothing happens that a span could tell of.
    gateway.send(&with_context(Request::get("/x"), CALLER));
    assert_eq!(context_at(&upstream)[0].as_deref(), Some(CALLER));
    collector.wait_for_spans(3);
}

#[test]
fn a_malformed_context_begins_a_new_trace_and_takes_its_state_along() {
    let upstream = Upstream::counting();
    let collector = Collector::new();
    let gateway = traced(&upstream, &collector);
    gateway.send(&with_context(post("/x", "k", "b"), "00-nonsense"));
    let tree = collector.wait_for_spans(3).tree();
    assert!(
        tree.starts_with("SERVER POST /* in the trace of op-1\n"),
        "{tree}"
    );
    let [parent, state, baggage] = context_at(&upstream);
    assert!(parent.unwrap().starts_with("00-0"));
    assert_eq!(state, None);
    assert_eq!(baggage.as_deref(), Some("user=2"));
}

#[test]
fn who_is_not_kept_leaves_no_span_and_passes_that_on() {
    let upstream = Upstream::counting();
    let collector = Collector::new();
    let gateway = traced(&upstream, &collector);
    gateway.send(&in_trace(post("/x", "not-kept", "b"), NOT_KEPT));
    let [parent, ..] = context_at(&upstream);
    let parent = parent.unwrap();
    assert!(
        parent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"),
        "{parent}"
    );
    assert!(parent.ends_with("-00"), "{parent}");
    gateway.send(&in_trace(post("/x", "kept", "b"), CALLER));
    collector.wait_for_spans(3);
}

#[test]
fn of_traces_that_begin_here_the_share_is_kept_that_was_asked_for() {
    let upstream = Upstream::counting();
    let collector = Collector::new();
    let gateway = telemetry(&upstream, &collector.url(), "sample = 0").start();
    gateway.post("/x", "k", "b");
    gateway.send(&in_trace(post("/x", "kept", "b"), CALLER));
    collector.wait_for_spans(3);
}

#[test]
fn another_context_is_no_other_request() {
    let upstream = Upstream::counting();
    let gateway = crate::gateway(&upstream);
    let first = gateway.send(&with_context(post("/x", "k", "b"), CALLER));
    let request = in_trace(post("/x", "k", "b"), LATER)
        .header("tracestate", "vendor=3")
        .header("baggage", "user=4");
    expect_replay(&gateway.send(&request), &first);
}

/// Sends requests before a collector that takes nothing, and looks that each is answered and that what
/// waits is bounded.
#[track_caller]
fn expect_no_delay(gateway: &Gateway, upstream: &Upstream) {
    // An execution leaves three spans, in two entries; the exporter has one queue in its hands.
    let (requests, queue) = (60_u32, 8.0);
    let mut client = gateway.connect();
    for number in 0..requests {
        expect_executed(&client.ask(&post("/x", &format!("k{number}"), "b")));
    }
    assert_eq!(upstream.hits(), requests as usize);
    let at_least = f64::from(requests) * 3.0 - 2.0 * queue * 2.0;
    let dropped = spans_metric(gateway, "dropped");
    assert!(
        dropped > 0.0 && dropped <= f64::from(requests) * 3.0,
        "{dropped}"
    );
    eventually("spans are dropped", || {
        spans_metric(gateway, "dropped") >= at_least
    });
    assert!(spans_metric(gateway, "sent").abs() < f64::EPSILON);
}

#[test]
fn l5_a_collector_that_is_down_delays_nobody_and_what_waits_is_bounded() {
    let upstream = Upstream::counting();
    let nobody = Refusing::new();
    let gateway = telemetry(&upstream, &nobody.url(), "queue = 8").start();
    expect_no_delay(&gateway, &upstream);
}

#[test]
fn l5_a_collector_that_is_slow_delays_nobody_and_what_waits_is_bounded() {
    let upstream = Upstream::counting();
    let never = Signal::new();
    let end = never.clone();
    let collector = Collector::scripted(move |_| {
        end.wait();
        None
    });
    let mut gateway = telemetry(&upstream, &collector.url(), "queue = 8").start();
    expect_no_delay(&gateway, &upstream);
    // Nor does it keep the process.
    collector.server().wait_for_hits(1);
    gateway.terminate();
    assert_eq!(gateway.wait_for_exit(), Some(0));
    never.fire();
}

#[test]
fn l5_a_collector_that_refuses_delays_nobody_and_is_asked_once() {
    let upstream = Upstream::counting();
    let collector = Collector::scripted(|_| Some(400));
    let gateway = traced(&upstream, &collector);
    let mut client = gateway.connect();
    for number in 0..20 {
        expect_executed(&client.ask(&post("/x", &format!("k{number}"), "b")));
    }
    eventually("all spans are dropped", || {
        spans_metric(&gateway, "dropped") >= 60.0
    });
    eventually("the log says why", || {
        let log = gateway.stderr();
        log.contains("spans are dropped: the collector answers 400")
    });
    let seen = collector.server().seen();
    let messages: HashSet<_> = seen.iter().map(|seen| &seen.body).collect();
    assert_eq!(messages.len(), seen.len());
}

#[test]
fn a_collector_that_is_busy_gets_the_same_spans_later() {
    let upstream = Upstream::counting();
    let collector = Collector::scripted(|x| match x.number {
        1 => Some(503),
        2 => {
            x.reset();
            None
        }
        _ => Some(200),
    });
    let gateway = traced(&upstream, &collector);
    gateway.post("/x", "k", "b");
    collector.wait_for_spans(3);
    eventually("they are counted", || spans_metric(&gateway, "sent") >= 3.0);
    let bodies: Vec<_> = collector
        .server()
        .seen()
        .into_iter()
        .map(|seen| seen.body)
        .collect();
    assert_eq!(bodies.len(), 3);
    assert!(bodies.iter().all(|body| body == &bodies[0]));
}

#[test]
fn a_gateway_that_goes_sends_its_last_spans() {
    let upstream = Upstream::counting();
    let collector = Collector::new();
    let mut gateway = traced(&upstream, &collector);
    for number in 0..300 {
        gateway.post("/x", &format!("k{number}"), "b");
    }
    gateway.terminate();
    assert_eq!(gateway.wait_for_exit(), Some(0));
    assert_eq!(collector.spans().len(), 900);
}

#[test]
fn the_environment_says_what_the_file_does_not() {
    let upstream = Upstream::counting();
    let collector = Collector::new();
    let gateway = setup(&upstream)
        .env(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            &format!("{}/base/", collector.url()),
        )
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-team=a%20b,x-other=c")
        .env(
            "OTEL_RESOURCE_ATTRIBUTES",
            "service.name=not-this,deployment.environment.name=test",
        )
        .env("OTEL_SERVICE_NAME", "payments")
        .extra("[telemetry]\nheaders = { x-other = \"env:OTHER\" }")
        .env("OTHER", "of the file")
        .start();
    gateway.post("/x", "k", "b");
    collector.wait_for_spans(3);
    let head = &collector.server().seen()[0].head;
    assert_eq!(head.word(1), "/base/v1/traces");
    assert_eq!(head.header("content-type"), Some("application/x-protobuf"));
    assert_eq!(head.header("x-team"), Some("a b"));
    assert_eq!(head.header("x-other"), Some("of the file"));
    let resource = collector.resource();
    let said = |name: &str| {
        let pair = resource.iter().find(|(key, _)| key == name);
        pair.map(|(_, value)| value.as_str())
    };
    assert_eq!(said("service.name"), Some("payments"));
    assert_eq!(said("deployment.environment.name"), Some("test"));
    assert_eq!(said("service.version"), Some(env!("CARGO_PKG_VERSION")));
    assert!(said("service.instance.id").is_some());
}

#[test]
fn spans_go_over_tls_to_who_the_system_trusts() {
    let upstream = Upstream::counting();
    let (theirs, others) = (Certificate::new(), Certificate::new());
    for (trusted, messages) in [(&theirs, 1), (&others, 0)] {
        let collector = Peer::start(Some(theirs.server(&["http/1.1"])));
        let endpoint = format!("https://localhost:{}", collector.port());
        let mut gateway = telemetry(&upstream, &endpoint, "")
            .env("SSL_CERT_FILE", &trusted.cert().display().to_string())
            .start();
        gateway.send(&in_trace(post("/x", "k", "b"), CALLER));
        gateway.terminate();
        let run = gateway.wait_for_run();
        assert_eq!(run.code, Some(0));
        assert_eq!(collector.hits(), messages);
        assert_eq!(
            run.stderr.contains("invalid peer certificate"),
            messages == 0,
            "{}",
            run.stderr
        );
    }
}

/// The time to the first chunk, and what is the same for every attempt.
fn without_time(collector: &Collector) -> String {
    let mut left_out = USUAL.to_vec();
    left_out.push("gen_ai.response.time_to_first_chunk");
    collector.tree_without(&left_out)
}

#[test]
fn an_execution_says_what_it_used_and_cost_and_neither_a_join_nor_a_replay_adds_to_it() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        let chat = usage::chat();
        let (begin, rest) = chat.split_at(20);
        x.start_chunked(200, &[usage::JSON]);
        x.chunk(begin);
        wait.wait();
        x.chunk(rest);
        x.end_chunks();
    });
    let collector = Collector::new();
    let mut gateway = usage::before(&upstream, "openai")
        .extra(&format!("[telemetry]\nendpoint = \"{}\"", collector.url()))
        .start();
    let request = in_trace(post(usage::CHAT, "k", "{}"), CALLER);
    let callers = ["executed", "joined"].map(|mark| {
        let mut caller = gateway.begin(&request);
        let head = caller.read_head();
        assert_eq!(head.header("onlyonce-status"), Some(mark));
        caller
    });
    go.fire();
    let [first, second] = callers.map(|mut caller| caller.finish());
    assert_eq!(first.text(), usage::chat());
    assert_eq!(second.text(), usage::chat());
    expect_replay(&gateway.send(&request), &first);
    collector.wait_for_spans(5);
    let tree = without_time(&collector);
    let (_, execution) = tree.split_once("    CLIENT ").unwrap();
    let (execution, _) = execution.split_once("SERVER").unwrap();
    assert_eq!(
        execution,
        "\
chat gpt-4o-2024-08-06
    | http.response.status_code = 200
    | gen_ai.operation.name = chat
    | gen_ai.provider.name = openai
    | gen_ai.response.model = gpt-4o-2024-08-06
    | gen_ai.response.id = chatcmpl-1
    | gen_ai.usage.input_tokens = 1000
    | gen_ai.usage.output_tokens = 2000
    | gen_ai.usage.cache_read.input_tokens = 400
    | onlyonce.cost.usd = 0.022
    | onlyonce.cost.basis = table
",
        "{tree}"
    );
    assert_eq!(tree.matches("gen_ai.usage.input_tokens").count(), 1);

    gateway.terminate();
    assert_eq!(gateway.wait_for_exit(), Some(0));
    let call = "server.address=127.0.0.1 gen_ai.operation.name=chat gen_ai.provider.name=openai \
                gen_ai.response.model=gpt-4o-2024-08-06 gen_ai.token.modality=unknown";
    let expected = [
        ("input_tokens", 1000),
        ("output_tokens", 2000),
        ("cache_read.input_tokens", 400),
    ]
    .map(|(name, count)| format!("gen_ai.client.inference.usage.{name} {call} {count}"));
    assert_eq!(collector.metrics(), expected);
    let call = call.replace(" gen_ai.token.modality=unknown", "");
    let duration = format!("gen_ai.client.inference.duration {call}");
    assert_eq!(collector.histograms(), [(duration, 1, BOUNDS.to_vec())]);
}

/// What times of inferences are told apart by, in the conventions.
const BOUNDS: [f64; 14] = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];

#[test]
fn a_stream_says_so_and_one_that_broke_off_what_it_had_used() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[usage::SSE]);
        x.chunk(&usage::messages()[0]);
        wait.wait();
        x.reset();
    });
    let collector = Collector::new();
    let mut gateway = usage::before(&upstream, "anthropic")
        .extra(&format!("[telemetry]\nendpoint = \"{}\"", collector.url()))
        .start();
    let mut client = gateway.begin(&in_trace(post("/v1/messages", "k", "{}"), CALLER));
    client.read_head();
    client.read_until("message_start");
    go.fire();
    client.finish();
    collector.wait_for_spans(3);
    assert!(
        collector
            .tree()
            .contains("gen_ai.response.time_to_first_chunk = 0.")
    );
    let tree = without_time(&collector);
    let (_, execution) = tree.split_once("    CLIENT ").unwrap();
    assert_eq!(
        execution,
        "\
chat claude-sonnet-4-5-20250929 FAILED
    | http.response.status_code = 200
    | gen_ai.operation.name = chat
    | gen_ai.provider.name = anthropic
    | gen_ai.response.model = claude-sonnet-4-5-20250929
    | gen_ai.response.id = msg_1
    | gen_ai.request.stream = true
    | gen_ai.usage.input_tokens = 20
    | gen_ai.usage.output_tokens = 1
    | onlyonce.cost.usd = 0.000075
    | onlyonce.cost.basis = table
    | error.type = truncated
",
        "{tree}"
    );

    gateway.terminate();
    assert_eq!(gateway.wait_for_exit(), Some(0));
    let call = "server.address=127.0.0.1 gen_ai.operation.name=chat gen_ai.provider.name=anthropic \
                gen_ai.response.model=claude-sonnet-4-5-20250929";
    let expected = [
        format!("duration {call} error.type=truncated"),
        format!("time_to_first_chunk {call}"),
    ]
    .map(|name| {
        (
            format!("gen_ai.client.inference.{name}"),
            1,
            BOUNDS.to_vec(),
        )
    });
    assert_eq!(collector.histograms(), expected);
}

#[test]
fn what_is_used_is_counted_whether_its_trace_is_kept_or_not() {
    let upstream = Upstream::scripted(|x| x.answer(200, &[usage::JSON], usage::chat().as_bytes()));
    let collector = Collector::new();
    let gateway = usage::before(&upstream, "openai")
        .env("OTEL_METRIC_EXPORT_INTERVAL", "50")
        .extra(&format!("[telemetry]\nendpoint = \"{}\"", collector.url()))
        .start();
    for key in ["a", "b"] {
        gateway.send(&in_trace(post(usage::CHAT, key, "{}"), NOT_KEPT));
    }
    eventually("both are counted", || {
        let metrics = collector.metrics();
        metrics
            .iter()
            .any(|line| line.contains(".input_tokens ") && line.ends_with(" 2000"))
    });
    assert!(collector.spans().is_empty());
}

#[test]
fn a_late_answer_ends_the_execution_with_what_it_used_and_counts() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        wait.wait();
        x.answer(200, &[usage::JSON], usage::chat().as_bytes());
    });
    let collector = Collector::new();
    let gateway = usage::before(&upstream, "openai")
        .route("first_byte_timeout = \"300ms\"")
        .extra(&format!("[telemetry]\nendpoint = \"{}\"", collector.url()))
        .env("OTEL_METRIC_EXPORT_INTERVAL", "50")
        .start();
    let request =
        post(usage::CHAT, "k", r#"{"model":"gpt-4o"}"#).header("Content-Type", "application/json");
    gateway
        .send(&in_trace(request, CALLER))
        .expect_problem(504, "outcome-unknown");
    // What its callers were told ends the operation; the execution goes on.
    collector.wait_for_spans(2);
    go.fire();
    collector.wait_for_spans(3);
    let tree = collector.tree_without(&USUAL);
    let expected = "\
  INTERNAL onlyonce.operation FAILED
  | onlyonce.operation.id = op-1
  | onlyonce.operation.outcome = unknown
  | onlyonce.operation.unknown_reason = timed_out
  | onlyonce.operation.joined = 0
  | error.type = outcome-unknown
    CLIENT chat gpt-4o
    | http.response.status_code = 200
    | gen_ai.operation.name = chat
    | gen_ai.provider.name = openai
    | gen_ai.request.model = gpt-4o
    | gen_ai.response.model = gpt-4o-2024-08-06
    | gen_ai.response.id = chatcmpl-1
    | gen_ai.usage.input_tokens = 1000
    | gen_ai.usage.output_tokens = 2000
    | gen_ai.usage.cache_read.input_tokens = 400
    | onlyonce.cost.usd = 0.022
    | onlyonce.cost.basis = table
";
    assert!(tree.ends_with(expected), "{tree}");
    eventually("its tokens are counted, once", || {
        let metrics = collector.metrics();
        metrics
            .iter()
            .any(|line| line.contains(".output_tokens ") && line.ends_with(" 2000"))
    });
}

#[test]
fn a_late_answer_that_never_comes_ends_the_execution_without_it() {
    let upstream = Upstream::scripted(|x| {
        x.read_body();
        x.wait_for_close();
    });
    let collector = Collector::new();
    let gateway = telemetry(&upstream, &collector.url(), "")
        .upstream("preset = \"openai\"")
        .route("first_byte_timeout = \"300ms\"\nlate_answer = \"100ms\"")
        .start();
    let request =
        post(usage::CHAT, "k", r#"{"model":"gpt-4o"}"#).header("Content-Type", "application/json");
    gateway
        .send(&in_trace(request, CALLER))
        .expect_problem(504, "outcome-unknown");
    collector.wait_for_spans(3);
    let tree = collector.tree_without(&USUAL);
    let expected = "\
    CLIENT POST FAILED
    | gen_ai.request.model = gpt-4o
    | error.type = timed_out
";
    assert!(tree.ends_with(expected), "{tree}");
}

#[test]
fn an_execution_that_is_cut_off_with_its_caller_says_what_it_had_used() {
    let gone = Signal::new();
    let tell = gone.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[usage::SSE]);
        x.chunk(&usage::messages()[0]);
        x.wait_for_close();
        tell.fire();
    });
    let collector = Collector::new();
    let gateway = usage::before(&upstream, "anthropic")
        .route("client_gone = \"cancel\"")
        .extra(&format!("[telemetry]\nendpoint = \"{}\"", collector.url()))
        .start();
    let mut client = gateway.begin(&in_trace(post("/v1/messages", "k", "{}"), CALLER));
    client.read_head();
    client.read_until("message_start");
    client.reset();
    gone.wait();
    gateway.control().wait_for_state("k", "unknown");
    let told = &gateway.control().operation("k")["metered"];
    assert_eq!(told["source"], "partial");
    assert_eq!(told["usage"]["input"], 20);
    collector.wait_for_spans(3);
    let tree = collector.tree_without(&USUAL);
    for line in [
        "| onlyonce.operation.unknown_reason = cancelled\n",
        "| gen_ai.usage.input_tokens = 20\n",
    ] {
        assert!(tree.contains(line), "{tree}");
    }
}
