//! Cases 93 to 96: shutdown, sudden death, and a clock or a process that stands still or jumps.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use onlyonce_testkit::{Client, Gateway, Request, Signal, Upstream, eventually};

use crate::faults::Faults;
use crate::{expect_executed, expect_replay, gateway, post, setup};

/// An upstream that waits for the signal and answers.
fn held() -> (Upstream, Signal) {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[]);
        x.chunk("begun, ");
        if wait.wait_at_most(Duration::from_secs(20)) {
            x.chunk("and ended");
            x.end_chunks();
        }
    });
    (upstream, go)
}

/// Case: SIGTERM while requests run. Answer: finished within the deadline, else `outcome-unknown`.
#[test]
fn hostile_093_on_sigterm_what_runs_is_finished() {
    let (upstream, go) = held();
    let mut gateway = gateway(&upstream);
    let mut client = gateway.begin(&post("/x", "k", "b"));
    client.read_head();
    client.read_until("begun");
    gateway.terminate();
    // The listener is closed, or says that it is shutting down, before the drain is over.
    let control = gateway.control_addr();
    eventually("it stops taking requests", || {
        std::net::TcpStream::connect(gateway.addr()).is_err()
            || Client::connect(control)
                .ask(&Request::get("/readyz"))
                .status()
                == 503
    });
    go.fire();
    let answer = client.finish();
    assert!(answer.whole(), "{answer:?}");
    assert_eq!(answer.text(), "begun, and ended");
    assert_eq!(gateway.wait_for_exit(), Some(0));
    gateway.start_again();
    expect_replay(&gateway.post("/x", "k", "b"), &answer);
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn hostile_093_on_sigterm_what_does_not_finish_in_time_is_unknown() {
    let (upstream, _go) = held();
    let mut gateway = setup(&upstream).server("drain_timeout = \"300ms\"").start();
    let mut client = gateway.begin(&post("/x", "k", "b"));
    client.read_head();
    client.read_until("begun");
    gateway.terminate();
    let answer = client.finish();
    assert!(!answer.whole(), "{answer:?}");
    assert_eq!(gateway.wait_for_exit(), Some(0));
    gateway.start_again();
    gateway
        .post("/x", "k", "b")
        .expect_problem(502, "outcome-unknown")
        .expect_retry(false);
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn hostile_093_without_work_it_ends_at_once() {
    let upstream = Upstream::counting();
    let mut gateway = gateway(&upstream);
    let first = gateway.post("/x", "k", "b");
    let mut idle = gateway.connect();
    expect_replay(&idle.ask(&post("/x", "k", "b")), &first);
    gateway.terminate();
    assert!(idle.closed(), "an idle connection is closed");
    assert_eq!(gateway.wait_for_exit(), Some(0));
}

/// Case: kill -9 at any moment. Answer: nothing runs twice, no whole answer is lost.
#[test]
fn hostile_094_killed_in_flight_is_unknown_after_the_restart() {
    let (upstream, _go) = held();
    let mut gateway = gateway(&upstream);
    let mut client = gateway.begin(&post("/x", "k", "b"));
    client.read_head();
    client.read_until("begun");
    gateway.kill();
    assert!(!client.finish().whole());
    gateway.start_again();
    for _ in 0..2 {
        gateway
            .post("/x", "k", "b")
            .expect_problem(502, "outcome-unknown")
            .expect_retry(false);
    }
    assert_eq!(gateway.control().operation("k")["state"], "unknown");
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn hostile_094_killed_right_after_the_end_still_replays() {
    let upstream = Upstream::counting();
    let mut gateway = gateway(&upstream);
    for round in 0..5 {
        let key = format!("k{round}");
        let first = gateway.post("/x", &key, "b");
        // The end was seen, so the record is durable (I3).
        gateway.kill();
        expect_executed(&first, 200);
        gateway.start_again();
        expect_replay(&gateway.post("/x", &key, "b"), &first);
        assert_eq!(upstream.hits(), round + 1);
    }
}

#[test]
fn hostile_094_killed_at_any_point_under_load_nothing_runs_twice_and_no_answer_is_lost() {
    let upstream = Upstream::scripted(|x| {
        let text = format!("execution {}", x.number);
        x.start_chunked(200, &[]);
        for part in text.split_inclusive(' ') {
            x.chunk(part);
        }
        x.end_chunks();
    });
    let mut gateway = gateway(&upstream);
    // What each key's client saw whole.
    let mut answers: HashMap<String, String> = HashMap::new();
    for round in 0..6_u64 {
        let stop = Arc::new(AtomicBool::new(false));
        let addr = gateway.addr();
        let loaders: Vec<_> = (0..4)
            .map(|loader| {
                let stop = Arc::clone(&stop);
                thread::spawn(move || load(addr, &format!("{round}-{loader}"), &stop))
            })
            .collect();
        let so_many = upstream.hits() + 20 + usize::try_from(round * 13 % 29).unwrap();
        upstream.wait_for_hits(so_many);
        gateway.kill();
        stop.store(true, Ordering::SeqCst);
        for loader in loaders {
            answers.extend(loader.join().unwrap());
        }
        gateway.start_again();
    }
    let mut hits: HashMap<String, usize> = HashMap::new();
    for seen in upstream.seen() {
        *hits
            .entry(seen.head.header("idempotency-key").unwrap().to_owned())
            .or_default() += 1;
    }
    assert!(hits.len() > 100, "{}", hits.len());
    assert!(hits.values().all(|&n| n == 1), "run twice: {hits:?}");
    let before = upstream.hits();
    let mut client = gateway.connect();
    for key in hits.keys() {
        let retry = client.ask(&post("/x", key, "b"));
        match answers.get(key) {
            Some(text) => assert_eq!(&retry.text(), text, "another answer for {key}"),
            None => assert!(matches!(retry.status(), 200 | 502), "{key}: {retry:?}"),
        }
    }
    assert_eq!(upstream.hits(), before, "a key that ran was run again");
}

/// Sends new keys until told to stop or the gateway dies; the answers that came whole.
fn load(addr: std::net::SocketAddr, name: &str, stop: &AtomicBool) -> HashMap<String, String> {
    let mut answers = HashMap::new();
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("k-{name}-{n}");
        let Ok(stream) = std::net::TcpStream::connect(addr) else {
            break;
        };
        let mut client = Client::over(onlyonce_testkit::Wire::new(stream));
        client.try_send_bytes(&post("/x", &key, "b").bytes());
        if client.try_read_head().is_err() {
            break;
        }
        let answer = client.finish();
        if answer.whole() && answer.status() == 200 {
            answers.insert(key, answer.text());
        }
    }
    answers
}

/// Jumps the wall clock while the gateway runs: nothing runs again and nothing is lost.
#[track_caller]
fn clock_jumps(days: i64) {
    let (upstream, go) = held();
    let faults = Faults::new();
    let gateway: Gateway = faults.on(setup(&upstream)).start();
    let mut running = gateway.begin(&post("/x", "running", "b"));
    upstream.wait_for_hits(1);
    faults.set(&format!("clock={}", days * 86_400));
    let mut joined = gateway.begin(&post("/x", "running", "b"));
    assert_eq!(joined.read_head().header("onlyonce-status"), Some("joined"));
    go.fire();
    let first = running.response();
    expect_executed(&first, 200);
    assert_eq!(joined.finish().text(), first.text());
    expect_replay(&gateway.post("/x", "running", "b"), &first);
    faults.clear();
    expect_replay(&gateway.post("/x", "running", "b"), &first);
    assert_eq!(upstream.hits(), 1);
}

/// Case: the wall clock jumps by 30 days, ahead or back, or stands back at a start. Answer: nothing runs again, nothing is
/// lost.
#[test]
fn hostile_095_a_clock_that_jumps_ahead_loses_nothing() {
    clock_jumps(30);
}

#[test]
fn hostile_095_a_clock_that_jumps_back_loses_nothing() {
    clock_jumps(-30);
}

#[test]
fn hostile_095_a_restart_on_a_clock_that_jumped_back_loses_nothing() {
    let upstream = Upstream::counting();
    let faults = Faults::new();
    let mut gateway = faults.on(setup(&upstream)).start();
    let first = gateway.post("/x", "k", "b");
    expect_executed(&first, 200);
    gateway.kill();
    faults.set(&format!("clock={}", -30 * 86_400));
    gateway.start_again();
    expect_replay(&gateway.post("/x", "k", "b"), &first);
    let second = gateway.post("/x", "k2", "b");
    expect_executed(&second, 200);
    faults.clear();
    expect_replay(&gateway.post("/x", "k2", "b"), &second);
    assert_eq!(upstream.hits(), 2);
}

#[test]
fn hostile_096_paused_past_its_lease_and_woken_it_runs_nothing_twice() {
    let (upstream, go) = held();
    let gateway = setup(&upstream).store("lease = \"1s\"").start();
    let mut client = gateway.begin(&post("/x", "k", "b"));
    client.read_head();
    client.read_until("begun");
    gateway.pause();
    let paused = std::time::Instant::now();
    go.fire();
    eventually("the lease has passed", || {
        paused.elapsed() > Duration::from_millis(1500)
    });
    gateway.resume();
    let answer = client.finish();
    // Its own lease may have lapsed: then the outcome is unknown, and never "free again".
    gateway.control().wait_for_state(
        "k",
        if answer.whole() {
            "completed"
        } else {
            "unknown"
        },
    );
    let retry = gateway.post("/x", "k", "b");
    if answer.whole() {
        expect_replay(&retry, &answer);
    } else {
        retry
            .expect_problem(502, "outcome-unknown")
            .expect_retry(false);
    }
    assert_eq!(upstream.hits(), 1);
}
