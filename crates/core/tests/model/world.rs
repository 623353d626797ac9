//! The store that all owners share, and the network between them, with the faults of both.

use std::{num::NonZero, time::Duration};

use onlyonce_core::{Held, Record, State, Timestamp, transition::assert_lawful, view};

use crate::{
    CONFIRMED_FOR, KEYS, LAG, OWNERS,
    coverage::Coverage,
    models::{Forgets, Model},
    random::Random,
    reference::{By, Reference, Version},
};

mod faults;
mod wire;

pub use wire::Ticket;

const START: Timestamp = Timestamp::from_millis(1_767_225_600_000);
/// A claim that reaches a store with tokens later than this is not made.
const VALID_FOR: Duration = Duration::from_millis(1_500);

/// How a write ended, as far as its writer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    Done,
    Lost,
    /// Nothing was written.
    Unavailable,
    /// It was written, or was not, or will be later.
    InDoubt,
    /// The answer comes later, if it does.
    OnItsWay(Ticket),
}

/// A write, as its writer asks for it.
pub struct Write<'a> {
    pub gateway: usize,
    pub key: usize,
    /// What it is to replace, as the writer knows it.
    pub base: Option<&'a Record>,
    pub record: &'a Record,
    pub by: By,
    pub read_at: Timestamp,
    /// Whether its writer can wait for the answer.
    pub waits: bool,
}

/// A write on its way.
struct Pending {
    gateway: usize,
    key: usize,
    base: Option<Record>,
    record: Record,
    by: By,
    read_at: Timestamp,
    since: Duration,
    not_after: Option<Timestamp>,
    ticket: Option<Ticket>,
    /// See [`Line::changes`].
    changes: u64,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Landed {
    Written(Version),
    /// It had been written before, and stands.
    Stands(Version),
    Fenced,
    /// It is no arrow of the drawing, or came too late.
    Refused,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Store,
    /// The gateway's own memory, where the store had confirmed it.
    Memory,
    /// A primary that is none any more, if only by way of the gateway's memory.
    Former,
}

/// What a load gave.
pub struct Loaded {
    pub record: Option<Record>,
    pub version: Version,
    pub source: Source,
}

impl Loaded {
    /// The record that counts at `now`.
    pub fn counting(&self, now: Timestamp) -> Option<&Record> {
        match view(self.record.as_ref(), now) {
            Held::Record { record, .. } => Some(record),
            Held::Absent | Held::Unreadable => None,
        }
    }
}

/// What a gateway has of the store.
#[derive(Clone, Default)]
struct Line {
    /// Nothing passes.
    cut: bool,
    /// Reads go to a former primary, which shows these.
    former: Option<[Version; KEYS]>,
    /// How far its idea of the store's clock is off, in milliseconds.
    skew: i64,
    /// The latest moment that it believed in: its idea never runs backwards.
    latest: Timestamp,
    memory: [Option<Kept>; KEYS],
    /// Raised by every write from here: what was asked before is not kept after it.
    changes: [u64; KEYS],
}

#[derive(Clone, Copy)]
struct Kept {
    version: Version,
    confirmed_at: Duration,
    /// Whether the store said so, or a former primary.
    source: Source,
}

struct Commit {
    key: usize,
    before: Version,
    by: By,
    acknowledged: bool,
}

pub struct World {
    pub model: &'static Model,
    pub random: Random,
    /// The server's clock.
    pub now: Timestamp,
    pub reference: Reference,
    pub coverage: Coverage,
    /// Whether faults happen; off while a run is brought to its end.
    pub faults: bool,
    /// All that ever stood anywhere, by version. The first is absence.
    records: Vec<Option<Record>>,
    /// What stands in the store.
    visible: [Version; KEYS],
    commits: Vec<Commit>,
    /// How many of the commits a failover leaves at least.
    safe: usize,
    forgotten: Vec<Record>,
    /// How often something was forgotten.
    pub timeline: u64,
    lines: Vec<Line>,
    out_of_reach: [bool; KEYS],
    /// The primary waits for its standby with every commit.
    standby_away: bool,
    /// Writes that a gateway waits for, in order.
    wire: Vec<Pending>,
    /// Writes that nobody waits for any more. Those of one transaction lie together.
    late: Vec<Vec<Pending>>,
    replies: Vec<wire::Reply>,
    tickets: u64,
    log: Option<Vec<String>>,
}

impl World {
    pub fn new(model: &'static Model, seed: u64, logged: bool) -> Self {
        Self {
            model,
            random: Random::new(seed),
            now: START,
            reference: Reference::new(KEYS, model, START),
            coverage: Coverage,
            faults: true,
            records: vec![None],
            visible: [0; KEYS],
            commits: Vec::new(),
            safe: 0,
            forgotten: Vec::new(),
            timeline: 0,
            lines: vec![Line::default(); OWNERS],
            out_of_reach: [false; KEYS],
            standby_away: false,
            wire: Vec::new(),
            late: Vec::new(),
            replies: Vec::new(),
            tickets: 0,
            log: logged.then(Vec::new),
        }
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            let at = self.now.as_millis() as i64 - START.as_millis() as i64;
            log.push(format!("{at:>12} {}", line()));
        }
    }

