//! What may go wrong between a store and what it keeps.
//!
//! These rules are for a [`Faulty`] subject, and [`fault_tests!`](crate::fault_tests) makes its tests of
//! them. A backend that has a server is put behind a line which a test can disturb.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use onlyonce_core::{Got, Record, State, UnknownReason, transition};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Subject,
    bench::{Bench, Kept, claim_write, complete_record, make_key, noise, note},
};
use crate::{
    Query, Store, StoreError, Stored, Swap, Write,
    clock::ManualClock,
    memory::{self, Call},
};

/// What goes wrong between a store and what it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Connections are cut, and none can be made.
    Cut,
    /// Nothing arrives, on new connections neither. Once it heals, what was sent arrives: late, and
    /// after its sender has given up.
    Stall,
    /// The connection on which something is sent next stalls. The others do not, nor do new ones.
    StallOne,
    /// What is asked arrives and is done. The answers are thrown away, and the connections stay.
    LoseAnswers,
    /// On the connections that there are, answers are held back until it heals: those on new
    /// connections overtake them.
    LateAnswers,
}

/// A backend of which a test can disturb the way to what it keeps.
pub trait Faulty: Subject {
    /// How long a call waits for an answer before it gives up.
    fn time_out(&self) -> Duration;

    /// Whether a write is sent as one message. Otherwise a fault may meet what only makes it ready, and
    /// then nothing is in doubt.
    fn sends_at_once(&self) -> bool {
        true
    }

    /// Why this cannot happen to the backend; `None` where it can.
    fn cannot(&self, fault: Fault) -> Option<&'static str> {
        let _ = fault;
        None
    }

    /// Begins a fault that can happen, for all stores of this subject.
    fn disturb(&self, fault: Fault);

    /// Ends all faults. The connections that the stores still have go on.
    fn heal(&self);

    /// The store of another gateway that shares the one made last, over connections of its own;
    /// `None` for a backend that has none.
    fn beside(
        &mut self,
        clock: ManualClock,
    ) -> impl Future<Output = Option<Arc<Self::Store>>> + Send {
        let _ = clock;
        async { None }
    }
}

/// Why a fault cannot happen to a store that is in the memory of its callers.
pub fn cannot_in_memory(fault: Fault) -> Option<&'static str> {
    match fault {
        Fault::Cut | Fault::Stall | Fault::LoseAnswers => None,
        Fault::StallOne => {
            Some("there are no connections: a call that is held holds no other one up")
        }
        Fault::LateAnswers => Some("an answer is what a call returns: it reaches its own caller"),
    }
}

/// Why a fault cannot happen to a store on the disk of its own process.
pub fn cannot_on_a_disk(fault: Fault) -> Option<&'static str> {
    Some(match fault {
        Fault::Cut => {
            "there is no line to a folder. A write or a sync that fails poisons the store until it is \
             opened again (I12): it is no fault that heals"
        }
        Fault::Stall | Fault::StallOne => {
            "a disk that hangs is waited for: nothing can be asked of it a second time, and no call \
             gives up. Callers are answered by the deadlines of the engine (L2)"
        }
        Fault::LoseAnswers => {
            "who made a write durable tells its writer in the same process: an answer is lost with the \
             process alone, and all open claims are unknown after that (L3)"
        }
        Fault::LateAnswers => "an answer is what a call returns: it reaches its own caller",
    })
}

impl memory::Faults {
    /// Makes all calls of a store in memory end as they end under `fault` for their callers, until it
    /// heals.
    pub fn disturb(&self, fault: Fault) {
        let of_a_write = match fault {
            Fault::Cut => memory::Fault::Unavailable,
            Fault::LoseAnswers => memory::Fault::InDoubtWritten,
            _ => memory::Fault::InDoubtNotWritten,
        };
        for call in [Call::Write, Call::Append] {
            self.fail(call, of_a_write, u32::MAX);
        }
        for call in [Call::Load, Call::Read, Call::Note] {
            self.fail(call, memory::Fault::Unavailable, u32::MAX);
        }
    }
}

