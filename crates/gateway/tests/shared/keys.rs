//! Operators on several gateways: what one of them was asked is seen, and settled, on any other one.

use onlyonce_testkit::{Gateway, Request, Upstream};
use serde_json::Value;

use crate::servers::Server;
use crate::{alone, on_every_server, two_gateways};

on_every_server! { alone:
    keys_commands_see_and_settle_on_one_gateway_what_another_one_ran
}

fn ask(path: &str, key: &str) -> Request {
    Request::post(path).key(key).body("b")
}

/// The states that `onlyonce keys list` tells, by key.
fn listed(gateway: &Gateway) -> Vec<(String, String)> {
    let text = gateway.keys(&["--json", "list"]).succeeded();
    let page: Value = serde_json::from_str(&text).expect("JSON");
    let text = |of: &Value| of.as_str().expect("a text").to_owned();
    let operations = page["operations"].as_array().expect("a list");
    let mut all: Vec<_> = operations
        .iter()
        .map(|one| (text(&one["key"]), text(&one["state"])))
        .collect();
    all.sort();
    all
}

#[track_caller]
fn expect_listed(gateways: [&Gateway; 2], expected: &[(&str, &str)]) {
    for gateway in gateways {
        let listed = listed(gateway);
        let listed: Vec<_> = listed.iter().map(|(k, s)| (&**k, &**s)).collect();
        assert_eq!(listed, expected);
    }
}

fn keys_commands_see_and_settle_on_one_gateway_what_another_one_ran(server: &mut impl Server) {
    let upstream = Upstream::scripted(|exchange| match exchange.path() {
        "/free" => exchange.answer(429, &[], b"no"),
        "/lost" if exchange.number <= 4 => exchange.reset(),
        _ => exchange.answer(200, &[("content-type", "text/plain")], b"the answer"),
    });
    let (a, b) = two_gateways(&upstream, server);
    a.send(&ask("/done", "done")).expect_status(200);
    a.send(&ask("/free", "free")).expect_status(429);
    for key in ["lost-1", "lost-2"] {
        let lost = a.send(&ask("/lost", key));
        lost.expect_problem(502, "outcome-unknown");
    }

    expect_listed(
        [&a, &b],
        &[
            ("done", "completed"),
            ("free", "released"),
            ("lost-1", "unknown"),
            ("lost-2", "unknown"),
        ],
    );
    let unknown = b.keys(&["list", "--state", "unknown"]).succeeded();
    assert!(unknown.contains("lost-1") && unknown.contains("lost-2"));
    assert!(!unknown.contains("done"), "{unknown}");
    let shown = [&a, &b].map(|gateway| gateway.keys(&["show", "done"]).succeeded());
    assert!(shown[1].contains("completed"), "{}", shown[1]);
    assert_eq!(shown[0], shown[1]);
    assert_eq!(b.keys(&["body", "done"]).succeeded(), "the answer");

    // "It did not run", said to the other gateway: the key is free on both.
    let why = "not in their log";
    b.keys(&["release", "lost-1", "--reason", why]).succeeded();
    let shown = a.keys(&["show", "lost-1"]).succeeded();
    assert!(shown.contains("released") && shown.contains(why), "{shown}");
    let ran = a.send(&ask("/lost", "lost-1"));
    ran.expect_status(200).expect_mark("executed");
    b.send(&ask("/lost", "lost-1")).expect_mark("replayed");

    // "It ran, and answered this", in several chunks: every retry gets that, on both.
    let found = format!("{{\"found\":\"{}\"}}", "x".repeat(200_000));
    let file = b.folder().join("answer.json");
    std::fs::write(&file, &found).expect("a file");
    let file = file.display().to_string();
    let answer = ["--status", "201", "--body", &file, "--reason", "their log"];
    let words = [&["complete", "lost-2"][..], &answer].concat();
    b.keys(&words).succeeded();
    for gateway in [&a, &b] {
        let replay = gateway.send(&ask("/lost", "lost-2"));
        replay.expect_status(201).expect_mark("replayed");
        assert_eq!(replay.text(), found);
        let body = gateway.keys(&["body", "lost-2"]).succeeded();
        assert_eq!(body, found);
    }
    assert_eq!(upstream.hits(), 5);

    // What is settled is settled, whoever asks.
    for gateway in [&a, &b] {
        for key in ["done", "lost-1", "lost-2"] {
            let refused = gateway.keys(&["release", key]);
            assert_eq!(refused.code, Some(1), "{refused:?}");
        }
    }

    let purge = ["purge", "--state", "completed"];
    let unsure = b.keys(&purge);
    assert_eq!(unsure.code, Some(2), "{unsure:?}");
    let purged = b.keys(&[&purge[..], &["--yes"]].concat()).succeeded();
    assert_eq!(purged, "purged 3\n");
    expect_listed([&a, &b], &[("free", "released")]);
    assert_eq!(a.keys(&["show", "done"]).code, Some(1));
    // A purged key is new. The other gateway may replay what it keeps in memory for some seconds more.
    b.send(&ask("/done", "done")).expect_mark("executed");
    assert_eq!(upstream.hits(), 6);
}
