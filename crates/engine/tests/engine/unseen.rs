//! Claims without a look, where most keys are new. What does not need faults runs in `over_cached`.

use std::{num::NonZero, pin::pin, sync::Arc, time::Duration};

use futures_util::FutureExt;
use onlyonce_core::{OperationId, OwnerId, Refusal, StateName, UnknownReason, transition};
use onlyonce_engine::{Begin, Settings, Trouble};
use onlyonce_store::{
    Cached, MemoryStore, Store, Swap, Write,
    cached::Options,
    clock::ManualClock,
    memory::{Call, Fault, Limits},
};

use crate::world::{
    LEASE, WINDOW, WorldOver, hurried, name, other_request, read, request, settings,
};

pub type World = WorldOver<Cached<MemoryStore>>;

const CLAIM: Call = Call::WriteOf(StateName::InFlight);

/// Gateways on one store, each with a cache of its own.
pub struct Shared {
    pub store: Arc<MemoryStore>,
    pub clock: ManualClock,
}

impl Shared {
    pub fn new(limits: Limits) -> Self {
        let clock = ManualClock::default();
        let store = MemoryStore::with_clock(clock.clone()).with_limits(limits);
        Self {
            store: Arc::new(store),
            clock,
        }
    }

    pub fn gateway(&self, owner: u64, settings: Settings) -> World {
        let options = Options::default();
        let cached = Cached::with_clock(self.store.clone(), options, self.clock.clone());
        World::over(cached, self.clock.clone(), owner, settings)
    }

