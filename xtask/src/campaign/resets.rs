//! Connections that end at every byte: the test binary `sim` of the gateway, another request and answer in each seed.

use std::time::Duration;

use anyhow::Result;

use super::{Batch, Campaign, Ended, program};
use crate::command::cargo;

/// The campaign.
pub const CAMPAIGN: Campaign = Campaign {
    name: "resets",
    about: "the connection ends, or the gateway dies, at every byte of a request and of its answer",
    targets: &[
        (1, "requests cut at every byte"),
        (1, "answers cut at every byte"),
    ],
    runs_gateway: false,
    batch,
};

/// How long a batch takes.
const LENGTH: Duration = Duration::from_secs(60);

/// Seeds from `batch.from` on.
fn batch(batch: &Batch<'_>) -> Result<Ended> {
    let mut command = cargo();
    command.args(["test", "--package", "onlyonce-gateway", "--test", "sim"]);
    command.env("ONLYONCE_FROM", batch.from.to_string());
    if batch.short {
        command.env("ONLYONCE_SEEDS", "1");
    } else {
        let seconds = batch.at_most(LENGTH).as_secs().max(1);
        command.arg("--release");
        command.env("ONLYONCE_SEEDS", "1000000");
        command.env("ONLYONCE_SECONDS", seconds.to_string());
    }
    command.args(["--", "--exact", "--nocapture"]);
    command.arg("cuts::no_byte_of_what_a_seed_draws_is_a_place_to_break_at");
    Ok(Ended::Done(program::batch(&mut command)?))
}
