//! One request of a route that observes, beside it: what it is, and what its answer tells.

use std::sync::Arc;

use http::header::UPGRADE;
use http::{Method, Request, Response};
use onlyonce_core::Timestamp;
use onlyonce_http::{FingerprintBuilder, RequestIdentity};
use onlyonce_ledger::{Asked, End};
use onlyonce_store::Store;

use super::metering::Metering;
use super::path::Path;
use crate::config::{KeyMode, Route};
use crate::observe::{Sight, client_of};
use crate::shared::Shared;

/// Watches one request and its answer, until it is dropped. Then it counts, if it was a repeat.
pub(super) struct Watching<S: Store> {
    shared: Arc<Shared<S>>,
    route: Arc<Route>,
    sight: Arc<Sight>,
    client: Box<str>,
    /// The path as the upstream gets it.
    path: Box<str>,
    at: Timestamp,
    metering: Option<Metering>,
    end: End,
}

impl<S: Store> Watching<S> {
    /// Of `request`, where its route observes and it is one that may cost something twice. A safe
    /// method does nothing, and another protocol is not read.
    pub(super) fn begin<B>(
        shared: &Arc<Shared<S>>,
        path: &Path,
        request: &Request<B>,
    ) -> Option<Self> {
        let route = &path.route;
        let policy = &route.policy;
        let method = request.method();
        let is_watched = policy.key == KeyMode::Observe
            && !method.is_safe()
            && *method != Method::TRACE
            && !request.headers().contains_key(UPGRADE);
        if !is_watched {
            return None;
        }
        let (headers, query) = (request.headers(), request.uri().query());
        let tenant = shared
            .tenants
            .tenant_of(headers, query, policy.credential_query.as_deref());
        let identity = RequestIdentity {
            method,
            upstream: &route.upstream.name,
            path: request.uri().path(),
            query,
            headers,
        };
        let rules = &route.fingerprint_rules;
        let fingerprint = FingerprintBuilder::by_bytes(&shared.hash_keys, &identity, rules);
        Some(Self {
            sight: Sight::new(
                &shared.suspects,
                tenant.name(),
                &route.name,
                policy.observe_window,
                fingerprint,
            ),
            client: client_of(headers),
            path: path
                .target(request.uri())
                .map_or_else(|_| "".into(), |target| target.path().into()),
            at: shared.engine.store().now(),
            metering: None,
            end: End::Broken,
            route: Arc::clone(route),
            shared: Arc::clone(shared),
        })
    }

    /// What sees the request's body.
    pub(super) fn sight(&self) -> Arc<Sight> {
        Arc::clone(&self.sight)
    }

    /// No byte of the request was written.
    pub(super) fn not_sent(&self) {
        self.sight.did_not_run();
    }

    /// The head of the answer is here.
    pub(super) fn answered(&mut self, head: &Response<()>) {
        let status = head.status().as_u16();
        if self.route.policy.releases(status) {
            return self.sight.did_not_run();
        }
        if self.sight.may_be_repeat() {
            let model = self.sight.model();
            let asked = Asked {
                path: &self.path,
                model: model.as_deref(),
            };
            let meters = &self.shared.meters;
            self.metering = Some(Metering::new(
                meters,
                &self.route,
                asked,
                status,
                head.headers(),
            ));
        }
    }

    /// The next bytes of the answer.
    pub(super) fn see(&mut self, bytes: &[u8]) {
        if let Some(metering) = &mut self.metering {
            metering.see(bytes);
        }
    }

    /// The answer is whole.
    pub(super) fn whole(&mut self) {
        self.end = End::Clean;
    }
}

impl<S: Store> Drop for Watching<S> {
    fn drop(&mut self) {
        if !self.sight.is_repeat() {
            return;
        }
        let (shared, route, tenant) = (&self.shared, &self.route, self.sight.tenant());
        let metering = self.metering.take();
        let metered = metering
            .and_then(|metering| metering.finish(self.end, &shared.meters, route, tenant, self.at));
        shared.metrics.suspect(route);
        shared
            .suspects
            .count(tenant, &route.name, &self.client, metered.as_ref(), self.at);
    }
}
