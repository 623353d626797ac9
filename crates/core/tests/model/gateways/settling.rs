//! How an execution ends: the outcome is written, and then told.

use onlyonce_core::{Record, ReleaseReason, UnknownReason, transition};

use super::{Attempt, Gateways, Own, Settlement, Stage, response};
use crate::{
    RETENTION, WINDOW,
    reference::{By, Token},
    world::{Ack, Write},
};

impl Gateways {
    pub(super) fn settles(&mut self, index: usize, own: Own, settlement: Settlement) -> Stage {
        let Attempt { gateway, key, .. } = self.attempts[index];
        // A gateway goes by what it remembers, or looks again: the fence holds either way.
        let looks = self.world.random.chance(30);
        let now = self.world.clock(gateway);
        if looks {
            let Some(loaded) = self.world.load(gateway, key) else {
                return self.tries_again(index, own, settlement);
            };
            if loaded.counting(now).map(Record::fence) != Some(own.record.fence()) {
                return self.lost(index, settlement);
            }
        }
        let held = Some(&own.record);
        let (fence, token) = (own.record.fence(), own.token);
        let (next, by) = match settlement {
            Settlement::Completed(answer) => (
                transition::complete(held, fence, response(answer), now, WINDOW),
                By::Completion(token, answer),
            ),
            Settlement::Released(reason) => (
                transition::release(held, fence, reason, now, RETENTION),
                By::Release(token),
            ),
            Settlement::Lost(reason) => {
                (transition::lose(held, fence, reason, now), By::Loss(token))
            }
            Settlement::LostForNow(_) => (
                transition::lose(held, fence, UnknownReason::TimedOut, now),
                By::Loss(token),
            ),
        };
        let next = next.unwrap_or_else(|error| panic!("attempt {index}: {error}"));
        let ack = self.world.write(Write {
            gateway,
            key,
            base: held,
            record: &next,
            by,
            read_at: now,
            waits: true,
        });
        self.settlement_is_answered(index, own, settlement, next, ack)
    }

    pub(super) fn settlement_is_answered(
        &mut self,
        index: usize,
        own: Own,
        settlement: Settlement,
        next: Record,
        ack: Ack,
    ) -> Stage {
        match ack {
            Ack::Done => self.settled(index, own.token, settlement, next),
            Ack::Lost => self.lost(index, settlement),
            Ack::InDoubt => Stage::ReadingBackSettlement(own, settlement, Box::new(next)),
            Ack::OnItsWay(ticket) => {
                Stage::AwaitingSettlement(own, settlement, Box::new(next), ticket)
            }
            Ack::Unavailable => self.tries_again(index, own, settlement),
        }
    }

    pub(super) fn tries_again(&mut self, index: usize, own: Own, settlement: Settlement) -> Stage {
        self.attempts[index].tries += 1;
        match self.attempts[index].tries {
            // Hostile 84: the end is withheld, and the client told that nobody can say.
            3.. => self.tell(index, "told unknown: the store does not take the outcome"),
            _ => Stage::Settling(own, settlement),
        }
    }

    pub(super) fn reads_back_settlement(
        &mut self,
        index: usize,
        own: Own,
        settlement: Settlement,
        next: Record,
    ) -> Stage {
        let Attempt { gateway, key, .. } = self.attempts[index];
        let Some(loaded) = self.world.load(gateway, key) else {
            return Stage::ReadingBackSettlement(own, settlement, Box::new(next));
        };
        let held = loaded.record.as_ref();
        if held == Some(&next) {
            self.world.coverage.count("an outcome in doubt was written");
            return self.settled(index, own.token, settlement, next);
        }
        if held == Some(&own.record) {
            return self.tries_again(index, own, settlement);
        }
        self.lost(index, settlement)
    }

    pub(super) fn settled(
        &mut self,
        index: usize,
        token: Token,
        settlement: Settlement,
        record: Record,
    ) -> Stage {
        match settlement {
            Settlement::Completed(answer) => {
                self.world.reference.saw_the_end(token.id, answer);
                self.is_told(index, answer);
                self.tell(index, "executed")
            }
            Settlement::Released(reason) => {
                self.judge.told_that_nothing_ran(index);
                self.tell(
                    index,
                    match reason {
                        ReleaseReason::NotSent => "told not sent",
                        _ => "given the answer that it did not run",
                    },
                )
            }
            Settlement::Lost(_) => self.tell(index, "told unknown"),
            Settlement::LostForNow(line) => {
                self.tell(index, "told unknown for now");
                Stage::Late(Own { record, token }, line)
            }
        }
    }

    /// Somebody else wrote since (I9): the outcome is whatever they have written.
    pub(super) fn lost(&mut self, index: usize, settlement: Settlement) -> Stage {
        match settlement {
            Settlement::Completed(_) => self.tell(index, "broken off: an answer comes too late"),
            _ => self.tell(index, "told unknown: it was fenced off"),
        }
    }
}
