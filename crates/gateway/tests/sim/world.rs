//! What a simulated world is made of, and the log of what happens in it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::FutureExt as _;
use onlyonce_core::{Key, Record, Scope, StateName, Timestamp};
use onlyonce_store::clock::Clock;
use onlyonce_store::{MemoryStore, Store as _, address};
use parking_lot::Mutex;
use tokio::sync::Notify;
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
    /// By how much gateways may be wrong about the store's clock, either way.
    pub skew: Duration,
}

/// The windows of one key.
#[derive(Default)]
struct Window {
    /// How many have ended before a claim of the key.
    ended: usize,
    /// When the one that was opened last ends.
    until: Option<Timestamp>,
}

/// What the first connection to the upstream is to be.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// It takes so many bytes, and breaks at the next one.
    pub takes: usize,
    pub exchange: Plan,
}

/// A key, and what the store held of it.
pub type Shown = (usize, String, Option<StateName>);

/// How often what happened.
pub type Counts = BTreeMap<&'static str, u64>;

/// What everything in a simulation shares.
pub struct World {
    pub seed: u64,
    pub temper: Temper,
    pub store: Arc<MemoryStore>,
    /// What the first exchange with the upstream is to be, where it does not follow from the seed. The others
    /// are plain then.
    pub fixed: Option<Fixed>,
    pub actions: Vec<Action>,
    /// Told where a gateway is to die at a byte of an exchange.
    pub gateway_dies: Notify,
    began: Instant,
    connections: AtomicU64,
    /// `None` where nobody wants to read it.
    log: Option<Mutex<Vec<String>>>,
    counts: Mutex<Counts>,
    wrong: Mutex<Vec<String>>,
    ledger: Mutex<Vec<Exchange>>,
    attempts: Mutex<Vec<Attempt>>,
    windows: Mutex<HashMap<(usize, String), Window>>,
    /// Who wrote a key's record last: a gateway, and in which of its lives.
    writers: Mutex<HashMap<(usize, String), Arc<str>>>,
}

/// What came of a world.
pub struct Told {
    pub log: Option<Vec<String>>,
    pub counts: Counts,
    pub wrong: Vec<String>,
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
    pub fn new(
        seed: u64,
        temper: Temper,
        fixed: Option<Fixed>,
        actions: Vec<Action>,
        logged: bool,
    ) -> Arc<Self> {
        let began = Instant::now();
        Arc::new(Self {
            seed,
            temper,
            store: Arc::new(MemoryStore::with_clock(Simulated(began))),
            fixed,
            actions,
            gateway_dies: Notify::new(),
            began,
            connections: AtomicU64::new(0),
            log: logged.then(Mutex::default),
            counts: Mutex::default(),
            wrong: Mutex::default(),
            ledger: Mutex::default(),
            attempts: Mutex::default(),
            windows: Mutex::default(),
            writers: Mutex::default(),
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
        if let Some(log) = &self.log {
            let millis = self.began.elapsed().as_millis();
            log.lock().push(format!("{millis:>6} {}", line()));
        }
    }

    /// Counts what happened.
    pub fn count(&self, what: &'static str) {
        *self.counts.lock().entry(what).or_default() += 1;
    }

    /// Says that a guarantee is broken.
    pub fn wrong(&self, what: String) {
        self.note(|| format!("WRONG {what}"));
        self.wrong.lock().push(what);
    }

    /// What there is to tell of it in the end.
    pub fn told(&self) -> Told {
        let mut counts = std::mem::take(&mut *self.counts.lock());
        counts.insert("simulated seconds", self.began.elapsed().as_secs());
        Told {
            log: self.log.as_ref().map(|log| log.lock().clone()),
            counts,
            wrong: self.wrong.lock().clone(),
        }
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

    /// How many windows of a key have ended before its latest claim.
    pub fn window(&self, tenant: usize, key: &str) -> usize {
        let windows = self.windows.lock();
        windows
            .get(&(tenant, key.to_owned()))
            .map_or(0, |window| window.ended)
    }

    /// Whether a key was completed, in whichever window.
    pub fn was_completed(&self, tenant: usize, key: &str) -> bool {
        let windows = self.windows.lock();
        let window = windows.get(&(tenant, key.to_owned()));
        window.is_some_and(|window| window.ended > 0 || window.until.is_some())
    }

    /// A key was claimed anew: if its window has ended, with every right.
    pub fn claimed(&self, tenant: usize, key: &str) {
        let (mut windows, now) = (self.windows.lock(), self.store.now());
        let window = windows.entry((tenant, key.to_owned())).or_default();
        if window.until.is_some_and(|until| now >= until) {
            window.ended += 1;
            window.until = None;
        }
    }

    /// A key was completed, and answers until then.
    pub fn completed(&self, tenant: usize, key: &str, until: Timestamp) {
        let mut windows = self.windows.lock();
        let window = windows.entry((tenant, key.to_owned())).or_default();
        window.until = Some(until);
    }

    /// A key's record is written by `from`: who wrote it before.
    pub fn wrote(&self, tenant: usize, key: &str, from: &Arc<str>) -> Option<Arc<str>> {
        let mut writers = self.writers.lock();
        writers.insert((tenant, key.to_owned()), Arc::clone(from))
    }

    pub fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Relaxed)
    }

    /// What exchange number `turn` is to be.
    pub fn plan(&self, turn: u64) -> Plan {
        match &self.fixed {
            Some(fixed) if turn == 0 => fixed.exchange.clone(),
            Some(_) => Plan::plain(),
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
            answered: None,
            whole: false,
            window: 0,
        });
        number
    }

    pub fn exchange<T>(&self, number: usize, note: impl FnOnce(&mut Exchange) -> T) -> T {
        note(&mut self.ledger.lock()[number])
    }

    pub fn exchange_over(&self, number: usize) {
        let what = self.exchange(number, |one| {
            one.over = Some(Instant::now());
            match one {
                Exchange { whole: true, .. } if one.declined() => "exchanges: declined",
                Exchange { whole: true, .. } => "exchanges: answered",
                Exchange {
                    answered: Some(_), ..
                } => "exchanges: broken in the answer's body",
                Exchange {
                    request: Some(Request { whole: true, .. }),
                    ..
                } => "exchanges: broken before the answer's head was whole",
                _ => "exchanges: broken in the request",
            }
        });
        self.count(what);
    }

    /// The upstream knows which request it is.
    pub fn request_known(&self, number: usize, request: Request) {
        self.note(|| {
            let (tenant, key, attempt) = (request.tenant, &request.key, request.attempt);
            format!("exchange {number}: t{tenant}/{key}, attempt {attempt}")
        });
        self.judge_request(number, &request);
        let window = self.window(request.tenant, &request.key);
        self.exchange(number, |one| {
            one.request = Some(request);
            one.window = window;
        });
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
