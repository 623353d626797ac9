//! Following an operation that another gateway executes, through the store alone.
//!
//! A mirror is a live operation that is filled from the store instead of an upstream: the readers
//! of this process share it, and see of the recording what its owner shows. Whatever is shown, only
//! the record says how the execution ended (I3, I18).
//!
//! So it is with what a worker executes: only its record is ever in the store, and whoever waits for it
//! here waits by a mirror. Where this process takes the worker's claim over, the mirror sees what its readers
//! see.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use onlyonce_core::{
    Address, Completed, Held, OwnerId, Record, RecordingId, ReleaseReason, State, UnknownReason,
    view,
};
use onlyonce_store::{Seen, Shown, Store, StoreError, Stored};

use crate::{
    Frame, Kind, Reader, Shared, Start,
    begin::ticket,
    live::{End, Live, Phase},
    show::ShownHead,
};

/// The store is asked no more often than this at first, and less often where nothing is shown.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A release is in the record a little earlier than its answer is shown.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The mirror of the operation that, as `record` says, another gateway executes. The store gave `record`
/// just now.
pub(crate) fn mirror<S: Store>(
    shared: &Arc<Shared<S>>,
    address: Address,
    record: &Arc<Record>,
) -> Arc<Live> {
    let (live, is_new) = shared.mirrors.enter_mirror(address, record);
    if is_new {
        let mirror = Mirror {
            shared: shared.clone(),
            live: live.clone(),
            recording: record.recording(),
            known: running(record),
            ended: false,
            released_whole: false,
        };
        tokio::spawn(mirror.run());
    }
    live
}

impl<S: Store> Shared<S> {
    /// Has whoever follows the operation at `address` here look at its record now.
    pub(crate) fn poke(&self, address: Address) {
        if let Some(mirror) = self.mirrors.at(address) {
            mirror.poked.notify_one();
        }
    }
}

struct Mirror<S: Store> {
    shared: Arc<Shared<S>>,
    live: Arc<Live>,
    recording: RecordingId,
    /// What the store said before there was a mirror.
    known: Option<Look>,
    /// Whether its owner has shown that it ended.
    ended: bool,
    /// Whether the answer that was shown says that nothing ran, and was shown whole.
    released_whole: bool,
}

/// What the record tells.
enum Look {
    Running(OwnerId),
    Completed(Stored),
    Released(ReleaseReason),
    Unknown(UnknownReason),
    /// The store does not answer. Whoever waits has a deadline.
    Unavailable,
}

/// Where that is so, there is nothing to look for before asking the owner to show it.
fn running(record: &Record) -> Option<Look> {
    match record.state {
        State::InFlight { owner, .. } => Some(Look::Running(owner)),
        _ => None,
    }
}

/// Dropped halfway, as with the runtime that it ran on, it makes room for another one. It knows nothing of
/// the outcome: bodies that have begun break off, and who waits for a head comes again.
impl<S: Store> Drop for Mirror<S> {
    fn drop(&mut self) {
        let has_begun = self.live.state.lock().recording.head.is_some();
        match has_begun {
            true => self.end(End::Unknown(UnknownReason::Unreadable)),
            false => drop(self.shared.mirrors.leave(&self.live)),
        }
    }
}

impl<S: Store> Mirror<S> {
    async fn run(mut self) {
        let end = self.follow().await;
        self.end(end);
    }

    fn end(&self, end: End) {
        self.shared.mirrors.leave(&self.live);
        self.live.publish(|state| {
            if matches!(state.phase, Phase::Ended(_)) {
                return;
            }
            // What lies in the store is gone with the next claim.
            state.doomed = matches!(end, End::Unknown(_));
            let is_completed = matches!(end, End::Completed { .. });
            state.phase = Phase::Ended(end);
            if is_completed {
                self.shared.spare_joins(state);
            }
        });
    }

