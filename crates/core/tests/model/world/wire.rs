//! Writes whose answers come later: those of one gateway in transactions of many (PostgreSQL), or each
//! by itself (Redis).

use std::time::Duration;

use super::{Ack, Kept, Landed, Pending, Source, World, is_completed};
use crate::reference::Version;

/// By what a writer asks for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// An answer that nobody has heard yet.
pub(super) struct Reply {
    ticket: Option<Ticket>,
    gateway: usize,
    key: usize,
    ack: Ack,
    /// What its gateway may keep in memory.
    became: Option<(Version, u64)>,
    since: Duration,
}

impl World {
    pub(super) fn send(&mut self, mut pending: Pending) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        pending.ticket = Some(ticket);
        self.wire.push(pending);
        ticket
    }

    /// What a writer hears that waits; `None` where it waits on.
    pub fn hear(&mut self, ticket: Ticket) -> Option<Ack> {
        let heard = self
            .replies
            .iter()
            .position(|reply| reply.ticket == Some(ticket));
        if let Some(index) = heard {
            let reply = self.replies.swap_remove(index);
            return Some(self.take(reply));
        }
        let index = self
            .wire
            .iter()
            .position(|pending| pending.ticket == Some(ticket))
            .expect("it is on its way, or answered");
        if !self.faults || !self.random.chance(8) {
            return None;
        }
        // It takes too long. It is left alone, and not cancelled.
        let pending = self.wire.remove(index);
        self.late.push(vec![pending]);
        self.coverage.count("a writer does not wait any longer");
        self.note(|| format!("  {ticket:?} takes too long"));
        Some(Ack::InDoubt)
    }

    pub(super) fn take(&mut self, reply: Reply) -> Ack {
        let line = &mut self.lines[reply.gateway];
        if let Some((version, changes)) = reply.became
            && line.changes[reply.key] == changes
        {
            line.memory[reply.key] = Some(Kept {
                version,
                confirmed_at: reply.since,
                source: Source::Memory,
            });
        }
        reply.ack
    }

    /// The answer to a write that has landed.
    pub(super) fn answer(&mut self, pending: &Pending, landed: Landed) -> Reply {
        let (ack, version) = match landed {
            Landed::Written(version) => {
                let commit = self.commits.last_mut().expect("it was written");
                commit.acknowledged = true;
                (Ack::Done, Some(version))
            }
            Landed::Stands(version) => (Ack::Done, Some(version)),
            Landed::Fenced => (Ack::Lost, None),
            Landed::Refused => (Ack::Unavailable, None),
        };
        let completes = self.model.shared && is_completed(Some(&pending.record));
        Reply {
            ticket: pending.ticket,
            gateway: pending.gateway,
            key: pending.key,
            ack,
            became: version
                .filter(|_| completes)
                .map(|version| (version, pending.changes)),
            since: pending.since,
        }
    }

    fn in_doubt(&mut self, pending: &Pending) {
        self.replies.push(Reply {
            ticket: pending.ticket,
            gateway: pending.gateway,
            key: pending.key,
            ack: Ack::InDoubt,
            became: None,
            since: pending.since,
        });
    }

    /// The next writes of some gateway reach the server.
    pub fn serve(&mut self) {
        if self.wire.is_empty() || self.standby_away {
            return;
        }
        let at = self.random.below(self.wire.len());
        if self.lines[self.wire[at].gateway].cut {
            return;
        }
        let batch = match self.model.shared {
            true => self.batch(at),
            // The disk takes them in order, as many as wait at that moment.
            false => self.wire.drain(..=at).collect(),
        };
        if batch.len() > 1 {
            self.coverage.count("a batch holds several writes");
        }
        let roll = match self.faults {
            true if self.model.shared => self.random.below(100),
            true => self.random.below(75),
            false => 0,
        };
        match roll {
            0..70 => self.commits(&batch, true),
            70..82 => self.commits(&batch, false),
            82..90 => self.rolls_back(&batch),
            90..96 => {
                self.note(|| format!("  a batch of {} is refused", batch.len()));
                for pending in &batch {
                    let reply = self.answer(pending, Landed::Refused);
                    self.replies.push(reply);
                }
            }
            _ if self.model.tokens => {
                // Something between sends it twice.
                self.commits(&batch, true);
                self.late.push(batch);
            }
            _ => {
                for pending in &batch {
                    self.in_doubt(pending);
                }
                self.late.push(batch);
            }
        }
    }

    /// The writes that share a transaction with number `at`: of one gateway and one kind, and no key
    /// twice.
    pub(super) fn batch(&mut self, at: usize) -> Vec<Pending> {
        let mut batch = vec![self.wire.remove(at)];
        let mut index = 0;
        while self.model.batches && index < self.wire.len() {
            let next = &self.wire[index];
            let joins = next.gateway == batch[0].gateway
                && next.base.is_none() == batch[0].base.is_none()
                && batch.iter().all(|one| one.key != next.key);
            match joins {
                true => batch.push(self.wire.remove(index)),
                false => index += 1,
            }
        }
        batch
    }

    pub(super) fn commits(&mut self, batch: &[Pending], is_heard: bool) {
        for pending in batch {
            let landed = self.land(pending);
            let (ticket, by) = (pending.ticket, pending.by);
            self.note(|| format!("  {ticket:?} {landed:?}, heard {is_heard}: {by:?}"));
            match is_heard {
                true => {
                    let reply = self.answer(pending, landed);
                    self.replies.push(reply);
                }
                false => self.in_doubt(pending),
            }
        }
    }

    pub(super) fn rolls_back(&mut self, batch: &[Pending]) {
        self.coverage.count("a batch is rolled back");
        for pending in batch {
            let ticket = pending.ticket;
            self.note(|| format!("  {ticket:?} is rolled back"));
            self.in_doubt(pending);
        }
    }
}
