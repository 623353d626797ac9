//! What ran and what it cost. In memory only.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::iter::Sum;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{Context, SHA256};
use parking_lot::Mutex;
use serde::{Serialize, Serializer};

/// Entries kept; older ones are forgotten first, the totals stay exact.
const MAX_ENTRIES: usize = 1_000_000;

/// The record of every execution. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<Book>>);

#[derive(Debug, Default)]
struct Book {
    /// Number of the last execution. Not set back by a reset: answers must never repeat.
    last_n: u64,
    /// Executions since the last reset.
    executions: u64,
    charged: Usd,
    /// The newest entries, numbered without gaps up to `last_n`.
    entries: VecDeque<Entry>,
    /// How many executions each tag has seen since the last reset.
    tags: HashMap<String, u64>,
}

/// One execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its number; also in its answer, and in the answer's `X-Sandbox-Execution`.
    pub n: u64,
    /// When its request head had been read.
    pub at: Timestamp,
    /// The request's method.
    pub method: String,
    /// The request's path, without the query.
    pub path: String,
    /// The `Idempotency-Key` as it came, or the `X-Verify-Key` where there is none. Noted, not obeyed.
    pub key: Option<String>,
    /// The request's `X-Sandbox-Tag`.
    pub tag: Option<String>,
    /// What it cost.
    pub price_usd: Usd,
    /// The tokens of its generation, told or not, cut or whole. `None` for what generates nothing,
    /// and where it failed or broke before an answer was made.
    pub usage: Option<Usage>,
    /// How it ended.
    pub outcome: Outcome,
    /// Of the request's body, once that is here.
    pub request_sha256: Option<Sha256>,
    /// Of the body of its answer, where that was given whole. `None` while it runs, and where it broke.
    pub answer_sha256: Option<Sha256>,
}

/// A SHA-256; written in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sha256(pub [u8; 32]);

/// The tokens of one generation, as its answer tells them at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Of the prompt.
    pub input: u64,
    /// Of the whole text.
    pub output: u64,
}

/// How an execution ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its answer is not finished yet.
    Running,
    /// The whole answer was handed to the connection.
    Completed,
    /// The answer never reached its end: a fault broke it, or the client left. Costs all the same.
    Aborted,
    /// Answered with an error status. Costs nothing, as with the real providers.
    Failed,
}

/// The ledger at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// How many executions there were.
    pub executions: u64,
    /// What they cost together.
    pub charged_usd: Usd,
    /// One by one, oldest first.
    pub entries: Vec<Entry>,
}

/// US dollars, held in millionths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usd {
    /// Millionths of a dollar.
    pub micros: u64,
}

/// A moment; written in RFC 3339, UTC, with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub SystemTime);

impl Ledger {
    /// Everything since the last reset.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let book = self.0.lock();
        Snapshot {
            executions: book.executions,
            charged_usd: book.charged,
            entries: book.entries.iter().cloned().collect(),
        }
    }

    /// The entries (and their totals) that `wanted` says yes to.
    #[must_use]
    pub fn snapshot_of(&self, wanted: impl Fn(&Entry) -> bool) -> Snapshot {
        let book = self.0.lock();
        let entries: Vec<Entry> = book.entries.iter().filter(|e| wanted(e)).cloned().collect();
        Snapshot {
            executions: entries.len() as u64,
            charged_usd: entries.iter().map(|e| e.price_usd).sum(),
            entries,
        }
    }

    /// Forgets all entries and totals. Numbers go on from where they were.
    pub fn reset(&self) {
        let mut book = self.0.lock();
        *book = Book {
            last_n: book.last_n,
            ..Book::default()
        };
    }

    /// Counts and prices an execution. It reads as aborted unless the handle says otherwise.
    pub(crate) fn begin(&self, request: Begun<'_>) -> Execution {
        let mut book = self.0.lock();
        let book = &mut *book;
        book.last_n += 1;
        book.executions += 1;
        book.charged.micros += request.price.micros;
        let nth_of_tag = request
            .tag
            .map_or(book.executions, |tag| book.next_of_tag(tag));
        if book.entries.len() == MAX_ENTRIES {
            book.entries.pop_front();
        }
        book.entries.push_back(Entry {
            n: book.last_n,
            at: Timestamp(request.at),
            method: request.method.to_owned(),
            path: request.path.to_owned(),
            key: request.key.map(str::to_owned),
            tag: request.tag.map(str::to_owned),
            price_usd: request.price,
            usage: None,
            outcome: Outcome::Running,
            request_sha256: None,
            answer_sha256: None,
        });
        Execution {
            ledger: self.clone(),
            n: book.last_n,
            nth_of_tag,
            answer: None,
            settled: false,
        }
    }
}

