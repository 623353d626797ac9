//! `cargo xtask torture`: `kill -9` at random points under load, again and again, and every key
//! checked against the upstream's own ledger.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::command::{headline, target_dir};
use crate::faults::gateway::{Setup, binary};
use crate::faults::history::History;
use crate::faults::kills::{Kills, settle_twice};
use crate::faults::load::{Load, Shared, Target};
use crate::faults::upstream::{Upstream, lock};

/// How many clients send at once.
const CLIENTS: u64 = 24;

/// The longest that a gateway lives before it is killed.
const LONGEST_LIFE: Duration = Duration::from_millis(1_500);

/// How many violations are shown.
const SHOWN: usize = 20;

/// What a campaign is told.
pub struct Plan {
    /// How long it kills; the checks afterwards come on top.
    pub minutes: f64,
    /// What the random choices follow from.
    pub seed: u64,
    /// The gateway.
    pub binary: PathBuf,
}

/// Runs the campaign that the command line asks for.
pub fn run(mut args: Args) -> Result<()> {
    let minutes = args.value("--minutes")?.unwrap_or(1.0);
    let seed = args.value("--seed")?.unwrap_or(1);
    let named = args.value::<PathBuf>("--binary")?;
    let release = args.flag("--release");
    args.finish()?;
    campaign(&Plan {
        minutes,
        seed,
        binary: binary(named, release)?,
    })
}

/// Runs one campaign; an error if anything was violated.
pub fn campaign(plan: &Plan) -> Result<()> {
    headline(&format!(
        "torture: {} min of kill -9, seed {}",
        plan.minutes, plan.seed
    ));
    let folder = target_dir().join(format!("torture-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;

    let upstream = Upstream::start()?;
    let setup = Setup {
        binary: plan.binary.clone(),
        config: folder.join("onlyonce.toml"),
        data: folder.join("data"),
        upstream: upstream.address(),
        more: String::new(),
    };
    let shared = Shared {
        target: Target::default(),
        history: Arc::new(Mutex::new(History::default())),
        next_key: Arc::new(AtomicU64::new(0)),
        seed: plan.seed,
    };

    let mut kills = Kills::new(plan.seed, LONGEST_LIFE);
    let load = Load::start(&shared, CLIENTS);
    let length = Duration::from_secs_f64(plan.minutes * 60.0);
    let start = Instant::now();
    let killed = kills.until(|| start.elapsed() >= length, &setup, &shared);
    shared.target.set(None);
    load.stop();
    killed?;

    drop(settle_twice(&setup, &shared, kills.generation, CLIENTS)?);

    let mut history = lock(&shared.history);
    history.check_ledger(&upstream.ledger());
    let (completed, unknown) = history.outcomes();
    println!(
        "   {} kills ({} during start-up), longest start {} ms; {} keys: {completed} completed, \
         {unknown} unknown; {} attempts, {} broken off; {} violations",
        kills.count,
        kills.early,
        kills.longest_start.as_millis(),
        history.keys().len(),
        history.attempts,
        history.broken,
        history.violations.len()
    );
    conclude(&history, completed)?;
    fs::remove_dir_all(&folder).context("cannot remove the campaign's folder")
}

/// Shows what was violated.
pub fn conclude(history: &History, completed: usize) -> Result<()> {
    for violation in history.violations.iter().take(SHOWN) {
        println!("   VIOLATED {violation}");
    }
    if !history.violations.is_empty() {
        bail!("{} violations", history.violations.len());
    }
    if completed == 0 {
        bail!("no key was completed: nothing was tested");
    }
    Ok(())
}
