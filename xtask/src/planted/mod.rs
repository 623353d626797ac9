//! `cargo xtask planted`: bugs are planted, one at a time, and the tests have to catch each.
//!
//! A test that cannot fail proves nothing. So each bug of [`Bug::ALL`] names the tests that must fail with it
//! (`hunters`); they run with the bug, and without any, where they must pass.

mod hunters;
mod programs;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail};
use onlyonce_core::planted::Bug;

use crate::args::Args;
use crate::command::headline;
use hunters::{Hunter, Program, SEEDS, hunters};
use programs::{Programs, Ran};

/// How many seeds of the model a bug may take, over each kind of store.
const SEEDS_A_STORE: u64 = 5_000;

/// How many run at the same time.
const AT_ONCE: usize = 2;

/// Runs the hunt that the command line asks for.
pub fn run(mut args: Args) -> Result<()> {
    let table = args.flag("--table");
    args.finish()?;
    if table {
        print!("{}", as_table());
        return Ok(());
    }
    hunt().map(drop)
}

/// Hunts every bug; gives their number, or an error where one was not caught.
pub fn hunt() -> Result<usize> {
    let programs = Programs::build()?;
    headline(&format!(
        "{} planted bugs, {SEEDS_A_STORE} seeds over each store",
        Bug::ALL.len()
    ));
    let start = Instant::now();
    control(&programs)?;
    let cases: Vec<(Bug, Hunter)> = Bug::ALL
        .iter()
        .flat_map(|&bug| hunters(bug).into_iter().map(move |hunter| (bug, hunter)))
        .collect();
    let verdicts = in_parallel(&cases, |&(bug, hunter)| {
        let ran = programs.run(&[hunter], Some(bug), SEEDS_A_STORE);
        Verdict::of(hunter, ran)
    });
    let mut escaped = BTreeSet::new();
    for ((bug, _), verdict) in cases.iter().zip(&verdicts) {
        let (how, text) = match verdict {
            Verdict::Caught(how) => ("caught", how),
            Verdict::Escaped(why) => ("ESCAPED", why),
        };
        println!("   {:<28} {how} by {text}", bug.name());
        if how == "ESCAPED" {
            escaped.insert(bug.name());
        }
    }
    let caught = Bug::ALL.len() - escaped.len();
    println!(
        "   {caught} of {} caught in {} s",
        Bug::ALL.len(),
        start.elapsed().as_secs()
    );
    if !escaped.is_empty() {
        bail!("not caught: {escaped:?}");
    }
    Ok(caught)
}

/// Without a bug, the same tests complain of nothing.
fn control(programs: &Programs) -> Result<()> {
    let mut by_program: BTreeMap<Program, BTreeSet<Hunter>> = BTreeMap::new();
    for hunter in Bug::ALL.iter().flat_map(|&bug| hunters(bug)) {
        by_program.entry(hunter.program).or_default().insert(hunter);
    }
    for (program, hunters) in by_program {
        let hunters: Vec<_> = hunters.into_iter().collect();
        let ran = programs.run(&hunters, None, SEEDS_A_STORE)?;
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
}

impl Verdict {
    fn of(hunter: Hunter, ran: Result<Ran>) -> Self {
        match ran {
            Err(error) => Self::Escaped(format!("{hunter}: {error:#}")),
            Ok(ran) if ran.failed == 0 => Self::Escaped(hunter.to_string()),
            Ok(ran) if hunter == SEEDS => Self::Caught(seed_in(&ran.output)),
            Ok(_) => Self::Caught(hunter.to_string()),
        }
    }
}

/// The seed that caught it, and what it says.
fn seed_in(output: &str) -> String {
    let mut lines = output.lines();
    let mut broken = "?";
    while let Some(line) = lines.next() {
        if !line.contains("panicked at") {
            continue;
        }
        let said = lines.next().unwrap_or_default();
        // It is run once more for its log, right before it is named.
        if let Some((seed, _)) = said.split_once(" breaks a guarantee") {
            return format!("{seed}: {broken}");
        }
        broken = said;
    }
    "the model, which named no seed".to_owned()
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
fn as_table() -> String {
    let mut table = String::from("| bug | what it does | caught by |\n|---|---|---|\n");
    for &bug in Bug::ALL {
        let hunters = hunters(bug);
        let by: Vec<_> = hunters
            .iter()
            .map(|hunter| match *hunter == SEEDS {
                true => hunter.to_string(),
                false => format!("`{hunter}`"),
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
    use super::{as_table, in_parallel, seed_in};
    use crate::command::root;

    #[test]
    fn the_page_shows_every_planted_bug() {
        let page = std::fs::read_to_string(root().join("docs/reliability.md")).unwrap();
        let table = as_table();
        assert!(
            page.contains(&table),
            "docs/reliability.md should hold this table (`cargo xtask planted --table`):\n{table}"
        );
    }

    #[test]
    fn the_seed_and_what_it_broke_are_found() {
        let output = "thread 'x' panicked at a.rs:1:\nI8: it was written\n\
                      thread 'y' panicked at b.rs:1:\nseed 7 over redis breaks a guarantee; it ends so";
        assert_eq!(seed_in(output), "seed 7 over redis: I8: it was written");
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
