//! Listening to channels.
//!
//! A script that has something to tell says so on a channel that is called like the key it is about,
//! which costs next to nothing while nobody listens. Whoever waits listens first and looks then, so
//! that nothing is missed; and looks now and then all the same, for a channel promises nothing.
//! Channels have connections of their own: a cluster that moves a slot ends its subscriptions unasked,
//! and what it says then must not be taken for the answer to a command.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::watch;

use super::{Inner, failure::Failure, names::Shard};

/// How often who listens looks all the same.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often who cannot listen looks.
pub const POLL: Duration = Duration::from_millis(50);
/// A channel that nobody has listened to for so long is given up.
const IDLE: Duration = Duration::from_secs(10);

/// Those who listen, by channel.
#[derive(Default)]
pub struct Listeners {
    channels: Mutex<HashMap<String, Channel>>,
}

struct Channel {
    shard: Shard,
    /// Counts what was heard.
    heard: watch::Sender<u64>,
    /// Whether the server was told to send what it hears.
    is_open: bool,
    idle_since: Option<Instant>,
}

impl Channel {
    fn wake(&self) {
        self.heard.send_modify(|heard| *heard += 1);
    }

    /// Whoever listens has to see to it that it is told again.
    fn lost(&mut self) {
        self.is_open = false;
        self.wake();
    }
}

/// Somebody who listens to a channel.
pub struct Listener {
    pub heard: watch::Receiver<u64>,
}

impl Listeners {
    /// Wakes those who may have something to hear.
    pub fn pushed(&self, info: &PushInfo) {
        let mut channels = self.channels.lock();
        if info.kind == PushKind::Disconnection {
            channels.values_mut().for_each(Channel::lost);
            return;
        }
        let Some(Value::BulkString(name)) = info.data.first() else {
            return;
        };
        let channel = std::str::from_utf8(name).ok();
        let Some(channel) = channel.and_then(|name| channels.get_mut(name)) else {
            return;
        };
        match info.kind {
            PushKind::SMessage => channel.wake(),
            // Its slot moves.
            PushKind::SUnsubscribe => channel.lost(),
            _ => {}
        }
    }

    pub fn join(&self, name: &str, shard: Shard) -> Listener {
        let mut channels = self.channels.lock();
        let channel = channels.entry(name.to_owned()).or_insert_with(|| Channel {
            shard,
            heard: watch::Sender::new(0),
            is_open: false,
            idle_since: None,
        });
        channel.idle_since = None;
        Listener {
            heard: channel.heard.subscribe(),
        }
    }

    fn is_open(&self, name: &str) -> bool {
        self.channels
            .lock()
            .get(name)
            .is_some_and(|channel| channel.is_open)
    }

    fn opened(&self, name: &str) {
        if let Some(channel) = self.channels.lock().get_mut(name) {
            channel.is_open = true;
        }
    }

    /// Takes out the channels that nobody has listened to for a while.
    fn take_idle(&self) -> Vec<(String, Shard)> {
        let mut idle = Vec::new();
        self.channels.lock().retain(|name, channel| {
            if channel.heard.receiver_count() > 0 {
                channel.idle_since = None;
                return true;
            }
            let since = *channel.idle_since.get_or_insert_with(Instant::now);
            let stays = since.elapsed() < IDLE;
            if !stays && channel.is_open {
                idle.push((name.clone(), channel.shard));
            }
            stays
        });
        idle
    }
}

impl Inner {
    /// Has the server send what is said on a channel.
    pub async fn listen(&self, name: &str, shard: Shard) -> Result<(), Failure> {
        if self.listeners.is_open(name) {
            return Ok(());
        }
        let mut subscribe = redis::cmd("SSUBSCRIBE");
        subscribe.arg(name);
        self.servers
            .call_ears(shard, &subscribe, &self.listeners)
            .await?;
        self.listeners.opened(name);
        Ok(())
    }

    /// Gives up channels that nobody listens to any more.
    pub async fn hush(&self) {
        for (name, shard) in self.listeners.take_idle() {
            let mut unsubscribe = redis::cmd("SUNSUBSCRIBE");
            unsubscribe.arg(&name);
            // Where it fails, the connection is gone, and the channel with it.
            let _ = self
                .servers
                .call_ears(shard, &unsubscribe, &self.listeners)
                .await;
        }
    }
}
