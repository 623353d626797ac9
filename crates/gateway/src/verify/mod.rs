//! `onlyonce verify`: whether a gateway that runs somewhere keeps its word, judged from outside.
//!
//! Clients with faults of their own send keys through it ([`story`] says what is done with each), note what
//! they get ([`history`]), and in the end the upstream's [`ledger`] is asked for each key what ran.

mod history;
mod ledger;
mod pace;
mod report;
mod story;
mod traffic;
mod words;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, timeout_at};

use self::history::{Counts, History};
use self::ledger::Ledger;
use self::pace::Pace;
use self::report::Report;
use self::story::{Misuse, Opening, Story, key};
use self::traffic::{Caller, Got};
use self::words::Plan;
pub(crate) use self::words::Verify;
use crate::failure::Failure;
use crate::start::{self, Signals};

/// The exit code of a run that could not judge.
const NOT_JUDGED: u8 = 2;
/// How often it says how it goes.
const PROGRESS: Duration = Duration::from_secs(2);
/// Questions to the ledger at once.
const QUESTIONS: usize = 8;

/// Runs it.
pub(crate) fn run(words: Verify) -> Result<ExitCode, Failure> {
    let plan = Arc::new(words.plan()?);
    start::runtime()?.block_on(async {
        let mut signals = Signals::catch()?;
        let run = Arc::new(Run::new(Arc::clone(&plan))?);
        run.first_contact().await?;
        let progress = tokio::spawn(Arc::clone(&run).tell());
        let sending = async {
            run.load().await?;
            run.once_more().await
        };
        let begun = Instant::now();
        tokio::select! {
            sent = sending => sent?,
            () = signals.next() => say("stopped: asking the ledger; a second signal ends it at once"),
        }
        progress.abort();
        let seconds = begun.elapsed().as_secs();
        let troubles = tokio::select! {
            troubles = run.judge() => troubles,
            () = signals.next() => return Err(not_judged("it was stopped before the ledger was read", "let it end")),
        };
        let history = std::mem::take(&mut *run.history.lock());
        let report = Report::of(&plan, history, troubles, seconds);
        print(&report, plan.json);
        Ok(ExitCode::from(report.exit_code()))
    })
}

/// A run, while it lasts.
struct Run {
    plan: Arc<Plan>,
    pace: Pace,
    ledger: Ledger,
    history: Mutex<History>,
    /// The number of the next new key.
    next: AtomicU64,
    begun: Instant,
}

impl Run {
    fn new(plan: Arc<Plan>) -> Result<Self, Failure> {
        Ok(Self {
            pace: Pace::new(plan.rate, plan.most),
            ledger: Ledger::of(&plan)?,
            history: Mutex::default(),
            next: AtomicU64::new(1),
            begun: Instant::now(),
            plan,
        })
    }

    /// One request, before many are sent in vain.
    async fn first_contact(&self) -> Result<(), Failure> {
        let plan = &self.plan;
        let first = Story {
            fault: None,
            ..Story::of(plan, 0)
        };
        let no_ledger = |why: String| {
            not_judged(
                format!("the ledger at {} cannot be read ({why})", plan.ledger),
                "look at --upstream-ledger; docs/verify.md says what it has to answer",
            )
        };
        let key = first.key(plan);
        self.ledger.entries(&key).await.map_err(no_ledger)?;
        say(&format!(
            "at most {} requests to {} in {} s, {} a second, {} clients, seed {}",
            plan.most,
            plan.target,
            plan.duration.as_secs(),
            plan.rate,
            plan.connections,
            plan.seed
        ));
        let caller = Caller::new(Arc::clone(plan))?;
        self.pace.take(1, 0).await;
        self.history.lock().sends(0);
        let got = caller.ask(&first, false).await;
        let trouble = match &got {
            Got::Whole(answer) if answer.is_upstreams() => None,
            Got::Whole(answer) => Some(format!(
                "the gateway answers {} at once, {:?}",
                answer.status, answer.beginning
            )),
            Got::Broken(status) => Some(format!("the gateway's answer, a {status}, broke off")),
            Got::Nothing(why) => Some(format!(
                "the gateway at {} does not answer ({why})",
                plan.target
            )),
            Got::Left => None,
        };
        if let Some(what) = trouble {
            return Err(not_judged(
                what,
                "look at --url, --path, --header and --body",
            ));
        }
        self.history.lock().saw(0, got);
        let entries = self.ledger.settled(&key).await.map_err(no_ledger)?;
        if entries.is_empty() {
            return Err(not_judged(
                format!(
                    "the gateway answered {key}, and the ledger at {} does not know it",
                    plan.ledger
                ),
                "look whether it is the ledger of that gateway's upstream, and notes the key",
            ));
        }
        Ok(())
    }

