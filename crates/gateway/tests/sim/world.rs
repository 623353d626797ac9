//! What a simulated world is made of, and the log of what happens in it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use onlyonce_core::{Address, Key, Record, Scope, Timestamp};
use onlyonce_store::clock::Clock;
use onlyonce_store::{MemoryStore, Store as _, address};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::client::Action;
use crate::noted::{Name, Noted};
use crate::random::Random;
use crate::store::SECRET;
use crate::upstream::{self, Exchange, Plan, Request};
use crate::wire::Fields;

/// How many calls of the store may come while no time passes: a seed has about a thousand in all.
const CALLS_AT_ONCE: u32 = 100_000;

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
    /// A gateway stands still when its claim has come to the store, for longer than a lease or not.
    pub naps: usize,
    /// Somebody settles what is unknown.
    pub operator: bool,
    /// By how much gateways may be wrong about the store's clock, either way.
    pub skew: Duration,
}

/// The windows of one key.
#[derive(Default)]
struct Window {
    /// How many have ended before a claim of the key, or by an operator's word: what ran before that may run again.
    ended: usize,
    /// Writes that have landed.
    changes: usize,
    /// When an operator removed it last.
    purged_at: Option<Instant>,
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
#[derive(Debug)]
pub struct Shown {
    pub name: Name,
    pub record: Option<Arc<Record>>,
    /// How many of its windows had ended.
    pub window: usize,
}

/// Who has made an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Exchange(usize),
    /// An operator, by this ruling.
    Ruling(usize),
}

/// How often what happened.
pub type Counts = BTreeMap<&'static str, u64>;

/// A tenant, its key, and which window of it.
pub type Windowed = (usize, String, usize);

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
    pub noted: Mutex<Noted>,
    began: Instant,
    /// How many calls of the store have come since time has passed.
    calls: Mutex<(Instant, u32)>,
    connections: Mutex<Vec<Connection>>,
    /// `None` where nobody wants to read it.
    log: Option<Mutex<Vec<String>>>,
    counts: Mutex<Counts>,
    wrong: Mutex<Vec<String>>,
    pub ledger: Mutex<Vec<Exchange>>,
    pub attempts: Mutex<Vec<Attempt>>,
    /// Whose answer each window of each key has, once it was heard, and with which headers.
    pub answers: Mutex<HashMap<Windowed, (Source, Fields)>>,
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
    pub began: Instant,
    /// When its last byte was sent.
    pub sent: Option<Instant>,
    /// The gateway that it came to, and in which of its lives.
    pub at: Option<Arc<str>>,
}

/// A connection to the upstream.
pub struct Connection {
    /// Whose it is: a gateway, and in which of its lives.
    pub from: Arc<str>,
    /// Since when that one may use it.
    pub open: Option<Instant>,
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
            noted: Mutex::default(),
            began,
            calls: Mutex::new((began, 0)),
            connections: Mutex::default(),
            log: logged.then(Mutex::default),
            counts: Mutex::default(),
            wrong: Mutex::default(),
            ledger: Mutex::default(),
            attempts: Mutex::default(),
            answers: Mutex::default(),
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

    /// A call of the store has come. Time passes only where everybody waits: who calls over and over keeps it.
    pub fn is_called(&self) {
        let (now, mut calls) = (Instant::now(), self.calls.lock());
        *calls = match *calls {
            (at, count) if at == now => (at, count + 1),
            _ => (now, 0),
        };
        assert!(calls.1 < CALLS_AT_ONCE, "L6: time stands still");
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
        let loaded = self.store.load(address_of(tenant, key)).now_or_never();
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
        let held = self.actions.iter().map(|action| Shown {
            name: (action.tenant, action.key.clone()),
            record: self.record(action.tenant, &action.key),
            window: self.window(action.tenant, &action.key),
        });
        held.collect()
    }

    /// How many windows of a key have ended before its latest claim.
    pub fn window(&self, tenant: usize, key: &str) -> usize {
        self.window_of(&(tenant, key.to_owned()))
    }

