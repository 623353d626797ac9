//! Joins across gateways: a reader on one gateway follows what another one records.

use std::time::Duration;

use onlyonce_core::{OwnerId, ReleaseReason, UnknownReason};
use onlyonce_engine::{Broken, Execution, Frame, Kind, Reader, Resolution, Start};
use onlyonce_store::{
    MemoryStore, Seen, Store,
    memory::{Call, Fault},
};
use tokio::task::JoinHandle;

use crate::world::{
    Answer, CHUNK, LEASE, World, body, eventually, finish, head, head_with, no_trailers,
    poll_start, read, resend,
};

/// Upkeep in the background, as a gateway runs it: it shows what others follow.
struct Running(JoinHandle<()>);

impl Running {
    fn of(world: &World) -> Self {
        let engine = world.engine.clone();
        Self(tokio::spawn(async move { engine.run_upkeep().await }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An execution of the key `k` that has its head, and its own reader.
async fn answering(world: &World) -> (Execution<MemoryStore>, Reader<MemoryStore>) {
    let (mut execution, reader) = world.execute("k").await;
    answer(&mut execution).await;
    (execution, reader)
}

async fn answer(execution: &mut Execution<MemoryStore>) {
    let headed = execution.head(head(200), Kind::Executed).await;
    headed.expect("head");
}

/// An execution of which a joiner elsewhere has seen a half; its own reader comes before the joiner.
async fn half_told(
    world: &World,
) -> (
    Execution<MemoryStore>,
    Reader<MemoryStore>,
    Reader<MemoryStore>,
) {
    let (mut execution, reader) = world.execute("k").await;
    let mut joiner = world.neighbour(2).join("k").await;
    answer(&mut execution).await;
    execution.push("half".into()).await.expect("pushed");
    assert_eq!(next_bytes(&mut joiner, 4).await, b"half");
    (execution, reader, joiner)
}

/// The next `len` bytes of a body that still grows.
async fn next_bytes(reader: &mut Reader<MemoryStore>, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        match reader.next().await {
            Some(Ok(Frame::Data(piece))) => bytes.extend_from_slice(&piece),
            other => panic!("expected bytes, got {other:?}"),
        }
    }
    bytes
}

#[tokio::test]
async fn a_joiner_elsewhere_gets_every_byte_as_it_comes() {
    let world = World::new();
    let _running = Running::of(&world);
    let (mut execution, _reader) = world.execute("k").await;
    let mut joiner = world.neighbour(2).join("k").await;
    answer(&mut execution).await;
    let started = joiner.start().await;
    assert_eq!(
        started,
        Start::Response {
            head: head(200),
            kind: Kind::Executed
        }
    );

    let whole = body(7 * CHUNK + 5);
    let mut sent = 0;
    for len in [1, CHUNK - 1, 1, 3, 2 * CHUNK, CHUNK, 2 * CHUNK, CHUNK - 4] {
        execution
            .push(whole.slice(sent..sent + len))
            .await
            .expect("pushed");
        // Nothing is completed: what comes now was shown.
        assert_eq!(next_bytes(&mut joiner, len).await, whole[sent..sent + len]);
        sent += len;
    }
    execution.push(whole.slice(sent..)).await.expect("pushed");
    execution.complete(no_trailers()).await.expect("durable");
    assert_eq!(
        next_bytes(&mut joiner, whole.len() - sent).await,
        whole[sent..]
    );
    assert_eq!(joiner.next().await, None);
}

#[tokio::test]
async fn a_joiner_elsewhere_that_comes_late_gets_what_was_recorded_before_it_came() {
    let world = World::new();
    let _running = Running::of(&world);
    let (mut execution, _reader) = answering(&world).await;
    let whole = body(5 * CHUNK + 7);
    execution
        .push(whole.slice(..4 * CHUNK + 3))
        .await
        .expect("pushed");
    let neighbour = world.neighbour(2);
    let mut joiner = neighbour.join("k").await;
    let seen = next_bytes(&mut joiner, 4 * CHUNK + 3).await;
    assert_eq!(seen, whole[..4 * CHUNK + 3]);
    // One more on the same gateway shares what the first one follows.
    let other = tokio::spawn(read(neighbour.join("k").await));
    execution
        .push(whole.slice(4 * CHUNK + 3..))
        .await
        .expect("pushed");
    execution.complete(no_trailers()).await.expect("durable");
    let answer = Answer::whole(head(200), Kind::Executed, whole.clone());
    assert_eq!(other.await.expect("answered"), answer);
    assert_eq!(
        next_bytes(&mut joiner, CHUNK + 4).await,
        whole[4 * CHUNK + 3..]
    );
    assert_eq!(joiner.next().await, None);
}

#[tokio::test]
async fn i15_a_slow_joiner_elsewhere_reads_from_the_store_what_left_memory() {
    let world = World::new();
    let _running = Running::of(&world);
    let (mut execution, _reader) = answering(&world).await;
    let neighbour = world.neighbour(2);
    let mut fast = neighbour.join("k").await;
    let slow = neighbour.join("k").await;
    let whole = body(40 * CHUNK + 1);
    for at in (0..whole.len()).step_by(CHUNK) {
        let piece = whole.slice(at..whole.len().min(at + CHUNK));
        let len = piece.len();
        execution.push(piece).await.expect("pushed");
        next_bytes(&mut fast, len).await;
    }
    execution.complete(no_trailers()).await.expect("durable");
    assert_eq!(
        read(slow).await,
        Answer::whole(head(200), Kind::Executed, whole)
    );
}

#[tokio::test]
async fn i03_the_last_byte_is_not_shown_before_the_record_is_durable() {
    let world = World::new();
    let _running = Running::of(&world);
    let (mut execution, _reader) = world.execute("k").await;
    let told = head_with(200, &[("content-length", "6")]);
    execution
        .head(told.clone(), Kind::Executed)
        .await
        .expect("head");
    let mut joiner = world.neighbour(2).join("k").await;
    execution.push("abc".into()).await.expect("pushed");
    assert_eq!(next_bytes(&mut joiner, 3).await, b"abc");
    execution.push("def".into()).await.expect("pushed");
    let seen = Seen {
        head: true,
        bytes: 3,
    };
    let record = world.record("k").await.expect("held");
    let shown = world.store.follow(
        world.address("k"),
        record.recording(),
        OwnerId::new(1),
        seen,
        Duration::from_millis(50),
    );
    assert!(matches!(shown.await, Ok(None)));
    execution.complete(no_trailers()).await.expect("durable");
    assert_eq!(next_bytes(&mut joiner, 3).await, b"def");
    assert_eq!(joiner.next().await, None);
}

#[tokio::test]
async fn i05_a_joiner_elsewhere_of_a_broken_answer_gets_a_broken_body() {
    let world = World::new();
    let _running = Running::of(&world);
    let (execution, _reader, mut joiner) = half_told(&world).await;
    execution
        .lose(UnknownReason::Truncated)
        .await
        .expect("durable");
    let broken = Some(Err(Broken(UnknownReason::Truncated)));
    assert_eq!(joiner.next().await, broken);
}

#[tokio::test]
async fn i05_a_joiner_elsewhere_of_an_owner_that_dies_gets_a_broken_body() {
    let world = World::new();
    let running = Running::of(&world);
    let (execution, _reader, mut joiner) = half_told(&world).await;
    drop(running);
    std::mem::forget(execution);
    world.clock.advance(LEASE);
    let broken = Some(Err(Broken(UnknownReason::LeasePassed)));
    assert_eq!(joiner.next().await, broken);
}

/// Who held back until the whole is durable saw the head and the half (seed 6,530 of the simulated gateway).
#[tokio::test]
async fn i03_a_joiner_elsewhere_sees_nothing_of_what_broke_off_and_was_ruled_not_to_have_run() {
    let world = World::new();
    let _running = Running::of(&world);
    let (mut execution, _reader) = world.execute("k").await;
    let neighbour = world.neighbour(2);
    let (mut joiner, mut held) = (neighbour.join("k").await, neighbour.join("k").await);
    held.hold_until_durable();
    answer(&mut execution).await;
    execution.push("half".into()).await.expect("pushed");
    assert_eq!(next_bytes(&mut joiner, 4).await, b"half");
    let id = execution.id();
    let lost = execution.lose(UnknownReason::Truncated).await;
    lost.expect("durable");
    let ruled = world
        .engine
        .resolve(id, Resolution::Released, "ops", "looked it up")
        .await;
    ruled.expect("resolved");
    let unknown = Start::Unknown(UnknownReason::Truncated);
    assert_eq!(held.start().await, unknown);
    let broken = Some(Err(Broken(UnknownReason::Truncated)));
    assert_eq!(joiner.next().await, broken);
}

#[tokio::test]
async fn i18_a_joiner_elsewhere_gets_the_answer_that_says_nothing_ran() {
    let world = World::new();
    let _running = Running::of(&world);
    let (mut execution, reader) = world.execute("k").await;
    let joiner = tokio::spawn(read(world.neighbour(2).join("k").await));
    eventually("it is followed", || async { world.engine.followed() == 1 }).await;
    let mut first = tokio::spawn(read(reader));
    execution
        .head(head(429), Kind::Released)
        .await
        .expect("head");
    execution.push("slow down".into()).await.expect("pushed");
    execution
        .release(ReleaseReason::DidNotRun)
        .await
        .expect("durable");
    let answer = Answer::whole(head(429), Kind::Released, "slow down");
    assert_eq!((&mut first).await.expect("answered"), answer);
    assert_eq!(joiner.await.expect("answered"), answer);
}

#[tokio::test]
async fn i09_what_an_owner_shows_after_its_lease_is_not_taken_for_the_next_ones() {
    let paused = World::new();
    let _running = Running::of(&paused);
    let (mut execution, _reader) = answering(&paused).await;
    execution.push("old".into()).await.expect("pushed");
    let mut before = paused.neighbour(3).join("k").await;
    assert_eq!(next_bytes(&mut before, 3).await, b"old");
    paused.clock.advance(LEASE);

    let neighbour = paused.neighbour(2);
    let _neighbour_running = Running::of(&neighbour);
    let (mut again, _) = neighbour.execute_by("k", &resend()).await;
    let mut joiner = paused.neighbour(4).join("k").await;
    // The one that woke does not know yet.
    let _ = execution.push("er".into()).await;
    again.head(head(201), Kind::Executed).await.expect("head");
    again.push("new".into()).await.expect("pushed");
    assert_eq!(next_bytes(&mut joiner, 3).await, b"new");
    again.complete(no_trailers()).await.expect("durable");
    assert_eq!(joiner.next().await, None);
    let seen = read(before).await;
    assert!(seen.end.is_err(), "{seen:?}");
}

#[tokio::test]
async fn l6_a_joiner_elsewhere_follows_on_after_the_store_was_away() {
    let world = World::new();
    let _running = Running::of(&world);
    let (mut execution, _reader) = answering(&world).await;
    let mut joiner = world.neighbour(2).join("k").await;
    execution.push("abc".into()).await.expect("pushed");
    assert_eq!(next_bytes(&mut joiner, 3).await, b"abc");
    world.store.faults().fail(Call::Load, Fault::Unavailable, 3);
    execution.push("def".into()).await.expect("pushed");
    execution.complete(no_trailers()).await.expect("durable");
    assert_eq!(next_bytes(&mut joiner, 3).await, b"def");
    assert_eq!(joiner.next().await, None);
}

#[tokio::test]
async fn a_follower_is_heard_though_another_recording_ends_at_that_moment() {
    let world = World::new();
    let _running = Running::of(&world);
    let (ends, _reader) = world.execute("ends").await;
    let joiner = tokio::spawn(read(world.neighbour(2).join("ends").await));
    eventually("it is followed", || async { world.engine.followed() == 1 }).await;

    let (_execution, _reader) = answering(&world).await;
    let gate = world.store.faults().hold(Call::Followed);
    // It asks once, and then waits.
    let record = world.record("k").await.expect("held");
    let (store, address) = (world.store.clone(), world.address("k"));
    let following = tokio::spawn(async move {
        let (recording, patience) = (record.recording(), Duration::from_secs(20));
        let owner = OwnerId::new(1);
        store
            .follow(address, recording, owner, Seen::default(), patience)
            .await
    });
    gate.until_waiting(1).await;
    ends.respond_whole(head(200), "done".into(), no_trailers())
        .await
        .expect("durable");
    joiner.await.expect("answered");
    eventually("its end was shown", || async {
        world.engine.followed() == 0
    })
    .await;
    drop(gate);
    let shown = following.await.expect("no panic").expect("a store");
    assert!(shown.is_some_and(|shown| !shown.head.is_empty()));
}

#[tokio::test]
async fn a_mirror_is_gone_once_its_execution_has_ended() {
    let world = World::new();
    let neighbour = world.neighbour(2);
    let (execution, _reader) = world.execute("k").await;
    let joiner = tokio::spawn(read(neighbour.join("k").await));
    finish(execution, "done").await;
    joiner.await.expect("answered");
    assert_eq!(read(neighbour.replay("k").await).await.body, b"done");
    eventually("nothing is shown any more", || async {
        world.engine.upkeep().await;
        world.engine.live() == 0
    })
    .await;
}

#[test]
fn l2_a_mirror_that_ends_with_its_runtime_makes_room_for_another_one() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().build().expect("a runtime")
    };
    let (stays, leaves) = (runtime(), runtime());
    let world = World::new();
    let neighbour = world.neighbour(2);
    let (mut execution, _reader) = stays.block_on(world.execute("k"));
    let _waits = leaves.block_on(async {
        let mut waits = neighbour.join("k").await;
        assert!(poll_start(&mut waits).is_pending());
        waits
    });
    drop(leaves);

    stays.block_on(async {
        let joiner = tokio::spawn(read(neighbour.join("k").await));
        answer(&mut execution).await;
        execution.complete(no_trailers()).await.expect("durable");
        let limit = Duration::from_secs(10);
        let answered = tokio::time::timeout(limit, joiner).await;
        let answered = answered.expect("it does not wait for the other runtime");
        assert!(answered.expect("answered").end.is_ok());
    });
}
