//! What comes into the books: each execution once, and what joins and replays were spared.

use std::time::Duration;

use onlyonce_core::{
    Basis, Cost, Count, Metered, ReleaseReason, Source, Sums, Timestamp, Unit, UnknownReason, Usd,
};
use onlyonce_engine::{Engine, Resolution, Settings};
use onlyonce_store::{
    Books, MemoryStore,
    books::{Grain, Of, SumsQuery},
    memory::{Call, Fault},
};

use crate::world::{World, finish, head, no_trailers, policy, read, settings};

const PRICE: i64 = 1_000;

fn metered() -> Metered {
    Metered {
        provider: "openai".into(),
        model: "gpt-5".into(),
        usage: [(Unit::Input, 3), (Unit::Output, 7)].into_iter().collect(),
        source: Source::Provider,
        cost: Some(Cost {
            amount: Usd::from_nanos(PRICE),
            basis: Basis::Table,
            version: "prices 1".into(),
        }),
        ..Metered::default()
    }
}

/// The sums of everything, once all is booked.
async fn sums(engine: &Engine<MemoryStore>) -> Sums {
    engine.upkeep().await;
    let query = SumsQuery {
        grain: Grain::Day,
        since: Timestamp::from_millis(0),
        until: Timestamp::from_millis(u64::MAX),
        of: Of::All,
    };
    let cells = engine.store().sums(query).await.expect("sums");
    let mut all = Sums::default();
    cells.iter().for_each(|cell| all.merge(&cell.sums));
    all
}

fn counts(sums: &Sums) -> [i64; 5] {
    [
        Count::Operations,
        Count::Cost,
        Count::Joined,
        Count::Replayed,
        Count::Saved,
    ]
    .map(|count| sums.get(count))
}

#[tokio::test]
async fn each_replay_and_each_join_is_spared_what_the_execution_cost() {
    let world = World::new();
    let (mut execution, reader) = world.execute("k").await;
    let joined = [world.join("k").await, world.join("k").await];
    assert_eq!(counts(&sums(&world.engine).await), [0; 5]);
    execution.meter(metered());
    finish(execution, "seven").await;
    for reader in joined.into_iter().chain([reader]) {
        read(reader).await;
    }
    for _ in 0..3 {
        read(world.replay("k").await).await;
    }
    let sums = sums(&world.engine).await;
    assert_eq!(counts(&sums), [1, PRICE, 2, 3, 5 * PRICE]);
    assert_eq!(sums.get(Count::SavedInput), 15);
    assert_eq!(sums.get(Count::SavedOutput), 35);
}

#[tokio::test]
async fn who_leaves_before_the_end_was_spared_it_too() {
    let world = World::new();
    let (mut execution, reader) = world.execute("k").await;
    drop(reader);
    drop(world.join("k").await);
    execution.meter(metered());
    finish(execution, "seven").await;
    assert_eq!(counts(&sums(&world.engine).await), [1, PRICE, 1, 0, PRICE]);
}

#[tokio::test]
async fn what_has_no_outcome_or_did_not_run_spares_nobody() {
    let world = World::new();
    let (mut execution, _reader) = world.execute("lost").await;
    let _joined = world.join("lost").await;
    execution.meter(metered());
    execution.lose(UnknownReason::Broke).await.expect("durable");
    let (execution, _reader) = world.execute("free").await;
    let _joined = world.join("free").await;
    execution
        .release(ReleaseReason::NotSent)
        .await
        .expect("durable");
    assert_eq!(counts(&sums(&world.engine).await), [0; 5]);
}

#[tokio::test]
async fn what_a_person_completes_is_an_operation_though_nobody_metered_it() {
    let world = World::new();
    let (execution, _reader) = world.execute("k").await;
    let id = execution.id();
    execution.lose(UnknownReason::Broke).await.expect("durable");
    let ran = Resolution::Completed {
        head: head(200),
        body: "found".into(),
        trailers: no_trailers(),
        window: Duration::from_secs(3_600),
    };
    let operation = world.engine.resolve(id, ran, "ada", "saw it").await;
    let record = operation.expect("resolved").stored.record;
    let ruling = record.ruling.as_deref().expect("a ruling");
    assert_eq!((&*ruling.who, &*ruling.reason), ("ada", "saw it"));
    assert_eq!(counts(&sums(&world.engine).await), [1, 0, 0, 0, 0]);
}

