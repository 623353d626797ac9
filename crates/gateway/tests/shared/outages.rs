//! What goes wrong with a server while a gateway runs on it: requests are refused, nothing is sent for
//! them, the log says so now and then and not with every request, and service resumes by itself.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use onlyonce_testkit::{
    Client, Gateway, Postgres, RedisServer, Response, Setup, Upstream, eventually, run_to_exit,
};
use tempfile::TempDir;

use crate::{BIN, post};

/// Asked at once while the server is not well.
const AT_ONCE: usize = 60;
/// The lines of a gateway and its store in an outage of a few seconds.
const MOST_LINES: usize = 10;

/// A gateway before an upstream that counts, on the store at a URL.
struct Bench {
    upstream: Upstream,
    gateway: Gateway,
    /// Requests whose answers are withheld: they ran, and could not be recorded.
    stalled: Vec<Client>,
}

impl Bench {
    fn on(url: &str) -> Self {
        let upstream = Upstream::counting();
        let setup =
            Setup::new(BIN, &upstream.url()).store(&format!("url = \"{url}\"\nlease = \"2s\""));
        Self {
            gateway: setup.start(),
            upstream,
            stalled: Vec::new(),
        }
    }

    /// From `begin` on, requests are refused in these words, until `end`.
    fn outage(
        mut self,
        (status, problem): (u16, &str),
        words: &[&str],
        begin: impl FnOnce(),
        end: impl FnOnce(),
    ) {
        let before = self.gateway.send(&post("before"));
        before.expect_status(200);
        let said = self.gateway.stderr().len();
        begin();
        let mut number = 0;
        eventually("requests are refused", || {
            number += 1;
            let clients = vec![self.gateway.begin(&post(&format!("until-{number}")))];
            self.answers(clients)
                .iter()
                .any(|answer| answer.status() == status)
        });
        let hits = self.upstream.hits();
        let clients =
            (0..AT_ONCE).map(|number| self.gateway.begin(&post(&format!("during-{number}"))));
        let clients = clients.collect();
        let stalled = self.stalled.len();
        let answers = self.answers(clients);
        let (refused, served): (Vec<_>, Vec<_>) =
            answers.iter().partition(|answer| answer.status() == status);
        for answer in &refused {
            answer.expect_problem(status, problem).expect_retry(true);
        }
        assert!(
            served.iter().all(|answer| answer.status() == 200),
            "{served:?}"
        );
        assert!(
            refused.len() > AT_ONCE / 2,
            "only {} were refused",
            refused.len()
        );
        // What was refused was not sent.
        let sent = served.len() + self.stalled.len() - stalled;
        assert_eq!(self.upstream.hits() - hits, sent);

        let said = self.gateway.stderr().split_off(said);
        assert!(said.lines().count() <= MOST_LINES, "{said}");
        let line = "requests are refused, and nothing is sent for them";
        for word in words.iter().chain([&line, &"; "]) {
            assert!(said.contains(word), "{word:?} in {said}");
        }

        end();
        let hits = self.upstream.hits();
        eventually("service resumes", || {
            self.gateway.send(&post("after")).status() == 200
        });
        assert_eq!(self.upstream.hits(), hits + 1);
        eventually("what was answered before is replayed", || {
            self.gateway.send(&post("before")).mark() == Some("replayed")
        });
        let again = self.gateway.send(&post("before"));
        assert_eq!(again.text(), before.text());
        assert_eq!(self.upstream.hits(), hits + 1);
    }

    /// The answers of those that get one soon.
    fn answers(&mut self, clients: Vec<Client>) -> Vec<Response> {
        let mut answers = Vec::new();
        for mut client in clients {
            client.patience(Duration::from_secs(5));
            match client.try_read_head() {
                Ok(_) => answers.push(client.finish()),
                Err(_) => self.stalled.push(client),
            }
        }
        answers
    }
}

const UNAVAILABLE: (u16, &str) = (503, "store-unavailable");
const FULL: (u16, &str) = (507, "storage-full");

