//! What people see and decide: list, look, resolve, purge.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use onlyonce_core::{
    Address, Attempt, Fence, Head, HeaderBlock, OperationId, Record, Ruling, State, StateName,
    Timestamp, transition,
};
use onlyonce_store::{Page, Query, Store, StoreError, Stored, Swap, Write};

use crate::{
    Engine, Reader, ResolveError, Trouble,
    begin::{Slot, ticket},
};

/// Records that a purge looks at in one go.
const PURGE_PAGE: usize = 500;

/// How long an execution is waited for whose outcome is written.
const LETS_GO: Duration = Duration::from_secs(1);

/// How long at least the answer of a step is kept that an operator brings: for longer than any operation
/// that it may be a step of is continued, or it would run again.
const SETTLED_STEP: Duration = Duration::from_secs(366 * 86_400);

/// An operation, for people.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The record.
    pub stored: Stored,
    /// The attempts kept, oldest first.
    pub attempts: Vec<Attempt>,
}

/// What an operator found out about an unknown operation.
#[derive(Clone, Debug)]
pub enum Resolution {
    /// It did not run: the key is free again.
    Released,
    /// It ran, and this was its answer.
    Completed {
        /// Status and headers.
        head: Head,
        /// The whole body.
        body: Bytes,
        /// Trailers.
        trailers: HeaderBlock,
        /// How long it answers retries from now on; a step for a year at least.
        window: Duration,
    },
}

/// Which records to remove. None that is in flight is ever removed, and none that is unknown unless that is asked for: it
/// may have run, and its key is new afterwards.
#[derive(Clone, Debug, Default)]
pub struct Purge {
    /// Only this tenant's.
    pub tenant: Option<Box<str>>,
    /// Only in this state.
    pub state: Option<StateName>,
    /// Only operations first claimed before this moment.
    pub before: Option<Timestamp>,
}

impl<S: Store> Engine<S> {
    /// The operation `id` with its attempts.
    pub async fn operation(&self, id: OperationId) -> Result<Option<Operation>, Trouble> {
        let Some((address, stored)) = self.stored(id).await? else {
            return Ok(None);
        };
        let attempts = self.shared.store.attempts(address, id).await?;
        Ok(Some(Operation { stored, attempts }))
    }

    /// The record of `id`, expired or not.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; [`StoreError::Corrupt`] where it is there and cannot be read (I13).
    pub async fn record(&self, id: OperationId) -> Result<Option<Stored>, StoreError> {
        Ok(self.stored(id).await?.map(|(_, stored)| stored))
    }

    pub(crate) async fn stored(
        &self,
        id: OperationId,
    ) -> Result<Option<(Address, Stored)>, StoreError> {
        let Some(address) = self.shared.store.find(id).await? else {
            return Ok(None);
        };
        let stored = self.shared.store.load(address).await?;
        Ok(stored
            .filter(|stored| stored.record.id == id)
            .map(|stored| (address, stored)))
    }

    /// One page of the operations that count, newest first.
    pub async fn list(&self, query: Query) -> Result<Page, Trouble> {
        Ok(self.shared.store.list(query).await?)
    }

    /// The recording of `id` where there is one, finished or still growing. No attempt is noted.
    pub async fn recording(&self, id: OperationId) -> Result<Option<Reader<S>>, Trouble> {
        let Some((address, stored)) = self.stored(id).await? else {
            return Ok(None);
        };
        let ticket = ticket(&stored.record, stored.attempts);
        let shared = self.shared.clone();
        if let Some(live) = shared.registry.at(address)
            && live
                .state
                .lock()
                .record
                .as_ref()
                .is_some_and(|record| record.id == id)
        {
            return Ok(Some(Reader::live(shared, live, ticket, None)));
        }
        // It may have ended between the two looks.
        let stored = self.shared.store.load(address).await?;
        Ok(stored
            .filter(|stored| {
                stored.record.id == id && stored.record.state.name() == StateName::Completed
            })
            .map(|stored| Reader::stored(shared, address, stored, ticket)))
    }

    /// Writes what an operator found out about an unknown operation. `who` that was and the `reason` stay
    /// with the record, and go to the log.
    pub async fn resolve(
        &self,
        id: OperationId,
        resolution: Resolution,
        who: &str,
        reason: &str,
    ) -> Result<Operation, ResolveError> {
        let Some((address, stored)) = self.stored(id).await.map_err(Trouble::from)? else {
            return Err(ResolveError::NotFound);
        };
        // While it is held, no attempt claims here and writes to the recording.
        let Some(mut slot) = self.slot_of(address, &stored.record).await else {
            return Err(ResolveError::NotUnknown(StateName::InFlight));
        };
        let mut record = self.record_of(address, id).await?;
        if self.shared.is_own(&record) {
            // It was claimed here, as for an answer that came to nothing, and left: nobody executes it.
            let settled = self.shared.settle_abandoned(address, &record).await;
            settled.map_err(Trouble::from)?;
            record = self.record_of(address, id).await?;
        }
        let name = record.state.name();
        if name != StateName::Unknown {
            return Err(ResolveError::NotUnknown(name));
        }
        let is_long = self.is_long(&resolution)?;
        // From here on a late answer comes too late.
        self.shared.late.close(address).await;

        let ruling = |at| Ruling {
            at,
            who: who.into(),
            reason: reason.into(),
        };
        let became = match is_long {
            false => {
                let unknown = (*record).clone();
                self.settle(address, unknown, resolution, ruling).await?
            }
            true => {
                let claimed = self.claim_for_answer(&mut slot, address, &record).await?;
                let became = self.settle(address, claimed, resolution, ruling).await?;
                slot.claims(None);
                became
            }
        };
        if became == StateName::Completed {
            self.shared
                .tell_completed(&record, record.metered.as_deref());
        }
        tracing::info!(operation = %id, %became, who, reason, "an operator resolved an operation");
        self.operation(id).await?.ok_or(ResolveError::Changed)
    }

