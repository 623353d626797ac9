//! The check of a data folder that something was done to: the gateway is started on it, and every key that was
//! ever sent is sent again.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};

use super::gateway::{Gateway, Setup, is_refusal};
use super::history::History;
use super::load::{Shared, Target, settle};
use super::upstream::{Ledger, Upstream, lock};
use crate::campaign::figures::Figures;
use crate::campaign::{Done, SHOWN};

/// How many clients send at once.
pub const CLIENTS: u64 = 12;

/// What is known at one moment: the clients' view and the upstream's.
#[derive(Clone, Default)]
pub struct Known {
    /// What the clients saw.
    pub history: History,
    /// What the upstream received.
    pub ledger: Ledger,
    /// The number of the next new key.
    pub next_key: u64,
}

/// What a check came to.
pub enum Checked {
    /// Nothing was violated, and this is known afterwards.
    Held(Known),
    /// The gateway refused to start, as it may on damaged bytes.
    Refused,
    /// Something was violated.
    Violated,
}

/// What a folder may hold besides what is known.
#[derive(Clone, Copy)]
pub enum Doubt<'a> {
    /// Nothing.
    None,
    /// Bytes of it were damaged.
    Rotten,
    /// It may be of a later moment: then what it recorded is among this.
    Later(&'a Ledger),
}

/// One upstream, and gateways before it.
pub struct Judge {
    binary: PathBuf,
    seed: u64,
    folder: PathBuf,
    upstream: Upstream,
    generation: u64,
    /// What was counted.
    pub figures: Figures,
    violations: Vec<String>,
}

impl Judge {
    /// A judge whose configuration and log are in `folder`.
    pub fn new(binary: &Path, seed: u64, folder: &Path) -> Result<Self> {
        Ok(Self {
            binary: binary.to_path_buf(),
            seed,
            folder: folder.to_path_buf(),
            upstream: Upstream::start()?,
            generation: 0,
            figures: Figures::default(),
            violations: Vec::new(),
        })
    }

    /// A gateway's configuration, on this data folder.
    pub fn setup(&self, data: PathBuf) -> Setup {
        Setup {
            binary: self.binary.clone(),
            config: self.folder.join("onlyonce.toml"),
            data,
            upstream: self.upstream.address(),
            server: String::new(),
            more: String::new(),
            environment: Vec::new(),
        }
    }

    /// Clients and upstream as they were at that moment.
    pub fn shared(&self, known: &Known) -> Shared {
        self.upstream.replace_ledger(known.ledger.clone());
        Shared {
            target: Target::default(),
            history: Arc::new(Mutex::new(known.history.clone())),
            next_key: Arc::new(AtomicU64::new(known.next_key)),
            reach: u64::MAX,
            pause: Duration::ZERO,
            seed: self.seed,
        }
    }

    /// Clients are told of a gateway.
    pub fn point(&mut self, shared: &Shared, gateway: &Gateway) {
        self.generation += 1;
        shared.target.set(Some((gateway.address, self.generation)));
    }

    /// The upstream.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Starts the gateway on a folder and sends every key again, twice.
    pub fn check(
        &mut self,
        known: &Known,
        data: &Path,
        label: &str,
        doubt: Doubt<'_>,
    ) -> Result<Checked> {
        let rotten = matches!(doubt, Doubt::Rotten);
        let setup = self.setup(data.to_path_buf());
        let shared = self.shared(known);
        lock(&shared.history).rotten = rotten;
        lock(&shared.history).failing_disk = false;
        let violations = self.violations.len();
        for _ in 0..2 {
            let gateway = match Gateway::start(&setup) {
                Ok(gateway) => gateway,
                Err(error) if rotten && is_refusal(&error) => return Ok(Checked::Refused),
                Err(error) => {
                    self.violated(&format!("{error:#}; {label}"));
                    return Ok(Checked::Violated);
                }
            };
            let start_up = u64::try_from(gateway.start_up.as_millis())?;
            self.figures.add("longest start in ms", start_up);
            self.point(&shared, &gateway);
            settle(&shared, CLIENTS as usize);
            if let Err(error) = gateway.kill() {
                self.violated(&format!("{error:#}; {label}"));
            }
        }
        self.upstream.wait_until_idle()?;

        let mut ledger = self.upstream.ledger();
        if let Doubt::Later(received) = doubt {
            lock(&shared.history).add_executions(received, &mut ledger);
        }
        lock(&shared.history).check_ledger(&ledger);
        let history = self.take_history(&shared, label);
        let (completed, unknown) = history.outcomes();
        for (name, number) in [
            ("keys", history.keys().len()),
            ("keys completed", completed),
            ("keys unknown", unknown),
        ] {
            self.figures.add(name, number as u64);
        }
        if self.violations.len() > violations {
            return Ok(Checked::Violated);
        }
        Ok(Checked::Held(Known {
            history,
            ledger,
            next_key: known.next_key,
        }))
    }

    /// Takes the history, and its violations to the others.
    pub fn take_history(&mut self, shared: &Shared, label: &str) -> History {
        let mut history = std::mem::take(&mut *lock(&shared.history));
        for violation in history.violations.drain(..) {
            self.violated(&format!("{violation}; {label}"));
        }
        history
    }

    /// Notes a violation.
    pub fn violated(&mut self, what: &str) {
        self.violations.push(format!("seed {}: {what}", self.seed));
    }

    /// Whether so much was violated that nothing more is learned.
    pub fn has_enough(&self) -> bool {
        self.violations.len() > SHOWN
    }

    /// What was counted and violated; an error if nothing was tested.
    pub fn conclude(self) -> Result<Done> {
        if self.figures.of("keys completed") == 0 && self.violations.is_empty() {
            bail!("no key was completed: nothing was tested");
        }
        Ok(Done {
            to: self.seed + 1,
            figures: self.figures,
            violations: self.violations,
            ..Done::default()
        })
    }
}
