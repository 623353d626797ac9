//! The real binary, of whose calls to the system one after the other fails: each call that changes the data folder
//! during a small piece of work, from the first start to an orderly stop, once for each number.
//!
//! The piece crosses from one segment into the next, and its stop writes books, sums and catalogs. After a failed
//! write or sync of the log nothing may be sent any more (I12). Then the gateway is started again, with nothing
//! failing, and every key is sent again: what ran stays what it was, and nothing runs twice.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Batch, Campaign, Ended};
use crate::command::{quietly, target_dir};
use crate::faults::client::Client;
use crate::faults::gateway::{Misbehaved, Setup, Starting, is_refusal};
use crate::faults::judge::{Checked, Doubt, Judge, Known};
use crate::faults::load::{attempt, key_name};
use crate::faults::script::{Run, Script};
use crate::faults::upstream::lock;

/// The campaign.
pub const CAMPAIGN: Campaign = Campaign {
    name: "failing-calls",
    about: "every sync, write, open, rename, resize and removal of a small piece of work fails, one after the other",
    targets: &[],
    runs_gateway: true,
    batch,
};

/// Which call fails, how, and for how long.
#[derive(Clone, Copy, Debug)]
struct Fault {
    /// As `calls.c` names it.
    call: &'static str,
    /// The number of the error; 0 where a write is only too short.
    error: i32,
    /// Whether it fails from then on, or once.
    lasts: bool,
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// All that is tried.
const FAULTS: &[Fault] = &[
    once("sync", EIO),
    lasting("sync", EIO),
    once("write", EIO),
    lasting("write", EIO),
    once("write", ENOSPC),
    lasting("write", ENOSPC),
    once("write", 0),
    once("open", ENOSPC),
    lasting("open", ENOSPC),
    once("rename", EIO),
    lasting("rename", EIO),
    once("resize", ENOSPC),
    lasting("resize", ENOSPC),
    once("remove", EIO),
    lasting("remove", EIO),
];

const fn once(call: &'static str, error: i32) -> Fault {
    Fault {
        call,
        error,
        lasts: false,
    }
}

const fn lasting(call: &'static str, error: i32) -> Fault {
    Fault {
        call,
        error,
        lasts: true,
    }
}

/// Of the short one, each so many calls' one.
const STEP_SHORT: u64 = 12;

/// How many keys have a small answer, and how many a large one: together more than the first segment holds.
const KEYS: [usize; 2] = [8, 3];

/// How long a client waits for the next byte: the end of an answer that cannot be recorded is withheld.
const PATIENCE: Duration = Duration::from_millis(700);

/// One fault, at each call; or, if short, all of them at some.
fn batch(batch: &Batch<'_>) -> Result<Ended> {
    if cfg!(not(all(target_os = "linux", target_env = "gnu"))) {
        return Ok(Ended::Skipped("calls are caught in glibc only".to_owned()));
    }
    let kinds = FAULTS.len() as u64;
    let (seed, kind) = (1 + (batch.from - 1) / kinds, (batch.from - 1) % kinds);
    let mut sweep = Sweep::start(batch, seed)?;
    if batch.short {
        for (index, fault) in FAULTS.iter().enumerate() {
            // There is one file whose size is changed, and few are removed.
            let first = match fault.call {
                "resize" | "remove" => 1,
                _ => 1 + index as u64 % STEP_SHORT,
            };
            sweep.run(*fault, first, STEP_SHORT)?;
        }
    } else {
        sweep.run(FAULTS[kind as usize], 1, 1)?;
    }
    let mut done = sweep.judge.conclude()?;
    done.to = batch.from + 1;
    if done.violations.is_empty() {
        fs::remove_dir_all(&sweep.folder).context("cannot remove the campaign's folder")?;
    }
    Ok(Ended::Done(done))
}

struct Sweep {
    judge: Judge,
    folder: PathBuf,
    library: PathBuf,
    keys: Vec<String>,
}

impl Sweep {
    fn start(batch: &Batch<'_>, seed: u64) -> Result<Self> {
        let folder = target_dir().join(format!("failing-calls-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        Ok(Self {
            judge: Judge::new(&batch.gateway.path()?, seed, &folder)?,
            library: library(&folder)?,
            folder,
            keys: keys(seed),
        })
    }

    /// Lets the call of this number fail, and the one `step` further, until there is none of that number.
    fn run(&mut self, fault: Fault, first: u64, step: u64) -> Result<()> {
        let mut number = first;
        while self.case(fault, number)? && !self.judge.has_enough() {
            number += step;
        }
        Ok(())
    }

