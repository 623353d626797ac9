//! What a campaign that loads a gateway works with.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};

use super::figures::Figures;
use super::{Binary, Done};
use crate::command::target_dir;
use crate::faults::gateway::Setup;
use crate::faults::history::History;
use crate::faults::load::{Shared, Target};
use crate::faults::upstream::Upstream;

/// An upstream with its ledger, how the gateway is started before it, and what clients know.
pub struct Scene {
    /// Empty at first, and of this process alone.
    folder: PathBuf,
    pub upstream: Upstream,
    pub setup: Setup,
    pub shared: Shared,
}

impl Scene {
    /// The scene of a seed of the campaign `name`.
    pub fn new(name: &str, seed: u64, gateway: &Binary) -> Result<Self> {
        let folder = target_dir().join(format!("{name}-{}-{seed}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let upstream = Upstream::start()?;
        let mut history = History::default();
        history.answered = Some(upstream.answered());
        let setup = Setup {
            binary: gateway.path()?,
            config: folder.join("onlyonce.toml"),
            data: folder.join("data"),
            upstream: upstream.address(),
            server: String::new(),
            more: String::new(),
            environment: Vec::new(),
        };
        let shared = Shared {
            target: Target::default(),
            history: Arc::new(Mutex::new(history)),
            next_key: Arc::new(AtomicU64::new(0)),
            reach: u64::MAX,
            pause: Duration::ZERO,
            seed,
        };
        Ok(Self {
            folder,
            upstream,
            setup,
            shared,
        })
    }

    /// What this seed came to. The folder stays where something was violated.
    pub fn done(&self, figures: Figures, violations: Vec<String>) -> Result<Done> {
        if violations.is_empty() {
            fs::remove_dir_all(&self.folder).context("cannot remove the campaign's folder")?;
        }
        Ok(Done {
            to: self.shared.seed + 1,
            figures,
            violations,
            ..Done::default()
        })
    }
}
