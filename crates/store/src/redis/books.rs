//! The books.
//!
//! The script that completes a record puts its entry into the inbox of its shard. Whoever books takes
//! what an inbox holds beyond the mark of its shard, and calls one script on the home shard, which
//! moves the entries to the ledger, adds to the sums and moves the mark, unless somebody else has moved
//! it. So each entry is booked once, whatever crashes and however many gateways book; what is at or
//! before the mark is then cut off the inbox.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use onlyonce_core::{Account, Entry, OperationId, Posting, Sums, Timestamp};
use parking_lot::Mutex;
use redis::Value;

use super::{
    Inner, RedisStore,
    failure::Failure,
    names::{HOME, SHARDS, Shard, letter},
    scripts,
    servers::Request,
    store::{int, unexpected},
};
use crate::{
    Books, StoreError, Swept,
    books::{
        Advance, Begin, Booked, Cell, DeadLetter, EntryPage, EntryQuery, Grain, Held, Hold,
        MOST_LOOKED_AT, Of, Position, SumsQuery, cells_of,
    },
    codec, corrupt,
    parcel::{self, Label},
};

/// Entries that one script books: the server does nothing else meanwhile.
const BATCH: usize = 200;
/// Batches of one inbox in one call.
const MOST_BATCHES: usize = 25;
/// Inboxes that are booked at once.
const AT_ONCE: usize = 16;
/// Entries that are asked for at once where they are read.
const PAGE: usize = 500;
/// Pages of the ledger that one trim drops.
const MOST_PAGES: usize = 100;
/// So often all inboxes are looked at, for what gateways left that are gone.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(10);

/// What a parcel holds.
const ENTRY: u8 = 5;
const DEAD_LETTER: u8 = 6;

/// The inboxes in which this process may have left something.
pub struct Inboxes {
    touched: [AtomicU64; SHARDS / 64],
    looked_at: Mutex<Option<Instant>>,
}

impl Inboxes {
    pub fn new() -> Self {
        Self {
            touched: std::array::from_fn(|_| AtomicU64::new(0)),
            looked_at: Mutex::new(None),
        }
    }

    pub fn touch(&self, shard: Shard) {
        let (word, bit) = (usize::from(shard) / 64, shard % 64);
        self.touched[word].fetch_or(1 << bit, Ordering::AcqRel);
    }

    /// Those to look at now: all of them the first time, and now and then.
    fn take(&self) -> Vec<Shard> {
        let all = {
            let mut looked_at = self.looked_at.lock();
            let due = looked_at.is_none_or(|then| then.elapsed() >= LOOKED_AT_EVERY);
            if due {
                *looked_at = Some(Instant::now());
            }
            due
        };
        let words: Vec<u64> = self
            .touched
            .iter()
            .map(|word| word.swap(0, Ordering::AcqRel))
            .collect();
        let is_touched = |shard: &Shard| words[usize::from(*shard) / 64] >> (shard % 64) & 1 == 1;
        (0..=Shard::MAX)
            .filter(|shard| all || is_touched(shard))
            .collect()
    }
}

/// Where something stands in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct StreamId {
    millis: u64,
    number: u64,
}

impl StreamId {
    fn parse(text: &[u8]) -> Option<Self> {
        let (millis, number) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self {
            millis: millis.parse().ok()?,
            number: number.parse().ok()?,
        })
    }

    fn of(position: Position) -> Self {
        Self {
            millis: (position.0 >> 64) as u64,
            number: position.0 as u64,
        }
    }

    fn position(self) -> Position {
        Position(u128::from(self.millis) << 64 | u128::from(self.number))
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.millis, self.number)
    }
}

/// An entry in a stream: its operation, and its parcel.
struct Sent {
    at: StreamId,
    id: Vec<u8>,
    parcel: Vec<u8>,
}

type Cells = BTreeMap<(Grain, Timestamp, Option<Account>), Sums>;

fn add_to(cells: &mut Cells, posting: &Posting) {
    for (grain, period, account) in cells_of(posting) {
        let cell = (grain, period, account.cloned());
        cells.entry(cell).or_default().merge(&posting.sums);
    }
}

impl Books for RedisStore {
    async fn book(&self) -> Result<Booked, StoreError> {
        self.inner.book().await
    }

