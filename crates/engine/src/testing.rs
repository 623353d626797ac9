//! What the tests of several modules begin with.

use std::{num::NonZero, time::Duration};

use onlyonce_core::{
    Fingerprint, Key, OperationId, OwnerId, Policy, RequestLine, Scope, transition,
};

use crate::{Request, RoutePolicy};

const HOUR: Duration = Duration::from_secs(3_600);

pub(crate) fn request() -> Request {
    Request {
        scope: Scope {
            tenant: "acme".into(),
            namespace: "charges".into(),
        },
        key: Key::new("k").expect("a key"),
        fingerprint: Fingerprint::from_bytes([7; 32]),
        line: RequestLine::default(),
        peer: "".into(),
        asked_model: "".into(),
        sdk_retry_count: None,
        trace: None,
    }
}

pub(crate) fn policy() -> RoutePolicy {
    RoutePolicy {
        decision: Policy::default(),
        window: HOUR,
        join_timeout: HOUR,
    }
}

/// The claim of [`request`] for operation `number` by `owner`.
pub(crate) fn claim(number: u8, owner: u64) -> transition::Claim {
    let request = request();
    transition::Claim {
        id: OperationId::from_bytes([number; 16]),
        scope: request.scope,
        key: request.key,
        fingerprint: request.fingerprint,
        request: request.line,
        owner: OwnerId::new(owner),
        raise: NonZero::<u32>::MIN,
    }
}
