//! Copies between stores in memory, whose clocks a test sets.

use std::time::Duration;

use bytes::Bytes;
use onlyonce_core::transition::{self, Claim, Response};
use onlyonce_core::{
    Address, Fingerprint, Got, Head, HeaderBlock, Key, OperationId, OwnerId, Record, RequestLine,
    Scope, State, UnknownReason,
};
use onlyonce_store::clock::ManualClock;
use onlyonce_store::{AttemptNote, Mark, MemoryStore, Store, Stored, Swap, Write};

use super::progress::Progress;
use super::record::Shift;
use super::{Copy, Counts, Trouble};
use crate::any_store::AnyStore;

const LEASE: Duration = Duration::from_secs(30);
const WINDOW: Duration = Duration::from_secs(3600);

/// Two stores, and their clocks.
struct Two {
    from: AnyStore,
    to: AnyStore,
    from_clock: ManualClock,
    to_clock: ManualClock,
}

impl Two {
    /// The target's clock is ahead by `ahead`, or the source's where `is_behind`.
    async fn new(ahead: Duration, is_behind: bool) -> Self {
        let (from_clock, to_clock) = (ManualClock::default(), ManualClock::default());
        for clock in [&from_clock, &to_clock] {
            clock.advance(10 * WINDOW);
        }
        if is_behind { &from_clock } else { &to_clock }.advance(ahead);
        let store = |clock: &ManualClock| {
            AnyStore::Memory(Box::new(MemoryStore::with_clock(clock.clone())))
        };
        let to = store(&to_clock);
        let marked = to.set_mark(None, Some(filling())).await;
        assert!(marked.expect("a store"));
        Self {
            from: store(&from_clock),
            to,
            from_clock,
            to_clock,
        }
    }

    fn copy(&self) -> Copy<'_> {
        Copy {
            from: &self.from,
            to: &self.to,
            shift: Shift::between(self.from.now(), self.to.now()),
            filling: filling(),
            progress: Progress::default(),
        }
    }
}

async fn run(copy: &Copy<'_>) -> Result<Counts, Trouble> {
    copy.pass(true).await?;
    copy.prune().await?;
    copy.compare().await
}

fn filling() -> Mark {
    Mark::Filling {
        from: "there".into(),
        shift_millis: Some(0),
    }
}

fn address(number: u8) -> Address {
    Address::from_bytes([number; 16])
}

async fn put(store: &AnyStore, address: Address, held: Option<&Record>, write: Write) {
    let fence = held.map(Record::fence);
    let swap = store.compare_and_set(address, fence, write).await;
    assert!(matches!(swap, Ok(Swap::Done { .. })), "{swap:?}");
}

async fn claimed(store: &AnyStore, number: u8) -> Record {
    let claim = Claim {
        id: OperationId::from_bytes([number; 16]),
        scope: Scope {
            tenant: "acme".into(),
            namespace: "up".into(),
        },
        key: Key::new("k").unwrap(),
        fingerprint: Fingerprint::from_bytes([7; 32]),
        request: RequestLine::default(),
        owner: OwnerId::new(1),
        raise: std::num::NonZero::<u32>::MIN,
    };
    let record = transition::claim(None, claim, store.now(), LEASE).unwrap();
    let write = Write {
        record: record.clone(),
        last_chunk: None,
        attempt: Some(AttemptNote {
            peer: "".into(),
            sdk_retry_count: None,
            trace: None,
            got: Got::Executed,
            at: None,
        }),
    };
    put(store, address(number), None, write).await;
    record
}

