//! Notices.
//!
//! One connection listens, and wakes whoever waits for what it hears. Where notices do not arrive
//! (a pooler that gives every transaction another connection, a connection that was lost) those who wait
//! look for themselves.

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use onlyonce_core::{Address, OwnerId};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, futures::Notified},
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{AsyncMessage, types::Type};

use super::{
    Core,
    connection::{Driver, check, connect},
    sql,
};

/// How often it is tried whether notices arrive.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// What is notified to oneself, with the store's own word for this process behind it.
const PROBE: &str = "probe ";

/// What one can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// More is shown of the recording there.
    Shown(Address),
    /// The owner is asked to show something.
    Asked(OwnerId),
}

impl Topic {
    /// What a notice is about, as the statements write it.
    fn parse(payload: &str) -> Option<Self> {
        if let Some(owner) = payload.strip_prefix(sql::OWNER) {
            let number: i64 = owner.parse().ok()?;
            return Some(Self::Asked(OwnerId::new(number as u64)));
        }
        let uuid = uuid::Uuid::try_parse(payload).ok()?;
        Some(Self::Shown(Address::from_bytes(uuid.into_bytes())))
    }
}

/// Those who wait.
#[derive(Default)]
pub struct Watchers {
    waiting: Mutex<HashMap<Topic, Waiting>>,
    listens: AtomicBool,
    probed: Notify,
}

struct Waiting {
    waiters: usize,
    told: Arc<Notify>,
}

/// One who waits, until it is dropped.
pub struct Waiter<'a> {
    watchers: &'a Watchers,
    topic: Topic,
    told: Arc<Notify>,
}

impl Waiter<'_> {
    /// The next notice from the moment on at which this is enabled.
    pub fn told(&self) -> Notified<'_> {
        self.told.notified()
    }
}

impl Watchers {
    /// Registers one who waits.
    pub fn register(&self, topic: Topic) -> Waiter<'_> {
        let mut waiting = self.waiting.lock();
        let entry = waiting.entry(topic).or_insert_with(|| Waiting {
            waiters: 0,
            told: Arc::default(),
        });
        entry.waiters += 1;
        Waiter {
            watchers: self,
            topic,
            told: entry.told.clone(),
        }
    }

    /// Whether notices arrive.
    pub fn listens(&self) -> bool {
        self.listens.load(Ordering::Relaxed)
    }

    fn wake(&self, topic: Topic) {
        if let Some(waiting) = self.waiting.lock().get(&topic) {
            waiting.told.notify_waiters();
        }
    }

    fn wake_all(&self) {
        for waiting in self.waiting.lock().values() {
            waiting.told.notify_waiters();
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiting = self.watchers.waiting.lock();
        if let Some(entry) = waiting.get_mut(&self.topic) {
            entry.waiters -= 1;
            if entry.waiters == 0 {
                waiting.remove(&self.topic);
            }
        }
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
                if let Some(topic) = Topic::parse(notice.payload()) {
                    core.watchers.wake(topic);
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
        let types = [Type::TEXT, Type::TEXT];
        let asked = core
            .chores
            .ask(core, text, &types, &[&channel, &payload])
            .await;
        let probed = timeout(PROBE_PATIENCE, core.watchers.probed.notified()).await;
        if asked.is_err() || probed.is_err() {
            if asked.is_ok() {
                core.trouble("notices do not arrive, as behind a pooler; going on by asking");
            }
            return;
        }
        core.watchers.listens.store(true, Ordering::Relaxed);
        sleep(PROBE_EVERY).await;
    }
}
