//! Connections that end at every byte of a request and of an answer, one after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use onlyonce_core::StateName;
use tokio::time::sleep;

use crate::client::{self, Action, Heard, Manner};
use crate::gateway::Gateway;
use crate::random::Random;
use crate::seed::in_time;
use crate::seeds::number_from;
use crate::upstream::{How, Kind, Plan};
use crate::world::{Counts, Fixed, Temper, World};

const WAYS: [How; 3] = [How::Reset, How::Closed, How::Stalls];

/// What is asked for, and what is answered.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    body_len: usize,
    answer: Kind,
}

pub const COUNTED: Shape = Shape {
    body_len: 60,
    answer: Kind::Counted {
        status: 200,
        len: 60,
    },
};
const EVENTS: Shape = Shape {
    body_len: 60,
    answer: Kind::Events {
        count: 5,
        trailers: true,
    },
};

impl Shape {
    /// Another one for each seed.
    fn of(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let answer = match random.chance(50) {
            true => Kind::Counted {
                status: 200,
                len: 1 + random.below(200),
            },
            false => Kind::Events {
                count: 1 + random.below(8),
                trailers: random.chance(50),
            },
        };
        Self {
            body_len: random.below(200),
            answer,
        }
    }

    fn action(self) -> Action {
        Action {
            tenant: 0,
            key: "k0".to_owned(),
            route: 0,
            version: 0,
            body_len: self.body_len,
        }
    }

    /// Its answer, which ends there where that is told.
    pub fn answering(self, answer_ends: Option<(usize, How)>) -> Plan {
        Plan {
            answer: self.answer,
            answer_ends,
            thinks: Duration::from_millis(10),
            ..Plan::plain()
        }
    }

    /// The bytes of the request as the upstream gets it, and of the answer.
    fn lengths(self) -> (usize, usize) {
        let whole = self.cut(usize::MAX, self.answering(None), &Manner::patient());
        assert_eq!(whole.wrong, [""; 0]);
        assert_eq!(whole.state, Some(StateName::Completed));
        for heard in [&whole.first, &whole.joined, &whole.later] {
            assert_eq!(problem(heard), "an answer");
        }
        (whole.seen[0], crate::upstream::answer_len(self.answer))
    }

    /// One operation over a line that is cut, or whose gateway dies, with a caller of this manner.
    pub fn cut(self, takes: usize, exchange: Plan, manner: &Manner) -> Came {
        in_time(async {
            let fixed = Fixed { takes, exchange };
            let world = World::new(
                0,
                Temper::default(),
                Some(fixed),
                vec![self.action()],
                false,
            );
            let gateway = Gateway::start(&world, 0);
            let (dying, death) = (Arc::clone(&gateway), Arc::clone(&world));
            tokio::spawn(async move {
                death.gateway_dies.notified().await;
                dying.kill();
                dying.starts();
            });
            let (action, patient) = (self.action(), Manner::patient());
            let (first, joined) = tokio::join!(
                client::attempt(&world, &gateway, &action, manner),
                follower(&world, &gateway, &action, manner),
            );
            sleep(Duration::from_secs(10)).await;
            let state = world.record(0, "k0").map(|record| record.state.name());
            let later = client::attempt(&world, &gateway, &action, &patient).await;
            world.judge_all();
            let seen = world.ledger(|ledger| ledger.iter().map(|one| one.seen).collect());
            Came {
                first,
                joined,
                later,
                state,
                seen,
                wrong: world.told().wrong,
            }
        })
    }

    /// The connection ends at every byte of the request, which the upstream has read so far. Gives how many bytes.
    fn cut_request(self) -> usize {
        let (len, _) = self.lengths();
        for at in 0..len {
            for how in WAYS {
                let plan = Plan {
                    request_ends: Some((at, how)),
                    ..Plan::plain()
                };
                let came = self.cut(usize::MAX, plan, &Manner::patient());
                // What was written may have been read: that it was not, only the upstream knows.
                expect_unknown(&came, false, &format!("{how:?} at byte {at} of {len}"));
                assert_eq!(came.seen.first().copied().unwrap_or(0), at);
            }
        }
        len
    }

