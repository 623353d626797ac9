//! The memory store fails exactly as a test asks it to.

use std::sync::Arc;

use bytes::Bytes;
use onlyonce_core::{
    Address, Fingerprint, Got, Key, OperationId, OwnerId, Record, RequestLine, Scope, StateName,
    UnknownReason,
    transition::{self, Claim},
};
use onlyonce_store::{
    AttemptNote, MemoryStore, Store, StoreError, Swap, Write,
    memory::{Call, Fault, Limits},
};

const LEASE: std::time::Duration = std::time::Duration::from_secs(30);

fn address(number: u8) -> Address {
    Address::from_bytes([number; 16])
}

fn claim(store: &MemoryStore, number: u8) -> Record {
    let claim = Claim {
        id: OperationId::new(store.now().as_millis(), &[number; 10]),
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

fn write(record: Record) -> Write {
    Write {
        record,
        last_chunk: None,
        attempt: Some(AttemptNote {
            peer: "".into(),
            sdk_retry_count: None,
            trace: None,
            got: Got::Executed,
            at: None,
        }),
    }
}

async fn put(store: &MemoryStore, number: u8) -> Result<Swap, StoreError> {
    let record = claim(store, number);
    store
        .compare_and_set(address(number), None, write(record))
        .await
}

#[tokio::test]
async fn an_unavailable_write_is_not_written_and_the_next_one_is() {
    let store = MemoryStore::new();
    store.faults().fail(Call::Write, Fault::Unavailable, 2);
    for _ in 0..2 {
        let swap = put(&store, 1).await;
        assert!(matches!(swap, Err(StoreError::Unavailable(_))), "{swap:?}");
        assert!(store.load(address(1)).await.expect("up").is_none());
    }
    assert!(matches!(put(&store, 1).await, Ok(Swap::Done { .. })));
}

#[tokio::test]
async fn a_write_in_doubt_is_written_or_not_as_asked() {
    let store = MemoryStore::new();
    store.faults().fail(Call::Write, Fault::InDoubtWritten, 1);
    store
        .faults()
        .fail(Call::Write, Fault::InDoubtNotWritten, 1);
    for (number, written) in [(1, true), (2, false)] {
        let swap = put(&store, number).await;
        assert!(matches!(swap, Err(StoreError::InDoubt(_))), "{swap:?}");
        let held = store.load(address(number)).await.expect("up");
        assert_eq!(held.is_some(), written);
    }
}

#[tokio::test]
async fn a_fault_for_one_state_leaves_the_others_alone() {
    let store = MemoryStore::new();
    let faults = store.faults();
    faults.fail(Call::WriteOf(StateName::Unknown), Fault::Full, 1);
    let record = claim(&store, 1);
    let claimed = store.compare_and_set(address(1), None, write(record.clone()));
    assert!(claimed.await.is_ok());
    let (fence, now) = (record.fence(), store.now());
    let lost = transition::lose(Some(&record), fence, UnknownReason::Broke, now).expect("running");
    for full in [true, false] {
        let swap = store
            .compare_and_set(address(1), Some(fence), write(lost.clone()))
            .await;
        assert_eq!(matches!(swap, Err(StoreError::Full(_))), full, "{swap:?}");
    }
}

#[tokio::test]
async fn healing_forgets_the_faults_to_come() {
    let store = MemoryStore::new();
    for call in [Call::Load, Call::Append, Call::Read, Call::Note] {
        store.faults().fail(call, Fault::Unavailable, u32::MAX);
    }
    assert!(store.load(address(1)).await.is_err());
    put(&store, 1).await.expect("writes are up");
    store.faults().heal();
    let held = store.load(address(1)).await.expect("up").expect("held");
    let append = store.append(
        address(1),
        held.record.recording(),
        0,
        Bytes::from_static(b"x"),
    );
    append.await.expect("up");
}

#[tokio::test]
async fn a_gate_holds_calls_until_it_is_dropped() {
    let store = Arc::new(MemoryStore::new());
    let gate = store.faults().hold(Call::Write);
    let tasks: Vec<_> = (1..=3)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { put(&store, number).await })
        })
        .collect();
    gate.until_waiting(3).await;
    tasks[2].abort();
    while gate.waiting() == 3 {
        tokio::task::yield_now().await;
    }
    assert!(store.load(address(1)).await.expect("up").is_none());
    drop(gate);
    for (index, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.await.is_ok(), index < 2);
    }
    assert!(store.load(address(2)).await.expect("up").is_some());
    assert!(store.load(address(3)).await.expect("up").is_none());
}

#[tokio::test]
async fn damage_is_an_error_and_not_absence() {
    let store = MemoryStore::new();
    put(&store, 1).await.expect("up");
    let held = store.load(address(1)).await.expect("up").expect("held");
    let append = store.append(
        address(1),
        held.record.recording(),
        0,
        Bytes::from_static(b"x"),
    );
    append.await.expect("up");
    store.faults().corrupt_chunk(address(1), 0);
    let read = store.read(address(1), held.record.recording(), 0).await;
    assert!(matches!(read, Err(StoreError::Corrupt(_))), "{read:?}");
    store.faults().corrupt(address(1));
    let load = store.load(address(1)).await;
    assert!(matches!(load, Err(StoreError::Corrupt(_))), "{load:?}");
}

#[tokio::test]
async fn limits_refuse_claims_and_chunks_and_space_comes_back() {
    let store = MemoryStore::new().with_limits(Limits {
        records: 2,
        bytes: 10,
        ..Limits::default()
    });
    put(&store, 1).await.expect("room for two");
    put(&store, 2).await.expect("room for two");
    let swap = put(&store, 3).await;
    assert!(matches!(swap, Err(StoreError::Full(_))), "{swap:?}");

    let held = store.load(address(1)).await.expect("up").expect("held");
    let append = |chunk| {
        store.append(
            address(1),
            held.record.recording(),
            chunk,
            vec![0; 6].into(),
        )
    };
    append(0).await.expect("room for ten");
    let more = append(1).await;
    assert!(matches!(more, Err(StoreError::Full(_))), "{more:?}");

    let removed = store.remove(address(1), held.record.fence()).await;
    assert!(removed.expect("up"));
    assert_eq!((store.status().records, store.status().bytes), (1, 0));
    put(&store, 3).await.expect("room again");
}

#[tokio::test]
#[should_panic(expected = "I3")]
async fn a_completed_record_without_its_last_chunk_is_refused() {
    let store = MemoryStore::new();
    let record = claim(&store, 1);
    let claimed = store.compare_and_set(address(1), None, write(record.clone()));
    claimed.await.expect("up");
    let response = transition::Response {
        head: onlyonce_core::Head::default(),
        trailers: onlyonce_core::HeaderBlock::default(),
        body_len: 1,
        chunks: 1,
    };
    let fence = record.fence();
    let next = transition::complete(Some(&record), fence, response, store.now(), LEASE);
    let write = write(next.expect("running"));
    let _ = store.compare_and_set(address(1), Some(fence), write).await;
}