    /// Says how it goes, until it is dropped.
    async fn tell(self: Arc<Self>) {
        let mut ticks = interval_at(Instant::now() + PROGRESS, PROGRESS);
        loop {
            ticks.tick().await;
            let (counts, violations) = {
                let history = self.history.lock();
                (history.counts, history.violations.len())
            };
            say(&line(self.begun.elapsed(), counts, violations));
        }
    }

    /// New keys, until three quarters of the time or of the requests are used up.
    async fn load(self: &Arc<Self>) -> Result<(), Failure> {
        let until = self.begun + self.plan.duration * 3 / 4;
        let mut workers = JoinSet::new();
        let clients = match self.plan.story {
            Some(_) => 1,
            None => self.plan.connections,
        };
        for _ in 0..clients {
            let (run, caller) = (Arc::clone(self), Caller::new(Arc::clone(&self.plan))?);
            // What is cut off at the end was left, as by any client.
            workers.spawn(async move { timeout_at(until, run.work(&caller)).await });
        }
        while workers.join_next().await.is_some() {}
        Ok(())
    }

    async fn work(&self, caller: &Caller) {
        if let Some(number) = self.plan.story {
            self.play(caller, &Story::of(&self.plan, number)).await;
            return;
        }
        loop {
            let story = Story::of(&self.plan, self.next.fetch_add(1, Ordering::SeqCst));
            if self.play(caller, &story).await.is_none() {
                return;
            }
            let old = story.again.and_then(|back| story.number.checked_sub(back));
            if let Some(old) = old {
                let old = Story::of(&self.plan, old);
                if self.attempt(caller, &old).await.is_none() {
                    return;
                }
            }
        }
    }

    /// Does what the story says. `None` where no more requests may be sent.
    async fn play(&self, caller: &Caller, story: &Story) -> Option<()> {
        match story.opening {
            Opening::Calm => self.read(caller, story, u64::MAX).await?,
            Opening::LeavesEarly(after) => {
                self.one(story).await?;
                self.saw(story, caller.leave_early(story, after).await);
                self.attempt(caller, story).await?;
            }
            Opening::LeavesAmid(bytes) => {
                self.read(caller, story, bytes).await?;
                self.attempt(caller, story).await?;
            }
            Opening::HalfSent => {
                self.one(story).await?;
                self.saw(story, caller.send_half(story).await);
                self.attempt(caller, story).await?;
            }
            Opening::AtOnce(copies) => {
                self.may_send(copies).await?;
                let attempts = (0..copies).map(|_| async {
                    self.history.lock().sends(story.number);
                    self.saw(story, caller.ask(story, false).await);
                });
                join_all(attempts).await;
            }
        }
        for _ in 0..story.retries {
            self.attempt(caller, story).await?;
        }
        if story.misuse == Some(Misuse::After) && self.history.lock().is_used(story.number) {
            self.misuse(caller, story).await?;
        }
        Some(())
    }

    /// One attempt, read to its end.
    async fn attempt(&self, caller: &Caller, story: &Story) -> Option<()> {
        self.one(story).await?;
        self.saw(story, caller.ask(story, false).await);
        Some(())
    }

