//! Many clients at once, against a gateway that comes and goes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::client::Client;
use super::history::{History, Seen, Violation};
use super::random::Random;
use super::upstream::lock;

/// How long a key may take to reach an outcome once nothing fails any more.
const OUTCOME_LIMIT: Duration = Duration::from_secs(30);

/// How long a patient client waits for the next byte.
const PATIENCE: Duration = Duration::from_secs(25);

/// The gateway as its clients know it.
#[derive(Clone, Default)]
pub struct Target {
    now: Arc<Mutex<Option<(SocketAddr, u64)>>>,
}

impl Target {
    /// Another gateway is up, or none.
    pub fn set(&self, now: Option<(SocketAddr, u64)>) {
        *lock(&self.now) = now;
    }

    fn get(&self) -> Option<(SocketAddr, u64)> {
        *lock(&self.now)
    }
}

/// Clients that send new keys, old keys and the same key at once, until they are told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

/// What the clients of a campaign share.
#[derive(Clone)]
pub struct Shared {
    /// The gateway.
    pub target: Target,
    /// What was seen.
    pub history: Arc<Mutex<History>>,
    /// The number of the next new key.
    pub next_key: Arc<AtomicU64>,
    /// How many of the last keys may be sent again.
    pub reach: u64,
    /// How long each client waits at most between two attempts.
    pub pause: Duration,
    /// The campaign's seed.
    pub seed: u64,
}

impl Load {
    /// Starts the clients.
    pub fn start(shared: &Shared, clients: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let round = shared.next_key.load(Ordering::SeqCst);
        let workers = (0..clients)
            .map(|client| {
                let (shared, stop) = (shared.clone(), Arc::clone(&stop));
                let random = Random::part(shared.seed ^ round, client);
                thread::spawn(move || work(&shared, random, &stop))
            })
            .collect();
        Self { stop, workers }
    }

    /// Stops the clients and waits for them.
    pub fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        for worker in self.workers {
            let _ = worker.join();
        }
    }
}

/// The name of a campaign's key.
pub fn key_name(seed: u64, number: u64) -> String {
    format!("k{seed}-{number}")
}

fn work(shared: &Shared, mut random: Random, stop: &AtomicBool) {
    let mut client = Client::default();
    while !stop.load(Ordering::SeqCst) {
        let Some((address, generation)) = shared.target.get() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let known = shared.next_key.load(Ordering::SeqCst);
        let number = match random.below(100) {
            // One of the last few: it is likely to be in flight at another client.
            0..=14 if known > 0 => known - 1 - random.below(known.min(16)),
            15..=34 if known > 0 => known - 1 - random.below(known.min(shared.reach)),
            _ => shared.next_key.fetch_add(1, Ordering::SeqCst),
        };
        let key = key_name(shared.seed, number);
        let patience = if random.percent(10) {
            Duration::from_millis(random.between(1, 40))
        } else {
            PATIENCE
        };
        attempt_at((address, generation), shared, &mut client, &key, patience);
        if !shared.pause.is_zero() {
            let longest = u64::try_from(shared.pause.as_micros()).unwrap_or(u64::MAX);
            thread::sleep(Duration::from_micros(random.below(longest)));
        }
    }
}

/// Sends one attempt to the gateway that is there, and notes its answer; also says how that begins. Without a gateway
/// it is to be tried again.
pub fn attempt(
    shared: &Shared,
    client: &mut Client,
    key: &str,
    patience: Duration,
) -> (Seen, String) {
    match shared.target.get() {
        Some(gateway) => attempt_at(gateway, shared, client, key, patience),
        None => (Seen::Again, "there is no gateway".to_owned()),
    }
}

fn attempt_at(
    (address, generation): (SocketAddr, u64),
    shared: &Shared,
    client: &mut Client,
    key: &str,
    patience: Duration,
) -> (Seen, String) {
    let sent = lock(&shared.history).begin(key, generation);
    let answer = client.attempt(address, key, patience);
    let mut history = lock(&shared.history);
    match answer {
        Ok(answer) => {
            let start = answer.body.len().min(200);
            let text = String::from_utf8_lossy(&answer.body[..start]).into_owned();
            (history.observe(key, sent, &answer), text)
        }
        Err(error) => (history.observe_broken(), format!("{error:#}")),
    }
}

/// Sends every key that was ever sent until it has an outcome, with nothing failing any more.
pub fn settle(shared: &Shared, clients: usize) {
    let keys = lock(&shared.history).keys();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut client = Client::default();
                while let Some(key) = keys.get(next.fetch_add(1, Ordering::SeqCst)) {
                    settle_one(shared, &mut client, key);
                }
            });
        }
    });
}

fn settle_one(shared: &Shared, client: &mut Client, key: &str) {
    let deadline = Instant::now() + OUTCOME_LIMIT;
    let mut last = String::new();
    while Instant::now() < deadline {
        let (seen, text) = attempt(shared, client, key, PATIENCE);
        last = text;
        match seen {
            Seen::Complete | Seen::Unknown | Seen::Wrong => return,
            Seen::Released | Seen::Again => thread::sleep(Duration::from_millis(2)),
        }
    }
    lock(&shared.history).violations.push(Violation {
        guarantee: "L1",
        key: key.to_string(),
        what: format!("did not reach an outcome in time; the last answer: {last}"),
    });
}
