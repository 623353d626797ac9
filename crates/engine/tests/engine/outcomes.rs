//! Outcomes: written once, whatever the store does meanwhile.

use onlyonce_core::{Metered, Refusal, ReleaseReason, State, StateName, UnknownReason};
use onlyonce_engine::{Broken, Ended, Kind, PushError, Start, Unsettled};
use onlyonce_store::memory::{Call, Fault};

use crate::world::{
    Answer, CHUNK, LEASE, World, body, finish, head, no_trailers, poll_next, read, read_body,
    request, resend,
};

const COMPLETION: Call = Call::WriteOf(StateName::Completed);

#[tokio::test]
async fn who_watches_an_execution_hears_how_it_ended_and_who_joined() {
    let world = World::new();
    let (mut execution, reader) = world.execute("completed").await;
    let fate = execution.fate();
    assert_eq!(format!("{fate:?}"), "Fate(None)");
    let joiner = world.join("completed").await;
    let _other = world.join("completed").await;
    assert_eq!((fate.ended(), fate.joined()), (None, 2));
    assert_eq!(fate.metered(), None);
    let used = Metered {
        model: "m".into(),
        ..Metered::default()
    };
    execution.meter(used.clone());
    assert_eq!(fate.metered().as_deref(), Some(&used));
    // All of them stand by one span.
    assert_eq!(reader.ticket().span, execution.claimed().span());
    assert_eq!(joiner.ticket().span, execution.claimed().span());
    finish(execution, "answer").await;
    assert_eq!(fate.ended(), Some(Ended::Completed));
    let replay = world.replay("completed").await;
    assert_eq!(replay.ticket().span, reader.ticket().span);

    let (execution, _reader) = world.execute("released").await;
    let fate = execution.fate();
    execution
        .not_sent("nobody is there")
        .await
        .expect("durable");
    assert_eq!(fate.ended(), Some(Ended::Released));

    let (execution, _reader) = world.execute("unknown").await;
    let fate = execution.fate();
    execution.lose(UnknownReason::Broke).await.expect("durable");
    assert_eq!(fate.ended(), Some(Ended::Unknown(UnknownReason::Broke)));
}

#[tokio::test]
async fn hostile_084_a_store_that_is_down_at_completion_is_tried_again_and_the_end_waits() {
    let world = World::new();
    let (mut execution, mut reader) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    execution.push("answer".into()).await.expect("pushed");
    reader.start().await;
    reader.next().await;
    world.store.faults().fail(COMPLETION, Fault::Unavailable, 3);
    let complete = tokio::spawn(execution.complete(no_trailers()));
    assert!(poll_next(&mut reader).is_pending());
    complete.await.expect("no panic").expect("durable");
    assert!(reader.next().await.is_none());
    world.replay("k").await;
}

#[tokio::test]
async fn hostile_084_a_completion_that_is_never_taken_breaks_the_readers_and_is_unknown() {
    let world = World::new();
    let (mut execution, mut reader) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    execution.push("answer".into()).await.expect("pushed");
    reader.start().await;
    world
        .store
        .faults()
        .fail(Call::Write, Fault::Full, u32::MAX);
    let completed = execution.complete(no_trailers()).await;
    assert!(matches!(completed, Err(Unsettled::NotRecorded(_))));
    let answer = read_body(&mut reader).await;
    assert_eq!(answer.end, Err(Broken(UnknownReason::NotRecorded)));
    assert_eq!(world.engine.live(), 0);

    // L6: with space again, the next attempt hears the truth.
    world.store.faults().heal();
    let refused = world.refused(request("k")).await;
    assert_eq!(
        refused.refusal,
        Refusal::Unknown(UnknownReason::NotRecorded)
    );
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
}

