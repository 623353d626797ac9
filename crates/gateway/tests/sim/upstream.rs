//! The upstream: what it does follows from the seed, and what it saw stands in its ledger.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::pipe::{self, End};
use crate::random::Random;
use crate::wire::{Fields, Wire};
use crate::world::{Shown, World};

/// For how long a connection stays open on which nothing more comes.
const STALLS: Duration = Duration::from_secs(60);

/// What becomes of one exchange with the upstream.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The request is read to this byte and no further.
    pub request_ends: Option<(usize, How)>,
    /// It answers as soon as it has the head of the request.
    pub early: bool,
    pub thinks: Duration,
    /// An interim answer comes first.
    pub hints: bool,
    pub answer: Kind,
    /// These bytes are written in its place, and then it closes.
    pub raw: Option<Arc<[u8]>>,
    /// The answer is written to this byte and no further.
    pub answer_ends: Option<(usize, How)>,
    /// The answer is written in this many pieces, with a pause after each.
    pub pieces: usize,
    pub pause: Duration,
    /// How long the connection is kept for the next exchange.
    pub idle: Duration,
}

/// How a connection ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Reset,
    Closed,
    /// Nothing more comes, and it stays open.
    Stalls,
    /// The gateway's process is killed at this byte.
    GatewayDies,
}

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With a length.
    Counted { status: u16, len: usize },
    /// In chunks of events.
    Events { count: usize, trailers: bool },
    /// Without a length: only the end of the connection says where it ends, or where it broke.
    UntilClosed { len: usize },
    /// What is not HTTP.
    Noise,
}

/// One exchange, as the upstream saw it.
#[derive(Debug)]
pub struct Exchange {
    pub connection: usize,
    /// Bytes of the request that came.
    pub seen: usize,
    /// Of which request they were, once that is known.
    pub request: Option<Request>,
    /// What the store held of each key when the first byte came.
    pub held: Vec<Shown>,
    pub began: Instant,
    /// When the exchange was over for the upstream.
    pub over: Option<Instant>,
    /// The whole answer, whether or not it was given.
    pub status: u16,
    pub body: Vec<u8>,
    pub fields: Fields,
    pub trailers: Fields,
    /// When the head of the answer was written whole.
    pub answered: Option<Instant>,
    /// Whether all of it was, and can be known to be.
    pub whole: bool,
    /// How many windows of its key had ended before.
    pub window: usize,
    /// Its gateway stood still between its last look at the lease and the first byte, and the lease passed
    /// meanwhile: what nobody can prevent.
    pub is_stray: bool,
}

/// What a request said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub tenant: usize,
    pub key: String,
    /// The number of the attempt that it came with; greater than any, where that did not come.
    pub attempt: usize,
    /// Whether its body has come whole.
    pub whole: bool,
}

/// What a gateway finds where the upstream is.
pub enum Reach {
    Refused,
    /// One end of the connection of this number.
    There(End, usize),
}

/// The upstream's listener.
pub async fn reach(world: &Arc<World>, from: &Arc<str>) -> Reach {
    let number = world.next_connection(from);
    let mut random = world.random(100_000 + number as u64 * 100);
    let temper = &world.temper;
    let (mut room, mut takes) = (64 << 10, usize::MAX);
    if let Some(fixed) = &world.fixed {
        if number == 0 {
            takes = fixed.takes;
        }
    } else if !world.is_calm() {
        if random.chance(temper.refuses) {
            world.note(|| format!("upstream refuses connection {number}"));
            return Reach::Refused;
        }
        if random.chance(temper.slow) {
            sleep(Duration::from_millis(random.next() % 1_500)).await;
        }
        if random.chance(temper.slow) {
            room = [1, 16, 300][random.below(3)];
        }
        if random.chance(temper.breaks) {
            takes = random.below(500);
        }
    }
    let (near, far) = pipe::pair(room, takes);
    tokio::spawn(serve(Arc::clone(world), number, Wire::new(far)));
    Reach::There(near, number)
}

async fn serve(world: Arc<World>, connection: usize, mut wire: Wire) {
    for turn in 0.. {
        let plan = world.plan(connection as u64 * 100 + turn);
        match exchange(&world, connection, &mut wire, &plan).await {
            Ok(true) => {}
            Ok(false) | Err(_) => return,
        }
    }
}

