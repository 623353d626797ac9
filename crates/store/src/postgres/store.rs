//! The PostgreSQL store as a [`Store`].

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use onlyonce_core::{
    Address, Attempt, Entry, Epoch, Fence, OperationId, OwnerId, Record, RecordingId, State,
    Timestamp,
    transition::{self, Standing},
};
use tokio::time::{Instant, sleep};
use tokio_postgres::types::Type;

use super::{
    Core, PostgresStore,
    body::{self, chunk_label, millis, state_number},
    calls::{Append, Change, Changed, Claim, Claimed, Load, Note, Param, Read, row},
    error::Failed,
    period::Period,
    sql::{self, DURABLE, Statement},
    values::Id,
};
use crate::{
    AttemptNote, Mark, Page, Query, Seen, Shown, Status, Store, StoreError, Stored, Swap, Swept,
    Walked, Write, corrupt, parcel,
};

impl Store for PostgresStore {
    fn now(&self) -> Timestamp {
        self.core.now()
    }

    fn secret(&self) -> &[u8; 32] {
        &self.core.secret
    }

    async fn load(&self, address: Address) -> Result<Option<Stored>, StoreError> {
        self.core.load(address).await
    }

    fn may_forget(&self) -> bool {
        true
    }

    async fn compare_and_set(
        &self,
        address: Address,
        expected: Option<Fence>,
        write: Write,
    ) -> Result<Swap, StoreError> {
        if write.record.is_new_claim() {
            self.core.check_disk().await?;
        }
        let written = match expected {
            None => self.core.claim(address, write).await,
            Some(fence) => self.core.change(address, fence, write).await,
        };
        self.core.note_room(&written);
        written
    }

    async fn append(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        let core = &self.core;
        core.check_open()?;
        let sealer = core.sealer.as_ref();
        let number = i32::try_from(chunk).map_err(|_| StoreError::Full("2^31 chunks".into()))?;
        let call = Append {
            address,
            recording,
            number,
            bytes: parcel::close(sealer, &chunk_label(address, recording, chunk), &bytes)?,
        };
        let len = call.bytes.len() as i64;
        if core.desk.appends.ask(call, core.options.timeout).await? {
            core.figures.grew(len);
            Ok(())
        } else {
            Err(StoreError::Fenced)
        }
    }

    async fn read(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
    ) -> Result<Bytes, StoreError> {
        let core = &self.core;
        let missing = || corrupt(format!("chunk {chunk} of {recording} is not there"));
        let call = Read {
            address,
            recording,
            number: i32::try_from(chunk).map_err(|_| missing())?,
        };
        let found = core.desk.reads.ask(call, core.options.timeout).await?;
        let read = match &found.bytes {
            Some(bytes) => {
                let label = chunk_label(address, recording, chunk);
                parcel::open(core.sealer.as_ref(), &label, bytes)
            }
            // The last one stands beside the record.
            None if chunk.checked_add(1) == found.completed_chunks => {
                return core
                    .load(address)
                    .await?
                    .filter(|stored| stored.record.recording() == recording)
                    .and_then(|stored| stored.last_chunk)
                    .ok_or_else(missing);
            }
            None => Err(missing()),
        };
        if let Err(error) = &read
            && found.completed_chunks.is_some_and(|chunks| chunk < chunks)
        {
            core.spoil(address, recording, error).await?;
        }
        read
    }

