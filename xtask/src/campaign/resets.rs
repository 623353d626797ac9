//! Connections that end at every byte: the test binary `sim` of the gateway, another request and answer in each seed.

use anyhow::Result;

use super::gateway_seeds::simulate;
use super::{Batch, Campaign, Ended};

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

/// Seeds from `batch.from` on.
fn batch(batch: &Batch<'_>) -> Result<Ended> {
    let test = "cuts::no_byte_of_what_a_seed_draws_is_a_place_to_break_at";
    Ok(Ended::Done(simulate(batch, test, 1)?))
}
