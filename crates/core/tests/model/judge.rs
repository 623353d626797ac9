//! The last word: what the upstream and the clients have seen, and nothing else.
//!
//! It knows no record, no epoch and no store. When a seed is over, it goes through the upstream's ledger and
//! through what each client was told, and panics where that breaks a guarantee: whatever the protocol, its
//! assertions and the reference believe by then.

use std::time::Duration;

use crate::{
    KEYS, LAG, WINDOW,
    models::{Forgets, Model},
    reference::{Fate, Reference},
};

/// No two clocks are further apart than that, where one of them opens a window and the other closes it.
const SLACK: Duration = Duration::from_secs(2 * LAG.as_secs());

/// A request that the upstream got.
struct Line {
    key: usize,
    fp: u8,
    /// Whose request it is.
    attempt: usize,
    /// Whether the route lets it be sent again.
    resend: bool,
    at: Duration,
    fate: Fate,
}

/// An answer that somebody made.
struct Made {
    key: usize,
    fp: u8,
    /// When its request was sent, where the upstream made it.
    sent: Option<Duration>,
    at: Duration,
    /// When a client was told it first.
    told: Option<Duration>,
}

/// What is seen from outside. All times are true time since the start.
#[derive(Default)]
pub struct Judge {
    ledger: Vec<Line>,
    /// By its number, from 1.
    answers: Vec<Made>,
    /// When an operator said that an operation did not run, or may run again, by key.
    rulings: [Vec<Duration>; KEYS],
}

impl Judge {
    /// A request reaches the upstream; lines have the numbers of the reference's.
    pub fn sent(&mut self, key: usize, fp: u8, attempt: usize, resend: bool, at: Duration) {
        self.ledger.push(Line {
            key,
            fp,
            attempt,
            resend,
            at,
            fate: Fate::Pending,
        });
    }

    pub fn decided(&mut self, line: usize, fate: Fate) {
        self.ledger[line].fate = fate;
    }

    /// The upstream makes the next answer, to the request in `line`.
    pub fn answered(&mut self, line: usize, at: Duration) {
        let Line {
            key, fp, at: sent, ..
        } = self.ledger[line];
        self.answers.push(Made {
            key,
            fp,
            sent: Some(sent),
            at,
            told: None,
        });
    }

    /// An operator knows the next answer, to the request `fp` under `key`.
    pub fn known(&mut self, key: usize, fp: u8, at: Duration) {
        self.answers.push(Made {
            key,
            fp,
            sent: None,
            at,
            told: None,
        });
    }

    /// An operator says that what ran under `key` did not, or may run again.
    pub fn ruled(&mut self, key: usize, at: Duration) {
        self.rulings[key].push(at);
    }

    /// A client that has asked `fp` under `key` has this whole answer.
    pub fn told(&mut self, key: usize, fp: u8, answer: u32, at: Duration) {
        let made = self.answers.get_mut(answer as usize - 1);
        let made = made.unwrap_or_else(|| panic!("I5: nobody made answer {answer}"));
        assert_eq!(made.key, key, "I7: the answer of another key");
        assert_eq!(made.fp, fp, "I6: the answer to another request");
        made.told.get_or_insert(at);
    }

    /// The client of `attempt` was told that nothing ran.
    pub fn told_that_nothing_ran(&self, attempt: usize) {
        let mut lines = self.ledger.iter().filter(|line| line.attempt == attempt);
        let ran = lines.any(|line| line.fate != Fate::DidNotRun);
        assert!(
            !ran,
            "I10: the client of attempt {attempt} was told that nothing ran"
        );
    }

    /// When the request in `line` reached the upstream.
    pub fn sent_at(&self, line: usize) -> Duration {
        self.ledger[line].at
    }

