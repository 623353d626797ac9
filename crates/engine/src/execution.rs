//! The owner's handle of an execution: it records the response and settles the outcome.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use onlyonce_core::{
    Fence, Head, HeaderBlock, Key, OperationId, Record, ReleaseReason, State, UnknownReason,
    transition,
};
use onlyonce_store::{Store, StoreError};
use tokio::{runtime::Handle, time::Instant};

use crate::{
    Kind, Late, PushError, Shared, Unsettled,
    abandoned::{Claim, Outcome},
    admission::Permit,
    late::{Gate, LateGuard},
    live::{End, Live, LiveState, Phase},
    recording::content_length,
    write::Backoff,
};

/// The right, and the duty, to execute one operation: its claim is durable.
///
/// It is consumed by settling. Dropped before that, the operation becomes unknown
/// ([`UnknownReason::Broke`]), since nobody can say what was sent.
#[must_use = "dropped, the operation becomes unknown"]
pub struct Execution<S: Store> {
    writer: Writer<S>,
    window: Duration,
    permit: Option<Permit>,
    settled: bool,
}

impl<S: Store> Execution<S> {
    pub(crate) fn new(
        shared: Arc<Shared<S>>,
        live: Arc<Live>,
        record: Arc<Record>,
        window: Duration,
        permit: Permit,
    ) -> Self {
        Self {
            writer: Writer {
                shared,
                live,
                claimed: record,
            },
            window,
            permit: Some(permit),
            settled: false,
        }
    }

    /// The operation.
    pub fn id(&self) -> OperationId {
        self.writer.claimed.id
    }

    /// What the claim stands on now; renewals of the lease raise its epoch.
    pub fn fence(&self) -> Fence {
        self.writer.fence()
    }

    /// The key: the same for every execution of the operation, so what is made of it to send
    /// upstream is the same too (I1).
    pub fn key(&self) -> &Key {
        &self.writer.claimed.key
    }

    /// Publishes the head. Of a [`Kind::Released`] response, readers see nothing before the
    /// release is durable.
    pub async fn head(&mut self, head: Head, kind: Kind) -> Result<(), PushError> {
        self.writer.head(head, kind)
    }

    /// Says how long the body will be, where that is known and no `content-length` in the head
    /// says it: the piece that completes it is withheld until the record is durable (I3).
    pub fn declare_len(&mut self, bytes: u64) {
        self.writer.live.state.lock().recording.declare(bytes);
    }

