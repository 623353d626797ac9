//! The client: what all its calls share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::Action;
use crate::budget::Budget;
use crate::keys::KeyStore;
use crate::layer::ClientLayer;
use crate::policy::Policy;
use crate::server::Server;
use crate::time::{Clock, SystemClock};

/// Makes calls that run once, however often they are tried. A clone is the same client.
pub struct OnceClient<K> {
    pub(crate) inner: Arc<Inner<K>>,
}

pub(crate) struct Inner<K> {
    pub(crate) keys: K,
    pub(crate) server: Server,
    pub(crate) policy: Policy,
    pub(crate) budget: Budget,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Random,
    pub(crate) passes_without_action: bool,
}

type Random = Box<dyn Fn() -> f64 + Send + Sync>;

/// What a client is made of.
#[must_use]
pub struct Builder<K>(Inner<K>);

impl<K: KeyStore> OnceClient<K> {
    /// A client that keeps its keys in `keys`. Its server is Onlyonce unless it is told of another.
    pub fn builder(keys: K) -> Builder<K> {
        Builder(Inner {
            keys,
            server: Server::onlyonce(),
            policy: Policy::default(),
            budget: Budget::default(),
            clock: Arc::new(SystemClock),
            random: Box::new(random),
            passes_without_action: false,
        })
    }

    /// The layer for tower services.
    pub fn layer(&self) -> ClientLayer<K> {
        ClientLayer::new(self.clone())
    }

    /// Forgets `action`, and says whether it was known. From here on it is a new action: call this once
    /// your own records say that the action is done, and never before.
    pub async fn forget(&self, action: &Action) -> Result<bool, K::Error> {
        self.inner.keys.forget(action).await
    }
}

impl<K> Builder<K> {
    /// The rules of the server.
    pub fn server(mut self, server: Server) -> Self {
        self.0.server = server;
        self
    }

    /// How long the server keeps a key, where it is not the server's default.
    pub fn window(mut self, window: Duration) -> Self {
        self.0.server.window = window;
        self
    }

    /// How often and how long a call is tried.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.0.policy = policy;
        self
    }

    /// The time for all attempts and waits of a call.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.0.policy.deadline = deadline;
        self
    }

    /// The budget of retries that all calls share.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.0.budget = budget;
        self
    }

    /// Lets requests without an action through, once and as they are, also by methods that are not safe.
    /// Without this such a request is an error, since it is mostly an action that was forgotten.
    pub fn pass_without_action(mut self) -> Self {
        self.0.passes_without_action = true;
        self
    }

    /// Another clock, for tests.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.0.clock = Arc::new(clock);
        self
    }

    /// Another source of numbers from 0 to 1, for tests: they spread the waits.
    pub fn random(mut self, random: impl Fn() -> f64 + Send + Sync + 'static) -> Self {
        self.0.random = Box::new(random);
        self
    }

    /// The client.
    pub fn build(self) -> OnceClient<K> {
        OnceClient {
            inner: Arc::new(self.0),
        }
    }
}

impl<K> Clone for OnceClient<K> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<K: fmt::Debug> fmt::Debug for OnceClient<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnceClient")
            .field("keys", &self.inner.keys)
            .field("server", &self.inner.server)
            .field("policy", &self.inner.policy)
            .field("budget", &self.inner.budget)
            .finish_non_exhaustive()
    }
}

/// A number from 0 to 1.
fn random() -> f64 {
    // The low half of the last group of a UUID of version 4 is random in all its bits.
    let bits = Uuid::new_v4().as_u64_pair().1 & 0xffff_ffff;
    f64::from(u32::try_from(bits).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}
