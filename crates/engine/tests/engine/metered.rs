//! What an execution used and cost, in the record of its outcome.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use onlyonce_core::{Metered, ReleaseReason, Source, Unit, UnknownReason};
use onlyonce_engine::{AskedModel, Begin, Execution, Kind, Request, Resolution, Settings};

use super::World;
use crate::world::{
    Backend, WorldOver, finish, head, no_trailers, policy, request, resend, settings,
};

fn metered(output: u64, source: Source) -> Metered {
    Metered {
        provider: "openai".into(),
        usage: [(Unit::Output, output)].into_iter().collect(),
        source,
        ..Metered::default()
    }
}

async fn held(world: &World) -> Option<Metered> {
    let record = world.record("k").await.expect("a record");
    record.metered.as_deref().cloned()
}

#[tokio::test]
async fn it_stands_in_the_completed_record() {
    let world = World::new();
    let (mut execution, _reader) = world.execute("k").await;
    let used = metered(7, Source::Provider);
    execution.meter(used.clone());
    finish(execution, "seven").await;
    assert_eq!(held(&world).await, Some(used));
}

#[tokio::test]
async fn what_broke_off_used_so_much_at_least() {
    let world = World::new();
    let (mut execution, _reader) = world.execute("k").await;
    execution
        .head(head(200), Kind::Executed)
        .await
        .expect("head");
    let used = metered(3, Source::Partial);
    execution.meter(used.clone());
    execution.lose(UnknownReason::Broke).await.expect("durable");
    assert_eq!(held(&world).await, Some(used.clone()));

    // It stays while it is sent again, until that has told more.
    let (mut again, _reader) = world.execute_by("k", &resend()).await;
    assert_eq!(held(&world).await, Some(used));
    let used = metered(9, Source::Provider);
    again.meter(used.clone());
    finish(again, "nine").await;
    assert_eq!(held(&world).await, Some(used));
}

#[tokio::test]
async fn what_did_not_run_used_nothing() {
    let world = World::new();
    let (mut execution, _reader) = world.execute("k").await;
    execution.meter(metered(3, Source::Partial));
    execution
        .release(ReleaseReason::NotSent)
        .await
        .expect("durable");
    assert_eq!(held(&world).await, None);

    let (mut execution, _reader) = world.execute_by("k", &policy()).await;
    let id = execution.id();
    execution.meter(metered(3, Source::Partial));
    execution.lose(UnknownReason::Broke).await.expect("durable");
    let did_not_run = world
        .engine
        .resolve(id, Resolution::Released, "ops", "looked");
    did_not_run.await.expect("unknown");
    assert_eq!(held(&world).await, None);
}

#[tokio::test]
async fn a_late_answer_tells_what_it_used() {
    let world = World::new();
    let (execution, _reader) = world.execute("k").await;
    let late = execution.lose_for_now(UnknownReason::TimedOut).await;
    let mut late = late.expect("durable");
    assert_eq!(held(&world).await, None);
    late.head(head(200)).await.expect("head");
    let used = metered(5, Source::Provider);
    late.meter(used.clone());
    late.complete(no_trailers()).await.expect("durable");
    assert_eq!(held(&world).await, Some(used));
}

/// Claims `k` for a request that asks for `model`.
async fn ask<S: Backend>(world: &WorldOver<S>, model: &str) -> Execution<S> {
    let asking = Request {
        asked_model: model.into(),
        ..request("k")
    };
    match world.engine.begin(asking, &resend()).await.expect("begun") {
        Begin::Execute(execution, _reader) => execution,
        _ => panic!("it does not execute"),
    }
}

#[tokio::test]
async fn the_model_that_is_asked_for_stands_in_the_record_from_its_claim_on() {
    let world = World::new();
    let only_asked = Some(Metered {
        request_model: "gpt-5".into(),
        ..Metered::default()
    });
    let execution = ask(&world, "gpt-5").await;
    assert_eq!(held(&world).await, only_asked);
    execution
        .release(ReleaseReason::NotSent)
        .await
        .expect("durable");
    assert_eq!(held(&world).await, None);

    let execution = ask(&world, "gpt-5").await;
    execution.lose(UnknownReason::Broke).await.expect("durable");
    assert_eq!(held(&world).await, only_asked);

    // What is known of the execution before stands, and what this one tells takes its place.
    let mut execution = ask(&world, "gpt-5").await;
    let used = metered(3, Source::Partial);
    execution.meter(used.clone());
    execution.lose(UnknownReason::Broke).await.expect("durable");
    let execution = ask(&world, "gpt-5").await;
    assert_eq!(held(&world).await, Some(used));
    drop(execution);
}

#[tokio::test]
async fn a_claim_keeps_no_model_where_no_books_are_kept_or_its_name_is_none() {
    let world = World::new();
    let execution = ask(&world, &"m".repeat(257)).await;
    assert_eq!(held(&world).await, None);
    drop(execution);
    let world = World::with(Settings {
        books: None,
        ..settings()
    });
    let execution = ask(&world, "gpt-5").await;
    assert_eq!(held(&world).await, None);
    drop(execution);
}

#[tokio::test]
async fn only_a_claim_reads_the_model_that_is_asked_for() {
    let world = World::new();
    let read = Arc::new(AtomicUsize::new(0));
    let asking = Request {
        asked_model: AskedModel::read_late({
            let read = Arc::clone(&read);
            move || {
                read.fetch_add(1, Ordering::Relaxed);
                Some("gpt-5".into())
            }
        }),
        ..request("k")
    };
    let unread = Request {
        asked_model: AskedModel::read_late(|| panic!("it is read")),
        ..request("k")
    };
    let policy = policy();
    let begin = |request| world.engine.begin(request, &policy);
    let Ok(Begin::Execute(execution, _reader)) = begin(asking.clone()).await else {
        panic!("it does not execute");
    };
    assert_eq!(asking.asked_model.get(), Some("gpt-5"));
    assert_eq!(read.load(Ordering::Relaxed), 1);
    assert!(matches!(begin(unread.clone()).await, Ok(Begin::Join(_))));
    let whole = execution.respond_whole(head(200), "ok".into(), no_trailers());
    whole.await.expect("durable");
    assert!(matches!(begin(unread).await, Ok(Begin::Replay(_))));
}
