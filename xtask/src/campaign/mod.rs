//! `cargo xtask campaign`: what is done to break it, for as long as it is let, and what was seen.
//!
//! A campaign works in batches. Each does what follows from its position (a seed, a cycle, an offset), so that a
//! campaign goes on where it stopped. What it has done is kept in `docs/reliability/NAME.json`, and
//! `docs/reliability.md` shows it.

mod block_cuts;
mod core_seeds;
mod crowds;
mod exports;
mod failing_calls;
pub mod figures;
mod flood;
mod fuzz;
mod gateway_seeds;
mod kills;
mod mutants;
mod page;
pub mod planted;
mod power_cuts;
mod program;
mod resets;
mod runs;
mod scene;
mod soak;

use std::cell::OnceCell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::command::headline;
use crate::faults::gateway::{self, Misbehaved};
use figures::Figures;
use runs::{Run, Runs};

/// All of them, in the order of the page.
const ALL: &[Campaign] = &[
    kills::CAMPAIGN,
    power_cuts::CAMPAIGN,
    block_cuts::CAMPAIGN,
    failing_calls::CAMPAIGN,
    soak::CAMPAIGN,
    flood::CAMPAIGN,
    crowds::CAMPAIGN,
    exports::CAMPAIGN,
    gateway_seeds::CAMPAIGN,
    resets::CAMPAIGN,
    core_seeds::CAMPAIGN,
    planted::CAMPAIGN,
    fuzz::KEY,
    fuzz::FINGERPRINT,
    fuzz::RECORDS,
    fuzz::FILES,
    fuzz::HTTP1,
    fuzz::HEADERS,
    fuzz::EVENTS,
    fuzz::CONFIG,
    mutants::CAMPAIGN,
];

/// How many violations are shown.
pub const SHOWN: usize = 20;

/// One way to look for what nobody thought of.
pub struct Campaign {
    /// What it is called on the command line, and its file.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// How much of which figures is to be reached.
    pub targets: &'static [(u64, &'static str)],
    /// Whether it runs the gateway's binary, which is built before its minutes begin.
    pub runs_gateway: bool,
    /// Does one batch.
    pub batch: fn(&Batch<'_>) -> Result<Ended>,
}

impl Campaign {
    /// Builds what it runs, so that no batch's time goes by in a build.
    fn prepare(&self, gateway: &Binary) -> Result<()> {
        if self.runs_gateway {
            gateway.path()?;
        }
        Ok(())
    }

    /// Does one batch. A gateway that did what none may do is a violation, also where it kept the batch from its end.
    fn run(&self, batch: &Batch<'_>) -> Result<Ended> {
        match (self.batch)(batch) {
            Err(error) if error.is::<Misbehaved>() => Ok(Ended::Done(Done {
                to: batch.from + 1,
                violations: vec![format!("seed {}: {error:#}", batch.from)],
                ..Done::default()
            })),
            ended => ended,
        }
    }
}

/// What a batch is told.
pub struct Batch<'a> {
    /// The position to begin at; the first one is 1.
    pub from: u64,
    /// Only a small, fixed piece, for every change.
    pub short: bool,
    /// When the campaign's minutes are over. A batch of about a minute may ignore it.
    pub until: Instant,
    /// The gateway, for those that need it.
    pub gateway: &'a Binary,
}

impl Batch<'_> {
    /// How long this batch may take, and no longer than this.
    pub fn at_most(&self, longest: Duration) -> Duration {
        longest.min(self.until.saturating_duration_since(Instant::now()))
    }
}

/// How a batch ended.
pub enum Ended {
    /// It was done.
    Done(Done),
    /// It cannot be done on this machine, and why.
    Skipped(String),
}

/// What a batch did.
#[derive(Debug, Default)]
pub struct Done {
    /// The position to go on from.
    pub to: u64,
    /// What was counted.
    pub figures: Figures,
    /// What must not be, each with its seed.
    pub violations: Vec<String>,
    /// What is to be named, and is no violation.
    pub remarks: Vec<String>,
    /// What it looked at, if that is looked at again in each round: what was seen of it before counts no more.
    pub part: Option<String>,
}

/// The gateway's binary, built when it is asked for.
pub struct Binary {
    named: Option<PathBuf>,
    release: bool,
    path: OnceCell<PathBuf>,
}

