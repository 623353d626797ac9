//! What is counted, for Prometheus.
//!
//! Counters of the data path are looked up once, at the start, and only raised while it serves.
//! What the engine and the store know themselves is read when somebody asks for the metrics.
//!
//! Here stand requests, executions and problems; what another part counts has a module of its own,
//! which registers it under names of its own: `money`, `store`, `telemetry`.

mod books;
mod money;
mod store;
mod telemetry;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use onlyonce_core::{Got, Metered, Timestamp, UnknownReason};
use onlyonce_engine::{Engine, Observer};
use onlyonce_http::Status;
use onlyonce_http::problem_pages::PAGES;
use onlyonce_store::Store;
use prometheus_client::encoding::{EncodeLabelSet, prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use self::books::BooksMetrics;
pub(crate) use self::money::GaveUpMetrics;
use self::money::Money;
use self::store::{OpenUnknowns, StoreMetrics};
pub(crate) use self::telemetry::TelemetryMetrics;
use crate::config::{Config, Route};
use crate::sinks::Sinks;

/// From 5 ms, which a stub needs, doubling to 11 minutes: a long generation takes some, and time-outs
/// are of that order.
const EXECUTION_BUCKETS: (f64, f64, u16) = (0.005, 2.0, 18);

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
    joins: Counter,
    suspects: Counter,
    unprotected: Counter,
}

/// What is counted.
pub struct Metrics {
    registry: Registry,
    routes: Vec<RouteMetrics>,
    problems: Vec<(&'static str, Counter)>,
    /// Connections of callers that are open.
    pub connections: Gauge,
    live_operations: Gauge,
    pub(crate) telemetry: TelemetryMetrics,
    pub(crate) gave_up: GaveUpMetrics,
    outcomes: Arc<Outcomes>,
    store: StoreMetrics,
    unknowns: OpenUnknowns,
    books: BooksMetrics,
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new(config: &Config) -> Self {
        let mut registry = Registry::with_prefix("onlyonce");
        let requests = Family::<RequestLabels, Counter>::default();
        let seconds = Family::<RouteLabels, Histogram>::new_with_constructor(|| {
            let (first, factor, count) = EXECUTION_BUCKETS;
            Histogram::new(exponential_buckets(first, factor, count))
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
        let joins = Family::<RouteLabels, Counter>::default();
        registry.register(
            "joins",
            "Requests that joined an operation while it ran, whatever came of it",
            joins.clone(),
        );
        let suspects = Family::<RouteLabels, Counter>::default();
        registry.register(
            "suspects",
            "Requests that look like repeats, of routes that observe",
            suspects.clone(),
        );
        let unprotected = Family::<RouteLabels, Counter>::default();
        registry.register(
            "mcp_unprotected",
            "Calls of tools that passed with neither a key nor a session",
            unprotected.clone(),
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
                joins: joins.get_or_create_owned(&labels),
                suspects: suspects.get_or_create_owned(&labels),
                unprotected: unprotected.get_or_create_owned(&labels),
            }
        };
        let routes = config
            .routes
            .iter()
            .map(|route| route_metrics(route))
            .collect();
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
        let telemetry = TelemetryMetrics::new(&mut registry);
        let gave_up = GaveUpMetrics::new(&mut registry);
        let tenants = config.tenants.iter().map(|tenant| &*tenant.name);
        let outcomes = Arc::new(Outcomes {
            unknown: unknown_counters(&mut registry),
            money: Money::new(&mut registry, tenants),
        });
        let store = StoreMetrics::default();
        registry.register_collector(Box::new(store.clone()));
        let books = BooksMetrics::new(&mut registry);
        Self {
            registry,
            routes,
            problems,
            connections,
            live_operations,
            telemetry,
            gave_up,
            outcomes,
            store,
            unknowns: OpenUnknowns::default(),
            books,
        }
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

    /// A request of `route` joined an operation that ran.
    pub fn joined(&self, route: &Route) {
        self.routes[route.index].joins.inc();
    }

    /// Who counts outcomes, as the engine tells of them.
    pub(crate) fn observer(&self) -> Arc<dyn Observer> {
        Arc::clone(&self.outcomes) as _
    }

    /// A request of `route` looks like a repeat.
    pub(crate) fn suspect(&self, route: &Route) {
        self.routes[route.index].suspects.inc();
    }

    /// A call of a tool of `route` passes, and nothing protects it.
    pub(crate) fn unprotected(&self, route: &Route) {
        self.routes[route.index].unprotected.inc();
    }

    /// The gateway answered with the problem document `name`.
    pub fn problem(&self, name: &str) {
        if let Some((_, counter)) = self.problems.iter().find(|(of, _)| *of == name) {
            counter.inc();
        }
    }

    /// What the books and their sinks know themselves.
    pub(crate) fn books(&self, now: Timestamp, lag: Duration, lost: u64, sinks: &Sinks) {
        self.books.set(now, lag, lost, sinks);
    }

    /// All of it as it stands, in the text format that is asked for.
    pub(crate) async fn tell<S: Store>(&self, engine: &Engine<S>, format: Format) -> String {
        self.live_operations
            .set(i64::try_from(engine.live()).unwrap_or(i64::MAX));
        let unknown_open = self.unknowns.count(engine).await;
        self.store.set(engine.store().status(), unknown_open);
        let mut out = String::new();
        let encoded = match format {
            Format::OpenMetrics => text::encode(&mut out, &self.registry),
            Format::Prometheus => prometheus_text::encode(&mut out, &self.registry),
        };
        if encoded.is_err() {
            // Writing to a string cannot fail; a broken scrape must be visible all the same.
            let _ = writeln!(out, "# the metrics could not be encoded");
        }
        out
    }
}

/// What the engine tells of outcomes.
struct Outcomes {
    unknown: Vec<(UnknownReason, Counter)>,
    money: Money,
}

impl Observer for Outcomes {
    fn unknown(&self, reason: UnknownReason) {
        if let Some((_, counter)) = self.unknown.iter().find(|(of, _)| *of == reason) {
            counter.inc();
        }
    }

    fn completed(&self, tenant: &str, metered: &Metered) {
        self.money.completed(tenant, metered);
    }

    fn spared(&self, tenant: &str, metered: &Metered, got: Got, attempts: u32) {
        self.money.spared(tenant, metered, got, attempts);
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

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
    OpenMetrics,
    /// The older text format, which every tool reads.
    Prometheus,
}

impl Format {
    /// The one that an `Accept` of this value asks for: OpenMetrics, where that is named at all.
    pub(crate) fn asked(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
        }
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
        UnknownReason::WorkerFailed => "worker_failed",
        UnknownReason::HandlerFailed => "handler_failed",
        UnknownReason::StepUnknown => "step_unknown",
        UnknownReason::Unfinished => "unfinished",
    }
}
