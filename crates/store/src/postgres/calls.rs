//! The calls that are served in batches.

use std::collections::HashMap;

use bytes::Bytes;
use onlyonce_core::{Address, Epoch, OperationId, RecordingId, StateName};
use tokio_postgres::{
    Row as SqlRow,
    types::{FromSql, ToSql},
};

use super::{
    Core,
    body::{Row, state_number},
    books::{Day, Entered},
    connection::Session,
    desk::Kind,
    error::Failed,
    period::Period,
    values::Id,
};
use crate::StoreError;

/// Calls in one batch, at most.
pub const MOST: usize = 128;

/// A parameter of a statement.
pub type Param<'a> = &'a (dyn ToSql + Sync);

/// All parameters of a statement.
pub type Params<'a> = Vec<Box<dyn ToSql + Sync + Send + 'a>>;

/// The parameters, to be sent.
fn lent<'a>(params: &'a Params<'_>) -> Vec<Param<'a>> {
    params
        .iter()
        .map(|param| -> Param<'a> { &**param })
        .collect()
}

/// A claim where nothing counts.
pub struct Claim {
    pub address: Address,
    pub id: OperationId,
    pub until: i64,
    pub period: Period,
    pub tenant_tag: i32,
    pub record: Bytes,
    pub attempt: Option<Bytes>,
}

/// How a claim ended.
pub enum Claimed {
    /// It is written. Says whether the row is a new one.
    Done { is_new: bool },
    /// Something counts there.
    Lost,
}

impl Kind for Claim {
    type Reply = Claimed;

    const MOST: usize = MOST;
    const SHARES_ADDRESSES: bool = false;

    fn address(&self) -> Address {
        self.address
    }

    fn bytes(&self) -> usize {
        self.record.len()
    }

    fn period(&self) -> Option<Period> {
        Some(self.period)
    }

    fn failed(failed: Failed) -> StoreError {
        failed.of_a_write()
    }

    async fn serve(
        session: &mut Session,
        core: &Core,
        calls: &[&Self],
    ) -> Result<Vec<Claimed>, Failed> {
        let params = Self::params(calls, core.given_now());
        let statement = &core.statements.claim;
        let rows = core
            .commit(session, statement, &lent(&params), calls.len())
            .await?;
        let mut written = by_address(&rows, |row| row.try_get::<_, bool>(1))?;
        Ok(column(calls, |call| match written.remove(&call.address) {
            Some(is_new) => Claimed::Done { is_new },
            None => Claimed::Lost,
        }))
    }
}

impl Claim {
    /// What the statement is given for a batch, in which the moment may be given.
    pub fn params<'a>(calls: &[&'a Self], now: Option<i64>) -> Params<'a> {
        vec![
            Box::new(addresses(calls)),
            Box::new(column(calls, |call| Id::from(call.id))),
            Box::new(column(calls, |call| call.until)),
            Box::new(column(calls, |call| call.period.number())),
            Box::new(column(calls, |call| call.tenant_tag)),
            Box::new(column(calls, |call| &call.record[..])),
            Box::new(now),
            Box::new(column(calls, |call| call.attempt.as_deref())),
        ]
    }
}

/// A compare-and-set of a record that counts.
pub struct Change {
    pub address: Address,
    pub id: OperationId,
    pub expected: i64,
    pub epoch: i64,
    pub claim: i64,
    pub state: i16,
    pub until: Option<i64>,
    pub period: Period,
    pub record: Option<Bytes>,
    pub body: Option<Bytes>,
    pub attempt: Option<Bytes>,
    pub chunks: Option<i32>,
    pub entry: Option<Entered>,
}

/// How a compare-and-set ended.
pub enum Changed {
    /// It is written, and so many attempts there are.
    Done { attempts: i32 },
    /// The fence does not stand.
    Lost,
    /// The fence stands, and the protocol has no such arrow from where the record stands.
    Unlawful { state: i16, claim: Epoch },
}

impl Kind for Change {
    type Reply = Changed;

    const MOST: usize = MOST;
    const SHARES_ADDRESSES: bool = false;

    fn address(&self) -> Address {
        self.address
    }

    fn bytes(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        len(&self.record) + len(&self.body)
    }

    fn period(&self) -> Option<Period> {
        Some(self.period)
    }

    fn day(&self) -> Option<Day> {
        self.entry.as_ref().map(|entry| entry.day)
    }

    fn failed(failed: Failed) -> StoreError {
        failed.of_a_write()
    }

    async fn serve(
        session: &mut Session,
        core: &Core,
        calls: &[&Self],
    ) -> Result<Vec<Changed>, Failed> {
        // Alone in its transaction, it counts its entries from 1.
        let places = (1..=calls.len() as i32).collect();
        let params = Self::params(calls, core.given_now(), places);
        let statement = &core.statements.change;
        let rows = core
            .commit(session, statement, &lent(&params), calls.len())
            .await?;
        let mut found = by_address(&rows, |row| Changed::take(row, 1))?;
        Ok(column(calls, |call| {
            found.remove(&call.address).unwrap_or(Changed::Lost)
        }))
    }
}

