//! Who is told what the books say: each operation at least once, under its own id.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use onlyonce_testkit::{
    Api, Gateway, Manner, Receiver, Run, Setup, Upstream, eventually, run_to_exit,
};
use serde_json::Value;

use crate::usage::{CHAT, JSON, before, chat};
use crate::{BIN, post};

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

/// `onlyonce ledger ...` against a gateway; what it prints.
#[track_caller]
fn ledger(gateway: &Gateway, words: &[&str]) -> String {
    let control = format!("http://{}", gateway.control_addr());
    let run: Run = run_to_exit(
        BIN,
        &[&["ledger", "--control", &control], words].concat(),
        &[],
    );
    assert_eq!(run.code, Some(0), "{words:?}: {run:?}");
    run.stdout
}

/// The first word of each line.
fn first_words(text: &str) -> BTreeSet<String> {
    let words = text.lines().filter_map(|line| line.split(' ').next());
    words.map(str::to_owned).collect()
}

/// Dollars in thousand-millionths.
fn nanos(dollars: &str) -> u64 {
    let (whole, part) = dollars.split_once('.').unwrap_or((dollars, ""));
    format!("{whole}{part:0<9}").parse().unwrap()
}

/// Operations, tokens in and out, and thousand-millionths of a dollar.
type Sums = [u64; 4];

/// What a receiver was told, by tenant, model and day.
fn summed<'a>(events: impl IntoIterator<Item = &'a Value>) -> BTreeMap<[String; 3], Sums> {
    let mut sums = BTreeMap::<_, Sums>::new();
    for event in events {
        let name = |field: &str| event[field].as_str().unwrap().to_owned();
        let day = name("completed_at")[..10].to_owned();
        let sum = sums
            .entry([name("tenant"), name("model"), day])
            .or_default();
        let tokens = |unit: &str| event["usage"][unit].as_u64().unwrap();
        let cost = nanos(event["cost"]["amount"].as_str().unwrap());
        for (sum, more) in sum
            .iter_mut()
            .zip([1, tokens("input"), tokens("output"), cost])
        {
            *sum += more;
        }
    }
    sums
}

/// The rows of a report by tenant, model and day, and how many replays its total has.
fn reported(gateway: &Gateway) -> (BTreeMap<[String; 3], Sums>, String) {
    let report = ledger(gateway, &["report", "--by", "tenant,model,day"]);
    let mut lines = report.lines();
    let heads =
        "TENANT MODEL DAY OPERATIONS TOKENS IN TOKENS OUT SPENT USD REPLAYS JOINS NOT SPENT USD";
    let found: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert!(found.join(" ").starts_with(heads), "{report}");
    let mut rows = BTreeMap::new();
    for line in lines {
        let cells: Vec<_> = line.split_whitespace().collect();
        if cells[0] == "total" {
            return (rows, cells[5].to_owned());
        }
        let count = |at: usize| cells[at].parse().unwrap();
        let names = [0, 1, 2].map(|at: usize| cells[at].to_owned());
        rows.insert(names, [count(3), count(4), count(5), nanos(cells[6])]);
    }
    panic!("no total: {report}");
}

