//! Copying and comparing one record.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use onlyonce_core::transition::{self, Claim, NotLawful, Response};
use onlyonce_core::{
    Address, Attempt, Completed, Epoch, Fence, Fingerprint, Got, Key, OperationId, OwnerId, Record,
    RequestLine, Scope, State, StateName, Timestamp, UnknownReason,
};
use onlyonce_store::{AttemptNote, Store, StoreError, Stored, Swap, Write};
use parking_lot::Mutex;

use super::{Copy, Counts, Trouble, everywhere, in_source, in_target};

/// How often what runs is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How often a record is copied that changes meanwhile.
const TRIES: usize = 5;
/// A store may tell the time too early by a round trip, which is given up after five seconds.
const SLACK_MILLIS: i64 = 6_000;

/// What is added to the times of the source: its clock is not the target's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shift(i64);

impl Shift {
    pub(super) fn of_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// What a window must be moved by so that it does not end too early, when the clocks stood at `from`
    /// and, no earlier, at `to` (I11).
    pub(super) fn between(from: Timestamp, to: Timestamp) -> Self {
        let [from, to] = [from, to].map(|time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
        Self(to.saturating_sub(from).saturating_add(SLACK_MILLIS))
    }

    pub(super) fn millis(self) -> i64 {
        self.0
    }

    fn of(self, time: Timestamp) -> Timestamp {
        Timestamp::from_millis(time.as_millis().saturating_add_signed(self.0))
    }

    /// The record as the target is to hold it, its epochs aside: those fence the writers of one store.
    fn record(self, record: &Record) -> Record {
        let mut record = record.clone();
        record.claimed_at = self.of(record.claimed_at);
        match &mut record.state {
            State::Completed(completed) => {
                completed.completed_at = self.of(completed.completed_at);
                completed.expires_at = self.of(completed.expires_at);
            }
            State::Unknown { since, .. } => *since = self.of(*since),
            State::InFlight { .. } | State::Released { .. } => {}
        }
        record
    }
}

/// What the source has at an address.
pub(super) enum Found {
    /// Nothing that counts: the key is free.
    Nothing,
    /// An execution under way.
    Running(Box<Record>),
    /// Something to copy.
    Settled(Box<Settled>),
}

/// A record that is to be in the target.
#[derive(Clone)]
pub(super) struct Settled {
    /// As the target is to hold it.
    record: Record,
    /// As the source holds it; nothing where it cannot be read.
    source: Option<Stored>,
}

impl Settled {
    fn completed(&self) -> Option<&Completed> {
        match &self.record.state {
            State::Completed(completed) => Some(completed),
            _ => None,
        }
    }

    fn bytes(&self) -> u64 {
        self.completed().map_or(0, |completed| completed.body_len)
    }

    /// Whether `held` is this record, its body aside: a record is completed in one write with its
    /// last chunk, after all others.
    fn is(&self, held: &Record) -> bool {
        let (epoch, claim) = (held.epoch, held.claim);
        let expected = Record {
            epoch,
            claim,
            ..self.record.clone()
        };
        *held == expected
    }
}

/// Why a record was not copied.
enum Failed {
    /// It is not what it was.
    Changed,
    Trouble(Trouble),
}

impl From<Trouble> for Failed {
    fn from(why: Trouble) -> Self {
        Self::Trouble(why)
    }
}

impl Copy<'_> {
    /// Copies what stands at `address`, unless it is there already.
    pub(super) async fn copy_one(&self, address: Address, waits: bool) -> Result<(), Trouble> {
        // The record whose recording could not be read.
        let mut broken = None;
        for _ in 0..TRIES {
            let Some(mut settled) = self.settled(address, waits).await? else {
                return Ok(());
            };
            if broken.is_some() && settled.fence() == broken {
                settled = settled.without_recording();
            }
            let held = self.to.load(address).await.map_err(in_target)?;
            if held.is_none_or(|held| !settled.is(&held.record)) {
                self.remove(address).await?;
                match self.write(address, &settled).await {
                    Ok(()) => {}
                    Err(Failed::Changed) => {
                        broken = settled.fence();
                        continue;
                    }
                    Err(Failed::Trouble(why)) => return Err(why),
                }
            }
            self.progress.looked(settled.bytes());
            return Ok(());
        }
        Err(format!(
            "a record changed {TRIES} times while it was copied"
        ))
    }

