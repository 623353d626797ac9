//! A run of a command as bytes: what it wrote, in order, and how it ended.
//!
//! ```text
//! frame = [kind u8][length u32, big endian][bytes]
//!
//! 0  it runs; no bytes. Sent when it has started and now and then, and never recorded
//! 1  bytes of standard output
//! 2  bytes of standard error
//! 3  it has ended with this exit code, a byte; the last frame of a whole run
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The type of such a body.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.onlyonce.exec";

/// The most bytes that one frame carries.
pub(crate) const FRAME_MAX: usize = 64 << 10;

const HEADER: usize = 5;

/// A piece of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// It runs.
    Runs,
    /// It wrote this to standard output.
    Stdout(Bytes),
    /// It wrote this to standard error.
    Stderr(Bytes),
    /// It has ended, with this exit code.
    Exit(u8),
}

/// Bytes that are no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what came is no run of a command")]
pub(crate) struct NotFrames;

impl Frame {
    /// The frame as bytes.
    pub(crate) fn encode(&self) -> Bytes {
        let code;
        let (kind, bytes): (u8, &[u8]) = match self {
            Self::Runs => (0, &[]),
            Self::Stdout(bytes) => (1, bytes),
            Self::Stderr(bytes) => (2, bytes),
            Self::Exit(exit) => {
                code = [*exit];
                (3, &code)
            }
        };
        let mut out = BytesMut::with_capacity(HEADER + bytes.len());
        out.put_u8(kind);
        // No frame is made of more than FRAME_MAX bytes.
        out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        out.put_slice(bytes);
        out.freeze()
    }
}

/// Takes frames out of bytes that come in pieces.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    held: BytesMut,
}

impl Frames {
    /// Takes the next piece in.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` where more has to come.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, NotFrames> {
        let Some((header, _)) = self.held.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [kind, len @ ..] = *header;
        let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
        if len > FRAME_MAX {
            return Err(NotFrames);
        }
        if self.held.len() < HEADER + len {
            return Ok(None);
        }
        self.held.advance(HEADER);
        let bytes = self.held.split_to(len).freeze();
        match (kind, &*bytes) {
            (0, []) => Ok(Some(Frame::Runs)),
            (1, [_, ..]) => Ok(Some(Frame::Stdout(bytes))),
            (2, [_, ..]) => Ok(Some(Frame::Stderr(bytes))),
            (3, [code]) => Ok(Some(Frame::Exit(*code))),
            _ => Err(NotFrames),
        }
    }

    /// Whether nothing of a frame is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Frame> {
        vec![
            Frame::Runs,
            Frame::Stdout(Bytes::from_static(b"out\n")),
            Frame::Stderr(Bytes::from(vec![0; FRAME_MAX])),
            Frame::Exit(7),
        ]
    }

    #[test]
    fn frames_come_back_however_they_are_cut() {
        let bytes: Vec<u8> = all().iter().flat_map(Frame::encode).collect();
        for cut in [1, 3, 5, 6, 4096, bytes.len()] {
            let mut frames = Frames::default();
            let mut found = Vec::new();
            for piece in bytes.chunks(cut) {
                frames.feed(piece);
                while let Some(frame) = frames.next().unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, all());
            assert!(frames.is_empty());
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let too_long = [1, 0, 1, 0, 1];
        for bytes in [
            &too_long[..],
            &[4, 0, 0, 0, 0],
            &[1, 0, 0, 0, 0],
            &[3, 0, 0, 0, 0],
            &[3, 0, 0, 0, 2, 1, 1],
            &[0, 0, 0, 0, 1, 1],
        ] {
            let mut frames = Frames::default();
            frames.feed(bytes);
            assert_eq!(frames.next(), Err(NotFrames), "{bytes:?}");
        }
    }
}
