//! What an execution used and cost, read out of its answer on the way into the recording.

use http::HeaderMap;
use onlyonce_core::{Metered, Source, Timestamp};
use onlyonce_ledger::prices::{Prices, Sale};
use onlyonce_ledger::{Asked, End, Meter, MeterMemory};

use crate::config::Route;
use crate::metrics::GaveUpMetrics;

/// What of a gateway metering takes.
pub(crate) struct Meters {
    /// What calls cost.
    pub(crate) prices: Prices,
    /// What all meters of compressed answers may hold together.
    pub(crate) memory: MeterMemory,
    /// Counts the answers that meters did not read to their end.
    pub(crate) gave_up: GaveUpMetrics,
}

/// The meter of one answer. A route without a format and without a price has none.
pub(super) struct Metering {
    meter: Option<Meter>,
    /// The model that was asked, where the request names it.
    asked_model: Box<str>,
    status: u16,
    /// Whether it answers several calls at once: what each of them costs is told nowhere.
    is_several: bool,
}

impl Metering {
    /// Of the answer to the call `asked`.
    pub(super) fn new(
        meters: &Meters,
        route: &Route,
        asked: Asked<'_>,
        status: u16,
        headers: &HeaderMap,
    ) -> Self {
        Self {
            asked_model: asked.model.unwrap_or_default().into(),
            meter: Meter::of(&route.policy.usage, asked, status, headers, &meters.memory),
            status,
            is_several: false,
        }
    }

    /// Of the answer to several calls at once.
    pub(super) fn of_several(asked: Asked<'_>, status: u16) -> Self {
        Self {
            asked_model: asked.model.unwrap_or_default().into(),
            meter: None,
            status,
            is_several: true,
        }
    }

    /// Takes the next bytes of the body.
    pub(super) fn see(&mut self, bytes: &[u8]) {
        if let Some(meter) = &mut self.meter {
            meter.see(bytes);
        }
    }

    /// What the answer told, with what it cost `tenant`, who asked at `at`.
    pub(super) fn finish(
        self,
        end: End,
        meters: &Meters,
        route: &Route,
        tenant: &str,
        at: Timestamp,
    ) -> Option<Metered> {
        if let Some(why) = self.meter.as_ref().and_then(Meter::gave_up) {
            meters.gave_up.gave_up(why);
        }
        if self.is_several {
            let has_prices = !route.policy.usage.is_empty() || route.per_call.is_some();
            // It counts among what is not metered, and not as free.
            return has_prices.then(|| Metered {
                request_model: self.asked_model,
                source: Source::Unknown,
                ..Metered::default()
            });
        }
        let format = self.meter.as_ref().map(|meter| meter.format().clone());
        let fixed = format.as_ref().and_then(|format| format.per_call());
        let per_call = route.per_call.as_ref().or(fixed);
        if format.is_none() && per_call.is_none() {
            return None;
        }
        let mut metered = self
            .meter
            .map(|meter| meter.finish(end))
            .unwrap_or_else(|| Metered {
                request_model: self.asked_model,
                ..Metered::default()
            });
        let sale = Sale {
            tenant,
            seller: format.as_ref().map(|format| format.price_provider()),
            per_call,
            status: self.status,
            at,
        };
        meters.prices.price(&mut metered, &sale);
        Some(metered)
    }
}
