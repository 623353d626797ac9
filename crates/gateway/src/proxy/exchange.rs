//! One exchange with an upstream: a request out, the head of its answer in.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use onlyonce_core::planted::{Bug, planted};
use onlyonce_tower::shell::timer::Timer;
use tokio::time::Instant;

use super::lane::{Answer, CallOff, Failed, Lane, Sending};
use super::outgoing::Outgoing;
use super::pool::{Pool, ReadBy};
use super::whole::Whole;

/// Why an exchange came to nothing.
pub(super) enum Failure {
    /// No byte of the request was written (I10).
    NotSent(String),
    /// It went out, in part at least, and the connection broke.
    Broke(String),
    /// What came back is not HTTP.
    BadAnswer(String),
    /// No head within the first-byte timeout. It may still come.
    TimedOut(Box<Waiting>),
}

/// How long an exchange is waited for.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// For the connection.
    pub(super) connect: Duration,
    /// For the head of the answer, from when the last part of the request went out.
    pub(super) first_byte: Duration,
    /// For the head in any case, however slowly the request goes out.
    pub(super) until: Option<Instant>,
}

/// A request that was sent and not answered yet.
pub(super) struct Waiting {
    call_off: CallOff,
    lane: Lane,
    sending: Sending,
    pool: Arc<Pool>,
    timer: Timer,
    written: u64,
    /// How long it may take from when the last part of the request went out, and when it is over in any case.
    limit: Duration,
    until: Option<Instant>,
}

/// An answer that has begun.
pub(super) type Begun = (Response<()>, Answer);

/// Sends `request` over an idle connection, or a new one, and waits for the head of its answer.
///
/// A connection that had ended before it took the request is replaced once, by a new one. Nothing
/// is ever sent twice, and nothing at all unless `may_send` says so at the last moment.
pub(super) async fn exchange(
    pool: &Arc<Pool>,
    mut request: Request<Outgoing>,
    read_by: ReadBy,
    patience: Patience,
    may_send: impl Fn() -> bool,
) -> Result<Begun, Failure> {
    let mut fresh = false;
    loop {
        let mut lane = pool
            .lane(read_by, patience.connect, fresh)
            .await
            .map_err(Failure::NotSent)?;
        // To connect takes its time, and a process can be stopped at any place.
        if !may_send() {
            return Err(Failure::NotSent(
                "the gateway stood still for longer than its lease".to_owned(),
            ));
        }
        let (sending, call_off) = lane.send(request, pool);
        let mut waiting = Waiting {
            call_off,
            timer: lane.take_timer(),
            lane,
            sending,
            pool: Arc::clone(pool),
            written: 0,
            limit: patience.first_byte,
            until: patience.until,
        };
        match waiting.wait().await {
            Some(Ok(response)) => return Ok(waiting.begun(response)),
            Some(Err(Failed::NotTaken(back))) if waiting.lane.is_used() && !fresh => {
                waiting.call_off.disarm();
                request = *back;
                fresh = true;
            }
            Some(Err(failed)) => return Err(failed.into()),
            None if waiting.has_written() => return Err(Failure::TimedOut(Box::new(waiting))),
            None => {
                return Err(Failure::NotSent(
                    "it took no byte of the request".to_owned(),
                ));
            }
        }
    }
}

impl Waiting {
    /// Goes on waiting for an answer that is late already.
    pub(super) async fn late(mut self: Box<Self>, limit: Duration) -> Result<Begun, Failure> {
        (self.limit, self.until) = (limit, Some(Instant::now() + limit));
        match self.wait().await {
            Some(Ok(response)) => Ok(self.begun(response)),
            Some(Err(failed)) => Err(failed.into()),
            None => Err(Failure::TimedOut(self)),
        }
    }

    /// The head of the answer; `None` when its time is over.
    async fn wait(&mut self) -> Option<Result<Response<Incoming>, Failed>> {
        self.put_off();
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn put_off(&mut self) {
        let due = Instant::now() + self.limit;
        self.timer
            .set_at(self.until.map_or(due, |until| due.min(until)));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Response<Incoming>, Failed>>> {
        if let Poll::Ready(answer) = self.sending.poll(&mut self.lane, cx) {
            return Poll::Ready(Some(answer));
        }
        // The upstream has its time from the moment that it has the whole request: each part of it
        // that goes out puts the deadline off.
        let written = self.sending.written(&self.lane);
        if written != self.written {
            self.written = written;
            self.put_off();
        }
        self.timer.poll(cx).map(|()| None)
    }

    fn has_written(&self) -> bool {
        self.sending.has_written(&self.lane)
    }

    fn begun(mut self, response: Response<Incoming>) -> Begun {
        self.lane.keep_timer(self.timer);
        let (head, body) = response.into_parts();
        let body = Whole::new(body, head.version);
        let answer = Answer::new(self.call_off, body, self.lane, self.pool);
        (Response::from_parts(head, ()), answer)
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::NotTaken(_) => Self::NotSent("the connection was closed".to_owned()),
            Failed::NotSent(why) => Self::NotSent(why),
            Failed::Broke(why) if planted(Bug::BreakTakenForNotSent) => Self::NotSent(why),
            Failed::Broke(why) => Self::Broke(why),
            Failed::BadAnswer(why) => Self::BadAnswer(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use bytes::Bytes;

    use super::super::lines::Dial;
    use super::*;
    use crate::config::{Config, Overrides, Source};

    fn pool_to(listener: &TcpListener) -> Arc<Pool> {
        let address = listener.local_addr().expect("an address");
        let text = format!("[[upstream]]\nname = \"up\"\nurl = \"http://{address}\"\n");
        let source = Source {
            name: "onlyonce.toml",
            text: &text,
            env: &|_| None,
        };
        let config = Config::read(&source, &Overrides::default()).expect("a configuration");
        let upstream = config.upstreams.into_iter().next().expect("an upstream");
        Arc::new(Pool::new(upstream, Dial::Tcp, None).expect("a pool"))
    }

    #[tokio::test]
    async fn i09_who_may_not_send_any_more_has_connected_and_writes_no_byte() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let pool = pool_to(&listener);
        let request = Request::new(Outgoing::Whole(Bytes::from_static(b"charge")));
        let patience = Patience {
            connect: Duration::from_secs(20),
            first_byte: Duration::from_secs(20),
            until: None,
        };
        let exchanged = exchange(&pool, request, ReadBy::Recording, patience, || false).await;
        assert!(matches!(exchanged, Err(Failure::NotSent(_))));
        drop(pool);
        let (mut upstream, _) = listener.accept().expect("a connection");
        let mut received = Vec::new();
        upstream.read_to_end(&mut received).expect("its end");
        assert_eq!(received, b"");
    }
}
