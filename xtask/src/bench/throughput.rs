//! Requests a second over 64 connections, in turns with nginx and with the published peer.

use anyhow::Result;

use super::Size;
use super::peers::{Running, Stage, install_idempotent_proxy};
use super::report::{Section, Target};
use super::rounds::{CONNECTIONS, NGINX, Peer, Rounds};
use super::wrk::{self, Keys};

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

/// Where the gateway stands among the peers.
const ONLYONCE: usize = NGINX + 1;

/// Every kind of load, through every peer.
pub fn measure(stage: &Stage, size: &Size) -> Result<Section> {
    let mut targets = Vec::new();
    let mut figures = format!(
        "{CONNECTIONS} connections, wrk on {} threads, POST, answers of 1 KB of JSON; {} rounds of {} s for each\n\
         program, in turns, after one that warms up. Load, proxy and upstream share the cores. nginx passes\n\
         through. Onlyonce keeps every claim and every completion on disk before it counts;\n\
         idempotent-proxy-server 1.2.2 keeps nothing through a power cut, in its memory as in Redis, and\n\
         takes no request without a key. A cell is requests/s (p50, p99 in ms); a ratio is to nginx in the\n\
         same round.\n",
        wrk::threads(CONNECTIONS, 1),
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
        let rounds = Rounds::run(&peers, size)?;
        rounds.write(&mut figures, work.name)?;
        targets.push(Target::at_least(
            format!("{}, ratio to nginx, median", work.name),
            rounds.ratio(ONLYONCE, NGINX),
            work.least_ratio,
            "",
        ));
        if let Some(most) = work.most_p99 {
            targets.push(Target::at_most(
                format!("{}, p99, median", work.name),
                rounds.median(ONLYONCE, |one| one.p99),
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
        Peer::new("nginx", work.keys, stage.nginx()?),
        Peer::new("onlyonce", work.keys, stage.onlyonce("throughput")?),
    ];
    if with_peer_2 && work.keys != Keys::None {
        peers.push(peer_2("peer 2, memory", stage, work.keys, None)?);
        let redis = Some(stage.redis("peer-2-redis", &[])?);
        peers.push(peer_2("peer 2, Redis", stage, work.keys, redis)?);
    }
    Ok(peers)
}

/// The published peer; it names the upstream in the path.
fn peer_2(name: &'static str, stage: &Stage, keys: Keys, redis: Option<Running>) -> Result<Peer> {
    let program = stage.idempotent_proxy(redis.as_ref())?;
    let urls = vec![format!("{}URL_BENCH", program.url())];
    let programs = [Some(program), redis].into_iter().flatten().collect();
    Ok(Peer::over(name, keys, urls, programs))
}
