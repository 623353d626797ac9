//! Records as bytes: what goes in comes out, and nothing else is taken.
//!
//! The bytes of a store are checked by a checksum before they come here; what a checksum misses must
//! not panic, must not read beyond its end, and must not be taken for a record that the encoder
//! would not have written.

use bytes::{Bytes, BytesMut};
use onlyonce_core::{
    Attempt, Basis, Completed, Cost, Entry, Epoch, Fingerprint, Got, Head, HeaderBlock, Key,
    Metered, OperationId, OwnerId, Record, ReleaseReason, RequestLine, Ruling, Scope, Source,
    State, Timestamp, TraceId, Unit, UnknownReason, Usd,
};
use onlyonce_store::{
    address,
    books::DeadLetter,
    codec::{self, DecodeError},
};

/// SplitMix64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Small, large and extreme numbers alike.
    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next() >> 60,
            1 => self.next() >> 20,
            2 => self.next(),
            _ => [0, 1, 0x7f, 0x80, u64::MAX, 1 << 63][self.below(6)],
        }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn text(&mut self, longest: usize) -> Box<str> {
        let len = self.below(longest + 1);
        let letters: Vec<char> = "aZ09-_/.é漢\u{0}\n".chars().collect();
        (0..len).map(|_| self.pick(&letters)).collect()
    }

    fn time(&mut self) -> Timestamp {
        Timestamp::from_millis(self.number())
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }

    fn headers(&mut self) -> HeaderBlock {
        let fields: Vec<(Vec<u8>, Vec<u8>)> = (0..self.below(5))
            .map(|_| {
                let name = self.text(20).as_bytes().to_vec();
                (name, self.text(300).as_bytes().to_vec())
            })
            .collect();
        let fields = fields.iter().map(|(name, value)| (&name[..], &value[..]));
        HeaderBlock::pack(fields).expect("short fields")
    }

    fn state(&mut self) -> State {
        match self.below(4) {
            0 => State::InFlight {
                owner: OwnerId::new(self.next()),
                lease_until: self.time(),
                resend_of: match self.below(2) {
                    0 => None,
                    _ => Some(self.pick(UnknownReason::ALL)),
                },
            },
            1 => State::Completed(Completed {
                completed_at: self.time(),
                expires_at: self.time(),
                head: Head {
                    status: self.next() as u16,
                    headers: self.headers(),
                },
                trailers: self.headers(),
                body_len: self.number(),
                chunks: self.number() as u32,
            }),
            2 => State::Unknown {
                since: self.time(),
                reason: self.pick(UnknownReason::ALL),
            },
            _ => State::Released {
                since: self.time(),
                reason: self.pick(ReleaseReason::ALL),
                forget_at: self.time(),
            },
        }
    }

    fn record(&mut self) -> Record {
        let key: String = (0..1 + self.below(Key::MAX_LEN))
            .map(|_| char::from(b'!' + self.below(94) as u8))
            .collect();
        Record {
            id: OperationId::from_bytes(self.array()),
            scope: Scope {
                tenant: self.text(60),
                namespace: self.text(60),
            },
            key: Key::new(&key).expect("visible ASCII"),
            fingerprint: Fingerprint::from_bytes(self.array()),
            epoch: Epoch::new(self.number()),
            claim: Epoch::new(self.number()),
            claimed_at: self.time(),
            request: RequestLine {
                route: self.text(20),
                method: self.text(10),
                path: self.text(300),
                trace: self.trace(),
            },
            state: self.state(),
            metered: match self.below(2) {
                0 => None,
                _ => Some(Box::new(self.metered())),
            },
            entered: self.below(2) == 0,
            ruling: match self.below(2) {
                0 => None,
                _ => Some(Box::new(Ruling {
                    at: self.time(),
                    who: self.text(20),
                    reason: self.text(200),
                })),
            },
        }
    }

    fn entry(&mut self) -> Entry {
        Entry {
            id: OperationId::from_bytes(self.array()),
            at: self.time(),
            claimed_at: self.time(),
            scope: Scope {
                tenant: self.text(60),
                namespace: self.text(60),
            },
            route: self.text(20),
            status: self.next() as u16,
            trace: self.trace(),
            metered: self.metered(),
        }
    }

    fn metered(&mut self) -> Metered {
        Metered {
            provider: self.text(20),
            model: self.text(60),
            request_model: self.text(60),
            response_id: self.text(60),
            operation: self.text(20),
            tier: self.text(10),
            usage: (0..self.below(6))
                .map(|_| (self.pick(Unit::ALL), self.number()))
                .collect(),
            source: self.pick(Source::ALL),
            cost: match self.below(2) {
                0 => None,
                _ => Some(Cost {
                    amount: Usd::from_nanos(self.number() as i64),
                    basis: self.pick(Basis::ALL),
                    version: self.text(30),
                }),
            },
        }
    }

    fn trace(&mut self) -> Option<TraceId> {
        match self.below(2) {
            0 => None,
            _ => TraceId::from_bytes(self.array()),
        }
    }

    fn attempt(&mut self) -> Attempt {
        Attempt {
            number: self.number() as u32,
            at: self.time(),
            peer: self.text(40),
            sdk_retry_count: match self.below(3) {
                0 => None,
                1 => Some(u32::MAX),
                _ => Some(self.number() as u32),
            },
            got: self.pick(Got::ALL),
            trace: self.trace(),
        }
    }
}

fn encoded(record: &Record) -> Bytes {
    let mut out = BytesMut::new();
    codec::encode(record, &mut out);
    out.freeze()
}

fn records(count: usize) -> impl Iterator<Item = Record> {
    let mut random = Random(1);
    (0..count).map(move |_| random.record())
}

