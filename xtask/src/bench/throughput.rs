//! Requests a second over 64 connections, in turns with nginx and with the published peer.

use std::fmt::Write as _;

use anyhow::Result;

use super::Size;
use super::numbers::median;
use super::peers::{Running, Stage, install_idempotent_proxy};
use super::report::{Section, Target};
use super::wrk::{self, Keys, Measured};

/// Connections at once.
const CONNECTIONS: u32 = 64;

/// One kind of load.
struct Work {
    name: &'static str,
    keys: Keys,
    /// Requests a second, for each one of nginx.
    least_ratio: f64,
    /// Milliseconds.
    most_p99: Option<f64>,
}

const WORKS: &[Work] = &[
    Work {
        name: "No key",
        keys: Keys::None,
        least_ratio: 0.80,
        most_p99: None,
    },
    Work {
        name: "Every request a new key",
        keys: Keys::New,
        least_ratio: 0.42,
        most_p99: Some(15.0),
    },
    Work {
        name: "Every request a finished key",
        keys: Keys::One,
        least_ratio: 1.05,
        most_p99: None,
    },
];

/// What takes the requests.
struct Peer {
    name: &'static str,
    program: Running,
    path: &'static str,
    /// A program that it needs, for as long as it runs.
    _redis: Option<Running>,
}

impl Peer {
    fn new(name: &'static str, program: Running) -> Self {
        Self {
            name,
            program,
            path: "/",
            _redis: None,
        }
    }

    /// Peer 2 names the upstream in the path.
    fn published(name: &'static str, stage: &Stage, redis: Option<Running>) -> Result<Self> {
        Ok(Self {
            name,
            program: stage.idempotent_proxy(redis.as_ref())?,
            path: "/URL_BENCH",
            _redis: redis,
        })
    }
}

/// Where nginx, to which all others are compared, stands among the peers; the gateway follows.
const NGINX: usize = 0;
const ONLYONCE: usize = 1;

/// Every kind of load, through every peer.
pub fn measure(stage: &Stage, size: &Size) -> Result<Section> {
    let mut targets = Vec::new();
    let mut figures = format!(
        "{CONNECTIONS} connections, wrk on {} threads, POST, answers of 1 KB of JSON; {} rounds of {} s for each\n\
         program, in turns, after one that warms up. Load, proxy and upstream share the cores. nginx passes\n\
         through. Onlyonce keeps every claim and every completion on disk before it counts;\n\
         idempotent-proxy-server 1.2.2 keeps nothing through a power cut, in its memory as in Redis, and\n\
         takes no request without a key. A cell is requests/s (p99 in ms); a ratio is to nginx in the same\n\
         round.\n",
        wrk::threads(CONNECTIONS),
        size.pairs,
        size.seconds
    );
    // The figures against nginx are worth having without it.
    let peer_2 = install_idempotent_proxy();
    if let Err(error) = &peer_2 {
        println!("   idempotent-proxy-server is left out: {error:#}");
        figures
            .push_str("\nidempotent-proxy-server could not be installed here, and is left out.\n");
    }
    for work in WORKS {
        println!("   {}", work.name);
        let peers = peers(stage, work, peer_2.is_ok())?;
        let rounds = rounds(&peers, work, size)?;
        write_rounds(&mut figures, work, &peers, &rounds)?;
        targets.push(Target::at_least(
            format!("{}, ratio to nginx, median", work.name),
            median(&mut ratios(&rounds, ONLYONCE)),
            work.least_ratio,
            "",
        ));
        if let Some(most) = work.most_p99 {
            targets.push(Target::at_most(
                format!("{}, p99, median", work.name),
                median(&mut each(&rounds, ONLYONCE, |one| one.p99)),
                most,
                "ms",
            ));
        }
    }
    Ok(Section { targets, figures })
}