    async fn post(&self, postings: Vec<Posting>) -> Result<(), StoreError> {
        let mut cells = Cells::new();
        postings
            .iter()
            .for_each(|posting| add_to(&mut cells, posting));
        self.inner.fold(None, &[], &cells).await.map(|_| ())
    }

    async fn feed(
        &self,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<(Position, Entry)>, StoreError> {
        let ledger = self.inner.servers.names.ledger();
        let mut feed = Vec::new();
        let mut after = after.map(StreamId::of);
        while feed.len() < limit {
            let wanted = PAGE.min(limit - feed.len());
            let page = self.inner.after(HOME, &ledger, after, wanted).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.at);
            let is_last = page.len() < wanted;
            for sent in page {
                // What cannot be read is passed over, or nothing behind it would ever be told.
                if let Some(entry) = self.inner.open_entry(&sent) {
                    feed.push((sent.at.position(), entry));
                }
            }
            if is_last {
                break;
            }
        }
        Ok(feed)
    }

    async fn entries(&self, query: EntryQuery) -> Result<EntryPage, StoreError> {
        let ledger = self.inner.servers.names.ledger();
        let mut before = query.older_than.map(StreamId::of);
        let mut page = EntryPage::default();
        let mut looked_at = 0;
        loop {
            let sent = self.inner.before(&ledger, before, PAGE).await?;
            let is_last = sent.len() < PAGE;
            for sent in sent {
                if page.entries.len() == query.limit || looked_at == MOST_LOOKED_AT {
                    page.next = before.map(StreamId::position);
                    return Ok(page);
                }
                before = Some(sent.at);
                looked_at += 1;
                let entry = self.inner.open_entry(&sent);
                page.entries
                    .extend(entry.filter(|entry| query.wants(entry)));
            }
            if is_last {
                return Ok(page);
            }
        }
    }

    async fn sums(&self, query: SumsQuery) -> Result<Vec<Cell>, StoreError> {
        if query.since >= query.until {
            return Ok(Vec::new());
        }
        let (first, last) = (query.since.as_millis(), query.until.as_millis() - 1);
        let periods = self.inner.periods(query.grain, first, last).await?;
        let mut cells = Vec::new();
        let mut asked = stream::iter(periods)
            .map(|period| async move {
                let sums = self.inner.sums_of(query.grain, period).await;
                sums.map(|sums| (period, sums))
            })
            .buffered(AT_ONCE);
        while let Some((period, sums)) = asked.try_next().await? {
            let wanted = sums.into_iter().filter(|(account, _)| match &query.of {
                Of::All => account.is_none(),
                Of::Accounts => account.is_some(),
                Of::Tenant(tenant) => account
                    .as_ref()
                    .is_some_and(|account| account.tenant == *tenant),
            });
            cells.extend(wanted.map(|(account, sums)| Cell {
                period,
                account: account.unwrap_or_default(),
                sums,
            }));
        }
        Ok(cells)
    }

    async fn hold(&self, hold: Hold) -> Result<Option<Held>, StoreError> {
        let inner = &self.inner;
        let mut command = scripts::HOLD.call();
        command.arg(2).arg(inner.servers.names.sink(&hold.sink));
        command.arg(inner.servers.names.ledger());
        command.arg(hold.owner.number().to_string());
        command.arg(u64::try_from(hold.lease.as_millis()).unwrap_or(u64::MAX));
        command.arg(u8::from(hold.begin == Begin::Now));
        command.arg(inner.given_now());
        let request = Request::script(HOME, &scripts::HOLD, command);
        let answer = inner.call(&request).await.map_err(Failure::of_write)?;
        let (is_held, position): (u8, Vec<u8>) =
            redis::from_redis_value(answer).map_err(|_| unexpected())?;
        if is_held == 0 {
            return Ok(None);
        }
        let position = match position.is_empty() {
            true => None,
            false => Some(StreamId::parse(&position).ok_or_else(unexpected)?),
        };
        Ok(Some(Held {
            position: position.map(StreamId::position),
        }))
    }

