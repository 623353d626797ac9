//! What begin, run and complete promise.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use onlyonce_postgres::{
    Begin, Call, Error, MAX_RESULT, Operation, Settings, Transactions, UnknownReason,
};
use onlyonce_testkit::{Pgbouncer, eventually};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::sync::oneshot;
use tokio::task::{JoinSet, block_in_place};

use crate::bank::{Bank, aside, call, pay, waits, write};
use crate::drivers::{Client, Tx, begin, commit, on_both_drivers, roll_back, sql, text};

on_both_drivers! {
    i01_a_payment_is_paid_once_and_its_result_replayed
    i01_of_fifty_at_once_one_pays
    i01_who_comes_while_it_runs_waits_and_gets_its_result
    i01_who_comes_while_it_runs_and_fails_executes
    a_result_that_says_nothing_is_a_result
    a_failure_leaves_no_trace_and_the_key_is_free
    a_run_that_is_dropped_leaves_no_trace
    an_answer_that_is_to_stick_is_a_result
    i06_another_input_is_refused_and_changes_nothing
    who_waits_too_long_is_told_so_and_its_lock_timeout_is_put_back
    who_was_told_a_result_keeps_nobody_waiting
    a_result_that_is_too_long_is_refused_and_nothing_has_happened
    a_commit_without_a_result_becomes_unknown
    what_is_undone_to_a_savepoint_was_not_committed
    a_key_is_new_after_its_window
    the_commit_is_durable_whatever_the_default_is
    the_parts_have_the_same_keys_in_every_execution
}

async fn i01_a_payment_is_paid_once_and_its_result_replayed<C: Client>() {
    let bank = Bank::open().await;
    let mut connection = bank.connect::<C>().await;
    let first = bank.pay::<C>(&mut connection, "k").await.unwrap();
    for _ in 0..3 {
        assert_eq!(bank.pay::<C>(&mut connection, "k").await.unwrap(), first);
    }
    assert_eq!(bank.told(Some("k")), (1, vec![first]));
    assert_eq!(bank.operations(2), 1);
}

async fn i01_of_fifty_at_once_one_pays<C: Client>() {
    let bank = &Bank::open().await;
    let paying = (0..50).map(|_| async move {
        let mut connection = bank.connect::<C>().await;
        bank.pay::<C>(&mut connection, "k").await.unwrap()
    });
    let results = join_all(paying).await;
    assert_eq!(bank.told(None), (1, vec![results[0]]));
    assert!(results.iter().all(|result| *result == results[0]));
}

async fn i01_who_comes_while_it_runs_waits_and_gets_its_result<C: Client>() {
    let bank = Arc::new(Bank::open().await);
    let mut connection = bank.connect::<C>().await;
    let mut tx = begin::<C>(&mut connection).await;
    let operation = executes(bank.once.begin(&mut tx, call("k")).await);
    let other = aside(bank.clone(), async |bank| {
        let mut connection = bank.connect::<C>().await;
        bank.pay::<C>(&mut connection, "k").await
    });
    block_in_place(|| eventually("the other one waits", || waits(&bank)));
    let result = write(&mut tx, &bank.schema, "k").await.unwrap();
    operation.complete(&mut tx, &result).await.unwrap();
    commit::<C>(tx).await;
    assert_eq!(block_in_place(|| other.join().unwrap()).unwrap(), result);
    assert_eq!(bank.told(None), (1, vec![result]));
}

async fn i01_who_comes_while_it_runs_and_fails_executes<C: Client>() {
    let bank = Arc::new(Bank::open().await);
    let mut connection = bank.connect::<C>().await;
    let mut tx = begin::<C>(&mut connection).await;
    let operation = executes(bank.once.begin(&mut tx, call("k")).await);
    let other = aside(bank.clone(), async |bank| {
        let mut connection = bank.connect::<C>().await;
        bank.pay::<C>(&mut connection, "k").await
    });
    block_in_place(|| eventually("the other one waits", || waits(&bank)));
    let lost = write(&mut tx, &bank.schema, "k").await.unwrap();
    operation.complete(&mut tx, &lost).await.unwrap();
    roll_back::<C>(tx).await;
    let result = block_in_place(|| other.join().unwrap()).unwrap();
    assert_ne!(result, lost);
    assert_eq!(bank.told(None), (1, vec![result]));
}

