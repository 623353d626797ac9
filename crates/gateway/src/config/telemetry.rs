//! `[telemetry]`, and what OpenTelemetry's own environment variables say where it does not.

use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use super::error::ConfigError;
use super::section::{OrZero, Section};

/// Where traces are sent to.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// The collector's URL for traces.
    pub endpoint: Uri,
    /// Its URL for metrics, where it takes them.
    pub metrics: Option<Uri>,
    /// How often metrics are sent.
    pub metrics_interval: Duration,
    /// Headers of each message to it.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The share of traces that are kept, from 0 to 1, of those that no caller has decided about.
    pub sample: f64,
    /// What this gateway is called.
    pub service_name: Box<str>,
    /// What else is said of it.
    pub resource: Vec<(Box<str>, Box<str>)>,
    /// How long the collector has to answer.
    pub timeout: Duration,
    /// The most spans that wait to be sent.
    pub queue: usize,
}

/// Where traces go below an endpoint.
const TRACES: &str = "/v1/traces";
/// Where metrics go.
const METRICS: &str = "/v1/metrics";

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const PROTOCOLS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
];
const HEADERS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_HEADERS",
];
const TIMEOUTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
];
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";
const RESOURCE: &str = "OTEL_RESOURCE_ATTRIBUTES";

impl Telemetry {
    /// `None` where no endpoint is set, or the environment says that there is to be no telemetry.
    pub(crate) fn read(root: &mut Section<'_>) -> Result<Option<Self>, ConfigError> {
        let mut section = root.table_or_empty("telemetry")?;
        let endpoints = match section.take("endpoint") {
            Some(entry) => {
                let text = entry.filled()?;
                let traces = below(text, TRACES).ok_or_else(|| {
                    entry.fail(
                        format!("cannot be \"{text}\""),
                        "write the base URL of the collector, like \"http://127.0.0.1:4318\"",
                    )
                })?;
                Some((traces, below(text, METRICS)))
            }
            None => endpoints_of_environment(&section)?,
        };
        let Some((endpoint, metrics)) = endpoints else {
            // What stands beside it is looked at all the same.
            Self::read_beside(Uri::default(), None, section)?;
            return Ok(None);
        };
        Self::read_beside(endpoint, metrics, section)
    }

    fn read_beside(
        endpoint: Uri,
        metrics: Option<Uri>,
        mut section: Section<'_>,
    ) -> Result<Option<Self>, ConfigError> {
        let mut telemetry = Self {
            endpoint,
            metrics,
            metrics_interval: millis_of_environment(&section, &["OTEL_METRIC_EXPORT_INTERVAL"])?
                .unwrap_or(Duration::from_secs(60)),
            headers: headers_of_environment(&section)?,
            sample: 1.0,
            service_name: "onlyonce".into(),
            resource: Vec::new(),
            timeout: millis_of_environment(&section, &TIMEOUTS)?.unwrap_or(Duration::from_secs(10)),
            queue: 8_192,
        };
        telemetry.read_names(&mut section)?;
        if let Some(mut headers) = section.table("headers")? {
            for (name, entry) in headers.take_all() {
                let header = header(name, entry.secret()?.expose()).ok_or_else(|| {
                    entry.fail("is not a header", "write name = \"value\", or \"env:NAME\"")
                })?;
                telemetry.headers.retain(|(name, _)| *name != header.0);
                telemetry.headers.push(header);
            }
        }
        if let Some(entry) = section.take("sample") {
            telemetry.sample = entry.fraction()?;
        }
        if let Some(entry) = section.take("timeout") {
            telemetry.timeout = entry.duration(OrZero::No)?;
        }
        if let Some(entry) = section.take("queue") {
            telemetry.queue = entry.number(1..=1_000_000)?;
        }
        let disabled = section.env("OTEL_SDK_DISABLED");
        let traces = section.env("OTEL_TRACES_EXPORTER");
        if section.env("OTEL_METRICS_EXPORTER").as_deref() == Some("none") {
            telemetry.metrics = None;
        }
        section.finish()?;
        let is_off = disabled.is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || traces.as_deref() == Some("none");
        Ok((!is_off).then_some(telemetry))
    }

