//! The books.
//!
//! The script that completes a record adds its entry to the inbox of its shard. From there entries are
//! folded into the ledger and the sums, which lie in the home slot, by one script that also moves the
//! mark of each inbox: where the mark is not the one expected, another gateway was faster, and the
//! script does nothing. So each entry is booked once. What is behind its mark is dropped from the
//! inbox when the next booking sees the mark, not at once: a failover of the home server that takes
//! the latest booking back mostly finds its entries still in the inboxes.

mod fold;
mod sinks;

use bytes::{Bytes, BytesMut};
use onlyonce_core::{Entry, OperationId, Posting, Record, Timestamp};
use quick_cache::sync::Cache;
use redis::{Cmd, Value};

pub use self::fold::Folded;
use super::{
    Inner, RedisStore,
    names::{HOME, Shard},
    servers::Request,
    store::unexpected,
};
use crate::{
    Books, StoreError, Swept,
    books::{
        Advance, Booked, Cell, DeadLetter, EntryPage, EntryQuery, Held, Hold, MOST_LOOKED_AT,
        Position, SumsQuery,
    },
    codec, corrupt,
    parcel::{self, Label},
};

/// What a parcel holds.
const ENTRY: u8 = 7;

/// Entries of the ledger that are read at once.
const BATCH: usize = 500;
/// Batches of one trim.
const MOST_BATCHES: usize = 200;
/// Operations whose shards are remembered: some pages of entries.
const MOST_TOLD_OF: usize = 4_096;

/// The shards of the operations that pages of entries told of lately: who sees an entry mostly looks at its
/// operation next, and nothing else says which of the shards has it.
pub struct ToldOf(Cache<OperationId, Shard>);

impl Default for ToldOf {
    fn default() -> Self {
        Self(Cache::new(MOST_TOLD_OF))
    }
}

impl ToldOf {
    pub fn shard(&self, id: OperationId) -> Option<Shard> {
        self.0.get(&id)
    }
}

impl Books for RedisStore {
    async fn book(&self) -> Result<Booked, StoreError> {
        self.inner.book().await
    }

    async fn post(&self, postings: Vec<Posting>) -> Result<(), StoreError> {
        self.inner.post(&postings).await
    }

    async fn feed(
        &self,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<(Position, Entry)>, StoreError> {
        let mut command = redis::cmd("XRANGE");
        command.arg(self.inner.servers.names.ledger());
        command.arg(after.map_or("-".to_owned(), beyond)).arg("+");
        command.arg("COUNT").arg(limit);
        let raw = self.inner.entries_of(command).await?;
        let mut feed = Vec::with_capacity(raw.len());
        for item in raw {
            if let Some(entry) = self.inner.read_entry(&item.parcel)? {
                feed.push((item.position, entry));
            }
        }
        Ok(feed)
    }

    async fn entries(&self, query: EntryQuery) -> Result<EntryPage, StoreError> {
        self.inner.page_of_entries(&query).await
    }

    async fn sums(&self, query: SumsQuery) -> Result<Vec<Cell>, StoreError> {
        self.inner.sums(&query).await
    }

    async fn hold(&self, hold: Hold) -> Result<Option<Held>, StoreError> {
        self.inner.hold(&hold).await
    }

    async fn advance(&self, step: Advance) -> Result<bool, StoreError> {
        self.inner.advance(&step).await
    }

    async fn dead(
        &self,
        sink: &str,
        after: Option<OperationId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.inner.dead(sink, after, limit).await
    }

    async fn forget_dead(&self, sink: &str, ids: &[OperationId]) -> Result<u64, StoreError> {
        self.inner.forget_dead(sink, ids).await
    }

    async fn trim(&self, before: Timestamp) -> Result<Swept, StoreError> {
        let swept = self.inner.trim_ledger(before).await?;
        self.inner.trim_sums(before).await?;
        Ok(swept)
    }
}

impl Inner {
    /// The entry that comes with `record`, ready for its inbox; empty where none does.
    pub fn close_entry(&self, record: &Record) -> Result<Bytes, StoreError> {
        let Some(entry) = Entry::of(record) else {
            return Ok(Bytes::new());
        };
        let mut plain = BytesMut::with_capacity(256);
        codec::encode_entry(&entry, &mut plain);
        parcel::close(self.sealer.as_ref(), &Label::new(ENTRY, &[]), &plain)
    }

    fn open_entry(&self, parcel: &[u8]) -> Result<Entry, StoreError> {
        let plain = parcel::open(self.sealer.as_ref(), &Label::new(ENTRY, &[]), parcel)?;
        codec::decode_entry(plain).map_err(corrupt)
    }

