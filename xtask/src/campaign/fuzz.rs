//! LLVM's fuzzer on the targets of `onlyonce-fuzz`, for as long as it is let.
//!
//! What it has found to reach further is kept in `target/fuzz/corpus`, from which the next batch goes on.
//! The program is built with the coverage counters that rustc's own LLVM has, so any toolchain does, and a
//! C++ compiler for the fuzzer itself.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::figures::Figures;
use super::{Batch, Campaign, Done, Ended};
use crate::command::{cargo, each_line, root, target_dir};

/// One for each target.
pub const KEY: Campaign = campaign("fuzz-key", "keys of any bytes, quoted and bare", |batch| {
    run("key", batch)
});
/// See [`KEY`].
pub const FINGERPRINT: Campaign = campaign(
    "fuzz-fingerprint",
    "bodies of any bytes: fingerprints and canonical JSON",
    |batch| run("fingerprint", batch),
);
/// See [`KEY`].
pub const RECORDS: Campaign = campaign(
    "fuzz-records",
    "records and entries of any bytes",
    |batch| run("records", batch),
);
/// See [`KEY`].
pub const FILES: Campaign = campaign(
    "fuzz-files",
    "segments, catalogs and books of any bytes, and damaged ones",
    |batch| run("files", batch),
);
/// See [`KEY`].
pub const HTTP1: Campaign = campaign(
    "fuzz-http1",
    "connections of any bytes: the gate, hyper, and what is sent on",
    |batch| run("http1", batch),
);
/// See [`KEY`].
pub const HEADERS: Campaign = campaign(
    "fuzz-headers",
    "headers of any kind: what passes and what is replayed",
    |batch| run("headers", batch),
);
/// See [`KEY`].
pub const EVENTS: Campaign = campaign(
    "fuzz-events",
    "streams of any bytes, cut anywhere",
    |batch| run("events", batch),
);
/// See [`KEY`].
pub const CONFIG: Campaign = campaign("fuzz-config", "configurations of any text", |batch| {
    run("config", batch)
});

const fn campaign(
    name: &'static str,
    about: &'static str,
    batch: fn(&Batch<'_>) -> Result<Ended>,
) -> Campaign {
    Campaign {
        name,
        about,
        targets: &[(3_600, "core seconds")],
        runs_gateway: false,
        batch,
    }
}

/// How long a batch runs.
const LENGTH: Duration = Duration::from_secs(60);

/// The platform, so that what runs while building is not instrumented too.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// The counters that LLVM's fuzzer reads.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// One piece of `target`'s time; the position is the fuzzer's seed.
fn run(target: &str, batch: &Batch<'_>) -> Result<Ended> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Ok(Ended::Skipped(format!("it is built for {PLATFORM}")));
    }
    let folder = target_dir().join("fuzz");
    let program = build(&folder)?;
    let corpus = folder.join("corpus").join(target);
    let found = folder.join("found");
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&found)?;
    let words = folder.join(format!("{target}.words"));

    let before = children_time()?;
    let mut log = Log::default();
    let mut command = Command::new(program);
    command
        .env("ONLYONCE_FUZZ_TARGET", target)
        .env("ONLYONCE_FUZZ_SEEDS", &corpus)
        .env("ONLYONCE_FUZZ_WORDS", &words)
        .arg(&corpus)
        .args(["-max_len=8192", "-timeout=25", "-rss_limit_mb=2048"])
        .args(["-print_final_stats=1", "-verbosity=1"])
        .arg(format!("-dict={}", words.display()))
        .arg(format!("-seed={}", batch.from))
        .arg(format!("-artifact_prefix={}/{target}-", found.display()));
    match batch.short {
        true => command.arg("-runs=20000"),
        // Zero would be no limit.
        false => command.arg(format!(
            "-max_total_time={}",
            batch.at_most(LENGTH).as_secs().max(1)
        )),
    };
    // It speaks on standard error.
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "exec \"$@\" 2>&1", "sh"])
        .arg(command.get_program());
    shell.args(command.get_args());
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    let succeeded = each_line(&mut shell, |line| log.take(line))?;
    let spent = children_time()?.saturating_sub(before);

    let violations = match (succeeded, &log.artifact) {
        (true, _) => Vec::new(),
        (false, Some(artifact)) => {
            let artifact = artifact.rsplit('/').next().unwrap_or(artifact);
            vec![format!(
                "{target}: target/fuzz/found/{artifact}: {}",
                log.why
            )]
        }
        (false, None) => bail!("the fuzzer of {target} failed: {}", log.why),
    };
    Ok(Ended::Done(Done {
        to: batch.from + 1,
        figures: Figures::from([
            ("core seconds", spent.as_secs()),
            ("executions", log.executions),
            ("most coverage features", log.features),
        ]),
        violations,
        ..Done::default()
    }))
}