async fn completed(store: &AnyStore, number: u8, chunks: &[&'static [u8]]) {
    let record = claimed(store, number).await;
    let (last, beside) = chunks.split_last().unwrap();
    for (at, chunk) in (0..).zip(beside) {
        let chunk = Bytes::from_static(chunk);
        let appended = store.append(address(number), record.recording(), at, chunk);
        appended.await.unwrap();
    }
    let response = Response {
        head: Head {
            status: 200,
            headers: HeaderBlock::default(),
        },
        trailers: HeaderBlock::default(),
        body_len: chunks.iter().map(|chunk| chunk.len() as u64).sum(),
        chunks: chunks.len() as u32,
    };
    let fence = record.fence();
    let next = transition::complete(Some(&record), fence, response, store.now(), WINDOW);
    let write = Write {
        record: next.unwrap(),
        last_chunk: Some(Bytes::from_static(last)),
        attempt: None,
    };
    put(store, address(number), Some(&record), write).await;
}

async fn held(store: &AnyStore, number: u8) -> Option<Stored> {
    store.load(address(number)).await.unwrap()
}

#[tokio::test]
async fn i11_a_window_never_ends_earlier_whichever_clock_is_ahead() {
    for (ahead, is_behind) in [
        (Duration::ZERO, false),
        (2 * WINDOW, false),
        (2 * WINDOW, true),
        (Duration::from_millis(1), true),
    ] {
        let two = Two::new(ahead, is_behind).await;
        completed(&two.from, 1, &[b"body"]).await;
        two.from_clock.advance(WINDOW / 4);
        two.to_clock.advance(WINDOW / 4);
        run(&two.copy()).await.unwrap();
        let stored = held(&two.to, 1).await.unwrap();
        let end = stored.record.expires_at().unwrap();
        let left = end.since(two.to.now());
        let most = 3 * WINDOW / 4 + Duration::from_secs(10);
        assert!((3 * WINDOW / 4..most).contains(&left), "{left:?} left");
        let State::Completed(completed) = &stored.record.state else {
            panic!("{stored:?}");
        };
        assert_eq!(completed.expires_at.since(completed.completed_at), WINDOW);
    }
}

#[tokio::test]
async fn a_comparison_finds_every_difference() {
    let two = Two::new(Duration::ZERO, false).await;
    completed(&two.from, 1, &[b"one", b"two", b"three"]).await;
    completed(&two.from, 2, &[b"other"]).await;
    let copy = two.copy();
    assert_eq!(run(&copy).await.unwrap().completed, 2);

    // So that a record which is made there is the one of the source, but for its body.
    two.to_clock
        .advance(Duration::from_millis(copy.shift.millis().unsigned_abs()));
    for tampered in [
        &[&b"one"[..], b"TWO", b"three"][..],
        &[b"one", b"two", b"THREE"],
        &[b"one", b"two"],
    ] {
        copy.remove(address(1)).await.unwrap();
        let found = copy.compare().await;
        assert!(found.is_err_and(|why| why.contains("1 records differ")));
        completed(&two.to, 1, tampered).await;
        let found = copy.compare().await;
        assert!(found.is_err_and(|why| why.contains("1 records differ")));
    }
    assert_eq!(
        run(&copy).await.unwrap().completed,
        2,
        "and it is put right"
    );

    completed(&two.to, 3, &[b"not from there"]).await;
    let found = copy.compare().await;
    assert!(found.is_err_and(|why| why.contains("new store alone")));
    assert_eq!(run(&copy).await.unwrap().completed, 2);
    assert!(held(&two.to, 3).await.is_none());
}

#[tokio::test]
async fn what_was_copied_in_part_is_copied_anew() {
    let two = Two::new(Duration::ZERO, false).await;
    completed(&two.from, 1, &[b"one", b"two"]).await;
    let unknown = claimed(&two.from, 2).await;
    let note = AttemptNote {
        peer: "192.0.2.1:1".into(),
        sdk_retry_count: Some(1),
        trace: None,
        got: Got::Joined,
        at: None,
    };
    two.from_clock.advance(LEASE / 2);
    let noted = two.from.note_attempt(address(2), unknown.id, note).await;
    noted.unwrap();
    two.to_clock.advance(LEASE / 2);
    let fence = unknown.fence();
    let lost = transition::lose(Some(&unknown), fence, UnknownReason::Broke, two.from.now());
    let lost = Write {
        record: lost.unwrap(),
        last_chunk: None,
        attempt: None,
    };
    put(&two.from, address(2), Some(&unknown), lost).await;
    for number in [1, 2] {
        claimed(&two.to, number).await;
    }
    let copy = two.copy();
    let counts = run(&copy).await.unwrap();
    assert_eq!((counts.completed, counts.unknown), (1, 1));
    let attempts = two.to.attempts(address(2), unknown.id).await.unwrap();
    let attempts: Vec<_> = attempts.iter().map(|one| (one.got, one.at)).collect();
    let first = unknown
        .claimed_at
        .after(Duration::from_millis(copy.shift.millis().unsigned_abs()));
    let second = first.after(LEASE / 2);
    assert_eq!(attempts, [(Got::Executed, first), (Got::Joined, second)]);
    let stored = held(&two.to, 2).await.unwrap();
    assert!(
        matches!(
            stored.record.state,
            State::Unknown {
                reason: UnknownReason::Broke,
                ..
            }
        ),
        "{stored:?}"
    );
}

/// Once the target is served from, what gateways wrote there stays (I1).
#[tokio::test]
async fn i01_a_copy_that_comes_too_late_removes_nothing() {
    let two = Two::new(Duration::ZERO, false).await;
    completed(&two.from, 1, &[b"one"]).await;
    let copy = two.copy();
    run(&copy).await.unwrap();
    assert!(two.to.set_mark(Some(filling()), None).await.unwrap());
    let new = claimed(&two.to, 2).await;
    let late = run(&copy).await;
    assert!(late.is_err_and(|why| why.contains("ended by another command")));
    assert_eq!(*held(&two.to, 2).await.unwrap().record, new);
}
