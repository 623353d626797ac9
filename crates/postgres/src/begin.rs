//! The beginning of an operation: look, decide, claim.

use std::sync::Arc;

use bytes::Bytes;
use onlyonce_core::{
    Address, Concurrent, Decision, Fingerprint, Held, Key, OnUnknown, OperationId, Policy, Record,
    Refusal, RequestLine, Scope, State, Timestamp, UnknownReason, decide, view,
};
use onlyonce_engine::Request;
use onlyonce_http::work::{self, METHOD, ROUTE};
use onlyonce_store::postgres::within::Over;
use onlyonce_store::{Store, StoreError, Stored, address};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::transactions::Shared;
use crate::{Connection, DriverError, Error, Operation, Transactions};

/// Looks at a record that others claim and settle all the time, before it is given up.
const MOST_LOOKS: u32 = 8;

/// Which operation it is to be.
#[derive(Debug)]
pub struct Call<'a, I: ?Sized> {
    /// Whose key it is. Keys of two tenants have nothing to do with each other.
    pub tenant: &'a str,
    /// What the caller calls this one action: 1 to 255 visible ASCII characters.
    pub key: &'a str,
    /// What it is, for people: it stands in lists and on the console.
    pub name: &'a str,
    /// What makes another call with the key the same one, compared as canonical JSON.
    pub input: &'a I,
}

/// What is to be done.
#[derive(Debug)]
pub enum Begin {
    /// Execute: nobody else may, as long as this transaction goes on.
    Execute(Operation),
    /// Nothing: it has run, and this was its result.
    Replay(Recorded),
}

/// The result of an operation that has run.
#[derive(Clone, Debug)]
pub struct Recorded {
    id: OperationId,
    expires_at: Timestamp,
    json: Bytes,
}

impl Recorded {
    /// The operation.
    pub fn id(&self) -> OperationId {
        self.id
    }

    /// Until when it answers, on the server's clock.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// The result, as it was written.
    pub fn as_bytes(&self) -> &Bytes {
        &self.json
    }

    /// The result.
    ///
    /// # Errors
    ///
    /// [`Error::Result`] where it is none of this type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.json).map_err(Error::Result)
    }
}

impl Transactions {
    /// Begins an operation in the transaction that runs on `connection`: says whether to execute, and then
    /// nobody else does before that transaction has ended.
    ///
    /// Where another transaction is at this key, it waits for that one's end, for at most
    /// [`Settings::lock_wait`](crate::Settings::lock_wait): if that one is committed, its result is replayed, and
    /// otherwise this one executes.
    ///
    /// # Errors
    ///
    /// [`Error`]; the transaction is to be rolled back then. Under `REPEATABLE READ` and `SERIALIZABLE`,
    /// [`Error::Retry`] where the other one was committed.
    pub async fn begin<C, I>(&self, connection: &mut C, call: Call<'_, I>) -> Result<Begin, Error>
    where
        C: Connection,
        I: Serialize + ?Sized,
    {
        let request = self.shared.request(call)?;
        self.shared.begin(connection, request).await
    }
}

impl Shared {
    fn request<I: Serialize + ?Sized>(&self, call: Call<'_, I>) -> Result<Request, Error> {
        let input = serde_json::to_vec(call.input).map_err(Error::Input)?;
        Ok(Request {
            scope: Scope {
                tenant: call.tenant.into(),
                namespace: self.settings.namespace.clone(),
            },
            key: Key::new(call.key)?,
            fingerprint: work::fingerprint(&self.hash_keys, &input),
            line: RequestLine {
                route: ROUTE.into(),
                method: METHOD.into(),
                path: call.name.into(),
                trace: None,
            },
            peer: Box::default(),
            asked_model: "".into(),
            sdk_retry_count: None,
            trace: None,
        })
    }

    async fn begin<C: Connection>(
        self: &Arc<Self>,
        connection: &mut C,
        request: Request,
    ) -> Result<Begin, Error> {
        let address = address(self.store().secret(), &request.scope, &request.key);
        for _ in 0..MOST_LOOKS {
            let stored = self.look(connection, address, &request).await?;
            match self.decide(stored.as_ref(), &request.fingerprint)? {
                Decided::Replay(recorded) => return Ok(Begin::Replay(recorded)),
                Decided::Claim(over, held) => {
                    let claimed = self.claim(connection, address, &request, over, held);
                    if let Some(operation) = claimed.await? {
                        return Ok(Begin::Execute(operation));
                    }
                }
            }
        }
        let why = "the record changes all the time";
        Err(Error::Retry(DriverError::new(None, why)))
    }

