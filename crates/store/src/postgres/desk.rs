//! Where calls wait, and the lanes that carry them to the server.
//!
//! A lane is one connection and the task that works on it. When it is free, it takes all that waits of
//! one kind and sends it as one statement, which is one transaction: while a commit is under way the
//! next batch gathers, so that the busier the store, the more calls share a round trip and a commit.
//! No address is twice in a batch, and a batch is sorted by address, so that two batches never wait for
//! each other in a ring.

use std::{
    collections::{HashSet, VecDeque},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use onlyonce_core::Address;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_postgres::error::SqlState;

use super::{
    Core, books::Day, connection::Session, error::Failed, figures::Trouble, period::Period,
};
use crate::StoreError;

/// Bytes of a batch beyond which it takes no more calls.
const MOST_BYTES: usize = 1 << 20;
/// How often a batch is tried again that the server gave up for no fault of its own.
const MOST_TRIES: u32 = 5;
/// Calls that wait longer than this while no connection can be made are told so.
const PATIENCE_WHEN_DOWN: Duration = Duration::from_millis(500);
const RECONNECT_MIN: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_secs(1);

/// A kind of call that is served in batches.
pub trait Kind: Send + Sync + Sized + 'static {
    /// What the caller gets.
    type Reply: Send + 'static;

    /// The most calls in one batch.
    const MOST: usize;
    /// Whether two calls for one address may be in one batch.
    const SHARES_ADDRESSES: bool;

    /// What it is about.
    fn address(&self) -> Address;

    /// How many bytes it brings.
    fn bytes(&self) -> usize {
        0
    }

    /// The partition that it writes to.
    fn period(&self) -> Option<Period> {
        None
    }

    /// The day of the books that it writes to.
    fn day(&self) -> Option<Day> {
        None
    }

    /// What the caller is told of a failure: that of a read, which what may be lost or done twice is as
    /// good as.
    fn failed(failed: Failed) -> StoreError {
        failed.of_a_read()
    }

    /// Serves a batch, which is sorted by address: one reply a call, in order.
    fn serve(
        session: &mut Session,
        core: &Core,
        calls: &[&Self],
    ) -> impl Future<Output = Result<Vec<Self::Reply>, Failed>> + Send;
}

struct Job<K: Kind> {
    call: K,
    number: u64,
    since: Instant,
    reply: oneshot::Sender<Result<K::Reply, StoreError>>,
}

/// The calls of one kind that wait.
pub struct Queue<K: Kind> {
    jobs: Mutex<VecDeque<Job<K>>>,
    numbers: AtomicU64,
    bell: Arc<Notify>,
}

impl<K: Kind> Queue<K> {
    /// A queue whose lanes listen to `bell`.
    pub fn new(bell: &Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            jobs: Mutex::default(),
            numbers: AtomicU64::new(0),
            bell: bell.clone(),
        })
    }

    /// Waits for a lane at most `patience`, and then for the answer.
    pub async fn ask(&self, call: K, patience: Duration) -> Result<K::Reply, StoreError> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (reply, mut answer) = oneshot::channel();
        self.jobs.lock().push_back(Job {
            call,
            number,
            since: Instant::now(),
            reply,
        });
        self.bell.notify_one();
        let answered = match timeout(patience, &mut answer).await {
            Ok(answered) => answered,
            Err(_) if self.withdraw(number) => {
                let why = format!("no connection to the server was free within {patience:?}");
                return Err(StoreError::Unavailable(why));
            }
            // A lane has it, and a lane answers in time.
            Err(_) => answer.await,
        };
        answered.unwrap_or_else(|_| Err(K::failed(Failed::Broken("the store was closed".into()))))
    }

    /// Takes a job back that no lane has taken.
    fn withdraw(&self, number: u64) -> bool {
        let mut jobs = self.jobs.lock();
        let at = jobs.iter().position(|job| job.number == number);
        at.is_some_and(|at| jobs.remove(at).is_some())
    }

    fn take_jobs(&self) -> Vec<Job<K>> {
        let mut jobs = self.jobs.lock();
        let mut taken: Vec<Job<K>> = Vec::with_capacity(jobs.len().min(K::MOST));
        let mut left = VecDeque::new();
        let mut addresses = HashSet::new();
        let mut bytes = 0;
        while taken.len() < K::MOST && bytes < MOST_BYTES {
            let Some(job) = jobs.pop_front() else { break };
            if job.reply.is_closed() {
                continue;
            }
            if !K::SHARES_ADDRESSES && !addresses.insert(job.call.address()) {
                left.push_back(job);
                continue;
            }
            bytes += job.call.bytes();
            taken.push(job);
        }
        left.append(&mut jobs);
        *jobs = left;
        if !jobs.is_empty() {
            self.bell.notify_one();
        }
        drop(jobs);
        taken.sort_by_key(|job| job.call.address());
        taken
    }

    fn put_back(&self, batch: Vec<Job<K>>) {
        let mut jobs = self.jobs.lock();
        for job in batch.into_iter().rev() {
            jobs.push_front(job);
        }
        self.bell.notify_one();
    }
}

/// A queue, whatever its kind.
pub trait AnyQueue: Send + Sync {
    /// Since when its first call waits.
    fn waits_since(&self) -> Option<Instant>;

    /// Serves what waits. Says whether the connection is still good.
    fn serve<'a>(
        self: Arc<Self>,
        session: &'a mut Session,
        core: &'a Core,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>>;

    /// Tells those who wait since before `then` that there is no connection.
    fn give_up(&self, then: Instant, why: &str);
}

impl<K: Kind> AnyQueue for Queue<K> {
    fn waits_since(&self) -> Option<Instant> {
        self.jobs.lock().front().map(|job| job.since)
    }