#[test]
fn every_record_is_decoded_as_it_was_encoded() {
    for record in records(10_000) {
        assert_eq!(codec::decode(encoded(&record)), Ok(record));
    }
}

#[test]
fn every_entry_is_decoded_as_it_was_encoded_and_cut_short_it_is_none() {
    let mut random = Random(3);
    for _ in 0..1_000 {
        let entry = random.entry();
        let mut out = BytesMut::new();
        codec::encode_entry(&entry, &mut out);
        let bytes = out.freeze();
        for len in 0..bytes.len() {
            assert!(codec::decode_entry(bytes.slice(..len)).is_err());
        }
        assert_eq!(codec::decode_entry(bytes), Ok(entry));
    }
}

#[test]
fn every_dead_letter_is_decoded_as_it_was_encoded_and_cut_short_it_is_none() {
    let mut random = Random(5);
    for _ in 0..1_000 {
        let letter = DeadLetter {
            entry: random.entry(),
            since: random.time(),
            tries: random.number() as u32,
            why: random.text(40),
        };
        let mut out = BytesMut::new();
        codec::encode_letter(&letter, &mut out);
        let bytes = out.freeze();
        for len in 0..bytes.len() {
            assert!(codec::decode_letter(bytes.slice(..len)).is_err());
        }
        assert_eq!(codec::decode_letter(bytes), Ok(letter));
    }
}

#[test]
fn every_attempt_is_decoded_as_it_was_encoded_and_no_further() {
    let mut random = Random(2);
    for _ in 0..1_000 {
        let attempts: Vec<Attempt> = (0..5).map(|_| random.attempt()).collect();
        let mut out = BytesMut::new();
        for attempt in &attempts {
            codec::encode_attempt(attempt, &mut out);
        }
        let mut bytes = out.freeze();
        for attempt in &attempts {
            assert_eq!(codec::take_attempt(&mut bytes).as_ref(), Ok(attempt));
        }
        assert!(bytes.is_empty());
        assert!(codec::take_attempt(&mut bytes).is_err());
    }
}

#[test]
fn i13_a_record_that_is_cut_short_is_no_record() {
    for record in records(300) {
        let bytes = encoded(&record);
        for len in 0..bytes.len() {
            let cut = codec::decode(bytes.slice(..len));
            assert!(
                matches!(cut, Err(DecodeError::Malformed(_))),
                "{len}: {cut:?}"
            );
        }
    }
}

#[test]
fn i13_a_record_with_more_behind_it_is_no_record() {
    for record in records(300) {
        let mut bytes = encoded(&record).to_vec();
        bytes.push(0);
        assert!(codec::decode(bytes.into()).is_err());
    }
}

#[test]
fn i13_a_record_with_a_flipped_bit_is_another_record_or_none() {
    for record in records(300) {
        let bytes = encoded(&record);
        for bit in 0..8 * bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // A checksum tells the two apart; the decoder must not panic, nor take for a record
            // what the encoder would have written otherwise.
            if let Ok(other) = codec::decode(damaged.clone().into()) {
                assert_eq!(encoded(&other), damaged, "bit {bit}");
            }
        }
    }
}

#[test]
fn i13_noise_does_not_panic() {
    let mut random = Random(3);
    for _ in 0..20_000 {
        let mut noise: Vec<u8> = (0..random.below(200))
            .map(|_| random.next() as u8)
            .collect();
        if let Some(version) = noise.first_mut() {
            *version = codec::VERSION;
        }
        let bytes = Bytes::from(noise);
        let _ = codec::decode(bytes.clone());
        let _ = codec::take_attempt(&mut bytes.clone());
    }
}

#[test]
fn i13_a_record_with_bytes_written_over_does_not_panic() {
    let mut random = Random(4);
    for record in records(2_000) {
        let mut bytes = encoded(&record).to_vec();
        for _ in 0..1 + random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] = [0, 0x7f, 0x80, 0xff, random.next() as u8][random.below(5)];
        }
        let _ = codec::decode(bytes.into());
    }
}

#[test]
fn hostile_086_a_newer_format_is_told_apart_from_damage() {
    for record in records(10) {
        let mut bytes = encoded(&record).to_vec();
        bytes[0] = codec::VERSION + 1;
        let newer = codec::decode(bytes.clone().into());
        assert_eq!(newer, Err(DecodeError::Newer(codec::VERSION + 1)));
        bytes[0] = 0;
        let damaged = codec::decode(bytes.into());
        assert!(matches!(damaged, Err(DecodeError::Malformed(_))));
    }
}

#[test]
fn a_length_beyond_the_end_is_refused_without_taking_memory_for_it() {
    // A tenant that claims to be 2^63 bytes long.
    let record = records(1).next().expect("one");
    let mut out = BytesMut::new();
    codec::encode(&record, &mut out);
    let mut bytes = out[..1 + 16 + 32].to_vec();
    bytes.extend_from_slice(&[1, 1]);
    bytes.extend_from_slice(&[0xff; 8]);
    bytes.push(0x7f);
    assert_eq!(
        codec::decode(bytes.into()),
        Err(DecodeError::Malformed("tenant"))
    );
}

/// What is stored is found under its address alone. Where addresses change, a used key looks new: to a newer
/// program on an older store, and to an older one beside it. Every store needs a new format then, which both
/// refuse.
#[test]
fn i01_the_address_of_a_key_stays_what_it_was() {
    let scope = Scope {
        tenant: "acme".into(),
        namespace: "openai".into(),
    };
    let key = Key::new("invoice-42").expect("a key");
    let address = address(&[7; 32], &scope, &key);
    let address = u128::from_be_bytes(*address.as_bytes());
    assert_eq!(address, 0xf0bc_9575_85c0_9ab5_492c_b478_ccbf_726e);
}
