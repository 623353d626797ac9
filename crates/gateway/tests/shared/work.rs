//! Workers and commands over several gateways: what one has granted, another one renews and settles.

use std::process::{Command, Stdio};
use std::thread;

use onlyonce_testkit::{Control, Gateway, Response, Upstream, eventually};
use serde_json::{Value, json};

use crate::servers::Server;
use crate::{BIN, alone, on_every_server, two_gateways};

on_every_server! { alone:
    what_one_gateway_has_granted_another_one_renews_and_completes
    i18_who_waits_on_another_gateway_is_told_the_end
    i09_a_late_result_after_a_rerun_elsewhere_is_refused
    l3_a_worker_that_is_silent_is_found_out_by_any_gateway
    i01_workers_on_both_gateways_at_once_execute_once
    a_command_on_one_gateway_is_joined_and_replayed_on_another
}

pub(crate) fn post(gateway: &Gateway, path: &str, body: &Value) -> Response {
    gateway.control().post(path, body)
}

pub(crate) fn begin(control: &Control, body: &Value) -> Value {
    let begun = control.post("/v1/work", body);
    assert_eq!(begun.status(), 200, "{}", begun.text());
    begun.json()
}

/// The operation's id, and what proves the claim.
pub(crate) fn grant(gateway: &Gateway, body: &Value) -> (String, String) {
    let begun = begin(&gateway.control(), body);
    assert_eq!(begun["decision"], "execute", "{begun}");
    let text = |name: &str| begun[name].as_str().unwrap().to_owned();
    (text("operation"), text("claim"))
}

pub(crate) fn settle(gateway: &Gateway, id: &str, verb: &str, claim: &str) -> Response {
    let body = match verb {
        "complete" => json!({ "claim": claim, "result": { "by": verb } }),
        "heartbeat" => json!({ "claim": claim, "lease": "1h" }),
        _ => json!({ "claim": claim }),
    };
    post(gateway, &format!("/v1/work/{id}/{verb}"), &body)
}

fn what_one_gateway_has_granted_another_one_renews_and_completes(server: &mut impl Server) {
    let upstream = Upstream::counting();
    let (mut a, b) = two_gateways(&upstream, server);
    let asked = json!({ "key": "k", "nonce": "n", "lease": "1h" });
    let (id, claim) = grant(&a, &asked);
    assert_eq!(grant(&b, &asked), (id.clone(), claim.clone()), "I14");
    a.kill();
    assert_eq!(settle(&b, &id, "heartbeat", &claim).status(), 200);
    let done = settle(&b, &id, "complete", &claim);
    assert_eq!(done.status(), 200, "{}", done.text());
    a.start_again();
    for gateway in [&a, &b] {
        let replayed = begin(&gateway.control(), &json!({ "key": "k" }));
        assert_eq!(replayed["decision"], "replay");
        assert_eq!(replayed["result"], json!({ "by": "complete" }));
        assert_eq!(settle(gateway, &id, "complete", &claim).status(), 200);
    }
}

fn i18_who_waits_on_another_gateway_is_told_the_end(server: &mut impl Server) {
    let upstream = Upstream::counting();
    let (a, b) = two_gateways(&upstream, server);
    for (verb, decision) in [("complete", "join"), ("release", "released")] {
        let (id, claim) = grant(&a, &json!({ "key": verb, "lease": "1h" }));
        let waiting = [a.control(), b.control()].map(|control| {
            let body = json!({ "key": verb, "wait": "30s" });
            thread::spawn(move || begin(&control, &body))
        });
        let control = a.control();
        eventually("both wait", || control.operation(verb)["attempts"] == 3);
        assert_eq!(settle(&b, &id, verb, &claim).status(), 200);
        for one in waiting {
            assert_eq!(one.join().unwrap()["decision"], decision);
        }
    }
}

fn i09_a_late_result_after_a_rerun_elsewhere_is_refused(server: &mut impl Server) {
    let upstream = Upstream::counting();
    let (a, b) = two_gateways(&upstream, server);
    let (id, old) = grant(&a, &json!({ "key": "k", "lease": "1s" }));
    a.control().wait_for_state("k", "unknown");
    let rerun = json!({ "key": "k", "on_unknown": "rerun", "lease": "1h" });
    let (again, new) = grant(&b, &rerun);
    assert_eq!(again, id);
    for gateway in [&a, &b] {
        let refused = settle(gateway, &id, "complete", &old);
        assert_eq!(refused.json()["type"], "/problems/claim-lost");
    }
    assert_eq!(settle(&a, &id, "complete", &new).status(), 200);
}

fn l3_a_worker_that_is_silent_is_found_out_by_any_gateway(server: &mut impl Server) {
    let upstream = Upstream::counting();
    let (mut a, b) = two_gateways(&upstream, server);
    let (id, claim) = grant(&a, &json!({ "key": "k", "lease": "1s" }));
    a.kill();
    let waited = b.control().json(&format!("/v1/work/{id}?wait=30s"));
    assert_eq!(waited["state"], "unknown");
    let late = settle(&b, &id, "complete", &claim);
    assert_eq!(late.status(), 200, "{}", late.text());
}

fn i01_workers_on_both_gateways_at_once_execute_once(server: &mut impl Server) {
    let upstream = Upstream::counting();
    let (a, b) = two_gateways(&upstream, server);
    let workers: Vec<_> = (0..20)
        .map(|number| {
            let control = [a.control(), b.control()][number % 2].clone();
            let body = json!({ "key": "k", "lease": "1h" });
            thread::spawn(move || begin(&control, &body)["decision"].clone())
        })
        .collect();
    let told = workers.into_iter().map(|worker| worker.join().unwrap());
    assert_eq!(told.filter(|decision| decision == "execute").count(), 1);
}

fn a_command_on_one_gateway_is_joined_and_replayed_on_another(server: &mut impl Server) {
    let upstream = Upstream::counting();
    let (a, b) = two_gateways(&upstream, server);
    let gate = a.folder().join("gate");
    assert!(
        Command::new("mkfifo")
            .arg(&gate)
            .status()
            .unwrap()
            .success()
    );
    let on = |gateway: &Gateway| {
        let mut command = Command::new(BIN);
        command
            .args(["exec", "--key", "k", "--control"])
            .arg(format!("http://{}", gateway.control_addr()))
            .args([
                "--",
                "sh",
                "-c",
                "echo first; read x < \"$GATE\"; echo last; exit 3",
            ])
            .env("GATE", &gate)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command
    };
    let runner = on(&a).spawn().unwrap();
    a.control().wait_for_state("k", "in_flight");
    let joiner = on(&b).spawn().unwrap();
    let control = a.control();
    eventually("it is joined", || control.operation("k")["attempts"] == 2);
    std::fs::write(&gate, "go\n").unwrap();
    let first = runner.wait_with_output().unwrap();
    assert_eq!(first.status.code(), Some(3));
    assert_eq!(first.stdout, b"first\nlast\n");
    assert_eq!(joiner.wait_with_output().unwrap(), first);
    assert_eq!(on(&b).output().unwrap(), first);
}
