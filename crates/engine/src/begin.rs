//! The way of one attempt: what the store and the live operations say, the decision, the claim.

use std::{sync::Arc, time::Duration};

use onlyonce_core::{
    Decision, Epoch, Fence, Fingerprint, Got, Held, Key, OperationId, OperationSpan, OwnerId,
    Policy, Record, Refusal, ReleaseReason, RequestLine, Scope, State, Timestamp, TraceId,
    UnknownReason, decide,
    planted::{Bug, planted},
    transition, view,
};
use onlyonce_store::{AttemptNote, Store, StoreError, Stored, Swap, Write};

use tokio::time::Instant;

use crate::{
    AskedModel, Engine, Execution, Reader, Refused, Shared, Trouble, Worker,
    abandoned::{Claim, Outcome},
    admission::Permit,
    elsewhere::mirror,
    live::{End, Entered, Live, Phase},
    write::{Backoff, ClaimFailed, Claimed},
};

/// How long an attempt tries to write what the store does not take, though a look says that it may.
const LOSING_PATIENCE: Duration = Duration::from_secs(2);

/// One attempt, as the engine sees it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where the key is unique.
    pub scope: Scope,
    /// The key.
    pub key: Key,
    /// What makes a later request the same request.
    pub fingerprint: Fingerprint,
    /// The request, for people.
    pub line: RequestLine,
    /// The model that it asks for. Where books are kept, the record has it from its claim on, unless it is
    /// longer than any name of a model.
    pub asked_model: AskedModel,
    /// Where it came from: an address and a port, or empty.
    pub peer: Box<str>,
    /// What the caller's SDK said of its own retries.
    pub sdk_retry_count: Option<u32>,
    /// The trace that this attempt is seen in; one that executes is seen in that of its operation.
    pub trace: Option<TraceId>,
}

impl Request {
    /// What there is to note of the attempt.
    pub(crate) fn note(&self, got: Got, trace: Option<TraceId>) -> AttemptNote {
        AttemptNote {
            peer: self.peer.clone(),
            sdk_retry_count: self.sdk_retry_count,
            got,
            trace,
            at: None,
        }
    }
}

/// What the route says.
#[derive(Clone, Copy, Debug)]
pub struct RoutePolicy {
    /// Where the protocol leaves a choice.
    pub decision: Policy,
    /// How long a completed record answers retries, counted from completion.
    pub window: Duration,
    /// How long a joiner waits for the response to start.
    pub join_timeout: Duration,
}

/// Which operation, and which attempt of it, an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The operation.
    pub id: OperationId,
    /// The attempt's number, from 1.
    pub attempt: u32,
    /// The epoch of the claim that this answer comes of.
    pub claim: Epoch,
    /// The end of the window, where the record is known to be completed.
    pub expires_at: Option<Timestamp>,
    /// The operation's span under the claim that this answer comes of.
    pub span: OperationSpan,
}

/// What an attempt may do.
pub enum Begin<S: Store> {
    /// Execute: the claim is durable (I2). The reader is the caller's.
    Execute(Execution<S>, Reader<S>),
    /// Answer from the finished recording.
    Replay(Reader<S>),
    /// Follow the running execution.
    Join(Reader<S>),
    /// Send nothing.
    Refuse(Refused),
}

/// What an attempt that wants to write holds: the only right to claim at its address.
enum Want<S: Store> {
    Mine(Slot<S>),
    Theirs(Arc<Live>),
}

impl<S: Store> Engine<S> {
    /// Decides about an attempt, and claims where it may execute. On [`Trouble`], nothing was sent
    /// and nothing will be.
    ///
    /// It may be dropped at any moment: a claim that was made by then is released.
    pub async fn begin(&self, request: Request, policy: &RoutePolicy) -> Result<Begin<S>, Trouble> {
        let decided = self.decide(request, policy, None).await?;
        Ok(match decided {
            Decided::Claimed(made) => made.execute(policy.window),
            Decided::Begin(begin) => begin,
            Decided::Own(stored) => Begin::Refuse(Refused {
                refusal: Refusal::InFlight,
                ticket: Some(ticket(&stored.record, stored.attempts)),
            }),
        })
    }

