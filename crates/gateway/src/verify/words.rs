//! What may be typed after `onlyonce verify`, and the run that it means.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use crate::call::words::{header, span, url};
use crate::failure::Failure;

/// What a body or a stream is asked for with, where nothing else is said.
const BODY: &str = r#"{"model":"gpt-5-mini","messages":[{"role":"user","content":"{text}"}]}"#;
const STREAM_BODY: &str = r#"{"model":"gpt-5-mini","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"{text}"}]}"#;

/// The words of `onlyonce verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
It sends --rate requests a second for --minutes, and never more than that: 1,200 unless said otherwise.
Each may be one execution at the upstream, which is why it never starts without --upstream-ledger: point
it at a staging upstream or at `onlyonce sandbox`.

Exit codes:
  0  every guarantee was judged, and none was violated
  1  at least one was violated
  2  it could not judge: the gateway or the ledger cannot be reached, too little came back, or a
     mistake in the words")]
pub(crate) struct Verify {
    /// The gateway: http://127.0.0.1:8787
    #[arg(long, value_name = "URL", value_parser = url)]
    url: Uri,
    /// Where the upstream behind it tells what it ran; docs/verify.md says how it answers
    #[arg(long, value_name = "URL", value_parser = url)]
    upstream_ledger: Uri,
    /// How long
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    minutes: f64,
    /// Requests a second, at the most
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Clients at once, each with connections of its own
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=512))]
    connections: u16,
    /// What the random choices follow from [default: another one each time, which is told]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Only this key's story, as a violation names it
    #[arg(long, value_name = "N", requires = "seed")]
    story: Option<u64>,
    /// Which path is asked
    #[arg(long, value_name = "PATH", default_value = "/v1/chat/completions")]
    path: String,
    /// By which method
    #[arg(long, value_name = "METHOD", default_value = "POST")]
    method: Method,
    /// The body, with {text} where a text of its own goes and {key} for the key [default: a chat of OpenAI's]
    #[arg(long, value_name = "TEMPLATE")]
    body: Option<String>,
    /// The body that asks for a stream [default: the same with `stream`, where --body is not given]
    #[arg(long, value_name = "TEMPLATE")]
    stream_body: Option<String>,
    /// A header of each request
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The header that the key goes in
    #[arg(long, value_name = "NAME", default_value = "Idempotency-Key")]
    key_header: HeaderName,
    /// A header that makes the upstream fail; one key in eight gets one of them
    #[arg(long = "fault", value_name = "NAME: VALUE")]
    faults: Vec<String>,
    /// A header that may differ between two answers for one key
    #[arg(long = "ignore-header", value_name = "NAME")]
    ignored: Vec<HeaderName>,
    /// A header of each question to the ledger
    #[arg(long = "ledger-header", value_name = "NAME: VALUE")]
    ledger_headers: Vec<String>,
    /// The time for one answer
    #[arg(long, value_name = "SPAN", default_value = "60s", value_parser = span)]
    timeout: Duration,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// A run, as it will be.
#[derive(Debug)]
pub(super) struct Plan {
    /// The gateway, with the path.
    pub(super) target: Uri,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) key_header: HeaderName,
    /// The body's template.
    pub(super) body: String,
    /// That of a body that asks for a stream.
    pub(super) stream_body: Option<String>,
    pub(super) faults: Vec<(HeaderName, HeaderValue)>,
    /// Headers that may differ, in lower case.
    pub(super) ignored: BTreeSet<String>,
    pub(super) ledger: Uri,
    pub(super) ledger_headers: HeaderMap,
    /// How long requests are sent.
    pub(super) duration: Duration,
    /// Requests a second.
    pub(super) rate: u32,
    /// Requests in all.
    pub(super) most: u64,
    pub(super) connections: u16,
    pub(super) seed: u64,
    pub(super) story: Option<u64>,
    /// For one answer.
    pub(super) timeout: Duration,
    pub(super) json: bool,
    /// What names this run among all that the gateway remembers.
    pub(super) run: String,
}

impl Verify {
    /// The run that the words mean.
    pub(super) fn plan(self) -> Result<Plan, Failure> {
        let seconds = self.minutes * 60.0;
        if !(1.0..=86_400.0).contains(&seconds) {
            return Err(Failure::usage(
                format!("--minutes cannot be {}", self.minutes),
                "let it run for a second at least (0.02), and for a day at most (1440)",
            ));
        }
        let stream_body = match (&self.body, self.stream_body) {
            (None, None) => Some(STREAM_BODY.to_owned()),
            (_, given) => given,
        };
        let body = self.body.unwrap_or_else(|| BODY.to_owned());
        for template in [Some(&body), stream_body.as_ref()].into_iter().flatten() {
            if !template.contains("{text}") {
                return Err(Failure::usage(
                    "a body without {text} is the same for every key, so that a key cannot be used for another one",
                    "write {text} into --body and --stream-body where a text may stand",
                ));
            }
        }
        let target = format!(
            "{}/{}",
            self.url.to_string().trim_end_matches('/'),
            self.path.trim_start_matches('/')
        );
        let target = target.parse().map_err(|_| {
            Failure::usage(
                format!("--path cannot be {}", self.path),
                "write it like /v1/charges",
            )
        })?;
        // Fits: at most a day of ten thousand a second.
        let most = (f64::from(self.rate) * seconds).ceil() as u64;
        let [fresh, seed] = <[u64; 2]>::from(uuid::Uuid::now_v7().as_u64_pair());
        Ok(Plan {
            target,
            method: self.method,
            headers: usual(headers("--header", &self.headers)?),
            key_header: self.key_header,
            body,
            stream_body,
            faults: pairs("--fault", &self.faults)?,
            ignored: self
                .ignored
                .iter()
                .map(|name| name.as_str().to_owned())
                .collect(),
            ledger: self.upstream_ledger,
            ledger_headers: headers("--ledger-header", &self.ledger_headers)?,
            duration: Duration::from_secs_f64(seconds),
            rate: self.rate,
            most,
            connections: self.connections,
            // Short enough to be typed.
            seed: self.seed.unwrap_or(seed % 1_000_000),
            story: self.story,
            timeout: self.timeout,
            json: self.json,
            // The milliseconds, which come first.
            run: format!("{:x}", fresh >> 16),
        })
    }
}

/// Two spellings of a default, which the user may have set.
fn usual(mut headers: HeaderMap) -> HeaderMap {
    let usual = [
        (CONTENT_TYPE, "application/json"),
        (
            USER_AGENT,
            concat!("onlyonce-verify/", env!("CARGO_PKG_VERSION")),
        ),
    ];
    for (name, value) in usual {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    headers
}

fn headers(option: &str, words: &[String]) -> Result<HeaderMap, Failure> {
    let mut all = HeaderMap::new();
    for (name, value) in pairs(option, words)? {
        all.append(name, value);
    }
    Ok(all)
}

fn pairs(option: &str, words: &[String]) -> Result<Vec<(HeaderName, HeaderValue)>, Failure> {
    let pairs = words.iter().map(|word| {
        header(word).ok_or_else(|| {
            // The value may be a secret.
            let name = word.split(':').next().unwrap_or_default();
            Failure::usage(
                format!("{option} {name} cannot be sent"),
                format!("write it like {option} 'Authorization: Bearer ...'"),
            )
        })
    });
    pairs.collect()
}
