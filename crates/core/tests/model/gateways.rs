//! Four gateways over one store: a small shell around the protocol, as the engine is a large one.

use std::time::Duration;

use onlyonce_core::{
    Concurrent, Decision, Epoch, Head, HeaderBlock, Held, Key, OnUnknown, OperationId, OwnerId,
    Policy, Record, RecordingId, Refusal, ReleaseReason, RequestLine, Scope, State, StateName,
    Timestamp, UnknownReason, decide,
    transition::{self, Claim, Response},
    view,
};

mod outside;
mod rest;
mod settling;
mod workers;

use crate::{
    KEYS, LEASE, MARGIN, OWNERS, PAUSE, TIMEOUT, fingerprint,
    judge::Judge,
    reference::{By, Fate, Token},
    world::{Ack, Loaded, Ticket, World, Write},
};

/// The numbers of workers are above all numbers of gateways.
const WORKERS: u64 = 1_000_000;

/// One inbound request, and how far its gateway has come with it.
struct Attempt {
    gateway: usize,
    key: usize,
    fp: u8,
    policy: Policy,
    /// The worker outside of every gateway that is to hold its claim, if one is.
    worker: Option<u64>,
    stage: Stage,
    /// How often a write was tried again.
    tries: u8,
}

enum Stage {
    Deciding,
    Claiming(Claimed),
    /// Its claim is on its way.
    AwaitingClaim(Claimed, Ticket),
    ReadingBackClaim(Claimed),
    /// The claim is durable, and nothing is sent.
    Ready(Own),
    /// It has seen at this moment, in true time, that its lease is good for a while.
    Sending(Own, Duration),
    Sent(Own, usize),
    Settling(Own, Settlement),
    AwaitingSettlement(Own, Settlement, Box<Record>, Ticket),
    ReadingBackSettlement(Own, Settlement, Box<Record>),
    /// The client was told that the outcome is unknown; the upstream may answer yet.
    Late(Own, usize),
    Joined(Joined),
    /// A worker says by any gateway what became of its claim.
    Reporting(Token, Report),
    Done,
}

/// What a worker says of its claim.
#[derive(Clone, Copy)]
enum Report {
    Completed(u32),
    DidNotRun,
    CannotSay,
}

/// The claim that an attempt tries to make.
#[derive(Clone)]
struct Claimed {
    record: Record,
    /// What it is to replace.
    base: Option<Record>,
    timeline: u64,
    /// What it was renewed as, where that is in doubt too.
    renewed: Option<Record>,
}

/// What the owner of an execution knows of it.
#[derive(Clone)]
struct Own {
    record: Record,
    token: Token,
}

#[derive(Clone, Copy)]
struct Joined {
    recording: RecordingId,
    claimed_at: Timestamp,
}

/// How an execution is to end.
#[derive(Clone, Copy)]
enum Settlement {
    Completed(u32),
    Released(ReleaseReason),
    Lost(UnknownReason),
    /// Unknown to the client, and the line of the ledger that may be answered yet.
    LostForNow(usize),
}

struct Gateway {
    owner: u64,
    /// Its own clock, which jumps as it likes: it serves for ids and decides nothing.
    wall_clock: u64,
    /// One claim of a key at a time in one process: a record that is read back says which process
    /// claimed, not which of its tasks.
    claiming: [bool; KEYS],
}

/// Something done from outside any request.
struct Chore {
    gateway: usize,
    key: usize,
    seen: Record,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    /// The lease had passed when it was looked at.
    Expire,
    OperatorSaysNo,
    OperatorKnows(u32),
    OperatorRemoves,
}

pub struct Gateways {
    pub world: World,
    judge: Judge,
    gateways: [Gateway; OWNERS],
    attempts: Vec<Attempt>,
    chores: Vec<Chore>,
    /// The owners that have died, and are known to be dead.
    dead: Vec<u64>,
    resends: bool,
    /// How many workers there were.
    workers: u64,
    /// Bodies differ: answer number n has n bytes.
    answers: u32,
    /// All claims that were ever tried.
    claimed: Vec<Record>,
    /// Since when nothing goes wrong any more, in true time.
    calm_at: Duration,
}

