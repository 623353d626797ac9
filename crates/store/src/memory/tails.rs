//! The tails of recordings that are followed, in memory.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    time::Duration,
};

use bytes::Bytes;
use onlyonce_core::{Address, Epoch, OperationId, OwnerId, RecordingId};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::{Seen, Shown, shown::joined};

#[derive(Default)]
pub(super) struct Tails {
    table: Mutex<Table>,
    /// Whoever waits looks again.
    changed: Notify,
}

#[derive(Default)]
struct Table {
    /// What each owner was asked to show, and has not heard of yet.
    asked: HashMap<OwnerId, Vec<Address>>,
    shown: HashMap<Address, Tail>,
}

struct Tail {
    recording: RecordingId,
    head: Bytes,
    /// By where in the body they begin.
    frames: BTreeMap<u64, Bytes>,
    in_chunks: u64,
    ended: bool,
}

impl Tails {
    pub(super) async fn followed(&self, owner: OwnerId) -> Vec<Address> {
        loop {
            let changed = self.changed.notified();
            if let Some(asked) = self.table.lock().asked.remove(&owner) {
                return asked;
            }
            changed.await;
        }
    }

    pub(super) fn show(&self, address: Address, recording: RecordingId, shown: Shown) {
        {
            let mut table = self.table.lock();
            let tail = table
                .shown
                .entry(address)
                .or_insert_with(|| Tail::of(recording));
            // Ids grow with time, and so do the claims of one operation.
            match age(recording).cmp(&age(tail.recording)) {
                Ordering::Less => return,
                Ordering::Equal => {}
                Ordering::Greater => *tail = Tail::of(recording),
            }
            tail.take(shown);
        }
        self.changed.notify_waiters();
    }

    pub(super) async fn follow(
        &self,
        address: Address,
        recording: RecordingId,
        owner: OwnerId,
        seen: Seen,
        at_most: Duration,
    ) -> Option<Shown> {
        let deadline = Instant::now() + at_most;
        self.ask(address, recording, owner);
        loop {
            let changed = self.changed.notified();
            if let Some(shown) = self.news(address, recording, seen) {
                return Some(shown);
            }
            if timeout_at(deadline, changed).await.is_err() {
                return None;
            }
        }
    }

    fn ask(&self, address: Address, recording: RecordingId, owner: OwnerId) {
        {
            let mut table = self.table.lock();
            let is_shown = table.shown.get(&address);
            if is_shown.is_some_and(|tail| tail.recording == recording) {
                return;
            }
            let asked = table.asked.entry(owner).or_default();
            if asked.contains(&address) {
                return;
            }
            asked.push(address);
        }
        self.changed.notify_waiters();
    }

    fn news(&self, address: Address, recording: RecordingId, seen: Seen) -> Option<Shown> {
        let table = self.table.lock();
        let tail = table.shown.get(&address)?;
        let shown = (tail.recording == recording).then(|| tail.after(seen))?;
        shown.is_news(seen).then_some(shown)
    }

    /// Forgets the tails that `stays` does not name.
    pub(super) fn retain(&self, mut stays: impl FnMut(Address, RecordingId) -> bool) {
        let shown = &mut self.table.lock().shown;
        shown.retain(|address, tail| stays(*address, tail.recording));
    }
}

fn age(recording: RecordingId) -> (OperationId, Epoch) {
    (recording.operation, recording.claim)
}

impl Tail {
    fn of(recording: RecordingId) -> Self {
        Self {
            recording,
            head: Bytes::new(),
            frames: BTreeMap::new(),
            in_chunks: 0,
            ended: false,
        }
    }

    fn take(&mut self, shown: Shown) {
        if !shown.head.is_empty() {
            self.head = shown.head;
        }
        if !shown.bytes.is_empty() {
            self.frames.insert(shown.from, shown.bytes);
        }
        self.in_chunks = self.in_chunks.max(shown.in_chunks);
        self.frames = self.frames.split_off(&self.in_chunks);
        self.ended |= shown.ended;
    }

    /// What follows on `seen`, as far as it lies here without a gap.
    fn after(&self, seen: Seen) -> Shown {
        let from = seen.bytes.max(self.in_chunks);
        let frames = self.frames.iter().map(|(&start, frame)| (start, frame));
        let Ok(bytes) = joined(from, frames, |_, frame| Ok::<_, Infallible>(frame.clone()));
        Shown {
            head: self.head.clone(),
            from,
            bytes,
            in_chunks: self.in_chunks,
            ended: self.ended,
        }
    }
}