/// How long a store may take to find out by itself that all is well again.
const RESUMES_WITHIN: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// Nothing can be asked and nothing is: once that is known, no call is in doubt (I12), and service
/// resumes unaided (L6).
pub async fn i12_a_cut_line_refuses_and_service_resumes<S: Faulty>(subject: S) {
    let Some(bench) = bench_for(subject, Fault::Cut).await else {
        return;
    };
    let [found_out, known] = [
        Scene::set(&bench, "first").await,
        Scene::set(&bench, "second").await,
    ];
    bench.subject.disturb(Fault::Cut);
    // What was under way when the line was cut may be in doubt; what comes later is not.
    let found_out = found_out.ask(&bench).await;
    let known = known.ask(&bench).await;
    assert!(
        !known.claim.in_doubt && !known.completion.in_doubt && !known.append.in_doubt,
        "in doubt, though nothing was sent: {known:?}"
    );
    bench.subject.heal();
    resumes(&bench).await;
    for asked in [found_out, known] {
        asked.settle(&bench).await;
    }
}

/// Every call ends in time (L2). What was sent is in doubt, and stays whole or absent however late it
/// arrives (I14); service resumes unaided (L6).
pub async fn i14_a_stall_ends_in_errors_and_nothing_is_doubled<S: Faulty>(subject: S) {
    let Some(bench) = bench_for(subject, Fault::Stall).await else {
        return;
    };
    let scene = Scene::set(&bench, "k").await;
    bench.subject.disturb(Fault::Stall);
    let asked = scene.ask(&bench).await;
    asked.assert_in_doubt(&bench);
    bench.subject.heal();
    resumes(&bench).await;
    asked.settle(&bench).await;
}

/// What was done without an answer is in doubt, and is found as one's own when it is read back (I14).
pub async fn i14_a_lost_answer_is_in_doubt_and_read_back<S: Faulty>(subject: S) {
    let Some(bench) = bench_for(subject, Fault::LoseAnswers).await else {
        return;
    };
    let scene = Scene::set(&bench, "k").await;
    bench.subject.disturb(Fault::LoseAnswers);
    let asked = scene.ask(&bench).await;
    asked.assert_in_doubt(&bench);
    bench.subject.heal();
    resumes(&bench).await;
    asked.assert_written(&bench).await;
    asked.settle(&bench).await;
}

/// Whoever is on the connection that stalls waits until its time is over and goes on over another one;
/// the rest does not wait longer (L5).
pub async fn l5_a_stalled_connection_stalls_nobody_longer_than_its_time_out<S: Faulty>(subject: S) {
    let Some(bench) = bench_for(subject, Fault::StallOne).await else {
        return;
    };
    let longest = 3 * bench.subject.time_out();
    // It may be a connection on which nobody claims.
    for round in 0..20 {
        bench.subject.disturb(Fault::StallOne);
        let mut tasks = JoinSet::new();
        for number in 0..12 {
            let key = format!("k{round}-{number}");
            let (store, address) = (bench.store.clone(), bench.address(&key));
            let claims: Vec<Record> = (0..20).map(|_| bench.first_claim(&key)).collect();
            tasks.spawn(async move { claim_in_the_end(&*store, address, claims).await });
        }
        let ends = timeout(longest, tasks.join_all()).await;
        let ends = ends.unwrap_or_else(|_| panic!("not all are served within {longest:?}"));
        bench.subject.heal();
        resumes(&bench).await;
        let refused: usize = ends.iter().map(|(_, refused)| refused).sum();
        for (kept, _) in ends {
            bench.assert_holds(&kept).await;
            only_one(&bench, kept.record.key.as_str()).await;
        }
        if refused > 0 {
            return;
        }
    }
    panic!("nobody was on the connection that stalled");
}