    /// The same of the answer.
    fn cut_answer(self) -> usize {
        let (_, len) = self.lengths();
        for at in 0..len {
            for how in WAYS {
                let plan = self.answering(Some((at, how)));
                let came = self.cut(usize::MAX, plan, &Manner::patient());
                let case = format!("{self:?}, {how:?} at byte {at} of {len}");
                expect_unknown(&came, true, &case);
            }
        }
        len
    }

    /// The gateway dies at every byte of the request and of the answer.
    fn die(self) {
        let (request_len, answer_len) = self.lengths();
        let within = |len| (0..len).map(|at| Some((at, How::GatewayDies)));
        let asking = within(request_len).map(|request_ends| Plan {
            request_ends,
            ..Plan::plain()
        });
        let answers = within(answer_len).map(|ends| self.answering(ends));
        for plan in asking.chain(answers) {
            let case = format!("{plan:?}");
            let came = self.cut(usize::MAX, plan, &Manner::patient());
            assert_eq!(came.wrong, [""; 0], "{case}");
            assert_eq!(came.state, Some(StateName::Unknown), "{case}");
            let told = problem(&came.first);
            assert!(["broken", "nothing"].contains(&told), "{case}: {told}");
            assert_eq!(problem(&came.later), "unknown", "{case}");
        }
    }
}

/// What came of one cut.
pub struct Came {
    /// What the caller heard, and who joined it, and who came when all was over.
    pub first: Heard,
    pub joined: Heard,
    pub later: Heard,
    /// What the store held before the last one came.
    pub state: Option<StateName>,
    /// Bytes that the upstream saw of each request.
    pub seen: Vec<usize>,
    pub wrong: Vec<String>,
}

/// Comes once the first one has begun; nobody, where that does not end its request.
async fn follower(world: &Arc<World>, gateway: &Gateway, action: &Action, first: &Manner) -> Heard {
    if first.leaves_sending.is_some() {
        return Heard::Left;
    }
    sleep(Duration::from_millis(1)).await;
    client::attempt(world, gateway, action, &Manner::patient()).await
}

fn problem(heard: &Heard) -> &str {
    match heard {
        Heard::Answer(head, _) if head.header("onlyonce-status").is_some() => "an answer",
        Heard::Answer(head, _) => match head.status() {
            502 | 504 => match head.header("x-should-retry") {
                Some("true") => "unreachable",
                _ => "unknown",
            },
            _ => "another problem",
        },
        Heard::Broken(Some(_), _) => "broken",
        Heard::Broken(None, _) => "nothing",
        Heard::Left => "left",
        Heard::NoConnection => "no connection",
    }
}

/// Nobody knows, and all say so; the upstream saw one request.
fn expect_unknown(came: &Came, broken: bool, case: &str) {
    assert_eq!(came.wrong, [""; 0], "{case}");
    assert_eq!(came.state, Some(StateName::Unknown), "{case}");
    for heard in [&came.first, &came.joined] {
        let told = problem(heard);
        assert!(
            told == "unknown" || (broken && told == "broken"),
            "{case}: {told}"
        );
    }
    assert_eq!(problem(&came.later), "unknown", "{case}");
    assert!(came.seen.len() <= 1, "{case}: {:?}", came.seen);
}

/// Nothing ran, which is over at once, and whoever comes next runs.
fn expect_released(came: &Came, case: &str) {
    assert_eq!(came.wrong, [""; 0], "{case}");
    assert_eq!(problem(&came.first), "unreachable", "{case}");
    assert_eq!(problem(&came.joined), "an answer", "{case}");
    assert_eq!(came.state, Some(StateName::Completed), "{case}");
}

#[test]
fn a_cut_at_every_byte_of_a_request_that_was_read_is_unknown() {
    assert!(COUNTED.cut_request() > 200);
}

