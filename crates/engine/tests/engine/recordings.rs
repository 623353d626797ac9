//! Recordings: what readers see, when, and that it is always the same.

use std::{
    sync::Arc,
    task::{Context, Waker},
};

use bytes::Bytes;
use onlyonce_core::{HeaderBlock, StateName, UnknownReason};
use onlyonce_engine::{Broken, Frame, Kind, PushError, Settings, Start, Unsettled};

use super::World;
use crate::world::{
    Answer, CHUNK, Idle, available, body, head, head_with, no_trailers, poll_next, poll_start,
    read, read_body, settings,
};

#[tokio::test]
async fn i03_the_last_piece_of_a_declared_length_waits_for_the_durable_record() {
    let world = World::new();
    let (mut execution, mut reader) = world.execute("k").await;
    let head = head_with(200, &[("Content-Length", "10")]);
    execution.head(head, Kind::Executed).await.expect("head");
    execution.push("hello".into()).await.expect("pushed");
    execution.push("world".into()).await.expect("pushed");
    assert_eq!(available(&mut reader), b"hello");
    assert_eq!(reader.remaining(), Some(5));
    execution.complete(no_trailers()).await.expect("durable");
    assert_eq!(available(&mut reader), b"world");
}

#[tokio::test]
async fn i03_a_reader_that_holds_until_durable_sees_not_even_the_head_before() {
    let world = World::new();
    let (mut execution, mut reader) = world.execute("k").await;
    reader.hold_until_durable();
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    let whole = body(10 * CHUNK);
    execution.push(whole.clone()).await.expect("pushed");
    assert!(poll_start(&mut reader).is_pending());
    assert!(poll_next(&mut reader).is_pending());
    execution.complete(no_trailers()).await.expect("durable");
    assert_eq!(
        read(reader).await,
        Answer::whole(head(200), Kind::Executed, whole.to_vec())
    );
}

#[tokio::test]
async fn i04_every_replay_is_the_first_answer_whatever_its_length() {
    let world = World::new();
    for len in [
        0,
        1,
        CHUNK - 1,
        CHUNK,
        CHUNK + 1,
        2 * CHUNK,
        2 * CHUNK + 1,
        1_000,
    ] {
        let key = format!("k{len}");
        let (mut execution, first) = world.execute(&key).await;
        let head = head_with(207, &[("b", "1"), ("a", ""), ("B", "2"), ("b", "1")]);
        let trailers = HeaderBlock::pack([(&b"grpc-status"[..], &b"0"[..])]).expect("short");
        execution
            .head(head.clone(), Kind::Executed)
            .await
            .expect("head");
        let whole = body(len);
        for piece in whole.chunks(11) {
            execution
                .push(Bytes::copy_from_slice(piece))
                .await
                .expect("pushed");
        }
        let first = tokio::spawn(read(first));
        execution.complete(trailers.clone()).await.expect("durable");
        let expected = Answer {
            trailers: Some(trailers),
            ..Answer::whole(head, Kind::Executed, whole.to_vec())
        };
        assert_eq!(first.await.expect("answered"), expected);
        assert_eq!(read(world.replay(&key).await).await, expected);
    }
}

#[tokio::test]
async fn i04_a_whole_response_that_is_longer_than_a_chunk_is_recorded_in_chunks() {
    let world = World::new();
    let (execution, first) = world.execute("k").await;
    let whole = body(5 * CHUNK + 3);
    execution
        .respond_whole(head(200), whole.clone(), no_trailers())
        .await
        .expect("durable");
    let expected = Answer::whole(head(200), Kind::Executed, whole.to_vec());
    assert_eq!(read(first).await, expected);
    assert_eq!(read(world.replay("k").await).await, expected);
}

