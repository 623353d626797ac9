//! What the clients saw of each key, and whether it fits the guarantees.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::client::Answer;
use super::random::hash;
use super::script::Script;
use super::upstream::{Answered, Ledger, Sent};
use crate::campaign::figures::Figures;

/// How one attempt ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A complete answer from the upstream.
    Complete,
    /// The problem `outcome-unknown`.
    Unknown,
    /// The upstream's "did not run": the key is free again.
    Released,
    /// No outcome: try again.
    Again,
    /// Something that a guarantee forbids.
    Wrong,
}

/// Something that a guarantee forbids.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The guarantee.
    pub guarantee: &'static str,
    /// The key.
    pub key: String,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: key {}: {}", self.guarantee, self.key, self.what)
    }
}

/// What was known when an attempt was sent. Answers are noted some time after they came, so only
/// what was noted before an attempt binds its answer.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    generation: u64,
    began: Instant,
    after_completion: bool,
}

/// All keys of a campaign.
#[derive(Clone, Default)]
pub struct History {
    keys: BTreeMap<String, KeyHistory>,
    /// What went wrong.
    pub violations: Vec<Violation>,
    /// How many attempts were made.
    pub attempts: u64,
    /// How many answers were broken off.
    pub broken: u64,
    /// Stored bytes were damaged: what was completed may be unknown now (I13), but nothing else.
    pub rotten: bool,
    /// The disk fails while clients send: an outcome may be lost though gateway and upstream live.
    pub failing_disk: bool,
    /// When the upstream gave whole answers, where gateways die and disks do not.
    pub answered: Option<Answered>,
    /// Each gateway, by its generation.
    lives: BTreeMap<u64, Life>,
}

/// What is known of one gateway.
#[derive(Clone, Copy)]
struct Life {
    /// When the first attempt was sent to it.
    since: Instant,
    /// When the attempt began that was the last to be executed and answered whole: by then its store kept up.
    kept_up: Option<Instant>,
}

/// How long before that an answer was given that must be in the store too.
const SURELY_READ: Duration = Duration::from_millis(100);

#[derive(Clone, Default)]
struct KeyHistory {
    /// The gateway's generation when the key was first sent.
    first_generation: Option<u64>,
    complete: Option<Complete>,
    unknown: bool,
}

#[derive(Clone, PartialEq, Eq)]
struct Complete {
    execution: u64,
    status: u16,
    headers: Vec<(String, String)>,
    body: u64,
}

/// Headers that say how an answer came to this client, and not what it is.
const MARKS: &[&str] = &[
    "connection",
    "content-length",
    "idempotent-replayed",
    "keep-alive",
    "onlyonce-attempt",
    "onlyonce-expires",
    "onlyonce-status",
    "transfer-encoding",
];

impl History {
    /// Notes that a key is about to be sent to the gateway of this generation.
    pub fn begin(&mut self, key: &str, generation: u64) -> Attempt {
        self.attempts += 1;
        let began = Instant::now();
        self.lives.entry(generation).or_insert(Life {
            since: began,
            kept_up: None,
        });
        let history = self.keys.entry(key.to_string()).or_default();
        history.first_generation = history.first_generation.or(Some(generation));
        Attempt {
            generation,
            began,
            after_completion: history.complete.is_some(),
        }
    }

    /// Notes an answer that never came to its end. That is no outcome: even a recording that was
    /// damaged breaks off for those who find that out, and is unknown to whoever comes next (I13).
    pub fn observe_broken(&mut self) -> Seen {
        self.broken += 1;
        Seen::Again
    }

    /// Every key that was ever sent.
    pub fn keys(&self) -> Vec<String> {
        self.keys.keys().cloned().collect()
    }

    /// Notes an answer, and checks it against what was seen before.
    pub fn observe(&mut self, key: &str, attempt: Attempt, answer: &Answer) -> Seen {
        let seen = match self.judge(key, attempt, answer) {
            Ok(seen) => seen,
            Err((guarantee, what)) => {
                self.violations.push(Violation {
                    guarantee,
                    key: key.to_string(),
                    what,
                });
                Seen::Wrong
            }
        };
        if let (Seen::Unknown, Some(history)) = (seen, self.keys.get_mut(key)) {
            history.unknown = true;
        }
        seen
    }