/// Two write under one fence on connections of their own. The first one's answer comes last, and the
/// first one has won all the same (I9).
pub async fn i09_answers_in_the_other_order_leave_one_winner<S: Faulty>(subject: S) {
    let Some(mut bench) = bench_for(subject, Fault::LateAnswers).await else {
        return;
    };
    let kept = bench.claimed("k").await;
    bench.subject.disturb(Fault::LateAnswers);
    let clock = bench.clock.clone();
    let beside = bench.subject.beside(clock).await;
    let beside = beside.expect("a backend with connections is shared");

    let body = body();
    let first = complete_record(&kept.record, &body[1..], bench.now());
    let (store, address, fence) = (bench.store.clone(), kept.address, kept.fence());
    let write = write_of(&first, Some(body[1].clone()));
    let writing =
        tokio::spawn(async move { store.compare_and_set(address, Some(fence), write).await });
    let started = Instant::now();
    while *load(&*beside, address).await.record != first {
        assert!(started.elapsed() < RESUMES_WITHIN, "it never arrives");
        sleep(PAUSE).await;
    }
    let (held, now) = (Some(&kept.record), bench.now());
    let second = transition::lose(held, fence, UnknownReason::Broke, now).expect("running");
    let swap = beside.compare_and_set(address, Some(fence), write_of(&second, None));
    assert_eq!(swap.await.expect("a store that answers"), Swap::Lost);
    let is_held_back = !writing.is_finished();
    assert!(is_held_back || !bench.subject.sends_at_once());

    bench.subject.heal();
    match writing.await.expect("no panic") {
        Ok(Swap::Done { .. }) | Err(StoreError::InDoubt(_)) => {}
        other => panic!("it was written, and was told {other:?}"),
    }
    resumes(&bench).await;
    for store in [&bench.store, &beside] {
        assert_eq!(*load(&**store, address).await.record, first);
    }
}

/// An answer that comes after its caller gave up, or never, is nobody's: whatever is asked later gets its
/// own answer. Where answers come in the order of what was asked, as on one connection of PostgreSQL or
/// Redis, one that is missing would shift all others, and a claim that lost would be told that it won
/// (I1).
pub async fn i01_a_late_answer_is_not_taken_for_that_of_a_later_call<S: Faulty>(subject: S) {
    let Some(bench) = bench_for(subject, Fault::LoseAnswers).await else {
        return;
    };
    let taken = [bench.claimed("taken").await, bench.claimed("too").await];
    for fault in [Fault::LoseAnswers, Fault::LateAnswers] {
        if is_left_out(&bench.subject, fault) {
            continue;
        }
        let key = format!("{fault:?}");
        bench.subject.disturb(fault);
        let record = bench.first_claim(&key);
        let winning = bench.swap(bench.address(&key), None, claim_write(&record));
        let (won, loaded) = tokio::join!(winning, bench.store.load(taken[0].address));
        let sends_at_once = bench.subject.sends_at_once();
        let is_written = match won {
            Err(StoreError::InDoubt(_)) => true,
            Err(StoreError::Unavailable(_)) if !sends_at_once => false,
            // What was only made ready goes out again, over another connection.
            Ok(Swap::Done { .. }) if !sends_at_once => true,
            other => panic!("nobody can know this: {other:?}"),
        };
        match loaded {
            Err(StoreError::Unavailable(_)) => {}
            Ok(Some(stored)) if !sends_at_once => assert_eq!(*stored.record, taken[0].record),
            other => panic!("nobody can know this: {other:?}"),
        }

        bench.subject.heal();
        for _ in 0..5 {
            for kept in &taken {
                let again = claim_write(&bench.first_claim(kept.record.key.as_str()));
                let (swap, loaded) = tokio::join!(
                    bench.swap(kept.address, None, again),
                    bench.store.load(kept.address)
                );
                if let Some(swap) = refused_or(swap) {
                    assert_eq!(swap, Swap::Lost, "the answer of another claim");
                }
                if let Some(stored) = refused_or(loaded) {
                    let stored = stored.expect("a record is held");
                    assert_eq!(*stored.record, kept.record, "the answer of another load");
                }
            }
        }
        resumes(&bench).await;
        let stored = bench.load(bench.address(&key)).await;
        let stored = stored.map(|stored| Record::clone(&stored.record));
        assert_eq!(stored, is_written.then_some(record));
    }
}

