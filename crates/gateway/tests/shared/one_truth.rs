//! The retry may land anywhere.

use std::thread;
use std::time::{Duration, Instant};

use onlyonce_testkit::{Client, Response, Setup, Signal, Upstream, eventually};

use crate::servers::Server;
use crate::{BIN, LEASE, SLACK, alone, held, on_every_server, post, setup, two_gateways};

on_every_server! { alone:
    a_retry_on_another_gateway_is_replayed
    a_retry_on_another_gateway_joins_byte_for_byte
    a_large_answer_is_joined_and_replayed_elsewhere
    many_at_once_on_both_gateways_run_once
    i18_a_release_is_shared_across_gateways
    l3_an_owner_that_dies_breaks_its_joiners_elsewhere_and_is_unknown
    hostile_096_i09_an_owner_that_wakes_after_its_lease_changes_nothing
    hostile_084_a_server_down_at_the_completion_withholds_the_end_and_the_write_is_tried_again
    i12_without_the_server_nothing_is_sent_and_service_resumes
    i12_a_server_that_hangs_sends_nothing_and_service_resumes
    a_kill_of_the_server_loses_nothing_that_was_acknowledged
    a_gateway_that_leaves_hands_over
    l1_a_client_that_leaves_while_the_store_is_slow_is_executed_all_the_same
}

#[track_caller]
fn expect_same(one: &Response, other: &Response) {
    assert!(one.whole() && other.whole());
    assert_eq!((one.status(), one.text()), (other.status(), other.text()));
    for name in ["content-type", "onlyonce-operation"] {
        assert_eq!(one.header(name), other.header(name));
    }
}

fn a_retry_on_another_gateway_is_replayed(server: &mut impl Server) {
    let upstream = Upstream::counting();
    let (a, b) = two_gateways(&upstream, server);
    let first = a.send(&post("k"));
    first.expect_status(200).expect_mark("executed");
    let again = b.send(&post("k"));
    again.expect_mark("replayed");
    expect_same(&first, &again);
    assert_eq!(upstream.hits(), 1);
    // Both tell the same of it, and another request under the key is refused on both.
    for gateway in [&a, &b] {
        let operations = gateway.control().operations("k");
        assert_eq!(operations.len(), 1);
        assert_eq!(operations[0]["state"], "completed");
        gateway
            .send(&post("k").body("another"))
            .expect_problem(422, "key-reused");
    }
}

fn a_retry_on_another_gateway_joins_byte_for_byte(server: &mut impl Server) {
    let (upstream, go) = held();
    let (a, b) = two_gateways(&upstream, server);
    let mut first = a.begin(&post("k"));
    first.read_head();
    first.read_until("begun");
    let asked = Instant::now();
    let mut second = b.begin(&post("k"));
    let head = second.read_head();
    assert_eq!(head.header("onlyonce-status"), Some("joined"));
    second.read_until("begun");
    eprintln!("first byte elsewhere after {:?}", asked.elapsed());
    let mut third = b.begin(&post("k"));
    third.read_head();
    third.read_until("begun");
    go.fire();
    let answers = [first.finish(), second.finish(), third.finish()];
    assert_eq!(answers[0].text(), "execution 1 begun, and ended");
    expect_same(&answers[0], &answers[1]);
    expect_same(&answers[0], &answers[2]);
    assert_eq!(upstream.hits(), 1);
}

fn a_large_answer_is_joined_and_replayed_elsewhere(server: &mut impl Server) {
    const PIECES: usize = 300;
    let go = Signal::new();
    let upstream = {
        let go = go.clone();
        Upstream::scripted(move |exchange| {
            exchange.read_body();
            exchange.start_chunked(200, &[("content-type", "text/plain")]);
            for piece in 0..PIECES {
                exchange.chunk(format!("{piece:04} {}\n", "x".repeat(1000)));
                if piece == PIECES / 2 {
                    go.wait();
                }
            }
            exchange.end_chunks();
        })
    };
    let (a, b) = two_gateways(&upstream, server);
    let mut first = a.begin(&post("k"));
    first.read_head();
    first.read_until("0150 ");
    let mut second = b.begin(&post("k"));
    second.read_head();
    second.read_until("0150 ");
    go.fire();
    let (first, second) = (first.finish(), second.finish());
    assert_eq!(first.text().len(), PIECES * 1006);
    expect_same(&first, &second);
    let replay = b.send(&post("k"));
    replay.expect_mark("replayed");
    expect_same(&first, &replay);
    assert_eq!(upstream.hits(), 1);
}

