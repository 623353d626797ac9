//! What is known in memory of what is booked: where it stands, and what it adds up to.

use std::collections::{BTreeMap, VecDeque};

use onlyonce_core::{Account, Posting, Sums, Timestamp};

use super::{
    Spot,
    block::{BlockHeader, Rows},
    cells::Cells,
};
use crate::books::Grain;

/// Blocks are read in groups of about so many bytes.
const GROUP: u64 = 128 << 10;

/// Blocks that stand together in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    pub file: u32,
    pub offset: u64,
    pub len: u64,
    /// The number of the first entry.
    pub entry: u64,
    pub entries: u64,
    /// The first and the last time in it, in milliseconds; 0 where there is none.
    pub since: u64,
    pub until: u64,
}

impl Group {
    pub fn end(&self) -> u64 {
        self.entry + self.entries
    }
}

#[derive(Default)]
pub struct Shelf {
    /// In order; together they are all the blocks that are kept.
    pub groups: VecDeque<Group>,
    pub cells: Cells,
}

impl Shelf {
    /// Adds a block and its rows.
    pub fn add(&mut self, spot: &Spot, header: &BlockHeader, rows: &Rows) {
        self.place(spot, header);
        self.post(rows.entries.entries().map(|entry| entry.posting()));
        self.post(rows.postings.iter().cloned());
    }

    pub fn post(&mut self, postings: impl IntoIterator<Item = Posting>) {
        // Many are of the same hour and account, and each would go to four cells.
        let mut hours: BTreeMap<(Timestamp, Account), Sums> = BTreeMap::new();
        for Posting { at, account, sums } in postings {
            let hour = (Grain::Hour.period(at), account);
            hours.entry(hour).or_default().merge(&sums);
        }
        for ((at, account), sums) in hours {
            self.cells.post(&Posting { at, account, sums });
        }
    }

    /// Adds a block's place.
    pub fn place(&mut self, spot: &Spot, header: &BlockHeader) {
        let last = self
            .groups
            .back_mut()
            .filter(|group| group.file == spot.file && group.len < GROUP);
        let Some(group) = last else {
            self.groups.push_back(Group {
                file: spot.file,
                offset: spot.offset,
                len: spot.len,
                entry: header.entry,
                entries: header.entries.into(),
                since: header.since,
                until: header.until,
            });
            return;
        };
        // What is damaged in between belongs to it, and is passed over when it is read.
        group.len = spot.offset + spot.len - group.offset;
        group.entries = header.entry + u64::from(header.entries) - group.entry;
        if header.until > 0 {
            group.since = match group.since {
                0 => header.since,
                since => since.min(header.since),
            };
            group.until = group.until.max(header.until);
        }
    }

    /// The last group with an entry before number `end`.
    pub fn last_before(&self, end: u64) -> Option<Group> {
        let behind = self.groups.partition_point(|group| group.entry < end);
        let before = self.groups.range(..behind).rev();
        before.copied().find(|group| group.entries > 0)
    }

    /// The first group with an entry at or behind number `first`.
    pub fn first_from(&self, first: u64) -> Option<Group> {
        let before = self.groups.partition_point(|group| group.end() <= first);
        let mut from = self.groups.range(before..);
        from.find(|group| group.entries > 0).copied()
    }

    /// How many of the oldest files hold nothing of `before` or later.
    pub fn files_before(&self, before: Timestamp) -> Vec<u32> {
        let mut files: Vec<u32> = Vec::new();
        for group in &self.groups {
            if group.until >= before.as_millis() {
                files.retain(|file| *file != group.file);
                break;
            }
            if files.last() != Some(&group.file) {
                files.push(group.file);
            }
        }
        files
    }
}
