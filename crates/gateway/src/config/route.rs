//! `[[upstream]]` and `[[route]]`.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::Authority;
use onlyonce_engine::RoutePolicy;
use onlyonce_http::FingerprintRules;
use onlyonce_ledger::prices::PerCall;

use super::error::{ConfigError, nearest};
use super::policy::{FingerprintBody, KeyMode, Policy, set_span};
use super::prices::per_call;
use super::section::{Entry, OrZero, Section};
use crate::presets::Presets;

/// A server that requests are sent to.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Its name; the namespace of its keys unless a route says otherwise.
    pub name: Box<str>,
    /// Whether it is reached over TLS.
    pub tls: bool,
    /// Host and port as written in its address: what `Host` says.
    pub authority: Authority,
    /// Its host, without the brackets of an IPv6 address.
    pub host: Box<str>,
    /// Its port.
    pub port: u16,
    /// What comes before every path: empty, or with a slash at the start and none at the end.
    pub base_path: Box<str>,
    /// HTTP/2 by prior knowledge (http), or nothing else (https). Otherwise HTTP/1.1 on http, and
    /// what the handshake agrees on (ALPN) on https.
    pub http2: bool,
    /// The PEM file of the roots to trust in place of the system's.
    pub tls_roots: Option<PathBuf>,
    /// Idle connections that each worker keeps.
    pub max_idle_per_worker: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// The name of its preset.
    pub preset: Box<str>,
}

/// Which requests go where, and how.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name in lists and metrics; unique.
    pub name: Box<str>,
    /// What is behind it: an upstream, or a server of the Model Context Protocol.
    pub kind: RouteKind,
    /// Which requests are its.
    pub matcher: Matcher,
    /// Whether the path prefix is taken away before the request is sent.
    pub strip_prefix: bool,
    /// Where they go.
    pub upstream: Arc<Upstream>,
    /// Where their keys are unique, together with the tenant.
    pub namespace: Box<str>,
    /// How they are treated.
    pub policy: Policy,
    /// What each of its calls costs, where that is fixed.
    pub per_call: Option<PerCall>,
    /// `policy`, as far as the engine needs it.
    pub engine_policy: RoutePolicy,
    /// `policy`, as far as the fingerprint needs it.
    pub fingerprint_rules: FingerprintRules,
    /// Its place in [`Config::routes`](super::Config::routes).
    pub index: usize,
}

/// Which requests are a route's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Matcher {
    /// Only requests to this host, in lower case and without a port.
    pub host: Option<Box<str>>,
    /// Only paths that start with this, segment by segment. Empty for every path; otherwise with a
    /// slash at the start and none at the end.
    pub path_prefix: Box<str>,
}

impl Matcher {
    /// Whether a request to `host` (with or without a port, in any case) for `path` is the route's.
    pub fn matches(&self, host: Option<&str>, path: &str) -> bool {
        self.below(host, path).is_some()
    }

    /// What comes behind the prefix in `path`, where a request to `host` for it is the route's.
    pub(crate) fn below<'a>(&self, host: Option<&str>, path: &'a str) -> Option<&'a str> {
        let host_matches = match &self.host {
            None => true,
            Some(own) => host.is_some_and(|host| host_alone(host).eq_ignore_ascii_case(own)),
        };
        behind(path, &self.path_prefix).filter(|_| host_matches)
    }
}

/// What comes behind `prefix` in `path`, segment by segment.
pub(crate) fn behind<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// `host` without its port.
fn host_alone(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((alone, port)) if port.bytes().all(|b| b.is_ascii_digit()) => alone,
        _ => host,
    }
}

/// What is behind a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouteKind {
    /// An upstream.
    #[default]
    Http,
    /// A server of the Model Context Protocol: of the messages to it, calls of tools are operations.
    Mcp,
    /// The operations API: see [`WorkRoute`](super::WorkRoute).
    Work,
}

impl RouteKind {
    pub(crate) fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        let kinds = [
            ("http", Self::Http),
            ("mcp", Self::Mcp),
            ("work", Self::Work),
        ];
        let kind = section.take("kind");
        kind.map_or(Ok(Self::default()), |entry| entry.choice(&kinds))
    }
}

impl Upstream {
    pub(crate) fn read_all(
        root: &mut Section<'_>,
        presets: &Presets,
    ) -> Result<HashMap<Box<str>, Arc<Self>>, ConfigError> {
        let mut upstreams = HashMap::new();
        for mut section in root.tables("upstream")? {
            let entry = section.require("name", "name the upstream")?;
            let name = entry.namespace()?;
            if upstreams.contains_key(name) {
                return Err(entry.fail(format!("is \"{name}\" again"), "choose another name"));
            }
            let upstream = Self::read(&mut section, name, presets)?;
            section.finish()?;
            upstreams.insert(name.into(), Arc::new(upstream));
        }
        Ok(upstreams)
    }

