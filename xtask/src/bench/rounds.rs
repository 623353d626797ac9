//! Rounds of runs of wrk: all programs in turns, so that each meets the machine as the others do.

use std::fmt::Write as _;

use anyhow::Result;

use super::Size;
use super::numbers::median;
use super::peers::Running;
use super::wrk::{self, Keys, Measured};

/// Connections at once.
pub const CONNECTIONS: u32 = 64;

/// Where nginx, to which all others are compared, stands among the peers.
pub const NGINX: usize = 0;

/// What takes the requests.
pub struct Peer {
    name: &'static str,
    /// Over which the connections are spread.
    urls: Vec<String>,
    keys: Keys,
    /// What runs for it alone, and ends with it.
    _programs: Vec<Running>,
}

impl Peer {
    /// One program of its own.
    pub fn new(name: &'static str, keys: Keys, program: Running) -> Self {
        Self::over(name, keys, vec![program.url()], vec![program])
    }

    /// Programs that take requests at these URLs; only `programs` end with it.
    pub fn over(name: &'static str, keys: Keys, urls: Vec<String>, programs: Vec<Running>) -> Self {
        Self {
            name,
            urls,
            keys,
            _programs: programs,
        }
    }
}

/// What every peer did in every round.
pub struct Rounds {
    names: Vec<&'static str>,
    rounds: Vec<Vec<Measured>>,
}

impl Rounds {
    /// Runs each peer in turn, after a round that warms all of them up.
    pub fn run(peers: &[Peer], size: &Size) -> Result<Self> {
        let finished = [Keys::One, Keys::Some];
        for peer in peers.iter().filter(|peer| finished.contains(&peer.keys)) {
            // In a crowd that leaves, peer 2 may keep the key locked and never finish it.
            wrk::run(&peer.urls, peer.keys, "finish", 1, 1)?;
        }
        round(peers, "warm", 2)?;
        let mut rounds = Vec::new();
        for number in 1..=size.pairs {
            let round = round(peers, &format!("round{number}"), size.seconds)?;
            for (peer, one) in peers.iter().zip(&round) {
                println!(
                    "   {number} of {}: {}: {:.0} requests/s, {:.2} of nginx, p50 {:.2} ms, p99 {:.2} ms",
                    size.pairs,
                    peer.name,
                    one.rate,
                    one.rate / round[NGINX].rate,
                    one.median,
                    one.p99
                );
            }
            rounds.push(round);
        }
        Ok(Self {
            names: peers.iter().map(|peer| peer.name).collect(),
            rounds,
        })
    }

    /// The rate of one peer to that of another, round by round.
    fn ratios(&self, peer: usize, to: usize) -> Vec<f64> {
        let ratio = |round: &Vec<Measured>| round[peer].rate / round[to].rate;
        self.rounds.iter().map(ratio).collect()
    }

    /// The median of the rate of one peer to that of another in the same round.
    pub fn ratio(&self, peer: usize, to: usize) -> f64 {
        median(&mut self.ratios(peer, to))
    }

    /// The median over the rounds of something of one peer.
    pub fn median(&self, peer: usize, what: impl Fn(&Measured) -> f64) -> f64 {
        let mut each: Vec<f64> = self.rounds.iter().map(|round| what(&round[peer])).collect();
        median(&mut each)
    }

    /// Appends a table: a line for each round, and one of medians.
    pub fn write(&self, text: &mut String, title: &str) -> Result<()> {
        write!(text, "\n### {title}\n\n| round |")?;
        for (index, name) in self.names.iter().enumerate() {
            write!(text, " {name} |")?;
            if index != NGINX {
                text.push_str(" ratio |");
            }
        }
        write!(text, "\n|---|{}\n", "---|".repeat(2 * self.names.len() - 1))?;
        for (number, round) in (1..).zip(&self.rounds) {
            write!(text, "| {number} |")?;
            for (index, one) in round.iter().enumerate() {
                let ratio = one.rate / round[NGINX].rate;
                write_cell(text, index, (one.rate, one.median, one.p99), ratio)?;
            }
            text.push('\n');
        }
        text.push_str("| median |");
        for index in 0..self.names.len() {
            let of = |what: fn(&Measured) -> f64| self.median(index, what);
            let medians = (of(|one| one.rate), of(|one| one.median), of(|one| one.p99));
            write_cell(text, index, medians, self.ratio(index, NGINX))?;
        }
        text.push('\n');
        Ok(())
    }
}

fn round(peers: &[Peer], name: &str, seconds: u64) -> Result<Vec<Measured>> {
    let run = |(index, peer): (usize, &Peer)| {
        // Two peers may share a store, where the new keys of one are not those of the other.
        let prefix = match peer.keys {
            Keys::New | Keys::Pairs => format!("{name}-{index}"),
            _ => "finish".to_string(),
        };
        wrk::run(&peer.urls, peer.keys, &prefix, CONNECTIONS, seconds)
    };
    peers.iter().enumerate().map(run).collect()
}

/// Rate, p50 and p99 of one peer, and its ratio to nginx.
fn write_cell(
    text: &mut String,
    index: usize,
    (rate, p50, p99): (f64, f64, f64),
    ratio: f64,
) -> Result<()> {
    write!(text, " {rate:.0} ({p50:.1}, {p99:.1}) |")?;
    if index != NGINX {
        write!(text, " {ratio:.3} |")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Measured, Rounds};

    fn rounds(rates: &[[f64; 2]]) -> Rounds {
        let run = |rate| Measured {
            requests: 1,
            rate,
            median: 1.0,
            p99: 2.0,
        };
        Rounds {
            names: vec!["nginx", "other"],
            rounds: rates.iter().map(|both| both.map(run).to_vec()).collect(),
        }
    }

    #[test]
    fn a_ratio_is_of_two_runs_of_one_round() {
        let rounds = rounds(&[[10.0, 5.0], [20.0, 5.0]]);
        assert_eq!(rounds.ratios(1, 0), [0.5, 0.25]);
    }

    #[test]
    fn the_table_ends_with_the_medians() {
        let mut text = String::new();
        let rounds = rounds(&[[10.0, 5.0], [20.0, 5.0], [30.0, 30.0]]);
        rounds.write(&mut text, "Title").unwrap();
        let last = text.lines().last();
        assert_eq!(
            last,
            Some("| median | 20 (1.0, 2.0) | 5 (1.0, 2.0) | 0.500 |")
        );
    }
}
