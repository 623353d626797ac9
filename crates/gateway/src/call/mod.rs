//! `onlyonce call`: one request from the shell that runs once, however often the command is run.

pub(crate) mod words;

use std::io::{self, Write};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use onlyonce_client::{AnswerBody, BoxError, Error, NotConnected, Report, Stop};
use tower::{Layer, ServiceExt};

pub(crate) use self::words::Call;
use crate::failure::Failure;
use crate::{http_client, start};

/// The exit codes, as the help lists them.
const SENT_NOTHING: u8 = 1;
const LAST_WORD: u8 = 3;
const CALL_AGAIN: u8 = 4;
const UNKNOWN: u8 = 5;
const WINDOW_OVER: u8 = 6;
const ACTION_REUSED: u8 = 7;

type Answer = Response<AnswerBody<Incoming>>;

/// Sends it, and prints what comes back.
pub(crate) fn run(call: Call) -> Result<(), Failure> {
    if call.forget {
        return start::runtime()?.block_on(forget(&call));
    }
    let request = call.request()?;
    start::runtime()?.block_on(async {
        match send(&call, request).await? {
            Ok(answer) => print(&call, answer).await,
            Err(error) => {
                if let Some(report) = error.report() {
                    say(&call, report);
                }
                Err(Failure::call(error.to_string(), code(&error)))
            }
        }
    })
}

async fn forget(call: &Call) -> Result<(), Failure> {
    let action = call.action()?;
    let forgotten = call.client()?.forget(&action).await;
    match forgotten.map_err(|error| Failure::call(error.to_string(), SENT_NOTHING))? {
        true => Ok(()),
        false => Err(Failure::call(
            format!("There is no key for {action} here. Look at --action and --keys."),
            SENT_NOTHING,
        )),
    }
}

async fn send(
    call: &Call,
    request: Request<Full<Bytes>>,
) -> Result<Result<Answer, Error>, Failure> {
    let http = http_client::bare(&call.url(), "URL")?.map_err(told_apart);
    Ok(call.client()?.layer().layer(http).oneshot(request).await)
}

/// What had no connection was not sent.
fn told_apart(error: legacy::Error) -> BoxError {
    match error.is_connect() {
        true => NotConnected(error.into()).into(),
        false => error.into(),
    }
}

fn code(error: &Error) -> u8 {
    match error {
        Error::Unknown { .. } => UNKNOWN,
        Error::WindowOver { .. } | Error::ClockWentBack { .. } => WINDOW_OVER,
        Error::ActionReused { .. } => ACTION_REUSED,
        Error::NoAnswer { .. } => CALL_AGAIN,
        _ => SENT_NOTHING,
    }
}

/// Prints the answer as it comes.
async fn print(call: &Call, answer: Answer) -> Result<(), Failure> {
    let (head, mut body) = answer.into_parts();
    let report = head.extensions.get::<Report>();
    if let Some(report) = report {
        say(call, report);
    }
    let mut out = io::stdout().lock();
    if call.include {
        write(&mut out, &text_of(&head))?;
    }
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Failure::call(
                format!(
                    "The answer broke off ({error}), so that what was printed is not the whole. It \
                     may have run, once at most. Call again with the same action."
                ),
                CALL_AGAIN,
            )
        })?;
        if let Some(bytes) = frame.data_ref() {
            write(&mut out, bytes)?;
        }
    }
    let status = head.status;
    if !(status.is_client_error() || status.is_server_error()) {
        return Ok(());
    }
    let stopped = report.and_then(|report| report.stopped);
    Err(match stopped {
        Some(Stop::Answered | Stop::ToldNotTo) => {
            Failure::call(format!("The server's last word is {status}."), LAST_WORD)
        }
        _ => Failure::call(
            format!(
                "The server's answer is {status} for now. Call again later with the same action: what \
                 ran is not run again."
            ),
            CALL_AGAIN,
        ),
    })
}

/// The head of an answer, as it would stand on the wire.
fn text_of(head: &http::response::Parts) -> Vec<u8> {
    let mut text = format!("{:?} {}\r\n", head.version, head.status).into_bytes();
    for (name, value) in &head.headers {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"\r\n");
    text
}

fn write(out: &mut impl Write, bytes: &[u8]) -> Result<(), Failure> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // `| head` has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::call(
            format!(
                "The answer cannot be printed ({error}). It is not lost: call again with the same \
                 action."
            ),
            CALL_AGAIN,
        )),
        _ => Ok(()),
    }
}

/// The one line of what was tried, where it is asked for.
fn say(call: &Call, report: &Report) {
    if call.verbose {
        // Where standard error cannot be written, the exit code says what counts.
        let _ = writeln!(io::stderr(), "onlyonce: {report}");
    }
}
