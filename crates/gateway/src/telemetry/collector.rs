//! The collector: OTLP over HTTP, protobuf (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>).

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tokio::time::timeout;

use crate::config;
use crate::failure::Failure;
use crate::http_client::HttpClient;

/// Who takes spans and metrics.
#[derive(Clone)]
pub(super) struct Collector {
    client: HttpClient,
    headers: HeaderMap,
    timeout: Duration,
}

/// What it made of a message.
pub(super) enum Verdict {
    /// It took it, but for so many spans.
    Taken { rejected: u64 },
    /// It may take it later, not before this span of time has passed.
    Later(Option<Duration>, String),
    /// It will not take it.
    Refused(String),
}

impl Collector {
    pub(super) fn new(settings: &config::Telemetry) -> Result<Self, Failure> {
        let mut headers: HeaderMap = settings.headers.iter().cloned().collect();
        let kind = HeaderValue::from_static("application/x-protobuf");
        headers.insert(CONTENT_TYPE, kind);
        let agent = concat!("onlyonce/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        Ok(Self {
            client: HttpClient::for_url(&settings.endpoint, "telemetry.endpoint")?,
            headers,
            timeout: settings.timeout,
        })
    }

    /// Sends `message` once.
    pub(super) async fn post(&self, url: &Uri, message: Bytes) -> Verdict {
        let mut request = Request::new(Full::new(message));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = url.clone();
        request.headers_mut().clone_from(&self.headers);
        match timeout(self.timeout, self.client.send(request)).await {
            Ok(Ok(response)) => verdict(&response),
            Ok(Err(why)) => Verdict::Later(None, why),
            Err(_) => Verdict::Later(None, "the collector does not answer in time".to_owned()),
        }
    }
}

fn verdict(response: &Response<Bytes>) -> Verdict {
    let status = response.status();
    if status.is_success() {
        // What a collector says of metrics has the same form.
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