    /// As [`World::window`].
    pub fn window_of(&self, name: &Name) -> usize {
        let windows = self.windows.lock();
        windows.get(name).map_or(0, |window| window.ended)
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

    /// An operator lets what ran under a key run again.
    pub fn may_run_again(&self, tenant: usize, key: &str) {
        let mut windows = self.windows.lock();
        let window = windows.entry((tenant, key.to_owned())).or_default();
        window.ended += 1;
        window.until = None;
    }

    /// An operator has removed what stood at `address`.
    pub fn removed(&self, address: Address) {
        let mut actions = self.actions.iter();
        let action = actions.find(|action| address_of(action.tenant, &action.key) == address);
        let Some(Action { tenant, key, .. }) = action else {
            return;
        };
        self.note(|| format!("t{tenant}/{key} is removed"));
        self.may_run_again(*tenant, key);
        let mut windows = self.windows.lock();
        let window = windows.entry((*tenant, key.clone())).or_default();
        window.changes += 1;
        window.purged_at = Some(Instant::now());
    }

    /// How often what stands under a key has changed.
    pub fn changes(&self, name: &Name) -> usize {
        let windows = self.windows.lock();
        windows.get(name).map_or(0, |window| window.changes)
    }

    /// Whether an operator has removed a key's record since then.
    pub fn was_purged_since(&self, tenant: usize, key: &str, since: Instant) -> bool {
        let windows = self.windows.lock();
        let window = windows.get(&(tenant, key.to_owned()));
        window.is_some_and(|window| window.purged_at.is_some_and(|at| at >= since))
    }

    /// A key's record is written by `from`: who wrote it before.
    pub fn wrote(&self, tenant: usize, key: &str, from: &Arc<str>) -> Option<Arc<str>> {
        let mut windows = self.windows.lock();
        windows.entry((tenant, key.to_owned())).or_default().changes += 1;
        let mut writers = self.writers.lock();
        writers.insert((tenant, key.to_owned()), Arc::clone(from))
    }

    /// A connection to the upstream is asked for by `from`.
    pub fn next_connection(&self, from: &Arc<str>) -> usize {
        let mut connections = self.connections.lock();
        connections.push(Connection {
            from: Arc::clone(from),
            open: None,
        });
        connections.len() - 1
    }

    pub fn connection_is_open(&self, number: usize) {
        self.connections.lock()[number].open = Some(Instant::now());
    }

    /// A look at connection `number`.
    pub fn connection<T>(&self, number: usize, look: impl FnOnce(&Connection) -> T) -> T {
        look(&self.connections.lock()[number])
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
    pub fn exchange_begins(&self, connection: usize, plan: &Plan) -> usize {
        let held = self.all_held();
        let mut ledger = self.ledger.lock();
        let number = ledger.len();
        ledger.push(Exchange {
            connection,
            seen: 0,
            request: None,
            held,
            began: Instant::now(),
            over: None,
            status: plan.status(),
            body: upstream::body(plan.answer, number),
            fields: upstream::fields(plan.answer, number),
            trailers: upstream::trailers(plan.answer, number),
            answered: None,
            whole: false,
            window: 0,
            is_stray: false,
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
        // By the first byte: much may have happened since.
        let window = self.exchange(number, |one| {
            let shown = one.shown(request.tenant, &request.key);
            one.window = shown.map_or(0, |shown| shown.window);
            one.window
        });
        let is_stray = self.judge_request(number, &request, window);
        self.exchange(number, |one| {
            one.request = Some(request);
            one.is_stray = is_stray;
        });
    }

    /// Of a request, only so much of its head has come.
    pub fn part_came(&self, number: usize, part: &[u8]) {
        let Some((tenant, key, window)) = self.sender_of(number, part) else {
            self.count("parts of a request that are nobody's");
            return;
        };
        self.note(|| format!("exchange {number}: a part of t{tenant}/{key}"));
        self.judge_one_execution(number, tenant, &key, window);
        self.exchange(number, |one| {
            one.window = window;
            one.request = Some(Request {
                tenant,
                key,
                attempt: usize::MAX,
                whole: false,
            });
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
            began: Instant::now(),
            sent: None,
            at: None,
        });
        drop(attempts);
        self.note(|| {
            let (tenant, key, version) = (action.tenant, &action.key, action.version);
            format!("attempt {number}: t{tenant}/{key}, version {version}")
        });
        number
    }

    pub fn attempt_comes_to(&self, number: usize, from: Arc<str>) {
        self.attempts.lock()[number].at = Some(from);
    }

    pub fn attempt_sent(&self, number: usize) {
        self.attempts.lock()[number].sent = Some(Instant::now());
    }
}

/// Where the store has a key.
pub fn address_of(tenant: usize, key: &str) -> Address {
    let scope = Scope {
        tenant: format!("t{tenant}").into(),
        namespace: "up".into(),
    };
    address(&SECRET, &scope, &Key::new(key).expect("a key"))
}

/// A generator of its own for part `part` of a seed.
pub fn part_of(seed: u64, part: u64) -> Random {
    let mut random = Random::new(seed ^ part.wrapping_mul(0xA076_1D64_78BD_642F));
    random.next();
    random
}
