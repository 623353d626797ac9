//! Showing the recordings that other gateways follow.

use std::{
    collections::HashSet,
    future::poll_fn,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{StreamExt, stream::FuturesUnordered};
use onlyonce_core::{Address, Head, HeaderBlock};
use onlyonce_store::{Seen, Shown, Store};

use crate::{
    Kind, Shared,
    live::{End, Live, LiveState, Phase, Waiting},
    recording::Found,
};

/// How long nobody is asked who follows, after the store could not tell.
const PAUSE: Duration = Duration::from_millis(500);

impl<S: Store> Shared<S> {
    /// Shows what is followed, until it is dropped.
    pub(crate) async fn show_followed(self: &Arc<Self>) {
        let mut shown = HashSet::new();
        let mut showing = FuturesUnordered::new();
        // Kept from round to round: dropped halfway, it may have taken requests out of the store.
        let mut asking = pin!(self.store.followed(self.owner));
        loop {
            let followed = tokio::select! {
                biased;
                followed = &mut asking => followed,
                Some(address) = showing.next() => {
                    shown.remove(&address);
                    self.followed.store(shown.len(), Ordering::Relaxed);
                    continue;
                }
            };
            asking.set(self.store.followed(self.owner));
            let addresses = match followed {
                Ok(addresses) => addresses,
                Err(error) => {
                    tracing::debug!(%error, "the store could not say who follows");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            for address in addresses {
                if let Some(live) = self.registry.at(address)
                    && shown.insert(address)
                {
                    showing.push(self.show(live));
                }
            }
            self.followed.store(shown.len(), Ordering::Relaxed);
        }
    }

    /// Shows one recording to its end.
    async fn show(&self, live: Arc<Live>) -> Address {
        let mut viewer = Viewer {
            waiting: Waiting::at(&live),
            seen: Seen::default(),
        };
        loop {
            let Some(shown) = viewer.next().await else {
                return live.address;
            };
            let ended = shown.ended;
            let recording = live
                .state
                .lock()
                .record
                .as_ref()
                .map(|record| record.recording());
            if let Some(recording) = recording
                && let Err(error) = self.store.show(live.address, recording, shown).await
            {
                // Who follows finds it in the store a little later.
                tracing::debug!(%error, "a recording could not be shown");
            }
            if ended {
                return live.address;
            }
        }
    }
}

struct Viewer<'a> {
    waiting: Waiting<'a>,
    seen: Seen,
}

impl Viewer<'_> {
    /// What was not shown yet; `None` where there was no claim.
    async fn next(&mut self) -> Option<Shown> {
        poll_fn(|cx| {
            let waiting = &mut self.waiting;
            let mut state = waiting.live.state.lock();
            if let Phase::Ended(End::NotClaimed(_)) = state.phase {
                return Poll::Ready(None);
            }
            let shown = news(&state, self.seen);
            if !shown.is_news(self.seen) {
                state.wakers.sit(&mut waiting.seat, cx.waker());
                return Poll::Pending;
            }
            self.seen = Seen {
                head: self.seen.head || !shown.head.is_empty(),
                bytes: shown.from + shown.bytes.len() as u64,
            };
            Poll::Ready(Some(shown))
        })
        .await
    }
}

/// What there is to show to those who have seen `seen`. Nobody is shown more than the readers of
/// this process see (I3).
fn news(state: &LiveState, seen: Seen) -> Shown {
    let recording = &state.recording;
    let (visible, all, whole) = match &state.phase {
        Phase::Running => (recording.kind() == Some(Kind::Executed), false, true),
        Phase::Ended(End::Released { whole, .. }) => (true, true, *whole),
        // The record has the rest of what is completed.
        Phase::Claiming | Phase::Ended(_) => (false, false, false),
    };
    let in_chunks = match recording.kind() {
        Some(Kind::Executed) => recording.in_chunks(),
        _ => 0,
    };
    let from = seen.bytes.max(in_chunks);
    let mut shown = Shown {
        from,
        in_chunks,
        ended: matches!(state.phase, Phase::Ended(_)),
        ..Shown::default()
    };
    if !visible {
        return shown;
    }
    if let Some((head, kind)) = &recording.head {
        shown.head = ShownHead {
            head: head.clone(),
            kind: *kind,
            declared: recording.declared(),
            whole,
        }
        .pack();
    }
    let mut bytes = BytesMut::new();
    while let Found::Bytes(piece) = recording.at(from + bytes.len() as u64, all) {
        bytes.put(piece);
    }
    shown.bytes = bytes.freeze();
    shown
}

/// The head of a recording, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShownHead {
    pub(crate) head: Head,
    pub(crate) kind: Kind,
    /// How long the whole body will be, where that is known.
    pub(crate) declared: Option<u64>,
    /// Of a released answer: whether its body came whole.
    pub(crate) whole: bool,
}

const RELEASED: u8 = 1;
const WHOLE: u8 = 2;
const DECLARED: u8 = 4;

impl ShownHead {
    /// Flags (u8), status (u16), declared length (u64, 0 where there is none), all big endian; then
    /// the header block.
    fn pack(&self) -> Bytes {
        let fields = self.head.headers.as_bytes();
        let mut packed = BytesMut::with_capacity(11 + fields.len());
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        packed.put_u8(
            flag(self.kind == Kind::Released, RELEASED)
                | flag(self.whole, WHOLE)
                | flag(self.declared.is_some(), DECLARED),
        );
        packed.put_u16(self.head.status);
        packed.put_u64(self.declared.unwrap_or_default());
        packed.put_slice(fields);
        packed.freeze()
    }

    /// Takes it back; `None` where it is none.
    pub(crate) fn unpack(mut packed: Bytes) -> Option<Self> {
        let flags = packed.try_get_u8().ok()?;
        let status = packed.try_get_u16().ok()?;
        let declared = packed.try_get_u64().ok()?;
        Some(Self {
            head: Head {
                status,
                headers: HeaderBlock::from_bytes(packed).ok()?,
            },
            kind: match flags & RELEASED {
                0 => Kind::Executed,
                _ => Kind::Released,
            },
            declared: (flags & DECLARED != 0).then_some(declared),
            whole: flags & WHOLE != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_head_is_unpacked_as_it_was_packed() {
        let fields = [(b"a".as_slice(), b"1".as_slice()), (b"b", b"")];
        for (kind, declared, whole) in [
            (Kind::Executed, None, true),
            (Kind::Executed, Some(0), true),
            (Kind::Released, Some(7), false),
        ] {
            let shown = ShownHead {
                head: Head {
                    status: 429,
                    headers: HeaderBlock::pack(fields).expect("short fields"),
                },
                kind,
                declared,
                whole,
            };
            assert_eq!(ShownHead::unpack(shown.pack()), Some(shown.clone()));
            assert_eq!(ShownHead::unpack(shown.pack().slice(..12)), None);
        }
    }
}
