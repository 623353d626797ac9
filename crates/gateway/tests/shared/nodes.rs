//! Three gateways as processes of their own, at places of their own, while something happens to one of
//! them under load. The upstream's ledger is the judge.
//!
//! With the path of an older binary in `ONLYONCE_OLD_BINARY`, two of the three are that one, the one that
//! something happens to among them, and the rolling restart is an upgrade: the same is asked of old and
//! new side by side.

use std::thread;
use std::time::{Duration, Instant};

use onlyonce_testkit::{Gateway, Places, Setup, Signal, Upstream, eventually};

use crate::load::{Load, Targets, Verdict, working_upstream};
use crate::servers::Server;
use crate::{BIN, LEASE, SLACK, old_binary, on_every_server, post};

on_every_server! { three:
    i12_a_gateway_cut_off_from_the_store_sends_nothing_and_the_others_serve
    hostile_096_i09_a_gateway_paused_past_its_lease_under_load_writes_nothing_late
    a_rolling_restart_under_load_loses_nothing
}

const CLIENTS: usize = 6;
/// How many keys have their outcome between one thing and the next.
const STEP: usize = 60;
/// The same while one of the gateways answers nobody, and every third request has to wait for that.
const STEP_WITHOUT_ONE: usize = 20;

/// Three gateways before one upstream, over one store.
struct Nodes<'a, S> {
    places: &'a Places,
    /// Ends what is asked for under `held` keys.
    go: Signal,
    upstream: Upstream,
    gateways: Vec<Gateway>,
    targets: Targets,
    _server: S,
}

fn three<S: Server>(test: fn(&mut Nodes<'_, S>)) {
    Places::with(3, |places| {
        let server = S::start_at(places.store());
        let go = Signal::new();
        let upstream = working_upstream(places.front(), &go);
        let gateways: Vec<Gateway> = (0..3)
            .map(|place| {
                let url = server.url_from(places, place);
                let store = format!("url = \"{url}\"\nlease = \"{}s\"", LEASE.as_secs());
                let binary = if place == 1 { BIN } else { &old_binary() };
                let setup = Setup::new(binary, &upstream.url()).store(&store);
                places.setup(place, setup).start()
            })
            .collect();
        let targets = Targets::new(gateways.iter().map(Gateway::addr).collect());
        test(&mut Nodes {
            places,
            go,
            upstream,
            gateways,
            targets,
            _server: server,
        });
    });
}

impl<S> Nodes<'_, S> {
    /// The state of a key, as a gateway knows it.
    fn state(&self, gateway: usize, key: &str) -> Option<String> {
        let control = self.places.control(&self.gateways[gateway]);
        let state = control.operations(key).first()?["state"]
            .as_str()?
            .to_owned();
        Some(state)
    }

    /// Waits until an operation whose owner is out of reach is unknown to the others; says how long
    /// that took.
    fn until_unknown(&self, gateway: usize, key: &str) -> Duration {
        let started = Instant::now();
        eventually("what it owned is unknown", || {
            self.state(gateway, key).as_deref() == Some("unknown")
        });
        started.elapsed()
    }

    /// How often a key was executed.
    fn hits(&self, key: &str) -> usize {
        self.upstream
            .hits_where(|seen| seen.head.header("idempotency-key") == Some(key))
    }

    #[track_caller]
    fn conclude(&self, what: &str, load: Load) -> Verdict {
        let verdict = Verdict::of(&self.upstream, &load.stop());
        println!("{what}: {verdict}");
        verdict.expect_clean();
        verdict
    }
}

fn i12_a_gateway_cut_off_from_the_store_sends_nothing_and_the_others_serve<S: Server>(
    nodes: &mut Nodes<'_, S>,
) {
    const PROBES: usize = 8;
    let load = Load::start(&nodes.targets, CLIENTS);
    load.goes_on(STEP);
    let mut held = nodes.gateways[0].begin(&post("held"));
    held.read_head();
    held.read_until("of held");

    nodes.places.cut(0);
    let probe = |number: usize| format!("probe-{number}");
    thread::scope(|scope| {
        for number in 0..PROBES {
            let gateway = &nodes.gateways[0];
            scope.spawn(move || {
                let answer = gateway.send(&post(&probe(number)));
                answer.expect_problem(503, "store-unavailable");
                answer.expect_retry(true);
            });
        }
        let took = nodes.until_unknown(1, "held");
        println!("what the gateway owned was unknown {took:?} after the cut");
        assert!(took < LEASE + SLACK, "{took:?}");
    });
    for number in 0..PROBES {
        assert_eq!(nodes.hits(&probe(number)), 0, "probe {number}");
    }
    for (gateway, key) in [(1, "other-1"), (2, "other-2")] {
        nodes.gateways[gateway].send(&post(key)).expect_status(200);
    }
    load.goes_on(STEP_WITHOUT_ONE);
    // The upstream answers, and its answer does not stand.
    nodes.go.fire();
    nodes.places.mend(0);
    assert!(!held.finish().whole(), "a clean end that nobody else has");
    eventually("it serves again", || {
        nodes.gateways[0].send(&post("again")).status() == 200
    });
    load.goes_on(STEP);
    nodes.conclude("one of three was cut off", load);
    for number in 0..PROBES {
        // It was refused, so it can be asked again; if the claim got through when the line was mended,
        // it is unknown.
        let key = probe(number);
        let answer = nodes.gateways[number % 3].send(&post(&key));
        assert!([200, 502].contains(&answer.status()), "{answer:?}");
        assert_eq!(nodes.hits(&key), usize::from(answer.status() == 200));
    }
    assert_eq!(nodes.hits("held"), 1);
}

fn hostile_096_i09_a_gateway_paused_past_its_lease_under_load_writes_nothing_late<S: Server>(
    nodes: &mut Nodes<'_, S>,
) {
    let load = Load::start(&nodes.targets, CLIENTS);
    load.goes_on(STEP);
    let mut held = nodes.gateways[0].begin(&post("held"));
    held.read_head();
    held.read_until("of held");
    nodes.gateways[0].pause();
    nodes.until_unknown(1, "held");
    load.goes_on(STEP_WITHOUT_ONE);
    let record = || nodes.places.control(&nodes.gateways[1]).operation("held");
    let before = record();
    // It wakes with the whole answer before it.
    nodes.go.fire();
    nodes.gateways[0].resume();
    assert!(!held.finish().whole(), "an answer that does not stand");
    load.goes_on(STEP);
    nodes.conclude("one of three was paused", load);
    for gateway in &nodes.gateways {
        let answer = gateway.send(&post("held"));
        answer.expect_problem(502, "outcome-unknown");
    }
    let after = record();
    for what in ["state", "id", "reason"] {
        assert_eq!(before[what], after[what], "{what}");
    }
    assert_eq!(nodes.hits("held"), 1);
}

fn a_rolling_restart_under_load_loses_nothing<S: Server>(nodes: &mut Nodes<'_, S>) {
    let load = Load::start(&nodes.targets, CLIENTS);
    load.goes_on(STEP);
    for number in 0..nodes.gateways.len() {
        let gateway = &mut nodes.gateways[number];
        gateway.terminate();
        assert_eq!(gateway.wait_for_exit(), Some(0));
        gateway.change(|setup| setup.binary(BIN));
        gateway.start_again();
        nodes.targets.moved(number, gateway.addr());
        load.goes_on(STEP);
    }
    let verdict = nodes.conclude("three were restarted, one after the other", load);
    // Who drains brings to its end what it has begun.
    assert_eq!(verdict.unknown, 0);
    assert_eq!(verdict.answered, verdict.keys);
}
