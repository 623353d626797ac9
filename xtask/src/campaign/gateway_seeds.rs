//! Seeds of the simulated gateway: the test binary `sim` of the gateway, from one seed on.

use std::time::Duration;

use anyhow::Result;

use super::figures::Figures;
use super::{Batch, Campaign, Done, Ended, program};
use crate::command::cargo;

/// The campaign.
pub const CAMPAIGN: Campaign = Campaign {
    name: "gateway-seeds",
    about: "the real engine and HTTP code in a simulated world, one history for each seed",
    targets: &[(100_000, "seeds")],
    runs_gateway: false,
    batch,
};

/// How long a batch takes.
const LENGTH: Duration = Duration::from_secs(60);

/// What is counted in a few words: the program counts each kind by itself.
const SUMS: [(&str, &str); 6] = [
    ("seeds", "seeds"),
    ("simulated seconds", "simulated seconds"),
    ("attempts: ", "attempts"),
    ("exchanges: ", "exchanges with the upstream"),
    ("gateways: ", "deaths, pauses and ends of gateways"),
    ("writes: ", "writes that failed"),
];

/// Seeds from `batch.from` on.
fn batch(batch: &Batch<'_>) -> Result<Ended> {
    let done = simulate(batch, "seeds::no_seed_breaks_a_guarantee", 300)?;
    let mut figures = Figures::default();
    for (kind, name) in SUMS {
        figures.add(name, done.figures.of_kind(kind));
    }
    Ok(Ended::Done(Done { figures, ..done }))
}

/// Runs a test of `sim` that takes seeds, from `batch.from` on: for a minute, or as many as `short` of them.
pub fn simulate(batch: &Batch<'_>, test: &str, short: u64) -> Result<Done> {
    let mut command = cargo();
    command.args(["test", "--package", "onlyonce-gateway", "--test", "sim"]);
    command.env("ONLYONCE_FROM", batch.from.to_string());
    if batch.short {
        command.env("ONLYONCE_SEEDS", short.to_string());
    } else {
        let seconds = batch.at_most(LENGTH).as_secs().max(1);
        command.arg("--release");
        command.env("ONLYONCE_SEEDS", "1000000");
        command.env("ONLYONCE_SECONDS", seconds.to_string());
    }
    command.args(["--", "--exact", "--nocapture", test]);
    program::batch(&mut command)
}
