//! A gateway's way to the store that all share: slow, lossy, and cut off from one moment to the next.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_core::{
    Address, Attempt, Entry, Fence, Got, OperationId, OwnerId, Posting, Record, RecordingId,
    Timestamp,
};
use onlyonce_store::books::{
    Advance, Booked, Cell, DeadLetter, EntryPage, EntryQuery, Held, Hold, Position, SumsQuery,
};
use onlyonce_store::{
    AttemptNote, Books, Mark, MemoryStore, Page, Query, Seen, Shown, Status, Store, StoreError,
    Stored, Swap, Swept, Walked, Write,
};
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::gate::Gate;
use crate::noted::Disturbance;
use crate::random::Random;
use crate::world::World;

/// The same for all gateways and all seeds, so that addresses are.
pub const SECRET: [u8; 32] = [7; 32];

/// How long a write may be under way whose writer does not wait for it any more.
const LATE_AT_MOST: u64 = 1_500;

/// One gateway's handle of the store.
pub struct Way {
    world: Arc<World>,
    /// Where it comes from, for the log.
    from: Arc<str>,
    gate: Arc<Gate>,
    random: Mutex<Random>,
    /// How much later than the store it takes the time to be, less the world's skew.
    skew: Duration,
}

/// What becomes of one call.
struct Fortune {
    there: Duration,
    back: Duration,
    fault: Option<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing is done, and it is known.
    Unavailable,
    /// It is done, and nobody is told.
    Unacknowledged,
    /// Nothing is done, and nobody is told.
    Lost,
    /// It is done after its writer was told that nobody knows.
    Late,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Unavailable => "writes: refused",
            Self::Unacknowledged => "writes: done and not acknowledged",
            Self::Lost => "writes: lost",
            Self::Late => "writes: done later",
        }
    }
}

impl Way {
    pub fn new(world: &Arc<World>, from: Arc<str>, gate: &Arc<Gate>, mut random: Random) -> Self {
        let skew = world.temper.skew.as_millis() as u64;
        let skew = Duration::from_millis(random.next() % (2 * skew + 1));
        let ahead = skew.as_millis() as i64 - world.temper.skew.as_millis() as i64;
        world.is_ahead(&from, ahead);
        Self {
            skew,
            world: Arc::clone(world),
            from,
            gate: Arc::clone(gate),
            random: Mutex::new(random),
        }
    }

    fn inner(&self) -> &Arc<MemoryStore> {
        &self.world.store
    }

    fn fortune(&self, writes: bool) -> Fortune {
        self.world.is_called();
        let temper = &self.world.temper;
        let mut random = self.random.lock();
        let mut fortune = Fortune {
            there: Duration::ZERO,
            back: Duration::ZERO,
            fault: None,
        };
        if self.world.is_calm() {
            return fortune;
        }
        let mut span = || match random.below(100) {
            n if n < temper.store_stalls => Duration::from_millis(random.next() % 2_500),
            n if n < temper.store_slow => Duration::from_millis(random.next() % 40),
            _ => Duration::ZERO,
        };
        (fortune.there, fortune.back) = (span(), span());
        if random.chance(temper.store_faults) {
            fortune.fault = Some(match (writes, random.below(4)) {
                (true, 1) => Fault::Unacknowledged,
                (true, 2) => Fault::Lost,
                (true, 3) => Fault::Late,
                _ => Fault::Unavailable,
            });
        }
        fortune
    }

    /// A call that changes nothing that a guarantee speaks of.
    async fn ask<T>(
        &self,
        asked: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.does(self.fortune(false), asked).await
    }

    /// As [`Way::ask`], of `address`.
    async fn ask_of<T>(
        &self,
        address: Address,
        asked: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let fortune = self.fortune(false);
        let _disturbance = self.disturbs(address, &fortune);
        self.does(fortune, asked).await
    }

    /// Notes a call that does not go well, while that is held.
    fn disturbs(&self, address: Address, fortune: &Fortune) -> Option<Disturbance> {
        let is_smooth = fortune.there.is_zero() && fortune.back.is_zero();
        let is_disturbed = !is_smooth || fortune.fault.is_some();
        is_disturbed.then(|| Disturbance::begins(&self.world, &self.from, address))
    }