    async fn look<C: Connection>(
        &self,
        connection: &mut C,
        address: Address,
        request: &Request,
    ) -> Result<Option<Stored>, Error> {
        let look = self.store().look_within(address);
        let rows = connection.run(&look).await.map_err(Error::of_ours)?;
        let unreadable = || Error::Unknown(UnknownReason::Unreadable);
        let stored = match self.store().looked_within(address, &rows) {
            // It counts as unknown, never as absent (I13).
            Err(StoreError::Corrupt(_)) => return Err(unreadable()),
            looked => looked?,
        };
        // The record repeats whose it is (I7).
        let is_of_this_key = stored.as_ref().is_none_or(|stored| {
            let record = &stored.record;
            record.scope == request.scope && record.key == request.key
        });
        is_of_this_key.then_some(stored).ok_or_else(unreadable)
    }

    fn decide<'r>(
        &self,
        stored: Option<&'r Stored>,
        presented: &Fingerprint,
    ) -> Result<Decided<'r>, Error> {
        let policy = Policy {
            concurrent: Concurrent::Reject,
            on_unknown: OnUnknown::Report,
        };
        let now = self.store().now();
        let held = view(stored.map(|stored| &*stored.record), now);
        match (decide(held, presented, &policy), held) {
            (Decision::Execute { .. }, Held::Record { record, .. }) => {
                Ok(Decided::Claim(Over::Record(record.fence()), Some(record)))
            }
            (Decision::Execute { .. }, _) => match stored {
                Some(_) => Ok(Decided::Claim(Over::Expired, None)),
                None => Ok(Decided::Claim(Over::Nothing, None)),
            },
            (Decision::Replay, _) => stored
                .and_then(|stored| self.replay(stored))
                .map(Decided::Replay)
                .ok_or(Error::Unknown(UnknownReason::Unreadable)),
            // Upkeep writes it down, in a transaction of its own.
            (Decision::ExpireLease, _) => Err(Error::Unknown(UnknownReason::LeasePassed)),
            (Decision::Refuse(Refusal::KeyReused), _) => Err(Error::KeyReused),
            (Decision::Refuse(Refusal::Unknown(reason)), _) => Err(Error::Unknown(reason)),
            (Decision::Join | Decision::Refuse(Refusal::InFlight), _) => Err(Error::InFlight),
        }
    }

    /// The result of a completed record. One that is no single chunk is none of an operation with such a
    /// fingerprint.
    fn replay(&self, stored: &Stored) -> Option<Recorded> {
        let State::Completed(completed) = &stored.record.state else {
            return None;
        };
        let json = match completed.chunks {
            0 => Bytes::new(),
            1 => stored.last_chunk.clone()?,
            _ => return None,
        };
        self.engine.spare(&stored.record);
        Some(Recorded {
            id: stored.record.id,
            expires_at: completed.expires_at,
            json,
        })
    }

    /// Claims. `None` where somebody else was faster.
    async fn claim<C: Connection>(
        self: &Arc<Self>,
        connection: &mut C,
        address: Address,
        request: &Request,
        over: Over,
        held: Option<&Record>,
    ) -> Result<Option<Operation>, Error> {
        let Ok(write) = self.engine.draft_claim(held, request) else {
            return Ok(None);
        };
        let (record, store) = (write.record.clone(), self.store());
        let claim = store.claim_within(address, over, write, self.settings.lock_wait);
        let claim = claim.await?;
        let rows = connection.run(&claim).await.map_err(Error::of_a_claim)?;
        let claimed = store.claimed_within(over, &record, &rows).await?;
        Ok(claimed.map(|transaction| Operation::new(self.clone(), address, record, transaction)))
    }
}

/// What a look leads to.
enum Decided<'r> {
    Replay(Recorded),
    /// To claim, over this; the record is given where it counts.
    Claim(Over, Option<&'r Record>),
}
