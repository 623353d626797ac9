//! Mutants of the protocol and of the engine: each is the code with one thing changed, and the crate's own
//! tests are to fail on it. `.cargo/mutants.toml` says what is left out, and why.
//!
//! It needs `cargo install cargo-mutants --locked`.

use std::fs;

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
    /// In how many batches; each takes a few minutes at most.
    shards: u64,
    /// What `cargo test` is told.
    tests: &'static [&'static str],
}

/// All of them: a round has as many positions as they have shards together.
const PARTS: [Part; 2] = [
    Part {
        package: "onlyonce-core",
        shards: 6,
        tests: &[],
    },
    Part {
        package: "onlyonce-engine",
        shards: 60,
        // Without loom, which takes half a minute for each.
        tests: &["--", "--lib", "--test", "engine"],
    },
];

/// Enough seeds of the model for a mutant: more of them are a campaign of their own.
const SEEDS: &str = "300";

/// One shard.
fn batch(batch: &Batch<'_>) -> Result<Ended> {
    let (part, shard) = part_of(batch.from);
    let out = target_dir().join("mutants-found");
    let _ = fs::remove_dir_all(&out);
    fs::create_dir_all(&out)?;
    let mut command = cargo();
    command
        .current_dir(root())
        .env("CARGO_TARGET_DIR", target_dir().join("mutants"))
        .env("ONLYONCE_SEEDS", SEEDS)
        .args(["mutants", "--package", part.package])
        .args(["--shard", &format!("{shard}/{}", part.shards)])
        .args(["--baseline", "skip", "--timeout", "20", "--colors", "never"])
        .arg("--output")
        .arg(&out)
        .args(part.tests);
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
        let shards: Vec<_> = (1..=66)
            .map(part_of)
            .map(|(part, shard)| (part.package, shard))
            .collect();
        assert_eq!(shards[0], ("onlyonce-core", 0));
        assert_eq!(shards[6], ("onlyonce-engine", 0));
        assert_eq!(shards[65], ("onlyonce-engine", 59));
        let (part, shard) = part_of(67);
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
