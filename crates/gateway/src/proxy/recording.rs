//! An upstream's answer on its way into a recording.

mod stream_end;

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Response, StatusCode, Version};
use http_body::Frame;
use onlyonce_core::{Metered, Record, UnknownReason};
use onlyonce_http::mcp::Answered;
use onlyonce_ledger::{Asked, End, UsageHider};
use onlyonce_tower::shell::incoming::{self, Passage, Patience, Source};
use tokio::time::Instant;

use super::exchange::Begun;
use super::lane::Answer;
use super::mcp::{self, Call};
use super::metering::{Metering, Meters};
use crate::config::{Policy, Route};
use stream_end::StreamEnd;

/// How long the head of a stream waits for its first message.
const MOMENT: Duration = Duration::from_secs(1);

/// An answer that is to be recorded.
pub(super) type Incoming = incoming::Incoming<Answer, Passing>;

/// Takes the head in, or says why an answer with this head has no outcome.
pub(super) fn incoming(
    (response, answer): Begun,
    policy: &Policy,
    deadline: Instant,
) -> Result<Incoming, UnknownReason> {
    if response.status().is_informational() {
        // A switch of protocols that nobody asked for.
        return Err(UnknownReason::BadAnswer);
    }
    match framing(&response) {
        Framing::Said => {}
        Framing::ByClose if policy.allow_close_delimited => {}
        Framing::ByClose => return Err(UnknownReason::Truncated),
        Framing::Coded => return Err(UnknownReason::BadAnswer),
    }
    let status = response.status();
    let patience = Patience {
        between_bytes: policy.between_bytes_timeout,
        deadline,
    };
    let response = response.map(|()| answer);
    let passing = Passing::default();
    let mut incoming = Incoming::new(response, policy.allow_set_cookie, patience, passing)?;
    incoming.passage.stream_end = StreamEnd::of(policy, status, &incoming.headers);
    Ok(incoming)
}

impl Source for Answer {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UnknownReason>>> {
        let frame = Answer::poll_frame(self, cx);
        frame.map(|frame| frame.map(|frame| frame.map_err(|_| UnknownReason::Truncated)))
    }
}

/// What the body of an answer goes through on its way into the recording.
#[derive(Default)]
pub(super) struct Passing {
    /// For a stream whose own end is known.
    stream_end: Option<StreamEnd>,
    metering: Option<Metering>,
    /// For the answer to a call.
    answered: Option<Answered>,
    /// Where its usage is not shown.
    hider: Option<UsageHider>,
}

impl Passage for Passing {
    fn pass(&mut self, bytes: Bytes) -> Bytes {
        if let Some(end) = &mut self.stream_end {
            end.see(&bytes);
        }
        if let Some(metering) = &mut self.metering {
            metering.see(&bytes);
        }
        if let Some(answered) = &mut self.answered {
            answered.see(&bytes);
        }
        match &mut self.hider {
            Some(hider) => hider.push(bytes),
            None => bytes,
        }
    }

    fn rest(&mut self) -> Result<Bytes, UnknownReason> {
        if let Some(mut hider) = self.hider.take() {
            let rest = hider.finish();
            if !rest.is_empty() {
                return Ok(rest);
            }
        }
        let lacks_end = self.stream_end.as_mut().is_some_and(|end| !end.is_whole());
        let lacks_answer = self.answered.as_ref().is_some_and(|one| !one.is_whole());
        match lacks_end || lacks_answer {
            true => Err(UnknownReason::Truncated),
            false => Ok(Bytes::new()),
        }
    }

    fn is_resumable(&self) -> bool {
        self.answered.as_ref().is_some_and(Answered::is_resumable)
    }
}

/// Follows the answer to `call`, whose session is its caller's alone.
pub(super) fn follow(incoming: &mut Incoming, call: &Call) -> Result<(), UnknownReason> {
    if (200..300).contains(&incoming.head.status) {
        incoming.passage.answered = call.answered(&incoming.headers);
    }
    let session = mcp::without_session(&mut incoming.headers);
    call.sign(&mut incoming.headers);
    incoming.repack()?;
    mcp::executed(&mut incoming.headers);
    if let Some(session) = session {
        mcp::with_session(&mut incoming.headers, session);
    }
    Ok(())
}

/// Holds the answer to a call back until it shows what it is: whole where it is one message, and a stream
/// until its first one, or for a moment.
pub(super) async fn hold(incoming: &mut Incoming) {
    if incoming.passage.answered.is_none() {
        return;
    }
    let is_stream = incoming.is_stream();
    let holding = incoming.hold(|passing| {
        let answered = passing.answered.as_ref();
        answered.is_none_or(Answered::has_begun)
    });
    match is_stream {
        // An event may take as long as the tool does, and the head shall not.
        true => drop(tokio::time::timeout(MOMENT, holding).await),
        false => holding.await,
    }
}

