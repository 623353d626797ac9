//! The stores that the protocol is run over: what each may do to those who rely on it.

/// What a store may forget of what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgets {
    Nothing,
    /// What could be read, and was never acknowledged to whoever wrote it.
    Unacknowledged,
    /// The latest writes, acknowledged or not.
    TheLatest,
}

/// A store, as its gateways see it.
#[derive(Debug)]
pub struct Model {
    pub name: &'static str,
    /// Behind a network: lines break, replies come late, clocks are followed from afar, and each
    /// gateway keeps completed records in its memory.
    pub shared: bool,
    /// The writes of one gateway share transactions.
    pub batches: bool,
    /// After a promotion, a line may lead to the former primary still.
    pub stale_reads: bool,
    pub forgets: Forgets,
    /// A restart forgets too, and not only a failover.
    pub restart_forgets: bool,
    /// The next server has another clock.
    pub clock_moves: bool,
    /// Some keys may be out of reach while others are not.
    pub slots_fail: bool,
    /// A write may arrive twice, and knows itself again; a claim that arrives too late is not made.
    pub tokens: bool,
    pub situations: &'static [&'static str],
}

const PLAIN: Model = Model {
    name: "embedded",
    shared: false,
    batches: false,
    stale_reads: false,
    forgets: Forgets::Nothing,
    restart_forgets: false,
    clock_moves: false,
    slots_fail: false,
    tokens: false,
    situations: &[
        "a dead owner's claim is marked",
        "a recovery is cut off",
        "the clock was set while nothing ran",
        "the power is cut",
        "the power takes what was not synced",
        "told unknown: the store does not take the outcome",
    ],
};

const POSTGRES: Model = Model {
    name: "postgres",
    shared: true,
    batches: true,
    situations: &["a batch is rolled back"],
    ..PLAIN
};

const REDIS: Model = Model {
    name: "redis",
    shared: true,
    slots_fail: true,
    tokens: true,
    situations: &[
        "a claim comes too late and is not made",
        "a slot is out of reach",
        "a write that came twice knows itself",
    ],
    ..PLAIN
};

/// What a run over a store that forgets acknowledged writes must come through.
const FORGETTING: &[&str] = &[
    "forgotten: an acknowledged claim",
    "forgotten: an acknowledged completion",
    "forgotten: another acknowledged write",
    "forgotten: a claim that is sent afterwards",
    "forgotten: an answer that a client has",
    "forgotten: a key runs again",
];

pub const MODELS: &[Model] = &[
    PLAIN,
    POSTGRES,
    Model {
        name: "postgres-synchronous-standby",
        stale_reads: true,
        situations: &["a batch is rolled back", "a read from a former primary"],
        ..POSTGRES
    },
    // Its primary restarts while the standby is away: what waits for the standby can be read then.
    Model {
        name: "postgres-standby-away",
        forgets: Forgets::Unacknowledged,
        stale_reads: true,
        situations: &[
            "forgotten: a write that was not acknowledged",
            "what waits for a standby can be read",
        ],
        ..POSTGRES
    },
    Model {
        name: "postgres-asynchronous-standby",
        forgets: Forgets::TheLatest,
        stale_reads: true,
        situations: FORGETTING,
        ..POSTGRES
    },
    REDIS,
    Model {
        name: "redis-failover",
        forgets: Forgets::TheLatest,
        clock_moves: true,
        situations: FORGETTING,
        ..REDIS
    },
    Model {
        name: "redis-unsynced",
        forgets: Forgets::TheLatest,
        restart_forgets: true,
        situations: FORGETTING,
        ..REDIS
    },
];