    fn read(section: &mut Section<'_>, name: &str, presets: &Presets) -> Result<Self, ConfigError> {
        let url = section.require("url", "write url = \"https://api.example.com\"")?;
        let address = url.text()?;
        let mut upstream = Self::at(name, address)
            .map_err(|why| url.fail(why, "write it like \"https://api.example.com\""))?;
        if let Some(entry) = section.take("preset") {
            let preset = entry.text()?;
            if presets.find(preset).is_none() {
                let next = match nearest(preset, presets.names()) {
                    Some(meant) => format!("did you mean \"{meant}\"?"),
                    None => format!("use one of: {}", presets.list()),
                };
                return Err(entry.fail(format!("cannot be \"{preset}\""), next));
            }
            upstream.preset = preset.into();
        }
        if let Some(entry) = section.take("http2") {
            upstream.http2 = entry.boolean()?;
        }
        if let Some(entry) = section.take("tls_roots") {
            if !upstream.tls {
                return Err(entry.fail(
                    "has no effect on an http address",
                    "take it away, or write an https address",
                ));
            }
            upstream.tls_roots = Some(entry.filled()?.into());
        }
        if let Some(entry) = section.take("max_idle_per_worker") {
            upstream.max_idle_per_worker = entry.number(0..=100_000)?;
        }
        set_span(
            section,
            "idle_timeout",
            OrZero::No,
            &mut upstream.idle_timeout,
        )?;
        Ok(upstream)
    }

