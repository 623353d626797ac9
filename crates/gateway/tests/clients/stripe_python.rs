//! The official Stripe SDK for Python, which sends a key with every `POST` and retries by itself.

use serde_json::{Value, json};

use crate::kit::{Provider, attempts, base, gateway, run, run_once};

const CLIENT: &str = "stripe_client.py";

fn job(base: &str, call: &str, key: &str) -> Value {
    json!({ "base": base, "call": call, "key": key, "headers": {} })
}

/// One call made twice: run once, the second answered by what was recorded.
fn runs_once(call: &str) {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "stripe");
    let mut job = job(&base(&gateway), call, "k-1");
    job["times"] = json!(2);
    let said = run(CLIENT, &job);
    assert_eq!(said[1].marked("replayed"), said[0].marked("executed"));
    assert_eq!(sandbox.executions(), 1);
}

#[test]
fn a_charge_runs_once() {
    runs_once("charge");
}

#[test]
fn a_payment_intent_runs_once() {
    runs_once("payment_intent");
}

/// The key is the one that the SDK makes up, the retries are its own.
#[test]
fn a_client_timeout_and_the_sdks_own_retry_and_key_charge_once() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "stripe");
    let job = json!({
        "base": base(&gateway), "call": "charge", "timeout": 1.0, "max_retries": 8,
        "headers": { "X-Sandbox-Delay": "2500ms" },
    });
    run_once(CLIENT, &job).text();
    let ledger = sandbox.ledger();
    assert_eq!(ledger["executions"], 1, "{ledger}");
    let key = ledger["entries"][0]["key"].as_str().expect("the SDK's key");
    assert!(attempts(&gateway, key.trim_matches('"')) >= 2);
}

#[test]
fn a_key_used_for_another_charge_is_an_error_and_charges_nothing() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "stripe");
    let mut job = job(&base(&gateway), "charge", "k-reused");
    run_once(CLIENT, &job).marked("executed");
    let requests = || gateway.control().metric("onlyonce_requests_total", "");
    let before = requests();
    job["amount"] = json!(999);
    job["max_retries"] = json!(5);
    run_once(CLIENT, &job).failed_with(422);
    assert_eq!(
        requests() - before,
        1.0,
        "requests of the client that was refused"
    );
    assert_eq!(sandbox.executions(), 1);
}

/// The SDK retries what is 500 and above unless it is told not to.
#[test]
fn an_unknown_outcome_is_one_error_and_no_retry() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "stripe");
    let mut job = job(&base(&gateway), "charge", "k-unknown");
    job["max_retries"] = json!(5);
    job["headers"]["X-Sandbox-Fault"] = json!("reset-before-head");
    run_once(CLIENT, &job).is_unknown();
    assert_eq!(attempts(&gateway, "k-unknown"), 1);
    assert_eq!(sandbox.executions(), 1);
}

/// localstripe by itself makes two customers for one key; through the gateway it makes one.
#[test]
fn localstripe_makes_two_customers_alone_and_one_behind_the_gateway() {
    let alone = Provider::localstripe();
    let mut job = job(&alone.url(), "customer", "k-customer");
    job["times"] = json!(2);
    let said = run(CLIENT, &job);
    assert_ne!(
        said[0].text(),
        said[1].text(),
        "localstripe honours keys now"
    );
    assert_eq!(customers(&alone), "2");

    let behind = Provider::localstripe();
    let gateway = gateway(&behind, "stripe");
    job["base"] = json!(base(&gateway));
    let said = run(CLIENT, &job);
    assert_eq!(said[1].marked("replayed"), said[0].marked("executed"));
    assert_eq!(customers(&behind), "1");
}

/// How many customers a Stripe has, asked directly.
fn customers(stripe: &Provider) -> String {
    let list = json!({ "base": stripe.url(), "call": "customers" });
    run_once(CLIENT, &list).text().to_owned()
}
