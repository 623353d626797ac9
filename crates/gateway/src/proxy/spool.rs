//! Collecting the body of a keyed request: its fingerprint has to be known before the claim.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use onlyonce_http::problem::Problem;
use onlyonce_ledger::Addition;
use onlyonce_tower::shell::collecting::{self, Coming};

use super::outgoing::{Outgoing, SpooledBody};
use super::whole::Whole;

/// What a body is held to.
pub(super) struct BodyLimits<'a> {
    /// `limits.request_body`, in bytes.
    pub(super) max: u64,
    /// `limits.spool_above`, in bytes.
    pub(super) spool_above: u64,
    /// Where the spool lies.
    pub(super) folder: &'a Path,
    /// `server.body_timeout`.
    pub(super) timeout: Duration,
}

/// Why there is no body.
pub(super) enum NoBody {
    /// It did not come as it should.
    Came(collecting::NoBody),
    /// It could not be spooled.
    NotSpooled(io::Error),
}

impl NoBody {
    /// What a caller is told; `limit_name` names the limit of a body's size.
    pub(super) fn problem(self, limit_name: &'static str, limits: &BodyLimits<'_>) -> Problem {
        let why = match self {
            Self::Came(why) => why,
            Self::NotSpooled(error) => {
                tracing::error!(%error, "a request body could not be spooled");
                return Problem::StorageFull { limit_name: None };
            }
        };
        match why {
            collecting::NoBody::TooLarge => Problem::BodyTooLarge {
                limit_name,
                limit: limits.max,
            },
            collecting::NoBody::TooSlow => Problem::RequestTimeout {
                limit_name: "server.body_timeout",
                limit: limits.timeout,
            },
            collecting::NoBody::Broken => Problem::BadRequest {
                why: "the body did not come whole, or is not framed as it should be".into(),
            },
        }
    }
}

/// The whole body of a request.
pub(super) enum Collected {
    /// In memory.
    Whole(Bytes),
    /// In a file that has no name any more, and goes with its last handle.
    Spooled {
        file: Arc<File>,
        /// In bytes.
        len: u64,
        /// What is put into it on its way to the upstream.
        addition: Option<Addition>,
    },
}

impl Collected {
    /// The body, to be sent. It can be sent again.
    pub(super) fn outgoing(&self) -> Outgoing {
        match self {
            Self::Whole(bytes) => Outgoing::Whole(bytes.clone()),
            Self::Spooled {
                file,
                len,
                addition,
            } => Outgoing::Spooled(SpooledBody::new(Arc::clone(file), *len, *addition)),
        }
    }

    /// Whether there is no byte.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }
}

/// Takes in the whole body, and shows each piece of it to `see`.
pub(super) async fn collect(
    body: Whole,
    limits: &BodyLimits<'_>,
    mut see: impl FnMut(&[u8]),
) -> Result<Collected, NoBody> {
    let mut coming = Coming::new(body, limits.max, limits.timeout).map_err(NoBody::Came)?;
    let announced = coming.announced();
    let mut pieces = Pieces::Nothing;
    while let Some(data) = coming.next().await.map_err(NoBody::Came)? {
        see(&data);
        pieces = pieces
            .add(data, announced, coming.seen(), limits)
            .await
            .map_err(NoBody::NotSpooled)?;
    }
    Ok(pieces.collected(coming.seen()))
}

enum Pieces {
    Nothing,
    /// One piece, as it came: most bodies are no more.
    One(Bytes),
    Memory(BytesMut),
    Disk(Arc<File>),
}

impl Pieces {
    async fn add(
        self,
        data: Bytes,
        announced: u64,
        seen: u64,
        limits: &BodyLimits<'_>,
    ) -> io::Result<Self> {
        match self {
            Self::Disk(file) => write(file, data, seen).await,
            held if seen > limits.spool_above || announced > limits.spool_above => {
                let folder = limits.folder.to_owned();
                let file = blocking(move || tempfile::tempfile_in(folder)).await?;
                let mut all = held.memory(announced);
                all.extend_from_slice(&data);
                write(Arc::new(file), all.freeze(), seen).await
            }
            Self::Nothing => Ok(Self::One(data)),
            held => {
                let mut all = held.memory(announced);
                all.extend_from_slice(&data);
                Ok(Self::Memory(all))
            }
        }
    }

    fn memory(self, announced: u64) -> BytesMut {
        match self {
            Self::Memory(all) => all,
            Self::One(first) => {
                let announced = usize::try_from(announced).unwrap_or(0).min(1 << 20);
                let mut all = BytesMut::with_capacity(announced.max(first.len() * 2));
                all.extend_from_slice(&first);
                all
            }
            Self::Nothing | Self::Disk(_) => BytesMut::new(),
        }
    }

    fn collected(self, len: u64) -> Collected {
        match self {
            Self::Nothing => Collected::Whole(Bytes::new()),
            Self::One(bytes) => Collected::Whole(bytes),
            Self::Memory(all) => Collected::Whole(all.freeze()),
            Self::Disk(file) => Collected::Spooled {
                file,
                len,
                addition: None,
            },
        }
    }
}

/// Writes `data` as the last of the first `end` bytes.
async fn write(file: Arc<File>, data: Bytes, end: u64) -> io::Result<Pieces> {
    blocking(move || {
        file.write_all_at(&data, end - data.len() as u64)?;
        Ok(Pieces::Disk(file))
    })
    .await
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}