#[tokio::test]
async fn i14_a_completion_whose_acknowledgement_is_lost_is_read_back() {
    let world = World::new();
    for (key, fault) in [
        ("written", Fault::InDoubtWritten),
        ("not-written", Fault::InDoubtNotWritten),
    ] {
        let (execution, reader) = world.execute(key).await;
        world.store.faults().fail(COMPLETION, fault, 1);
        execution
            .respond_whole(head(200), "ok".into(), no_trailers())
            .await
            .expect("durable");
        let expected = Answer::whole(head(200), Kind::Executed, "ok");
        assert_eq!(read(reader).await, expected);
        assert_eq!(read(world.replay(key).await).await, expected);
    }
}

#[tokio::test]
async fn i14_a_completion_that_could_not_be_read_back_is_known_again_at_the_next_try() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    world
        .store
        .faults()
        .fail(COMPLETION, Fault::InDoubtWritten, 1);
    world.store.faults().fail(Call::Load, Fault::Unavailable, 1);
    finish(execution, "ok").await;
    world.replay("k").await;
}

#[tokio::test]
async fn i14_an_unknown_outcome_whose_acknowledgement_is_lost_is_read_back_at_once() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    let unknown = Call::WriteOf(StateName::Unknown);
    let faults = world.store.faults();
    faults.fail(unknown, Fault::InDoubtWritten, 1);
    execution.lose(UnknownReason::Broke).await.expect("durable");
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
}

#[tokio::test]
async fn hostile_061_what_was_never_sent_is_released_and_says_why() {
    let world = World::new();
    let (execution, mut reader) = world.execute("k").await;
    execution
        .not_sent("connection refused")
        .await
        .expect("durable");
    assert_eq!(
        reader.start().await,
        Start::NotSent("connection refused".into())
    );
    let record = world.record("k").await.expect("there");
    assert!(matches!(
        record.state,
        State::Released {
            reason: ReleaseReason::NotSent,
            ..
        }
    ));
    let (again, reader) = world.execute("k").await;
    assert_eq!((again.id(), reader.ticket().attempt), (record.id, 2));
    drop(again);
}

#[tokio::test]
async fn a_released_key_may_be_taken_by_another_request() {
    let world = World::new();
    world.released("k").await;
    let begun = world.begin(crate::world::other_request("k")).await;
    assert!(matches!(begun, Ok(onlyonce_engine::Begin::Execute(..))));
}

#[tokio::test]
async fn i10_after_an_executed_head_there_is_no_release() {
    let world = World::new();
    let (mut execution, mut reader) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    reader.start().await;
    let released = execution.release(ReleaseReason::DidNotRun).await;
    assert_eq!(released, Err(Unsettled::NotWhole));
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
    assert!(read_body(&mut reader).await.end.is_err());
}

#[tokio::test]
async fn i10_a_resend_that_did_not_run_is_unknown_as_before() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    execution
        .lose(UnknownReason::TimedOut)
        .await
        .expect("durable");
    let (again, mut reader) = world.execute_by("k", &resend()).await;
    again.not_sent("connection refused").await.expect("durable");
    assert_eq!(
        reader.start().await,
        Start::Unknown(UnknownReason::TimedOut)
    );
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
}

#[tokio::test]
async fn i05_a_released_answer_that_broke_off_is_released_and_its_body_broken() {
    let world = World::new();
    let (mut execution, reader) = world.execute("k").await;
    execution
        .head(head(503), Kind::Released)
        .await
        .expect("head");
    execution.push("sorr".into()).await.expect("pushed");
    execution.release_broken().await.expect("durable");
    let answer = read(reader).await;
    assert!(matches!(
        answer.start,
        Start::Response {
            kind: Kind::Released,
            ..
        }
    ));
    assert_eq!(answer.body, b"sorr");
    assert_eq!(answer.end, Err(Broken(UnknownReason::Truncated)));
    assert_eq!(world.state("k").await, Some(StateName::Released));
}

