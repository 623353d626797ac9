//! Executions that workers hold: no gateway's death ends them, and any gateway writes what they say.

use onlyonce_core::{Held, Record, ReleaseReason, State, UnknownReason, transition, view};

use super::{Attempt, Gateways, Own, Report, Stage, response};
use crate::{
    OWNERS, RETENTION, WINDOW,
    reference::{By, Fate, Token},
    world::{Ack, Write},
};

impl Attempt {
    /// Whether a worker holds its claim by now, and knows.
    pub(super) fn is_a_workers(&self) -> bool {
        let holds = matches!(
            self.stage,
            Stage::Ready(_) | Stage::Sending(..) | Stage::Sent(..) | Stage::Reporting(..)
        );
        self.worker.is_some() && holds
    }

    /// Whether it has looked at its lease, and sends in a moment.
    pub(super) fn stands_still(&self) -> bool {
        matches!(self.stage, Stage::Sending(..))
    }
}

impl Gateways {
    /// A worker is at it.
    pub(super) fn works(&mut self, index: usize, own: Own, line: usize, roll: usize) -> Stage {
        let (fate, report) = match roll {
            0..40 => (Fate::Ran, Some(Report::Completed(self.new_answer(line)))),
            40..50 => (Fate::DidNotRun, Some(Report::DidNotRun)),
            50..60 => (Fate::Ran, Some(Report::CannotSay)),
            60..70 => (Fate::Ran, None),
            _ => return Stage::Sent(own, line),
        };
        self.decided(line, fate);
        match report {
            Some(report) => Stage::Reporting(own.token, report),
            None => self.tell(index, "a worker dies"),
        }
    }

    /// It is written over whatever stands there under the worker's claim, as somebody reads it now.
    pub(super) fn reports(&mut self, index: usize, token: Token, report: Report) -> Stage {
        // It may take its time, and says nothing of its lease meanwhile.
        if self.world.faults && self.world.random.chance(75) {
            return Stage::Reporting(token, report);
        }
        let key = self.attempts[index].key;
        let gateway = self.world.random.below(OWNERS);
        let Some(loaded) = self.world.load(gateway, key) else {
            return self.says_again(index, token, report);
        };
        let now = self.world.clock(gateway);
        let Held::Record { record, .. } = view(loaded.record.as_ref(), now) else {
            return self.tell(index, "a worker's operation is gone");
        };
        if !is_claim(record, token) {
            return self.tell(index, "a worker's claim is not the one that counts");
        }
        let fence = record.fence();
        let (next, by) = match (report, &record.state) {
            (Report::Completed(answer), State::Completed(done)) => {
                let stands = done.body_len == u64::from(answer);
                if stands {
                    self.world.reference.saw_the_end(token.id, answer);
                }
                return self.tell(index, "a worker finds it settled");
            }
            (Report::Completed(answer), State::InFlight { .. } | State::Unknown { .. }) => {
                if let State::Unknown { .. } = record.state {
                    self.world.coverage.count("a worker's late result");
                }
                let response = response(answer);
                let next = transition::complete(Some(record), fence, response, now, WINDOW);
                (next, By::Completion(token, answer))
            }
            (Report::DidNotRun, State::InFlight { .. }) => {
                let reason = ReleaseReason::Worker;
                let next = transition::release(Some(record), fence, reason, now, RETENTION);
                (next, By::Release(token))
            }
            (Report::CannotSay, State::InFlight { .. }) => {
                let reason = UnknownReason::WorkerFailed;
                let next = transition::lose(Some(record), fence, reason, now);
                (next, By::Loss(token))
            }
            _ => return self.tell(index, "a worker finds it settled"),
        };
        let next = next.unwrap_or_else(|error| panic!("attempt {index}: {error}"));
        let ack = self.world.write(Write {
            gateway,
            key,
            base: Some(record),
            record: &next,
            by,
            read_at: now,
            waits: false,
        });
        match (ack, report) {
            (Ack::Done, Report::Completed(answer)) => {
                self.world.reference.saw_the_end(token.id, answer);
                self.tell(index, "a worker completes")
            }
            (Ack::Done, _) => self.tell(index, "a worker settles it otherwise"),
            _ => self.says_again(index, token, report),
        }
    }

    fn says_again(&mut self, index: usize, token: Token, report: Report) -> Stage {
        self.attempts[index].tries += 1;
        match self.attempts[index].tries {
            6.. => self.tell(index, "a worker gives up"),
            _ => Stage::Reporting(token, report),
        }
    }
}

fn is_claim(record: &Record, token: Token) -> bool {
    record.id == token.id && record.claim == token.epoch
}
