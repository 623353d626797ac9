//! The layer.

use std::sync::Arc;

use onlyonce_store::Store;
use tower_layer::Layer;

use crate::service::Route;
use crate::{Once, OnceService, Rules};

/// Puts a service behind the contract: what comes with a key runs once, and every retry of it gets the
/// first one's answer.
///
/// See the [crate's page](crate) for an example. What refuses requests before they run (authentication,
/// load shedding, rate limits) belongs outside of this layer; what it refuses inside is an answer of the
/// operation.
pub struct OnceLayer<S: Store> {
    route: Arc<Route<S>>,
}

impl<S: Store> OnceLayer<S> {
    /// Over `once`, with `rules` for what goes through it.
    pub fn new(once: Once<S>, rules: Rules) -> Self {
        Self {
            route: Arc::new(Route { once, rules }),
        }
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.route.rules
    }
}

impl<S: Store> Clone for OnceLayer<S> {
    fn clone(&self) -> Self {
        Self {
            route: self.route.clone(),
        }
    }
}

impl<S: Store, I> Layer<I> for OnceLayer<S> {
    type Service = OnceService<S, I>;

    fn layer(&self, inner: I) -> Self::Service {
        OnceService::new(self.route.clone(), inner)
    }
}
