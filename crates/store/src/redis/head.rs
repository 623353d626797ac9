//! The head of a record: what scripts compare, in the clear.
//!
//! ```text
//! [format u8][state u8][epoch u64][id 16][claim u64][until u64][chunks u32]
//! [tag of the tenant u32][token 8][check 8]
//! ```
//!
//! Integers are big endian. `state` is a digit, `until` the end of the lease or of the window in
//! milliseconds, 0 for never. The token is drawn for every write, so that a script that is run twice
//! knows its own write again. The check is the start of the SHA-1 of all before it, in hexadecimal:
//! the one checksum that scripts can compute.

use aws_lc_rs::digest;
use bytes::{Buf, BufMut};
use onlyonce_core::{
    Address, Epoch, Fence, OperationId, Record, RecordingId, State, StateName, Timestamp,
    transition::Standing,
};

use super::names::Member;

pub const HEAD: usize = 66;
const CHECKED: usize = 58;
const FORMAT: u8 = 1;

/// Scripts count in doubles, which are exact up to here.
const LATEST: u64 = 1 << 52;

/// The head of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub standing: Standing,
    /// When the lease or the window ends, in milliseconds; 0 for never.
    pub until: u64,
    /// Chunks of a finished recording.
    pub chunks: u32,
    /// A short keyed hash, by which lists pass over most of what they do not want.
    pub tenant_tag: u32,
    pub token: [u8; 8],
}

/// Why the bytes of a head cannot be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHead {
    #[error("the head of the record has format {0}, and this program reads up to {FORMAT}")]
    Newer(u8),
    #[error("the head of the record is damaged")]
    Damaged,
}

impl Head {
    pub fn of(record: &Record, tenant_tag: u32, token: [u8; 8]) -> Self {
        let until = record.until().map_or(0, Timestamp::as_millis);
        let chunks = match &record.state {
            State::Completed(completed) => completed.chunks,
            _ => 0,
        };
        Self {
            standing: record.standing(),
            until: until.min(LATEST),
            chunks,
            tenant_tag,
            token,
        }
    }

    pub fn id(&self) -> OperationId {
        self.standing.fence.id
    }

    pub fn recording(&self) -> RecordingId {
        RecordingId {
            operation: self.id(),
            claim: self.standing.claim,
        }
    }

    /// What the indexes hold of the operation.
    pub fn member(&self, address: Address) -> Member {
        Member {
            id: self.id(),
            address,
            tenant_tag: self.tenant_tag,
        }
    }

    /// Whether the record counts at `now`.
    pub fn counts(&self, now: u64) -> bool {
        match self.standing.state {
            StateName::InFlight | StateName::Unknown => true,
            StateName::Completed | StateName::Released => now < self.until,
        }
    }

    pub fn encode(&self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        let mut out = &mut head[..CHECKED];
        out.put_u8(FORMAT);
        out.put_u8(state_digit(self.standing.state));
        out.put_slice(&fence(self.standing.fence));
        out.put_u64(self.standing.claim.number());
        out.put_u64(self.until);
        out.put_u32(self.chunks);
        out.put_u32(self.tenant_tag);
        out.put_slice(&self.token);
        let check = check(&head[..CHECKED]);
        head[CHECKED..].copy_from_slice(&check);
        head
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, BadHead> {
        // A newer format may have any length, but always starts with its number.
        match bytes.first() {
            Some(&format) if format > FORMAT => return Err(BadHead::Newer(format)),
            _ => {}
        }
        let head: &[u8; HEAD] = bytes.try_into().map_err(|_| BadHead::Damaged)?;
        let (mut checked, stated) = head.split_at(CHECKED);
        if stated != check(checked) || checked.get_u8() != FORMAT {
            return Err(BadHead::Damaged);
        }
        let state = state_of(checked.get_u8()).ok_or(BadHead::Damaged)?;
        let epoch = Epoch::new(checked.get_u64());
        let mut id = [0; 16];
        checked.copy_to_slice(&mut id);
        let id = OperationId::from_bytes(id);
        let claim = Epoch::new(checked.get_u64());
        let until = checked.get_u64();
        let chunks = checked.get_u32();
        let tenant_tag = checked.get_u32();
        let mut token = [0; 8];
        checked.copy_to_slice(&mut token);
        Ok(Self {
            standing: Standing {
                fence: Fence { id, epoch },
                claim,
                state,
            },
            until,
            chunks,
            tenant_tag,
            token,
        })
    }
}

/// A fence as it stands in a head.
pub fn fence(fence: Fence) -> [u8; 24] {
    let mut out = [0; 24];
    out[..8].copy_from_slice(&fence.epoch.number().to_be_bytes());
    out[8..].copy_from_slice(fence.id.as_bytes());
    out
}

/// A recording's id as it stands in a head.
pub fn recording(recording: RecordingId) -> [u8; 24] {
    let mut out = [0; 24];
    out[..16].copy_from_slice(recording.operation.as_bytes());
    out[16..].copy_from_slice(&recording.claim.number().to_be_bytes());
    out
}

/// The states from which the drawing has an arrow to `to`, as digits; `0` stands for absent.
pub const fn arrows_to(to: StateName) -> &'static str {
    match to {
        StateName::InFlight => "0134",
        StateName::Completed | StateName::Released => "13",
        StateName::Unknown => "1",
    }
}

const fn state_digit(state: StateName) -> u8 {
    b'0' + state.number()
}

fn state_of(digit: u8) -> Option<StateName> {
    StateName::from_number(digit.checked_sub(b'0')?)
}

fn check(bytes: &[u8]) -> [u8; 8] {
    let sha1 = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes);
    let mut check = [0; 8];
    for (at, digit) in check.iter_mut().enumerate() {
        let half = sha1.as_ref()[at / 2] >> (4 * (1 - at % 2)) & 0xf;
        *digit = b"0123456789abcdef"[usize::from(half)];
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            standing: Standing {
                fence: Fence {
                    id: OperationId::from_bytes([3; 16]),
                    epoch: Epoch::new(7),
                },
                claim: Epoch::new(5),
                state: StateName::Completed,
            },
            until: 1_767_225_600_000,
            chunks: 2,
            tenant_tag: 1,
            token: [9; 8],
        }
    }

    #[test]
    fn a_head_survives_its_bytes() {
        let bytes = head().encode();
        assert_eq!(Head::decode(&bytes), Ok(head()));
        // Where scripts look for them.
        assert_eq!(bytes[2..26], fence(head().standing.fence));
        assert_eq!(bytes[10..34], recording(head().recording()));
    }

    #[test]
    fn i13_no_flipped_bit_goes_unnoticed() {
        let bytes = head().encode();
        for at in 0..HEAD {
            for bit in 0..8 {
                let mut damaged = bytes;
                damaged[at] ^= 1 << bit;
                assert!(Head::decode(&damaged).is_err(), "bit {bit} of byte {at}");
            }
        }
        assert_eq!(Head::decode(&bytes[..HEAD - 1]), Err(BadHead::Damaged));
        assert_eq!(Head::decode(&[]), Err(BadHead::Damaged));
    }

    #[test]
    fn hostile_086_a_newer_head_is_told_apart_from_damage() {
        assert_eq!(Head::decode(&[2; 90]), Err(BadHead::Newer(2)));
    }
}
