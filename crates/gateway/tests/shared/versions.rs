//! A store that a newer program has changed, under gateways of this one.
//!
//! What differs between two versions, as far as others can see, is what the store says of itself, and
//! that can be made up. An older binary beside this one is for [`nodes`](crate::nodes), and for the last
//! of these, when they are given one in `ONLYONCE_OLD_BINARY`.

use onlyonce_testkit::{Postgres, RedisServer, SYNCED, Setup, Signal, eventually, run_to_exit};

use crate::load::{Load, Targets, Verdict, working_upstream};
use crate::servers::{OnPostgres, Server, add_migration};
use crate::{BIN, LEASE, alone, old_binary, on_every_server, post, setup};

on_every_server! { alone:
    a_newer_store_stops_no_gateway_that_runs_and_lets_no_older_one_start
}

const CLIENTS: usize = 4;
const STEP: usize = 30;

fn a_newer_store_stops_no_gateway_that_runs_and_lets_no_older_one_start<S: Server>(server: &mut S) {
    let upstream = working_upstream([127, 0, 0, 1].into(), &Signal::new());
    let setup = setup(&upstream, server);
    let gateway = setup.clone().start();
    let load = Load::start(&Targets::new(vec![gateway.addr()]), CLIENTS);
    load.goes_on(STEP);
    server.make_newer();

    let refused = setup.try_start().err().expect("it knows nothing of that");
    assert_ne!(refused.code, Some(0));
    let said: Vec<&str> = refused.stderr.lines().collect();
    assert!(said.iter().any(|line| line.contains("newer")), "{said:?}");

    load.goes_on(STEP);
    let verdict = Verdict::of(&upstream, &load.stop());
    println!("under a newer store: {verdict}; the older one said: {said:?}");
    assert_eq!(verdict.expect_clean().unknown, 0);

    // What connects anew finds out, and fails closed.
    let hits = upstream.hits();
    server.kill();
    server.restart();
    eventually("it says why it refuses", || {
        gateway
            .send(&post("late"))
            .expect_problem(503, "store-unavailable");
        gateway.stderr().contains(S::IS_NEWER)
    });
    assert_eq!(upstream.hits(), hits);
}

/// Migrations add, so that what runs goes on, and what is started again starts.
#[test]
fn a_migration_that_adds_is_in_no_older_gateways_way() {
    let server = OnPostgres::start();
    let upstream = working_upstream([127, 0, 0, 1].into(), &Signal::new());
    let setup = setup(&upstream, &server);
    let mut gateways = [setup.clone().start(), setup.start()];
    let targets = Targets::new(gateways.iter().map(|one| one.addr()).collect());
    let load = Load::start(&targets, CLIENTS);
    load.goes_on(STEP);
    for table in ["operations", "records", "chunks", "attempts", "store"] {
        server.0.sql(&format!(
            "ALTER TABLE onlyonce.{table} ADD COLUMN later int NOT NULL DEFAULT 7"
        ));
    }
    server
        .0
        .sql("CREATE TABLE onlyonce.later (address bytea PRIMARY KEY)");
    add_migration(&server.0, 999, 1);
    load.goes_on(STEP);
    gateways[1].terminate();
    gateways[1].wait_for_exit();
    gateways[1].start_again();
    targets.moved(1, gateways[1].addr());
    load.goes_on(STEP);
    let verdict = Verdict::of(&upstream, &load.stop());
    println!("over a schema that was added to: {verdict}");
    assert_eq!(verdict.expect_clean().unknown, 0);
}

#[test]
fn tables_of_an_older_binary_are_brought_up_under_its_gateways() {
    let server = Postgres::start(&[]);
    what_an_older_binary_made_is_brought_up_under_its_gateways(&server.url());
}

#[test]
fn a_redis_of_an_older_binary_goes_on_under_a_newer_one() {
    let server = RedisServer::start(&SYNCED);
    what_an_older_binary_made_is_brought_up_under_its_gateways(&server.url());
}

/// `store migrate` by this binary, while gateways of an older one serve from the store that it made; then
/// one after the other is started again as this one.
fn what_an_older_binary_made_is_brought_up_under_its_gateways(url: &str) {
    let migrate = |binary: &str| {
        let said = run_to_exit(binary, &["store", "migrate", url], &[]).succeeded();
        println!("{said}");
    };
    migrate(&old_binary());
    let upstream = working_upstream([127, 0, 0, 1].into(), &Signal::new());
    let store = format!("url = \"{url}\"\nlease = \"{}s\"", LEASE.as_secs());
    let setup = Setup::new(&old_binary(), &upstream.url()).store(&store);
    let mut gateways = [setup.clone().start(), setup.start()];
    let first = gateways[0].send(&post("first"));
    first.expect_status(200);
    let targets = Targets::new(gateways.iter().map(|one| one.addr()).collect());
    let load = Load::start(&targets, CLIENTS);
    load.goes_on(STEP);
    migrate(BIN);
    load.goes_on(STEP);
    for (number, gateway) in gateways.iter_mut().enumerate() {
        gateway.terminate();
        gateway.wait_for_exit();
        gateway.change(|setup| setup.binary(BIN));
        gateway.start_again();
        targets.moved(number, gateway.addr());
        load.goes_on(STEP);
        let again = gateway.send(&post("first"));
        again.expect_mark("replayed");
        assert_eq!(again.text(), first.text());
    }
    let verdict = Verdict::of(&upstream, &load.stop());
    println!("over a store of an older binary: {verdict}");
    assert_eq!(verdict.expect_clean().unknown, 0);
}
