//! What a fail-over forgets, counted.
//!
//! A load runs on two gateways; the server is taken away at a random moment of it, and what comes after
//! it, the server itself or the one that followed it, is asked for every key once more, by a gateway
//! that remembers nothing. `ONLYONCE_ROUNDS` says how often; the figures in docs/postgres.md and
//! docs/redis.md are of
//!
//! ```sh
//! ONLYONCE_ROUNDS=20 cargo test -p onlyonce-gateway --test shared failover -- --nocapture --test-threads 1
//! ```

use std::collections::HashMap;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use onlyonce_testkit::{
    Between, Gateway, Postgres, RedisServer, SYNCED, Setup, Signal, Upstream, eventually,
};

use crate::BIN;
use crate::load::{Asked, Load, Targets, Told, Verdict, ask, executions, working_upstream};
use crate::servers::migrate;

const CLIENTS: usize = 8;
/// How many keys have their outcome before the server is taken away.
const BEFORE: usize = 150;
/// How long what follows hears nothing before that, where its line is cut.
const BEHIND: Duration = Duration::from_millis(300);
/// What was acknowledged this long before the line was cut has arrived.
const SLACK: Duration = Duration::from_secs(1);

/// A server that will be taken away, and what comes after it.
trait Failing {
    /// A new one.
    fn start() -> Self;
    /// The URL of the store.
    fn url(&self) -> String;
    /// From now on, what follows hears nothing.
    fn cut(&self) {}
    /// Takes the server away (`kill -9`).
    fn kill(&mut self);
    /// Starts what comes after it; gives the URL of the store there.
    fn come_back(&mut self) -> String;
}

/// What was acknowledged and is gone.
#[derive(Default)]
struct Gone {
    claims: usize,
    answers: usize,
    lost_claims: usize,
    lost_answers: usize,
    /// How long before the kill the oldest of the lost answers was given.
    oldest: Duration,
}

fn rounds() -> usize {
    let said = std::env::var("ONLYONCE_ROUNDS").ok();
    said.and_then(|said| said.parse().ok()).unwrap_or(1)
}

/// Counts over all rounds.
fn gone<F: Failing>(what: &str, behind: Option<Duration>) -> Gone {
    let mut gone = Gone::default();
    for _ in 0..rounds() {
        gone.add(&round::<F>(behind));
    }
    println!("{what}: {gone}");
    gone
}

fn round<F: Failing>(behind: Option<Duration>) -> Gone {
    let mut server = F::start();
    let upstream = working_upstream([127, 0, 0, 1].into(), &Signal::new());
    let gateway = |url: &str| {
        let store = format!("url = \"{url}\"\nlease = \"2s\"");
        Setup::new(BIN, &upstream.url()).store(&store).start()
    };
    let before = [gateway(&server.url()), gateway(&server.url())];
    let targets = Targets::new(before.iter().map(Gateway::addr).collect());
    let load = Load::start(&targets, CLIENTS);
    load.goes_on(BEFORE);
    if let Some(behind) = behind {
        server.cut();
        thread::sleep(behind);
    }
    let ended = Instant::now();
    server.kill();
    let asked = load.abandon();
    // Whoever is told of a key by them would hear what they remember.
    drop(before);
    let acknowledged = executions(&upstream);
    let after = gateway(&server.come_back());
    let keys: Vec<&String> = acknowledged.keys().collect();
    let again = ask_again(&after, &keys);
    count(&upstream, &asked, &again, ended)
}