#[tokio::test]
async fn i05_readers_of_a_lost_recording_are_broken_however_often_they_ask() {
    let world = World::new();
    let (mut execution, mut reader) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    execution.push("half an ans".into()).await.expect("pushed");
    reader.start().await;
    let mut late = world.join("k").await;
    execution
        .lose(UnknownReason::Truncated)
        .await
        .expect("durable");
    let broken = Some(Err(Broken(UnknownReason::Truncated)));
    assert_eq!(
        reader.next().await,
        Some(Ok(Frame::Data("half an ans".into())))
    );
    for _ in 0..3 {
        assert_eq!(reader.next().await, broken);
    }
    assert!(!reader.is_end());
    // Who has not started yet gets no head at all.
    assert_eq!(late.start().await, Start::Unknown(UnknownReason::Truncated));
}

#[tokio::test]
async fn i05_a_dropped_execution_is_unknown_and_breaks_its_readers() {
    let world = World::new();
    let (mut execution, mut reader) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    reader.start().await;
    drop(execution);
    assert_eq!(reader.next().await, Some(Err(Broken(UnknownReason::Broke))));
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
    assert_eq!(world.engine.live(), 0);
}

#[tokio::test]
async fn i05_a_response_short_of_its_declared_length_is_never_completed() {
    let world = World::new();
    let (mut execution, reader) = world.execute("k").await;
    let head = head_with(200, &[("content-length", "10")]);
    execution.head(head, Kind::Executed).await.expect("head");
    execution.push("hello".into()).await.expect("pushed");
    assert!(execution.complete(no_trailers()).await.is_err());
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
    assert!(read(reader).await.start == Start::Unknown(UnknownReason::Truncated));
}

#[tokio::test]
async fn i05_a_whole_response_is_as_long_as_its_head_says_or_is_none() {
    let world = World::new();
    for body in ["hell", "hello!"] {
        let (execution, _) = world.execute(body).await;
        let head = head_with(200, &[("content-length", "5")]);
        let responded = execution
            .respond_whole(head, body.into(), no_trailers())
            .await;
        assert_eq!(responded, Err(Unsettled::NotWhole));
        assert_eq!(world.state(body).await, Some(StateName::Unknown));
    }
}

#[tokio::test]
async fn i05_without_a_head_nothing_is_completed() {
    let world = World::new();
    let (execution, _) = world.execute("k").await;
    assert!(execution.complete(no_trailers()).await.is_err());
    assert_eq!(world.state("k").await, Some(StateName::Unknown));
}

#[tokio::test]
async fn hostile_067_an_answer_without_a_body_is_whole_whatever_length_its_head_names() {
    let world = World::new();
    let (mut execution, _) = world.execute("k").await;
    let head = head_with(304, &[("content-length", "5000")]);
    execution
        .head(head.clone(), Kind::Executed)
        .await
        .expect("head");
    execution.complete(no_trailers()).await.expect("durable");
    let answer = read(world.replay("k").await).await;
    assert_eq!(answer, Answer::whole(head, Kind::Executed, ""));
}

#[tokio::test]
async fn hostile_073_a_response_over_the_limit_is_not_recorded() {
    let world = World::with(Settings {
        max_response: 100,
        ..settings()
    });
    let (mut execution, mut reader) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    execution.push(body(100)).await.expect("at the limit");
    let over = execution.push("x".into()).await;
    assert_eq!(over, Err(PushError::OverLimit { limit: 100 }));
    reader.start().await;
    execution
        .lose(UnknownReason::OverLimit)
        .await
        .expect("durable");
    let answer = read_body(&mut reader).await;
    assert_eq!(answer.end, Err(Broken(UnknownReason::OverLimit)));

    let (whole, _) = world.execute("w").await;
    whole
        .respond_whole(head(200), body(101), no_trailers())
        .await
        .expect("settled");
    assert_eq!(world.state("w").await, Some(StateName::Unknown));
}

#[tokio::test]
async fn any_reader_can_start_at_any_byte() {
    let world = World::new();
    let whole = body(100);
    let (mut execution, _) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    execution.push(whole.clone()).await.expect("pushed");
    let mut readers = Vec::new();
    for from in [0, 1, 15, 16, 17, 99, 100, 1_000] {
        let mut joiner = world.join("k").await;
        joiner.seek(from);
        readers.push((from, joiner));
    }
    execution.complete(no_trailers()).await.expect("durable");
    for from in [0, 1, 15, 16, 17, 95, 96, 97, 99, 100, 1_000] {
        let mut replay = world.replay("k").await;
        replay.seek(from);
        readers.push((from, replay));
    }
    for (from, mut reader) in readers {
        let start = (from as usize).min(whole.len());
        assert_eq!(reader.remaining(), Some((whole.len() - start) as u64));
        let answer = read_body(&mut reader).await;
        assert_eq!(
            (answer.body, answer.end),
            (whole[start..].to_vec(), Ok(())),
            "from {from}"
        );
    }
}