    async fn does<T>(
        &self,
        fortune: Fortune,
        asked: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.goes(fortune.there).await;
        let answer = match fortune.fault {
            Some(_) => Err(unavailable()),
            None => asked.await,
        };
        self.goes(fortune.back).await;
        answer
    }

    /// What `write` becomes on its way to the store and back.
    async fn write<T: Send + 'static>(
        &self,
        address: Address,
        what: &str,
        write: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let fortune = self.fortune(true);
        let _disturbance = self.disturbs(address, &fortune);
        let Fortune { there, back, fault } = fortune;
        if let Some(fault) = fault {
            self.world.count(fault.name());
            self.world
                .note(|| format!("{}: {what} meets {fault:?}", self.from));
        }
        self.goes(there).await;
        let written = match fault {
            None => write.await,
            Some(Fault::Unavailable) => Err(unavailable()),
            Some(Fault::Lost) => Err(in_doubt()),
            Some(Fault::Unacknowledged) => write.await.and(Err(in_doubt())),
            Some(Fault::Late) => {
                let late = Duration::from_millis(1 + self.random.lock().next() % LATE_AT_MOST);
                tokio::spawn(async move {
                    sleep(late).await;
                    drop(write.await);
                });
                Err(in_doubt())
            }
        };
        self.goes(back).await;
        written
    }

    /// For how long the gateway stands still, for longer than a lease or not, once its claim has come to the store, if it does.
    fn nap(&self) -> Option<Duration> {
        let mut random = self.random.lock();
        let naps = !self.world.is_calm() && random.chance(self.world.temper.naps);
        naps.then(|| Duration::from_millis(3_000 + random.next() % 6_500))
    }

    /// A message goes out, or comes in.
    async fn goes(&self, span: Duration) {
        self.gate.pass().await;
        if !span.is_zero() {
            sleep(span).await;
            self.gate.pass().await;
        }
    }
}

/// The process `from` stands still for so long.
fn sleeps(world: Arc<World>, from: Arc<str>, gate: Arc<Gate>, span: Duration) {
    world.note(|| format!("{from} stands still for {span:?}"));
    world.count("gateways: stood still with a claim");
    world.stands_still(&from);
    gate.hold();
    tokio::spawn(async move {
        sleep(span).await;
        world.goes_on(&from);
        gate.release();
    });
}

fn unavailable() -> StoreError {
    StoreError::Unavailable("the simulation wants it so".into())
}

fn in_doubt() -> StoreError {
    StoreError::InDoubt("the simulation lost the answer".into())
}

impl Store for Way {
    fn now(&self) -> Timestamp {
        let now = self.inner().now().after(self.skew).as_millis();
        Timestamp::from_millis(now - self.world.temper.skew.as_millis() as u64)
    }

    fn secret(&self) -> &[u8; 32] {
        &SECRET
    }

    async fn load(&self, address: Address) -> Result<Option<Stored>, StoreError> {
        self.ask_of(address, self.inner().load(address)).await
    }

    fn claim_first(&self, _: Address) -> bool {
        self.world.temper.claims_first
    }

    fn may_forget(&self) -> bool {
        self.inner().may_forget()
    }

    async fn compare_and_set(
        &self,
        address: Address,
        expected: Option<Fence>,
        write: Write,
    ) -> Result<Swap, StoreError> {
        let (world, from) = (Arc::clone(&self.world), Arc::clone(&self.from));
        let call = world.asks(&from, expected, &write);
        let nap = call.and_then(|_| self.nap());
        let gate = Arc::clone(&self.gate);
        let writing = self.write(address, "a record", async move {
            let record = write.record.clone();
            let before = world.store.load(address).await?;
            let swap = world
                .store
                .compare_and_set(address, expected, write)
                .await?;
            world.written(&from, before.map(|stored| stored.record), &record, swap);
            if let (Some(span), Swap::Done { .. }) = (nap, swap) {
                sleeps(world, from, gate, span);
            }
            Ok(swap)
        });
        let answer = writing.await;
        if let Some(call) = call {
            self.world.claim_is_answered(call, &answer);
        }
        answer
    }

    async fn append(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        let store = Arc::clone(self.inner());
        self.write(address, "a chunk", async move {
            store.append(address, recording, chunk, bytes).await
        })
        .await
    }

    async fn read(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
    ) -> Result<Bytes, StoreError> {
        self.ask_of(address, self.inner().read(address, recording, chunk))
            .await
    }