    pub fn into_log(self) -> Vec<String> {
        self.log.unwrap_or_default()
    }

    pub fn pass(&mut self, span: Duration) {
        self.now = self.now.after(span);
        self.reference.pass(span, self.now);
    }

    /// Lets so much time pass on whatever clock was ever believed.
    pub fn outlive(&mut self, span: Duration) {
        let behind = self.reference.highest().since(self.now);
        self.pass(behind + span);
    }

    /// What stands there, whether it counts or not.
    pub fn slot(&self, key: usize) -> Option<&Record> {
        self.records[self.visible[key]].as_ref()
    }

    /// The record that counts on the server's clock.
    pub fn counting(&self, key: usize) -> Option<&Record> {
        match view(self.slot(key), self.now) {
            Held::Record { record, .. } => Some(record),
            Held::Absent | Held::Unreadable => None,
        }
    }

    /// By how much a claim, a renewal or an expiry raises the epoch.
    pub fn raise(&mut self) -> NonZero<u32> {
        let drawn = self.model.forgets != Forgets::Nothing;
        let raise = drawn.then(|| NonZero::new((self.random.next() >> 32) as u32));
        raise.flatten().unwrap_or(NonZero::<u32>::MIN)
    }

    /// What a gateway takes the store's clock for.
    pub fn clock(&mut self, gateway: usize) -> Timestamp {
        let line = &mut self.lines[gateway];
        let millis = self.now.as_millis().saturating_add_signed(line.skew);
        line.latest = line.latest.max(Timestamp::from_millis(millis));
        line.latest
    }

    /// A load may fail. It lies only where a former primary answers it.
    pub fn load(&mut self, gateway: usize, key: usize) -> Option<Loaded> {
        if let Some(kept) = self.remembered(gateway, key) {
            self.coverage.count("a record is in memory");
            return Some(self.loaded(kept.version, kept.source));
        }
        if self.faults && self.random.chance(4) {
            return None;
        }
        let line = &self.lines[gateway];
        if line.cut || self.out_of_reach[key] {
            return None;
        }
        let (version, source) = match &line.former {
            Some(versions) => (versions[key], Source::Former),
            None => (self.visible[key], Source::Store),
        };
        let is_old = version != self.visible[key];
        if is_old {
            self.coverage.count("a read from a former primary");
        }
        let loaded = self.loaded(version, source);
        let keeps = self.model.shared && is_completed(loaded.record.as_ref());
        let confirmed_at = self.reference.elapsed();
        let kept = keeps.then_some(Kept {
            version,
            confirmed_at,
            source: match source {
                Source::Store => Source::Memory,
                source => source,
            },
        });
        self.lines[gateway].memory[key] = kept;
        Some(loaded)
    }

    fn loaded(&self, version: Version, source: Source) -> Loaded {
        Loaded {
            record: self.records[version].clone(),
            version,
            source,
        }
    }