    /// The piece of work, with one call failing; says whether there was such a call.
    fn case(&mut self, fault: Fault, number: u64) -> Result<bool> {
        let data = self.folder.join("data");
        let notes = Notes(self.folder.join("notes"));
        let _ = fs::remove_dir_all(&data);
        let _ = fs::remove_file(&notes.0);
        let setup = Setup {
            environment: self.environment(fault, number, &data, &notes),
            server: "drain_timeout = \"500ms\"\n".to_owned(),
            ..self.judge.setup(data.clone())
        };
        let label = format!("{fault:?} at call {number}");
        let known = self.work(&setup, &notes, &label)?;
        let Some(place) = notes.first() else {
            return Ok(false);
        };
        for name in [
            "calls that failed".to_owned(),
            format!("calls that failed: {}", fault.call),
        ] {
            self.judge.figures.add(&name, 1);
        }
        let label = format!("{label}: {place}");
        let checked = self.judge.check(&known, &data, &label, Doubt::None)?;
        if !matches!(checked, Checked::Held(_)) {
            let kept = self.folder.join(format!("data-{}-{number}", fault.call));
            fs::rename(&data, &kept)?;
            println!("   {label}: the folder is in {}", kept.display());
        }
        Ok(true)
    }

    fn environment(
        &self,
        fault: Fault,
        number: u64,
        data: &Path,
        notes: &Notes,
    ) -> Vec<(String, String)> {
        let last = if fault.lasts { u64::MAX >> 1 } else { number };
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAIL_UNDER", data.display().to_string()),
            ("FAIL_CALL", fault.call.to_owned()),
            ("FAIL_FROM", number.to_string()),
            ("FAIL_TO", last.to_string()),
            ("FAIL_WITH", fault.error.to_string()),
            ("FAIL_NOTES", notes.0.display().to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// A start, every key twice by one client, and an orderly stop; whatever of it can be done.
    fn work(&mut self, setup: &Setup, notes: &Notes, label: &str) -> Result<Known> {
        let shared = self.judge.shared(&Known::default());
        lock(&shared.history).failing_disk = true;
        let upstream =
            |judge: &Judge, key: &String| judge.upstream().ledger().get(key).map(Vec::len);
        match Starting::spawn(setup)?.ready() {
            Ok(gateway) => {
                self.judge.point(&shared, &gateway);
                let mut client = Client::default();
                for key in self.keys.iter().chain(&self.keys) {
                    let was_broken = notes.log_is_broken();
                    let before = upstream(&self.judge, key);
                    attempt(&shared, &mut client, key, PATIENCE);
                    if was_broken && upstream(&self.judge, key) != before {
                        let what = format!("I12: {key} was sent after the log had failed; {label}");
                        self.judge.violated(&what);
                    }
                }
                // What cannot be written is tried for longer than we wait.
                match gateway.stop(STOP_LIMIT) {
                    Ok(()) => {}
                    Err(error) if error.is::<Misbehaved>() => {
                        self.judge.violated(&format!("{error:#}; {label}"));
                    }
                    Err(_) => self.judge.figures.add("stops that were cut short", 1),
                }
            }
            Err(error) if notes.first().is_some() && is_refusal(&error) => {
                self.judge.figures.add("starts refused", 1);
            }
            Err(error) => self.judge.violated(&format!("{error:#}; {label}")),
        }
        self.judge.upstream().wait_until_idle()?;
        Ok(Known {
            history: self.judge.take_history(&shared, label),
            ledger: self.judge.upstream().ledger(),
            next_key: 0,
        })
    }
}

/// How long an orderly stop may take.
const STOP_LIMIT: Duration = Duration::from_millis(1_500);

/// Keys whose executions take little time, some with an answer that fills a good part of a segment.
fn keys(seed: u64) -> Vec<String> {
    let mut left = KEYS;
    let mut keys = Vec::new();
    for number in 0.. {
        let key = key_name(seed, number);
        let script = Script::of_key(&key);
        let is_large =
            usize::from(matches!(script.run, Run::Answer { bytes, .. } if bytes > 400_000));
        if left[is_large] > 0 && script.delay < Duration::from_millis(3) {
            left[is_large] -= 1;
            keys.push(key);
        }
        if left == [0, 0] {
            break;
        }
    }
    keys
}

/// Which calls have failed so far, a line for each.
struct Notes(PathBuf);

impl Notes {
    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The first call and the name of its file.
    fn first(&self) -> Option<String> {
        let line = self.lines().into_iter().next()?;
        let (call, path) = line.split_once(' ')?;
        let file = Path::new(path).file_name()?.to_string_lossy();
        Some(format!("{call} of {file}"))
    }

    /// Whether a commit has failed. What makes the next segment ready is another thing: it is tried again.
    fn log_is_broken(&self) -> bool {
        let lines = self.lines();
        let commits = lines.iter().filter(|line| line.ends_with(".log"));
        commits
            .into_iter()
            .any(|line| line.starts_with("fdatasync "))
    }
}

/// `calls.c`, built.
fn library(folder: &Path) -> Result<PathBuf> {
    let (source, library) = (folder.join("calls.c"), folder.join("calls.so"));
    fs::write(&source, include_str!("calls.c"))?;
    quietly(
        "cc",
        Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .arg("-ldl"),
    )?;
    Ok(library)
}
