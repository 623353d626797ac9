//! What a route wants where the contract leaves a choice.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use onlyonce_core::Concurrent;
use onlyonce_engine::RoutePolicy;
use onlyonce_http::canonical_json::Pointer;
use onlyonce_http::{BodyRule, FingerprintRules};
use onlyonce_ledger::UsageFormat;

use super::error::ConfigError;
use super::mcp::Mcp;
use super::section::{Entry, OrZero, Section};
use super::stream::StreamKind;
use super::usage::Formats;

/// The choices of one route: its own settings over its upstream's preset over the defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Where the key comes from.
    pub key: KeyMode,
    /// The headers that a key may come in.
    pub key_headers: Vec<HeaderName>,
    /// With [`KeyMode::Derived`]: within how long equal requests are one.
    pub derived_window: Duration,
    /// For an attempt that finds the operation running.
    pub concurrent: Concurrent,
    /// How long a joiner waits for the end of the execution.
    pub join_timeout: Duration,
    /// For an attempt that finds the outcome unknown.
    pub on_unknown: OnUnknown,
    /// What happens to the execution when the caller leaves.
    pub client_gone: ClientGone,
    /// When response bytes go to the caller.
    pub forward: Forward,
    /// How long a completed record answers retries, counted from completion.
    pub window: Duration,
    /// The statuses by which the upstream says that it did not run.
    pub release: Vec<u16>,
    /// The headers that enter the fingerprint besides content type and encoding.
    pub fingerprint_headers: Vec<HeaderName>,
    /// How the body enters the fingerprint.
    pub fingerprint_body: FingerprintBody,
    /// With [`FingerprintBody::Json`]: the JSON pointers (RFC 6901) that do not enter it.
    pub ignore_pointers: Vec<Pointer>,
    /// In which header the upstream gets the key.
    pub forward_key: ForwardKey,
    /// Whether the upstream itself runs a request with a known key only once.
    pub upstream_honours_keys: bool,
    /// Whether replays carry `Set-Cookie`.
    pub allow_set_cookie: bool,
    /// Whether a response without a length that ends with the connection counts as whole.
    pub allow_close_delimited: bool,
    /// How the upstream's event streams begin and end, so that one that was cut short is noticed
    /// although its body ended cleanly.
    pub streams: Arc<[StreamKind]>,
    /// How long after `first_byte_timeout` the execution goes on waiting for a late answer.
    pub late_answer: Duration,
    /// How long a connection to the upstream may take, TLS included.
    pub connect_timeout: Duration,
    /// How long the upstream may take from the whole request to the head of its response.
    pub first_byte_timeout: Duration,
    /// How long the upstream may be silent within a response.
    pub between_bytes_timeout: Duration,
    /// How long the whole exchange with the upstream may take.
    pub total_timeout: Duration,
    /// The query parameter that carries the caller's credential, where the upstream takes one
    /// there.
    pub credential_query: Option<Box<str>>,
    /// The gateway's own retries.
    pub retries: Retries,
    /// How answers tell what was used; the first that is for a call is the one.
    pub usage: Arc<[Arc<UsageFormat>]>,
    /// Whether streams are asked to tell it that tell it only where they are asked to.
    pub include_usage: IncludeUsage,
    /// With [`KeyMode::Observe`]: within how long an equal request looks like a repeat.
    pub observe_window: Duration,
    /// For a route of kind [`Mcp`](super::RouteKind::Mcp).
    pub mcp: Mcp,
}

/// Where the key of a request comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyMode {
    /// From the client where it sends one; a request without one passes through.
    #[default]
    Optional,
    /// From the client, which must send one.
    Required,
    /// From the client where it sends one; else from the request itself.
    Derived,
    /// From nowhere: every request passes through, and what looks like a repeat is counted.
    Observe,
}

/// Whether a stream is asked to tell what it used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeUsage {
    /// Where the caller asks.
    #[default]
    AsAsked,
    /// Also where the caller does not, and then the caller does not see it.
    Add,
}