    async fn record_of(
        &self,
        address: Address,
        id: OperationId,
    ) -> Result<Arc<Record>, ResolveError> {
        let held = self.shared.store.load(address).await;
        let held = held.map_err(Trouble::from)?.map(|stored| stored.record);
        held.filter(|record| record.id == id)
            .ok_or(ResolveError::Changed)
    }

    /// Whether an answer does not fit into the write that completes the record.
    fn is_long(&self, resolution: &Resolution) -> Result<bool, ResolveError> {
        let settings = &self.shared.settings;
        let Resolution::Completed { body, .. } = resolution else {
            return Ok(false);
        };
        match settings.max_response {
            limit if body.len() as u64 > limit => Err(ResolveError::OverLimit { limit }),
            _ => Ok(body.len() > settings.chunk_size),
        }
    }

    /// Claims an unknown operation, so that an answer of several chunks gets a recording of its own: whoever executed it,
    /// on another gateway, may write into the one that there is until the record is completed (I4). What comes of it no
    /// further is released, and so unknown as before.
    async fn claim_for_answer(
        &self,
        slot: &mut Slot<S>,
        address: Address,
        record: &Record,
    ) -> Result<Record, ResolveError> {
        let store = &self.shared.store;
        let claim = transition::Claim {
            id: record.id,
            scope: record.scope.clone(),
            key: record.key.clone(),
            fingerprint: record.fingerprint,
            request: record.request.clone(),
            owner: self.shared.owner,
            raise: self.shared.raise(),
        };
        let lease = self.shared.settings.lease;
        let claimed = transition::claim(Some(record), claim, store.now(), lease)
            .map_err(|_| ResolveError::Changed)?;
        // It is the answer of the execution that there was.
        let claimed = Record {
            claimed_at: record.claimed_at,
            ..claimed
        };
        slot.claims(Some(claimed.fence()));
        let write = self.write(address, record.fence(), claimed.clone(), None);
        if let Err(error) = write.await {
            if matches!(error, ResolveError::Changed) {
                slot.claims(None);
            }
            return Err(error);
        }
        Ok(claimed)
    }

    /// Writes what was found out over `record`, which is unknown, or claimed for this. Says what it became.
    async fn settle(
        &self,
        address: Address,
        mut record: Record,
        resolution: Resolution,
        ruling: impl FnOnce(Timestamp) -> Ruling,
    ) -> Result<StateName, ResolveError> {
        let has_steps = record.scope.has_steps();
        let now = || self.shared.store.now();
        let (next, last_chunk) = match resolution {
            Resolution::Released => {
                let retention = self.shared.settings.released_retention;
                let did_not_run = onlyonce_core::Resolution::DidNotRun;
                let (held, fence) = (Some(&record), record.fence());
                let next = transition::resolve(held, fence, did_not_run, now(), retention);
                (next, None)
            }
            Resolution::Completed {
                head,
                body,
                trailers,
                window,
            } => {
                let body_len = body.len() as u64;
                let (chunks, last_chunk) = self.put(address, &mut record, body).await?;
                let response = transition::Response {
                    head,
                    trailers,
                    body_len,
                    chunks,
                };
                let window = match has_steps {
                    true => window.max(SETTLED_STEP),
                    false => window,
                };
                let (held, fence) = (Some(&record), record.fence());
                let next = match record.state.name() {
                    StateName::Unknown => {
                        let ran = onlyonce_core::Resolution::Ran(response);
                        transition::resolve(held, fence, ran, now(), window)
                    }
                    _ => transition::complete(held, fence, response, now(), window),
                };
                (next, last_chunk)
            }
        };
        let next = next.map_err(|_| ResolveError::Changed)?;
        let became = next.state.name();
        let mut next = self.shared.for_the_books(next, None);
        next.ruling = Some(Box::new(ruling(now())));
        self.write(address, record.fence(), next, last_chunk)
            .await?;
        Ok(became)
    }

