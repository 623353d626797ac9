//! Telling others what the books say: at least once, each entry by the operation's id.
//!
//! One gateway at a time delivers to a sink: it holds it by a lease, reads the feed from where the sink
//! is, delivers, and notes how far everything was delivered or given up. A crash between a delivery and
//! that note, a lost acknowledgement or one that came too late makes an entry come again, under the
//! same id: who drops ids that it has seen counts each operation exactly once.

mod answer;
mod delivery;
mod resend;
mod stats;
#[cfg(test)]
pub(crate) mod tests;

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use http::{Request, Response};
use onlyonce_core::{Entry, OperationId, OwnerId, Timestamp};
use onlyonce_store::{
    Store, StoreError,
    books::{Advance, Begin, DeadLetter, Held, Hold, Position},
};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep, sleep_until},
};

pub use self::{
    answer::{Verdict, retry_after},
    resend::{Resent, Which, count_dead, resend},
    stats::{Snapshot, Stats},
};

/// How long a sink is held without being held again.
pub const LEASE: Duration = Duration::from_secs(30);
/// How often it is held again.
const RENEWAL: Duration = Duration::from_secs(10);
/// How often the feed is looked at where nothing is left to deliver, and a sink that another holds.
const LOOK: Duration = Duration::from_secs(1);
/// Entries that are under way at most, those that wait to be tried again included: one that is not
/// taken holds up nothing before so many have come after it.
const MOST_UNDER_WAY: usize = 1_000;

/// Sends a request, once. An error says why there is no answer.
pub trait Deliver: Send + Sync + 'static {
    /// The answer, whole.
    fn post(
        &self,
        request: Request<Bytes>,
    ) -> impl Future<Output = Result<Response<Bytes>, String>> + Send;
}

/// How a service is told, and what its answers mean.
pub trait Sink: Send + Sync + 'static {
    /// Entries that go into one request at most.
    fn most(&self) -> usize {
        1
    }

    /// The request that tells of `entries`, at the moment `now`. `None` where none of them is meant for
    /// this sink; an error says why they cannot be told.
    fn request(&self, entries: &[Entry], now: Timestamp) -> Result<Option<Request<Bytes>>, String>;

    /// What the answer to so many entries means.
    fn read(&self, answer: &Response<Bytes>, entries: usize) -> Verdict {
        let _ = entries;
        Verdict::of(answer)
    }
}

/// How one sink is delivered to.
#[derive(Clone)]
pub struct Settings {
    /// The sink's name: its cursor goes by it.
    pub name: Box<str>,
    /// Where it begins when it is new.
    pub begin: Begin,
    /// How long an entry is tried, from its first failure in this gateway's life.
    pub give_up: Duration,
    /// How long one answer may take.
    pub timeout: Duration,
    /// Requests that are under way at once. With 1 no entry goes before the one that is before it was
    /// taken or given up.
    pub in_flight: usize,
    /// A number from 0 to 1, another one each time: the share of a pause that is waited.
    pub jitter: Arc<dyn Fn() -> f64 + Send + Sync>,
}

/// Everything that the deliveries to one sink share.
pub(crate) struct Shared<S, D> {
    pub(crate) store: Arc<S>,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) deliver: D,
    pub(crate) settings: Settings,
    pub(crate) stats: Arc<Stats>,
    /// Places among the requests that are under way.
    pub(crate) places: Semaphore,
    /// The sink said that it is gone for good.
    pub(crate) gone: Notify,
}

/// Delivers to one sink until it is dropped. It ends by itself where the sink says that it is gone for
/// good (410): then it is paused until the next start.
pub async fn run<S: Store, D: Deliver>(
    store: Arc<S>,
    owner: OwnerId,
    sink: Arc<dyn Sink>,
    deliver: D,
    settings: Settings,
    stats: Arc<Stats>,
) {
    let shared = Arc::new(Shared {
        places: Semaphore::new(settings.in_flight),
        gone: Notify::new(),
        store,
        sink,
        deliver,
        settings,
        stats,
    });
    let post = Post { shared, owner };
    loop {
        let after = match hold(&*post.shared.store, &post.shared.settings, owner).await {
            Ok(Some(held)) => post.serve(held.position).await,
            Ok(None) => After::Again,
            Err(error) => {
                post.shared.stats.trouble(&error.to_string(), post.now());
                After::Again
            }
        };
        post.shared.stats.rest();
        if let After::Gone = after {
            let sink = &*post.shared.settings.name;
            tracing::error!(
                sink,
                "the sink says that it is gone for good (410): nothing is sent to it any more"
            );
            post.shared.stats.pause();
            return;
        }
        sleep(LOOK).await;
    }
}

/// Takes the right to deliver to the sink, or takes it for longer.
pub(crate) async fn hold<S: Store>(
    store: &S,
    settings: &Settings,
    owner: OwnerId,
) -> Result<Option<Held>, StoreError> {
    let hold = Hold {
        sink: settings.name.clone(),
        owner,
        lease: LEASE,
        begin: settings.begin,
    };
    store.hold(hold).await
}

/// Why nothing is delivered any more.
enum After {
    /// It may be tried again.
    Again,
    /// The sink is gone.
    Gone,
}