impl Book {
    fn next_of_tag(&mut self, tag: &str) -> u64 {
        if let Some(seen) = self.tags.get_mut(tag) {
            *seen += 1;
            return *seen;
        }
        if self.tags.len() == MAX_ENTRIES {
            self.tags.clear();
        }
        self.tags.insert(tag.to_owned(), 1);
        1
    }

    /// The entry of execution `n`, unless it was forgotten.
    fn entry(&mut self, n: u64) -> Option<&mut Entry> {
        let age = usize::try_from(self.last_n.checked_sub(n)?).ok()?;
        let index = self.entries.len().checked_sub(age + 1)?;
        self.entries.get_mut(index)
    }

    fn settle(&mut self, n: u64, outcome: Outcome, answer: Option<Sha256>) {
        let Some(entry) = self.entry(n) else { return };
        entry.outcome = outcome;
        entry.answer_sha256 = answer;
        if outcome == Outcome::Failed {
            let refund = std::mem::take(&mut entry.price_usd);
            self.charged.micros -= refund.micros;
        }
    }
}

/// What is known of an execution when its request head has been read.
pub(crate) struct Begun<'a> {
    pub(crate) at: SystemTime,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) key: Option<&'a str>,
    pub(crate) tag: Option<&'a str>,
    pub(crate) price: Usd,
}

/// A running execution. Dropped without a word, it was aborted.
#[derive(Debug)]
pub(crate) struct Execution {
    ledger: Ledger,
    n: u64,
    nth_of_tag: u64,
    answer: Option<Sha256>,
    settled: bool,
}

impl Execution {
    pub(crate) fn n(&self) -> u64 {
        self.n
    }

    /// Its number among the executions of its tag, from 1.
    pub(crate) fn nth_of_tag(&self) -> u64 {
        self.nth_of_tag
    }

    /// Notes what its answer is going to tell.
    pub(crate) fn generates(&self, usage: Usage) {
        if let Some(entry) = self.ledger.0.lock().entry(self.n) {
            entry.usage = Some(usage);
        }
    }

    /// Notes the request's body.
    pub(crate) fn takes(&self, request: &[u8]) {
        let digest = Sha256::of([request]);
        if let Some(entry) = self.ledger.0.lock().entry(self.n) {
            entry.request_sha256 = Some(digest);
        }
    }

    /// Notes the body of its answer, for when that was given whole.
    pub(crate) fn answers<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) {
        self.answer = Some(Sha256::of(frames));
    }

    pub(crate) fn complete(self) {
        self.settle(Outcome::Completed);
    }

    pub(crate) fn fail(self) {
        self.settle(Outcome::Failed);
    }

    fn settle(mut self, outcome: Outcome) {
        self.settled = true;
        let answer = self.answer;
        self.ledger.0.lock().settle(self.n, outcome, answer);
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        if !self.settled {
            self.ledger.0.lock().settle(self.n, Outcome::Aborted, None);
        }
    }
}