#[tokio::test]
async fn a_join_on_another_gateway_is_spared_the_same() {
    let world = World::new();
    let other = world.neighbour(2);
    let (mut execution, _reader) = world.execute("k").await;
    let joined = other.join("k").await;
    execution.meter(metered());
    finish(execution, "seven").await;
    read(joined).await;
    // The mirror has ended, or its reader would not have; its sums are posted by its own gateway.
    sums(&other.engine).await;
    assert_eq!(counts(&sums(&world.engine).await), [1, PRICE, 1, 0, PRICE]);
}

#[tokio::test]
async fn sums_that_the_store_does_not_take_are_posted_once() {
    let world = World::new();
    let (mut execution, _reader) = world.execute("k").await;
    execution.meter(metered());
    finish(execution, "seven").await;
    read(world.replay("k").await).await;
    let faults = world.store.faults();
    faults.fail(Call::Books, Fault::Unavailable, 1);
    world.engine.upkeep().await;
    assert_eq!(counts(&sums(&world.engine).await), [1, PRICE, 0, 1, PRICE]);

    // Whether these were taken is not known, so they do not come again.
    read(world.replay("k").await).await;
    faults.fail(Call::Books, Fault::InDoubtWritten, 1);
    world.engine.upkeep().await;
    assert_eq!(
        counts(&sums(&world.engine).await),
        [1, PRICE, 0, 2, 2 * PRICE]
    );
    assert_eq!(world.engine.savings_lost(), 1);
}

#[tokio::test]
async fn where_no_books_are_kept_a_record_says_nothing_of_its_use() {
    let world = World::with(Settings {
        books: None,
        ..settings()
    });
    let (mut execution, _reader) = world.execute_by("k", &policy()).await;
    execution.meter(metered());
    finish(execution, "seven").await;
    read(world.replay("k").await).await;
    assert_eq!(world.record("k").await.expect("a record").metered, None);
    let booked = world.store.book().await.expect("booked");
    assert_eq!(booked.entries, 0);
    assert_eq!(counts(&sums(&world.engine).await), [0; 5]);
}

#[tokio::test]
async fn the_books_are_trimmed_after_their_own_time() {
    let day = Duration::from_secs(86_400);
    let world = World::with(Settings {
        books: Some(10 * day),
        ..settings()
    });
    world.completed("k", "body").await;
    assert_eq!(counts(&sums(&world.engine).await)[0], 1);
    world.clock.advance(9 * day);
    assert_eq!(counts(&sums(&world.engine).await)[0], 1);
    world.clock.advance(3 * day);
    assert_eq!(counts(&sums(&world.engine).await)[0], 0);
    assert!(world.store.feed(None, 10).await.expect("a feed").is_empty());
}

#[tokio::test]
async fn how_far_the_books_are_behind_is_known() {
    let world = World::new();
    assert_eq!(world.engine.savings_lost(), 0);
    world.completed("k", "body").await;
    world.clock.advance(Duration::from_secs(5));
    world.engine.upkeep().await;
    assert_eq!(world.engine.books_lag(), Duration::from_secs(5));
    world.engine.upkeep().await;
    assert_eq!(world.engine.books_lag(), Duration::ZERO);
}

#[tokio::test]
async fn books_without_an_end_lose_nothing() {
    let world = World::with(Settings {
        books: Some(Duration::ZERO),
        ..settings()
    });
    world.completed("k", "body").await;
    assert_eq!(counts(&sums(&world.engine).await)[0], 1);
    world.clock.advance(Duration::from_secs(5_000 * 86_400));
    assert_eq!(counts(&sums(&world.engine).await)[0], 1);
}

#[tokio::test]
async fn where_nobody_was_spared_anything_nothing_is_posted() {
    let world = World::new();
    world.completed("k", "body").await;
    // The first call would be the posting, and in doubt it would be lost.
    let faults = world.store.faults();
    faults.fail(Call::Books, Fault::InDoubtWritten, 1);
    world.engine.upkeep().await;
    assert_eq!(world.engine.savings_lost(), 0);
    assert_eq!(counts(&sums(&world.engine).await)[0], 1);
}

#[tokio::test]
async fn what_is_replayed_beside_the_engine_is_spared_too() {
    let world = World::new();
    let (mut execution, _reader) = world.execute("k").await;
    execution.meter(metered());
    finish(execution, "seven").await;
    let record = world.record("k").await.expect("completed");
    world.engine.spare(&record);
    assert_eq!(counts(&sums(&world.engine).await), [1, PRICE, 0, 1, PRICE]);
}
