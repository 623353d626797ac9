//! `kill -9` at random points under load, again and again, and every key checked against the
//! upstream's own ledger.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::scene::Scene;
use super::{Batch, Campaign, Ended};
use crate::faults::kills::{Kills, settle_twice};
use crate::faults::load::Load;
use crate::faults::upstream::lock;

/// The campaign.
pub const CAMPAIGN: Campaign = Campaign {
    name: "kills",
    about: "kill -9 under load, while it starts too, then every key against the upstream's ledger",
    targets: &[(20_000, "kills")],
    runs_gateway: true,
    batch,
};

/// How many clients send at once.
const CLIENTS: u64 = 24;

/// The longest that a gateway lives before it is killed.
const LONGEST_LIFE: Duration = Duration::from_millis(1_500);

/// How long a batch kills; the checks afterwards come on top.
const LENGTH: Duration = Duration::from_secs(60);

/// One seed.
fn batch(batch: &Batch<'_>) -> Result<Ended> {
    let seed = batch.from;
    let scene = Scene::new(CAMPAIGN.name, batch)?;
    let Scene {
        upstream,
        setup,
        shared,
        ..
    } = &scene;

    let mut kills = Kills::new(seed, LONGEST_LIFE);
    let load = Load::start(shared, CLIENTS);
    let length = batch.at_most(LENGTH);
    let start = Instant::now();
    let killed = kills.until(|| start.elapsed() >= length, setup, shared);
    shared.target.set(None);
    load.stop();
    killed?;

    drop(settle_twice(setup, shared, kills.generation, CLIENTS)?);

    let mut history = lock(&shared.history);
    history.check_ledger(&upstream.ledger());
    let mut figures = history.figures()?;
    figures.add_all(&kills.figures());
    let violations = history.violations_of(seed);
    scene.done(figures, violations)
}
