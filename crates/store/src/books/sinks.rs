//! Who delivers to which sink, how far it is, and what was given up: the state of the sinks in memory.
//!
//! A store in memory needs no more; the embedded one writes each change down before it counts.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
};

use onlyonce_core::{OperationId, OwnerId, Timestamp};

use super::{Advance, Begin, DeadLetter, Held, Hold, Position};

/// All sinks by name.
#[derive(Clone, Default)]
pub(crate) struct Sinks(pub BTreeMap<Box<str>, Sink>);

#[derive(Clone)]
pub(crate) struct Sink {
    /// Who holds it, and until when.
    owner: Option<(OwnerId, Timestamp)>,
    /// The last entry that it had.
    pub position: Option<Position>,
    pub dead: BTreeMap<OperationId, DeadLetter>,
}

impl Sink {
    /// One that nobody holds.
    pub fn at(position: Option<Position>) -> Self {
        Self {
            owner: None,
            position,
            dead: BTreeMap::new(),
        }
    }
}

impl Sinks {
    /// Whether a sink of that name has begun.
    pub fn has(&self, sink: &str) -> bool {
        self.0.contains_key(sink)
    }

    /// Has the sink begin, where it is new; `last` is the last entry that is booked. Says whether it was.
    pub fn begin(&mut self, hold: &Hold, last: Option<Position>) -> bool {
        let is_new = !self.has(&hold.sink);
        if is_new {
            let position = match hold.begin {
                Begin::Start => None,
                Begin::Now => last,
            };
            self.0.insert(hold.sink.clone(), Sink::at(position));
        }
        is_new
    }

    /// Gives a sink that has begun to who asks for it, or leaves it with another owner.
    pub fn hold(&mut self, hold: &Hold, now: Timestamp) -> Option<Held> {
        let sink = self.0.get_mut(&hold.sink)?;
        let is_free = sink
            .owner
            .is_none_or(|(owner, until)| owner == hold.owner || now >= until);
        is_free.then(|| {
            sink.owner = Some((hold.owner, now.after(hold.lease)));
            Held {
                position: sink.position,
            }
        })
    }

    /// Takes a step with a sink; says whether it was taken.
    pub fn advance(&mut self, step: Advance, now: Timestamp) -> bool {
        let holds = |(owner, until)| owner == step.owner && now < until;
        let held = self.0.get_mut(&step.sink);
        let Some(sink) =
            held.filter(|sink| sink.owner.is_some_and(holds) && sink.position == step.from)
        else {
            return false;
        };
        sink.position = Some(step.to);
        let letters = step.bury.into_iter();
        sink.dead
            .extend(letters.map(|letter| (letter.entry.id, letter)));
        true
    }

    pub fn dead(&self, sink: &str, after: Option<OperationId>, limit: usize) -> Vec<DeadLetter> {
        let Some(sink) = self.0.get(sink) else {
            return Vec::new();
        };
        let after = after.map_or(Unbounded, Excluded);
        let dead = sink.dead.range((after, Unbounded));
        dead.take(limit).map(|(_, letter)| letter.clone()).collect()
    }

    /// Says how many there were.
    pub fn forget_dead(&mut self, sink: &str, ids: &[OperationId]) -> u64 {
        let Some(sink) = self.0.get_mut(sink) else {
            return 0;
        };
        let forgotten = ids.iter().filter(|id| sink.dead.remove(id).is_some());
        forgotten.count() as u64
    }
}
