//! What must be true, said without the protocol's own code: the upstream's ledger, what each
//! write meant, and what each client saw. It panics where a guarantee is broken.

use onlyonce_core::{
    Concurrent, Decision, Epoch, Fence, OnUnknown, OperationId, Policy, Record, Refusal, State,
    Timestamp, UnknownReason,
};

use crate::{LEASE, RETENTION, WINDOW, fingerprint};

/// One claim, as its owner remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub id: OperationId,
    pub epoch: Epoch,
    pub owner: u64,
}

/// What a writer means by a write, and the time that it read for it.
#[derive(Clone, Copy, Debug)]
pub enum By {
    Claim { fp: u8, resend: bool, owner: u64 },
    Renewal(Token),
    Completion(Token, u32),
    Loss(Token),
    Expiry { owner_is_dead: bool },
    Release(Token),
    Operator { seen: Fence, answer: Option<u32> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running { lease_until: Timestamp },
    Answered { answer: u32, until: Timestamp },
    Unknown(UnknownReason),
    Freed { until: Timestamp },
}

#[derive(Clone, Copy, Debug)]
struct Operation {
    id: OperationId,
    epoch: Epoch,
    fp: u8,
    claim: Token,
    /// Why an execution before the claim is in doubt, where it is.
    resend_of: Option<UnknownReason>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Pending,
    Ran,
    DidNotRun,
}

/// One line of the upstream's ledger: a request of which at least a byte arrived.
#[derive(Clone, Copy, Debug)]
struct Execution {
    key: usize,
    claim: Token,
    fate: Fate,
    /// The end of the window, where its answer, or an operator's, was recorded.
    answered_until: Option<Timestamp>,
    operator_said_no: bool,
}

#[derive(Default)]
pub struct Reference {
    operations: Vec<Option<Operation>>,
    ledger: Vec<Execution>,
    answers: Vec<(OperationId, u32)>,
}

impl Reference {
    pub fn new(keys: usize) -> Self {
        Self {
            operations: vec![None; keys],
            ..Self::default()
        }
    }

    /// What counts for `key` at `now`.
    fn counting(&self, key: usize, now: Timestamp) -> Option<Operation> {
        self.operations[key].filter(|operation| match operation.phase {
            Phase::Answered { until, .. } | Phase::Freed { until } => now < until,
            Phase::Running { .. } | Phase::Unknown(_) => true,
        })
    }

    /// What an attempt that reads `key` at `now` must be told.
    pub fn expected(&self, key: usize, now: Timestamp, fp: u8, policy: &Policy) -> Decision {
        let Some(operation) = self.counting(key, now) else {
            return Decision::Execute { after: Epoch::ZERO };
        };
        let again = Decision::Execute {
            after: operation.epoch,
        };
        let same = operation.fp == fp;
        match operation.phase {
            Phase::Freed { .. } => again,
            _ if !same => Decision::Refuse(Refusal::KeyReused),
            Phase::Answered { .. } => Decision::Replay,
            Phase::Running { lease_until } if lease_until <= now => Decision::ExpireLease,
            Phase::Running { .. } if policy.concurrent == Concurrent::Reject => {
                Decision::Refuse(Refusal::InFlight)
            }
            Phase::Running { .. } => Decision::Join,
            Phase::Unknown(_) if policy.on_unknown == OnUnknown::Resend => again,
            Phase::Unknown(reason) => Decision::Refuse(Refusal::Unknown(reason)),
        }
    }

    pub fn runs(&self, key: usize) -> bool {
        let operation = &self.operations[key];
        operation.is_some_and(|one| matches!(one.phase, Phase::Running { .. }))
    }

    pub fn fingerprint_of(&self, key: usize, now: Timestamp) -> Option<u8> {
        self.counting(key, now).map(|operation| operation.fp)
    }