    fn judge(
        &mut self,
        key: &str,
        attempt: Attempt,
        answer: &Answer,
    ) -> std::result::Result<Seen, (&'static str, String)> {
        let script = Script::of_key(key);
        let had_complete = attempt.after_completion;
        match mark(answer) {
            Mark::Upstream => {
                let complete = complete(key, &script, answer).map_err(|what| ("I5", what))?;
                let history = self.keys.entry(key.to_string()).or_default();
                match &history.complete {
                    None => history.complete = Some(complete),
                    Some(first) if *first == complete => {}
                    Some(first) => {
                        let what = format!("{} before, {} now", show(first), show(&complete));
                        return Err(("I4", what));
                    }
                }
                if answer.head.header("onlyonce-status") == Some("executed")
                    && let Some(life) = self.lives.get_mut(&attempt.generation)
                {
                    life.kept_up = life.kept_up.max(Some(attempt.began));
                }
                Ok(Seen::Complete)
            }
            Mark::Unknown if had_complete && !self.rotten => Err((
                "I3",
                "was completed for a client, and is unknown now".to_string(),
            )),
            Mark::Unknown if script.is_whole() && self.needs_no_unknown(key, attempt) => Err((
                "L1",
                "is unknown, and neither gateway nor upstream failed".to_string(),
            )),
            Mark::Unknown if script.is_whole() && self.was_surely_recorded(key) => Err((
                "L1",
                "is unknown, though the gateway had its whole answer long before it was killed"
                    .to_string(),
            )),
            Mark::Unknown => Ok(Seen::Unknown),
            Mark::Released if had_complete => {
                Err(("I8", "was completed, and was released later".to_string()))
            }
            Mark::Released if script.declines == 0 => Err((
                "I10",
                "was released, and the upstream never declined it".to_string(),
            )),
            Mark::Released => Ok(Seen::Released),
            Mark::Busy => Ok(Seen::Again),
            Mark::Strange => {
                let text = String::from_utf8_lossy(&answer.body);
                let start: String = text.chars().take(200).collect();
                Err((
                    "contract",
                    format!("an answer that does not belong: {} {start}", answer.status),
                ))
            }
        }
    }

    /// Whether nothing has happened since the key was first sent that could lose its outcome.
    fn needs_no_unknown(&self, key: &str, attempt: Attempt) -> bool {
        let first = self
            .keys
            .get(key)
            .and_then(|history| history.first_generation);
        first == Some(attempt.generation) && !self.rotten && !self.failing_disk
    }

    /// Whether its whole answer was given so long before a gateway was killed that a key that came after it has run,
    /// and is completed, on the same gateway.
    fn was_surely_recorded(&self, key: &str) -> bool {
        let answered = self.answered.as_ref();
        let Some(at) = answered.and_then(|answered| answered.at(key)) else {
            return false;
        };
        let mut lives = self.lives.values().rev();
        let life = lives.find(|life| life.since <= at);
        life.and_then(|life| life.kept_up)
            .is_some_and(|kept_up| kept_up >= at + SURELY_READ)
    }

    /// Adds to a ledger each execution that a client had the answer of and that another ledger tells of.
    pub fn add_executions(&self, other: &Ledger, ledger: &mut Ledger) {
        for (key, history) in &self.keys {
            let Some(complete) = &history.complete else {
                continue;
            };
            let ran = Sent::Ran(complete.execution);
            let tells = |ledger: &Ledger| ledger.get(key).is_some_and(|sent| sent.contains(&ran));
            if tells(other) && !tells(ledger) {
                ledger.entry(key.clone()).or_default().push(ran);
            }
        }
    }

    /// Compares the whole campaign with what the upstream received.
    pub fn check_ledger(&mut self, ledger: &Ledger) {
        for (key, sent) in ledger {
            let mut fault = |guarantee, what| {
                self.violations.push(Violation {
                    guarantee,
                    key: key.clone(),
                    what,
                });
            };
            let runs: Vec<u64> = sent
                .iter()
                .filter_map(|sent| match sent {
                    Sent::Ran(number) => Some(*number),
                    Sent::Declined => None,
                })
                .collect();
            if runs.len() > 1 {
                fault(
                    "I1",
                    format!("the upstream ran it {} times: {sent:?}", runs.len()),
                );
            }
            let complete = self
                .keys
                .get(key)
                .and_then(|history| history.complete.as_ref());
            if let Some(complete) = complete
                && !runs.contains(&complete.execution)
            {
                fault(
                    "I5",
                    format!("{} is no execution of it: {sent:?}", show(complete)),
                );
            }
        }
        for (key, history) in &self.keys {
            if history.complete.is_some() && !ledger.contains_key(key) {
                self.violations.push(Violation {
                    guarantee: "I5",
                    key: key.clone(),
                    what: "has an answer, and the upstream never saw it".to_string(),
                });
            }
        }
    }

    /// Every key that was completed, and the operation that did it.
    pub fn completed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.keys.iter().filter_map(|(key, history)| {
            let headers = &history.complete.as_ref()?.headers;
            let named = headers
                .iter()
                .find(|(name, _)| name == "onlyonce-operation");
            let operation = named.map_or("", |(_, operation)| operation);
            Some((key.as_str(), operation))
        })
    }

    /// What was counted; an error if nothing was completed, so that nothing was tested.
    pub fn figures(&self) -> Result<Figures> {
        let (completed, unknown) = self.outcomes();
        if completed == 0 {
            bail!("no key was completed: nothing was tested");
        }
        Ok(Figures::from([
            ("keys", self.keys.len() as u64),
            ("keys completed", completed as u64),
            ("keys unknown", unknown as u64),
            ("attempts", self.attempts),
            ("attempts broken off", self.broken),
        ]))
    }

    /// What went wrong, with the seed.
    pub fn violations_of(&self, seed: u64) -> Vec<String> {
        let all = self.violations.iter();
        all.map(|violation| format!("seed {seed}: {violation}"))
            .collect()
    }

    /// How many keys were completed, and how many were unknown to the end.
    pub fn outcomes(&self) -> (usize, usize) {
        let completed = self
            .keys
            .values()
            .filter(|key| key.complete.is_some())
            .count();
        let unknown = self
            .keys
            .values()
            .filter(|key| key.unknown && key.complete.is_none())
            .count();
        (completed, unknown)
    }
}

