//! Bugs are planted, one at a time, and the tests have to catch each.
//!
//! A test that cannot fail proves nothing. So each bug of [`Bug::ALL`] names the tests that must fail with it
//! (`hunters`); they run with the bug, and without any, where they must pass.

mod hunters;
mod programs;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Mutex;
use std::thread;

use anyhow::{Result, bail};
use onlyonce_core::planted::Bug;

use super::figures::Figures;
use super::{Batch, Binary, Campaign, Done, Ended, program, short};
use crate::args::Args;
use crate::page::Part;
use hunters::{GATEWAY_SEEDS, Hunter, Program, SEEDS, hunters};
use programs::{Programs, Ran, Seeds};

/// The campaign.
pub const CAMPAIGN: Campaign = Campaign {
    name: NAME,
    about: "bugs are planted, one at a time, and the tests have to catch each within their budget",
    targets: &[(20, "bugs caught")],
    runs_gateway: false,
    batch,
};

const NAME: &str = "planted";

/// Where the page shows the bugs.
pub const PART: Part = Part {
    begin: "<!-- planted bugs: written by `cargo xtask campaign --docs` -->\n",
    end: "<!-- /planted bugs -->\n",
};

/// How many seeds of the model a bug may take, over each kind of store.
const SEEDS_A_STORE: u64 = 20_000;

/// How many seeds of the gateway a bug may take.
const SEEDS_OF_THE_GATEWAY: u64 = 4_000;

/// How many run at the same time.
const AT_ONCE: usize = 2;

/// `cargo xtask planted`.
pub fn run(args: Args) -> Result<()> {
    args.finish()?;
    short(NAME, &Binary::new(None, false)).map(drop)
}

/// Hunts every bug, in other seeds each time.
fn batch(batch: &Batch<'_>) -> Result<Ended> {
    let programs = Programs::build()?;
    let seeds = Seeds {
        batch: batch.from - 1,
        model: SEEDS_A_STORE,
        gateway: SEEDS_OF_THE_GATEWAY,
    };
    control(&programs, seeds)?;
    let cases: Vec<(Bug, Hunter)> = Bug::ALL
        .iter()
        .flat_map(|&bug| hunters(bug).into_iter().map(move |hunter| (bug, hunter)))
        .collect();
    let verdicts = in_parallel(&cases, |&(bug, hunter)| {
        Verdict::of(hunter, programs.run(&[hunter], Some(bug), seeds))
    });
    let mut violations = Vec::new();
    let mut caught = BTreeSet::new();
    let mut not_here = BTreeSet::new();
    let mut escaped = BTreeSet::new();
    for ((bug, _), verdict) in cases.iter().zip(verdicts) {
        let name = bug.name();
        match verdict {
            Verdict::Caught(by) => {
                println!("   {name:<28} caught by {by}");
                caught.insert(name);
            }
            Verdict::NotHere(by) => {
                println!("   {name:<28} {by} cannot be run here");
                not_here.insert(format!("{name} by {by}"));
            }
            Verdict::Escaped(from) => {
                escaped.insert(name);
                violations.push(format!("{name} escapes from {from}"));
            }
        }
    }
    let caught = caught.difference(&escaped).count();
    Ok(Ended::Done(Done {
        to: batch.from + 1,
        figures: Figures::from([
            ("bugs planted", Bug::ALL.len() as u64),
            ("bugs caught", caught as u64),
        ]),
        violations,
        remarks: not_here.into_iter().collect(),
        part: Some(NAME.to_owned()),
    }))
}

/// Without a bug, the same tests complain of nothing.
fn control(programs: &Programs, seeds: Seeds) -> Result<()> {
    let mut by_program: BTreeMap<Program, BTreeSet<Hunter>> = BTreeMap::new();
    for hunter in Bug::ALL.iter().flat_map(|&bug| hunters(bug)) {
        by_program.entry(hunter.program).or_default().insert(hunter);
    }
    for (program, hunters) in by_program {
        let hunters: Vec<_> = hunters.into_iter().collect();
        let ran = programs.run(&hunters, None, seeds)?;
        if ran.failed > 0 {
            bail!("{program:?} complains without a bug:\n{}", ran.output);
        }
        println!("   without a bug, {} tests of {program:?} pass", ran.passed);
    }
    Ok(())
}

enum Verdict {
    /// With how, and what it said.
    Caught(String),
    Escaped(String),
    /// By this it cannot be hunted on this machine.
    NotHere(String),
}

