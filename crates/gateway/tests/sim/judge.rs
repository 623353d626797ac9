//! What must hold, whatever happens: judged by the upstream's ledger, by what each caller heard, and by
//! what the store was given.

use std::sync::Arc;
use std::time::Duration;

use onlyonce_core::{HeaderBlock, Record, State, StateName, UnknownReason};
use onlyonce_store::{Store as _, Swap};
use onlyonce_testkit::Head;

use crate::client::{self, Action, Heard};
use crate::gateway::ROUTES;
use crate::noted::{Ack, Claim, Ruling, name_of};
use crate::upstream::{Exchange, Request};
use crate::wire::{Body, Fields};
use crate::world::{Shown, Source, World, address_of};

/// The statuses by which the upstream says that it did not run.
const DECLINES: [u16; 3] = [401, 429, 503];

/// The engine's chunks, in bytes.
const CHUNK: usize = 64 << 10;

/// How much of its lease a gateway must have left that sends: a tenth.
const MARGIN: Duration = Duration::from_millis(500);

impl Exchange {
    /// Whether it was for this key, as far as the upstream knows.
    fn is_for(&self, tenant: usize, key: &str) -> bool {
        self.request
            .as_ref()
            .is_some_and(|request| request.tenant == tenant && request.key == key)
    }

    /// Whether the upstream has said that it did not run.
    pub fn declined(&self) -> bool {
        self.answered.is_some() && DECLINES.contains(&self.status)
    }

    /// What stood under a key when its first byte came.
    pub fn shown(&self, tenant: usize, key: &str) -> Option<&Shown> {
        let mut held = self.held.iter();
        held.find(|shown| shown.name.0 == tenant && shown.name.1 == key)
    }
}

impl World {
    /// A request has come to the upstream (I1, I2, I6, I9). Says whether nobody could have prevented it.
    pub fn judge_request(&self, number: usize, request: &Request, window: usize) -> bool {
        let Request { tenant, key, .. } = request;
        let is_stray = match self.may_send(number, request) {
            Ok(is_stray) => is_stray,
            Err(why) => {
                self.wrong(format!("{why}: t{tenant}/{key} came in exchange {number}"));
                false
            }
        };
        if !is_stray {
            self.judge_one_execution(number, *tenant, key, window);
        }
        is_stray
    }

    /// No exchange before this one may have been an execution of the same operation (I1).
    pub fn judge_one_execution(&self, number: usize, tenant: usize, key: &str, window: usize) {
        let ran = self.ledger(|ledger| {
            ledger[..number].iter().position(|before| {
                before.is_for(tenant, key)
                    && !before.declined()
                    && !before.is_stray
                    && before.window == window
            })
        });
        if let Some(before) = ran {
            self.wrong(format!(
                "I1: t{tenant}/{key} came in exchange {before} and in exchange {number}"
            ));
        }
    }

    /// Whose the part of a request is that came in this exchange, and in which window, where one action alone begins
    /// so: `None` where nobody can say.
    pub fn sender_of(&self, number: usize, part: &[u8]) -> Option<(usize, String, usize)> {
        let begins = |action: &&Action| {
            let line = action.request_line();
            part.starts_with(line.as_bytes()) || line.as_bytes().starts_with(part)
        };
        let mut meant = self.actions.iter().filter(begins);
        let (action, other) = (meant.next()?, meant.next());
        if other.is_some() {
            return None;
        }
        let window = self.exchange(number, |one| {
            one.shown(action.tenant, &action.key)
                .map(|shown| shown.window)
        });
        Some((action.tenant, action.key.clone(), window.unwrap_or(0)))
    }

