//! `[server]`, `[store]`, `[limits]` and `[[tenant]]`.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use onlyonce_http::tenant::{ANONYMOUS, HASHED_PREFIX};
use onlyonce_ledger::prices::TenantPrice;

use super::error::ConfigError;
use super::policy::set_span;
use super::prices::tenant_prices;
use super::section::{Entry, OrZero, Section};
use super::token::Token;
use super::value::Secret;

/// What the listeners do.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where requests come in.
    pub listen: SocketAddr,
    /// Where the control listener is.
    pub control: SocketAddr,
    /// What callers of the control listener must present.
    pub control_token: Option<Secret>,
    /// Further tokens, each with a name and with rights of its own.
    pub tokens: Vec<Token>,
    /// The address under which people reach the control listener's pages, without a slash at the
    /// end.
    pub public_url: Option<Box<str>>,
    /// How many threads serve requests, each with a runtime of its own.
    pub workers: usize,
    /// Whether a keyed request without a credential is served, as tenant `anonymous`.
    pub allow_anonymous: bool,
    /// Connections at once; more wait to be accepted.
    pub max_connections: usize,
    /// Connections at once to the control listener.
    pub max_control_connections: usize,
    /// From the first byte of a request to the end of its headers.
    pub header_timeout: Duration,
    /// For the whole request body.
    pub body_timeout: Duration,
    /// How long a connection without a request stays.
    pub idle_timeout: Duration,
    /// How long a caller may take to read what was sent to it.
    pub write_timeout: Duration,
    /// How long running operations get at shutdown.
    pub drain_timeout: Duration,
    /// The longest request head, in bytes.
    pub max_header_bytes: usize,
    /// The most headers of a request.
    pub max_headers: usize,
    /// Which header tells the upstream who called.
    pub forwarded: Forwarded,
    /// The certificate, where requests come in over TLS.
    pub tls: Option<Tls>,
}

/// Which header tells the upstream who called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarded {
    /// None, and none that came is passed on.
    #[default]
    None,
    /// `X-Forwarded-For`, `-Host` and `-Proto`.
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// PEM files of a certificate.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The control listener's token has at least so many characters where it is not on loopback.
pub const MIN_TOKEN_CHARACTERS: usize = 32;

/// Which addresses the command line gave; they win over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `--control`.
    pub control: Option<SocketAddr>,
    /// `--data`.
    pub data: Option<PathBuf>,
}

impl Server {
    /// Whether callers of the control listener present a token.
    pub fn has_token(&self) -> bool {
        self.control_token.is_some() || !self.tokens.is_empty()
    }

