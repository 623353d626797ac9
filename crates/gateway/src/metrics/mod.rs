//! What is counted, for Prometheus.
//!
//! Counters of the data path are looked up once, at the start, and only raised while it serves.
//! What the engine and the store know themselves is read when somebody asks for the metrics.

use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;

use onlyonce_core::UnknownReason;
use onlyonce_http::Status;
use onlyonce_http::problem_pages::PAGES;
use onlyonce_store::Status as StoreStatus;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::config::{Config, Route};

/// How a request was answered: the `status` label of `onlyonce_requests_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With a mark, as in `Onlyonce-Status`.
    Marked(Status),
    /// By the gateway itself, with a problem document.
    Refused,
    /// By the upstream, without a key: passed through.
    Passed,
}

impl Answer {
    const ALL: [Self; 6] = [
        Self::Marked(Status::Executed),
        Self::Marked(Status::Replayed),
        Self::Marked(Status::Joined),
        Self::Marked(Status::Released),
        Self::Refused,
        Self::Passed,
    ];

    const fn index(self) -> usize {
        match self {
            Self::Marked(Status::Executed) => 0,
            Self::Marked(Status::Replayed) => 1,
            Self::Marked(Status::Joined) => 2,
            Self::Marked(Status::Released) => 3,
            Self::Refused => 4,
            Self::Passed => 5,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Marked(status) => status.as_str(),
            Self::Refused => "refused",
            Self::Passed => "passed",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    status: &'static str,
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProblemLabels {
    problem: &'static str,
}

/// The counters of one route.
struct RouteMetrics {
    requests: [Counter; Answer::ALL.len()],
    execution_seconds: Histogram,
    retries: Counter,
}

/// What is counted.
pub struct Metrics {
    registry: Registry,
    routes: Vec<RouteMetrics>,
    unknown: Vec<(UnknownReason, Counter)>,
    problems: Vec<(&'static str, Counter)>,
    /// Connections of callers that are open.
    pub connections: Gauge,
    live_operations: Gauge,
    pub(crate) spans: SpanMetrics,
    store: StoreMetrics,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SpanLabels {
    result: &'static str,
}

/// What became of the spans of traces.
#[derive(Clone)]
pub(crate) struct SpanMetrics {
    sent: Counter,
    dropped: Counter,
}

impl SpanMetrics {
    fn new(registry: &mut Registry) -> Self {
        let family = Family::<SpanLabels, Counter>::default();
        registry.register(
            "spans",
            "Spans of traces, by whether the collector took them",
            family.clone(),
        );
        let of = |result| family.get_or_create_owned(&SpanLabels { result });
        Self {
            sent: of("sent"),
            dropped: of("dropped"),
        }
    }

    /// The collector took so many.
    pub(crate) fn sent(&self, spans: u64) {
        self.sent.inc_by(spans);
    }

    /// So many were given up.
    pub(crate) fn dropped(&self, spans: u64) {
        self.dropped.inc_by(spans);
    }
}

struct StoreMetrics {
    records: Gauge,
    bytes: Gauge,
    healthy: Gauge,
    commits: Counter,
    committed_writes: Counter,
    latest_commit: Gauge<f64, AtomicU64>,
    group_size: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new(config: &Config) -> Self {
        let mut registry = Registry::with_prefix("onlyonce");
        let requests = Family::<RequestLabels, Counter>::default();
        let seconds = Family::<RouteLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.005, 2.0, 18))
        });
        let retries = Family::<RouteLabels, Counter>::default();
        registry.register(
            "requests",
            "Requests, by how they were answered and by route",
            requests.clone(),
        );
        registry.register_with_unit(
            "execution",
            "From the claim to the end of the upstream's answer",
            Unit::Seconds,
            seconds.clone(),
        );
        registry.register(
            "upstream_retries",
            "The gateway's own retries of what provably did not run",
            retries.clone(),
        );
        let route_metrics = |route: &Route| {
            let labels = RouteLabels {
                route: route.name.to_string(),
            };
            RouteMetrics {
                requests: Answer::ALL.map(|answer| {
                    requests.get_or_create_owned(&RequestLabels {
                        status: answer.as_str(),
                        route: route.name.to_string(),
                    })
                }),
                execution_seconds: seconds.get_or_create_owned(&labels),
                retries: retries.get_or_create_owned(&labels),
            }
        };
        let routes = config
            .routes
            .iter()
            .map(|route| route_metrics(route))
            .collect();
        let unknown = Self::unknown_counters(&mut registry);
        let problems = Self::problem_counters(&mut registry);
        let connections = Gauge::default();
        registry.register(
            "connections",
            "Open connections of callers",
            connections.clone(),
        );
        let live_operations = Gauge::default();
        registry.register(
            "live_operations",
            "Operations that are being executed",
            live_operations.clone(),
        );
        let spans = SpanMetrics::new(&mut registry);
        let store = StoreMetrics::new(&mut registry);
        Self {
            registry,
            routes,
            unknown,
            problems,
            connections,
            live_operations,
            spans,
            store,
        }
    }

    fn unknown_counters(registry: &mut Registry) -> Vec<(UnknownReason, Counter)> {
        let family = Family::<ReasonLabels, Counter>::default();
        registry.register(
            "unknown",
            "Executions whose outcome could not be observed, by reason",
            family.clone(),
        );
        let of = |reason| {
            let labels = ReasonLabels {
                reason: reason_label(reason),
            };
            (reason, family.get_or_create_owned(&labels))
        };
        UnknownReason::ALL.iter().copied().map(of).collect()
    }

    fn problem_counters(registry: &mut Registry) -> Vec<(&'static str, Counter)> {
        let family = Family::<ProblemLabels, Counter>::default();
        registry.register(
            "problems",
            "Answers of the gateway's own, by problem",
            family.clone(),
        );
        let of = |problem| {
            (
                problem,
                family.get_or_create_owned(&ProblemLabels { problem }),
            )
        };
        PAGES.iter().map(|page| of(page.name)).collect()
    }

    /// One request of `route` was answered.
    pub fn answered(&self, route: &Route, answer: Answer) {
        self.routes[route.index].requests[answer.index()].inc();
    }

    /// How many requests this gateway has answered so since its start.
    pub(crate) fn total(&self, answer: Answer) -> u64 {
        let counters = self.routes.iter();
        counters
            .map(|route| route.requests[answer.index()].get())
            .sum()
    }

    /// One execution of `route` came to its end.
    pub fn executed(&self, route: &Route, took: std::time::Duration) {
        self.routes[route.index]
            .execution_seconds
            .observe(took.as_secs_f64());
    }

    /// The gateway itself sent a request of `route` again.
    pub fn retried(&self, route: &Route) {
        self.routes[route.index].retries.inc();
    }

    /// The outcome of one execution is unknown.
    pub fn unknown(&self, reason: UnknownReason) {
        if let Some((_, counter)) = self.unknown.iter().find(|(of, _)| *of == reason) {
            counter.inc();
        }
    }

    /// The gateway answered with the problem document `name`.
    pub fn problem(&self, name: &str) {
        if let Some((_, counter)) = self.problems.iter().find(|(of, _)| *of == name) {
            counter.inc();
        }
    }

    /// All of it as OpenMetrics text.
    pub(crate) fn encode(&self, live_operations: usize, store: &StoreStatus) -> String {
        self.live_operations
            .set(i64::try_from(live_operations).unwrap_or(i64::MAX));
        self.store.set(store);
        let mut out = String::new();
        if text::encode(&mut out, &self.registry).is_err() {
            // Writing to a string cannot fail; a broken scrape must be visible all the same.
            let _ = writeln!(out, "# the metrics could not be encoded");
        }
        out
    }
}

impl StoreMetrics {
    fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            records: Gauge::default(),
            bytes: Gauge::default(),
            healthy: Gauge::default(),
            commits: Counter::default(),
            committed_writes: Counter::default(),
            latest_commit: Gauge::default(),
            group_size: Gauge::default(),
        };
        let store = registry.sub_registry_with_prefix("store");
        store.register("records", "Records held", metrics.records.clone());
        store.register("bytes", "Bytes held", metrics.bytes.clone());
        store.register(
            "healthy",
            "1 while the store takes writes, 0 once it is poisoned",
            metrics.healthy.clone(),
        );
        store.register("commits", "Durable commits", metrics.commits.clone());
        store.register(
            "committed_writes",
            "Writes that durable commits carried",
            metrics.committed_writes.clone(),
        );
        store.register_with_unit(
            "commit",
            "Time of the latest commit, from its first write to durable",
            Unit::Seconds,
            metrics.latest_commit.clone(),
        );
        store.register(
            "commit_group_size",
            "Writes for each commit, on average since the start",
            metrics.group_size.clone(),
        );
        metrics
    }

    fn set(&self, status: &StoreStatus) {
        self.records
            .set(i64::try_from(status.records).unwrap_or(i64::MAX));
        self.bytes
            .set(i64::try_from(status.bytes).unwrap_or(i64::MAX));
        self.healthy.set(i64::from(status.poisoned.is_none()));
        self.commits
            .inner()
            .store(status.commits, std::sync::atomic::Ordering::Relaxed);
        self.committed_writes.inner().store(
            status.committed_writes,
            std::sync::atomic::Ordering::Relaxed,
        );
        self.latest_commit.set(status.latest_commit.as_secs_f64());
        // Precision beyond 2^52 commits is of no interest.
        #[expect(clippy::cast_precision_loss)]
        let mean = status.committed_writes as f64 / status.commits.max(1) as f64;
        self.group_size.set(mean);
    }
}

pub(crate) const fn reason_label(reason: UnknownReason) -> &'static str {
    match reason {
        UnknownReason::Broke => "broke",
        UnknownReason::TimedOut => "timed_out",
        UnknownReason::Truncated => "truncated",
        UnknownReason::OverLimit => "over_limit",
        UnknownReason::OwnerDied => "owner_died",
        UnknownReason::LeasePassed => "lease_passed",
        UnknownReason::Cancelled => "cancelled",
        UnknownReason::Unreadable => "unreadable",
        UnknownReason::NotRecorded => "not_recorded",
        UnknownReason::ShutDown => "shut_down",
        UnknownReason::BadAnswer => "bad_answer",
    }
}
