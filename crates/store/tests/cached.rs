//! What a cache over a shared store answers by itself, and what it never does.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use onlyonce_core::{
    Address, Fence, Fingerprint, Got, Head, HeaderBlock, Key, OperationId, OwnerId, Record,
    ReleaseReason, RequestLine, Scope, UnknownReason,
    transition::{self, Claim, Response},
};
use onlyonce_store::{
    AttemptNote, Cached, MAX_ATTEMPTS_KEPT, MemoryStore, Store, StoreError, Swap, Write,
    cached::Options,
    clock::ManualClock,
    memory::{Call, Fault},
};

const LEASE: Duration = Duration::from_secs(30);
const WINDOW: Duration = Duration::from_secs(24 * 3600);
const MILLISECOND: Duration = Duration::from_millis(1);
const NEVER: Duration = Duration::MAX;

type Gateway = Cached<MemoryStore>;

/// A shared store, and the clock of the confirmations of every gateway.
struct Bench {
    store: Arc<MemoryStore>,
    /// The store's clock.
    clock: ManualClock,
    ages: ManualClock,
}

impl Bench {
    fn new() -> Self {
        let clock = ManualClock::default();
        Self {
            store: Arc::new(MemoryStore::with_clock(clock.clone())),
            clock,
            ages: ManualClock::default(),
        }
    }

    fn gateway(&self) -> Gateway {
        self.gateway_with(Options::default())
    }

    fn gateway_with(&self, options: Options) -> Gateway {
        Cached::with_clock(self.store.clone(), options, self.ages.clone())
    }

    /// From now on the store answers no load and no read.
    fn hush(&self) {
        for call in [Call::Load, Call::Read] {
            self.store.faults().fail(call, Fault::Unavailable, u32::MAX);
        }
    }

    async fn is_warm(&self, gateway: &Gateway, address: Address) -> bool {
        self.hush();
        let loaded = gateway.load(address).await;
        self.store.faults().heal();
        match loaded {
            Ok(stored) => stored.is_some(),
            Err(StoreError::Unavailable(_)) => false,
            Err(other) => panic!("{other}"),
        }
    }
}

fn address(number: u32) -> Address {
    // Spread as hashes are.
    let hash = u128::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    Address::from_bytes(hash.to_be_bytes())
}

fn claim_of(store: &impl Store, number: u32) -> Record {
    let mut random = [0; 10];
    random[..4].copy_from_slice(&number.to_be_bytes());
    let claim = Claim {
        id: OperationId::new(store.now().as_millis(), &random),
        scope: Scope {
            tenant: "acme".into(),
            namespace: "openai".into(),
        },
        key: Key::new(&format!("k{number}")).expect("a key"),
        fingerprint: Fingerprint::from_bytes([7; 32]),
        request: RequestLine::default(),
        owner: OwnerId::new(1),
        raise: std::num::NonZero::<u32>::MIN,
    };
    transition::claim(None, claim, store.now(), LEASE).expect("a new key")
}

fn note(got: Got) -> AttemptNote {
    AttemptNote {
        peer: "192.0.2.7:4711".into(),
        sdk_retry_count: None,
        trace: None,
        got,
        at: None,
    }
}

async fn put(
    store: &impl Store,
    number: u32,
    expected: Option<Fence>,
    record: &Record,
    last_chunk: Option<Bytes>,
) -> Result<Swap, StoreError> {
    let write = Write {
        record: record.clone(),
        last_chunk,
        attempt: expected.is_none().then(|| note(Got::Executed)),
    };
    store
        .compare_and_set(address(number), expected, write)
        .await
}

async fn claimed(store: &impl Store, number: u32) -> Record {
    let record = claim_of(store, number);
    let swap = put(store, number, None, &record, None).await;
    assert!(matches!(swap, Ok(Swap::Done { .. })), "{swap:?}");
    record
}