/// Asks for each key once more.
fn ask_again(gateway: &Gateway, keys: &[&String]) -> Vec<Asked> {
    let targets = Targets::new(vec![gateway.addr()]);
    let ask = |key: &&String| {
        let told = ask(&targets, 0, key, &Signal::new());
        if let Told::Wrong(what) = &told {
            eprintln!("{key}: {what}; {}", view(gateway, key));
        }
        Asked {
            key: (*key).clone(),
            told: vec![told],
            at: Instant::now(),
        }
    };
    let share = keys.len().div_ceil(CLIENTS).max(1);
    thread::scope(|scope| {
        let shares: Vec<_> = keys
            .chunks(share)
            .map(|share| scope.spawn(|| share.iter().map(ask).collect::<Vec<_>>()))
            .collect();
        let shares = shares.into_iter();
        shares.flat_map(|share| share.join().unwrap()).collect()
    })
}

/// What a gateway says of a key, and of itself.
fn view(gateway: &Gateway, key: &str) -> String {
    let control = gateway.control();
    let operations: Vec<_> = control
        .operations(key)
        .iter()
        .filter_map(|operation| operation["id"].as_str())
        .map(|id| control.get(&format!("/v1/operations/{id}")).text())
        .collect();
    let metrics = control.get("/metrics").text();
    let counted = metrics
        .lines()
        .filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
    let counted: Vec<_> = counted.collect();
    format!(
        "the gateway says of it {operations:?}, and of itself\n{}",
        counted.join("\n")
    )
}

fn count(upstream: &Upstream, asked: &[Asked], again: &[Asked], ended: Instant) -> Gone {
    for told in [asked, again] {
        // Whatever is forgotten, no answer is another's.
        let verdict = Verdict::of(upstream, told);
        assert!(verdict.wrong.is_empty(), "{:?}", verdict.wrong);
    }
    let executions = executions(upstream);
    let again: HashMap<&str, &Asked> = again.iter().map(|one| (&*one.key, one)).collect();
    let lost_claims = again.keys().filter(|key| executions[**key].len() > 1);
    let mut gone = Gone {
        claims: again.len(),
        lost_claims: lost_claims.count(),
        ..Gone::default()
    };
    for one in asked.iter().filter(|one| one.answer().is_some()) {
        gone.answers += 1;
        if again[&*one.key].answer() != one.answer() {
            gone.lost_answers += 1;
            gone.oldest = gone.oldest.max(ended.saturating_duration_since(one.at));
        }
    }
    gone
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} claims and {} answers were acknowledged; {} claims are gone, and their keys ran \
             twice; {} answers are gone",
            self.claims, self.answers, self.lost_claims, self.lost_answers
        )?;
        match self.lost_answers {
            0 => Ok(()),
            _ => write!(f, ", the oldest from {:?} before the kill", self.oldest),
        }
    }
}

impl Gone {
    fn add(&mut self, other: &Self) {
        self.claims += other.claims;
        self.answers += other.answers;
        self.lost_claims += other.lost_claims;
        self.lost_answers += other.lost_answers;
        self.oldest = self.oldest.max(other.oldest);
    }

    #[track_caller]
    fn expect_nothing(&self) {
        assert_eq!((self.lost_claims, self.lost_answers), (0, 0));
    }

    /// What is gone is of the last moments: the time that the line was cut, and a little more.
    #[track_caller]
    fn expect_only_since(&self, behind: Duration) {
        assert!(self.oldest < behind + SLACK, "{:?}", self.oldest);
    }
}

/// A PostgreSQL and its standby. The line between them can be cut.
struct Standby<const SYNCHRONOUS: bool> {
    primary: Postgres,
    line: Between,
    standby: Postgres,
}

impl<const SYNCHRONOUS: bool> Failing for Standby<SYNCHRONOUS> {
    fn start() -> Self {
        let primary = Postgres::start(&[]);
        migrate(&primary);
        let line = Between::start(primary.port());
        let standby = primary.start_replica_over(line.port(), &[]);
        if SYNCHRONOUS {
            primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
            primary.sql("SELECT pg_reload_conf()");
        }
        let state = if SYNCHRONOUS { "sync" } else { "async" };
        let streams = "SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'";
        eventually("the standby streams", || primary.sql(streams) == state);
        Self {
            primary,
            line,
            standby,
        }
    }