/// Whether the connection can carry another one.
async fn exchange(
    world: &Arc<World>,
    connection: usize,
    wire: &mut Wire,
    plan: &Plan,
) -> io::Result<bool> {
    let start = wire.read;
    if let Some((at, _)) = plan.request_ends {
        wire.reads_at_most = start + at;
    }
    if plan.request_ends.is_some_and(|(at, _)| at == 0) && start > 0 {
        // Where a connection ends between two exchanges, it is closed.
        return Ok(false);
    }
    match timeout(plan.idle, wire.fill()).await {
        Err(_) => return Ok(false),
        Ok(Err(_)) if wire.reads_at_most > wire.read => return Ok(false),
        Ok(_) => {}
    }
    if wire.read == start {
        end(world, wire, plan.request_ends).await;
        return Ok(false);
    }
    let number = world.exchange_begins(connection, plan);
    let told = request(world, wire, number, plan.early).await;
    world.exchange(number, |one| one.seen = wire.read - start);
    if told.is_err() {
        world.note(|| {
            let seen = wire.read - start;
            format!("exchange {number}: {seen} bytes of a request came, {plan:?}")
        });
        world.exchange_over(number);
        end(world, wire, plan.request_ends).await;
        return Ok(false);
    }
    sleep(plan.thinks).await;
    let whole = answer(world, wire, number, plan).await;
    world.exchange_over(number);
    match (whole?, plan.answer_ends) {
        (true, None) => Ok(!plan.early && plan.answer.keeps_the_connection()),
        (_, how) => {
            end(world, wire, how).await;
            Ok(false)
        }
    }
}

/// The connection ends as it is to end; closed, when it is dropped.
async fn end(world: &World, wire: &mut Wire, how: Option<(usize, How)>) {
    match how {
        Some((_, How::Reset)) => wire.cut().reset(),
        Some((_, How::Stalls)) => sleep(STALLS).await,
        Some((_, How::GatewayDies)) => {
            world.gateway_dies.notify_one();
            sleep(STALLS).await;
        }
        Some((_, How::Closed)) | None => {}
    }
}