/// What became of a parcel.
pub(crate) struct Done {
    /// Its last entry's.
    pub(crate) to: Position,
    pub(crate) entries: usize,
    pub(crate) bury: Vec<DeadLetter>,
}

struct Post<S, D> {
    shared: Arc<Shared<S, D>>,
    owner: OwnerId,
}

/// What is under way, in the order of the feed.
struct UnderWay {
    parcels: FuturesOrdered<BoxFuture<'static, Done>>,
    /// When the entries were completed, in the same order.
    since: std::collections::VecDeque<Timestamp>,
    /// How far the feed was read.
    read: Option<Position>,
}

impl<S: Store, D: Deliver> Post<S, D> {
    fn now(&self) -> Timestamp {
        self.shared.store.now()
    }

    /// Delivers for as long as the sink is held.
    async fn serve(&self, position: Option<Position>) -> After {
        let stats = &self.shared.stats;
        match count_dead(&*self.shared.store, &self.shared.settings.name).await {
            Ok(dead) => stats.dead(dead),
            Err(error) => stats.trouble(&error.to_string(), self.now()),
        }
        stats.hold();
        let mut position = position;
        let mut under_way = UnderWay {
            parcels: FuturesOrdered::new(),
            since: std::collections::VecDeque::new(),
            read: position,
        };
        let mut renewal = Instant::now() + RENEWAL;
        let mut look = Instant::now();
        loop {
            let most = match self.shared.settings.in_flight {
                1 => self.shared.sink.most(),
                _ => MOST_UNDER_WAY.max(self.shared.sink.most()),
            };
            let room = most.saturating_sub(under_way.since.len());
            tokio::select! {
                biased;
                () = self.shared.gone.notified() => return After::Gone,
                () = sleep_until(renewal) => {
                    match hold(&*self.shared.store, &self.shared.settings, self.owner).await {
                        Ok(Some(held)) if held.position == position => {}
                        Ok(_) => return After::Again,
                        // The lease goes on for a while: the next time may go well.
                        Err(error) => stats.trouble(&error.to_string(), self.now()),
                    }
                    renewal = Instant::now() + RENEWAL;
                }
                Some(done) = under_way.parcels.next(), if !under_way.parcels.is_empty() => {
                    let done = all_that_are_done(done, &mut under_way.parcels);
                    match self.advance(position, done, &mut under_way).await {
                        Ok(to) => position = Some(to),
                        Err(()) => return After::Again,
                    }
                    look = Instant::now();
                }
                () = sleep_until(look), if room >= self.shared.sink.most() => {
                    let more = self.feed(&mut under_way, room).await;
                    look = Instant::now() + if more { Duration::ZERO } else { LOOK };
                }
            }
            stats.under_way(under_way.since.front().copied(), under_way.since.len());
        }
    }

    /// Reads on, and says whether there may be more.
    async fn feed(&self, under_way: &mut UnderWay, room: usize) -> bool {
        let feed = self.shared.store.feed(under_way.read, room).await;
        let feed = match feed {
            Ok(feed) => feed,
            Err(error) => {
                self.shared.stats.trouble(&error.to_string(), self.now());
                return false;
            }
        };
        let full = feed.len() == room;
        for parcel in feed.chunks(self.shared.sink.most()) {
            let to = parcel.last().map(|(position, _)| *position);
            let entries: Vec<Entry> = parcel.iter().map(|(_, entry)| entry.clone()).collect();
            let Some(to) = to else { continue };
            under_way.read = Some(to);
            under_way.since.extend(entries.iter().map(|entry| entry.at));
            let shared = Arc::clone(&self.shared);
            let delivery = async move { delivery::deliver(&shared, to, entries).await };
            under_way.parcels.push_back(delivery.boxed());
        }
        full
    }

    /// Notes that `done` is done.
    async fn advance(
        &self,
        from: Option<Position>,
        done: Done,
        under_way: &mut UnderWay,
    ) -> Result<Position, ()> {
        let stats = &self.shared.stats;
        let buried = done.bury.len();
        let step = Advance {
            sink: self.shared.settings.name.clone(),
            owner: self.owner,
            from,
            to: done.to,
            bury: done.bury,
        };
        loop {
            match self.shared.store.advance(step.clone()).await {
                Ok(true) => break,
                // Another holds it by now, and delivers from where it was noted last.
                Ok(false) => return Err(()),
                Err(StoreError::InDoubt(why)) => {
                    stats.trouble(&why.to_string(), self.now());
                    return Err(());
                }
                Err(error) => {
                    stats.trouble(&error.to_string(), self.now());
                    sleep(LOOK).await;
                }
            }
        }
        under_way.since.drain(..done.entries);
        stats.buried(buried);
        Ok(done.to)
    }
}

/// `done` and all parcels after it that are done as well, as one.
fn all_that_are_done(
    mut done: Done,
    parcels: &mut FuturesOrdered<BoxFuture<'static, Done>>,
) -> Done {
    while let Some(Some(next)) = parcels.next().now_or_never() {
        done.to = next.to;
        done.entries += next.entries;
        done.bury.extend(next.bury);
    }
    done
}

/// Ids, to look up in.
pub(crate) type Ids = HashSet<OperationId>;
