//! What the judge needs to know beside the upstream's ledger: who claimed what for whom, when the way to the
//! store was disturbed, when a gateway stood still, and what operators said.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use onlyonce_core::{
    Address, Fence, OperationId, Record, RecordingId, State, StateName, Timestamp,
};
use onlyonce_store::{Store as _, StoreError, Swap, Write};
use tokio::time::Instant;

use crate::wire::Fields;
use crate::world::World;

/// For how long a call of the store that did not go well may hold up others of its key: those wait for an
/// attempt that tries again, and reads back what is in doubt.
const AFTERMATH: Duration = Duration::from_secs(3);

/// A key of a tenant.
pub type Name = (usize, String);

/// Everything that is noted.
#[derive(Default)]
pub struct Noted {
    /// All calls that were to claim, in order.
    pub claims: Vec<Claim>,
    /// Attempts of which a gateway has told the store that they joined.
    pub joined: Vec<usize>,
    pub rulings: Vec<Ruling>,
    /// Recordings that were begun for an operator's answer.
    pub brought: HashSet<RecordingId>,
    disturbed: Vec<Disturbed>,
    stood: Vec<Stood>,
    expired: Vec<Expired>,
    /// By how many milliseconds each process is ahead of the store's clock.
    skews: HashMap<Arc<str>, i64>,
}

/// A call of the store that was to claim a key for an attempt.
pub struct Claim {
    pub attempt: usize,
    /// A gateway, and in which of its lives.
    pub from: Arc<str>,
    pub name: Name,
    expected: Option<Fence>,
    pub id: OperationId,
    pub epoch: onlyonce_core::Epoch,
    pub asked: Instant,
    /// How many writes of the key had landed by then.
    changes: usize,
    pub heard: Option<(Instant, Ack)>,
    /// How many windows of the key had ended when that was heard.
    pub window: usize,
}

/// How a claim was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    Done,
    Lost,
    InDoubt,
    Failed,
}

/// What an operator says of an operation. The answer that one brings has its number in `x-ruling`.
pub struct Ruling {
    pub id: OperationId,
    pub name: Name,
    /// `None` where it did not run.
    pub answer: Option<Brought>,
    /// In which of the key's lives it was written, if it was.
    pub life: Option<usize>,
}

/// The answer that an operator brings.
#[derive(Clone)]
pub struct Brought {
    pub fields: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
}

/// A call of the store by a gateway that was slow, or failed.
struct Disturbed {
    from: Arc<str>,
    address: Address,
    since: Instant,
    until: Option<Instant>,
}

/// A gateway stood still.
struct Stood {
    from: Arc<str>,
    since: Instant,
    until: Option<Instant>,
}

/// A lease that a gateway took for passed.
struct Expired {
    of: RecordingId,
    by: Arc<str>,
    /// By the store's clock.
    at: Timestamp,
    lease_until: Timestamp,
}

/// While it is there, a call is under way that does not go well.
pub struct Disturbance {
    world: Arc<World>,
    index: usize,
}

impl Disturbance {
    pub fn begins(world: &Arc<World>, from: &Arc<str>, address: Address) -> Self {
        let mut noted = world.noted.lock();
        noted.disturbed.push(Disturbed {
            from: Arc::clone(from),
            address,
            since: Instant::now(),
            until: None,
        });
        let index = noted.disturbed.len() - 1;
        drop(noted);
        let world = Arc::clone(world);
        Self { world, index }
    }
}

impl Drop for Disturbance {
    fn drop(&mut self) {
        self.world.noted.lock().disturbed[self.index].until = Some(Instant::now());
    }
}

impl Noted {
    /// Whether what `from` asked the store of `address` at `at` went as in a world without faults.
    pub fn is_smooth(&self, from: &str, address: Address, at: Instant) -> bool {
        let disturbed = self.disturbed.iter().any(|one| {
            *one.from == *from
                && one.address == address
                && one.since <= at
                && one.until.is_none_or(|until| at <= until + AFTERMATH)
        });
        !disturbed && !self.stands(from, at)
    }

    /// Whether `from` stands still at `at`.
    pub fn stands(&self, from: &str, at: Instant) -> bool {
        self.stood.iter().any(|one| {
            *one.from == *from && one.since <= at && one.until.is_none_or(|until| at <= until)
        })
    }

    /// Whether `from` began to stand still between the two moments.
    pub fn stops_between(&self, from: &str, since: Instant, until: Instant) -> bool {
        let mut stood = self.stood.iter().filter(|one| *one.from == *from);
        stood.any(|one| since <= one.since && one.since <= until)
    }

    /// Whether the lease of `of`, which `from` believed in at `now` on its own clock, was taken for passed by a
    /// gateway whose clock is further ahead than the margin that is kept for that, or told it by the store, whose clock is.
    pub fn expired_too_early(&self, of: RecordingId, from: &str, now: i64, margin: i64) -> bool {
        self.expired.iter().any(|one| {
            let latest = self.skew(&one.by).max(0);
            let lease_until = one.lease_until.as_millis() as i64;
            one.of == of
                && now + margin < lease_until
                && lease_until <= one.at.as_millis() as i64 + latest
                && latest - self.skew(from) > margin
        })
    }

    /// By how many milliseconds `from` is ahead of the store's clock.
    pub fn skew(&self, from: &str) -> i64 {
        self.skews.get(from).copied().unwrap_or_default()
    }