    /// Whether the claim of the request stood, and would for a while, when its first byte came: or whether its
    /// gateway has stood still since it could look (the answer).
    fn may_send(&self, number: usize, request: &Request) -> Result<bool, &'static str> {
        let noted = self.noted.lock();
        let claim = noted.claim_of(request.attempt);
        let Some((claim, (heard, _))) = claim.and_then(|claim| Some((claim, claim.heard?))) else {
            return Err("I2: without a claim");
        };
        let (record, connection, began) = self.exchange(number, |one| {
            let shown = one.shown(request.tenant, &request.key);
            let record = shown.and_then(|shown| shown.record.clone());
            (record, one.connection, one.began)
        });
        let (from, open) = self.connection(connection, |one| (Arc::clone(&one.from), one.open));
        if from != claim.from {
            return Err("I2: with a claim of another gateway");
        }
        let now = self.store.now().as_millis() as i64 - began.elapsed().as_millis() as i64;
        let (now, margin) = (now + noted.skew(&from), MARGIN.as_millis() as i64);
        let stands = record.is_some_and(|record| {
            let is_claim = record.id == claim.id && record.claim == claim.epoch;
            is_claim
                && match record.state {
                    State::InFlight { lease_until, .. } => {
                        now + margin < lease_until.as_millis() as i64
                    }
                    State::Unknown {
                        reason: UnknownReason::LeasePassed,
                        ..
                    } => noted.expired_too_early(record.recording(), &from, now, margin),
                    // Its gateway may have heard of a break before the upstream has read a byte.
                    State::Unknown { .. } => true,
                    _ => false,
                }
        });
        let looked = heard.max(open.unwrap_or(heard));
        match stands {
            true => Ok(false),
            false if noted.stops_between(&from, looked, began) => Ok(true),
            false => Err("I9: without a claim that stands"),
        }
    }

    /// A record has come to the store (I5, I8, I9, I10).
    pub fn written(
        &self,
        from: &Arc<str>,
        before: Option<Arc<Record>>,
        record: &Record,
        swap: Swap,
    ) {
        let (tenant, key, to) = (&record.scope.tenant, &record.key, record.state.name());
        self.note(|| {
            let done = matches!(swap, Swap::Done { .. });
            let (id, epoch) = (record.id, record.epoch);
            let said = if done { "written" } else { "refused" };
            format!("{from}: {tenant}/{key} {to} {id} {epoch:?} {said}")
        });
        if matches!(swap, Swap::Lost) {
            return;
        }
        let now = self.store.now();
        let before = before.filter(|held| held.expires_at().is_none_or(|end| now < end));
        let held = before.as_ref().map(|held| held.state.name());
        let ruled = before
            .as_ref()
            .is_some_and(|held| held.ruling != record.ruling);
        let lawful = match (held, to) {
            (Some(StateName::Unknown), StateName::Completed | StateName::Released) if ruled => {
                self.judge_ruling(record)
            }
            (Some(StateName::InFlight), StateName::Completed) if ruled => {
                self.is_brought(record) && self.judge_ruling(record)
            }
            _ if ruled => false,
            (Some(StateName::Unknown), StateName::InFlight) => self.brings(record),
            (Some(StateName::InFlight), StateName::Completed | StateName::Released)
                if self.is_brought(record) =>
            {
                false
            }
            (None | Some(StateName::Released), StateName::InFlight) => true,
            (Some(StateName::InFlight), StateName::InFlight) => !record.is_new_claim(),
            (Some(StateName::InFlight), _) => true,
            (Some(StateName::Unknown), StateName::Completed) => true,
            _ => false,
        };
        if !lawful {
            self.wrong(format!(
                "I8: {from} wrote {to} over {held:?} for {tenant}/{key}"
            ));
        }
        let (tenant, key) = name_of(record);
        let last = self.wrote(tenant, &key, from);
        let is_owners = match to {
            StateName::Completed | StateName::Released => !ruled,
            StateName::InFlight => !record.is_new_claim(),
            // Of a lease that has passed, anybody says so.
            StateName::Unknown => false,
        };
        if is_owners && last.as_ref() != Some(from) {
            self.wrong(format!(
                "I9: {from} wrote {to} for t{tenant}/{key}, where {last:?} wrote last"
            ));
        }
        match &record.state {
            State::Released { .. } if ruled => self.may_run_again(tenant, &key),
            State::Completed(completed) if ruled => {
                self.completed(tenant, &key, completed.expires_at);
            }
            State::Released { .. } => self.judge_release(from, tenant, &key),
            State::Completed(completed) => {
                self.completed(tenant, &key, completed.expires_at);
                let exchange = field_of(&completed.head.headers, "x-exchange");
                self.judge_completion(from, exchange, completed.body_len);
            }
            State::InFlight { .. } if record.is_new_claim() => self.claimed(tenant, &key),
            State::Unknown {
                reason: UnknownReason::LeasePassed,
                ..
            } => {
                if let Some(held) = &before {
                    self.expires(from, held);
                }
            }
            State::InFlight { .. } | State::Unknown { .. } => {}
        }
    }

    /// Whether an operator's answer is so long that it is claimed for, and notes that it is.
    fn brings(&self, record: &Record) -> bool {
        let mut noted = self.noted.lock();
        let is_brought = noted.rulings.iter().any(|ruling| {
            let answer = ruling.answer.as_ref();
            ruling.id == record.id
                && ruling.life.is_none()
                && answer.is_some_and(|answer| answer.body.len() > CHUNK)
        });
        if is_brought {
            noted.brought.insert(record.recording());
            self.count("operators: claimed for an answer");
        }
        is_brought && record.is_new_claim()
    }

    fn is_brought(&self, record: &Record) -> bool {
        self.noted.lock().brought.contains(&record.recording())
    }

    /// Whether an operator has said what is written in its name, and notes that it is.
    fn judge_ruling(&self, record: &Record) -> bool {
        let window = self.window_of(&name_of(record));
        let answer = match &record.state {
            State::Completed(completed) => Some(completed),
            _ => None,
        };
        let mut noted = self.noted.lock();
        let ruling = noted.rulings.iter_mut().find(|ruling| {
            let brought = ruling.answer.as_ref();
            ruling.id == record.id
                && ruling.life.is_none()
                && brought.is_some() == answer.is_some()
                && answer.is_none_or(|answer| {
                    let number = field_of(&answer.head.headers, "x-ruling");
                    let brought = brought.and_then(|brought| brought.number());
                    number.is_some() && number == brought
                })
        });
        if let Some(ruling) = ruling {
            ruling.life = Some(window);
            return true;
        }
        false
    }

    fn judge_release(&self, from: &str, tenant: usize, key: &str) {
        let window = self.window(tenant, key);
        let ran = self.ledger(|ledger| {
            ledger.iter().position(|one| {
                one.is_for(tenant, key) && !one.declined() && !one.is_stray && one.window == window
            })
        });
        if let Some(ran) = ran {
            self.wrong(format!(
                "I10: {from} released t{tenant}/{key}, which the upstream has in exchange {ran}"
            ));
        }
    }

    fn judge_completion(&self, from: &str, exchange: Option<usize>, len: u64) {
        let whole = exchange.is_some_and(|number| {
            self.ledger(|ledger| {
                ledger
                    .get(number)
                    .is_some_and(|one| one.whole && one.body.len() as u64 == len)
            })
        });
        if !whole {
            self.wrong(format!(
                "I5: {from} completed with {len} bytes of exchange {exchange:?}, which was not whole"
            ));
        }
    }

    /// An attempt has heard what it will hear (I3, I4, I5, I6, I7).
    pub fn attempt_over(&self, number: usize, action: &Action, heard: &Heard) {
        let mark = |head: &Head| head.header("onlyonce-status").map(str::to_owned);
        self.note(|| match heard {
            Heard::NoConnection => format!("attempt {number}: nobody listens"),
            Heard::Left => format!("attempt {number}: leaves"),
            Heard::Broken(None, _) => format!("attempt {number}: broken"),
            Heard::Broken(Some(head), body) => {
                let (status, mark, len) = (head.status(), mark(head), body.len());
                format!("attempt {number}: {status} {mark:?}, broken after {len} bytes")
            }
            Heard::Answer(head, body) => {
                let (status, mark, len) = (head.status(), mark(head), body.bytes.len());
                let problem = problem(&body.bytes);
                format!("attempt {number}: {status} {mark:?}, {len} bytes {problem}")
            }
        });
        self.count(match heard {
            Heard::NoConnection => "attempts: no connection",
            Heard::Left => "attempts: left",
            Heard::Broken(None, _) => "attempts: broken without an answer",
            Heard::Broken(..) => "attempts: broken in the answer",
            Heard::Answer(head, body) => match mark(head).as_deref() {
                Some("executed") => "attempts: executed",
                Some("joined") => "attempts: joined",
                Some("replayed") => "attempts: replayed",
                Some(_) => "attempts: told that it did not run",
                None => match problem(&body.bytes).as_str() {
                    "operation-in-flight" => "attempts: refused, in flight",
                    "key-reused" => "attempts: refused, another request",
                    "outcome-unknown" => "attempts: told that nobody knows",
                    "upstream-unreachable" => "attempts: told that nothing was sent",
                    "store-unavailable" => "attempts: refused, no store",
                    _ => "attempts: refused otherwise",
                },
            },
        });
        match heard {
            Heard::Answer(head, body) => match mark(head).as_deref() {
                None => self.judge_problem(number, action, head, &body.bytes),
                Some(mark) => {
                    let answer = Given { head, body, mark };
                    self.judge_answer(number, action, &answer);
                    if mark != "released" {
                        self.judge_end(number, action, head);
                    }
                }
            },
            Heard::Broken(Some(head), _)
                if ROUTES[action.route].0 == "durable"
                    && mark(head).is_some_and(|mark| mark != "released") =>
            {
                self.judge_end(number, action, head);
            }
            _ => {}
        }
    }

    /// The body that an attempt was to have.
    fn asked(&self, attempt: usize) -> Option<Vec<u8>> {
        self.attempts(|attempts| attempts.get(attempt).map(|one| one.action.body()))
    }

    /// The body of a request has come to the upstream whole (I17).
    pub fn judge_body(&self, number: usize, attempt: usize, body: &[u8]) {
        if self.asked(attempt).as_deref() != Some(body) {
            self.wrong(format!(
                "I17: exchange {number} has another body than attempt {attempt}"
            ));
        }
    }

    /// Who has heard the end hears it from the record (I3).
    fn judge_end(&self, number: usize, action: &Action, head: &Head) {
        let record = self.record(action.tenant, &action.key);
        let state = record.map(|record| record.state.name());
        // Who hears it late may hear it after the window, when the key is new or runs again.
        let over =
            ROUTES[action.route].0 == "brief" && self.was_completed(action.tenant, &action.key);
        // Nor is there a record where it was purged since. Who joins late joins what began before, and may, until its gateway
        // hears that it was written.
        let came = self.attempts(|attempts| attempts[number].began);
        let is_replay = head.header("onlyonce-status") == Some("replayed");
        let joined = head.header("x-exchange").filter(|_| !is_replay);
        let joined = joined.and_then(|number| number.parse().ok());
        let began = self.ledger(|ledger| {
            let joined = joined.and_then(|number: usize| ledger.get(number));
            joined.map_or(came, |one| one.began.min(came))
        });
        let over = over || self.was_purged_since(action.tenant, &action.key, began);
        if state != Some(StateName::Completed) && !over {
            let (tenant, key) = (action.tenant, &action.key);
            self.wrong(format!(
                "I3: attempt {number} has heard the end of t{tenant}/{key}, which is {state:?}"
            ));
        }
    }

    /// An answer is that of the upstream, or of an operator, to the last field; and it is the only one.
    fn judge_answer(&self, number: usize, action: &Action, answer: &Given<'_>) {
        let source = match (answer.number("x-exchange"), answer.number("x-ruling")) {
            (Some(exchange), None) => Source::Exchange(exchange),
            (None, Some(ruling)) => Source::Ruling(ruling),
            _ => {
                self.wrong(format!("I4: attempt {number} has an answer of nobody's"));
                return;
            }
        };
        let trailers = client::takes_trailers(number);
        let (mut faults, window) = match source {
            Source::Exchange(number) => self.ledger(|ledger| match ledger.get(number) {
                Some(one) => (self.faults_of(one, action, answer, trailers), one.window),
                None => (vec!["I4: it is of no exchange"], 0),
            }),
            Source::Ruling(number) => match self.noted.lock().rulings.get(number) {
                Some(Ruling {
                    name,
                    answer: Some(brought),
                    life,
                    ..
                }) if *name == (action.tenant, action.key.clone()) => (
                    answer.faults(200, &brought.fields, &brought.body, &brought.trailers),
                    life.unwrap_or(usize::MAX),
                ),
                _ => (vec!["I4: it is of no operator"], 0),
            },
        };
        if answer.mark != "released" {
            let key = (action.tenant, action.key.clone(), window);
            // All who are answered have them in one order, though.
            let mut fields = answer.fields();
            fields.retain(|(name, _)| name != "set-cookie");
            let mut answers = self.answers.lock();
            let first = answers.entry(key).or_insert((source, fields.clone()));
            if first.0 != source {
                faults.push("I4: others were answered otherwise");
            }
            if first.1 != fields {
                faults.push("I4: others had the headers in another order");
            }
        }
        for fault in faults {
            self.wrong(format!(
                "{fault}: the answer to attempt {number}, {source:?}"
            ));
        }
    }

    fn faults_of(
        &self,
        one: &Exchange,
        action: &Action,
        answer: &Given<'_>,
        takes_trailers: bool,
    ) -> Vec<&'static str> {
        // Who does not say so gets none: nothing that is needed may be in them (RFC 9110 section 6.5.1).
        let trailers = match takes_trailers {
            true => one.trailers.as_slice(),
            false => &[],
        };
        // A cookie is for the caller whose request it answers.
        let is_cookie = |field: &&(String, String)| field.0 == "set-cookie";
        let is_first = ["executed", "released"].contains(&answer.mark) && !answer.is_replayed();
        let fields = one.fields.iter();
        let fields: Fields = fields
            .filter(|field| is_first || !is_cookie(field))
            .cloned()
            .collect();
        let mut faults = answer.faults(one.status, &fields, &one.body, trailers);
        if !one.is_for(action.tenant, &action.key) {
            faults.push("I7: it was for another key");
        }
        let asked = one.request.as_ref().map(|one| self.asked(one.attempt));
        if asked.flatten() != Some(action.body()) {
            faults.push("I6: it was asked for with another body");
        }
        faults
    }

    fn judge_problem(&self, number: usize, action: &Action, head: &Head, body: &[u8]) {
        let status = head.status();
        let problem = problem(body);
        let expected: &[&str] = match status {
            409 => &["operation-in-flight"],
            422 => &["key-reused"],
            502 => &["outcome-unknown", "upstream-unreachable"],
            503 => &["store-unavailable", "shutting-down"],
            504 => &["outcome-unknown"],
            _ => &[],
        };
        if !expected.contains(&problem.as_str()) {
            self.wrong(format!(
                "attempt {number} was answered {status} {problem:?}, which nothing explains"
            ));
        }
        let others = self.attempts(|attempts| {
            attempts.iter().any(|other| {
                let other = &other.action;
                (other.tenant, &other.key) == (action.tenant, &action.key)
                    && other.body() != action.body()
            })
        });
        if status == 422 && !others {
            self.wrong(format!(
                "I7: attempt {number} is told that its key was used for something else"
            ));
        }
    }

    /// When all is over (I18, L1).
    pub fn judge_all(&self) {
        for action in &self.actions {
            let record = self.record(action.tenant, &action.key);
            if let Some(record) = record
                && record.state.name() == StateName::InFlight
            {
                let (tenant, key) = (action.tenant, &action.key);
                self.wrong(format!("L1: t{tenant}/{key} is in flight still"));
            }
        }
        self.judge_fates();
    }

    /// Whoever came while an execution ran, or was being claimed, has its outcome, and executes nothing itself
    /// (I18). Who came is known where nothing delayed those who come.
    fn judge_fates(&self) {
        let noted = self.noted.lock();
        let attempts = self.attempts.lock();
        let ledger = self.ledger.lock();
        let mut faults = Vec::new();
        let done = |claim: &&Claim| matches!(claim.heard, Some((_, Ack::Done)));
        for claim in noted.claims.iter().filter(done) {
            let number = claim.attempt;
            let address = address_of(claim.name.0, &claim.name.1);
            if noted.joined.contains(&number) {
                faults.push(format!("I18: attempt {number} has joined, and executes"));
            }
            let Some(one) = attempts.get(number) else {
                faults.push("I18: nobody asked for a claim".to_owned());
                continue;
            };
            let Some(sent) = one.sent else {
                continue;
            };
            let others = noted.claims.iter().filter(done);
            let mut met = others.filter(|other| {
                other.name == claim.name
                    && other.attempt != number
                    && other.from == claim.from
                    && other.asked < sent
                    && other.heard.is_some_and(|(heard, _)| sent < heard)
                    && attempts[other.attempt].action.version == one.action.version
            });
            if !noted.stands(&claim.from, sent)
                && let Some(other) = met.next()
            {
                faults.push(format!(
                    "I18: attempt {number} came while {} claimed, and executes",
                    other.attempt
                ));
            }
            if !noted.is_smooth(&claim.from, address, sent) {
                continue;
            }
            let during = ledger.iter().position(|before| {
                // That nothing ran is known by the head alone, and the rest may take its time.
                let declined = before.answered.filter(|_| before.declined());
                let over = declined.or(before.over);
                before.is_for(claim.name.0, &claim.name.1)
                    && before.window == claim.window
                    && !before.is_stray
                    && before
                        .request
                        .as_ref()
                        .is_some_and(|request| request.attempt != number)
                    && before.began < sent
                    && over.is_some_and(|over| sent < over)
            });
            if let Some(during) = during {
                faults.push(format!(
                    "I18: attempt {number} came during exchange {during}, and executes"
                ));
            }
        }
        drop((noted, attempts, ledger));
        faults.into_iter().for_each(|fault| self.wrong(fault));
    }
}

