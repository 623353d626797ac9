//! Joins: many readers of one execution, and one fate for all of them (I18).

use bytes::Bytes;
use onlyonce_core::{Refusal, ReleaseReason, StateName};
use onlyonce_engine::{Begin, Kind, Start};

use super::World;
use crate::world::{
    Answer, available, body, finish, head, hurried, name, no_trailers, read, read_body, reject,
    request,
};

#[tokio::test]
async fn hostile_028_a_joiner_gets_what_is_recorded_so_far_and_then_the_rest() {
    let world = World::new();
    let (mut execution, _) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    execution.push("so far, ".into()).await.expect("pushed");
    let mut joiner = world.join("k").await;
    assert_eq!(joiner.ticket().attempt, 2);
    assert!(matches!(joiner.start().await, Start::Response { .. }));
    assert_eq!(available(&mut joiner), b"so far, ");
    execution.push("and the rest".into()).await.expect("pushed");
    assert_eq!(available(&mut joiner), b"and the rest");
    execution.complete(no_trailers()).await.expect("durable");
    assert!(joiner.next().await.is_none());
}

#[tokio::test]
async fn hostile_033_ten_who_joined_a_released_execution_get_ten_equal_answers() {
    let world = World::new();
    let (mut execution, first) = world.execute("k").await;
    let mut readers = vec![first];
    for _ in 0..10 {
        readers.push(world.join("k").await);
    }
    let readers: Vec<_> = readers
        .into_iter()
        .map(|reader| tokio::spawn(read(reader)))
        .collect();
    execution
        .head(head(429), Kind::Released)
        .await
        .expect("head");
    execution.push("slow ".into()).await.expect("pushed");
    execution.push("down".into()).await.expect("pushed");
    execution
        .release(ReleaseReason::DidNotRun)
        .await
        .expect("durable");
    for reader in readers {
        let answer = reader.await.expect("answered");
        assert_eq!(
            answer,
            Answer::whole(head(429), Kind::Released, "slow down")
        );
    }
    assert_eq!(world.state("k").await, Some(StateName::Released));
    // HOSTILE 32: the key is free again.
    drop(world.execute("k").await);
}

#[tokio::test]
async fn a_route_that_rejects_refuses_while_it_runs_and_replays_after() {
    let world = World::new();
    let (execution, first) = world.execute("k").await;
    let begun = world.engine.begin(request("k"), &reject()).await;
    let Ok(Begin::Refuse(refused)) = begun else {
        panic!("{}", name(&begun));
    };
    assert_eq!(refused.refusal, Refusal::InFlight);
    assert_eq!(
        refused.ticket.map(|ticket| ticket.id),
        Some(first.ticket().id)
    );
    assert_eq!(refused.ticket.map(|ticket| ticket.attempt), Some(2));
    finish(execution, "done").await;
    let begun = world.engine.begin(request("k"), &reject()).await;
    assert!(matches!(begun, Ok(Begin::Replay(_))), "{}", name(&begun));
}

#[tokio::test]
async fn l2_a_joiner_is_answered_by_its_deadline() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    let begun = world.engine.begin(request("k"), &hurried()).await;
    let Ok(Begin::Join(mut joiner)) = begun else {
        panic!("{}", name(&begun));
    };
    assert_eq!(joiner.start().await, Start::Timeout);
    drop(execution);
}

#[tokio::test]
async fn hostile_058_a_caller_that_leaves_changes_nothing() {
    let world = World::new();
    let (mut execution, reader) = world.execute("k").await;
    drop(reader);
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    execution.push("paid for".into()).await.expect("pushed");
    execution.complete(no_trailers()).await.expect("durable");
    let answer = read(world.replay("k").await).await;
    assert_eq!(answer, Answer::whole(head(200), Kind::Executed, "paid for"));
}

#[tokio::test]
async fn hostile_055_a_slow_reader_stalls_neither_the_execution_nor_other_readers() {
    let world = World::new();
    let (mut execution, mut slow) = world.execute("k").await;
    let mut quick = world.join("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    slow.start().await;
    quick.start().await;
    let whole = body(1_000);
    let mut seen = Vec::new();
    for piece in whole.chunks(9) {
        execution
            .push(Bytes::copy_from_slice(piece))
            .await
            .expect("pushed");
        seen.extend(available(&mut quick));
    }
    assert_eq!(seen, whole);
    execution.complete(no_trailers()).await.expect("durable");
    // I15: what it missed is in the store, not in memory.
    let answer = read_body(&mut slow).await;
    assert_eq!((answer.body, answer.end), (whole.to_vec(), Ok(())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_of_one_stream_get_every_byte() {
    let world = World::new();
    let (mut execution, first) = world.execute("k").await;
    let mut readers = vec![tokio::spawn(read(first))];
    for _ in 0..1_000 {
        readers.push(tokio::spawn(read(world.join("k").await)));
    }
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    let whole = body(600);
    for piece in whole.chunks(7) {
        execution
            .push(Bytes::copy_from_slice(piece))
            .await
            .expect("pushed");
        tokio::task::yield_now().await;
    }
    execution.complete(no_trailers()).await.expect("durable");
    for reader in readers {
        let answer = reader.await.expect("answered");
        assert_eq!(
            answer,
            Answer::whole(head(200), Kind::Executed, whole.to_vec())
        );
    }
}