impl Change {
    /// What the statement is given for a batch, in which the moment may be given. The entries have `places`
    /// within their transaction, of which no two are alike.
    pub fn params<'a>(calls: &[&'a Self], now: Option<i64>, places: Vec<i32>) -> Params<'a> {
        vec![
            Box::new(addresses(calls)),
            Box::new(column(calls, |call| Id::from(call.id))),
            Box::new(column(calls, |call| call.expected)),
            Box::new(column(calls, |call| call.epoch)),
            Box::new(column(calls, |call| call.claim)),
            Box::new(column(calls, |call| call.state)),
            Box::new(column(calls, |call| call.until)),
            Box::new(column(calls, |call| call.period.number())),
            Box::new(column(calls, |call| call.record.as_deref())),
            Box::new(column(calls, |call| call.body.as_deref())),
            Box::new(column(calls, |call| call.attempt.as_deref())),
            Box::new(column(calls, |call| call.chunks)),
            Box::new(now),
            Box::new(entered(calls, |entry| entry.day.number())),
            Box::new(entered(calls, |entry| entry.at)),
            Box::new(entered(calls, |entry| entry.tenant_tag)),
            Box::new(entered(calls, |entry| entry.route_tag)),
            Box::new(entered(calls, |entry| entry.model_tag)),
            Box::new(entered(calls, |entry| &entry.bytes[..])),
            Box::new(places),
        ]
    }
}

impl Changed {
    /// How it ended, in three columns from `first` on.
    pub fn take<R: Columns>(row: &R, first: usize) -> Result<Self, R::Error> {
        Ok(match row.take(first + 2)? {
            Some(attempts) => Self::Done { attempts },
            None => Self::Unlawful {
                state: row.take(first)?,
                claim: Epoch::new(row.take::<i64>(first + 1)? as u64),
            },
        })
    }
}

/// A chunk for a recording.
pub struct Append {
    pub address: Address,
    pub recording: RecordingId,
    pub number: i32,
    pub bytes: Bytes,
}

impl Kind for Append {
    /// Whether the claim stands.
    type Reply = bool;

    const MOST: usize = MOST;
    const SHARES_ADDRESSES: bool = false;

    fn address(&self) -> Address {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn failed(failed: Failed) -> StoreError {
        failed.of_a_write()
    }

    async fn serve(
        session: &mut Session,
        core: &Core,
        calls: &[&Self],
    ) -> Result<Vec<bool>, Failed> {
        let params: [Param; 5] = [
            &addresses(calls),
            &column(calls, |call| Id::from(call.recording.operation)),
            &column(calls, |call| claim(call.recording)),
            &column(calls, |call| call.number),
            &column(calls, |call| &call.bytes[..]),
        ];
        let statement = &core.statements.append;
        let rows = core
            .commit(session, statement, &params, calls.len())
            .await?;
        let written = by_address(&rows, |_| Ok(()))?;
        Ok(column(calls, |call| written.contains_key(&call.address)))
    }
}

/// One more attempt of an operation.
pub struct Note {
    pub address: Address,
    pub id: OperationId,
    pub note: Bytes,
}

impl Kind for Note {
    /// Its number; `None` where the operation is not held.
    type Reply = Option<i32>;

    // No more than the ring of one operation takes.
    const MOST: usize = 100;
    const SHARES_ADDRESSES: bool = true;

    fn address(&self) -> Address {
        self.address
    }

    async fn serve(
        session: &mut Session,
        core: &Core,
        calls: &[&Self],
    ) -> Result<Vec<Option<i32>>, Failed> {
        // Sorted by address, so that what is of one operation stands together.
        let operations: Vec<&[&Self]> = calls
            .chunk_by(|one, next| (one.address, one.id) == (next.address, next.id))
            .collect();
        let mut places = Vec::with_capacity(calls.len());
        for notes in &operations {
            places.extend(1..=notes.len() as i32);
        }
        let params: [Param; 7] = [
            &column(&operations, |notes| Id::from(notes[0].address)),
            &column(&operations, |notes| Id::from(notes[0].id)),
            &column(&operations, |notes| notes.len() as i32),
            &addresses(calls),
            &column(calls, |call| Id::from(call.id)),
            &places,
            &column(calls, |call| &call.note[..]),
        ];
        let rows = session
            .run(&core.prepares, &core.statements.note, &params)
            .await?;
        let attempts = by_address(&rows, |row| {
            Ok((row.try_get::<_, i32>(1)?, row.try_get::<_, Id>(2)?))
        })?;
        let mut replies = Vec::with_capacity(calls.len());
        for notes in operations {
            let last = attempts
                .get(&notes[0].address)
                .filter(|(_, id)| *id == Id::from(notes[0].id))
                .map(|&(last, _)| last);
            let len = notes.len() as i32;
            replies.extend((1..=len).map(|place| last.map(|last| last - len + place)));
        }
        Ok(replies)
    }
}

/// A record to be loaded.
pub struct Load {
    pub address: Address,
}

impl Kind for Load {
    type Reply = Option<Row>;