fn completion_of(store: &impl Store, claimed: &Record, chunks: &[Bytes]) -> Record {
    let response = Response {
        head: Head {
            status: 200,
            headers: HeaderBlock::default(),
        },
        trailers: HeaderBlock::default(),
        body_len: chunks.iter().map(|chunk| chunk.len() as u64).sum(),
        chunks: chunks.len() as u32,
    };
    let (fence, now) = (claimed.fence(), store.now());
    transition::complete(Some(claimed), fence, response, now, WINDOW).expect("it runs")
}

async fn finished(store: &impl Store, number: u32, chunks: &[Bytes]) -> Record {
    let claimed = claimed(store, number).await;
    let last = chunks.len().saturating_sub(1);
    for (chunk, bytes) in (0..).zip(&chunks[..last]) {
        store
            .append(address(number), claimed.recording(), chunk, bytes.clone())
            .await
            .expect("it runs");
    }
    let record = completion_of(store, &claimed, chunks);
    let last_chunk = chunks.last().cloned();
    let swap = put(store, number, Some(claimed.fence()), &record, last_chunk).await;
    assert!(matches!(swap, Ok(Swap::Done { .. })), "{swap:?}");
    record
}

async fn replay_number(gateway: &Gateway, number: u32, id: OperationId) -> u32 {
    gateway
        .note_attempt(address(number), id, note(Got::Replayed))
        .await
        .expect("a number")
}

#[tokio::test]
async fn a_warm_recording_is_replayed_without_asking_the_store() {
    let bench = Bench::new();
    let [writer, reader] = [bench.gateway(), bench.gateway()];
    let chunks = [Bytes::from_static(b"one"), "two".into(), "three".into()];
    let record = finished(&writer, 1, &chunks).await;
    reader.load(address(1)).await.expect("up");
    for gateway in [&writer, &reader] {
        for chunk in 0..3 {
            let read = gateway.read(address(1), record.recording(), chunk).await;
            read.expect("up");
        }
    }

    bench.hush();
    let stalled = bench.store.faults().hold(Call::Note);
    for gateway in [&writer, &reader] {
        let stored = gateway.load(address(1)).await.expect("warm").expect("held");
        assert_eq!(*stored.record, record);
        assert_eq!(stored.last_chunk.as_ref(), chunks.last());
        assert_eq!(replay_number(gateway, 1, record.id).await, 2);
        for (chunk, bytes) in (0..).zip(&chunks) {
            let read = gateway.read(address(1), record.recording(), chunk).await;
            assert_eq!(read.expect("warm"), *bytes);
        }
        let past = gateway.read(address(1), record.recording(), 3).await;
        assert!(past.is_err(), "there are three chunks");
    }
    drop(stalled);
}

#[tokio::test]
async fn only_what_is_completed_is_warm() {
    let bench = Bench::new();
    let gateway = bench.gateway();
    let record = claimed(&gateway, 1).await;
    gateway.load(address(1)).await.expect("up");
    assert!(!bench.is_warm(&gateway, address(1)).await, "in flight");

    let (fence, now) = (record.fence(), gateway.now());
    let lost = transition::lose(Some(&record), fence, UnknownReason::Broke, now);
    let lost = lost.expect("it runs");
    put(&gateway, 1, Some(fence), &lost, None)
        .await
        .expect("up");
    gateway.load(address(1)).await.expect("up");
    assert!(!bench.is_warm(&gateway, address(1)).await, "unknown");

    let record = claimed(&gateway, 2).await;
    let (fence, reason) = (record.fence(), ReleaseReason::DidNotRun);
    let released = transition::release(Some(&record), fence, reason, now, WINDOW);
    let released = released.expect("it runs");
    put(&gateway, 2, Some(fence), &released, None)
        .await
        .expect("up");
    gateway.load(address(2)).await.expect("up");
    assert!(!bench.is_warm(&gateway, address(2)).await, "released");

    gateway.load(address(3)).await.expect("up");
    assert!(!bench.is_warm(&gateway, address(3)).await, "absent");
}

