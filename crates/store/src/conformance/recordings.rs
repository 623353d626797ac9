//! Recordings: chunks in, the same chunks out.

use bytes::Bytes;
use onlyonce_core::{
    ReleaseReason, State, UnknownReason,
    transition::{self, Resolution},
};
use tokio::task::JoinSet;

use super::{
    Subject,
    bench::{Bench, Kept, WINDOW, claim_write, noise, response_of},
};
use crate::{MAX_CHUNK, Store, StoreError};

async fn assert_reads<S: Subject>(bench: &Bench<S>, kept: &Kept, chunks: &[Bytes]) {
    for (number, chunk) in chunks.iter().enumerate() {
        let read = bench.read(kept, number as u32).await;
        let read = read.unwrap_or_else(|error| panic!("chunk {number}: {error}"));
        assert!(read == *chunk, "chunk {number} differs");
    }
}

/// Readers that fall behind a running operation read from the store.
pub async fn chunks_are_read_back_while_the_operation_runs<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    let chunks: Vec<Bytes> = (0..10).map(|seed| noise(seed, 1_000)).collect();
    for (number, chunk) in chunks.iter().enumerate() {
        bench.append(&kept, number as u32, chunk.clone()).await;
        assert_reads(&bench, &kept, &chunks[..=number]).await;
    }
    let kept = bench.renewed(&kept).await;
    assert_reads(&bench, &kept, &chunks).await;
}

/// 16 MiB in chunks of a MiB, and one of 8 MiB.
pub async fn a_large_recording_is_read_back_byte_for_byte<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("k").await;
    let mut chunks: Vec<Bytes> = (0..64).map(|seed| noise(seed, MAX_CHUNK)).collect();
    chunks.push(noise(99, 1));
    let kept = bench.completed(&claimed, &chunks).await;
    assert_reads(&bench, &kept, &chunks).await;
}

/// A stream of small events.
pub async fn many_small_chunks_keep_their_order<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("k").await;
    let chunks: Vec<Bytes> = (0..1_000)
        .map(|number| format!("data: {number}\n\n").into())
        .collect();
    let kept = bench.completed(&claimed, &chunks).await;
    assert_reads(&bench, &kept, &chunks).await;
}

/// The completed record and its last chunk are one write: a load gives both (I3).
pub async fn the_last_chunk_comes_with_the_record<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    for (key, chunks) in [
        ("one", vec![noise(1, 1_000)]),
        ("three", (0..3).map(|seed| noise(seed, 70_000)).collect()),
    ] {
        let claimed = bench.claimed(key).await;
        let kept = bench.completed(&claimed, &chunks).await;
        let stored = bench.load(kept.address).await.expect("a record");
        assert_eq!(stored.last_chunk.as_ref(), chunks.last());
        assert_reads(&bench, &kept, &chunks).await;
        assert!(bench.read(&kept, chunks.len() as u32).await.is_err());
    }
}

/// A response without a body completes without a chunk (hostile 67).
pub async fn an_empty_body_has_no_chunk<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("k").await;
    let kept = bench.completed(&claimed, &[]).await;
    let stored = bench.load(kept.address).await.expect("a record");
    assert_eq!(*stored.record, kept.record);
    assert_eq!(stored.last_chunk, None);
    assert!(bench.read(&kept, 0).await.is_err());
}

/// What is not there is never read as empty (I5).
pub async fn a_missing_chunk_is_an_error<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    assert!(bench.read(&kept, 0).await.is_err());
    bench.append(&kept, 0, "x".into()).await;
    assert!(bench.read(&kept, 1).await.is_err());
    assert!(bench.read(&kept, u32::MAX).await.is_err());
}

/// The id is part of what a reader asks for (I7).
pub async fn a_recording_is_not_read_under_another_id<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let kept = bench.finished("k").await;
    let other = bench.finished("other").await;
    for (address, theirs) in [
        (kept.address, other.recording()),
        (other.address, kept.recording()),
    ] {
        assert!(bench.store.read(address, theirs, 0).await.is_err());
        assert!(
            bench
                .store
                .append(address, theirs, 0, "theirs".into())
                .await
                .is_err()
        );
    }
    assert_reads(&bench, &kept, &["hello".into()]).await;
}

/// A recording that is complete is immutable, like its record (I8).
pub async fn a_completed_recording_is_not_added_to<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("k").await;
    let chunks = [noise(1, 100), noise(2, 100)];
    let kept = bench.completed(&claimed, &chunks).await;
    for chunk in 0..3 {
        let append = bench
            .store
            .append(kept.address, kept.recording(), chunk, "late".into());
        let appended = append.await;
        assert!(matches!(appended, Err(StoreError::Fenced)), "{appended:?}");
    }
    assert_reads(&bench, &kept, &chunks).await;
    assert!(bench.read(&kept, 2).await.is_err());
}