/// What happens to an attempt that finds the outcome unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnknown {
    /// It is told so.
    #[default]
    Report,
    /// It is sent again under the same upstream key, because the upstream honours keys.
    Resend,
    /// It is sent again, and somebody wrote down that it may run twice.
    ResendMayRunTwice,
}

/// What happens to the execution when the caller leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientGone {
    /// It goes on and is recorded.
    #[default]
    Finish,
    /// It is cancelled, and its outcome is unknown.
    Cancel,
}

/// When response bytes go to the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forward {
    /// As they arrive; the end waits for the durable record.
    #[default]
    Stream,
    /// All of them once the completed record is durable.
    AfterDurable,
}

/// How the body enters the fingerprint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FingerprintBody {
    /// Byte for byte.
    #[default]
    Bytes,
    /// As canonical JSON (RFC 8785) where it is JSON.
    Json,
}

/// In which header the upstream gets the key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ForwardKey {
    /// In the one it came in, with the very value that came; a derived key is not sent.
    #[default]
    AsItCame,
    /// In none.
    Never,
    /// In this one, whatever it came in; a derived key too.
    In(HeaderName),
}

/// The gateway's own retries. They happen only where it is certain that nothing ran (I10).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retries {
    /// At most so many after the first try; 0 turns them off.
    pub max: u32,
    /// The first pause is drawn between nothing and this; each later one from twice as much.
    pub backoff: Duration,
    /// The longest pause.
    pub max_backoff: Duration,
    /// Retries are at most this fraction of the route's requests, from 0 to 1.
    pub budget: f64,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            max: 0,
            backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(5),
            budget: 0.1,
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            key: KeyMode::default(),
            key_headers: vec![HeaderName::from_static("idempotency-key")],
            derived_window: Duration::from_secs(30),
            concurrent: Concurrent::default(),
            join_timeout: minutes(10),
            on_unknown: OnUnknown::default(),
            client_gone: ClientGone::default(),
            forward: Forward::default(),
            window: minutes(24 * 60),
            release: vec![401, 429, 503],
            fingerprint_headers: Vec::new(),
            fingerprint_body: FingerprintBody::default(),
            ignore_pointers: Vec::new(),
            forward_key: ForwardKey::default(),
            upstream_honours_keys: false,
            allow_set_cookie: false,
            allow_close_delimited: false,
            streams: Arc::default(),
            late_answer: minutes(10),
            connect_timeout: Duration::from_secs(10),
            first_byte_timeout: minutes(10),
            between_bytes_timeout: minutes(2),
            total_timeout: minutes(60),
            credential_query: None,
            retries: Retries::default(),
            usage: Arc::default(),
            include_usage: IncludeUsage::default(),
            observe_window: minutes(10),
            mcp: Mcp::default(),
        }
    }
}

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

impl Policy {
    /// The part of it that the engine needs.
    pub(crate) fn for_engine(&self) -> RoutePolicy {
        RoutePolicy {
            decision: onlyonce_core::Policy {
                concurrent: self.concurrent,
                on_unknown: match self.on_unknown {
                    OnUnknown::Report => onlyonce_core::OnUnknown::Report,
                    OnUnknown::Resend | OnUnknown::ResendMayRunTwice => {
                        onlyonce_core::OnUnknown::Resend
                    }
                },
            },
            window: self.window,
            join_timeout: self.join_timeout,
        }
    }

    /// What of a request enters its fingerprint.
    pub(crate) fn fingerprint_rules(&self) -> FingerprintRules {
        FingerprintRules {
            headers: self.fingerprint_headers.clone(),
            credential_query: self.credential_query.as_deref().map(str::to_owned),
            body: match self.fingerprint_body {
                FingerprintBody::Bytes => BodyRule::Bytes,
                FingerprintBody::Json => BodyRule::Json {
                    ignore: self.ignore_pointers.clone(),
                },
            },
        }
    }

    /// Whether `status` says that the upstream did not run the request.
    pub fn releases(&self, status: u16) -> bool {
        self.release.contains(&status)
    }

