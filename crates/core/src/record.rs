//! The stored state of an operation.

use std::{collections::BTreeMap, fmt};

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    Epoch, Fence, Fingerprint, Key, Metered, OperationId, OwnerId, RecordingId, Scope, Timestamp,
    TraceId,
    numbered::numbered,
    planted::{Bug, planted},
    transition::Standing,
};

/// The stored state of an operation.
///
/// It repeats its scope and key, and whoever reads it verifies them (I7). New records are made by
/// the functions of [`transition`](crate::transition) alone; a store only carries them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The operation.
    pub id: OperationId,
    /// Where the key is unique.
    pub scope: Scope,
    /// What the client called the action.
    pub key: Key,
    /// What makes a later request the same request.
    pub fingerprint: Fingerprint,
    /// The fence: one higher with every write.
    pub epoch: Epoch,
    /// The epoch at which the current claim was made. It names the recording.
    pub claim: Epoch,
    /// When the current claim was made.
    pub claimed_at: Timestamp,
    /// What the request was, for people.
    pub request: RequestLine,
    /// Where it stands.
    pub state: State,
    /// What the latest execution used and cost, as far as its answer has told: of a completed record
    /// for good, of an unknown one at least so much. Before that, the model that is asked for, and
    /// nothing else. `None` where nothing is metered.
    pub metered: Option<Box<Metered>>,
    /// Whether it was completed once before, so that the books have its entry: its recording could
    /// not be read since.
    pub entered: bool,
    /// The latest decision of a person about it, if there was one.
    pub ruling: Option<Box<Ruling>>,
}

impl Record {
    /// What a writer who has seen this record must present.
    pub fn fence(&self) -> Fence {
        Fence {
            id: self.id,
            epoch: self.epoch,
        }
    }

    /// The name of the recording.
    pub fn recording(&self) -> RecordingId {
        RecordingId {
            operation: self.id,
            claim: self.claim,
        }
    }

    /// Whether writing this record is what gives an attempt the right to execute; a renewal is not.
    pub fn is_new_claim(&self) -> bool {
        matches!(self.state, State::InFlight { .. }) && self.claim == self.epoch
    }

    /// Where the record stands.
    pub fn standing(&self) -> Standing {
        Standing {
            fence: self.fence(),
            claim: self.claim,
            state: self.state.name(),
        }
    }

    /// The record as it counts once its recording cannot be read (I13): what was answered is lost, so
    /// the outcome is unknown. It keeps its fence, so that it can be resolved.
    pub fn without_recording(self) -> Self {
        let State::Completed(completed) = &self.state else {
            return self;
        };
        Self {
            state: State::Unknown {
                since: completed.completed_at,
                reason: UnknownReason::Unreadable,
            },
            entered: self.entered || self.metered.is_some(),
            ..self
        }
    }

    /// The end of the lease while it is in flight, and else when it [stops to count](Self::expires_at).
    /// `None` for what never ends by itself.
    pub fn until(&self) -> Option<Timestamp> {
        match &self.state {
            State::InFlight { lease_until, .. } => Some(*lease_until),
            _ => self.expires_at(),
        }
    }

    /// When the record stops to count, if it ever does: a completed one at the end of its window,
    /// a released one when it is of no more interest. Never while running, never while unknown.
    pub fn expires_at(&self) -> Option<Timestamp> {
        match &self.state {
            State::Completed(completed) => Some(completed.expires_at),
            State::Released { forget_at, .. } => Some(*forget_at),
            State::InFlight { lease_until, .. } if planted(Bug::RunningExpires) => {
                Some(*lease_until)
            }
            State::InFlight { .. } | State::Unknown { .. } => None,
        }
    }
}

/// What a person decided about an operation whose outcome nobody knew. The state of the record says what
/// it became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// When, on the store's clock.
    pub at: Timestamp,
    /// The name of the token that was used.
    pub who: Box<str>,
    /// Why, in that person's words.
    pub reason: Box<str>,
}

/// What a request was, as far as people want to see it in a list. Holds no credential: a query
/// is not part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestLine {
    /// The name of the route that served it.
    pub route: Box<str>,
    /// Its method.
    pub method: Box<str>,
    /// Its path, without the query.
    pub path: Box<str>,
    /// The trace that it came in, where traces are kept and it came in one.
    pub trace: Option<TraceId>,
}

