//! What workers outside of this process execute: a claim is handed over, and settled from anywhere.
//!
//! A worker's claim is a record like any other, but no process is its owner: any engine over the store
//! renews and settles it for whoever presents its [`ClaimToken`], a restart leaves it alone, and only the
//! passing of its lease makes it unknown. After that, its result is taken as a late answer for as long as
//! nobody claims anew.
//!
//! ```text
//! begin_work ──> Execute(Granted) ──> renew_work .. ──> complete_work | release_work | fail_work
//!            ──> Replay, Join, Refuse                    (with the token that was granted)
//!                                      take_over ──> Execution
//! ```
//!
//! A worker whose answer is to be seen while it grows sends it to an engine, which takes the claim over and
//! records it as an execution of its own.
//!
//! Every write reads the record, sees whether it is under that very claim, and is a compare-and-set on
//! what was read. A lost acknowledgement is resolved by looking again (I14): where the claim stands
//! settled as it was to be, it is done. So each of these may be asked twice.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use onlyonce_core::{
    Address, Epoch, Head, HeaderBlock, Metered, NotLawful, OperationId, OwnerId, Record,
    ReleaseReason, State, StateName, Timestamp, UnknownReason, transition,
};
use onlyonce_store::{MAX_CHUNK, Shown, Store, StoreError, Stored, Swap, Write};
use tokio::time::Instant;

use crate::{
    Begin, Engine, Execution, Reader, Refused, Request, RoutePolicy, Shared, Trouble,
    admission::Permit,
    begin::{Decided, Slot, ticket},
    elsewhere::mirror,
    live::Live,
    write::Backoff,
};

/// Who is to hold a claim, and for how long without a renewal.
#[derive(Clone, Copy, Debug)]
pub struct Worker {
    /// The worker, for this one claim.
    pub owner: OwnerId,
    /// How long the claim is believed without renewal.
    pub lease: Duration,
}

/// What a worker may do.
pub enum Work<S: Store> {
    /// Execute: the claim is durable (I2).
    Execute(Granted),
    /// The result is there.
    Replay(Reader<S>),
    /// Somebody executes it.
    Join(Reader<S>),
    /// Do nothing.
    Refuse(Refused),
}

/// A claim that a worker holds.
#[derive(Clone, Debug)]
pub struct Granted {
    /// The operation.
    pub id: OperationId,
    /// What proves the claim.
    pub token: ClaimToken,
    /// The attempt's number, from 1.
    pub attempt: u32,
    /// The claim's epoch: higher than that of every claim of this operation before it.
    pub epoch: Epoch,
    /// Until when the claim is believed, on the store's clock.
    pub lease_until: Timestamp,
}

/// What proves that a worker holds a claim: where it stands, and a keyed hash of what it is, which nobody
/// can guess who was not given it. Another claim of the same operation has another one, and so has the
/// same claim once it was copied to another store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ClaimToken {
    /// So that no index has to be asked.
    address: Address,
    mac: [u8; 16],
}

/// Text that is no claim token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a claim: it has 64 hexadecimal digits")]
pub struct NotAClaimToken;

impl ClaimToken {
    fn of(secret: &[u8; 32], record: &Record) -> Self {
        let address = onlyonce_store::address(secret, &record.scope, &record.key);
        let mut hasher = blake3::Hasher::new_keyed(secret);
        hasher.update(b"onlyonce work claim v1");
        hasher.update(address.as_bytes());
        hasher.update(record.id.as_bytes());
        hasher.update(&record.claim.number().to_be_bytes());
        hasher.update(&record.claimed_at.as_millis().to_be_bytes());
        let mut mac = [0; 16];
        hasher.finalize_xof().fill(&mut mac);
        Self { address, mac }
    }

    /// Compares without telling by the time it takes how much of a guess was right.
    fn is(&self, other: &Self) -> bool {
        let differences = self.mac.iter().zip(&other.mac);
        let differences = differences.fold(0, |differences, (a, b)| differences | (a ^ b));
        std::hint::black_box(differences) == 0
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.address.as_bytes().iter().chain(&self.mac);
        bytes.try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Hidden: whoever reads a log must not be able to settle with it.
impl fmt::Debug for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClaimToken(..)")
    }
}