/// Starts the programs, all of them empty.
fn peers(stage: &Stage, work: &Work, with_peer_2: bool) -> Result<Vec<Peer>> {
    let mut peers = vec![
        Peer::new("nginx", stage.nginx()?),
        Peer::new("onlyonce", stage.onlyonce("throughput")?),
    ];
    if with_peer_2 && work.keys != Keys::None {
        peers.push(Peer::published("peer 2, memory", stage, None)?);
        let redis = Some(stage.redis()?);
        peers.push(Peer::published("peer 2, Redis", stage, redis)?);
    }
    Ok(peers)
}

/// Runs each peer in turn, after a round that warms all of them up.
fn rounds(peers: &[Peer], work: &Work, size: &Size) -> Result<Vec<Vec<Measured>>> {
    if work.keys == Keys::One {
        // In a crowd that leaves, peer 2 may keep the key locked and never finish it.
        round(peers, work.keys, "finish", 1, 1)?;
    }
    round(peers, work.keys, "warm", CONNECTIONS, 1)?;
    let mut rounds = Vec::new();
    for number in 1..=size.pairs {
        let name = format!("round{number}");
        let round = round(peers, work.keys, &name, CONNECTIONS, size.seconds)?;
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
    Ok(rounds)
}

fn round(
    peers: &[Peer],
    keys: Keys,
    name: &str,
    connections: u32,
    seconds: u64,
) -> Result<Vec<Measured>> {
    let prefix = if keys == Keys::One { "one" } else { name };
    let run = |peer: &Peer| {
        let url = format!("http://{}{}", peer.program.address, peer.path);
        wrk::run(&url, keys, prefix, connections, seconds)
    };
    peers.iter().map(run).collect()
}

/// A table: a line for each round, and one of medians.
fn write_rounds(
    text: &mut String,
    work: &Work,
    peers: &[Peer],
    rounds: &[Vec<Measured>],
) -> Result<()> {
    write!(text, "\n### {}\n\n| round |", work.name)?;
    for (index, peer) in peers.iter().enumerate() {
        write!(text, " {} |", peer.name)?;
        if index != NGINX {
            text.push_str(" ratio |");
        }
    }
    write!(text, "\n|---|{}\n", "---|".repeat(2 * peers.len() - 1))?;
    for (number, round) in (1..).zip(rounds) {
        write!(text, "| {number} |")?;
        write_cells(text, round.iter().map(|one| (one.rate, one.p99)), |index| {
            round[index].rate / round[NGINX].rate
        })?;
    }
    text.push_str("| median |");
    let medians = (0..peers.len()).map(|index| {
        let rate = median(&mut each(rounds, index, |one| one.rate));
        (rate, median(&mut each(rounds, index, |one| one.p99)))
    });
    write_cells(text, medians, |index| median(&mut ratios(rounds, index)))
}

/// The rest of a line: rate and p99 of each peer, and its ratio to nginx.
fn write_cells(
    text: &mut String,
    cells: impl Iterator<Item = (f64, f64)>,
    ratio: impl Fn(usize) -> f64,
) -> Result<()> {
    for (index, (rate, p99)) in cells.enumerate() {
        write!(text, " {rate:.0} ({p99:.1}) |")?;
        if index != NGINX {
            write!(text, " {:.3} |", ratio(index))?;
        }
    }
    text.push('\n');
    Ok(())
}

/// Something of one peer, round by round.
fn each(rounds: &[Vec<Measured>], peer: usize, what: impl Fn(&Measured) -> f64) -> Vec<f64> {
    rounds.iter().map(|round| what(&round[peer])).collect()
}

/// The rate of one peer to that of nginx, round by round.
fn ratios(rounds: &[Vec<Measured>], peer: usize) -> Vec<f64> {
    let ratio = |round: &Vec<Measured>| round[peer].rate / round[NGINX].rate;
    rounds.iter().map(ratio).collect()
}

#[cfg(test)]
mod tests {
    use super::{Measured, ratios};

    #[test]
    fn a_ratio_is_of_two_runs_of_one_round() {
        let run = |rate| Measured {
            requests: 1,
            rate,
            median: 1.0,
            p99: 1.0,
        };
        let rounds = vec![vec![run(10.0), run(5.0)], vec![run(20.0), run(5.0)]];
        assert_eq!(ratios(&rounds, 1), [0.5, 0.25]);
    }
}
