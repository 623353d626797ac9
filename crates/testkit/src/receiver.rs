//! A receiver of events, as a billing service would be one: it looks at who they come from (of webhooks,
//! at the signature of Standard Webhooks 1.0), drops ids that it has, and fails on request.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac::{HMAC_SHA256, Key, verify};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::signal::eventually;
use crate::upstream::{Exchange, Upstream};

/// Whose API a receiver has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// Signed webhooks, one event each. They are told apart by `webhook-id`.
    Webhook,
    /// Stripe's meter events, a form each. They are told apart by `identifier`.
    Stripe,
    /// Batches of CloudEvents. They are told apart by `source` and `id`.
    OpenMeter,
    /// Lago's batches, of which none is taken if it has one of them. They are told apart by
    /// `transaction_id`.
    Lago,
}

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
    /// How many came in one request at most.
    most: usize,
    /// Requests of somebody else.
    forged: usize,
}

/// What a request tells: of each event its id and its data.
type Told = Vec<(String, Value)>;

impl Receiver {
    /// The secret that it knows.
    pub const SECRET: &'static str = "whsec_b25seW9uY2UtdGVzdC1zZWNyZXQtb2YtMzItYnl0ZXM=";

    /// The key that services know a caller by.
    pub const KEY: &'static str = "key-of-the-service";

    /// Takes every webhook.
    pub fn new() -> Self {
        Self::with(|_, _| Manner::Take)
    }

    /// Deals with each webhook as `manner` says, which is given its id and how often it came before.
    pub fn with(manner: impl Fn(&str, usize) -> Manner + Send + Sync + 'static) -> Self {
        Self::of(Api::Webhook, manner)
    }

    /// As [`Receiver::with`], of another API. A request of several events is dealt with as its first one.
    pub fn of(api: Api, manner: impl Fn(&str, usize) -> Manner + Send + Sync + 'static) -> Self {
        let taken = Arc::new(Mutex::new(Taken::default()));
        let taking = Arc::clone(&taken);
        let upstream = Upstream::scripted(move |x| {
            let body = x.read_body();
            let taken = || taking.lock().expect("what was taken");
            let Some(told) = told(api, x, &body) else {
                taken().forged += 1;
                return x.answer(401, &[], b"who is there?");
            };
            let (first, _) = told.first().expect("an event");
            let manner = manner(first, taken().come(&told));
            let (mut status, mut said) = (204, &b""[..]);
            if matches!(
                manner,
                Manner::Take | Manner::TakeLate | Manner::TakeAndDrop
            ) {
                let mut taken = taken();
                if api == Api::Lago && taken.has_one_of(&told) {
                    (status, said) = (422, KNOWN_TO_LAGO);
                } else {
                    taken.take(told);
                }
            }
            match manner {
                Manner::Take => x.answer(status, &[], said),
                Manner::Refuse(status) => x.answer(status, &[], b"not now"),
                Manner::Stall => x.wait_for_close(),
                Manner::TakeLate => {
                    x.wait_for_close();
                    x.answer(status, &[], said);
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

    /// How many events came in one request at most.
    pub fn most_at_once(&self) -> usize {
        self.taken.lock().expect("what was taken").most
    }

    /// How many requests were of somebody else, or not signed as they should be.
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

/// What Lago says of a batch whose first `transaction_id` it has (lago-api,
/// `app/services/events/create_batch_service.rb`).
const KNOWN_TO_LAGO: &[u8] =
    br#"{"status":422,"error_details":{"0":{"transaction_id":["value_already_exist"]}}}"#;

impl Taken {
    /// Counts events that come; how often the first of them came before.
    fn come(&mut self, told: &Told) -> usize {
        self.most = self.most.max(told.len());
        let before = self.came.get(&told[0].0).copied().unwrap_or_default();
        for (id, _) in told {
            *self.came.entry(id.clone()).or_default() += 1;
        }
        before
    }

    fn has_one_of(&self, told: &Told) -> bool {
        told.iter().any(|(id, _)| self.events.contains_key(id))
    }

    fn take(&mut self, told: Told) {
        for (id, data) in told {
            *self.times.entry(id.clone()).or_default() += 1;
            let known = self.events.insert(id.clone(), data.clone());
            match known {
                None => self.order.push(id),
                Some(known) => assert_eq!(known, data, "an event never changes"),
            }
        }
    }
}

/// What a request tells, if it is from who it has to be.
fn told(api: Api, x: &Exchange, body: &[u8]) -> Option<Told> {
    if api == Api::Webhook {
        let id = verified(x, body)?;
        let event = json(body);
        assert_eq!(event["data"]["id"], id, "the event's id is the operation's");
        return Some(vec![(id, event["data"].clone())]);
    }
    let bearer = format!("Bearer {}", Receiver::KEY);
    if x.head.header("authorization") != Some(&*bearer) {
        return None;
    }
    let of = |event: &Value, id: &str| {
        let id = event[id].as_str().expect("an id").to_owned();
        (id, event.clone())
    };
    let list = |events: &Value, id: &str| {
        let events = events.as_array().expect("a list").iter();
        events.map(|event| of(event, id)).collect()
    };
    Some(match api {
        Api::Stripe => vec![of(&form(body), "identifier")],
        Api::OpenMeter => {
            let events = json(body);
            for event in events.as_array().expect("a list") {
                assert_eq!(event["source"], "onlyonce", "an id is one of its source");
            }
            list(&events, "id")
        }
        Api::Webhook | Api::Lago => list(&json(body)["events"], "transaction_id"),
    })
}

fn json(body: &[u8]) -> Value {
    serde_json::from_slice(body).expect("JSON")
}

fn form(body: &[u8]) -> Value {
    let pairs = form_urlencoded::parse(body);
    pairs
        .map(|(name, value)| (name.into_owned(), Value::from(value.into_owned())))
        .collect()
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