    /// Two gateways, the first of which has completed the key `k`, and the other has seen nothing.
    async fn with_completed(limits: Limits) -> (Self, World) {
        let shared = Self::new(limits);
        shared
            .gateway(1, settings())
            .completed("k", "charged")
            .await;
        let other = shared.gateway(2, settings());
        assert!(other.store.claim_first(other.address("k")));
        (shared, other)
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_claimed_without_a_look() {
    let shared = Shared::new(Limits::default());
    let world = shared.gateway(1, settings());
    let _gate = shared.store.faults().hold(Call::Load);
    let begun = tokio::time::timeout(Duration::from_secs(20), world.execute("k"));
    let (execution, _) = begun.await.expect("nothing is loaded");
    drop(execution);
}

#[tokio::test]
async fn a_retry_that_says_so_looks_first() {
    let shared = Shared::new(Limits::default());
    let world = shared.gateway(1, settings());
    let gate = shared.store.faults().hold(Call::Load);
    let retry = {
        let mut retry = request("k");
        retry.sdk_retry_count = Some(1);
        let world = world.clone();
        tokio::spawn(async move { world.begin(retry).await })
    };
    gate.until_waiting(1).await;
    assert_eq!(shared.store.status().records, 0);
    drop(gate);
    let begun = retry.await.expect("answered");
    assert!(matches!(begun, Ok(Begin::Execute(..))), "{}", name(&begun));
}

#[tokio::test]
async fn i01_a_used_key_is_replayed_whoever_finished_it() {
    let (_shared, world) = Shared::with_completed(Limits::default()).await;
    assert_eq!(read(world.replay("k").await).await.body, b"charged");
}

#[tokio::test]
async fn i06_another_request_changes_nothing() {
    let (shared, world) = Shared::with_completed(Limits::default()).await;
    let before = world.record("k").await;
    let refused = shared
        .gateway(3, settings())
        .refused(other_request("k"))
        .await;
    assert_eq!(
        (refused.refusal, refused.ticket),
        (Refusal::KeyReused, None)
    );
    assert_eq!(world.record("k").await, before);
}

/// Another request claims without a look, over an answer that this gateway does not know of. Whose answer it is gets it all
/// the same.
#[tokio::test]
async fn i06_a_claim_over_an_answer_does_not_keep_its_owner_from_it() {
    let (shared, world) = Shared::with_completed(Limits::default()).await;
    let gate = shared.store.faults().hold(CLAIM);
    let other = {
        let world = world.clone();
        tokio::spawn(async move { world.refused(other_request("k")).await })
    };
    gate.until_waiting(1).await;
    let mut retry = pin!(world.begin(request("k")));
    assert!((&mut retry).now_or_never().is_none(), "it waits");
    drop(gate);
    let Ok(Begin::Replay(reader)) = retry.await else {
        panic!("it gets another answer");
    };
    assert_eq!(read(reader).await.body, b"charged");
    let other = other.await.expect("no panic");
    assert_eq!(other.refusal, Refusal::KeyReused);
}

#[tokio::test]
async fn i13_what_cannot_be_read_is_unknown() {
    let (shared, world) = Shared::with_completed(Limits::default()).await;
    shared.store.faults().corrupt(world.address("k"));
    let refused = world.refused(request("k")).await;
    assert_eq!(refused.refusal, Refusal::Unknown(UnknownReason::Unreadable));
}

#[tokio::test]
async fn i14_a_claim_in_doubt_is_read_back() {
    let shared = Shared::new(Limits::default());
    let world = shared.gateway(1, settings());
    shared.store.faults().fail(CLAIM, Fault::InDoubtWritten, 1);
    let (execution, reader) = world.execute("k").await;
    assert_eq!(reader.ticket().attempt, 1);
    drop(execution);
}

/// It was made again (seed 77,026 of the simulated gateway).
#[tokio::test]
async fn i14_a_claim_in_doubt_is_not_made_again_when_what_counted_has_expired() {
    let (shared, _) = Shared::with_completed(Limits::default()).await;
    let nothing_kept = Options {
        bytes: 0,
        ..Options::default()
    };
    let cached = Cached::with_clock(shared.store.clone(), nothing_kept, shared.clock.clone());
    let world = World::over(cached, shared.clock.clone(), 3, settings());
    assert!(world.store.claim_first(world.address("k")));
    let faults = shared.store.faults();
    faults.fail(CLAIM, Fault::InDoubtNotWritten, 1);
    let reading_back = faults.hold(Call::Load);
    let begin = {
        let world = world.clone();
        tokio::spawn(async move { world.trouble(request("k")).await })
    };
    reading_back.until_waiting(1).await;
    let looking = faults.hold(Call::Load);
    drop(reading_back);
    looking.until_waiting(1).await;
    shared.clock.advance(WINDOW);
    let writes = shared.store.status().commits;
    drop(looking);
    let trouble = begin.await.expect("answered");
    assert!(matches!(trouble, Trouble::InDoubt(_)), "{trouble:?}");
    assert_eq!(shared.store.status().commits, writes);
    drop(world.execute("k").await);
}

#[tokio::test]
async fn i15_what_is_finished_is_replayed_by_a_store_that_is_full() {
    let one = Limits {
        records: 1,
        ..Limits::default()
    };
    let (_shared, world) = Shared::with_completed(one).await;
    world.replay("k").await;
    let trouble = world.trouble(request("new")).await;
    assert!(matches!(trouble, Trouble::Full(_)), "{trouble:?}");
}

#[tokio::test]
async fn i15_what_is_finished_is_replayed_at_the_limit_of_live_operations() {
    let (shared, _) = Shared::with_completed(Limits::default()).await;
    let one = Settings {
        live_operations: 1,
        ..settings()
    };
    let world = shared.gateway(3, one);
    let (_execution, _reader) = world.execute("other").await;
    world.replay("k").await;
    assert_eq!(
        world.trouble(request("new")).await,
        Trouble::OverLimit("live_operations")
    );
}

#[tokio::test]
async fn hostile_093_what_is_finished_is_replayed_while_the_process_stops() {
    let (_shared, world) = Shared::with_completed(Limits::default()).await;
    let (execution, _reader) = world.execute("other").await;
    let engine = world.engine.clone();
    let shutdown = tokio::spawn(async move { engine.shutdown(Duration::from_secs(60)).await });
    tokio::task::yield_now().await;
    world.replay("k").await;
    assert_eq!(world.trouble(request("new")).await, Trouble::ShuttingDown);
    drop(execution);
    shutdown.await.expect("ended");
}

/// Whoever waits for a claim that is lost looks for himself, beside the others.
#[tokio::test]
async fn l5_attempts_at_a_used_key_do_not_wait_for_each_other() {
    let (shared, world) = Shared::with_completed(Limits::default()).await;
    let claims = shared.store.faults().hold(CLAIM);
    let attempts: Vec<_> = (0..20)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move { read(world.replay("k").await).await.body })
        })
        .collect();
    claims.until_waiting(1).await;
    tokio::task::yield_now().await;
    let looks = shared.store.faults().hold(Call::Load);
    drop(claims);
    looks.until_waiting(20).await;
    drop(looks);
    for attempt in attempts {
        assert_eq!(attempt.await.expect("answered"), b"charged");
    }
}

/// A gateway that was asked about keys that are used, and takes the next one for used too.
async fn after_retries(shared: &Shared) -> World {
    let (runs, _) = shared.gateway(3, settings()).execute("used").await;
    std::mem::forget(runs);
    let world = shared.gateway(2, settings());
    for _ in 0..16 {
        assert!(world.state("used").await.is_some());
    }
    assert!(!world.store.claim_first(world.address("next")));
    world
}

/// The gateway is asked about new keys, and takes the next one for new.
async fn meets_new_keys(world: &World) {
    for number in 0..16_u8 {
        let request = request(&format!("new-{number}"));
        let address = world.address(request.key.as_str());
        let claim = transition::Claim {
            id: OperationId::from_bytes([number; 16]),
            scope: request.scope,
            key: request.key,
            fingerprint: request.fingerprint,
            request: request.line,
            owner: OwnerId::new(9),
            raise: NonZero::<u32>::MIN,
        };
        let record = transition::claim(None, claim, world.store.now(), LEASE).expect("new");
        let write = Write {
            record,
            last_chunk: None,
            attempt: None,
        };
        let swap = world.store.compare_and_set(address, None, write).await;
        assert!(matches!(swap, Ok(Swap::Done { .. })), "{swap:?}");
    }
    assert!(world.store.claim_first(world.address("next")));
}

