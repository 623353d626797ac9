//! Requests that look like repeats, on routes with `key = "observe"`: nothing is kept of a request but a
//! hash, and nothing of all this outlives the process.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::USER_AGENT;
use http::{HeaderMap, HeaderName};
use onlyonce_core::{Fingerprint, Metered, Timestamp, Unit, Usd};
use onlyonce_http::FingerprintBuilder;
use onlyonce_ledger::NamedModel;
use parking_lot::Mutex;

/// Kinds of repeats that are told apart (I15); those that come on top are one kind for each route.
const MOST_KINDS: usize = 1_000;
/// Bytes that the name of a client may have.
const MOST_OF_A_NAME: usize = 64;
/// What the kinds are called that are not told apart.
const OTHER: &str = "other";

/// What the official OpenAI and Anthropic SDKs say of their language.
static SDK_LANGUAGE: HeaderName = HeaderName::from_static("x-stainless-lang");

/// The requests that were seen of late, and what repeats of them came to.
pub(crate) struct Suspects {
    /// How many requests are remembered: `limits.observed`.
    most: usize,
    seen: Mutex<Seen>,
    kinds: Mutex<HashMap<Kind, Sum>>,
}

/// What repeats are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    /// Whose; `None` of those that are not told apart.
    pub(crate) tenant: Option<Box<str>>,
    pub(crate) route: Box<str>,
    /// The library that sent it.
    pub(crate) client: Box<str>,
    pub(crate) model: Box<str>,
}

/// What repeats of one kind came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) times: u64,
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) cost: Usd,
    /// Those of which nobody knows what they cost.
    pub(crate) unpriced: u64,
    pub(crate) latest: Timestamp,
}

impl Sum {
    /// Adds `more`.
    pub(crate) fn add(&mut self, more: &Self) {
        self.times = self.times.saturating_add(more.times);
        self.input = self.input.saturating_add(more.input);
        self.output = self.output.saturating_add(more.output);
        let nanos = self.cost.nanos().saturating_add(more.cost.nanos());
        self.cost = Usd::from_nanos(nanos);
        self.unpriced = self.unpriced.saturating_add(more.unpriced);
        self.latest = self.latest.max(more.latest);
    }

    /// One repeat that came at `at`.
    fn one(metered: Option<&Metered>, at: Timestamp) -> Self {
        let count = |unit| metered.and_then(|metered| metered.usage.get(unit));
        let cost = metered.and_then(|metered| metered.cost.as_ref());
        Self {
            times: 1,
            input: count(Unit::Input).unwrap_or(0),
            output: count(Unit::Output).unwrap_or(0),
            cost: cost.map_or(Usd::ZERO, |cost| cost.amount),
            unpriced: u64::from(cost.is_none()),
            latest: at,
        }
    }
}

impl Suspects {
    /// Nothing was seen yet; `most` requests are to be remembered.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            seen: Mutex::default(),
            kinds: Mutex::default(),
        }
    }

    /// One repeat more, of a request of `tenant` that came at `at`.
    pub(crate) fn count(
        &self,
        tenant: &str,
        route: &str,
        client: &str,
        metered: Option<&Metered>,
        at: Timestamp,
    ) {
        let model = metered.map_or("", Metered::paid_model);
        let mut kind = Kind {
            tenant: Some(tenant.into()),
            route: route.into(),
            client: client.into(),
            model: model.into(),
        };
        let mut kinds = self.kinds.lock();
        if kinds.len() >= MOST_KINDS && !kinds.contains_key(&kind) {
            kind = Kind {
                tenant: None,
                client: OTHER.into(),
                model: OTHER.into(),
                ..kind
            };
        }
        kinds.entry(kind).or_default().add(&Sum::one(metered, at));
    }

    /// All that was counted so far, what cost most first.
    pub(crate) fn kinds(&self) -> Vec<(Kind, Sum)> {
        let kinds = self.kinds.lock();
        let mut all: Vec<_> = kinds
            .iter()
            .map(|(kind, sum)| (kind.clone(), *sum))
            .collect();
        drop(kinds);
        all.sort_by(|(a, a_sum), (b, b_sum)| {
            let weight = |sum: &Sum| (sum.cost, sum.times);
            let names = |kind: &Kind| {
                let Kind {
                    tenant,
                    route,
                    client,
                    model,
                } = kind.clone();
                (tenant, route, client, model)
            };
            weight(b_sum)
                .cmp(&weight(a_sum))
                .then_with(|| names(a).cmp(&names(b)))
        });
        all
    }
}

