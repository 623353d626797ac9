//! Ten thousand connections that ask for nothing, and thousands whose heads and bodies come a byte at a time: others
//! are served meanwhile, what is too slow is cut off, nothing of it is claimed, and what a connection costs is bounded.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use onlyonce_testkit::Upstream;

use super::figures::Figures;
use super::flood::Caller;
use super::{Batch, Campaign, Done, Ended};
use crate::bench::numbers::percentile;
use crate::command::target_dir;
use crate::faults::gateway::{Gateway, STOP_LIMIT, Setup};
use crate::process::{descriptors, raise_open_files, resident};

/// The campaign.
pub const CAMPAIGN: Campaign = Campaign {
    name: "crowds",
    about: "10,000 idle connections, and 2,000 slow heads and 2,000 slow bodies: others are served, memory is bounded",
    targets: &[],
    runs_gateway: true,
    batch,
};

/// How many connections are idle, how many send their head slowly, and how many their body.
const CONNECTIONS: [usize; 3] = [10_000, 2_000, 2_000];

/// The same of the short one.
const CONNECTIONS_SHORT: [usize; 3] = [4_000, 500, 500];

/// What an idle connection may cost, in bytes.
const MOST_BYTES: u64 = 32 << 10;

/// How long a head and a body may take in all.
const TIMEOUT: Duration = Duration::from_secs(5);

/// By when what is too slow is gone.
const GONE: Duration = Duration::from_secs(30);

/// How many calls others make meanwhile.
const CALLS: u64 = 200;

/// All three crowds at once.
fn batch(batch: &Batch<'_>) -> Result<Ended> {
    let [idle, heads, bodies] = if batch.short {
        CONNECTIONS_SHORT
    } else {
        CONNECTIONS
    };
    let wanted = (idle + heads + bodies + 500) as u64;
    let open_files = raise_open_files();
    if open_files < wanted {
        let why = format!("{wanted} open files are needed, and {open_files} allowed");
        return Ok(Ended::Skipped(why));
    }
    let folder = target_dir().join(format!("crowds-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let upstream = Upstream::counting();
    let gateway = Gateway::start(&Setup {
        binary: batch.gateway.path()?,
        config: folder.join("onlyonce.toml"),
        data: folder.join("data"),
        upstream: upstream.addr(),
        server: format!(
            "max_connections = 20000\nidle_timeout = \"10m\"\nheader_timeout = \"{0}s\"\nbody_timeout = \"{0}s\"\n",
            TIMEOUT.as_secs()
        ),
        more: String::new(),
        environment: Vec::new(),
    })?;
    let mut violations = Vec::new();
    let mut others = Others {
        gateway: gateway.address,
        calls: 0,
    };
    let (alone, held) = (others.p99()?, descriptors(gateway.id()));

    let before = resident(gateway.id());
    let resting = connect(gateway.address, idle)?;
    wait_for(|| descriptors(gateway.id()) >= held + idle as u64)?;
    let beside_idle = others.p99()?;
    let each = resident(gateway.id()).saturating_sub(before) / idle as u64;
    if each > MOST_BYTES {
        violations.push(format!("I15: an idle connection costs {each} bytes"));
    }

    let mut slow = Slow::begin(gateway.address, heads, bodies)?;
    slow.drip();
    let beside_slow = others.p99()?;
    let until = Instant::now() + GONE;
    while slow.drip() > 0 && Instant::now() < until {
        thread::sleep(Duration::from_millis(200));
    }
    if !slow.streams.is_empty() {
        violations.push(format!(
            "L2: {} slow connections are still there",
            slow.streams.len()
        ));
    }
    let hits = upstream.hits() as u64;
    if hits != others.calls {
        let calls = others.calls;
        violations.push(format!(
            "I2: {calls} calls were made, and {hits} came to the upstream"
        ));
    }
    drop((resting, slow));
    if wait_for(|| descriptors(gateway.id()) <= held + 8).is_err() {
        let now = descriptors(gateway.id());
        violations.push(format!("I15: {held} descriptors before, and {now} after"));
    }
    gateway.stop(STOP_LIMIT)?;
    std::fs::remove_dir_all(&folder).context("cannot remove the campaign's folder")?;
    let millis = |p99: f64| p99.ceil() as u64;
    Ok(Ended::Done(Done {
        to: batch.from + 1,
        figures: Figures::from([
            ("most idle connections", idle as u64),
            ("most slow connections", (heads + bodies) as u64),
            ("most bytes for an idle connection", each),
            ("calls of others", others.calls),
            ("longest p99 of others alone in ms", millis(alone)),
            (
                "longest p99 of others beside idle ones in ms",
                millis(beside_idle),
            ),
            (
                "longest p99 of others beside slow ones in ms",
                millis(beside_slow),
            ),
        ]),
        violations,
        ..Done::default()
    }))
}

/// Callers that want to be served.
struct Others {
    gateway: SocketAddr,
    calls: u64,
}

impl Others {
    /// What their calls took, p99, in milliseconds; each comes with a connection of its own, and must succeed.
    fn p99(&mut self) -> Result<f64> {
        let mut took = Vec::new();
        for _ in 0..CALLS {
            let start = Instant::now();
            let status = Caller::connect(self.gateway)?.call("other", self.calls)?;
            took.push(start.elapsed().as_secs_f64() * 1e3);
            self.calls += 1;
            ensure!(status == 200, "somebody else got {status}");
        }
        Ok(percentile(&mut took, 0.99))
    }
}

fn connect(gateway: SocketAddr, number: usize) -> Result<Vec<TcpStream>> {
    let all = (0..number).map(|_| TcpStream::connect(gateway));
    all.collect::<std::io::Result<_>>().context("connecting")
}

fn wait_for(condition: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + GONE;
    while !condition() {
        ensure!(Instant::now() < deadline, "it takes too long");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Connections that send a byte now and then.
struct Slow {
    streams: Vec<TcpStream>,
}

impl Slow {
    fn begin(gateway: SocketAddr, heads: usize, bodies: usize) -> Result<Self> {
        let streams = connect(gateway, heads + bodies)?;
        for (index, mut stream) in streams.iter().enumerate() {
            let mut head =
                format!("POST /work HTTP/1.1\r\nhost: h\r\nidempotency-key: slow-{index}\r\n");
            if index >= heads {
                head.push_str("content-length: 100000\r\n\r\n");
            } else {
                head.push_str("x-slow: ");
            }
            stream.write_all(head.as_bytes())?;
            stream.set_nonblocking(true)?;
        }
        Ok(Self { streams })
    }

    /// Sends one more byte on each that is still open, and says how many those are.
    fn drip(&mut self) -> usize {
        self.streams.retain_mut(|stream| {
            let mut answer = [0; 4096];
            let open = loop {
                match stream.read(&mut answer) {
                    Ok(0) => break false,
                    Ok(_) => {}
                    Err(error) => break error.kind() == ErrorKind::WouldBlock,
                }
            };
            open && stream.write_all(b"x").is_ok()
        });
        self.streams.len()
    }
}