    /// A write has landed: was it anybody's right, and does the record say what was meant?
    ///
    /// `read_at` is the time that the writer read, `now` the time at which the write landed.
    pub fn written(
        &mut self,
        key: usize,
        by: By,
        record: &Record,
        read_at: Timestamp,
        now: Timestamp,
    ) {
        let before = self.counting(key, now);
        let epoch = before.map_or(0, |operation| operation.epoch.number());
        let raised = record.epoch.number() == epoch + 1;
        assert!(raised, "I9: {by:?} wrote {:?} after {epoch}", record.epoch);
        if let By::Claim { fp, resend, owner } = by {
            self.claimed(key, record, (fp, resend, owner), before, read_at);
            return;
        }
        let Some(mut operation) = before else {
            panic!("I9: {by:?} wrote where nothing counts");
        };
        assert_eq!(
            record.id, operation.id,
            "I9: {by:?} wrote another operation"
        );
        let same = record.fingerprint == fingerprint(operation.fp);
        assert!(same, "I6: {by:?} changed the fingerprint");
        let ours = |token: Token| {
            assert_eq!(
                operation.claim, token,
                "I9: {by:?} comes from another claim"
            );
        };
        operation.phase = match (by, operation.phase) {
            (By::Renewal(token), Phase::Running { lease_until }) => {
                ours(token);
                Phase::Running {
                    lease_until: lease_until.max(read_at.after(LEASE)),
                }
            }
            (By::Completion(token, answer), Phase::Running { .. } | Phase::Unknown(_)) => {
                ours(token);
                self.answer(key, record.id, answer, read_at)
            }
            (By::Loss(token), Phase::Running { .. }) => {
                ours(token);
                unknown(record)
            }
            (By::Release(token), Phase::Running { .. }) => {
                ours(token);
                let mut lines = self.ledger.iter().filter(|line| line.claim == token);
                let ran = lines.any(|line| line.fate != Fate::DidNotRun);
                assert!(!ran, "I10: it was released, and it may have run");
                match operation.resend_of {
                    Some(reason) => Phase::Unknown(reason),
                    None => Phase::Freed {
                        until: read_at.after(RETENTION),
                    },
                }
            }
            (By::Expiry { owner_is_dead }, Phase::Running { lease_until }) => {
                let due = owner_is_dead || lease_until <= now;
                assert!(due, "I8: a live owner was declared dead");
                unknown(record)
            }
            (By::Operator { seen, answer }, Phase::Unknown(_)) => {
                assert_eq!(seen.id, operation.id, "I9: the operator meant another one");
                assert_eq!(seen.epoch, operation.epoch, "I9: it moved on since");
                match answer {
                    Some(answer) => self.answer(key, record.id, answer, read_at),
                    None => {
                        let lines = self.ledger.iter_mut();
                        lines
                            .filter(|line| line.claim.id == record.id)
                            .for_each(|line| line.operator_said_no = true);
                        Phase::Freed {
                            until: read_at.after(RETENTION),
                        }
                    }
                }
            }
            (by, phase) => panic!("I8: {by:?} wrote over {phase:?}"),
        };
        operation.epoch = record.epoch;
        check_content(record, operation.phase, operation.claim.owner);
        self.operations[key] = Some(operation);
    }

    fn claimed(
        &mut self,
        key: usize,
        record: &Record,
        (fp, resend, owner): (u8, bool, u64),
        before: Option<Operation>,
        read_at: Timestamp,
    ) {
        let mut resend_of = None;
        if let Some(before) = before {
            assert_eq!(record.id, before.id, "I8: a claim changed the id");
            match before.phase {
                Phase::Freed { .. } => {}
                Phase::Unknown(reason) => {
                    resend_of = Some(reason);
                    assert!(resend, "I8: unknown was claimed without leave");
                    assert_eq!(before.fp, fp, "I6: another request was resent");
                }
                phase => panic!("I8: it was claimed while {phase:?}"),
            }
        }
        assert!(record.fingerprint == fingerprint(fp), "I6: not the claim's");
        assert_eq!(record.claimed_at, read_at);
        let phase = Phase::Running {
            lease_until: read_at.after(LEASE),
        };
        check_content(record, phase, owner);
        self.operations[key] = Some(Operation {
            id: record.id,
            epoch: record.epoch,
            fp,
            claim: Token {
                id: record.id,
                epoch: record.epoch,
                owner,
            },
            resend_of,
            phase,
        });
    }