    /// What is to be copied from `address`.
    async fn settled(&self, address: Address, waits: bool) -> Result<Option<Settled>, Trouble> {
        let mut _waiting = None;
        loop {
            match self.found(address).await? {
                Found::Settled(settled) => return Ok(Some(*settled)),
                Found::Running(record) if waits => {
                    _waiting.get_or_insert_with(|| self.progress.waits());
                    self.expire(address, &record).await?;
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Found::Nothing | Found::Running(_) => return Ok(None),
            }
        }
    }

    /// What the source has at `address`.
    pub(super) async fn found(&self, address: Address) -> Result<Found, Trouble> {
        let stored = match self.from.load(address).await {
            Ok(Some(stored)) => stored,
            Ok(None) => return Ok(Found::Nothing),
            Err(StoreError::Corrupt(_)) => {
                return Ok(Found::Settled(Box::new(Settled {
                    record: unreadable(address),
                    source: None,
                })));
            }
            Err(error) => return Err(in_source(error)),
        };
        let record = &*stored.record;
        let is_over = record
            .expires_at()
            .is_some_and(|end| self.from.now() >= end);
        Ok(match record.state.name() {
            StateName::Released => Found::Nothing,
            StateName::Completed if is_over => Found::Nothing,
            StateName::InFlight => Found::Running(Box::new(record.clone())),
            StateName::Completed | StateName::Unknown => Found::Settled(Box::new(Settled {
                record: self.shift.record(record),
                source: Some(stored),
            })),
        })
    }

    /// An owner whose lease has passed is taken for dead, as every gateway does (L3).
    async fn expire(&self, address: Address, record: &Record) -> Result<(), Trouble> {
        let now = self.from.now();
        if !matches!(record.state, State::InFlight { lease_until, .. } if now >= lease_until) {
            return Ok(());
        }
        let fence = record.fence();
        let reason = UnknownReason::LeasePassed;
        // Its owner may have written what the source has forgotten.
        let drawn = NonZero::new(uuid::Uuid::now_v7().as_u128() as u32);
        let raise = drawn.filter(|_| self.from.may_forget());
        let raise = raise.unwrap_or(NonZero::<u32>::MIN);
        let unknown = transition::expire(Some(record), fence, reason, now, raise);
        let write = write(unknown.map_err(unlawful)?);
        let swap = self.from.compare_and_set(address, Some(fence), write).await;
        swap.map(drop).map_err(in_source)
    }

    /// Writes a record by the same transitions by which every record comes about.
    async fn write(&self, address: Address, settled: &Settled) -> Result<(), Failed> {
        let record = &settled.record;
        let claim = Claim {
            id: record.id,
            scope: record.scope.clone(),
            key: record.key.clone(),
            fingerprint: record.fingerprint,
            request: record.request.clone(),
            owner: OwnerId::new(0),
            raise: NonZero::<u32>::MIN,
        };
        let claim = transition::claim(None, claim, record.claimed_at, Duration::ZERO);
        let claim = claim.map_err(unlawful)?;
        let mut notes = self.notes(address, settled).await?.into_iter();
        let first = Write {
            attempt: notes.next(),
            ..write(claim.clone())
        };
        self.put(address, None, first).await?;
        for note in notes {
            let noted = self.to.note_attempt(address, record.id, note).await;
            noted.map_err(in_target)?;
        }
        let fence = claim.fence();
        let next = match &record.state {
            State::Completed(completed) => {
                self.write_chunks(address, settled, &claim).await?;
                let window = completed.expires_at.since(completed.completed_at);
                let response = Response {
                    head: completed.head.clone(),
                    trailers: completed.trailers.clone(),
                    body_len: completed.body_len,
                    chunks: completed.chunks,
                };
                let at = completed.completed_at;
                transition::complete(Some(&claim), fence, response, at, window)
            }
            State::Unknown { since, reason } => {
                transition::lose(Some(&claim), fence, *reason, *since)
            }
            State::InFlight { .. } | State::Released { .. } => return Err(Failed::Changed),
        };
        // What the transitions do not know of.
        let next = Record {
            metered: record.metered.clone(),
            entered: record.entered,
            ruling: record.ruling.clone(),
            ..next.map_err(unlawful)?
        };
        let last = Write {
            last_chunk: settled.last_chunk(),
            ..write(next)
        };
        Ok(self.put(address, Some(fence), last).await?)
    }

    async fn put(
        &self,
        address: Address,
        expected: Option<Fence>,
        write: Write,
    ) -> Result<(), Trouble> {
        match self.to.compare_and_set(address, expected, write).await {
            Ok(Swap::Done { .. }) => Ok(()),
            Ok(Swap::Lost) => Err("another copy into it writes at the same time".to_owned()),
            Err(error) => Err(in_target(error)),
        }
    }

    /// All chunks but the last, which is written with the record.
    async fn write_chunks(
        &self,
        address: Address,
        settled: &Settled,
        claim: &Record,
    ) -> Result<(), Failed> {
        for number in 0..settled.chunks_beside() {
            let bytes = self.source_chunk(address, settled, number).await?;
            let appended = self.to.append(address, claim.recording(), number, bytes);
            appended.await.map_err(in_target)?;
        }
        Ok(())
    }

    async fn source_chunk(
        &self,
        address: Address,
        settled: &Settled,
        number: u32,
    ) -> Result<Bytes, Failed> {
        let source = settled.source.as_ref().ok_or(Failed::Changed)?;
        match self
            .from
            .read(address, source.record.recording(), number)
            .await
        {
            Ok(bytes) => Ok(bytes),
            // It is unknown from now on (I13), or over.
            Err(StoreError::Corrupt(_)) => Err(Failed::Changed),
            Err(error) => Err(in_source(error).into()),
        }
    }

    /// The attempts that the source has kept, oldest first; at least the one that executed.
    async fn notes(
        &self,
        address: Address,
        settled: &Settled,
    ) -> Result<Vec<AttemptNote>, Trouble> {
        let attempts = match &settled.source {
            Some(source) => {
                let attempts = self.from.attempts(address, source.record.id).await;
                attempts.or_else(|error| match error {
                    // They are for people: what cannot be read is left out.
                    StoreError::Corrupt(_) => Ok(Vec::new()),
                    error => Err(in_source(error)),
                })?
            }
            None => Vec::new(),
        };
        let mut notes: Vec<_> = attempts
            .into_iter()
            .map(|attempt| self.note(attempt))
            .collect();
        if notes.is_empty() {
            notes.push(AttemptNote {
                peer: "".into(),
                sdk_retry_count: None,
                got: Got::Executed,
                trace: None,
                at: Some(settled.record.claimed_at),
            });
        }
        Ok(notes)
    }

    fn note(&self, attempt: Attempt) -> AttemptNote {
        AttemptNote {
            peer: attempt.peer,
            sdk_retry_count: attempt.sdk_retry_count,
            got: attempt.got,
            trace: attempt.trace,
            at: Some(self.shift.of(attempt.at)),
        }
    }

    /// Compares every record of both stores, byte for byte.
    pub(super) async fn compare(&self) -> Result<Counts, Trouble> {
        let counts = Mutex::new(Counts::default());
        let differing = Mutex::new(Vec::new());
        let (same, other) = (&counts, &differing);
        everywhere(self.from, |walked| async move {
            let Found::Settled(settled) = self.found(walked.address).await? else {
                return Ok(());
            };
            if self.is_same(walked.address, &settled).await? {
                same.lock().add(&settled);
            } else if self.is_broken(walked.address, &settled).await? {
                same.lock().unreadable += 1;
            } else if !self.is_gone(walked.address, &settled).await? {
                other.lock().push(settled.record.id);
            }
            self.progress.looked(settled.bytes());
            Ok(())
        })
        .await?;
        let only_there = AtomicU64::new(0);
        let alone = &only_there;
        everywhere(self.to, |walked| async move {
            let found = self.found(walked.address).await?;
            let held = self.to.load(walked.address).await.map_err(in_target)?;
            if !matches!(found, Found::Settled(_)) && held.is_some_and(|held| !self.is_over(&held))
            {
                alone.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
        .await?;
        let (counts, differing) = (counts.into_inner(), differing.into_inner());
        let only_there = only_there.into_inner();
        if let Some(first) = differing.first() {
            let count = differing.len();
            return Err(format!("{count} records differ, the first of them {first}"));
        }
        if only_there > 0 {
            return Err(format!("{only_there} records are in the new store alone"));
        }
        Ok(counts)
    }

    /// Whether the target holds this record, and the same bytes.
    async fn is_same(&self, address: Address, settled: &Settled) -> Result<bool, Trouble> {
        let held = self.to.load(address).await.map_err(in_target)?;
        let Some(held) = held.filter(|held| settled.is(&held.record)) else {
            return Ok(false);
        };
        if held.last_chunk != settled.last_chunk() {
            return Ok(false);
        }
        for number in 0..settled.chunks_beside() {
            let theirs = match self.to.read(address, held.record.recording(), number).await {
                Err(StoreError::Corrupt(_)) => return Ok(false),
                read => read.map_err(in_target)?,
            };
            match self.source_chunk(address, settled, number).await {
                Ok(ours) if ours == theirs => {}
                Err(Failed::Trouble(why)) => return Err(why),
                Ok(_) | Err(Failed::Changed) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether the source cannot read the recording, and the target says so.
    async fn is_broken(&self, address: Address, settled: &Settled) -> Result<bool, Trouble> {
        if settled.completed().is_none() {
            return Ok(false);
        }
        let held = self.to.load(address).await.map_err(in_target)?;
        let told = settled.clone().without_recording();
        if held.is_none_or(|held| !told.is(&held.record)) {
            return Ok(false);
        }
        for number in 0..settled.chunks_beside() {
            match self.source_chunk(address, settled, number).await {
                Ok(_) => {}
                Err(Failed::Changed) => return Ok(true),
                Err(Failed::Trouble(why)) => return Err(why),
            }
        }
        Ok(false)
    }

    /// Whether the source does not hold this record any more: its window has ended meanwhile.
    async fn is_gone(&self, address: Address, settled: &Settled) -> Result<bool, Trouble> {
        let is_there = matches!(self.found(address).await?, Found::Settled(now) if now.record.id == settled.record.id);
        Ok(!is_there)
    }

    /// Whether the window of a record of the target is over for the source.
    fn is_over(&self, held: &Stored) -> bool {
        let end = held.record.expires_at();
        end.is_some_and(|end| self.shift.of(self.from.now()) >= end)
    }
}

impl Settled {
    /// What the source's record must be found by.
    fn fence(&self) -> Option<Fence> {
        Some(self.source.as_ref()?.record.fence())
    }

    /// What is left where the recording cannot be read (I13).
    fn without_recording(self) -> Self {
        Self {
            record: self.record.without_recording(),
            ..self
        }
    }

    fn last_chunk(&self) -> Option<Bytes> {
        self.completed()?;
        self.source.as_ref()?.last_chunk.clone()
    }

    fn chunks_beside(&self) -> u32 {
        self.completed()
            .map_or(0, |completed| completed.chunks.saturating_sub(1))
    }
}

impl Counts {
    fn add(&mut self, settled: &Settled) {
        self.bytes += settled.bytes();
        match (&settled.source, &settled.record.state) {
            (None, _) => self.unreadable += 1,
            (_, State::Completed(_)) => self.completed += 1,
            _ => self.unknown += 1,
        }
    }
}

fn write(record: Record) -> Write {
    Write {
        record,
        last_chunk: None,
        attempt: None,
    }
}

fn unlawful(error: NotLawful) -> Trouble {
    format!("a record would come about in a way that the protocol does not know: {error}")
}

/// What stands in the target for a record that cannot be read. It is of no scope and no key, so whoever
/// asks for the key at this address is told that the outcome is unknown (I7, I13).
fn unreadable(address: Address) -> Record {
    let never = Timestamp::from_millis(0);
    Record {
        id: OperationId::from_bytes(*address.as_bytes()),
        scope: Scope {
            tenant: "".into(),
            namespace: "".into(),
        },
        key: Key::new("unreadable").unwrap_or_else(|_| unreachable!("a token")),
        fingerprint: Fingerprint::from_bytes([0; 32]),
        epoch: Epoch::ZERO,
        claim: Epoch::ZERO,
        claimed_at: never,
        request: RequestLine::default(),
        state: State::Unknown {
            since: never,
            reason: UnknownReason::Unreadable,
        },
        metered: None,
        entered: false,
        ruling: None,
    }
}
