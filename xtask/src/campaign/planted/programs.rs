//! The test programs, built with the bugs in them, and what a run of one says.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use onlyonce_core::planted::{Bug, VARIABLE};

use super::hunters::{Hunter, Program};
use crate::campaign::program::{Tests, build_tests};
use crate::command::{headline, target_dir};
use crate::faults::gateway;

/// How long one run of a test may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where the programs are, and the folders that they are run in.
pub struct Programs {
    by_program: BTreeMap<Program, Tests>,
    /// The gateway with the bugs in it.
    gateway: PathBuf,
}

/// The seeds that the simulators run, as many in each batch.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    /// Which batch it is, from 0.
    pub batch: u64,
    /// How many of the model, over each kind of store.
    pub model: u64,
    /// How many of the gateway.
    pub gateway: u64,
}

impl Seeds {
    /// How many for `program`; none where it has no seeds.
    fn number(self, program: Program) -> Option<u64> {
        match program {
            Program::Model => Some(self.model),
            Program::Sim => Some(self.gateway),
            Program::Engine
            | Program::Crash
            | Program::Http
            | Program::Hostile
            | Program::Campaign => None,
        }
    }
}

/// What a run of some tests came to.
#[derive(Debug)]
pub struct Ran {
    /// The tests that passed.
    pub passed: u64,
    /// The tests that failed.
    pub failed: u64,
    /// All that it printed.
    pub output: String,
}

impl Programs {
    /// Builds them.
    pub fn build() -> Result<Self> {
        headline("building the tests with the planted bugs in them");
        let mut by_program = BTreeMap::new();
        // The unit tests come by themselves: asked for together, those of all packages would be built.
        let (tests, units): (Vec<Program>, Vec<Program>) = Program::TESTS
            .into_iter()
            .partition(|one| matches!(one.target(), Some((_, Some(_)))));
        for programs in [tests, units] {
            let wanted: Vec<_> = programs.iter().flat_map(|one| arguments(*one)).collect();
            for tests in build_tests(&wanted)? {
                if let Some(program) = programs.iter().find(|one| one.is_called(&tests.name)) {
                    by_program.insert(*program, tests);
                }
            }
        }
        for program in Program::TESTS {
            if !by_program.contains_key(&program) {
                bail!("cargo did not say where the tests {program:?} are");
            }
        }
        let gateway = put_aside()?;
        Ok(Self {
            by_program,
            gateway,
        })
    }

    /// Runs the tests of `hunters`, which are all of one program, with `bug` or with none.
    pub fn run(&self, hunters: &[Hunter], bug: Option<Bug>, seeds: Seeds) -> Result<Ran> {
        let first = hunters.first().context("no test to run")?;
        let program = first.program;
        if program == Program::Campaign {
            return self.run_campaign(first.test, bug);
        }
        let tests = self.by_program.get(&program).context("it was not built")?;
        let mut command = tests.command();
        command
            .env_remove(VARIABLE)
            .env("RUST_BACKTRACE", "0")
            .env("ONLYONCE_HOSTILE_PROGRAM", &self.gateway);
        if let Some(bug) = bug {
            command.env(VARIABLE, bug.name());
        }
        command.arg("--exact");
        command.args(hunters.iter().map(|hunter| hunter.test));
        if let Some(number) = seeds.number(program) {
            command
                .env("ONLYONCE_FROM", (seeds.batch * number).to_string())
                .env("ONLYONCE_SEEDS", number.to_string())
                .arg("--nocapture");
        }
        let (output, _) = output_of(&mut command)?;
        let (passed, failed) = counts(&output)
            .with_context(|| format!("{program:?} ended before its tests were over:\n{output}"))?;
        if passed + failed != hunters.len() as u64 {
            bail!(
                "{} tests of {program:?} were asked for, and {} ran",
                hunters.len(),
                passed + failed
            );
        }
        Ok(Ran {
            passed,
            failed,
            output,
        })
    }
}

impl Programs {
    /// Runs the short piece of a campaign, which counts as one test, and as none where it cannot be done here.
    fn run_campaign(&self, name: &str, bug: Option<Bug>) -> Result<Ran> {
        let mut command = Command::new(env::current_exe()?);
        command
            .env_remove(VARIABLE)
            .args(["campaign", name, "--short", "--binary"])
            .arg(&self.gateway);
        if let Some(bug) = bug {
            command.env(VARIABLE, bug.name());
        }
        let (output, succeeded) = output_of(&mut command)?;
        let failed = u64::from(output.contains("   VIOLATED "));
        if failed == 0 && !succeeded {
            bail!("{name} failed, and named no violation:\n{output}");
        }
        let passed = u64::from(failed == 0 && !output.contains("   SKIPPED: "));
        Ok(Ran {
            passed,
            failed,
            output,
        })
    }
}

/// Cargo leaves the binary that it built last where everybody looks for the gateway. That is to be the one
/// without bugs.
fn put_aside() -> Result<PathBuf> {
    let aside = target_dir().join("onlyonce-planted");
    let _ = fs::remove_file(&aside);
    fs::hard_link(target_dir().join("debug/onlyonce"), &aside)
        .with_context(|| format!("cannot link {}", aside.display()))?;
    gateway::binary(None, false)?;
    Ok(aside)
}

/// What `cargo test` is told to build it.
fn arguments(program: Program) -> Vec<String> {
    let Some((package, test)) = program.target() else {
        return Vec::new();
    };
    let features = format!("{package}/planted");
    let mut arguments = vec!["--package", package, "--features", &features];
    match test {
        Some(test) => arguments.extend(["--test", test]),
        None => arguments.push("--lib"),
    }
    arguments.into_iter().map(str::to_owned).collect()
}

/// Runs a program to its end: all that it printed, and whether it succeeded. One that does not end is killed.
fn output_of(command: &mut Command) -> Result<(String, bool)> {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let number = RUNS.fetch_add(1, Ordering::Relaxed);
    let file = target_dir().join(format!("planted-{}-{number}", std::process::id()));
    let out = File::create(&file)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let start = Instant::now();
    let ended = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status.success());
        }
        if start.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(5));
    };
    let output = String::from_utf8_lossy(&fs::read(&file)?).into_owned();
    fs::remove_file(&file)?;
    let succeeded = ended
        .with_context(|| format!("it did not end within {} s:\n{output}", PATIENCE.as_secs()))?;
    Ok((output, succeeded))
}

/// How many tests passed and failed, by the line that every program of tests ends with.
fn counts(output: &str) -> Option<(u64, u64)> {
    let line = output
        .lines()
        .find(|line| line.starts_with("test result: "))?;
    let before = |word: &str| -> Option<u64> {
        let text = line.split_once(word)?.0.trim_end();
        text.rsplit(' ').next()?.parse().ok()
    };
    Some((before(" passed;")?, before(" failed;")?))
}

#[cfg(test)]
mod tests {
    use super::counts;

    #[test]
    fn a_program_that_did_not_come_to_its_end_has_no_counts() {
        let ended =
            "test a ... FAILED\n\ntest result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured";
        assert_eq!(counts(ended), Some((2, 1)));
        assert_eq!(counts("error: could not compile"), None);
    }
}