async fn a_result_that_says_nothing_is_a_result<C: Client>() {
    let bank = Bank::open().await;
    let mut connection = bank.connect::<C>().await;
    for (number, nothing) in [json!(0), json!(false), json!(null), json!(""), json!([])]
        .into_iter()
        .enumerate()
    {
        let key = format!("k{number}");
        let first = async |_: &mut Tx<'_, C>, _: &mut Operation| Ok(nothing.clone());
        let result: Result<Value, Error> =
            bank.once.run_on(&mut connection, call(&key), first).await;
        assert_eq!(result.unwrap(), nothing);
        assert_eq!(replayed::<C>(&bank, &mut connection, &key).await, nothing);
    }
}

async fn a_failure_leaves_no_trace_and_the_key_is_free<C: Client>() {
    let bank = Bank::open().await;
    let mut connection = bank.connect::<C>().await;
    let failing = async |tx: &mut Tx<'_, C>, _: &mut Operation| {
        write(tx, &bank.schema, "k").await?;
        Err::<i64, _>(Failure::Business)
    };
    let failed = bank.once.run_on(&mut connection, call("k"), failing).await;
    assert!(matches!(failed, Err(Failure::Business)), "{failed:?}");
    assert_eq!(bank.told(None), (0, vec![]));
    assert_eq!((1..=4).map(|state| bank.operations(state)).sum::<i64>(), 0);

    // A statement of its own that fails is no other case.
    let failing = async |tx: &mut Tx<'_, C>, _: &mut Operation| {
        write(tx, &bank.schema, "k").await?;
        sql(tx, "SELECT 1 / 0").await.map_err(Error::driver)?;
        Ok::<i64, Error>(0)
    };
    let failed = bank.once.run_on(&mut connection, call("k"), failing).await;
    assert!(matches!(failed, Err(Error::Driver(_))), "{failed:?}");
    assert!(!failed.unwrap_err().may_be_retried());

    // Whoever does not look at it is found out before the commit.
    let swallowing = async |tx: &mut Tx<'_, C>, _: &mut Operation| {
        let _ = sql(tx, "SELECT 1 / 0").await;
        Ok::<i64, Error>(0)
    };
    let failed = bank
        .once
        .run_on(&mut connection, call("k"), swallowing)
        .await;
    assert!(matches!(failed, Err(Error::Driver(_))), "{failed:?}");

    let result = bank.pay::<C>(&mut connection, "k").await.unwrap();
    assert_eq!(bank.told(None), (1, vec![result]));
}

/// An error of the caller's own.
#[derive(Debug)]
enum Failure {
    Business,
    #[expect(dead_code, reason = "it is printed where it should not be")]
    Once(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Once(error)
    }
}

async fn a_run_that_is_dropped_leaves_no_trace<C: Client>() {
    let bank = Bank::open().await;
    let mut connection = bank.connect::<C>().await;
    let (written, is_written) = oneshot::channel();
    let paying = async |tx: &mut Tx<'_, C>, _: &mut Operation| {
        write(tx, &bank.schema, "k").await?;
        written.send(()).unwrap();
        pending::<Result<i64, Error>>().await
    };
    tokio::select! {
        _ = bank.once.run_on(&mut connection, call("k"), paying) => unreachable!(),
        told = is_written => told.unwrap(),
    }
    // On the same connection, whose transaction is over.
    let result = bank.pay::<C>(&mut connection, "k").await.unwrap();
    assert_eq!(bank.told(None), (1, vec![result]));
}

async fn an_answer_that_is_to_stick_is_a_result<C: Client>() {
    let bank = Bank::open().await;
    let mut connection = bank.connect::<C>().await;
    let declined = json!({"declined": "no such card"});
    let declining = async |_: &mut Tx<'_, C>, _: &mut Operation| Ok::<_, Error>(declined.clone());
    bank.once
        .run_on(&mut connection, call("k"), declining)
        .await
        .unwrap();
    assert_eq!(replayed::<C>(&bank, &mut connection, "k").await, declined);
}

