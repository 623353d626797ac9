//! Spans on their way to a collector: OTLP over HTTP, protobuf
//! (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use onlyonce_engine::Seldom;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use prost::Message;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::names::Attributes;
use super::spans::Finished;
use super::{Telemetry, Tracer};
use crate::config;
use crate::failure::Failure;
use crate::http_client::HttpClient;

/// How long a span waits for others to go with it.
const WAIT: Duration = Duration::from_secs(1);
/// Before a batch is sent again, for the first time; doubled each time.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause, whatever the collector asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// For how long a batch is sent again before it is dropped.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Sends spans away, in the background.
pub(crate) struct Exporter {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Exporter {
    /// Begins, where there is something to send.
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
            client: HttpClient::for_url(&settings.endpoint, "telemetry.endpoint")?,
            resource: resource(settings),
            settings: settings.clone(),
            stopped,
            trouble: Seldom::default(),
        };
        Ok(Some(Self {
            stop,
            task: tokio::spawn(sending.run()),
        }))
    }

    /// Sends what is there, and waits for that no longer than `limit`.
    pub(crate) async fn stop(self, limit: Duration) {
        self.stop.send_replace(true);
        let abort = self.task.abort_handle();
        if timeout(limit, self.task).await.is_err() {
            abort.abort();
            tracing::warn!("the last spans could not be sent in time");
        }
    }
}

struct Sending {
    tracer: Arc<Tracer>,
    client: HttpClient,
    resource: Resource,
    settings: config::Telemetry,
    stopped: watch::Receiver<bool>,
    trouble: Seldom,
}

/// What a collector made of a batch.
enum Verdict {
    /// It took it, but for so many spans.
    Taken {
        rejected: u64,
    },
    /// It may take it later, not before this span has passed.
    Later(Option<Duration>, String),
    Refused(String),
}

impl Sending {
    async fn run(mut self) {
        loop {
            let stops = tokio::select! {
                () = sleep(WAIT) => false,
                () = self.tracer.enough.notified() => false,
                // An error says that nobody is left to stop it.
                _ = self.stopped.wait_for(|stopped| *stopped) => true,
            };
            loop {
                let batch = self.tracer.batch();
                if batch.is_empty() {
                    break;
                }
                self.send(batch).await;
            }
            if stops {
                return;
            }
        }
    }

    /// Sends a batch, again where that may help, and drops it where it does not.
    async fn send(&mut self, batch: Vec<Finished>) {
        let spans: u64 = batch.iter().map(Finished::count).sum();
        let message = self.message(&batch);
        drop(batch);
        let begun = Instant::now();
        let mut pause = PAUSE;
        let why = loop {
            let stopping = *self.stopped.borrow();
            let (at_least, why) = match self.post(message.clone()).await {
                Verdict::Taken { rejected } => {
                    let rejected = rejected.min(spans);
                    self.tracer.metrics.sent(spans - rejected);
                    if rejected == 0 {
                        return;
                    }
                    self.dropped(rejected, "the collector took the others");
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
                _ = self.stopped.wait_for(|stopped| *stopped) => {}
            }
        };
        self.dropped(spans, &why);
    }

    fn dropped(&self, spans: u64, why: &str) {
        self.tracer.metrics.dropped(spans);
        match self.trouble.turn(Instant::now()) {
            Some(held_back) => tracing::warn!(spans, held_back, "spans are dropped: {why}"),
            None => tracing::debug!(spans, "spans are dropped: {why}"),
        }
    }

    fn message(&self, batch: &[Finished]) -> Bytes {
        let mut spans = Vec::with_capacity(batch.len() * 2);
        batch.iter().for_each(|done| done.write(&mut spans));
        let scope = InstrumentationScope {
            name: "onlyonce".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope),
                    spans,
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        request.encode_to_vec().into()
    }

    async fn post(&self, message: Bytes) -> Verdict {
        let mut request = Request::new(Full::new(message));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.settings.endpoint.clone();
        let headers = request.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-protobuf"),
        );
        let agent = concat!("onlyonce/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        for (name, value) in &self.settings.headers {
            headers.insert(name.clone(), value.clone());
        }
        match timeout(self.settings.timeout, self.client.send(request)).await {
            Ok(Ok(response)) => verdict(&response),
            Ok(Err(why)) => Verdict::Later(None, why),
            Err(_) => Verdict::Later(None, "the collector does not answer in time".to_owned()),
        }
    }
}

fn verdict(response: &Response<Bytes>) -> Verdict {
    let status = response.status();
    if status.is_success() {
        let said = ExportTraceServiceResponse::decode(&**response.body());
        let partial = said.ok().and_then(|said| said.partial_success);
        let rejected = partial.map_or(0, |partial| partial.rejected_spans);
        return Verdict::Taken {
            rejected: u64::try_from(rejected).unwrap_or(0),
        };
    }
    let why = format!("the collector answers {status}");
    match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            let after = response.headers().get(RETRY_AFTER);
            let seconds = after.and_then(|after| after.to_str().ok()?.trim().parse().ok());
            Verdict::Later(seconds.map(Duration::from_secs), why)
        }
        _ => Verdict::Refused(why),
    }
}

/// Half of `pause` to all of it, so that gateways do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = uuid::Uuid::now_v7().as_u64_pair().1 & 0xffff;
    // At most 16 bits: exact.
    let share = f64::from(u16::try_from(random).unwrap_or(u16::MAX)) / f64::from(u16::MAX);
    pause.mul_f64(0.5 + share / 2.0)
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
