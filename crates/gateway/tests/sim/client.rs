//! The callers: each wants one thing done, says so until it hears how that went, and does not always stay
//! to hear it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use onlyonce_testkit::Head;
use tokio::time::{sleep, timeout};

use crate::gateway::{Gateway, ROUTES};
use crate::random::Random;
use crate::wire::{Body, Wire};
use crate::world::World;

/// How long a caller waits at most (L2): longer than any deadline that the gateway has.
const DEADLINE: Duration = Duration::from_secs(40);

/// What somebody wants done.
#[derive(Clone, Debug)]
pub struct Action {
    pub tenant: usize,
    pub key: String,
    pub route: usize,
    /// 0 but for those who use a key for something else.
    pub version: usize,
    pub body_len: usize,
}

/// How one attempt behaves.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// It leaves after it has sent so many bytes.
    pub leaves_sending: Option<usize>,
    /// It leaves after so long.
    pub leaves_after: Option<Duration>,
    /// It leaves after it has read so many bytes.
    pub leaves_reading: Option<usize>,
    /// It says that it will send no more.
    pub half_closes: bool,
    /// It sends in so many pieces, with a pause after each.
    pub pieces: usize,
    pub pause: Duration,
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nobody listens.
    NoConnection,
    /// It left.
    Left,
    /// The connection broke, or ended, before the answer did.
    Broken(Option<Head>, Vec<u8>),
    /// An answer to its end.
    Answer(Head, Body),
}

impl Action {
    pub fn body(&self) -> Vec<u8> {
        let mut body = format!("{{\"version\":{}}}", self.version).into_bytes();
        body.resize(self.body_len.max(body.len()), b' ');
        body
    }

    /// How the request begins, whichever attempt it is.
    pub fn request_line(&self) -> String {
        let (route, tenant, key) = (ROUTES[self.route].0, self.tenant, &self.key);
        format!("POST /{route}/t{tenant}/{key} HTTP/1.1\r\n")
    }

    /// The request, as attempt number `attempt` sends it.
    pub fn bytes(&self, attempt: usize) -> Vec<u8> {
        let body = self.body();
        let mut bytes = format!(
            "{}Host: gateway.test\r\nAuthorization: Bearer credential-{}\r\n\
             Idempotency-Key: {}\r\nX-Attempt: {attempt}\r\n{}Content-Length: {}\r\n\r\n",
            self.request_line(),
            self.tenant,
            self.key,
            match takes_trailers(attempt) {
                true => "TE: trailers\r\n",
                false => "",
            },
            body.len(),
        )
        .into_bytes();
        bytes.extend_from_slice(&body);
        bytes
    }
}

/// Whether an attempt says that it takes trailers.
pub fn takes_trailers(attempt: usize) -> bool {
    attempt % 4 != 3
}

impl Manner {
    /// Sends all at once, and stays.
    pub fn patient() -> Self {
        Self {
            pieces: 1,
            ..Self::default()
        }
    }

    fn drawn(world: &World, random: &mut Random) -> Self {
        let mut manner = Self::patient();
        let temper = &world.temper;
        if random.chance(temper.dawdles) {
            manner.pieces = 1 + random.below(4);
            manner.pause = Duration::from_millis(random.next() % 400);
        }
        manner.half_closes = random.chance(temper.leaves / 4);
        if random.chance(temper.leaves) {
            match random.below(3) {
                0 => manner.leaves_sending = Some(random.below(400)),
                1 => {
                    let most = [5, 100, 4_000][random.below(3)];
                    manner.leaves_after = Some(Duration::from_millis(random.next() % most));
                }
                _ => manner.leaves_reading = Some(1 + random.below(600)),
            }
        }
        manner
    }
}

/// One caller: it tries again until it has an answer that says not to.
pub async fn call(
    world: Arc<World>,
    gateways: Arc<[Arc<Gateway>]>,
    action: Action,
    mut random: Random,
) {
    let tries = 1 + random.below(4);
    for _ in 0..tries {
        let manner = Manner::drawn(&world, &mut random);
        let gateway = random.below(gateways.len());
        let heard = attempt(&world, &gateways[gateway], &action, &manner).await;
        let again = match &heard {
            Heard::Answer(head, _) => head.header("x-should-retry") == Some("true"),
            _ => true,
        };
        if !again && random.chance(80) {
            return;
        }
        let most = [1, 300, 4_000][random.below(3)];
        sleep(Duration::from_millis(random.next() % most)).await;
    }
}

/// One attempt, judged.
pub async fn attempt(
    world: &Arc<World>,
    gateway: &Gateway,
    action: &Action,
    manner: &Manner,
) -> Heard {
    let number = world.attempt_begins(action);
    let peer = SocketAddr::new(
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        u16::try_from(number).unwrap_or(u16::MAX),
    );
    let Some((end, from)) = gateway.connect(peer) else {
        world.attempt_over(number, action, &Heard::NoConnection);
        return Heard::NoConnection;
    };
    world.attempt_comes_to(number, from);
    let mut wire = Wire::new(end);
    let bytes = action.bytes(number);
    let going = exchange(world, &mut wire, &bytes, number, manner);
    let limit = manner.leaves_after.unwrap_or(DEADLINE);
    let heard = match timeout(limit, going).await {
        Ok(heard) => heard,
        Err(_) if manner.leaves_after.is_some() => Heard::Left,
        Err(_) => {
            world.wrong(format!(
                "L2: attempt {number} has no answer after {DEADLINE:?}"
            ));
            Heard::Left
        }
    };
    drop(wire);
    world.attempt_over(number, action, &heard);
    heard
}

async fn exchange(
    world: &World,
    wire: &mut Wire,
    bytes: &[u8],
    number: usize,
    manner: &Manner,
) -> Heard {
    let end = manner
        .leaves_sending
        .map_or(bytes.len(), |at| at.min(bytes.len()));
    for piece in bytes[..end].chunks(end.div_ceil(manner.pieces).max(1)) {
        if wire.write(piece).await.is_err() {
            break;
        }
        if wire.written == bytes.len() {
            world.attempt_sent(number);
        }
        if !manner.pause.is_zero() {
            sleep(manner.pause).await;
        }
    }
    if manner.leaves_sending.is_some() {
        return Heard::Left;
    }
    if manner.half_closes && wire.end_writing().await.is_err() {
        return Heard::Broken(None, Vec::new());
    }
    if let Some(most) = manner.leaves_reading {
        wire.reads_at_most = most;
    }
    let (head, body) = match wire.head().await {
        Ok(head) => {
            let body = wire.body(&head).await;
            (Some(head), body)
        }
        Err(_) => (None, Body::default()),
    };
    match head {
        Some(head) if body.whole => Heard::Answer(head, body),
        _ if wire.read == wire.reads_at_most => Heard::Left,
        head => Heard::Broken(head, body.bytes),
    }
}