    async fn advance(&self, step: Advance) -> Result<bool, StoreError> {
        let inner = &self.inner;
        let names = &inner.servers.names;
        let mut command = scripts::ADVANCE.call();
        command.arg(3).arg(names.sink(&step.sink));
        command.arg(&names.dead(&step.sink));
        command.arg(step.owner.number().to_string());
        let from = step.from.map(|from| StreamId::of(from).to_string());
        command.arg(from.unwrap_or_default());
        command.arg(StreamId::of(step.to).to_string());
        command.arg(inner.given_now());
        for letter in &step.bury {
            let parcel = inner.close_letter(letter)?;
            command.arg(letter.entry.id.as_bytes()).arg(&*parcel);
        }
        let request = Request::script(HOME, &scripts::ADVANCE, command);
        let answer = inner.call(&request).await.map_err(Failure::of_write)?;
        Ok(int(answer)? == 1)
    }

    async fn dead(
        &self,
        sink: &str,
        after: Option<OperationId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let [letters, ids] = self.inner.servers.names.dead(sink);
        let begin = after.map_or(b"-".to_vec(), |after| {
            [b"(", &after.as_bytes()[..]].concat()
        });
        let mut command = redis::cmd("ZRANGE");
        command.arg(ids).arg(begin).arg("+").arg("BYLEX");
        command.arg("LIMIT").arg(0).arg(limit);
        let ids: Vec<Vec<u8>> = self.inner.ask(&Request::plain(HOME, command)).await?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("HMGET");
        command.arg(letters).arg(&ids);
        let parcels: Vec<Option<Vec<u8>>> = self.inner.ask(&Request::plain(HOME, command)).await?;
        ids.iter()
            .zip(parcels)
            .filter_map(|(id, parcel)| Some(self.inner.open_letter(id, &parcel?)))
            .collect()
    }

    async fn forget_dead(&self, sink: &str, ids: &[OperationId]) -> Result<u64, StoreError> {
        if ids.is_empty() {
            return Ok(0);
        }
        let ids: Vec<&[u8]> = ids.iter().map(|id| &id.as_bytes()[..]).collect();
        let [letters, index] = self.inner.servers.names.dead(sink);
        let mut forgotten = 0;
        // The letter goes first: an id without a letter is passed over.
        for (name, key) in [("HDEL", letters), ("ZREM", index)] {
            let mut command = redis::cmd(name);
            command.arg(key).arg(&ids);
            let request = Request::plain(HOME, command);
            let answer = self.inner.call(&request).await.map_err(Failure::of_write)?;
            if name == "HDEL" {
                forgotten = u64::try_from(int(answer)?).unwrap_or(0);
            }
        }
        Ok(forgotten)
    }

    async fn trim(&self, before: Timestamp) -> Result<Swept, StoreError> {
        self.inner.trim(before).await
    }
}

impl Inner {
    async fn book(&self) -> Result<Booked, StoreError> {
        let shards = self.inboxes.take();
        let booked = self.book_shards(&shards).await;
        if booked.as_ref().map_or(true, |booked| booked.more) {
            // They are looked at again.
            shards.iter().for_each(|shard| self.inboxes.touch(*shard));
        }
        booked
    }

    async fn book_shards(&self, shards: &[Shard]) -> Result<Booked, StoreError> {
        if shards.is_empty() {
            return Ok(Booked::default());
        }
        let mut command = redis::cmd("HMGET");
        command.arg(self.servers.names.folded());
        // A slice of bytes would be one argument.
        for shard in shards {
            command.arg(*shard);
        }
        let marks: Vec<Option<Vec<u8>>> = self.ask(&Request::plain(HOME, command)).await?;
        let mut booked = Booked::default();
        let mut booking = stream::iter(shards.iter().copied().zip(marks))
            .map(|(shard, mark)| self.book_shard(shard, mark))
            .buffer_unordered(AT_ONCE);
        while let Some(one) = booking.try_next().await? {
            booked.entries += one.entries;
            booked.more |= one.more;
            booked.oldest = match (booked.oldest, one.oldest) {
                (Some(oldest), Some(one)) => Some(oldest.min(one)),
                (oldest, one) => oldest.or(one),
            };
        }
        Ok(booked)
    }