    async fn note_attempt(
        &self,
        address: Address,
        id: OperationId,
        note: AttemptNote,
    ) -> Result<u32, StoreError> {
        let core = &self.core;
        core.check_open()?;
        let note = body::close_attempt(core.sealer.as_ref(), id, note, core.now())?;
        let call = Note { address, id, note };
        let number = core.desk.notes.ask(call, core.options.timeout).await?;
        number
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| StoreError::Unavailable(format!("{id} is not held")))
    }

    async fn attempts(
        &self,
        address: Address,
        id: OperationId,
    ) -> Result<Vec<Attempt>, StoreError> {
        self.core.attempts(address, id).await
    }

    async fn find(&self, id: OperationId) -> Result<Option<Address>, StoreError> {
        let core = &self.core;
        let text = format!(
            "SELECT address FROM {}.operations WHERE id = $1",
            core.target.schema
        );
        let id = Id::from(id);
        let rows = core.operators.ask(core, &text, &[Type::UUID], &[&id]).await;
        let rows = rows.map_err(Failed::of_a_read)?;
        let found = rows.first().map(|row| row.try_get::<_, Id>(0)).transpose();
        let found = found.map_err(unreadable)?;
        Ok(found.map(Address::from))
    }

    async fn list(&self, query: Query) -> Result<Page, StoreError> {
        self.core.list(query).await
    }

    async fn remove(&self, address: Address, fence: Fence) -> Result<bool, StoreError> {
        self.core.check_open()?;
        self.core.remove(address, fence).await
    }

    async fn sweep(&self) -> Result<Swept, StoreError> {
        self.core.sweep().await
    }

    async fn overdue(&self, limit: usize) -> Result<Vec<(Address, Record)>, StoreError> {
        self.core.overdue(limit).await
    }

    async fn follow(
        &self,
        address: Address,
        recording: RecordingId,
        owner: OwnerId,
        seen: Seen,
        at_most: Duration,
    ) -> Result<Option<Shown>, StoreError> {
        self.core
            .follow(address, recording, owner, seen, at_most)
            .await
    }

    async fn followed(&self, owner: OwnerId) -> Result<Vec<Address>, StoreError> {
        self.core.followed(owner).await
    }

    async fn show(
        &self,
        address: Address,
        recording: RecordingId,
        shown: Shown,
    ) -> Result<(), StoreError> {
        self.core.show(address, recording, shown).await
    }

    async fn mark(&self) -> Result<Option<Mark>, StoreError> {
        self.core.mark().await
    }

    async fn set_mark(&self, expected: Option<Mark>, to: Option<Mark>) -> Result<bool, StoreError> {
        self.core.set_mark(expected.as_ref(), to.as_ref()).await
    }

    async fn walk(&self, after: Option<Walked>, limit: usize) -> Result<Vec<Walked>, StoreError> {
        self.core.walk(after, limit).await
    }

    fn status(&self) -> Status {
        self.core.figures.status()
    }

    async fn close(&self) -> Result<(), StoreError> {
        const PAUSE: Duration = Duration::from_millis(5);
        let core = &self.core;
        core.closed.store(true, Ordering::Relaxed);
        // All that was acknowledged is durable already; what waits still may go.
        let deadline = Instant::now() + core.options.timeout;
        while !core.desk.writers.is_idle() && Instant::now() < deadline {
            sleep(PAUSE).await;
        }
        Ok(())
    }
}

impl Core {
    pub fn check_open(&self) -> Result<(), StoreError> {
        if self.is_closed() {
            return Err(StoreError::Unavailable("it was closed".into()));
        }
        Ok(())
    }

    async fn load(&self, address: Address) -> Result<Option<Stored>, StoreError> {
        let row = self
            .desk
            .loads
            .ask(Load { address }, self.options.timeout)
            .await?;
        row.map(|row| body::open_row(self.sealer.as_ref(), address, row))
            .transpose()
    }

    /// A tag as it stands in a column.
    pub fn tag(&self, text: &str) -> i32 {
        crate::tag(&self.secret, text).cast_signed()
    }

    /// Claims where nothing counts.
    async fn claim(&self, address: Address, write: Write) -> Result<Swap, StoreError> {
        let attempts = u32::from(write.attempt.is_some());
        let call = self.prepare_claim(address, write).await?;
        let (tenant_tag, len) = (call.tenant_tag, call.record.len() as i64);
        match self.desk.claims.ask(call, self.options.timeout).await? {
            Claimed::Done { is_new } => {
                if is_new {
                    self.figures.added(tenant_tag);
                }
                self.figures.grew(len);
                Ok(Swap::Done { attempts })
            }
            Claimed::Lost => Ok(Swap::Lost),
        }
    }

    /// What is to be sent of a claim where nothing counts. Its partition is there.
    pub async fn prepare_claim(&self, address: Address, write: Write) -> Result<Claim, StoreError> {
        self.check_open()?;
        let record = &write.record;
        transition::assert_arrow(None, record);
        let tenant_tag = self.tag(&record.scope.tenant);
        self.figures.check_room(self, tenant_tag)?;
        let sealer = self.sealer.as_ref();
        let attempt = write
            .attempt
            .map(|note| body::close_attempt(sealer, record.id, note, record.claimed_at))
            .transpose()?;
        let call = Claim {
            address,
            id: record.id,
            until: record.until().map_or(i64::MAX, millis),
            period: self.windows.guess(&record.request.route, self.now()),
            tenant_tag,
            record: body::close_record(sealer, address, record)?,
            attempt,
        };
        self.ensure(call.period).await?;
        Ok(call)
    }

