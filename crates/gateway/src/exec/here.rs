//! The command runs here: what it writes is printed and recorded, signals reach it, its end is told.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::pin::{Pin, pin};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Response;
use hyper::body::Incoming;
use rustix::process::{Pid, Signal as Unix, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::frames::{FRAME_MAX, Frame};
use super::{OWN_FAILURE, told};
use crate::cli::complain;
use crate::control_client::Client;
use crate::failure::Failure;

/// How often the gateway is told that the command runs.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How long the gateway may take to accept what the command wrote, and to record its end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `command`, and records it by `out`; `answer` is what the gateway says of that in the end.
pub(super) async fn run(
    command: &[OsString],
    out: mpsc::Sender<Bytes>,
    answer: Pin<&mut impl Future<Output = Result<Response<Incoming>, Failure>>>,
    client: &Client,
) -> Result<u8, Failure> {
    let (stop, stopped) = watch::channel(false);
    let recorder = Recorder {
        out: Some(out),
        stopped,
    };
    let mut recorded = pin!(async {
        let response = answer.await?;
        client.json(response).await.map(drop)
    });
    let mut running = pin!(execute(command, recorder));
    let mut early = None;
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended,
            // It says something while the command runs: that it records no more.
            said = &mut recorded, if early.is_none() => {
                early = Some(said);
                stop.send_replace(true);
            }
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

/// How the command ended.
enum Ended {
    Code(u8),
    Signal(i32),
    NotStarted { code: u8, why: Failure },
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
            Self::NotStarted { code, why } => {
                complain(&why);
                Ok(code)
            }
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

async fn execute(command: &[OsString], mut recorder: Recorder) -> Ended {
    let started = Signals::catch().and_then(|signals| Ok((start(command)?, signals)));
    let ((mut child, mut pipes), signals) = match started {
        Ok(started) => started,
        Err(error) => {
            let said = Bytes::from(error.to_string());
            recorder.record(&Frame::NotStarted(said)).await;
            return not_started(command, &error);
        }
    };
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

fn not_started(command: &[OsString], error: &io::Error) -> Ended {
    let program = command.first().cloned().unwrap_or_default();
    Ended::NotStarted {
        // As shells do.
        code: match error.kind() {
            io::ErrorKind::NotFound => 127,
            _ => 126,
        },
        why: Failure::other(
            format!(
                "{} could not be started ({error}), and nothing ran",
                program.to_string_lossy()
            ),
            "correct the command and run it again: the key is free",
        ),
    }
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