    /// The last call by which a claim may have been made for `attempt`.
    pub fn claim_of(&self, attempt: usize) -> Option<&Claim> {
        let mut calls = self.claims.iter().rev();
        calls.find(|call| {
            let ack = call.heard.map(|(_, ack)| ack);
            call.attempt == attempt && matches!(ack, Some(Ack::Done | Ack::InDoubt))
        })
    }
}

impl World {
    pub fn is_ahead(&self, from: &Arc<str>, by: i64) {
        self.noted.lock().skews.insert(Arc::clone(from), by);
    }

    pub fn stands_still(&self, from: &Arc<str>) {
        self.noted.lock().stood.push(Stood {
            from: Arc::clone(from),
            since: Instant::now(),
            until: None,
        });
    }

    /// `by` has taken the lease of `held` for passed.
    pub fn expires(&self, by: &Arc<str>, held: &Record) {
        if let State::InFlight { lease_until, .. } = held.state {
            self.noted.lock().expired.push(Expired {
                of: held.recording(),
                by: Arc::clone(by),
                at: self.store.now(),
                lease_until,
            });
        }
    }

    pub fn goes_on(&self, from: &str) {
        let mut noted = self.noted.lock();
        let stood = noted.stood.iter_mut().filter(|one| *one.from == *from);
        for one in stood {
            one.until.get_or_insert_with(Instant::now);
        }
    }

    /// Whether no gateway stands still, or has stood still within the last `span`.
    pub fn all_awake_for(&self, span: Duration) -> bool {
        let noted = self.noted.lock();
        let mut stood = noted.stood.iter();
        stood.all(|one| one.until.is_some_and(|until| until.elapsed() >= span))
    }

    /// `from` asks the store for `write`: the number of the call, if that is a claim (I14).
    pub fn asks(&self, from: &Arc<str>, expected: Option<Fence>, write: &Write) -> Option<usize> {
        let record = &write.record;
        let claims = record.state.name() == StateName::InFlight && record.is_new_claim();
        let note = write.attempt.as_ref().filter(|_| claims)?;
        let attempt = number_of(&note.peer)?;
        let name = name_of(record);
        let changes = self.changes(&name);
        let claim = Claim {
            attempt,
            from: Arc::clone(from),
            expected,
            id: record.id,
            epoch: record.epoch,
            asked: Instant::now(),
            changes,
            heard: None,
            window: 0,
            name,
        };
        let mut noted = self.noted.lock();
        let again = noted.claims.iter().any(|before| {
            before.attempt == attempt
                && before.expected == expected
                && before.changes == changes
                && matches!(before.heard, Some((_, Ack::InDoubt)))
        });
        noted.claims.push(claim);
        let number = noted.claims.len() - 1;
        drop(noted);
        if again {
            self.wrong(format!(
                "I14: {from} claims for attempt {attempt} again what it was in doubt about"
            ));
        }
        Some(number)
    }

    /// A gateway notes that the attempt from `peer` has joined.
    pub fn joins(&self, peer: &str) {
        self.noted.lock().joined.extend(number_of(peer));
    }

    /// How claim number `call` was answered.
    pub fn claim_is_answered(&self, call: usize, answer: &Result<Swap, StoreError>) {
        let ack = match answer {
            Ok(Swap::Done { .. }) => Ack::Done,
            Ok(Swap::Lost) => Ack::Lost,
            Err(StoreError::InDoubt(_)) => Ack::InDoubt,
            Err(_) => Ack::Failed,
        };
        let mut noted = self.noted.lock();
        let claim = &mut noted.claims[call];
        claim.heard = Some((Instant::now(), ack));
        claim.window = self.window_of(&claim.name);
    }

    /// An operator is about to say this; the number by which its answer is known again.
    pub fn rules(&self, id: OperationId, name: Name, answer: bool, len: usize) -> usize {
        let mut noted = self.noted.lock();
        let number = noted.rulings.len();
        let answer = answer.then(|| Brought::numbered(number, len));
        noted.rulings.push(Ruling {
            id,
            name,
            answer,
            life: None,
        });
        number
    }
}

impl Brought {
    /// What it is known by.
    pub fn number(&self) -> Option<usize> {
        let number = self.fields.iter().find(|(name, _)| name == "x-ruling");
        number?.1.parse().ok()
    }

    fn numbered(number: usize, len: usize) -> Self {
        let field = |name: &str, value: String| (name.to_owned(), value);
        let mut body = format!("ruling {number}. ").into_bytes();
        body.resize(len.max(body.len()), b'.');
        Self {
            fields: vec![
                field("x-ruling", number.to_string()),
                field("date", "Thu, 01 Jan 2026 00:00:01 GMT".to_owned()),
                field("link", "a".to_owned()),
                field("content-type", "text/plain".to_owned()),
                field("link", "b".to_owned()),
            ],
            body,
            trailers: Vec::new(),
        }
    }
}

/// The number of the attempt that comes from there.
pub fn number_of(peer: &str) -> Option<usize> {
    peer.rsplit(':').next()?.parse().ok()
}

/// Whose key a record is.
pub fn name_of(record: &Record) -> Name {
    let tenant = usize::from(*record.scope.tenant == *"t1");
    (tenant, record.key.as_str().to_owned())
}
