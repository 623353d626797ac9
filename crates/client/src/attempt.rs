//! What one attempt came to, in facts.

use std::fmt;
use std::time::{Duration, SystemTime};

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, StatusCode, response};
use onlyonce_http::marks::{
    IDEMPOTENT_REPLAYED, ONLYONCE_EXPIRES, ONLYONCE_OPERATION, ONLYONCE_STATUS, Status,
};
use serde::Deserialize;

use crate::server::Server;
use crate::time;

/// Milliseconds, as OpenAI's servers send it beside `Retry-After`.
static RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// What an attempt got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    /// An answer, of whatever status.
    Answer(Answer),
    /// No connection, so that no byte of the request was sent; why.
    NotConnected(String),
    /// The connection broke, before the answer or in it; how.
    Broke(String),
    /// No whole answer within this time.
    TimedOut(Duration),
    /// Nothing that can be sent, however often; why.
    CannotBeSent(String),
}

/// What counts of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// `Idempotent-Replayed: true`: another attempt was executed for it.
    pub is_replay: bool,
    /// Onlyonce has recorded it: executed, replayed or joined, and not released.
    pub is_recorded: bool,
    /// What the server says to another attempt, where it says something.
    pub told: Option<bool>,
    /// How long to wait before it.
    pub retry_after: Option<Duration>,
    /// The end of the server's window.
    pub expires_at: Option<SystemTime>,
    /// Onlyonce's name of the operation.
    pub operation: Option<String>,
    /// The problem document of an error, where it is one.
    pub problem: Option<Problem>,
}

/// What counts of a problem document (RFC 9457).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Problem {
    /// What kind of problem; for Onlyonce its last part is a name, as in `/problems/outcome-unknown`.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// What happened this time.
    #[serde(default)]
    pub detail: String,
}

impl Answer {
    /// Reads what counts. `body` is the whole body, where that is known and may be a problem document;
    /// `now` is when it came.
    pub(crate) fn read(
        server: &Server,
        head: &response::Parts,
        body: Option<&[u8]>,
        now: SystemTime,
    ) -> Self {
        let headers = &head.headers;
        let marked = word(headers, &ONLYONCE_STATUS);
        let recorded = [Status::Executed, Status::Replayed, Status::Joined];
        Self {
            status: head.status,
            is_replay: word(headers, &IDEMPOTENT_REPLAYED) == Some("true"),
            is_recorded: recorded
                .iter()
                .any(|status| marked == Some(status.as_str())),
            told: server.told(headers),
            retry_after: retry_after(headers, now),
            expires_at: word(headers, &ONLYONCE_EXPIRES).and_then(|text| time::parse(text).ok()),
            operation: word(headers, &ONLYONCE_OPERATION).map(str::to_owned),
            // One that cannot be read says nothing; its status still does.
            problem: body.and_then(|body| serde_json::from_slice(body).ok()),
        }
    }

    /// Whether it is Onlyonce's problem `name`.
    pub(crate) fn is_problem(&self, name: &str) -> bool {
        let path = self.problem.as_ref().map_or("", |problem| &problem.kind);
        path.strip_suffix(name)
            .is_some_and(|base| base.ends_with("/problems/"))
    }
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(answer) => answer.fmt(f),
            Self::NotConnected(why) => write!(f, "no connection ({why})"),
            Self::Broke(how) => write!(f, "it broke ({how})"),
            Self::TimedOut(limit) => write!(f, "no answer in {}", time::span(*limit)),
            Self::CannotBeSent(why) => write!(f, "it cannot be sent ({why})"),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status.as_u16())?;
        if let Some(problem) = &self.problem {
            let name = problem.kind.rsplit('/').next().unwrap_or_default();
            write!(f, " {}", printable(name))?;
        }
        if self.is_replay {
            f.write_str(" replayed")?;
        }
        Ok(())
    }
}

/// What a server says in words may go to a terminal.
pub(crate) fn printable(text: &str) -> String {
    let printed = text.chars().map(|c| if c.is_control() { '?' } else { c });
    printed.collect()
}

/// Whether a body under these headers says that it is a problem document.
pub(crate) fn is_problem_document(headers: &HeaderMap) -> bool {
    let kind = word(headers, &CONTENT_TYPE).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/problem+json")
}

/// How long a server wants us to wait: milliseconds, seconds or a date (RFC 9110 section 10.2.3). What
/// is not after now, or not a wait at all, is none: then the usual back-off is.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let millis = word(headers, &RETRY_AFTER_MS)
        .and_then(|text| text.parse().ok())
        .map(Duration::from_millis);
    let wait = millis.or_else(|| {
        let text = word(headers, &RETRY_AFTER)?;
        match text.parse() {
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => {
                let date = httpdate::parse_http_date(text).ok()?;
                date.duration_since(now).ok()
            }
        }
    });
    wait.filter(|wait| !wait.is_zero())
}

fn word<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(784_111_777);

    fn waits(headers: &[(&'static str, &str)]) -> Option<Duration> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        retry_after(&map, SystemTime::UNIX_EPOCH + NOW)
    }

    #[test]
    fn a_wait_is_read_in_every_form_that_servers_send() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(waits(&[("retry-after", "7")]), seconds(7));
        assert_eq!(
            waits(&[("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT")]),
            seconds(30)
        );
        let both = [("retry-after", "7"), ("retry-after-ms", "1500")];
        assert_eq!(waits(&both), Some(Duration::from_millis(1500)));
        for none in [
            "0",
            "-1",
            "soon",
            "",
            "1.5",
            "Sun, 06 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(waits(&[("retry-after", none)]), None, "{none}");
        }
    }
}