    async fn note_attempt(
        &self,
        address: Address,
        id: OperationId,
        note: AttemptNote,
    ) -> Result<u32, StoreError> {
        if note.got == Got::Joined {
            self.world.joins(&note.peer);
        }
        self.ask_of(address, self.inner().note_attempt(address, id, note))
            .await
    }

    async fn attempts(
        &self,
        address: Address,
        id: OperationId,
    ) -> Result<Vec<Attempt>, StoreError> {
        self.ask(self.inner().attempts(address, id)).await
    }

    async fn find(&self, id: OperationId) -> Result<Option<Address>, StoreError> {
        self.ask(self.inner().find(id)).await
    }

    async fn list(&self, query: Query) -> Result<Page, StoreError> {
        self.ask(self.inner().list(query)).await
    }

    async fn remove(&self, address: Address, fence: Fence) -> Result<bool, StoreError> {
        let world = Arc::clone(&self.world);
        let removing = async move {
            let removed = world.store.remove(address, fence).await?;
            if removed {
                world.removed(address);
            }
            Ok(removed)
        };
        self.ask_of(address, removing).await
    }

    async fn sweep(&self) -> Result<Swept, StoreError> {
        self.ask(self.inner().sweep()).await
    }

    async fn overdue(&self, limit: usize) -> Result<Vec<(Address, Record)>, StoreError> {
        let mut overdue = self.ask(self.inner().overdue(limit)).await?;
        // The store in memory has them in whichever order.
        overdue.sort_by_key(|(address, _)| *address);
        Ok(overdue)
    }

    async fn follow(
        &self,
        address: Address,
        recording: RecordingId,
        owner: OwnerId,
        seen: Seen,
        at_most: Duration,
    ) -> Result<Option<Shown>, StoreError> {
        let following = self
            .inner()
            .follow(address, recording, owner, seen, at_most);
        self.ask_of(address, following).await
    }

    async fn followed(&self, owner: OwnerId) -> Result<Vec<Address>, StoreError> {
        // What it has taken out of the store is not to be lost on the way.
        let followed = self.inner().followed(owner).await;
        self.gate.pass().await;
        followed
    }

    async fn show(
        &self,
        address: Address,
        recording: RecordingId,
        shown: Shown,
    ) -> Result<(), StoreError> {
        self.ask(self.inner().show(address, recording, shown)).await
    }

    async fn mark(&self) -> Result<Option<Mark>, StoreError> {
        self.inner().mark().await
    }

    async fn set_mark(&self, expected: Option<Mark>, to: Option<Mark>) -> Result<bool, StoreError> {
        self.inner().set_mark(expected, to).await
    }

    async fn walk(&self, after: Option<Walked>, limit: usize) -> Result<Vec<Walked>, StoreError> {
        self.inner().walk(after, limit).await
    }

    fn status(&self) -> Status {
        self.inner().status()
    }

    /// The store outlives every gateway.
    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl Books for Way {
    async fn book(&self) -> Result<Booked, StoreError> {
        self.ask(self.inner().book()).await
    }

    async fn post(&self, postings: Vec<Posting>) -> Result<(), StoreError> {
        self.ask(self.inner().post(postings)).await
    }

    async fn feed(
        &self,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<(Position, Entry)>, StoreError> {
        self.ask(self.inner().feed(after, limit)).await
    }

    async fn entries(&self, query: EntryQuery) -> Result<EntryPage, StoreError> {
        self.ask(self.inner().entries(query)).await
    }

    async fn sums(&self, query: SumsQuery) -> Result<Vec<Cell>, StoreError> {
        self.ask(self.inner().sums(query)).await
    }

    async fn hold(&self, hold: Hold) -> Result<Option<Held>, StoreError> {
        self.ask(self.inner().hold(hold)).await
    }

    async fn advance(&self, step: Advance) -> Result<bool, StoreError> {
        self.ask(self.inner().advance(step)).await
    }

    async fn dead(
        &self,
        sink: &str,
        after: Option<OperationId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.ask(self.inner().dead(sink, after, limit)).await
    }

    async fn forget_dead(&self, sink: &str, ids: &[OperationId]) -> Result<u64, StoreError> {
        self.ask(self.inner().forget_dead(sink, ids)).await
    }

    async fn trim(&self, before: Timestamp) -> Result<Swept, StoreError> {
        self.ask(self.inner().trim(before)).await
    }
}
