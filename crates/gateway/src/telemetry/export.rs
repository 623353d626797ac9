//! Spans and sums on their way to a collector.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Uri;
use onlyonce_engine::Seldom;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::metrics::v1::{ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use prost::Message;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::collector::{Collector, Verdict};
use super::names::Attributes;
use super::spans::Finished;
use super::{Telemetry, Tracer};
use crate::config;
use crate::failure::Failure;
use crate::http_client::random;

/// How long a span waits for others to go with it.
const WAIT: Duration = Duration::from_secs(1);
/// Before a batch is sent again, for the first time; doubled each time.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause, whatever the collector asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// For how long a batch is sent again before it is dropped.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Sends what there is to tell, in the background.
pub(crate) struct Exporter {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Exporter {
    /// Begins, where there is somebody to send to.
    pub(crate) fn start(
        telemetry: &Telemetry,
        settings: Option<&config::Telemetry>,
    ) -> Result<Option<Self>, Failure> {
        let (Some(tracer), Some(settings)) = (&telemetry.0, settings) else {
            return Ok(None);
        };
        let (stop, stopped) = watch::channel(false);
        let sending = Sending {
            tracer: Arc::clone(tracer),
            collector: Collector::new(settings)?,
            resource: resource(settings),
            stopped,
            trouble: Arc::default(),
        };
        let mut tasks = JoinSet::new();
        if let Some(url) = settings.metrics.clone() {
            tasks.spawn(sending.clone().metrics(url, settings.metrics_interval));
        }
        tasks.spawn(sending.spans(settings.endpoint.clone()));
        Ok(Some(Self { stop, tasks }))
    }

    /// Sends what is there, and waits for that no longer than `limit`.
    pub(crate) async fn stop(mut self, limit: Duration) {
        self.stop.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(limit, all).await.is_err() {
            tracing::warn!("the last spans could not be sent in time");
        }
    }
}

#[derive(Clone)]
struct Sending {
    tracer: Arc<Tracer>,
    collector: Collector,
    resource: Resource,
    stopped: watch::Receiver<bool>,
    trouble: Arc<Seldom>,
}

impl Sending {
    async fn spans(mut self, url: Uri) {
        loop {
            let stops = tokio::select! {
                () = sleep(WAIT) => false,
                () = self.tracer.enough.notified() => false,
                stops = stopped(&mut self.stopped) => stops,
            };
            loop {
                let batch = self.tracer.batch();
                if batch.is_empty() {
                    break;
                }
                self.send(&url, batch).await;
            }
            if stops {
                return;
            }
        }
    }

    /// Tells the sums at times. A message that is lost costs nothing: the next one says it all.
    async fn metrics(mut self, url: Uri, interval: Duration) {
        loop {
            let stops = tokio::select! {
                () = sleep(interval) => false,
                stops = stopped(&mut self.stopped) => stops,
            };
            if let Some(message) = self.message_of_metrics() {
                match self.collector.post(&url, message).await {
                    Verdict::Taken { .. } => self.tracer.metrics.metrics.sent(1),
                    Verdict::Later(_, why) | Verdict::Refused(why) => {
                        self.tracer.metrics.metrics.dropped(1);
                        tracing::debug!("metrics are not taken: {why}");
                    }
                }
            }
            if stops {
                return;
            }
        }
    }

    /// Sends a batch, again where that may help, and drops it where it does not.
    async fn send(&mut self, url: &Uri, batch: Vec<Finished>) {
        let spans: u64 = batch.iter().map(Finished::count).sum();
        let message = self.message_of_spans(&batch);
        drop(batch);
        let begun = Instant::now();
        let mut pause = PAUSE;
        let why = loop {
            let stopping = *self.stopped.borrow();
            let (at_least, why) = match self.collector.post(url, message.clone()).await {
                Verdict::Taken { rejected } => {
                    let rejected = rejected.min(spans);
                    self.tracer.metrics.spans.sent(spans - rejected);
                    if rejected > 0 {
                        self.dropped(rejected, "the collector took the others");
                    }
                    return;
                }
                Verdict::Refused(why) => break why,
                Verdict::Later(at_least, why) => (at_least, why),
            };
            let wait = jittered(pause)
                .max(at_least.unwrap_or_default())
                .min(LONGEST_PAUSE);
            if stopping || begun.elapsed() + wait > GIVE_UP {
                break why;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            tokio::select! {
                () = sleep(wait) => {}
                // Once more, at once.
                _ = stopped(&mut self.stopped) => {}
            }
        };
        self.dropped(spans, &why);
    }

    fn dropped(&self, spans: u64, why: &str) {
        self.tracer.metrics.spans.dropped(spans);
        match self.trouble.turn(Instant::now()) {
            Some(held_back) => tracing::warn!(spans, held_back, "spans are dropped: {why}"),
            None => tracing::debug!(spans, "spans are dropped: {why}"),
        }
    }

    fn message_of_spans(&self, batch: &[Finished]) -> Bytes {
        let mut spans = Vec::with_capacity(batch.len() * 2);
        batch.iter().for_each(|done| done.write(&mut spans));
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope()),
                    spans,
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        request.encode_to_vec().into()
    }

    /// `None` where there is nothing to tell yet.
    fn message_of_metrics(&self) -> Option<Bytes> {
        let metrics = self.tracer.sums.metrics();
        if metrics.is_empty() {
            return None;
        }
        let request = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(scope()),
                    metrics,
                    ..ScopeMetrics::default()
                }],
                ..ResourceMetrics::default()
            }],
        };
        Some(request.encode_to_vec().into())
    }
}

/// Waits for the end.
async fn stopped(stopped: &mut watch::Receiver<bool>) -> bool {
    // An error says that nobody is left to stop it.
    let _ = stopped.wait_for(|stopped| *stopped).await;
    true
}

/// Who made it.
fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "onlyonce".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

/// Half of `pause` to all of it, so that gateways do not come back together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + random() / 2.0)
}

/// What all spans of this process say of it.
fn resource(settings: &config::Telemetry) -> Resource {
    let mut attributes = Attributes::default();
    attributes.text("service.name", &settings.service_name);
    let said = |name: &str| settings.resource.iter().any(|(key, _)| &**key == name);
    if !said("service.version") {
        attributes.text("service.version", env!("CARGO_PKG_VERSION"));
    }
    if !said("service.instance.id") {
        attributes.text("service.instance.id", &uuid::Uuid::now_v7().to_string());
    }
    for (key, value) in &settings.resource {
        attributes.text(key, value);
    }
    Resource {
        attributes: attributes.0,
        ..Resource::default()
    }
}
