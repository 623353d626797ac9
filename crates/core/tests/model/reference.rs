//! What must be true, said without the protocol's own code: the upstream's ledger, what each
//! write meant, and what each client saw. It panics where a guarantee is broken.

use std::time::Duration;

use onlyonce_core::{
    Concurrent, Decision, Epoch, Fence, OnUnknown, OperationId, Policy, Record, Refusal, State,
    Timestamp, UnknownReason,
};

use crate::{
    CONFIRMED_FOR, LAG, LEASE, RETENTION, WINDOW, coverage::Coverage, fingerprint, models::Model,
    world::Source,
};

/// One claim, as its owner remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub id: OperationId,
    pub epoch: Epoch,
    pub owner: u64,
    /// How often the store had forgotten something by then: it may give an epoch twice.
    pub timeline: u64,
}

impl Token {
    /// The same record says both: a process that claims again at the same moment what was forgotten.
    fn is(self, other: Self) -> bool {
        let Self { timeline, .. } = other;
        Self { timeline, ..self } == other
    }
}

/// A number for each thing that ever stood under a key; 0 is for nothing.
pub type Version = usize;

/// What a writer means by a write, and the time that it read for it.
#[derive(Clone, Copy, Debug)]
pub enum By {
    Claim {
        fp: u8,
        resend: bool,
        owner: u64,
        timeline: u64,
    },
    Renewal(Token),
    Completion(Token, u32),
    Loss(Token),
    Expiry {
        owner_is_dead: bool,
    },
    Release(Token),
    Operator {
        seen: Fence,
        answer: Option<u32>,
    },
    Removal,
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
    /// The end of the window, where its answer, or an operator's, was recorded, and by which commit.
    answered: Option<(Timestamp, usize)>,
    /// The commit by which an operator said that it did not run, or removed the record.
    dismissed: Option<usize>,
    /// Its claim does not stand, through no fault of the protocol: the store has forgotten it, or the
    /// clock was moved.
    disowned: bool,
}

/// What stood under a key for a while.
#[derive(Clone, Copy, Debug)]
struct Standing {
    operation: Option<Operation>,
    /// When something else took its place, in true time.
    replaced_at: Option<Duration>,
}

struct Answer {
    id: OperationId,
    answer: u32,
    commit: usize,
    /// A client has had it whole.
    seen: bool,
}

pub struct Reference {
    model: &'static Model,
    pub coverage: Coverage,
    /// True time since the start.
    elapsed: Duration,
    /// The latest that any server's clock has said.
    highest: Timestamp,
    versions: Vec<Standing>,
    current: Vec<Version>,
    /// What is written, until its version is known.
    written: Option<(usize, Option<Operation>)>,
    commits: usize,
    ledger: Vec<Execution>,
    answers: Vec<Answer>,
    forgotten_answers: Vec<(OperationId, u32)>,
    claims: Vec<(Token, usize)>,
    /// Claims that do not stand any more, and whose owners could not know.
    disowned: Vec<Token>,
    /// Claims whose lease was found to have passed.
    expired: Vec<Token>,
    renewals: Vec<(Token, usize)>,
    /// Claims of which a renewal was forgotten: their lease may pass before their owner thinks so.
    shortened: Vec<Token>,
    /// Whether the store has forgotten anything of a key, or how long a lease of it is.
    forgotten: Vec<bool>,
    /// How far the store's clock was moved, one way or the other, all in all.
    clock_moved: Duration,
}