    /// The upstream `name` at `url`, all else by default; or why `url` is no address of one, in
    /// words that follow its name.
    fn at(name: &str, url: &str) -> Result<Self, String> {
        let cannot = |why: &str| format!("cannot be \"{url}\": {why}");
        let uri: Uri = url
            .parse()
            .map_err(|_| cannot("it is not an http or https address"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(cannot("it does not start with http:// or https://")),
        };
        let authority = uri
            .authority()
            .filter(|authority| !authority.host().is_empty())
            .ok_or_else(|| cannot("it has no host"))?;
        if authority.as_str().contains('@') {
            // Not repeated: what stands there is a credential.
            return Err("holds a user or a password; callers send their own".to_owned());
        }
        if uri.query().is_some() || url.contains('#') {
            return Err(cannot("it has a query or a fragment"));
        }
        let host = authority.host();
        if host.len() + 1 < authority.as_str().len() && authority.port_u16().is_none() {
            return Err(cannot("its port is not a number up to 65535"));
        }
        if authority.port_u16() == Some(0) {
            return Err(cannot("nothing listens on port 0"));
        }
        Ok(Self {
            name: name.into(),
            tls,
            authority: authority.clone(),
            host: host.trim_start_matches('[').trim_end_matches(']').into(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            base_path: uri.path().trim_end_matches('/').into(),
            http2: false,
            tls_roots: None,
            max_idle_per_worker: 64,
            idle_timeout: Duration::from_secs(60),
            preset: "generic".into(),
        })
    }
}

impl Route {
    /// All routes of `sections`, in the order in which they are to be tried.
    pub(crate) fn read_all(
        sections: Vec<(RouteKind, Section<'_>)>,
        upstreams: &HashMap<Box<str>, Arc<Upstream>>,
        presets: &Presets,
    ) -> Result<Vec<Arc<Self>>, ConfigError> {
        let mut routes: Vec<Self> = Vec::new();
        let mut names = HashSet::new();
        for (kind, mut section) in sections {
            let route = Self::read(kind, &mut section, upstreams, presets)?;
            if routes.iter().any(|other| other.matcher == route.matcher) {
                return Err(section.fail(
                    format!("two routes are for {}", route.matcher.title()),
                    "take one away, or give it another host or path_prefix",
                ));
            }
            if !names.insert(route.name.clone()) {
                return Err(section.fail(
                    format!("two routes are named \"{}\"", route.name),
                    "give this one another name",
                ));
            }
            section.finish()?;
            routes.push(route);
        }
        routes.sort_by_key(|route| route.matcher.order());
        for (index, route) in routes.iter_mut().enumerate() {
            route.index = index;
        }
        Ok(routes.into_iter().map(Arc::new).collect())
    }

    /// The route of a file that has none: everything to its only upstream.
    pub(crate) fn only(
        root: &Section<'_>,
        upstreams: &HashMap<Box<str>, Arc<Upstream>>,
        presets: &Presets,
    ) -> Result<Self, ConfigError> {
        let mut all = upstreams.values();
        let (Some(upstream), None) = (all.next(), all.next()) else {
            return Err(if upstreams.is_empty() {
                root.fail(
                    "there is no upstream",
                    "add [[upstream]] with a name and a url",
                )
            } else {
                root.fail(
                    "there are several upstreams and no route",
                    "add a [[route]] for each, with a path_prefix or a host",
                )
            });
        };
        let matcher = Matcher {
            host: None,
            path_prefix: "".into(),
        };
        let policy = presets.policy(&upstream.preset);
        Ok(Self::new(upstream, upstream.name.clone(), matcher, policy))
    }

    fn read(
        kind: RouteKind,
        section: &mut Section<'_>,
        upstreams: &HashMap<Box<str>, Arc<Upstream>>,
        presets: &Presets,
    ) -> Result<Self, ConfigError> {
        let entry = section.require("upstream", "name one of the [[upstream]] tables")?;
        let wanted = entry.text()?;
        let Some(upstream) = upstreams.get(wanted) else {
            let next = match nearest(wanted, upstreams.keys().map(|name| &**name)) {
                Some(meant) => format!("did you mean \"{meant}\"?"),
                None => "add an [[upstream]] with that name".to_owned(),
            };
            return Err(entry.fail(format!("names no upstream: \"{wanted}\""), next));
        };
        let matcher = Matcher::read(section)?;
        let name = match section.take("name") {
            Some(entry) => entry.name()?.into(),
            None if matcher.host.is_none() && matcher.path_prefix.is_empty() => {
                upstream.name.clone()
            }
            None => matcher.title().into(),
        };
        let mut strip_prefix = false;
        if let Some(entry) = section.take("strip_prefix") {
            strip_prefix = entry.boolean()?;
        }
        let namespace = match section.take("namespace") {
            Some(entry) => entry.namespace()?.into(),
            None => upstream.name.clone(),
        };
        let preset = match kind {
            // What an upstream is known for that names no preset of its own.
            RouteKind::Mcp if *upstream.preset == *"generic" => "mcp",
            _ => &upstream.preset,
        };
        let base = presets.policy(preset);
        let policy = Policy::read(section, &base, presets.formats())?;
        policy.check(section)?;
        kind.check(section, &policy, &base)?;
        Ok(Self {
            kind,
            per_call: per_call(section, &name)?,
            strip_prefix,
            namespace,
            ..Self::new(upstream, name, matcher, policy)
        })
    }

    fn new(upstream: &Arc<Upstream>, name: Box<str>, matcher: Matcher, policy: Policy) -> Self {
        Self {
            name,
            kind: RouteKind::default(),
            matcher,
            strip_prefix: false,
            upstream: Arc::clone(upstream),
            namespace: upstream.name.clone(),
            per_call: None,
            engine_policy: policy.for_engine(),
            fingerprint_rules: policy.fingerprint_rules(),
            policy,
            index: 0,
        }
    }
}

impl RouteKind {
    /// What a route of this kind cannot have.
    fn check(
        self,
        section: &Section<'_>,
        policy: &Policy,
        base: &Policy,
    ) -> Result<(), ConfigError> {
        if self != Self::Mcp {
            return match policy.mcp == base.mcp {
                true => Ok(()),
                false => Err(section.fail(
                    "[route.mcp] has no effect on a route of another kind",
                    "set kind = \"mcp\", or take it away",
                )),
            };
        }
        if policy.fingerprint_body == FingerprintBody::Bytes {
            return Err(section.fail(
                "kind = \"mcp\" compares calls as JSON, and fingerprint_body is \"bytes\"",
                "take it away, or let the upstream's preset extend \"mcp\"",
            ));
        }
        if policy.key == KeyMode::Observe {
            return Err(section.fail(
                "kind = \"mcp\" cannot be with key = \"observe\": a message and its repeat differ in \
                 their ids",
                "take key away",
            ));
        }
        Ok(())
    }
}

impl Matcher {
    pub(crate) fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        let mut matcher = Self {
            host: None,
            path_prefix: "".into(),
        };
        if let Some(entry) = section.take("host") {
            matcher.host = Some(host(&entry)?);
        }
        if let Some(entry) = section.take("path_prefix") {
            matcher.path_prefix = path_prefix(&entry)?;
        }
        Ok(matcher)
    }

    /// By which of several are tried: a host says more than any path, and a long path more than a short one.
    pub(crate) fn order(&self) -> (bool, std::cmp::Reverse<usize>) {
        let path = std::cmp::Reverse(self.path_prefix.len());
        (self.host.is_none(), path)
    }

    /// Host and path, for people.
    pub(crate) fn title(&self) -> String {
        let path = if self.path_prefix.is_empty() {
            "/"
        } else {
            &self.path_prefix
        };
        format!("{}{path}", self.host.as_deref().unwrap_or(""))
    }
}

fn host(entry: &Entry<'_>) -> Result<Box<str>, ConfigError> {
    let text = entry.filled()?;
    let is_host = text
        .parse::<Authority>()
        .is_ok_and(|authority| authority.host() == text);
    if is_host {
        return Ok(text.to_ascii_lowercase().into());
    }
    Err(entry.fail(
        format!("cannot be \"{text}\""),
        "write the host alone, without scheme, port or path",
    ))
}

fn path_prefix(entry: &Entry<'_>) -> Result<Box<str>, ConfigError> {
    let text = entry.filled()?;
    let plain = text.starts_with('/')
        && !text.contains("//")
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"?#%".contains(&b))
        && text.split('/').all(|part| part != "." && part != "..");
    if plain {
        return Ok(text.trim_end_matches('/').into());
    }
    Err(entry.fail(
        format!("cannot be \"{text}\""),
        "write the start of a path, like \"/v1\", without `?`, `%`, `..` or empty segments",
    ))
}
