//! Reading what is booked. Entries are read from their files, a group of blocks at a time.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use bytes::{Bytes, BytesMut};
use onlyonce_core::Entry;

use super::{Ledger, block, file_path, shelf::Group};
use crate::{
    StoreError,
    books::{EntryPage, EntryQuery, MOST_LOOKED_AT, Position},
    codec::decode_entry,
    seal::Sealer,
};

/// The entries of some blocks as they were read, each with its number.
type Read = Vec<(u64, Bytes)>;

impl Ledger {
    pub fn feed(
        &self,
        after: Option<Position>,
        limit: usize,
        sealer: Option<&Sealer>,
    ) -> Result<Vec<(Position, Entry)>, StoreError> {
        let mut first = after.map_or(0, |after| number_of(after).saturating_add(1));
        let mut fed = Vec::new();
        while fed.len() < limit {
            let group = self.shelf.lock().first_from(first);
            let Some(group) = group else { break };
            for (number, entry) in self.read_group(&group, first..u64::MAX, sealer)? {
                if fed.len() == limit {
                    break;
                }
                let entry = decode_entry(entry).map_err(crate::corrupt)?;
                fed.push((Position(number.into()), entry));
            }
            first = first.max(group.end());
        }
        Ok(fed)
    }

    pub fn entries(
        &self,
        query: &EntryQuery,
        sealer: Option<&Sealer>,
    ) -> Result<EntryPage, StoreError> {
        let mut end = query.older_than.map_or(u64::MAX, number_of);
        let mut page = EntryPage::default();
        let mut looked_at = 0;
        loop {
            let group = self.shelf.lock().last_before(end);
            let Some(group) = group else { return Ok(page) };
            if is_wanted(query, &group) {
                let read = self.read_group(&group, 0..end, sealer)?;
                for (number, entry) in read.into_iter().rev() {
                    if page.entries.len() == query.limit || looked_at == MOST_LOOKED_AT {
                        page.next = Some(Position(u128::from(number) + 1));
                        return Ok(page);
                    }
                    looked_at += 1;
                    let entry = decode_entry(entry).map_err(crate::corrupt)?;
                    if query.wants(&entry) {
                        page.entries.push(entry);
                    }
                }
            }
            end = group.entry;
        }
    }

    /// The entries of `group` whose numbers are in `wanted`. What was dropped in the meantime, or is
    /// damaged, is not among them.
    fn read_group(
        &self,
        group: &Group,
        wanted: Range<u64>,
        sealer: Option<&Sealer>,
    ) -> Result<Read, StoreError> {
        let bytes = match self.bytes_of(group) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Read::new()),
            Err(error) => {
                let why = format!("the books cannot be read: {error}");
                return Err(StoreError::Unavailable(why));
            }
        };
        let mut read = Read::new();
        let (mut at, mut next) = (0, group.entry);
        while let Some(found) = block::next_block(group.file, &bytes, at) {
            at = found.end;
            let header = found.header;
            let end = header.entry + u64::from(header.entries);
            // What is written to the next file again does not count here.
            if header.entry < next || end > group.end() {
                continue;
            }
            next = end;
            if end <= wanted.start || header.entry >= wanted.end {
                continue;
            }
            match found.entries(sealer) {
                Ok(entries) => {
                    let numbered = (header.entry..).zip(entries);
                    read.extend(numbered.filter(|(number, _)| wanted.contains(number)));
                }
                Err(error) => {
                    let block = header.block;
                    tracing::error!(%error, block, "entries of the books cannot be read");
                }
            }
        }
        Ok(read)
    }

    fn bytes_of(&self, group: &Group) -> io::Result<Bytes> {
        let file = File::open(file_path(&self.dir, group.file))?;
        let mut bytes = BytesMut::zeroed(group.len as usize);
        file.read_exact_at(&mut bytes, group.offset)?;
        Ok(bytes.freeze())
    }
}

/// Whether something in it may be of the time that is asked for.
fn is_wanted(query: &EntryQuery, group: &Group) -> bool {
    query
        .since
        .is_none_or(|since| group.until >= since.as_millis())
        && query
            .until
            .is_none_or(|until| group.since < until.as_millis())
}

fn number_of(position: Position) -> u64 {
    u64::try_from(position.0).unwrap_or(u64::MAX)
}