impl Gateways {
    pub fn new(mut world: World) -> Self {
        let resends = world.random.chance(30);
        Self {
            gateways: std::array::from_fn(|number| Gateway {
                owner: number as u64 + 1,
                wall_clock: 1_767_225_600_000,
                claiming: [false; KEYS],
            }),
            world,
            judge: Judge::default(),
            attempts: Vec::new(),
            chores: Vec::new(),
            dead: Vec::new(),
            resends,
            workers: 0,
            answers: 0,
            claimed: Vec::new(),
            calm_at: Duration::ZERO,
        }
    }

    /// One thing happens somewhere.
    pub fn step(&mut self) {
        // Behind a network, as much happens on the way to the store.
        let things = if self.world.model.shared { 150 } else { 120 };
        match self.world.random.below(things) {
            0..14 => self.request_comes(),
            14..72 => self.attempt_goes_on(),
            72..80 => self.lease_is_renewed(),
            80..86 => self.time_passes(),
            86..89 => self.world.land_a_late_write(),
            89..93 => self.somebody_looks_around(),
            93..97 => self.chore_is_done(),
            97..99 => self.gateway_dies(),
            99 => self.wall_clock_jumps(),
            _ if self.world.model.shared => self.world.something_happens(),
            _ => self.disk_goes_on(),
        }
    }

    fn request_comes(&mut self) {
        if self.attempts.len() >= 16 {
            return;
        }
        let random = &mut self.world.random;
        let worker = random.chance(20).then(|| {
            self.workers += 1;
            WORKERS + self.workers
        });
        let attempt = Attempt {
            gateway: random.below(OWNERS),
            key: usize::from(random.chance(25)),
            fp: u8::from(random.chance(15)),
            policy: Policy {
                concurrent: match random.chance(20) {
                    true => Concurrent::Reject,
                    false => Concurrent::Join,
                },
                on_unknown: match self.resends && random.chance(60) {
                    true => OnUnknown::Resend,
                    false => OnUnknown::Report,
                },
            },
            worker,
            stage: Stage::Deciding,
            tries: 0,
        };
        let (gateway, key, fp) = (attempt.gateway, attempt.key, attempt.fp);
        let number = self.attempts.len();
        self.world
            .note(|| format!("attempt {number} at gateway {gateway}: key {key}, request {fp}"));
        self.attempts.push(attempt);
    }

    fn attempt_goes_on(&mut self) {
        if self.attempts.is_empty() {
            return;
        }
        let start = self.world.random.below(self.attempts.len());
        let index = (start..self.attempts.len())
            .chain(0..start)
            .find(|&index| !self.attempts[index].stage.is_done());
        if let Some(index) = index {
            self.go_on(index);
        }
    }

    fn go_on(&mut self, index: usize) {
        let stage = std::mem::replace(&mut self.attempts[index].stage, Stage::Done);
        let next = match stage {
            Stage::Deciding => self.decides(index),
            Stage::Claiming(claim) => self.claims(index, claim),
            Stage::AwaitingClaim(claim, ticket) => match self.world.hear(ticket) {
                Some(ack) => self.claim_is_answered(index, claim, ack),
                None => Stage::AwaitingClaim(claim, ticket),
            },
            Stage::ReadingBackClaim(claim) => self.reads_back_claim(index, claim),
            Stage::Ready(own) => self.looks_at_its_lease(index, own),
            Stage::Sending(own, looked_at) => self.sends(index, own, looked_at),
            Stage::Sent(own, line) => self.hears(index, own, line),
            Stage::Settling(own, settlement) => self.settles(index, own, settlement),
            Stage::AwaitingSettlement(own, settlement, next, ticket) => {
                match self.world.hear(ticket) {
                    Some(ack) => self.settlement_is_answered(index, own, settlement, *next, ack),
                    None => Stage::AwaitingSettlement(own, settlement, next, ticket),
                }
            }
            Stage::ReadingBackSettlement(own, settlement, next) => {
                self.reads_back_settlement(index, own, settlement, *next)
            }
            Stage::Late(own, line) => self.hears_late(index, own, line),
            Stage::Joined(joined) => self.follows(index, joined),
            Stage::Reporting(token, report) => self.reports(index, token, report),
            Stage::Done => Stage::Done,
        };
        self.attempts[index].stage = next;
    }