    async fn book_shard(&self, shard: Shard, mark: Option<Vec<u8>>) -> Result<Booked, StoreError> {
        let inbox = self.servers.names.inbox(shard);
        let mut mark = match mark {
            Some(mark) => Some(StreamId::parse(&mark).ok_or_else(unexpected)?),
            None => None,
        };
        let mut booked = Booked::default();
        for _ in 0..MOST_BATCHES {
            let page = self.after(shard, &inbox, mark, BATCH).await?;
            let Some(last) = page.last().map(|sent| sent.at) else {
                return Ok(booked);
            };
            let mut cells = Cells::new();
            for sent in &page {
                if let Some(entry) = self.open_entry(sent) {
                    add_to(&mut cells, &entry.posting());
                    booked.oldest = Some(booked.oldest.map_or(entry.at, |at| at.min(entry.at)));
                }
            }
            let step = Step {
                shard,
                from: mark,
                to: last,
            };
            if !self.fold(Some(step), &page, &cells).await? {
                // Somebody else books here.
                return Ok(booked);
            }
            booked.entries += page.len() as u64;
            mark = Some(last);
            // What stays is cut off the next time.
            let mut command = redis::cmd("XTRIM");
            let next = StreamId {
                number: last.number.saturating_add(1),
                ..last
            };
            command.arg(&inbox).arg("MINID").arg(next.to_string());
            self.call(&Request::plain(shard, command))
                .await
                .map_err(Failure::of_write)?;
            if page.len() < BATCH {
                return Ok(booked);
            }
        }
        booked.more = true;
        Ok(booked)
    }

    /// Adds to the sums, and with a step also moves entries and its mark. Says whether it did.
    async fn fold(
        &self,
        step: Option<Step>,
        entries: &[Sent],
        cells: &Cells,
    ) -> Result<bool, StoreError> {
        let names = &self.servers.names;
        // The cells of one period lie in one hash.
        let mut hashes: BTreeMap<(Grain, Timestamp), Vec<(Vec<u8>, i64)>> = BTreeMap::new();
        for ((grain, period, account), sums) in cells {
            let fields = hashes.entry((*grain, *period)).or_default();
            for (count, sum) in sums.iter().filter(|(_, sum)| *sum != 0) {
                fields.push((field(count, account.as_ref()), sum));
            }
        }
        let mut command = scripts::FOLD.call();
        command.arg(4 + hashes.len());
        command.arg(names.folded()).arg(names.ledger());
        command.arg(names.periods(Grain::Hour));
        command.arg(names.periods(Grain::Day));
        for (grain, period) in hashes.keys() {
            command.arg(names.sums(*grain, *period));
        }
        match &step {
            Some(step) => {
                command.arg(step.shard);
                command.arg(step.from.map_or(String::new(), |from| from.to_string()));
                command.arg(step.to.to_string());
            }
            None => {
                command.arg("").arg("").arg("");
            }
        }
        command.arg(entries.len());
        for sent in entries {
            command.arg(&sent.id).arg(&sent.parcel);
        }
        for ((grain, period), fields) in &hashes {
            command.arg(letter(*grain)).arg(period.as_millis());
            command.arg(fields.len());
            for (field, more) in fields {
                command.arg(field).arg(more);
            }
        }
        let request = Request::script(HOME, &scripts::FOLD, command);
        let answer = self.call(&request).await.map_err(Failure::of_write)?;
        Ok(int(answer)? == 1)
    }

    /// What stands in `stream` after `after`.
    async fn after(
        &self,
        shard: Shard,
        stream: &str,
        after: Option<StreamId>,
        limit: usize,
    ) -> Result<Vec<Sent>, StoreError> {
        let begin = after.map_or("-".to_owned(), |after| format!("({after}"));
        let mut command = redis::cmd("XRANGE");
        command.arg(stream).arg(begin).arg("+");
        command.arg("COUNT").arg(limit);
        self.sent(shard, command).await
    }

    /// What stands in `stream`, on the home shard, before `before`, the last first.
    async fn before(
        &self,
        stream: &str,
        before: Option<StreamId>,
        limit: usize,
    ) -> Result<Vec<Sent>, StoreError> {
        let end = before.map_or("+".to_owned(), |before| format!("({before}"));
        let mut command = redis::cmd("XREVRANGE");
        command.arg(stream).arg(end).arg("-");
        command.arg("COUNT").arg(limit);
        self.sent(HOME, command).await
    }

