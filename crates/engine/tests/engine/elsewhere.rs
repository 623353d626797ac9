//! Joins across gateways: a reader on one gateway follows what another one records.

use std::time::Duration;

use onlyonce_core::{OwnerId, ReleaseReason, StateName, UnknownReason};
use onlyonce_engine::{Broken, Execution, Frame, Kind, Reader, Resolution, Settings, Start};
use onlyonce_store::{
    MemoryStore, Seen, Store,
    memory::{Call, Fault},
};
use tokio::{task::JoinHandle, time::Instant};

use crate::in_doubt::somebody_elses;
use crate::world::{
    Answer, CHUNK, LEASE, WINDOW, World, body, eventually, finish, head, head_with, no_trailers,
    other_request, read, resend, settings,
};

/// Upkeep in the background, as a gateway runs it: it shows what others follow.
pub struct Running(JoinHandle<()>);

impl Running {
    pub fn of(world: &World) -> Self {
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
pub async fn answering(world: &World) -> (Execution<MemoryStore>, Reader<MemoryStore>) {
    let (mut execution, reader) = world.execute("k").await;
    answer(&mut execution).await;
    (execution, reader)
}

pub async fn answer(execution: &mut Execution<MemoryStore>) {
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
pub async fn next_bytes(reader: &mut Reader<MemoryStore>, len: usize) -> Vec<u8> {
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
    let ruled = world.rule(id, Resolution::Released).await;
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
async fn i05_a_joiner_elsewhere_of_a_released_answer_that_broke_off_gets_a_broken_body() {
    let world = World::new();
    let _running = Running::of(&world);
    let (mut execution, _reader) = world.execute("k").await;
    let joiner = tokio::spawn(read(world.neighbour(2).join("k").await));
    eventually("it is followed", || async { world.engine.followed() == 1 }).await;
    execution
        .head(head(503), Kind::Released)
        .await
        .expect("head");
    execution.push("sorr".into()).await.expect("pushed");
    execution.release_broken().await.expect("durable");
    let answer = joiner.await.expect("answered");
    assert_eq!(answer.body, b"sorr");
    assert_eq!(answer.end, Err(Broken(UnknownReason::Truncated)));
}

/// Two gateways whose settings differ, as while new ones are rolled out.
#[tokio::test]
async fn i18_an_answer_that_says_nothing_ran_is_whole_whatever_memory_the_joiners_gateway_has() {
    let world = World::new();
    let _running = Running::of(&world);
    let (mut execution, _reader) = world.execute("k").await;
    let small = Settings {
        operation_memory: CHUNK,
        ..settings()
    };
    let joiner = tokio::spawn(read(world.neighbour_with(2, small).join("k").await));
    eventually("it is followed", || async { world.engine.followed() == 1 }).await;
    execution
        .head(head(429), Kind::Released)
        .await
        .expect("head");
    execution.push(body(4 * CHUNK)).await.expect("pushed");
    let released = execution.release(ReleaseReason::DidNotRun).await;
    released.expect("durable");
    let answer = Answer::whole(head(429), Kind::Released, body(4 * CHUNK));
    assert_eq!(joiner.await.expect("answered"), answer);
}

#[tokio::test]
async fn i04_chunks_of_another_size_are_not_taken_for_ones_own() {
    let world = World::new();
    let _running = Running::of(&world);
    let (mut execution, _reader) = answering(&world).await;
    execution.push(body(10 * CHUNK + 1)).await.expect("pushed");
    let large = Settings {
        chunk_size: 2 * CHUNK,
        ..settings()
    };
    let neighbour = world.neighbour_with(2, large);
    let answer = read(neighbour.join("k").await).await;
    assert_eq!(answer.body, b"");
    assert_eq!(answer.end, Err(Broken(UnknownReason::Unreadable)));
    execution.complete(no_trailers()).await.expect("durable");
    let replayed = read(neighbour.replay("k").await).await;
    assert_eq!(replayed.body, body(10 * CHUNK + 1));
}

#[tokio::test]
async fn i15_a_joiner_elsewhere_that_comes_when_the_beginning_has_left_memory_gets_all_of_it() {
    let world = World::new();
    let _running = Running::of(&world);
    let (mut execution, _reader) = answering(&world).await;
    let whole = body(10 * CHUNK + 3);
    execution.push(whole.clone()).await.expect("pushed");
    let mut joiner = world.neighbour(2).join("k").await;
    // Nothing is completed: what comes now was shown, or lies in the store.
    assert_eq!(next_bytes(&mut joiner, whole.len()).await, whole);
    execution.complete(no_trailers()).await.expect("durable");
    assert_eq!(joiner.next().await, None);
}

/// What an operator brings may differ from what was shown of the answer that broke off.
#[tokio::test]
async fn i04_a_joiner_elsewhere_never_gets_two_halves_of_two_answers() {
    let world = World::new();
    let _running = Running::of(&world);
    let (execution, _reader, mut joiner) = half_told(&world).await;
    let id = execution.id();
    let lost = execution.lose(UnknownReason::Truncated).await;
    lost.expect("durable");
    let resolution = Resolution::Completed {
        head: head(201),
        body: "half of another one".into(),
        trailers: no_trailers(),
        window: LEASE,
    };
    let resolved = world.rule(id, resolution).await;
    resolved.expect("resolved");
    let broken = Some(Err(Broken(UnknownReason::Unreadable)));
    assert_eq!(joiner.next().await, broken);
}

#[tokio::test]
async fn i06_a_joiner_elsewhere_never_gets_the_answer_to_another_request() {
    let world = World::new();
    let (execution, _reader) = world.execute("k").await;
    let mut joiner = world.neighbour(2).join("k").await;
    let looks = world.store.faults().hold(Call::Load);
    // Its mirror is about to look when the key's time is over.
    looks.until_waiting(1).await;
    finish(execution, "mine").await;
    world.clock.advance(WINDOW);
    assert_eq!(world.engine.upkeep().await.swept.records, 1);
    somebody_elses(&world, other_request("k"), None, true).await;
    drop(looks);
    assert_eq!(
        joiner.start().await,
        Start::Unknown(UnknownReason::Unreadable)
    );
}

/// Who joined the claim that was followed before is not who joins the next one.
#[tokio::test]
async fn i09_who_joins_a_resend_on_a_gateway_that_still_follows_the_first_execution_gets_the_resend()
 {
    let paused = World::new();
    let running = Running::of(&paused);
    let (mut execution, _reader) = answering(&paused).await;
    execution.push("old".into()).await.expect("pushed");
    let follows = paused.neighbour(3);
    let mut before = follows.join("k").await;
    assert_eq!(next_bytes(&mut before, 3).await, b"old");
    drop(running);
    paused.clock.advance(LEASE);

    let neighbour = paused.neighbour(2);
    let (again, _) = neighbour.execute_by("k", &resend()).await;
    let joiner = follows.join("k").await;
    finish(again, "new").await;
    assert_eq!(
        read(joiner).await,
        Answer::whole(head(200), Kind::Executed, "new")
    );
    assert!(read(before).await.end.is_err());
    drop(execution);
}

/// The release is in the store a little earlier than the answer that said so.
#[tokio::test(start_paused = true)]
async fn i18_a_joiner_elsewhere_that_hears_of_a_release_first_waits_for_its_answer() {
    let world = World::new();
    let _running = Running::of(&world);
    let (mut execution, _reader) = world.execute("k").await;
    let joiner = tokio::spawn(read(world.neighbour(2).join("k").await));
    execution
        .head(head(429), Kind::Released)
        .await
        .expect("head");
    execution.push("slow down".into()).await.expect("pushed");
    // It is written; that this is so, its owner hears 70 ms later.
    let (release, faults) = (Call::WriteOf(StateName::Released), world.store.faults());
    faults.fail(release, Fault::InDoubtWritten, 1);
    faults.fail(Call::Load, Fault::Unavailable, 1);
    faults.fail(release, Fault::Unavailable, 2);
    let released = execution.release(ReleaseReason::DidNotRun).await;
    released.expect("durable");
    let answer = Answer::whole(head(429), Kind::Released, "slow down");
    assert_eq!(joiner.await.expect("answered"), answer);
}

#[tokio::test(start_paused = true)]
async fn a_joiner_elsewhere_of_what_was_not_sent_waits_for_no_answer() {
    let world = World::new();
    let (execution, _reader) = world.execute("k").await;
    let mut joiner = world.neighbour(2).join("k").await;
    let before = Instant::now();
    let released = execution.not_sent("connection refused").await;
    released.expect("durable");
    assert!(matches!(joiner.start().await, Start::NotSent(_)));
    // One look, and no more.
    assert!(before.elapsed() < Duration::from_millis(50));
}
