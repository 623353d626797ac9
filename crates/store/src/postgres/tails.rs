//! What gateways show each other of recordings that grow.
//!
//! ```text
//! follows   a row for each recording that an owner is asked to show
//! tails     a row for each recording that is shown: its head, and how far it is
//! frames    its newest bytes, as they were shown
//! ```
//!
//! Whoever waits is registered first (`watch`) and looks then, so that what is shown before is seen
//! at once, and what is shown after it is told of. All that only one of them knows may be lost with
//! a connection; so whoever waits looks now and then all the same.

use std::{collections::HashMap, pin::pin, time::Duration};

use bytes::Bytes;
use onlyonce_core::{Address, OwnerId, RecordingId};
use tokio::time::{Instant, timeout};

use super::{
    Core,
    body::{frame_label, head_label},
    calls::{MOST, Param, addresses, claim, column},
    connection::Session,
    desk::Kind,
    error::Failed,
    values::Id,
    watch::Topic,
};
use crate::{MAX_CHUNK, Seen, Shown, StoreError, parcel, shown::joined};

/// How often who waits looks where notices arrive.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a follower looks where they do not.
const FOLLOW_POLL: Duration = Duration::from_millis(20);
/// How often an owner looks where they do not.
const FOLLOWED_POLL: Duration = Duration::from_millis(50);

impl Core {
    /// See [`Store::follow`](crate::Store::follow).
    pub async fn follow(
        &self,
        address: Address,
        recording: RecordingId,
        owner: OwnerId,
        seen: Seen,
        at_most: Duration,
    ) -> Result<Option<Shown>, StoreError> {
        let deadline = Instant::now() + at_most;
        let waiter = self.watchers.register(Topic::Shown(address));
        let mut is_asked = false;
        loop {
            let mut told = pin!(waiter.told());
            told.as_mut().enable();
            let follow = Follow {
                address,
                recording,
                seen,
            };
            let ask = Ask {
                address,
                recording,
                owner,
            };
            let look = self.desk.follows.ask(follow, self.options.timeout);
            let tail = if !is_asked && seen == Seen::default() {
                // Who has seen nothing is mostly the first to follow it here.
                is_asked = true;
                let ask = self.desk.asks.ask(ask, self.options.timeout);
                let (tail, ()) = tokio::try_join!(look, ask)?;
                tail
            } else {
                let tail = look.await?;
                if tail.is_none() && !is_asked {
                    self.desk.asks.ask(ask, self.options.timeout).await?;
                    is_asked = true;
                }
                tail
            };
            if let Some(tail) = tail {
                let shown = tail.after(self, recording, seen)?;
                if shown.is_news(seen) {
                    return Ok(Some(shown));
                }
            }
            let patience = self.patience(FOLLOW_POLL);
            let left = deadline.saturating_duration_since(Instant::now());
            if timeout(patience.min(left), told).await.is_err() && patience >= left {
                return Ok(None);
            }
        }
    }

    /// See [`Store::followed`](crate::Store::followed).
    pub async fn followed(&self, owner: OwnerId) -> Result<Vec<Address>, StoreError> {
        let waiter = self.watchers.register(Topic::Asked(owner));
        loop {
            self.check_open()?;
            let mut told = pin!(waiter.told());
            told.as_mut().enable();
            // Those are in the table too, and come once more.
            let asked = waiter.take_asked();
            if !asked.is_empty() {
                return Ok(asked);
            }
            let followed = Followed { owner };
            let addresses = self
                .desk
                .followed
                .ask(followed, self.options.timeout)
                .await?;
            if !addresses.is_empty() {
                return Ok(addresses);
            }
            let _ = timeout(self.patience(FOLLOWED_POLL), told).await;
        }
    }

    /// See [`Store::show`](crate::Store::show).
    pub async fn show(
        &self,
        address: Address,
        recording: RecordingId,
        shown: Shown,
    ) -> Result<(), StoreError> {
        self.check_open()?;
        let sealer = self.sealer.as_ref();
        let Shown {
            head,
            mut from,
            mut bytes,
            in_chunks,
            ended,
        } = shown;
        let head = (!head.is_empty())
            .then(|| parcel::close(sealer, &head_label(recording), &head))
            .transpose()?;
        // In pieces no larger than a chunk, which is what a parcel and a row are made for.
        loop {
            let piece = bytes.split_to(bytes.len().min(MAX_CHUNK));
            let to = from + piece.len() as u64;
            let is_last = bytes.is_empty();
            let show = Show {
                address,
                recording,
                head: head.clone(),
                in_chunks: place(in_chunks),
                ended: ended && is_last,
                from: place(from),
                to: place(to),
                bytes: parcel::close(sealer, &frame_label(recording, from), &piece)?,
            };
            self.desk.shows.ask(show, self.options.timeout).await?;
            if is_last {
                return Ok(());
            }
            from = to;
        }
    }

    fn patience(&self, poll: Duration) -> Duration {
        if self.watchers.listens() {
            LOOK_EVERY
        } else {
            poll
        }
    }
}

/// A place in a body, as the server keeps it.
fn place(at: u64) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

/// A look at what is shown of a recording.
pub struct Follow {
    address: Address,
    recording: RecordingId,
    seen: Seen,
}

/// What is shown of a recording, and was not seen yet.
#[derive(Default)]
pub struct Tail {
    head: Option<Bytes>,
    /// With where they begin, in order.
    frames: Vec<(u64, Bytes)>,
    in_chunks: u64,
    ended: bool,
}

