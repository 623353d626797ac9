//! What happens apart from any request: renewals, sweepers, operators, deaths, time.

use std::time::Duration;

use onlyonce_core::{
    Held, NotLawful, Record, Resolution, State, StateName, UnknownReason, transition, view,
};

use super::{Attempt, Chore, Gateways, Stage, What, response};
use crate::{
    KEYS, LEASE, MARGIN, OWNERS, PAUSE, RETENTION, WINDOW, number_of,
    reference::By,
    world::{Ack, Write},
};

impl Gateways {
    pub(super) fn lease_is_renewed(&mut self) {
        let mut owners = Vec::new();
        for (index, attempt) in self.attempts.iter().enumerate() {
            if matches!(attempt.stage, Stage::Ready(_) | Stage::Sent(..)) {
                owners.push(index);
            }
        }
        if owners.is_empty() {
            return;
        }
        let index = owners[self.world.random.below(owners.len())];
        self.renews(index);
    }

    pub(super) fn time_passes(&mut self) {
        let key = self.world.random.below(KEYS);
        let edge = self.world.slot(key).and_then(|record| match record.state {
            State::InFlight { lease_until, .. } => Some(lease_until),
            _ => record.expires_at(),
        });
        let now = self.world.now;
        let pauses = self.attempts.iter().any(|one| one.stands_still());
        let span = match self.world.random.below(10) {
            0..3 if pauses => match self.world.random.chance(50) {
                true => PAUSE,
                false => PAUSE / 2,
            },
            0..3 => LEASE / 10,
            3..5 => LEASE / 2,
            5 => LEASE,
            6 => RETENTION,
            7 => WINDOW,
            // To the very edge of something, or one millisecond before it; or before its owner may not send any more.
            _ => {
                let span = edge.unwrap_or(now).since(now);
                let before = Duration::from_millis(1);
                match self.world.random.below(4) {
                    0 => span.saturating_sub(MARGIN + before),
                    1 | 2 => span,
                    _ => span.saturating_sub(before),
                }
            }
        };
        self.world.pass(span);
        self.world.note(|| format!("{span:?} have passed"));
    }

    /// A sweeper or an operator reads a record, and will act on it later.
    pub(super) fn somebody_looks_around(&mut self) {
        let key = self.world.random.below(KEYS);
        let gateway = self.world.random.below(OWNERS);
        let Some(loaded) = self.world.load(gateway, key) else {
            return;
        };
        let now = self.world.clock(gateway);
        let Held::Record {
            record,
            lease_passed,
        } = view(loaded.record.as_ref(), now)
        else {
            return;
        };
        let removes = record.state.name() == StateName::Completed;
        let seen = record.clone();
        let what = match self.world.random.below(4) {
            0 | 1 if lease_passed => What::Expire,
            0 if removes => What::OperatorRemoves,
            2 => What::OperatorSaysNo,
            3 => {
                let at = self.world.reference.elapsed();
                self.judge.known(key, number_of(&seen.fingerprint), at);
                self.answers += 1;
                What::OperatorKnows(self.answers)
            }
            _ => return,
        };
        self.world.note(|| {
            let (state, fence) = (seen.state.name(), seen.fence());
            format!("somebody has seen {state}, {fence:?}")
        });
        self.chores.push(Chore {
            gateway,
            key,
            seen,
            what,
        });
    }

