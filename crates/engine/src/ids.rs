//! Identities of new operations, and what tells claims over one record apart.

use std::{
    num::NonZero,
    sync::atomic::{AtomicU64, Ordering},
};

use onlyonce_core::{OperationId, OwnerId, Timestamp};

/// A number for this life of the process, or of one engine in it, which no other life has.
pub fn owner() -> OwnerId {
    let random = uuid::Uuid::now_v7().as_u128();
    // The lower half of a UUIDv7 is random but for two bits.
    OwnerId::new(u64::try_from(random & u128::from(u64::MAX)).unwrap_or_default())
}

/// Makes identities out of the store's clock, the owner's random number and a counter: no two of
/// one life are equal, and two lives differ by their owners.
#[derive(Debug)]
pub(crate) struct Ids {
    seed: u64,
    next: AtomicU64,
}

impl Ids {
    pub(crate) fn new(owner: OwnerId) -> Self {
        Self {
            seed: mix(owner.number()),
            next: AtomicU64::new(0),
        }
    }

    pub(crate) fn next(&self, now: Timestamp) -> OperationId {
        let (low, high) = (self.draw(), self.draw());
        let mut random = [0; 10];
        random[..2].copy_from_slice(&high.to_be_bytes()[..2]);
        random[2..].copy_from_slice(&low.to_be_bytes());
        OperationId::new(now.as_millis(), &random)
    }

    /// By how much a write raises the epoch of a record that the store may have forgotten writes of.
    pub(crate) fn raise(&self) -> NonZero<u32> {
        let drawn = (self.draw() >> 32) as u32;
        NonZero::new(drawn).unwrap_or(NonZero::<u32>::MIN)
    }

    /// A number that is hard to meet twice.
    pub(crate) fn draw(&self) -> u64 {
        mix(self
            .seed
            .wrapping_add(self.next.fetch_add(1, Ordering::Relaxed)))
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that spreads every bit.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_of_one_millisecond_and_of_two_lives_differ() {
        let now = Timestamp::from_millis(1);
        let lives = [Ids::new(OwnerId::new(1)), Ids::new(OwnerId::new(2))];
        let ids: HashSet<OperationId> = lives
            .iter()
            .flat_map(|ids| (0..10_000).map(|_| ids.next(now)))
            .collect();
        assert_eq!(ids.len(), 20_000);
    }

    #[test]
    fn raises_of_two_lives_are_spread_over_all_numbers() {
        let lives = [Ids::new(OwnerId::new(1)), Ids::new(OwnerId::new(2))];
        let raises: Vec<u32> = lives
            .iter()
            .flat_map(|ids| (0..10_000).map(|_| ids.raise().get()))
            .collect();
        let different: HashSet<&u32> = raises.iter().collect();
        assert!(different.len() > 19_900, "{} of 20,000", different.len());
        let high = raises.iter().filter(|raise| **raise >= 1 << 31).count();
        assert!((9_500..10_500).contains(&high), "{high} of 20,000");
    }

    #[test]
    fn two_lives_have_two_owners() {
        assert_ne!(owner(), owner());
    }

    /// The first outputs of SplitMix64 from the seed 0, as its authors' code gives them.
    #[test]
    fn numbers_are_mixed_as_published() {
        const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
        let mixed = [0, GAMMA, GAMMA.wrapping_mul(2)].map(mix);
        assert_eq!(
            mixed,
            [
                0xE220_A839_7B1D_CDAF,
                0x6E78_9E6A_A1B9_65F4,
                0x06C4_5D18_8009_454F
            ]
        );
    }
}
