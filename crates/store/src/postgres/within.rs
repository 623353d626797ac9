//! Operations within a transaction of the caller's, on a connection and with a driver of its own.
//!
//! The claim, the completed record and whatever else that transaction writes are committed together, or
//! none of it is. Here is what to send and what the rows say, as bytes of the wire, for any driver; the
//! statements are those of the store, each for one operation. Partitions are made, and the clock is
//! followed, over the store's own connections.
//!
//! What is written here is seen by nobody else before that transaction is committed, so whoever claims the
//! same key meanwhile waits for its end, in the index.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use onlyonce_core::{Address, Fence, Record};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type};

use super::{
    Core, PostgresStore,
    body::open_row,
    calls::{Change, Changed, Claim, Columns, Params, row},
    error::Failed,
    sql,
    store::{unlawful, unreadable},
    values::Id,
};
use crate::{StoreError, Stored, Swap, Write, corrupt};

/// A statement that is to be sent with the extended protocol, and its parameters.
#[derive(Clone, Debug)]
pub struct Statement<'s> {
    /// The text; it is the same for all operations.
    pub text: &'s str,
    /// The parameters, `$1` first.
    pub params: Vec<Param>,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// The number of its type, as the server knows it (`pg_type.oid`).
    pub oid: u32,
    /// Its value in the binary format; `None` is NULL.
    pub value: Option<Bytes>,
}

/// A row that came back: the columns in the binary format, `None` is NULL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row(pub Vec<Option<Bytes>>);

/// The number of a transaction (`xid8`). No other transaction of the server has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transaction(i64);

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is committed, durably.
    Committed,
    /// It was rolled back, or its server or connection died before it was committed.
    RolledBack,
    /// It goes on, or the server does not know of it any more.
    NotKnown,
}

/// Over what a claim is made.
#[derive(Clone, Copy, Debug)]
pub enum Over {
    /// A look has found nothing.
    Nothing,
    /// A look has found a record that has expired.
    Expired,
    /// A record that counts, and has this fence.
    Record(Fence),
}

impl PostgresStore {
    /// What looks at the record at `address`. It locks nothing.
    pub fn look_within(&self, address: Address) -> Statement<'_> {
        let params: Params = vec![Box::new(vec![Id::from(address)])];
        // Identifiers always have their sixteen bytes.
        say(&self.core.statements.load, params, None).unwrap_or_else(|_| unreachable!("an address"))
    }

    /// The record that the rows show, expired or not.
    ///
    /// # Errors
    ///
    /// [`StoreError::Corrupt`] where it cannot be read (I13).
    pub fn looked_within(
        &self,
        address: Address,
        rows: &[Row],
    ) -> Result<Option<Stored>, StoreError> {
        let Some(found) = rows.first() else {
            return Ok(None);
        };
        open_row(self.core.sealer.as_ref(), address, row(found)?).map(Some)
    }

    /// What claims the key at `address` for `write`, a record in flight. Where somebody else's transaction is
    /// at that key, the server waits for its end, but no longer than `patience`, and then refuses with
    /// `55P03`. The `lock_timeout` of the caller's transaction is the same after it.
    ///
    /// At `REPEATABLE READ` and above it is refused with `40001` where that transaction was committed.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where there is no room, or the partitions cannot be made: then nothing is to be sent.
    pub async fn claim_within(
        &self,
        address: Address,
        over: Over,
        write: Write,
        patience: Duration,
    ) -> Result<Statement<'_>, StoreError> {
        let core = &self.core;
        core.check_disk().await?;
        let statements = &core.statements;
        // Zero would mean for ever.
        let patience = Some(format!("{}ms", patience.as_millis().clamp(1, MOST_MILLIS)));
        let (statement, call) = match over {
            Over::Record(fence) => {
                let call = core.prepare_change(address, fence, &write).await?;
                let params = Change::params(&[&call], core.given_now(), vec![1]);
                return say(&statements.change_within, params, patience);
            }
            Over::Nothing => (&statements.claim_new_within, write),
            Over::Expired => (&statements.claim_within, write),
        };
        let call = core.prepare_claim(address, call).await?;
        let params = Claim::params(&[&call], core.given_now());
        say(statement, params, patience)
    }

    /// How the claim ended: in which transaction it is written, or `None` where something counts there, or did
    /// when the statement came by.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] where the store takes no claims any more, since its records move.
    pub async fn claimed_within(
        &self,
        over: Over,
        record: &Record,
        rows: &[Row],
    ) -> Result<Option<Transaction>, StoreError> {
        let found = rows.first().ok_or_else(|| corrupt("no row came back"))?;
        let transaction = Transaction(found.take(0)?);
        if found.take::<Option<Id>>(1)?.is_none() {
            return Ok(None);
        }
        let Over::Record(fence) = over else {
            return Ok(Some(transaction));
        };
        match Changed::take(found, 2)? {
            Changed::Done { .. } => Ok(Some(transaction)),
            Changed::Unlawful { state, claim } => {
                self.core.refusal().await?;
                unlawful(fence, claim, state, record).map(|_: Swap| None)
            }
            Changed::Lost => Ok(None),
        }
    }

    /// What puts `write` in the place of the record with the fence `expected`, which was claimed within the
    /// same transaction or stands committed. Its entry in the books has `place` among those of the
    /// transaction; no two of one transaction have the same.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the partitions cannot be made: then nothing is to be sent.
    pub async fn change_within(
        &self,
        address: Address,
        expected: Fence,
        write: &Write,
        place: i32,
    ) -> Result<Statement<'_>, StoreError> {
        let core = &self.core;
        let call = core.prepare_change(address, expected, write).await?;
        let params = Change::params(&[&call], core.given_now(), vec![place]);
        say(&core.statements.change, params, None)
    }

    /// Whether it was written: otherwise another record stands there (I9).
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] where the row does not read.
    pub fn changed_within(&self, write: &Write, rows: &[Row]) -> Result<bool, StoreError> {
        let changed = rows.first().map(|row| Changed::take(row, 1)).transpose()?;
        let is_written = matches!(changed, Some(Changed::Done { .. }));
        if is_written {
            self.core.windows.learn(&write.record);
        }
        Ok(is_written)
    }

    /// What became of a transaction in which something was claimed, asked on a connection of the store's own.
    /// For whoever did not hear whether its commit was done.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] where the server does not say.
    pub async fn ended(&self, transaction: Transaction) -> Result<Ended, StoreError> {
        let core = &self.core;
        let number = transaction.0.to_string();
        let text = "SELECT pg_xact_status($1::text::xid8)";
        let asked = core
            .operators
            .ask(core, text, &[Type::TEXT], &[&number])
            .await;
        let rows = asked.map_err(Failed::of_a_read)?;
        let row = rows.first().ok_or_else(|| corrupt("no row came back"))?;
        match row.try_get::<_, Option<&str>>(0).map_err(unreadable)? {
            Some("committed") => self
                .core
                .wait_for_standbys()
                .await
                .map(|()| Ended::Committed),
            Some("aborted") => Ok(Ended::RolledBack),
            _ => Ok(Ended::NotKnown),
        }
    }
}

