//! What became of what was to go to a collector.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SignalLabels {
    signal: &'static str,
}

/// Of one signal: how much of it the collector took, and how much was given up.
#[derive(Clone)]
pub(crate) struct SignalMetrics {
    sent: Counter,
    dropped: Counter,
}

impl SignalMetrics {
    /// The collector took so many.
    pub(crate) fn sent(&self, count: u64) {
        self.sent.inc_by(count);
    }

    /// So many were given up.
    pub(crate) fn dropped(&self, count: u64) {
        self.dropped.inc_by(count);
    }
}

/// Of all signals.
#[derive(Clone)]
pub(crate) struct TelemetryMetrics {
    /// Spans of traces.
    pub(crate) spans: SignalMetrics,
    /// Messages of metrics.
    pub(crate) metrics: SignalMetrics,
}

impl TelemetryMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let sent = Family::<SignalLabels, Counter>::default();
        registry.register(
            "telemetry_sent",
            "Spans, and messages of metrics, that the collector took",
            sent.clone(),
        );
        let dropped = Family::<SignalLabels, Counter>::default();
        registry.register(
            "telemetry_dropped",
            "Spans, and messages of metrics, that the collector did not take",
            dropped.clone(),
        );
        let of = |signal| SignalMetrics {
            sent: sent.get_or_create_owned(&SignalLabels { signal }),
            dropped: dropped.get_or_create_owned(&SignalLabels { signal }),
        };
        Self {
            spans: of("spans"),
            metrics: of("metrics"),
        }
    }
}