    async fn sent(&self, shard: Shard, command: redis::Cmd) -> Result<Vec<Sent>, StoreError> {
        let request = Request::plain(shard, command);
        let value = self.call(&request).await.map_err(Failure::of_read)?;
        let Value::Array(items) = value else {
            return Err(unexpected());
        };
        items.into_iter().map(sent).collect()
    }

    fn open_entry(&self, sent: &Sent) -> Option<Entry> {
        let opened = parcel::open(self.sealer.as_ref(), &label(ENTRY, &sent.id), &sent.parcel)
            .and_then(|plain| codec::decode_entry(plain).map_err(corrupt));
        match opened {
            Ok(entry) => Some(entry),
            Err(error) => {
                tracing::error!(%error, "an entry of the books cannot be read, and is missing in them");
                None
            }
        }
    }

    /// The parcel of an entry, as an inbox and the ledger hold it.
    pub fn close_entry(&self, entry: &Entry) -> Result<Bytes, StoreError> {
        let mut plain = BytesMut::with_capacity(256);
        codec::encode_entry(entry, &mut plain);
        let label = label(ENTRY, entry.id.as_bytes());
        parcel::close(self.sealer.as_ref(), &label, &plain)
    }

    fn close_letter(&self, letter: &DeadLetter) -> Result<Bytes, StoreError> {
        let mut plain = BytesMut::with_capacity(256);
        codec::put_varint(&mut plain, letter.since.as_millis());
        codec::put_varint(&mut plain, letter.tries.into());
        codec::put_block(&mut plain, letter.why.as_bytes());
        codec::encode_entry(&letter.entry, &mut plain);
        let label = label(DEAD_LETTER, letter.entry.id.as_bytes());
        parcel::close(self.sealer.as_ref(), &label, &plain)
    }

    fn open_letter(&self, id: &[u8], parcel: &[u8]) -> Result<DeadLetter, StoreError> {
        const WHAT: &str = "dead letter";
        let mut plain = parcel::open(self.sealer.as_ref(), &label(DEAD_LETTER, id), parcel)?;
        let since = codec::take_varint(&mut plain, WHAT).map_err(corrupt)?;
        let tries = codec::take_varint(&mut plain, WHAT).map_err(corrupt)?;
        let why = codec::take_block(&mut plain, WHAT).map_err(corrupt)?;
        Ok(DeadLetter {
            since: Timestamp::from_millis(since),
            tries: u32::try_from(tries).map_err(corrupt)?,
            why: String::from_utf8_lossy(&why).into(),
            entry: codec::decode_entry(plain).map_err(corrupt)?,
        })
    }

    /// The periods that there are from `first` to `last`, in order.
    async fn periods(
        &self,
        grain: Grain,
        first: u64,
        last: u64,
    ) -> Result<Vec<Timestamp>, StoreError> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(self.servers.names.periods(grain));
        command.arg(first).arg(last).arg("BYSCORE");
        let periods: Vec<u64> = self.ask(&Request::plain(HOME, command)).await?;
        Ok(periods.into_iter().map(Timestamp::from_millis).collect())
    }

    async fn sums_of(
        &self,
        grain: Grain,
        period: Timestamp,
    ) -> Result<BTreeMap<Option<Account>, Sums>, StoreError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(self.servers.names.sums(grain, period));
        let fields: Vec<(Vec<u8>, i64)> = self.ask(&Request::plain(HOME, command)).await?;
        let mut cells: BTreeMap<Option<Account>, Sums> = BTreeMap::new();
        for (field, sum) in fields {
            let (count, account) = take_field(field.into()).ok_or_else(unexpected)?;
            cells.entry(account).or_default().add(count, sum);
        }
        Ok(cells)
    }

    async fn trim(&self, before: Timestamp) -> Result<Swept, StoreError> {
        let ledger = self.servers.names.ledger();
        let mut swept = Swept::default();
        for _ in 0..MOST_PAGES {
            let page = self.after(HOME, &ledger, None, PAGE).await?;
            let stays = |sent: &Sent| {
                self.open_entry(sent)
                    .is_some_and(|entry| entry.at >= before)
            };
            let first = page.iter().position(stays);
            let old = first.unwrap_or(page.len());
            let Some(last) = old.checked_sub(1).map(|last| page[last].at) else {
                break;
            };
            let mut command = redis::cmd("XTRIM");
            command.arg(&ledger).arg("MINID");
            command.arg(
                StreamId {
                    number: last.number.saturating_add(1),
                    ..last
                }
                .to_string(),
            );
            let request = Request::plain(HOME, command);
            self.call(&request).await.map_err(Failure::of_write)?;
            swept.records += old as u64;
            swept.bytes += page[..old]
                .iter()
                .map(|sent| sent.parcel.len() as u64)
                .sum::<u64>();
            if first.is_some() || page.len() < PAGE {
                break;
            }
        }
        for grain in Grain::ALL {
            let span = u64::try_from(grain.span().as_millis()).unwrap_or(u64::MAX);
            let Some(last) = before.as_millis().checked_sub(span) else {
                continue;
            };
            for period in self.periods(grain, 0, last).await? {
                let names = &self.servers.names;
                let mut sums = redis::cmd("UNLINK");
                sums.arg(names.sums(grain, period));
                let mut index = redis::cmd("ZREM");
                index.arg(names.periods(grain)).arg(period.as_millis());
                for command in [sums, index] {
                    let request = Request::plain(HOME, command);
                    self.call(&request).await.map_err(Failure::of_write)?;
                }
            }
        }
        Ok(swept)
    }
}