impl Reference {
    pub fn new(keys: usize, model: &'static Model, start: Timestamp) -> Self {
        let nothing = Standing {
            operation: None,
            replaced_at: None,
        };
        Self {
            model,
            coverage: Coverage,
            elapsed: Duration::ZERO,
            highest: start,
            versions: vec![nothing],
            current: vec![0; keys],
            written: None,
            commits: 0,
            ledger: Vec::new(),
            answers: Vec::new(),
            forgotten_answers: Vec::new(),
            claims: Vec::new(),
            disowned: Vec::new(),
            expired: Vec::new(),
            renewals: Vec::new(),
            shortened: Vec::new(),
            forgotten: vec![false; keys],
            clock_moved: Duration::ZERO,
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    pub fn highest(&self) -> Timestamp {
        self.highest
    }

    pub fn pass(&mut self, span: Duration, now: Timestamp) {
        self.elapsed += span;
        self.clock_is_set(now);
    }

    /// Whether the store has forgotten anything of `key`.
    pub fn has_forgotten(&self, key: usize) -> bool {
        self.forgotten[key]
    }

    /// How far the store's clock was moved, one way or the other, all in all.
    pub fn clock_was_moved(&self) -> Duration {
        self.clock_moved
    }

    /// The store's clock was moved by `span`, one way or the other.
    pub fn clock_is_moved(&mut self, span: Duration, now: Timestamp) {
        self.clock_moved += span;
        self.clock_is_set(now);
    }

    fn clock_is_set(&mut self, now: Timestamp) {
        self.highest = self.highest.max(now);
    }

    fn stood(&self, version: Version, now: Timestamp) -> Option<Operation> {
        let operation = self.versions[version].operation;
        operation.filter(|operation| match operation.phase {
            Phase::Answered { until, .. } | Phase::Freed { until } => now < until,
            Phase::Running { .. } | Phase::Unknown(_) => true,
        })
    }

    /// What counts for `key` at `now`.
    fn counting(&self, key: usize, now: Timestamp) -> Option<Operation> {
        self.stood(self.current[key], now)
    }

    /// What was just written has this version, and is the last of so many commits.
    pub fn stands(&mut self, commits: usize, version: Version) {
        let (key, operation) = self.written.take().expect("something was written");
        assert_eq!(version, self.versions.len());
        self.versions.push(Standing {
            operation,
            replaced_at: None,
        });
        self.versions[self.current[key]].replaced_at = Some(self.elapsed);
        self.current[key] = version;
        self.commits += 1;
        assert_eq!(commits, self.commits);
    }

    /// The store has forgotten all commits but the first `kept`; `current` is what stands now.
    pub fn forget(&mut self, kept: usize, current: &[Version]) {
        for (key, &version) in current.iter().enumerate() {
            self.forgotten[key] |= self.current[key] != version;
            self.versions[self.current[key]].replaced_at = Some(self.elapsed);
            self.versions[version].replaced_at = None;
            self.current[key] = version;
        }
        self.commits = kept;
        let (answers, forgotten) = std::mem::take(&mut self.answers)
            .into_iter()
            .partition(|one| one.commit < kept);
        self.answers = answers;
        for one in forgotten {
            if one.seen {
                self.coverage
                    .count("forgotten: an answer that a client has");
            }
            self.forgotten_answers.push((one.id, one.answer));
        }
        let (claims, forgotten): (Vec<_>, Vec<_>) =
            self.claims.iter().partition(|(_, commit)| *commit < kept);
        self.claims = claims;
        self.disowned
            .extend(forgotten.iter().map(|(token, _)| *token));
        let (renewals, forgotten): (Vec<_>, Vec<_>) =
            self.renewals.iter().partition(|(_, commit)| *commit < kept);
        self.renewals = renewals;
        self.shortened
            .extend(forgotten.iter().map(|(token, _)| *token));
        for line in &mut self.ledger {
            line.answered = line.answered.filter(|(_, commit)| *commit < kept);
            line.dismissed = line.dismissed.filter(|commit| *commit < kept);
            line.disowned |= self.disowned.contains(&line.claim);
        }
    }

    /// What stands under `key` is what the reference holds.
    pub fn check(&self, key: usize, record: Option<&Record>) {
        let operation = self.versions[self.current[key]].operation;
        match (record, operation) {
            (None, None) => {}
            (Some(record), Some(operation)) => {
                assert_eq!(record.id, operation.id);
                assert_eq!(record.epoch, operation.epoch);
                assert_eq!(record.fingerprint, fingerprint(operation.fp));
                check_content(record, operation.phase, operation.claim.owner);
            }
            (record, operation) => panic!("{record:?} stands, and {operation:?} was meant"),
        }
    }

    /// What an attempt must be told that reads this at `now`.
    pub fn expected(&self, read: Version, now: Timestamp, fp: u8, policy: &Policy) -> Decision {
        let Some(operation) = self.stood(read, now) else {
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
        let raised = match (by, before) {
            (By::Claim { .. } | By::Renewal(_) | By::Expiry { .. }, Some(_)) => {
                record.epoch.number() > epoch
            }
            _ => record.epoch.number() == epoch + 1,
        };
        assert!(raised, "I9: {by:?} wrote {:?} after {epoch}", record.epoch);
        if let By::Claim { fp, resend, .. } = by {
            self.claimed(key, record, (fp, resend), before, by, read_at);
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
            let claim = operation.claim;
            assert!(claim.is(token), "I9: {by:?} comes from another claim");
        };
        operation.phase = match (by, operation.phase) {
            (By::Renewal(token), Phase::Running { lease_until }) => {
                ours(token);
                self.renewals.push((token, self.commits));
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
                // The clocks of Redis' gateways are off to either side.
                let ahead = if self.model.tokens {
                    LAG / 2
                } else {
                    Duration::ZERO
                };
                let due = owner_is_dead || lease_until <= self.highest.max(now).after(ahead);
                assert!(due, "I8: a live owner was declared dead");
                self.expired.push(operation.claim);
                unknown(record)
            }
            (By::Operator { seen, answer }, Phase::Unknown(_)) => {
                assert_eq!(seen.id, operation.id, "I9: the operator meant another one");
                assert_eq!(seen.epoch, operation.epoch, "I9: it moved on since");
                match answer {
                    Some(answer) => self.answer(key, record.id, answer, read_at),
                    None => {
                        self.dismiss(record.id);
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
        self.written = Some((key, Some(operation)));
    }

    /// A write has landed whose fence was given to another record of the same claim too, since the
    /// store has forgotten the one that its writer means. It tells of the same execution, so that every
    /// guarantee is judged on.
    pub fn written_over_a_twin(&mut self, key: usize, by: By, record: &Record, read_at: Timestamp) {
        let mut operation = self.held(key);
        let mut claim = operation.claim;
        match by {
            By::Operator { answer: None, .. } => self.dismiss(record.id),
            By::Claim { .. } | By::Expiry { .. } => ends(operation),
            _ => {}
        }
        if let By::Renewal(token)
        | By::Completion(token, _)
        | By::Loss(token)
        | By::Release(token) = by
        {
            assert!(claim.is(token), "I9: {by:?} comes from another claim");
            claim = token;
        }
        operation.phase = match (by, &record.state) {
            (By::Completion(_, answer), _)
            | (
                By::Operator {
                    answer: Some(answer),
                    ..
                },
                _,
            ) => self.answer(key, record.id, answer, read_at),
            (
                By::Claim {
                    owner, timeline, ..
                },
                _,
            ) => {
                claim = Token {
                    id: record.id,
                    epoch: record.epoch,
                    owner,
                    timeline,
                };
                Phase::Running {
                    lease_until: read_at.after(LEASE),
                }
            }
            (_, State::InFlight { lease_until, .. }) => Phase::Running {
                lease_until: *lease_until,
            },
            (_, State::Unknown { reason, .. }) => Phase::Unknown(*reason),
            (_, State::Released { forget_at, .. }) => Phase::Freed { until: *forget_at },
            (by, State::Completed(_)) => panic!("I5: {by:?} invents an answer"),
        };
        if claim != operation.claim {
            self.disowned.retain(|one| *one != claim);
            self.claims.push((claim, self.commits));
        }
        operation.claim = claim;
        operation.epoch = record.epoch;
        operation.fp = crate::number_of(&record.fingerprint);
        operation.resend_of = match record.state {
            State::InFlight { resend_of, .. } => resend_of,
            _ => operation.resend_of,
        };
        check_content(record, operation.phase, operation.claim.owner);
        self.written = Some((key, Some(operation)));
    }

    fn held(&self, key: usize) -> Operation {
        let operation = self.versions[self.current[key]].operation;
        operation.expect("a fence is that of a record")
    }

    /// An operator has removed what has the fence of a record that the store has forgotten.
    pub fn removed_a_twin(&mut self, key: usize) {
        let operation = self.held(key);
        ends(operation);
        self.dismiss(operation.id);
        self.written = Some((key, None));
    }

    /// An operator removes the completed record under `key`.
    pub fn removed(&mut self, key: usize, now: Timestamp) {
        let operation = self.counting(key, now).expect("a record counts there");
        assert!(
            matches!(operation.phase, Phase::Answered { .. }),
            "I8: {operation:?} was removed"
        );
        self.dismiss(operation.id);
        self.written = Some((key, None));
    }

    /// An operator takes the word that it did not run, or that it may run again.
    fn dismiss(&mut self, id: OperationId) {
        let lines = self.ledger.iter_mut();
        lines
            .filter(|line| line.claim.id == id)
            .for_each(|line| line.dismissed = Some(self.commits));
    }

    fn claimed(
        &mut self,
        key: usize,
        record: &Record,
        (fp, resend): (u8, bool),
        before: Option<Operation>,
        by: By,
        read_at: Timestamp,
    ) {
        let By::Claim {
            owner, timeline, ..
        } = by
        else {
            panic!("{by:?} is no claim");
        };
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
        let claim = Token {
            id: record.id,
            epoch: record.epoch,
            owner,
            timeline,
        };
        self.claims.push((claim, self.commits));
        let operation = Operation {
            id: record.id,
            epoch: record.epoch,
            fp,
            claim,
            resend_of,
            phase,
        };
        self.written = Some((key, Some(operation)));
    }

    fn answer(&mut self, key: usize, id: OperationId, answer: u32, read_at: Timestamp) -> Phase {
        let until = read_at.after(WINDOW);
        let commit = self.commits;
        for line in self.ledger.iter_mut().filter(|line| line.claim.id == id) {
            assert_eq!(line.key, key);
            line.answered = Some((until, commit));
        }
        if self.answers.iter().any(|one| one.id == id) {
            // A claim arrived again after an operator had removed what became of it. Its owner, who could not
            // know that its completion was written, completes once more; or its lease passes, and it is resent.
            assert!(self.came_again(id), "I8: completed twice");
            self.coverage.count("a claim comes again after a removal");
            let mut same = self.answers.iter().filter(|one| one.id == id);
            if same.any(|one| one.answer == answer) {
                return Phase::Answered { answer, until };
            }
            let mut lines = self.ledger.iter().filter(|line| line.claim.id == id);
            let was_sent_since = lines.any(|line| line.dismissed.is_none());
            assert!(was_sent_since, "I4: completed otherwise");
        }
        self.answers.push(Answer {
            id,
            answer,
            commit,
            seen: false,
        });
        Phase::Answered { answer, until }
    }

    /// Whether one and the same claim of this operation was written more than once.
    fn came_again(&self, id: OperationId) -> bool {
        let mut claims: Vec<_> = self.claims.iter().map(|(claim, _)| claim).collect();
        claims.retain(|claim| claim.id == id);
        (1..claims.len()).any(|index| claims[..index].contains(&claims[index]))
    }

    /// The first byte of a request goes upstream; gives the number of its line in the ledger.
    pub fn sent(&mut self, key: usize, token: Token, resend: bool, now: Timestamp) -> usize {
        let current = self.versions[self.current[key]].operation;
        let holds = current
            .is_some_and(|one| one.claim == token && matches!(one.phase, Phase::Running { .. }));
        if !holds {
            self.sends_without_a_claim(token);
            self.forgotten[key] = true;
        } else {
            self.sends_again(key, resend, now);
        }
        self.ledger.push(Execution {
            key,
            claim: token,
            fate: Fate::Pending,
            answered: None,
            dismissed: None,
            disowned: !holds,
        });
        self.ledger.len() - 1
    }

    fn sends_without_a_claim(&mut self, token: Token) {
        if self.disowned.contains(&token) {
            self.coverage
                .count("forgotten: a claim that is sent afterwards");
            return;
        }
        // Its lease had passed for others, on a clock that was moved, or without a renewal.
        let differs = self.model.clock_moves || self.shortened.contains(&token);
        let was_early = differs && self.expired.contains(&token);
        assert!(was_early, "I2: {token:?} sends without a claim that holds");
        self.coverage.count("forgotten: how long a lease is");
    }

    fn sends_again(&mut self, key: usize, resend: bool, now: Timestamp) {
        let mut before = self.ledger.iter().filter(|line| line.key == key);
        let last = before.rfind(|line| !line.disowned);
        if let Some(last) = last {
            let answered_until = last.answered.map(|(until, _)| until);
            let again = last.fate == Fate::DidNotRun
                || last.dismissed.is_some()
                || answered_until.is_some_and(|until| until <= self.highest.max(now))
                || (resend && answered_until.is_none());
            assert!(again, "I1: a second execution at {now:?} after {last:?}");
        }
        let lines = self.ledger.iter().rev().filter(|line| line.key == key);
        let mut disowned = lines.take_while(|line| line.disowned);
        if disowned.any(|line| line.fate != Fate::DidNotRun) {
            self.coverage.count("forgotten: a key runs again");
        }
    }

    pub fn decided(&mut self, line: usize, fate: Fate) {
        self.ledger[line].fate = fate;
    }

    /// A client has seen the end of an answer of the operation `id`.
    pub fn saw_the_end(&mut self, id: OperationId, answer: u32) {
        let mut recorded = self.answers.iter_mut();
        if let Some(one) = recorded.find(|one| (one.id, one.answer) == (id, answer)) {
            one.seen = true;
            return;
        }
        let was_forgotten = self.forgotten_answers.contains(&(id, answer));
        match self.answers.iter().any(|one| one.id == id) {
            false => assert!(
                was_forgotten,
                "I3: a client saw an end that is not recorded"
            ),
            true => assert!(was_forgotten, "I4: two answers for one key"),
        }
        self.coverage
            .count("forgotten: an answer that a client has");
    }

    /// A client has been answered from the record `read`, at `now` on its gateway's clock.
    pub fn saw_a_replay(&mut self, read: Version, source: Source, now: Timestamp, answer: u32) {
        match self.stood(read, now).map(|operation| operation.phase) {
            Some(Phase::Answered { answer: first, .. }) => {
                assert_eq!(first, answer, "I4: the replay differs");
            }
            other => panic!("I3: a replay from {other:?}"),
        }
        let Some(replaced_at) = self.versions[read].replaced_at else {
            return;
        };
        let age = self.elapsed - replaced_at;
        match source {
            Source::Store => panic!("I4: a replay of what does not stand any more"),
            Source::Memory => {
                assert!(
                    age < CONFIRMED_FOR,
                    "I4: a replay of what was replaced {age:?} ago"
                );
                self.coverage
                    .count("replayed from memory though it was replaced");
            }
            Source::Former => self.coverage.count("replayed from a former primary"),
        }
    }
}

/// Who means what was unknown, released or overdue takes nothing that runs: a renewal, and a claim, share
/// their fence with no record that was forgotten (I9).
fn ends(operation: Operation) {
    let runs = matches!(operation.phase, Phase::Running { .. });
    assert!(!runs, "I9: what runs is taken by a fence given twice");
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