    /// Writes over a record that counts.
    async fn change(
        &self,
        address: Address,
        expected: Fence,
        write: Write,
    ) -> Result<Swap, StoreError> {
        self.check_open()?;
        if !transition::may_follow(expected, &write.record) {
            return self.follow_nothing(address, expected, &write.record).await;
        }
        let call = self.prepare_change(address, expected, &write).await?;
        let record = write.record;
        let len = call.body.as_ref().map_or(0, Bytes::len) as i64;
        match self.desk.changes.ask(call, self.options.timeout).await? {
            Changed::Done { attempts } => {
                self.windows.learn(&record);
                self.figures.grew(len);
                Ok(Swap::Done {
                    attempts: u32::try_from(attempts).unwrap_or(0),
                })
            }
            Changed::Lost => Ok(Swap::Lost),
            Changed::Unlawful { state, claim } => {
                if record.is_new_claim() {
                    self.refusal().await?;
                }
                unlawful(expected, claim, state, &record)
            }
        }
    }

    /// What is to be sent of a write over the record with the fence `expected`. Its partitions are there.
    pub async fn prepare_change(
        &self,
        address: Address,
        expected: Fence,
        write: &Write,
    ) -> Result<Change, StoreError> {
        crate::assert_whole(write);
        let record = &write.record;
        let sealer = self.sealer.as_ref();
        let (record_bytes, body_bytes, chunks) = match &record.state {
            State::Completed(completed) => {
                let last_chunk = write.last_chunk.as_deref().unwrap_or_default();
                let body = body::close_body(sealer, address, record, last_chunk)?;
                (None, Some(body), i32::try_from(completed.chunks).ok())
            }
            _ => (
                Some(body::close_record(sealer, address, record)?),
                None,
                None,
            ),
        };
        let period = match record.expires_at() {
            Some(end) => Period::of(self.now(), end),
            None => self.windows.guess(&record.request.route, self.now()),
        };
        let attempt = write
            .attempt
            .clone()
            .map(|note| body::close_attempt(sealer, record.id, note, record.claimed_at))
            .transpose()?;
        let entry = Entry::of(record);
        let entry = entry.map(|entry| self.enter(&entry)).transpose()?;
        let day = entry.as_ref().map(|entry| entry.day);
        let call = Change {
            address,
            id: expected.id,
            expected: expected.epoch.number() as i64,
            epoch: record.epoch.number() as i64,
            claim: record.claim.number() as i64,
            state: state_number(record.state.name()),
            until: record.until().map(millis),
            period,
            record: record_bytes,
            body: body_bytes,
            attempt,
            chunks,
            entry,
        };
        self.ensure(period).await?;
        if let Some(day) = day {
            let ensured = self.days.ensure(self, &[day]).await;
            ensured.map_err(Failed::of_a_read)?;
        }
        Ok(call)
    }

    /// The record does not follow `expected`, so it is never written: either somebody else has written
    /// since, or it is a bug (I8, I9).
    async fn follow_nothing(
        &self,
        address: Address,
        expected: Fence,
        record: &Record,
    ) -> Result<Swap, StoreError> {
        if let Some(stored) = self.load(address).await?
            && stored.record.fence() == expected
        {
            transition::assert_arrow(Some(stored.record.standing()), record);
        }
        Ok(Swap::Lost)
    }

    /// A completed record whose recording cannot be read is unknown from now on, for everybody, under
    /// the fence that it has (I13).
    async fn spoil(
        &self,
        address: Address,
        recording: RecordingId,
        why: &StoreError,
    ) -> Result<(), StoreError> {
        let id = recording.operation;
        let held = self.load(address).await?.map(|stored| stored.record);
        let Some(held) = held.filter(|held| held.recording() == recording) else {
            return Ok(());
        };
        tracing::error!(operation = %id, %why, "its recording cannot be read; it is unknown now");
        let unknown = Record::clone(&held).without_recording();
        let record = body::close_record(self.sealer.as_ref(), address, &unknown)?;
        let params: [Param; 5] = [
            &Id::from(address),
            &Id::from(id),
            &(held.epoch.number() as i64),
            &&record[..],
            &self.given_now(),
        ];
        let Statement { text, types, .. } = sql::spoil(&self.target.schema);
        // Where another record stands by now, there is nothing to do.
        let asked = self.chores.ask(self, &text, &types, &params).await;
        asked.map(drop).map_err(Failed::of_a_write)
    }

    async fn ensure(&self, period: Period) -> Result<(), StoreError> {
        let ensured = self.partitions.ensure(self, &[period]).await;
        // Nothing of the call itself has been sent yet.
        ensured.map_err(Failed::of_a_read)
    }