    pub(crate) fn read(root: &mut Section<'_>, overrides: &Overrides) -> Result<Self, ConfigError> {
        let mut section = root.table_or_empty("server")?;
        let mut listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 8787));
        if let Some(entry) = section.take("listen") {
            listen = address(&entry)?;
        }
        let mut control = SocketAddr::from((Ipv4Addr::LOCALHOST, 8788));
        if let Some(entry) = section.take("control") {
            control = address(&entry)?;
        }
        let listen = overrides.listen.unwrap_or(listen);
        let mut server = Self {
            listen,
            control: overrides.control.unwrap_or(control),
            control_token: None,
            tokens: Vec::new(),
            public_url: None,
            workers: thread::available_parallelism().map_or(1, usize::from),
            allow_anonymous: listen.ip().is_loopback(),
            max_connections: 10_000,
            max_control_connections: 10_000,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
            max_header_bytes: 32 << 10,
            max_headers: 128,
            forwarded: Forwarded::None,
            tls: None,
        };
        server.read_control(&mut section)?;
        server.read_limits(&mut section)?;
        if let Some(entry) = section.take("allow_anonymous") {
            server.allow_anonymous = entry.boolean()?;
        }
        if let Some(entry) = section.take("forwarded") {
            server.forwarded = entry.choice(&[
                ("none", Forwarded::None),
                ("x-forwarded", Forwarded::XForwarded),
                ("forwarded", Forwarded::Forwarded),
            ])?;
        }
        if let Some(mut tls) = section.table("tls")? {
            let cert = tls.require("cert", "name the PEM file of the certificate chain")?;
            let key = tls.require("key", "name the PEM file of the private key")?;
            server.tls = Some(Tls {
                cert: cert.filled()?.into(),
                key: key.filled()?.into(),
            });
            tls.finish()?;
        }
        section.finish()?;
        Ok(server)
    }

    fn read_control(&mut self, section: &mut Section<'_>) -> Result<(), ConfigError> {
        if let Some(entry) = section.take("control_token") {
            self.control_token = Some(entry.secret()?);
        }
        self.tokens = Token::read_all(section, self.control_token.as_ref())?;
        if let Some(entry) = section.take("public_url") {
            let url = entry.filled()?;
            if !(url.starts_with("http://") || url.starts_with("https://")) {
                return Err(entry.fail(
                    format!("cannot be \"{url}\""),
                    "write the address of the control listener as people reach it, like \
                     \"https://onlyonce.example.com\"",
                ));
            }
            self.public_url = Some(url.trim_end_matches('/').into());
        }
        if self.listen == self.control && self.listen.port() != 0 {
            return Err(section.fail(
                format!("listen and control are both {}", self.listen),
                "give the control listener another port",
            ));
        }
        if self.control.ip().is_loopback() {
            return Ok(());
        }
        let has = match (&self.control_token, &self.tokens[..]) {
            (None, []) => "there is no control_token".to_owned(),
            (control, named) => {
                let control = control.iter().map(|token| (Token::CONTROL, token));
                let named = named.iter().map(|one| (&*one.name, &one.token));
                let length = |token: &Secret| token.expose().chars().count();
                let short = control
                    .chain(named)
                    .find(|(_, token)| length(token) < MIN_TOKEN_CHARACTERS);
                let Some((name, token)) = short else {
                    return Ok(());
                };
                let what = match name {
                    Token::CONTROL => name.to_owned(),
                    name => format!("the token {name}"),
                };
                format!("{what} has {} characters", length(token))
            }
        };
        Err(section.fail(
            format!(
                "the control listener {} is not on loopback, and {has}",
                self.control
            ),
            format!(
                "set control_token = \"env:ONLYONCE_CONTROL_TOKEN\" with at least \
                 {MIN_TOKEN_CHARACTERS} random characters, or listen on 127.0.0.1"
            ),
        ))
    }

    fn read_limits(&mut self, section: &mut Section<'_>) -> Result<(), ConfigError> {
        if let Some(entry) = section.take("workers") {
            self.workers = entry.number(1..=1024)?;
        }
        if let Some(entry) = section.take("max_connections") {
            self.max_connections = entry.number(1..=10_000_000)?;
        }
        if let Some(entry) = section.take("max_control_connections") {
            self.max_control_connections = entry.number(1..=10_000_000)?;
        }
        set_span(
            section,
            "header_timeout",
            OrZero::No,
            &mut self.header_timeout,
        )?;
        set_span(section, "body_timeout", OrZero::No, &mut self.body_timeout)?;
        set_span(section, "idle_timeout", OrZero::No, &mut self.idle_timeout)?;
        set_span(
            section,
            "write_timeout",
            OrZero::No,
            &mut self.write_timeout,
        )?;
        set_span(
            section,
            "drain_timeout",
            OrZero::Yes,
            &mut self.drain_timeout,
        )?;
        if let Some(entry) = section.take("max_header_bytes") {
            // hyper reads heads into a buffer of 8 KiB at least.
            self.max_header_bytes = narrow(entry.size((8 << 10)..=(16 << 20))?);
        }
        if let Some(entry) = section.take("max_headers") {
            self.max_headers = entry.number(16..=10_000)?;
        }
        Ok(())
    }
}

