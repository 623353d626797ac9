//! A run that was recorded, or goes on elsewhere: it is printed as it was.

use std::io::{self, Write};

use http::Response;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::frames::{self, Frame, Frames};
use crate::failure::Failure;

/// Prints the run, as it comes; gives its exit code once the whole of it is there.
pub(super) async fn show(response: Response<Incoming>) -> Result<u8, Failure> {
    let kind = response.headers().get(CONTENT_TYPE);
    if kind.is_none_or(|kind| kind != frames::CONTENT_TYPE) {
        return Err(no_run());
    }
    let mut body = response.into_body();
    let mut frames = Frames::default();
    let mut exit = None;
    while let Some(piece) = body.frame().await {
        // Only the end of the body says that the run is recorded.
        let piece = piece.map_err(|_| broke())?;
        frames.feed(piece.data_ref().map_or(&[][..], |bytes| bytes));
        while let Some(frame) = frames.next().map_err(|_| no_run())? {
            match frame {
                Frame::Exit(code) => exit = Some(code),
                frame => print(&frame),
            }
        }
    }
    exit.filter(|_| frames.is_empty()).ok_or_else(no_run)
}

/// Prints what a frame carries. A reader that has gone away has seen enough.
pub(super) fn print(frame: &Frame) {
    let _ = match frame {
        Frame::Stdout(bytes) => {
            let mut out = io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        }
        Frame::Stderr(bytes) => io::stderr().write_all(bytes),
        Frame::Runs | Frame::Exit(_) => Ok(()),
    };
}

fn broke() -> Failure {
    Failure::other(
        "the run that was followed broke off, and nobody can say how far it came",
        "look at the operation with `onlyonce keys show`, and settle it, or use --on-unknown rerun",
    )
}

fn no_run() -> Failure {
    Failure::other(
        "what is recorded under this key is not the run of a command",
        "look at it with `onlyonce keys show`, or use another key",
    )
}
