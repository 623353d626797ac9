//! What was seen of each key, and what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;

use super::ledger::{Entry, Outcome};
use super::traffic::{Answer, Got, Sha256};

/// Everything that was seen.
#[derive(Debug, Default)]
pub(super) struct History {
    keys: BTreeMap<u64, Key>,
    /// How often what happened.
    pub(super) counts: Counts,
    /// How much there was to judge.
    pub(super) judged: Judged,
    /// What must not have happened.
    pub(super) violations: Vec<Violation>,
}

/// How often what happened.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Counts {
    /// Requests.
    pub(super) sent: u64,
    /// Of these, such with another body under a used key.
    pub(super) misuses: u64,
    /// Keys.
    pub(super) keys: u64,
    /// Whole answers of the upstream's.
    pub(super) answered: u64,
    /// Of these, such that joined what was running, as the gateway marks them.
    pub(super) joined: u64,
    /// Of these, replays, as the gateway marks them.
    pub(super) replayed: u64,
    /// Answers of the gateway's own, but for the next two.
    pub(super) refused: u64,
    /// Answers of the upstream's that say that nothing ran, as the gateway marks them.
    pub(super) released: u64,
    /// Answers that say that the outcome is unknown.
    pub(super) unknown: u64,
    /// Answers that broke off.
    pub(super) broken: u64,
    /// Requests without any answer.
    pub(super) unanswered: u64,
    /// Requests that this client left.
    pub(super) left: u64,
    /// What the upstream ran.
    pub(super) executed: u64,
}

/// How much there was to judge of each guarantee.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Judged {
    /// Executed keys that were sent more than once.
    #[serde(rename = "I1")]
    pub(super) i1: u64,
    /// Answers that were compared with the first one for their key.
    #[serde(rename = "I4")]
    pub(super) i4: u64,
    /// Answers that were compared with the upstream's.
    #[serde(rename = "I5")]
    pub(super) i5: u64,
    /// Other requests under used keys.
    #[serde(rename = "I6")]
    pub(super) i6: u64,
}

/// What must not have happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Violation {
    /// I1, I4, I5 or I6.
    pub(super) guarantee: &'static str,
    /// The number of the key's story.
    pub(super) story: u64,
    /// What was seen.
    pub(super) what: String,
}

#[derive(Debug, Default)]
struct Key {
    attempts: u64,
    misuses: u64,
    first: Option<Answer>,
    /// Of all whole answers.
    bodies: BTreeSet<Sha256>,
    /// Each guarantee is told once.
    blamed: BTreeSet<&'static str>,
}

impl History {
    /// Notes that an attempt at a key is sent.
    pub(super) fn sends(&mut self, number: u64) {
        self.counts.sent += 1;
        self.keys.entry(number).or_default().attempts += 1;
        self.counts.keys = self.keys.len() as u64;
    }

    /// Notes that another request is sent under a key.
    pub(super) fn misuses(&mut self, number: u64) {
        self.counts.sent += 1;
        self.counts.misuses += 1;
        self.keys.entry(number).or_default().misuses += 1;
    }

