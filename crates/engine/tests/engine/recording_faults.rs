//! Recordings over a store that is slow, down or damaged.

use std::{pin::pin, task::Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use onlyonce_core::{OperationId, Refusal, StateName, UnknownReason};
use onlyonce_engine::{Broken, Kind, Purge, PushError, Resolution, ResolveError, Unsettled};
use onlyonce_store::{
    Store,
    memory::{Call, Fault},
};

use crate::world::{
    Answer, CHUNK, LEASE, World, available, body, head, no_trailers, poll_next, poll_start, ran,
    read, read_body, request, resend,
};

const COMPLETION: Call = Call::WriteOf(StateName::Completed);

#[tokio::test]
async fn i03_bytes_come_as_they_arrive_and_the_end_waits_for_the_durable_record() {
    let world = World::new();
    let (mut execution, mut reader) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    execution.push("all of it".into()).await.expect("pushed");
    let gate = world.store.faults().hold(COMPLETION);
    let complete = tokio::spawn(execution.complete(no_trailers()));
    gate.until_waiting(1).await;
    assert!(poll_start(&mut reader).is_ready());
    assert_eq!(available(&mut reader), b"all of it");
    assert!(poll_next(&mut reader).is_pending());
    assert!(!reader.is_end());
    drop(gate);
    complete.await.expect("no panic").expect("durable");
    assert!(reader.is_end());
    assert_eq!(poll_next(&mut reader), Poll::Ready(None));
    assert!(reader.ticket().expires_at.is_some());
}

#[tokio::test]
async fn i03_of_a_whole_response_nothing_is_seen_before_it_is_durable() {
    let world = World::new();
    let (execution, mut reader) = world.execute("k").await;
    let gate = world.store.faults().hold(COMPLETION);
    let respond = tokio::spawn(execution.respond_whole(head(200), "ok".into(), no_trailers()));
    gate.until_waiting(1).await;
    assert!(poll_start(&mut reader).is_pending());
    drop(gate);
    respond.await.expect("no panic").expect("durable");
    assert_eq!(
        read(reader).await,
        Answer::whole(head(200), Kind::Executed, "ok")
    );
}

#[tokio::test]
async fn i04_a_reader_that_fell_behind_never_reads_the_bytes_of_another_execution() {
    let world = World::new();
    let (mut execution, mut behind) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    execution.push(body(20 * CHUNK)).await.expect("pushed");
    behind.start().await;
    // It has asked the store for the first chunk, and the store takes its time.
    let gate = world.store.faults().hold(Call::Read);
    assert!(poll_next(&mut behind).is_pending());
    gate.until_waiting(1).await;
    execution
        .lose(UnknownReason::Truncated)
        .await
        .expect("durable");
    let (mut again, _) = world.execute_by("k", &resend()).await;
    again.head(head(200), Kind::Executed).await.expect("head");
    again
        .push(Bytes::from(vec![b'!'; 20 * CHUNK]))
        .await
        .expect("pushed");
    drop(gate);
    let answer = read_body(&mut behind).await;
    assert_eq!(answer.body, b"");
    assert_eq!(answer.end, Err(Broken(UnknownReason::Truncated)));
    again.lose(UnknownReason::Broke).await.expect("durable");
}

#[tokio::test]
async fn i05_i13_a_damaged_chunk_breaks_the_replay_that_finds_it_and_is_unknown_from_then_on() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    let id = execution.id();
    execution
        .respond_whole(head(200), body(5 * CHUNK), no_trailers())
        .await
        .expect("durable");
    world.store.faults().corrupt_chunk(world.address("k"), 2);
    let answer = read(world.replay("k").await).await;
    assert_eq!(answer.body, body(2 * CHUNK));
    assert_eq!(answer.end, Err(Broken(UnknownReason::Unreadable)));

    // Nobody gets a head again for which there is no body, and an operator can end it.
    for _ in 0..2 {
        let refused = world.refused(request("k")).await;
        let unreadable = Refusal::Unknown(UnknownReason::Unreadable);
        assert_eq!(refused.refusal, unreadable);
        assert_eq!(refused.ticket.map(|ticket| ticket.id), Some(id));
    }
    world.rule(id, Resolution::Released).await.expect("unknown");
    assert_eq!(world.state("k").await, Some(StateName::Released));
}

#[tokio::test]
async fn a_chunk_that_the_store_did_not_take_at_first_is_given_again() {
    let world = World::new();
    let (mut execution, _) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    for fault in [
        Fault::Unavailable,
        Fault::InDoubtWritten,
        Fault::InDoubtNotWritten,
    ] {
        world.store.faults().fail(Call::Append, fault, 1);
        execution.push(body(2 * CHUNK)).await.expect("pushed");
    }
    execution.complete(no_trailers()).await.expect("durable");
    let expected = [body(2 * CHUNK), body(2 * CHUNK), body(2 * CHUNK)].concat();
    assert_eq!(read(world.replay("k").await).await.body, expected);
}