async fn bench_for<S: Faulty>(subject: S, fault: Fault) -> Option<Bench<S>> {
    if is_left_out(&subject, fault) {
        return None;
    }
    Some(Bench::new(subject).await)
}

fn is_left_out<S: Faulty>(subject: &S, fault: Fault) -> bool {
    let why = subject.cannot(fault);
    if let Some(why) = why {
        println!("left out, {fault:?}: {why}");
    }
    why.is_some()
}

/// What the store can be asked under a fault: one call of each kind, about operations that are ready
/// for it.
#[derive(Debug)]
struct Scene {
    key: String,
    /// A first claim of the key.
    claim: Record,
    /// It is running, and to be completed.
    ending: Kept,
    ended: Record,
    /// It is running, takes its first chunk, and is joined.
    growing: Kept,
    /// It is completed, and its first chunk is read.
    done: Kept,
}

/// What the calls of a scene were told.
#[derive(Debug)]
struct Asked {
    scene: Scene,
    claim: Refused,
    completion: Refused,
    append: Refused,
}

/// How a write was refused.
#[derive(Debug)]
struct Refused {
    /// Otherwise it was not written.
    in_doubt: bool,
}

impl Scene {
    async fn set<S: Subject>(bench: &Bench<S>, name: &str) -> Self {
        let key = |what| format!("{name}-{what}");
        let ending = bench.claimed(&key("ending")).await;
        let done = bench.claimed(&key("done")).await;
        Self {
            key: name.to_owned(),
            claim: bench.first_claim(name),
            ended: complete_record(&ending.record, &body()[1..], bench.now()),
            ending,
            growing: bench.claimed(&key("growing")).await,
            done: bench.completed(&done, &body()).await,
        }
    }

    /// Asks all at once. Every call fails in time, and no failure claims more than is known.
    async fn ask<S: Faulty>(self, bench: &Bench<S>) -> Asked {
        // For a connection, for an answer, and for finding out.
        let patience = 5 * bench.subject.time_out();
        let [chunk, last] = body();
        let store = &bench.store;
        let calls = async {
            tokio::join!(
                bench.swap(bench.address(&self.key), None, claim_write(&self.claim)),
                self.end(bench, last),
                store.append(
                    self.growing.address,
                    self.growing.recording(),
                    0,
                    chunk.clone()
                ),
                store.note_attempt(self.growing.address, self.growing.id(), note(Got::Joined)),
                store.load(self.growing.address),
                bench.read(&self.done, 0),
            )
        };
        let told = timeout(patience, calls).await;
        let told = told.unwrap_or_else(|_| panic!("a call takes longer than {patience:?}"));
        let (claim, completion, append, noted, loaded, read) = told;
        let is_open = matches!(
            noted,
            Err(StoreError::Unavailable(_) | StoreError::InDoubt(_))
        );
        assert!(is_open, "{noted:?}");
        let unavailable = matches!(loaded, Err(StoreError::Unavailable(_)));
        assert!(unavailable, "nobody can know: {loaded:?}");
        // What is completed may be known from before.
        if let Some(read) = refused_or(read) {
            assert_eq!(read, chunk);
        }
        Asked {
            claim: Refused::of(claim),
            completion: Refused::of(completion),
            append: Refused::of(append),
            scene: self,
        }
    }

    async fn end<S: Subject>(&self, bench: &Bench<S>, last: Bytes) -> Result<Swap, StoreError> {
        let write = write_of(&self.ended, Some(last));
        bench
            .swap(self.ending.address, Some(self.ending.fence()), write)
            .await
    }
}

