//! The decision, as tables: what an attempt got, where the call stands, and what comes of it.

use std::time::Duration;

use http::StatusCode;
use onlyonce_client::{Answer, Got, History, Next, Policy, Problem, Server, Stop};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn answer(status: u16) -> Answer {
    Answer {
        status: StatusCode::from_u16(status).unwrap(),
        is_replay: false,
        is_recorded: false,
        told: None,
        retry_after: None,
        expires_at: None,
        operation: None,
        problem: None,
    }
}

fn problem(status: u16, name: &str) -> Answer {
    Answer {
        problem: Some(Problem {
            kind: format!("https://gateway.example/problems/{name}"),
            detail: String::new(),
        }),
        ..answer(status)
    }
}

fn history() -> History {
    History {
        retries: 0,
        waits: 0,
        elapsed: Duration::ZERO,
        window_left: 24 * HOUR,
    }
}

/// What comes of `got`, at the longest wait.
fn next(server: &Server, got: &Got, history: &History) -> Next {
    Policy::default().next(server, got, history, 1.0)
}

fn retry(after: Duration) -> Next {
    Next::Retry {
        after,
        counts: true,
    }
}

fn wait(after: Duration) -> Next {
    Next::Retry {
        after,
        counts: false,
    }
}

fn servers() -> [(&'static str, Server); 3] {
    [
        ("onlyonce", Server::onlyonce()),
        ("stripe", Server::stripe()),
        ("generic", Server::generic(HOUR)),
    ]
}

#[test]
fn every_status_has_its_rule_on_every_server() {
    let again = retry(500 * MILLI);
    let done = Next::Stop(Stop::Answered);
    let in_flight = wait(500 * MILLI);
    for (statuses, onlyonce, stripe, generic) in [
        (&[200, 201, 204, 301, 304, 307][..], done, done, done),
        (
            &[400, 401, 402, 403, 404, 410, 413, 422, 431],
            done,
            done,
            done,
        ),
        (
            &[408, 425, 429, 500, 502, 503, 504, 529],
            again,
            again,
            again,
        ),
        (&[409], again, in_flight, again),
        (&[501, 505, 507], done, done, done),
    ] {
        for status in statuses {
            let got = Got::Answer(answer(*status));
            for ((name, server), expected) in servers().iter().zip([onlyonce, stripe, generic]) {
                assert_eq!(next(server, &got, &history()), expected, "{name} {status}");
            }
        }
    }
}

#[test]
fn what_broke_is_tried_again_and_what_cannot_be_sent_is_not() {
    for (name, server) in servers() {
        for got in [
            Got::NotConnected("refused".into()),
            Got::Broke("reset".into()),
            Got::TimedOut(SECOND),
        ] {
            assert_eq!(
                next(&server, &got, &history()),
                retry(500 * MILLI),
                "{name} {got}"
            );
        }
        let got = Got::CannotBeSent("no host".into());
        assert_eq!(
            next(&server, &got, &history()),
            Next::Stop(Stop::CannotBeSent)
        );
    }
}

#[test]
fn an_unknown_outcome_is_never_tried_again_whatever_else_is_said() {
    for (name, server) in servers() {
        for status in [500, 502, 504, 429, 409] {
            for told in [None, Some(true), Some(false)] {
                let got = Got::Answer(Answer {
                    told,
                    retry_after: Some(SECOND),
                    ..problem(status, "outcome-unknown")
                });
                let next = next(&server, &got, &history());
                assert_eq!(next, Next::Stop(Stop::Unknown), "{name} {status} {told:?}");
            }
        }
    }
}

#[test]
fn what_the_server_says_counts_for_more_than_its_status() {
    let told = |told, status| {
        Got::Answer(Answer {
            told: Some(told),
            ..answer(status)
        })
    };
    for (name, server) in servers() {
        for status in [400, 422, 429, 500, 503, 507] {
            let no = next(&server, &told(false, status), &history());
            assert_eq!(no, Next::Stop(Stop::ToldNotTo), "{name} {status}");
            let yes = next(&server, &told(true, status), &history());
            assert_eq!(yes, retry(500 * MILLI), "{name} {status}");
        }
        // But an answer is an answer.
        let done = next(&server, &told(true, 200), &history());
        assert_eq!(done, Next::Stop(Stop::Answered), "{name}");
    }
}

#[test]
fn hostile_068_what_is_recorded_is_final_since_every_attempt_would_get_it() {
    for (name, server) in servers() {
        for status in [400, 429, 500, 503] {
            let recorded = Got::Answer(Answer {
                is_recorded: true,
                told: Some(true),
                ..answer(status)
            });
            let replayed = Got::Answer(Answer {
                is_replay: true,
                ..answer(status)
            });
            for got in [recorded, replayed] {
                let next = next(&server, &got, &history());
                assert_eq!(next, Next::Stop(Stop::Answered), "{name} {status}");
            }
        }
        // Unless the server itself says to come again.
        let told = Got::Answer(Answer {
            is_replay: true,
            told: Some(true),
            ..answer(500)
        });
        assert_eq!(
            next(&server, &told, &history()),
            retry(500 * MILLI),
            "{name}"
        );
    }
}

#[test]
fn hostile_028_an_action_in_flight_is_waited_for_beyond_all_retries() {
    let spent = History {
        retries: 5,
        waits: 40,
        ..history()
    };
    let told = |told| {
        Got::Answer(Answer {
            told: Some(told),
            retry_after: Some(SECOND),
            ..problem(409, "operation-in-flight")
        })
    };
    for (name, server) in servers() {
        let next = |got| next(&server, &got, &spent);
        assert_eq!(next(told(true)), wait(SECOND + 500 * MILLI), "{name}");
        assert_eq!(next(told(false)), Next::Stop(Stop::ToldNotTo), "{name}");
    }
    let stripe = next(&Server::stripe(), &Got::Answer(answer(409)), &spent);
    assert_eq!(stripe, wait(8 * SECOND));
}

#[test]
fn waits_double_up_to_the_most_and_retries_end() {
    let broke = Got::Broke("reset".into());
    let server = Server::onlyonce();
    let waits = [500, 1000, 2000, 4000, 8000];
    for (retries, millis) in waits.into_iter().enumerate() {
        let history = History {
            retries: retries.try_into().unwrap(),
            ..history()
        };
        assert_eq!(next(&server, &broke, &history), retry(millis * MILLI));
    }
    let spent = History {
        retries: 5,
        ..history()
    };
    assert_eq!(
        next(&server, &broke, &spent),
        Next::Stop(Stop::RetriesSpent)
    );
    let patient = Policy {
        retries: u32::MAX,
        ..Policy::default()
    };
    let long = History {
        retries: u32::MAX - 1,
        ..history()
    };
    assert_eq!(patient.next(&server, &broke, &long, 1.0), retry(8 * SECOND));
}

#[test]
fn waits_are_spread_from_nothing_to_the_longest() {
    let broke = Got::Broke("reset".into());
    let history = History {
        retries: 2,
        ..history()
    };
    for (random, millis) in [
        (0.0, 0),
        (0.25, 500),
        (1.0, 2000),
        (7.0, 2000),
        (-1.0, 0),
        (f64::NAN, 2000),
    ] {
        let next = Policy::default().next(&Server::onlyonce(), &broke, &history, random);
        assert_eq!(next, retry(millis * MILLI), "{random}");
    }
}

#[test]
fn a_wait_that_the_server_asks_for_is_kept_in_full() {
    let got = |after| {
        Got::Answer(Answer {
            retry_after: Some(after),
            ..answer(429)
        })
    };
    for (asked, random, expected) in [
        (30 * SECOND, 0.0, 30 * SECOND),
        (30 * SECOND, 1.0, 30 * SECOND + 500 * MILLI),
        (MILLI, 0.0, MILLI),
    ] {
        let next = Policy::default().next(&Server::stripe(), &got(asked), &history(), random);
        assert_eq!(next, retry(expected));
    }
    // One that is longer than there is time is not cut short: that would be a knock at a closed door.
    for asked in [600 * SECOND, Duration::MAX] {
        let next = next(&Server::stripe(), &got(asked), &history());
        let expected = if asked == Duration::MAX {
            Stop::WindowOver
        } else {
            Stop::DeadlinePassed
        };
        assert_eq!(next, Next::Stop(expected));
    }
}

#[test]
fn nothing_is_tried_when_its_time_would_be_over() {
    let broke = Got::Broke("reset".into());
    let server = Server::onlyonce();
    let at = |elapsed, window_left| {
        let history = History {
            elapsed,
            window_left,
            ..history()
        };
        next(&server, &broke, &history)
    };
    let (half, deadline) = (500 * MILLI, 600 * SECOND);
    assert_eq!(at(deadline - half - MILLI, HOUR), retry(half));
    assert_eq!(at(deadline - half, HOUR), Next::Stop(Stop::DeadlinePassed));
    assert_eq!(at(deadline + HOUR, HOUR), Next::Stop(Stop::DeadlinePassed));
    assert_eq!(at(Duration::ZERO, half + MILLI), retry(half));
    assert_eq!(at(Duration::ZERO, half), Next::Stop(Stop::WindowOver));
    // Safety before patience.
    assert_eq!(at(deadline, Duration::ZERO), Next::Stop(Stop::WindowOver));
}
