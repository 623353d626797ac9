//! What is done once and has a whole result: a step, a call, a request that is kept.

use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use onlyonce_core::{
    Head, HeaderBlock, Metered, OnUnknown, OperationId, Refusal, State, Timestamp, UnknownReason,
};
use onlyonce_engine::{
    Begin, Ended, Execution, Frame, Kind, Reader, Refused, RoutePolicy, Start, Ticket, Trouble,
};
use onlyonce_store::Store;

use crate::BoxError;
use crate::caught::{Panicked, caught};
use crate::once::Shared;

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What is to be done, under which key, and what the key allows.
pub(crate) struct Task {
    pub(crate) request: onlyonce_engine::Request,
    pub(crate) policy: RoutePolicy,
}

/// A result as it is recorded.
#[derive(Clone)]
pub(crate) struct Recorded {
    pub(crate) headers: HeaderBlock,
    pub(crate) body: Bytes,
}

impl Recorded {
    /// A result that is JSON, as those of the operations API.
    pub(crate) fn json(body: Vec<u8>) -> Self {
        let kind = [(b"content-type".as_slice(), b"application/json".as_slice())];
        Self {
            headers: HeaderBlock::pack(kind).unwrap_or_default(),
            body: body.into(),
        }
    }

    /// What it says as JSON. Nothing at all is `null`: an operator may settle a step without a body.
    pub(crate) fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        match self.body.is_empty() {
            true => serde_json::from_slice(b"null"),
            false => serde_json::from_slice(&self.body),
        }
    }
}

/// The right to do it.
pub(crate) struct Began {
    pub(crate) ticket: Ticket,
    /// Whether somebody had it before, and nobody can say how far that came.
    pub(crate) resumed: bool,
}

/// What doing it came to.
pub(crate) struct Came {
    pub(crate) result: Result<Recorded, Undone>,
    pub(crate) metered: Option<Metered>,
}

/// Why there is no result.
pub(crate) struct Undone {
    /// `None` where nothing was done.
    pub(crate) lost: Option<UnknownReason>,
    /// In words.
    pub(crate) why: String,
    pub(crate) error: Option<BoxError>,
}

/// Why nobody has a result.
pub(crate) enum NotDone {
    /// The store, or a limit. Nothing was done.
    Trouble(Trouble),
    /// The key stands for something else.
    KeyReused,
    /// Somebody is at it still.
    InFlight,
    /// Nothing was done.
    Released {
        why: Arc<str>,
        error: Option<BoxError>,
    },
    /// Nobody can say.
    Unknown {
        id: Option<OperationId>,
        reason: UnknownReason,
        why: Option<Arc<str>>,
        error: Option<BoxError>,
    },
}

/// What does something, if it is to be done here.
pub(crate) type Work<'a> = Box<dyn FnOnce(Began) -> BoxFuture<'a, Came> + Send + 'a>;

/// An engine, whatever its store.
pub(crate) trait Desk: Send + Sync {
    /// The store's clock.
    fn now(&self) -> Timestamp;

    /// Does `task` by `work` unless it was done; gives what is recorded, durably.
    fn once<'a>(&'a self, task: Task, work: Work<'a>) -> BoxFuture<'a, Result<Recorded, NotDone>>;
}

impl<S: Store> Desk for Shared<S> {
    fn now(&self) -> Timestamp {
        self.engine.store().now()
    }

    fn once<'a>(&'a self, task: Task, work: Work<'a>) -> BoxFuture<'a, Result<Recorded, NotDone>> {
        Box::pin(once(self, task, work))
    }
}

async fn once<S: Store>(
    shared: &Shared<S>,
    task: Task,
    work: Work<'_>,
) -> Result<Recorded, NotDone> {
    loop {
        let begun = shared
            .engine
            .begin(task.request.clone(), &task.policy)
            .await;
        let reader = match begun.map_err(NotDone::Trouble)? {
            Begin::Execute(execution, reader) => {
                let ticket = *reader.ticket();
                drop(reader);
                return execute(shared, execution, ticket, work).await;
            }
            Begin::Refuse(refused) => return Err(refused.into()),
            Begin::Replay(reader) | Begin::Join(reader) => reader,
        };
        match read(reader).await {
            // Whoever was at it is gone, and has not failed: where that is allowed, it is ours now.
            Err(NotDone::Unknown { reason, .. })
                if owner_is_gone(reason)
                    && task.policy.decision.on_unknown != OnUnknown::Report => {}
            read => return read,
        }
    }
}

/// Whether the outcome is unknown for no other reason than that its owner is not there any more.
pub(crate) fn owner_is_gone(reason: UnknownReason) -> bool {
    use UnknownReason::{LeasePassed, OwnerDied, ShutDown};
    matches!(reason, OwnerDied | LeasePassed | ShutDown)
}