/// A server with the tables of a store, which belong to the role `gate`; the store's URL.
fn postgres_for_a_role(server: &Postgres) -> String {
    server.sql("CREATE ROLE gate LOGIN; CREATE SCHEMA onlyonce AUTHORIZATION gate");
    let url = server.url().replace("postgres@", "gate@");
    let made = run_to_exit(BIN, &["store", "migrate", &url], &[]);
    assert_eq!(made.code, Some(0), "{made:?}");
    url
}

/// Ends the gateway's connections.
fn hang_up(server: &Postgres) {
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'gate'");
}

#[test]
fn i12_a_postgres_that_takes_no_writes_refuses_and_service_resumes() {
    let server = Postgres::start(&[]);
    let bench = Bench::on(&postgres_for_a_role(&server));
    let alter = |what: &str| {
        server.sql(&format!("ALTER SYSTEM {what}"));
        server.sql("SELECT pg_reload_conf()");
    };
    bench.outage(
        UNAVAILABLE,
        &["takes no writes"],
        || alter("SET default_transaction_read_only = on"),
        || alter("RESET default_transaction_read_only"),
    );
}

#[test]
fn i12_a_postgres_with_too_many_connections_refuses_and_service_resumes() {
    let server = Postgres::start(&[]);
    let bench = Bench::on(&postgres_for_a_role(&server));
    let limit = |connections: i32| {
        server.sql(&format!("ALTER ROLE gate CONNECTION LIMIT {connections}"));
    };
    let begin = || {
        limit(0);
        hang_up(&server);
    };
    bench.outage(UNAVAILABLE, &["too many connections"], begin, || limit(-1));
}

#[test]
fn i12_a_postgres_that_lets_nobody_in_refuses_and_service_resumes() {
    let server = Postgres::start(&[]);
    let bench = Bench::on(&postgres_for_a_role(&server));
    let begin = || {
        server.sql("ALTER ROLE gate NOLOGIN");
        hang_up(&server);
    };
    bench.outage(UNAVAILABLE, &["does not let gate in"], begin, || {
        server.sql("ALTER ROLE gate LOGIN");
    });
}

#[test]
fn i12_a_postgres_without_its_schema_refuses_and_service_resumes() {
    let server = Postgres::start(&[]);
    let bench = Bench::on(&postgres_for_a_role(&server));
    let begin = || {
        server.sql("ALTER SCHEMA onlyonce RENAME TO moved");
        hang_up(&server);
    };
    bench.outage(UNAVAILABLE, &["onlyonce store migrate"], begin, || {
        server.sql("ALTER SCHEMA moved RENAME TO onlyonce");
    });
}

#[test]
fn hostile_089_a_postgres_with_a_full_disk_refuses_and_service_resumes() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let server = Postgres::start(&[]);
    disk.give_to("postgres");
    server.sql(&format!(
        "CREATE TABLESPACE small LOCATION '{}'",
        disk.path().display()
    ));
    server.sql("GRANT CREATE ON TABLESPACE small TO public");
    server.sql("ALTER DATABASE postgres SET default_tablespace = small");
    let bench = Bench::on(&postgres_for_a_role(&server));
    bench.outage(
        FULL,
        &["the server's disk", "make room"],
        || disk.fill(),
        || disk.free(),
    );
}

#[test]
fn hostile_089_a_redis_whose_memory_is_full_refuses_and_service_resumes() {
    let server = RedisServer::start(&[]);
    let limit = |bytes: &str| {
        server.command(&["CONFIG", "SET", "maxmemory", bytes]);
    };
    let bench = Bench::on(&server.url());
    bench.outage(FULL, &["raise maxmemory"], || limit("1mb"), || limit("0"));
}

#[test]
fn hostile_089_a_redis_whose_disk_is_full_refuses_and_service_resumes() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    fs::create_dir(disk.path()).unwrap();
    let folder = disk.path().display().to_string();
    let server = RedisServer::start(&["--dir", &folder, "--appendonly", "yes"]);
    let bench = Bench::on(&server.url());
    bench.outage(UNAVAILABLE, &["MISCONF"], || disk.fill(), || disk.free());
}

