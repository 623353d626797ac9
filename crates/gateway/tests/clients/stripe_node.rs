//! The official Stripe SDK for Node. Unlike the others it knows an error by its body.

use serde_json::{Value, json};

use crate::kit::{Provider, attempts, base, gateway, run, run_once};

const CLIENT: &str = "stripe_client.cjs";

fn job(base: &str, key: &str) -> Value {
    json!({ "base": base, "key": key, "headers": {}, "max_retries": 5 })
}

#[test]
fn a_charge_runs_once() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "stripe");
    let mut job = job(&base(&gateway), "k-1");
    job["times"] = json!(2);
    let said = run(CLIENT, &job);
    assert_eq!(said[1].marked("replayed"), said[0].marked("executed"));
    assert_eq!(sandbox.executions(), 1);
    (job["times"], job["amount"]) = (json!(1), json!(999));
    run_once(CLIENT, &job).failed_with(422);
    assert_eq!(sandbox.executions(), 1);
}

#[test]
fn an_unknown_outcome_is_one_error_and_no_retry() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "stripe");
    let mut job = job(&base(&gateway), "k-unknown");
    job["headers"]["X-Sandbox-Fault"] = json!("reset-before-head");
    run_once(CLIENT, &job).is_unknown();
    assert_eq!(attempts(&gateway, "k-unknown"), 1);
    assert_eq!(sandbox.executions(), 1);
}
