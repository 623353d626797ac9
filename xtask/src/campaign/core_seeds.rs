//! Seeds of the model of the protocol: several gateways, each kind of store, everything that goes wrong.

use anyhow::{Context, Result};

use super::program::{self, build_tests};
use super::{Batch, Campaign, Ended};

/// The campaign. A position is a seed, which is run over each kind of store, and counts for each.
pub const CAMPAIGN: Campaign = Campaign {
    name: "core-seeds",
    about: "seeds of the model of the protocol, over each kind of store",
    targets: &[(100_000_000, "seeds")],
    runs_gateway: false,
    batch,
};

/// How many seeds a batch runs over each store: about half a minute.
const SEEDS: u64 = 200_000;

fn batch(batch: &Batch<'_>) -> Result<Ended> {
    let wanted = ["--release", "--package", "onlyonce-core", "--test", "model"];
    let tests = build_tests(&wanted.map(str::to_owned))?;
    let seeds = if batch.short { 2_000 } else { SEEDS };
    let mut command = tests.first().context("the model was not built")?.command();
    command
        .args([
            "--exact",
            "no_seed_breaks_a_guarantee",
            "--nocapture",
            "--quiet",
        ])
        .env("ONLYONCE_FROM", batch.from.to_string())
        .env("ONLYONCE_SEEDS", seeds.to_string())
        .env_remove("ONLYONCE_SEED")
        .env_remove("ONLYONCE_STORE");
    program::batch(&mut command).map(Ended::Done)
}