#[test]
fn what_was_given_up_is_sent_again_by_hand_and_all_that_is_shown_agrees() {
    let upstream = Upstream::scripted(|x| {
        let asked: Value = serde_json::from_slice(&x.read_body()).unwrap();
        let chat = chat().replace("gpt-4o-2024-08-06", asked["model"].as_str().unwrap());
        x.answer(200, &[JSON], chat.as_bytes());
    });
    let is_open = Arc::new(AtomicBool::new(false));
    let open = Arc::clone(&is_open);
    let receiver = Receiver::with(move |_, _| match open.load(Ordering::SeqCst) {
        true => Manner::Take,
        false => Manner::Refuse(400),
    });
    let mut setup = telling(&upstream, &receiver, "");
    for tenant in ["acme", "globex"] {
        setup = setup.extra(&format!(
            "[[tenant]]\nname = \"{tenant}\"\ncredentials = [\"secret-of-{tenant}\"]"
        ));
    }
    let gateway = setup.start();
    let ask = |tenant: &str, key: &str, model: &str| {
        let request = post(CHAT, key, &format!("{{\"model\":\"{model}\"}}"))
            .header("Authorization", &format!("Bearer secret-of-{tenant}"));
        let answer = gateway.send(&request);
        answer.header("onlyonce-operation").unwrap().to_owned()
    };
    let (large, small) = ("gpt-4o-2024-08-06", "gpt-4o-mini-2024-07-18");
    let ids = [
        ask("acme", "a", large),
        ask("acme", "b", large),
        ask("acme", "c", small),
        ask("globex", "a", large),
    ];
    assert_eq!(ask("acme", "a", large), ids[0], "a replay");
    let all: BTreeSet<String> = ids.iter().cloned().collect();
    assert_eq!(all.len(), 4);

    let dead = || ledger(&gateway, &["dead", "hook"]);
    eventually("dead letters", || dead().lines().count() == 4);
    assert_eq!(first_words(&dead()), all);
    assert!(
        dead()
            .lines()
            .all(|line| line.ends_with("1 tries  400 Bad Request: not now")),
        "{}",
        dead()
    );
    // One that is refused again stays dead.
    let refused = ledger(&gateway, &["resend", "hook", &ids[0]]);
    assert_eq!(refused, format!("{}  400 Bad Request: not now\n", ids[0]));
    assert_eq!(first_words(&dead()), all);
    assert_eq!(receiver.count(), 0);

    is_open.store(true, Ordering::SeqCst);
    let taken = ledger(&gateway, &["resend", "hook", &ids[0]]);
    assert_eq!(taken, format!("{}  taken\n", ids[0]));
    assert_eq!(receiver.order(), [ids[0].clone()]);
    assert_eq!(dead().lines().count(), 3);
    let taken = ledger(&gateway, &["resend", "hook", "--all"]);
    assert!(
        taken.lines().all(|line| line.ends_with("  taken")),
        "{taken}"
    );
    assert_eq!(first_words(&taken).len(), 3);
    assert_eq!(dead(), "");
    let sinks = ledger(&gateway, &["sinks"]);
    let shown = "hook  webhook  delivers  0 pending, 0 dead, ";
    assert!(sinks.starts_with(shown), "{sinks}");

    // Under the ids under which they were refused, once each.
    let events = receiver.wait_for(4).events();
    assert!(events.keys().eq(&all), "{events:?}");
    for id in &ids {
        let came = if *id == ids[0] { 3 } else { 2 };
        assert_eq!((receiver.times(id), receiver.came(id)), (1, came), "{id}");
    }
    eventually("the replay is counted", || reported(&gateway).1 == "1");
    let rows = reported(&gateway).0;
    assert_eq!(rows.len(), 3);
    assert_eq!(rows, summed(events.values()));
    let entries = ledger(&gateway, &["--json", "entries"]);
    let entries: Value = serde_json::from_str(&entries).unwrap();
    let entries: BTreeMap<String, Value> = entries["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["id"].as_str().unwrap().to_owned(), entry.clone()))
        .collect();
    assert_eq!(entries, events);
    let shown = ledger(&gateway, &["entries"]);
    for (id, event) in &events {
        let line = shown.lines().find(|line| line.contains(id.as_str()));
        let cells: Vec<_> = line.unwrap().split_whitespace().collect();
        let amount = event["cost"]["amount"].as_str().unwrap();
        assert_eq!(cells[2], event["tenant"], "{shown}");
        assert_eq!(cells[4], event["model"], "{shown}");
        assert_eq!(cells[6..], ["1000", "2000", amount], "{shown}");
    }
}

/// A service of this API fails, stalls past the time-out and acknowledges too late before it behaves; it
/// counts each operation once, by the id that such services go by, and `used` is what it counts of one.
fn is_counted_once(api: Api, lines: &str, at_once: usize, used: impl Fn(&Value) -> u64) {
    const OPERATIONS: usize = 5;
    let upstream = paid();
    let receiver = Receiver::of(api, |_, before| match before {
        0 => Manner::Refuse(500),
        1 => Manner::Stall,
        2 => Manner::TakeLate,
        _ => Manner::Take,
    });
    let mut gateway = before(&upstream, "openai")
        .extra("[[tenant]]\nname = \"acme\"\ncredentials = [\"secret-of-acme\"]")
        .start();
    let mut ids = BTreeSet::new();
    for number in 0..OPERATIONS {
        let request = post(CHAT, &format!("k-{number}"), "{}");
        let request = request.header("Authorization", "Bearer secret-of-acme");
        let answer = gateway.send(&request);
        ids.insert(answer.header("onlyonce-operation").unwrap().to_owned());
    }
    let (url, key) = (receiver.url(), Receiver::KEY);
    let sink = format!(
        "[[ledger.sink]]\nname = \"billing\"\nurl = \"{url}\"\nsecret = \"{key}\"\nfrom = \"start\"\n\
         timeout = \"300ms\"\n{lines}"
    );
    gateway.change(|setup| setup.extra(&sink));
    gateway.terminate();
    assert_eq!(gateway.wait_for_exit(), Some(0));
    gateway.start_again();

    let shown = || ledger(&gateway, &["sinks"]);
    let all_are_delivered = format!("0 pending, 0 dead, {OPERATIONS} delivered");
    eventually("all is acknowledged", || {
        shown().contains(&all_are_delivered)
    });
    let events = receiver.wait_for(OPERATIONS).events();
    assert!(events.keys().eq(&ids), "{events:?}");
    assert_eq!(receiver.most_at_once(), at_once);
    // Lago takes nothing twice; the others do, and drop it.
    let taken = if api == Api::Lago { 1 } else { 2 };
    for id in &ids {
        let (came, times) = (receiver.came(id), receiver.times(id));
        assert!(
            came >= 4 && times >= taken,
            "{id} came {came}, taken {times}"
        );
    }
    let sums = gateway.control().json("/v1/ledger?by=");
    let tokens = |name: &str| sums["total"][name].as_u64().unwrap();
    let counted: u64 = events.values().map(used).sum();
    assert_eq!(counted, tokens("input") + tokens("output"), "{sums}");
}

fn number(text: &Value) -> u64 {
    text.as_str().unwrap().parse().unwrap()
}

#[test]
fn stripe_counts_each_operation_once_by_its_identifier() {
    let lines = "kind = \"stripe\"\nevent_name = \"tokens\"\nvalue = \"total_tokens\"\n\
                 customers = { acme = \"cus_1\" }";
    is_counted_once(Api::Stripe, lines, 1, |form| {
        assert_eq!(form["payload[stripe_customer_id]"], "cus_1");
        number(&form["payload[value]"])
    });
}

#[test]
fn openmeter_counts_each_operation_once_by_source_and_id() {
    is_counted_once(Api::OpenMeter, "kind = \"openmeter\"", 5, |event| {
        let usage = &event["data"]["usage"];
        usage["input"].as_u64().unwrap() + usage["output"].as_u64().unwrap()
    });
}

#[test]
fn lago_counts_each_operation_once_by_its_transaction_id() {
    let lines = "kind = \"lago\"\nevent_name = \"tokens\"\nvalue = \"total_tokens\"\n\
                 customers = { acme = \"sub_1\" }";
    is_counted_once(Api::Lago, lines, 5, |event| {
        assert_eq!(event["external_subscription_id"], "sub_1");
        number(&event["properties"]["total_tokens"])
    });
}
