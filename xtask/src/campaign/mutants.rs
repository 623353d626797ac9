//! Mutants of the protocol and of the engine: each is the code with one thing changed, and the crate's own
//! tests are to fail on it. `.cargo/mutants.toml` says what is left out, and why.
//!
//! It needs `cargo install cargo-mutants --locked`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::figures::Figures;
use super::{Batch, Campaign, Done, Ended};
use crate::command::{cargo, each_line, root, target_dir};

/// The campaign.
pub const CAMPAIGN: Campaign = Campaign {
    name: "mutants",
    about: "the protocol and the engine with one thing changed: a test of the crate must fail",
    targets: &[],
    runs_gateway: false,
    batch,
};

/// A package whose code is changed.
struct Part {
    package: &'static str,
    /// In how many batches; each takes a few minutes.
    shards: u64,
    /// The seeds that a test of this package takes, enough for a mutant: more of them are a campaign of their own.
    seeds: &'static str,
    /// What `cargo test` is told, to build and to run.
    tests: &'static [&'static str],
}

/// All of them: a round has as many positions as they have shards together.
const PARTS: [Part; 2] = [
    Part {
        package: "onlyonce-core",
        shards: 6,
        seeds: "300",
        tests: &[],
    },
    Part {
        package: "onlyonce-engine",
        shards: 15,
        seeds: "60",
        // Without loom, which takes half a minute for each.
        tests: &["--lib", "--test=engine"],
    },
];

/// How many tests run at once: they wait more than they compute.
const THREADS: &str = "16";

/// So many times as long as without a change may the tests take, and at least so many seconds, before they are taken for
/// stuck.
const PATIENCE: &str = "6";
const LEAST_SECONDS: &str = "10";

/// A folder in memory, where there is one: tests of the embedded store sync as often as they write, and no mutant is
/// about that.
const IN_MEMORY: &str = "/dev/shm";

/// One shard.
fn batch(batch: &Batch<'_>) -> Result<Ended> {
    let (part, shard) = part_of(batch.from);
    println!(
        "   shard {} of {} of {}",
        shard + 1,
        part.shards,
        part.package
    );
    let out = target_dir().join("mutants-found");
    let _ = fs::remove_dir_all(&out);
    fs::create_dir_all(&out)?;
    let mut command = cargo();
    command
        .current_dir(root())
        .env("CARGO_TARGET_DIR", target_dir().join("mutants"))
        .env("ONLYONCE_SEEDS", part.seeds)
        .env("RUST_TEST_THREADS", THREADS)
        .args(["mutants", "--package", part.package])
        .args(["--shard", &format!("{shard}/{}", part.shards)])
        // How long the tests take where nothing is changed is measured first, beside whatever else runs.
        .args(["--timeout-multiplier", PATIENCE])
        .args(["--minimum-test-timeout", LEAST_SECONDS, "--colors", "never"])
        .arg("--output")
        .arg(&out);
    for test in part.tests {
        command.arg(format!("--cargo-arg={test}"));
    }
    if Path::new(IN_MEMORY).is_dir() {
        command.env("TMPDIR", IN_MEMORY);
    }
    // It fails where a mutant was missed, which is counted.
    each_line(&mut command, |line| println!("   {line}"))?;
    let outcomes = out.join("mutants.out/outcomes.json");
    let Ok(outcomes) = fs::read(outcomes) else {
        bail!("cargo mutants did not run: `cargo install cargo-mutants --locked`");
    };
    Ok(Ended::Done(Done {
        to: batch.from + 1,
        figures: figures(&serde_json::from_slice(&outcomes)?)?,
        remarks: missed(&fs::read_to_string(out.join("mutants.out/missed.txt"))?),
        part: Some(format!("{} {} of {}", part.package, shard + 1, part.shards)),
        ..Done::default()
    }))
}

fn part_of(position: u64) -> (&'static Part, u64) {
    let all: u64 = PARTS.iter().map(|part| part.shards).sum();
    let mut shard = position.saturating_sub(1) % all;
    for part in &PARTS {
        if shard < part.shards {
            return (part, shard);
        }
        shard -= part.shards;
    }
    unreachable!("a position is less than all shards")
}

/// The mutants that no test has caught, a line each: `crates/core/src/key.rs:12:5: replace f with ()`. Where in the
/// file is left out, which the next change moves.
fn missed(lines: &str) -> Vec<String> {
    let name = |line: &str| {
        let (place, what) = line.split_once(": ")?;
        let file = place.split(':').next()?;
        Some(format!("{file}: {what}"))
    };
    lines.lines().filter_map(name).collect()
}

/// What became of the mutants.
fn figures(outcomes: &Value) -> Result<Figures> {
    let mut figures = Figures::default();
    for name in ["caught", "missed", "timeout", "unviable"] {
        let number = outcomes[name].as_u64();
        figures.add(
            name,
            number.context("cargo mutants did not say what it found")?,
        );
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{figures, missed, part_of};

    #[test]
    fn a_round_has_each_shard_once() {
        let shards: Vec<_> = (1..=21)
            .map(part_of)
            .map(|(part, shard)| (part.package, shard))
            .collect();
        assert_eq!(shards[0], ("onlyonce-core", 0));
        assert_eq!(shards[6], ("onlyonce-engine", 0));
        assert_eq!(shards[20], ("onlyonce-engine", 14));
        let (part, shard) = part_of(22);
        assert_eq!((part.package, shard), ("onlyonce-core", 0));
    }

    #[test]
    fn those_that_were_missed_are_named() {
        let lines = "crates/core/src/key.rs:12:5: replace f with ()\n\
                     crates/core/src/a.rs:7:30: replace < with <= in Key::is_long\n";
        assert_eq!(
            missed(lines),
            [
                "crates/core/src/key.rs: replace f with ()",
                "crates/core/src/a.rs: replace < with <= in Key::is_long"
            ]
        );
    }

    #[test]
    fn what_became_of_them_is_read() {
        let outcomes = json!({"caught": 37, "missed": 6, "timeout": 0, "unviable": 6});
        let figures = figures(&outcomes).unwrap();
        assert_eq!(
            figures.to_string(),
            "37 caught, 6 missed, 0 timeout, 6 unviable"
        );
    }
}