    /// The policy settings of `section` over `base`, whose `usage` may name `formats`.
    pub(crate) fn read(
        section: &mut Section<'_>,
        base: &Self,
        formats: &Formats,
    ) -> Result<Self, ConfigError> {
        let mut policy = base.clone();
        if let Some(entry) = section.take("key") {
            policy.key = entry.choice(&[
                ("optional", KeyMode::Optional),
                ("required", KeyMode::Required),
                ("derived", KeyMode::Derived),
                ("observe", KeyMode::Observe),
            ])?;
        }
        if let Some(entry) = section.take("key_headers") {
            policy.key_headers = header_names(&entry, key_header)?;
            if policy.key_headers.is_empty() {
                return Err(entry.fail("is empty", "name at least one header"));
            }
        }
        set_span(
            section,
            "derived_window",
            OrZero::No,
            &mut policy.derived_window,
        )?;
        if let Some(entry) = section.take("concurrent") {
            policy.concurrent =
                entry.choice(&[("join", Concurrent::Join), ("reject", Concurrent::Reject)])?;
        }
        set_span(
            section,
            "join_timeout",
            OrZero::No,
            &mut policy.join_timeout,
        )?;
        set_span(section, "window", OrZero::No, &mut policy.window)?;
        if let Some(entry) = section.take("client_gone") {
            policy.client_gone = entry.choice(&[
                ("finish", ClientGone::Finish),
                ("cancel", ClientGone::Cancel),
            ])?;
        }
        if let Some(entry) = section.take("forward") {
            policy.forward = entry.choice(&[
                ("stream", Forward::Stream),
                ("after-durable", Forward::AfterDurable),
            ])?;
        }
        if let Some(entry) = section.take("release") {
            policy.release = statuses(&entry)?;
        }
        if let Some(entry) = section.take("credential_query") {
            let name = entry.text()?;
            policy.credential_query = (!name.is_empty()).then(|| name.into());
        }
        policy.read_fingerprint(section)?;
        policy.read_upstream_key(section)?;
        policy.read_response(section)?;
        policy.read_timeouts(section)?;
        if let Some(entry) = section.take("retries") {
            policy.retries = Retries::read(entry.table("retries")?, base.retries)?;
        }
        if let Some(entry) = section.take("usage") {
            policy.usage = formats.list(&entry)?;
        }
        if let Some(entry) = section.take("include_usage") {
            policy.include_usage = entry.choice(&[
                ("as-asked", IncludeUsage::AsAsked),
                ("add", IncludeUsage::Add),
            ])?;
        }
        set_span(
            section,
            "observe_window",
            OrZero::No,
            &mut policy.observe_window,
        )?;
        if let Some(section) = section.table("mcp")? {
            policy.mcp = Mcp::read(section, &base.mcp)?;
        }
        Ok(policy)
    }

    fn read_fingerprint(&mut self, section: &mut Section<'_>) -> Result<(), ConfigError> {
        if let Some(entry) = section.take("fingerprint_headers") {
            self.fingerprint_headers = header_names(&entry, fingerprint_header)?;
        }
        if let Some(entry) = section.take("fingerprint_body") {
            self.fingerprint_body = entry.choice(&[
                ("bytes", FingerprintBody::Bytes),
                ("json", FingerprintBody::Json),
            ])?;
        }
        if let Some(entry) = section.take("ignore_pointers") {
            self.ignore_pointers = pointers(&entry)?;
            if !self.ignore_pointers.is_empty() && self.fingerprint_body == FingerprintBody::Bytes {
                return Err(entry.fail(
                    "has no effect on bytes",
                    "set fingerprint_body = \"json\" beside it, or take it away",
                ));
            }
        }
        Ok(())
    }