    /// Goes through all of it. Of keys of which the store has forgotten something, what follows from that is
    /// counted by the reference.
    pub fn judge(&self, model: &Model, reference: &Reference) {
        let slack = SLACK + reference.clock_was_moved();
        for key in 0..KEYS {
            let is_forgotten = reference.has_forgotten(key);
            // What nobody was told of is not executed.
            if !is_forgotten || model.forgets == Forgets::Unacknowledged {
                self.judge_executions(key, slack, is_forgotten);
            }
            if !is_forgotten {
                self.judge_answers(key, slack);
            }
        }
    }

    /// I1: what may have run is followed by another execution only where the route resends, after an
    /// operator's word, or after a window.
    fn judge_executions(&self, key: usize, slack: Duration, is_forgotten: bool) {
        let lines: Vec<_> = self.ledger.iter().filter(|line| line.key == key).collect();
        for (index, later) in lines.iter().enumerate() {
            let before = lines[..index].iter();
            for earlier in before.filter(|line| line.fate != Fate::DidNotRun) {
                let apart = later.at - earlier.at + slack >= WINDOW;
                // What a client has the answer of is sent again by no route.
                let resent = later.resend && (is_forgotten || !self.is_told(earlier, later.at));
                let again = resent || apart || self.is_ruled(key, earlier.at, later.at);
                assert!(
                    again,
                    "I1: key {key} was sent at {:?} and, as if for the first time, at {:?}",
                    earlier.at, later.at
                );
            }
        }
    }

    /// Whether a client had the answer to the request in `line` by then.
    fn is_told(&self, line: &Line, by: Duration) -> bool {
        let mut answers = self.answers.iter();
        answers.any(|made| {
            let is_its = made.key == line.key && made.sent == Some(line.at);
            is_its && made.told.is_some_and(|told| told < by)
        })
    }

    /// I4: who has an answer, and who has another one, are a window or an operator's word apart.
    fn judge_answers(&self, key: usize, slack: Duration) {
        let told = |made: &&Made| made.key == key && made.told.is_some();
        let mut told: Vec<_> = self.answers.iter().filter(told).collect();
        told.sort_by_key(|made| made.at);
        for pair in told.windows(2) {
            let [first, second] = pair else { continue };
            let begun = second.sent.unwrap_or(second.at);
            let apart = begun.saturating_sub(first.at) + slack >= WINDOW;
            let is_ruled = self.is_ruled(key, first.at, begun);
            assert!(
                apart || is_ruled,
                "I4: key {key} was answered at {:?}, and otherwise at {:?}",
                first.told,
                second.told
            );
        }
    }

    fn is_ruled(&self, key: usize, from: Duration, to: Duration) -> bool {
        let mut rulings = self.rulings[key].iter();
        rulings.any(|at| (from..=to).contains(at))
    }
}

