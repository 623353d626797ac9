//! What transactions share with everybody else on the store: its states, its mark, its books, and the
//! isolation levels of whoever goes on beside them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_core::{
    Count, HeaderBlock, Key, Metered, Policy, RequestLine, Scope, Source, Timestamp, UnknownReason,
};
use onlyonce_engine::{Frame, Granted, Request, Resolution, RoutePolicy, Start, Work};
use onlyonce_http::{HashKeys, work};
use onlyonce_postgres::{Begin, Error, Options, PostgresStore, Settings, StoreError, Transactions};
use onlyonce_store::books::{Grain, Of, SumsQuery};
use onlyonce_store::postgres::EncryptionKeys;
use onlyonce_store::{Books, Mark, Store};
use onlyonce_testkit::eventually;
use serde_json::json;
use tokio::task::block_in_place;

use crate::bank::{Bank, aside, call, waits, write};
use crate::contract::{executes, replayed};
use crate::drivers::{Client, begin, commit, on_both_drivers, roll_back, sql};

on_both_drivers! {
    what_a_worker_runs_is_in_flight_and_its_result_is_replayed
    what_a_worker_released_is_executed_and_what_it_lost_is_unknown
    what_was_executed_here_answers_whoever_asks_the_engine
    i06_a_key_of_another_request_is_refused_in_any_state
    i13_what_cannot_be_read_is_unknown
    once_the_store_moved_nothing_is_begun_and_what_runs_is_waited_for
    i08_each_operation_of_a_transaction_is_in_the_books_once
    i16_keys_and_results_at_rest_are_encrypted
    the_business_may_have_a_role_with_fewer_rights
    read_committed_waits_and_replays
    repeatable_read_is_told_to_retry
    serializable_is_told_to_retry
}

/// The request that `call(key)` is.
fn request(bank: &Bank, key: &str, input: &[u8]) -> Request {
    let keys = HashKeys::from_secret(bank.once.engine().store().secret());
    Request {
        scope: Scope {
            tenant: "bank".into(),
            namespace: "transactions".into(),
        },
        key: Key::new(key).unwrap(),
        fingerprint: work::fingerprint(&keys, input),
        line: RequestLine::default(),
        peer: "".into(),
        asked_model: "".into(),
        sdk_retry_count: None,
        trace: None,
    }
}

const INPUT: &[u8] = b"\"one cent\"";
const POLICY: RoutePolicy = RoutePolicy {
    decision: Policy {
        concurrent: onlyonce_core::Concurrent::Join,
        on_unknown: onlyonce_core::OnUnknown::Report,
    },
    window: Duration::from_secs(3_600),
    join_timeout: Duration::from_secs(10),
};

/// A worker's claim of `key`.
async fn granted(bank: &Bank, key: &str, input: &[u8]) -> Granted {
    let engine = bank.once.engine();
    let worker = engine.worker(None, Duration::from_secs(60));
    let begun = engine.begin_work(request(bank, key, input), worker, &POLICY);
    match begun.await.unwrap() {
        Work::Execute(granted) => granted,
        _ => panic!("{key} is taken"),
    }
}

async fn complete(bank: &Bank, granted: &Granted, result: &'static [u8]) {
    let (engine, body) = (bank.once.engine(), Bytes::from_static(result));
    let completing = engine.complete_work(
        granted.id,
        &granted.token,
        work::result_head(),
        body,
        POLICY.window,
        None,
    );
    completing.await.unwrap();
}

async fn what_a_worker_runs_is_in_flight_and_its_result_is_replayed<C: Client>() {
    let bank = Bank::open().await;
    let mut client = bank.connect::<C>().await;
    let granted = granted(&bank, "k", INPUT).await;
    let refused = bank.pay(&mut client, "k").await;
    assert!(matches!(refused, Err(Error::InFlight)), "{refused:?}");
    complete(&bank, &granted, b"17").await;
    assert_eq!(bank.pay(&mut client, "k").await.unwrap(), 17);
    assert_eq!(bank.told(None), (0, vec![]));
}