    /// What may be replayed without asking.
    fn remembered(&mut self, gateway: usize, key: usize) -> Option<Kept> {
        let now = self.clock(gateway);
        let kept = self.lines[gateway].memory[key]?;
        let age = self.reference.elapsed() - kept.confirmed_at;
        let ends = self.records[kept.version].as_ref()?.expires_at()?;
        (age < CONFIRMED_FOR && now < ends).then_some(kept)
    }

    /// The process of this gateway is another one.
    pub fn forget_memory(&mut self, gateway: usize) {
        let line = &mut self.lines[gateway];
        line.memory = Default::default();
        line.latest = Timestamp::default();
    }

    pub fn write(&mut self, write: Write<'_>) -> Ack {
        let Write {
            gateway, key, by, ..
        } = write;
        let waits = write.waits;
        let pending = self.starts(write);
        let base = pending.base.as_ref().map(Record::fence);
        if self.lines[gateway].cut || self.out_of_reach[key] {
            self.coverage.count("a write does not get through");
            return Ack::Unavailable;
        }
        let often = if self.model.shared { 60 } else { 30 };
        if self.faults && waits && self.random.chance(often) {
            let ticket = self.send(pending);
            self.note(|| format!("  on its way, {ticket:?}: key {key} {by:?} over {base:?}"));
            return Ack::OnItsWay(ticket);
        }
        let roll = match self.faults {
            true => self.random.below(100),
            false => 99,
        };
        let ack = match roll {
            0..4 => Ack::Unavailable,
            4..8 => Ack::InDoubt,
            // Nothing is acknowledged, and nobody sees it.
            _ if self.standby_away => {
                self.late.push(vec![pending]);
                Ack::InDoubt
            }
            8..12 => {
                self.land(&pending);
                Ack::InDoubt
            }
            12..16 => {
                self.late.push(vec![pending]);
                Ack::InDoubt
            }
            _ => {
                let landed = self.land(&pending);
                let reply = self.answer(&pending, landed);
                self.take(reply)
            }
        };
        self.coverage.count(match (ack, roll) {
            (Ack::Done, _) => "a write is acknowledged",
            (Ack::Lost, _) => "a write is fenced off",
            (Ack::InDoubt, 8..12) => "a written write is in doubt",
            (Ack::InDoubt, _) => "an unwritten write is in doubt",
            (Ack::Unavailable | Ack::OnItsWay(_), _) => "a write fails",
        });
        self.note(|| format!("  {ack:?}: key {key} {by:?} over {base:?}"));
        ack
    }

    fn starts(&mut self, write: Write<'_>) -> Pending {
        let line = &mut self.lines[write.gateway];
        line.memory[write.key] = None;
        line.changes[write.key] += 1;
        let claims = matches!(write.by, By::Claim { .. });
        Pending {
            gateway: write.gateway,
            key: write.key,
            base: write.base.cloned(),
            record: write.record.clone(),
            by: write.by,
            read_at: write.read_at,
            since: self.reference.elapsed(),
            not_after: (claims && self.model.tokens).then(|| self.now.after(VALID_FOR)),
            ticket: None,
            changes: line.changes[write.key],
        }
    }

    /// Lets a write land that was held up on its way.
    pub fn land_a_late_write(&mut self) {
        if self.late.is_empty() || self.standby_away {
            return;
        }
        let index = self.random.below(self.late.len());
        for pending in self.late.swap_remove(index) {
            let (key, by) = (pending.key, pending.by);
            let landed = self.land(&pending);
            self.coverage.count(match landed {
                Landed::Written(_) => "a late write lands",
                Landed::Stands(_) => "a write that came twice knows itself",
                Landed::Fenced | Landed::Refused => "a late write is fenced off",
            });
            self.note(|| format!("late, {landed:?}: key {key} {by:?}"));
        }
    }