impl Refused {
    fn of<T: std::fmt::Debug>(told: Result<T, StoreError>) -> Self {
        match told {
            Err(StoreError::InDoubt(_)) => Self { in_doubt: true },
            Err(StoreError::Unavailable(_)) => Self { in_doubt: false },
            other => panic!("nobody can know this: {other:?}"),
        }
    }
}

impl Asked {
    /// Checks that all was sent, as far as it can be told.
    fn assert_in_doubt<S: Faulty>(&self, bench: &Bench<S>) {
        let told = [&self.claim, &self.completion, &self.append];
        let all = told.iter().all(|told| told.in_doubt);
        assert!(all || !bench.subject.sends_at_once(), "{self:?}");
    }

    /// Checks that what is in doubt was written.
    async fn assert_written<S: Subject>(&self, bench: &Bench<S>) {
        let Scene { ending, ended, .. } = &self.scene;
        for (told, address, written) in [
            (
                &self.claim,
                bench.address(&self.scene.key),
                &self.scene.claim,
            ),
            (&self.completion, ending.address, ended),
        ] {
            if told.in_doubt {
                let stored = bench.load(address).await.expect("it was written");
                assert_eq!(*stored.record, *written);
            }
        }
        if self.append.in_doubt {
            let grown = bench.read(&self.scene.growing, 0).await;
            assert_eq!(grown.expect("it was written"), body()[0]);
        }
    }

    /// Once all is well: what was told is true, everything can be gone on with, and nothing is doubled.
    async fn settle<S: Subject>(self, bench: &Bench<S>) {
        self.settle_claim(bench).await;
        self.settle_completion(bench).await;
        let Scene { growing, done, .. } = &self.scene;

        let before = bench.read(growing, 0).await;
        assert!(
            before.is_err() || self.append.in_doubt,
            "it was told that nothing was written"
        );
        // An attempt is noted at best effort: once, or not at all.
        let number = bench.note(growing, Got::Joined).await;
        assert!((2..=3).contains(&number), "attempt {number} of 3");
        let grown = bench.completed(growing, &body()).await;
        assert_recorded(bench, &grown, &body()).await;
        let more = bench.store.read(grown.address, grown.recording(), 2).await;
        assert!(matches!(more, Err(StoreError::Corrupt(_))), "{more:?}");
        assert_recorded(bench, done, &body()).await;
    }

    async fn settle_claim<S: Subject>(&self, bench: &Bench<S>) {
        let Scene { key, claim, .. } = &self.scene;
        let address = bench.address(key);
        let mut kept = Kept {
            address,
            record: claim.clone(),
        };
        match bench.load(address).await {
            Some(stored) => {
                assert!(
                    self.claim.in_doubt,
                    "it was told that nothing was written: {stored:?}"
                );
                bench.assert_taken(key).await;
            }
            None => {
                let again = bench.first_claim(key);
                match bench.swap(address, None, claim_write(&again)).await {
                    Ok(Swap::Done { attempts: 1 }) => kept.record = again,
                    // The first one arrived in between.
                    Ok(Swap::Lost) if self.claim.in_doubt => {}
                    other => panic!("the key is free, and it was {other:?}"),
                }
            }
        }
        bench.assert_holds(&kept).await;
        let kept = bench.completed(&kept, &body()).await;
        assert_recorded(bench, &kept, &body()).await;
        let attempts = bench.store.attempts(address, kept.id()).await;
        assert_eq!(attempts.expect("a store that answers").len(), 1);
        only_one(bench, key).await;
    }

    async fn settle_completion<S: Subject>(&self, bench: &Bench<S>) {
        let Scene { ending, ended, .. } = &self.scene;
        let last = body()[1].clone();
        let stored = bench.load(ending.address).await.expect("it was claimed");
        let is_written = *stored.record == *ended;
        assert!(is_written || *stored.record == ending.record);
        assert!(!is_written || self.completion.in_doubt);
        match self.scene.end(bench, last.clone()).await {
            Ok(Swap::Done { .. }) if !is_written => {}
            Ok(Swap::Lost) if is_written || self.completion.in_doubt => {}
            other => panic!("written before: {is_written}, and now {other:?}"),
        }
        let kept = Kept {
            address: ending.address,
            record: ended.clone(),
        };
        assert_recorded(bench, &kept, &[last]).await;
    }
}