/// Builds the program, and says where it is.
fn build(folder: &std::path::Path) -> Result<PathBuf> {
    let mut command = cargo();
    command
        .current_dir(root())
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "onlyonce-fuzz",
        ])
        .args(["--features", "libfuzzer", "--target", PLATFORM])
        .arg("--target-dir")
        .arg(folder)
        .env("RUSTFLAGS", COVERAGE)
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
    if !command.status()?.success() {
        bail!("onlyonce-fuzz could not be built with LLVM's fuzzer; it needs a C++ compiler");
    }
    Ok(folder.join(PLATFORM).join("release/onlyonce-fuzz"))
}

/// What the fuzzer printed, as far as it is wanted.
#[derive(Debug, Default, PartialEq)]
struct Log {
    executions: u64,
    features: u64,
    artifact: Option<String>,
    /// What did not hold.
    why: String,
}

impl Log {
    fn take(&mut self, line: &str) {
        let after = |what: &str| Some(line.split_once(what)?.1.trim());
        if let Some(number) = after("stat::number_of_executed_units:") {
            self.executions = number.parse().unwrap_or_default();
        }
        if let Some(number) = after(" ft: ").and_then(|rest| rest.split(' ').next()) {
            self.features = self.features.max(number.parse().unwrap_or_default());
        }
        if let Some(path) = after("Test unit written to ") {
            self.artifact = Some(path.to_owned());
        }
        let is_reason = line.contains("panicked at") || line.contains("ERROR: libFuzzer");
        let follows = self.why.ends_with(':');
        if self.artifact.is_none() && (is_reason && self.why.is_empty() || follows) {
            self.why = format!("{} {}", self.why, line.trim()).trim().to_owned();
        }
    }
}

/// The processor time of all children that have ended, and of theirs.
fn children_time() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name in parentheses may hold anything (proc(5)).
    let (_, after) = stat.rsplit_once(')').context("/proc/self/stat")?;
    let ticks = after.split_whitespace().skip(13).take(2);
    let ticks: u64 = ticks.filter_map(|number| number.parse::<u64>().ok()).sum();
    // Linux counts a hundredth of a second, whatever the kernel's own clock does.
    Ok(Duration::from_millis(ticks * 10))
}

#[cfg(test)]
mod tests {
    use super::{Log, children_time};

    #[test]
    fn what_the_fuzzer_prints_is_read() {
        let mut log = Log::default();
        for line in [
            "#4096\tpulse  cov: 812 ft: 2311 corp: 133/4Kb lim: 80 exec/s: 2048 rss: 61Mb",
            "#8192\tNEW    cov: 820 ft: 2400 corp: 134/4Kb lim: 80 exec/s: 2048 rss: 61Mb L: 3/80",
            "thread '<unnamed>' panicked at crates/fuzz/src/targets/key.rs:50:5:",
            "assertion `left == right` failed: a plain string",
            "==7== ERROR: libFuzzer: deadly signal",
            "artifact_prefix='x'; Test unit written to target/fuzz/found/key-crash-1",
            "stat::number_of_executed_units: 9001",
        ] {
            log.take(line);
        }
        assert_eq!(
            log,
            Log {
                executions: 9_001,
                features: 2_400,
                artifact: Some("target/fuzz/found/key-crash-1".to_owned()),
                why: "thread '<unnamed>' panicked at crates/fuzz/src/targets/key.rs:50:5: \
                      assertion `left == right` failed: a plain string"
                    .to_owned(),
            }
        );
    }

    #[test]
    fn the_time_of_children_is_told() {
        children_time().unwrap();
    }
}
