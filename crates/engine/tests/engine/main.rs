//! The engine over the store in memory, on a clock that the tests move; and, where a test needs no store
//! that fails on request, over the embedded store too, and over a cache as shared stores have it.

#![allow(missing_docs)]

mod books;
mod claims;
mod elsewhere;
mod failover;
mod in_doubt;
mod join_faults;
mod mirrors;
mod observer;
mod outcomes;
mod recording_faults;
mod shutdown;
mod unseen;
mod upkeep;
mod work_faults;
mod world;

#[path = "../../../core/tests/model/random.rs"]
mod random;

#[path = "."]
mod over_memory {
    pub type World = crate::world::WorldOver<onlyonce_store::MemoryStore>;

    mod joins;
    mod late;
    mod metered;
    mod operator;
    mod recordings;
    mod two_gateways;
    mod work;
}

// The same files as above, over another store.
#[allow(clippy::duplicate_mod)]
#[path = "."]
mod over_embedded {
    pub type World = crate::world::WorldOver<onlyonce_store::EmbeddedStore>;

    mod joins;
    mod late;
    mod metered;
    mod operator;
    mod recordings;
    mod two_gateways;
    mod work;
}

#[allow(clippy::duplicate_mod)]
#[path = "."]
mod over_cached {
    pub type World = crate::world::WorldOver<onlyonce_store::Cached<onlyonce_store::MemoryStore>>;

    mod joins;
    mod late;
    mod metered;
    mod operator;
    mod recordings;
    mod two_gateways;
    mod work;
}