    fn tell(&mut self, index: usize, what: &'static str) -> Stage {
        self.world.coverage.count(what);
        self.world.note(|| format!("attempt {index}: {what}"));
        Stage::Done
    }

    fn decides(&mut self, index: usize) -> Stage {
        let Attempt {
            gateway,
            key,
            fp,
            policy,
            ..
        } = self.attempts[index];
        if self.world.model.shared && self.executes(gateway, key) {
            return self.meets_its_own(index);
        }
        let Some(loaded) = self.world.load(gateway, key) else {
            return self.tell(index, "store unavailable at the load");
        };
        if self.world.faults && self.world.random.chance(1) {
            let decision = decide(Held::Unreadable, &fingerprint(fp), &policy);
            let unknown = Refusal::Unknown(UnknownReason::Unreadable);
            assert_eq!(decision, Decision::Refuse(unknown), "I13");
            return self.tell(index, "refused: unreadable");
        }
        let now = self.world.clock(gateway);
        let held = view(loaded.record.as_ref(), now);
        let decision = decide(held, &fingerprint(fp), &policy);
        let version = loaded.version;
        let expected = self.world.reference.expected(version, now, fp, &policy);
        assert_eq!(decision, expected, "attempt {index} was told otherwise");
        match decision {
            // It waits for the claim that its own process is making.
            Decision::Execute { .. } if self.gateways[gateway].claiming[key] => Stage::Deciding,
            Decision::Execute { after } => self.begins_claim(index, &loaded, after, now),
            Decision::Replay => self.replays(index, &loaded, now),
            Decision::Join => {
                let record = loaded.record.expect("it was decided about");
                let running = record.state.name();
                assert_eq!(running, StateName::InFlight, "I8: a join");
                self.world.coverage.count("joined");
                Stage::Joined(Joined {
                    recording: record.recording(),
                    claimed_at: record.claimed_at,
                })
            }
            Decision::ExpireLease => {
                let record = loaded.record.expect("it was decided about");
                self.world.coverage.count("an attempt finds a lease passed");
                self.expires(gateway, key, &record, now);
                Stage::Deciding
            }
            Decision::Refuse(Refusal::KeyReused) => self.tell(index, "refused: key reused"),
            Decision::Refuse(Refusal::InFlight) => self.tell(index, "refused: in flight"),
            Decision::Refuse(Refusal::Unknown(_)) => self.tell(index, "refused: unknown"),
        }
    }

    /// Whether this very process executes the operation. It knows, whatever the store has forgotten.
    fn executes(&self, gateway: usize, key: usize) -> bool {
        let here = self.attempts.iter().filter(|one| one.gateway == gateway);
        let mut here = here.filter(|one| one.worker.is_none());
        here.any(|one| one.key == key && one.stage.is_live())
    }

    /// It waits, as if it had joined, and decides when that is over.
    fn meets_its_own(&mut self, index: usize) -> Stage {
        match self.attempts[index].policy.concurrent {
            Concurrent::Reject => self.tell(index, "refused: in flight"),
            Concurrent::Join => Stage::Deciding,
        }
    }

    fn replays(&mut self, index: usize, loaded: &Loaded, now: Timestamp) -> Stage {
        let record = loaded.record.as_ref().expect("it was decided about");
        let State::Completed(completed) = &record.state else {
            panic!("I3: a replay of {}", record.state.name());
        };
        let (id, answer) = (record.id, completed.body_len as u32);
        let reference = &mut self.world.reference;
        reference.saw_a_replay(loaded.version, loaded.source, now, answer);
        reference.saw_the_end(id, answer);
        self.is_told(index, answer);
        self.tell(index, "replayed")
    }