    fn url(&self) -> String {
        self.primary.url()
    }

    fn cut(&self) {
        self.line.cut();
    }

    fn kill(&mut self) {
        self.primary.kill();
    }

    fn come_back(&mut self) -> String {
        self.standby.promote();
        self.standby.url()
    }
}

/// A Redis and its replica. The line between them can be cut.
struct Replica {
    master: RedisServer,
    line: Between,
    replica: RedisServer,
}

impl Failing for Replica {
    fn start() -> Self {
        let master = RedisServer::start(&SYNCED);
        let line = Between::start(master.port());
        let of_master = format!("127.0.0.1 {}", line.port());
        let follow = ["--replicaof", &of_master, "--repl-diskless-sync-delay", "0"];
        let replica = RedisServer::start(&[&SYNCED[..], &follow].concat());
        eventually("the replica follows its master", || {
            let info = replica.command(&["INFO", "replication"]);
            info.contains("master_link_status:up")
        });
        Self {
            master,
            line,
            replica,
        }
    }

    fn url(&self) -> String {
        self.master.url()
    }

    fn cut(&self) {
        self.line.cut();
    }

    fn kill(&mut self) {
        self.master.kill();
    }

    fn come_back(&mut self) -> String {
        assert_eq!(self.replica.command(&["REPLICAOF", "NO", "ONE"]), "OK");
        self.replica.url()
    }
}

/// A Redis that is started again on what it has written.
struct Restart<const SYNCED: bool>(RedisServer);

impl<const SYNCED: bool> Failing for Restart<SYNCED> {
    fn start() -> Self {
        let sync = if SYNCED { "always" } else { "everysec" };
        let options = ["--appendonly", "yes", "--appendfsync", sync];
        Self(RedisServer::start(&options))
    }

    fn url(&self) -> String {
        self.0.url()
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    fn come_back(&mut self) -> String {
        self.0.restart();
        self.0.url()
    }
}

#[test]
fn a_promoted_synchronous_standby_forgets_nothing() {
    gone::<Standby<true>>("synchronous standby", None).expect_nothing();
}

/// Nothing is acknowledged that it has not.
#[test]
fn a_promoted_synchronous_standby_that_was_cut_off_forgets_nothing() {
    gone::<Standby<true>>("synchronous standby, cut off", Some(BEHIND)).expect_nothing();
}

#[test]
fn a_promoted_asynchronous_standby_forgets_the_last_moments() {
    let gone = gone::<Standby<false>>("asynchronous standby", None);
    gone.expect_only_since(Duration::ZERO);
}

#[test]
fn a_promoted_asynchronous_standby_forgets_all_since_it_was_cut_off() {
    let gone = gone::<Standby<false>>("asynchronous standby, cut off", Some(BEHIND));
    assert!(gone.lost_claims > 0, "the line was not cut");
    gone.expect_only_since(BEHIND);
}

#[test]
fn a_promoted_replica_forgets_the_last_moments() {
    gone::<Replica>("replica", None).expect_only_since(Duration::ZERO);
}

#[test]
fn a_promoted_replica_forgets_all_since_it_was_cut_off() {
    let gone = gone::<Replica>("replica, cut off", Some(BEHIND));
    assert!(gone.lost_claims > 0, "the line was not cut");
    gone.expect_only_since(BEHIND);
}

#[test]
fn a_redis_that_syncs_always_forgets_nothing_when_it_is_killed() {
    gone::<Restart<true>>("appendfsync always, killed", None).expect_nothing();
}

/// A kill loses no page cache: what a crash of the machine would lose besides, this does not show.
#[test]
fn a_redis_that_syncs_every_second_forgets_at_most_that_when_it_is_killed() {
    let gone = gone::<Restart<false>>("appendfsync everysec, killed", None);
    gone.expect_only_since(Duration::from_secs(1));
}