    /// As [`Inner::open_entry`]; `None` for what is damaged, or nothing behind it would ever be told. What
    /// only this gateway cannot read is an error: it is there.
    fn read_entry(&self, parcel: &[u8]) -> Result<Option<Entry>, StoreError> {
        match self.open_entry(parcel) {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if parcel::is_damaged(&Label::new(ENTRY, &[]), parcel) => {
                tracing::error!(%error, "an entry of the ledger is damaged, and is passed over");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn home<T: redis::FromRedisValue>(&self, command: Cmd) -> Result<T, StoreError> {
        self.ask(&Request::plain(HOME, command)).await
    }

    /// What a command that reads a stretch of the ledger gives.
    async fn entries_of(&self, command: Cmd) -> Result<Vec<Item>, StoreError> {
        stretch(self.home(command).await?)
    }

    async fn page_of_entries(&self, query: &EntryQuery) -> Result<EntryPage, StoreError> {
        let mut page = EntryPage::default();
        let mut before = query.older_than;
        let mut looked_at = 0;
        loop {
            let mut command = redis::cmd("XREVRANGE");
            command.arg(self.servers.names.ledger());
            let last = before.map(|before| format!("({}", id_of(before)));
            command.arg(last.as_deref().unwrap_or("+")).arg("-");
            command.arg("COUNT").arg(BATCH);
            let batch = self.entries_of(command).await?;
            let is_last = batch.len() < BATCH;
            for item in batch {
                if page.entries.len() == query.limit || looked_at == MOST_LOOKED_AT {
                    page.next = Some(Position(item.position.0 + 1));
                    return Ok(page);
                }
                looked_at += 1;
                before = Some(item.position);
                let entry = self.read_entry(&item.parcel)?;
                let Some(entry) = entry.filter(|entry| query.wants(entry)) else {
                    continue;
                };
                if let Some(shard) = item.shard() {
                    self.told_of.0.insert(entry.id, shard);
                }
                page.entries.push(entry);
            }
            if is_last {
                return Ok(page);
            }
        }
    }

    /// Drops from the front of the ledger, as its order is that of booking.
    async fn trim_ledger(&self, before: Timestamp) -> Result<Swept, StoreError> {
        let ledger = self.servers.names.ledger();
        let mut swept = Swept::default();
        for _ in 0..MOST_BATCHES {
            let mut command = redis::cmd("XRANGE");
            command
                .arg(&ledger)
                .arg("-")
                .arg("+")
                .arg("COUNT")
                .arg(BATCH);
            let batch = self.entries_of(command).await?;
            let mut last = None;
            let mut stays = false;
            for Item {
                position, parcel, ..
            } in &batch
            {
                // What is damaged stays no longer than what is around it; what only this gateway cannot read is there.
                stays = match self.read_entry(parcel) {
                    Ok(entry) => entry.is_some_and(|entry| entry.at >= before),
                    Err(_) => true,
                };
                if stays {
                    break;
                }
                last = Some(*position);
                swept.records += 1;
                swept.bytes += parcel.len() as u64;
            }
            if let Some(last) = last {
                let mut command = redis::cmd("XTRIM");
                command
                    .arg(&ledger)
                    .arg("MINID")
                    .arg(id_of(Position(last.0 + 1)));
                let _: i64 = self.home(command).await?;
            }
            if stays || batch.len() < BATCH {
                break;
            }
        }
        Ok(swept)
    }
}

/// A position as an id of a stream.
fn id_of(position: Position) -> String {
    format!("{}-{}", position.0 >> 64, position.0 as u64)
}

/// The start of what comes after a position.
fn beyond(position: Position) -> String {
    format!("({}", id_of(position))
}

fn position_of(id: &str) -> Option<Position> {
    let (millis, number) = id.split_once('-')?;
    let (millis, number): (u64, u64) = (millis.parse().ok()?, number.parse().ok()?);
    Some(Position(u128::from(millis) << 64 | u128::from(number)))
}

/// An entry of a stream, in its only field.
struct Item {
    position: Position,
    /// The field's name.
    name: Vec<u8>,
    parcel: Vec<u8>,
}

impl Item {
    /// The shard of the operation that this entry of the ledger is of.
    fn shard(&self) -> Option<Shard> {
        std::str::from_utf8(&self.name).ok()?.parse().ok()
    }
}

/// The entries of a stream.
fn stretch(value: Value) -> Result<Vec<Item>, StoreError> {
    let entry = |value| {
        let Value::Array(pair) = value else {
            return None;
        };
        let [Value::BulkString(id), Value::Array(fields)] = <[_; 2]>::try_from(pair).ok()? else {
            return None;
        };
        let [Value::BulkString(name), Value::BulkString(parcel)] =
            <[_; 2]>::try_from(fields).ok()?
        else {
            return None;
        };
        Some(Item {
            position: position_of(std::str::from_utf8(&id).ok()?)?,
            name,
            parcel,
        })
    };
    let Value::Array(entries) = value else {
        return Err(unexpected());
    };
    let entries = entries
        .into_iter()
        .map(|value| entry(value).ok_or_else(unexpected));
    entries.collect()
}
