//! The books in memory.

use std::collections::{BTreeMap, VecDeque};

use onlyonce_core::{Account, Entry, Posting, Record, Sums, Timestamp};

use crate::books::{
    Booked, Cell, EntryPage, EntryQuery, Grain, Held, Hold, MOST_LOOKED_AT, Position, Sinks,
    SumsQuery, cells_of,
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
    pub(super) sinks: Sinks,
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

    pub(super) fn hold(&mut self, hold: &Hold, now: Timestamp) -> Option<Held> {
        let last = self.booked.len().checked_sub(1).map(|last| self.at(last).0);
        self.sinks.begin(hold, last);
        self.sinks.hold(hold, now)
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
