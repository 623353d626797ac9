//! A cursor on a recording: the first caller, joiners, replays and the operator's look are all
//! this.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use onlyonce_core::{
    Address, Completed, Head, HeaderBlock, RecordingId, State, UnknownReason,
    planted::{Bug, planted},
};
use onlyonce_store::{Store, StoreError, Stored};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    Broken, Shared, Ticket,
    live::{End, Live, LiveState, Phase},
    recording::Found,
    wakers::Seat,
};

/// Whether a response is the outcome, or says that nothing ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The outcome.
    Executed,
    /// The upstream said that it did not run (I10).
    Released,
}

/// How an answer starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// With a response; its body follows from [`Reader::next`].
    Response {
        /// Status and headers.
        head: Head,
        /// What it means.
        kind: Kind,
    },
    /// Nothing was sent; carries what happened, for people.
    NotSent(Arc<str>),
    /// Nobody can say whether it ran.
    Unknown(UnknownReason),
    /// The joiner's deadline passed.
    Timeout,
}

/// A piece of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Bytes, at least one.
    Data(Bytes),
    /// Trailers; they are the last frame.
    Trailers(HeaderBlock),
}

/// One cursor on a recording.
///
/// ```
/// # use onlyonce_engine::{Broken, Frame, Reader};
/// # async fn example<S: onlyonce_store::Store>(mut reader: Reader<S>) -> Result<Vec<u8>, Broken> {
/// let _start = reader.start().await;
/// let mut body = Vec::new();
/// while let Some(frame) = reader.next().await {
///     if let Frame::Data(bytes) = frame? {
///         body.extend_from_slice(&bytes);
///     }
/// }
/// // Only here, after the `None`, the body is whole and its record durable (I3, I5).
/// # Ok(body) }
/// ```
pub struct Reader<S: Store> {
    shared: Arc<Shared<S>>,
    address: Address,
    ticket: Ticket,
    source: Source,
    /// Bytes of body given so far, or sought.
    position: u64,
    trailers_given: bool,
    hold: bool,
    fetch: Option<BoxFuture<Result<Bytes, StoreError>>>,
    deadline: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

enum Source {
    /// A live operation of this process.
    Live { live: Arc<Live>, seat: Seat },
    /// A completed record.
    Stored(Stored),
}

impl<S: Store> Reader<S> {
    pub(crate) fn live(
        shared: Arc<Shared<S>>,
        live: Arc<Live>,
        ticket: Ticket,
        timeout: Option<Duration>,
    ) -> Self {
        let address = live.address;
        let seat = Seat::default();
        Self::new(
            shared,
            address,
            ticket,
            Source::Live { live, seat },
            timeout,
        )
    }

    /// `stored` is completed.
    pub(crate) fn stored(
        shared: Arc<Shared<S>>,
        address: Address,
        stored: Stored,
        ticket: Ticket,
    ) -> Self {
        let mut reader = Self::new(shared, address, ticket, Source::Stored(stored), None);
        reader.ticket.expires_at = reader.completed().map(|completed| completed.expires_at);
        reader
    }

    fn new(
        shared: Arc<Shared<S>>,
        address: Address,
        ticket: Ticket,
        source: Source,
        timeout: Option<Duration>,
    ) -> Self {
        Self {
            shared,
            address,
            ticket,
            source,
            position: 0,
            trailers_given: false,
            hold: false,
            fetch: None,
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            sleep: None,
        }
    }

    /// Which operation and attempt this is. `expires_at` is filled in once the record is known to be
    /// completed: for a replay at once, else when [`Reader::start`] or [`Reader::next`] got there.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// What the owner, in this process, has said of why the outcome is unknown.
    pub fn why(&self) -> Option<Arc<str>> {
        match &self.source {
            Source::Live { live, .. } => live.state.lock().why.clone(),
            Source::Stored(_) => None,
        }
    }

    /// Goes to byte number `byte` of the body; beyond the end, there is only the end.
    pub fn seek(&mut self, byte: u64) {
        self.position = byte;
        self.fetch = None;
    }

    /// Gives nothing, not even the head, before the whole is durable (`after-durable`).
    pub fn hold_until_durable(&mut self) {
        self.hold = true;
    }

    /// Waits for the start of the answer; for a joiner, no longer than its deadline. May be dropped
    /// and asked again.
    pub async fn start(&mut self) -> Start {
        poll_fn(|cx| self.poll_start(cx)).await
    }

