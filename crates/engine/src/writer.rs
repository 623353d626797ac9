//! Recording and settling: what an execution and a late answer share.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use onlyonce_core::{
    Fence, Head, HeaderBlock, Metered, NotLawful, Record, ReleaseReason, State, Timestamp,
    UnknownReason,
    planted::{Bug, planted},
    transition,
};
use onlyonce_store::{Store, StoreError};
use tokio::time::Instant;

use crate::{
    Kind, Late, PushError, Shared, Unsettled,
    abandoned::{Claim, Outcome},
    admission::Permit,
    late::{Gate, LateGuard},
    live::{End, Live, LiveState, Phase},
    write::Backoff,
};

/// What records and settles, without the duty to.
pub(crate) struct Writer<S: Store> {
    pub(crate) shared: Arc<Shared<S>>,
    pub(crate) live: Arc<Live>,
    /// The record of the claim.
    pub(crate) claimed: Arc<Record>,
}

impl<S: Store> Clone for Writer<S> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            live: self.live.clone(),
            claimed: self.claimed.clone(),
        }
    }
}

impl<S: Store> Writer<S> {
    pub(crate) fn fence(&self) -> Fence {
        match &self.live.state.lock().record {
            Some(record) => record.fence(),
            None => self.claimed.fence(),
        }
    }

    pub(crate) fn meter(&self, metered: Metered) {
        self.live.state.lock().metered = Some(Box::new(metered));
    }

    /// What `next` makes of a record, with what its execution used; what is known of an execution
    /// before it stands where this one has told nothing.
    fn metered(
        &self,
        next: impl Fn(&Record, Timestamp) -> Result<Record, NotLawful> + Send,
    ) -> impl Fn(&Record, Timestamp) -> Result<Record, NotLawful> + Send {
        let metered = self.live.state.lock().metered.clone();
        let shared = self.shared.clone();
        move |held, now| Ok(shared.for_the_books(next(held, now)?, metered.clone()))
    }

    pub(crate) fn head(&self, head: Head, kind: Kind) -> Result<(), PushError> {
        self.live.publish(|state| {
            check_running(state)?;
            state.recording.set_head(head, kind);
            Ok(())
        })
    }