async fn i06_another_input_is_refused_and_changes_nothing<C: Client>() {
    let bank = Bank::open().await;
    let mut connection = bank.connect::<C>().await;
    let with = |input| Call {
        tenant: "bank",
        key: "k",
        name: "pay",
        input,
    };
    let one = async |_: &mut Tx<'_, C>, _: &mut Operation| Ok::<i64, Error>(1);
    let two = async |_: &mut Tx<'_, C>, _: &mut Operation| Ok::<i64, Error>(2);
    let first = json!({"cents": 1, "to": "ada"});
    let result = bank.once.run_on(&mut connection, with(&first), one).await;
    assert_eq!(result.unwrap(), 1);
    let other = json!({"cents": 2, "to": "ada"});
    let refused = bank.once.run_on(&mut connection, with(&other), two).await;
    assert!(matches!(refused, Err(Error::KeyReused)), "{refused:?}");
    // The same input, though not in the same bytes.
    let same: Box<serde_json::value::RawValue> =
        serde_json::from_str(r#"{ "to": "\u0061da", "cents": 1.0 }"#).unwrap();
    let call = Call {
        tenant: "bank",
        key: "k",
        name: "another name",
        input: &same,
    };
    let result = bank.once.run_on(&mut connection, call, two).await;
    assert_eq!(result.unwrap(), 1);
    // Another tenant's key is another key.
    let call = Call {
        tenant: "another bank",
        ..with(&other)
    };
    let result = bank.once.run_on(&mut connection, call, two).await;
    assert_eq!(result.unwrap(), 2);
}

async fn who_waits_too_long_is_told_so_and_its_lock_timeout_is_put_back<C: Client>() {
    let bank = Bank::open().await;
    let settings = Settings {
        lock_wait: Duration::from_millis(50),
        ..Settings::default()
    };
    let once = bank.once_with(settings, Default::default()).await;
    let (mut one, mut other) = (bank.connect::<C>().await, bank.connect::<C>().await);
    let mut holder = begin::<C>(&mut one).await;
    sql(&mut holder, "SET LOCAL lock_timeout = '7s'")
        .await
        .unwrap();
    let operation = executes(once.begin(&mut holder, call("k")).await);
    let shown = sql(&mut holder, "SHOW lock_timeout").await.unwrap();
    assert_eq!(text(&shown), "7s");

    let mut tx = begin::<C>(&mut other).await;
    let refused = once.begin(&mut tx, call("k")).await;
    assert!(matches!(refused, Err(Error::InFlight)), "{refused:?}");
    assert!(refused.unwrap_err().may_be_retried());
    roll_back::<C>(tx).await;

    operation.complete(&mut holder, &1).await.unwrap();
    let shown = sql(&mut holder, "SHOW lock_timeout").await.unwrap();
    assert_eq!(text(&shown), "7s");
    commit::<C>(holder).await;
    assert_eq!(replayed::<C>(&bank, &mut other, "k").await, json!(1));
}

async fn who_was_told_a_result_keeps_nobody_waiting<C: Client>() {
    let bank = Arc::new(Bank::open().await);
    let mut connection = bank.connect::<C>().await;
    let mut tx = begin::<C>(&mut connection).await;
    let operation = executes(bank.once.begin(&mut tx, call("k")).await);
    let other = aside(bank.clone(), async |bank| {
        let mut connection = bank.connect::<C>().await;
        let mut tx = begin::<C>(&mut connection).await;
        sql(&mut tx, "SET LOCAL lock_timeout = '7s'").await.unwrap();
        let begun = bank.once.begin(&mut tx, call("k")).await.unwrap();
        assert!(matches!(begun, Begin::Replay(_)), "{begun:?}");
        let shown = sql(&mut tx, "SHOW lock_timeout").await.unwrap();
        assert_eq!(text(&shown), "7s");
        // Its transaction goes on.
        let (_, store) = bank.url.split_once("schema=").unwrap();
        let lock = format!("SELECT 1 FROM {store}.operations FOR UPDATE NOWAIT");
        let mut third = bank.connect::<C>().await;
        let mut third = begin::<C>(&mut third).await;
        assert_eq!(sql(&mut third, &lock).await.unwrap().len(), 1);
        roll_back::<C>(third).await;
        roll_back::<C>(tx).await;
    });
    block_in_place(|| eventually("the other one waits", || waits(&bank)));
    operation.complete(&mut tx, &1).await.unwrap();
    commit::<C>(tx).await;
    block_in_place(|| other.join().unwrap());
}

async fn a_result_that_is_too_long_is_refused_and_nothing_has_happened<C: Client>() {
    let bank = Bank::open().await;
    let mut connection = bank.connect::<C>().await;
    // With its two quotes, the longest one.
    let longest = "x".repeat(MAX_RESULT - 2);
    for (key, result, fits) in [("a", longest.clone(), true), ("b", longest + "x", false)] {
        let paying = async |tx: &mut Tx<'_, C>, _: &mut Operation| {
            write(tx, &bank.schema, key).await?;
            Ok::<_, Error>(result.clone())
        };
        let paid = bank.once.run_on(&mut connection, call(key), paying).await;
        assert_eq!(paid.is_ok(), fits);
        assert_eq!(bank.told(Some(key)).1.len(), usize::from(fits));
        if let Err(error) = paid {
            assert!(matches!(error, Error::TooLarge { len } if len == MAX_RESULT + 1));
        } else {
            assert_eq!(
                replayed::<C>(&bank, &mut connection, key).await,
                json!(result)
            );
        }
    }
}