    /// Who gets the key, and what may be sent twice because of it.
    fn read_upstream_key(&mut self, section: &mut Section<'_>) -> Result<(), ConfigError> {
        if let Some(entry) = section.take("forward_key") {
            self.forward_key = match entry.text()? {
                "" => ForwardKey::Never,
                "as-it-came" => ForwardKey::AsItCame,
                _ => ForwardKey::In(key_header(&entry)?),
            };
        }
        if let Some(entry) = section.take("upstream_honours_keys") {
            self.upstream_honours_keys = entry.boolean()?;
        }
        let Some(entry) = section.take("on_unknown") else {
            return Ok(());
        };
        self.on_unknown = entry.choice(&[
            ("report", OnUnknown::Report),
            ("resend", OnUnknown::Resend),
            ("resend:may-run-twice", OnUnknown::ResendMayRunTwice),
        ])?;
        if self.on_unknown != OnUnknown::Resend {
            return Ok(());
        }
        if !self.upstream_honours_keys {
            return Err(entry.fail(
                "is \"resend\", and the upstream is not known to honour keys, so that a resend \
                 may run twice",
                "set upstream_honours_keys = true if it does, write \"resend:may-run-twice\" if \
                 you accept that, or leave \"report\"",
            ));
        }
        if self.forward_key == ForwardKey::Never {
            return Err(entry.fail(
                "is \"resend\", and forward_key = \"\" keeps the key from the upstream, so that a \
                 resend may run twice",
                "set forward_key to the header that the upstream reads",
            ));
        }
        Ok(())
    }

    fn read_response(&mut self, section: &mut Section<'_>) -> Result<(), ConfigError> {
        if let Some(entry) = section.take("allow_set_cookie") {
            self.allow_set_cookie = entry.boolean()?;
        }
        if let Some(entry) = section.take("allow_close_delimited") {
            self.allow_close_delimited = entry.boolean()?;
        }
        if let Some(entry) = section.take("streams") {
            self.streams = entry
                .list("[{ begins = \"event: start\", ends = [\"event: end\"] }]")?
                .iter()
                .map(|item| StreamKind::read(item.table("{ begins = \"...\", ends = [\"...\"] }")?))
                .collect::<Result<_, _>>()?;
        }
        Ok(())
    }

    fn read_timeouts(&mut self, section: &mut Section<'_>) -> Result<(), ConfigError> {
        set_span(section, "late_answer", OrZero::Yes, &mut self.late_answer)?;
        set_span(
            section,
            "connect_timeout",
            OrZero::No,
            &mut self.connect_timeout,
        )?;
        set_span(
            section,
            "first_byte_timeout",
            OrZero::No,
            &mut self.first_byte_timeout,
        )?;
        set_span(
            section,
            "between_bytes_timeout",
            OrZero::No,
            &mut self.between_bytes_timeout,
        )?;
        set_span(
            section,
            "total_timeout",
            OrZero::No,
            &mut self.total_timeout,
        )
    }

    /// What one setting alone cannot tell: a later layer may have taken away what an earlier one
    /// relied on.
    pub(crate) fn check(&self, section: &Section<'_>) -> Result<(), ConfigError> {
        if self.on_unknown == OnUnknown::Resend
            && (!self.upstream_honours_keys || self.forward_key == ForwardKey::Never)
        {
            return Err(section.fail(
                "on_unknown = \"resend\" of the preset needs an upstream that gets the key and \
                 honours it, and this route says otherwise",
                "set on_unknown = \"report\" here",
            ));
        }
        let differs = self.key == KeyMode::Derived || self.key_headers.len() > 1;
        if self.on_unknown == OnUnknown::Resend
            && self.forward_key == ForwardKey::AsItCame
            && differs
        {
            return Err(section.fail(
                "on_unknown = \"resend\" needs an upstream that gets the very same key each time, and \
                 forward_key = \"as-it-came\" sends none that is derived, and each in the header that it \
                 came in",
                "set forward_key to the header that the upstream reads",
            ));
        }
        if self.upstream_honours_keys && self.forward_key == ForwardKey::Never {
            return Err(section.fail(
                "upstream_honours_keys is true, and forward_key = \"\" keeps the key from the \
                 upstream",
                "set forward_key to the header that the upstream reads, or upstream_honours_keys \
                 = false",
            ));
        }
        let needs_it = self.usage.iter().any(|format| format.needs_include_usage());
        if self.include_usage == IncludeUsage::Add && !needs_it {
            return Err(section.fail(
                "include_usage = \"add\" has no effect: no format in `usage` needs it",
                "take it away, or name a format with include_usage = true, like \"openai-chat\"",
            ));
        }
        Ok(())
    }
}

