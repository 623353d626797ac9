//! The codec of records, entries, letters and attempts.

use bytes::{Bytes, BytesMut};
use onlyonce_core::{
    Attempt, Completed, Entry, Epoch, Fingerprint, Got, Head, HeaderBlock, Key, Metered,
    OperationId, OwnerId, Record, ReleaseReason, RequestLine, Scope, State, Timestamp,
    UnknownReason,
};
use onlyonce_store::{books::DeadLetter, codec};

use crate::Target;
use crate::input::Input;

pub(crate) const TARGET: Target = Target {
    name: "records",
    holds: "bytes are a record only if the encoder writes these very bytes for it",
    run,
    seeds,
    words: &["\u{1}", "\0", "op_", "\u{7f}"],
};

fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let kind = input.byte();
    let bytes = Bytes::copy_from_slice(input.0);
    let mut again = BytesMut::new();
    match kind % 4 {
        0 => match codec::decode(bytes.clone()) {
            Ok(record) => codec::encode(&record, &mut again),
            Err(_) => return,
        },
        1 => match codec::decode_entry(bytes.clone()) {
            Ok(entry) => codec::encode_entry(&entry, &mut again),
            Err(_) => return,
        },
        2 => match codec::decode_letter(bytes.clone()) {
            Ok(letter) => codec::encode_letter(&letter, &mut again),
            Err(_) => return,
        },
        _ => {
            let mut rest = bytes.clone();
            let Ok(attempt) = codec::take_attempt(&mut rest) else {
                return;
            };
            codec::encode_attempt(&attempt, &mut again);
            again.extend_from_slice(&rest);
        }
    }
    assert_eq!(
        again, bytes,
        "what was decoded is encoded to the same bytes"
    );
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut add = |kind: u8, encode: &dyn Fn(&mut BytesMut)| {
        let mut out = BytesMut::from(&[kind][..]);
        encode(&mut out);
        seeds.push(out.to_vec());
    };
    for state in states() {
        let record = record(state);
        add(0, &|out| codec::encode(&record, out));
        if let Some(entry) = Entry::of(&record) {
            let letter = DeadLetter {
                entry: entry.clone(),
                since: Timestamp::from_millis(3),
                tries: 7,
                why: "500".into(),
            };
            add(1, &|out| codec::encode_entry(&entry, out));
            add(2, &|out| codec::encode_letter(&letter, out));
        }
    }
    let attempt = Attempt {
        number: 2,
        at: Timestamp::from_millis(1_790_000_000_000),
        peer: "192.0.2.1:4242".into(),
        got: Got::Executed,
        sdk_retry_count: Some(2),
        trace: None,
    };
    add(3, &|out| codec::encode_attempt(&attempt, out));
    seeds
}

fn states() -> [State; 4] {
    let at = Timestamp::from_millis(1_790_000_000_000);
    let fields: [(&[u8], &[u8]); 1] = [(b"content-type", b"text/plain")];
    [
        State::InFlight {
            owner: OwnerId::new(9),
            lease_until: at,
            resend_of: Some(UnknownReason::Broke),
        },
        State::Completed(Completed {
            completed_at: at,
            expires_at: at,
            head: Head {
                status: 200,
                headers: HeaderBlock::pack(fields).unwrap_or_default(),
            },
            trailers: HeaderBlock::default(),
            body_len: 65_540,
            chunks: 2,
        }),
        State::Unknown {
            since: at,
            reason: UnknownReason::TimedOut,
        },
        State::Released {
            since: at,
            reason: ReleaseReason::DidNotRun,
            forget_at: at,
        },
    ]
}

/// A record in this state.
pub(crate) fn record(state: State) -> Record {
    Record {
        id: OperationId::from_bytes([5; 16]),
        scope: Scope {
            tenant: "acme".into(),
            namespace: "charges".into(),
        },
        key: Key::new("order-1").expect("a key"),
        fingerprint: Fingerprint::from_bytes([6; 32]),
        epoch: Epoch::new(3),
        claim: Epoch::new(1),
        claimed_at: Timestamp::from_millis(1_789_999_999_000),
        request: RequestLine {
            route: "charges".into(),
            method: "POST".into(),
            path: "/v1/charges".into(),
            trace: None,
        },
        state,
        metered: Some(Box::new(Metered::default())),
        entered: false,
        ruling: None,
    }
}
