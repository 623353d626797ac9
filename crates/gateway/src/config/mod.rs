//! The configuration: from text to values that are valid, in one step.
//!
//! Nothing behind this module checks a setting again: [`Config`] can only be made by reading, and
//! reading refuses what cannot work. docs/configuration.md describes every setting.

mod error;
mod ledger;
mod mcp;
mod policy;
mod prices;
mod route;
pub(crate) mod section;
mod server;
mod stream;
mod telemetry;
#[cfg(test)]
mod tests;
mod token;
pub(crate) mod usage;
mod value;
mod work;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use onlyonce_engine::Settings;
use onlyonce_http::tenant::TenantsError;
use onlyonce_http::{HashKeys, Tenants};
use onlyonce_ledger::prices::Prices;

pub use error::ConfigError;
pub(crate) use error::nearest;
pub use ledger::{Billing, Ledger, LedgerSink, SinkTarget};
pub use mcp::Mcp;
pub use policy::{
    ClientGone, FingerprintBody, Forward, ForwardKey, IncludeUsage, KeyMode, OnUnknown, Policy,
    Retries,
};
pub use route::{Matcher, Route, RouteKind, Upstream};
use section::Section;
pub use section::Source;
pub use server::{
    Encryption, Forwarded, Limits, MIN_TOKEN_CHARACTERS, Overrides, Server, Store, StoreUrl,
    Tenant, Tls, parse_address,
};
pub use stream::{Line, StreamKind};
pub use telemetry::Telemetry;
pub use token::{Right, Token};
pub use value::{Secret, parse_duration, parse_size, show_duration};
pub use work::WorkRoute;