#[test]
fn i10_a_line_that_takes_no_byte_releases_and_one_that_takes_any_does_not() {
    let (len, _) = COUNTED.lengths();
    for at in 0..len {
        let came = COUNTED.cut(at, Plan::plain(), &Manner::patient());
        let case = format!("{at} of {len} bytes were taken");
        match at {
            0 => expect_released(&came, &case),
            _ => expect_unknown(&came, false, &case),
        }
    }
    let came = COUNTED.cut(len, Plan::plain(), &Manner::patient());
    assert_eq!(came.wrong, [""; 0]);
    assert_eq!(problem(&came.first), "an answer");
}

#[test]
fn i05_a_cut_at_every_byte_of_an_answer_is_unknown_and_never_a_clean_end() {
    for shape in [COUNTED, EVENTS] {
        assert!(shape.cut_answer() > 150);
    }
}

#[test]
fn l3_a_gateway_that_dies_at_any_byte_leaves_an_outcome_that_is_unknown() {
    for shape in [COUNTED, EVENTS] {
        shape.die();
    }
}

/// The campaign `resets`.
#[test]
fn no_byte_of_what_a_seed_draws_is_a_place_to_break_at() {
    let from = number_from("ONLYONCE_FROM").unwrap_or(0);
    let seeds = number_from("ONLYONCE_SEEDS").unwrap_or(1);
    let seconds = number_from("ONLYONCE_SECONDS").unwrap_or(u64::MAX);
    let until = Instant::now().checked_add(Duration::from_secs(seconds));
    let (mut counts, mut violations) = (Counts::new(), Vec::new());
    let mut to = from;
    while to < from + seeds && until.is_none_or(|until| Instant::now() < until) {
        let shape = Shape::of(to);
        let cuts = || {
            let (request, answer) = (shape.cut_request(), shape.cut_answer());
            shape.die();
            (request, answer)
        };
        match catch_unwind(AssertUnwindSafe(cuts)) {
            Ok((request, answer)) => {
                let bytes = (request + answer) as u64;
                for (what, number) in [
                    ("requests cut at every byte", 1),
                    ("answers cut at every byte", 1),
                    ("resets", bytes),
                    ("ends", bytes),
                    ("silences", bytes),
                    ("deaths of the gateway", bytes),
                ] {
                    *counts.entry(what).or_default() += number;
                }
            }
            Err(panic) => {
                let said = panic.downcast_ref::<String>();
                violations.push(format!("seed {to}: {}", said.map_or("", |said| said)));
            }
        }
        to += 1;
    }
    let failed = !violations.is_empty();
    let did = serde_json::json!({ "to": to, "counts": counts, "violations": violations });
    println!("\n{did}");
    assert!(!failed, "see above");
}

#[test]
fn l1_a_caller_that_leaves_at_any_byte_leaves_nothing_half_done() {
    let len = COUNTED.action().bytes(0).len();
    for at in 0..=len {
        let manner = Manner {
            leaves_sending: Some(at),
            ..Manner::patient()
        };
        let came = COUNTED.cut(usize::MAX, Plan::plain(), &manner);
        assert_eq!(came.wrong, [""; 0]);
        // A request that came whole is executed, whoever stays to hear of it.
        let expected = (at == len).then_some(StateName::Completed);
        assert_eq!(came.state, expected, "after {at} bytes of {len}");
        assert_eq!(problem(&came.later), "an answer");
    }
    for shape in [COUNTED, EVENTS] {
        let mut at = 1;
        loop {
            let manner = Manner {
                leaves_reading: Some(at),
                ..Manner::patient()
            };
            let came = shape.cut(usize::MAX, shape.answering(None), &manner);
            assert_eq!(came.wrong, [""; 0]);
            assert_eq!(came.state, Some(StateName::Completed));
            assert_eq!(problem(&came.joined), "an answer");
            if !matches!(came.first, Heard::Left) {
                break;
            }
            at += 1;
        }
        // It gets our own fields too.
        let (_, len) = shape.lengths();
        assert!(at > len, "left at {at} bytes, and the upstream gave {len}");
    }
}
