//! The command runs here: what it writes is printed and recorded, signals reach it, its end is told.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, Request};
use http_body::Frame as BodyFrame;
use http_body_util::StreamBody;
use rustix::process::{Pid, Signal as Unix, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::frames::{FRAME_MAX, Frame};
use super::{Claim, OWN_FAILURE, PAUSES, told};
use crate::cli::complain;
use crate::control_client::{Client, query};
use crate::failure::Failure;

/// That the command runs, said of its claim.
const HEARTBEAT: &str = "heartbeat";
/// How often the gateway is told that the command runs.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How long the gateway may take to accept what the command wrote, and to record its end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `command` under `claim`, and sends what it writes to the gateway.
pub(super) async fn run(
    command: &[OsString],
    claim: Claim,
    client: &Client,
) -> Result<u8, Failure> {
    let started = Signals::catch().and_then(|signals| Ok((start(command)?, signals)));
    let started = match started {
        Ok(started) => started,
        Err(error) => return Ok(not_started(command, &error, release(&claim, client).await)),
    };
    let (out, body) = mpsc::channel(16);
    let (stop, stopped) = watch::channel(false);
    let recorder = Recorder {
        out: Some(out),
        stopped,
    };
    let (path, request) = claim.output(body)?;
    let mut recorded = pin!(async {
        let response = client.send(&path, request).await?;
        client.json(response).await.map(drop)
    });
    let mut running = pin!(attend(started, recorder));
    let mut beating = pin!(beat(&claim, client));
    let mut early = None;
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended,
            // It says something while the command runs: that it records no more.
            said = &mut recorded, if early.is_none() => {
                early = Some(said);
                stop.send_replace(true);
            }
            never = &mut beating, if early.is_none() => match never {},
        }
    };
    let recorded = match early {
        Some(said) => said,
        None => timeout(PATIENCE, recorded).await.unwrap_or_else(|_| {
            Err(Failure::other(
                "the gateway does not answer",
                "look at its log",
            ))
        }),
    };
    ended.code(recorded)
}

type Output = StreamBody<stream::BoxStream<'static, Result<BodyFrame<Bytes>, Infallible>>>;

impl Claim {
    /// Where the output goes, and the request whose body is what comes out of `body`.
    fn output(&self, body: mpsc::Receiver<Bytes>) -> Result<(String, Request<Output>), Failure> {
        let pieces = stream::unfold(body, |mut body| async move {
            let piece = body.recv().await?;
            Some((Ok(BodyFrame::data(piece)), body))
        });
        let mut request = Request::new(StreamBody::new(pieces.boxed()));
        *request.method_mut() = Method::POST;
        let headers = request.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static(super::frames::CONTENT_TYPE),
        );
        let token = HeaderValue::from_str(&self.token)
            .map_err(|_| Failure::usage("the claim is none", "look at the gateway"))?;
        headers.insert(HeaderName::from_static("onlyonce-claim"), token);
        let window = query(&[("window", self.window.as_deref())]);
        Ok((
            format!("/v1/exec/{}/output{window}", self.operation),
            request,
        ))
    }

    /// Says `what` of the claim, by which the gateway knows it.
    async fn say(&self, what: &str, client: &Client) -> Result<Value, Failure> {
        let path = format!("/v1/work/{}/{what}", self.operation);
        let mut body = json!({ "claim": self.token });
        if what == HEARTBEAT {
            body["lease"] = json!(format!("{}s", PATIENCE.as_secs()));
        }
        client.post(&path, &body).await
    }
}

/// Has the claim believed for as long as the command runs. What comes in between may hold its output back.
async fn beat(claim: &Claim, client: &Client) -> Infallible {
    loop {
        sleep(SAY_EVERY).await;
        // Another one follows, and the output says the same.
        let _ = timeout(SAY_EVERY, claim.say(HEARTBEAT, client)).await;
    }
}

/// Says that nothing ran; whether the key is free by that.
async fn release(claim: &Claim, client: &Client) -> Result<bool, Failure> {
    let mut pauses = PAUSES.iter();
    loop {
        match (claim.say("release", client).await, pauses.next()) {
            (Err(_), Some(pause)) => sleep(*pause).await,
            (said, _) => return Ok(said?["state"] == "released"),
        }
    }
}

/// How the command ended.
enum Ended {
    Code(u8),
    Signal(i32),
}

impl Ended {
    fn of(status: ExitStatus) -> Self {
        match status.code() {
            Some(code) => Self::Code(u8::try_from(code).unwrap_or(u8::MAX)),
            None => Self::Signal(status.signal().unwrap_or_default()),
        }
    }

    /// What to exit with, where the gateway says that of the record.
    fn code(self, recorded: Result<(), Failure>) -> Result<u8, Failure> {
        match self {
            Self::Signal(number) => {
                complain(&Failure::other(
                    format!(
                        "the command was ended by signal {number}, and nobody can say how far it came"
                    ),
                    "look whether it did its work and settle it with `onlyonce keys`, or use \
                     --on-unknown rerun",
                ));
                // As shells do.
                Ok(u8::try_from(128 + number).unwrap_or(u8::MAX))
            }
            Self::Code(code) => match recorded {
                Ok(()) => Ok(code),
                Err(failure) => {
                    complain(&Failure::other(
                        format!(
                            "the command exited with {code}, and that could not be recorded: {failure}"
                        ),
                        "later runs are told that nobody knows; settle it with `onlyonce keys`",
                    ));
                    Ok(OWN_FAILURE)
                }
            },
        }
    }
}

