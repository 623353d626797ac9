//! From the inboxes into the ledger and the sums.

use std::{
    array,
    collections::BTreeMap,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use onlyonce_core::{Account, Count, Posting, Sums, Timestamp};
use parking_lot::Mutex;

use super::{Item, beyond, id_of, position_of, stretch};
use crate::{
    StoreError,
    books::{Booked, Cell, Grain, Of, Position, SumsQuery, cells_of},
    codec::{put_block, take_block},
    corrupt,
    redis::{
        Inner,
        failure::Failure,
        lists::AT_ONCE,
        names::{HOME, SHARDS, Shard},
        scripts,
        servers::Request,
        store::{int, unexpected},
    },
};

/// Entries that are read of one inbox at once.
const MOST_OF_ONE: usize = 200;
/// Entries that one script folds, and those of one inbox more: the server does nothing else meanwhile.
const MOST_AT_ONCE: usize = 300;
/// Entries that one call folds, about.
const MOST_BOOKED: usize = 5_000;

/// What is known of the marks of the inboxes.
pub struct Folded {
    /// The milliseconds of the last mark seen.
    floors: [AtomicU64; SHARDS],
    /// Up to where this gateway dropped what was booked.
    dropped: Mutex<[Option<Position>; SHARDS]>,
    /// Which shard the next call looks at first.
    first: AtomicUsize,
}

impl Default for Folded {
    fn default() -> Self {
        Self {
            floors: array::from_fn(|_| AtomicU64::new(0)),
            dropped: Mutex::new([None; SHARDS]),
            first: AtomicUsize::new(0),
        }
    }
}

impl Folded {
    /// An id of the inbox in this millisecond, or before, may be behind its mark.
    pub fn floor(&self, shard: Shard) -> u64 {
        self.floors[usize::from(shard)].load(Ordering::Relaxed)
    }

    fn saw(&self, shard: Shard, mark: Position) {
        let millis = (mark.0 >> 64) as u64;
        self.floors[usize::from(shard)].fetch_max(millis, Ordering::Relaxed);
    }
}

type Cells = BTreeMap<(Grain, Timestamp), BTreeMap<Bytes, i64>>;

/// What one script folds.
#[derive(Default)]
struct Batch {
    marks: Vec<(Shard, Option<Position>, Position)>,
    parcels: Vec<(Shard, Vec<u8>)>,
    cells: Cells,
    oldest: Option<Timestamp>,
}

impl Batch {
    fn post(&mut self, posting: &Posting) {
        for (grain, period, account) in cells_of(posting) {
            let fields = self.cells.entry((grain, period)).or_default();
            for (count, more) in posting.sums.iter().filter(|(_, more)| *more != 0) {
                let sum = fields.entry(field(account, count)).or_default();
                *sum = sum.saturating_add(more);
            }
        }
    }
}

impl Inner {
    pub async fn book(&self) -> Result<Booked, StoreError> {
        let marks = self.marks().await?;
        self.drop_booked(&marks).await?;
        let first = self.folded.first.fetch_add(1, Ordering::Relaxed);
        let marks = &marks;
        let mut inboxes = stream::iter(0..SHARDS)
            .map(|at| {
                let shard = ((first + at) % SHARDS) as Shard;
                let mark = marks[usize::from(shard)];
                async move { Ok::<_, StoreError>((shard, mark, self.inbox(shard, mark).await?)) }
            })
            .buffered(AT_ONCE);
        let mut booked = Booked::default();
        let mut batch = Batch::default();
        let mut read = 0;
        let mut unread = None;
        while let Some(inbox) = inboxes.next().await {
            let (shard, mark, entries) = inbox?;
            let is_full = entries.len() == MOST_OF_ONE;
            read += entries.len();
            let mut last = None;
            for Item {
                position, parcel, ..
            } in entries
            {
                match self.read_entry(&parcel) {
                    Ok(Some(entry)) => {
                        batch.post(&entry.posting());
                        batch.oldest = earlier(batch.oldest, Some(entry.at));
                        batch.parcels.push((shard, parcel));
                    }
                    Ok(None) => {}
                    Err(why) => {
                        unread = Some(why);
                        break;
                    }
                }
                last = Some(position);
            }
            // What only this gateway cannot read stays, and all behind it, for one that can.
            booked.more |= is_full && unread.is_none();
            if let Some(last) = last {
                batch.marks.push((shard, mark, last));
            }
            if batch.parcels.len() >= MOST_AT_ONCE {
                self.fold_into(std::mem::take(&mut batch), &mut booked)
                    .await?;
            }
            if read >= MOST_BOOKED {
                booked.more = true;
                break;
            }
        }
        if !batch.marks.is_empty() {
            self.fold_into(batch, &mut booked).await?;
        }
        match unread {
            Some(why) => Err(why),
            None => Ok(booked),
        }
    }

    pub async fn post(&self, postings: &[Posting]) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for posting in postings {
            batch.post(posting);
        }
        self.fold(&batch).await.map(drop)
    }

    async fn fold_into(&self, batch: Batch, booked: &mut Booked) -> Result<(), StoreError> {
        if self.fold(&batch).await? {
            booked.entries += batch.parcels.len() as u64;
            booked.oldest = earlier(booked.oldest, batch.oldest);
            for (shard, _, mark) in batch.marks {
                self.folded.saw(shard, mark);
            }
        } else {
            booked.more = true;
        }
        Ok(())
    }

    /// Says whether it did; it does not where another gateway was faster.
    async fn fold(&self, batch: &Batch) -> Result<bool, StoreError> {
        let names = &self.servers.names;
        let mut command = scripts::BOOK.call();
        command.arg(2 + 2 * batch.cells.len());
        command.arg(names.folded()).arg(names.ledger());
        for &(grain, period) in batch.cells.keys() {
            command
                .arg(names.periods(grain))
                .arg(names.sums(grain, period));
        }
        command.arg(batch.marks.len());
        for (shard, expected, new) in &batch.marks {
            command
                .arg(*shard)
                .arg(expected.map(id_of).unwrap_or_default());
            command.arg(id_of(*new));
        }
        command.arg(batch.parcels.len());
        for (shard, parcel) in &batch.parcels {
            command.arg(*shard).arg(parcel);
        }
        for ((_, period), fields) in &batch.cells {
            command.arg(period.as_millis()).arg(fields.len());
            for (field, more) in fields {
                command.arg(&**field).arg(*more);
            }
        }
        let request = Request::script(HOME, &scripts::BOOK, command);
        let answer = self.call(&request).await.map_err(Failure::of_write)?;
        Ok(int(answer)? == 1)
    }

    /// Up to where each inbox is booked.
    async fn marks(&self) -> Result<Vec<Option<Position>>, StoreError> {
        let mut command = redis::cmd("HMGET");
        command.arg(self.servers.names.folded());
        for shard in 0..SHARDS {
            command.arg(shard);
        }
        let held: Vec<Option<String>> = self.home(command).await?;
        if held.len() != SHARDS {
            return Err(unexpected());
        }
        let mark = |(shard, held): (Shard, Option<String>)| {
            let Some(held) = held else { return Ok(None) };
            let mark = position_of(&held).ok_or_else(|| corrupt("a mark of the books is none"))?;
            self.folded.saw(shard, mark);
            Ok(Some(mark))
        };
        (0..=Shard::MAX).zip(held).map(mark).collect()
    }

    async fn inbox(&self, shard: Shard, mark: Option<Position>) -> Result<Vec<Item>, StoreError> {
        let mut command = redis::cmd("XRANGE");
        command.arg(self.servers.names.inbox(shard));
        command.arg(mark.map_or("-".to_owned(), beyond)).arg("+");
        command.arg("COUNT").arg(MOST_OF_ONE);
        stretch(self.ask(&Request::plain(shard, command)).await?)
    }

    /// Drops from the inboxes what is behind their marks.
    async fn drop_booked(&self, marks: &[Option<Position>]) -> Result<(), StoreError> {
        let dropped = *self.folded.dropped.lock();
        let due = (0..=Shard::MAX).zip(marks.iter().zip(dropped));
        let due = due.filter_map(|(shard, (mark, dropped))| {
            mark.filter(|mark| dropped != Some(*mark))
                .map(|mark| (shard, mark))
        });
        let due: Vec<(Shard, Position)> = due.collect();
        stream::iter(due)
            .map(|(shard, mark)| async move {
                let mut command = redis::cmd("XTRIM");
                command.arg(self.servers.names.inbox(shard));
                command.arg("MINID").arg(id_of(Position(mark.0 + 1)));
                let _: i64 = self.ask(&Request::plain(shard, command)).await?;
                self.folded.dropped.lock()[usize::from(shard)] = Some(mark);
                Ok(())
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    pub async fn sums(&self, query: &SumsQuery) -> Result<Vec<Cell>, StoreError> {
        if query.since >= query.until {
            return Ok(Vec::new());
        }
        let grain = query.grain;
        let (first, end) = (query.since.as_millis(), query.until.as_millis());
        let periods = self.periods(grain, first.to_string(), format!("({end}"));
        let cells: Vec<Vec<Cell>> = stream::iter(periods.await?)
            .map(|period| async move {
                let mut command = redis::cmd("HGETALL");
                command.arg(self.servers.names.sums(grain, period));
                let fields: Vec<(Vec<u8>, i64)> = self.home(command).await?;
                cells(period, fields, &query.of)
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(cells.into_iter().flatten().collect())
    }

    async fn periods(
        &self,
        grain: Grain,
        first: String,
        last: String,
    ) -> Result<Vec<Timestamp>, StoreError> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(self.servers.names.periods(grain));
        command.arg(first).arg(last).arg("BYSCORE");
        let periods: Vec<u64> = self.home(command).await?;
        Ok(periods.into_iter().map(Timestamp::from_millis).collect())
    }

    pub async fn trim_sums(&self, before: Timestamp) -> Result<(), StoreError> {
        let names = &self.servers.names;
        for grain in Grain::ALL {
            let span = grain.span().as_millis() as u64;
            let Some(last) = before.as_millis().checked_sub(span) else {
                continue;
            };
            for period in self
                .periods(grain, "-inf".to_owned(), last.to_string())
                .await?
            {
                let mut unlink = redis::cmd("UNLINK");
                unlink.arg(names.sums(grain, period));
                let _: i64 = self.home(unlink).await?;
                let mut forget = redis::cmd("ZREM");
                forget.arg(names.periods(grain)).arg(period.as_millis());
                let _: i64 = self.home(forget).await?;
            }
        }
        Ok(())
    }
}

fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).min()
}

/// The field of a sum: the account's four parts, each after its length, and the count's number; of
/// everything together, the number alone.
fn field(account: Option<&Account>, count: Count) -> Bytes {
    let mut field = BytesMut::with_capacity(64);
    if let Some(account) = account {
        for part in [
            &account.tenant,
            &account.route,
            &account.provider,
            &account.model,
        ] {
            put_block(&mut field, part.as_bytes());
        }
    }
    field.extend_from_slice(&[count.number()]);
    field.freeze()
}

/// Takes a field apart again. A count that a newer program knows is `None`.
fn parts_of(field: Vec<u8>) -> Result<(Option<Account>, Option<Count>), StoreError> {
    let mut bytes = Bytes::from(field);
    let mut account = None;
    if bytes.len() > 1 {
        let mut part = || -> Result<Box<str>, StoreError> {
            let part = take_block(&mut bytes, "account").map_err(corrupt)?;
            Ok(std::str::from_utf8(&part).map_err(corrupt)?.into())
        };
        account = Some(Account {
            tenant: part()?,
            route: part()?,
            provider: part()?,
            model: part()?,
        });
    }
    match bytes[..] {
        [number] => Ok((account, Count::from_number(number))),
        _ => Err(corrupt("the name of a sum is none")),
    }
}

/// The cells of one period that are wanted, by account.
fn cells(period: Timestamp, fields: Vec<(Vec<u8>, i64)>, of: &Of) -> Result<Vec<Cell>, StoreError> {
    let mut cells: BTreeMap<Account, Sums> = BTreeMap::new();
    for (field, sum) in fields {
        let (account, count) = parts_of(field)?;
        let wanted = of.wants(account.as_ref());
        if let Some(count) = count.filter(|_| wanted) {
            cells
                .entry(account.unwrap_or_default())
                .or_default()
                .add(count, sum);
        }
    }
    let cells = cells.into_iter().map(|(account, sums)| Cell {
        period,
        account,
        sums,
    });
    Ok(cells.collect())
}
