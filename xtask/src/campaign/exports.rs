//! `kill -9` at random points under load, while each operation is told to a
//! receiver that fails at random; what that was told is compared with the ledger and the upstream.

use std::net::SocketAddr;
use std::ops::AddAssign;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use onlyonce_testkit::{Manner, Receiver};
use serde_json::Value;

use super::scene::Scene;
use super::{Batch, Campaign, Ended};
use crate::command::Progress;
use crate::faults::client::ask;
use crate::faults::history::{History, Violation};
use crate::faults::kills::{Kills, settle_twice};
use crate::faults::load::Load;
use crate::faults::random::{Random, hash};
use crate::faults::script::{Script, Used};
use crate::faults::upstream::{Ledger, lock};

/// The campaign.
pub const CAMPAIGN: Campaign = Campaign {
    name: "exports",
    about: "kill -9 and a sink that fails: what it was told is the ledger and what the upstream gave, to the token",
    targets: &[(10_000, "keys completed")],
    runs_gateway: true,
    batch,
};

/// How many clients send at once: few, so that there are many kills before all is sent.
const CLIENTS: u64 = 3;

/// The longest that a gateway lives before it is killed: it has to come to delivering.
const LONGEST_LIFE: Duration = Duration::from_secs(4);

/// From this time on an event is taken without a fault.
const FAULTY_TIMES: usize = 4;

/// How long the receiver may get nothing new before it counts as all: more than the pauses of an event
/// that meets a fault each time.
const SILENCE: Duration = Duration::from_secs(40);

/// How many operations a batch begins at least.
const OPERATIONS: u64 = 2_000;

/// One seed.
fn batch(batch: &Batch<'_>) -> Result<Ended> {
    let seed = batch.from;
    let receiver = Receiver::with(move |id, before| manner(seed, id, before));
    let mut scene = Scene::new(CAMPAIGN.name, seed, batch.gateway)?;
    scene.setup.more = telling(&receiver);
    let Scene {
        upstream,
        setup,
        shared,
        ..
    } = &scene;

    let mut kills = Kills::new(seed, LONGEST_LIFE);
    let load = Load::start(shared, CLIENTS);
    let all_sent = || shared.next_key.load(Ordering::SeqCst) >= OPERATIONS;
    let killed = kills.until(all_sent, setup, shared);
    shared.target.set(None);
    load.stop();
    killed?;
    let told_between_kills = receiver.count();

    let last = settle_twice(setup, shared, kills.generation, CLIENTS)?;
    let mut history = lock(&shared.history);
    let (completed, _) = history.outcomes();
    let books = catch_up(last.control, &receiver, completed)?;
    drop(last);

    history.check_ledger(&upstream.ledger());
    let told = compare(&mut history, &upstream.ledger(), &receiver, &books);
    let mut figures = history.figures()?;
    figures.add_all(&kills.figures());
    for (name, number) in [
        ("events told", told.operations as u64),
        ("events before the last kill", told_between_kills as u64),
        ("requests to the sink", receiver.came_in_all() as u64),
        ("input tokens", u64::try_from(told.used.input)?),
        ("output tokens", u64::try_from(told.used.output)?),
        ("nanodollars", u64::try_from(told.used.nanos)?),
    ] {
        figures.add(name, number);
    }
    let violations = history.violations_of(seed);
    scene.done(figures, violations).map(Ended::Done)
}

/// What the receiver does with an event that came so often before.
fn manner(seed: u64, id: &str, before: usize) -> Manner {
    if before >= FAULTY_TIMES {
        return Manner::Take;
    }
    match Random::part(seed ^ hash(id.as_bytes()), before as u64).below(100) {
        0..=9 => Manner::Refuse(500),
        10..=12 => Manner::Stall,
        13..=15 => Manner::TakeLate,
        16..=19 => Manner::TakeAndDrop,
        _ => Manner::Take,
    }
}

/// The configuration's end: answers are read, and the receiver is told of them.
fn telling(receiver: &Receiver) -> String {
    format!(
        r#"usage = ["scripted"]

[[usage]]
name = "scripted"
paths = ["/work/*"]
provider = "scripted"
operation = "chat"
model = "/model"
units = {{ input = "/usage/input", output = "/usage/output" }}
cost = "/usage/cost"

[[ledger.sink]]
name = "billing"
kind = "webhook"
from = "start"
url = "{}"
secret = "{}"
timeout = "300ms"
in_flight = 32
"#,
        receiver.url(),
        Receiver::SECRET
    )
}

/// So many operations, and what they used together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    operations: usize,
    used: Used,
}