/// The command that has been started, and the signals that it is to get.
type Started = ((Child, Pipes), Signals);

/// Prints and records what the command writes, to its end.
async fn attend(((mut child, mut pipes), signals): Started, mut recorder: Recorder) -> Ended {
    let forwarding = tokio::spawn(signals.forward_to(child.id()));
    let mut say = interval(SAY_EVERY);
    say.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Once what it writes ends: it may close that, and go on.
    let mut writes = true;
    let status = loop {
        tokio::select! {
            frame = pipes.next(), if writes => match frame {
                Some(frame) => {
                    tokio::task::block_in_place(|| told::print(&frame));
                    recorder.record(&frame).await;
                }
                None => writes = false,
            },
            status = child.wait(), if !writes => break status,
            _ = say.tick() => recorder.record(&Frame::Runs).await,
        }
    };
    forwarding.abort();
    let ended = status.map_or(Ended::Signal(0), Ended::of);
    if let Ended::Code(code) = ended {
        recorder.record(&Frame::Exit(code)).await;
    }
    // Without an exit code, the end of the body says that the outcome is unknown.
    ended
}

/// What to exit with where nothing ran, and the gateway was told so, or not.
fn not_started(command: &[OsString], error: &io::Error, released: Result<bool, Failure>) -> u8 {
    // As shells do.
    let code = match error.kind() {
        io::ErrorKind::NotFound => 127,
        _ => 126,
    };
    let program = command.first().cloned().unwrap_or_default();
    let program = program.to_string_lossy();
    let what = format!("{program} could not be started ({error}), and nothing ran");
    let (code, why) = match released {
        Ok(true) => {
            let next = "correct the command and run it again: the key is free";
            (code, Failure::other(what, next))
        }
        Ok(false) => {
            let next = "nobody knows of an earlier run still: settle it with `onlyonce keys`, or correct \
                        the command and run it again with --on-unknown rerun";
            (code, Failure::other(what, next))
        }
        Err(failure) => {
            let what = format!("{what}, but that could not be recorded: {failure}");
            let next = "later runs are told that nobody knows, in a minute at the latest; free the key \
                        with `onlyonce keys release`";
            (OWN_FAILURE, Failure::other(what, next))
        }
    };
    complain(&why);
    code
}

fn start(command: &[OsString]) -> io::Result<(Child, Pipes)> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| io::Error::other("there is no command"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pipes = Pipes {
        stdout: child.stdout.take(),
        stderr: child.stderr.take(),
    };
    Ok((child, pipes))
}

/// What the command writes, in the order in which it is seen.
struct Pipes {
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

impl Pipes {
    /// The next piece; `None` once both have ended.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            let (out, err) = (self.stdout.is_some(), self.stderr.is_some());
            tokio::select! {
                bytes = read(&mut self.stdout), if out => {
                    if let Some(bytes) = bytes {
                        return Some(Frame::Stdout(bytes));
                    }
                }
                bytes = read(&mut self.stderr), if err => {
                    if let Some(bytes) = bytes {
                        return Some(Frame::Stderr(bytes));
                    }
                }
                else => return None,
            }
        }
    }
}

/// What comes next out of `pipe`, which is taken away at its end.
async fn read(pipe: &mut Option<impl AsyncRead + Unpin>) -> Option<Bytes> {
    let mut bytes = BytesMut::with_capacity(FRAME_MAX / 2);
    let read = pipe.as_mut()?.read_buf(&mut bytes).await;
    if read.is_ok_and(|read| read > 0) {
        return Some(bytes.freeze());
    }
    *pipe = None;
    None
}

/// Sends to the gateway what it is to record, for as long as it takes that.
struct Recorder {
    out: Option<mpsc::Sender<Bytes>>,
    /// Whether the gateway records no more.
    stopped: watch::Receiver<bool>,
}

impl Recorder {
    async fn record(&mut self, frame: &Frame) {
        let Some(out) = &self.out else { return };
        let taken = tokio::select! {
            sent = timeout(PATIENCE, out.send(frame.encode())) => matches!(sent, Ok(Ok(()))),
            _ = self.stopped.wait_for(|stopped| *stopped) => false,
        };
        // The command goes on: what it does is done here, recorded or not.
        if !taken {
            self.out = None;
        }
    }
}

/// The signals that the command is to get.
struct Signals(Vec<(Unix, Signal)>);

impl Signals {
    fn catch() -> io::Result<Self> {
        let all = [
            (Unix::TERM, SignalKind::terminate()),
            (Unix::HUP, SignalKind::hangup()),
            (Unix::USR1, SignalKind::user_defined1()),
            (Unix::USR2, SignalKind::user_defined2()),
            (Unix::INT, SignalKind::interrupt()),
            (Unix::QUIT, SignalKind::quit()),
        ];
        let caught = all.map(|(unix, kind)| Ok((unix, signal(kind)?)));
        caught.into_iter().collect::<io::Result<_>>().map(Self)
    }

    async fn forward_to(self, pid: Option<u32>) {
        let pid = pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let Some(pid) = pid else { return };
        // A terminal sends these to the command too, by itself.
        let is_terminal = io::stdin().is_terminal();
        let each = self.0.into_iter().map(|(unix, mut signal)| async move {
            while signal.recv().await.is_some() {
                let came_there = is_terminal && matches!(unix, Unix::INT | Unix::QUIT);
                if !came_there {
                    // It may be gone already.
                    let _ = kill_process(pid, unix);
                }
            }
        });
        futures_util::future::join_all(each).await;
    }
}