async fn what_a_worker_released_is_executed_and_what_it_lost_is_unknown<C: Client>() {
    let bank = Bank::open().await;
    let engine = bank.once.engine();
    let mut client = bank.connect::<C>().await;
    let released = granted(&bank, "released", INPUT).await;
    engine
        .release_work(released.id, &released.token)
        .await
        .unwrap();
    let letter = bank.pay(&mut client, "released").await.unwrap();
    assert_eq!(bank.told(None), (1, vec![letter]));
    let found = engine.operation(released.id).await.unwrap().unwrap();
    assert_eq!(
        found.stored.record.claim.number(),
        found.stored.record.epoch.number() - 1
    );
    assert_eq!(found.attempts.len(), 2);

    let lost = granted(&bank, "lost", INPUT).await;
    engine.fail_work(lost.id, &lost.token, None).await.unwrap();
    let refused = bank.pay(&mut client, "lost").await;
    let is_unknown = matches!(refused, Err(Error::Unknown(UnknownReason::WorkerFailed)));
    assert!(is_unknown, "{refused:?}");
    // Until somebody says what it was.
    let answer = Resolution::Completed {
        head: work::result_head(),
        body: Bytes::from_static(b"23"),
        trailers: HeaderBlock::default(),
        window: POLICY.window,
    };
    engine
        .resolve(lost.id, answer, "ada", "it is in the ledger")
        .await
        .unwrap();
    assert_eq!(bank.pay(&mut client, "lost").await.unwrap(), 23);
    assert_eq!(bank.told(None), (1, vec![letter]));

    // Two that come at once for what was released: one executes.
    let bank = Arc::new(bank);
    let released = granted(&bank, "again", INPUT).await;
    let engine = bank.once.engine();
    engine
        .release_work(released.id, &released.token)
        .await
        .unwrap();
    let mut tx = begin(&mut client).await;
    let operation = executes(bank.once.begin(&mut tx, call("again")).await);
    assert_eq!(operation.id(), released.id);
    let other = aside(bank.clone(), async |bank| {
        let mut client = bank.connect::<C>().await;
        bank.pay(&mut client, "again").await
    });
    block_in_place(|| eventually("the other one waits", || waits(&bank)));
    operation.complete(&mut tx, &5).await.unwrap();
    commit::<C>(tx).await;
    assert_eq!(block_in_place(|| other.join().unwrap()).unwrap(), 5);
}

async fn what_was_executed_here_answers_whoever_asks_the_engine<C: Client>() {
    let bank = Bank::open().await;
    let engine = bank.once.engine();
    let mut client = bank.connect::<C>().await;
    let letter = bank.pay(&mut client, "k").await.unwrap();
    let begun = engine
        .begin(request(&bank, "k", INPUT), &POLICY)
        .await
        .unwrap();
    let onlyonce_engine::Begin::Replay(mut reader) = begun else {
        panic!("it is completed");
    };
    let id = reader.ticket().id;
    let Start::Response { head, .. } = reader.start().await else {
        panic!("it is whole");
    };
    assert_eq!(head.status, 200);
    let Some(Ok(Frame::Data(body))) = reader.next().await else {
        panic!("it has a body");
    };
    assert_eq!(body, letter.to_string());
    let found = engine.operation(id).await.unwrap().unwrap();
    let request = &found.stored.record.request;
    assert_eq!((&*request.route, &*request.path), ("work", "pay"));
}

async fn i06_a_key_of_another_request_is_refused_in_any_state<C: Client>() {
    let bank = Bank::open().await;
    let engine = bank.once.engine();
    let mut client = bank.connect::<C>().await;
    let running = granted(&bank, "running", b"\"two cents\"").await;
    let lost = granted(&bank, "lost", b"\"two cents\"").await;
    engine.fail_work(lost.id, &lost.token, None).await.unwrap();
    let done = granted(&bank, "done", b"\"two cents\"").await;
    complete(&bank, &done, b"1").await;
    for key in ["running", "lost", "done"] {
        let refused = bank.pay(&mut client, key).await;
        assert!(
            matches!(refused, Err(Error::KeyReused)),
            "{key}: {refused:?}"
        );
    }
    complete(&bank, &running, b"1").await;
    assert_eq!(bank.told(None), (0, vec![]));
}

async fn i13_what_cannot_be_read_is_unknown<C: Client>() {
    let bank = Bank::open().await;
    let mut client = bank.connect::<C>().await;
    bank.pay(&mut client, "k").await.unwrap();
    let store = bank.store_schema();
    bank.sql(&format!(
        "UPDATE {store}.records SET body = set_byte(body, 20, 1 + get_byte(body, 20) % 2)"
    ));
    let refused = bank.pay(&mut client, "k").await;
    let is_unknown = matches!(refused, Err(Error::Unknown(UnknownReason::Unreadable)));
    assert!(is_unknown, "{refused:?}");
    assert_eq!(bank.told(None).0, 1);
}