#[test]
fn i12_a_redis_without_its_replicas_refuses_and_service_resumes() {
    let server = RedisServer::start(&[]);
    let replicas = |least: &str| {
        server.command(&["CONFIG", "SET", "min-replicas-to-write", least]);
    };
    let bench = Bench::on(&server.url());
    bench.outage(
        UNAVAILABLE,
        &["NOREPLICAS"],
        || replicas("1"),
        || replicas("0"),
    );
}

#[test]
fn i12_a_redis_that_became_a_replica_refuses_and_service_resumes() {
    let server = RedisServer::start(&[]);
    let of = |host: &str, port: &str| {
        server.command(&["REPLICAOF", host, port]);
    };
    let bench = Bench::on(&server.url());
    // It follows nobody who answers, and keeps what it has.
    let begin = || of("127.0.0.1", "1");
    bench.outage(UNAVAILABLE, &["replica"], begin, || of("NO", "ONE"));
}

#[test]
fn i12_a_redis_with_too_many_connections_refuses_and_service_resumes() {
    let server = RedisServer::start(&[]);
    let bench = Bench::on(&server.url());
    let held = Held::connect(&server).unwrap();
    let other = Held::connect(&server).unwrap();
    let begin = || {
        held.ask("CONFIG SET maxclients 1").unwrap();
        held.ask("CLIENT KILL TYPE normal SKIPME yes").unwrap();
    };
    bench.outage(UNAVAILABLE, &["raise maxclients"], begin, || {
        // The first connection still stands, and nobody else gets one.
        assert!(other.ask("PING").is_err());
        held.ask("CONFIG SET maxclients 1000").unwrap();
    });
}

#[test]
fn i12_a_redis_that_lets_nobody_in_refuses_and_service_resumes() {
    let server = RedisServer::start(&[]);
    server.command(&[
        "ACL", "SETUSER", "gate", "on", ">secret", "~*", "&*", "+@all",
    ]);
    let bench = Bench::on(&format!("redis://gate:secret@127.0.0.1:{}", server.port()));
    let begin = || {
        server.command(&["ACL", "SETUSER", "gate", "off"]);
        server.command(&["CLIENT", "KILL", "USER", "gate"]);
    };
    bench.outage(UNAVAILABLE, &["correct user and password"], begin, || {
        server.command(&["ACL", "SETUSER", "gate", "on"]);
    });
}

/// A connection to a Redis server that stays.
struct Held(TcpStream);

impl Held {
    fn connect(server: &RedisServer) -> io::Result<Self> {
        TcpStream::connect(("127.0.0.1", server.port())).map(Self)
    }

    /// Asks for something that is answered in a line.
    fn ask(&self, command: &str) -> io::Result<String> {
        (&self.0).write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        match BufReader::new(&self.0).read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line),
        }
    }
}

/// A disk of a few megabytes, gone with its handle.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None`, with the reason printed, where the system does not let us mount.
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=24m,mode=0777", "tmpfs"]);
        let mounted = mount.arg(folder.path()).output().unwrap();
        if mounted.status.success() {
            return Some(Self(folder));
        }
        let why = String::from_utf8_lossy(&mounted.stderr);
        println!("skipped: no disk can be mounted here: {}", why.trim());
        None
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("data")
    }

    /// Makes the folder on it that this user is to write to.
    fn give_to(&self, user: &str) {
        fs::create_dir(self.path()).unwrap();
        let chown = Command::new("chown").arg(user).arg(self.path()).status();
        assert!(chown.unwrap().success());
    }

    fn ballast(&self) -> PathBuf {
        self.0.path().join("ballast")
    }

    fn fill(&self) {
        let mut ballast = fs::File::create(self.ballast()).unwrap();
        for piece in [1 << 20, 1 << 12] {
            while ballast.write_all(&vec![7; piece]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