/// Reads a request to its end.
async fn request(
    world: &Arc<World>,
    wire: &mut Wire,
    number: usize,
    head_only: bool,
) -> io::Result<()> {
    let head = match wire.head().await {
        Ok(head) => head,
        Err(error) => {
            world.part_came(number, wire.unread());
            return Err(error);
        }
    };
    let text = |name| head.header(name).unwrap_or_default();
    let request = Request {
        tenant: usize::from(text("authorization").ends_with('1')),
        key: text("idempotency-key").to_owned(),
        attempt: text("x-attempt").parse().unwrap_or(usize::MAX),
        whole: false,
    };
    let attempt = request.attempt;
    world.request_known(number, request);
    if head_only {
        return Ok(());
    }
    let body = wire.body(&head).await;
    if !body.whole {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    world.judge_body(number, attempt, &body.bytes);
    world.exchange(number, |one| {
        one.request
            .iter_mut()
            .for_each(|request| request.whole = true);
    });
    Ok(())
}

/// Writes the answer, and says whether it was written whole.
async fn answer(
    world: &Arc<World>,
    wire: &mut Wire,
    number: usize,
    plan: &Plan,
) -> io::Result<bool> {
    if let Some(raw) = &plan.raw {
        wire.write(raw).await?;
        return Ok(false);
    }
    let (head, body) = world.exchange(number, |one| {
        let head = head(plan.answer, number, one.status);
        (head, framed(plan.answer, number, &one.body))
    });
    let head_len = head.len();
    if plan.hints {
        wire.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
            .await?;
    }
    let mut bytes = head;
    bytes.extend_from_slice(&body);
    let end = match plan.answer_ends {
        Some((at, _)) => at.min(bytes.len()),
        None => bytes.len(),
    };
    let whole = end == bytes.len();
    world.note(|| {
        let (all, status) = (bytes.len(), plan.answer);
        format!("exchange {number}: answers {status:?}, {end} of {all} bytes")
    });
    let (start, mut at) = (wire.written, 0);
    let step = end.div_ceil(plan.pieces.max(1)).max(1);
    while at < end {
        let next = (at + step).min(end);
        wire.write(&bytes[at..next]).await?;
        at = next;
        if wire.written - start >= head_len {
            world.exchange(number, |one| {
                one.answered.get_or_insert_with(Instant::now);
            });
        }
        if at < end && !plan.pause.is_zero() {
            sleep(plan.pause).await;
        }
    }
    if whole && !matches!(plan.answer, Kind::UntilClosed { .. }) {
        world.exchange(number, |one| one.whole = true);
    }
    Ok(whole)
}

fn head(kind: Kind, number: usize, status: u16) -> Vec<u8> {
    let framing = match kind {
        Kind::Noise => return b"SSH-2.0-OpenSSH_9.6\r\n\r\n".to_vec(),
        Kind::Counted { len, .. } => {
            format!("Content-Length: {len}\r\n")
        }
        Kind::UntilClosed { .. } => String::new(),
        Kind::Events { .. } => "Transfer-Encoding: chunked\r\n".to_owned(),
    };
    let mut head = format!("HTTP/1.1 {status} OK\r\n{framing}");
    let own = match number % VARIETIES {
        1 => OF_THE_CONNECTION,
        _ => &[],
    };
    let own = own.iter().map(|(name, value)| (*name, *value));
    for (name, value) in own.chain(pairs(&fields(kind, number))) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// How many kinds of heads there are.
const VARIETIES: usize = 3;

/// What an answer may say of its connection, and of us: none of it passes.
const OF_THE_CONNECTION: &[(&str, &str)] = &[
    ("Connection", "keep-alive, X-Hop"),
    ("Keep-Alive", "timeout=5"),
    ("X-Hop", "1"),
    ("Onlyonce-Status", "forged"),
    ("Idempotent-Replayed", "forged"),
];

/// The headers of an answer that all who get it must have, in their order; of a cookie, only the first caller.
pub fn fields(kind: Kind, number: usize) -> Fields {
    let exchange = number.to_string();
    let mut fields = vec![
        ("date", "Thu, 01 Jan 2026 00:00:00 GMT"),
        ("x-exchange", &exchange),
        ("content-type", kind.content_type()),
        ("x-twice", "a"),
    ];
    match number % VARIETIES {
        1 => fields.extend([
            ("set-cookie", "a=1"),
            ("etag", "\"e\""),
            ("set-cookie", "b=2"),
            ("x-should-retry", "perhaps"),
        ]),
        2 => fields.extend([
            ("link", "<b>"),
            ("x-twice", "a"),
            ("x-empty", ""),
            ("link", "<a>"),
            ("vary", "accept, origin"),
        ]),
        _ => {}
    }
    fields.push(("x-twice", "b"));
    if let Kind::Events { trailers: true, .. } = kind {
        fields.push(("trailer", "x-sum, x-end"));
    }
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    fields.into_iter().map(owned).collect()
}

/// The trailers of an answer that pass.
pub fn trailers(kind: Kind, number: usize) -> Fields {
    let Kind::Events { trailers: true, .. } = kind else {
        return Vec::new();
    };
    let field = |name: &str, value: String| (name.to_owned(), value);
    vec![
        field("x-sum", number.to_string()),
        field("x-end", "b".to_owned()),
        field("x-end", "a".to_owned()),
    ]
}

fn pairs(fields: &Fields) -> impl Iterator<Item = (&str, &str)> {
    fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
}

/// The bytes of the first exchange's answer.
pub fn answer_len(kind: Kind) -> usize {
    head(kind, 0, 200).len() + framed(kind, 0, &body(kind, 0)).len()
}

/// The body of an answer: no two exchanges have the same.
pub fn body(kind: Kind, number: usize) -> Vec<u8> {
    match kind {
        Kind::Noise => Vec::new(),
        Kind::Counted { len, .. } | Kind::UntilClosed { len } => {
            let mut body = format!("answer {number}. ").into_bytes();
            body.resize(len, b'.');
            body
        }
        Kind::Events { count, .. } => {
            let events = (0..count).map(|event| format!("data: {number} {event}\n\n"));
            events.collect::<String>().into_bytes()
        }
    }
}

/// The body as it goes over the line.
fn framed(kind: Kind, number: usize, body: &[u8]) -> Vec<u8> {
    let Kind::Events { .. } = kind else {
        return body.to_vec();
    };
    let mut framed = Vec::new();
    for event in body
        .split_inclusive(|byte| *byte == b'\n')
        .collect::<Vec<_>>()
        .chunks(2)
    {
        let event = event.concat();
        framed.extend_from_slice(format!("{:x}\r\n", event.len()).as_bytes());
        framed.extend_from_slice(&event);
        framed.extend_from_slice(b"\r\n");
    }
    framed.extend_from_slice(b"0\r\n");
    let trailers = trailers(kind, number);
    // What says something of a cookie, or is ours, is no trailer.
    let none = [("set-cookie", "c=3"), ("onlyonce-status", "forged")];
    let none = none.into_iter().filter(|_| !trailers.is_empty());
    for (name, value) in pairs(&trailers).chain(none) {
        framed.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    framed.extend_from_slice(b"\r\n");
    framed
}

impl Kind {
    fn content_type(self) -> &'static str {
        match self {
            Self::Events { .. } => "text/event-stream",
            Self::Counted { .. } | Self::UntilClosed { .. } | Self::Noise => "text/plain",
        }
    }

    fn keeps_the_connection(self) -> bool {
        !matches!(self, Self::Noise | Self::UntilClosed { .. })
    }
}

impl Plan {
    /// Answers at once, and whole.
    pub fn plain() -> Self {
        Self {
            request_ends: None,
            early: false,
            hints: false,
            thinks: Duration::ZERO,
            answer: Kind::Counted {
                status: 200,
                len: 40,
            },
            raw: None,
            answer_ends: None,
            pieces: 1,
            pause: Duration::ZERO,
            idle: Duration::from_secs(30),
        }
    }

    /// What the seed wants.
    pub fn drawn(world: &World, random: &mut Random) -> Self {
        let temper = &world.temper;
        let calm = world.is_calm();
        let mut plan = Self::plain();
        plan.answer = match random.below(100) {
            n if n < 30 => Kind::Events {
                count: 1 + random.below(8),
                trailers: random.chance(20),
            },
            n if n < 33 => Kind::Counted {
                status: 200,
                len: 66_000 + random.below(80_000),
            },
            n if n < 40 => Kind::Counted {
                status: [400, 402, 500][random.below(3)],
                len: 20,
            },
            n if n < 40 + temper.declines && !calm => Kind::Counted {
                status: [429, 503][random.below(2)],
                len: 20 + random.below(30),
            },
            _ => Kind::Counted {
                status: 200,
                len: 16 + random.below(300),
            },
        };
        plan.pieces = 1 + random.below(5);
        plan.idle = Duration::from_millis([0, 300, 20_000][random.below(3)]);
        if calm {
            plan.idle = Duration::from_secs(20);
            return plan;
        }
        if random.chance(temper.slow) {
            let most = [20, 700, 4_500][random.below(3)];
            plan.thinks = Duration::from_millis(random.next() % most);
        }
        if random.chance(temper.slow) {
            let most = [20, 500, 2_600][random.below(3)];
            plan.pause = Duration::from_millis(random.next() % most);
        }
        let how = |random: &mut Random| match random.below(11) {
            0..4 => How::Reset,
            4..8 => How::Closed,
            8..10 => How::Stalls,
            _ if temper.troubles > 0 => How::GatewayDies,
            _ => How::Reset,
        };
        plan.hints = random.chance(temper.breaks / 4);
        plan.early = random.chance(temper.breaks / 4);
        if random.chance(temper.breaks) {
            let most = [40, 400][random.below(2)];
            plan.request_ends = Some((random.below(most), how(random)));
        }
        if random.chance(temper.breaks) {
            let most = [200, 600, 70_000][random.below(3)];
            plan.answer_ends = Some((random.below(most), how(random)));
        } else if random.chance(temper.breaks / 4) {
            plan.answer = match random.below(2) {
                0 => Kind::Noise,
                _ => Kind::UntilClosed {
                    len: random.below(100),
                },
            };
        }
        plan
    }

    pub fn status(&self) -> u16 {
        match self.answer {
            Kind::Counted { status, .. } => status,
            Kind::Events { .. } | Kind::UntilClosed { .. } | Kind::Noise => 200,
        }
    }
}