    /// Decides about an attempt, whose claim is to be `worker`'s where there is one.
    pub(crate) async fn decide(
        &self,
        request: Request,
        policy: &RoutePolicy,
        worker: Option<Worker>,
    ) -> Result<Decided<S>, Trouble> {
        let shared = &self.shared;
        let address = onlyonce_store::address(shared.store.secret(), &request.scope, &request.key);
        let mut attempt = Attempt {
            shared,
            address,
            policy,
            request,
            worker,
            slot: None,
            looks_first: false,
            losing: None,
            doubted: None,
        };
        let decided = attempt.decide().await;
        if let (Err(trouble), Some(slot)) = (&decided, attempt.slot.take()) {
            // Those who waited for this claim share its fate, or they would try one by one.
            slot.fail(trouble.clone());
        }
        decided
    }
}

/// What an attempt may do.
pub(crate) enum Decided<S: Store> {
    /// It may execute: its claim is durable.
    Claimed(Made<S>),
    /// The worker that asks holds the claim already: it was not told so.
    Own(Stored),
    /// Something else than to execute.
    Begin(Begin<S>),
}

/// A durable claim, whose slot is still held.
pub(crate) struct Made<S: Store> {
    slot: Slot<S>,
    pub(crate) record: Arc<Record>,
    pub(crate) attempt: u32,
    permit: Permit,
}

impl<S: Store> Made<S> {
    /// The execution and its first reader.
    fn execute(self, window: Duration) -> Begin<S> {
        let Self {
            slot,
            record,
            attempt,
            permit,
        } = self;
        let shared = slot.shared.clone();
        let live = slot.run(record.clone());
        let ticket = ticket(&record, attempt);
        let reader = Reader::live(shared.clone(), live.clone(), ticket, None);
        Begin::Execute(Execution::new(shared, live, record, window, permit), reader)
    }

    /// Lets go of the slot, which has no claim of this process: who executes is another one, and whoever waited
    /// here decides anew.
    pub(crate) fn hand_over(self) -> (Arc<Record>, u32) {
        (self.record, self.attempt)
    }
}

struct Attempt<'a, S: Store> {
    shared: &'a Arc<Shared<S>>,
    address: onlyonce_core::Address,
    policy: &'a RoutePolicy,
    request: Request,
    /// Who is to hold the claim, where it is not this process.
    worker: Option<Worker>,
    /// Once it wants to write. While it is held, every other attempt for the key waits.
    slot: Option<Slot<S>>,
    /// From its first step on: it may be known by then that a claim is not all there is to do.
    looks_first: bool,
    /// Since a write was lost that a look had allowed.
    losing: Option<Backoff>,
    /// What a claim expected that may be on its way still.
    doubted: Option<Option<Fence>>,
}

