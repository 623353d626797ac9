//! `kill -9` at random points under load, again and again, and every key checked against the
//! upstream's own ledger.

use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::scene::Scene;
use super::{Batch, Campaign, Done, Ended};
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

/// How many gateways live and die at the same time, each with a folder, clients and an upstream of its own.
const AT_ONCE: u64 = 2;

/// How many clients send to each at once.
const CLIENTS: u64 = 24;

/// How long a client waits at most between two attempts: gateways are to die often rather than to do much.
const PAUSE: Duration = Duration::from_millis(20);

/// The longest that a gateway lives before it is killed.
const LONGEST_LIFE: Duration = Duration::from_millis(1_500);

/// How long a batch kills; the checks afterwards come on top.
const LENGTH: Duration = Duration::from_secs(60);

/// As many seeds as there are gateways at once.
fn batch(batch: &Batch<'_>) -> Result<Ended> {
    let length = batch.at_most(LENGTH);
    let seeds = batch.from..batch.from + AT_ONCE;
    let scenes = seeds.map(|seed| Scene::new(CAMPAIGN.name, seed, batch.gateway));
    let mut scenes = scenes.collect::<Result<Vec<_>>>()?;
    for scene in &mut scenes {
        scene.shared.pause = PAUSE;
    }
    let ended: Vec<_> = thread::scope(|scope| {
        let begun = scenes
            .iter()
            .map(|scene| scope.spawn(|| one(scene, length)));
        let begun: Vec<_> = begun.collect();
        begun.into_iter().map(ScopedJoinHandle::join).collect()
    });
    let mut all = Done::default();
    for done in ended {
        let done = done.map_err(|_| anyhow!("a thread of the campaign has panicked"))??;
        all.to = done.to;
        all.figures.add_all(&done.figures);
        all.violations.extend(done.violations);
    }
    Ok(Ended::Done(all))
}

/// One seed.
fn one(scene: &Scene, length: Duration) -> Result<Done> {
    let Scene {
        upstream,
        setup,
        shared,
        ..
    } = scene;
    let mut kills = Kills::new(shared.seed, LONGEST_LIFE);
    let load = Load::start(shared, CLIENTS);
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
    let violations = history.violations_of(shared.seed);
    scene.done(figures, violations)
}
