//! What prices cost: `cargo run --release -p onlyonce-ledger --example prices`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use onlyonce_core::{Metered, Timestamp, Unit};
use onlyonce_ledger::prices::{Prices, Sale};

fn main() {
    let before = resident_kib();
    let start = Instant::now();
    let prices = Prices::vendored();
    println!("compiled in {:.1?}", start.elapsed());
    println!(
        "{} KiB more in memory",
        resident_kib().saturating_sub(before)
    );

    for (provider, model, tier) in [
        ("openai", "gpt-5", ""),
        ("openai", "gpt-5", "priority"),
        ("anthropic", "claude-sonnet-4-5", "standard"),
        ("openrouter", "z-ai/glm-4.6", ""),
        ("openai", "of-nobody", ""),
    ] {
        let mut metered = Metered {
            provider: provider.into(),
            model: model.into(),
            tier: tier.into(),
            usage: [
                (Unit::Input, 12_000),
                (Unit::Output, 800),
                (Unit::CacheRead, 9_000),
                (Unit::Reasoning, 300),
            ]
            .into_iter()
            .collect(),
            ..Metered::default()
        };
        let sale = Sale {
            tenant: "acme",
            seller: None,
            per_call: None,
            status: 200,
            at: Timestamp::from_millis(1_795_680_000_000),
        };
        let first = timed(1, || prices.price(black_box(&mut metered), &sale));
        let again = timed(1_000_000, || prices.price(black_box(&mut metered), &sale));
        let cost = metered
            .cost
            .map_or("no price".to_owned(), |cost| cost.amount.to_string());
        println!("{provider} {model} {tier}: {cost}; the first in {first:.1?}, then {again:.1?}");
    }
}

/// How long one of `times` takes.
fn timed(times: u32, mut run: impl FnMut()) -> Duration {
    let start = Instant::now();
    for _ in 0..times {
        run();
    }
    start.elapsed() / times
}

/// Memory of this process, where the system tells.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