    fn answer(&mut self, key: usize, id: OperationId, answer: u32, read_at: Timestamp) -> Phase {
        let until = read_at.after(WINDOW);
        for line in self.ledger.iter_mut().filter(|line| line.claim.id == id) {
            assert_eq!(line.key, key);
            line.answered_until = Some(until);
        }
        let first = self.answers.iter().find(|(one, _)| *one == id);
        assert!(first.is_none(), "I8: completed twice");
        self.answers.push((id, answer));
        Phase::Answered { answer, until }
    }

    /// The first byte of a request goes upstream; gives the number of its line in the ledger.
    pub fn sent(&mut self, key: usize, token: Token, resend: bool, now: Timestamp) -> usize {
        let holds = self.operations[key]
            .is_some_and(|one| one.claim == token && matches!(one.phase, Phase::Running { .. }));
        assert!(holds, "I2: {token:?} sends without a claim that holds");
        if let Some(last) = self.ledger.iter().rfind(|line| line.key == key) {
            let again = last.fate == Fate::DidNotRun
                || last.operator_said_no
                || last.answered_until.is_some_and(|until| until <= now)
                || (resend && last.answered_until.is_none());
            assert!(again, "I1: a second execution at {now:?} after {last:?}");
        }
        self.ledger.push(Execution {
            key,
            claim: token,
            fate: Fate::Pending,
            answered_until: None,
            operator_said_no: false,
        });
        self.ledger.len() - 1
    }

    pub fn decided(&mut self, line: usize, fate: Fate) {
        self.ledger[line].fate = fate;
    }

    /// A client has seen the end of an answer of the operation `id`.
    pub fn saw_the_end(&self, id: OperationId, answer: u32) {
        let recorded = self.answers.iter().find(|(one, _)| *one == id);
        match recorded {
            None => panic!("I3: a client saw an end that is not recorded"),
            Some((_, first)) => assert_eq!(*first, answer, "I4: two answers for one key"),
        }
    }

    /// A client has been answered from the record of `key`, read at `now`.
    pub fn saw_a_replay(&self, key: usize, now: Timestamp, answer: u32) {
        match self.counting(key, now).map(|operation| operation.phase) {
            Some(Phase::Answered { answer: first, .. }) => {
                assert_eq!(first, answer, "I4: the replay differs");
            }
            other => panic!("I3: a replay from {other:?}"),
        }
    }
}

fn unknown(record: &Record) -> Phase {
    match record.state {
        State::Unknown { reason, .. } => Phase::Unknown(reason),
        ref other => panic!("I8: unknown was meant, and {} written", other.name()),
    }
}

/// The record says what was meant, with the times that follow from it (I11).
fn check_content(record: &Record, phase: Phase, claimed_by: u64) {
    match (&record.state, phase) {
        (
            State::InFlight {
                owner, lease_until, ..
            },
            Phase::Running { lease_until: due },
        ) => {
            assert_eq!(*lease_until, due, "the lease");
            assert_eq!(owner.number(), claimed_by, "the owner");
        }
        (State::Completed(completed), Phase::Answered { answer, until }) => {
            assert_eq!(completed.expires_at, until, "I11: the window");
            assert_eq!(completed.body_len, u64::from(answer), "I4: the answer");
            assert_eq!(completed.completed_at.after(WINDOW), until, "I11");
        }
        (State::Unknown { .. }, Phase::Unknown(_)) => {}
        (State::Released { forget_at, .. }, Phase::Freed { until }) => {
            assert_eq!(*forget_at, until, "the end of the trace");
        }
        (state, phase) => panic!("I8: {phase:?} was meant, and {} written", state.name()),
    }
}
