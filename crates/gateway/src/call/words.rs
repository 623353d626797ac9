//! What may be typed after `onlyonce call`, and the request and the client that it means.

use std::env;
use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use onlyonce_client::{Action, KeyFolder, OnceClient, Policy, Server};

use crate::config::parse_duration;
use crate::failure::Failure;

/// The words of `onlyonce call`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  0  an answer below 400
  1  this call sent nothing: keys that cannot be kept, a request that cannot be sent
  2  a mistake in the words
  3  the server's last word is an error, of a status from 400 on
  4  no answer, or one to come back for: call again with the same action
  5  the outcome is unknown: find out at the server before anything else
  6  the window may be over: find out at the server, this call did not risk it
  7  the action was used for another request: this call sent nothing")]
pub(crate) struct Call {
    /// Where to: http://127.0.0.1:8787/v1/charges
    #[arg(value_parser = url, required_unless_present = "forget")]
    url: Option<Uri>,
    /// Your own name of what is to happen once: order-17/charge. Each action has one key, which is kept
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    action: String,
    /// [default: GET, or POST with --data]
    #[arg(short = 'X', long, value_name = "METHOD")]
    request: Option<Method>,
    /// A header, or the lines of a file
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE|@FILE")]
    headers: Vec<String>,
    /// The body, byte for byte, or that of a file (@- is standard input); several are joined by &
    #[arg(short, long, value_name = "TEXT|@FILE")]
    data: Vec<String>,
    /// Print the head of the answer too
    #[arg(short, long)]
    pub(super) include: bool,
    /// Say on standard error what was tried
    #[arg(short, long)]
    pub(super) verbose: bool,
    /// Where keys are kept [default: onlyonce/keys in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "FOLDER", env = "ONLYONCE_KEYS")]
    keys: Option<PathBuf>,
    /// Whose rules the server has
    #[arg(long, value_enum, default_value_t = Rules::Onlyonce)]
    server: Rules,
    /// How long the server keeps a key [default: 24h; --server generic has none]
    #[arg(long, value_name = "SPAN", value_parser = span)]
    window: Option<Duration>,
    /// The time for all attempts and waits
    #[arg(long, value_name = "SPAN", default_value = "10m", value_parser = span)]
    deadline: Duration,
    /// The time for one attempt
    #[arg(long, value_name = "SPAN", default_value = "60s", value_parser = span)]
    timeout: Duration,
    /// Attempts after the first one
    #[arg(long, value_name = "COUNT", default_value_t = 5)]
    retries: u32,
    /// Send nothing, and forget the action: from here on its name means a new one, with a new key
    #[arg(long, conflicts_with = "url")]
    pub(super) forget: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Rules {
    /// Onlyonce, or anything behind it
    Onlyonce,
    /// Stripe itself
    Stripe,
    /// Anything else that takes an Idempotency-Key
    Generic,
}

impl Call {
    /// Where to.
    pub(super) fn url(&self) -> Uri {
        // Without one there is only --forget, which sends nothing.
        self.url.clone().unwrap_or_default()
    }

    /// The action.
    pub(super) fn action(&self) -> Result<Action, Failure> {
        Action::new(self.action.as_str())
            .map_err(|error| Failure::usage("--action cannot be used", error.to_string()))
    }

    /// The client, with its folder of keys opened.
    pub(super) fn client(&self) -> Result<OnceClient<KeyFolder>, Failure> {
        let server = match (self.server, self.window) {
            (Rules::Onlyonce, _) => Server::onlyonce(),
            (Rules::Stripe, _) => Server::stripe(),
            (Rules::Generic, Some(window)) => Server::generic(window),
            (Rules::Generic, None) => {
                return Err(Failure::usage(
                    "--server generic needs --window, since a guess could run an action twice",
                    "look up how long that server keeps a key, and say so, like --window 24h",
                ));
            }
        };
        let keys = KeyFolder::open(self.folder()?)
            .map_err(|error| Failure::call(error.to_string(), super::SENT_NOTHING))?;
        let policy = Policy {
            retries: self.retries,
            deadline: self.deadline,
            attempt_timeout: self.timeout,
            ..Policy::default()
        };
        let client = OnceClient::builder(keys).server(server).policy(policy);
        Ok(match self.window {
            Some(window) => client.window(window),
            None => client,
        }
        .build())
    }

