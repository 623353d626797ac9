//! One run of wrk.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{quietly, root};

/// Which key the requests carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// None.
    None,
    /// Every request a new one.
    New,
    /// All the same one.
    One,
}

/// What a run measured.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// How many requests were answered.
    pub requests: u64,
    /// Requests a second.
    pub rate: f64,
    /// Median latency, in milliseconds.
    pub median: f64,
    /// The latency that 99 of 100 requests stay below, in milliseconds.
    pub p99: f64,
}

/// How many threads wrk uses for so many connections.
pub fn threads(connections: u32) -> u32 {
    connections.min(2)
}

/// Runs wrk against a URL for some seconds; `prefix` makes the keys differ between runs.
///
/// New keys are `PREFIX-T-N`: the Nth request of thread T, both from 1. wrk makes the first request
/// of one thread only to look at it.
pub fn run(
    url: &str,
    keys: Keys,
    prefix: &str,
    connections: u32,
    seconds: u64,
) -> Result<Measured> {
    let mode = match keys {
        Keys::None => "none",
        Keys::New => "new",
        Keys::One => "one",
    };
    let mut command = Command::new("wrk");
    command
        .args([
            &format!("-t{}", threads(connections)),
            &format!("-c{connections}"),
            &format!("-d{seconds}s"),
            "--timeout",
            "10s",
        ])
        .arg("-s")
        .arg(root().join("bench/keys.lua"))
        .args([url, "--", mode, prefix]);
    let output = quietly("wrk", &mut command)?;
    let line = output
        .lines()
        .find_map(|line| line.strip_prefix("RESULT "))
        .context("no result")?;
    let numbers: Vec<f64> = line
        .split(' ')
        .filter_map(|number| number.parse().ok())
        .collect();
    let [requests, micros, broken, refused, median, p99] = numbers[..] else {
        bail!("wrk said: {line}");
    };
    if broken + refused > 0.0 {
        bail!("{url}: {broken} requests broke off, {refused} were answered with an error");
    }
    if requests == 0.0 {
        bail!("{url} answered nothing in {seconds} s");
    }
    Ok(Measured {
        requests: requests as u64,
        rate: requests / (micros / 1e6),
        median: median / 1e3,
        p99: p99 / 1e3,
    })
}