impl AddAssign<Used> for Sums {
    fn add_assign(&mut self, used: Used) {
        self.operations += 1;
        self.used.input += used.input;
        self.used.output += used.output;
        self.used.nanos += used.nanos;
    }
}

/// What the gateway says in the end.
struct Books {
    sums: Sums,
    /// Entries that the sink was given up for.
    dead: u64,
    /// How it stood, to be shown.
    sink: Value,
}

/// Waits until ledger and receiver have `completed` operations, or nothing comes any more.
fn catch_up(control: SocketAddr, receiver: &Receiver, completed: usize) -> Result<Books> {
    let _progress = Progress::start("waiting for the sink", Duration::from_secs(10));
    let (mut count, mut since) = (0, Instant::now());
    loop {
        let (_, ledger) = ask(control, "/v1/ledger?by=")?;
        let (_, mut sinks) = ask(control, "/v1/sinks")?;
        let sink = sinks.pointer_mut("/sinks/0").context("no sink")?.take();
        let total = &ledger["total"];
        let books = Books {
            sums: Sums {
                operations: usize::try_from(whole(&total["operations"])?)?,
                used: Used {
                    input: whole(&total["input"])?,
                    output: whole(&total["output"])?,
                    nanos: nanos(&total["spent_usd"])?,
                },
            },
            dead: sink["dead"].as_u64().context("no number of dead letters")?,
            sink,
        };
        if receiver.count() > count {
            (count, since) = (receiver.count(), Instant::now());
        }
        let has_all =
            books.sums.operations >= completed && count >= completed && books.sink["pending"] == 0;
        if has_all || since.elapsed() > SILENCE {
            return Ok(books);
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Compares what the receiver was told with the ledger, and each event with what the upstream did.
fn compare(history: &mut History, ledger: &Ledger, receiver: &Receiver, books: &Books) -> Sums {
    let mut violations = Vec::new();
    let mut violated = |key: &str, what: String| {
        violations.push(Violation {
            guarantee: "exports",
            key: key.to_owned(),
            what,
        });
    };
    let mut events = receiver.events();
    let (mut ran, mut told) = (Sums::default(), Sums::default());
    for event in events.values() {
        match used(event) {
            Ok(used) => told += used,
            Err(error) => violated("", format!("{error:#}: {event}")),
        }
    }
    for (key, operation) in history.completed() {
        let expected = Script::of_key(key).used;
        if ledger.contains_key(key) {
            ran += expected;
        }
        match events.remove(operation) {
            None => violated(key, format!("{operation} was never told")),
            Some(event) if used(&event).ok() == Some(expected) => {}
            Some(event) => violated(key, format!("it used {expected:?}, and was told {event}")),
        }
    }
    for (operation, event) in &events {
        violated("", format!("{operation} never completed: {event}"));
    }
    if told != books.sums {
        let sums = &books.sums;
        violated("", format!("told {told:?}, and the ledger says {sums:?}"));
    }
    if told != ran {
        violated("", format!("told {told:?}, and the upstream says {ran:?}"));
    }
    if books.dead > 0 || receiver.forged() > 0 {
        let (sink, forged) = (&books.sink, receiver.forged());
        violated("", format!("{forged} forged; the sink: {sink}"));
    }
    history.violations.extend(violations);
    told
}

/// What an event says that was used.
fn used(event: &Value) -> Result<Used> {
    Ok(Used {
        input: whole(&event["usage"]["input"])?,
        output: whole(&event["usage"]["output"])?,
        nanos: nanos(&event["cost"]["amount"])?,
    })
}

fn whole(number: &Value) -> Result<i128> {
    let number = number.as_i64().context("no whole number")?;
    Ok(number.into())
}

/// Decimal US dollars in thousand-millionths.
fn nanos(dollars: &Value) -> Result<i128> {
    let text = dollars.as_str().context("no dollars")?;
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 9 {
        bail!("{text} has more than nine places");
    }
    format!("{whole}{part:0<9}")
        .parse()
        .with_context(|| format!("{text} is no number"))
}

#[cfg(test)]
mod tests {
    use super::nanos;

    #[test]
    fn dollars_are_read_to_the_nano() {
        for (text, expected) in [
            ("0.022", 22_000_000),
            ("12", 12_000_000_000),
            ("0.000000001", 1),
        ] {
            assert_eq!(nanos(&text.into()).unwrap(), expected, "{text}");
        }
        assert!(nanos(&"0.0000000001".into()).is_err());
        assert!(nanos(&0.5.into()).is_err());
    }
}
