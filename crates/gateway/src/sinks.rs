//! Sinks of the books, from their settings to the tasks that deliver to them.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use onlyonce_core::OwnerId;
use onlyonce_ledger::outbox::{self, Deliver, Resent, Settings, Sink, Snapshot, Stats, Which};
use onlyonce_ledger::sinks::{self, Files, Lago, OpenMeter, Stripe, Webhook};
use onlyonce_store::{Store, StoreError};
use tokio::task::JoinSet;

use crate::config::{Billing, LedgerSink, Secret, SinkTarget};
use crate::failure::Failure;
use crate::http_client::{self, HttpClient};

impl Deliver for HttpClient {
    async fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
        self.send(request.map(Full::new)).await
    }
}

/// All sinks, as they stand in the configuration.
pub(crate) struct Sinks(Vec<OneSink>);

/// One of them.
pub(crate) struct OneSink {
    pub(crate) config: LedgerSink,
    channel: Channel,
    stats: Arc<Stats>,
}

enum Channel {
    Http(Box<HttpClient>, Arc<dyn Sink>),
    Files(Files),
}

impl Sinks {
    pub(crate) fn new(configs: &[LedgerSink]) -> Result<Self, Failure> {
        let sinks = configs.iter().map(OneSink::new);
        Ok(Self(sinks.collect::<Result<_, _>>()?))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &OneSink> {
        self.0.iter()
    }

    pub(crate) fn named(&self, name: &str) -> Option<&OneSink> {
        self.iter().find(|sink| &*sink.config.name == name)
    }

    /// Delivers to all of them, until what it returns is dropped. How far each was told is in the
    /// store: nothing is to be done at the end.
    pub(crate) fn start<S: Store>(&self, store: &Arc<S>, owner: OwnerId) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for sink in self.iter() {
            let (store, stats) = (Arc::clone(store), Arc::clone(&sink.stats));
            match &sink.channel {
                Channel::Http(client, told) => {
                    let (client, told) = ((**client).clone(), Arc::clone(told));
                    let run = outbox::run(store, owner, told, client, sink.settings(), stats);
                    tasks.spawn(run);
                }
                Channel::Files(files) => {
                    let files = files.clone();
                    tasks.spawn(sinks::keep(store, owner, files, sink.settings(), stats));
                }
            }
        }
        tasks
    }
}

impl OneSink {
    fn new(config: &LedgerSink) -> Result<Self, Failure> {
        Ok(Self {
            config: config.clone(),
            channel: Channel::new(config)?,
            stats: Arc::default(),
        })
    }

    fn settings(&self) -> Settings {
        Settings {
            name: self.config.name.clone(),
            begin: self.config.from,
            give_up: self.config.give_up,
            timeout: self.config.timeout,
            in_flight: self.config.in_flight,
            jitter: Arc::new(http_client::random),
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.stats.snapshot()
    }

    /// Sends dead letters once more. Files have none.
    pub(crate) async fn resend<S: Store>(
        &self,
        store: &S,
        which: &Which,
    ) -> Result<Resent, StoreError> {
        let Channel::Http(client, sink) = &self.channel else {
            return Ok(Resent::default());
        };
        let (name, timeout) = (&*self.config.name, self.config.timeout);
        let resent = outbox::resend(store, name, &**sink, &**client, timeout, which).await;
        if let Ok(dead) = outbox::count_dead(store, name).await {
            self.stats.dead(dead);
        }
        resent
    }
}

impl Channel {
    fn new(config: &LedgerSink) -> Result<Self, Failure> {
        let unusable = || {
            Failure::usage(
                format!("the secret of the sink {} cannot be used", config.name),
                "correct it in [[ledger.sink]]",
            )
        };
        let (url, sink): (_, Option<Arc<dyn Sink>>) = match &config.target {
            SinkTarget::File { folder, format } => {
                return Ok(Self::Files(Files {
                    folder: folder.clone(),
                    format: *format,
                }));
            }
            SinkTarget::Webhook { url, secrets } => {
                let secrets = secrets.iter().map(Secret::expose);
                let sink = Webhook::new(url.clone(), secrets).ok();
                (url, sink.map(|sink| Arc::new(sink) as _))
            }
            SinkTarget::OpenMeter {
                url,
                secret,
                source,
            } => {
                let secret = secret.as_ref().map(Secret::expose);
                let sink = OpenMeter::new(url.clone(), secret, source);
                (url, sink.map(|sink| Arc::new(sink) as _))
            }
            SinkTarget::Stripe(billing) => {
                let sink = with(billing, Stripe::new);
                (&billing.url, sink.map(|sink| Arc::new(sink) as _))
            }
            SinkTarget::Lago(billing) => {
                let sink = with(billing, Lago::new);
                (&billing.url, sink.map(|sink| Arc::new(sink) as _))
            }
        };
        let client = HttpClient::for_url(url, "ledger.sink.url")?;
        Ok(Self::Http(Box::new(client), sink.ok_or_else(unusable)?))
    }
}

fn with<T>(
    billing: &Billing,
    make: impl Fn(http::Uri, &str, &str, sinks::Customers, sinks::Value) -> Option<T>,
) -> Option<T> {
    make(
        billing.url.clone(),
        billing.secret.expose(),
        &billing.event_name,
        billing.customers.clone(),
        billing.value,
    )
}