impl From<Refused> for NotDone {
    fn from(Refused { refusal, ticket }: Refused) -> Self {
        match refusal {
            Refusal::KeyReused => Self::KeyReused,
            Refusal::InFlight => Self::InFlight,
            Refusal::Unknown(reason) => Self::Unknown {
                id: ticket.map(|ticket| ticket.id),
                reason,
                why: None,
                error: None,
            },
        }
    }
}

/// The whole of a recording.
pub(crate) async fn read<S: Store>(mut reader: Reader<S>) -> Result<Recorded, NotDone> {
    let id = Some(reader.ticket().id);
    let unknown = |reason, reader: &Reader<S>| NotDone::Unknown {
        id,
        reason,
        why: reader.why(),
        error: None,
    };
    let released = |why| NotDone::Released { why, error: None };
    let head = match reader.start().await {
        Start::Response {
            head,
            kind: Kind::Executed,
        } => head,
        Start::Response { .. } => return Err(released("it said that nothing ran".into())),
        Start::NotSent(why) => return Err(released(why)),
        Start::Unknown(reason) => return Err(unknown(reason, &reader)),
        Start::Timeout => return Err(NotDone::InFlight),
    };
    let mut body = BytesMut::new();
    while let Some(frame) = reader.next().await {
        match frame {
            Ok(Frame::Data(bytes)) => body.extend_from_slice(&bytes),
            Ok(Frame::Trailers(_)) => {}
            Err(broken) => return Err(unknown(broken.0, &reader)),
        }
    }
    Ok(Recorded {
        headers: head.headers,
        body: body.freeze(),
    })
}

async fn execute<S: Store>(
    shared: &Shared<S>,
    mut execution: Execution<S>,
    ticket: Ticket,
    work: Work<'_>,
) -> Result<Recorded, NotDone> {
    let resumed = is_resend(&execution);
    let (id, fate) = (execution.id(), execution.fate());
    let unknown = |reason, why, error| NotDone::Unknown {
        id: Some(id),
        reason,
        why,
        error,
    };
    // To write the claim takes its time, and a process can be stopped at any place.
    let came = match execution.may_send() {
        false => Ok(Came::nothing("the process stood still for too long")),
        true => {
            let mut stopping = shared.stopping();
            let work = caught(|| work(Began { ticket, resumed }));
            tokio::select! {
                biased;
                came = work => came,
                // Its outcome is written already.
                () = stopping.stopped() => {
                    return Err(unknown(UnknownReason::ShutDown, None, None));
                }
            }
        }
    };
    let Came { result, metered } = came.unwrap_or_else(|Panicked| Came::panicked());
    if let Some(metered) = metered {
        execution.meter(metered);
    }
    let undone = match result {
        Ok(recorded) => {
            let head = Head {
                status: 200,
                headers: recorded.headers.clone(),
            };
            let body = recorded.body.clone();
            let settled = execution
                .respond_whole(head, body, HeaderBlock::default())
                .await;
            let reason = match fate.ended() {
                Some(Ended::Completed) => return Ok(recorded),
                Some(Ended::Unknown(reason)) => reason,
                Some(Ended::Released) | None => UnknownReason::NotRecorded,
            };
            let why = settled.err().map(|error| error.to_string().into());
            return Err(unknown(reason, why, None));
        }
        Err(undone) => undone,
    };
    let Undone { lost, why, error } = undone;
    let settled = match lost {
        None => execution.not_sent(&why).await,
        Some(reason) => {
            execution.explain(&why);
            execution.lose(reason).await
        }
    };
    if let Err(error) = settled {
        tracing::warn!(operation = %id, %error, "an outcome was not recorded");
    }
    let why = why.into();
    Err(match lost {
        None => NotDone::Released { why, error },
        Some(reason) => unknown(reason, Some(why), error),
    })
}

/// Whether `execution` follows one of which nobody can say how far it came.
pub(crate) fn is_resend<S: Store>(execution: &Execution<S>) -> bool {
    matches!(
        execution.claimed().state,
        State::InFlight {
            resend_of: Some(_),
            ..
        }
    )
}

impl Came {
    pub(crate) fn nothing(why: &str) -> Self {
        Self {
            result: Err(Undone {
                lost: None,
                why: why.to_owned(),
                error: None,
            }),
            metered: None,
        }
    }

    pub(crate) fn panicked() -> Self {
        Self {
            result: Err(Undone {
                lost: Some(UnknownReason::HandlerFailed),
                why: "it panicked".to_owned(),
                error: None,
            }),
            metered: None,
        }
    }
}