impl Retries {
    fn read(mut section: Section<'_>, base: Self) -> Result<Self, ConfigError> {
        let mut retries = base;
        if let Some(entry) = section.take("max") {
            retries.max = entry.number(0..=100)?;
        }
        set_span(&mut section, "backoff", OrZero::Yes, &mut retries.backoff)?;
        set_span(
            &mut section,
            "max_backoff",
            OrZero::Yes,
            &mut retries.max_backoff,
        )?;
        if let Some(entry) = section.take("budget") {
            retries.budget = entry.fraction()?;
        }
        if retries.max_backoff < retries.backoff {
            return Err(section.fail(
                "`retries` has a max_backoff below its backoff",
                "raise max_backoff, or lower backoff",
            ));
        }
        section.finish()?;
        Ok(retries)
    }
}

pub(crate) fn set_span(
    section: &mut Section<'_>,
    name: &'static str,
    or_zero: OrZero,
    into: &mut Duration,
) -> Result<(), ConfigError> {
    if let Some(entry) = section.take(name) {
        *into = entry.duration(or_zero)?;
    }
    Ok(())
}

fn header_names(
    entry: &Entry<'_>,
    read: impl Fn(&Entry<'_>) -> Result<HeaderName, ConfigError>,
) -> Result<Vec<HeaderName>, ConfigError> {
    let mut names = Vec::new();
    for item in entry.list("[\"Idempotency-Key\"]")? {
        let name = read(&item)?;
        if names.contains(&name) {
            return Err(item.fail(format!("names {name} again"), "take one of the two away"));
        }
        names.push(name);
    }
    Ok(names)
}

/// Headers of a trace: each attempt has its own.
const TRACE_HEADERS: [&str; 3] = ["traceparent", "tracestate", "baggage"];

fn fingerprint_header(entry: &Entry<'_>) -> Result<HeaderName, ConfigError> {
    let name = entry.header_name()?;
    if TRACE_HEADERS.contains(&name.as_str()) {
        return Err(entry.fail(
            format!("is {name}, which differs from attempt to attempt"),
            "take it away: a retry would be another request",
        ));
    }
    Ok(name)
}

/// Headers that no key comes in: they frame a message, or hold a credential, which as a key would be
/// stored (I16).
const NO_KEY_HEADERS: [&str; 16] = [
    "api-key",
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
    "x-goog-api-key",
];

fn key_header(entry: &Entry<'_>) -> Result<HeaderName, ConfigError> {
    let name = entry.header_name()?;
    if NO_KEY_HEADERS.contains(&name.as_str()) {
        return Err(entry.fail(
            format!("cannot be {name}, which carries something else"),
            "choose a header of its own for the key, like \"Idempotency-Key\"",
        ));
    }
    Ok(name)
}

/// A list of statuses that can mean "did not run". A success cannot: it would never be recorded.
fn statuses(entry: &Entry<'_>) -> Result<Vec<u16>, ConfigError> {
    let mut statuses = entry
        .list("[401, 429, 503]")?
        .iter()
        .map(|item| item.number(400..=599))
        .collect::<Result<Vec<u16>, _>>()?;
    statuses.sort_unstable();
    statuses.dedup();
    Ok(statuses)
}

fn pointers(entry: &Entry<'_>) -> Result<Vec<Pointer>, ConfigError> {
    entry
        .list("[\"/metadata/trace_id\"]")?
        .iter()
        .map(|item| {
            let text = item.text()?;
            Pointer::parse(text).map_err(|_| {
                item.fail(
                    format!("is \"{text}\", which is no JSON pointer"),
                    "write it like \"/metadata/trace_id\" (RFC 6901: `~` is ~0, `/` in a name is ~1)",
                )
            })
        })
        .collect()
}