/// An answer, as a caller has it.
struct Given<'a> {
    head: &'a Head,
    body: &'a Body,
    /// How it came about.
    mark: &'a str,
}

impl Given<'_> {
    fn number(&self, name: &str) -> Option<usize> {
        self.head.header(name)?.parse().ok()
    }

    fn is_replayed(&self) -> bool {
        self.head.header("idempotent-replayed").is_some()
    }

    /// What is not as it was answered (I4, I5).
    fn faults(
        &self,
        status: u16,
        fields: &[(String, String)],
        body: &[u8],
        trailers: &[(String, String)],
    ) -> Vec<&'static str> {
        let mut faults = Vec::new();
        if status != self.head.status() {
            faults.push("I4: its status is another one");
        }
        // The order of different names says nothing; of one name, the order and the number do.
        let [mut own, mut given] = [self.fields(), fields.to_vec()];
        own.sort_by(|(one, _), (other, _)| one.cmp(other));
        given.sort_by(|(one, _), (other, _)| one.cmp(other));
        if own != given {
            faults.push("I4: its headers are others");
        }
        if self.body.bytes != body {
            faults.push("I5: its body is another one");
        }
        if self.body.trailers != trailers {
            faults.push("I4: its trailers are others");
        }
        faults
    }

    /// Its headers, but for the marks, and for the framing: that is of this connection.
    fn fields(&self) -> Fields {
        let headers = self.head.headers.iter();
        let fields = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
        fields
            .filter(|(name, _)| {
                let is_framing = ["content-length", "transfer-encoding", "connection"];
                let is_mark = name.starts_with("onlyonce-") || name == "idempotent-replayed";
                !is_mark && !is_framing.contains(&name.as_str())
            })
            .collect()
    }
}

/// The number in a recorded header.
fn field_of(headers: &HeaderBlock, wanted: &str) -> Option<usize> {
    let mut headers = headers.iter();
    let (_, value) = headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes()))?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The name of the problem in a problem document.
/// What a problem is called.
pub fn problem(body: &[u8]) -> String {
    let document: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    document
        .and_then(|document| {
            Some(
                document
                    .get("type")?
                    .as_str()?
                    .rsplit('/')
                    .next()?
                    .to_owned(),
            )
        })
        .unwrap_or_default()
}