use crate::presets::Presets;

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`.
    pub server: Server,
    /// `[store]`.
    pub store: Store,
    /// `[limits]`.
    pub limits: Limits,
    /// `[prices]` `file`: the list prices to take in place of those that this program comes with.
    pub price_file: Option<PathBuf>,
    /// `[ledger]`.
    pub ledger: Ledger,
    /// `[telemetry]`, where there is an endpoint.
    pub telemetry: Option<Telemetry>,
    /// `[[tenant]]`.
    pub tenants: Vec<Tenant>,
    /// `[[upstream]]`, by name.
    pub upstreams: Vec<Arc<Upstream>>,
    /// `[[route]]`, in the order in which they are to be tried: the first that matches is the one.
    pub routes: Vec<Arc<Route>>,
    /// `[[route]]` of the kind `work`, in that order too. They go before all others.
    pub work: Vec<WorkRoute>,
}

impl Config {
    /// Reads a configuration's text.
    pub fn read(source: &Source<'_>, overrides: &Overrides) -> Result<Self, ConfigError> {
        source.read(|root| {
            let server = Server::read(root, overrides)?;
            let store = Store::read(root, overrides)?;
            let limits = Limits::read(root)?;
            let price_file = price_file(root)?;
            let telemetry = Telemetry::read(root)?;
            let tenants = Tenant::read_all(root)?;
            let presets = Presets::read(root)?;
            let upstreams = Upstream::read_all(root, &presets)?;
            let (routes, work) = routes(root, &server, &upstreams, &presets)?;
            let ledger = Ledger::read(root, &routes)?;
            let mut upstreams: Vec<_> = upstreams.into_values().collect();
            upstreams.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(Self {
                server,
                store,
                limits,
                price_file,
                ledger,
                telemetry,
                tenants,
                upstreams,
                routes,
                work,
            })
        })
    }

    /// Reads the configuration file `path`; secrets are looked up in the environment.
    pub fn from_file(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            file: name.clone(),
            line: None,
            what: format!("the configuration file cannot be read ({error})"),
            next: match error.kind() {
                std::io::ErrorKind::InvalidData => "save it as UTF-8".to_owned(),
                _ => "name a file that exists and may be read".to_owned(),
            },
        })?;
        let source = Source {
            name: &name,
            text: &text,
            env: &|name| std::env::var(name).ok(),
        };
        Self::read(&source, overrides)
    }

    /// The configuration that `--upstream` and `--preset` mean: everything to one upstream, which
    /// is named after its host, and its port where that is not the usual one: keys of two upstreams
    /// on one machine must not meet (HOSTILE 31).
    pub fn for_upstream(
        url: &str,
        preset: &str,
        overrides: &Overrides,
    ) -> Result<Self, ConfigError> {
        let host = url
            .parse::<http::Uri>()
            .ok()
            .and_then(|uri| {
                let host = uri.host()?.replace(['[', ']'], "");
                Some(match uri.port_u16() {
                    None | Some(80 | 443) => host,
                    Some(port) => format!("{host}:{port}"),
                })
            })
            .unwrap_or_else(|| "upstream".to_owned());
        let text = format!(
            "[[upstream]]\nname = {}\nurl = {}\npreset = {}\n",
            quoted(&host),
            quoted(url),
            quoted(preset)
        );
        let source = Source {
            name: "the command line",
            text: &text,
            env: &|name| std::env::var(name).ok(),
        };
        Self::read(&source, overrides).map_err(|error| ConfigError {
            line: None,
            what: error
                .what
                .replace("`url`", "--upstream")
                .replace("`preset`", "--preset"),
            ..error
        })
    }

    /// The engine's limits and spans.
    pub fn engine_settings(&self) -> Settings {
        Settings {
            lease: self.store.lease,
            released_retention: self.store.released_retention,
            operation_memory: self.limits.operation_memory,
            max_response: self.limits.response_body,
            live_operations: self.limits.live_operations,
            tenant_live: self.limits.tenant_live,
            books: self.ledger.enabled.then_some(self.ledger.retention),
            ..Settings::default()
        }
    }

    /// Who a caller is, by the credential that it presents.
    pub fn tenants_by(&self, hash_keys: &HashKeys) -> Result<Tenants, TenantsError> {
        let credentials = self.tenants.iter().flat_map(|tenant| {
            let of = |credential| (&*tenant.name, Secret::expose(credential));
            tenant.credentials.iter().map(of)
        });
        Tenants::new(hash_keys, credentials)
    }

    /// What calls cost: the list prices and those of all tenants. The file of prices is read here.
    pub fn prices(&self) -> Result<Prices, ConfigError> {
        let listed = match &self.price_file {
            Some(path) => prices_of(path)?,
            None => Prices::vendored(),
        };
        let with_prices = self.tenants.iter().filter(|own| !own.prices.is_empty());
        Ok(with_prices.fold(listed, |prices, tenant| {
            prices.with_tenant(&tenant.name, tenant.prices.clone())
        }))
    }

    /// The route of a request to `host` for `path`.
    pub fn route(&self, host: Option<&str>, path: &str) -> Option<&Arc<Route>> {
        self.routes
            .iter()
            .find(|route| route.matcher.matches(host, path))
    }

    /// Where a request to `host` for `path` goes in the operations API, if it is for a route of workers.
    pub fn work<'a>(&self, host: Option<&str>, path: &'a str) -> Option<&'a str> {
        self.work.iter().find_map(|route| route.below(host, path))
    }
}

/// `[[route]]`.
fn routes(
    root: &mut Section<'_>,
    server: &Server,
    upstreams: &HashMap<Box<str>, Arc<Upstream>>,
    presets: &Presets,
) -> Result<(Vec<Arc<Route>>, Vec<WorkRoute>), ConfigError> {
    let mut others = Vec::new();
    let mut work: Vec<WorkRoute> = Vec::new();
    for mut section in root.tables("route")? {
        match RouteKind::read(&mut section)? {
            RouteKind::Work => work.push(WorkRoute::read(section, server)?),
            kind => others.push((kind, section)),
        }
    }
    work.sort_by_key(|route| route.matcher.order());
    let mut routes = Route::read_all(others, upstreams, presets)?;
    if routes.is_empty() && (work.is_empty() || !upstreams.is_empty()) {
        routes.push(Arc::new(Route::only(root, upstreams, presets)?));
    }
    Ok((routes, work))
}

/// `[prices]`.
fn price_file(root: &mut Section<'_>) -> Result<Option<PathBuf>, ConfigError> {
    let mut section = root.table_or_empty("prices")?;
    let file = section.take("file");
    let file = file.map(|entry| entry.filled()).transpose()?;
    section.finish()?;
    Ok(file.map(PathBuf::from))
}

/// The list prices in a file.
fn prices_of(path: &Path) -> Result<Prices, ConfigError> {
    let fail = |what: String, next: &str| ConfigError {
        file: path.display().to_string(),
        line: None,
        what,
        next: next.to_owned(),
    };
    let text = std::fs::read_to_string(path).map_err(|error| {
        fail(
            format!("the file of prices cannot be read ({error})"),
            "name a file in [prices] that exists and may be read, or take the table away",
        )
    })?;
    Prices::read(&text).map_err(|error| {
        fail(
            error.to_string(),
            "take prices/new_data/v2/data.json of genai-prices, or take [prices] away",
        )
    })
}

/// `text` as a TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
