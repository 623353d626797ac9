//! What must hold, whatever happens: judged by the upstream's ledger, by what each caller heard, and by
//! what the store was given.

use std::sync::Arc;

use onlyonce_core::{Record, State, StateName};
use onlyonce_store::Swap;
use onlyonce_testkit::Head;

use crate::client::{Action, Heard};
use crate::gateway::ROUTES;
use crate::upstream::{Exchange, Request};
use crate::world::World;

/// The statuses by which the upstream says that it did not run.
const DECLINES: [u16; 3] = [401, 429, 503];

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
}

impl World {
    /// A request has come to the upstream (I1, I2, I6).
    pub fn judge_request(&self, number: usize, request: &Request) {
        let Request { tenant, key, .. } = request;
        let (ran, held) = self.ledger(|ledger| {
            let window = self.window(*tenant, key);
            let ran = ledger[..number].iter().position(|before| {
                before.is_for(*tenant, key) && !before.declined() && before.window == window
            });
            let held = ledger[number]
                .held
                .iter()
                .find(|(of, name, _)| of == tenant && name == key)
                .and_then(|(_, _, state)| *state);
            (ran, held)
        });
        if let Some(before) = ran {
            self.wrong(format!(
                "I1: t{tenant}/{key} came in exchange {before} and in exchange {number}"
            ));
        }
        // An owner that stood still may find its claim taken for dead.
        if !matches!(held, Some(StateName::InFlight | StateName::Unknown)) {
            self.wrong(format!(
                "I2: t{tenant}/{key} came in exchange {number}, and the store held {held:?}"
            ));
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
        let now = onlyonce_store::Store::now(&*self.store);
        let before = before.filter(|held| held.expires_at().is_none_or(|end| now < end));
        let held = before.as_ref().map(|held| held.state.name());
        let lawful = match (held, to) {
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
        let tenant = usize::from(**tenant == *"t1");
        let last = self.wrote(tenant, key.as_str(), from);
        let is_owners = match to {
            StateName::Completed | StateName::Released => true,
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
            State::Released { .. } => self.judge_release(from, tenant, key.as_str()),
            State::Completed(completed) => {
                self.completed(tenant, key.as_str(), completed.expires_at);
                let exchange = completed
                    .head
                    .headers
                    .iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case(b"x-exchange"))
                    .and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok());
                self.judge_completion(from, exchange, completed.body_len);
            }
            State::InFlight { .. } if record.is_new_claim() => self.claimed(tenant, key.as_str()),
            State::InFlight { .. } | State::Unknown { .. } => {}
        }
    }

    fn judge_release(&self, from: &str, tenant: usize, key: &str) {
        let window = self.window(tenant, key);
        let ran = self.ledger(|ledger| {
            ledger
                .iter()
                .position(|one| one.is_for(tenant, key) && !one.declined() && one.window == window)
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
                let (status, mark, len) = (head.status(), mark(head), body.len());
                let problem = problem(body);
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
                None => match problem(body).as_str() {
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
                None => self.judge_problem(number, action, head, body),
                Some("released") => self.judge_answer(number, action, head, body),
                Some(_) => {
                    self.judge_answer(number, action, head, body);
                    self.judge_end(number, action);
                }
            },
            Heard::Broken(Some(head), _)
                if ROUTES[action.route].0 == "durable"
                    && mark(head).is_some_and(|mark| mark != "released") =>
            {
                self.judge_end(number, action);
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
    fn judge_end(&self, number: usize, action: &Action) {
        let record = self.record(action.tenant, &action.key);
        let state = record.map(|record| record.state.name());
        // Who hears it late may hear it after the window, when the key is new or runs again.
        let over =
            ROUTES[action.route].0 == "brief" && self.was_completed(action.tenant, &action.key);
        if state != Some(StateName::Completed) && !over {
            let (tenant, key) = (action.tenant, &action.key);
            self.wrong(format!(
                "I3: attempt {number} has heard the end of t{tenant}/{key}, which is {state:?}"
            ));
        }
    }

    fn judge_answer(&self, number: usize, action: &Action, head: &Head, body: &[u8]) {
        let exchange = head.header("x-exchange").and_then(|text| text.parse().ok());
        let Some(exchange) = exchange else {
            self.wrong(format!("I4: attempt {number} has an answer of nobody's"));
            return;
        };
        let faults = self.ledger(|ledger| {
            let Some(one) = ledger.get::<usize>(exchange) else {
                return vec!["I4: it is of no exchange"];
            };
            let mut faults = Vec::new();
            if !one.is_for(action.tenant, &action.key) {
                faults.push("I7: it was for another key");
            }
            let asked = one.request.as_ref().map(|one| self.asked(one.attempt));
            if asked.flatten() != Some(action.body()) {
                faults.push("I6: it was asked for with another body");
            }
            if one.status != head.status() {
                faults.push("I4: its status is another one");
            }
            if head.all("x-twice") != ["a", "b"] {
                faults.push("I4: its headers are others");
            }
            if one.body != body {
                faults.push("I5: its body is another one");
            }
            faults
        });
        for fault in faults {
            self.wrong(format!(
                "{fault}: the answer to attempt {number}, from exchange {exchange}"
            ));
        }
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
        let temper = &self.temper;
        if temper.store_faults + temper.store_slow + temper.store_stalls + temper.troubles == 0 {
            self.judge_fates();
        }
    }

    /// Whoever came while an execution ran has its outcome, and executes nothing itself (I18). Said where
    /// nothing delays those who come.
    fn judge_fates(&self) {
        let faults = self.ledger(|ledger| {
            self.attempts(|attempts| {
                let mut faults = Vec::new();
                for (number, one) in ledger.iter().enumerate() {
                    let Some(request) = &one.request else {
                        continue;
                    };
                    let sent = attempts.get(request.attempt).and_then(|one| one.sent);
                    for (earlier, before) in ledger[..number].iter().enumerate() {
                        // That nothing ran is known by the head alone, and the rest may take its time.
                        let declined = before.answered.filter(|_| before.declined());
                        let Some(over) = declined.or(before.over) else {
                            continue;
                        };
                        let same = before.window == one.window && before.request.as_ref().is_some_and(|before| {
                            before.attempt != request.attempt
                                && before.tenant == request.tenant
                                && before.key == request.key
                        });
                        if same && sent.is_some_and(|sent| sent > before.began && sent < over) {
                            faults.push(format!(
                                "I18: attempt {} came during exchange {earlier}, and has exchange {number}",
                                request.attempt
                            ));
                        }
                    }
                }
                faults
            })
        });
        faults.into_iter().for_each(|fault| self.wrong(fault));
    }
}

/// The name of the problem in a problem document.
fn problem(body: &[u8]) -> String {
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
