//! What a simulated world is made of, and the log of what happens in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::FutureExt as _;
use onlyonce_core::{Key, Record, Scope, StateName, Timestamp};
use onlyonce_store::clock::Clock;
use onlyonce_store::{MemoryStore, Store as _, address};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::client::Action;
use crate::random::Random;
use crate::store::SECRET;
use crate::upstream::{self, Exchange, Plan, Request};

/// How rough a seed is: chances in a hundred.
#[derive(Clone, Debug, Default)]
pub struct Temper {
    /// Until when something may go wrong.
    pub calm_after: Duration,
    pub store_faults: usize,
    pub store_slow: usize,
    pub store_stalls: usize,
    pub claims_first: bool,
    /// The upstream does not take a connection.
    pub refuses: usize,
    /// It takes its time.
    pub slow: usize,
    /// It breaks off.
    pub breaks: usize,
    /// It says that it did not run.
    pub declines: usize,
    /// Callers send slowly.
    pub dawdles: usize,
    /// Callers leave.
    pub leaves: usize,
    /// Gateways die, stand still and end.
    pub troubles: usize,
}

/// A key, and what the store held of it.
pub type Shown = (usize, String, Option<StateName>);

/// What everything in a simulation shares.
pub struct World {
    pub seed: u64,
    pub temper: Temper,
    pub store: Arc<MemoryStore>,
    /// What each exchange with the upstream is to be, where it does not follow from the seed.
    pub fixed: Option<Plan>,
    pub actions: Vec<Action>,
    began: Instant,
    connections: AtomicU64,
    log: Mutex<Vec<String>>,
    wrong: Mutex<Vec<String>>,
    ledger: Mutex<Vec<Exchange>>,
    attempts: Mutex<Vec<Attempt>>,
}

/// One attempt of a caller's.
#[derive(Debug)]
pub struct Attempt {
    pub action: Action,
    /// When its last byte was sent.
    pub sent: Option<Instant>,
}

/// The time of the simulation, from the start of the year 2026.
struct Simulated(Instant);

impl Clock for Simulated {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_767_225_600_000).after(self.0.elapsed())
    }
}

impl World {
    /// A world in which nothing has happened. Made within a runtime whose clock stands still.
    pub fn new(seed: u64, temper: Temper, fixed: Option<Plan>, actions: Vec<Action>) -> Arc<Self> {
        let began = Instant::now();
        Arc::new(Self {
            seed,
            temper,
            store: Arc::new(MemoryStore::with_clock(Simulated(began))),
            fixed,
            actions,
            began,
            connections: AtomicU64::new(0),
            log: Mutex::default(),
            wrong: Mutex::default(),
            ledger: Mutex::default(),
            attempts: Mutex::default(),
        })
    }

    /// A generator of its own for one part of the world.
    pub fn random(&self, part: u64) -> Random {
        part_of(self.seed, part)
    }

    /// Whether nothing goes wrong any more.
    pub fn is_calm(&self) -> bool {
        self.began.elapsed() >= self.temper.calm_after
    }

    /// When nothing goes wrong any more.
    pub fn calm_at(&self) -> Instant {
        self.began + self.temper.calm_after
    }

    /// Writes a line of the log.
    pub fn note(&self, line: impl FnOnce() -> String) {
        let millis = self.began.elapsed().as_millis();
        self.log.lock().push(format!("{millis:>6} {}", line()));
    }

    /// Says that a guarantee is broken.
    pub fn wrong(&self, what: String) {
        self.note(|| format!("WRONG {what}"));
        self.wrong.lock().push(what);
    }

    /// What happened, and what of it was wrong.
    pub fn told(&self) -> (Vec<String>, Vec<String>) {
        let take = |lines: &Mutex<Vec<String>>| std::mem::take(&mut *lines.lock());
        (take(&self.log), take(&self.wrong))
    }

    /// What the store holds of a key, if that counts.
    pub fn record(&self, tenant: usize, key: &str) -> Option<Arc<Record>> {
        let scope = Scope {
            tenant: format!("t{tenant}").into(),
            namespace: "up".into(),
        };
        let at = address(&SECRET, &scope, &Key::new(key).expect("a key"));
        let loaded = self.store.load(at).now_or_never();
        let stored = loaded
            .expect("the store itself is there")
            .expect("and whole");
        let now = self.store.now();
        stored
            .map(|stored| stored.record)
            .filter(|record| record.expires_at().is_none_or(|end| now < end))
    }

    /// What the store holds of each key.
    fn all_held(&self) -> Vec<Shown> {
        let held = self.actions.iter().map(|action| {
            let record = self.record(action.tenant, &action.key);
            let state = record.map(|record| record.state.name());
            (action.tenant, action.key.clone(), state)
        });
        held.collect()
    }

    pub fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Relaxed)
    }

    /// What exchange number `turn` is to be.
    pub fn plan(&self, turn: u64) -> Plan {
        match &self.fixed {
            Some(plan) => plan.clone(),
            None => Plan::drawn(self, &mut self.random(10_000_000 + turn)),
        }
    }

    /// A first byte of a request has come to the upstream.
    pub fn exchange_begins(&self, plan: &Plan) -> usize {
        let held = self.all_held();
        let mut ledger = self.ledger.lock();
        let number = ledger.len();
        ledger.push(Exchange {
            seen: 0,
            request: None,
            held,
            began: Instant::now(),
            over: None,
            status: plan.status(),
            body: upstream::body(plan.answer, number),
            answered: false,
            whole: false,
        });
        number
    }

    pub fn exchange<T>(&self, number: usize, note: impl FnOnce(&mut Exchange) -> T) -> T {
        note(&mut self.ledger.lock()[number])
    }

    pub fn exchange_over(&self, number: usize) {
        self.exchange(number, |one| one.over = Some(Instant::now()));
    }

    /// The upstream knows which request it is.
    pub fn request_known(&self, number: usize, request: Request) {
        self.note(|| {
            let (tenant, key, attempt) = (request.tenant, &request.key, request.attempt);
            format!("exchange {number}: t{tenant}/{key}, attempt {attempt}")
        });
        self.judge_request(number, &request);
        self.exchange(number, |one| one.request = Some(request));
    }

    /// A look at every exchange so far.
    pub fn ledger<T>(&self, look: impl FnOnce(&[Exchange]) -> T) -> T {
        look(&self.ledger.lock())
    }

    /// A look at every attempt so far.
    pub fn attempts<T>(&self, look: impl FnOnce(&[Attempt]) -> T) -> T {
        look(&self.attempts.lock())
    }

    pub fn attempt_begins(&self, action: &Action) -> usize {
        let mut attempts = self.attempts.lock();
        let number = attempts.len();
        attempts.push(Attempt {
            action: action.clone(),
            sent: None,
        });
        drop(attempts);
        self.note(|| {
            let (tenant, key, version) = (action.tenant, &action.key, action.version);
            format!("attempt {number}: t{tenant}/{key}, version {version}")
        });
        number
    }

    pub fn attempt_sent(&self, number: usize) {
        self.attempts.lock()[number].sent = Some(Instant::now());
    }
}

/// A generator of its own for part `part` of a seed.
pub fn part_of(seed: u64, part: u64) -> Random {
    let mut random = Random::new(seed ^ part.wrapping_mul(0xA076_1D64_78BD_642F));
    random.next();
    random
}