impl Binary {
    /// This file, or else one that is built.
    pub fn new(named: Option<PathBuf>, release: bool) -> Self {
        Self {
            named,
            release,
            path: OnceCell::new(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> Result<PathBuf> {
        if let Some(path) = self.path.get() {
            return Ok(path.clone());
        }
        let path = gateway::binary(self.named.clone(), self.release)?;
        Ok(self.path.get_or_init(|| path).clone())
    }
}

/// Whether something was tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing was violated.
    Yes,
    /// It cannot be done here, as was printed.
    Skipped,
}

/// Runs the campaign that the command line asks for, or lists them all.
pub fn run(mut args: Args) -> Result<()> {
    let name = args.command();
    let docs = args.flag("--docs");
    let is_short = args.flag("--short");
    let minutes = args.value("--minutes")?.unwrap_or(1.0);
    let seed = args.value::<u64>("--seed")?;
    let named = args.value::<PathBuf>("--binary")?;
    let release = args.flag("--release");
    args.finish()?;
    if docs {
        return page::write(ALL);
    }
    let Some(name) = name else {
        list();
        return Ok(());
    };
    let gateway = Binary::new(named, release);
    if is_short {
        return short(&name, &gateway).map(drop);
    }
    let length = Duration::try_from_secs_f64(minutes * 60.0).context("--minutes")?;
    long(find(&name)?, length, seed, &gateway)
}

/// Runs the small, fixed piece of a campaign, and writes nothing.
pub fn short(name: &str, gateway: &Binary) -> Result<Held> {
    let campaign = find(name)?;
    headline(&format!("{name}, short: {}", campaign.about));
    campaign.prepare(gateway)?;
    let start = Instant::now();
    let ended = campaign.run(&Batch {
        from: 1,
        short: true,
        until: start + Duration::from_secs(60),
        gateway,
    })?;
    match ended {
        Ended::Skipped(why) => {
            println!("   SKIPPED: {why}");
            Ok(Held::Skipped)
        }
        Ended::Done(done) => {
            println!("   {}; {} s", done.figures, start.elapsed().as_secs());
            conclude(&done.violations)?;
            Ok(Held::Yes)
        }
    }
}

/// Runs batches until the time is over, or something is violated.
fn long(campaign: &Campaign, length: Duration, seed: Option<u64>, gateway: &Binary) -> Result<()> {
    campaign.prepare(gateway)?;
    let mut runs = Runs::read(campaign.name)?;
    let mut run = Run::begin(seed.unwrap_or_else(|| runs.position()))?;
    headline(&format!(
        "{} from {} for {} s: {}",
        campaign.name,
        run.from,
        length.as_secs(),
        campaign.about
    ));
    let until = Instant::now() + length;
    let mut start = Instant::now();
    while Instant::now() < until && run.violations.is_empty() {
        let ended = campaign.run(&Batch {
            from: run.to,
            short: false,
            until,
            gateway,
        })?;
        match ended {
            Ended::Skipped(why) => bail!("{} cannot be done here: {why}", campaign.name),
            Ended::Done(done) => run.add(done, start.elapsed()),
        }
        println!("   {} s: {}", start.elapsed().as_secs(), run.figures);
        // A batch that somebody chose is a look at it, and counts for nothing.
        if seed.is_none() {
            runs.write_with(&run)?;
        }
        if run.part.is_some() && run.violations.is_empty() {
            let next = Run::begin(run.to)?;
            runs.all.push(std::mem::replace(&mut run, next));
            start = Instant::now();
        }
    }
    conclude(&run.violations)
}

/// Shows what was violated.
fn conclude(violations: &[String]) -> Result<()> {
    for violation in violations.iter().take(SHOWN) {
        println!("   VIOLATED {violation}");
    }
    if !violations.is_empty() {
        bail!("{} violations", violations.len());
    }
    Ok(())
}

fn find(name: &str) -> Result<&'static Campaign> {
    let found = ALL.iter().find(|campaign| campaign.name == name);
    found.with_context(|| {
        format!("there is no campaign `{name}`; `cargo xtask campaign` lists them")
    })
}

fn list() {
    for campaign in ALL {
        println!("{:<17} {}", campaign.name, campaign.about);
    }
}