    /// The request, with its action.
    pub(super) fn request(&self) -> Result<Request<Full<Bytes>>, Failure> {
        let action = self.action()?;
        let body = self.body()?;
        let mut request = Request::new(Full::from(body));
        // As curl has it.
        let usual = match self.data.is_empty() {
            true => Method::GET,
            false => Method::POST,
        };
        *request.method_mut() = self.request.clone().unwrap_or(usual);
        *request.uri_mut() = self.url();
        *request.headers_mut() = self.headers()?;
        request.extensions_mut().insert(action);
        Ok(request)
    }

    fn headers(&self) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        for word in &self.headers {
            let lines = match word.strip_prefix('@') {
                Some(file) => String::from_utf8(read(file)?).map_err(|_| {
                    Failure::usage(format!("{file} is no text"), "write headers in it")
                })?,
                None => word.clone(),
            };
            for line in lines.lines().filter(|line| !line.trim().is_empty()) {
                let (name, value) = header(line).ok_or_else(|| {
                    // The value may be a secret.
                    let name = line.split(':').next().unwrap_or_default();
                    Failure::usage(
                        format!("the header {name} cannot be sent"),
                        "write it like -H 'Content-Type: application/json'",
                    )
                })?;
                headers.append(name, value);
            }
        }
        let usual = [
            (ACCEPT, "*/*"),
            (USER_AGENT, concat!("onlyonce/", env!("CARGO_PKG_VERSION"))),
        ];
        let form = (CONTENT_TYPE, "application/x-www-form-urlencoded");
        let form = (!self.data.is_empty()).then_some(form);
        for (name, value) in usual.into_iter().chain(form) {
            headers
                .entry(name)
                .or_insert(HeaderValue::from_static(value));
        }
        Ok(headers)
    }

    fn body(&self) -> Result<Vec<u8>, Failure> {
        let parts = self.data.iter().map(|word| match word.strip_prefix('@') {
            Some(file) => read(file),
            None => Ok(word.clone().into_bytes()),
        });
        let parts: Vec<_> = parts.collect::<Result<_, _>>()?;
        Ok(parts.join(&b'&'))
    }

    fn folder(&self) -> Result<PathBuf, Failure> {
        if let Some(folder) = &self.keys {
            return Ok(folder.clone());
        }
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let state = set("XDG_STATE_HOME").map(PathBuf::from);
        let state = state.or_else(|| Some(PathBuf::from(set("HOME")?).join(".local/state")));
        state
            .map(|state| state.join("onlyonce/keys"))
            .ok_or_else(|| {
                Failure::usage(
                    "there is no home to keep keys in",
                    "name a folder that lasts with --keys",
                )
            })
    }
}

/// A header, as it is typed.
pub(crate) fn header(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    let value = HeaderValue::from_str(value.trim()).ok()?;
    Some((name.trim().parse().ok()?, value))
}

/// The bytes of a file, or of standard input for `-`.
fn read(file: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = match file {
        "-" => io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes),
        file => fs::read(file),
    };
    read.map_err(|error| {
        Failure::usage(
            format!("cannot read {file} ({error})"),
            "name a file that is there",
        )
    })
}

/// A URL of HTTP.
pub(crate) fn url(text: &str) -> Result<Uri, &'static str> {
    let wrong = "write it like https://api.example.com/v1/charges";
    let url: Uri = text.parse().map_err(|_| wrong)?;
    let is_http = matches!(url.scheme_str(), Some("http" | "https"));
    match url.host() {
        Some(host) if is_http && !host.is_empty() => Ok(url),
        _ => Err(wrong),
    }
}

/// A span of time.
pub(crate) fn span(text: &str) -> Result<Duration, &'static str> {
    parse_duration(text).ok_or("write a span like 30s, 10m or 24h")
}