    pub(super) fn chore_is_done(&mut self) {
        if self.chores.is_empty() {
            return;
        }
        let index = self.world.random.below(self.chores.len());
        let chore = self.chores.swap_remove(index);
        let (gateway, key, seen) = (chore.gateway, chore.key, chore.seen.fence());
        if let What::OperatorRemoves = chore.what {
            if self.world.remove(gateway, key, &chore.seen) {
                self.judge.ruled(key, self.world.reference.elapsed());
            }
            return;
        }
        let Some(loaded) = self.world.load(gateway, key) else {
            return;
        };
        let now = self.world.clock(gateway);
        let held = loaded.counting(now);
        let expected = held.map(Record::fence);
        // A sweeper writes over what it has seen, an operator over what it finds.
        let base = match chore.what {
            What::Expire if expected == Some(seen) => Some(&chore.seen),
            _ => held,
        };
        let raise = self.world.raise();
        let (next, by) = match chore.what {
            What::Expire | What::OperatorRemoves => (
                transition::expire(base, seen, UnknownReason::LeasePassed, now, raise),
                By::Expiry {
                    owner_is_dead: false,
                },
            ),
            What::OperatorSaysNo => (
                transition::resolve(held, seen, Resolution::DidNotRun, now, RETENTION),
                By::Operator { seen, answer: None },
            ),
            What::OperatorKnows(answer) => (
                transition::resolve(held, seen, Resolution::Ran(response(answer)), now, WINDOW),
                By::Operator {
                    seen,
                    answer: Some(answer),
                },
            ),
        };
        match next {
            Ok(next) => {
                self.world.coverage.count(match chore.what {
                    What::Expire | What::OperatorRemoves => "a sweeper expires a lease",
                    What::OperatorSaysNo => "an operator says that it did not run",
                    What::OperatorKnows(_) => "an operator knows the answer",
                });
                let ack = self.world.write(Write {
                    gateway,
                    key,
                    base,
                    record: &next,
                    by,
                    read_at: now,
                    waits: false,
                });
                // Only what is written, or may be, is an operator's word.
                let is_no = matches!(chore.what, What::OperatorSaysNo);
                if is_no && !matches!(ack, Ack::Lost | Ack::Unavailable) {
                    self.judge.ruled(key, self.world.reference.elapsed());
                }
            }
            Err(NotLawful::Fenced { .. }) => {
                self.world.coverage.count("a chore is fenced off");
                assert_ne!(expected, Some(seen), "L6: nobody else wrote");
            }
            Err(NotLawful::NoSuchArrow { .. }) => {
                self.world.coverage.count("a chore has no arrow");
                assert_eq!(expected, Some(seen), "I9: it moved on");
            }
        }
    }

    pub(super) fn gateway_dies(&mut self) {
        let number = self.world.random.below(OWNERS);
        self.dies(number);
        self.world.coverage.count("a gateway dies");
        // The embedded store's next life knows at once that the one before it is gone (L3).
        if !self.world.model.shared && self.world.random.chance(50) {
            self.settles_what_was_left(number, KEYS);
        }
    }

    fn dies(&mut self, number: usize) {
        self.dead.push(self.gateways[number].owner);
        self.gateways[number].owner = 10 * (self.dead.len() as u64 + 1) + number as u64;
        self.gateways[number].claiming = [false; KEYS];
        self.world.forget_memory(number);
        for attempt in self.attempts.iter_mut().filter(|one| one.gateway == number) {
            if !attempt.is_a_workers() {
                attempt.stage = Stage::Done;
            }
        }
        self.world.note(|| format!("gateway {number} dies"));
    }

    /// The disk takes what waits for it, or the power goes.
    pub(super) fn disk_goes_on(&mut self) {
        match self.world.random.chance(96) {
            true => self.world.serve(),
            false => self.power_is_cut(),
        }
    }

    /// What the disk has not is gone, and every process with it. The next life settles what was left, and may be
    /// cut off over it.
    fn power_is_cut(&mut self) {
        self.world.power_is_cut();
        for number in 0..OWNERS {
            self.dies(number);
        }
        // Workers live on, and count their leases by clocks that nobody sets and that are not modelled.
        if !self.attempts.iter().any(Attempt::is_a_workers) {
            self.world.clock_is_set_meanwhile();
        }
        while self.world.random.chance(30) {
            self.world.coverage.count("a recovery is cut off");
            let keys = self.world.random.below(KEYS);
            self.settles_what_was_left(0, keys);
            self.dies(0);
        }
        self.settles_what_was_left(0, KEYS);
    }

    /// A new life marks the claims of those before it, under the first `keys` keys. What workers hold is not
    /// theirs.
    fn settles_what_was_left(&mut self, gateway: usize, keys: usize) {
        for key in 0..keys {
            let now = self.world.now;
            let Some(record) = self.world.counting(key).cloned() else {
                continue;
            };
            let State::InFlight { owner, .. } = record.state else {
                continue;
            };
            if !self.dead.contains(&owner.number()) {
                continue;
            }
            let (fence, reason) = (record.fence(), UnknownReason::OwnerDied);
            let raise = self.world.raise();
            let next = transition::expire(Some(&record), fence, reason, now, raise);
            self.world.coverage.count("a dead owner's claim is marked");
            self.world.write(Write {
                gateway,
                key,
                base: Some(&record),
                record: &next.expect("it runs"),
                by: By::Expiry {
                    owner_is_dead: true,
                },
                read_at: now,
                waits: false,
            });
        }
    }

    /// I11: a gateway's own clock is nobody's business.
    pub(super) fn wall_clock_jumps(&mut self) {
        let number = self.world.random.below(OWNERS);
        let month = 30 * 86_400_000;
        let clock = &mut self.gateways[number].wall_clock;
        *clock = match self.world.random.chance(50) {
            true => *clock + month,
            false => *clock - month,
        };
        self.world.coverage.count("a wall clock jumps a month");
    }
}
