//! One tenant floods; what another one sees of it.
//!
//! In each pair the other tenant calls an upstream that takes 20 ms, once alone and once beside ten times as many
//! calls of the flooding one: most of them beyond its quota, or all of them within the limits. Only the two of a pair are compared, so that
//! whatever else runs on the machine weighs on both.

use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use onlyonce_testkit::Upstream;

use super::figures::Figures;
use super::{Batch, Campaign, Done, Ended};
use crate::bench::numbers::{median, percentile};
use crate::command::target_dir;
use crate::faults::client::{read_body, read_head};
use crate::faults::gateway::{Gateway, STOP_LIMIT, Setup};

/// The campaign.
pub const CAMPAIGN: Campaign = Campaign {
    name: "flood",
    about: "a tenant's flood leaves another one's p99 within twice what it is without, pair by pair",
    targets: &[],
    runs_gateway: true,
    batch,
};

/// How long the upstream takes.
const WORK: Duration = Duration::from_millis(20);

/// How many clients the quiet tenant has, and how many calls each makes in one half of a pair.
const QUIET: (u64, u64) = (4, 100);

/// How a tenant floods.
struct Flood {
    name: &'static str,
    /// How many clients it has.
    clients: u64,
    /// The time between two calls of one.
    pause: Duration,
    /// What the gateway is told.
    limits: &'static str,
}

/// Beyond its quota, ten times as many calls as the other one; and as fast as answers come, within the limits that a
/// gateway has that is told nothing.
const FLOODS: [Flood; 2] = [
    Flood {
        name: "over its quota",
        clients: 20,
        pause: Duration::from_millis(10),
        limits: "\n[limits]\ntenant_live = 8\n",
    },
    Flood {
        name: "within the limits",
        clients: 40,
        pause: Duration::ZERO,
        limits: "",
    },
];

/// How many pairs a batch measures, and the short one.
const PAIRS: (u64, u64) = (9, 3);

/// What p99 may rise to.
const MOST: f64 = 2.0;

/// One run of pairs in each way to flood.
fn batch(batch: &Batch<'_>) -> Result<Ended> {
    let pairs = if batch.short { PAIRS.1 } else { PAIRS.0 };
    let mut done = Done {
        to: batch.from + 1,
        ..Done::default()
    };
    for flood in &FLOODS {
        let ratio = measure(flood, pairs, batch, &mut done.figures)?;
        let name = flood.name;
        done.figures.add(
            &format!("most p99 beside a flood {name}, in % of that without"),
            (ratio * 100.0) as u64,
        );
        if ratio > MOST {
            done.violations.push(format!(
                "L5: p99 rises to {ratio:.2} times what it is without the flood {name}"
            ));
        }
    }
    Ok(Ended::Done(done))
}

/// The median of what p99 rises to.
fn measure(flood: &Flood, pairs: u64, batch: &Batch<'_>, figures: &mut Figures) -> Result<f64> {
    let folder = target_dir().join(format!("flood-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let upstream = Upstream::scripted(|exchange| {
        exchange.read_body();
        thread::sleep(WORK);
        exchange.answer(200, &[], b"done");
    });
    let gateway = Gateway::start(&Setup {
        binary: batch.gateway.path()?,
        config: folder.join("onlyonce.toml"),
        data: folder.join("data"),
        upstream: upstream.addr(),
        server: String::new(),
        more: flood.limits.to_owned(),
        environment: Vec::new(),
    })?;
    let crowd = Crowd {
        gateway: gateway.address,
        next_key: AtomicU64::new(0),
    };
    // Connections to the upstream and the first segments are made.
    crowd.quiet()?;
    let mut ratios = Vec::new();
    for _ in 0..pairs {
        let mut alone = crowd.quiet()?;
        let (mut beside, taken, refused) = crowd.beside(flood)?;
        let (alone, beside) = (percentile(&mut alone, 0.99), percentile(&mut beside, 0.99));
        println!(
            "   {}: p99 {alone:.1} ms alone, {beside:.1} ms beside {taken} calls and {refused} refused",
            flood.name
        );
        figures.add("pairs", 1);
        figures.add("calls of the flood", taken + refused);
        figures.add("calls of the flood refused", refused);
        ratios.push(beside / alone);
    }
    gateway.stop(STOP_LIMIT)?;
    std::fs::remove_dir_all(&folder).context("cannot remove the campaign's folder")?;
    Ok(median(&mut ratios))
}

struct Crowd {
    gateway: SocketAddr,
    next_key: AtomicU64,
}

impl Crowd {
    /// What each call of the quiet tenant took, in milliseconds; each must succeed.
    fn quiet(&self) -> Result<Vec<f64>> {
        let (clients, calls) = QUIET;
        let one = || -> Result<Vec<f64>> {
            let mut caller = Caller::connect(self.gateway)?;
            let mut took = Vec::new();
            for _ in 0..calls {
                let start = Instant::now();
                let status = caller.call("quiet", self.key())?;
                took.push(start.elapsed().as_secs_f64() * 1e3);
                anyhow::ensure!(status == 200, "the quiet tenant got {status}");
            }
            Ok(took)
        };
        let all = in_parallel(clients, &one)?;
        Ok(all.into_iter().flatten().collect())
    }

    /// The same beside a flood; and how many calls of that were taken, and refused.
    fn beside(&self, flood: &Flood) -> Result<(Vec<f64>, u64, u64)> {
        let over = AtomicBool::new(false);
        let one = || -> Result<[u64; 2]> {
            let mut caller = Caller::connect(self.gateway)?;
            let mut counts = [0, 0];
            while !over.load(Ordering::SeqCst) {
                let refused = caller.call("flood", self.key())? != 200;
                counts[usize::from(refused)] += 1;
                thread::sleep(flood.pause);
            }
            Ok(counts)
        };
        thread::scope(|scope| {
            let flood = scope.spawn(|| in_parallel(flood.clients, &one));
            let quiet = self.quiet();
            over.store(true, Ordering::SeqCst);
            let counts = flood.join().ok().context("the flood panicked")??;
            let sum = |index: usize| counts.iter().map(|counts| counts[index]).sum();
            Ok((quiet?, sum(0), sum(1)))
        })
    }

    fn key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::SeqCst)
    }
}

/// What so many threads say that all do the same.
fn in_parallel<T: Send>(threads: u64, one: &(impl Fn() -> Result<T> + Sync)) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        let ended = running.into_iter().map(|thread| thread.join());
        ended
            .map(|ended| ended.ok().context("a client panicked")?)
            .collect()
    })
}

/// A caller of one connection.
pub struct Caller {
    gateway: SocketAddr,
    reader: BufReader<TcpStream>,
}

impl Caller {
    /// Connects.
    pub fn connect(gateway: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(gateway)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self {
            gateway,
            reader: BufReader::new(stream),
        })
    }

    /// Makes a call with a key of its own, and waits for its whole answer; says the status.
    pub fn call(&mut self, tenant: &str, key: u64) -> Result<u16> {
        let request = format!(
            "POST /work HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {tenant}\r\n\
             idempotency-key: {tenant}-{key}\r\ncontent-length: 2\r\n\r\n{{}}",
            self.gateway
        );
        self.reader.get_ref().write_all(request.as_bytes())?;
        let head = read_head(&mut self.reader)?;
        read_body(&head, &mut self.reader)?;
        head.status().context("no status")
    }
}