/// Where records are kept.
#[derive(Clone, Debug)]
pub struct Store {
    /// Which store.
    pub url: StoreUrl,
    /// Another URL of the same PostgreSQL server, on which notices are heard.
    pub listen_url: Option<Secret>,
    /// Bytes of a log file of the embedded store.
    pub segment_bytes: u64,
    /// Bytes of recordings that stay in memory.
    pub cache_bytes: u64,
    /// Bytes on disk at most; 0 for no limit.
    pub max_bytes: u64,
    /// Records at most.
    pub max_records: u64,
    /// How long a claim is believed without renewal.
    pub lease: Duration,
    /// How long a released record is shown before it is forgotten.
    pub released_retention: Duration,
    /// The keys that what is stored is sealed with.
    pub encryption: Option<Encryption>,
}

/// Which store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// Our own log in a folder.
    Embedded(PathBuf),
    /// Nothing outlives the process: for tests.
    Memory,
    /// PostgreSQL, shared by any number of gateways. The URL may hold a password.
    Postgres(Secret),
    /// Redis or Valkey, likewise.
    Redis(Secret),
}

impl StoreUrl {
    /// Reads a URL as it stands in the configuration; `None` where it is none of ours. What follows
    /// the scheme is the store's to read.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(':')?;
        match scheme {
            "embedded" if !rest.is_empty() => Some(Self::Embedded(rest.into())),
            "memory" if rest.is_empty() => Some(Self::Memory),
            "postgres" | "postgresql" => Some(Self::Postgres(Secret::new(text))),
            "redis" | "rediss" | "redis+cluster" | "rediss+cluster" | "redis+sentinel"
            | "rediss+sentinel" => Some(Self::Redis(Secret::new(text))),
            _ => None,
        }
    }

    /// The store as messages name it: its password is not in it.
    pub fn place(&self) -> String {
        match self {
            Self::Embedded(folder) => {
                let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
                format!("embedded:{}", folder.display())
            }
            Self::Memory => "memory:".to_owned(),
            Self::Postgres(url) => without_password(url.expose(), true),
            Self::Redis(url) => without_password(url.expose(), false),
        }
    }

    /// Whether other gateways may be at the same store.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_) | Self::Redis(_))
    }
}

/// A URL with what says which store it is, and nothing else: the user is part of that where it names the
/// database.
fn without_password(url: &str, with_user: bool) -> String {
    const KEPT: [&str; 6] = ["host", "port", "dbname", "schema", "prefix", "master"];
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let (scheme, rest) = base.split_once("://").unwrap_or(("", base));
    let (login, host) = rest.rsplit_once('@').unwrap_or(("", rest));
    let user = login
        .split(':')
        .next()
        .filter(|user| with_user && !user.is_empty());
    let user = user.map(|user| format!("{user}@")).unwrap_or_default();
    let is_kept = |pair: &&str| KEPT.contains(&pair.split('=').next().unwrap_or_default());
    let kept: Vec<_> = query.split('&').filter(is_kept).collect();
    let mark = if kept.is_empty() { "" } else { "?" };
    format!("{scheme}://{user}{host}{mark}{}", kept.join("&"))
}

/// The keys that what is stored is sealed with.
#[derive(Clone)]
pub struct Encryption {
    /// The number of the key that new data is sealed with.
    pub active: u32,
    /// All keys that data may be sealed with, by number.
    pub keys: Vec<(u32, [u8; 32])>,
}

