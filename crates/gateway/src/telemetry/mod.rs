//! What a request leaves in a distributed trace.
//!
//! ```text
//! caller's span (traceparent in)
//! └─ attempt    SERVER    each keyed request, in its caller's own trace
//!    └─ operation  INTERNAL  under the attempt that claimed
//!       └─ execution  CLIENT    traceparent out
//! later attempts: SERVER, with a link to the operation's span
//! ```
//!
//! `context` reads and writes `traceparent`, `spans` watch a request and note what it became, `names`
//! says it in the words of the conventions, `sums` counts what executions used, and `export` sends it
//! all away. Where no endpoint is set there
//! is none of it, and requests pass with the headers that they came with.

mod collector;
mod context;
mod export;
mod names;
mod spans;
mod sums;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::Request;
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::context::Sample;
pub(crate) use self::export::Exporter;
use self::spans::Finished;
pub(crate) use self::spans::{AttemptSpan, ExecutionSpan, Origin, Traces};
use self::sums::Sums;
use crate::config;
use crate::metrics::TelemetryMetrics;

/// Spans in one message to the collector.
const BATCH: usize = 512;

/// Where spans come from and go to; nothing where no endpoint is set.
pub(crate) struct Telemetry(Option<Arc<Tracer>>);

/// Makes spans, and keeps those that are done until they are sent.
struct Tracer {
    sample: Sample,
    numbers: Numbers,
    done: Mutex<VecDeque<Finished>>,
    most: usize,
    /// Notified when there are enough for a batch.
    enough: Notify,
    metrics: TelemetryMetrics,
    sums: Sums,
}

impl Telemetry {
    pub(crate) fn new(settings: Option<&config::Telemetry>, metrics: &TelemetryMetrics) -> Self {
        Self(settings.map(|settings| {
            Arc::new(Tracer {
                sample: Sample::of(settings.sample),
                numbers: Numbers::random(),
                done: Mutex::default(),
                most: settings.queue,
                enough: Notify::new(),
                metrics: metrics.clone(),
                sums: Sums::new(),
            })
        }))
    }

    /// The span of a request that has just come.
    pub(crate) fn attempt<B>(
        &self,
        request: &Request<B>,
        origin: impl FnOnce() -> Origin,
    ) -> Option<AttemptSpan> {
        let tracer = self.0.as_ref()?;
        Some(AttemptSpan::begin(tracer, request, origin()))
    }
}

impl Tracer {
    /// Takes a span that is done. Where the collector takes none for long, it is dropped: memory is
    /// bounded (I15), and no request waits for telemetry (L5).
    fn push(&self, span: Finished) {
        let mut done = self.done.lock();
        if done.len() >= self.most {
            drop(done);
            self.metrics.spans.dropped(span.count());
            return;
        }
        done.push_back(span);
        if done.len() == BATCH {
            self.enough.notify_one();
        }
    }

    /// The oldest of those that are done, not more than a batch.
    fn batch(&self) -> Vec<Finished> {
        let mut done = self.done.lock();
        let count = done.len().min(BATCH);
        done.drain(..count).collect()
    }
}

/// Ids of spans and traces: no two of one life are equal, and lives differ by where they begin.
struct Numbers(AtomicU64);

impl Numbers {
    fn random() -> Self {
        Self(AtomicU64::new(uuid::Uuid::now_v7().as_u64_pair().1))
    }

    /// A step of SplitMix64 (Steele, Lea, Flood 2014).
    fn next(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
