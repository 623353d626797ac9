use std::collections::HashMap;
use std::time::SystemTime;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use onlyonce_core::{
    Completed, Epoch, Fingerprint, Head, HeaderBlock, Key, Metered, Record, RequestLine, Scope,
    State,
};
use onlyonce_store::clock::ManualClock;
use onlyonce_store::{Books, MemoryStore, Swap, Write};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::*;

pub(crate) const OWNER: OwnerId = OwnerId::new(1);

/// What a service answers to one request: a status, and headers; `None` for no answer at all.
type Answer = Option<(u16, Option<&'static str>)>;

/// A service that keeps what it is told, by a script that is given the operation and how often it came.
#[derive(Clone)]
struct Service {
    script: Arc<dyn Fn(u8, usize) -> Answer + Send + Sync>,
    seen: Arc<Mutex<Vec<(u8, Instant)>>>,
    most: usize,
}

impl Service {
    fn new(script: impl Fn(u8, usize) -> Answer + Send + Sync + 'static) -> Self {
        Self {
            script: Arc::new(script),
            seen: Arc::default(),
            most: 1,
        }
    }

    /// The operations that came, in order.
    fn came(&self) -> Vec<u8> {
        self.seen.lock().iter().map(|(id, _)| *id).collect()
    }

    /// What passed between the times that `id` came, in seconds.
    fn pauses(&self, id: u8) -> Vec<u64> {
        let seen = self.seen.lock();
        let times: Vec<_> = seen.iter().filter(|(one, _)| *one == id).collect();
        let pause = |pair: &[&(u8, Instant)]| pair[1].1.duration_since(pair[0].1).as_secs();
        times.windows(2).map(pause).collect()
    }
}

impl Sink for Service {
    fn most(&self) -> usize {
        self.most
    }

    fn request(&self, entries: &[Entry], _: Timestamp) -> Result<Option<Request<Bytes>>, String> {
        let ids = entries.iter().map(|entry| entry.id.as_bytes()[15]);
        Ok(Some(Request::new(ids.collect::<Vec<u8>>().into())))
    }

    fn read(&self, answer: &Response<Bytes>, entries: usize) -> Verdict {
        match Verdict::of(answer) {
            Verdict::Dead(why) if entries > 1 => Verdict::Split(why),
            verdict => verdict,
        }
    }
}

impl Deliver for Service {
    async fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
        let mut worst = (204, None);
        for id in request.body() {
            let before = self.came().iter().filter(|one| *one == id).count();
            self.seen.lock().push((*id, Instant::now()));
            match (self.script)(*id, before) {
                None => std::future::pending().await,
                Some(answer) if answer.0 >= 300 => worst = answer,
                Some(_) => {}
            }
        }
        let mut answer = Response::new(Bytes::new());
        *answer.status_mut() = StatusCode::from_u16(worst.0).expect("a status");
        if let Some(after) = worst.1 {
            answer
                .headers_mut()
                .insert(RETRY_AFTER, after.parse().expect("a header"));
        }
        Ok(answer)
    }
}

pub(crate) struct Bench {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) clock: ManualClock,
    pub(crate) stats: Arc<Stats>,
    pub(crate) settings: Settings,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let clock = ManualClock::at(Timestamp::from_millis(1_700_000_000_000));
        Self {
            store: Arc::new(MemoryStore::with_clock(clock.clone())),
            clock,
            stats: Arc::default(),
            settings: Settings {
                name: "sink".into(),
                begin: Begin::Start,
                give_up: Duration::from_secs(3 * 86_400),
                timeout: Duration::from_secs(15),
                in_flight: 4,
                jitter: Arc::new(|| 1.0),
            },
        }
    }

    /// Books an operation that is called `id`.
    pub(crate) async fn complete(&self, id: u8) {
        let now = self.store.now();
        let record = Record {
            id: operation(id),
            scope: Scope {
                tenant: "acme".into(),
                namespace: "up".into(),
            },
            key: Key::new(&format!("k{id}")).expect("a key"),
            fingerprint: Fingerprint::from_bytes([0; 32]),
            epoch: Epoch::new(1),
            claim: Epoch::new(1),
            claimed_at: now,
            request: RequestLine {
                route: "chat".into(),
                method: "POST".into(),
                path: "/".into(),
                trace: None,
            },
            state: State::InFlight {
                owner: OWNER,
                lease_until: now.after(LEASE),
                resend_of: None,
            },
            metered: None,
            entered: false,
            ruling: None,
        };
        let address = onlyonce_store::address(self.store.secret(), &record.scope, &record.key);
        let completed = Record {
            epoch: Epoch::new(2),
            state: State::Completed(Completed {
                completed_at: now,
                expires_at: now.after(Duration::from_secs(86_400)),
                head: Head {
                    status: 200,
                    headers: HeaderBlock::default(),
                },
                trailers: HeaderBlock::default(),
                body_len: 0,
                chunks: 0,
            }),
            metered: Some(Box::new(Metered::default())),
            ..record.clone()
        };
        for (expected, record) in [(None, record.clone()), (Some(record.fence()), completed)] {
            let write = Write {
                record,
                last_chunk: None,
                attempt: None,
            };
            let swap = self.store.compare_and_set(address, expected, write).await;
            assert!(matches!(swap, Ok(Swap::Done { .. })), "{swap:?}");
        }
        self.store.book().await.expect("booked");
    }

    fn run(&self, owner: OwnerId, service: &Service) -> JoinHandle<()> {
        tokio::spawn(run(
            Arc::clone(&self.store),
            owner,
            Arc::new(service.clone()),
            service.clone(),
            self.settings.clone(),
            Arc::clone(&self.stats),
        ))
    }

    /// How far the sink is, as who comes after this owner would find it.
    pub(crate) async fn position(&self, owner: OwnerId) -> Option<Position> {
        let held = hold(&*self.store, &self.settings, owner).await;
        held.expect("an answer").expect("held").position
    }

    async fn dead(&self) -> Vec<(u8, u32)> {
        let dead = self.store.dead("sink", None, 100).await.expect("letters");
        let short = |letter: &DeadLetter| (letter.entry.id.as_bytes()[15], letter.tries);
        dead.iter().map(short).collect()
    }
}

