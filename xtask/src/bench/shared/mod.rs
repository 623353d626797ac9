//! Stores that gateways share: throughput of one to three gateways, what one operation costs, and
//! joining on another gateway.

mod costs;
mod joins;
pub mod server;

use std::fmt::Write as _;

use anyhow::{Context, Result};

use super::Size;
use super::peers::{Running, Stage};
use super::report::{Section, Target};
use super::rounds::{CONNECTIONS, NGINX, Peer, Rounds};
use super::wrk::Keys;
use server::{Engine, Server};

/// How many gateways share a store at most.
const GATEWAYS: usize = 3;

/// The first byte on another gateway, p99, in milliseconds.
const MOST_FIRST_BYTE: f64 = 50.0;

/// What has to be reached on an engine, as requests a second for each one of nginx.
struct Least {
    engine: Engine,
    new_keys: f64,
    replay: f64,
}

const ENGINES: &[Least] = &[
    Least {
        engine: Engine::Postgres,
        new_keys: 0.15,
        replay: 0.25,
    },
    Least {
        engine: Engine::Redis,
        new_keys: 0.25,
        replay: 0.35,
    },
];

/// The embedded store's target for the same: a warm replay does not ask the shared store.
const LEAST_WARM: f64 = 1.05;

/// A gateway that keeps no recording in memory.
const NO_CACHE: &str = "cache_bytes = 0\n";

/// A long bench makes more records than one caller may hold unless it is said.
const LIMITS: &str = "\n[limits]\ntenant_records = 100000000\n";

/// Both engines, one after the other.
pub fn measure(stage: &Stage, size: &Size) -> Result<Section> {
    let mut targets = Vec::new();
    let mut figures = format!(
        "{CONNECTIONS} connections, wrk, POST, answers of 1 KB of JSON; {} rounds of {} s for each program, in\n\
         turns, after one that warms up. Load, gateways, the store's server and the upstream share the\n\
         cores. Both servers start empty and are as they are installed, but for where they listen and, in\n\
         Redis, `appendonly yes`, `appendfsync always` and no snapshots: every claim and every completion is\n\
         on disk before it counts. nginx passes through. A cell is requests/s (p50, p99 in ms); a ratio is to\n\
         nginx in the same round. Three gateways get 21 connections each. \"Asks the store\" is a gateway with\n\
         `store.cache_bytes = 0`, \"warm\" one that has the recording in its cache.\n",
        size.pairs, size.seconds
    );
    let mut held = String::new();
    let mut costs = vec![costs::embedded(stage, size)?];
    for least in ENGINES {
        let engine = least.engine;
        println!("   {}: costs", engine.name());
        costs.extend(costs::of(stage, size, engine, &mut held)?);
        let set = Set::start(stage, engine)?;
        writeln!(figures, "\n{}.", set.server.described()?)?;
        set.throughput(stage, size, least, &mut targets, &mut figures)?;
        set.joins(&mut targets, &mut figures)?;
    }
    costs::write(&mut figures, &costs, &held)?;
    Ok(Section { targets, figures })
}

/// A server, and the gateways that share the store on it. The gateways end first.
struct Set {
    gateways: Vec<Running>,
    without_cache: Running,
    server: Server,
}

impl Set {
    fn start(stage: &Stage, engine: Engine) -> Result<Self> {
        let server = Server::start(stage, engine, "shared")?;
        let gateways = (1..=GATEWAYS).map(|number| {
            let name = format!("{}-{number}", engine.name());
            gateway(stage, &server, &name, "")
        });
        Ok(Self {
            gateways: gateways.collect::<Result<_>>()?,
            without_cache: gateway(stage, &server, "without-cache", NO_CACHE)?,
            server,
        })
    }

