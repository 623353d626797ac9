//! What every part of a running gateway shares.

use std::sync::Arc;

use onlyonce_core::OwnerId;
use onlyonce_engine::{Engine, Seldom};
use onlyonce_http::{HashKeys, Tenants};
use onlyonce_ledger::MeterMemory;
use onlyonce_store::Store;
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::failure::Failure;
use crate::metrics::Metrics;
use crate::observe::Suspects;
use crate::proxy::Meters;
use crate::sinks::Sinks;
use crate::telemetry::Telemetry;
use crate::tools::Tools;

/// No more of them are in memory at a time.
const LARGE_MESSAGES_AT_ONCE: usize = 4;

/// What every part of a running gateway shares. Made once at the start; handed around in an `Arc`.
pub struct Shared<S: Store> {
    /// The valid configuration.
    pub config: Config,
    /// The engine, over the opened store.
    pub engine: Engine<S>,
    /// The keys of fingerprints and derived keys, from the store's secret.
    pub hash_keys: HashKeys,
    /// Who a caller is.
    pub tenants: Tenants,
    /// What calls use and cost.
    pub(crate) meters: Meters,
    /// What looks like a repeat, where a route observes.
    pub(crate) suspects: Arc<Suspects>,
    /// Which tools are declared to be harmless, where a route is of kind `mcp`.
    pub(crate) tools: Tools,
    /// Turns for messages of tools that are too large for the data path: each takes several times its size.
    pub(crate) large_messages: Semaphore,
    /// What is counted.
    pub metrics: Metrics,
    /// Who is told what the books say.
    pub(crate) sinks: Sinks,
    /// Where spans go.
    pub(crate) telemetry: Telemetry,
    /// When to say that the store is down, while every request finds it so.
    pub(crate) store_down: Seldom,
}

impl<S: Store> Shared<S> {
    /// Assembles them over an opened store.
    pub fn new(config: Config, store: S, owner: OwnerId) -> Result<Arc<Self>, Failure> {
        let hash_keys = HashKeys::from_secret(store.secret());
        let tenants = config.tenants_by(&hash_keys).map_err(|error| {
            Failure::usage(
                format!("the [[tenant]] tables cannot be used: {error}"),
                "correct them",
            )
        })?;
        let metrics = Metrics::new(&config);
        let meters = Meters {
            prices: config.prices()?,
            memory: MeterMemory::new(config.limits.meter_memory),
            gave_up: metrics.gave_up.clone(),
        };
        let sinks = Sinks::new(&config.ledger.sinks)?;
        let (store, observer) = (Arc::new(store), metrics.observer());
        let engine = Engine::with_observer(store, owner, config.engine_settings(), Some(observer));
        let telemetry = Telemetry::new(config.telemetry.as_ref(), &metrics.telemetry);
        let suspects = Arc::new(Suspects::new(config.limits.observed));
        Ok(Arc::new(Self {
            config,
            engine,
            hash_keys,
            tenants,
            meters,
            suspects,
            tools: Tools::default(),
            large_messages: Semaphore::new(LARGE_MESSAGES_AT_ONCE),
            metrics,
            sinks,
            telemetry,
            store_down: Seldom::default(),
        }))
    }
}

/// How far the gateway is on its way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It serves.
    #[default]
    Serving,
    /// It takes no new connections and closes idle ones; running requests go on.
    Draining,
    /// It goes now: connections are closed where they stand.
    Stopping,
}

/// Tells the parts of a gateway how far it is.
pub type Phases = tokio::sync::watch::Receiver<Phase>;
