//! What one caller of the control listener may see of the store, and do to it.
//!
//! A caller that is bound to a tenant gets that tenant's operations and no other (I7): lists are
//! narrowed before the store is asked, and an operation of another tenant is not there.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use onlyonce_core::{OperationId, Timestamp};
use onlyonce_engine::{ClaimToken, Engine, Operation, Purge, Reader, Resolution, Trouble};
use onlyonce_http::tenant::ANONYMOUS;
use onlyonce_http::{HashKeys, Place, Problem};
use onlyonce_store::books::{Cell, EntryPage, EntryQuery, Of, SumsQuery};
use onlyonce_store::{Page, Query, Store, StoreError, Stored};
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument as _;

use super::Control;
use super::access::{Access, foreign, is_same_origin, same};
use super::answer::Refusal;
use super::console::Followed;
use super::session::form_mac;
use super::suspects::Suspected;
use crate::config::{KeyMode, Limits, Policy, Store as StoreConfig};
use crate::proxy::Meters;
use crate::shared::{Phase, Phases};

/// What one caller may see and do.
pub(super) struct Desk<S: Store> {
    control: Control<S>,
    access: Access,
}

impl<S: Store> Desk<S> {
    pub(super) fn new(control: &Control<S>, access: Access) -> Self {
        Self {
            control: control.clone(),
            access,
        }
    }

    /// Who it is.
    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    /// What the forms that are shown to it carry.
    pub(super) fn form_mac(&self) -> String {
        let store = self.control.shared.engine.store();
        form_mac(&**store, self.access.session.as_ref())
    }

    /// Refuses a form that another page filled in.
    pub(super) fn check_form(&self, mac: &str) -> Result<(), Refusal> {
        match same(mac.as_bytes(), self.form_mac().as_bytes()) {
            true => Ok(()),
            false => Err(foreign()),
        }
    }

    /// Refuses a form that a page of another origin sent.
    pub(super) fn check_origin(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        match is_same_origin(&self.control, headers) {
            true => Ok(()),
            false => Err(foreign()),
        }
    }

    /// The console's pages that browsers follow now.
    pub(super) fn followed(&self) -> &Arc<Followed> {
        &self.control.followed
    }

    /// How far the gateway is on its way out.
    pub(super) fn phase(&self) -> Phase {
        self.control.phase()
    }

