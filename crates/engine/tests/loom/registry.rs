//! Who comes while an operation ends.

use std::sync::Arc;

use loom::{
    future::block_on,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
};
use onlyonce_core::{Address, Fingerprint};

use crate::{
    in_every_order,
    live::{End, Entered, Live, Phase, Registry},
    readers::record,
};

const ADDRESS: Address = Address::from_bytes([1; 16]);
const FINGERPRINT: Fingerprint = Fingerprint::from_bytes([2; 32]);

/// The registry, how many attempts own the operation, and whether its record is durable.
struct World {
    registry: Registry,
    owners: AtomicUsize,
    is_durable: AtomicBool,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            registry: Registry::new(),
            owners: AtomicUsize::new(0),
            is_durable: AtomicBool::new(false),
        })
    }

    /// Comes as an attempt, and leaves when it knows the outcome. Gives whether it joined.
    fn attempt(&self) -> bool {
        match self.registry.enter(ADDRESS, FINGERPRINT) {
            Entered::Theirs(live) => {
                let phase = block_on(live.claimed());
                assert!(matches!(phase, Phase::Ended(End::Completed { .. })));
                assert!(self.is_durable.load(Relaxed), "told before it is durable");
                true
            }
            Entered::Mine(live) => {
                self.own(&live);
                false
            }
        }
    }

    /// Executes, unless the store knows the outcome; in the order of `Shared::end`.
    fn own(&self, live: &Arc<Live>) {
        assert_eq!(self.owners.fetch_add(1, Relaxed), 0, "two own it");
        self.is_durable.store(true, Relaxed);
        self.owners.fetch_sub(1, Relaxed);
        self.registry.leave(live);
        live.end(End::Completed { expires_at: None });
    }
}

#[test]
fn who_comes_while_the_owner_leaves_is_told_or_starts_anew() {
    in_every_order(None, || {
        let world = World::new();
        let Entered::Mine(live) = world.registry.enter(ADDRESS, FINGERPRINT) else {
            panic!("nothing stands there yet");
        };
        let joiner = world.clone();
        let joining = thread::spawn(move || {
            if !joiner.attempt() {
                // It has found the registry empty, and so the store knows the outcome.
                assert!(joiner.is_durable.load(Relaxed));
            }
        });
        world.own(&live);
        joining.join().unwrap();
        assert_eq!(world.registry.len(), 0);
    });
}

#[test]
fn of_attempts_at_once_one_owns_it_at_a_time() {
    in_every_order(Some(2), || {
        let world = World::new();
        let others = [(); 2].map(|()| {
            let world = world.clone();
            thread::spawn(move || world.attempt())
        });
        world.attempt();
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(world.registry.len(), 0);
        assert!(world.registry.at(ADDRESS).is_none());
    });
}

#[test]
fn who_left_before_takes_nobody_else_out() {
    in_every_order(None, || {
        let world = World::new();
        let Entered::Mine(first) = world.registry.enter(ADDRESS, FINGERPRINT) else {
            panic!("nothing stands there yet");
        };
        world.registry.leave(&first);
        let other = world.clone();
        let entering = thread::spawn(move || match other.registry.enter(ADDRESS, FINGERPRINT) {
            Entered::Mine(live) => live,
            Entered::Theirs(_) => panic!("nobody is there"),
        });
        world.registry.leave(&first);
        let second = entering.join().unwrap();
        let stands = world.registry.at(ADDRESS).unwrap();
        assert!(Arc::ptr_eq(&stands, &second));
        assert_eq!(world.registry.len(), 1);
    });
}

#[test]
fn who_follows_one_recording_shares_one_mirror() {
    in_every_order(None, || {
        let world = World::new();
        let record = record();
        let (other, same) = (world.clone(), record.clone());
        let following = thread::spawn(move || other.registry.enter_mirror(ADDRESS, &same));
        let (here, is_new) = world.registry.enter_mirror(ADDRESS, &record);
        let (there, is_new_there) = following.join().unwrap();
        assert!(Arc::ptr_eq(&here, &there));
        assert!(is_new != is_new_there, "one of them is to fill it");
        assert_eq!(world.registry.len(), 1);
    });
}
