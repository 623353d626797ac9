//! The schema and its versions.

use onlyonce_store::{
    PostgresStore, Store,
    postgres::{ConnectError, Migrated, Options, migrate},
};
use onlyonce_testkit::Postgres;

use crate::support::{
    assert_holds, book, booked, claim, complete, enter, finish, fresh_url, open, schema_of,
};

#[tokio::test]
async fn a_migration_twice_is_as_good_as_once() {
    let url = fresh_url();
    let first = migrate(&url, &Options::default()).await.expect("tables");
    assert_eq!(first.from, 0);
    let store = open(&url, Options::default()).await;
    let kept = finish(&store, "k").await;
    let again = migrate(&url, &Options::default()).await.expect("tables");
    let to = first.to;
    assert_eq!(again, Migrated { from: to, to });
    // Under a gateway that runs.
    assert_holds(&store, "k", &kept).await;
    claim(&store, "other").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_from_many_sides_at_once_make_one_store() {
    let url = fresh_url();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let url = url.clone();
        tasks.spawn(async move {
            migrate(&url, &Options::default())
                .await
                .map(|done| done.from)
        });
    }
    let mut found: Vec<i32> = Vec::new();
    for migrated in tasks.join_all().await {
        found.push(migrated.expect("all succeed"));
    }
    assert_eq!(
        found.iter().filter(|&&from| from == 0).count(),
        1,
        "{found:?}"
    );
    let stores = Postgres::shared().sql(&format!("SELECT count(*) FROM {}.store", schema_of(&url)));
    assert_eq!(stores, "1");
}

/// Tables of before the books are brought up under the records that they hold.
#[tokio::test]
async fn what_an_older_schema_holds_stays_when_the_books_come() {
    let url = fresh_url();
    let store = open(&url, Options::default()).await;
    let kept = finish(&store, "k").await;
    let running = claim(&store, "running").await;
    store.close().await.expect("closed");
    drop(store);
    let schema = schema_of(&url);
    Postgres::shared().sql(&format!(
        "DROP TABLE {schema}.ledger, {schema}.ledger_days, {schema}.books, {schema}.sums,
            {schema}.sinks, {schema}.dead;
        ALTER TABLE {schema}.store DROP COLUMN from_day;
        DELETE FROM {schema}.migrations WHERE version > 1"
    ));
    let migrated = migrate(&url, &Options::default()).await.expect("tables");
    assert_eq!(migrated.from, 1);
    let store = open(&url, Options::default()).await;
    assert_holds(&store, "k", &kept).await;
    complete(&store, "running", &running, &"hello".into()).await;
    let entered = enter(&store, "new").await;
    Postgres::shared().settle();
    assert_eq!(book(&store).await, 1);
    assert_eq!(booked(&store).await, [entered.id]);
}

/// Keys are found elsewhere in them, so that all would look new (I1).
#[tokio::test]
async fn i01_tables_of_before_the_first_release_are_refused_and_left_alone() {
    let url = fresh_url();
    let schema = schema_of(&url);
    drop(open(&url, Options::default()).await);
    Postgres::shared().sql(&format!(
        "ALTER TABLE {schema}.operations ADD COLUMN key_tag int4 NOT NULL;
        DELETE FROM {schema}.migrations WHERE version > 1"
    ));
    let refused = migrate(&url, &Options::default()).await;
    let said = refused.expect_err("other addresses").to_string();
    assert!(said.contains("before the first release"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let versions = format!("SELECT max(version) FROM {schema}.migrations");
    assert_eq!(
        Postgres::shared().sql(&versions),
        "1",
        "nothing was changed"
    );
}

#[tokio::test]
async fn a_schema_that_is_missing_or_old_names_the_command() {
    let url = fresh_url();
    let refused = PostgresStore::connect(&url, Options::default()).await;
    let error = refused.expect_err("there is nothing");
    assert!(matches!(error, ConnectError::NoSchema { .. }), "{error}");
    assert!(
        error.to_string().contains("run `onlyonce store migrate`"),
        "{error}"
    );

    migrate(&url, &Options::default()).await.expect("tables");
    let schema = schema_of(&url);
    Postgres::shared().sql(&format!(
        "DELETE FROM {schema}.migrations WHERE version > 1;
        UPDATE {schema}.migrations SET version = 0"
    ));
    let refused = PostgresStore::connect(&url, Options::default()).await;
    let error = refused.expect_err("it is old");
    assert!(
        matches!(error, ConnectError::OldSchema { version: 0, .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("run `onlyonce store migrate`"),
        "{error}"
    );
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone_unless_it_says_that_this_program_will_do() {
    let url = fresh_url();
    migrate(&url, &Options::default()).await.expect("tables");
    let schema = schema_of(&url);
    let count = || Postgres::shared().sql(&format!("SELECT count(*) FROM {schema}.migrations"));
    let before: u32 = count().parse().expect("a count");
    let add = |version: i32, compatible_from: i32| {
        Postgres::shared().sql(&format!(
            "INSERT INTO {schema}.migrations VALUES ({version}, {compatible_from}, now(), 'later')"
        ));
    };
    add(998, 1);
    PostgresStore::connect(&url, Options::default())
        .await
        .expect("what was added is not in its way");
    add(999, 999);
    let refused = PostgresStore::connect(&url, Options::default()).await;
    let error = refused.expect_err("it is newer");
    assert!(
        matches!(error, ConnectError::NewSchema { version: 999, .. }),
        "{error}"
    );
    let refused = migrate(&url, &Options::default()).await;
    assert!(
        matches!(refused, Err(ConnectError::NewSchema { .. })),
        "{refused:?}"
    );
    assert_eq!(count(), (before + 2).to_string(), "nothing was changed");
}