impl std::fmt::Debug for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<_> = self.keys.iter().map(|(id, _)| id).collect();
        f.debug_struct("Encryption")
            .field("active", &self.active)
            .field("ids", &ids)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// The store at `url`, all else by default.
    pub(crate) fn at(url: StoreUrl) -> Self {
        Self {
            max_records: most_records(&url),
            url,
            listen_url: None,
            segment_bytes: 32 << 20,
            cache_bytes: 64 << 20,
            max_bytes: 64 << 30,
            lease: Duration::from_secs(30),
            released_retention: Duration::from_secs(3600),
            encryption: None,
        }
    }

    pub(crate) fn read(root: &mut Section<'_>, overrides: &Overrides) -> Result<Self, ConfigError> {
        let mut section = root.table_or_empty("store")?;
        let mut store = Self::at(StoreUrl::Embedded("./onlyonce-data".into()));
        if let Some(entry) = section.take("url") {
            store.url = store_url(&entry)?;
            if overrides.data.is_some() && store.url.is_shared() {
                return Err(entry.fail(
                    "names a store that gateways share, and --data a folder: a gateway on that folder \
                     would not see the keys that the others have used, and they would run again",
                    "leave out --data",
                ));
            }
        }
        if let Some(data) = &overrides.data {
            store.url = StoreUrl::Embedded(data.clone());
        }
        if let Some(entry) = section.take("listen_url") {
            store.listen_url = Some(listen_url(&entry, &store.url)?);
        }
        if let Some(entry) = section.take("segment_bytes") {
            store.segment_bytes = entry.size((1 << 20)..=(1 << 30))?;
        }
        if let Some(entry) = section.take("cache_bytes") {
            store.cache_bytes = entry.size(0..=(1 << 40))?;
        }
        if let Some(entry) = section.take("max_bytes") {
            store.max_bytes = entry.size(0..=(1 << 50))?;
            if store.max_bytes != 0 && store.max_bytes < 2 * store.segment_bytes {
                return Err(entry.fail(
                    "is below two segments",
                    format!(
                        "write 0 for no limit, at least {} bytes, or lower segment_bytes",
                        2 * store.segment_bytes
                    ),
                ));
            }
        }
        store.max_records = match section.take("max_records") {
            Some(entry) => entry.number(1..=1_000_000_000)?,
            None => most_records(&store.url),
        };
        if let Some(entry) = section.take("lease") {
            store.lease = entry.duration(OrZero::No)?;
            if store.lease < Duration::from_secs(1) {
                return Err(entry.fail("is below one second", "write at least \"1s\""));
            }
        }
        set_span(
            &mut section,
            "released_retention",
            OrZero::Yes,
            &mut store.released_retention,
        )?;
        if let Some(encryption) = section.table("encryption")? {
            store.encryption = Some(Encryption::read(encryption)?);
        }
        section.finish()?;
        Ok(store)
    }
}

fn most_records(url: &StoreUrl) -> u64 {
    // The index of the embedded store is in memory.
    if url.is_shared() {
        100_000_000
    } else {
        4_000_000
    }
}

fn store_url(entry: &Entry<'_>) -> Result<StoreUrl, ConfigError> {
    let text = entry.secret()?;
    StoreUrl::parse(text.expose()).ok_or_else(|| {
        // What is no URL may be a password in the wrong place: it is not repeated.
        entry.fail(
            "is not the URL of a store",
            "write \"embedded:FOLDER\", \"postgres://USER@HOST/DATABASE\", \"redis://HOST\", \
             \"env:NAME\", or \"memory:\" for tests",
        )
    })
}

fn listen_url(entry: &Entry<'_>, url: &StoreUrl) -> Result<Secret, ConfigError> {
    if !matches!(url, StoreUrl::Postgres(_)) {
        return Err(entry.fail(
            "is for a store on PostgreSQL, and url is another one",
            "take it away",
        ));
    }
    match StoreUrl::parse(entry.secret()?.expose()) {
        Some(StoreUrl::Postgres(url)) => Ok(url),
        _ => Err(entry.fail(
            "is not the URL of a PostgreSQL server",
            "write \"postgres://USER@HOST/DATABASE\" past the pooler, or \"env:NAME\"",
        )),
    }
}

