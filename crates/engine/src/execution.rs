//! The owner's handle of an execution: it records the response and settles the outcome.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use onlyonce_core::{
    Fence, Head, HeaderBlock, Key, Metered, OperationId, Record, ReleaseReason, State,
    UnknownReason,
    planted::{Bug, planted},
};
use onlyonce_store::Store;
use tokio::runtime::Handle;

use crate::{
    Fate, Kind, Late, PushError, Shared, Unsettled,
    abandoned::Outcome,
    admission::Permit,
    live::{Live, Phase},
    recording::declared_len,
    writer::Writer,
};

/// The part of a lease before whose end nothing is sent any more. A lease is renewed long before.
const SEND_MARGIN: u32 = 10;

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

    /// The record of the claim, as it was made.
    pub fn claimed(&self) -> &Record {
        &self.writer.claimed
    }

    /// What the claim stands on now; renewals of the lease raise its epoch.
    pub fn fence(&self) -> Fence {
        self.writer.fence()
    }

    /// What tells how this execution ends, once that is settled.
    pub fn fate(&self) -> Fate {
        Fate::of(&self.writer.live)
    }

    /// Whether the claim is believed still, on the store's clock, and for another tenth of a lease: no
    /// two gateways have quite the same idea of that clock, and the byte leaves a little later. Asked
    /// right before the first byte goes out: a process that stood still in between may have been taken
    /// for dead, and then it must send nothing (I1, I9). What follows on `false` is [`Execution::not_sent`], which releases the
    /// key if nobody else has written since.
    pub fn may_send(&self) -> bool {
        let state = self.writer.live.state.lock();
        let lease_until = match (&state.phase, state.record.as_deref()) {
            (
                Phase::Running,
                Some(Record {
                    state: State::InFlight { lease_until, .. },
                    ..
                }),
            ) => *lease_until,
            _ => return false,
        };
        let shared = &self.writer.shared;
        shared
            .store
            .now()
            .after(shared.settings.lease / SEND_MARGIN)
            < lease_until
            || planted(Bug::SendAfterLease)
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

    /// Says what the answer has told of its use and cost: it goes into the record with the outcome, if
    /// that is completed or unknown.
    pub fn meter(&mut self, metered: Metered) {
        self.writer.meter(metered);
    }

    /// Says in words why the outcome will be unknown, for those who follow it in this process
    /// ([`Reader::why`](crate::Reader::why)). It is not part of the record.
    pub fn explain(&self, why: &str) {
        self.writer.live.state.lock().why = Some(why.into());
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
        let declared = declared_len(&head);
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