/// Whether the answer to a call says that it did not run. Then it used nothing either.
pub(super) fn says_not_run(incoming: &mut Incoming, policy: &Policy) -> bool {
    let answered = incoming.passage.answered.as_ref();
    let says = answered.is_some_and(|answered| answered.is_refused(&policy.mcp.release_codes));
    if says {
        incoming.passage.metering = None;
    }
    says
}

/// Reads on the way what the answer to the call `asked` tells of its use.
pub(super) fn meter(
    incoming: &mut Incoming,
    meters: &Meters,
    route: &Route,
    asked: Asked<'_>,
    is_several: bool,
) {
    let status = incoming.head.status;
    let metering = match is_several {
        true => Metering::of_several(asked, status),
        false => Metering::new(meters, route, asked, status, &incoming.headers),
    };
    incoming.passage.metering = Some(metering);
}

/// Leaves out of a stream what it tells of its use, since only the gateway asked for it: it is
/// metered, and neither recorded nor shown. An answer that comes encoded all the same stays as it
/// is.
pub(super) fn hide_usage(incoming: &mut Incoming) -> Result<(), UnknownReason> {
    let is_success = (200..300).contains(&incoming.head.status);
    let is_encoded = |headers: &HeaderMap| headers.contains_key(CONTENT_ENCODING);
    if !is_success || !incoming.is_stream() || is_encoded(&incoming.headers) {
        return Ok(());
    }
    incoming.passage.hider = Some(UsageHider::default());
    match incoming.headers.remove(CONTENT_LENGTH) {
        Some(_) => incoming.repack(),
        None => Ok(()),
    }
}

/// What it has told, once it has ended; `claimed` is the record of its execution.
pub(super) fn metered(
    incoming: &mut Incoming,
    end: End,
    meters: &Meters,
    route: &Route,
    claimed: &Record,
) -> Option<Metered> {
    let (tenant, at) = (&claimed.scope.tenant, claimed.claimed_at);
    let metering = incoming.passage.metering.take()?;
    metering.finish(end, meters, route, tenant, at)
}

/// What says where a body ends (RFC 9112 section 6.3).
#[derive(Debug, PartialEq, Eq)]
enum Framing {
    /// The message itself.
    Said,
    /// The end of the connection: then nobody can tell the end from a break.
    ByClose,
    /// It is in a transfer coding that nobody asked for, and which would be lost on the way.
    Coded,
}

fn framing(response: &Response<()>) -> Framing {
    let headers = response.headers();
    let has_no_body = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED];
    if response.version() > Version::HTTP_11 || has_no_body.contains(&response.status()) {
        return Framing::Said;
    }
    let codings = headers.get_all(TRANSFER_ENCODING).iter();
    let codings = codings.flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let codings: Vec<_> = codings.map(<[u8]>::trim_ascii).collect();
    let is = |coding: &[u8], name: &[u8]| coding.eq_ignore_ascii_case(name);
    match codings.as_slice() {
        [] if headers.contains_key(CONTENT_LENGTH) => Framing::Said,
        [] => Framing::ByClose,
        [one] if is(one, b"chunked") => Framing::Said,
        // As if there were none, in RFC 2616.
        all if all.iter().all(|one| is(one, b"identity")) => Framing::ByClose,
        _ => Framing::Coded,
    }
}

#[cfg(test)]
mod tests {
    use http::{Response, Version};

    use super::{Framing, framing};

    #[test]
    fn hostile_072_only_chunks_or_a_length_say_where_an_answer_ends() {
        let of = |fields: &[(&str, &str)]| {
            let mut response = Response::builder().version(Version::HTTP_11);
            for (name, value) in fields {
                response = response.header(*name, *value);
            }
            framing(&response.body(()).expect("a response"))
        };
        let te = "transfer-encoding";
        assert_eq!(of(&[("content-length", "3")]), Framing::Said);
        assert_eq!(of(&[]), Framing::ByClose);
        assert_eq!(of(&[(te, "chunked")]), Framing::Said);
        assert_eq!(of(&[(te, "Chunked ")]), Framing::Said);
        assert_eq!(of(&[(te, "identity")]), Framing::ByClose);
        assert_eq!(
            of(&[(te, "identity"), ("content-length", "3")]),
            Framing::ByClose
        );
        for coded in ["gzip", "gzip, chunked", "chunked, gzip", "chunked, chunked"] {
            assert_eq!(of(&[(te, coded)]), Framing::Coded, "{coded}");
        }
        assert_eq!(of(&[(te, "gzip"), (te, "chunked")]), Framing::Coded);
    }
}