fn many_at_once_on_both_gateways_run_once(server: &mut impl Server) {
    let (upstream, go) = held();
    let (a, b) = two_gateways(&upstream, server);
    let mut clients: Vec<Client> = (0..40)
        .map(|number| [&a, &b][number % 2].begin(&post("k")))
        .collect();
    for client in &mut clients {
        client.read_head();
        client.read_until("begun");
    }
    go.fire();
    let answers: Vec<_> = clients.iter_mut().map(Client::finish).collect();
    for answer in &answers {
        expect_same(answer, &answers[0]);
    }
    let executed = answers.iter().filter(|one| one.mark() == Some("executed"));
    assert_eq!(executed.count(), 1);
    assert_eq!(upstream.hits(), 1);
}

fn i18_a_release_is_shared_across_gateways(server: &mut impl Server) {
    let go = Signal::new();
    let upstream = {
        let go = go.clone();
        Upstream::scripted(move |exchange| {
            exchange.read_body();
            go.wait();
            exchange.answer(429, &[("retry-after", "7")], b"slow down");
        })
    };
    let (a, b) = two_gateways(&upstream, server);
    let mut first = a.begin(&post("k"));
    upstream.wait_for_hits(1);
    let mut second = b.begin(&post("k"));
    let joined = || {
        let attempts = a.control().operations("k")[0]["attempts"].as_u64();
        attempts == Some(2)
    };
    eventually("the second has joined", joined);
    go.fire();
    first.response().expect_status(429).expect_mark("released");
    // Nothing ran, and whoever joined hears so without running it once more: by the answer itself,
    // where it could be shown in time.
    let answer = second.response();
    assert!([429, 502].contains(&answer.status()), "{answer:?}");
    if answer.status() == 429 {
        answer.expect_mark("released");
        assert_eq!(answer.text(), "slow down");
    } else {
        answer.expect_retry(true);
    }
    assert_eq!(upstream.hits(), 1);
}

fn l3_an_owner_that_dies_breaks_its_joiners_elsewhere_and_is_unknown(server: &mut impl Server) {
    let (upstream, _go) = held();
    let (mut a, b) = two_gateways(&upstream, server);
    let mut first = a.begin(&post("k"));
    first.read_head();
    first.read_until("begun");
    let mut second = b.begin(&post("k"));
    second.read_head();
    second.read_until("begun");
    let died = Instant::now();
    a.kill();
    assert!(!second.finish().whole(), "a clean end for half an answer");
    let broken = died.elapsed();
    b.send(&post("k"))
        .expect_problem(502, "outcome-unknown")
        .expect_retry(false);
    assert_eq!(b.control().operation("k")["state"], "unknown");
    let took = died.elapsed();
    println!("its joiner was broken after {broken:?}, and it was unknown after {took:?}");
    assert!(took < LEASE + SLACK, "{took:?}");
    assert_eq!(upstream.hits(), 1);
}

/// Case: SIGSTOP past the lease, another gateway takes over, SIGCONT. Answer: what the woken one writes
/// changes nothing.
fn hostile_096_i09_an_owner_that_wakes_after_its_lease_changes_nothing(server: &mut impl Server) {
    let (upstream, go) = held();
    let (a, b) = two_gateways(&upstream, server);
    let mut first = a.begin(&post("k"));
    first.read_head();
    first.read_until("begun");
    a.pause();
    b.control().wait_for_state("k", "unknown");
    let before = b.control().operation("k");
    go.fire();
    a.resume();
    assert!(!first.finish().whole(), "an answer that does not stand");
    for gateway in [&a, &b] {
        gateway
            .send(&post("k"))
            .expect_problem(502, "outcome-unknown");
    }
    let after = b.control().operation("k");
    for what in ["state", "id", "reason"] {
        assert_eq!(before[what], after[what], "{what}");
    }
    assert_eq!(upstream.hits(), 1);
}

fn hostile_084_a_server_down_at_the_completion_withholds_the_end_and_the_write_is_tried_again(
    server: &mut impl Server,
) {
    let (upstream, go) = held();
    // A lease that lasts until the server is back.
    let store = format!("url = \"{}\"\nlease = \"30s\"", server.url());
    let setup = Setup::new(BIN, &upstream.url()).store(&store);
    let (a, b) = (setup.clone().start(), setup.start());
    let mut first = a.begin(&post("k"));
    first.read_head();
    first.read_until("begun");
    server.kill();
    go.fire();
    first.patience(Duration::from_millis(500));
    while let Ok(more) = first.step() {
        assert!(more, "the client saw an end that is not recorded");
    }
    server.restart();
    first.patience(onlyonce_testkit::PATIENCE);
    let first = first.finish();
    first.expect_status(200);
    assert!(first.text().ends_with(", and ended"));
    for gateway in [&a, &b] {
        eventually("it is replayed", || {
            gateway.send(&post("k")).mark() == Some("replayed")
        });
        expect_same(&first, &gateway.send(&post("k")));
    }
    assert_eq!(upstream.hits(), 1);
}