async fn once_the_store_moved_nothing_is_begun_and_what_runs_is_waited_for<C: Client>() {
    let bank = Arc::new(Bank::open().await);
    let mut client = bank.connect::<C>().await;
    let released = granted(&bank, "released", INPUT).await;
    let engine = bank.once.engine();
    engine
        .release_work(released.id, &released.token)
        .await
        .unwrap();
    let mut tx = begin(&mut client).await;
    let operation = executes(bank.once.begin(&mut tx, call("k")).await);
    let marking = aside(bank.clone(), async |bank| {
        let mark = Some(Mark::Moved { to: "x".into() });
        bank.once.engine().store().set_mark(None, mark).await
    });
    let store = bank.store_schema();
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
            AND query LIKE '%ALTER TABLE {store}.operations%'"
    );
    block_in_place(|| eventually("the mark waits", || bank.sql(&waiting) == [1]));
    let letter = write(&mut tx, &bank.schema, "k").await.unwrap();
    operation.complete(&mut tx, &letter).await.unwrap();
    commit::<C>(tx).await;
    assert!(block_in_place(|| marking.join().unwrap()).unwrap());
    for key in ["new", "released"] {
        let refused = bank.pay(&mut client, key).await;
        let Err(Error::Store(StoreError::Unavailable(why))) = refused else {
            panic!("{key}: {refused:?}");
        };
        assert!(why.contains("moved to x"), "{why}");
    }
    // What is there is replayed.
    assert_eq!(bank.pay(&mut client, "k").await.unwrap(), letter);
    assert_eq!(bank.told(None), (1, vec![letter]));
}

async fn i08_each_operation_of_a_transaction_is_in_the_books_once<C: Client>() {
    let bank = Bank::open_alone().await;
    let mut client = bank.connect::<C>().await;
    let mut expected = Vec::new();
    for (number, commits) in [(0, true), (1, false), (2, true)] {
        let mut tx = begin(&mut client).await;
        for part in ["a", "b", "c"] {
            let key = format!("{part}{number}");
            let mut operation = executes(bank.once.begin(&mut tx, call(&key)).await);
            operation.meter(Metered {
                model: part.into(),
                source: Source::Provider,
                ..Metered::default()
            });
            let id = operation.id();
            operation.complete(&mut tx, &1).await.unwrap();
            if commits {
                expected.push(id);
            }
        }
        match commits {
            true => commit::<C>(tx).await,
            false => roll_back::<C>(tx).await,
        }
    }
    let store: &PostgresStore = bank.once.engine().store();
    block_in_place(|| bank.server.settle());
    // Until what else writes on the server has ended, not all is booked.
    for _ in 0..1_000 {
        bank.once.engine().upkeep().await;
        if sums(store).await == expected.len() as i64 {
            break;
        }
    }
    // One at a time, nothing is left out between two of one transaction.
    let (mut feed, mut after) = (Vec::new(), None);
    while let Some((position, entry)) = store.feed(after, 1).await.unwrap().pop() {
        assert!(after < Some(position));
        after = Some(position);
        feed.push(entry.id);
    }
    assert_eq!(feed, expected);
    assert_eq!(sums(store).await, expected.len() as i64);
}

/// How many operations the sums have.
async fn sums(store: &impl Books) -> i64 {
    let query = SumsQuery {
        grain: Grain::Day,
        since: Timestamp::from_millis(0),
        until: Timestamp::from_millis(u64::MAX),
        of: Of::All,
    };
    let cells = store.sums(query).await.unwrap();
    let operations = cells.iter().map(|cell| cell.sums.get(Count::Operations));
    operations.sum()
}

async fn i16_keys_and_results_at_rest_are_encrypted<C: Client>() {
    let bank = Bank::open().await;
    let options = Options {
        encryption: Some(EncryptionKeys {
            active: 1,
            keys: [(1, [7; 32])].into(),
        }),
        ..Options::default()
    };
    let store = PostgresStore::connect(&bank.url, options).await.unwrap();
    let once = Transactions::new(store, Settings::default());
    let mut client = bank.connect::<C>().await;
    for _ in 0..2 {
        let result = once.run_on(&mut client, call("a-secret-key"), async |_, _| {
            Ok::<_, Error>("a-secret-result".to_owned())
        });
        assert_eq!(result.await.unwrap(), "a-secret-result");
    }
    let dump = block_in_place(|| bank.server.dump(bank.store_schema()));
    for secret in ["a-secret-key", "a-secret-result"] {
        // As text, and as the bytes that a dump shows.
        let bytes: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(!dump.contains(secret) && !dump.contains(&bytes), "{secret}");
    }
    // Whoever has not got the key cannot read it, and does not take it for absent.
    let refused = bank
        .once
        .begin(&mut begin(&mut client).await, call("a-secret-key"))
        .await;
    let is_unknown = matches!(refused, Err(Error::Unknown(UnknownReason::Unreadable)));
    assert!(is_unknown, "{refused:?}");
}