/// The longest lock time-out that the server takes, in milliseconds.
const MOST_MILLIS: u128 = i32::MAX as u128;

impl Core {
    /// What can be read need not have reached a standby yet. Whatever is committed after it has come there
    /// once it is acknowledged, so a word is written that nobody reads.
    async fn wait_for_standbys(&self) -> Result<(), StoreError> {
        let text = format!(
            "SELECT pg_logical_emit_message(true, 'onlyonce', '') IS NULL, {}",
            sql::DURABLE
        );
        let asked = self.operators.ask(self, &text, &[], &[]).await;
        asked.map(drop).map_err(Failed::of_a_read)
    }
}

/// The statement with its parameters, and how long it waits where it says so.
fn say<'s>(
    statement: &'s sql::Statement,
    params: Params<'_>,
    patience: Option<String>,
) -> Result<Statement<'s>, StoreError> {
    let patience = patience
        .iter()
        .map(|patience| -> &(dyn ToSql + Sync) { patience });
    let params = params
        .iter()
        .map(|param| -> &(dyn ToSql + Sync) { &**param });
    let params = params.chain(patience).zip(&statement.types);
    Ok(Statement {
        text: &statement.text,
        params: params
            .map(|(value, of_type)| Param::new(value, of_type))
            .collect::<Result<_, _>>()?,
    })
}

impl Param {
    fn new(value: &(dyn ToSql + Sync), of_type: &Type) -> Result<Self, StoreError> {
        let mut bytes = BytesMut::new();
        let written = value.to_sql_checked(of_type, &mut bytes);
        let is_null = written.map_err(|error| {
            StoreError::Unavailable(format!("a parameter cannot be sent: {error}"))
        })?;
        Ok(Self {
            oid: of_type.oid(),
            value: match is_null {
                IsNull::Yes => None,
                IsNull::No => Some(bytes.freeze()),
            },
        })
    }
}

impl Columns for Row {
    type Error = StoreError;

    fn take<'a, T: FromSql<'a>>(&'a self, at: usize) -> Result<T, StoreError> {
        let bytes = self.0.get(at).and_then(Option::as_deref);
        // The type is that of the statement's own column.
        T::from_sql_nullable(&Type::UNKNOWN, bytes)
            .map_err(|error| StoreError::Unavailable(format!("column {at} does not read: {error}")))
    }
}