impl Tail {
    /// What follows on `seen`, as far as it lies here without a gap.
    fn after(self, core: &Core, recording: RecordingId, seen: Seen) -> Result<Shown, StoreError> {
        let sealer = core.sealer.as_ref();
        let head = self
            .head
            .map(|head| parcel::open(sealer, &head_label(recording), &head))
            .transpose()?;
        let from = seen.bytes.max(self.in_chunks);
        let bytes = joined(from, self.frames, |start, frame| {
            parcel::open(sealer, &frame_label(recording, start), &frame)
        })?;
        Ok(Shown {
            head: head.unwrap_or_default(),
            from,
            bytes,
            in_chunks: self.in_chunks,
            ended: self.ended,
        })
    }
}

impl Kind for Follow {
    /// `None` where nothing of it is shown.
    type Reply = Option<Tail>;

    const MOST: usize = 16;
    const SHARES_ADDRESSES: bool = true;

    fn address(&self) -> Address {
        self.address
    }

    async fn serve(
        session: &mut Session,
        core: &Core,
        calls: &[&Self],
    ) -> Result<Vec<Option<Tail>>, Failed> {
        let places: Vec<i32> = (0..calls.len() as i32).collect();
        let params: [Param; 6] = [
            &addresses(calls),
            &column(calls, |call| Id::from(call.recording.operation)),
            &column(calls, |call| claim(call.recording)),
            &column(calls, |call| call.seen.head),
            &column(calls, |call| place(call.seen.bytes)),
            &places,
        ];
        let rows = session
            .run(&core.prepares, &core.statements.follow, &params)
            .await?;
        let mut tails: Vec<Option<Tail>> = calls.iter().map(|_| None).collect();
        for row in rows {
            let place: i32 = row.try_get(0)?;
            let tail = tails[place as usize].get_or_insert_default();
            tail.in_chunks = row.try_get::<_, i64>(1)? as u64;
            tail.ended = row.try_get(2)?;
            if tail.head.is_none() {
                let head: Option<&[u8]> = row.try_get(3)?;
                tail.head = head.map(Bytes::copy_from_slice);
            }
            let (start, bytes): (Option<i64>, Option<&[u8]>) = (row.try_get(4)?, row.try_get(5)?);
            if let (Some(start), Some(bytes)) = (start, bytes) {
                tail.frames
                    .push((start as u64, Bytes::copy_from_slice(bytes)));
            }
        }
        Ok(tails)
    }
}

/// A wish that an owner show a recording.
pub struct Ask {
    address: Address,
    recording: RecordingId,
    owner: OwnerId,
}

impl Kind for Ask {
    type Reply = ();

    const MOST: usize = MOST;
    const SHARES_ADDRESSES: bool = false;

    fn address(&self) -> Address {
        self.address
    }

    async fn serve(session: &mut Session, core: &Core, calls: &[&Self]) -> Result<Vec<()>, Failed> {
        let params: [Param; 5] = [
            &column(calls, |call| call.owner.number() as i64),
            &addresses(calls),
            &column(calls, |call| Id::from(call.recording.operation)),
            &column(calls, |call| claim(call.recording)),
            &core.given_now(),
        ];
        session
            .run(&core.prepares, &core.statements.ask, &params)
            .await?;
        Ok(vec![(); calls.len()])
    }
}

/// A look at what an owner is asked to show.
pub struct Followed {
    owner: OwnerId,
}

impl Kind for Followed {
    type Reply = Vec<Address>;

    const MOST: usize = MOST;
    const SHARES_ADDRESSES: bool = true;

    fn address(&self) -> Address {
        // It is about no address more than another.
        Address::from_bytes([0; 16])
    }

    async fn serve(
        session: &mut Session,
        core: &Core,
        calls: &[&Self],
    ) -> Result<Vec<Vec<Address>>, Failed> {
        let params: [Param; 1] = [&column(calls, |call| call.owner.number() as i64)];
        let rows = session
            .run(&core.prepares, &core.statements.followed, &params)
            .await?;
        let mut followed: HashMap<i64, Vec<Address>> = HashMap::new();
        for row in rows {
            let address = Address::from(row.try_get::<_, Id>(1)?);
            followed.entry(row.try_get(0)?).or_default().push(address);
        }
        Ok(column(calls, |call| {
            let addresses = followed.get(&(call.owner.number() as i64));
            addresses.cloned().unwrap_or_default()
        }))
    }
}

/// A part of a recording that is shown.
pub struct Show {
    address: Address,
    recording: RecordingId,
    head: Option<Bytes>,
    in_chunks: i64,
    ended: bool,
    from: i64,
    to: i64,
    bytes: Bytes,
}

impl Kind for Show {
    type Reply = ();

    const MOST: usize = MOST;
    const SHARES_ADDRESSES: bool = false;

    fn address(&self) -> Address {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes.len()
    }

    async fn serve(session: &mut Session, core: &Core, calls: &[&Self]) -> Result<Vec<()>, Failed> {
        let params: [Param; 10] = [
            &addresses(calls),
            &column(calls, |call| Id::from(call.recording.operation)),
            &column(calls, |call| claim(call.recording)),
            &column(calls, |call| call.head.as_deref()),
            &column(calls, |call| call.in_chunks),
            &column(calls, |call| call.ended),
            &column(calls, |call| call.from),
            &column(calls, |call| call.to),
            &column(calls, |call| &call.bytes[..]),
            &core.given_now(),
        ];
        session
            .run(&core.prepares, &core.statements.show, &params)
            .await?;
        Ok(vec![(); calls.len()])
    }
}