    /// Follows the recording until the record says how it ended.
    async fn follow(&mut self) -> End {
        let mut pause = PAUSE_MIN;
        loop {
            let look = match self.known.take() {
                Some(look) => look,
                None => self.look().await,
            };
            let owner = match look {
                Look::Running(owner) => {
                    if owner == self.shared.owner {
                        self.follow_own().await;
                    }
                    owner
                }
                Look::Completed(stored) => return self.complete(stored).await,
                Look::Released(reason) => return self.released(reason).await,
                Look::Unknown(reason) => return End::Unknown(reason),
                Look::Unavailable => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                    continue;
                }
            };
            // As long as more is shown, the record has nothing to tell.
            while let Ok(Some(shown)) = self.next_shown(owner, pause).await {
                let before = self.seen();
                let says_end = shown.ended && !self.ended;
                self.ended |= shown.ended;
                if let Err(reason) = self.take(shown).await {
                    return End::Unknown(reason);
                }
                if says_end {
                    pause = PAUSE_MIN;
                    break;
                }
                if self.seen() == before {
                    // As after an end that its owner could not write: it is shown again at once.
                    self.rest(pause).await;
                    break;
                }
                pause = PAUSE_MIN;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Sees what the readers of this process see of what it executes, until that ends.
    async fn follow_own(&mut self) {
        let Some(own) = self.shared.registry.at(self.live.address) else {
            return;
        };
        own.claimed().await;
        let record = own.state.lock().record.clone();
        let is_it = |record: &Arc<Record>| record.recording() == self.recording;
        let Some(record) = record.filter(is_it) else {
            return;
        };
        let mut reader = Reader::live(self.shared.clone(), own, ticket(&record, 1), None);
        reader.seek(self.live.state.lock().recording.len());
        if let Start::Response { head, kind } = reader.start().await {
            self.live.publish(|state| {
                if state.recording.head.is_none() {
                    state.recording.set_head(head, kind);
                }
            });
        }
        // How it ended, the record says.
        while let Some(Ok(Frame::Data(bytes))) = reader.next().await {
            self.push(bytes);
        }
    }

    fn seen(&self) -> Seen {
        let recording = &self.live.state.lock().recording;
        Seen {
            head: recording.head.is_some(),
            bytes: recording.len(),
        }
    }

    /// Waits, unless it is [poked](Shared::poke).
    async fn rest(&self, at_most: Duration) {
        let _ = tokio::time::timeout(at_most, self.live.poked.notified()).await;
    }

    async fn next_shown(
        &self,
        owner: OwnerId,
        at_most: Duration,
    ) -> Result<Option<Shown>, StoreError> {
        let (store, address) = (&self.shared.store, self.live.address);
        let followed = tokio::select! {
            biased;
            followed = store.follow(address, self.recording, owner, self.seen(), at_most) => followed,
            () = self.live.poked.notified() => return Ok(None),
        };
        if followed.is_err() {
            tokio::time::sleep(at_most).await;
        }
        followed
    }

    async fn look(&self) -> Look {
        let address = self.live.address;
        let stored = match self.shared.store.load(address).await {
            Ok(Some(stored)) if stored.record.recording() == self.recording => stored,
            // It ended, was forgotten or claimed again, and nobody can say any more.
            Ok(_) | Err(StoreError::Corrupt(_)) => {
                return Look::Unknown(UnknownReason::Unreadable);
            }
            Err(_) => return Look::Unavailable,
        };
        match &stored.record.state {
            State::Completed(_) => Look::Completed(stored),
            State::Released { reason, .. } => Look::Released(*reason),
            State::Unknown { reason, .. } => Look::Unknown(*reason),
            State::InFlight { owner, .. } => {
                let owner = *owner;
                let now = self.shared.store.now();
                let held = view(Some(&stored.record), now);
                let passed = matches!(
                    held,
                    Held::Record {
                        lease_passed: true,
                        ..
                    }
                );
                if passed && let Ok(true) = self.shared.expire(address, &stored.record, now).await {
                    return Look::Unknown(UnknownReason::LeasePassed);
                }
                Look::Running(owner)
            }
        }
    }

    /// Takes in what is shown. An error where it does not fit what was seen before.
    async fn take(&mut self, shown: Shown) -> Result<(), UnknownReason> {
        if !shown.head.is_empty() && self.live.state.lock().recording.head.is_none() {
            let ShownHead {
                head,
                kind,
                declared,
                whole,
            } = ShownHead::unpack(shown.head).ok_or(UnknownReason::Unreadable)?;
            self.released_whole = kind == Kind::Released && whole;
            self.live.publish(|state| {
                state.recording.set_head(head, kind);
                if let Some(len) = declared {
                    state.recording.declare(len);
                }
            });
        }
        self.read_chunks(shown.in_chunks).await?;
        let seen = self.live.state.lock().recording.len();
        let Some(known) = seen.checked_sub(shown.from) else {
            // A gap: what lies between is in a chunk soon, or in the record.
            return Ok(());
        };
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        if let Some(bytes) = shown.bytes.get(known..) {
            self.push(shown.bytes.slice_ref(bytes));
        }
        Ok(())
    }

    /// Reads from the store what lies in full chunks up to `to`.
    async fn read_chunks(&self, to: u64) -> Result<(), UnknownReason> {
        let chunk_size = self.shared.settings.chunk_size as u64;
        loop {
            let at = self.live.state.lock().recording.len();
            if at >= to {
                return Ok(());
            }
            let number = u32::try_from(at / chunk_size).unwrap_or(u32::MAX);
            let (store, address) = (&self.shared.store, self.live.address);
            let chunk = match store.read(address, self.recording, number).await {
                Ok(chunk) if chunk.len() as u64 == chunk_size => chunk,
                Ok(_) | Err(StoreError::Corrupt(_)) => return Err(UnknownReason::Unreadable),
                Err(_) => {
                    tokio::time::sleep(PAUSE_MIN).await;
                    continue;
                }
            };
            let from = usize::try_from(at % chunk_size).unwrap_or(usize::MAX);
            self.push(chunk.slice(from..));
        }
    }

    /// Appends to the recording. What fills a chunk lies in the store already.
    fn push(&self, mut bytes: Bytes) {
        let chunk_size = self.shared.settings.chunk_size;
        self.live.publish(|state| {
            let recording = &mut state.recording;
            while !bytes.is_empty() {
                // A released answer is never in the store.
                let room = match recording.kind() {
                    Some(Kind::Released) => bytes.len(),
                    _ => recording.room(chunk_size),
                };
                if room == 0 {
                    let chunk = recording.current_chunk();
                    recording.spilled(chunk, self.shared.settings.operation_memory);
                    continue;
                }
                recording.push(bytes.split_to(room.min(bytes.len())));
            }
        });
    }

    /// Brings the recording to its end, as the completed record has it.
    async fn complete(&mut self, stored: Stored) -> End {
        let State::Completed(completed) = &stored.record.state else {
            return End::Unknown(UnknownReason::Unreadable);
        };
        match self.read_rest(completed, stored.last_chunk.clone()).await {
            Ok(()) => {
                let mut state = self.live.state.lock();
                state.recording.trailers = completed.trailers.clone();
                state.metered.clone_from(&stored.record.metered);
                End::Completed {
                    expires_at: Some(completed.expires_at),
                }
            }
            Err(reason) => End::Unknown(reason),
        }
    }

    async fn read_rest(
        &self,
        completed: &Completed,
        last_chunk: Option<Bytes>,
    ) -> Result<(), UnknownReason> {
        {
            let recording = &mut self.live.state.lock().recording;
            match &recording.head {
                None => recording.set_head(completed.head.clone(), Kind::Executed),
                Some((head, Kind::Executed)) if *head == completed.head => {}
                // It was resolved with another answer than the one that was shown (I4).
                Some(_) => return Err(UnknownReason::Unreadable),
            }
        }
        let last_chunk = last_chunk.unwrap_or_default();
        let last_start = completed.body_len.saturating_sub(last_chunk.len() as u64);
        self.read_chunks(last_start).await?;
        let seen = self.live.state.lock().recording.len();
        let known = usize::try_from(seen - last_start).unwrap_or(usize::MAX);
        let rest = last_chunk.get(known..).ok_or(UnknownReason::Unreadable)?;
        let rest = last_chunk.slice_ref(rest);
        match completed.chunks {
            // A single chunk need not have the size of the others: it stays in memory as it is.
            1 => self.live.publish(|state| state.recording.push(rest)),
            _ => self.push(rest),
        }
        Ok(())
    }

    async fn released(&mut self, reason: ReleaseReason) -> End {
        let kind = self.live.state.lock().recording.kind();
        if kind == Some(Kind::Executed) {
            // It ran, and broke off. An operator ruled since; who joined the execution has its fate (I18), and nobody
            // is shown what there is of an answer that never came whole (I3).
            return End::Unknown(UnknownReason::Truncated);
        }
        if kind.is_none() && reason == ReleaseReason::DidNotRun {
            // Whether or not it comes, the release stands.
            if let Ok(Some(shown)) = self.next_shown(self.shared.owner, LAST_WORDS).await {
                let _ = self.take(shown).await;
            }
        }
        End::Released {
            detail: reason.as_str().into(),
            whole: self.released_whole,
        }
    }
}

#[cfg(test)]
mod tests {
    use onlyonce_core::{Head, HeaderBlock};
    use onlyonce_store::MemoryStore;

    use super::*;
    use crate::{Begin, Engine, Settings, testing};

    #[tokio::test]
    async fn i15_a_mirror_is_gone_once_its_execution_has_ended() {
        let store = Arc::new(MemoryStore::new());
        let engine = |owner| Engine::new(store.clone(), OwnerId::new(owner), Settings::default());
        let (here, elsewhere) = (engine(1), engine(2));
        let (request, policy) = (testing::request(), testing::policy());
        let Ok(Begin::Execute(execution, _)) = here.begin(request.clone(), &policy).await else {
            panic!("a new key executes");
        };
        let Ok(Begin::Join(mut joiner)) = elsewhere.begin(request, &policy).await else {
            panic!("it runs elsewhere");
        };
        assert_eq!(elsewhere.shared.mirrors.len(), 1);
        let head = Head {
            status: 200,
            headers: HeaderBlock::default(),
        };
        let responded = execution.respond_whole(head, "done".into(), HeaderBlock::default());
        responded.await.expect("durable");
        joiner.start().await;
        while joiner.next().await.is_some() {}
        assert_eq!(elsewhere.shared.mirrors.len(), 0);
    }
}
