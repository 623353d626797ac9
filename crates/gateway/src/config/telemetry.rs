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
        let endpoint = match section.take("endpoint") {
            Some(entry) => {
                let text = entry.filled()?;
                let url = url(&format!("{}{TRACES}", text.trim_end_matches('/')));
                Some(url.ok_or_else(|| {
                    entry.fail(
                        format!("cannot be \"{text}\""),
                        "write the base URL of the collector, like \"http://127.0.0.1:4318\"",
                    )
                })?)
            }
            None => endpoint_of_environment(&section)?,
        };
        let mut telemetry = Self {
            endpoint: endpoint.clone().unwrap_or_default(),
            headers: headers_of_environment(&section)?,
            sample: 1.0,
            service_name: "onlyonce".into(),
            resource: Vec::new(),
            timeout: timeout_of_environment(&section)?,
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
        let none = section.env("OTEL_TRACES_EXPORTER");
        section.finish()?;
        let is_off = disabled.is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || none.as_deref() == Some("none");
        Ok((endpoint.is_some() && !is_off).then_some(telemetry))
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

fn endpoint_of_environment(section: &Section<'_>) -> Result<Option<Uri>, ConfigError> {
    let (name, text) = match (section.env(TRACES_ENDPOINT), section.env(ENDPOINT)) {
        (Some(text), _) => (TRACES_ENDPOINT, text),
        (None, Some(text)) => (ENDPOINT, format!("{}{TRACES}", text.trim_end_matches('/'))),
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
    match url(&text) {
        Some(url) => Ok(Some(url)),
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

fn timeout_of_environment(section: &Section<'_>) -> Result<Duration, ConfigError> {
    let Some((name, millis)) = first_of(section, &TIMEOUTS) else {
        return Ok(Duration::from_secs(10));
    };
    match millis.parse() {
        Ok(millis @ 1..) => Ok(Duration::from_millis(millis)),
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

fn url(text: &str) -> Option<Uri> {
    let url: Uri = text.parse().ok()?;
    let scheme = url.scheme()?;
    let known = *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS;
    let host = url.host().filter(|host| !host.is_empty());
    (known && host.is_some()).then_some(url)
}
