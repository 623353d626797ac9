//! What an answer means for an entry.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header::RETRY_AFTER};

/// The longest that a service may ask to be left alone.
const LONGEST_WISH: Duration = Duration::from_secs(3_600);
/// What is kept of an answer that says why.
const MOST_SAID: usize = 200;

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was taken.
    Delivered,
    /// It may be taken later, not before this span of time has passed.
    Again(Option<Duration>, String),
    /// It will not be taken.
    Dead(String),
    /// Something in it will not be taken: its entries are told one by one.
    Split(String),
    /// Nothing will be taken any more.
    Gone(String),
}

impl Verdict {
    /// What an answer means by its status, where a service has no words of its own.
    pub fn of(answer: &Response<Bytes>) -> Self {
        let status = answer.status();
        match status {
            _ if status.is_success() => Self::Delivered,
            StatusCode::GONE => Self::Gone(said(answer)),
            StatusCode::REQUEST_TIMEOUT
            | StatusCode::CONFLICT
            | StatusCode::TOO_EARLY
            | StatusCode::TOO_MANY_REQUESTS => Self::again(answer),
            _ if status.is_server_error() => Self::again(answer),
            _ => Self::Dead(said(answer)),
        }
    }

    fn again(answer: &Response<Bytes>) -> Self {
        Self::Again(
            retry_after(answer.headers(), SystemTime::now()),
            said(answer),
        )
    }
}

/// For how long a service asks to be left alone (RFC 9110, 10.2.3), an hour at most.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wish = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            date.duration_since(now).unwrap_or_default()
        }
    };
    Some(wish.min(LONGEST_WISH))
}

/// The status and the beginning of what stands below it.
pub(crate) fn said(answer: &Response<Bytes>) -> String {
    let text = String::from_utf8_lossy(answer.body());
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.trim().chars().take(MOST_SAID).map(clean).collect();
    match text.is_empty() {
        true => answer.status().to_string(),
        false => format!("{}: {text}", answer.status()),
    }
}