/// Stands for tenant, route and fingerprint of a request.
type Mark = [u8; 16];

fn mark(tenant: &str, route: &str, fingerprint: &Fingerprint) -> Mark {
    let mut hasher = blake3::Hasher::new();
    for name in [tenant, route] {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
    }
    // Keyed already: nobody can try requests against it.
    hasher.update(fingerprint.as_bytes());
    let mut mark = Mark::default();
    hasher.finalize_xof().fill(&mut mark);
    mark
}

/// The requests of late.
#[derive(Default)]
struct Seen {
    /// Until when each is remembered.
    until: HashMap<Mark, Instant>,
    /// The oldest first. What is not in `until`, or with another moment, does not count any more.
    order: VecDeque<(Mark, Instant)>,
}

impl Seen {
    /// Whether `mark` was seen before, within the window that it was seen for. If not, it is now.
    fn is_repeat(&mut self, mark: Mark, now: Instant, window: Duration, most: usize) -> bool {
        if self.until.get(&mark).is_some_and(|until| now < *until) {
            return true;
        }
        while let Some((oldest, until)) = self.order.front().copied()
            && (self.order.len() >= most || until <= now)
        {
            self.order.pop_front();
            if self.until.get(&oldest) == Some(&until) {
                self.until.remove(&oldest);
            }
        }
        let until = now + window;
        self.until.insert(mark, until);
        self.order.push_back((mark, until));
        false
    }

    /// What was seen did not run.
    fn forget(&mut self, mark: Mark) {
        self.until.remove(&mark);
    }
}

/// Looks at one request while its body passes.
pub(crate) struct Sight {
    suspects: Arc<Suspects>,
    tenant: Box<str>,
    route: Box<str>,
    window: Duration,
    looking: Mutex<Looking>,
}

struct Looking {
    /// Until the body has passed.
    fingerprint: Option<FingerprintBuilder<'static>>,
    model: NamedModel,
    found: Option<Found>,
}

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    First(Mark),
    Repeat,
}

impl Sight {
    /// Of a request whose head is in `fingerprint` already, on a route with that `window`.
    pub(crate) fn new(
        suspects: &Arc<Suspects>,
        tenant: &str,
        route: &str,
        window: Duration,
        fingerprint: FingerprintBuilder<'static>,
    ) -> Arc<Self> {
        Arc::new(Self {
            suspects: Arc::clone(suspects),
            tenant: tenant.into(),
            route: route.into(),
            window,
            looking: Mutex::new(Looking {
                fingerprint: Some(fingerprint),
                model: NamedModel::default(),
                found: None,
            }),
        })
    }

    /// Whose request it is.
    pub(crate) fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The next bytes of the body.
    pub(crate) fn see(&self, bytes: &[u8]) {
        let mut looking = self.looking.lock();
        looking.model.see(bytes);
        if let Some(fingerprint) = &mut looking.fingerprint {
            fingerprint.body_chunk(bytes);
        }
    }

    /// The body has passed whole.
    pub(crate) fn end(&self) {
        let mut looking = self.looking.lock();
        let Some(fingerprint) = looking.fingerprint.take() else {
            return;
        };
        let mark = mark(&self.tenant, &self.route, &fingerprint.finish());
        let (now, most) = (Instant::now(), self.suspects.most);
        let is_repeat = self
            .suspects
            .seen
            .lock()
            .is_repeat(mark, now, self.window, most);
        looking.found = Some(match is_repeat {
            true => Found::Repeat,
            false => Found::First(mark),
        });
    }

    /// The model that the body names, as far as it has passed.
    pub(crate) fn model(&self) -> Option<Box<str>> {
        self.looking.lock().model.model().map(Into::into)
    }

    /// Whether it may be a repeat: it is one, or has not passed whole yet.
    pub(crate) fn may_be_repeat(&self) -> bool {
        !matches!(self.looking.lock().found, Some(Found::First(_)))
    }

    /// Whether it is a repeat.
    pub(crate) fn is_repeat(&self) -> bool {
        self.looking.lock().found == Some(Found::Repeat)
    }

    /// It did not run: what is asked next is no repeat of it.
    pub(crate) fn did_not_run(&self) {
        let mut looking = self.looking.lock();
        // What has not passed whole by now never counts.
        looking.fingerprint = None;
        if let Some(Found::First(mark)) = looking.found.take() {
            self.suspects.seen.lock().forget(mark);
        }
    }
}