#[tokio::test]
async fn i11_a_warm_record_is_not_replayed_a_millisecond_after_its_window() {
    let bench = Bench::new();
    let gateway = bench.gateway_with(Options {
        confirmed_for: NEVER,
        ..Options::default()
    });
    let chunks = [Bytes::from_static(b"one"), "two".into()];
    let record = finished(&gateway, 1, &chunks).await;
    bench.clock.advance(WINDOW - MILLISECOND);
    assert!(bench.is_warm(&gateway, address(1)).await);
    bench.clock.advance(MILLISECOND);
    assert!(!bench.is_warm(&gateway, address(1)).await);

    bench.store.sweep().await.expect("up");
    assert!(gateway.load(address(1)).await.expect("up").is_none());
    let read = gateway.read(address(1), record.recording(), 1).await;
    assert!(read.is_err(), "the recording is gone with its record");
    claimed(&gateway, 1).await;
}

#[tokio::test]
async fn i04_the_next_operation_of_a_key_is_not_replayed_with_chunks_of_the_former_one() {
    let bench = Bench::new();
    let gateway = bench.gateway();
    for body in [["one", "two"], ["eins", "zwei"]] {
        let chunks = body.map(Bytes::from);
        let record = finished(&gateway, 1, &chunks).await;
        for _ in 0..2 {
            for (chunk, bytes) in (0..).zip(&chunks) {
                let read = gateway.read(address(1), record.recording(), chunk).await;
                assert_eq!(read.expect("up"), *bytes);
            }
        }
        bench.clock.advance(WINDOW);
    }
}

#[tokio::test]
async fn a_removal_by_another_gateway_is_seen_within_the_bound() {
    let bench = Bench::new();
    let [here, there] = [bench.gateway(), bench.gateway()];
    let chunks = [Bytes::from_static(b"one"), "two".into()];
    let record = finished(&here, 1, &chunks).await;
    here.read(address(1), record.recording(), 0)
        .await
        .expect("up");
    let bound = Options::default().confirmed_for;
    assert_eq!(bound, Duration::from_secs(10));

    // The store confirms it half way, and once more at the end of that.
    for span in [bound / 2, bound] {
        bench.ages.advance(span);
        here.load(address(1)).await.expect("up").expect("held");
    }
    assert!(bench.is_warm(&here, address(1)).await);
    bench.ages.advance(bound / 2);
    let removed = there.remove(address(1), record.fence()).await;
    assert!(removed.expect("up"));
    assert!(there.load(address(1)).await.expect("up").is_none());

    bench.ages.advance(bound / 2 - MILLISECOND);
    assert!(bench.is_warm(&here, address(1)).await, "still confirmed");
    bench.ages.advance(MILLISECOND);
    assert!(here.load(address(1)).await.expect("up").is_none());
    let read = here.read(address(1), record.recording(), 0).await;
    assert!(read.is_err(), "the chunk has gone with its record");
    claimed(&here, 1).await;
}

#[tokio::test]
async fn a_write_that_fails_or_loses_leaves_nothing_warm() {
    let bench = Bench::new();
    let gateway = bench.gateway();
    finished(&gateway, 1, &["x".into()]).await;
    assert!(bench.is_warm(&gateway, address(1)).await);
    let swap = put(&gateway, 1, None, &claim_of(&gateway, 1), None).await;
    assert_eq!(swap.expect("up"), Swap::Lost);
    assert!(!bench.is_warm(&gateway, address(1)).await, "lost");

    gateway.load(address(1)).await.expect("up");
    assert!(bench.is_warm(&gateway, address(1)).await);
    let faults = bench.store.faults();
    faults.fail(Call::Write, Fault::Unavailable, 1);
    let swap = put(&gateway, 1, None, &claim_of(&gateway, 1), None).await;
    assert!(swap.is_err());
    assert!(!bench.is_warm(&gateway, address(1)).await, "failed");

    let claimed = claimed(&gateway, 2).await;
    for (fault, written) in [
        (Fault::InDoubtNotWritten, false),
        (Fault::InDoubtWritten, true),
    ] {
        faults.fail(Call::Write, fault, 1);
        let completion = completion_of(&gateway, &claimed, &["x".into()]);
        let fence = Some(claimed.fence());
        let swap = put(&gateway, 2, fence, &completion, Some("x".into())).await;
        assert!(matches!(swap, Err(StoreError::InDoubt(_))), "{swap:?}");
        assert!(!bench.is_warm(&gateway, address(2)).await, "in doubt");
        let stored = gateway.load(address(2)).await.expect("up").expect("held");
        assert_eq!(*stored.record == completion, written);
    }
}

