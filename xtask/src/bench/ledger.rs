//! What it costs to read the use of answers and to keep the books: the same gateway with and without.

use std::fmt::Write as _;

use anyhow::Result;

use super::Size;
use super::events;
use super::numbers::median;
use super::peers::{Running, Stage};
use super::report::{Section, Target};
use super::rounds::CONNECTIONS;
use super::streams;
use super::wrk::{self, Keys};

/// A long bench makes more records than one caller may hold unless it is said.
const LIMITS: &str = "\n[limits]\ntenant_records = 100000000\n";

/// Answers of OpenAI's shape, also in events.
const METERED: &str = r#"
[[usage]]
name = "bench-events"
paths = ["/events/chat/*"]
provider = "openai"
operation = "chat"
at = "/usage"
complete = ["[DONE]"]
units = { input = "/prompt_tokens", output = "/completion_tokens" }

[[route]]
path_prefix = "/events/chat"
upstream = "events"
usage = ["bench-events"]
"#;

/// Throughput of new keys, and processor time of events, in turns.
pub fn measure(stage: &Stage, size: &Size) -> Result<Section> {
    let with = start(stage, "ledger-on", true)?;
    let without = start(stage, "ledger-off", false)?;
    let mut figures = format!(
        "The same program with `ledger.enabled = true` (the default) and `false`, on embedded stores, in turns,\n\
         {} rounds of {} s each after one that warms up. New keys over {CONNECTIONS} connections to a route with the\n\
         usage format `openai-chat`; the answer is 1 KB of JSON of a chat completion, whose use is read and priced, and\n\
         which has an entry. Events are those of 500 streams as in the part `streams`, each with\n\
         `\"usage\":null`, so that each is looked at. CPU is the gateway's own.\n\n\
         | round | new keys/s with | without | ratio | CPU µs/event with | without | ratio |\n\
         |---|---|---|---|---|---|---|\n",
        size.pairs, size.seconds
    );
    let rate = |gateway: &Running, prefix: &str, seconds| -> Result<f64> {
        let url = format!("{}v1/chat/completions", gateway.url());
        Ok(wrk::run(&[url], Keys::New, prefix, CONNECTIONS, seconds)?.rate)
    };
    for gateway in [&with, &without] {
        rate(gateway, "warm", 2)?;
    }
    let count = size.seconds * 1000 / events::INTERVAL.as_millis() as u64;
    let cpu = |gateway: &Running, prefix: &str| -> Result<f64> {
        let of = streams::all(
            gateway.address,
            Some(gateway),
            "/events/chat/",
            prefix,
            count,
        )?;
        Ok(of.cpu_per_event)
    };
    let (mut rates, mut cpus) = (Vec::new(), Vec::new());
    for round in 1..=size.pairs {
        let prefix = format!("round{round}");
        // Who goes first has the emptier disk cache: they change places.
        let order = if round % 2 == 0 {
            [&with, &without]
        } else {
            [&without, &with]
        };
        let mut found = order.map(|gateway| {
            Ok::<_, anyhow::Error>((
                rate(gateway, &prefix, size.seconds)?,
                cpu(gateway, &prefix)?,
            ))
        });
        if round % 2 != 0 {
            found.reverse();
        }
        let [with, without] = found;
        let (with, without) = (with?, without?);
        let (rate_ratio, cpu_ratio) = (with.0 / without.0, with.1 / without.1);
        let row = format!(
            "| {round} | {:.0} | {:.0} | {rate_ratio:.3} | {:.1} | {:.1} | {cpu_ratio:.3} |",
            with.0, without.0, with.1, without.1
        );
        println!("   {row}");
        writeln!(figures, "{row}")?;
        rates.push(rate_ratio);
        cpus.push(cpu_ratio);
    }
    Ok(Section {
        targets: vec![
            Target::at_least(
                "new keys with, ratio to without, median",
                median(&mut rates),
                0.95,
                "",
            ),
            Target::at_most(
                "CPU per event with, ratio to without, median",
                median(&mut cpus),
                1.10,
                "",
            ),
        ],
        figures,
    })
}

fn start(stage: &Stage, name: &str, is_kept: bool) -> Result<Running> {
    let _ = std::fs::remove_dir_all(stage.data(name));
    let sections = format!("{LIMITS}\n[ledger]\nenabled = {is_kept}\n{METERED}");
    stage.onlyonce_with(name, &sections, "usage = [\"openai-chat\"]")
}
