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
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{AsyncMessage, types::Type};

use super::{
    Core,
    connection::{Driver, check, connect},
    error::describe,
    figures::Trouble,
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

/// What a notice says, as the statements write it.
struct Notice {
    topic: Topic,
    address: Address,
}

impl Notice {
    fn parse(payload: &str) -> Option<Self> {
        let address_of = |uuid: &str| {
            let uuid = uuid::Uuid::try_parse(uuid).ok()?;
            Some(Address::from_bytes(uuid.into_bytes()))
        };
        let Some(asked) = payload.strip_prefix(sql::OWNER) else {
            let address = address_of(payload)?;
            let topic = Topic::Shown(address);
            return Some(Self { topic, address });
        };
        let (owner, address) = asked.split_once(' ')?;
        let number: i64 = owner.parse().ok()?;
        Some(Self {
            topic: Topic::Asked(OwnerId::new(number as u64)),
            address: address_of(address)?,
        })
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
    /// The addresses that an owner was asked for and has not taken.
    asked: Vec<Address>,
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

    /// What notices have asked an owner to show since this waits.
    pub fn take_asked(&self) -> Vec<Address> {
        let mut waiting = self.watchers.waiting.lock();
        let entry = waiting.get_mut(&self.topic);
        entry.map_or_else(Vec::new, |entry| std::mem::take(&mut entry.asked))
    }
}

impl Watchers {
    /// Registers one who waits.
    pub fn register(&self, topic: Topic) -> Waiter<'_> {
        let mut waiting = self.waiting.lock();
        let entry = waiting.entry(topic).or_insert_with(|| Waiting {
            waiters: 0,
            told: Arc::default(),
            asked: Vec::new(),
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

    fn wake(&self, Notice { topic, address }: Notice) {
        if let Some(waiting) = self.waiting.lock().get_mut(&topic) {
            if matches!(topic, Topic::Asked(_)) {
                waiting.asked.push(address);
            }
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
        if let Err(why) = listen_once(&core).await {
            // Where there is no server at all, that is said already.
            if core.desk.readers.connected.load(Ordering::Relaxed) > 0 {
                core.figures.trouble(Trouble::Listening, &why);
            }
        }
        sleep(RECONNECT_PAUSE).await;
    }
}

/// Listens on one connection for as long as notices arrive. Says why they do not, unless they did until
/// the connection was lost.
async fn listen_once(core: &Arc<Core>) -> Result<(), String> {
    let target = &core.listen_target;
    let started = Instant::now();
    let (client, driver) = connect(target).await.map_err(|error| error.to_string())?;
    let _notices = AbortOnDrop(tokio::spawn(hear(core.clone(), driver)));
    let facts = check(&client, target, started).await;
    if facts.map_err(|error| error.to_string())?.is_pooled {
        // To listen through a pooler would have others hear what is meant for us.
        return Err(format!("a pooler stands before {}", target.place));
    }
    let channel = sql::channel(&core.target.schema);
    let listen = format!("LISTEN {channel}");
    match timeout(core.options.timeout, client.batch_execute(&listen)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(describe(&error)),
        Err(_) => return Err(format!("{} does not answer", target.place)),
    }
    let probed = probe(core, &channel).await;
    core.watchers.listens.store(false, Ordering::Relaxed);
    core.watchers.wake_all();
    probed
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
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
                if let Some(notice) = Notice::parse(notice.payload()) {
                    core.watchers.wake(notice);
                }
            }
        }
    }
}

/// Tries now and then whether notices arrive; returns when they do not, or not any more. It is an error
/// where they never did.
async fn probe(core: &Core, channel: &str) -> Result<(), String> {
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
            let never = asked.is_ok() && !core.watchers.listens();
            return match never {
                true => Err(format!(
                    "what is notified does not reach {}, as with a pooler or another database",
                    core.listen_target.place
                )),
                false => Ok(()),
            };
        }
        core.watchers.listens.store(true, Ordering::Relaxed);
        sleep(PROBE_EVERY).await;
    }
}