    /// Compares and sets, as every store does.
    fn land(&mut self, pending: &Pending) -> Landed {
        let key = pending.key;
        if self.model.tokens && self.slot(key) == Some(&pending.record) {
            return Landed::Stands(self.visible[key]);
        }
        if pending.not_after.is_some_and(|end| self.now > end) {
            self.coverage
                .count("a claim comes too late and is not made");
            return Landed::Refused;
        }
        let held = self.counting(key).cloned();
        if held.as_ref().map(Record::fence) != pending.base.as_ref().map(Record::fence) {
            return Landed::Fenced;
        }
        let Pending {
            record,
            by,
            read_at,
            ..
        } = pending;
        if held == pending.base {
            assert_lawful(held.as_ref(), record);
            self.reference.written(key, *by, record, *read_at, self.now);
        } else {
            let meant = pending.base.as_ref().expect("it has a fence");
            self.is_a_twin(meant, held.as_ref().expect("it has the fence"));
            if !held.as_ref().is_some_and(|held| is_arrow(held, record)) {
                return Landed::Refused;
            }
            self.reference
                .written_over_a_twin(key, *by, record, *read_at);
        }
        let before = self.visible[key];
        self.commits.push(Commit {
            key,
            before,
            by: *by,
            acknowledged: false,
        });
        self.records.push(Some(record.clone()));
        self.visible[key] = self.records.len() - 1;
        self.reference.stands(self.commits.len(), self.visible[key]);
        Landed::Written(self.visible[key])
    }

    /// A fence names one record, but for those that were forgotten, of one and the same claim.
    fn is_a_twin(&mut self, meant: &Record, held: &Record) {
        let was_forgotten = self.forgotten.contains(meant);
        assert!(was_forgotten, "I9: {:?} names two records", meant.fence());
        let name = meant.recording();
        assert_eq!(name, held.recording(), "I9: two claims have one fence");
        self.coverage.count("forgotten: a fence is given twice");
    }

    /// An operator removes a completed record.
    pub fn remove(&mut self, gateway: usize, key: usize, seen: &Record) -> bool {
        let line = &mut self.lines[gateway];
        if line.cut || self.out_of_reach[key] || self.standby_away {
            return false;
        }
        line.memory[key] = None;
        line.changes[key] += 1;
        let fence = seen.fence();
        let held = self.counting(key);
        if held.map(Record::fence) != Some(fence) {
            return false;
        }
        match held == Some(seen) {
            true => self.reference.removed(key, self.now),
            false => {
                let held = held.cloned().expect("it has the fence");
                self.is_a_twin(seen, &held);
                self.reference.removed_a_twin(key);
            }
        }
        let before = self.visible[key];
        self.commits.push(Commit {
            key,
            before,
            by: By::Removal,
            acknowledged: true,
        });
        self.records.push(None);
        self.visible[key] = self.records.len() - 1;
        self.reference.stands(self.commits.len(), self.visible[key]);
        self.coverage.count("an operator removes a record");
        self.note(|| format!("removed: key {key} at {fence:?}"));
        true
    }
}

fn is_completed(record: Option<&Record>) -> bool {
    record.is_some_and(|record| matches!(record.state, State::Completed(_)))
}

/// What of the drawing the shared stores enforce themselves.
fn is_arrow(held: &Record, next: &Record) -> bool {
    use onlyonce_core::StateName::{Completed, InFlight, Released, Unknown};

    let arrow = matches!(
        (held.state.name(), next.state.name()),
        (InFlight, _) | (Unknown, InFlight | Completed | Released) | (Released, InFlight)
    );
    let claims = next.claim == next.epoch;
    arrow && (claims || next.claim == held.claim)
}

/// The span within which all gateways' clocks lie, in milliseconds: those of PostgreSQL follow the
/// server's from below, those of Redis are off to either side.
fn skews(model: &Model) -> std::ops::RangeInclusive<i64> {
    let lag = i64::try_from(LAG.as_millis()).expect("it is short");
    match (model.shared, model.tokens) {
        (false, _) => 0..=0,
        (true, false) => -lag..=0,
        (true, true) => -lag / 2..=lag / 2,
    }
}