async fn a_commit_without_a_result_becomes_unknown<C: Client>() {
    let bank = Bank::open().await;
    let engine = onlyonce_engine::Settings {
        lease: Duration::from_millis(300),
        ..Default::default()
    };
    let once = bank.once_with(Settings::default(), engine).await;
    let mut connection = bank.connect::<C>().await;
    let mut tx = begin::<C>(&mut connection).await;
    let operation = executes(once.begin(&mut tx, call("k")).await);
    write(&mut tx, &bank.schema, "k").await.unwrap();
    commit::<C>(tx).await;
    let refused = bank.pay::<C>(&mut connection, "k").await;
    assert!(matches!(refused, Err(Error::InFlight)), "{refused:?}");
    loop {
        match bank.pay::<C>(&mut connection, "k").await {
            Err(Error::InFlight) => continue,
            Err(Error::Unknown(UnknownReason::LeasePassed)) => break,
            paid => panic!("{paid:?}"),
        }
    }
    // Upkeep writes it down, so that somebody can settle it.
    block_in_place(|| eventually("it is unknown", || bank.operations(3) == 1));
    let refused = bank.pay::<C>(&mut connection, "k").await;
    let is_unknown = matches!(refused, Err(Error::Unknown(UnknownReason::LeasePassed)));
    assert!(is_unknown, "{refused:?}");
    // Its owner comes too late.
    let mut tx = begin::<C>(&mut connection).await;
    let late = operation.complete(&mut tx, &1).await;
    assert!(matches!(late, Err(Error::Fenced(_))), "{late:?}");
}

async fn what_is_undone_to_a_savepoint_was_not_committed<C: Client>() {
    let bank = Bank::open().await;
    let mut connection = bank.connect::<C>().await;
    for (key, to_savepoint, commits) in [("a", true, true), ("b", false, true), ("c", false, false)]
    {
        let mut tx = begin::<C>(&mut connection).await;
        sql(&mut tx, "SAVEPOINT here").await.unwrap();
        let operation = executes(bank.once.begin(&mut tx, call(key)).await);
        let completed = operation.complete(&mut tx, &1).await.unwrap();
        if to_savepoint {
            sql(&mut tx, "ROLLBACK TO here").await.unwrap();
        }
        match commits {
            true => commit::<C>(tx).await,
            false => roll_back::<C>(tx).await,
        }
        let stands = commits && !to_savepoint;
        assert_eq!(completed.is_committed().await.unwrap(), stands, "{key}");
    }
    // Of one that goes on, nobody can say it.
    let settings = Settings {
        lock_wait: Duration::from_millis(20),
        ..Settings::default()
    };
    let once = bank.once_with(settings, Default::default()).await;
    let mut tx = begin::<C>(&mut connection).await;
    let operation = executes(once.begin(&mut tx, call("d")).await);
    let completed = operation.complete(&mut tx, &1).await.unwrap();
    assert!(completed.is_committed().await.is_err());
}

async fn a_key_is_new_after_its_window<C: Client>() {
    let bank = Bank::open().await;
    let settings = Settings {
        window: Duration::from_millis(1),
        ..Settings::default()
    };
    let once = bank.once_with(settings, Default::default()).await;
    let mut connection = bank.connect::<C>().await;
    let mut letters = Vec::new();
    while letters.len() < 3 {
        let paying =
            async |tx: &mut Tx<'_, C>, _: &mut Operation| write(tx, &bank.schema, "k").await;
        let letter = once
            .run_on(&mut connection, call("k"), paying)
            .await
            .unwrap();
        if letters.last() != Some(&letter) {
            letters.push(letter);
        }
    }
    assert_eq!(bank.told(None), (3, letters));
    assert_eq!(bank.operations(2), 1);
}