impl Encryption {
    fn read(mut section: Section<'_>) -> Result<Self, ConfigError> {
        let list = section.require("keys", "write keys = [{ id = 1, key = \"env:NAME\" }]")?;
        let mut keys = Vec::new();
        for (index, item) in list
            .list("[{ id = 1, key = \"env:NAME\" }]")?
            .iter()
            .enumerate()
        {
            let mut table = item.table(&format!("encryption key number {}", index + 1))?;
            let id = table.require("id", "number the key, from 1")?;
            let number = id.number(1..=u64::from(u32::MAX))?;
            if keys.iter().any(|(other, _)| *other == number) {
                return Err(id.fail(format!("is {number} again"), "give each key its own number"));
            }
            let key = table.require("key", "write \"env:NAME\" with 32 bytes in base64 or hex")?;
            keys.push((number, thirty_two_bytes(&key)?));
            table.finish()?;
        }
        let active = section.require("active", "write the id of the key that seals new data")?;
        let number = active.number(1..=u64::from(u32::MAX))?;
        if !keys.iter().any(|(id, _)| *id == number) {
            return Err(active.fail(
                format!("is {number}, and no key has that id"),
                "write the id of one of the keys",
            ));
        }
        section.finish()?;
        Ok(Self {
            active: number,
            keys,
        })
    }
}

fn thirty_two_bytes(entry: &Entry<'_>) -> Result<[u8; 32], ConfigError> {
    let secret = entry.secret()?;
    let text = secret.expose();
    from_hex(text)
        .or_else(|| STANDARD.decode(text).ok()?.try_into().ok())
        .ok_or_else(|| {
            entry.fail(
                "is not 32 bytes in base64 or hex",
                "make one with `openssl rand -base64 32`",
            )
        })
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

/// What is bounded (I15).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request body.
    pub request_body: u64,
    /// Above so many bytes a request body waits on disk.
    pub spool_above: u64,
    /// Bytes of a message of the Model Context Protocol.
    pub mcp_message: u64,
    /// Bytes of a response body.
    pub response_body: u64,
    /// Bytes of recording in memory per running operation.
    pub operation_memory: usize,
    /// Bytes of memory of all decoders of encoded answers whose usage is read.
    pub meter_memory: usize,
    /// Operations running at once.
    pub live_operations: usize,
    /// Operations of one tenant running at once.
    pub tenant_live: usize,
    /// Records of one tenant.
    pub tenant_records: u64,
    /// Requests that are remembered of routes that observe.
    pub observed: usize,
    /// Bytes of the result of a worker's operation.
    pub work_result: usize,
    /// How long one request of the operations API may wait for an end.
    pub work_wait: Duration,
    /// Requests of the operations API that may wait at once.
    pub work_waiters: usize,
}

/// The largest result of a worker: it is one write.
const WORK_RESULT: u64 = onlyonce_store::MAX_CHUNK as u64;

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_body: 64 << 20,
            spool_above: 1 << 20,
            mcp_message: 4 << 20,
            response_body: 256 << 20,
            operation_memory: 256 << 10,
            meter_memory: 64 << 20,
            live_operations: 20_000,
            tenant_live: 10_000,
            tenant_records: 2_000_000,
            observed: 100_000,
            work_result: narrow(WORK_RESULT),
            work_wait: Duration::from_secs(60),
            work_waiters: 10_000,
        }
    }
}

