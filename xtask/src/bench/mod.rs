//! `cargo xtask bench http`: the gateway against nginx and against a published peer, in pairs.

mod console;
mod events;
mod joined;
mod layer;
mod ledger;
mod machine;
mod million;
pub mod numbers;
mod peers;
mod report;
mod rounds;
mod shared;
mod single;
mod streams;
mod throughput;
mod work;
mod wrk;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::command::{cargo, headline, quietly, root, target_dir};
use crate::faults::gateway::binary;
use crate::process::raise_open_files;
use peers::Stage;
use report::Section;

/// What can be measured by itself; it writes a section of its own.
struct Part {
    /// What the command line calls it.
    name: &'static str,
    title: &'static str,
    measure: fn(&Stage, &Size) -> Result<Section>,
}

/// In the order in which they run and stand in the results.
const PARTS: &[Part] = &[
    Part {
        name: "throughput",
        title: "Throughput, 64 connections",
        measure: throughput::measure,
    },
    Part {
        name: "single",
        title: "One connection",
        measure: single::measure,
    },
    Part {
        name: "streams",
        title: "500 streams",
        measure: streams::measure,
    },
    Part {
        name: "joined",
        title: "1,000 joined readers",
        measure: joined::measure,
    },
    Part {
        name: "million",
        title: "A million records",
        measure: million::measure,
    },
    Part {
        name: "ledger",
        title: "What metering and the ledger cost",
        measure: ledger::measure,
    },
    Part {
        name: "console",
        title: "The console's queries on a million records",
        measure: console::measure,
    },
    Part {
        name: "layer",
        title: "What the layer costs a handler",
        measure: layer::measure,
    },
    Part {
        name: "work",
        title: "Workers over the operations API",
        measure: work::measure,
    },
    Part {
        name: "shared",
        title: "Shared stores",
        measure: shared::measure,
    },
];

impl Part {
    fn heading(&self) -> String {
        format!("## {} (`--only {}`)", self.title, self.name)
    }
}

/// How much is done.
struct Size {
    /// Pairs of runs, or rounds.
    pairs: u64,
    /// Length of one run.
    seconds: u64,
    /// Finished records.
    records: u64,
    /// Size of a full segment of their store, in MiB.
    segment_mib: u64,
    /// How long they answer retries before their space has to come back, in seconds.
    window: u64,
}

/// The official run: the store as it is shipped.
const WHOLE: Size = Size {
    pairs: 5,
    seconds: 8,
    records: 1_000_000,
    segment_mib: 32,
    window: 120,
};

/// Shows that every part works, in about a minute. Small segments, so that few records fill many.
const QUICK: Size = Size {
    pairs: 1,
    seconds: 1,
    records: 50_000,
    segment_mib: 4,
    window: 5,
};

/// Below this share of idle processors, the figures tell more of the other programs.
const QUIET: f64 = 0.95;

/// What the command line asks for.
struct Plan {
    parts: Vec<&'static Part>,
    size: Size,
    /// The page that the sections are written to.
    page: PathBuf,
    binary: Option<PathBuf>,
}

impl Plan {
    fn read(mut args: Args) -> Result<Self> {
        let only = args.value::<String>("--only")?;
        let quick = args.flag("--quick");
        let mut size = if quick { QUICK } else { WHOLE };
        size.pairs = args.value("--pairs")?.unwrap_or(size.pairs).max(1);
        size.seconds = args.value("--seconds")?.unwrap_or(size.seconds).max(1);
        let binary = args.value("--binary")?;
        args.finish()?;
        Ok(Self {
            parts: parts(only.as_deref())?,
            size,
            // A quick run must not take the place of figures that mean something.
            page: if quick {
                target_dir().join("bench-quick.md")
            } else {
                root().join("bench/RESULTS.md")
            },
            binary,
        })
    }
}

/// The parts of a list with commas, in their own order; all without a list.
fn parts(only: Option<&str>) -> Result<Vec<&'static Part>> {
    let Some(only) = only else {
        return Ok(PARTS.iter().collect());
    };
    let wanted: Vec<&str> = only.split(',').collect();
    let unknown = wanted
        .iter()
        .find(|name| PARTS.iter().all(|part| part.name != **name));
    if let Some(unknown) = unknown {
        let names: Vec<_> = PARTS.iter().map(|part| part.name).collect();
        bail!(
            "there is no part `{unknown}`; there are {}",
            names.join(", ")
        );
    }
    let is_wanted = |part: &&Part| wanted.contains(&part.name);
    Ok(PARTS.iter().filter(is_wanted).collect())
}

/// Runs the parts that the command line asks for.
pub fn run(mut args: Args) -> Result<()> {
    match args.command().as_deref() {
        Some("http") => {}
        _ => bail!("the bench is called `bench http`"),
    }
    let plan = Plan::read(args)?;
    if cfg!(debug_assertions) {
        return run_optimised();
    }
    raise_open_files();
    let stage = Stage::set(binary(plan.binary, true)?, events::start()?)?;
    let mut missed = Vec::new();
    let mut failed = Vec::new();
    for part in &plan.parts {
        match run_part(part, &stage, &plan.size, &plan.page) {
            Ok(some) => missed.extend(some),
            Err(error) => {
                // The other parts are still worth their time.
                println!("   {} could not be measured: {error:#}", part.name);
                failed.push(part.name);
            }
        }
    }
    headline(&format!("written to {}", plan.page.display()));
    for figure in missed {
        println!("   missed: {figure}");
    }
    if failed.is_empty() {
        stage.clear()
    } else {
        bail!("not measured: {}", failed.join(", "))
    }
}

/// Measures a part and writes its section; returns the targets that it missed.
fn run_part(part: &Part, stage: &Stage, size: &Size, page: &Path) -> Result<Vec<String>> {
    headline(part.name);
    let before = machine::idle()?;
    let since = Instant::now();
    let section = (part.measure)(stage, size)?;
    for target in &section.targets {
        println!("   {target}");
    }
    println!("   {} took {} s", part.name, since.elapsed().as_secs());
    let idle = before.min(machine::idle()?);
    if idle < QUIET {
        println!("   other programs are busy: these figures mean little");
    }
    let headings: Vec<String> = PARTS.iter().map(Part::heading).collect();
    let conditions = machine::describe(idle)?;
    report::write(page, &headings, &part.heading(), &conditions, &section)?;
    let missed = section.targets.iter().filter(|target| !target.reached);
    Ok(missed
        .map(|target| format!("{}: {target}", part.name))
        .collect())
}

/// Runs the same command in an optimised build of this program: it sends the streams and reads
/// them, and a slow reader would be measured as a slow gateway.
fn run_optimised() -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--locked", "--release", "--package", "xtask"]);
    quietly("building the load generator", &mut build)?;
    let status = Command::new(target_dir().join("release/xtask"))
        .args(std::env::args_os().skip(1))
        .status()
        .context("cannot run the load generator")?;
    if !status.success() {
        bail!("the bench ended with {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{PARTS, parts};

    #[test]
    fn parts_are_chosen_by_name_and_run_in_their_own_order() {
        let names = |only| -> Vec<&str> {
            let parts = parts(only).unwrap();
            parts.iter().map(|part| part.name).collect()
        };
        assert_eq!(names(Some("joined,single")), ["single", "joined"]);
        assert_eq!(names(None).len(), PARTS.len());
        assert!(parts(Some("single,no-such-part")).is_err());
    }
}