impl Sha256 {
    /// Of these pieces, one after the other.
    pub(crate) fn of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut context = Context::new(&SHA256);
        for piece in pieces {
            context.update(piece);
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Usd {
    /// From millionths of a dollar.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self { micros }
    }
}

impl Sum for Usd {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        Self {
            micros: all.map(|usd| usd.micros).sum(),
        }
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:06}",
            self.micros / 1_000_000,
            self.micros % 1_000_000
        )
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since_epoch = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, seconds) = (
            since_epoch.as_secs() / 86_400,
            since_epoch.as_secs() % 86_400,
        );
        let (year, month, day) = civil_date(days);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
            seconds / 3_600,
            seconds / 60 % 60,
            seconds % 60,
            since_epoch.subsec_millis(),
        )
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Days since 1970-01-01 to year, month and day, counting in years that begin on 1 March, so
/// that the leap day is a year's last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn begin(ledger: &Ledger, tag: Option<&str>) -> Execution {
        ledger.begin(Begun {
            at: UNIX_EPOCH,
            method: "POST",
            path: "/v1/echo",
            key: Some("k-1"),
            tag,
            price: Usd::from_micros(42_000),
        })
    }

    #[test]
    fn an_execution_is_priced_when_it_begins() {
        let ledger = Ledger::default();
        let running = begin(&ledger, None);
        let page = ledger.snapshot();
        assert_eq!(page.executions, 1);
        assert_eq!(page.charged_usd.to_string(), "0.042000");
        assert_eq!(page.entries[0].outcome, Outcome::Running);
        running.complete();
        assert_eq!(ledger.snapshot().entries[0].outcome, Outcome::Completed);
    }

    #[test]
    fn a_dropped_execution_is_aborted_and_paid() {
        let ledger = Ledger::default();
        let mut left = begin(&ledger, None);
        left.answers([&b"never given whole"[..]]);
        drop(left);
        let page = ledger.snapshot();
        assert_eq!(page.entries[0].outcome, Outcome::Aborted);
        assert_eq!(page.entries[0].answer_sha256, None);
        assert_eq!(page.charged_usd, Usd::from_micros(42_000));
    }

    #[test]
    fn a_failed_execution_is_counted_and_free() {
        let ledger = Ledger::default();
        begin(&ledger, None).fail();
        begin(&ledger, None).complete();
        let page = ledger.snapshot();
        assert_eq!((page.executions, page.charged_usd.micros), (2, 42_000));
        assert_eq!(page.entries[0].outcome, Outcome::Failed);
    }

    #[test]
    fn numbers_go_on_after_a_reset_and_late_ends_touch_nothing() {
        let ledger = Ledger::default();
        let before = begin(&ledger, Some("a"));
        ledger.reset();
        let after = begin(&ledger, Some("a"));
        assert_eq!((after.n(), after.nth_of_tag()), (2, 1));
        before.fail();
        let page = ledger.snapshot();
        assert_eq!((page.executions, page.charged_usd.micros), (1, 42_000));
        assert_eq!(page.entries[0].outcome, Outcome::Running);
    }

    #[test]
    fn the_json_is_as_documented() {
        let ledger = Ledger::default();
        let mut execution = begin(&ledger, Some("checkout"));
        execution.generates(Usage {
            input: 12,
            output: 20,
        });
        execution.takes(b"");
        execution.answers([&b"a"[..], b"bc"]);
        execution.complete();
        assert_eq!(
            serde_json::to_string(&ledger.snapshot()).unwrap(),
            "{\"executions\":1,\"charged_usd\":\"0.042000\",\"entries\":[{\"n\":1,\
             \"at\":\"1970-01-01T00:00:00.000Z\",\"method\":\"POST\",\"path\":\"/v1/echo\",\
             \"key\":\"k-1\",\"tag\":\"checkout\",\"price_usd\":\"0.042000\",\
             \"usage\":{\"input\":12,\"output\":20},\"outcome\":\"completed\",\
             \"request_sha256\":\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\",\
             \"answer_sha256\":\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"}]}"
        );
    }

    #[test]
    fn timestamps_are_rfc_3339() {
        for (millis, text) in [
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_735_689_600_001, "2025-01-01T00:00:00.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            let at = Timestamp(UNIX_EPOCH + Duration::from_millis(millis));
            assert_eq!(at.to_string(), text);
        }
    }
}