#[tokio::test]
async fn a_chunk_that_the_store_never_takes_ends_the_execution() {
    let world = World::new();
    let (mut execution, _) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    world
        .store
        .faults()
        .fail(Call::Append, Fault::Full, u32::MAX);
    let pushed = execution.push(body(2 * CHUNK)).await;
    assert!(matches!(pushed, Err(PushError::NotRecorded(_))));
    execution
        .lose(UnknownReason::NotRecorded)
        .await
        .expect("durable");
}

/// What lies in a store that somebody damaged, or where two gateways cut into chunks of two sizes: no byte of it is
/// passed off as another one.
#[tokio::test]
async fn i13_chunks_of_uneven_sizes_are_no_recording() {
    for (key, first, second) in [("k1", 10, 22), ("k2", 16, 17)] {
        let world = World::new();
        let (execution, _) = world.execute(key).await;
        let (address, claimed) = (world.address(key), execution.claimed().clone());
        for (number, len) in [(0, first), (1, second)] {
            let (store, chunk) = (&world.store, body(len));
            let appended = store.append(address, claimed.recording(), number, chunk);
            appended.await.expect("taken");
        }
        let size = (first + second + 5, 3);
        world
            .put_answer(address, &claimed, size, Some(body(5)))
            .await;
        drop(execution);
        tokio::task::yield_now().await;

        let answer = read(world.replay(key).await).await;
        assert_eq!(answer.end, Err(Broken(UnknownReason::Unreadable)));
        assert_eq!(answer.body, b"");
    }
}

/// Both write into one recording. Whichever of the two completes the record, its answer is its own.
#[tokio::test]
async fn i04_a_late_answer_completes_nothing_that_an_operator_has_written_into() {
    let world = World::new();
    let (id, mut late) = world.timed_out("k").await;
    late.head(head(200)).await.expect("head");
    late.push(body(CHUNK + 1)).await.expect("pushed");
    world.store.faults().fail(COMPLETION, Fault::Unavailable, 1);
    let ruled = world.rule(id, ran(vec![b'!'; CHUNK + 1])).await;
    assert!(ruled.is_err(), "the store did not take it");
    assert_eq!(late.complete(no_trailers()).await, Err(Unsettled::Fenced));
    // What was claimed for it is released.
    world.engine.upkeep().await;
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
}

/// An operator's answer of several chunks goes into the store one by one, while the exchange that called the operation
/// unknown still waits on another gateway, and writes as well.
#[tokio::test]
async fn i04_a_late_answer_elsewhere_writes_nothing_into_an_operators_answer() {
    let paused = World::new();
    let (id, mut late) = paused.timed_out("k").await;
    let claimed_at = late.claimed().claimed_at;
    paused.clock.advance(LEASE);
    late.head(head(200)).await.expect("head");
    let operator = paused.neighbour(2);
    let whole = vec![b'!'; 3 * CHUNK + 1];
    let gate = paused.store.faults().hold(COMPLETION);
    let rules = operator.rule(id, ran(whole.clone()));
    let answers = async {
        gate.until_waiting(1).await;
        assert_eq!(late.push(body(2 * CHUNK)).await, Err(PushError::Fenced));
        drop(gate);
    };
    let (resolved, ()) = tokio::join!(rules, answers);
    let record = resolved.expect("resolved").stored.record;
    assert_eq!(record.state.name(), StateName::Completed);
    assert_eq!(record.claimed_at, claimed_at, "it is that execution's");
    assert_eq!(read(operator.replay("k").await).await.body, whole);
}

/// The operation of the key `k`, of which nobody knows any more, and whose late answer was given up.
async fn left_unknown(world: &World) -> OperationId {
    let (id, late) = world.timed_out("k").await;
    late.give_up();
    id
}

/// It is unknown for the reason that it was unknown for.
async fn is_unknown_as_before(world: &World) {
    let refused = world.refused(request("k")).await;
    assert_eq!(refused.refusal, Refusal::Unknown(UnknownReason::TimedOut));
}

/// What an operator begins to write down and does not end leaves the operation as it was.
#[tokio::test]
async fn i04_half_an_answer_of_an_operators_leaves_the_operation_unknown() {
    let world = World::new();
    let id = left_unknown(&world).await;
    let faults = world.store.faults();
    faults.fail(COMPLETION, Fault::Unavailable, 1);
    let refused = world.rule(id, ran(body(3 * CHUNK))).await;
    assert!(
        matches!(refused, Err(ResolveError::Trouble(_))),
        "{refused:?}"
    );
    is_unknown_as_before(&world).await;
    let again = world.rule(id, ran(body(3 * CHUNK))).await;
    again.expect("resolved");
    assert_eq!(read(world.replay("k").await).await.body, body(3 * CHUNK));
}

