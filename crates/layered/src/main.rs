//! A server with the layer before a handler that forwards to an upstream.
//!
//! It reads the gateway's configuration, as far as that speaks of the contract, so that the hostile suite
//! of the gateway runs before it: `tests/cases.rs`.

mod control;
mod forward;

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use onlyonce_core::Concurrent;
use onlyonce_gateway::config::{
    ClientGone, Config, Forward, KeyMode, Overrides, Route, Source, StoreUrl,
};
use onlyonce_gateway::open;
use onlyonce_http::{HashKeys, Tenant, Tenants};
use onlyonce_store::{EmbeddedStore, Store as _};
use onlyonce_tower::{Once, OnceLayer, Rules};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tower::{Layer as _, Service, ServiceExt as _};

use forward::Forwarding;

fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let words: Vec<String> = std::env::args().collect();
    let [_, serve, option, file] = &words[..] else {
        bail!("usage: {} serve --config FILE", words[0]);
    };
    if serve != "serve" || option != "--config" {
        bail!("usage: {} serve --config FILE", words[0]);
    }
    let text = std::fs::read_to_string(file)?;
    let source = Source {
        name: file,
        text: &text,
        env: &|name| std::env::var(name).ok(),
    };
    let config = Config::read(&source, &Overrides::default()).context("the configuration")?;
    tokio::runtime::Runtime::new()?.block_on(run(config))
}

async fn run(config: Config) -> Result<()> {
    let store = open(&config)?;
    let tenants = Arc::new(config.tenants_by(&HashKeys::from_secret(store.secret()))?);
    let once = Once::new(store, config.engine_settings());
    let config = Arc::new(config);
    let connections = Arc::new(AtomicUsize::new(0));

    let listener = TcpListener::bind(config.server.listen).await?;
    let control = TcpListener::bind(config.server.control).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    announce("gateway", listener.local_addr()?)?;
    announce("control", control.local_addr()?)?;
    let control = control::serve(control, once.clone(), connections.clone());
    let control = tokio::spawn(control);

    let services = services(&config, &once, &tenants);
    let (drain, connected) = (config.server.drain_timeout, connections.clone());
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let at = config
            .route(None, request.uri().path())
            .map(|route| route.index);
        let service = at.map(|at| services[at].clone());
        async move {
            match service {
                Some(service) => service.oneshot(request).await,
                None => Err("no route".into()),
            }
        }
    });
    let drain = tokio::select! {
        () = accept(listener, service, connections) => unreachable!("it accepts for ever"),
        _ = terminate.recv() => drain,
    };
    once.shutdown(drain).await?;
    // What callers were told last is to reach them.
    let until = Instant::now() + Duration::from_secs(1);
    while connected.load(Relaxed) > 0 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    control.abort();
    Ok(())
}

/// One service for each route, by its place in the configuration.
fn services(
    config: &Config,
    once: &Once<EmbeddedStore>,
    tenants: &Arc<Tenants>,
) -> Arc<
    Vec<
        impl Service<
            Request<Incoming>,
            Response = http::Response<onlyonce_tower::ResponseBody<Incoming>>,
            Error = onlyonce_tower::BoxError,
            Future: Send,
        > + Clone
        + Send
        + Sync
        + 'static,
    >,
> {
    let mut routes: Vec<_> = config.routes.iter().collect();
    routes.sort_by_key(|route| route.index);
    let service = |route: &&Arc<Route>| {
        let layer = OnceLayer::new(once.clone(), rules(config, route, tenants.clone()));
        layer.layer(Forwarding::new(route))
    };
    Arc::new(routes.iter().map(service).collect())
}

async fn accept<S>(listener: TcpListener, service: S, connections: Arc<AtomicUsize>)
where
    S: Service<
            Request<Incoming>,
            Response = http::Response<onlyonce_tower::ResponseBody<Incoming>>,
            Error = onlyonce_tower::BoxError,
            Future: Send,
        > + Clone
        + Send
        + 'static,
{
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(service.clone());
        connections.fetch_add(1, Relaxed);
        let connections = connections.clone();
        tokio::spawn(async move {
            let http = auto::Builder::new(TokioExecutor::new());
            // What broke shows at the client.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
            connections.fetch_sub(1, Relaxed);
        });
    }
}

fn open(config: &Config) -> Result<EmbeddedStore> {
    let StoreUrl::Embedded(folder) = &config.store.url else {
        bail!("this server is for the embedded store");
    };
    Ok(open::embedded(folder, &config.store, &config.limits)?)
}

/// What the configuration says of a route, in the layer's own words.
fn rules(config: &Config, route: &Route, tenants: Arc<Tenants>) -> Rules {
    let policy = &route.policy;
    let released = policy.release.iter();
    let released = released.filter_map(|status| StatusCode::from_u16(*status).ok());
    let mut rules = Rules::default()
        .namespace(&route.namespace)
        .key_headers(policy.key_headers.clone())
        .window(policy.window)
        .join_timeout(policy.join_timeout)
        .released(released)
        .fingerprint_headers(policy.fingerprint_headers.clone())
        .max_request_body(config.limits.request_body)
        .body_timeout(config.server.body_timeout)
        .answer_timeout(policy.first_byte_timeout)
        .between_bytes_timeout(policy.between_bytes_timeout)
        .total_timeout(policy.total_timeout)
        .late_answer(policy.late_answer)
        .tenant(
            move |head| match tenants.tenant_of(&head.headers, head.uri.query(), None) {
                Tenant::Configured(name) => Some(name),
                Tenant::Hashed(_) | Tenant::Anonymous => None,
            },
        );
    if config.server.allow_anonymous {
        rules = rules.allow_anonymous();
    }
    if policy.key == KeyMode::Required {
        rules = rules.require_key();
    }
    if policy.concurrent == Concurrent::Reject {
        rules = rules.reject_concurrent();
    }
    if policy.client_gone == ClientGone::Cancel {
        rules = rules.cancel_when_all_left();
    }
    if policy.forward == Forward::AfterDurable {
        rules = rules.after_durable();
    }
    if policy.allow_set_cookie {
        rules = rules.allow_set_cookie();
    }
    if policy.fingerprint_body == onlyonce_gateway::config::FingerprintBody::Json {
        rules = rules.json_bodies(policy.ignore_pointers.clone());
    }
    rules
}

/// Says where something listens: the tests wait for the line.
fn announce(what: &str, addr: SocketAddr) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "onlyonce: {what} listening on http://{addr}")?;
    Ok(out.flush()?)
}
