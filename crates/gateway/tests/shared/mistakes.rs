//! What is wrong with a shared store at the start gets one clear line, with what to do, and no gateway.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread;

use onlyonce_testkit::{Postgres, RedisServer, Setup, run_to_exit};

use crate::BIN;
use crate::servers::{OnPostgres, Server};

/// `serve` on this store ends with one line that says these words and what to do, and no password.
#[track_caller]
fn refused(url: &str, words: &[&str]) {
    let store = format!("url = \"{url}\"");
    let run = match Setup::new(BIN, "http://127.0.0.1:9")
        .store(&store)
        .try_start()
    {
        Ok(_) => panic!("it starts on {url}"),
        Err(run) => run,
    };
    assert_eq!(run.code, Some(1), "{run:?}");
    let said = &run.stderr;
    assert_eq!(said.lines().count(), 1, "one line: {said}");
    assert!(said.starts_with("onlyonce: "), "{said}");
    assert!(said.contains("; "), "what to do: {said}");
    assert!(!said.contains("secret"), "the password is shown: {said}");
    for word in words {
        assert!(said.contains(word), "{word:?} in {said}");
    }
}

#[test]
fn a_postgres_that_cannot_be_used_is_one_clear_line() {
    let server = OnPostgres::start();
    let (url, server) = (server.url(), &server.0);
    let as_role = |role: &str| url.replace("postgres@", &format!("{role}@"));
    refused(
        "postgres://me:secret@127.0.0.1:1/none",
        &["127.0.0.1:1/none", "does not answer"],
    );
    refused(
        &format!("{}nowhere", url.trim_end_matches("postgres")),
        &["\"nowhere\"", "create it"],
    );
    refused(
        &format!("{url}?schema=other"),
        &["other", "onlyonce store migrate"],
    );

    server.sql("CREATE ROLE locked LOGIN PASSWORD 'right'");
    let hba = format!("{}/pg_hba.conf", server.data());
    let rules = std::fs::read_to_string(&hba).unwrap();
    let rule = "host all locked 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(&hba, format!("{rule}{rules}")).unwrap();
    server.sql("SELECT pg_reload_conf()");
    refused(
        &as_role("locked:secret"),
        &["locked", "the password in store.url"],
    );

    server.sql("CREATE ROLE guest LOGIN");
    refused(&as_role("guest"), &["guest", "own the schema onlyonce"]);
    server.sql("CREATE ROLE crowd LOGIN CONNECTION LIMIT 0");
    refused(&as_role("crowd"), &["too many connections"]);

    // It says of itself what an old one says.
    server.sql(
        "CREATE ROLE old LOGIN; CREATE SCHEMA old AUTHORIZATION old;
        CREATE FUNCTION old.current_setting(name text) RETURNS text LANGUAGE sql AS $$
            SELECT CASE name WHEN 'server_version' THEN '14.9' WHEN 'server_version_num'
                THEN '140009' ELSE pg_catalog.current_setting(name) END $$;
        ALTER ROLE old SET search_path = old, pg_catalog",
    );
    refused(&as_role("old"), &["PostgreSQL 14.9", "15 is the oldest"]);

    server.sql("INSERT INTO onlyonce.migrations VALUES (999, 999, now(), 'later')");
    refused(&url, &["version 999", "newer program"]);
    server.sql("DELETE FROM onlyonce.migrations");
    refused(&url, &["onlyonce store migrate"]);

    server.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    server.sql("SELECT pg_reload_conf()");
    refused(&url, &["takes no writes", "primary"]);

    let unsynced = Postgres::start(&["fsync=off"]);
    let migrate = ["store", "migrate", &unsynced.url()];
    let run = run_to_exit(BIN, &migrate, &[]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains("fsync=off"), "{run:?}");
}

#[test]
fn a_redis_that_cannot_be_used_is_one_clear_line() {
    refused(
        "redis://:secret@127.0.0.1:1",
        &["127.0.0.1:1", "start the server"],
    );

    let server = RedisServer::start(&["--requirepass", "sesame"]);
    let place = format!("127.0.0.1:{}", server.port());
    refused(
        &format!("redis://:secret@{place}"),
        &[&place, "correct user and password"],
    );
    server.command(&[
        "ACL", "SETUSER", "weak", "on", ">secret", "~*", "+get", "+hello",
    ]);
    refused(
        &format!("redis://weak:secret@{place}"),
        &["rights", "docs/redis.md"],
    );

    let evicting = RedisServer::start(&["--maxmemory-policy", "allkeys-lru"]);
    refused(&evicting.url(), &["allkeys-lru", "noeviction"]);
    let of = format!("127.0.0.1 {}", evicting.port());
    let replica = RedisServer::start(&["--replicaof", &of]);
    refused(&replica.url(), &["is a replica", "store.url"]);
    refused(&redis_6(), &["Redis 6.2.14", "7.0 or newer"]);
}

/// A server that says of itself what an old one says; its URL.
fn redis_6() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut to = stream.try_clone().unwrap();
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let info = "redis_version:6.2.14\r\nrole:master\r\n";
                    let answer = match &*line {
                        "HELLO" => "%1\r\n+proto\r\n:3\r\n".to_owned(),
                        "CLIENT" | "PING" => "+OK\r\n".to_owned(),
                        "INFO" => format!("${}\r\n{info}\r\n", info.len()),
                        // A word of a command, or how long the next one is.
                        _ => continue,
                    };
                    if to.write_all(answer.as_bytes()).is_err() {
                        break;
                    }
                }
            });
        }
    });
    url
}
