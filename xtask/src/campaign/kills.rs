//! `kill -9` at random points under load, again and again, and every key checked against the
//! upstream's own ledger.

use std::fs;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Batch, Campaign, Done, Ended};
use crate::command::target_dir;
use crate::faults::gateway::Setup;
use crate::faults::history::History;
use crate::faults::kills::{Kills, settle_twice};
use crate::faults::load::{Load, Shared, Target};
use crate::faults::upstream::{Upstream, lock};

/// The campaign.
pub const CAMPAIGN: Campaign = Campaign {
    name: "kills",
    about: "kill -9 under load, while it starts too, then every key against the upstream's ledger",
    targets: &[(20_000, "kills")],
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
    let folder = target_dir().join(format!("kills-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;

    let upstream = Upstream::start()?;
    let setup = Setup {
        binary: batch.gateway.path()?,
        config: folder.join("onlyonce.toml"),
        data: folder.join("data"),
        upstream: upstream.address(),
        server: String::new(),
        more: String::new(),
        environment: Vec::new(),
    };
    let shared = Shared {
        target: Target::default(),
        history: Arc::new(Mutex::new(History::default())),
        next_key: Arc::new(AtomicU64::new(0)),
        reach: u64::MAX,
        seed,
    };

    let mut kills = Kills::new(seed, LONGEST_LIFE);
    let load = Load::start(&shared, CLIENTS);
    let length = batch.at_most(LENGTH);
    let start = Instant::now();
    let killed = kills.until(|| start.elapsed() >= length, &setup, &shared);
    shared.target.set(None);
    load.stop();
    killed?;

    drop(settle_twice(&setup, &shared, kills.generation, CLIENTS)?);

    let mut history = lock(&shared.history);
    history.check_ledger(&upstream.ledger());
    let mut figures = history.figures()?;
    figures.add_all(&kills.figures());
    let violations = history.violations_of(seed);
    if violations.is_empty() {
        fs::remove_dir_all(&folder).context("cannot remove the campaign's folder")?;
    }
    Ok(Ended::Done(Done {
        to: seed + 1,
        figures,
        violations,
    }))
}