    fn read_names(&mut self, section: &mut Section<'_>) -> Result<(), ConfigError> {
        let named = section.env(SERVICE_NAME);
        for (key, value) in pairs_of_environment(section, RESOURCE)? {
            match key == "service.name" {
                true => self.service_name = value.into(),
                false => self.resource.push((key.into(), value.into())),
            }
        }
        if let Some(name) = named {
            self.service_name = name.into();
        }
        if let Some(entry) = section.take("service_name") {
            self.service_name = entry.filled()?.into();
        }
        Ok(())
    }
}

/// Where traces and metrics go by the environment.
fn endpoints_of_environment(
    section: &Section<'_>,
) -> Result<Option<(Uri, Option<Uri>)>, ConfigError> {
    let base = section.env(ENDPOINT);
    let metrics = base.as_ref().and_then(|base| below(base, METRICS));
    let (name, traces) = match (section.env(TRACES_ENDPOINT), base) {
        (Some(text), _) => (TRACES_ENDPOINT, url(&text)),
        (None, Some(base)) => (ENDPOINT, below(&base, TRACES)),
        (None, None) => return Ok(None),
    };
    if let Some((name, protocol)) = first_of(section, &PROTOCOLS)
        && protocol != "http/protobuf"
    {
        return Err(section.fail(
            format!("{name} is \"{protocol}\", and traces go by http/protobuf only"),
            format!("unset {name}, or set [telemetry] endpoint to a collector's HTTP address"),
        ));
    }
    match traces {
        Some(traces) => Ok(Some((traces, metrics))),
        None => Err(section.fail(
            format!("the environment variable {name} is not a URL of a collector"),
            "set it like http://127.0.0.1:4318, or unset it",
        )),
    }
}

fn headers_of_environment(
    section: &Section<'_>,
) -> Result<Vec<(HeaderName, HeaderValue)>, ConfigError> {
    let Some((variable, _)) = first_of(section, &HEADERS) else {
        return Ok(Vec::new());
    };
    let pairs = pairs_of_environment(section, variable)?;
    let headers = pairs.iter().map(|(name, value)| header(name, value));
    headers
        .collect::<Option<_>>()
        .ok_or_else(|| not_pairs(section, variable))
}

fn millis_of_environment(
    section: &Section<'_>,
    names: &[&'static str],
) -> Result<Option<Duration>, ConfigError> {
    let Some((name, millis)) = first_of(section, names) else {
        return Ok(None);
    };
    match millis.parse() {
        Ok(millis @ 1..) => Ok(Some(Duration::from_millis(millis))),
        _ => Err(section.fail(
            format!("the environment variable {name} is \"{millis}\""),
            "set it to a number of milliseconds above 0, or unset it",
        )),
    }
}

/// The first of these variables that is set, and what it says.
fn first_of(section: &Section<'_>, names: &[&'static str]) -> Option<(&'static str, String)> {
    let value = |name: &&'static str| Some((*name, section.env(name)?));
    names.iter().find_map(value)
}

/// `name=value,name=value`, with values percent-encoded (W3C Baggage, which OpenTelemetry's variables
/// follow).
fn pairs_of_environment(
    section: &Section<'_>,
    variable: &str,
) -> Result<Vec<(String, String)>, ConfigError> {
    let text = section.env(variable).unwrap_or_default();
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let name = name.trim();
        (!name.is_empty()).then(|| (name.to_owned(), value.into_owned()))
    };
    let pairs = text
        .split(',')
        .filter(|pair| !pair.trim().is_empty())
        .map(pair);
    pairs
        .collect::<Option<_>>()
        .ok_or_else(|| not_pairs(section, variable))
}

/// The value may hold a secret: it is not repeated.
fn not_pairs(section: &Section<'_>, variable: &str) -> ConfigError {
    section.fail(
        format!("the environment variable {variable} is not a list of name=value"),
        "set it like name=value,name=value with values percent-encoded, or unset it",
    )
}

fn header(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some((name.parse().ok()?, value))
}

/// What lies under `path` below the endpoint `base`.
fn below(base: &str, path: &str) -> Option<Uri> {
    url(&format!("{}{path}", base.trim_end_matches('/')))
}

fn url(text: &str) -> Option<Uri> {
    let url: Uri = text.parse().ok()?;
    let scheme = url.scheme()?;
    let known = *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS;
    let host = url.host().filter(|host| !host.is_empty());
    (known && host.is_some()).then_some(url)
}
