//! Notice of changes.
//!
//! One connection listens. Whoever waits is registered here first, and then asks for notice at the row:
//! the same statement says where the row stands, so that a change before it is seen at once, and one
//! after it is notified of. Where notices do not arrive (a pooler that gives every transaction another
//! connection, a connection that was lost) the waiter is sent to look for itself.

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use onlyonce_core::{Address, Epoch, Fence};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{AsyncMessage, types::Type};

use super::{
    Core,
    calls::{Stands, Watch},
    connection::{Driver, check, connect},
    sql,
};
use crate::Seen;

/// How often a waiter without notices looks for itself.
const POLL: Duration = Duration::from_millis(20);
/// The longest that a waiter relies on notices alone.
const LONGEST: Duration = Duration::from_secs(1);
/// How often it is tried whether notices arrive.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// What is notified to oneself, with the store's own word for this process behind it.
const PROBE: &str = "probe ";

/// Those who wait, by address.
#[derive(Default)]
pub struct Watchers {
    waiting: Mutex<HashMap<Address, Waiting>>,
    listens: AtomicBool,
    probed: Notify,
}

struct Waiting {
    waiters: usize,
    changed: Arc<Notify>,
}

struct Waiter<'a> {
    watchers: &'a Watchers,
    address: Address,
    changed: Arc<Notify>,
}

impl Watchers {
    fn register(&self, address: Address) -> Waiter<'_> {
        let mut waiting = self.waiting.lock();
        let entry = waiting.entry(address).or_insert_with(|| Waiting {
            waiters: 0,
            changed: Arc::default(),
        });
        entry.waiters += 1;
        Waiter {
            watchers: self,
            address,
            changed: entry.changed.clone(),
        }
    }

    fn wake(&self, address: Address) {
        if let Some(waiting) = self.waiting.lock().get(&address) {
            waiting.changed.notify_waiters();
        }
    }

    fn wake_all(&self) {
        for waiting in self.waiting.lock().values() {
            waiting.changed.notify_waiters();
        }
    }

    fn is_waited(&self) -> bool {
        !self.waiting.lock().is_empty()
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiting = self.watchers.waiting.lock();
        if let Some(entry) = waiting.get_mut(&self.address) {
            entry.waiters -= 1;
            if entry.waiters == 0 {
                waiting.remove(&self.address);
            }
        }
    }
}

impl Core {
    /// Waits until something at `address` is not as it was `seen`, at most so long.
    pub async fn changed(&self, address: Address, seen: Seen, at_most: Duration) {
        let waiter = self.watchers.register(address);
        let mut changed = std::pin::pin!(waiter.changed.notified());
        changed.as_mut().enable();
        if !self.watchers.listens.load(Ordering::Relaxed) {
            return sleep(at_most.min(POLL)).await;
        }
        let asked = self
            .desk
            .watches
            .ask(Watch { address }, self.options.timeout)
            .await;
        match asked {
            Ok(stands) if as_seen(stands).differs_from(seen) => {}
            Ok(_) => {
                let _ = timeout(at_most.min(LONGEST), changed).await;
            }
            Err(_) => sleep(at_most.min(POLL)).await,
        }
    }
}

fn as_seen(stands: Option<Stands>) -> Seen {
    Seen {
        fence: stands.map(|stands| Fence {
            id: stands.id,
            epoch: Epoch::new(stands.epoch),
        }),
        chunks: stands.map_or(0, |stands| stands.chunks),
    }
}

/// Listens as long as the store is there.
pub async fn listen(core: Arc<Core>) {
    loop {
        let started = Instant::now();
        if let Ok((client, driver)) = connect(&core.listen_target).await {
            let notices = tokio::spawn(hear(core.clone(), driver));
            // To listen through a pooler would have others hear what is meant for us.
            let is_direct = check(&client, &core.listen_target, started)
                .await
                .is_ok_and(|facts| !facts.is_pooled);
            let channel = sql::channel(&core.target.schema);
            let listen = format!("LISTEN {channel}");
            let listening = timeout(core.options.timeout, client.batch_execute(&listen));
            if is_direct && matches!(listening.await, Ok(Ok(()))) {
                probe(&core, &channel).await;
            }
            core.watchers.listens.store(false, Ordering::Relaxed);
            core.watchers.wake_all();
            notices.abort();
        }
        sleep(RECONNECT_PAUSE).await;
    }
}

/// Wakes those who wait for what is told.
async fn hear(core: Arc<Core>, mut driver: Driver) {
    while let Some(Ok(message)) = poll_fn(|cx| driver.poll_message(cx)).await {
        let AsyncMessage::Notification(notice) = message else {
            continue;
        };
        match notice.payload().strip_prefix(PROBE) {
            Some(name) if name == core.name => core.watchers.probed.notify_one(),
            Some(_) => {}
            None => {
                if let Some(address) = parse_address(notice.payload()) {
                    core.watchers.wake(address);
                }
            }
        }
    }
}

/// Tries now and then whether notices arrive; returns when they do not any more.
async fn probe(core: &Core, channel: &str) {
    let text = "SELECT pg_notify($1, $2)";
    let payload = format!("{PROBE}{}", core.name);
    loop {
        let listens = core.watchers.listens.load(Ordering::Relaxed);
        // While nobody waits, nobody needs to know.
        if !listens || core.watchers.is_waited() {
            let types = [Type::TEXT, Type::TEXT];
            let asked = core
                .chores
                .ask(core, text, &types, &[&channel, &payload])
                .await;
            let probed = timeout(PROBE_PATIENCE, core.watchers.probed.notified()).await;
            if asked.is_err() || probed.is_err() {
                if asked.is_ok() {
                    core.trouble(
                        "notices of changes do not arrive, as behind a pooler; going on by asking",
                    );
                }
                return;
            }
            core.watchers.listens.store(true, Ordering::Relaxed);
        }
        sleep(PROBE_EVERY).await;
    }
}

/// An address as the server writes it.
fn parse_address(text: &str) -> Option<Address> {
    let uuid = uuid::Uuid::try_parse(text).ok()?;
    Some(Address::from_bytes(uuid.into_bytes()))
}