async fn the_business_may_have_a_role_with_fewer_rights<C: Client>() {
    let bank = Bank::open_alone().await;
    let (once, schema) = (bank.store_schema(), &bank.schema);
    // As the page says, and those of the business.
    bank.sql(&format!(
        "CREATE ROLE app LOGIN;
        GRANT USAGE ON SCHEMA {once} TO app;
        GRANT SELECT, INSERT, UPDATE ON {once}.operations TO app;
        GRANT SELECT, INSERT ON {once}.records, {once}.ledger TO app;
        GRANT SELECT, INSERT, UPDATE ON {once}.attempts TO app;
        GRANT SELECT ON {once}.store TO app;
        GRANT USAGE ON SCHEMA {schema} TO app;
        GRANT ALL ON {schema}.accounts, {schema}.outbox TO app"
    ));
    let url = bank.business_url(bank.server.port());
    let mut client = C::connect(&url.replace("postgres@", "app@")).await;
    let released = granted(&bank, "released", INPUT).await;
    let engine = bank.once.engine();
    engine
        .release_work(released.id, &released.token)
        .await
        .unwrap();
    for key in ["new", "released"] {
        let letter = bank.pay(&mut client, key).await.unwrap();
        assert_eq!(bank.pay(&mut client, key).await.unwrap(), letter);
        assert_eq!(bank.told(Some(key)).1, [letter]);
    }
}

async fn read_committed_waits_and_replays<C: Client>() {
    at_a_level::<C>("READ COMMITTED", false).await;
}

async fn repeatable_read_is_told_to_retry<C: Client>() {
    at_a_level::<C>("REPEATABLE READ", true).await;
}

async fn serializable_is_told_to_retry<C: Client>() {
    at_a_level::<C>("SERIALIZABLE", true).await;
}

/// A transaction whose snapshot is older than the other's commit, and one that waits for it.
async fn at_a_level<C: Client>(level: &str, is_told_to_retry: bool) {
    let set = format!("SET TRANSACTION ISOLATION LEVEL {level}");
    let bank = Arc::new(Bank::open().await);
    let (mut one, mut other) = (bank.connect::<C>().await, bank.connect::<C>().await);

    // The other one commits first.
    let mut tx = begin(&mut one).await;
    sql(&mut tx, &set).await.unwrap();
    sql(&mut tx, &format!("SELECT 1 FROM {}.accounts", bank.schema))
        .await
        .unwrap();
    let letter = bank.pay(&mut other, "first").await.unwrap();
    let begun = bank.once.begin(&mut tx, call("first")).await;
    assert_retried(&begun, is_told_to_retry);
    roll_back::<C>(tx).await;
    assert_eq!(replayed(&bank, &mut one, "first").await, json!(letter));

    // It commits, or fails, while the other one waits.
    for commits in [true, false] {
        let key = format!("waiting-{commits}");
        let mut tx = begin(&mut one).await;
        sql(&mut tx, &set).await.unwrap();
        let operation = executes(bank.once.begin(&mut tx, call(&key)).await);
        let waiting = {
            let (set, key) = (set.clone(), key.clone());
            aside(bank.clone(), async move |bank| {
                let mut client = bank.connect::<C>().await;
                let mut tx = begin(&mut client).await;
                sql(&mut tx, &set).await.unwrap();
                bank.once.begin(&mut tx, call(&key)).await
            })
        };
        block_in_place(|| eventually("the other one waits", || waits(&bank)));
        operation.complete(&mut tx, &1).await.unwrap();
        match commits {
            true => commit::<C>(tx).await,
            false => roll_back::<C>(tx).await,
        }
        let begun = block_in_place(|| waiting.join().unwrap());
        match commits {
            true => assert_retried(&begun, is_told_to_retry),
            false => assert!(matches!(begun, Ok(Begin::Execute(_))), "{begun:?}"),
        }
    }

    // And a whole one.
    let mut tx = begin(&mut one).await;
    sql(&mut tx, &set).await.unwrap();
    let operation = executes(bank.once.begin(&mut tx, call("whole")).await);
    let letter = write(&mut tx, &bank.schema, "whole").await.unwrap();
    operation.complete(&mut tx, &letter).await.unwrap();
    commit::<C>(tx).await;
    assert_eq!(replayed(&bank, &mut one, "whole").await, json!(letter));
    assert_eq!(bank.told(None).0, 2);
}

fn assert_retried(begun: &Result<Begin, Error>, is_told_to_retry: bool) {
    match begun {
        Err(Error::Retry(why)) if is_told_to_retry => assert_eq!(why.code(), Some("40001")),
        Ok(Begin::Replay(_)) if !is_told_to_retry => {}
        begun => panic!("{begun:?}"),
    }
}
