//! The names of keys, and how they spread over a cluster.
//!
//! ```text
//! PREFIX:{TAG}:ADDRESS      hash: one operation, its recording and its attempts
//! PREFIX:{TAG}:ids          sorted set: a member for every operation, by id
//! PREFIX:{TAG}:leases       sorted set: a member for what is in flight, by the end of its lease
//! PREFIX:{TAG}:ends         sorted set: a member for what will expire, by its end
//! PREFIX:{TAG}:others       sorted set: a member for what is unknown or released, by id
//! PREFIX:{TAG}:ADDRESS:shown     hash: what is shown of a recording that grows
//! PREFIX:{TAG}:ADDRESS:frames    stream: the newest bytes of it, by where they begin
//! PREFIX:{TAG}:asked:OWNER       set: the addresses that an owner is asked to show
//! PREFIX:{TAG}:meta         string, in shard 0 only: the store's secret
//! PREFIX:{TAG}:mark         string: what the store is marked as; mostly not there
//! PREFIX:{TAG}:inbox        stream: entries that came with records, and are not booked yet
//! PREFIX:{TAG}:folded       hash, in shard 0 like all below: up to where each inbox is booked
//! PREFIX:{TAG}:ledger       stream: the booked entries, each under the number of its operation's shard
//! PREFIX:{TAG}:periods:GRAIN         sorted set: the periods that have sums
//! PREFIX:{TAG}:sums:GRAIN:PERIOD     hash: sums by account and count
//! PREFIX:{TAG}:sink:NAME             hash: who holds a sink until when, and how far it is
//! PREFIX:{TAG}:sink:NAME:dead        hash: what was given up, by operation
//! PREFIX:{TAG}:sink:NAME:dead:ids    sorted set: those operations
//! ```
//!
//! A member is `[id 16][address 16][tag of the tenant u32]`. An operation's shard is the first byte of
//! its address, so that a key is in one shard, whoever's it is. Everything of a shard has the same tag, so
//! one slot holds it, and one script writes a record together with its indexes.

use std::fmt::Write;

use onlyonce_core::{Address, OperationId, OwnerId, Timestamp};

use crate::books::Grain;

/// Into how many parts a store is cut: a cluster has at most so many masters that hold something.
pub const SHARDS: usize = 256;

const SLOTS: u16 = 16_384;

/// A shard's number.
pub type Shard = u8;

/// The shard that holds the store's secret.
pub const HOME: Shard = 0;

/// The names under one prefix.
pub struct Names {
    shards: Vec<ShardNames>,
}

struct ShardNames {
    /// `PREFIX:{TAG}:`
    stem: String,
    slot: u16,
}

impl Names {
    pub fn new(prefix: &str) -> Self {
        let shards = tags()
            .into_iter()
            .map(|tag| ShardNames {
                stem: format!("{prefix}:{{{tag}}}:"),
                slot: slot(tag.to_string().as_bytes()),
            })
            .collect();
        Self { shards }
    }

    /// The slot of a cluster that a shard lies in.
    pub fn slot(&self, shard: Shard) -> u16 {
        self.shards[usize::from(shard)].slot
    }

    pub fn record(&self, address: Address) -> String {
        let stem = &self.shards[usize::from(shard_of(address))].stem;
        let mut name = String::with_capacity(stem.len() + 32);
        name.push_str(stem);
        for byte in address.as_bytes() {
            // Writing to a string does not fail.
            let _ = write!(name, "{byte:02x}");
        }
        name
    }

    pub fn shown(&self, address: Address) -> String {
        self.record(address) + ":shown"
    }

    pub fn frames(&self, address: Address) -> String {
        self.record(address) + ":frames"
    }

    /// What an owner is asked for, and the shard where.
    pub fn asked(&self, owner: OwnerId) -> (String, Shard) {
        let shard = owner.number() as Shard;
        let name = format!("asked:{:016x}", owner.number());
        (self.of(shard, &name), shard)
    }

    pub fn ids(&self, shard: Shard) -> String {
        self.of(shard, "ids")
    }

    pub fn leases(&self, shard: Shard) -> String {
        self.of(shard, "leases")
    }

    pub fn ends(&self, shard: Shard) -> String {
        self.of(shard, "ends")
    }

    pub fn others(&self, shard: Shard) -> String {
        self.of(shard, "others")
    }

    pub fn meta(&self) -> String {
        self.of(HOME, "meta")
    }

    pub fn mark(&self, shard: Shard) -> String {
        self.of(shard, "mark")
    }

    pub fn inbox(&self, shard: Shard) -> String {
        self.of(shard, "inbox")
    }

    pub fn folded(&self) -> String {
        self.of(HOME, "folded")
    }

