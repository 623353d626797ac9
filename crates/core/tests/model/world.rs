//! The store that all owners share, with the faults of a network in between.

use onlyonce_core::{Fence, Held, Record, Timestamp, transition::assert_lawful, view};

use crate::{
    KEYS,
    coverage::Coverage,
    random::Random,
    reference::{By, Reference},
};

/// How a write ended, as far as its writer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    Done,
    Lost,
    /// Nothing was written.
    Unavailable,
    /// It was written, or was not, or will be later.
    InDoubt,
}

/// A write on its way.
struct Pending {
    key: usize,
    expected: Option<Fence>,
    record: Record,
    by: By,
    read_at: Timestamp,
}

pub struct World {
    pub random: Random,
    pub now: Timestamp,
    pub reference: Reference,
    pub coverage: Coverage,
    /// Whether faults happen; off while a run is brought to its end.
    pub faults: bool,
    slots: [Option<Record>; KEYS],
    late: Vec<Pending>,
    log: Option<Vec<String>>,
}

impl World {
    pub fn new(seed: u64, logged: bool) -> Self {
        Self {
            random: Random::new(seed),
            now: Timestamp::from_millis(1_767_225_600_000),
            reference: Reference::new(KEYS),
            coverage: Coverage::default(),
            faults: true,
            slots: Default::default(),
            late: Vec::new(),
            log: logged.then(Vec::new),
        }
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            let at = self.now.as_millis() - 1_767_225_600_000;
            log.push(format!("{at:>12} {}", line()));
        }
    }

    pub fn into_log(self) -> Vec<String> {
        self.log.unwrap_or_default()
    }

    /// What stands there, whether it counts or not.
    pub fn slot(&self, key: usize) -> Option<&Record> {
        self.slots[key].as_ref()
    }

    /// The record that counts.
    pub fn counting(&self, key: usize) -> Option<&Record> {
        match view(self.slot(key), self.now) {
            Held::Record { record, .. } => Some(record),
            Held::Absent | Held::Unreadable => None,
        }
    }

    /// A load may fail; it never lies.
    pub fn load_fails(&mut self) -> bool {
        self.faults && self.random.chance(4)
    }

    pub fn write(
        &mut self,
        key: usize,
        expected: Option<Fence>,
        record: &Record,
        by: By,
        read_at: Timestamp,
    ) -> Ack {
        let pending = Pending {
            key,
            expected,
            record: record.clone(),
            by,
            read_at,
        };
        let roll = if self.faults {
            self.random.below(100)
        } else {
            99
        };
        let ack = match roll {
            0..4 => Ack::Unavailable,
            4..8 => Ack::InDoubt,
            8..12 => {
                self.land(pending);
                Ack::InDoubt
            }
            12..16 => {
                self.late.push(pending);
                Ack::InDoubt
            }
            _ => match self.land(pending) {
                true => Ack::Done,
                false => Ack::Lost,
            },
        };
        self.coverage.count(match (ack, roll) {
            (Ack::Done, _) => "a write is acknowledged",
            (Ack::Lost, _) => "a write is fenced off",
            (Ack::Unavailable, _) => "a write fails",
            (Ack::InDoubt, 8..12) => "a written write is in doubt",
            (Ack::InDoubt, _) => "an unwritten write is in doubt",
        });
        self.note(|| format!("  {ack:?}: key {key} {by:?} over {expected:?}"));
        ack
    }

    /// Lets a write land that was held up on its way.
    pub fn land_a_late_write(&mut self) {
        if self.late.is_empty() {
            return;
        }
        let index = self.random.below(self.late.len());
        let pending = self.late.swap_remove(index);
        let (key, by) = (pending.key, pending.by);
        let landed = self.land(pending);
        self.coverage.count(match landed {
            true => "a late write lands",
            false => "a late write is fenced off",
        });
        self.note(|| format!("late, landed {landed}: key {key} {by:?}"));
    }

    /// Compares and sets, as every store does.
    fn land(&mut self, pending: Pending) -> bool {
        let held = self.counting(pending.key);
        if held.map(Record::fence) != pending.expected {
            return false;
        }
        assert_lawful(held, &pending.record);
        let Pending {
            key,
            record,
            by,
            read_at,
            ..
        } = pending;
        self.reference.written(key, by, &record, read_at, self.now);
        self.slots[key] = Some(record);
        true
    }
}
