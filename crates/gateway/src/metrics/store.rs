//! What the store tells of itself when somebody asks for the metrics.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use onlyonce_core::StateName;
use onlyonce_engine::Engine;
use onlyonce_store::{COMMIT_TIMES, GROUP_SIZES, Query, Status, Store};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::time::timeout;

/// Unknown operations are counted up to so many: more of them call for the same.
const MOST_COUNTED: usize = 1_000;
/// How long counting them may take; a store that does not answer has no figure.
const COUNTING: Duration = Duration::from_secs(1);
/// They are counted again after so many times the span that counting took, so that it is never more
/// than a small share of what a store has to do, whoever asks how often.
const PAUSE: u32 = 20;

/// What the store told last.
#[derive(Clone, Debug, Default)]
pub(super) struct StoreMetrics(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    status: Status,
    unknown_open: Option<u64>,
}

impl StoreMetrics {
    pub(super) fn set(&self, status: Status, unknown_open: Option<u64>) {
        *self.0.lock() = Told {
            status,
            unknown_open,
        };
    }
}

impl Collector for StoreMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let told = self.0.lock();
        let status = &told.status;
        if let Some(open) = told.unknown_open {
            let help = "Operations whose outcome is unknown and that nobody has settled, as far as the \
                        store was asked";
            gauge(&mut encoder, "unknown_open", help, open)?;
        }
        gauge(
            &mut encoder,
            "store_records",
            "Records held",
            status.records,
        )?;
        gauge(&mut encoder, "store_bytes", "Bytes held", status.bytes)?;
        let help = "1 while the store takes writes, 0 once it is poisoned";
        let healthy = status.poisoned.is_none();
        gauge(&mut encoder, "store_healthy", help, healthy.into())?;
        counter(
            &mut encoder,
            "store_commits",
            "Durable commits",
            status.commits,
        )?;
        counter(
            &mut encoder,
            "store_committed_writes",
            "Writes that durable commits carried",
            status.committed_writes,
        )?;
        histogram(
            &mut encoder,
            ("store_commit", Some(&Unit::Seconds)),
            "Time of commits, from the first write to durable",
            status.commit_time.as_secs_f64(),
            COMMIT_TIMES.iter().map(Duration::as_secs_f64),
            &status.commits_by_time,
        )?;
        // Sums and bounds far below 2^52: exact.
        #[expect(clippy::cast_precision_loss)]
        histogram(
            &mut encoder,
            ("store_commit_group_size", None),
            "Writes that one commit carried",
            status.committed_writes as f64,
            GROUP_SIZES.iter().map(|size| *size as f64),
            &status.commits_by_size,
        )
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    gauge.encode(encoder)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let encoder = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    ConstCounter::new(value).encode(encoder)
}

/// `counts` has one more than there are `bounds`: what is above all of them.
fn histogram(
    encoder: &mut DescriptorEncoder<'_>,
    (name, unit): (&str, Option<&Unit>),
    help: &str,
    sum: f64,
    bounds: impl Iterator<Item = f64>,
    counts: &[u64],
) -> fmt::Result {
    let bounds = bounds.chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(counts.iter().copied()).collect();
    let mut encoder = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
    encoder.encode_histogram::<[(&str, &str); 0]>(sum, counts.iter().sum(), &buckets, None)
}

/// How many operations are unknown: counted now and then, since no store keeps that sum.
#[derive(Default)]
pub(super) struct OpenUnknowns(tokio::sync::Mutex<Option<Counted>>);

#[derive(Clone, Copy)]
struct Counted {
    until: Instant,
    open: Option<u64>,
}

impl OpenUnknowns {
    /// So many, at most [`MOST_COUNTED`]; `None` where the store does not tell in time.
    pub(super) async fn count<S: Store>(&self, engine: &Engine<S>) -> Option<u64> {
        let mut counted = self.0.lock().await;
        if let Some(counted) = &*counted
            && Instant::now() < counted.until
        {
            return counted.open;
        }
        let begun = Instant::now();
        let open = timeout(COUNTING, count(engine)).await.ok().flatten();
        let until = Instant::now() + begun.elapsed() * PAUSE;
        *counted = Some(Counted { until, open });
        open
    }
}

async fn count<S: Store>(engine: &Engine<S>) -> Option<u64> {
    let (mut open, mut older_than) = (0, None);
    loop {
        let query = Query {
            state: Some(StateName::Unknown),
            older_than,
            limit: MOST_COUNTED - open,
            ..Query::default()
        };
        let page = engine.list(query).await.ok()?;
        open += page.records.len();
        older_than = page.next;
        if older_than.is_none() || open >= MOST_COUNTED {
            return u64::try_from(open).ok();
        }
    }
}