    fn serve<'a>(
        self: Arc<Self>,
        session: &'a mut Session,
        core: &'a Core,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(async move {
            let jobs = self.take_jobs();
            if jobs.is_empty() {
                return true;
            }
            self.serve_batch(jobs, session, core).await
        })
    }

    fn give_up(&self, then: Instant, why: &str) {
        let mut jobs = self.jobs.lock();
        while jobs.front().is_some_and(|job| job.since <= then) {
            if let Some(job) = jobs.pop_front() {
                let _ = job.reply.send(Err(StoreError::Unavailable(why.to_owned())));
            }
        }
    }
}

impl<K: Kind> Queue<K> {
    async fn serve_batch(&self, mut jobs: Vec<Job<K>>, session: &mut Session, core: &Core) -> bool {
        let failed = match try_serve(&jobs, session, core).await {
            Ok(replies) => {
                debug_assert_eq!(replies.len(), jobs.len());
                for (job, reply) in jobs.into_iter().zip(replies) {
                    let _ = job.reply.send(Ok(reply));
                }
                return true;
            }
            Err(failed) => failed,
        };
        match failed {
            // Nobody has seen it: another connection may carry it.
            Failed::NotSent(_) => {
                self.put_back(jobs);
                return false;
            }
            // One call may have spoiled it for all: each is tried by itself.
            Failed::Refused { .. } if jobs.len() > 1 && !failed.breaks_the_connection() => {
                while let Some(job) = jobs.pop() {
                    let job = [job];
                    let served = try_serve(&job, session, core).await;
                    let is_good = !served.as_ref().is_err_and(Failed::breaks_the_connection);
                    let reply = served.map_err(K::failed);
                    let [job] = job;
                    let reply = reply.and_then(|mut replies| {
                        let nothing = || K::failed(Failed::NotSent("no reply".into()));
                        replies.pop().ok_or_else(nothing)
                    });
                    let _ = job.reply.send(reply);
                    if !is_good {
                        self.put_back(jobs);
                        return false;
                    }
                }
                return true;
            }
            _ => {}
        }
        let is_good = !failed.breaks_the_connection();
        for job in jobs {
            let _ = job.reply.send(Err(K::failed(failed.clone())));
        }
        is_good
    }
}

/// Serves a batch, again where the server gave it up for no fault of its own.
async fn try_serve<K: Kind>(
    jobs: &[Job<K>],
    session: &mut Session,
    core: &Core,
) -> Result<Vec<K::Reply>, Failed> {
    let calls: Vec<&K> = jobs.iter().map(|job| &job.call).collect();
    let mut tries = 1;
    loop {
        match K::serve(session, core, &calls).await {
            Err(Failed::Refused { code, .. }) if tries < MOST_TRIES && is_passing(&code) => {
                tries += 1;
                if code == SqlState::CHECK_VIOLATION {
                    // A partition is missing, though this gateway has seen it.
                    let periods = calls.iter().filter_map(|call| call.period());
                    core.partitions.make_again(core, periods.collect()).await?;
                    let days = calls.iter().filter_map(|call| call.day());
                    core.days.make_again(core, days.collect()).await?;
                }
            }
            served => return served,
        }
    }
}

fn is_passing(code: &SqlState) -> bool {
    [
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::CHECK_VIOLATION,
    ]
    .contains(code)
}

/// The lanes that serve the same queues.
pub struct Lanes {
    pub queues: Vec<Arc<dyn AnyQueue>>,
    pub bell: Arc<Notify>,
    pub connected: AtomicUsize,
}

impl Lanes {
    /// Lanes over `queues`, whose bell is `bell`.
    pub fn new(queues: Vec<Arc<dyn AnyQueue>>, bell: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            queues,
            bell,
            connected: AtomicUsize::new(0),
        })
    }

    /// Works until it is dropped. Whatever happens to the connection, another one is made.
    pub async fn run(self: Arc<Self>, core: Arc<Core>) {
        let mut pause = RECONNECT_MIN;
        loop {
            match core.session().await {
                Ok(session) => {
                    pause = RECONNECT_MIN;
                    self.connected.fetch_add(1, Ordering::Relaxed);
                    self.work(session, &core).await;
                    self.connected.fetch_sub(1, Ordering::Relaxed);
                }
                Err(error) => {
                    let why = error.to_string();
                    if self.connected.load(Ordering::Relaxed) == 0 {
                        self.give_up(&why);
                    }
                    core.figures.trouble(Trouble::Connecting, &why);
                    sleep(pause).await;
                    pause = (pause * 2).min(RECONNECT_MAX);
                }
            }
        }
    }

    /// Serves on `session` until it breaks.
    async fn work(&self, mut session: Session, core: &Core) {
        loop {
            let rung = self.bell.notified();
            if session.is_closed() {
                // Whoever rang must be heard by another lane.
                self.bell.notify_one();
                return;
            }
            let waiting = self
                .queues
                .iter()
                .filter_map(|queue| Some((queue.waits_since()?, queue)));
            let Some((_, queue)) = waiting.min_by_key(|(since, _)| *since) else {
                rung.await;
                continue;
            };
            if !queue.clone().serve(&mut session, core).await {
                return;
            }
        }
    }

    fn give_up(&self, why: &str) {
        if let Some(then) = Instant::now().checked_sub(PATIENCE_WHEN_DOWN) {
            for queue in &self.queues {
                queue.give_up(then, why);
            }
        }
    }

    /// Whether nothing waits.
    pub fn is_idle(&self) -> bool {
        self.queues
            .iter()
            .all(|queue| queue.waits_since().is_none())
    }
}