impl Limits {
    pub(crate) fn read(root: &mut Section<'_>) -> Result<Self, ConfigError> {
        let mut section = root.table_or_empty("limits")?;
        let mut limits = Self::default();
        if let Some(entry) = section.take("request_body") {
            limits.request_body = entry.size(1..=(1 << 40))?;
        }
        if let Some(entry) = section.take("spool_above") {
            limits.spool_above = entry.size(0..=(1 << 30))?;
        }
        if let Some(entry) = section.take("mcp_message") {
            limits.mcp_message = entry.size(1..=(1 << 30))?;
        }
        if let Some(entry) = section.take("response_body") {
            limits.response_body = entry.size(1..=(1 << 40))?;
        }
        if let Some(entry) = section.take("operation_memory") {
            limits.operation_memory = narrow(entry.size((64 << 10)..=(1 << 30))?);
        }
        if let Some(entry) = section.take("meter_memory") {
            limits.meter_memory = narrow(entry.size(0..=(1 << 40))?);
        }
        if let Some(entry) = section.take("live_operations") {
            limits.live_operations = entry.number(1..=10_000_000)?;
        }
        if let Some(entry) = section.take("tenant_live") {
            limits.tenant_live = entry.number(1..=10_000_000)?;
        }
        if let Some(entry) = section.take("tenant_records") {
            limits.tenant_records = entry.number(1..=1_000_000_000)?;
        }
        if let Some(entry) = section.take("observed") {
            limits.observed = entry.number(1..=10_000_000)?;
        }
        if let Some(entry) = section.take("work_result") {
            limits.work_result = narrow(entry.size(1..=WORK_RESULT)?);
        }
        if let Some(entry) = section.take("work_wait") {
            limits.work_wait = entry.duration(OrZero::No)?;
        }
        if let Some(entry) = section.take("work_waiters") {
            limits.work_waiters = entry.number(1..=1_000_000)?;
        }
        section.finish()?;
        Ok(limits)
    }
}

/// A caller with a name, whatever its credential is today.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// The name.
    pub name: Box<str>,
    /// The credentials that are this tenant's: several while one is being replaced.
    pub credentials: Vec<Secret>,
    /// Its own prices, the first that fits counts.
    pub prices: Vec<TenantPrice>,
}

impl Tenant {
    pub(crate) fn read_all(root: &mut Section<'_>) -> Result<Vec<Self>, ConfigError> {
        let mut tenants = Vec::new();
        let mut names = HashSet::new();
        let mut credentials = HashSet::new();
        for mut section in root.tables("tenant")? {
            let entry = section.require("name", "name the tenant")?;
            let name = entry.name()?;
            if name == ANONYMOUS || name.starts_with(HASHED_PREFIX) {
                return Err(entry.fail(
                    format!("cannot be \"{name}\""),
                    format!(
                        "choose one that is not \"{ANONYMOUS}\" and does not start with \
                         \"{HASHED_PREFIX}\": those are tenants without a configured name"
                    ),
                ));
            }
            if !names.insert(name) {
                return Err(entry.fail(format!("is \"{name}\" again"), "choose another name"));
            }
            let list = section.require("credentials", "write credentials = [\"env:NAME\"]")?;
            let mut own = Vec::new();
            for item in list.list("[\"env:NAME\"]")? {
                let secret = item.secret()?;
                if !credentials.insert(secret.expose().to_owned()) {
                    return Err(item.fail(
                        "is a credential that was already given",
                        "a credential belongs to one tenant; take one of the two away",
                    ));
                }
                own.push(secret);
            }
            if own.is_empty() {
                return Err(list.fail("is empty", "write credentials = [\"env:NAME\"]"));
            }
            tenants.push(Self {
                name: name.into(),
                credentials: own,
                prices: tenant_prices(&mut section)?,
            });
            section.finish()?;
        }
        Ok(tenants)
    }
}

/// An address to listen on, `localhost` included.
fn address(entry: &Entry<'_>) -> Result<SocketAddr, ConfigError> {
    let text = entry.text()?;
    parse_address(text).ok_or_else(|| {
        entry.fail(
            format!("cannot be \"{text}\""),
            "write an address and a port, like \"127.0.0.1:8787\"",
        )
    })
}

/// Reads `127.0.0.1:8787`, `[::1]:8787` or `localhost:8787`.
pub fn parse_address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into()),
        None => text.parse().ok(),
    }
}

/// A size that its range has already bounded.
fn narrow(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