/// That it sees each of the breaches that it is there for, and takes nothing else for one.
#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use onlyonce_core::Timestamp;

    use super::*;
    use crate::models::MODELS;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn verdict(history: impl FnOnce(&mut Judge)) -> Result<(), String> {
        let model = MODELS.iter().find(|model| model.name == "embedded");
        catch_unwind(AssertUnwindSafe(|| {
            let mut judge = Judge::default();
            history(&mut judge);
            let model = model.expect("it is there");
            judge.judge(model, &Reference::new(KEYS, model, Timestamp::default()));
        }))
        .map_err(|panic| {
            let said = panic.downcast_ref::<String>().cloned();
            said.or_else(|| panic.downcast_ref::<&str>().map(|&said| said.to_owned()))
                .expect("a message")
        })
    }

    #[track_caller]
    fn is_seen(guarantee: &str, history: impl FnOnce(&mut Judge)) {
        let said = verdict(history).expect_err("it was not seen");
        assert!(said.contains(guarantee), "{said}");
    }

    #[track_caller]
    fn is_lawful(history: impl FnOnce(&mut Judge)) {
        assert_eq!(verdict(history), Ok(()));
    }

    /// The request of `attempt` runs, `at` after the start.
    fn runs(judge: &mut Judge, attempt: usize, resend: bool, at: Duration) {
        judge.sent(0, 1, attempt, resend, at);
        judge.decided(judge.ledger.len() - 1, Fate::Ran);
        judge.answered(judge.ledger.len() - 1, at);
    }

    #[test]
    fn it_sees_what_ran_twice() {
        is_seen("I1:", |judge| {
            runs(judge, 1, false, HOUR);
            runs(judge, 2, false, 2 * HOUR);
        });
        // Also where nobody knows whether the first one ran.
        is_seen("I1:", |judge| {
            judge.sent(0, 1, 1, false, HOUR);
            runs(judge, 2, false, 2 * HOUR);
        });
        is_seen("I1:", |judge| {
            runs(judge, 1, false, HOUR);
            runs(
                judge,
                2,
                false,
                HOUR + WINDOW - SLACK - Duration::from_millis(1),
            );
        });
        // A route may resend what nobody knows of, and not what somebody has the answer of.
        is_seen("I1:", |judge| {
            runs(judge, 1, true, HOUR);
            judge.told(0, 1, 1, HOUR);
            runs(judge, 2, true, 2 * HOUR);
        });
        // A word that was said before concerns another execution.
        is_seen("I1:", |judge| {
            judge.ruled(0, Duration::ZERO);
            runs(judge, 1, false, HOUR);
            runs(judge, 2, false, 2 * HOUR);
        });
    }

    #[test]
    fn it_lets_run_again_what_may() {
        is_lawful(|judge| {
            runs(judge, 1, false, HOUR);
            runs(judge, 2, false, HOUR + WINDOW);
        });
        is_lawful(|judge| {
            runs(judge, 1, false, HOUR);
            judge.ruled(0, 2 * HOUR);
            runs(judge, 2, false, 3 * HOUR);
        });
        is_lawful(|judge| {
            judge.sent(0, 1, 1, false, HOUR);
            runs(judge, 2, true, 2 * HOUR);
        });
        is_lawful(|judge| {
            judge.sent(0, 1, 1, false, HOUR);
            judge.decided(0, Fate::DidNotRun);
            judge.told_that_nothing_ran(1);
            runs(judge, 2, false, 2 * HOUR);
        });
        is_lawful(|judge| {
            runs(judge, 1, false, HOUR);
            judge.sent(1, 1, 2, false, 2 * HOUR);
        });
    }

    #[test]
    fn it_sees_answers_that_are_not_the_first_one() {
        is_seen("I4:", |judge| {
            runs(judge, 1, true, HOUR);
            runs(judge, 2, true, 2 * HOUR);
            judge.told(0, 1, 1, 3 * HOUR);
            judge.told(0, 1, 2, 3 * HOUR);
        });
        is_seen("I5:", |judge| judge.told(0, 1, 1, HOUR));
        is_seen("I6:", |judge| {
            runs(judge, 1, false, HOUR);
            judge.told(0, 2, 1, HOUR);
        });
        is_seen("I7:", |judge| {
            runs(judge, 1, false, HOUR);
            judge.told(1, 1, 1, HOUR);
        });
        is_lawful(|judge| {
            runs(judge, 1, true, HOUR);
            runs(judge, 2, true, 2 * HOUR);
            judge.told(0, 1, 2, 2 * HOUR);
            judge.told(0, 1, 2, 3 * HOUR);
        });
        is_lawful(|judge| {
            runs(judge, 1, false, HOUR);
            judge.told(0, 1, 1, HOUR);
            judge.ruled(0, 2 * HOUR);
            judge.known(0, 1, 2 * HOUR);
            judge.told(0, 1, 2, 2 * HOUR);
        });
    }

    #[test]
    fn it_sees_who_was_told_that_nothing_ran_though_it_did() {
        is_seen("I10:", |judge| {
            runs(judge, 1, false, HOUR);
            judge.told_that_nothing_ran(1);
        });
        is_seen("I10:", |judge| {
            judge.sent(0, 1, 1, false, HOUR);
            judge.told_that_nothing_ran(1);
        });
        is_lawful(|judge| {
            runs(judge, 1, false, HOUR);
            judge.told_that_nothing_ran(2);
        });
    }
}