impl FromStr for ClaimToken {
    type Err = NotAClaimToken;

    fn from_str(text: &str) -> Result<Self, NotAClaimToken> {
        let part = |digits: Option<&str>| {
            let digits = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
            let number = u128::from_str_radix(digits?, 16).ok()?;
            Some(number.to_be_bytes())
        };
        if text.len() != 64 {
            return Err(NotAClaimToken);
        }
        let address = part(text.get(..32)).ok_or(NotAClaimToken)?;
        Ok(Self {
            address: Address::from_bytes(address),
            mac: part(text.get(32..)).ok_or(NotAClaimToken)?,
        })
    }
}

/// Why what a worker said was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// No such operation: it never was, or its record is gone.
    #[error("there is no such operation")]
    NotFound,
    /// The claim that was presented is not the one that counts (I9).
    #[error("the claim that was presented is not the one that counts for this operation")]
    Fenced,
    /// It stands settled in another way.
    #[error("the operation is {0} already")]
    Settled(StateName),
    /// The result is larger than one record holds.
    #[error("the result is larger than {limit} bytes")]
    OverLimit {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The store did not do it.
    #[error(transparent)]
    Trouble(#[from] Trouble),
}

/// What somebody sees who waits for an operation.
pub enum Watch<S: Store> {
    /// It does not run.
    Settled(Stored),
    /// It runs. The reader tells when that ends; no attempt is noted.
    Running(Stored, Reader<S>),
}

impl<S: Store> Engine<S> {
    /// A worker that asks for a claim. One that says `nonce` again is the same one: so it gets the claim
    /// that it was granted and not told of. Drawn at random for each claim that is asked for, by the one
    /// who asks.
    pub fn worker(&self, nonce: Option<&str>, lease: Duration) -> Worker {
        let number = match nonce {
            Some(nonce) => {
                let mut hasher = blake3::Hasher::new_keyed(self.shared.store.secret());
                hasher.update(b"onlyonce work nonce v1");
                hasher.update(nonce.as_bytes());
                let mut number = [0; 8];
                hasher.finalize_xof().fill(&mut number);
                u64::from_be_bytes(number)
            }
            None => self.shared.ids.draw(),
        };
        Worker {
            owner: OwnerId::worker(number),
            lease,
        }
    }

    /// Decides about the attempt of a worker, and claims for it where it may execute.
    ///
    /// A claim that was made when this is dropped stays the worker's: it is to ask again as the same one.
    ///
    /// # Errors
    ///
    /// [`Trouble`], as [`Engine::begin`]; after [`Trouble::InDoubt`] too, the same worker may ask again.
    pub async fn begin_work(
        &self,
        request: Request,
        worker: Worker,
        policy: &RoutePolicy,
    ) -> Result<Work<S>, Trouble> {
        let decided = self.decide(request, policy, Some(worker)).await?;
        let (record, attempt) = match decided {
            Decided::Claimed(made) => made.hand_over(),
            Decided::Own(stored) => (stored.record, stored.attempts),
            Decided::Begin(Begin::Replay(reader)) => return Ok(Work::Replay(reader)),
            Decided::Begin(Begin::Join(reader)) => return Ok(Work::Join(reader)),
            Decided::Begin(Begin::Refuse(refused)) => return Ok(Work::Refuse(refused)),
            Decided::Begin(Begin::Execute(execution, _)) => {
                unreachable!("{} is to be executed here and elsewhere", execution.id())
            }
        };
        Ok(Work::Execute(Granted {
            id: record.id,
            token: ClaimToken::of(self.shared.store.secret(), &record),
            attempt,
            epoch: record.claim,
            lease_until: record.until().unwrap_or_default(),
        }))
    }

    /// Renews the lease: the claim is believed for `lease` from now on, or for longer where it was
    /// already.
    ///
    /// # Errors
    ///
    /// [`WorkError`]; [`WorkError::Settled`] with [`StateName::Unknown`] where the lease has passed and
    /// somebody has written so.
    pub async fn renew_work(
        &self,
        id: OperationId,
        token: &ClaimToken,
        lease: Duration,
    ) -> Result<Arc<Record>, WorkError> {
        let raise = self.shared.raise();
        let written = self.shared.write_work(id, token, None, |stored, now| {
            let record = &*stored.record;
            match record.state {
                // The process that took it over renews it, for as long as it lives (L3).
                _ if is_taken_over(record) => Step::Stands,
                State::InFlight { .. } => write(transition::renew(
                    Some(record),
                    record.fence(),
                    now,
                    lease,
                    raise,
                )),
                _ => Step::Not(settled(record)),
            }
        });
        Ok(written.await?.record)
    }

    /// Takes the claim over: this process records from now on what the worker sends it of its answer, and
    /// renews the lease. It answers retries for `window` from its completion.
    ///
    /// # Errors
    ///
    /// [`WorkError`]; [`WorkError::Settled`] with [`StateName::InFlight`] where it was taken over before.
    pub async fn take_over(
        &self,
        id: OperationId,
        token: &ClaimToken,
        window: Duration,
    ) -> Result<Execution<S>, WorkError> {
        let shared = &self.shared;
        let mut backoff = Backoff::new(Instant::now() + shared.settings.settle_timeout);
        // Kept over all tries: whoever comes meanwhile must not take what is in doubt for abandoned.
        let mut slot = None;
        let mut doubted = false;
        loop {
            if shared.is_stopping() {
                return Err(Trouble::ShuttingDown.into());
            }
            let taken = shared.take_over_now((id, token), &mut slot, doubted);
            let error = match taken.await {
                Ok(Some((live, record, permit))) => {
                    return Ok(Execution::new(shared.clone(), live, record, window, permit));
                }
                // Somebody looks at it, or wrote: the next try tells.
                Ok(None) => StoreError::Unavailable("the operation changes all the time".into()),
                Err(Unseen::Never(error)) => return Err(error),
                Err(Unseen::Store(error)) => {
                    doubted |= matches!(error, StoreError::InDoubt(_));
                    error
                }
            };
            if matches!(error, StoreError::Full(_)) || !backoff.wait().await {
                return Err(Trouble::from(error).into());
            }
        }
    }

    /// Completes with a whole answer, which answers retries for `window` from now on (I11). Also the late
    /// answer of a claim that became unknown meanwhile, unless somebody claimed anew or settled it.
    ///
    /// The body is written in one piece with the record, so that two answers never mix (I4).
    ///
    /// # Errors
    ///
    /// [`WorkError`]; [`WorkError::Settled`] with [`StateName::Completed`] where another answer stands.
    pub async fn complete_work(
        &self,
        id: OperationId,
        token: &ClaimToken,
        head: Head,
        body: Bytes,
        window: Duration,
        metered: Option<Metered>,
    ) -> Result<Arc<Record>, WorkError> {
        let shared = &self.shared;
        let limit = shared.settings.max_response.min(MAX_CHUNK as u64);
        if body.len() as u64 > limit {
            return Err(WorkError::OverLimit { limit });
        }
        let (response, last_chunk) = in_one_chunk(head, body);
        let metered = metered.map(Box::new);
        let written = shared.write_work(id, token, last_chunk.clone(), |stored, now| {
            let record = &*stored.record;
            match &record.state {
                _ if is_taken_over(record) => Step::Not(settled(record)),
                State::Completed(completed)
                    if completed.head == response.head
                        && completed.chunks == response.chunks
                        && stored.last_chunk == last_chunk =>
                {
                    Step::Stands
                }
                // An answer was given once, and cannot be read any more: a person has to decide (I4).
                State::Unknown {
                    reason: UnknownReason::Unreadable,
                    ..
                }
                | State::Completed(_)
                | State::Released { .. } => Step::Not(settled(record)),
                State::InFlight { .. } | State::Unknown { .. } => {
                    let response = response.clone();
                    let next =
                        transition::complete(Some(record), record.fence(), response, now, window);
                    write(next.map(|next| shared.for_the_books(next, metered.clone())))
                }
            }
        });
        let written = written.await?;
        if written.is_news {
            shared.tell_completed(&written.record, written.record.metered.as_deref());
        }
        Ok(written.record)
    }

    /// Releases: the worker says that it did nothing (I10). Where the claim was a resend, the operation is
    /// unknown after this, as it was before.
    ///
    /// # Errors
    ///
    /// [`WorkError`].
    pub async fn release_work(
        &self,
        id: OperationId,
        token: &ClaimToken,
    ) -> Result<Arc<Record>, WorkError> {
        let reason = ReleaseReason::Worker;
        let retention = self.shared.settings.released_retention;
        let written = self.shared.write_work(id, token, None, |stored, now| {
            let record = &*stored.record;
            match record.state {
                _ if is_taken_over(record) => Step::Not(settled(record)),
                State::Released { reason: held, .. } if held == reason => Step::Stands,
                State::InFlight { .. } => write(transition::release(
                    Some(record),
                    record.fence(),
                    reason,
                    now,
                    retention,
                )),
                _ => Step::Not(settled(record)),
            }
        });
        Ok(written.await?.record)
    }

    /// Gives up: the worker cannot say whether it ran. `metered` is what it used at least.
    ///
    /// # Errors
    ///
    /// [`WorkError`].
    pub async fn fail_work(
        &self,
        id: OperationId,
        token: &ClaimToken,
        metered: Option<Metered>,
    ) -> Result<Arc<Record>, WorkError> {
        let shared = &self.shared;
        let (reason, metered) = (UnknownReason::WorkerFailed, metered.map(Box::new));
        let written = shared.write_work(id, token, None, |stored, now| {
            let record = &*stored.record;
            match record.state {
                _ if is_taken_over(record) => Step::Not(settled(record)),
                State::Unknown { .. } => Step::Stands,
                State::InFlight { .. } => {
                    let next = transition::lose(Some(record), record.fence(), reason, now);
                    write(next.map(|next| shared.for_the_books(next, metered.clone())))
                }
                _ => Step::Not(settled(record)),
            }
        });
        let written = written.await?;
        if written.is_news {
            shared.tell_unknown(reason);
        }
        Ok(written.record)
    }

    /// The operation `id` where `token` says that it stands, whether or not its claim counts.
    ///
    /// # Errors
    ///
    /// [`Trouble`] where the store does not answer.
    pub async fn claimed(
        &self,
        id: OperationId,
        token: &ClaimToken,
    ) -> Result<Option<Stored>, Trouble> {
        let stored = self.shared.store.load(token.address).await?;
        Ok(stored.filter(|stored| stored.record.id == id))
    }

    /// The operation `id`, and where it runs, what tells when that ends. Whoever waits for one operation
    /// in this process waits by one look at the store.
    ///
    /// # Errors
    ///
    /// [`Trouble`] where the store does not answer.
    pub async fn watch(&self, id: OperationId) -> Result<Option<Watch<S>>, Trouble> {
        let Some((address, stored)) = self.stored(id).await? else {
            return Ok(None);
        };
        if stored.record.state.name() != StateName::InFlight {
            return Ok(Some(Watch::Settled(stored)));
        }
        let shared = self.shared.clone();
        let ticket = ticket(&stored.record, stored.attempts);
        let own = shared.registry.at(address);
        let own = own.filter(|_| shared.is_own(&stored.record));
        let live = own.unwrap_or_else(|| mirror(&shared, address, &stored.record));
        let reader = Reader::live(shared, live, ticket, None);
        Ok(Some(Watch::Running(stored, reader)))
    }
}

/// A whole response, and its body as the one chunk that it has.
pub(crate) fn in_one_chunk(head: Head, body: Bytes) -> (transition::Response, Option<Bytes>) {
    let last_chunk = (!body.is_empty()).then(|| body.clone());
    let response = transition::Response {
        head,
        trailers: HeaderBlock::default(),
        body_len: body.len() as u64,
        chunks: last_chunk.is_some().into(),
    };
    (response, last_chunk)
}

/// What to do with a record that stands under the claim that was presented.
enum Step {
    /// Put this in its place.
    Write(Box<Record>),
    /// Nothing: it is done.
    Stands,
    /// Nothing: it must not be.
    Not(WorkError),
}

fn write(next: Result<Record, NotLawful>) -> Step {
    match next {
        Ok(next) => Step::Write(Box::new(next)),
        Err(NotLawful::NoSuchArrow { from, .. }) => Step::Not(WorkError::Settled(from)),
        Err(NotLawful::Fenced { .. }) => Step::Not(WorkError::Fenced),
    }
}

fn is_workers(record: &Record) -> bool {
    matches!(record.state, State::InFlight { owner, .. } if owner.is_worker())
}

/// Whether a process executes it, and settles it alone.
fn is_taken_over(record: &Record) -> bool {
    matches!(record.state, State::InFlight { owner, .. } if !owner.is_worker())
}

fn settled(record: &Record) -> WorkError {
    WorkError::Settled(record.state.name())
}

/// The record as it stands by a worker's word.
struct Written {
    record: Arc<Record>,
    /// Whether it came to stand so just now.
    is_news: bool,
}

impl<S: Store> Shared<S> {
    /// Writes what `step` makes of the operation `id`, while its claim is the one that `token` proves.
    async fn write_work(
        self: &Arc<Self>,
        id: OperationId,
        token: &ClaimToken,
        last_chunk: Option<Bytes>,
        step: impl Fn(&Stored, Timestamp) -> Step,
    ) -> Result<Written, WorkError> {
        // The moment stays the same over all tries, so that each writes the very same record.
        let now = self.store.now();
        let mut backoff = Backoff::new(Instant::now() + self.settings.settle_timeout);
        let mut doubted = false;
        loop {
            let error = match self.look(id, token).await {
                Ok(stored) => {
                    let next = match step(&stored, now) {
                        Step::Write(next) => *next,
                        Step::Stands => {
                            return Ok(Written {
                                record: stored.record,
                                is_news: doubted,
                            });
                        }
                        Step::Not(error) => return Err(error),
                    };
                    match self
                        .put(token.address, &stored, next, last_chunk.clone())
                        .await
                    {
                        Ok(Some(record)) => {
                            let is_news = true;
                            return Ok(Written { record, is_news });
                        }
                        // Somebody else wrote, or what was in doubt has landed: the next look tells.
                        Ok(None) => {
                            StoreError::Unavailable("the operation changes all the time".into())
                        }
                        Err(error) => {
                            doubted |= matches!(error, StoreError::InDoubt(_));
                            error
                        }
                    }
                }
                Err(Unseen::Never(error)) => return Err(error),
                Err(Unseen::Store(error)) => error,
            };
            // Whoever asks has what is to be written, and may ask again once there is room.
            if matches!(error, StoreError::Full(_)) || !backoff.wait().await {
                return Err(Trouble::from(error).into());
            }
        }
    }

    /// Makes this process the owner of a worker's claim, and the operation live here. `None` where somebody
    /// was faster. `doubted` says that a try before this one may have done it.
    async fn take_over_now(
        self: &Arc<Self>,
        (id, token): (OperationId, &ClaimToken),
        slot: &mut Option<Slot<S>>,
        doubted: bool,
    ) -> Result<Option<(Arc<Live>, Arc<Record>, Permit)>, Unseen> {
        let stored = self.look(id, token).await?;
        let (record, address) = (&stored.record, token.address);
        let is_done = doubted && self.is_own(record);
        if !is_done && !is_workers(record) {
            return Err(settled(record).into());
        }
        if slot.is_none() {
            *slot = Slot::take(self, address, record.fingerprint);
        }
        if slot.is_none() {
            return Ok(None);
        }
        let permit = self.admission.admit(&record.scope.tenant);
        let permit = permit.map_err(WorkError::from)?;
        let taken = match is_done {
            true => record.clone(),
            false => {
                // What is known of a claim that did not land, and may have the very name of this one, is not to be
                // said of what runs from here on (I10).
                self.abandoned.forget(address);
                let (lease, now) = (self.settings.lease, self.store.now());
                let (owner, raise) = (self.owner, self.raise());
                let next =
                    transition::take_over(Some(record), record.fence(), owner, now, lease, raise);
                let next = next.map_err(|_| settled(record))?;
                match self.put(address, &stored, next, None).await? {
                    Some(taken) => taken,
                    None => return Ok(None),
                }
            }
        };
        let live = slot.take().map(|slot| slot.run(taken.clone()));
        Ok(live.map(|live| (live, taken, permit)))
    }

    async fn look(&self, id: OperationId, token: &ClaimToken) -> Result<Stored, Unseen> {
        let stored = self.store.load(token.address).await?;
        let stored = stored.filter(|stored| stored.record.id == id);
        let stored = stored.ok_or(WorkError::NotFound)?;
        if !token.is(&ClaimToken::of(self.store.secret(), &stored.record)) {
            return Err(WorkError::Fenced.into());
        }
        Ok(stored)
    }

    /// Puts `next` in the place of `held`, and tells whoever waits for it. `None` where something else
    /// stands there.
    async fn put(
        self: &Arc<Self>,
        address: Address,
        held: &Stored,
        next: Record,
        last_chunk: Option<Bytes>,
    ) -> Result<Option<Arc<Record>>, StoreError> {
        let write = Write {
            record: next.clone(),
            last_chunk,
            attempt: None,
        };
        let fence = held.record.fence();
        let swap = self
            .store
            .compare_and_set(address, Some(fence), write)
            .await?;
        if swap == Swap::Lost {
            return Ok(None);
        }
        self.poke(address);
        if next.state.name() != StateName::InFlight {
            self.show_end(address, &next);
        }
        Ok(Some(Arc::new(next)))
    }

    /// Has who follows on other gateways look at the record. Where that is lost, they look a little later.
    fn show_end(self: &Arc<Self>, address: Address, record: &Record) {
        let (shared, recording) = (self.clone(), record.recording());
        let shown = Shown {
            ended: true,
            ..Shown::default()
        };
        tokio::spawn(async move {
            if let Err(error) = shared.store.show(address, recording, shown).await {
                tracing::debug!(%error, "the end of a worker's operation could not be shown");
            }
        });
    }
}

/// Why a record is not there to be written over.
enum Unseen {
    /// And never will be.
    Never(WorkError),
    /// The store did not say.
    Store(StoreError),
}

impl From<WorkError> for Unseen {
    fn from(error: WorkError) -> Self {
        Self::Never(error)
    }
}

impl From<StoreError> for Unseen {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Corrupt(_) => Self::Never(WorkError::Settled(StateName::Unknown)),
            error => Self::Store(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use onlyonce_core::Fence;
    use onlyonce_store::{
        MemoryStore,
        clock::ManualClock,
        memory::{Call, Fault},
    };

    use super::*;
    use crate::{
        Settings,
        abandoned::{Claim, Outcome},
        testing,
    };

    /// An attempt here was left before its claim was written; a worker's claim then got the same name, as it may where
    /// claims raise the epoch by one.
    #[tokio::test(start_paused = true)]
    async fn i01_i10_what_is_known_of_a_claim_that_did_not_land_is_not_said_of_a_workers() {
        let clock = ManualClock::default();
        let store = Arc::new(MemoryStore::with_clock(clock.clone()));
        let engine = Engine::new(store.clone(), OwnerId::new(1), Settings::default());
        let (request, policy) = (testing::request(), testing::policy());
        let hour = policy.window;
        let worker = engine.worker(None, hour);
        let begun = engine.begin_work(request, worker, &policy).await;
        let Ok(Work::Execute(granted)) = begun else {
            panic!("a new key executes");
        };
        let (id, token) = (granted.id, &granted.token);
        let left = Claim {
            fence: Fence {
                id,
                epoch: granted.epoch,
            },
            outcome: Outcome::Release(ReleaseReason::NotSent),
            since: store.now(),
        };
        engine.shared.abandoned.add(token.address, left);

        // The worker has run, and its gateway cannot say whether it took the claim over.
        let claim = Call::WriteOf(StateName::InFlight);
        store.faults().fail(claim, Fault::InDoubtWritten, 1);
        let mut taking = Box::pin(engine.take_over(id, token, hour));
        let first = store.faults().hold(Call::Load);
        assert!((&mut taking).now_or_never().is_none());
        drop(first);
        let reads_back = store.faults().hold(Call::Load);
        tokio::select! {
            _ = &mut taking => panic!("it is in doubt"),
            () = reads_back.until_waiting(1) => {}
        }
        drop((taking, reads_back));

        clock.advance(Settings::default().lease);
        engine.upkeep().await;
        let stored = store.load(token.address).await.expect("readable");
        let state = stored.expect("there").record.state.name();
        assert_eq!(state, StateName::Unknown);
    }
}