/// An attempt at `key` that looks, and by the time that its look is answered, most keys are new.
async fn overtaken_by_new_keys(
    shared: &Shared,
    world: &World,
    key: &'static str,
) -> tokio::task::JoinHandle<Result<Begin<Cached<MemoryStore>>, Trouble>> {
    let look = shared.store.faults().hold(Call::Load);
    let begin = {
        let world = world.clone();
        // One that waits for itself would do so until its deadline.
        tokio::spawn(async move { world.engine.begin(request(key), &hurried()).await })
    };
    look.until_waiting(1).await;
    meets_new_keys(world).await;
    begin
}

#[tokio::test]
async fn l1_an_attempt_at_a_dead_owners_key_does_not_wait_for_itself() {
    let shared = Shared::new(Limits::default());
    let (dead, _) = shared.gateway(1, settings()).execute("k").await;
    std::mem::forget(dead);
    shared.clock.advance(LEASE);
    let world = after_retries(&shared).await;

    let begun = overtaken_by_new_keys(&shared, &world, "k").await.await;
    let begun = begun.expect("answered");
    let Ok(Begin::Refuse(refused)) = &begun else {
        panic!("{}", name(&begun));
    };
    let passed = Refusal::Unknown(UnknownReason::LeasePassed);
    assert_eq!(refused.refusal, passed);
    assert_eq!(world.engine.live(), 0);
}

/// An attempt at `k` that goes away: it is claimed, and nobody executes it.
async fn left_once_it_was_claimed(shared: &Shared, world: &World) {
    shared.store.faults().fail(CLAIM, Fault::InDoubtWritten, 1);
    let claim = shared.store.faults().hold(CLAIM);
    let begin = begin_of_k(world);
    claim.until_waiting(1).await;
    let look_back = shared.store.faults().hold(Call::Load);
    drop(claim);
    look_back.until_waiting(1).await;
    begin.abort();
    assert!(begin.await.is_err());
}

fn begin_of_k(world: &World) -> tokio::task::JoinHandle<()> {
    let world = world.clone();
    tokio::spawn(async move { drop(world.begin(request("k")).await) })
}

/// Two attempts go away, one after the other, and the claim of the first is the one that was made.
#[tokio::test]
async fn i10_a_claim_that_was_left_is_released_though_another_one_was_left_after_it() {
    let shared = Shared::new(Limits::default());
    let world = shared.gateway(1, settings());
    left_once_it_was_claimed(&shared, &world).await;
    let claim = shared.store.faults().hold(CLAIM);
    let begin = begin_of_k(&world);
    claim.until_waiting(1).await;
    begin.abort();
    assert!(begin.await.is_err());
    drop(claim);

    let (execution, _) = world.execute("k").await;
    drop(execution);
}

#[tokio::test]
async fn l1_an_attempt_at_a_key_that_its_own_gateway_has_given_up_does_not_wait_for_itself() {
    let shared = Shared::new(Limits::default());
    let world = after_retries(&shared).await;
    left_once_it_was_claimed(&shared, &world).await;
    assert_eq!(world.state("k").await, Some(StateName::InFlight));

    let begun = overtaken_by_new_keys(&shared, &world, "k").await.await;
    let begun = begun.expect("answered");
    assert!(matches!(begun, Ok(Begin::Execute(..))), "{}", name(&begun));
}

#[tokio::test]
async fn l1_an_attempt_that_loses_a_claim_does_not_wait_for_itself() {
    let shared = Shared::new(Limits::default());
    shared.gateway(1, settings()).completed("k", "ok").await;
    let world = after_retries(&shared).await;
    // The store takes a while longer for the window to end than the gateway.
    shared.clock.advance(WINDOW);
    shared.store.faults().set_back(Duration::from_secs(20));

    let begin = overtaken_by_new_keys(&shared, &world, "k").await;
    let first = shared.store.faults().hold(CLAIM);
    first.until_waiting(1).await;
    let second = shared.store.faults().hold(CLAIM);
    drop(first);
    let again = second.until_waiting(1);
    let again = tokio::time::timeout(Duration::from_secs(20), again);
    again.await.expect("it tries once more");
    shared.store.faults().set_back(Duration::ZERO);
    drop(second);
    let begun = begin.await.expect("answered");
    assert!(matches!(begun, Ok(Begin::Execute(..))), "{}", name(&begun));
}

#[tokio::test(start_paused = true)]
async fn a_first_try_that_says_so_is_claimed_without_a_look() {
    let shared = Shared::new(Limits::default());
    let world = shared.gateway(1, settings());
    let _gate = shared.store.faults().hold(Call::Load);
    let mut first = request("k");
    first.sdk_retry_count = Some(0);
    let begun = tokio::time::timeout(Duration::from_secs(20), world.begin(first));
    let begun = begun.await.expect("nothing is loaded");
    assert!(matches!(begun, Ok(Begin::Execute(..))), "{}", name(&begun));
}