    /// Declares the owner of `record` dead.
    fn expires(&mut self, gateway: usize, key: usize, record: &Record, now: Timestamp) {
        let reason = UnknownReason::LeasePassed;
        let next = transition::expire(
            Some(record),
            record.fence(),
            reason,
            now,
            self.world.raise(),
        );
        self.world.write(Write {
            gateway,
            key,
            base: Some(record),
            record: &next.expect("it is in flight"),
            by: By::Expiry {
                owner_is_dead: false,
            },
            read_at: now,
            waits: false,
        });
    }

    fn begins_claim(
        &mut self,
        index: usize,
        loaded: &Loaded,
        after: Epoch,
        now: Timestamp,
    ) -> Stage {
        let owner = self.owner(index);
        let attempt = &self.attempts[index];
        let (key, fp) = (attempt.key, attempt.fp);
        let gateway = &mut self.gateways[attempt.gateway];
        gateway.claiming[key] = true;
        let random = self.world.random.next().to_be_bytes();
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&random);
        let claim = Claim {
            id: OperationId::new(gateway.wall_clock, &bytes),
            scope: Scope {
                tenant: "t".into(),
                namespace: "n".into(),
            },
            key: Key::new(["a", "b"][key]).expect("a key"),
            fingerprint: fingerprint(fp),
            request: RequestLine::default(),
            owner: OwnerId::new(owner),
            raise: self.world.raise(),
        };
        let held = loaded.counting(now);
        assert_eq!(held.map_or(Epoch::ZERO, |record| record.epoch), after);
        let record = transition::claim(held, claim, now, LEASE).expect("it was decided so");
        // Two claims of one process over one record are told apart by their time alone, and no clock
        // stands still for as long as it does here.
        if self.claimed.contains(&record) {
            self.gateways[self.attempts[index].gateway].claiming[key] = false;
            self.world.coverage.count("a claim waits for its clock");
            return Stage::Deciding;
        }
        self.claimed.push(record.clone());
        Stage::Claiming(Claimed {
            record,
            base: held.cloned(),
            timeline: self.world.timeline,
            renewed: None,
        })
    }

    fn claims(&mut self, index: usize, claim: Claimed) -> Stage {
        let attempt = &self.attempts[index];
        let gateway = attempt.gateway;
        let by = By::Claim {
            fp: attempt.fp,
            resend: attempt.policy.on_unknown == OnUnknown::Resend,
            owner: self.owner(index),
            timeline: claim.timeline,
        };
        let ack = self.world.write(Write {
            gateway,
            key: attempt.key,
            base: claim.base.as_ref(),
            record: &claim.record,
            by,
            read_at: claim.record.claimed_at,
            waits: true,
        });
        self.claim_is_answered(index, claim, ack)
    }

    fn claim_is_answered(&mut self, index: usize, claim: Claimed, ack: Ack) -> Stage {
        let Attempt { gateway, key, .. } = self.attempts[index];
        match ack {
            Ack::InDoubt => return Stage::ReadingBackClaim(claim),
            Ack::OnItsWay(ticket) => return Stage::AwaitingClaim(claim, ticket),
            Ack::Done | Ack::Lost | Ack::Unavailable => {
                self.gateways[gateway].claiming[key] = false;
            }
        }
        match ack {
            Ack::Done => self.owns(index, &claim, claim.record.clone()),
            Ack::Lost => Stage::Deciding,
            _ => self.tell(index, "store unavailable at the claim"),
        }
    }

    /// Who is to hold the claim of an attempt.
    fn owner(&self, index: usize) -> u64 {
        let attempt = &self.attempts[index];
        let gateway = self.gateways[attempt.gateway].owner;
        attempt.worker.unwrap_or(gateway)
    }

    fn owns(&self, index: usize, claim: &Claimed, record: Record) -> Stage {
        let token = self.token(index, claim);
        Stage::Ready(Own { record, token })
    }

    fn token(&self, index: usize, claim: &Claimed) -> Token {
        Token {
            id: claim.record.id,
            epoch: claim.record.epoch,
            owner: self.owner(index),
            timeline: claim.timeline,
        }
    }

    /// I14: a lost acknowledgement is resolved by reading back, and never by claiming again. What can be
    /// read may be forgotten yet, so that it is renewed before anything is sent.
    fn reads_back_claim(&mut self, index: usize, mut claim: Claimed) -> Stage {
        let Attempt { gateway, key, .. } = self.attempts[index];
        let Some(loaded) = self.world.load(gateway, key) else {
            return Stage::ReadingBackClaim(claim);
        };
        let ours =
            |record: &Record| *record == claim.record || Some(record) == claim.renewed.as_ref();
        let Some(held) = loaded.record.filter(ours) else {
            self.gateways[gateway].claiming[key] = false;
            return self.tell(index, "a claim in doubt is not there");
        };
        self.world.coverage.count("a claim in doubt is one's own");
        let now = self.world.clock(gateway);
        let raise = self.world.raise();
        let renewed = transition::renew(Some(&held), held.fence(), now, LEASE, raise);
        let renewed = renewed.expect("it runs");
        let ack = self.world.write(Write {
            gateway,
            key,
            base: Some(&held),
            record: &renewed,
            by: By::Renewal(self.token(index, &claim)),
            read_at: now,
            waits: false,
        });
        if ack == Ack::Done {
            self.gateways[gateway].claiming[key] = false;
            return self.owns(index, &claim, renewed);
        }
        claim.renewed = Some(renewed);
        Stage::ReadingBackClaim(claim)
    }

    fn looks_at_its_lease(&mut self, index: usize, own: Own) -> Stage {
        let State::InFlight { lease_until, .. } = own.record.state else {
            panic!("I2: {} sends", own.record.state.name());
        };
        // Past its lease, others may have taken it for dead; and no two clocks are the same.
        let gateway = self.attempts[index].gateway;
        if self.world.clock(gateway).after(MARGIN) >= lease_until {
            self.world
                .coverage
                .count("a lease passes before the first byte");
            return Stage::Settling(own, Settlement::Released(ReleaseReason::NotSent));
        }
        if self.world.random.chance(15) {
            return Stage::Settling(own, Settlement::Released(ReleaseReason::NotSent));
        }
        let looked_at = self.world.reference.elapsed();
        match self.world.faults && self.world.random.chance(50) {
            true => Stage::Sending(own, looked_at),
            false => self.sends(index, own, looked_at),
        }
    }

    fn sends(&mut self, index: usize, own: Own, looked_at: Duration) -> Stage {
        let paused = self.world.reference.elapsed() - looked_at;
        if paused > PAUSE {
            // As if it had gone on in time, and looked only now.
            return Stage::Ready(own);
        }
        if !paused.is_zero() {
            self.world
                .coverage
                .count("a gateway stands still before the first byte");
        }
        let attempt = &self.attempts[index];
        let resend = attempt.policy.on_unknown == OnUnknown::Resend;
        let (key, now) = (attempt.key, self.world.now);
        let (fp, at) = (attempt.fp, self.world.reference.elapsed());
        let line = self.world.reference.sent(key, own.token, resend, now);
        self.judge.sent(key, fp, index, resend, at);
        self.world.coverage.count("sent");
        self.world
            .note(|| format!("attempt {index}: SENT, line {line}"));
        Stage::Sent(own, line)
    }

    fn hears(&mut self, index: usize, own: Own, line: usize) -> Stage {
        let is_worker = self.attempts[index].worker.is_some();
        let roll = match self.world.faults {
            true => self.world.random.below(100),
            false if !self.is_timed_out(line) && self.world.random.chance(85) => {
                return Stage::Sent(own, line);
            }
            false if is_worker => self.world.random.below(70),
            false => self.world.random.below(80),
        };
        if is_worker {
            return self.works(index, own, line, roll);
        }
        let (fate, settlement) = match roll {
            0..45 => (Fate::Ran, Settlement::Completed(self.new_answer(line))),
            45..60 => (
                Fate::DidNotRun,
                Settlement::Released(ReleaseReason::DidNotRun),
            ),
            60..70 => (Fate::Ran, Settlement::Lost(UnknownReason::Broke)),
            70..80 => (Fate::Pending, Settlement::LostForNow(line)),
            _ => return Stage::Sent(own, line),
        };
        self.decided(line, fate);
        self.world
            .note(|| format!("attempt {index}: the upstream: {fate:?}"));
        Stage::Settling(own, settlement)
    }

    /// Whether the upstream has had its time for the request in `line`, since nothing goes wrong any more.
    fn is_timed_out(&self, line: usize) -> bool {
        let since = self.judge.sent_at(line).max(self.calm_at);
        self.world.reference.elapsed() - since >= TIMEOUT
    }

    fn hears_late(&mut self, index: usize, own: Own, line: usize) -> Stage {
        let answer = match self.world.random.below(100) {
            0..40 => self.new_answer(line),
            40..60 => return Stage::Done,
            _ => return Stage::Late(own, line),
        };
        self.decided(line, Fate::Ran);
        self.world.coverage.count("a late answer comes");
        self.world
            .note(|| format!("attempt {index}: a late answer"));
        Stage::Settling(own, Settlement::Completed(answer))
    }

    fn decided(&mut self, line: usize, fate: Fate) {
        self.world.reference.decided(line, fate);
        self.judge.decided(line, fate);
    }

    /// The upstream's answer to the request in `line`.
    fn new_answer(&mut self, line: usize) -> u32 {
        self.judge.answered(line, self.world.reference.elapsed());
        self.answers += 1;
        self.answers
    }

    /// The client of an attempt has the whole answer.
    fn is_told(&mut self, index: usize, answer: u32) {
        let (Attempt { key, fp, .. }, at) = (&self.attempts[index], self.world.reference.elapsed());
        self.judge.told(*key, *fp, answer, at);
    }

    /// Joiners of another gateway's execution watch the record. They never execute (I18).
    fn follows(&mut self, index: usize, joined: Joined) -> Stage {
        let Attempt { gateway, key, .. } = self.attempts[index];
        let Some(loaded) = self.world.load(gateway, key) else {
            return Stage::Joined(joined);
        };
        let now = self.world.clock(gateway);
        let (answer, same) = match view(loaded.record.as_ref(), now) {
            Held::Record {
                record,
                lease_passed,
            } if record.recording() == joined.recording => {
                let same = record.claimed_at == joined.claimed_at;
                assert!(same, "I4: two claims have one name");
                match &record.state {
                    State::InFlight { .. } => (None, !lease_passed),
                    State::Completed(completed) => (Some(completed.body_len as u32), true),
                    State::Unknown { .. } | State::Released { .. } => (None, false),
                }
            }
            _ => (None, false),
        };
        match answer {
            Some(answer) => {
                self.world
                    .reference
                    .saw_the_end(joined.recording.operation, answer);
                self.is_told(index, answer);
                self.tell(index, "a joiner gets the whole answer")
            }
            None if same => Stage::Joined(joined),
            None => self.tell(index, "a joiner shares another outcome"),
        }
    }
}

impl Stage {
    fn is_live(&self) -> bool {
        matches!(
            self,
            Self::Ready(_)
                | Self::Sending(..)
                | Self::Sent(..)
                | Self::Settling(..)
                | Self::AwaitingSettlement(..)
                | Self::ReadingBackSettlement(..)
        )
    }

    fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }
}

fn response(answer: u32) -> Response {
    Response {
        head: Head {
            status: 200,
            headers: HeaderBlock::default(),
        },
        trailers: HeaderBlock::default(),
        body_len: u64::from(answer),
        chunks: 1,
    }
}
