//! Stands in for `proxy/mod.rs` until that is there; says what `start.rs` calls.

use std::net::TcpListener;
use std::sync::Arc;

use onlyonce_store::Store;

use crate::config::Config;
use crate::failure::Failure;
use crate::shared::{Phases, Shared};

/// The threads that serve requests, each with a current-thread runtime of its own.
pub struct Workers;

impl Workers {
    /// Waits until all of them have ended. May be called again after it was dropped.
    pub async fn wait(&mut self) {}
}

/// Reads the files that the configuration names (certificates, keys, roots), and refuses those
/// that cannot be used.
pub fn check_files(config: &Config) -> Result<(), Failure> {
    let _ = config;
    Ok(())
}

/// Starts one worker for each of `listeners`. They serve until `phases` says otherwise.
pub fn run<S: Store>(
    shared: Arc<Shared<S>>,
    listeners: Vec<TcpListener>,
    phases: Phases,
) -> Result<Workers, Failure> {
    let _ = (shared, listeners, phases);
    Ok(Workers)
}