    pub fn ledger(&self) -> String {
        self.of(HOME, "ledger")
    }

    pub fn periods(&self, grain: Grain) -> String {
        self.of(HOME, &format!("periods:{}", name_of(grain)))
    }

    pub fn sums(&self, grain: Grain, period: Timestamp) -> String {
        let name = format!("sums:{}:{}", name_of(grain), period.as_millis());
        self.of(HOME, &name)
    }

    pub fn sink(&self, sink: &str) -> String {
        self.of(HOME, &format!("sink:{sink}"))
    }

    pub fn dead(&self, sink: &str) -> String {
        self.sink(sink) + ":dead"
    }

    pub fn dead_ids(&self, sink: &str) -> String {
        self.sink(sink) + ":dead:ids"
    }

    fn of(&self, shard: Shard, name: &str) -> String {
        let stem = &self.shards[usize::from(shard)].stem;
        format!("{stem}{name}")
    }
}

fn name_of(grain: Grain) -> &'static str {
    match grain {
        Grain::Hour => "hour",
        Grain::Day => "day",
    }
}

/// The shard that an operation is kept in.
pub fn shard_of(address: Address) -> Shard {
    address.as_bytes()[0]
}

/// What the indexes hold of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: OperationId,
    pub address: Address,
    pub tenant_tag: u32,
}

impl Member {
    pub fn encode(&self) -> [u8; 36] {
        let mut member = [0; 36];
        member[..16].copy_from_slice(self.id.as_bytes());
        member[16..32].copy_from_slice(self.address.as_bytes());
        member[32..].copy_from_slice(&self.tenant_tag.to_be_bytes());
        member
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (id, rest) = bytes.split_first_chunk::<16>()?;
        let (address, tag) = rest.split_first_chunk::<16>()?;
        Some(Self {
            id: OperationId::from_bytes(*id),
            address: Address::from_bytes(*address),
            tenant_tag: u32::from_be_bytes(tag.try_into().ok()?),
        })
    }
}

/// One tag for each shard: the smallest number whose slot lies in the shard's part of the slots. So
/// the shards are spread evenly, however many masters share the slots in ranges.
fn tags() -> Vec<u32> {
    let mut tags = vec![None; SHARDS];
    let mut missing = SHARDS;
    for tag in 0.. {
        let part = usize::from(slot(u32::to_string(&tag).as_bytes())) * SHARDS / usize::from(SLOTS);
        if tags[part].is_none() {
            tags[part] = Some(tag);
            missing -= 1;
            if missing == 0 {
                break;
            }
        }
    }
    tags.into_iter().flatten().collect()
}

/// The slot of a tag: CRC16 (XMODEM) modulo 16384, as the cluster specification of Redis has it.
fn slot(tag: &[u8]) -> u16 {
    let crc = tag.iter().fold(0u16, |crc, &byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            }
        })
    });
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        // From the cluster specification, and from CLUSTER KEYSLOT.
        assert_eq!(slot(b"123456789"), 0x31C3);
        assert_eq!(slot(b"foo"), 12_182);
    }

    #[test]
    fn masters_get_even_shares_of_the_shards() {
        let names = Names::new("p");
        for masters in 1..=32_usize {
            let mut shares = vec![0; masters];
            for shard in 0..=u8::MAX {
                shares[usize::from(names.slot(shard)) * masters / usize::from(SLOTS)] += 1;
            }
            let (least, most) = (shares.iter().min(), shares.iter().max());
            let spread = most.expect("a master") - least.expect("a master");
            assert!(spread <= 2, "{masters} masters: {shares:?}");
        }
    }

    #[test]
    fn names_never_change() {
        // Another name for the same thing would be another, empty store.
        let names = Names::new("onlyonce");
        assert_eq!(names.meta(), "onlyonce:{460}:meta");
        assert_eq!(names.ledger(), "onlyonce:{460}:ledger");
        let day = Timestamp::from_millis(86_400_000);
        assert_eq!(
            names.sums(Grain::Day, day),
            "onlyonce:{460}:sums:day:86400000"
        );
        let address = Address::from_bytes([0xab; 16]);
        assert_eq!(
            names.record(address),
            format!("onlyonce:{{74}}:{}", "ab".repeat(16))
        );
    }

    #[test]
    fn a_member_is_taken_apart_again() {
        let member = Member {
            id: OperationId::from_bytes([1; 16]),
            address: Address::from_bytes([2; 16]),
            tenant_tag: 3,
        };
        assert_eq!(Member::decode(&member.encode()), Some(member));
        assert_eq!(Member::decode(&[0; 35]), None);
        assert_eq!(Member::decode(&[0; 37]), None);
    }
}
