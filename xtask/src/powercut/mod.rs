//! `cargo xtask powercut`: the real binary on a disk whose power goes, and what it makes of the
//! images that can be left.
//!
//! A round runs the gateway under load on a mounted [`disk::Disk`] until the power goes at a
//! random write or sync. From what was and was not synced follow many images; each is put into a
//! plain folder, the gateway is started on it, and every key that was ever sent is sent again. The
//! upstream's ledger and the clients' history go back to the moment of the cut for each image,
//! since the images are alternatives to each other.

mod disk;
mod image;
mod mount;
mod round;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::args::Args;
use crate::command::headline;
use crate::faults::gateway::binary;
use round::{Campaign, Tally};

/// How many violations are shown.
const SHOWN: usize = 20;

/// What a campaign is told.
pub struct Plan {
    /// How many distinct images it checks.
    pub images: u64,
    /// What the random choices follow from.
    pub seed: u64,
    /// The gateway.
    pub binary: PathBuf,
}

/// How a campaign ended.
pub enum Ended {
    /// Nothing was violated.
    Held,
    /// FUSE does not work here.
    Skipped,
}

/// Runs the campaign that the command line asks for.
pub fn run(mut args: Args) -> Result<()> {
    let images = args.value("--images")?.unwrap_or(300);
    let seed = args.value("--seed")?.unwrap_or(1);
    let named = args.value::<PathBuf>("--binary")?;
    let release = args.flag("--release");
    args.finish()?;
    campaign(&Plan {
        images,
        seed,
        binary: binary(named, release)?,
    })
    .map(|_| ())
}

/// Runs one campaign; an error if anything was violated.
pub fn campaign(plan: &Plan) -> Result<Ended> {
    headline(&format!(
        "powercut: {} images, seed {}",
        plan.images, plan.seed
    ));
    let start = Instant::now();
    let mut campaign = match Campaign::start(plan) {
        Ok(campaign) => campaign,
        Err(error) => {
            println!("   SKIPPED: FUSE does not work here: {error:#}");
            return Ok(Ended::Skipped);
        }
    };
    let mut told = 0;
    let mut rounds = 0;
    while campaign.tally.images < plan.images {
        campaign.round(rounds)?;
        rounds += 1;
        let seconds = start.elapsed().as_secs();
        if seconds >= told + 10 {
            told = seconds;
            println!("   {seconds} s: {} images", campaign.tally.images);
        }
        if campaign.tally.violations.len() > SHOWN {
            break;
        }
    }
    conclude(&campaign.tally, rounds, start)
}

fn conclude(tally: &Tally, rounds: u64, start: Instant) -> Result<Ended> {
    println!(
        "   {} images of {rounds} cuts, all distinct ({} cut again during recovery, {} with flipped \
         bits, of which {} refused to start), {} s",
        tally.images,
        tally.recovery_cuts,
        tally.rotten,
        tally.refused,
        start.elapsed().as_secs()
    );
    println!(
        "   {} keys checked: {} completed, {} unknown; {} changes and {} syncs before the cuts; \
         longest start {} ms; {} violations",
        tally.keys,
        tally.completed,
        tally.unknown,
        tally.operations - tally.syncs,
        tally.syncs,
        tally.longest_start.as_millis(),
        tally.violations.len()
    );
    if !tally.violations.is_empty() {
        bail!("{} violations", tally.violations.len());
    }
    if tally.completed == 0 {
        bail!("no key was completed: nothing was tested");
    }
    Ok(Ended::Held)
}