/// How far an inbox is booked.
struct Step {
    shard: Shard,
    from: Option<StreamId>,
    to: StreamId,
}

fn label(kind: u8, id: &[u8]) -> Label {
    // A label has room for an operation; what is longer is none.
    Label::new(kind, &[&id[..id.len().min(16)]])
}

/// What XRANGE tells of one entry: its id, and the fields `i` and `e`.
fn sent(item: Value) -> Result<Sent, StoreError> {
    let (at, fields): (Vec<u8>, Vec<Vec<u8>>) =
        redis::from_redis_value(item).map_err(|_| unexpected())?;
    let at = StreamId::parse(&at).ok_or_else(unexpected)?;
    let [_, id, _, parcel] = <[_; 4]>::try_from(fields).map_err(|_| unexpected())?;
    Ok(Sent { at, id, parcel })
}

/// The name of a sum: its count, and whose it is.
fn field(count: onlyonce_core::Count, account: Option<&Account>) -> Vec<u8> {
    let mut out = BytesMut::with_capacity(64);
    codec::put_varint(&mut out, count.number().into());
    if let Some(account) = account {
        for text in [
            &account.tenant,
            &account.route,
            &account.provider,
            &account.model,
        ] {
            codec::put_block(&mut out, text.as_bytes());
        }
    }
    out.to_vec()
}

fn take_field(mut field: Bytes) -> Option<(onlyonce_core::Count, Option<Account>)> {
    const WHAT: &str = "sum";
    let number = codec::take_varint(&mut field, WHAT).ok()?;
    let count = onlyonce_core::Count::from_number(u8::try_from(number).ok()?)?;
    if field.is_empty() {
        return Some((count, None));
    }
    let mut text = || {
        let block = codec::take_block(&mut field, WHAT).ok()?;
        Some(String::from_utf8_lossy(&block).into())
    };
    let account = Account {
        tenant: text()?,
        route: text()?,
        provider: text()?,
        model: text()?,
    };
    Some((count, Some(account)))
}

#[cfg(test)]
mod tests {
    use onlyonce_core::{Count, Metered, Scope};
    use onlyonce_testkit::RedisServer;

    use super::*;
    use crate::redis::Options;

    /// A store, another one on the same server, and an entry that waits in an inbox.
    async fn pair() -> (RedisServer, RedisStore, RedisStore, Entry) {
        let server = RedisServer::start(&[]);
        let url = server.url();
        let one = RedisStore::open(&url, Options::default()).await;
        let other = RedisStore::open(&url, Options::default()).await;
        let (one, other) = (one.expect("it opens"), other.expect("it opens"));
        let entry = Entry {
            id: OperationId::from_bytes([7; 16]),
            at: Timestamp::from_millis(1_795_717_771_000),
            claimed_at: Timestamp::from_millis(1_795_717_770_000),
            scope: Scope {
                tenant: "acme".into(),
                namespace: "openai".into(),
            },
            route: "chat".into(),
            status: 200,
            trace: None,
            metered: Metered::default(),
        };
        let parcel = one.inner.close_entry(&entry).expect("a parcel");
        let mut command = redis::cmd("XADD");
        command.arg(one.inner.servers.names.inbox(9)).arg("*");
        command.arg("i").arg(entry.id.as_bytes());
        command.arg("e").arg(&*parcel);
        let sent = one.inner.call(&Request::plain(9, command)).await;
        assert!(sent.is_ok());
        (server, one, other, entry)
    }