impl<S: Store> Attempt<'_, S> {
    async fn decide(&mut self) -> Result<Decided<S>, Trouble> {
        loop {
            if self.slot.is_none()
                && let Some(live) = self.shared.registry.at(self.address)
            {
                self.looks_first = true;
                match self.meet(live).await? {
                    Some(begin) => return Ok(Decided::Begin(begin)),
                    None => continue,
                }
            }
            if self.seems_new() {
                match self.claim_unseen().await? {
                    Some(decided) => return Ok(decided),
                    None => continue,
                }
            }
            let stored = match self.shared.store.load(self.address).await {
                Ok(stored) => stored,
                Err(StoreError::Corrupt(_)) => {
                    return Ok(Decided::Begin(refuse(UnknownReason::Unreadable)));
                }
                Err(error) => return Err(error.into()),
            };
            if !self.is_of_this_key(stored.as_ref()) {
                return Ok(Decided::Begin(refuse(UnknownReason::Unreadable)));
            }
            let now = self.shared.store.now();
            let held = view(stored.as_ref().map(|stored| &*stored.record), now);
            let decision = decide(held, &self.request.fingerprint, &self.policy.decision);

            let writes = match (&decision, held) {
                (Decision::Execute { .. } | Decision::ExpireLease, _) => true,
                // In flight under our own lease, and not live: nobody executes it.
                (
                    Decision::Join | Decision::Refuse(Refusal::InFlight),
                    Held::Record { record, .. },
                ) => self.shared.is_own(record),
                _ => false,
            };
            if writes && self.slot.is_none() {
                match self.want() {
                    Want::Mine(slot) => self.slot = Some(slot),
                    Want::Theirs(live) => match self.meet(live).await? {
                        Some(begin) => return Ok(Decided::Begin(begin)),
                        None => continue,
                    },
                }
                // What was loaded before the slot was ours may be out of date. A claim is
                // fenced against that; of our own lease, only a fresh look tells.
                if !matches!(decision, Decision::Execute { .. }) {
                    continue;
                }
            }
            if let Decision::Execute { .. } = decision {
                let held = match held {
                    Held::Record { record, .. } => Some(record),
                    Held::Absent | Held::Unreadable => None,
                };
                match self.claim(held, now).await? {
                    Some(made) => return Ok(Decided::Claimed(made)),
                    None => {
                        self.loses().await?;
                        continue;
                    }
                }
            }
            // Every other decision speaks of a record.
            let Some(stored) = stored else {
                return Ok(Decided::Begin(refuse(UnknownReason::Unreadable)));
            };
            if self.holds(&stored.record) && !matches!(decision, Decision::ExpireLease) {
                return Ok(Decided::Own(stored));
            }
            let written = match decision {
                Decision::Replay => return Ok(Decided::Begin(self.replay(stored).await)),
                Decision::ExpireLease => self.expire(&stored.record, now).await?,
                _ if writes => {
                    let record = &stored.record;
                    self.shared.settle_abandoned(self.address, record).await?
                }
                Decision::Refuse(refusal) => {
                    return Ok(Decided::Begin(self.refuse(refusal, stored).await));
                }
                Decision::Join | Decision::Execute { .. } => {
                    return Ok(Decided::Begin(self.follow(stored).await));
                }
            };
            if !written {
                self.loses().await?;
            }
        }
    }

    /// A look allowed a write, and the store did not take it. Mostly somebody was faster, and the next
    /// look tells. But where store and gateway do not take the same time for the store's, as after a
    /// failover to a server whose clock is behind, that look says the same again, and so for a while; and
    /// so it does where looks are answered by a former primary still.
    async fn loses(&mut self) -> Result<(), Trouble> {
        let Some(backoff) = &mut self.losing else {
            self.losing = Some(Backoff::new(Instant::now() + LOSING_PATIENCE));
            return Ok(());
        };
        match backoff.wait().await {
            true => Ok(()),
            false => Err(Trouble::Unavailable(
                "it refuses what a look at it allows: its clock and this gateway's differ, looks are \
                 answered by another server than writes, or what it holds is damaged"
                    .into(),
            )),
        }
    }

    /// Whether to claim without a look, which spares a new key a round trip. Only the first thing that
    /// an attempt does: the store guesses by the other keys that it was asked about, and guesses anew at
    /// any moment, while one that has looked may hold its slot already.
    fn seems_new(&mut self) -> bool {
        let is_first = !std::mem::replace(&mut self.looks_first, true);
        let is_retry = self.request.sdk_retry_count.is_some_and(|count| count > 0);
        is_first && !is_retry && self.shared.store.claim_first(self.address)
    }

    /// Claims as if nothing counted: the compare-and-set says whether that is so. `None` where it is
    /// not, or where only a new key would be refused: the look tells.
    async fn claim_unseen(&mut self) -> Result<Option<Decided<S>>, Trouble> {
        match self.want() {
            Want::Mine(slot) => self.slot = Some(slot),
            Want::Theirs(live) => return Ok(self.meet(live).await?.map(Decided::Begin)),
        }
        let now = self.shared.store.now();
        match self.claim(None, now).await {
            Ok(None) | Err(Trouble::Full(_) | Trouble::OverLimit(_) | Trouble::ShuttingDown) => {
                // Whoever waited looks for themselves, all at once.
                self.slot = None;
                Ok(None)
            }
            claimed => Ok(claimed?.map(Decided::Claimed)),
        }
    }

    /// Whether `record` is in flight under the claim of the very worker that asks. That it asks says that
    /// it was not told (I14).
    fn holds(&self, record: &Record) -> bool {
        matches!(
            (&record.state, self.worker),
            (State::InFlight { owner, .. }, Some(worker))
                if *owner == worker.owner && record.fingerprint == self.request.fingerprint
        )
    }

    /// I7: a stored value repeats its scope and key.
    fn is_of_this_key(&self, stored: Option<&Stored>) -> bool {
        stored.is_none_or(|stored| {
            stored.record.scope == self.request.scope && stored.record.key == self.request.key
        })
    }

    fn want(&self) -> Want<S> {
        debug_assert!(self.slot.is_none(), "it would wait for itself");
        match self
            .shared
            .registry
            .enter(self.address, self.request.fingerprint)
        {
            Entered::Mine(live) => Want::Mine(Slot {
                shared: self.shared.clone(),
                live,
                claiming: None,
                done: false,
            }),
            Entered::Theirs(live) => Want::Theirs(live),
        }
    }

    /// Meets an operation that is live in this process. `None` where there was no claim after all:
    /// decide again.
    async fn meet(&self, live: Arc<Live>) -> Result<Option<Begin<S>>, Trouble> {
        let timeout = self.policy.join_timeout;
        let phase = match tokio::time::timeout(timeout, live.claimed()).await {
            Ok(phase) => phase,
            Err(_) => {
                return Ok(Some(Begin::Refuse(Refused {
                    refusal: Refusal::InFlight,
                    ticket: None,
                })));
            }
        };
        if live.fingerprint != self.request.fingerprint {
            // Before anything else (I6), but for the claim: until that stands, the key may be this request's, and an answer
            // be owed.
            let is_theirs = matches!(phase, Phase::Running);
            return Ok(is_theirs.then_some(Begin::Refuse(Refused {
                refusal: Refusal::KeyReused,
                ticket: None,
            })));
        }
        match phase {
            Phase::Ended(End::NotClaimed(Some(trouble))) => return Err(trouble),
            Phase::Ended(End::NotClaimed(None)) => return Ok(None),
            Phase::Ended(End::Released { .. }) if planted(Bug::JoinersReExecute) => {
                return Ok(None);
            }
            // Whoever waited for a claim shares its fate, even if that is sealed by now (I18).
            Phase::Claiming | Phase::Running | Phase::Ended(_) => {}
        }
        let Some(record) = live.state.lock().record.clone() else {
            return Ok(None);
        };
        let rejects = self.policy.decision.concurrent == onlyonce_core::Concurrent::Reject;
        if rejects && matches!(phase, Phase::Running) {
            let attempt = self.note(record.id, Got::Refused, 1).await;
            return Ok(Some(Begin::Refuse(Refused {
                refusal: Refusal::InFlight,
                ticket: Some(ticket(&record, attempt)),
            })));
        }
        self.shared.join(&live, &record);
        let attempt = self.note(record.id, Got::Joined, 1).await;
        Ok(Some(Begin::Join(Reader::live(
            self.shared.clone(),
            live,
            ticket(&record, attempt),
            Some(timeout),
        ))))
    }

    async fn replay(&self, stored: Stored) -> Begin<S> {
        let id = stored.record.id;
        self.shared.spare_replay(&stored.record);
        let attempt = self.note(id, Got::Replayed, stored.attempts).await;
        let ticket = ticket(&stored.record, attempt);
        Begin::Replay(Reader::stored(
            self.shared.clone(),
            self.address,
            stored,
            ticket,
        ))
    }

    /// Another gateway executes it.
    async fn follow(&self, stored: Stored) -> Begin<S> {
        // The owner is asked to show it while the attempt is noted.
        let live = mirror(self.shared, self.address, &stored.record);
        self.shared.join(&live, &stored.record);
        let id = stored.record.id;
        let attempt = self.note(id, Got::Joined, stored.attempts).await;
        let ticket = ticket(&stored.record, attempt);
        Begin::Join(Reader::live(
            self.shared.clone(),
            live,
            ticket,
            Some(self.policy.join_timeout),
        ))
    }

    async fn refuse(&self, refusal: Refusal, stored: Stored) -> Begin<S> {
        let ticket = match refusal {
            Refusal::KeyReused => None,
            Refusal::InFlight | Refusal::Unknown(_) => {
                let id = stored.record.id;
                let attempt = self.note(id, Got::Refused, stored.attempts).await;
                Some(ticket(&stored.record, attempt))
            }
        };
        Begin::Refuse(Refused { refusal, ticket })
    }

    /// Notes the attempt; where that fails, its number is one more than the last one known.
    async fn note(&self, id: OperationId, got: Got, known: u32) -> u32 {
        let note = self.request.note(got, self.request.trace);
        self.shared
            .store
            .note_attempt(self.address, id, note)
            .await
            .unwrap_or(known.saturating_add(1))
    }

    /// The lease of a claim has passed: its owner is taken for dead (L3). Says whether it wrote.
    async fn expire(&self, record: &Record, now: Timestamp) -> Result<bool, StoreError> {
        match self.shared.is_own(record) {
            true => self.shared.settle_abandoned(self.address, record).await,
            false => self.shared.expire(self.address, record, now).await,
        }
    }

    /// Claims. `None` where somebody else was faster.
    async fn claim(
        &mut self,
        held: Option<&Record>,
        now: Timestamp,
    ) -> Result<Option<Made<S>>, Trouble> {
        if self.shared.is_stopping() {
            return Err(Trouble::ShuttingDown);
        }
        let expected = held.map(Record::fence);
        if self.doubted == Some(expected) {
            // What counted when that was seen has expired since (I14).
            return Err(Trouble::InDoubt(
                "a claim of this attempt may be on its way still".into(),
            ));
        }
        let permit = self.shared.admission.admit(&self.request.scope.tenant)?;
        let here = Worker {
            owner: self.shared.owner,
            lease: self.shared.settings.lease,
        };
        let Worker { owner, lease } = self.worker.unwrap_or(here);
        let claim = self.shared.draw_claim(&self.request, owner, now);
        let Ok(record) = transition::claim(held, claim, now, lease) else {
            return Ok(None);
        };
        let record = Arc::new(self.shared.asking(record, &self.request.asked_model));
        let trace = self.request.trace.map(|_| record.span().trace);
        let note = self.request.note(Got::Executed, trace);
        let Some(slot) = &mut self.slot else {
            return Ok(None);
        };
        // What a worker was not told of, it may ask for again: nothing is to be released behind it.
        slot.claiming = self.worker.is_none().then(|| record.fence());
        let shared = self.shared;
        let written = match planted(Bug::ClaimAfterSend) {
            true => shared.claim_behind(self.address, expected, record, lease, note),
            false => {
                let claiming = shared.write_claim(self.address, expected, record, lease, note);
                claiming.await
            }
        };
        let (record, attempt) = match written {
            Ok(Claimed::Done(record, attempt)) => (record, attempt),
            Ok(Claimed::Lost { in_doubt }) => {
                slot.claiming = None;
                if in_doubt {
                    self.doubted = Some(expected);
                }
                return Ok(None);
            }
            Err(ClaimFailed { trouble, in_doubt }) => {
                if !in_doubt {
                    slot.claiming = None;
                }
                return Err(trouble);
            }
        };
        let slot = self.slot.take();
        Ok(slot.map(|slot| Made {
            slot,
            record,
            attempt,
            permit,
        }))
    }
}