/// Asks until the gateway answers, which it must by itself.
fn until_served(gateway: &onlyonce_testkit::Gateway, key: &str) {
    eventually("service resumes", || {
        gateway.send(&post(key)).status() == 200
    });
}

fn i12_without_the_server_nothing_is_sent_and_service_resumes(server: &mut impl Server) {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream, server).start();
    let first = gateway.send(&post("before"));
    first.expect_status(200);
    server.kill();
    gateway
        .send(&post("k"))
        .expect_problem(503, "store-unavailable")
        .expect_retry(true);
    assert_eq!(upstream.hits(), 1);
    server.restart();
    until_served(&gateway, "k");
    assert_eq!(upstream.hits(), 2);
    // Each connection to the server finds out for itself that it is back.
    eventually("what was answered before is replayed", || {
        gateway.send(&post("before")).mark() == Some("replayed")
    });
    expect_same(&first, &gateway.send(&post("before")));
    assert_eq!(upstream.hits(), 2);
}

fn i12_a_server_that_hangs_sends_nothing_and_service_resumes(server: &mut impl Server) {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream, server).start();
    gateway.send(&post("before")).expect_status(200);
    server.pause();
    // The claim and the look for it wait for a connection that hangs, and then for a new one: 5 s each.
    let mut client = gateway.begin(&post("k"));
    client.patience(Duration::from_secs(40));
    let answer = client.response();
    server.resume();
    answer.expect_status(503).expect_retry(true);
    assert_eq!(upstream.hits(), 1);
    until_served(&gateway, "k");
    assert_eq!(upstream.hits(), 2);
}

fn a_kill_of_the_server_loses_nothing_that_was_acknowledged(server: &mut impl Server) {
    const CLIENTS: usize = 8;
    let upstream = Upstream::counting();
    // What a gateway remembers by itself would hide what the server forgot.
    let setup = setup(&upstream, server).store("cache_bytes = 0");
    let (a, b) = (setup.clone().start(), setup.start());
    let stop = Signal::new();
    let loads: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (stop, addr) = (stop.clone(), [a.addr(), b.addr()][client % 2]);
            thread::spawn(move || {
                let mut answered = Vec::new();
                for number in 0.. {
                    if stop.fired() {
                        break;
                    }
                    let key = format!("k-{client}-{number}");
                    let answer = Client::connect(addr).ask(&post(&key));
                    if answer.status() == 200 && answer.whole() {
                        answered.push((key, answer.text()));
                    }
                }
                answered
            })
        })
        .collect();
    upstream.wait_for_hits(200);
    server.kill();
    server.restart();
    let resumed = upstream.hits() + 200;
    upstream.wait_for_hits(resumed);
    stop.fire();
    let mut answered = Vec::new();
    for load in loads {
        answered.extend(load.join().unwrap());
    }
    let hits = upstream.hits();
    for (number, (key, text)) in answered.iter().enumerate() {
        let again = [&a, &b][number % 2].send(&post(key));
        again.expect_mark("replayed");
        assert_eq!(again.text(), *text, "{key}");
    }
    assert_eq!(upstream.hits(), hits);
    for key in upstream
        .seen()
        .iter()
        .filter_map(|seen| seen.head.header("idempotency-key"))
    {
        let runs = upstream.hits_where(|seen| seen.head.header("idempotency-key") == Some(key));
        assert_eq!(runs, 1, "{key}");
    }
}

fn a_gateway_that_leaves_hands_over(server: &mut impl Server) {
    let (upstream, go) = held();
    let (mut a, b) = two_gateways(&upstream, server);
    let mut first = a.begin(&post("k"));
    first.read_head();
    first.read_until("begun");
    let mut second = b.begin(&post("k"));
    second.read_head();
    second.read_until("begun");
    // It drains: what runs is brought to its end.
    a.terminate();
    go.fire();
    let (first, second) = (first.finish(), second.finish());
    expect_same(&first, &second);
    a.wait_for_exit();
    b.send(&post("k")).expect_mark("replayed");
    assert_eq!(upstream.hits(), 1);
}

/// Or one that comes again each second would never be, where the store takes longer than that.
fn l1_a_client_that_leaves_while_the_store_is_slow_is_executed_all_the_same(
    server: &mut impl Server,
) {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream, server).start();
    let count = |metric| gateway.control().metric(metric, "");
    server.pause();
    let client = gateway.begin(&post("k"));
    eventually("it is claimed", || count("onlyonce_live_operations") == 1.0);
    client.reset();
    eventually("it has left", || count("onlyonce_connections") == 0.0);
    server.resume();
    upstream.wait_for_hits(1);
    gateway.control().wait_for_state("k", "completed");
    gateway.send(&post("k")).expect_mark("replayed");
    assert_eq!(upstream.hits(), 1);
}
