//! How a run comes to its end: nothing goes wrong any more, and everything has an outcome in time.

use std::time::Duration;

use onlyonce_core::{Held, Policy, RecordingId, State, transition, view};

use super::{Attempt, Gateways, Stage};
use crate::{
    KEYS, LAG, LEASE, OWNERS, ROUND, TIMEOUT,
    reference::By,
    world::{Ack, Write},
};

/// How far a gateway comes with an attempt in one round, at most.
const STEPS: usize = 8;

/// What runs under a key, and since when that was so without any fault, in true time.
#[derive(Clone, Copy)]
struct Runs {
    recording: RecordingId,
    since: Duration,
    /// Since when nobody is at it any more.
    left_since: Option<Duration>,
    /// By how much the store's clock had been set back by then: so much longer it is until a lease passes.
    set_back: Duration,
}

impl Gateways {
    /// Faults stop: in time everything has an outcome (L1, L2, L3, L6).
    pub fn finish(&mut self) {
        self.world.calms_down();
        self.calm_at = self.world.reference.elapsed();
        self.comes_to_rest();

        self.world.outlive(LEASE + LAG);
        for key in 0..KEYS {
            let now = self.world.now;
            let fp = self.world.reference.fingerprint_of(key, now).unwrap_or(0);
            self.attempts.push(Attempt {
                gateway: 0,
                key,
                fp,
                policy: Policy::default(),
                worker: None,
                stage: Stage::Deciding,
                tries: 0,
            });
        }
        self.comes_to_rest();
        self.judge.judge(self.world.model, &self.world.reference);
    }

    /// Round by round, until no request waits and nothing runs.
    fn comes_to_rest(&mut self) {
        let began = self.world.reference.elapsed();
        let mut running = [None; KEYS];
        // Who waits for an execution of its own process may execute after it, one after the other.
        let all = u32::try_from(self.attempts.len() + 1).unwrap_or(u32::MAX);
        let deadline = began + (TIMEOUT + LEASE + 2 * ROUND) * all;
        loop {
            self.upkeep();
            while !self.chores.is_empty() {
                self.chore_is_done();
            }
            for index in 0..self.attempts.len() {
                for _ in 0..STEPS {
                    self.go_on(index);
                    // The upstream takes its time.
                    if matches!(self.attempts[index].stage, Stage::Sent(..)) {
                        break;
                    }
                }
            }
            for (key, runs) in running.iter_mut().enumerate() {
                *runs = self.runs_in_time(key, *runs);
            }
            let waits = self.attempts.iter().any(|one| !one.stage.is_done());
            if !waits && running.iter().all(Option::is_none) {
                return;
            }
            let is_late = waits && self.world.reference.elapsed() > deadline;
            assert!(!is_late, "L2: an attempt is not answered");
            self.world.pass(ROUND);
        }
    }

    /// What runs under `key` now, where that is not for too long: `before` is what did at the last look.
    fn runs_in_time(&self, key: usize, before: Option<Runs>) -> Option<Runs> {
        let now = self.world.reference.elapsed();
        let record = self.world.counting(key)?;
        let State::InFlight { lease_until, .. } = record.state else {
            return None;
        };
        let recording = record.recording();
        let is_left = !self.attempts.iter().any(|one| one.holds(recording));
        let before = before.filter(|runs| runs.recording == recording);
        let mut runs = before.unwrap_or(Runs {
            recording,
            since: now,
            left_since: None,
            set_back: self.world.reference.highest().since(self.world.now),
        });
        runs.left_since = is_left.then(|| runs.left_since.unwrap_or(now));
        let bound = LEASE + ROUND + LAG + runs.set_back;
        if let Some(left) = runs.left_since {
            assert!(
                now - left <= bound,
                "L3: nobody is at key {key} since {left:?}, its lease passes at {lease_until:?}, and it runs at {now:?}"
            );
        }
        assert!(
            now - runs.since <= TIMEOUT + bound,
            "L1: key {key} runs since {:?}, and still at {now:?}",
            runs.since
        );
        Some(runs)
    }

    /// Every gateway renews its leases, and looks for those that have passed.
    fn upkeep(&mut self) {
        for index in 0..self.attempts.len() {
            self.renews(index);
        }
        for key in 0..KEYS {
            let gateway = self.world.random.below(OWNERS);
            let now = self.world.clock(gateway);
            let Some(loaded) = self.world.load(gateway, key) else {
                continue;
            };
            if let Held::Record {
                record,
                lease_passed: true,
            } = view(loaded.record.as_ref(), now)
            {
                let record = record.clone();
                self.expires(gateway, key, &record, now);
            }
        }
    }

    /// An owner renews its lease.
    pub(super) fn renews(&mut self, index: usize) {
        let Attempt {
            gateway,
            key,
            ref stage,
            ..
        } = self.attempts[index];
        let (Stage::Ready(own) | Stage::Sent(own, _)) = stage else {
            return;
        };
        let own = own.clone();
        let (fence, now) = (own.record.fence(), self.world.clock(gateway));
        let raise = self.world.raise();
        let next = transition::renew(Some(&own.record), fence, now, LEASE, raise).expect("it runs");
        let ack = self.world.write(Write {
            gateway,
            key,
            base: Some(&own.record),
            record: &next,
            by: By::Renewal(own.token),
            read_at: now,
            waits: false,
        });
        let written = match ack {
            Ack::Done => true,
            Ack::InDoubt => {
                let loaded = self.world.load(gateway, key);
                loaded.is_some_and(|loaded| loaded.record.as_ref() == Some(&next))
            }
            Ack::Lost | Ack::Unavailable | Ack::OnItsWay(_) => false,
        };
        self.world.coverage.count("a lease is renewed");
        match &mut self.attempts[index].stage {
            Stage::Ready(_) if ack == Ack::Lost => {
                self.attempts[index].stage = self.tell(index, "told unavailable: claim taken away");
            }
            Stage::Ready(own) | Stage::Sent(own, _) if written => own.record = next,
            _ => {}
        }
    }
}

impl Attempt {
    /// Whether it executes under the claim that gave a recording its name.
    fn holds(&self, recording: RecordingId) -> bool {
        match &self.stage {
            Stage::Ready(own)
            | Stage::Sending(own, _)
            | Stage::Sent(own, _)
            | Stage::Settling(own, _)
            | Stage::AwaitingSettlement(own, ..)
            | Stage::ReadingBackSettlement(own, ..) => own.record.recording() == recording,
            Stage::Reporting(token, _) => {
                token.id == recording.operation && token.epoch == recording.claim
            }
            Stage::Claiming(claim)
            | Stage::AwaitingClaim(claim, _)
            | Stage::ReadingBackClaim(claim) => claim.record.recording() == recording,
            _ => false,
        }
    }
}
