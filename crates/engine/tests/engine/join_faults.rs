//! Joins over a store that is slow.

use std::task::Poll;

use onlyonce_core::{Refusal, ReleaseReason, StateName};
use onlyonce_engine::{Begin, Kind, Start};
use onlyonce_store::memory::Call;

use crate::world::{World, head, hurried, name, poll_start, request};

#[tokio::test]
async fn i18_nobody_hears_of_a_release_before_it_is_durable() {
    let world = World::new();
    let (mut execution, mut first) = world.execute("k").await;
    let mut joiner = world.join("k").await;
    execution
        .head(head(429), Kind::Released)
        .await
        .expect("head");
    let gate = world
        .store
        .faults()
        .hold(Call::WriteOf(StateName::Released));
    let release = tokio::spawn(execution.release(ReleaseReason::DidNotRun));
    gate.until_waiting(1).await;
    assert!(poll_start(&mut first).is_pending());
    assert!(poll_start(&mut joiner).is_pending());
    drop(gate);
    release.await.expect("no panic").expect("durable");
    assert!(matches!(
        poll_start(&mut joiner),
        Poll::Ready(Start::Response {
            kind: Kind::Released,
            ..
        })
    ));
}

#[tokio::test]
async fn i18_who_waited_for_a_claim_shares_its_fate_even_if_that_is_sealed_at_once() {
    let world = World::new();
    let gate = world
        .store
        .faults()
        .hold(Call::WriteOf(StateName::InFlight));
    let attempts: Vec<_> = (0..10)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move {
                match world.begin(request("k")).await {
                    Ok(Begin::Execute(execution, mut reader)) => {
                        execution
                            .not_sent("connection refused")
                            .await
                            .expect("durable");
                        (1, reader.start().await)
                    }
                    Ok(Begin::Join(mut reader)) => (0, reader.start().await),
                    other => panic!("{}", name(&other)),
                }
            })
        })
        .collect();
    gate.until_waiting(1).await;
    tokio::task::yield_now().await;
    drop(gate);
    let mut hits = 0;
    for attempt in attempts {
        let (hit, start) = attempt.await.expect("answered");
        hits += hit;
        assert_eq!(start, Start::NotSent("connection refused".into()));
    }
    assert_eq!(hits, 1);
}

#[tokio::test]
async fn l2_who_waits_for_a_claim_is_answered_by_the_deadline_too() {
    let world = World::new();
    let gate = world
        .store
        .faults()
        .hold(Call::WriteOf(StateName::InFlight));
    let begin = {
        let world = world.clone();
        tokio::spawn(async move { world.execute("k").await })
    };
    gate.until_waiting(1).await;
    let begun = world.engine.begin(request("k"), &hurried()).await;
    let Ok(Begin::Refuse(refused)) = begun else {
        panic!("{}", name(&begun));
    };
    assert_eq!(refused.refusal, Refusal::InFlight);
    drop(gate);
    drop(begin.await.expect("executes"));
}
