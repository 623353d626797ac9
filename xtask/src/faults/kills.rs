//! `kill -9` at random moments under load, and what every key comes to after the last one.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::gateway::{Gateway, Setup, Starting};
use super::load::{Shared, settle};
use super::random::Random;
use crate::campaign::figures::Figures;

/// Gateways that are started and killed, one after the other on the same data.
pub struct Kills {
    random: Random,
    longest_life: Duration,
    /// Of the gateway that was started last, from 1.
    pub generation: u64,
    /// How many were killed.
    count: u64,
    /// Of those, the ones that were still starting.
    early: u64,
    /// The longest that one took to be ready.
    longest_start: Duration,
    /// How long the last start took.
    last_start: Duration,
}

impl Kills {
    /// None yet. Each is killed within `longest_life` of being ready.
    pub fn new(seed: u64, longest_life: Duration) -> Self {
        Self {
            random: Random::part(seed, u64::MAX),
            longest_life,
            generation: 0,
            count: 0,
            early: 0,
            longest_start: Duration::ZERO,
            last_start: Duration::from_millis(40),
        }
    }

    /// What was counted.
    pub fn figures(&self) -> Figures {
        let longest = u64::try_from(self.longest_start.as_millis()).unwrap_or(u64::MAX);
        Figures::from([
            ("kills", self.count),
            ("kills during a start", self.early),
            ("longest start in ms", longest),
        ])
    }

    /// Starts and kills until `is_over`, which is asked after each kill.
    pub fn until(
        &mut self,
        mut is_over: impl FnMut() -> bool,
        setup: &Setup,
        shared: &Shared,
    ) -> Result<()> {
        let start = Instant::now();
        let mut told = start;
        let longest = u64::try_from(self.longest_life.as_micros()).unwrap_or(u64::MAX);
        while !is_over() {
            self.generation += 1;
            if self.random.percent(15) {
                let starting = Starting::spawn(setup)?;
                // Anywhere in it: recovery is cut off as often as what comes before and after.
                let start = self.last_start.as_micros().max(1) as u64;
                thread::sleep(Duration::from_micros(self.random.below(start)));
                starting.kill()?;
                self.early += 1;
            } else {
                let gateway = Gateway::start(setup)?;
                self.last_start = gateway.start_up;
                self.longest_start = self.longest_start.max(gateway.start_up);
                shared.target.set(Some((gateway.address, self.generation)));
                // Most of them soon, so that there are many.
                let within = if self.random.percent(5) {
                    longest
                } else {
                    longest / 10
                };
                thread::sleep(Duration::from_micros(self.random.between(5_000, within)));
                let killed = gateway.kill();
                shared.target.set(None);
                killed?;
            }
            self.count += 1;
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                println!(
                    "   {} s: {} kills, {} keys",
                    start.elapsed().as_secs(),
                    self.count,
                    shared.next_key.load(Ordering::SeqCst)
                );
            }
        }
        Ok(())
    }
}

/// Sends every key until it has an outcome, and once more to another gateway, which is left running.
pub fn settle_twice(
    setup: &Setup,
    shared: &Shared,
    generation: u64,
    clients: u64,
) -> Result<Gateway> {
    println!("   checking every key after the last start");
    let last = Gateway::start(setup)?;
    shared.target.set(Some((last.address, generation + 1)));
    settle(shared, clients as usize);
    last.kill()?;
    println!("   and once more after another");
    let last = Gateway::start(setup)?;
    shared.target.set(Some((last.address, generation + 2)));
    settle(shared, clients as usize);
    Ok(last)
}