#[tokio::test]
async fn a_write_that_is_under_way_leaves_nothing_warm() {
    let bench = Bench::new();
    let gateway = Arc::new(bench.gateway());
    finished(&*gateway, 1, &["x".into()]).await;
    let stalled = bench.store.faults().hold(Call::Write);
    let writer = gateway.clone();
    let write = tokio::spawn(async move {
        let record = claim_of(&*writer, 1);
        put(&*writer, 1, None, &record, None).await
    });
    stalled.until_waiting(1).await;
    assert!(!bench.is_warm(&gateway, address(1)).await);
    write.abort();
    assert!(write.await.is_err_and(|error| error.is_cancelled()));
    assert!(!bench.is_warm(&gateway, address(1)).await);
}

#[tokio::test]
async fn i12_while_the_store_is_down_what_is_warm_is_replayed_and_nothing_is_claimed() {
    let bench = Bench::new();
    let gateway = bench.gateway();
    let record = finished(&gateway, 1, &["x".into()]).await;
    bench.hush();
    for call in [Call::Write, Call::Note] {
        bench
            .store
            .faults()
            .fail(call, Fault::Unavailable, u32::MAX);
    }
    for number in 2..=50 {
        let stored = gateway.load(address(1)).await.expect("warm").expect("held");
        assert_eq!(stored.record.id, record.id);
        assert_eq!(replay_number(&gateway, 1, record.id).await, number);
    }
    assert!(gateway.load(address(2)).await.is_err());
    let swap = put(&gateway, 2, None, &claim_of(&gateway, 2), None).await;
    assert!(matches!(swap, Err(StoreError::Unavailable(_))), "{swap:?}");
    bench.ages.advance(Options::default().confirmed_for);
    assert!(gateway.load(address(1)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_of_attempts_are_unique_and_the_log_is_in_their_order() {
    let bench = Bench::new();
    let gateway = Arc::new(bench.gateway());
    let record = finished(&*gateway, 1, &["x".into()]).await;
    let stalled = bench.store.faults().hold(Call::Note);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..MAX_ATTEMPTS_KEPT - 1 {
        let (gateway, id) = (gateway.clone(), record.id);
        tasks.spawn(async move { replay_number(&gateway, 1, id).await });
    }
    let numbers: BTreeSet<u32> = tasks.join_all().await.into_iter().collect();
    let last = MAX_ATTEMPTS_KEPT as u32;
    assert_eq!(numbers, (2..=last).collect());
    let stored = gateway.load(address(1)).await.expect("warm").expect("held");
    assert_eq!(stored.attempts, last);
    drop(stalled);

    let refused = gateway.note_attempt(address(1), record.id, note(Got::Refused));
    assert_eq!(refused.await.expect("a number"), last + 1);
    let log = gateway.attempts(address(1), record.id).await.expect("up");
    let numbers: Vec<u32> = log.iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers, (2..=last + 1).collect::<Vec<_>>());
    assert_eq!(log.last().map(|attempt| attempt.got), Some(Got::Refused));

    // What other gateways noted counts once the store has told of it.
    for _ in 0..7 {
        let noted = bench
            .store
            .note_attempt(address(1), record.id, note(Got::Replayed));
        noted.await.expect("up");
    }
    bench.ages.advance(Options::default().confirmed_for);
    gateway.load(address(1)).await.expect("up");
    assert_eq!(replay_number(&gateway, 1, record.id).await, last + 9);
}

#[tokio::test]
async fn numbers_go_on_over_an_eviction_while_notes_are_on_their_way() {
    let bench = Bench::new();
    let gateway = bench.gateway_with(Options {
        bytes: 16 << 10,
        ..Options::default()
    });
    let record = finished(&gateway, 0, &["x".into()]).await;
    let stalled = bench.store.faults().hold(Call::Note);
    assert_eq!(replay_number(&gateway, 0, record.id).await, 2);
    assert_eq!(replay_number(&gateway, 0, record.id).await, 3);
    for number in 1..100 {
        finished(&gateway, number, &["x".into()]).await;
    }
    assert!(!bench.is_warm(&gateway, address(0)).await, "evicted");
    let stored = gateway.load(address(0)).await.expect("up").expect("held");
    assert_eq!(stored.attempts, 3, "the store knows of one");
    assert_eq!(replay_number(&gateway, 0, record.id).await, 4);
    drop(stalled);
}

#[tokio::test]
async fn a_store_that_closes_has_the_notes() {
    let bench = Bench::new();
    let gateway = bench.gateway();
    let mut ids = Vec::new();
    for number in 0..300 {
        let record = finished(&gateway, number, &["x".into()]).await;
        replay_number(&gateway, number, record.id).await;
        ids.push(record.id);
    }
    gateway.close().await.expect("it closes");
    for (number, id) in (0..).zip(ids) {
        let log = bench.store.attempts(address(number), id).await;
        assert_eq!(log.expect("a log").len(), 2, "attempts of {id}");
    }
}

#[tokio::test]
async fn i15_the_cache_holds_no_more_bytes_than_it_may() {
    const CHUNK: usize = 32 << 10;
    let bench = Bench::new();
    let bytes = 4 << 20;
    let gateway = bench.gateway_with(Options {
        bytes,
        ..Options::default()
    });
    let chunks = vec![Bytes::from(vec![7; CHUNK]); 3];
    let mut records = Vec::new();
    for number in 0..200 {
        let record = finished(&gateway, number, &chunks).await;
        for chunk in 0..3 {
            let read = gateway.read(address(number), record.recording(), chunk);
            read.await.expect("up");
        }
        records.push(record);
    }
    bench.hush();
    let mut held = 0;
    for (number, record) in (0..).zip(&records) {
        for chunk in 0..3 {
            let read = gateway.read(address(number), record.recording(), chunk);
            held += read.await.map_or(0, |bytes| bytes.len() as u64);
        }
    }
    assert!(held <= bytes, "{held} bytes are held");
    assert!(held >= bytes / 2, "only {held} bytes are held");
}

#[tokio::test]
async fn a_cache_of_no_bytes_asks_every_time() {
    let bench = Bench::new();
    let gateway = bench.gateway_with(Options {
        bytes: 0,
        ..Options::default()
    });
    let record = finished(&gateway, 1, &["x".into()]).await;
    gateway.load(address(1)).await.expect("up");
    assert!(!bench.is_warm(&gateway, address(1)).await);
    bench.store.faults().fail(Call::Note, Fault::Unavailable, 1);
    let noted = gateway.note_attempt(address(1), record.id, note(Got::Replayed));
    assert!(noted.await.is_err());
}

#[tokio::test]
async fn i15_notes_that_wait_are_limited_in_all_and_per_operation() {
    const OPERATIONS: u32 = 60;
    let bench = Bench::new();
    let gateway = bench.gateway();
    let mut records = Vec::new();
    for number in 0..OPERATIONS {
        records.push(finished(&gateway, number, &["x".into()]).await);
    }
    let stalled = bench.store.faults().hold(Call::Note);
    for (number, record) in (0..).zip(&records) {
        for _ in 0..3 * MAX_ATTEMPTS_KEPT {
            replay_number(&gateway, number, record.id).await;
        }
    }
    drop(stalled);
    let mut noted = 0;
    for (number, record) in (0..).zip(&records) {
        let log = gateway.attempts(address(number), record.id).await;
        assert!(log.expect("up").len() <= MAX_ATTEMPTS_KEPT);
        let stored = bench.store.load(address(number)).await.expect("up");
        let of_this = stored.expect("held").attempts - 1;
        assert!(of_this <= MAX_ATTEMPTS_KEPT as u32, "{of_this} notes");
        noted += of_this;
    }
    assert_eq!(noted, 4096);
}