async fn the_commit_is_durable_whatever_the_default_is<C: Client>() {
    let bank = Bank::open().await;
    let mut connection = bank.connect::<C>().await;
    for (level, becomes) in [
        ("off", "on"),
        ("local", "local"),
        ("remote_apply", "remote_apply"),
    ] {
        let mut tx = begin::<C>(&mut connection).await;
        let set = format!("SET LOCAL synchronous_commit = {level}");
        sql(&mut tx, &set).await.unwrap();
        let operation = executes(bank.once.begin(&mut tx, call(level)).await);
        let shown = sql(&mut tx, "SHOW synchronous_commit").await.unwrap();
        assert_eq!(text(&shown), becomes);
        sql(&mut tx, &set).await.unwrap();
        operation.complete(&mut tx, &1).await.unwrap();
        let shown = sql(&mut tx, "SHOW synchronous_commit").await.unwrap();
        assert_eq!(text(&shown), becomes);
        commit::<C>(tx).await;
    }
}

async fn the_parts_have_the_same_keys_in_every_execution<C: Client>() {
    let bank = Bank::open().await;
    let mut connection = bank.connect::<C>().await;
    let mut keys = Vec::new();
    for key in ["k", "k", "l"] {
        let mut tx = begin::<C>(&mut connection).await;
        let operation = executes(bank.once.begin(&mut tx, call(key)).await);
        assert_eq!(
            (operation.key().as_str(), operation.tenant()),
            (key, "bank")
        );
        keys.push([operation.key_for("charge"), operation.key_for("mail")]);
        roll_back::<C>(tx).await;
    }
    assert_eq!(keys[0], keys[1]);
    assert_ne!(keys[0], keys[2]);
    assert_ne!(keys[0][0], keys[0][1]);
}

/// With tokio-postgres, whose statements have no names here; sqlx names all of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_works_behind_a_pooler_that_gives_each_transaction_another_connection() {
    let bank = &Bank::open_alone().await;
    let pooler = Pgbouncer::start(&bank.server, 3);
    let pooled = bank.url.replace(&bank.server.url(), &pooler.url());
    let once = &Transactions::open(&pooled, Settings::default())
        .await
        .unwrap();
    let url = &format!("{}?sslmode=disable", pooler.url());
    let paying = (0..20).map(|number| async move {
        let mut client = <tokio_postgres::Client as Client>::connect(url).await;
        let key = format!("k{}", number % 10);
        pay(once, &bank.schema, &mut client, &key).await.unwrap()
    });
    let results = join_all(paying).await;
    assert_eq!(results[..10], results[10..]);
    assert_eq!(bank.told(None).0, 10);
}

/// The whole of it runs in tasks that move between threads, on a pool and on a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_may_be_a_task_of_its_own() {
    let bank = Arc::new(Bank::open().await);
    let url = bank.business_url(bank.server.port());
    let pool = PgPool::connect(&url).await.unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..5 {
        let (in_a_pool, pool) = (bank.clone(), pool.clone());
        tasks.spawn(async move {
            let bank = &in_a_pool;
            let paying = bank.once.run(&pool, call("k"), async |tx, _| {
                write(tx, &bank.schema, "k").await
            });
            paying.await
        });
        let bank = bank.clone();
        let mut client = <tokio_postgres::Client as Client>::connect(&url).await;
        tasks.spawn(async move {
            let paying = bank.once.run_on(&mut client, call("k"), async |tx, _| {
                write(tx, &bank.schema, "k").await
            });
            paying.await
        });
    }
    let results: Result<Vec<i64>, Error> = tasks.join_all().await.into_iter().collect();
    let results = results.unwrap();
    assert_eq!(bank.told(None), (1, vec![results[0]]));
}

/// The operation that is to be executed.
pub fn executes(begun: Result<Begin, Error>) -> Operation {
    match begun {
        Ok(Begin::Execute(operation)) => operation,
        other => panic!("{other:?}"),
    }
}

/// The result that is there for `key`.
pub async fn replayed<C: Client>(bank: &Bank, connection: &mut C, key: &str) -> Value {
    let mut tx = connection.begin().await.unwrap();
    match bank.once.begin(&mut tx, call(key)).await {
        Ok(Begin::Replay(recorded)) => recorded.json().unwrap(),
        other => panic!("{other:?}"),
    }
}