    /// New keys and replays.
    fn throughput(
        &self,
        stage: &Stage,
        size: &Size,
        least: &Least,
        targets: &mut Vec<Target>,
        figures: &mut String,
    ) -> Result<()> {
        const ONE: usize = NGINX + 1;
        let name = self.server.engine.name();
        println!("   {name}: new keys");
        let new = self.new_keys(stage)?;
        let new = Rounds::run(&new, size)?;
        new.write(figures, &format!("{name}: every request a new key"))?;
        writeln!(
            figures,
            "\nTo one gateway: two have {:.2} of its throughput, three have {:.2}.",
            new.ratio(ONE + 1, ONE),
            new.ratio(ONE + 2, ONE)
        )?;
        targets.push(Target::at_least(
            format!("{name}, every request a new key, ratio to nginx, median"),
            new.ratio(ONE, NGINX),
            least.new_keys,
            "",
        ));
        if self.server.engine == Engine::Redis {
            self.synced_each_second(stage, size, least, targets, figures)?;
        }

        println!("   {name}: replays");
        const EMBEDDED: usize = NGINX + 1;
        const WARM: usize = NGINX + 2;
        let asks = [
            ("one key", NGINX + 3),
            ("4,000 keys, one after another", NGINX + 4),
        ];
        let replays = self.replays(stage)?;
        let replays = Rounds::run(&replays, size)?;
        replays.write(figures, &format!("{name}: every request a finished key"))?;
        writeln!(
            figures,
            "\nWarm, it has {:.2} of the throughput of the embedded store.",
            replays.ratio(WARM, EMBEDDED)
        )?;
        for (which, peer) in asks {
            targets.push(Target::at_least(
                format!("{name}, replay without a cache, {which}, ratio to nginx, median"),
                replays.ratio(peer, NGINX),
                least.replay,
                "",
            ));
        }
        targets.push(Target::at_least(
            format!("{name}, replay warm, ratio to nginx, median"),
            replays.ratio(WARM, NGINX),
            LEAST_WARM,
            "",
        ));
        Ok(())
    }

    /// New keys where Redis syncs its log each second, so that a crash of its machine may forget the
    /// last ones.
    fn synced_each_second(
        &self,
        stage: &Stage,
        size: &Size,
        least: &Least,
        targets: &mut Vec<Target>,
        figures: &mut String,
    ) -> Result<()> {
        println!("   Redis: new keys, synced each second");
        self.server.sync_log("everysec")?;
        let peers: Vec<Peer> = self.new_keys(stage)?.into_iter().take(2).collect();
        let rounds = Rounds::run(&peers, size)?;
        self.server.sync_log("always")?;
        rounds.write(
            figures,
            "Redis, `appendfsync everysec`: every request a new key",
        )?;
        targets.push(Target::at_least(
            "Redis, appendfsync everysec, every request a new key, ratio to nginx, median"
                .to_owned(),
            rounds.ratio(NGINX + 1, NGINX),
            least.new_keys,
            "",
        ));
        Ok(())
    }

    fn new_keys(&self, stage: &Stage) -> Result<Vec<Peer>> {
        let mut peers = vec![Peer::new("nginx", Keys::New, stage.nginx()?)];
        let names = ["1 gateway", "2 gateways", "3 gateways"];
        for (count, name) in (1..=GATEWAYS).zip(names) {
            let urls = self.gateways.iter().take(count).map(Running::url).collect();
            peers.push(Peer::over(name, Keys::New, urls, Vec::new()));
        }
        Ok(peers)
    }

    fn replays(&self, stage: &Stage) -> Result<Vec<Peer>> {
        let warm = self.gateways.first().context("no gateway")?.url();
        let asks = self.without_cache.url();
        let embedded = stage.onlyonce("shared-embedded")?;
        let on_the_store = |name, keys, url| Peer::over(name, keys, vec![url], Vec::new());
        Ok(vec![
            Peer::new("nginx", Keys::One, stage.nginx()?),
            Peer::new("embedded, warm", Keys::One, embedded),
            on_the_store("warm", Keys::One, warm),
            on_the_store("asks the store", Keys::One, asks.clone()),
            on_the_store("asks the store, 4,000 keys", Keys::Some, asks),
        ])
    }

    /// Joins of streams that run on one gateway by callers of another.
    fn joins(&self, targets: &mut Vec<Target>, figures: &mut String) -> Result<()> {
        let name = self.server.engine.name();
        println!("   {name}: joins");
        let [from, to, ..] = &self.gateways[..] else {
            anyhow::bail!("a join needs two gateways");
        };
        let joined = joins::measure(from.address, to.address)?;
        targets.push(Target::at_most(
            format!("{name}, first byte of a stream that runs on another gateway, p99"),
            joined.first_byte_p99,
            MOST_FIRST_BYTE,
            "ms",
        ));
        targets.push(Target::at_least(
            format!("{name}, joiners that had a byte while the stream ran"),
            joined.in_time as f64,
            joins::JOINS as f64,
            "",
        ));
        writeln!(
            figures,
            "\n### {name}: joining on another gateway\n\n{joined}"
        )?;
        Ok(())
    }
}

/// A gateway on the store of a server.
fn gateway(stage: &Stage, server: &Server, name: &str, store: &str) -> Result<Running> {
    stage.onlyonce_on(name, &server.url(), &format!("{store}{LIMITS}"), "")
}
