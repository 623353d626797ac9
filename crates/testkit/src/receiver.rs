//! A receiver of webhooks, as a billing service would be one: it verifies the signature (Standard
//! Webhooks 1.0), drops ids that it has, and fails on request.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac::{HMAC_SHA256, Key, verify};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::signal::eventually;
use crate::upstream::{Exchange, Upstream};

/// How a request is dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Taken and acknowledged.
    Take,
    /// Not taken, and answered with this status.
    Refuse(u16),
    /// Not taken, and never answered.
    Stall,
    /// Taken, and acknowledged only after the sender has given up waiting.
    TakeLate,
    /// Taken; the connection is dropped instead of an acknowledgement.
    TakeAndDrop,
}

/// A receiver that keeps what it takes.
pub struct Receiver {
    upstream: Upstream,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    /// The data of each event, by its id.
    events: BTreeMap<String, Value>,
    /// The ids in the order in which they were first taken.
    order: Vec<String>,
    /// How often each was taken.
    times: HashMap<String, usize>,
    /// How often each came, taken or not.
    came: HashMap<String, usize>,
    /// Requests whose signature was not right.
    forged: usize,
}

impl Receiver {
    /// The secret that it knows.
    pub const SECRET: &'static str = "whsec_b25seW9uY2UtdGVzdC1zZWNyZXQtb2YtMzItYnl0ZXM=";

    /// Takes every event.
    pub fn new() -> Self {
        Self::with(|_, _| Manner::Take)
    }

    /// Deals with each event as `manner` says, which is given its id and how often it came before.
    pub fn with(manner: impl Fn(&str, usize) -> Manner + Send + Sync + 'static) -> Self {
        let taken = Arc::new(Mutex::new(Taken::default()));
        let taking = Arc::clone(&taken);
        let upstream = Upstream::scripted(move |x| {
            let body = x.read_body();
            let Some(id) = verified(x, &body) else {
                taking.lock().expect("what was taken").forged += 1;
                return x.answer(401, &[], b"the signature is wrong");
            };
            let before = {
                let mut taken = taking.lock().expect("what was taken");
                let came = taken.came.entry(id.clone()).or_default();
                *came += 1;
                *came - 1
            };
            let manner = manner(&id, before);
            if matches!(
                manner,
                Manner::Take | Manner::TakeLate | Manner::TakeAndDrop
            ) {
                taking.lock().expect("what was taken").take(&id, &body);
            }
            match manner {
                Manner::Take => x.answer(204, &[], b""),
                Manner::Refuse(status) => x.answer(status, &[], b"not now"),
                Manner::Stall => x.wait_for_close(),
                Manner::TakeLate => {
                    x.wait_for_close();
                    x.answer(204, &[], b"");
                }
                Manner::TakeAndDrop => x.reset(),
            }
        });
        Self { upstream, taken }
    }

    /// Where events go.
    pub fn url(&self) -> String {
        format!("{}/hook", self.upstream.url())
    }

    /// The data of each event that was taken, by its id.
    pub fn events(&self) -> BTreeMap<String, Value> {
        self.taken.lock().expect("what was taken").events.clone()
    }

    /// The ids in the order in which they were first taken.
    pub fn order(&self) -> Vec<String> {
        self.taken.lock().expect("what was taken").order.clone()
    }

    /// How often the event `id` was taken.
    pub fn times(&self, id: &str) -> usize {
        let taken = self.taken.lock().expect("what was taken");
        taken.times.get(id).copied().unwrap_or_default()
    }

    /// How many different events were taken.
    pub fn count(&self) -> usize {
        self.taken.lock().expect("what was taken").events.len()
    }

    /// How many requests were not signed as they should be.
    pub fn forged(&self) -> usize {
        self.taken.lock().expect("what was taken").forged
    }

    /// How often any event came, taken or not.
    pub fn came_in_all(&self) -> usize {
        let taken = self.taken.lock().expect("what was taken");
        taken.came.values().sum()
    }

    /// How often the event `id` came, taken or not.
    pub fn came(&self, id: &str) -> usize {
        let taken = self.taken.lock().expect("what was taken");
        taken.came.get(id).copied().unwrap_or_default()
    }

    /// Waits until so many different events were taken; panics when they do not come, or a request was
    /// not signed as it should be.
    #[track_caller]
    pub fn wait_for(&self, count: usize) -> &Self {
        eventually(&format!("{count} events"), || self.count() >= count);
        assert_eq!(self.forged(), 0);
        self
    }
}

impl Default for Receiver {
    fn default() -> Self {
        Self::new()
    }
}

impl Taken {
    fn take(&mut self, id: &str, body: &[u8]) {
        *self.times.entry(id.to_owned()).or_default() += 1;
        let event: Value = serde_json::from_slice(body).expect("an event is JSON");
        assert_eq!(event["data"]["id"], id, "the event's id is the operation's");
        let known = self.events.insert(id.to_owned(), event["data"].clone());
        match known {
            None => self.order.push(id.to_owned()),
            Some(known) => assert_eq!(known, event["data"], "an event never changes"),
        }
    }
}

/// The id of an event that was signed with the secret.
fn verified(x: &Exchange, body: &[u8]) -> Option<String> {
    let id = x.head.header("webhook-id")?;
    let timestamp = x.head.header("webhook-timestamp")?;
    let signatures = x.head.header("webhook-signature")?;
    let secret = Receiver::SECRET.strip_prefix("whsec_")?;
    let key = Key::new(HMAC_SHA256, &STANDARD.decode(secret).ok()?);
    let mut signed = format!("{id}.{timestamp}.").into_bytes();
    signed.extend(body);
    let is_right = signatures.split(' ').any(|signature| {
        let tag = signature.strip_prefix("v1,");
        let tag = tag.and_then(|tag| STANDARD.decode(tag).ok());
        tag.is_some_and(|tag| verify(&key, &signed, &tag).is_ok())
    });
    is_right.then(|| id.to_owned())
}
