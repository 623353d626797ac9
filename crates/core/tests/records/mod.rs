//! Records to begin from, made by the protocol.

// Each test file takes what it needs.
#![allow(dead_code)]

use std::{num::NonZero, time::Duration};

use onlyonce_core::{
    Fingerprint, Head, HeaderBlock, Key, OperationId, OwnerId, Record, ReleaseReason, RequestLine,
    Scope, StateName, Timestamp, UnknownReason,
    transition::{self, Claim, Response},
};

pub const LEASE: Duration = Duration::from_secs(30);
pub const WINDOW: Duration = Duration::from_secs(24 * 3_600);
pub const RETENTION: Duration = Duration::from_secs(3_600);
pub const NOW: Timestamp = Timestamp::from_millis(1_767_225_600_000);

pub fn fingerprint(number: u8) -> Fingerprint {
    Fingerprint::from_bytes([number; 32])
}

pub fn claim_by(owner: u64, fp: u8) -> Claim {
    Claim {
        id: OperationId::new(NOW.as_millis(), &[owner as u8; 10]),
        scope: Scope {
            tenant: "acme".into(),
            namespace: "openai".into(),
        },
        key: Key::new("k").expect("a key"),
        fingerprint: fingerprint(fp),
        request: RequestLine::default(),
        owner: OwnerId::new(owner),
        raise: NonZero::<u32>::MIN,
    }
}

pub fn response() -> Response {
    Response {
        head: Head {
            status: 200,
            headers: HeaderBlock::default(),
        },
        trailers: HeaderBlock::default(),
        body_len: 5,
        chunks: 1,
    }
}

pub fn running() -> Record {
    transition::claim(None, claim_by(1, 7), NOW, LEASE).expect("a new key")
}

pub fn completed() -> Record {
    let held = running();
    transition::complete(Some(&held), held.fence(), response(), NOW, WINDOW).expect("it runs")
}

pub fn unknown() -> Record {
    let held = running();
    let reason = UnknownReason::Broke;
    transition::lose(Some(&held), held.fence(), reason, NOW).expect("it runs")
}

pub fn released() -> Record {
    let held = running();
    let reason = ReleaseReason::NotSent;
    transition::release(Some(&held), held.fence(), reason, NOW, RETENTION).expect("it runs")
}

/// A claim over an unknown outcome.
pub fn resent() -> Record {
    transition::claim(Some(&unknown()), claim_by(2, 7), NOW, LEASE).expect("a resend")
}

/// A record in the state `name`.
pub fn record(name: StateName) -> Record {
    match name {
        StateName::InFlight => running(),
        StateName::Completed => completed(),
        StateName::Unknown => unknown(),
        StateName::Released => released(),
    }
}