impl Verdict {
    fn of(hunter: Hunter, ran: Result<Ran>) -> Self {
        match ran {
            Err(error) => Self::Escaped(format!("{hunter}: {error:#}")),
            Ok(ran) if ran.failed + ran.passed == 0 => Self::NotHere(hunter.to_string()),
            Ok(ran) if ran.failed == 0 => Self::Escaped(hunter.to_string()),
            Ok(ran) => {
                // Seeds may fail for another reason than what they found.
                let by = match hunter {
                    SEEDS => seed_in(&ran.output),
                    GATEWAY_SEEDS => gateway_seed_in(&ran.output),
                    _ => Some(hunter.to_string()),
                };
                by.map_or_else(
                    || Self::Escaped(format!("{hunter}, which failed and named no seed")),
                    Self::Caught,
                )
            }
        }
    }
}

/// The seed that caught it, and what it says.
fn seed_in(output: &str) -> Option<String> {
    let mut lines = output.lines();
    let mut broken = "?";
    while let Some(line) = lines.next() {
        if !line.contains("panicked at") {
            continue;
        }
        let said = lines.next().unwrap_or_default();
        // It is run once more for its log, right before it is named.
        if let Some((seed, _)) = said.split_once(" breaks a guarantee") {
            return Some(format!("{seed}: {broken}"));
        }
        broken = said;
    }
    None
}

/// The same for the gateway, whose last line tells it.
fn gateway_seed_in(output: &str) -> Option<String> {
    let violation = program::told(output).ok()?.violations.into_iter().next()?;
    // A seed may break more than one thing; the first is enough.
    let first = violation.split(';').next()?;
    Some(format!("gateway {first}"))
}

/// What `work` gives for each of `cases`, a few at a time, in their order.
fn in_parallel<C: Sync, T: Send>(cases: &[C], work: impl Fn(&C) -> T + Sync) -> Vec<T> {
    let next = Mutex::new(cases.iter().enumerate());
    let done = Mutex::new(BTreeMap::new());
    let take = || next.lock().ok()?.next();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((index, case)) = take() {
                    let result = work(case);
                    if let Ok(mut done) = done.lock() {
                        done.insert(index, result);
                    }
                }
            });
        }
    });
    done.into_inner()
        .unwrap_or_default()
        .into_values()
        .collect()
}

/// The bugs, as `docs/reliability.md` shows them.
pub fn table() -> String {
    let mut table = String::from("| bug | what it does | caught by |\n|---|---|---|\n");
    for &bug in Bug::ALL {
        let hunters = hunters(bug);
        let by: Vec<_> = hunters
            .iter()
            .map(|hunter| match *hunter {
                Hunter {
                    program: Program::Model | Program::Sim | Program::Campaign,
                    ..
                } => hunter.to_string(),
                _ => format!("`{hunter}`"),
            })
            .collect();
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| `{}` | {} | {} |",
            bug.name(),
            bug.what(),
            by.join(", ")
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::{PART, gateway_seed_in, in_parallel, seed_in, table};
    use crate::page;

    #[test]
    fn the_page_shows_every_planted_bug() {
        let page = page::read().unwrap();
        let written = PART.within(&page, &table()).unwrap();
        assert!(page == written, "run `cargo xtask campaign --docs`");
    }

    #[test]
    fn the_seed_and_what_it_broke_are_found() {
        let output = "thread 'x' panicked at a.rs:1:\nI8: it was written\n\
                      thread 'y' panicked at b.rs:1:\nseed 7 over redis breaks a guarantee; it ends so";
        let found = seed_in(output);
        assert_eq!(
            found.as_deref(),
            Some("seed 7 over redis: I8: it was written")
        );
        assert_eq!(
            seed_in("thread 'x' panicked at a.rs:1:\nno such store"),
            None
        );
    }

    #[test]
    fn a_seed_of_the_gateway_and_its_first_breach_are_found() {
        let output = "a line of its log\n\
                      {\"to\":22,\"counts\":{},\"violations\":[\"seed 21: I1: twice; I10: released\"]}\n\
                      test result: FAILED. 0 passed; 1 failed";
        let found = gateway_seed_in(output);
        assert_eq!(found.as_deref(), Some("gateway seed 21: I1: twice"));
        let fine = "{\"to\":22,\"counts\":{},\"violations\":[]}\ntest result: FAILED";
        assert_eq!(gateway_seed_in(fine), None);
    }

    #[test]
    fn results_come_in_the_order_of_their_cases() {
        let cases: Vec<u64> = (0..50).collect();
        assert_eq!(
            in_parallel(&cases, |case| case * 2),
            cases.iter().map(|c| c * 2).collect::<Vec<_>>()
        );
    }
}
