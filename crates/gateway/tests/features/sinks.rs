//! Who is told what the books say: each operation at least once, under its own id.

use onlyonce_testkit::{Gateway, Manner, Receiver, Setup, Upstream, eventually};

use crate::usage::{CHAT, JSON, before, chat};

fn paid() -> Upstream {
    Upstream::scripted(|x| x.answer(200, &[JSON], chat().as_bytes()))
}

fn telling(upstream: &Upstream, receiver: &Receiver, lines: &str) -> Setup {
    before(upstream, "openai")
        .store("url = \"memory:\"")
        .env("HOOK_SECRET", Receiver::SECRET)
        .extra(&format!(
            "[[ledger.sink]]\nname = \"hook\"\nkind = \"webhook\"\nurl = \"{}\"\n\
             secret = \"env:HOOK_SECRET\"\n{lines}",
            receiver.url()
        ))
}

/// The line of the metric `name`.
fn metric(gateway: &Gateway, name: &str) -> String {
    let text = gateway.control().get("/metrics").text();
    let line = text.lines().find(|line| line.starts_with(name));
    line.unwrap_or_default().to_owned()
}

#[test]
fn each_operation_is_told_once_with_what_it_cost() {
    let (upstream, receiver) = (paid(), Receiver::new());
    let gateway = telling(&upstream, &receiver, "in_flight = 1").start();
    let first = gateway.post(CHAT, "a", "{}");
    gateway.post(CHAT, "a", "{}");
    gateway.post(CHAT, "b", "{}");
    let id = first.header("onlyonce-operation").unwrap();
    let events = receiver.wait_for(2).events();
    let told = &events[id];
    assert_eq!(told["cost"]["amount"], "0.022");
    assert_eq!(told["cost"]["currency"], "USD");
    assert_eq!(told["cost"]["basis"], "table");
    assert_eq!(told["usage"]["output"], 2000);
    assert_eq!(told["model"], "gpt-4o-2024-08-06");
    assert_eq!(told["status"], 200);
    assert_eq!(receiver.order()[0], id);
    let counted = "onlyonce_outbox_deliveries_total{sink=\"hook\",result=\"delivered\"} 2";
    eventually("the count", || metric(&gateway, counted) == counted);
    assert_eq!(events.len(), 2, "a replay is not told");
}

#[test]
fn what_fails_comes_again_under_the_same_id() {
    let upstream = paid();
    let receiver = Receiver::with(|_, before| match before {
        0 => Manner::Refuse(500),
        1 => Manner::TakeAndDrop,
        2 => Manner::TakeLate,
        _ => Manner::Take,
    });
    let gateway = telling(&upstream, &receiver, "timeout = \"300ms\"").start();
    let answer = gateway.post(CHAT, "a", "{}");
    let id = answer.header("onlyonce-operation").unwrap();
    eventually("four deliveries", || receiver.came(id) == 4);
    assert_eq!(receiver.times(id), 3);
    assert_eq!(receiver.wait_for(1).events().len(), 1);
}

#[test]
fn what_is_refused_is_dead_and_holds_nothing_up() {
    let upstream = paid();
    let receiver = Receiver::with(|_, before| match before {
        0 => Manner::Refuse(400),
        _ => Manner::Take,
    });
    let gateway = telling(&upstream, &receiver, "in_flight = 1").start();
    for key in ["a", "b", "c"] {
        gateway.post(CHAT, key, "{}");
    }
    let dead = "onlyonce_outbox_dead{sink=\"hook\"} 3";
    eventually("dead letters", || metric(&gateway, dead) == dead);
    assert!(receiver.events().is_empty());
}
