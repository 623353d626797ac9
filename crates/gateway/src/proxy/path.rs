//! Where a request goes: a route, and what one worker has ready for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::header::HOST;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Method, Request, Uri, Version};
use onlyonce_http::headers::{ForwardRules, Forwarded, KeyForm};
use onlyonce_http::problem::Problem;

use super::outgoing::Outgoing;
use super::pool::Pool;
use crate::config::{self, ForwardKey, OnUnknown, Route};

/// Retries that a route has in reserve before its budget, a share of its requests, counts.
const RETRY_RESERVE: u64 = 3;

/// A route, and what one worker has ready for it.
pub(super) struct Path {
    pub(super) route: Arc<Route>,
    pub(super) pool: Arc<Pool>,
    /// For what passes through.
    pub(super) pass_rules: ForwardRules,
    /// For keyed requests: one for each header that a key may come in, in the route's order.
    keyed_rules: Vec<ForwardRules>,
    /// For keys that were derived.
    derived_rules: ForwardRules,
    requests: AtomicU64,
    retries: AtomicU64,
}

impl Path {
    pub(super) fn new(route: Arc<Route>, pool: Arc<Pool>, forwarded: config::Forwarded) -> Self {
        let policy = &route.policy;
        let forwarded = match forwarded {
            config::Forwarded::None => Forwarded::None,
            config::Forwarded::XForwarded => Forwarded::XForwarded,
            config::Forwarded::Forwarded => Forwarded::Forwarded,
        };
        // A resend must carry the very same key, however the attempt before it was written (I1), and whatever the route
        // said of resends when that was sent.
        let key_form = match policy.on_unknown {
            OnUnknown::Report if !policy.upstream_honours_keys => KeyForm::AsItCame,
            _ => KeyForm::Text,
        };
        let rules = |forward_key: Option<&HeaderName>| ForwardRules {
            key_headers: policy.key_headers.clone(),
            forward_key: forward_key.cloned(),
            key_form,
            forwarded,
        };
        let keyed_rules = policy
            .key_headers
            .iter()
            .map(|came_in| match &policy.forward_key {
                ForwardKey::AsItCame => rules(Some(came_in)),
                ForwardKey::Never => rules(None),
                ForwardKey::In(name) => rules(Some(name)),
            })
            .collect();
        let derived_rules = match &policy.forward_key {
            ForwardKey::AsItCame | ForwardKey::Never => rules(None),
            ForwardKey::In(name) => rules(Some(name)),
        };
        let pass_rules = ForwardRules {
            forwarded,
            ..ForwardRules::default()
        };
        Self {
            route,
            pool,
            pass_rules,
            keyed_rules,
            derived_rules,
            requests: AtomicU64::new(0),
            retries: AtomicU64::new(0),
        }
    }

    /// The rules for a request whose key came in one of these headers, or was derived.
    pub(super) fn rules(&self, headers: &HeaderMap, derived: bool) -> &ForwardRules {
        if derived {
            return &self.derived_rules;
        }
        let came_in = |(name, _): &(&HeaderName, _)| headers.contains_key(*name);
        let named = self.route.policy.key_headers.iter().zip(&self.keyed_rules);
        named
            .into_iter()
            .find(came_in)
            .map_or(&self.derived_rules, |(_, rules)| rules)
    }

    /// Path and query as the upstream gets them.
    pub(super) fn target(&self, uri: &Uri) -> Result<PathAndQuery, Problem> {
        let strip = match self.route.strip_prefix {
            true => &*self.route.matcher.path_prefix,
            false => "",
        };
        uri.path_and_query()
            .and_then(|target| self.pool.target(target, strip))
            .ok_or(Problem::BadRequest {
                why: "the target is not a path".into(),
            })
    }

    /// The host that the caller asked for, where the upstream is to be told.
    pub(super) fn host_to_tell(&self, head: &Parts) -> Option<String> {
        match self.pass_rules.forwarded {
            Forwarded::None => None,
            _ => host(head).map(str::to_owned),
        }
    }

    /// A request to this path's upstream, but for its host; `headers` came through
    /// [`to_upstream`](onlyonce_http::headers::to_upstream).
    pub(super) fn request(
        &self,
        method: Method,
        target: PathAndQuery,
        headers: HeaderMap,
        body: Outgoing,
    ) -> Request<Outgoing> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from(target);
        *request.headers_mut() = headers;
        request
    }

    /// Counts a request, for the budget of retries.
    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    /// Takes one retry out of the budget, where there is one left.
    pub(super) fn take_retry(&self) -> bool {
        // Precision beyond 2^52 requests is of no interest.
        #[expect(clippy::cast_precision_loss)]
        let share = self.requests.load(Relaxed) as f64 * self.route.policy.retries.budget;
        let retries = self.retries.load(Relaxed);
        #[expect(clippy::cast_precision_loss)]
        let left = retries < RETRY_RESERVE || (retries as f64) < share;
        if left {
            self.retries.fetch_add(1, Relaxed);
        }
        left
    }
}

/// The host that the caller asked for.
pub(super) fn host(head: &Parts) -> Option<&str> {
    match head.version {
        Version::HTTP_2 | Version::HTTP_3 => head.uri.authority().map(|host| host.as_str()),
        _ => None,
    }
    .or_else(|| head.headers.get(HOST)?.to_str().ok())
}