#[tokio::test]
async fn i15_a_released_answer_stays_in_memory_and_is_limited() {
    let world = World::new();
    let (mut execution, _) = world.execute("k").await;
    execution
        .head(head(503), Kind::Released)
        .await
        .expect("head");
    world
        .store
        .faults()
        .fail(Call::Append, Fault::Full, u32::MAX);
    execution
        .push(body(4 * CHUNK))
        .await
        .expect("never sent to the store");
    let over = execution.push("x".into()).await;
    assert_eq!(
        over,
        Err(PushError::OverLimit {
            limit: 4 * CHUNK as u64
        })
    );
    execution.release_broken().await.expect("durable");
}

#[tokio::test]
async fn a_release_that_is_never_taken_is_made_good_by_the_next_attempt() {
    let world = World::new();
    let (execution, mut reader) = world.execute("k").await;
    world
        .store
        .faults()
        .fail(Call::Write, Fault::Unavailable, u32::MAX);
    assert!(execution.not_sent("connection refused").await.is_err());
    assert_eq!(
        reader.start().await,
        Start::Unknown(UnknownReason::NotRecorded)
    );
    world.store.faults().heal();
    drop(world.execute("k").await);
}

#[tokio::test]
async fn readers_of_a_lost_execution_do_not_wait_for_a_store_that_is_down() {
    let world = World::new();
    let (execution, mut reader) = world.execute("k").await;
    world
        .store
        .faults()
        .fail(Call::Write, Fault::Unavailable, u32::MAX);
    assert!(execution.lose(UnknownReason::Broke).await.is_err());
    assert_eq!(reader.start().await, Start::Unknown(UnknownReason::Broke));
    world.store.faults().heal();
    assert_eq!(world.engine.upkeep().await.settled, 1);
    let refused = world.refused(request("k")).await;
    assert_eq!(refused.refusal, Refusal::Unknown(UnknownReason::Broke));
}

#[tokio::test]
async fn an_execution_that_is_dropped_while_it_completes_is_never_half_done() {
    let world = World::new();
    let (execution, reader) = world.execute("k").await;
    let gate = world.store.faults().hold(COMPLETION);
    let respond = tokio::spawn(execution.respond_whole(head(200), "ok".into(), no_trailers()));
    gate.until_waiting(1).await;
    respond.abort();
    assert!(respond.await.is_err());
    drop(gate);
    assert_eq!(
        read(reader).await.start,
        Start::Unknown(UnknownReason::Broke)
    );
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
}

/// Somebody else's answer of the same length at the same moment is not one's own because of that.
#[tokio::test(start_paused = true)]
async fn i04_an_answer_that_another_one_came_before_is_fenced_though_it_looks_alike() {
    let world = World::new();
    let (execution, reader) = world.execute("k").await;
    let claimed = execution.claimed().clone();
    world.store.faults().fail(COMPLETION, Fault::Unavailable, 1);
    let respond = tokio::spawn(execution.respond_whole(head(200), "mine".into(), no_trailers()));
    // It waits to try again.
    tokio::task::yield_now().await;
    let address = world.address("k");
    world
        .put_answer(address, &claimed, (4, 1), Some("your".into()))
        .await;
    assert_eq!(respond.await.expect("no panic"), Err(Unsettled::Fenced));
    assert!(matches!(read(reader).await.start, Start::Unknown(_)));
    assert_eq!(read(world.replay("k").await).await.body, b"your");
}

#[tokio::test]
async fn i09_an_outcome_in_doubt_where_somebody_else_has_written_is_fenced_at_once() {
    let world = World::new();
    let (execution, reader) = world.execute("k").await;
    world.clock.advance(LEASE);
    assert_eq!(world.neighbour(2).engine.upkeep().await.expired, 1);
    let before = world.record("k").await;
    let unknown = Call::WriteOf(StateName::Unknown);
    let faults = world.store.faults();
    faults.fail(unknown, Fault::InDoubtNotWritten, 1);
    let lost = execution.lose(UnknownReason::Broke).await;
    assert_eq!(lost, Err(Unsettled::Fenced));
    assert_eq!(world.record("k").await, before);
    assert!(matches!(read(reader).await.start, Start::Unknown(_)));
}