    /// One attempt, left after so many bytes of its answer; another request comes under its key meanwhile,
    /// if the story says so.
    async fn read(&self, caller: &Caller, story: &Story, most: u64) -> Option<()> {
        self.one(story).await?;
        let opened = match caller.open(story, false).await {
            Ok(opened) => opened,
            Err(got) => {
                self.saw(story, got);
                return Some(());
            }
        };
        // Where the answer has begun, the key is used.
        let misused = if story.misuse == Some(Misuse::Amid) && opened.is_upstreams() {
            self.misuse(caller, story).await
        } else {
            Some(())
        };
        self.saw(story, caller.read(opened, most).await);
        misused
    }

    async fn misuse(&self, caller: &Caller, story: &Story) -> Option<()> {
        self.may_send(1).await?;
        self.history.lock().misuses(story.number);
        let got = caller.ask(story, true).await;
        self.history.lock().saw_misuse(story.number, got);
        Some(())
    }

    fn saw(&self, story: &Story, got: Got) {
        self.history.lock().saw(story.number, got);
    }

    /// Waits for the turn of an attempt, and notes it.
    async fn one(&self, story: &Story) -> Option<()> {
        self.may_send(1).await?;
        self.history.lock().sends(story.number);
        Some(())
    }

    async fn may_send(&self, count: u64) -> Option<()> {
        // A quarter is kept for the keys to come again.
        let may = self.pace.take(count, self.plan.most / 4).await;
        may.then_some(())
    }

    /// Every key once more, as far as time and requests reach.
    async fn once_more(&self) -> Result<(), Failure> {
        let until = self.begun + self.plan.duration;
        let numbers = self.history.lock().numbers();
        let caller = Caller::new(Arc::clone(&self.plan))?;
        let all = stream::iter(numbers).for_each_concurrent(
            usize::from(self.plan.connections),
            async |number| {
                let story = Story::of(&self.plan, number);
                if self.pace.take(1, 0).await {
                    self.history.lock().sends(number);
                    self.saw(&story, caller.ask(&story, false).await);
                }
            },
        );
        // Whoever is still asking then has left.
        let _ = timeout_at(until, all).await;
        Ok(())
    }

    /// Asks the ledger for every key; what it could not judge.
    async fn judge(&self) -> Vec<String> {
        let numbers = self.history.lock().numbers();
        let asked = stream::iter(numbers)
            .map(async |number| (number, self.ledger.settled(&key(&self.plan, number)).await))
            .buffer_unordered(QUESTIONS);
        let asked: Vec<_> = asked.collect().await;
        let (mut entries, mut failed) = (BTreeMap::new(), Vec::new());
        for (number, answer) in asked {
            match answer {
                Ok(found) => drop(entries.insert(number, found)),
                Err(why) => failed.push(why),
            }
        }
        self.history.lock().judge(&entries);
        let trouble = failed.first().map(|why| {
            format!(
                "the ledger did not answer for {} of {} keys ({why})",
                failed.len(),
                failed.len() + entries.len()
            )
        });
        trouble.into_iter().collect()
    }
}

fn not_judged(what: impl std::fmt::Display, next: &str) -> Failure {
    Failure::call(format!("{what}; {next}"), NOT_JUDGED)
}

fn line(elapsed: Duration, counts: Counts, violations: usize) -> String {
    format!(
        "{} s: {} requests for {} keys: {} answered ({} joined, {} replayed), {} refused, {} unknown, {} left, {} \
         violations",
        elapsed.as_secs(),
        counts.sent,
        counts.keys,
        counts.answered,
        counts.joined,
        counts.replayed,
        counts.refused,
        counts.unknown,
        counts.left,
        violations
    )
}

fn say(text: &str) {
    // Nobody watches where standard error is closed.
    let _ = writeln!(io::stderr(), "onlyonce: {text}");
}

fn print(report: &Report, json: bool) {
    let mut out = io::stdout().lock();
    // The exit code says the verdict too.
    let _ = match json {
        // Numbers and text always serialise.
        true => writeln!(
            out,
            "{}",
            serde_json::to_string_pretty(report).unwrap_or_default()
        ),
        false => write!(out, "{report}"),
    };
}
