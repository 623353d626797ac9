//! The books in memory.

use std::collections::{BTreeMap, VecDeque};

use onlyonce_core::{Account, Entry, OperationId, OwnerId, Posting, Record, Sums, Timestamp};

use crate::books::{
    Advance, Begin, Booked, Cell, DeadLetter, EntryPage, EntryQuery, Grain, Held, Hold,
    MOST_LOOKED_AT, Position, SumsQuery, cells_of,
};

/// Entries that are booked at once.
const MOST_BOOKED: usize = 5_000;

#[derive(Clone, Default)]
pub(super) struct Ledger {
    /// Kept with their records, and not booked yet.
    kept: VecDeque<Entry>,
    booked: VecDeque<Entry>,
    /// How many booked entries were dropped: the first one that is left has this number.
    dropped: u128,
    cells: BTreeMap<(Grain, Timestamp, Option<Account>), Sums>,
    sinks: BTreeMap<Box<str>, Sink>,
}

#[derive(Clone, Default)]
struct Sink {
    owner: Option<(OwnerId, Timestamp)>,
    position: Option<Position>,
    dead: BTreeMap<OperationId, DeadLetter>,
}

impl Ledger {
    /// Keeps the entry of `record`, if it has one.
    pub(super) fn keep(&mut self, record: &Record) {
        self.kept.extend(Entry::of(record));
    }

    /// Books, and drops the oldest ones over `most`.
    pub(super) fn book(&mut self, most: usize) -> Booked {
        let count = self.kept.len().min(MOST_BOOKED);
        let entries: Vec<Entry> = self.kept.drain(..count).collect();
        for entry in &entries {
            self.post(&entry.posting());
        }
        let booked = Booked {
            entries: count as u64,
            more: !self.kept.is_empty(),
            oldest: entries.iter().map(|entry| entry.at).min(),
        };
        self.booked.extend(entries);
        while self.booked.len() > most {
            self.booked.pop_front();
            self.dropped += 1;
        }
        booked
    }

    pub(super) fn post(&mut self, posting: &Posting) {
        for (grain, period, account) in cells_of(posting) {
            let cell = (grain, period, account.cloned());
            self.cells.entry(cell).or_default().merge(&posting.sums);
        }
    }

    fn at(&self, index: usize) -> (Position, &Entry) {
        (Position(self.dropped + index as u128), &self.booked[index])
    }

    /// The index of the first entry that is not before `position`.
    fn index_of(&self, position: u128) -> usize {
        let index = position.saturating_sub(self.dropped);
        usize::try_from(index).map_or(self.booked.len(), |index| index.min(self.booked.len()))
    }

    pub(super) fn feed(&self, after: Option<Position>, limit: usize) -> Vec<(Position, Entry)> {
        let first = after.map_or(0, |after| self.index_of(after.0 + 1));
        (first..self.booked.len())
            .take(limit)
            .map(|index| self.at(index))
            .map(|(position, entry)| (position, entry.clone()))
            .collect()
    }

    pub(super) fn entries(&self, query: &EntryQuery) -> EntryPage {
        let end = query
            .older_than
            .map_or(self.booked.len(), |older_than| self.index_of(older_than.0));
        let mut page = EntryPage::default();
        for (looked_at, (position, entry)) in (0..end).rev().map(|index| self.at(index)).enumerate()
        {
            if page.entries.len() == query.limit || looked_at == MOST_LOOKED_AT {
                page.next = Some(Position(position.0 + 1));
                break;
            }
            if query.wants(entry) {
                page.entries.push(entry.clone());
            }
        }
        page
    }

    pub(super) fn sums(&self, query: &SumsQuery) -> Vec<Cell> {
        let first = (query.grain, query.since, None);
        let end = (query.grain, query.until, None);
        if query.since >= query.until {
            return Vec::new();
        }
        self.cells
            .range(first..end)
            .filter(|((_, _, account), _)| query.of.wants(account.as_ref()))
            .map(|((_, period, account), sums)| Cell {
                period: *period,
                account: account.clone().unwrap_or_default(),
                sums: *sums,
            })
            .collect()
    }

    pub(super) fn hold(&mut self, hold: Hold, now: Timestamp) -> Option<Held> {
        let last = self.booked.len().checked_sub(1).map(|last| self.at(last).0);
        let sink = self.sinks.entry(hold.sink).or_insert_with(|| Sink {
            position: match hold.begin {
                Begin::Start => None,
                Begin::Now => last,
            },
            ..Sink::default()
        });
        let is_free = sink
            .owner
            .is_none_or(|(owner, until)| owner == hold.owner || now >= until);
        is_free.then(|| {
            sink.owner = Some((hold.owner, now.after(hold.lease)));
            Held {
                position: sink.position,
            }
        })
    }

    pub(super) fn advance(&mut self, step: Advance, now: Timestamp) -> bool {
        let Some(sink) = self.sinks.get_mut(&step.sink) else {
            return false;
        };
        let holds = sink
            .owner
            .is_some_and(|(owner, until)| owner == step.owner && now < until);
        if !holds || sink.position != step.from {
            return false;
        }
        sink.position = Some(step.to);
        let letters = step.bury.into_iter();
        sink.dead
            .extend(letters.map(|letter| (letter.entry.id, letter)));
        true
    }

    pub(super) fn dead(
        &self,
        sink: &str,
        after: Option<OperationId>,
        limit: usize,
    ) -> Vec<DeadLetter> {
        let dead = self.sinks.get(sink).into_iter().flat_map(|sink| &sink.dead);
        dead.filter(|(id, _)| after.is_none_or(|after| **id > after))
            .take(limit)
            .map(|(_, letter)| letter.clone())
            .collect()
    }

    pub(super) fn forget_dead(&mut self, sink: &str, ids: &[OperationId]) -> u64 {
        let Some(sink) = self.sinks.get_mut(sink) else {
            return 0;
        };
        let forgotten = ids.iter().filter(|id| sink.dead.remove(id).is_some());
        forgotten.count() as u64
    }

    /// Says how many entries it dropped.
    pub(super) fn trim(&mut self, before: Timestamp) -> u64 {
        let mut trimmed = 0;
        while self.booked.front().is_some_and(|entry| entry.at < before) {
            self.booked.pop_front();
            self.dropped += 1;
            trimmed += 1;
        }
        self.cells
            .retain(|(grain, period, _), _| period.after(grain.span()) > before);
        trimmed
    }
}
