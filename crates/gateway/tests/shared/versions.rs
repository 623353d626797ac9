//! A store that a newer program has changed, under gateways of this one.
//!
//! What differs between two versions, as far as others can see, is what the store says of itself, and
//! that can be made up; an older binary beside this one is for [`nodes`](crate::nodes), when it is given
//! one.

use onlyonce_testkit::{Signal, eventually};

use crate::load::{Load, Targets, Verdict, working_upstream};
use crate::servers::{OnPostgres, Server, add_migration};
use crate::{alone, on_every_server, post, setup};

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
