//! What gateways show each other of recordings that grow.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use onlyonce_core::{Address, OwnerId, RecordingId, State, UnknownReason};

use super::{
    Subject,
    bench::{Bench, Kept, claim_write, noise},
};
use crate::{Seen, Shown, Store};

/// Enough for a store that answers.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a follower waits who is to see nothing.
const IMPATIENCE: Duration = Duration::from_millis(100);

fn owner(kept: &Kept) -> OwnerId {
    match kept.record.state {
        State::InFlight { owner, .. } => owner,
        ref state => panic!("{state:?} has no owner"),
    }
}

async fn follow<S: Subject>(
    bench: &Bench<S>,
    kept: &Kept,
    seen: Seen,
    at_most: Duration,
) -> Option<Shown> {
    let (address, recording) = (kept.address, kept.recording());
    let followed = bench
        .store
        .follow(address, recording, owner(kept), seen, at_most);
    followed.await.expect("a store that answers")
}

/// Follows until there is news, and gives it.
async fn next_shown<S: Store>(
    store: Arc<S>,
    address: Address,
    recording: RecordingId,
    owner: OwnerId,
    seen: Seen,
) -> Shown {
    let asking = async {
        loop {
            let followed = store
                .follow(address, recording, owner, seen, IMPATIENCE)
                .await;
            if let Some(shown) = followed.expect("a store that answers") {
                return shown;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .expect("something is shown")
}

async fn show<S: Subject>(bench: &Bench<S>, kept: &Kept, shown: Shown) {
    let shown = bench.store.show(kept.address, kept.recording(), shown);
    shown.await.expect("a store that answers");
}

fn piece(from: u64, bytes: &Bytes) -> Shown {
    Shown {
        from,
        bytes: bytes.clone(),
        ..Shown::default()
    }
}

/// The owner hears that it is followed, and the follower sees what it shows, piece by piece.
pub async fn who_follows_is_shown_the_recording<S: Subject>(subject: S) {
    if !subject.is_shared() {
        return;
    }
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    let (address, recording, owner) = (kept.address, kept.recording(), owner(&kept));
    let following = |seen| {
        let shown = next_shown(bench.store.clone(), address, recording, owner, seen);
        tokio::spawn(shown)
    };

    let first = following(Seen::default());
    let followed = tokio::time::timeout(PATIENCE, bench.store.followed(owner)).await;
    assert!(
        followed
            .expect("in time")
            .expect("an answer")
            .contains(&address)
    );
    let head = Bytes::from_static(b"a head");
    show(
        &bench,
        &kept,
        Shown {
            head: head.clone(),
            ..Shown::default()
        },
    )
    .await;
    let shown = first.await.expect("shown");
    assert_eq!((shown.head, shown.bytes.len()), (head.clone(), 0));

    let body = noise(1, 10_000);
    let mut seen = Seen {
        head: true,
        bytes: 0,
    };
    for (from, to) in [(0, 1), (1, 7_000), (7_000, 10_000)] {
        let next = following(seen);
        show(&bench, &kept, piece(from as u64, &body.slice(from..to))).await;
        let shown = next.await.expect("shown");
        assert_eq!((shown.from, shown.ended), (from as u64, false));
        assert!(shown.bytes == body[from..to]);
        seen.bytes = to as u64;
    }
    // Who comes later is shown what came before, as long as no chunk holds it.
    let shown = follow(&bench, &kept, Seen::default(), PATIENCE)
        .await
        .expect("shown");
    assert_eq!((shown.head, shown.from), (head, 0));
    assert!(shown.bytes == body[..shown.bytes.len()] && !shown.bytes.is_empty());

    let last = following(seen);
    show(
        &bench,
        &kept,
        Shown {
            from: 10_000,
            ended: true,
            ..Shown::default()
        },
    )
    .await;
    assert!(last.await.expect("shown").ended);
}

/// What lies in full chunks is read from those.
pub async fn what_chunks_hold_is_not_shown_any_more<S: Subject>(subject: S) {
    if !subject.is_shared() {
        return;
    }
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    show(&bench, &kept, piece(0, &noise(1, 100))).await;
    let tail = noise(2, 10);
    show(
        &bench,
        &kept,
        Shown {
            in_chunks: 100,
            ..piece(100, &tail)
        },
    )
    .await;
    let shown = follow(&bench, &kept, Seen::default(), PATIENCE)
        .await
        .expect("shown");
    assert_eq!((shown.in_chunks, shown.from), (100, 100));
    assert!(shown.bytes == tail);
}

/// Who has seen all that is shown waits; and where nothing comes, hears so.
pub async fn nothing_is_shown_twice<S: Subject>(subject: S) {
    if !subject.is_shared() {
        return;
    }
    let bench = Bench::new(subject).await;
    let kept = bench.claimed("k").await;
    assert_eq!(
        follow(&bench, &kept, Seen::default(), IMPATIENCE).await,
        None
    );
    let head = Bytes::from_static(b"a head");
    show(
        &bench,
        &kept,
        Shown {
            head,
            ..piece(0, &noise(1, 100))
        },
    )
    .await;
    let seen = Seen {
        head: true,
        bytes: 100,
    };
    assert_eq!(follow(&bench, &kept, seen, IMPATIENCE).await, None);
    let other = bench.claimed("other").await;
    assert_eq!(
        follow(&bench, &other, Seen::default(), IMPATIENCE).await,
        None
    );
}

/// Who was overtaken shows nothing to those who follow the next execution (I9).
pub async fn i09_a_former_claim_shows_nothing_of_the_next_one<S: Subject>(subject: S) {
    if !subject.is_shared() {
        return;
    }
    let bench = Bench::new(subject).await;
    let former = bench.claimed("k").await;
    show(&bench, &former, piece(0, &noise(1, 100))).await;
    let unknown = bench.lost(&former, UnknownReason::LeasePassed).await;
    let record = bench.claim_again("k", Some(&unknown.record));
    let write = claim_write(&record);
    bench
        .put(former.address, Some(unknown.fence()), write)
        .await;
    let next = Kept {
        address: former.address,
        record,
    };
    show(&bench, &former, piece(100, &noise(1, 100))).await;
    assert_eq!(
        follow(&bench, &next, Seen::default(), IMPATIENCE).await,
        None
    );
    show(&bench, &next, piece(0, &noise(2, 50))).await;
    let shown = follow(&bench, &next, Seen::default(), PATIENCE)
        .await
        .expect("shown");
    assert!(shown.from == 0 && shown.bytes == noise(2, 50));
    show(&bench, &former, piece(0, &noise(1, 100))).await;
    let again = follow(&bench, &next, Seen::default(), PATIENCE).await;
    assert_eq!(again, Some(shown));
}