/// The library that sent a request: the first product of `User-Agent`, and the language that an SDK
/// says.
pub(crate) fn client_of(headers: &HeaderMap) -> Box<str> {
    let text = |name: &HeaderName| {
        let value = headers.get(name)?.to_str().ok()?;
        value.split_ascii_whitespace().next()
    };
    let parts = [text(&USER_AGENT), text(&SDK_LANGUAGE)];
    let mut name = parts.into_iter().flatten().collect::<Vec<_>>().join(" ");
    // Header values that are text are ASCII.
    name.truncate(MOST_OF_A_NAME);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(600);

    fn marked(number: u64) -> Mark {
        let fingerprint = Fingerprint::from_bytes([7; 32]);
        mark(&number.to_string(), "r", &fingerprint)
    }

    #[test]
    fn i15_so_many_requests_are_remembered_and_the_oldest_go_first() {
        let mut seen = Seen::default();
        let now = Instant::now();
        for number in 0..1_000 {
            assert!(!seen.is_repeat(marked(number), now, WINDOW, 100));
            assert!(seen.is_repeat(marked(number), now, WINDOW, 100));
            assert!(seen.order.len() <= 100 && seen.until.len() <= 100);
        }
        assert!(seen.is_repeat(marked(900), now, WINDOW, 100));
        assert!(!seen.is_repeat(marked(899), now, WINDOW, 100));
        // One that did not run leaves no place behind.
        for _ in 0..1_000 {
            seen.forget(marked(1));
            assert!(!seen.is_repeat(marked(1), now, WINDOW, 100));
            assert!(seen.order.len() <= 100);
        }
        assert!(!seen.is_repeat(marked(2), now, WINDOW, 1));
        assert!(seen.is_repeat(marked(2), now, WINDOW, 1));
    }

    #[test]
    fn what_came_before_the_window_is_no_repeat() {
        let mut seen = Seen::default();
        let now = Instant::now();
        assert!(!seen.is_repeat(marked(1), now, WINDOW, 100));
        let (within, after) = (now + WINDOW - Duration::from_millis(1), now + WINDOW);
        assert!(seen.is_repeat(marked(1), within, WINDOW, 100));
        assert!(!seen.is_repeat(marked(1), after, WINDOW, 100));
        assert!(seen.is_repeat(marked(1), after, WINDOW, 100));
        assert_eq!((seen.order.len(), seen.until.len()), (1, 1));
    }

    #[test]
    fn i07_another_tenant_or_route_is_never_a_repeat() {
        let (one, two) = (
            Fingerprint::from_bytes([1; 32]),
            Fingerprint::from_bytes([2; 32]),
        );
        let marks = [
            mark("a", "b", &one),
            mark("ab", "", &one),
            mark("", "ab", &one),
            mark("a", "c", &one),
            mark("a", "b", &two),
        ];
        for (number, mark) in marks.iter().enumerate() {
            assert!(!marks[..number].contains(mark), "{number}");
        }
    }

    #[test]
    fn i15_kinds_without_end_are_one_for_each_route() {
        let suspects = Suspects::new(100);
        let at = Timestamp::from_millis(1);
        for number in 0..MOST_KINDS + 50 {
            let tenant = number.to_string();
            for route in ["r", "s"] {
                suspects.count(&tenant, route, "curl/8", None, at);
            }
        }
        let kinds = suspects.kinds();
        assert_eq!(kinds.len(), MOST_KINDS + 2);
        let others = kinds.iter().filter(|(kind, _)| kind.tenant.is_none());
        let others: Vec<_> = others
            .map(|(kind, sum)| (&*kind.route, sum.times))
            .collect();
        assert_eq!(others, [("r", 550), ("s", 550)]);
        let times: u64 = kinds.iter().map(|(_, sum)| sum.times).sum();
        assert_eq!(times, 2 * (MOST_KINDS as u64 + 50));
    }

    #[test]
    fn a_client_is_its_first_product_and_language() {
        let client = |agent: &str, language: &str| {
            let mut headers = HeaderMap::new();
            for (name, value) in [(&USER_AGENT, agent), (&SDK_LANGUAGE, language)] {
                if !value.is_empty() {
                    headers.insert(name, value.parse().expect("a value"));
                }
            }
            client_of(&headers).to_string()
        };
        assert_eq!(
            client("OpenAI/Python 1.2.3", "python"),
            "OpenAI/Python python"
        );
        assert_eq!(client("curl/8.5.0", ""), "curl/8.5.0");
        assert_eq!(client("", "js"), "js");
        assert_eq!(client("", ""), "");
        assert_eq!(client("é", "js"), "js");
        assert_eq!(client(&"x".repeat(100), "js"), "x".repeat(64));
    }
}