    async fn write(
        &self,
        address: Address,
        expected: Fence,
        record: Record,
        last_chunk: Option<Bytes>,
    ) -> Result<(), ResolveError> {
        let write = Write {
            record: record.clone(),
            last_chunk,
            attempt: None,
        };
        let store = &self.shared.store;
        match store.compare_and_set(address, Some(expected), write).await {
            Ok(Swap::Done { .. }) => Ok(()),
            Ok(Swap::Lost) => Err(ResolveError::Changed),
            Err(error) => match (&error, store.load(address).await) {
                // Only its acknowledgement was lost.
                (StoreError::InDoubt(_), Ok(Some(held))) if *held.record == record => Ok(()),
                _ => Err(Trouble::from(error).into()),
            },
        }
    }

    /// The right to write at `address`; `None` while it is executed. An execution whose outcome is written is
    /// about to let go, and is waited for.
    async fn slot_of(&self, address: Address, record: &Record) -> Option<Slot<S>> {
        let slot = Slot::take(&self.shared, address, record.fingerprint);
        if slot.is_some() || record.state.name() == StateName::InFlight {
            return slot;
        }
        if let Some(live) = self.shared.registry.at(address) {
            tokio::time::timeout(LETS_GO, live.ended()).await.ok()?;
        }
        Slot::take(&self.shared, address, record.fingerprint)
    }

    /// Puts a body into the recording of `record` but for its last chunk. Gives the number of chunks, and the last one.
    async fn put(
        &self,
        address: Address,
        record: &mut Record,
        mut body: Bytes,
    ) -> Result<(u32, Option<Bytes>), ResolveError> {
        let (recording, mut chunks) = (record.recording(), 0);
        while body.len() > self.shared.settings.chunk_size {
            self.keep(address, record).await?;
            let chunk = body.split_to(self.shared.settings.chunk_size);
            let store = &self.shared.store;
            match store.append(address, recording, chunks, chunk).await {
                Ok(()) => {}
                Err(StoreError::Fenced) => return Err(ResolveError::Changed),
                Err(error) => return Err(Trouble::from(error).into()),
            }
            chunks += 1;
        }
        let last_chunk = (!body.is_empty()).then_some(body);
        Ok((chunks + u32::from(last_chunk.is_some()), last_chunk))
    }

    /// Whether `record` is what the store holds. What cannot be read stays, as unknown (I13).
    async fn stands(&self, address: Address, record: &Record) -> Result<bool, Trouble> {
        match self.shared.store.load(address).await {
            Ok(held) => Ok(held.is_some_and(|held| held.record.fence() == record.fence())),
            Err(StoreError::Corrupt(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Renews the lease of a claim of which a third is gone.
    async fn keep(&self, address: Address, claimed: &mut Record) -> Result<(), ResolveError> {
        let (now, lease) = (self.shared.store.now(), self.shared.settings.lease);
        match claimed.state {
            State::InFlight { lease_until, .. } if lease_until.since(now) <= lease * 2 / 3 => {}
            _ => return Ok(()),
        }
        let (fence, raise) = (claimed.fence(), self.shared.raise());
        let renewed = transition::renew(Some(claimed), fence, now, lease, raise)
            .map_err(|_| ResolveError::Changed)?;
        self.write(address, fence, renewed.clone(), None).await?;
        *claimed = renewed;
        Ok(())
    }

    /// Removes records. Returns how many. A purged key is new again: what was recorded under it
    /// may run once more.
    pub async fn purge(&self, purge: Purge) -> Result<u64, Trouble> {
        let store = &self.shared.store;
        let mut purged = 0;
        let mut older_than = None;
        loop {
            let page = store
                .list(Query {
                    tenant: purge.tenant.clone(),
                    state: purge.state,
                    until: purge.before,
                    older_than,
                    limit: PURGE_PAGE,
                    ..Query::default()
                })
                .await?;
            for stored in page.records {
                let record = &stored.record;
                let state = record.state.name();
                let is_kept = match purge.state {
                    Some(_) => state == StateName::InFlight,
                    None => matches!(state, StateName::InFlight | StateName::Unknown),
                };
                if is_kept {
                    continue;
                }
                let address = onlyonce_store::address(store.secret(), &record.scope, &record.key);
                // Of what may still be sent, no byte follows here once its key is new.
                let _slot = match state {
                    StateName::Unknown => match self.slot_of(address, record).await {
                        Some(slot) if self.stands(address, record).await? => {
                            self.shared.late.close(address).await;
                            Some(slot)
                        }
                        // Somebody is at it, or was since it was listed.
                        _ => continue,
                    },
                    _ => None,
                };
                match store.remove(address, record.fence()).await {
                    Ok(removed) => purged += u64::from(removed),
                    // Damaged since it was listed: it stays, as unknown (I13).
                    Err(StoreError::Corrupt(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            older_than = page.next;
            if older_than.is_none() {
                break;
            }
        }
        let Purge {
            tenant,
            state,
            before,
        } = &purge;
        let before = before.map(|before| before.as_millis());
        tracing::info!(
            purged,
            tenant = tenant.as_deref(),
            state = state.map(tracing::field::display),
            before_millis = before,
            "an operator purged records"
        );
        Ok(purged)
    }
}
