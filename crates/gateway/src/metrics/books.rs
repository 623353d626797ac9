//! The books, and those who are told what they say.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use onlyonce_core::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::sinks::Sinks;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabels {
    sink: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeliveryLabels {
    sink: String,
    result: &'static str,
}

/// The books, and those who are told what they say.
pub(super) struct BooksMetrics {
    lag: Gauge<f64, AtomicU64>,
    lost: Counter,
    sink_lag: Family<SinkLabels, Gauge<f64, AtomicU64>>,
    pending: Family<SinkLabels, Gauge>,
    dead: Family<SinkLabels, Gauge>,
    deliveries: Family<DeliveryLabels, Counter>,
}

impl BooksMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            lag: Gauge::default(),
            lost: Counter::default(),
            sink_lag: Family::default(),
            pending: Family::default(),
            dead: Family::default(),
            deliveries: Family::default(),
        };
        registry.register_with_unit(
            "books_lag",
            "Age of the oldest entry that came into the books last",
            Unit::Seconds,
            metrics.lag.clone(),
        );
        registry.register(
            "savings_lost",
            "Sums of what was not spent that could not be kept",
            metrics.lost.clone(),
        );
        let outbox = registry.sub_registry_with_prefix("outbox");
        outbox.register_with_unit(
            "lag",
            "Age of the oldest entry that a sink has not taken, where this gateway delivers to it",
            Unit::Seconds,
            metrics.sink_lag.clone(),
        );
        outbox.register(
            "pending",
            "Entries on their way to a sink, where this gateway delivers to it",
            metrics.pending.clone(),
        );
        outbox.register(
            "dead",
            "Entries that were given up, as counted when this gateway took the sink, and since",
            metrics.dead.clone(),
        );
        outbox.register(
            "deliveries",
            "Entries that were taken or given up, and requests that are repeated",
            metrics.deliveries.clone(),
        );
        metrics
    }

    pub(super) fn set(&self, now: Timestamp, lag: Duration, lost: u64, sinks: &Sinks) {
        self.lag.set(lag.as_secs_f64());
        self.lost.inner().store(lost, Ordering::Relaxed);
        let gauge = |count| i64::try_from(count).unwrap_or(i64::MAX);
        for sink in sinks.iter() {
            let name = sink.config.name.to_string();
            let of = SinkLabels { sink: name.clone() };
            let stats = sink.snapshot();
            let lag = stats.oldest.map_or(Duration::ZERO, |at| now.since(at));
            self.sink_lag.get_or_create(&of).set(lag.as_secs_f64());
            self.pending.get_or_create(&of).set(gauge(stats.pending));
            self.dead.get_or_create(&of).set(gauge(stats.dead));
            for (result, count) in [
                ("delivered", stats.delivered),
                ("failed", stats.failed),
                ("dead", stats.buried),
            ] {
                let sink = name.clone();
                let counter = self
                    .deliveries
                    .get_or_create_owned(&DeliveryLabels { sink, result });
                counter.inner().store(count, Ordering::Relaxed);
            }
        }
    }
}
