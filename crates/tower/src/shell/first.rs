//! How an answer begins: that of the first caller, and those of all others.

use std::pin::Pin;
use std::sync::Arc;

use http::{Response, StatusCode};
use onlyonce_core::UnknownReason;
use onlyonce_engine::{Kind, Reader, Start, Ticket};
use onlyonce_store::Store;
use parking_lot::Mutex;

use super::attached::Attached;
use super::audience::Follower;
use super::incoming::Original;
use super::recorded;
use super::reply::Reply;

/// What a caller gets.
pub enum Begun {
    /// An answer.
    Answer {
        /// It, without marks.
        response: Response<Reply>,
        /// What it means.
        kind: Kind,
        /// Which attempt of which operation it is for.
        ticket: Ticket,
    },
    /// There is none.
    Nothing {
        /// Why.
        start: Start,
        /// What the owner said of it, where it is unknown.
        why: Option<Arc<str>>,
        /// Which attempt of which operation would have got it.
        ticket: Ticket,
    },
}

/// Lets `driving` execute, which goes on without the caller, and answers the first caller from the
/// recording. `original` is where the execution leaves what no recording holds.
pub async fn executed<S: Store>(
    driving: impl Future<Output = ()> + Send + 'static,
    original: &Mutex<Option<Original>>,
    mut reader: Reader<S>,
    mut follower: Option<Follower>,
) -> Begun {
    let mut driving = Attached::new(driving);
    let start = std::future::poll_fn(|cx| {
        if let Some(follower) = &mut follower {
            follower.look();
        }
        // Its end reaches the caller through the recording.
        let _ = Pin::new(&mut driving).poll(cx);
        reader.poll_start(cx)
    })
    .await;
    drop(driving);
    let original = original.lock().take();
    begun(start, original, reader, follower)
}

/// Answers another caller from the recording.
pub async fn followed<S: Store>(mut reader: Reader<S>, mut follower: Option<Follower>) -> Begun {
    let start = std::future::poll_fn(|cx| {
        if let Some(follower) = &mut follower {
            follower.look();
        }
        reader.poll_start(cx)
    })
    .await;
    begun(start, None, reader, follower)
}

fn begun<S: Store>(
    start: Start,
    original: Option<Original>,
    reader: Reader<S>,
    follower: Option<Follower>,
) -> Begun {
    let ticket = *reader.ticket();
    let Start::Response { head, kind } = start else {
        let why = reader.why();
        return Begun::Nothing { start, why, ticket };
    };
    let response = match original {
        Some(original) => Some(original.response(reader, follower)),
        None => recorded::response(&head, reader, follower),
    };
    match response {
        Some(response) => Begun::Answer {
            response,
            kind,
            ticket,
        },
        None => Begun::Nothing {
            start: Start::Unknown(UnknownReason::Unreadable),
            why: None,
            ticket,
        },
    }
}

impl Original {
    fn response<S: Store>(self, reader: Reader<S>, follower: Option<Follower>) -> Response<Reply> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or_default();
        let body = match self.whole {
            Some(bytes) => Reply::whole(bytes),
            None => recorded::body(&self.headers, reader, follower),
        };
        *response.headers_mut() = self.headers;
        *response.extensions_mut() = self.extensions;
        response.map(|()| body)
    }
}
