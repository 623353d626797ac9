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
    /// Some thousands, one after another and again from the first.
    Some,
    /// Workers that begin operations with new keys and complete them; such a pair counts as one request.
    Pairs,
}

/// The control token that such workers present.
pub const TOKEN: &str = "the-token-of-the-bench-long-enough";

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

/// How many threads wrk uses for so many connections to so many gateways: one thread speaks to one
/// gateway, so they spread evenly.
pub fn threads(connections: u32, gateways: usize) -> u32 {
    connections.min(u32::try_from(gateways).unwrap_or(u32::MAX).max(2))
}

/// Runs wrk against some URLs, alike but for their addresses, for some seconds; `prefix` makes the
/// keys differ between runs.
///
/// New keys are `PREFIX-T-N`: the Nth request of thread T, both from 1. wrk makes the first request
/// of one thread only to look at it.
pub fn run(
    urls: &[String],
    keys: Keys,
    prefix: &str,
    connections: u32,
    seconds: u64,
) -> Result<Measured> {
    run_of(urls, keys, prefix, connections, seconds, 0)
}

/// The same of so many callers in turn, each with a credential of its own.
pub fn run_of(
    urls: &[String],
    keys: Keys,
    prefix: &str,
    connections: u32,
    seconds: u64,
    callers: u32,
) -> Result<Measured> {
    let (script, words): (_, &[&str]) = match keys {
        Keys::None => ("keys.lua", &["none", prefix]),
        Keys::New => ("keys.lua", &["new", prefix]),
        Keys::One => ("keys.lua", &["one", prefix]),
        Keys::Some => ("keys.lua", &["some", prefix]),
        Keys::Pairs => ("work.lua", &[prefix]),
    };
    let url = urls.first().context("nowhere to send requests to")?;
    let mut command = Command::new("wrk");
    command
        .args([
            &format!("-t{}", threads(connections, urls.len())),
            &format!("-c{connections}"),
            &format!("-d{seconds}s"),
            "--timeout",
            "10s",
        ])
        .arg("-s")
        .arg(root().join("bench").join(script))
        .args([url, "--"])
        .args(words)
        .env("TOKEN", TOKEN)
        .env("ADDRESSES", addresses(urls))
        .env("CALLERS", callers.to_string());
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

/// What wrk connects to, as `keys.lua` reads it.
fn addresses(urls: &[String]) -> String {
    let address = |url: &String| url.split('/').nth(2).unwrap_or_default().to_string();
    urls.iter().map(address).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::{addresses, threads};

    #[test]
    fn every_gateway_has_a_thread() {
        assert_eq!([1, 2, 3].map(|gateways| threads(64, gateways)), [2, 2, 3]);
        assert_eq!(threads(1, 1), 1);
        let urls = ["http://127.0.0.1:1/", "http://127.0.0.1:2/path"].map(String::from);
        assert_eq!(addresses(&urls), "127.0.0.1:1 127.0.0.1:2");
    }
}