    /// The stories that were begun.
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.keys.keys().copied().collect()
    }

    /// Whether a key has an answer of the upstream's, so that another request may not have it.
    pub(super) fn is_used(&self, number: u64) -> bool {
        let key = self.keys.get(&number);
        key.is_some_and(|key| key.first.is_some())
    }

    /// Notes what came of an attempt.
    pub(super) fn saw(&mut self, number: u64, got: Got) {
        let Some(answer) = self.answer(got) else {
            return;
        };
        if !answer.is_upstreams() {
            self.counts.own(&answer);
            return;
        }
        self.counts.answered += 1;
        self.counts.joined += u64::from(answer.mark.as_deref() == Some("joined"));
        let is_replay = match &answer.mark {
            Some(mark) => mark == "replayed",
            None => answer.is_replayed,
        };
        self.counts.replayed += u64::from(is_replay);
        let key = self.keys.entry(number).or_default();
        key.bodies.insert(answer.sha256);
        let Some(first) = &key.first else {
            key.first = Some(answer);
            return;
        };
        self.judged.i4 += 1;
        if let Some(what) = difference(first, &answer) {
            self.blame("I4", number, what);
        }
    }

    /// Notes what came of another request under a used key.
    pub(super) fn saw_misuse(&mut self, number: u64, got: Got) {
        let Some(answer) = self.answer(got) else {
            return;
        };
        let first = self.keys.get(&number).and_then(|key| key.first.as_ref());
        let is_shown = first.is_some_and(|first| first.length > 0 && first.sha256 == answer.sha256);
        if is_shown {
            self.judged.i6 += 1;
            let what = "another request under its key got the answer of the first".to_owned();
            self.blame("I6", number, what);
        } else if answer.is_upstreams() {
            self.judged.i6 += 1;
            let what = format!(
                "another request under its key was not refused: status {}, {:?}",
                answer.status, answer.beginning
            );
            self.blame("I6", number, what);
        } else {
            // A gateway that is in trouble says so to everybody.
            self.judged.i6 += u64::from(answer.status < 500);
            self.counts.own(&answer);
        }
    }

    fn answer(&mut self, got: Got) -> Option<Answer> {
        match got {
            Got::Whole(answer) => return Some(answer),
            Got::Broken(_) => self.counts.broken += 1,
            Got::Nothing(_) => self.counts.unanswered += 1,
            Got::Left => self.counts.left += 1,
        }
        None
    }

    /// Compares what was seen with what the upstream ran.
    pub(super) fn judge(&mut self, ledger: &BTreeMap<u64, Vec<Entry>>) {
        let has_digests = ledger.values().flatten().any(|e| e.answer_sha256.is_some());
        for (&number, entries) in ledger {
            let Some(key) = self.keys.get(&number) else {
                continue;
            };
            let ran: Vec<&Entry> = entries
                .iter()
                .filter(|entry| entry.outcome != Outcome::Failed)
                .collect();
            self.counts.executed += ran.len() as u64;
            self.judged.i1 += u64::from(!ran.is_empty() && key.attempts + key.misuses > 1);
            let mut found = runs(key, &ran);
            if has_digests {
                self.judged.i5 += key.bodies.len() as u64;
                found.extend(ends(key, entries).map(|what| ("I5", what)));
            }
            for (guarantee, what) in found {
                self.blame(guarantee, number, what);
            }
        }
        self.violations.sort_by_key(|violation| violation.story);
    }

    fn blame(&mut self, guarantee: &'static str, story: u64, what: String) {
        if self.keys.entry(story).or_default().blamed.insert(guarantee) {
            self.violations.push(Violation {
                guarantee,
                story,
                what,
            });
        }
    }
}

impl Counts {
    /// Counts what the gateway says itself.
    fn own(&mut self, answer: &Answer) {
        match (answer.mark.as_deref(), answer.status) {
            (Some("released"), _) => self.released += 1,
            (_, 502 | 504) => self.unknown += 1,
            _ => self.refused += 1,
        }
    }
}

/// In what two answers for one key differ.
fn difference(first: &Answer, other: &Answer) -> Option<String> {
    if first.status != other.status {
        return Some(format!("status {}, then {}", first.status, other.status));
    }
    if first.sha256 != other.sha256 {
        return Some(format!(
            "a body of {} bytes, {:?}, then one of {} bytes, {:?}",
            first.length, first.beginning, other.length, other.beginning
        ));
    }
    if first.headers != other.headers {
        let one: BTreeSet<_> = first.headers.iter().collect();
        let two: BTreeSet<_> = other.headers.iter().collect();
        return Some(format!(
            "headers {:?}, then {:?} (--ignore-header NAME, where that is right)",
            one.difference(&two).collect::<Vec<_>>(),
            two.difference(&one).collect::<Vec<_>>()
        ));
    }
    None
}

/// What is wrong with how often a key ran: one request twice, or two requests.
fn runs(key: &Key, ran: &[&Entry]) -> Vec<(&'static str, String)> {
    if ran.len() < 2 {
        return Vec::new();
    }
    let requests: Vec<&str> = ran
        .iter()
        .filter_map(|e| e.request_sha256.as_deref())
        .collect();
    let distinct = requests.iter().collect::<BTreeSet<_>>().len();
    let mut wrong = Vec::new();
    if key.misuses > 0 && distinct > 1 {
        let what = format!("the upstream ran {distinct} different requests under its key");
        wrong.push(("I6", what));
    }
    if wrong.is_empty() || ran.len() > distinct {
        wrong.push(("I1", format!("the upstream ran it {} times", ran.len())));
    }
    wrong
}

