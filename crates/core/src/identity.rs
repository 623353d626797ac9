//! Who and what: scopes, operations, owners, epochs, fingerprints, addresses.

use std::{fmt, num::NonZero, str::FromStr};

use uuid::Uuid;

use crate::Timestamp;

/// Where a key is unique: a tenant and a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope {
    /// A configured tenant's name, or the keyed hash of a credential.
    pub tenant: Box<str>,
    /// An upstream's name unless configured otherwise.
    pub namespace: Box<str>,
}

impl Scope {
    /// What the namespace of steps ends with, and no other namespace.
    pub const STEPS: &'static str = "/steps";

    /// Where the steps of operations of this scope are: operations of their own, whose keys are an
    /// operation's id and a step's name.
    pub fn of_steps(&self) -> Self {
        Self {
            tenant: self.tenant.clone(),
            namespace: format!("{}{}", self.namespace, Self::STEPS).into(),
        }
    }

    /// Whether what is here are steps of other operations.
    pub fn has_steps(&self) -> bool {
        self.namespace.ends_with(Self::STEPS)
    }
}

/// The identity of an operation: a UUIDv7 (RFC 9562), written `op_<uuid>`.
///
/// Its first 48 bits are the milliseconds at which the key was first claimed, so identities sort
/// by age.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationId(Uuid);

/// A text that is not `op_<uuid>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an operation's id looks like op_019a1b2c-..., and this does not")]
pub struct NotAnOperationId;

impl OperationId {
    /// The identity made of a moment (milliseconds since the Unix epoch) and ten random bytes.
    pub fn new(unix_millis: u64, random: &[u8; 10]) -> Self {
        Self(uuid::Builder::from_unix_timestamp_millis(unix_millis, random).into_uuid())
    }

    /// The identity whose sixteen bytes are `bytes`.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The sixteen bytes, most significant first.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// When the key was first claimed: the first 48 bits (RFC 9562, 5.7).
    pub const fn first_claimed(&self) -> Timestamp {
        let [a, b, c, d, e, f, ..] = *self.as_bytes();
        Timestamp::from_millis(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op_{}", self.0.hyphenated())
    }
}

impl fmt::Debug for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for OperationId {
    type Err = NotAnOperationId;

    fn from_str(text: &str) -> Result<Self, NotAnOperationId> {
        let uuid = text.strip_prefix("op_").ok_or(NotAnOperationId)?;
        Uuid::try_parse(uuid)
            .map(Self)
            .map_err(|_| NotAnOperationId)
    }
}

/// Who executes: one life of one gateway process, whose number is drawn at random at its start; or a
/// worker outside of all of them, whose claim any gateway may renew and settle for it.
///
/// The first two bits tell: `01` is a worker's, and no process's. (A process takes the lower half of a
/// UUIDv7, which begins with `10`.)
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerId(u64);

const KIND: u64 = 0b11 << 62;
const WORKER: u64 = 0b01 << 62;

impl OwnerId {
    /// The owner with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The worker that drew this number; its first two bits do not count.
    pub const fn worker(number: u64) -> Self {
        Self(number & !KIND | WORKER)
    }

    /// Whether it is a worker. Nothing that becomes of a gateway says anything of it: only the passing of
    /// its lease does.
    pub const fn is_worker(self) -> bool {
        self.0 & KIND == WORKER
    }

    /// The number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "own_{:016x}", self.0)
    }
}

/// The fence: every write of a record is a compare-and-set on it and raises it (I9).
///
/// A claim over a record, a renewal and an expiry raise it by a number that is drawn at random where the
/// store may forget, every other write by one. A store whose failover forgets a write may be given
/// another in its place: those two do not know of each other, and must not carry one fence. An owner's
/// completion, loss or release is its last word, so that what stands in its place is one of those three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch of a record that does not exist.
    pub const ZERO: Self = Self(0);

    /// The epoch with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The epoch of the next write that does not draw its own.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The epoch of a write that draws by how much it raises this one.
    ///
    /// From 2^62 on it rises by one, so that it stays a positive number of 64 bits with a sign,
    /// whatever is written after that.
    pub fn raised(self, raise: NonZero<u32>) -> Self {
        const ALMOST_USED_UP: u64 = 1 << 62;
        match self.0 < ALMOST_USED_UP {
            true => Self(self.0 + u64::from(raise.get())),
            false => self.next(),
        }
    }
}