pub(crate) fn ticket(record: &Record, attempt: u32) -> Ticket {
    Ticket {
        id: record.id,
        attempt,
        claim: record.claim,
        expires_at: None,
        span: record.span(),
    }
}

fn refuse<S: Store>(reason: UnknownReason) -> Begin<S> {
    Begin::Refuse(Refused {
        refusal: Refusal::Unknown(reason),
        ticket: None,
    })
}

impl<S: Store> Shared<S> {
    /// What the next claim for `request` is made of.
    pub(crate) fn draw_claim(
        &self,
        request: &Request,
        owner: OwnerId,
        now: Timestamp,
    ) -> transition::Claim {
        transition::Claim {
            id: self.ids.next(now),
            scope: request.scope.clone(),
            key: request.key.clone(),
            fingerprint: request.fingerprint,
            request: request.line.clone(),
            owner,
            raise: self.raise(),
        }
    }

    /// Writes that the owner of `record` is taken for dead. Says whether it wrote.
    pub(crate) async fn expire(
        &self,
        address: onlyonce_core::Address,
        record: &Record,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let fence = record.fence();
        let reason = UnknownReason::LeasePassed;
        let Ok(next) = transition::expire(Some(record), fence, reason, now, self.raise()) else {
            return Ok(false);
        };
        let write = Write {
            record: next,
            last_chunk: None,
            attempt: None,
        };
        let swap = self
            .store
            .compare_and_set(address, Some(fence), write)
            .await?;
        let written = matches!(swap, Swap::Done { .. });
        if written {
            self.tell_unknown(reason);
            self.poke(address);
        }
        Ok(written)
    }
}