/// Where a record stands in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// An attempt has the right to execute and is believed to be at it.
    InFlight {
        /// The process, or the worker, that executes.
        owner: OwnerId,
        /// Until when it is believed without renewal.
        lease_until: Timestamp,
        /// Where this is a resend: why nobody can say whether the execution before it ran. Such
        /// a claim is never released, whatever becomes of it, for that is not known to this day
        /// (I10).
        resend_of: Option<UnknownReason>,
    },
    /// The whole response is recorded, durably.
    Completed(Completed),
    /// It may have run, and nobody can say.
    Unknown {
        /// Since when.
        since: Timestamp,
        /// What happened.
        reason: UnknownReason,
    },
    /// Provably nothing ran; the key is free again.
    Released {
        /// Since when.
        since: Timestamp,
        /// How it is known that nothing ran.
        reason: ReleaseReason,
        /// When the trace of it may be dropped.
        forget_at: Timestamp,
    },
}

/// The names of the states, as they appear in columns, metrics and pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateName {
    /// [`State::InFlight`].
    InFlight,
    /// [`State::Completed`].
    Completed,
    /// [`State::Unknown`].
    Unknown,
    /// [`State::Released`].
    Released,
}

impl State {
    /// The state's name.
    pub fn name(&self) -> StateName {
        match self {
            Self::InFlight { .. } => StateName::InFlight,
            Self::Completed(_) => StateName::Completed,
            Self::Unknown { .. } => StateName::Unknown,
            Self::Released { .. } => StateName::Released,
        }
    }
}

impl StateName {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::InFlight,
        Self::Completed,
        Self::Unknown,
        Self::Released,
    ];

    /// The number under which stores keep it; never given to another state.
    pub const fn number(self) -> u8 {
        match self {
            Self::InFlight => 1,
            Self::Completed => 2,
            Self::Unknown => 3,
            Self::Released => 4,
        }
    }

    /// The state with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.number() == number)
    }

    /// `in_flight`, `completed`, `unknown` or `released`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InFlight => "in_flight",
            Self::Completed => "completed",
            Self::Unknown => "unknown",
            Self::Released => "released",
        }
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a completed record knows of its response. The body lies in the recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completed {
    /// When the whole response was recorded.
    pub completed_at: Timestamp,
    /// The end of the window, counted from completion (I11).
    pub expires_at: Timestamp,
    /// Status and headers.
    pub head: Head,
    /// Trailers, in order; usually none.
    pub trailers: HeaderBlock,
    /// Bytes of body in all chunks together.
    pub body_len: u64,
    /// Chunks of the recording, in the store's numbering from 0.
    pub chunks: u32,
}

/// The head of a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Status code.
    pub status: u16,
    /// Headers, in order, with repeats.
    pub headers: HeaderBlock,
}

/// An ordered list of header fields in one block of bytes.
///
/// Layout, repeated: name length (u16, big endian), name, value length (u16, big endian), value.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HeaderBlock(Bytes);

/// Bytes that are not a header block, or fields too long to be in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a block of header fields")]
pub struct NotAHeaderBlock;

impl HeaderBlock {
    /// Packs `fields`; an error when a name or a value is longer than 65,535 bytes.
    pub fn pack<'a>(
        fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self, NotAHeaderBlock> {
        if planted(Bug::HeaderOrderLost) {
            return Self::pack_in_order(fields.into_iter().collect::<BTreeMap<_, _>>());
        }
        Self::pack_in_order(fields)
    }

    fn pack_in_order<'a>(
        fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self, NotAHeaderBlock> {
        let mut block = BytesMut::with_capacity(256);
        for part in fields.into_iter().flat_map(|(name, value)| [name, value]) {
            block.put_u16(u16::try_from(part.len()).map_err(|_| NotAHeaderBlock)?);
            block.put_slice(part);
        }
        Ok(Self(block.freeze()))
    }

    /// Takes packed bytes back, checked.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, NotAHeaderBlock> {
        let block = Self(bytes);
        let mut rest: &[u8] = &block.0;
        while !rest.is_empty() {
            rest = split_part(rest)
                .and_then(|(_, rest)| split_part(rest))
                .ok_or(NotAHeaderBlock)?
                .1;
        }
        Ok(block)
    }

    /// The packed bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The fields, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let (name, after_name) = split_part(rest)?;
            let (value, after_value) = split_part(after_name)?;
            rest = after_value;
            Some((name, value))
        })
    }
}

fn split_part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))
}

impl fmt::Debug for HeaderBlock {
    /// Names only: a value may be a secret of the upstream's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.iter().map(|(name, _)| String::from_utf8_lossy(name)))
            .finish()
    }
}

