//! One call: an action's key is taken, then attempts are made until the policy says stop.
//!
//! Read [`Call::run`]: it is the whole order of things.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use onlyonce_core::Key;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::Action;
use crate::attempt::{Answer, Got, is_problem_document};
use crate::body::AnswerBody;
use crate::client::Inner;
use crate::error::{BoxError, Error, chain};
use crate::fingerprint::fingerprint;
use crate::keys::{Entry, KeyStore, Note, Said, Taken};
use crate::policy::{History, Next, Stop};
use crate::report::{Attempt, Report};
use crate::window::{Closed, Window};

/// What an attempt got, and the answer itself where it is one.
type Outcome<R> = (Got, Option<Response<AnswerBody<R>>>);

/// A call that has its key.
pub(crate) struct Call<'a, K> {
    client: &'a Inner<K>,
    head: Parts,
    body: Bytes,
    taken: Taken,
    window: Window,
    report: Report,
    began: Instant,
}

impl<'a, K: KeyStore> Call<'a, K> {
    /// Takes the key of `action`: it is durable when this returns, and nothing was sent.
    pub(crate) async fn begin(
        client: &'a Inner<K>,
        action: Action,
        mut head: Parts,
        body: Bytes,
    ) -> Result<Self, Error> {
        let began = Instant::now();
        let header = &client.server.key_header;
        if head.headers.contains_key(header) {
            let header = header.clone();
            return Err(Error::KeyPresent { action, header });
        }
        let fingerprint = fingerprint(&head, &body);
        let fresh = Entry {
            key: new_key(),
            fingerprint,
            made_at: client.clock.now(),
        };
        let taken = client.keys.take(&action, fresh).await;
        let taken = taken.map_err(|error| Error::Keys {
            action: action.clone(),
            source: Box::new(error),
        })?;
        let report = Report::new(action, taken.entry.key.clone(), taken.is_new);
        if taken.entry.fingerprint != fingerprint {
            return Err(Error::ActionReused {
                report: Box::new(report),
                made_at: taken.entry.made_at,
            });
        }
        let key = HeaderValue::from_str(taken.entry.key.as_str());
        // A key is visible ASCII.
        head.headers.extend(key.map(|key| (header.clone(), key)));
        Ok(Self {
            client,
            head,
            body,
            window: Window::of(&taken, client.server.window),
            taken,
            report,
            began,
        })
    }

    /// Makes attempts by `send` until the policy says stop.
    pub(crate) async fn run<R, F, Sent>(
        mut self,
        mut send: F,
    ) -> Result<Response<AnswerBody<R>>, Error>
    where
        R: Body<Data = Bytes>,
        R::Error: Into<BoxError>,
        F: FnMut(Request<Bytes>) -> Sent,
        Sent: Future<Output = Result<Response<R>, Got>>,
    {
        let client = self.client;
        let mut is_retry = false;
        let (mut retries, mut waits) = (0, 0);
        loop {
            // Each time anew, and by the calendar: a machine may have slept in between.
            if let Err(closed) = self.window.left(client.clock.now()) {
                return Err(self.refused(closed));
            }
            let started = self.began.elapsed();
            let (got, response) = self.attempt(&mut send).await;
            let history = History {
                retries,
                waits,
                elapsed: self.began.elapsed(),
                window_left: self.window.left(client.clock.now()).unwrap_or_default(),
            };
            let next = client
                .policy
                .next(&client.server, &got, &history, (client.random)());
            let next = match next {
                Next::Retry { counts: true, .. } if !client.budget.take() => {
                    Next::Stop(Stop::BudgetSpent)
                }
                next => next,
            };
            let mut attempt = Attempt {
                started,
                took: history.elapsed.saturating_sub(started),
                got,
                waited: std::time::Duration::ZERO,
            };
            match next {
                Next::Retry { after, counts } => {
                    attempt.waited = after;
                    self.report.attempts.push(attempt);
                    is_retry = counts;
                    *(if counts { &mut retries } else { &mut waits }) += 1;
                    drop(response);
                    sleep(after).await;
                }
                Next::Stop(stop) => {
                    if matches!(stop, Stop::Answered | Stop::ToldNotTo | Stop::Unknown) {
                        client.budget.answered(is_retry);
                    }
                    let got = attempt.got.clone();
                    self.report.attempts.push(attempt);
                    self.report.stopped = Some(stop);
                    return self.finish(stop, got, response).await;
                }
            }
        }
    }

