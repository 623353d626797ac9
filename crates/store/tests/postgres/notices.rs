//! What one gateway shows, another is told of.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use onlyonce_core::{Address, Epoch, OwnerId, RecordingId};
use onlyonce_store::{
    MAX_CHUNK, PostgresStore, Seen, Shown, Store, clock::ManualClock, postgres::Options,
};
use onlyonce_testkit::Postgres;
use tokio::{sync::mpsc, time::timeout};

use crate::support::{OWNER, at, claim, fresh_url, open, schema_of};

const PATIENCE: Duration = Duration::from_secs(20);

/// Follows until there is something that was not seen.
async fn next_shown(
    store: &PostgresStore,
    address: Address,
    recording: RecordingId,
    seen: Seen,
) -> Shown {
    let following = async {
        loop {
            let wait = Duration::from_secs(5);
            let shown = store.follow(address, recording, OWNER, seen, wait).await;
            if let Some(shown) = shown.expect("a store that answers") {
                return shown;
            }
        }
    };
    timeout(PATIENCE, following).await.expect("it is shown")
}

async fn heard(store: &PostgresStore, owner: OwnerId) -> Vec<Address> {
    let heard = timeout(PATIENCE, store.followed(owner)).await;
    heard.expect("in time").expect("a store that answers")
}

/// An owner that shows one byte after the other, and a follower on another gateway.
struct Line {
    owner: Arc<PostgresStore>,
    address: Address,
    recording: RecordingId,
    shown: u64,
    followed: mpsc::Receiver<()>,
}

impl Line {
    async fn between(owner: &Arc<PostgresStore>, follower: &Arc<PostgresStore>) -> Self {
        let record = claim(owner, "k").await;
        let (address, recording) = (at(owner, "k"), record.recording());
        let (told, followed) = mpsc::channel(1);
        let follower = follower.clone();
        tokio::spawn(async move {
            let mut seen = Seen::default();
            loop {
                let shown = next_shown(&follower, address, recording, seen).await;
                seen.bytes = shown.from + shown.bytes.len() as u64;
                if told.send(()).await.is_err() {
                    return;
                }
            }
        });
        Self {
            owner: owner.clone(),
            address,
            recording,
            shown: 0,
            followed,
        }
    }

    /// Shows one more byte, and waits until it has arrived.
    async fn next(&mut self) {
        let shown = Shown {
            from: self.shown,
            bytes: "x".into(),
            // As with a long answer, of which the store holds all but the newest part.
            in_chunks: self.shown.saturating_sub(10),
            ..Shown::default()
        };
        self.shown += 1;
        let showing = self.owner.show(self.address, self.recording, shown);
        showing.await.expect("a store that answers");
        let followed = timeout(PATIENCE, self.followed.recv()).await;
        followed.expect("in time").expect("a follower");
    }
}

/// What one gateway shows, another sees; how fast is for the bench to say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_shown_arrives_and_what_chunks_hold_is_dropped() {
    let url = fresh_url();
    let owner = open(&url, Options::default()).await;
    let follower = open(&url, Options::default()).await;
    let mut line = Line::between(&owner, &follower).await;
    for _ in 0..220 {
        line.next().await;
    }

    let frames =
        Postgres::shared().sql(&format!("SELECT count(*) FROM {}.frames", schema_of(&url)));
    assert_eq!(frames, "11", "what chunks hold is not kept twice");
}

/// An owner hears once of each recording that is followed, and again where it shows nothing for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_hears_of_each_recording_that_is_followed() {
    let url = fresh_url();
    let clock = ManualClock::default();
    let options = Options {
        clock: Some(Arc::new(clock.clone())),
        ..Options::default()
    };
    let owner = open(&url, options.clone()).await;
    let follower = open(&url, options).await;
    let follow = async |address, recording, owner| {
        let (seen, wait) = (Seen::default(), Duration::ZERO);
        let followed = follower.follow(address, recording, owner, seen, wait).await;
        assert_eq!(followed.expect("a store that answers"), None);
    };
    let (address, first) = (at(&owner, "k"), claim(&owner, "k").await.recording());
    let second = RecordingId {
        claim: Epoch::new(first.claim.number() + 2),
        ..first
    };
    let elsewhere = OwnerId::new(7);
    for recording in [first, second] {
        for asked in [OWNER, OWNER, elsewhere] {
            follow(address, recording, asked).await;
        }
        assert_eq!(heard(&owner, OWNER).await, [address]);
        assert_eq!(heard(&owner, elsewhere).await, [address]);
    }
    let other = at(&owner, "other");
    let recording = claim(&owner, "other").await.recording();
    follow(address, second, OWNER).await;
    follow(other, recording, OWNER).await;
    assert_eq!(heard(&owner, OWNER).await, [other], "nothing new is at k");
    clock.advance(Duration::from_secs(2));
    follow(address, second, OWNER).await;
    assert_eq!(heard(&owner, OWNER).await, [address]);
}

/// Who comes late is shown in one go whatever no chunk holds, however much that is, and no row is larger
/// than that of a chunk.
#[tokio::test]
async fn a_large_part_is_shown_whole() {
    let url = fresh_url();
    let store = open(&url, Options::default()).await;
    let recording = claim(&store, "k").await.recording();
    let address = at(&store, "k");
    let body: Bytes = (0..3_200_001_u32).map(|at| (at / 1_000) as u8).collect();
    let shown = Shown {
        head: "a head".into(),
        bytes: body.clone(),
        ended: true,
        ..Shown::default()
    };
    store
        .show(address, recording, shown.clone())
        .await
        .expect("a store that answers");
    let seen = Seen::default();
    assert!(next_shown(&store, address, recording, seen).await == shown);
    // The rest follows on what was seen, wherever that ended.
    let seen = Seen {
        head: true,
        bytes: MAX_CHUNK as u64 + 1,
    };
    let rest = next_shown(&store, address, recording, seen).await;
    assert_eq!((rest.from, rest.head.len()), (seen.bytes, 0));
    assert!(rest.bytes == body[MAX_CHUNK + 1..]);
    let longest = format!(
        "SELECT max(ends_at - begins_at) FROM {}.frames",
        schema_of(&url)
    );
    assert_eq!(Postgres::shared().sql(&longest), MAX_CHUNK.to_string());
}