numbered! {
    /// Why nobody can say whether an operation ran.
    UnknownReason {
        /// The connection to the upstream broke after the first byte of the request was sent.
        Broke = 1, "the connection to the upstream broke after the request was sent";
        /// The upstream did not answer in time.
        TimedOut = 2, "no answer came in time";
        /// The response was cut short, or its framing was wrong.
        Truncated = 3, "the answer broke off before its end";
        /// The response was larger or longer than a limit.
        OverLimit = 4, "the answer went over its limit, limits.response_body";
        /// The process that executed it died.
        OwnerDied = 5, "the process that ran it stopped before the outcome was recorded";
        /// The lease ran out without renewal.
        LeasePassed = 6, "who ran it was not heard of for a whole lease";
        /// The route cancels an execution when its caller leaves.
        Cancelled = 7, "the caller left and the route cancels then";
        /// The stored record cannot be read (I13).
        Unreadable = 8, "the stored record cannot be read";
        /// The response could not be recorded.
        NotRecorded = 9, "the answer could not be recorded";
        /// The gateway was told to stop before the execution ended.
        ShutDown = 10, "the process that ran it was told to stop before the outcome was known";
        /// The upstream's head was malformed or too large.
        BadAnswer = 11, "the upstream's answer was not valid HTTP";
        /// The worker that held the claim said so, or went away in the middle.
        WorkerFailed = 12, "the worker that ran it could not say how it ended";
        /// The handler that executes within the same process failed, or said that it does not know.
        HandlerFailed = 13, "the handler failed, or could not say whether it ran";
        /// One of the steps that its handler is made of may have run, and nobody can say.
        StepUnknown = 14, "one of its steps may have run, and nobody can say";
        /// Its handler stopped between two steps: the next one did not run, or may run again.
        Unfinished = 15, "its handler stopped between two of its steps";
    }
}

numbered! {
    /// How it is known that nothing ran (I10).
    ReleaseReason {
        /// No byte of the request was written.
        NotSent = 1, "the upstream was never reached";
        /// The upstream answered with a status that the route lists as "did not run".
        DidNotRun = 2, "the upstream said that it did not run";
        /// An operator found out that it did not run.
        Operator = 3, "an operator said that it did not run";
        /// The worker that held the claim says that it did nothing.
        Worker = 4, "the worker that held it said that it did not run";
    }
}

/// One inbound request for an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// 1 for the first attempt of the operation, and so on.
    pub number: u32,
    /// When it came, on the store's clock.
    pub at: Timestamp,
    /// Where it came from: an address and a port, or empty.
    pub peer: Box<str>,
    /// What the caller's SDK said of its own retries, where it said something.
    pub sdk_retry_count: Option<u32>,
    /// What it got.
    pub got: Got,
    /// The trace that it is part of, where it was in one.
    pub trace: Option<TraceId>,
}

numbered! {
    /// What an attempt got.
    Got {
        /// It was executed.
        Executed = 1, "executed";
        /// It joined a running execution.
        Joined = 2, "joined";
        /// It was answered from a finished recording.
        Replayed = 3, "replayed";
        /// It was refused.
        Refused = 4, "refused";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_block_keeps_order_and_repeats() {
        let fields: [(&[u8], &[u8]); 3] = [(b"a", b"1"), (b"b", b""), (b"a", b"2")];
        let block = HeaderBlock::pack(fields).expect("short fields");
        let again = HeaderBlock::from_bytes(block.as_bytes().clone()).expect("just packed");
        assert_eq!(again.iter().collect::<Vec<_>>(), fields);
    }

    #[test]
    fn a_cut_header_block_is_refused() {
        let block = HeaderBlock::pack([(b"name".as_slice(), b"value".as_slice())]).expect("short");
        for len in 1..block.as_bytes().len() {
            assert_eq!(
                HeaderBlock::from_bytes(block.as_bytes().slice(..len)),
                Err(NotAHeaderBlock)
            );
        }
    }

    #[test]
    fn states_and_reasons_survive_their_numbers() {
        for state in StateName::ALL {
            assert_eq!(StateName::from_number(state.number()), Some(state));
        }
        assert_eq!(StateName::from_number(0), None);
        for &reason in UnknownReason::ALL {
            assert_eq!(UnknownReason::from_number(reason.number()), Some(reason));
        }
        for &reason in ReleaseReason::ALL {
            assert_eq!(ReleaseReason::from_number(reason.number()), Some(reason));
        }
        for &got in Got::ALL {
            assert_eq!(Got::from_number(got.number()), Some(got));
        }
    }
}
