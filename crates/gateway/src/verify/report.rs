//! What a run ends with.

use std::fmt;

use serde::Serialize;

use super::history::{Counts, History, Judged};
use super::story::key;
use super::words::Plan;

/// The end of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    verdict: Verdict,
    /// Why it could not judge.
    reasons: Vec<String>,
    gateway: String,
    ledger: String,
    seed: u64,
    /// How long requests were sent.
    seconds: u64,
    counts: Counts,
    judged: Judged,
    violations: Vec<Shown>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Passed,
    Violated,
    NotJudged,
}

#[derive(Debug, Serialize)]
struct Shown {
    guarantee: &'static str,
    key: String,
    what: String,
    /// The words that do the same with a new key.
    reproduce: String,
}

impl Report {
    /// The report of a run; `troubles` are why not everything could be judged.
    pub(super) fn of(plan: &Plan, history: History, troubles: Vec<String>, seconds: u64) -> Self {
        let (counts, judged) = (history.counts, history.judged);
        let mut reasons = troubles;
        reasons.extend(missing(counts, judged).map(str::to_owned));
        let violations: Vec<Shown> = history
            .violations
            .into_iter()
            .map(|violation| Shown {
                guarantee: violation.guarantee,
                key: key(plan, violation.story),
                what: violation.what,
                reproduce: format!("--seed {} --story {}", plan.seed, violation.story),
            })
            .collect();
        Self {
            verdict: match (violations.is_empty(), reasons.is_empty()) {
                (false, _) => Verdict::Violated,
                (true, true) => Verdict::Passed,
                (true, false) => Verdict::NotJudged,
            },
            reasons,
            gateway: plan.target.to_string(),
            ledger: plan.ledger.to_string(),
            seed: plan.seed,
            seconds,
            counts,
            judged,
            violations,
        }
    }

    /// As the help lists them.
    pub(super) fn exit_code(&self) -> u8 {
        match self.verdict {
            Verdict::Passed => 0,
            Verdict::Violated => 1,
            Verdict::NotJudged => 2,
        }
    }
}

/// A run that tested nothing has not passed.
fn missing(counts: Counts, judged: Judged) -> impl Iterator<Item = &'static str> {
    let wanted = [
        (counts.executed, "the upstream ran nothing"),
        (judged.i1, "no key that ran was sent twice (I1)"),
        (judged.i4, "no key got two whole answers (I4)"),
        (judged.i5, "the ledger has no digests of answers (I5)"),
        (
            judged.i6,
            "no other request under a used key was answered (I6)",
        ),
    ];
    wanted
        .into_iter()
        .filter(|(count, _)| *count == 0)
        .map(|(_, what)| what)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (counts, judged) = (self.counts, self.judged);
        writeln!(f, "gateway    {}", self.gateway)?;
        writeln!(f, "ledger     {}", self.ledger)?;
        writeln!(f, "seed       {}, {} s", self.seed, self.seconds)?;
        writeln!(
            f,
            "sent       {} requests for {} keys, {} of them other requests under a used key",
            counts.sent, counts.keys, counts.misuses
        )?;
        writeln!(f, "executed   {}, says the upstream", counts.executed)?;
        writeln!(
            f,
            "answered   {}, of them {} joined and {} replayed",
            counts.answered, counts.joined, counts.replayed
        )?;
        writeln!(
            f,
            "refused    {}, released {}, unknown {}",
            counts.refused, counts.released, counts.unknown
        )?;
        writeln!(
            f,
            "left       {}, broken off {}, unanswered {}",
            counts.left, counts.broken, counts.unanswered
        )?;
        writeln!(
            f,
            "judged     I1 {} keys, I4 {} answers, I5 {} answers, I6 {} requests",
            judged.i1, judged.i4, judged.i5, judged.i6
        )?;
        for shown in &self.violations {
            writeln!(f, "\nVIOLATION of {} at {}", shown.guarantee, shown.key)?;
            writeln!(f, "  {}", shown.what)?;
            writeln!(
                f,
                "  to see it again: the same words with {}",
                shown.reproduce
            )?;
        }
        for reason in &self.reasons {
            writeln!(f, "\nnot judged: {reason}")?;
        }
        match self.verdict {
            Verdict::Passed => writeln!(f, "\npassed: no violation"),
            Verdict::Violated => writeln!(f, "\nfailed: {} violations", self.violations.len()),
            Verdict::NotJudged => writeln!(f, "\nnot judged"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_tested_nothing_lacks_everything() {
        let nothing = missing(Counts::default(), Judged::default());
        assert_eq!(nothing.count(), 5);
        let counts = Counts {
            executed: 1,
            ..Counts::default()
        };
        let judged = Judged {
            i1: 1,
            i4: 1,
            i5: 1,
            i6: 0,
        };
        let lacks: Vec<_> = missing(counts, judged).collect();
        assert_eq!(lacks.len(), 1, "{lacks:?}");
        assert!(lacks[0].contains("I6"));
    }
}
