//! What services are told, to the byte, and what their answers mean.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request, Response, Uri};
use onlyonce_core::{
    Basis, Cost, Entry, Metered, OperationId, Scope, Source, Timestamp, TraceId, Unit, Usd,
};
use serde_json::{Value as Json, json};

use super::{Customers, Lago, OpenMeter, Stripe, Value};
use crate::outbox::{Sink, Verdict};

const URL: &str = "http://127.0.0.1:1/take/events?a=b";
const NOW: Timestamp = Timestamp::from_millis(1_700_000_100_000);

/// An entry of the tenant's, whose operation's id ends in `id`.
pub(super) fn entry(tenant: &str, id: u8) -> Entry {
    let mut bytes = [0; 16];
    bytes[15] = id;
    Entry {
        id: OperationId::from_bytes(bytes),
        at: Timestamp::from_millis(1_700_000_000_500),
        claimed_at: Timestamp::from_millis(1_700_000_000_000),
        scope: Scope {
            tenant: tenant.into(),
            namespace: "up".into(),
        },
        route: "chat".into(),
        status: 200,
        trace: TraceId::from_bytes([0xab; 16]),
        metered: Metered {
            provider: "openai".into(),
            model: "gpt-5".into(),
            request_model: "".into(),
            response_id: "resp_1".into(),
            operation: "chat".into(),
            tier: "".into(),
            usage: [(Unit::Input, 100), (Unit::Output, 20)]
                .into_iter()
                .collect(),
            source: Source::Provider,
            cost: Some(Cost {
                amount: Usd::from_nanos(1_234_567),
                basis: Basis::Table,
                version: "prices 1".into(),
            }),
        },
    }
}

fn customers(must_be_named: bool) -> Customers {
    Customers {
        named: [("acme".into(), "cus_1".into())].into(),
        must_be_named,
    }
}

fn stripe(value: Value, must_be_named: bool) -> Stripe {
    Stripe::new(
        Uri::from_static(URL),
        "sk_1",
        "tokens",
        customers(must_be_named),
        value,
    )
    .expect("a key")
}

fn lago(value: Value) -> Lago {
    Lago::new(
        Uri::from_static(URL),
        "lago_1",
        "tokens",
        customers(false),
        value,
    )
    .expect("a key")
}

fn openmeter(token: Option<&str>) -> OpenMeter {
    OpenMeter::new(Uri::from_static(URL), token, "gateway").expect("a token")
}

#[track_caller]
fn told(sink: &dyn Sink, entries: &[Entry]) -> Request<Bytes> {
    let request = sink.request(entries, NOW);
    request.expect("a request").expect("one for this sink")
}

#[track_caller]
fn expect_post(request: &Request<Bytes>, kind: &str, authorization: Option<&str>) {
    assert_eq!(request.method(), Method::POST);
    assert_eq!(request.uri(), URL);
    assert_eq!(request.headers()[CONTENT_TYPE], kind);
    let found = request.headers().get(AUTHORIZATION);
    assert_eq!(
        found.map(|found| found.to_str().expect("text")),
        authorization
    );
    assert!(found.is_none_or(http::HeaderValue::is_sensitive));
}

fn body(request: &Request<Bytes>) -> Json {
    serde_json::from_slice(request.body()).expect("JSON")
}

fn verdict(sink: &dyn Sink, status: u16, body: &'static str, entries: usize) -> Verdict {
    let mut answer = Response::new(Bytes::from_static(body.as_bytes()));
    *answer.status_mut() = status.try_into().expect("a status");
    sink.read(&answer, entries)
}

#[test]
fn stripe_is_told_of_one_meter_event_as_a_form() {
    let sink = stripe(Value::TotalTokens, false);
    let request = told(&sink, &[entry("acme", 7)]);
    expect_post(
        &request,
        "application/x-www-form-urlencoded",
        Some("Bearer sk_1"),
    );
    assert_eq!(
        request.body(),
        "event_name=tokens&identifier=op_00000000-0000-0000-0000-000000000007\
         &timestamp=1700000000&payload%5Bstripe_customer_id%5D=cus_1&payload%5Bvalue%5D=120"
    );
}

#[test]
fn what_is_counted_is_what_the_configuration_names() {
    for (value, expected) in [
        (Value::TotalTokens, "120"),
        (Value::Unit(Unit::Output), "20"),
        (Value::Unit(Unit::Reasoning), "0"),
        (Value::CostMicros, "1235"),
        (Value::Operations, "1"),
    ] {
        let request = told(&stripe(value, false), &[entry("acme", 1)]);
        let text = String::from_utf8_lossy(request.body()).into_owned();
        let end = format!("payload%5Bvalue%5D={expected}");
        assert!(text.ends_with(&end), "{}: {text}", value.as_str());
        assert_eq!(Value::named(value.as_str()), Some(value));
    }
}

#[test]
fn a_tenant_without_a_customer_is_passed_over_or_dead() {
    let other = [entry("globex", 1)];
    let passed_over = |sink: &dyn Sink| sink.request(&other, NOW).is_ok_and(|told| told.is_none());
    assert!(passed_over(&stripe(Value::Operations, false)));
    assert!(passed_over(&lago(Value::Operations)));
    let why = stripe(Value::Operations, true).request(&other, NOW);
    assert_eq!(
        why.expect_err("no customer"),
        "the tenant \"globex\" has no customer"
    );
}