    const MOST: usize = MOST;
    const SHARES_ADDRESSES: bool = true;

    fn address(&self) -> Address {
        self.address
    }

    async fn serve(
        session: &mut Session,
        core: &Core,
        calls: &[&Self],
    ) -> Result<Vec<Option<Row>>, Failed> {
        let params: [Param; 1] = [&distinct_addresses(calls)];
        let rows = session
            .run(&core.prepares, &core.statements.load, &params)
            .await?;
        let found = by_address(&rows, row)?;
        Ok(column(calls, |call| found.get(&call.address).cloned()))
    }
}

/// The columns of a row, whichever way it came.
pub trait Columns {
    /// Why a column does not read.
    type Error;

    /// The column with this number, from 0.
    fn take<'a, T: FromSql<'a>>(&'a self, at: usize) -> Result<T, Self::Error>;
}

impl Columns for SqlRow {
    type Error = tokio_postgres::Error;

    fn take<'a, T: FromSql<'a>>(&'a self, at: usize) -> Result<T, Self::Error> {
        self.try_get(at)
    }
}

/// A row of `operations` that stands in the columns from the second on.
pub fn row<R: Columns>(row: &R) -> Result<Row, R::Error> {
    let bytes = |at| -> Result<Option<Bytes>, R::Error> {
        let bytes: Option<&[u8]> = row.take(at)?;
        Ok(bytes.map(Bytes::copy_from_slice))
    };
    Ok(Row {
        id: OperationId::from(row.take::<Id>(1)?),
        epoch: row.take::<i64>(2)? as u64,
        claim: row.take::<i64>(3)? as u64,
        state: row.take(4)?,
        until: row.take(5)?,
        attempts: row.take(6)?,
        record: bytes(7)?,
        body: bytes(8)?,
    })
}

/// A chunk to be read.
pub struct Read {
    pub address: Address,
    pub recording: RecordingId,
    pub number: i32,
}

/// A chunk that was looked for.
#[derive(Debug, Default)]
pub struct ReadChunk {
    pub bytes: Option<Bytes>,
    /// Of a completed record, the chunks that it has; the last one stands beside the record.
    pub completed_chunks: Option<u32>,
}

impl Kind for Read {
    type Reply = ReadChunk;

    const MOST: usize = 16;
    const SHARES_ADDRESSES: bool = true;

    fn address(&self) -> Address {
        self.address
    }

    async fn serve(
        session: &mut Session,
        core: &Core,
        calls: &[&Self],
    ) -> Result<Vec<ReadChunk>, Failed> {
        let places: Vec<i32> = (0..calls.len() as i32).collect();
        let params: [Param; 5] = [
            &addresses(calls),
            &column(calls, |call| Id::from(call.recording.operation)),
            &column(calls, |call| claim(call.recording)),
            &column(calls, |call| call.number),
            &places,
        ];
        let rows = session
            .run(&core.prepares, &core.statements.read, &params)
            .await?;
        let mut replies: Vec<ReadChunk> = calls.iter().map(|_| ReadChunk::default()).collect();
        for row in rows {
            let place: i32 = row.try_get(0)?;
            let (state, chunks): (i16, i32) = (row.try_get(1)?, row.try_get(2)?);
            let bytes: Option<&[u8]> = row.try_get(3)?;
            let is_completed = state == state_number(StateName::Completed);
            replies[place as usize] = ReadChunk {
                bytes: bytes.map(Bytes::copy_from_slice),
                completed_chunks: u32::try_from(chunks).ok().filter(|_| is_completed),
            };
        }
        Ok(replies)
    }
}

/// One value of each call.
pub fn column<'a, C, T>(calls: &'a [C], value: impl FnMut(&'a C) -> T) -> Vec<T> {
    calls.iter().map(value).collect()
}

/// One value of each call's entry.
fn entered<'a, T>(calls: &[&'a Change], value: impl Fn(&'a Entered) -> T) -> Vec<Option<T>> {
    column(calls, |call| call.entry.as_ref().map(&value))
}

/// What the calls are about.
pub fn addresses<K: Kind>(calls: &[&K]) -> Vec<Id> {
    column(calls, |call| Id::from(call.address()))
}

/// The claim that a recording is of, as the server keeps it.
pub fn claim(recording: RecordingId) -> i64 {
    recording.claim.number() as i64
}

fn distinct_addresses<K: Kind>(calls: &[&K]) -> Vec<Id> {
    let mut addresses = addresses(calls);
    addresses.dedup();
    addresses
}

fn by_address<T>(
    rows: &[SqlRow],
    value: impl Fn(&SqlRow) -> Result<T, tokio_postgres::Error>,
) -> Result<HashMap<Address, T>, Failed> {
    let mut found = HashMap::with_capacity(rows.len());
    for row in rows {
        let address = Address::from(row.try_get::<_, Id>(0)?);
        found.insert(address, value(row)?);
    }
    Ok(found)
}