    async fn attempts(
        &self,
        address: Address,
        id: OperationId,
    ) -> Result<Vec<Attempt>, StoreError> {
        let schema = &self.target.schema;
        let text = format!(
            "WITH o AS (SELECT * FROM {schema}.operations WHERE address = $1 AND id = $2)
            SELECT o.executing, coalesce(o.attempt, r.attempt) FROM o
            LEFT JOIN {schema}.records r ON o.state = 2 AND r.period = o.period AND r.id = o.id
            UNION ALL
            SELECT a.number, a.note FROM o
            JOIN {schema}.attempts a ON a.period = o.period AND a.id = o.id"
        );
        let (address, wanted) = (Id::from(address), Id::from(id));
        let types = [Type::UUID, Type::UUID];
        let rows = self
            .operators
            .ask(self, &text, &types, &[&address, &wanted])
            .await;
        let mut attempts = Vec::new();
        for row in rows.map_err(Failed::of_a_read)? {
            let columns = row.try_get::<_, i32>(0).and_then(|number| {
                row.try_get::<_, Option<&[u8]>>(1)
                    .map(|note| (number, note))
            });
            let (number, note) = columns.map_err(unreadable)?;
            if let Some(note) = note {
                attempts.push(body::open_attempt(self.sealer.as_ref(), id, number, note)?);
            }
        }
        attempts.sort_by_key(|attempt| attempt.number);
        Ok(attempts)
    }

    async fn overdue(&self, limit: usize) -> Result<Vec<(Address, Record)>, StoreError> {
        let now = sql::clock(1);
        let text = format!(
            "SELECT o.address, o.id, o.epoch, o.claim, o.state, o.until, o.attempts, o.record, NULL::bytea
            FROM {}.operations o WHERE o.state = 1 AND o.until <= {now}
            ORDER BY o.until LIMIT $2",
            self.target.schema
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let types = [Type::INT8, Type::INT8];
        let rows = self
            .upkeep
            .ask(self, &text, &types, &[&self.given_now(), &limit])
            .await
            .map_err(Failed::of_a_read)?;
        let mut overdue = Vec::with_capacity(rows.len());
        for found in self.open_rows(&rows) {
            // What cannot be read is nobody's to write over.
            if let (address, _, Ok(stored)) = found? {
                overdue.push((address, (*stored.record).clone()));
            }
        }
        Ok(overdue)
    }

    #[allow(clippy::type_complexity)]
    pub fn open_rows<'a>(
        &'a self,
        rows: &'a [tokio_postgres::Row],
    ) -> impl Iterator<Item = Result<(Address, OperationId, Result<Stored, StoreError>), StoreError>> + 'a
    {
        rows.iter().map(|sql| {
            let address: Id = sql.try_get(0).map_err(unreadable)?;
            let address = Address::from(address);
            let row = row(sql).map_err(unreadable)?;
            let id = row.id;
            Ok((
                address,
                id,
                body::open_row(self.sealer.as_ref(), address, row),
            ))
        })
    }

    async fn remove(&self, address: Address, fence: Fence) -> Result<bool, StoreError> {
        let schema = &self.target.schema;
        let text = format!(
            "WITH gone AS (
                DELETE FROM {schema}.operations WHERE address = $1 AND id = $2 AND epoch = $3
                RETURNING id, period, tenant_tag
            ),
            records AS (
                DELETE FROM {schema}.records r USING gone g
                WHERE r.period = g.period AND r.id = g.id
            ),
            chunks AS (
                DELETE FROM {schema}.chunks c USING gone g
                WHERE c.period = g.period AND c.id = g.id
            ),
            attempts AS (
                DELETE FROM {schema}.attempts a USING gone g
                WHERE a.period = g.period AND a.id = g.id
            )
            SELECT tenant_tag, {DURABLE} FROM gone"
        );
        let (address, id) = (Id::from(address), Id::from(fence.id));
        let epoch = fence.epoch.number() as i64;
        let types = [Type::UUID, Type::UUID, Type::INT8];
        let rows = self
            .operators
            .ask(self, &text, &types, &[&address, &id, &epoch])
            .await
            .map_err(Failed::of_a_write)?;
        let Some(row) = rows.first() else {
            return Ok(false);
        };
        self.figures.dropped(row.try_get(0).map_err(unreadable)?);
        Ok(true)
    }
}

pub fn unreadable(error: tokio_postgres::Error) -> StoreError {
    Failed::from(error).of_a_read()
}

/// The protocol has no such arrow (I8).
pub fn unlawful(
    fence: Fence,
    claim: Epoch,
    state: i16,
    record: &Record,
) -> Result<Swap, StoreError> {
    let Some(state) = body::state_name(state) else {
        let why = format!("the record stands in a state numbered {state}");
        return Err(corrupt(why));
    };
    let standing = Standing {
        fence,
        claim,
        state,
    };
    match transition::check_arrow(Some(standing), record) {
        Err(breach) => Ok(crate::forgotten(record, &breach)),
        Ok(()) => unreachable!("I8: the server refused {} a lawful arrow", record.id),
    }
}