    async fn operations(store: &RedisStore) -> i64 {
        let query = SumsQuery {
            grain: Grain::Day,
            since: Timestamp::default(),
            until: Timestamp::from_millis(u64::MAX),
            of: Of::All,
        };
        let cells = store.sums(query).await.expect("sums");
        cells
            .iter()
            .map(|cell| cell.sums.get(Count::Operations))
            .sum()
    }

    #[tokio::test]
    async fn another_gateway_books_what_one_left() {
        let (_server, one, other, entry) = pair().await;
        assert_eq!(other.book().await.expect("booked").entries, 1);
        assert_eq!(one.book().await.expect("booked").entries, 0);
        let feed = one.feed(None, 10).await.expect("a feed");
        assert_eq!(feed.len(), 1);
        assert_eq!(feed[0].1, entry);
        assert_eq!(operations(&one).await, 1);
    }

    /// As after a lost acknowledgement, or beside somebody faster.
    #[tokio::test]
    async fn a_mark_that_has_moved_on_books_nothing() {
        let (_server, one, _other, entry) = pair().await;
        let inbox = one.inner.servers.names.inbox(9);
        let page = one.inner.after(9, &inbox, None, 10).await.expect("a page");
        let mut cells = Cells::new();
        add_to(&mut cells, &entry.posting());
        for is_first in [true, false] {
            let step = Step {
                shard: 9,
                from: None,
                to: page[0].at,
            };
            let folded = one.inner.fold(Some(step), &page, &cells).await;
            assert_eq!(folded.expect("an answer"), is_first);
        }
        // What a crash left in the inbox is behind the mark.
        assert_eq!(one.book().await.expect("booked").entries, 0);
        assert_eq!(one.feed(None, 10).await.expect("a feed").len(), 1);
        assert_eq!(operations(&one).await, 1);
    }

    #[tokio::test]
    async fn an_entry_that_cannot_be_read_hides_no_other() {
        let (_server, one, _other, entry) = pair().await;
        let mut command = redis::cmd("XADD");
        command.arg(one.inner.servers.names.inbox(9)).arg("*");
        command.arg("i").arg("x").arg("e").arg("damaged");
        let sent = one.inner.call(&Request::plain(9, command)).await;
        assert!(sent.is_ok());
        assert_eq!(one.book().await.expect("booked").entries, 2);
        let feed = one.feed(None, 1).await.expect("a feed");
        assert_eq!(feed[0].1, entry);
        assert_eq!(operations(&one).await, 1);
    }

    #[test]
    fn a_sums_name_tells_whose_it_is() {
        let account = Account {
            tenant: "acme".into(),
            model: "gpt-5".into(),
            ..Account::default()
        };
        for account in [None, Some(Account::default()), Some(account)] {
            let field = field(Count::Saved, account.as_ref());
            assert_eq!(take_field(field.into()), Some((Count::Saved, account)));
        }
        assert_eq!(take_field(Bytes::from_static(&[99])), None);
    }

    #[test]
    fn positions_are_ids_of_a_stream() {
        let id = StreamId {
            millis: 1_795_717_771_000,
            number: 7,
        };
        assert_eq!(StreamId::parse(id.to_string().as_bytes()), Some(id));
        assert_eq!(StreamId::of(id.position()), id);
        assert_eq!(StreamId::parse(b"7"), None);
    }

    #[test]
    fn all_inboxes_are_looked_at_first_and_then_those_that_were_touched() {
        let inboxes = Inboxes::new();
        assert_eq!(inboxes.take().len(), SHARDS);
        assert!(inboxes.take().is_empty());
        for shard in [255, 3, 64] {
            inboxes.touch(shard);
        }
        assert_eq!(inboxes.take(), [3, 64, 255]);
        assert!(inboxes.take().is_empty());
    }
}