    /// As [`Reader::start`].
    pub fn poll_start(&mut self, cx: &mut Context<'_>) -> Poll<Start> {
        let start = match &mut self.source {
            Source::Live { live, seat } => {
                let mut state = live.state.lock();
                let (start, expires_at) = start_of(&state, self.hold);
                if expires_at.is_some() {
                    self.ticket.expires_at = expires_at;
                }
                if start.is_none() {
                    state.wakers.sit(seat, cx.waker());
                }
                start
            }
            Source::Stored(stored) => Some(start_of_stored(stored)),
        };
        match start {
            Some(start) => Poll::Ready(start),
            None => self.poll_deadline(cx),
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Start> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        sleep.as_mut().poll(cx).map(|()| Start::Timeout)
    }

    /// The next piece of the body. `None` comes only after the whole body, and only once its record
    /// is durable (I3, I5); a recording that broke off says so however often it is asked.
    pub async fn next(&mut self) -> Option<Result<Frame, Broken>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Reader::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Broken>>> {
        loop {
            let fetched = match &mut self.fetch {
                Some(fetch) => {
                    let fetched = ready!(fetch.as_mut().poll(cx));
                    self.fetch = None;
                    Some(fetched)
                }
                None => None,
            };
            let step = match &mut self.source {
                Source::Live { live, seat } => {
                    let mut state = live.state.lock();
                    let chunk_size = self.shared.settings.chunk_size as u64;
                    let step = match fetched {
                        // What was read may be gone with the claim by now.
                        Some(_) if state.doomed => step_of(&state, self.position, self.hold),
                        Some(fetched) => piece_of(fetched, self.position, chunk_size),
                        None => step_of(&state, self.position, self.hold),
                    };
                    match step {
                        Step::Wait => {
                            state.wakers.sit(seat, cx.waker());
                            return Poll::Pending;
                        }
                        Step::Fetch => Step::FetchChunk(self.position / chunk_size),
                        Step::End(trailers, expires_at) => {
                            self.ticket.expires_at = expires_at.or(self.ticket.expires_at);
                            Step::End(trailers, expires_at)
                        }
                        step => step,
                    }
                }
                Source::Stored(stored) => step_of_stored(stored, self.position, fetched),
            };
            return Poll::Ready(match step {
                Step::Data(bytes) => {
                    self.position += bytes.len() as u64;
                    Some(Ok(Frame::Data(bytes)))
                }
                Step::FetchChunk(number) => {
                    self.fetch_chunk(number);
                    continue;
                }
                Step::End(trailers, _) if !self.trailers_given && !trailers.is_empty() => {
                    self.trailers_given = true;
                    Some(Ok(Frame::Trailers(trailers)))
                }
                Step::End(..) => None,
                Step::Broken(reason) => Some(Err(Broken(reason))),
                Step::Wait | Step::Fetch => return Poll::Pending,
            });
        }
    }

    fn fetch_chunk(&mut self, number: u64) {
        let store = self.shared.store.clone();
        let (address, recording) = (self.address, self.recording());
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        self.fetch = Some(Box::pin(async move {
            let recording = recording.ok_or_else(|| StoreError::Corrupt("no recording".into()))?;
            store.read(address, recording, number).await
        }));
    }

    fn recording(&self) -> Option<RecordingId> {
        match &self.source {
            Source::Live { live, .. } => {
                let state = live.state.lock();
                state.record.as_ref().map(|record| record.recording())
            }
            Source::Stored(stored) => Some(stored.record.recording()),
        }
    }

    /// Whether the durable end is reached: [`Reader::next`] would say `None`.
    pub fn is_end(&self) -> bool {
        let (len, trailers) = match &self.source {
            Source::Live { live, .. } => {
                let state = live.state.lock();
                if !is_whole(&state) {
                    return false;
                }
                (state.recording.len(), !state.recording.trailers.is_empty())
            }
            Source::Stored(_) => match self.completed() {
                Some(completed) => (completed.body_len, !completed.trailers.is_empty()),
                None => return false,
            },
        };
        self.position >= len && (self.trailers_given || !trailers)
    }

    /// Bytes of body still to come, where that is known: of a finished recording, or where the
    /// response said its length.
    pub fn remaining(&self) -> Option<u64> {
        let len = match &self.source {
            Source::Live { live, .. } => {
                let state = live.state.lock();
                match is_whole(&state) {
                    true => Some(state.recording.len()),
                    false => state.recording.declared(),
                }
            }
            Source::Stored(_) => self.completed().map(|completed| completed.body_len),
        };
        len.map(|len| len.saturating_sub(self.position))
    }

    fn completed(&self) -> Option<&Completed> {
        match &self.source {
            Source::Stored(stored) => completed_of(stored),
            _ => None,
        }
    }
}

impl<S: Store> Drop for Reader<S> {
    fn drop(&mut self) {
        if let Source::Live { live, seat } = &mut self.source {
            live.leave(seat);
        }
    }
}

/// What a reader does next.
enum Step {
    Data(Bytes),
    Wait,
    /// Read the chunk that holds the position.
    Fetch,
    FetchChunk(u64),
    End(HeaderBlock, Option<onlyonce_core::Timestamp>),
    Broken(UnknownReason),
}

fn start_of(state: &LiveState, hold: bool) -> (Option<Start>, Option<onlyonce_core::Timestamp>) {
    let response = || {
        let (head, kind) = state.recording.head.clone()?;
        Some(Start::Response { head, kind })
    };
    match &state.phase {
        Phase::Ended(End::Completed { expires_at }) => (response(), *expires_at),
        Phase::Ended(End::Released { detail, .. }) => {
            let start = response().unwrap_or_else(|| Start::NotSent(detail.clone()));
            (Some(start), None)
        }
        Phase::Ended(End::Unknown(reason)) => (Some(Start::Unknown(*reason)), None),
        // Nobody reads an operation that was never claimed.
        Phase::Ended(End::NotClaimed(_)) => {
            (Some(Start::Unknown(UnknownReason::NotRecorded)), None)
        }
        // What says that nothing ran must be durable before anybody hears it (I18).
        Phase::Running if !hold && state.recording.kind() == Some(Kind::Executed) => {
            (response(), None)
        }
        Phase::Running | Phase::Claiming => (None, None),
    }
}

/// Whether the end is durable and clean.
fn is_whole(state: &LiveState) -> bool {
    matches!(
        state.phase,
        Phase::Ended(End::Completed { .. } | End::Released { whole: true, .. })
    )
}

fn step_of(state: &LiveState, position: u64, hold: bool) -> Step {
    let recording = &state.recording;
    let withheld = hold || recording.kind() == Some(Kind::Released);
    let (all, end) = match &state.phase {
        Phase::Claiming => return Step::Wait,
        Phase::Running if withheld => return Step::Wait,
        Phase::Running => (false, Step::Wait),
        Phase::Ended(End::Completed { expires_at }) => {
            (true, Step::End(recording.trailers.clone(), *expires_at))
        }
        Phase::Ended(End::Released { whole: true, .. }) => {
            (true, Step::End(recording.trailers.clone(), None))
        }
        Phase::Ended(End::Released { whole: false, .. }) => {
            (true, Step::Broken(UnknownReason::Truncated))
        }
        Phase::Ended(End::Unknown(reason)) if withheld => return Step::Broken(*reason),
        Phase::Ended(End::Unknown(_)) if planted(Bug::DroppedWriterCleanEnd) => {
            (true, Step::End(HeaderBlock::default(), None))
        }
        Phase::Ended(End::Unknown(reason)) => (false, Step::Broken(*reason)),
        Phase::Ended(End::NotClaimed(_)) => return Step::Broken(UnknownReason::NotRecorded),
    };
    match recording.at(position, all) {
        Found::Bytes(bytes) => Step::Data(bytes),
        Found::InStore if state.doomed => match end {
            Step::Broken(reason) => Step::Broken(reason),
            _ => Step::Wait,
        },
        Found::InStore => Step::Fetch,
        Found::Nothing => end,
    }
}

fn completed_of(stored: &Stored) -> Option<&Completed> {
    match &stored.record.state {
        State::Completed(completed) => Some(completed),
        _ => None,
    }
}

fn start_of_stored(stored: &Stored) -> Start {
    match completed_of(stored) {
        Some(completed) => Start::Response {
            head: completed.head.clone(),
            kind: Kind::Executed,
        },
        None => Start::Unknown(UnknownReason::Unreadable),
    }
}

fn step_of_stored(
    stored: &Stored,
    position: u64,
    fetched: Option<Result<Bytes, StoreError>>,
) -> Step {
    let unreadable = Step::Broken(UnknownReason::Unreadable);
    let Some(completed) = completed_of(stored) else {
        return unreadable;
    };
    if position >= completed.body_len {
        return Step::End(completed.trailers.clone(), Some(completed.expires_at));
    }
    let Some(last) = &stored.last_chunk else {
        return unreadable;
    };
    // All chunks but the last have one size, so where the last one starts tells it.
    let Some(last_start) = completed.body_len.checked_sub(last.len() as u64) else {
        return unreadable;
    };
    if position >= last_start {
        let from = usize::try_from(position - last_start).unwrap_or(usize::MAX);
        return Step::Data(last.slice(from..));
    }
    let others = u64::from(completed.chunks).saturating_sub(1);
    if others == 0 || !last_start.is_multiple_of(others) {
        return unreadable;
    }
    let chunk_size = last_start / others;
    match fetched {
        Some(fetched) => piece_of(fetched, position, chunk_size),
        None => Step::FetchChunk(position / chunk_size),
    }
}

/// What a chunk that was read back gives at `position`.
fn piece_of(fetched: Result<Bytes, StoreError>, position: u64, chunk_size: u64) -> Step {
    match fetched {
        Ok(chunk) if planted(Bug::ReaderReadsAgain) => Step::Data(chunk),
        Ok(chunk) if chunk.len() as u64 == chunk_size => {
            let from = usize::try_from(position % chunk_size).unwrap_or(usize::MAX);
            Step::Data(chunk.slice(from..))
        }
        _ => Step::Broken(UnknownReason::Unreadable),
    }
}
