//! What the former process left, written down before the store is open.

use std::{num::NonZero, time::Duration};

use onlyonce_core::{
    Address, ReleaseReason, State, StateName, UnknownReason,
    planted::{Bug, planted},
    transition,
};

use super::{
    Inner,
    body::RecordBody,
    index::Place,
    layout::Kind,
    log::NotTaken,
    store::{refused, unread},
};
use crate::{StoreError, Write, corrupt};

impl Inner {
    /// Makes the operations unknown that the former process left in flight, and the completed ones
    /// at the addresses `broken`. What a worker executes was not that process's, and goes on.
    pub fn settle_what_was_left(&self, broken: &[Address]) -> std::io::Result<()> {
        let mut orphans = Vec::new();
        for shard in self.index.shards() {
            let in_flight = shard.in_state(StateName::InFlight);
            orphans.extend(in_flight.map(|(address, slot)| (address, slot.place)));
        }
        let mut last = None;
        for (address, place) in orphans {
            last = self.give_up(address, place)?.or(last);
        }
        for &address in broken {
            last = self.give_recording_up(address)?.or(last);
        }
        let Some(place) = last else { return Ok(()) };
        block_on(self.log.gate.wait(place.end())).map_err(|why| std::io::Error::other(&*why))
    }

    fn give_up(&self, address: Address, place: Place) -> std::io::Result<Option<Place>> {
        let Ok(held) = self.read_record(address, place) else {
            // It stays what it is in the log, and counts as unknown in the meantime (I13).
            self.index.shard(address).spoil(address);
            return Ok(None);
        };
        if matches!(held.record.state, State::InFlight { owner, .. } if owner.is_worker()) {
            return Ok(None);
        }
        let fence = held.record.fence();
        let reason = UnknownReason::OwnerDied;
        let (now, raise) = (self.clock.now(), NonZero::<u32>::MIN);
        let (open, not_sent) = (Some(&held.record), ReleaseReason::NotSent);
        let record = match planted(Bug::RestartReExecution) {
            true => transition::release(open, fence, not_sent, now, Duration::MAX),
            false => transition::expire(open, fence, reason, now, raise),
        };
        let record = record.map_err(std::io::Error::other)?;
        let write = Write {
            record,
            last_chunk: None,
            attempt: None,
        };
        loop {
            let put = self.put_record(address, Some(fence), &write, held.executing.as_ref());
            match put.map_err(std::io::Error::other)? {
                Ok(put) => return Ok(put.map(|(place, _)| place)),
                Err(NotTaken::Wait) => block_on(self.log.room()),
                Err(other) => return Err(std::io::Error::other(refused(other))),
            }
        }
    }

    fn give_recording_up(&self, address: Address) -> std::io::Result<Option<Place>> {
        loop {
            let lost = self.lose_recording(&mut self.index.shard(address), address);
            match lost {
                Ok(place) => return Ok(place),
                Err(NotTaken::Wait) => block_on(self.log.room()),
                Err(other) => return Err(std::io::Error::other(refused(other))),
            }
        }
    }

    /// The record that lies at `place`. Blocks.
    pub fn read_record(&self, address: Address, place: Place) -> Result<RecordBody, StoreError> {
        let segment = self.log.segment(place.segment);
        let segment =
            segment.ok_or_else(|| corrupt(format!("segment {} is gone", place.segment)))?;
        let bytes = segment.read(place).map_err(unread)?;
        RecordBody::decode(self.verify(address, place, Kind::Record, &bytes)?)
    }
}

/// Waits on this thread, which is no runtime's: the store is being opened.
fn block_on<F: Future + Send>(future: F) -> F::Output
where
    F::Output: Send,
{
    // A thread of its own, since the caller may stand on a thread that a runtime has entered.
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .map(|runtime| runtime.block_on(future))
        });
        match waiter.join() {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => panic!("no runtime to wait on: {error}"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
