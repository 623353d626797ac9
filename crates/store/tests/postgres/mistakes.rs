//! What a user can get wrong: one clear line each, and no store.

use std::time::{Duration, Instant};

use onlyonce_store::{
    PostgresStore,
    postgres::{ConnectError, EncryptionKeys, Options, migrate},
};
use onlyonce_testkit::Postgres;

use crate::support::{claim, finish, fresh_url, open, schema_of};

async fn refusal(url: &str) -> ConnectError {
    let options = Options {
        connect_timeout: Duration::from_secs(2),
        ..Options::default()
    };
    let refused = PostgresStore::connect(url, options).await;
    let error = refused.expect_err("it does not connect");
    let text = error.to_string();
    assert!(
        !text.contains('\n') && text.len() < 400,
        "not a line: {text}"
    );
    assert!(!text.contains("secret"), "it tells the password: {text}");
    error
}

fn port() -> u16 {
    Postgres::shared().port()
}

#[tokio::test]
async fn a_url_that_leads_nowhere_is_one_line() {
    let error = refusal("postgres://me:secret@127.0.0.1:1/none").await;
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    let error = refusal("postgres://me:secret@no-such-host.invalid/none").await;
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    let url = format!("postgres://postgres:secret@127.0.0.1:{}/nowhere", port());
    let error = refusal(&url).await;
    assert!(matches!(error, ConnectError::NoDatabase { .. }), "{error}");
    assert!(error.to_string().contains("\"nowhere\""), "{error}");
    let error = refusal("mysql://me:secret@127.0.0.1/none").await;
    assert!(matches!(error, ConnectError::Url(_)), "{error}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("its address").port();
    let started = Instant::now();
    let error = refusal(&format!("postgres://me:secret@127.0.0.1:{port}/none")).await;
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_wrong_password_is_one_line() {
    let server = Postgres::start(&[]);
    server.sql("CREATE ROLE locked LOGIN PASSWORD 'right'");
    let hba = format!("{}/pg_hba.conf", server.data());
    let rules = std::fs::read_to_string(&hba).expect("the rules");
    let rule = "host all locked 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(&hba, format!("{rule}{rules}")).expect("written");
    server.sql("SELECT pg_reload_conf()");
    let url = |password| {
        format!(
            "postgres://locked:{password}@127.0.0.1:{}/postgres",
            server.port()
        )
    };
    let error = refusal(&url("secret")).await;
    assert!(matches!(error, ConnectError::NotLetIn { .. }), "{error}");
    assert!(error.to_string().contains("locked"), "{error}");
    // The right one goes on to the next mistake.
    let error = refusal(&url("right")).await;
    assert!(matches!(error, ConnectError::NoSchema { .. }), "{error}");
}

#[tokio::test]
async fn a_role_without_rights_is_one_line() {
    let url = fresh_url();
    let store = open(&url, Options::default()).await;
    finish(&store, "k").await;
    let schema = schema_of(&url);
    let role = format!("guest_of_{schema}");
    let server = Postgres::shared();
    server.sql(&format!("CREATE ROLE {role} LOGIN"));
    let theirs = url.replace("postgres@", &format!("{role}@"));
    let error = refusal(&theirs).await;
    assert!(matches!(error, ConnectError::NoRight { .. }), "{error}");
    assert!(
        error.to_string().contains(&role) && error.to_string().contains(schema),
        "{error}"
    );
    // It may look, and not write.
    server.sql(&format!(
        "GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}"
    ));
    let error = refusal(&theirs).await;
    assert!(matches!(error, ConnectError::NoRight { .. }), "{error}");
    let nowhere = theirs.replace(&format!("schema={schema}"), &format!("schema={schema}_new"));
    let refused = migrate(&nowhere, &Options::default()).await;
    assert!(
        matches!(refused, Err(ConnectError::NoRight { .. })),
        "{refused:?}"
    );
    // Its owner has all that it takes.
    server.sql(&format!(
        "ALTER ROLE {role} CONNECTION LIMIT 50; CREATE SCHEMA {schema}_new AUTHORIZATION {role}"
    ));
    let store = open(&nowhere, Options::default()).await;
    claim(&store, "k").await;
}

#[tokio::test]
async fn too_many_connections_is_one_line() {
    let url = fresh_url();
    drop(open(&url, Options::default()).await);
    let role = format!("crowd_of_{}", schema_of(&url));
    Postgres::shared().sql(&format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 0"));
    let error = refusal(&url.replace("postgres@", &format!("{role}@"))).await;
    assert!(
        error.to_string().contains("too many connections"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_that_loses_commits_or_takes_none_is_refused() {
    let unsynced = Postgres::start(&["fsync=off"]);
    let error = refusal(&unsynced.url()).await;
    assert!(matches!(error, ConnectError::Unsynced(_)), "{error}");
    assert!(error.to_string().contains("fsync=off"), "{error}");
    let refused = migrate(&unsynced.url(), &Options::default()).await;
    assert!(
        matches!(refused, Err(ConnectError::Unsynced(_))),
        "{refused:?}"
    );
    drop(unsynced);

    let primary = Postgres::start(&[]);
    drop(open(&primary.url(), Options::default()).await);
    let replica = primary.start_replica(&[]);
    let error = refusal(&replica.url()).await;
    assert!(matches!(error, ConnectError::Replica(_)), "{error}");
    replica.promote();
    PostgresStore::connect(&replica.url(), Options::default())
        .await
        .expect("it is a primary now");

    primary.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    primary.sql("SELECT pg_reload_conf()");
    let error = refusal(&primary.url()).await;
    assert!(matches!(error, ConnectError::Replica(_)), "{error}");
}

#[tokio::test]
async fn hostile_091_a_missing_or_wrong_encryption_key_is_refused() {
    let url = fresh_url();
    let with = |active, keys: &[(u32, u8)]| Options {
        encryption: Some(EncryptionKeys {
            active,
            keys: keys.iter().map(|&(id, byte)| (id, [byte; 32])).collect(),
        }),
        ..Options::default()
    };
    drop(open(&url, with(1, &[(1, 7)])).await);
    for options in [Options::default(), with(1, &[(1, 8)]), with(2, &[(2, 7)])] {
        let refused = PostgresStore::connect(&url, options).await;
        let error = refused.expect_err("not its key");
        assert!(matches!(error, ConnectError::Key { .. }), "{error}");
    }
    let store = PostgresStore::connect(&url, with(2, &[(1, 7), (2, 9)])).await;
    finish(&store.expect("the key was rotated"), "k").await;
    PostgresStore::connect(&url, with(2, &[(2, 9)]))
        .await
        .expect("the old key is not needed to open it");
}