/// Nor does one that may be in the store, and is not.
#[tokio::test]
async fn i04_an_operators_answer_in_doubt_that_is_not_in_the_store_is_not_taken_for_written() {
    let world = World::new();
    let id = left_unknown(&world).await;
    let faults = world.store.faults();
    faults.fail(COMPLETION, Fault::InDoubtNotWritten, 1);
    let refused = world.rule(id, ran(body(3 * CHUNK))).await;
    refused.expect_err("it is not there");
    is_unknown_as_before(&world).await;
}

/// Who is told that the store did not take it tries again.
#[tokio::test]
async fn i04_an_operators_answer_is_taken_though_one_came_to_nothing_before() {
    let world = World::new();
    let id = left_unknown(&world).await;
    let faults = world.store.faults();
    faults.fail(COMPLETION, Fault::Unavailable, 1);
    let refused = world.rule(id, ran(body(3 * CHUNK))).await;
    refused.expect_err("the store did not take it");
    assert_eq!(world.state("k").await, Some(StateName::InFlight));
    let again = world.rule(id, ran(body(3 * CHUNK))).await;
    again.expect("resolved");
    assert_eq!(read(world.replay("k").await).await.body, body(3 * CHUNK));
}

/// Its chunks take longer than a lease, and no gateway takes the operator for dead.
#[tokio::test]
async fn i04_an_operators_answer_has_the_time_that_it_takes() {
    let world = World::new();
    let id = left_unknown(&world).await;
    let (elsewhere, chunks) = (world.neighbour(2), 3);
    let slowly = async {
        for _ in 0..chunks {
            let gate = world.store.faults().hold(Call::Append);
            gate.until_waiting(1).await;
            world.clock.advance(LEASE * 3 / 5);
            assert_eq!(elsewhere.engine.upkeep().await.expired, 0);
        }
    };
    let whole = body(chunks * CHUNK + 1);
    let mut resolves = pin!(world.rule(id, ran(whole.clone())));
    tokio::select! {
        biased;
        () = slowly => {}
        resolved = &mut resolves => panic!("between two chunks: {resolved:?}"),
    }
    resolves.await.expect("resolved");
    assert_eq!(read(world.replay("k").await).await.body, whole);
}

/// The request that brings it breaks off between two of its chunks.
#[tokio::test]
async fn i04_an_operator_who_leaves_halfway_leaves_the_operation_unknown() {
    let world = World::new();
    let id = left_unknown(&world).await;
    let gate = world.store.faults().hold(COMPLETION);
    tokio::select! {
        () = gate.until_waiting(1) => {}
        _ = world.rule(id, ran(body(3 * CHUNK))) => panic!("it is held"),
    }
    drop(gate);
    assert_eq!(world.state("k").await, Some(StateName::InFlight));
    world.engine.upkeep().await;
    is_unknown_as_before(&world).await;
}

/// Both of its writes are done, and the store cannot say so.
#[tokio::test]
async fn i04_an_operators_answer_in_doubt_that_is_in_the_store_is_written() {
    let world = World::new();
    let id = left_unknown(&world).await;
    let faults = world.store.faults();
    faults.fail(Call::Write, Fault::InDoubtWritten, 2);
    let before = world.store.status().commits;
    let resolved = world.rule(id, ran(body(3 * CHUNK))).await;
    resolved.expect("resolved");
    let commits = world.store.status().commits - before;
    assert_eq!(
        commits, 2,
        "a claim and the record: no lease was about to end"
    );
    assert_eq!(read(world.replay("k").await).await.body, body(3 * CHUNK));
    assert_eq!(world.engine.upkeep().await.settled, 0);
}

/// The record says unknown a moment before the exchange is late: its acknowledgement is on its way.
#[tokio::test]
async fn hostile_064_a_purge_sees_the_exchange_that_is_about_to_be_late() {
    let world = World::new();
    let (execution, _reader) = world.execute("k").await;
    let faults = world.store.faults();
    let written = Call::WriteOf(StateName::Unknown);
    faults.fail(written, Fault::InDoubtWritten, 1);
    let looks = faults.hold(Call::Load);
    let mut lost = pin!(execution.lose_for_now(UnknownReason::TimedOut));
    assert!((&mut lost).now_or_never().is_none());
    let purge = Purge {
        state: Some(StateName::Unknown),
        ..Purge::default()
    };
    let mut purge = pin!(world.engine.purge(purge));
    assert!((&mut purge).now_or_never().is_none(), "it removes nothing");
    drop(looks);
    let late = lost.await.expect("durable");
    let mut closing = late.closing();
    tokio::select! {
        biased;
        () = closing.wait() => {}
        _ = &mut purge => panic!("it does not wait for the exchange"),
    }
    drop(closing);
    assert_eq!(purge.await, Ok(1));
    drop(late);
}