/// The only right of this process to write a claim at an address. Whoever else comes waits for
/// what it leads to. Dropped early, those who waited decide for themselves.
pub(crate) struct Slot<S: Store> {
    shared: Arc<Shared<S>>,
    live: Arc<Live>,
    /// The claim that may have been written, and that nobody executes yet.
    claiming: Option<Fence>,
    done: bool,
}

impl<S: Store> Slot<S> {
    /// The right to write at `address` without a claim, for upkeep and operators. `None` where
    /// something is live there.
    pub(crate) fn take(
        shared: &Arc<Shared<S>>,
        address: onlyonce_core::Address,
        fingerprint: Fingerprint,
    ) -> Option<Self> {
        match shared.registry.enter(address, fingerprint) {
            Entered::Mine(live) => Some(Self {
                shared: shared.clone(),
                live,
                claiming: None,
                done: false,
            }),
            Entered::Theirs(_) => None,
        }
    }

    /// The claim that is about to be written: unless it is said to be over, it is released once this is dropped.
    pub(crate) fn claims(&mut self, claim: Option<Fence>) {
        self.claiming = claim;
    }

    /// The claim is durable.
    pub(crate) fn run(mut self, record: Arc<Record>) -> Arc<Live> {
        self.done = true;
        self.shared.abandoned.forget(self.live.address);
        self.live.publish(|state| {
            state.record = Some(record);
            state.phase = Phase::Running;
        });
        self.live.clone()
    }

    /// There is no claim, and everybody who waited shares the trouble.
    fn fail(mut self, trouble: Trouble) {
        self.done = true;
        self.finish(Some(trouble));
    }

    fn finish(&self, trouble: Option<Trouble>) {
        if let Some(fence) = self.claiming {
            // Nothing was sent, whatever the store holds: upkeep, or the next attempt, releases it.
            let claim = Claim {
                fence,
                outcome: Outcome::Release(ReleaseReason::NotSent),
                since: self.shared.store.now(),
            };
            self.shared.abandoned.add(self.live.address, claim);
        }
        self.shared.end(&self.live, End::NotClaimed(trouble));
    }
}

impl<S: Store> Drop for Slot<S> {
    fn drop(&mut self) {
        if !self.done {
            self.finish(None);
        }
    }
}