/// What a writer must still be true about a record for its write to count.
///
/// The identity is part of it: an expired record may be followed by another operation under the
/// same key, whose epochs start again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The operation that the writer means.
    pub id: OperationId,
    /// The epoch that the writer saw last.
    pub epoch: Epoch,
}

/// The name of a recording: the operation, and the claim whose execution it is of.
///
/// Every claim starts a recording of its own, so nobody who executed an operation before writes into
/// the recording of who executes it now (I9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordingId {
    /// The operation.
    pub operation: OperationId,
    /// The epoch at which the claim was made.
    pub claim: Epoch,
}

impl fmt::Display for RecordingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of claim {}", self.operation, self.claim.number())
    }
}

/// The keyed hash of what makes two requests the same request.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint whose bytes are `bytes`.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

/// Where a record is kept: a keyed hash of scope and key, so that a store holds no key in clear.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address([u8; 16]);

impl Address {
    /// The address whose bytes are `bytes`.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({:032x})", u128::from_be_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_knows_when_its_key_was_first_claimed() {
        let id = OperationId::new(1_767_225_600_000, &[255; 10]);
        let claimed = Timestamp::from_millis(1_767_225_600_000);
        assert_eq!(id.first_claimed(), claimed);
    }

    #[test]
    fn a_scope_of_steps_says_so() {
        let scope = Scope {
            tenant: "acme".into(),
            namespace: "charges".into(),
        };
        assert!(!scope.has_steps());
        let steps = scope.of_steps();
        assert!(steps.has_steps());
        assert_eq!(
            (&*steps.tenant, &*steps.namespace),
            ("acme", "charges/steps")
        );
    }

    #[test]
    fn a_worker_is_told_from_a_process_by_its_first_two_bits() {
        for number in [0, 7, u64::MAX, 0b10 << 62 | 7] {
            let worker = OwnerId::worker(number);
            assert!(worker.is_worker());
            assert_eq!(worker.number(), number & (u64::MAX >> 2) | 1 << 62);
        }
        // The lower half of a UUIDv7 begins with `10`.
        for first in [0b00, 0b10, 0b11] {
            assert!(!OwnerId::new(first << 62 | 7).is_worker());
        }
    }

    #[test]
    fn identities_are_written_as_logs_show_them() {
        let id = OperationId::from_bytes([0x1a; 16]);
        let text = "op_1a1a1a1a-1a1a-1a1a-1a1a-1a1a1a1a1a1a";
        assert_eq!(
            (id.to_string(), format!("{id:?}")),
            (text.into(), text.into())
        );
        assert_eq!(text.parse(), Ok(id));
        let recording = RecordingId {
            operation: id,
            claim: Epoch::new(3),
        };
        assert_eq!(recording.to_string(), format!("{text} of claim 3"));
        assert_eq!(format!("{:?}", OwnerId::new(10)), "own_000000000000000a");
        let fingerprint = Fingerprint::from_bytes([0xab; 32]);
        assert_eq!(format!("{fingerprint:?}"), "Fingerprint(abab..)");
        let address = Address::from_bytes([0x0c; 16]);
        assert_eq!(
            format!("{address:?}"),
            format!("Address({})", "0c".repeat(16))
        );
    }

    #[test]
    fn i09_an_epoch_rises_by_what_was_drawn_and_by_one_where_it_is_almost_used_up() {
        let raise = NonZero::new(5).expect("not zero");
        assert_eq!(Epoch::new(2).raised(raise).number(), 7);
        let almost = 1 << 62;
        assert_eq!(Epoch::new(almost - 1).raised(raise).number(), almost + 4);
        assert_eq!(Epoch::new(almost).raised(raise).number(), almost + 1);
    }
}