    pub(crate) async fn push(
        &self,
        mut bytes: Bytes,
        gate: Option<&Gate>,
    ) -> Result<(), PushError> {
        let settings = &self.shared.settings;
        let (released, len) = {
            let state = self.live.state.lock();
            (
                state.recording.kind() == Some(Kind::Released),
                state.recording.len(),
            )
        };
        // A released answer is for those who wait now: it never goes to the store.
        let limit = match released {
            true => settings.max_response.min(settings.operation_memory as u64),
            false => settings.max_response,
        };
        if len.saturating_add(bytes.len() as u64) > limit {
            return Err(PushError::OverLimit { limit });
        }
        while !bytes.is_empty() {
            let room = match released {
                true => usize::MAX,
                false => self.make_room(gate).await?,
            };
            let piece = bytes.split_to(room.min(bytes.len()));
            self.live.publish(|state| {
                check_running(state)?;
                state.recording.push(piece);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Gives the store the current chunk if it is full; returns the bytes that fit into the
    /// current one.
    async fn make_room(&self, gate: Option<&Gate>) -> Result<usize, PushError> {
        let chunk_size = self.shared.settings.chunk_size;
        let (chunk, number) = {
            let state = self.live.state.lock();
            check_running(&state)?;
            let room = state.recording.room(chunk_size);
            if room > 0 {
                return Ok(room);
            }
            (
                state.recording.current_chunk(),
                state.recording.current_number(chunk_size),
            )
        };
        let open = match gate {
            Some(gate) => Some(gate.shut.lock().await),
            None => None,
        };
        if open.as_deref().is_some_and(|closed| *closed) {
            return Err(PushError::Fenced);
        }
        self.append(number, &chunk).await?;
        drop(open);
        let memory = self.shared.settings.operation_memory;
        self.live.state.lock().recording.spilled(chunk, memory);
        Ok(chunk_size)
    }

    async fn append(&self, number: u32, chunk: &Bytes) -> Result<(), PushError> {
        let settings = &self.shared.settings;
        let mut backoff = Backoff::new(Instant::now() + settings.settle_timeout);
        loop {
            let appended = self
                .shared
                .store
                .append(
                    self.live.address,
                    self.claimed.recording(),
                    number,
                    chunk.clone(),
                )
                .await;
            // To append the same chunk again changes nothing, so a lost acknowledgement does no harm.
            match appended {
                Ok(()) => return Ok(()),
                Err(StoreError::Fenced) => return Err(PushError::Fenced),
                Err(error @ StoreError::Corrupt(_)) => {
                    return Err(PushError::NotRecorded(error.to_string()));
                }
                Err(error) => {
                    check_running(&self.live.state.lock())?;
                    if !backoff.wait().await {
                        return Err(PushError::NotRecorded(error.to_string()));
                    }
                }
            }
        }
    }

    pub(crate) async fn respond_whole(
        &self,
        head: Head,
        body: Bytes,
        trailers: HeaderBlock,
        window: Duration,
    ) -> Result<(), Unsettled> {
        // A copy of its own keeps no read buffer alive in the store's cache.
        let chunk = (!body.is_empty()).then(|| Bytes::copy_from_slice(&body));
        let response = transition::Response {
            head: head.clone(),
            trailers: trailers.clone(),
            body_len: body.len() as u64,
            chunks: chunk.is_some().into(),
        };
        let body = chunk.clone().unwrap_or_default();
        self.settle_completed(response, chunk, window, |state| {
            state.recording.whole(head, body, trailers);
        })
        .await
    }

    pub(crate) async fn complete(
        &self,
        trailers: HeaderBlock,
        window: Duration,
    ) -> Result<(), Unsettled> {
        let taken = {
            let state = self.live.state.lock();
            let recording = &state.recording;
            match (&recording.head, recording.declared()) {
                (Some((head, Kind::Executed)), declared)
                    if declared.is_none_or(|len| len == recording.len())
                        || planted(Bug::ShortBodyComplete) =>
                {
                    let chunk = recording.current_chunk();
                    let number = recording.current_number(self.shared.settings.chunk_size);
                    let chunks = number + u32::from(!chunk.is_empty());
                    Some((head.clone(), recording.len(), chunk, chunks))
                }
                _ => None,
            }
        };
        let Some((head, body_len, chunk, chunks)) = taken else {
            // Without a head, with a released one, or with another length than it declared, there is
            // no whole response (I5).
            return self.not_whole().await;
        };
        let response = transition::Response {
            head,
            trailers: trailers.clone(),
            body_len,
            chunks,
        };
        let chunk = (!chunk.is_empty()).then_some(chunk);
        self.settle_completed(response, chunk, window, |state| {
            state.recording.trailers = trailers;
        })
        .await
    }

    async fn settle_completed(
        &self,
        response: transition::Response,
        last_chunk: Option<Bytes>,
        window: Duration,
        publish: impl FnOnce(&mut LiveState) + Send,
    ) -> Result<(), Unsettled> {
        let writing = self.live.writing.lock().await;
        self.check_not_ended()?;
        let patience = self.shared.settings.settle_timeout;
        let complete = self.metered(move |held, now| {
            transition::complete(Some(held), held.fence(), response.clone(), now, window)
        });
        let settled = self
            .shared
            .settle(&self.live, last_chunk, patience, complete)
            .await;
        drop(writing);
        match settled {
            Ok(settled) => {
                self.shared.registry_leave(&self.live);
                self.live.publish(|state| {
                    publish(state);
                    state.phase = Phase::Ended(End::Completed {
                        expires_at: Some(settled.now.after(window)),
                    });
                    if state.metered.is_none() {
                        state.metered.clone_from(&settled.held.metered);
                    }
                    self.shared
                        .tell_completed(&self.claimed, state.metered.as_deref());
                    self.shared.spare_joins(state);
                });
                Ok(())
            }
            Err(error) => Err(self.broken_by(error, Outcome::Lose(UnknownReason::NotRecorded))),
        }
    }

    pub(crate) async fn release(
        &self,
        reason: ReleaseReason,
        detail: &str,
        whole: bool,
    ) -> Result<(), Unsettled> {
        if self.live.state.lock().recording.kind() == Some(Kind::Executed) {
            // An answer that counts as executed was shown already (I10).
            return self.not_whole().await;
        }
        let writing = self.live.writing.lock().await;
        self.check_not_ended()?;
        let settings = &self.shared.settings;
        let retention = settings.released_retention;
        let release = move |held: &Record, now| {
            transition::release(Some(held), held.fence(), reason, now, retention)
        };
        let settled = self
            .shared
            .settle(&self.live, None, settings.settle_timeout, release)
            .await;
        drop(writing);
        match settled {
            Ok(settled) => {
                let end = match release(&settled.held, settled.now).map(|record| record.state) {
                    // A resend that did not run says nothing of the execution before it (I10).
                    Ok(State::Unknown { reason, .. }) => End::Unknown(reason),
                    _ => End::Released {
                        detail: detail.into(),
                        whole,
                    },
                };
                self.shared.end(&self.live, end);
                Ok(())
            }
            Err(error) => Err(self.broken_by(error, Outcome::Release(reason))),
        }
    }

    pub(crate) async fn not_whole(&self) -> Result<(), Unsettled> {
        self.lose(UnknownReason::Truncated).await?;
        Err(Unsettled::NotWhole)
    }

    pub(crate) async fn lose(&self, reason: UnknownReason) -> Result<(), Unsettled> {
        let writing = self.live.writing.lock().await;
        self.check_not_ended()?;
        let settled = self.write_unknown(reason).await;
        drop(writing);
        match settled {
            Ok(_) => {
                self.shared.end(&self.live, End::Unknown(reason));
                Ok(())
            }
            Err(error) => Err(self.lost_by(error, reason)),
        }
    }

    /// The caller holds `live.writing`. One try: readers must not wait for a store that is down to
    /// hear that the outcome is unknown, and what is left undone cannot become anything else.
    async fn write_unknown(&self, reason: UnknownReason) -> Result<Arc<Record>, Unsettled> {
        self.live.state.lock().doomed = true;
        let lose =
            self.metered(move |held, now| transition::lose(Some(held), held.fence(), reason, now));
        let settled = self
            .shared
            .settle(&self.live, None, Duration::ZERO, &lose)
            .await?;
        self.shared.tell_unknown(reason);
        lose(&settled.held, settled.now)
            .map(Arc::new)
            .map_err(|_| Unsettled::Fenced)
    }

    pub(crate) async fn lose_for_now(
        &self,
        reason: UnknownReason,
        window: Duration,
        permit: &mut Option<Permit>,
    ) -> Result<Late<S>, Unsettled> {
        let writing = self.live.writing.lock().await;
        self.check_not_ended()?;
        let settled = self.write_unknown(reason).await;
        drop(writing);
        let record = match settled {
            Ok(record) => record,
            Err(error) => return Err(self.lost_by(error, reason)),
        };
        // The gate stands before the address is free for another claim.
        let gate = LateGuard::open(self.shared.clone(), self.live.address);
        let recording = self.live.state.lock().recording.clone();
        self.shared.end(&self.live, End::Unknown(reason));
        let live = Live::continued(
            self.live.address,
            self.live.fingerprint,
            record.clone(),
            recording,
        );
        Ok(Late {
            writer: Self {
                shared: self.shared.clone(),
                live: Arc::new(live),
                claimed: record,
            },
            window,
            gate,
            _permit: permit.take(),
        })
    }

    fn check_not_ended(&self) -> Result<(), Unsettled> {
        match self.live.state.lock().phase {
            Phase::Ended(_) => Err(Unsettled::Fenced),
            _ => Ok(()),
        }
    }

    fn lost_by(&self, error: Unsettled, reason: UnknownReason) -> Unsettled {
        match &error {
            Unsettled::NotRecorded(_) => self.abandon(Outcome::Lose(reason), reason),
            Unsettled::Fenced | Unsettled::NotWhole => {
                self.shared.end(&self.live, End::Unknown(reason));
            }
        }
        error
    }

    /// Breaks the readers because the outcome does not stand.
    fn broken_by(&self, error: Unsettled, outcome: Outcome) -> Unsettled {
        match &error {
            Unsettled::NotRecorded(what) => {
                tracing::error!(operation = %self.claimed.id, what, "an outcome could not be recorded");
                self.abandon(outcome, UnknownReason::NotRecorded);
                error
            }
            Unsettled::Fenced | Unsettled::NotWhole => self.fenced(),
        }
    }

    pub(crate) fn fenced(&self) -> Unsettled {
        tracing::warn!(operation = %self.claimed.id, "fenced: somebody else has written the record");
        self.shared
            .end(&self.live, End::Unknown(UnknownReason::LeasePassed));
        Unsettled::Fenced
    }

    /// Leaves the outcome to upkeep, and tells readers that nobody can say.
    pub(crate) fn abandon(&self, outcome: Outcome, reason: UnknownReason) {
        self.live.state.lock().doomed = true;
        let fence = self.fence();
        // A late answer's record is unknown already: there is nothing more to write.
        if matches!(self.claimed.state, State::InFlight { .. }) {
            let since = self.shared.store.now();
            let claim = Claim {
                fence,
                outcome,
                since,
            };
            self.shared.abandoned.add(self.live.address, claim);
        }
        self.shared.end(&self.live, End::Unknown(reason));
    }
}

fn check_running(state: &LiveState) -> Result<(), PushError> {
    match state.phase {
        Phase::Running => Ok(()),
        Phase::Claiming | Phase::Ended(_) => Err(PushError::Fenced),
    }
}