    /// All of the gateway, where its holder is bound to no tenant.
    pub(super) fn whole(&self) -> Result<&Control<S>, Refusal> {
        if self.access.tenant.is_none() {
            return Ok(&self.control);
        }
        Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!("the token {} sees one tenant only", self.access.name),
            "use a token without tenant: this is about the gateway as a whole",
        ))
    }

    /// The store's time, which spans are counted from.
    pub(super) fn now(&self) -> Timestamp {
        self.control.shared.engine.store().now()
    }

    /// How long a completed record of `route` answers retries; by default where no route has that
    /// name any more.
    pub(super) fn window_of(&self, route: &str) -> Duration {
        let routes = &self.control.shared.config.routes;
        let found = routes.iter().find(|one| &*one.name == route);
        found.map_or_else(|| Policy::default().window, |route| route.policy.window)
    }

    /// One page of operations, newest first.
    pub(super) async fn list(&self, mut query: Query) -> Result<Page, Refusal> {
        if let Some(own) = &self.access.tenant {
            if query.tenant.is_some_and(|asked| asked != *own) {
                return Ok(Page::default());
            }
            query.tenant = Some(own.clone());
        }
        Ok(self.control.shared.engine.list(query).await?)
    }

    /// Sums of the books.
    pub(super) async fn sums(&self, mut query: SumsQuery) -> Result<Vec<Cell>, Refusal> {
        if let Some(own) = &self.access.tenant {
            if matches!(&query.of, Of::Tenant(asked) if asked != own) {
                return Ok(Vec::new());
            }
            query.of = Of::Tenant(own.clone());
        }
        let sums = self.control.shared.engine.store().sums(query).await;
        Ok(sums.map_err(Trouble::from)?)
    }

    /// One page of the books' entries, the last booked first.
    pub(super) async fn entries(&self, mut query: EntryQuery) -> Result<EntryPage, Refusal> {
        if let Some(own) = &self.access.tenant {
            if query.tenant.is_some_and(|asked| asked != *own) {
                return Ok(EntryPage::default());
            }
            query.tenant = Some(own.clone());
        }
        let page = self.control.shared.engine.store().entries(query).await;
        Ok(page.map_err(Trouble::from)?)
    }

    /// The operation `id`.
    pub(super) async fn operation(&self, id: OperationId) -> Result<Operation, Refusal> {
        let found = self.control.shared.engine.operation(id).await?;
        found
            .filter(|found| self.sees(&found.stored.record.scope.tenant))
            .ok_or_else(|| Refusal::no_such_operation(&id.to_string()))
    }

    /// The record of `id`, where it is still there and can be read: one that cannot be is left out, as
    /// the store's lists do.
    pub(super) async fn kept(&self, id: OperationId) -> Result<Option<Stored>, Refusal> {
        let found = match self.engine().record(id).await {
            Err(StoreError::Corrupt(_)) => None,
            found => found.map_err(Trouble::from)?,
        };
        Ok(found.filter(|stored| self.sees(&stored.record.scope.tenant)))
    }

    /// What looks like repeats. Who is bound to a tenant sees the repeats that are known to be its own.
    pub(super) fn suspects(&self) -> Suspected {
        let shared = &self.control.shared;
        let routes = shared.config.routes.iter();
        let observing = routes.filter(|route| route.policy.key == KeyMode::Observe);
        let mut kinds = shared.suspects.kinds();
        if let Some(own) = &self.access.tenant {
            kinds.retain(|(kind, _)| kind.tenant.as_ref() == Some(own));
        }
        Suspected {
            at: self.now(),
            since: self.control.started,
            observing: observing.map(|route| route.name.clone()).collect(),
            kinds,
        }
    }

    /// The tenant whose operations it begins: its own, or the one that is asked for.
    pub(super) fn tenant_of_work(&self, asked: Option<&str>) -> Result<Box<str>, Refusal> {
        match (&self.access.tenant, asked) {
            (None, asked) => Ok(asked.unwrap_or(ANONYMOUS).into()),
            (Some(own), None) => Ok(own.clone()),
            (Some(own), Some(asked)) if **own == *asked => Ok(own.clone()),
            (Some(own), Some(_)) => Err(Refusal::new(
                StatusCode::FORBIDDEN,
                format!(
                    "the token {} works for the tenant {own} only",
                    self.access.name
                ),
                "leave tenant out, or use a token that is bound to no tenant",
            )),
        }
    }

    /// The engine, for an operation that is begun for [`Desk::tenant_of_work`].
    pub(super) fn engine(&self) -> &Engine<S> {
        &self.control.shared.engine
    }

    /// The engine, for the claim of the operation `id` that `token` proves: where its holder is bound to a
    /// tenant, after a look whether it is that one's.
    pub(super) async fn engine_for(
        &self,
        id: OperationId,
        token: &ClaimToken,
    ) -> Result<&Engine<S>, Refusal> {
        if self.access.tenant.is_some() {
            let found = self.engine().claimed(id, token).await?;
            self.seen(id, found)?;
        }
        Ok(self.engine())
    }

    /// The record of the operation `id`.
    pub(super) async fn record(&self, id: OperationId) -> Result<Stored, Refusal> {
        let found = self.engine().record(id).await;
        self.seen(id, found.map_err(Trouble::from)?)
    }

    fn seen(&self, id: OperationId, found: Option<Stored>) -> Result<Stored, Refusal> {
        found
            .filter(|found| self.sees(&found.record.scope.tenant))
            .ok_or_else(|| Refusal::no_such_operation(&id.to_string()))
    }

    /// What fingerprints are made with.
    pub(super) fn hash_keys(&self) -> &HashKeys {
        &self.control.shared.hash_keys
    }

    /// What calls cost.
    pub(super) fn meters(&self) -> &Meters {
        &self.control.shared.meters
    }

    /// `[limits]`.
    pub(super) fn limits(&self) -> &Limits {
        &self.control.shared.config.limits
    }

    /// `[store]`.
    pub(super) fn store_config(&self) -> &StoreConfig {
        &self.control.shared.config.store
    }

    /// Tells how far the gateway is on its way out.
    pub(super) fn phases(&self) -> Phases {
        self.control.phases.clone()
    }

    /// A place among those that wait for the end of an operation.
    pub(super) fn waiter(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let waiters = Arc::clone(&self.control.waiters);
        waiters.try_acquire_owned().map_err(|_| {
            let limit = self.limits().work_waiters;
            let problem = Problem::QuotaExceeded {
                limit_name: "limits.work_waiters",
                limit: Some(limit as u64),
                retry_after: Duration::from_secs(1),
            };
            Refusal::problem(StatusCode::TOO_MANY_REQUESTS, &problem, Place::Work)
        })
    }

    fn sees(&self, tenant: &str) -> bool {
        let own = self.access.tenant.as_deref();
        own.is_none_or(|own| own == tenant)
    }

    /// The recording of `id`, where there is one.
    pub(super) async fn recording(&self, id: OperationId) -> Result<Option<Reader<S>>, Refusal> {
        self.operation(id).await?;
        Ok(self.control.shared.engine.recording(id).await?)
    }

    /// Writes what its holder found out about the unknown operation `id`. The log says who, and
    /// `reason`.
    pub(super) async fn resolve(
        &self,
        id: OperationId,
        resolution: Resolution,
        reason: &str,
    ) -> Result<Operation, Refusal> {
        self.operation(id).await?;
        let who = &self.access.name;
        let resolve = self
            .control
            .shared
            .engine
            .resolve(id, resolution, who, reason);
        Ok(resolve.instrument(self.decision()).await?)
    }

    /// Removes records; how many.
    pub(super) async fn purge(&self, mut purge: Purge) -> Result<u64, Refusal> {
        if let Some(own) = &self.access.tenant {
            if purge.tenant.is_some_and(|asked| asked != *own) {
                return Ok(0);
            }
            purge.tenant = Some(own.clone());
        }
        let purge = self.control.shared.engine.purge(purge);
        Ok(purge.instrument(self.decision()).await?)
    }

    /// What the log says of who decides.
    fn decision(&self) -> tracing::Span {
        tracing::info_span!("decision", who = &*self.access.name)
    }
}

impl<S: Store> Clone for Desk<S> {
    fn clone(&self) -> Self {
        Self::new(&self.control, self.access.clone())
    }
}