fn body() -> [Bytes; 2] {
    [noise(1, 1_000), noise(2, 100)]
}

fn write_of(record: &Record, last_chunk: Option<Bytes>) -> Write {
    Write {
        record: record.clone(),
        last_chunk,
        attempt: None,
    }
}

/// What a call gave; `None` where the store was not reached.
fn refused_or<T: std::fmt::Debug>(told: Result<T, StoreError>) -> Option<T> {
    match told {
        Ok(told) => Some(told),
        Err(StoreError::Unavailable(_) | StoreError::InDoubt(_)) => None,
        Err(error) => panic!("nobody can know this: {error}"),
    }
}

async fn load<T: Store>(store: &T, address: onlyonce_core::Address) -> Stored {
    let stored = store.load(address).await.expect("a store that answers");
    stored.expect("a record is held")
}

/// Claims a key as an engine would: what is in doubt is read back. Gives what is held in the end, and
/// how often the store was not reached.
async fn claim_in_the_end<T: Store>(
    store: &T,
    address: onlyonce_core::Address,
    claims: Vec<Record>,
) -> (Kept, usize) {
    let mut refused = 0;
    for record in claims {
        let swap = store
            .compare_and_set(address, None, claim_write(&record))
            .await;
        if let Some(Swap::Done { .. }) = refused_or(swap) {
            return (Kept { address, record }, refused);
        }
        refused += 1;
        let held = loop {
            match refused_or(store.load(address).await) {
                Some(held) => break held,
                None => refused += 1,
            }
        };
        if let Some(held) = held {
            let record = Record::clone(&held.record);
            return (Kept { address, record }, refused);
        }
    }
    panic!("no claim was written");
}

/// Waits until every kind of call is served again.
async fn resumes<S: Subject>(bench: &Bench<S>) {
    let started = Instant::now();
    for number in 0.. {
        match serves(bench, &format!("resumed-{number}")).await {
            Ok(()) => return,
            Err(error) => assert!(
                started.elapsed() < RESUMES_WITHIN,
                "not resumed unaided within {RESUMES_WITHIN:?}: {error}"
            ),
        }
        sleep(PAUSE).await;
    }
}

async fn serves<S: Subject>(bench: &Bench<S>, key: &str) -> Result<(), StoreError> {
    let record = bench.first_claim(key);
    let address = bench.address(key);
    bench.swap(address, None, claim_write(&record)).await?;
    let kept = Kept { address, record };
    let (recording, chunk) = (kept.recording(), body()[0].clone());
    bench.store.append(address, recording, 0, chunk).await?;
    bench
        .store
        .note_attempt(address, kept.id(), note(Got::Joined))
        .await?;
    bench.store.load(address).await?;
    bench.read(&kept, 0).await.map(drop)
}

/// Checks that `kept` is held with this recording.
async fn assert_recorded<S: Subject>(bench: &Bench<S>, kept: &Kept, chunks: &[Bytes]) {
    bench.assert_holds(kept).await;
    assert!(matches!(kept.record.state, State::Completed(_)));
    for (number, chunk) in chunks.iter().enumerate() {
        let read = bench.read(kept, number as u32).await;
        assert!(read.expect("recorded") == *chunk, "chunk {number} differs");
    }
}

/// Checks that one operation is held under `key`.
async fn only_one<S: Subject>(bench: &Bench<S>, key: &str) {
    let query = Query {
        key: Some(make_key(key)),
        limit: 10,
        ..Query::default()
    };
    let page = bench.store.list(query).await.expect("a page");
    assert_eq!(page.records.len(), 1, "operations of {key}");
}