#[tokio::test]
async fn i03_the_last_piece_of_a_length_that_only_the_owner_knows_waits_too() {
    let world = World::new();
    let (mut execution, mut reader) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    execution.declare_len(10);
    execution.push("hello".into()).await.expect("pushed");
    execution.push("world".into()).await.expect("pushed");
    assert_eq!(available(&mut reader), b"hello");
    execution.complete(no_trailers()).await.expect("durable");
    assert_eq!(available(&mut reader), b"world");
}

#[tokio::test]
async fn i15_a_whole_response_of_just_the_limit_is_recorded() {
    let world = World::with(Settings {
        max_response: 100,
        ..settings()
    });
    let (execution, _) = world.execute("k").await;
    execution
        .respond_whole(head(200), body(100), no_trailers())
        .await
        .expect("durable");
    assert_eq!(read(world.replay("k").await).await.body, body(100));
}

#[tokio::test]
async fn i03_i05_the_end_is_reached_after_the_last_byte_and_the_trailers() {
    let world = World::new();
    for (key, trailers) in [
        ("without", no_trailers()),
        (
            "with",
            HeaderBlock::pack([(&b"grpc-status"[..], &b"0"[..])]).expect("short"),
        ),
    ] {
        let (mut execution, first) = world.execute(key).await;
        execution
            .head(head(200), Kind::Executed)
            .await
            .expect("head");
        execution.push("all".into()).await.expect("pushed");
        assert!(!first.is_end());
        execution.complete(trailers.clone()).await.expect("durable");
        for mut reader in [first, world.replay(key).await] {
            assert!(!reader.is_end(), "the body is to come");
            assert_eq!(reader.next().await, Some(Ok(Frame::Data("all".into()))));
            if !trailers.is_empty() {
                assert!(!reader.is_end(), "the trailers are to come");
                let last = reader.next().await;
                assert_eq!(last, Some(Ok(Frame::Trailers(trailers.clone()))));
            }
            assert!(reader.is_end());
            assert_eq!(reader.next().await, None);
        }
    }
}

#[tokio::test]
async fn i03_who_holds_back_gets_no_byte_of_what_broke_off() {
    let world = World::new();
    let (mut execution, mut reader) = world.execute("k").await;
    reader.hold_until_durable();
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    execution.push("half".into()).await.expect("pushed");
    execution
        .lose(UnknownReason::Truncated)
        .await
        .expect("durable");
    let broken = Some(Err(Broken(UnknownReason::Truncated)));
    assert_eq!(reader.next().await, broken);
}

#[tokio::test]
async fn the_owner_says_in_words_why_the_outcome_is_unknown() {
    let world = World::new();
    let (execution, reader) = world.execute("k").await;
    assert_eq!(reader.why(), None);
    execution.explain("the upstream closed the connection");
    let lost = execution.lose(UnknownReason::Truncated).await;
    lost.expect("durable");
    let why = reader.why();
    assert_eq!(why.as_deref(), Some("the upstream closed the connection"));
}

#[tokio::test]
async fn i15_a_reader_that_leaves_takes_its_place_along() {
    let world = World::new();
    let (execution, _first) = world.execute("k").await;
    let task = Arc::new(Idle);
    let waker = Waker::from(task.clone());
    let held = Arc::strong_count(&task);
    let mut joiner = world.join("k").await;
    let started = joiner.poll_start(&mut Context::from_waker(&waker));
    assert!(started.is_pending());
    assert!(Arc::strong_count(&task) > held);
    drop(joiner);
    assert_eq!(Arc::strong_count(&task), held);
    drop(execution);
}