fn operation(id: u8) -> OperationId {
    let mut bytes = [0; 16];
    bytes[15] = id;
    OperationId::from_bytes(bytes)
}

/// Lets time pass until `is_so`; at most some days of it.
pub(crate) async fn until(is_so: impl AsyncFn() -> bool) {
    for _ in 0..1_000_000 {
        if is_so().await {
            return;
        }
        sleep(Duration::from_millis(500)).await;
    }
    panic!("it never came about");
}

#[tokio::test(start_paused = true)]
async fn entries_go_out_in_order_and_once_where_nothing_fails() {
    let bench = Bench::new();
    let service = Service::new(|_, _| Some((204, None)));
    for id in 1..=20 {
        bench.complete(id).await;
    }
    let task = bench.run(OWNER, &service);
    until(async || bench.position(OWNER).await == Some(Position(19))).await;
    assert_eq!(service.came(), (1..=20).collect::<Vec<u8>>());
    assert_eq!(bench.stats.snapshot().delivered, 20);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_repeated_after_pauses_that_double_to_ten_minutes() {
    let bench = Bench::new();
    let service = Service::new(|_, before| Some((if before < 13 { 503 } else { 204 }, None)));
    bench.complete(1).await;
    let task = bench.run(OWNER, &service);
    until(async || bench.stats.snapshot().delivered == 1).await;
    let pauses = service.pauses(1);
    assert_eq!(
        pauses,
        [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600]
    );
    assert!(bench.dead().await.is_empty());
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_service_says_how_long_it_wants_to_be_left_alone_up_to_an_hour() {
    let bench = Bench::new();
    let service = Service::new(|id, before| match (id, before) {
        (1, 0) => Some((429, Some("90"))),
        (2, 0) => Some((503, Some("999999"))),
        _ => Some((204, None)),
    });
    bench.complete(1).await;
    bench.complete(2).await;
    let task = bench.run(OWNER, &service);
    until(async || bench.stats.snapshot().delivered == 2).await;
    assert_eq!(service.pauses(1), [90]);
    assert_eq!(service.pauses(2), [3_600]);
    task.abort();
}

#[test]
fn a_date_is_as_good_as_seconds() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
    let mut headers = HeaderMap::new();
    let after = |headers: &HeaderMap| retry_after(headers, now);
    assert_eq!(after(&headers), None);
    let date = httpdate::fmt_http_date(now + Duration::from_secs(60));
    headers.insert(RETRY_AFTER, date.parse().expect("a header"));
    assert_eq!(after(&headers), Some(Duration::from_secs(60)));
    headers.insert(RETRY_AFTER, "soon".parse().expect("a header"));
    assert_eq!(after(&headers), None);
}

#[tokio::test(start_paused = true)]
async fn no_answer_in_time_counts_as_none() {
    let bench = Bench::new();
    let service = Service::new(|_, before| (before > 0).then_some((204, None)));
    bench.complete(1).await;
    let task = bench.run(OWNER, &service);
    until(async || bench.stats.snapshot().delivered == 1).await;
    assert_eq!(
        service.pauses(1),
        [16],
        "15 s without an answer, and a pause of 1 s"
    );
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_dead_at_once_and_what_fails_for_long_in_the_end() {
    let mut bench = Bench::new();
    bench.settings.give_up = Duration::from_secs(60);
    let service = Service::new(|id, _| match id {
        1 => Some((400, None)),
        2 => Some((500, None)),
        _ => Some((204, None)),
    });
    for id in 1..=3 {
        bench.complete(id).await;
    }
    let task = bench.run(OWNER, &service);
    until(async || bench.stats.snapshot().delivered == 1).await;
    until(async || bench.dead().await.len() == 2).await;
    // 1 + 2 + 4 + 8 + 16 seconds; 32 more would be too long.
    assert_eq!(bench.dead().await, [(1, 1), (2, 6)]);
    assert_eq!(bench.position(OWNER).await, Some(Position(2)));
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn one_entry_that_is_refused_does_not_take_its_batch_along() {
    let bench = Bench::new();
    let mut service = Service::new(|id, _| Some((if id == 2 { 422 } else { 204 }, None)));
    service.most = 10;
    for id in 1..=3 {
        bench.complete(id).await;
    }
    let task = bench.run(OWNER, &service);
    until(async || bench.position(OWNER).await == Some(Position(2))).await;
    assert_eq!(bench.dead().await, [(2, 1)]);
    assert_eq!(bench.stats.snapshot().delivered, 2);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn one_entry_that_fails_holds_up_no_other_unless_the_order_is_strict() {
    let mut bench = Bench::new();
    let failing = |id, _| Some((if id == 1 { 500 } else { 204 }, None));
    for id in 1..=3 {
        bench.complete(id).await;
    }
    let service = Service::new(failing);
    let task = bench.run(OWNER, &service);
    until(async || bench.stats.snapshot().delivered == 2).await;
    assert_eq!(bench.position(OWNER).await, None, "the first one is owed");
    task.abort();

    bench.settings.in_flight = 1;
    let service = Service::new(failing);
    let task = bench.run(OWNER, &service);
    until(async || service.came().len() == 5).await;
    assert_eq!(service.came(), [1; 5]);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_gone_is_paused() {
    let bench = Bench::new();
    let service = Service::new(|id, _| Some((if id == 2 { 410 } else { 204 }, None)));
    bench.complete(1).await;
    let task = bench.run(OWNER, &service);
    until(async || bench.position(OWNER).await == Some(Position(0))).await;
    for id in 2..=4 {
        bench.complete(id).await;
    }
    task.await.expect("it ends by itself");
    assert!(bench.stats.snapshot().paused);
    assert!(bench.dead().await.is_empty(), "nothing is given up");
    assert_eq!(bench.position(OWNER).await, Some(Position(0)));
}

#[tokio::test(start_paused = true)]
async fn who_crashes_before_the_note_makes_it_come_again() {
    let bench = Bench::new();
    let service = Service::new(|id, _| if id == 2 { None } else { Some((204, None)) });
    for id in 1..=3 {
        bench.complete(id).await;
    }
    let task = bench.run(OWNER, &service);
    until(async || service.came().len() == 3).await;
    until(async || bench.position(OWNER).await == Some(Position(0))).await;
    task.abort();

    let next = OwnerId::new(2);
    let service = Service::new(|_, _| Some((204, None)));
    let task = bench.run(next, &service);
    sleep(Duration::from_secs(5)).await;
    assert!(
        service.came().is_empty(),
        "the lease of the first is not over"
    );
    bench.clock.advance(LEASE);
    until(async || bench.position(next).await == Some(Position(2))).await;
    assert_eq!(service.came(), [2, 3]);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn who_lost_the_sink_notes_nothing_any_more() {
    let bench = Bench::new();
    let service = Service::new(|_, before| (before > 0).then_some((204, None)));
    bench.complete(1).await;
    let task = bench.run(OWNER, &service);
    until(async || service.came().len() == 1).await;
    bench.clock.advance(LEASE);
    let next = OwnerId::new(2);
    assert_eq!(bench.position(next).await, None);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.position(next).await, None);
    assert!(!bench.stats.snapshot().holds);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_sent_again_by_hand_and_forgotten_when_taken() {
    let bench = Bench::new();
    let refusing = Service::new(|_, _| Some((400, None)));
    for id in 1..=3 {
        bench.complete(id).await;
    }
    let task = bench.run(OWNER, &refusing);
    until(async || bench.dead().await.len() == 3).await;
    task.abort();

    let again = Service::new(|id, _| Some((if id == 2 { 400 } else { 204 }, None)));
    let limit = Duration::from_secs(15);
    let one = Which::These([operation(1)].into());
    let resent = resend(&*bench.store, "sink", &again, &again, limit, &one).await;
    assert_eq!(resent.expect("an answer").delivered, [operation(1)]);
    assert_eq!(again.came(), [1]);
    let resent = resend(&*bench.store, "sink", &again, &again, limit, &Which::All).await;
    let resent = resent.expect("an answer");
    assert_eq!(resent.delivered, [operation(3)]);
    let failed: HashMap<_, _> = resent.failed.into_iter().collect();
    assert_eq!(failed[&operation(2)], "400 Bad Request");
    assert_eq!(bench.dead().await.len(), 1);
}