#[test]
fn stripe_is_told_of_nothing_that_is_too_old_for_it() {
    let sink = stripe(Value::Operations, false);
    let entry = entry("acme", 1);
    let days = |days: u64| {
        entry
            .at
            .after(std::time::Duration::from_secs(days * 86_400))
    };
    assert!(sink.request(std::slice::from_ref(&entry), days(34)).is_ok());
    assert!(
        sink.request(std::slice::from_ref(&entry), days(35))
            .is_err()
    );
}

#[test]
fn stripe_takes_refuses_or_wants_to_be_asked_again() {
    let sink = stripe(Value::Operations, false);
    let of = |status| verdict(&sink, status, "{}", 1);
    assert_eq!(of(200), Verdict::Delivered);
    for again in [409, 429, 500, 503] {
        assert!(matches!(of(again), Verdict::Again(None, _)), "{again}");
    }
    for dead in [400, 401, 402, 403, 404] {
        assert!(matches!(of(dead), Verdict::Dead(_)), "{dead}");
    }
    let why = Verdict::Dead("400 Bad Request: no such meter".to_owned());
    assert_eq!(verdict(&sink, 400, "no such meter\n", 1), why);
}

#[test]
fn openmeter_is_told_of_cloud_events_in_a_batch() {
    let entries = [entry("acme", 1), entry("globex", 2)];
    let request = told(&openmeter(Some("om_1")), &entries);
    let kind = "application/cloudevents-batch+json";
    expect_post(&request, kind, Some("Bearer om_1"));
    expect_post(&told(&openmeter(None), &entries), kind, None);
    let first = json!({
        "specversion": "1.0",
        "type": "onlyonce.operation.completed",
        "id": "op_00000000-0000-0000-0000-000000000001",
        "time": "2023-11-14T22:13:20.500Z",
        "source": "gateway",
        "subject": "acme",
        "datacontenttype": "application/json",
        "data": {
            "id": "op_00000000-0000-0000-0000-000000000001",
            "completed_at": "2023-11-14T22:13:20.500Z",
            "claimed_at": "2023-11-14T22:13:20.000Z",
            "tenant": "acme",
            "namespace": "up",
            "route": "chat",
            "status": 200,
            "provider": "openai",
            "model": "gpt-5",
            "request_model": null,
            "operation": "chat",
            "response_id": "resp_1",
            "tier": null,
            "source": "provider",
            "usage": { "input": 100, "output": 20 },
            "cost": {
                "amount": "0.001234567",
                "currency": "USD",
                "basis": "table",
                "version": "prices 1",
            },
            "trace_id": "abababababababababababababababab",
        },
    });
    let events = body(&request);
    assert_eq!(events[0], first);
    assert_eq!(events[1]["subject"], "globex");
    assert_eq!(events.as_array().map(Vec::len), Some(2));
}

#[test]
fn a_batch_that_openmeter_refuses_is_told_one_by_one() {
    let sink = openmeter(None);
    assert_eq!(verdict(&sink, 204, "", 100), Verdict::Delivered);
    for split in [400, 413, 422] {
        assert!(
            matches!(verdict(&sink, split, "", 2), Verdict::Split(_)),
            "{split}"
        );
        assert!(
            matches!(verdict(&sink, split, "", 1), Verdict::Dead(_)),
            "{split}"
        );
    }
    // No entry is to blame for these.
    assert!(matches!(verdict(&sink, 401, "", 2), Verdict::Dead(_)));
    assert!(matches!(
        verdict(&sink, 503, "", 2),
        Verdict::Again(None, _)
    ));
    assert!(matches!(verdict(&sink, 410, "", 2), Verdict::Gone(_)));
}

#[test]
fn lago_is_told_of_events_in_a_batch_of_those_that_have_a_subscription() {
    let entries = [entry("acme", 1), entry("globex", 2), entry("acme", 3)];
    let request = told(&lago(Value::CostMicros), &entries);
    expect_post(&request, "application/json", Some("Bearer lago_1"));
    let event = |id| {
        json!({
            "transaction_id": format!("op_00000000-0000-0000-0000-00000000000{id}"),
            "external_subscription_id": "cus_1",
            "code": "tokens",
            "timestamp": 1_700_000_000,
            "properties": {
                "cost_micros": "1235",
                "provider": "openai",
                "model": "gpt-5",
                "route": "chat",
            },
        })
    };
    assert_eq!(body(&request), json!({ "events": [event(1), event(3)] }));
}

#[test]
fn what_lago_has_already_counts_as_taken() {
    const KNOWN: &str =
        r#"{"status":422,"error_details":{"transaction_id":["value_already_exist"]}}"#;
    let sink = lago(Value::Operations);
    assert_eq!(verdict(&sink, 200, "{}", 3), Verdict::Delivered);
    assert_eq!(verdict(&sink, 422, KNOWN, 1), Verdict::Delivered);
    // Of several, one may be new, and none was taken.
    assert!(matches!(verdict(&sink, 422, KNOWN, 2), Verdict::Split(_)));
    assert!(matches!(verdict(&sink, 422, "{}", 1), Verdict::Dead(_)));
    assert!(matches!(verdict(&sink, 401, KNOWN, 1), Verdict::Dead(_)));
    assert!(matches!(
        verdict(&sink, 429, "", 3),
        Verdict::Again(None, _)
    ));
}