/// What is wrong with the ends of a key's answers: each has to be one that the upstream gave whole.
fn ends(key: &Key, entries: &[Entry]) -> Option<String> {
    let given: Vec<&str> = entries
        .iter()
        .filter_map(|e| e.answer_sha256.as_deref())
        .collect();
    let made_up = key.bodies.iter().find(|body| {
        let body = hex(body);
        !given.iter().any(|given| given.eq_ignore_ascii_case(&body))
    })?;
    let upstream = match (entries.len(), given.len()) {
        (0, _) => "never got a request with its key".to_owned(),
        (_, 0) => "never gave a whole one".to_owned(),
        _ => format!("gave {given:?}"),
    };
    Some(format!(
        "an answer came to a clean end with SHA-256 {}, and the upstream {upstream}",
        hex(made_up)
    ))
}

fn hex(bytes: &Sha256) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, mark: Option<&str>, body: u8) -> Got {
        Got::Whole(Answer {
            status,
            mark: mark.map(str::to_owned),
            is_replayed: false,
            headers: Vec::new(),
            sha256: [body; 32],
            length: 1,
            beginning: String::new(),
        })
    }

    fn entry(request: Option<&str>, body: Option<u8>, outcome: Outcome) -> Entry {
        Entry {
            outcome,
            answer_sha256: body.map(|body| hex(&[body; 32])),
            request_sha256: request.map(str::to_owned),
        }
    }

    /// What is found where key 1 got these answers, and key 2 is as it should be.
    fn found(answers: Vec<Got>, misuses: Vec<Got>, entries: Vec<Entry>) -> Vec<&'static str> {
        let mut history = History::default();
        for got in answers {
            history.sends(1);
            history.saw(1, got);
        }
        for got in misuses {
            history.misuses(1);
            history.saw_misuse(1, got);
        }
        history.sends(2);
        history.saw(2, answer(200, None, 2));
        let well = vec![entry(None, Some(2), Outcome::Completed)];
        history.judge(&BTreeMap::from([(1, entries), (2, well)]));
        let all = history.violations.iter().map(|v| (v.story, v.guarantee));
        all.inspect(|(story, _)| assert_eq!(*story, 1))
            .map(|(_, guarantee)| guarantee)
            .collect()
    }

    #[test]
    fn what_is_as_it_should_be_is_no_violation() {
        let unknown = || answer(502, None, 9);
        let executed = || answer(200, Some("executed"), 1);
        let once = || entry(Some("r"), Some(1), Outcome::Completed);
        let declined = || entry(Some("r"), Some(8), Outcome::Failed);
        let broken = || entry(Some("r"), None, Outcome::Aborted);
        assert!(found(vec![executed(), executed()], vec![], vec![once()]).is_empty());
        assert!(found(vec![Got::Left, unknown()], vec![], vec![broken()]).is_empty());
        let again = vec![answer(429, Some("released"), 8), executed()];
        assert!(found(again, vec![answer(422, None, 9)], vec![declined(), once()]).is_empty());
        // An error of the upstream's that is its answer.
        let error = vec![answer(500, Some("executed"), 8)];
        assert!(found(error, vec![], vec![declined()]).is_empty());
    }

    #[test]
    fn each_violation_is_found_and_called_by_its_name() {
        let ok = |body| answer(200, None, body);
        let ran = |request, body| entry(Some(request), Some(body), Outcome::Completed);
        let twice = || vec![ran("r", 1), ran("r", 2)];
        assert_eq!(found(vec![Got::Left, ok(1)], vec![], twice()), ["I1"]);
        assert_eq!(found(vec![ok(1), ok(2)], vec![], twice()), ["I4", "I1"]);
        assert_eq!(found(vec![ok(3)], vec![], vec![ran("r", 1)]), ["I5"]);
        assert_eq!(found(vec![ok(1)], vec![], vec![]), ["I5"]);
        let cut = vec![entry(Some("r"), None, Outcome::Aborted)];
        assert_eq!(found(vec![ok(1)], vec![], cut), ["I5"]);
        // Another request ran, or got what was not its own.
        let both = || vec![ran("r", 1), ran("s", 2)];
        assert_eq!(found(vec![ok(1)], vec![ok(2)], both()), ["I6"]);
        assert_eq!(found(vec![ok(1)], vec![Got::Left], both()), ["I6"]);
        assert_eq!(found(vec![ok(1)], vec![ok(1)], vec![ran("r", 1)]), ["I6"]);
        let shown = answer(409, None, 1);
        assert_eq!(found(vec![ok(1)], vec![shown], vec![ran("r", 1)]), ["I6"]);
        let thrice = vec![ran("r", 1), ran("s", 2), ran("r", 3)];
        assert_eq!(found(vec![ok(1)], vec![Got::Left], thrice), ["I6", "I1"]);
    }
}
