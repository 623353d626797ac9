//! Operations that are written beside the engine, in a transaction of whoever executes them.
//!
//! The store's backend says how. Here are the records, which only [`transition`] makes, with the identities
//! of this engine and for its books.

use bytes::Bytes;
use onlyonce_core::{Got, Head, Metered, NotLawful, OwnerId, Record, transition};
use onlyonce_store::{Store, Write};

use crate::{Engine, Request, work::in_one_chunk};

impl<S: Store> Engine<S> {
    /// The claim of `request` over `held`, the record that counts. No process is its owner: where it is
    /// committed and not settled, only the passing of its lease makes it unknown.
    ///
    /// # Errors
    ///
    /// [`NotLawful`] where the decision was another one.
    pub fn draft_claim(
        &self,
        held: Option<&Record>,
        request: &Request,
    ) -> Result<Write, NotLawful> {
        let shared = &self.shared;
        let (now, owner) = (shared.store.now(), OwnerId::worker(shared.ids.draw()));
        let claim = shared.draw_claim(request, owner, now);
        let record = transition::claim(held, claim, now, shared.settings.lease)?;
        let record = shared.asking(record, &request.asked_model);
        let trace = request.trace.map(|_| record.span().trace);
        Ok(Write {
            attempt: Some(request.note(Got::Executed, trace)),
            record,
            last_chunk: None,
        })
    }

    /// What completes `claim`, a record in flight, with a whole answer of one chunk
    /// ([`MAX_CHUNK`](onlyonce_store::MAX_CHUNK)), which answers retries for `window` from now on (I11).
    ///
    /// # Errors
    ///
    /// [`NotLawful`] where it is not in flight.
    pub fn draft_completion(
        &self,
        claim: &Record,
        head: Head,
        body: Bytes,
        window: std::time::Duration,
        metered: Option<Metered>,
    ) -> Result<Write, NotLawful> {
        let (response, last_chunk) = in_one_chunk(head, body);
        let (fence, now) = (claim.fence(), self.shared.store.now());
        let next = transition::complete(Some(claim), fence, response, now, window)?;
        Ok(Write {
            record: self.shared.for_the_books(next, metered.map(Box::new)),
            last_chunk,
            attempt: None,
        })
    }

    /// Notes for the books that `record` was replayed, and what that spared.
    pub fn spare(&self, record: &Record) {
        self.shared.spare_replay(record);
    }
}