enum Mark {
    Upstream,
    Unknown,
    Released,
    Busy,
    Strange,
}

fn mark(answer: &Answer) -> Mark {
    match answer.head.header("onlyonce-status") {
        Some("executed" | "replayed" | "joined") => return Mark::Upstream,
        Some("released") if answer.status == 503 => return Mark::Released,
        _ => {}
    }
    let text = String::from_utf8_lossy(&answer.body);
    let problem = |name: &str| text.contains(&format!("/problems/{name}\""));
    if problem("outcome-unknown") {
        return Mark::Unknown;
    }
    let passing = [
        "operation-in-flight",
        "upstream-unreachable",
        "shutting-down",
        "store-unavailable",
        "storage-full",
    ];
    if passing.iter().any(|name| problem(name)) {
        Mark::Busy
    } else {
        Mark::Strange
    }
}

/// Checks a complete answer against the script: nothing missing, nothing of another execution.
fn complete(key: &str, script: &Script, answer: &Answer) -> std::result::Result<Complete, String> {
    let execution = answer
        .head
        .header("x-execution")
        .and_then(|text| text.parse().ok());
    let Some(execution) = execution else {
        return Err("a complete answer without the number of its execution".to_string());
    };
    if !script.is_whole() {
        return Err(format!(
            "a complete answer, where the upstream broke off: {:?}",
            script.run
        ));
    }
    if answer.status != script.run.status() {
        return Err(format!(
            "status {} in place of {}",
            answer.status,
            script.run.status()
        ));
    }
    let whole = script.body(key, execution);
    if answer.body != whole {
        return Err(format!(
            "a body of {} bytes that is not the {} bytes of execution {execution}",
            answer.body.len(),
            whole.len()
        ));
    }
    let mut headers = answer.head.headers.clone();
    headers.retain(|(name, _)| !MARKS.contains(&name.as_str()));
    // By name alone: those of one name keep their order.
    headers.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(Complete {
        execution,
        status: answer.status,
        headers,
        body: hash(&answer.body),
    })
}

fn show(complete: &Complete) -> String {
    format!(
        "execution {}, status {}, {:?}",
        complete.execution, complete.status, complete.headers
    )
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Answered, History, SURELY_READ, Seen};
    use crate::faults::client::{Answer, Head};
    use crate::faults::script::Script;

    /// Keys that the upstream answers whole, and at once.
    fn keys() -> impl Iterator<Item = String> {
        let keys = (0..).map(|number| format!("k{number}"));
        keys.filter(|key| {
            let script = Script::of_key(key);
            script.is_whole() && script.declines == 0
        })
    }

    fn answer(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Answer {
            status,
            head: Head {
                first_line: String::new(),
                headers: headers.collect(),
            },
            body: body.to_vec(),
        }
    }

    fn executed(key: &str, lists: [&str; 2]) -> Answer {
        let script = Script::of_key(key);
        let headers = [
            ("x-execution", "7"),
            ("onlyonce-status", "executed"),
            ("x-list", lists[0]),
            ("x-list", lists[1]),
        ];
        answer(script.run.status(), &headers, &script.body(key, 7))
    }

    fn unknown() -> Answer {
        let body = br#"{"type":"https://onlyonce.dev/problems/outcome-unknown"}"#;
        answer(502, &[], body)
    }

    #[test]
    fn i04_another_order_of_one_name_is_another_answer() {
        let (mut history, key) = (History::default(), keys().next().unwrap());
        for (lists, seen) in [
            (["one", "two"], Seen::Complete),
            (["one", "two"], Seen::Complete),
            (["two", "one"], Seen::Wrong),
        ] {
            let attempt = history.begin(&key, 1);
            assert_eq!(
                history.observe(&key, attempt, &executed(&key, lists)),
                seen,
                "{lists:?}"
            );
        }
    }

    /// What the first key is held for after a kill, if another one began so long after its answer and was completed.
    fn after_a_kill(later: Duration) -> Seen {
        let mut history = History {
            answered: Some(Answered::default()),
            ..History::default()
        };
        let (lost, other) = (keys().next().unwrap(), keys().nth(1).unwrap());
        history.begin(&lost, 1);
        let answered = history.answered.as_ref().unwrap();
        answered.note(&lost, Instant::now());
        let mut attempt = history.begin(&other, 1);
        attempt.began += later;
        history.observe(&other, attempt, &executed(&other, ["one", "two"]));
        let again = history.begin(&lost, 2);
        history.observe(&lost, again, &unknown())
    }

    #[test]
    fn l1_an_answer_that_was_there_long_before_a_kill_is_not_lost() {
        assert_eq!(after_a_kill(Duration::ZERO), Seen::Unknown);
        assert_eq!(after_a_kill(2 * SURELY_READ), Seen::Wrong);
    }
}