/// After a release or a resend, nothing of the first execution shows in the second (I4).
pub async fn a_new_execution_starts_a_new_recording<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let first = bench.claimed("released").await;
    bench.append(&first, 0, noise(1, 100)).await;
    bench.append(&first, 1, noise(2, 100)).await;
    let released = bench.released(&first, ReleaseReason::DidNotRun).await;

    let second = bench.claimed("unknown").await;
    bench.append(&second, 0, noise(1, 100)).await;
    bench.append(&second, 1, noise(2, 100)).await;
    let unknown = bench.lost(&second, UnknownReason::Broke).await;

    for (key, kept) in [("released", released), ("unknown", unknown)] {
        let record = bench.claim_again(key, Some(&kept.record));
        let write = claim_write(&record);
        bench.put(kept.address, Some(kept.fence()), write).await;
        let again = Kept {
            address: kept.address,
            record,
        };
        assert!(bench.read(&again, 0).await.is_err(), "{key}");
        bench.append(&again, 0, noise(3, 100)).await;
        assert!(bench.read(&again, 1).await.is_err(), "{key}");
        let chunks = [noise(3, 100), noise(4, 100)];
        let kept = bench.completed(&again, &chunks).await;
        assert_reads(&bench, &kept, &chunks).await;
    }
}

/// Who executed it before, and was taken for dead, writes nothing into the recording of who executes
/// it now, and reads nothing of it (I4, I9).
pub async fn i09_chunks_of_a_former_claim_are_refused<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let first = bench.claimed("released").await;
    bench.append(&first, 0, noise(1, 100)).await;
    bench.append(&first, 1, noise(2, 100)).await;
    let released = bench.released(&first, ReleaseReason::DidNotRun).await;

    let second = bench.claimed("unknown").await;
    bench.append(&second, 0, noise(1, 100)).await;
    let second = bench.renewed(&second).await;
    bench.append(&second, 1, noise(2, 100)).await;
    let unknown = bench.lost(&second, UnknownReason::LeasePassed).await;

    for (key, former) in [("released", released), ("unknown", unknown)] {
        let record = bench.claim_again(key, Some(&former.record));
        let write = claim_write(&record);
        bench.put(former.address, Some(former.fence()), write).await;
        let again = Kept {
            address: former.address,
            record,
        };
        bench.append(&again, 0, noise(3, 100)).await;
        for chunk in 0..3 {
            assert!(bench.read(&former, chunk).await.is_err(), "{key}");
            let late = bench
                .store
                .append(former.address, former.recording(), chunk, noise(9, 100))
                .await;
            assert!(matches!(late, Err(StoreError::Fenced)), "{key}: {late:?}");
        }
        assert!(bench.read(&again, 1).await.is_err(), "{key}");
        let chunks = [noise(3, 100), noise(4, 100), noise(5, 100)];
        bench.append(&again, 1, chunks[1].clone()).await;
        let next = super::bench::complete_record(&again.record, &chunks, bench.now());
        let kept = bench.follow(&again, next, Some(chunks[2].clone())).await;
        assert_reads(&bench, &kept, &chunks).await;
        assert!(bench.read(&former, 0).await.is_err(), "{key}");
    }
}

/// A claim whose record is not there takes no chunk at all.
pub async fn a_recording_without_a_record_takes_no_chunk<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let never = Kept {
        address: bench.address("k"),
        record: bench.first_claim("k"),
    };
    let append = bench
        .store
        .append(never.address, never.recording(), 0, "x".into());
    let appended = append.await;
    assert!(matches!(appended, Err(StoreError::Fenced)), "{appended:?}");
    assert!(bench.read(&never, 0).await.is_err());
}

/// An operator who knows the answer writes it over what was recorded of it.
pub async fn an_operators_answer_replaces_what_was_recorded<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let claimed = bench.claimed("k").await;
    for number in 0..3 {
        bench.append(&claimed, number, noise(1, 100)).await;
    }
    let unknown = bench.lost(&claimed, UnknownReason::Truncated).await;
    let answer = [Bytes::from_static(b"what the provider's page says")];
    let next = transition::resolve(
        Some(&unknown.record),
        unknown.fence(),
        Resolution::Ran(response_of(&answer)),
        bench.now(),
        WINDOW,
    );
    let last_chunk = Some(answer[0].clone());
    let kept = bench
        .follow(&unknown, next.expect("it was unknown"), last_chunk)
        .await;
    let stored = bench.load(kept.address).await.expect("a record");
    assert!(matches!(stored.record.state, State::Completed(_)));
    assert_eq!(stored.last_chunk.as_ref(), Some(&answer[0]));
    assert_reads(&bench, &kept, &answer).await;
    assert!(bench.read(&kept, 1).await.is_err());
}

/// Forty recordings grow at once, and each reads as its own (I7).
pub async fn concurrent_recordings_do_not_mix<S: Subject>(subject: S) {
    let bench = Bench::new(subject).await;
    let mut tasks = JoinSet::new();
    for number in 0..40_u64 {
        let kept = bench.claimed(&format!("k{number}")).await;
        let store = bench.store.clone();
        tasks.spawn(async move {
            let chunks: Vec<Bytes> = (0..20)
                .map(|chunk| noise(1_000 * number + chunk, 2_000))
                .collect();
            for (chunk, bytes) in (0..).zip(&chunks[..19]) {
                let append = store.append(kept.address, kept.recording(), chunk, bytes.clone());
                append.await.expect("running");
            }
            (kept, chunks)
        });
    }
    for (kept, chunks) in tasks.join_all().await {
        assert_reads(&bench, &kept, &chunks[..19]).await;
        let next = super::bench::complete_record(&kept.record, &chunks, bench.now());
        let kept = bench.follow(&kept, next, chunks.last().cloned()).await;
        assert_reads(&bench, &kept, &chunks).await;
    }
}