    /// One attempt, within its own time and that of the call.
    async fn attempt<R, F, Sent>(&self, send: &mut F) -> Outcome<R>
    where
        R: Body<Data = Bytes>,
        R::Error: Into<BoxError>,
        F: FnMut(Request<Bytes>) -> Sent,
        Sent: Future<Output = Result<Response<R>, Got>>,
    {
        let policy = &self.client.policy;
        let left = policy.deadline.saturating_sub(self.began.elapsed());
        let limit = policy.attempt_timeout.min(left);
        let request = Request::from_parts(self.head.clone(), self.body.clone());
        let sent = send(request);
        let whole = async {
            let (head, body) = sent.await?.into_parts();
            let body = if is_event_stream(&head) {
                AnswerBody::passing(body)
            } else {
                let read = AnswerBody::read(body).await;
                read.map_err(|error| Got::Broke(chain(&*error.into())))?
            };
            Ok(Response::from_parts(head, body))
        };
        match timeout(limit, whole).await {
            Err(_) => (Got::TimedOut(limit), None),
            Ok(Err(got)) => (got, None),
            Ok(Ok(response)) => {
                let (head, body) = response.into_parts();
                let document = is_problem_document(&head.headers).then(|| body.whole());
                let answer = Answer::read(
                    &self.client.server,
                    &head,
                    document.flatten().as_deref(),
                    self.client.clock.now(),
                );
                (Got::Answer(answer), Some(Response::from_parts(head, body)))
            }
        }
    }

    async fn finish<R>(
        mut self,
        stop: Stop,
        got: Got,
        response: Option<Response<AnswerBody<R>>>,
    ) -> Result<Response<AnswerBody<R>>, Error> {
        let answer = match (&got, stop) {
            (_, Stop::WindowOver) => return Err(self.refused(Closed::Over)),
            (Got::Answer(answer), _) => answer,
            _ => {
                return Err(Error::NoAnswer {
                    until: self.window.last(),
                    report: Box::new(self.report),
                });
            }
        };
        self.note(stop, answer).await;
        match response {
            Some(mut response) if stop != Stop::Unknown => {
                response.extensions_mut().insert(self.report);
                Ok(response)
            }
            _ => Err(Error::Unknown {
                report: Box::new(self.report),
                operation: answer.operation.clone(),
                detail: answer.problem.clone().unwrap_or_default().detail,
            }),
        }
    }

    /// Keeps what the server said, where that counts.
    async fn note(&mut self, stop: Stop, answer: &Answer) {
        let said = match stop {
            Stop::Unknown => Said::Unknown,
            Stop::Answered | Stop::ToldNotTo => Said::Answer(answer.status),
            _ => return,
        };
        let before = self.taken.note.as_ref();
        let was_done = before.is_some_and(|note| note.said.is_success());
        let is_known = before.is_some_and(|note| {
            note.said == said
                && (note.expires_at == answer.expires_at || answer.expires_at.is_none())
        });
        // What is done stays done, whatever a later call is told, such as one with a wrong password.
        if is_known || (was_done && !said.is_success()) {
            return;
        }
        let note = Note {
            at: self.client.clock.now(),
            said,
            expires_at: answer.expires_at,
        };
        let report = &mut self.report;
        let noted = self.client.keys.note(&report.action, &report.key, note);
        report.not_noted = noted.await.err().map(|error| error.to_string());
    }

    fn refused(self, closed: Closed) -> Error {
        let report = Box::new(self.report);
        match closed {
            Closed::Over => Error::WindowOver {
                report,
                ended_at: self.window.ends_at,
                said: self.taken.note.map(|note| (note.said, note.at)),
            },
            Closed::ClockWentBack { past } => Error::ClockWentBack {
                report,
                past,
                now: self.client.clock.now(),
            },
        }
    }
}

fn is_event_stream(head: &http::response::Parts) -> bool {
    let kind = head.headers.get(http::header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

/// A key that nobody else has: a UUID of 122 random bits.
fn new_key() -> Key {
    Key::new(&Uuid::new_v4().to_string()).expect("a UUID is visible ASCII")
}