    /// Appends to the recording, after the head, and publishes. Waits while the store takes a full
    /// chunk.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), PushError> {
        self.writer.push(bytes, None).await
    }

    /// The whole response at once. Where the body fits into one chunk, it is one write, and readers
    /// see nothing of it before that is durable. A body over the limit is `lose(OverLimit)`.
    pub async fn respond_whole(
        mut self,
        head: Head,
        body: Bytes,
        trailers: HeaderBlock,
    ) -> Result<(), Unsettled> {
        let settings = &self.writer.shared.settings;
        let too_long = body.len() as u64 > settings.max_response;
        let fits = body.len() <= settings.chunk_size;
        let declared = content_length(&head.headers).filter(|_| !len_means_nothing(&head));
        let settled = if too_long {
            self.writer.lose(UnknownReason::OverLimit).await
        } else if declared.is_some_and(|len| len != body.len() as u64) {
            self.writer.not_whole().await
        } else if fits {
            self.writer
                .respond_whole(head, body, trailers, self.window)
                .await
        } else {
            self.respond_in_chunks(head, body, trailers).await
        };
        self.settled = true;
        settled
    }

    async fn respond_in_chunks(
        &mut self,
        head: Head,
        body: Bytes,
        trailers: HeaderBlock,
    ) -> Result<(), Unsettled> {
        self.declare_len(body.len() as u64);
        let recorded = match self.head(head, Kind::Executed).await {
            Ok(()) => self.push(body).await,
            Err(error) => Err(error),
        };
        match recorded {
            Ok(()) => self.writer.complete(trailers, self.window).await,
            Err(PushError::Fenced) => Err(self.writer.fenced()),
            Err(error) => {
                self.writer.lose(UnknownReason::NotRecorded).await?;
                Err(Unsettled::NotRecorded(error.to_string()))
            }
        }
    }

    /// Completes: the end is published once the completed record is durable (I3). While the store
    /// does not take it, it is tried again for the settle time-out; then readers are broken.
    pub async fn complete(mut self, trailers: HeaderBlock) -> Result<(), Unsettled> {
        let settled = self.writer.complete(trailers, self.window).await;
        self.settled = true;
        settled
    }

    /// Releases (I10), for everybody who joined too (I18): [`ReleaseReason::NotSent`] where no byte
    /// was sent, [`ReleaseReason::DidNotRun`] after a [`Kind::Released`] head and its whole body.
    ///
    /// After a [`Kind::Executed`] head it is no release: the operation becomes unknown.
    pub async fn release(mut self, reason: ReleaseReason) -> Result<(), Unsettled> {
        let settled = self.writer.release(reason, reason.as_str(), true).await;
        self.settled = true;
        settled
    }

    /// Releases because no byte was sent; `detail` says in words what happened
    /// ([`Start::NotSent`](crate::Start::NotSent)).
    pub async fn not_sent(mut self, detail: &str) -> Result<(), Unsettled> {
        let reason = ReleaseReason::NotSent;
        let settled = self.writer.release(reason, detail, true).await;
        self.settled = true;
        settled
    }

    /// Releases although the body of the [`Kind::Released`] answer broke off or was too long: its
    /// status said that nothing ran, and readers get the head and a broken body (I5).
    pub async fn release_broken(mut self) -> Result<(), Unsettled> {
        let reason = ReleaseReason::DidNotRun;
        let settled = self.writer.release(reason, reason.as_str(), false).await;
        self.settled = true;
        settled
    }

    /// Gives up: nobody can say whether it ran. Readers are broken, or start with
    /// [`Start::Unknown`](crate::Start::Unknown).
    pub async fn lose(mut self, reason: UnknownReason) -> Result<(), Unsettled> {
        let settled = self.writer.lose(reason).await;
        self.settled = true;
        settled
    }

    /// Gives up for the readers, and goes on waiting for the answer (HOSTILE 64).
    pub async fn lose_for_now(mut self, reason: UnknownReason) -> Result<Late<S>, Unsettled> {
        let late = self
            .writer
            .lose_for_now(reason, self.window, &mut self.permit)
            .await;
        self.settled = true;
        late
    }
}

impl<S: Store> Drop for Execution<S> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let writer = self.writer.clone();
        let permit = self.permit.take();
        match Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move {
                    // What could not be written is left to upkeep, and was logged.
                    let _ = writer.lose(UnknownReason::Broke).await;
                    drop(permit);
                });
            }
            Err(_) => writer.abandon(Outcome::Lose(UnknownReason::Broke), UnknownReason::Broke),
        }
    }
}

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
            Some(gate) => Some(gate.lock().await),
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
                .append(self.live.address, self.claimed.id, number, chunk.clone())
                .await;
            // To append the same chunk again changes nothing, so a lost acknowledgement does no harm.
            match appended {
                Ok(()) => return Ok(()),
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

    async fn respond_whole(
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
                    if declared
                        .is_none_or(|len| len == recording.len() || len_means_nothing(head)) =>
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
        let settled = self
            .shared
            .settle(&self.live, last_chunk, patience, move |held, now| {
                transition::complete(Some(held), held.fence(), response.clone(), now, window)
            })
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

    async fn not_whole(&self) -> Result<(), Unsettled> {
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
            move |held: &Record, now| transition::lose(Some(held), held.fence(), reason, now);
        let settled = self
            .shared
            .settle(&self.live, None, Duration::ZERO, lose)
            .await?;
        lose(&settled.held, settled.now)
            .map(Arc::new)
            .map_err(|_| Unsettled::Fenced)
    }

    async fn lose_for_now(
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

    fn fenced(&self) -> Unsettled {
        tracing::warn!(operation = %self.claimed.id, "fenced: somebody else has written the record");
        self.shared
            .end(&self.live, End::Unknown(UnknownReason::LeasePassed));
        Unsettled::Fenced
    }

    /// Leaves the outcome to upkeep, and tells readers that nobody can say.
    fn abandon(&self, outcome: Outcome, reason: UnknownReason) {
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

/// Whether a length in the head says nothing of the body: a 204 or 304 has none (RFC 9110, 8.6).
fn len_means_nothing(head: &Head) -> bool {
    matches!(head.status, 204 | 304)
}
