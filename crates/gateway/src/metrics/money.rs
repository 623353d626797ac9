//! What operations used and cost, and what replays and joins did not cost again, since the start of
//! this process. It needs no books: each figure is counted as the engine tells of it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use onlyonce_core::{Got, Metered, Source, Unit, Usd};
use onlyonce_ledger::GaveUp;
use parking_lot::RwLock;
use prometheus_client::encoding::{CounterValueEncoder, EncodeCounterValue, EncodeLabelSet};
use prometheus_client::metrics::counter::{Atomic, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// The most tenants that are told apart (I15). A tenant without a name is made by its credential, so
/// anybody can make more of them; those that the configuration names come first.
const MOST_TENANTS: usize = 100;
/// The most models that are told apart: their names come from upstreams.
const MOST_MODELS: usize = 200;
/// The most providers: their names come from the configuration.
const MOST_PROVIDERS: usize = 100;
/// What all others are called.
const OTHER: &str = "other";
/// A model of which no answer and no request says the name, and a provider that no usage format names.
const UNKNOWN: &str = "unknown";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    provider: Arc<str>,
    model: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    provider: Arc<str>,
    model: Arc<str>,
    unit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SparedTokenLabels {
    provider: Arc<str>,
    model: Arc<str>,
    got: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SpentLabels {
    tenant: Arc<str>,
    provider: Arc<str>,
    model: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SparedLabels {
    tenant: Arc<str>,
    provider: Arc<str>,
    model: Arc<str>,
    got: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhyLabels {
    why: &'static str,
}

/// The figures.
pub(super) struct Money {
    tenants: Names,
    providers: Names,
    models: Names,
    tokens: Family<TokenLabels, Counter>,
    spent: Family<SpentLabels, Dollars>,
    not_spent: Family<SparedLabels, Dollars>,
    not_spent_tokens: Family<SparedTokenLabels, Counter>,
    unpriced: Family<ModelLabels, Counter>,
}

impl Money {
    /// `tenants` are those that the configuration names.
    pub(super) fn new<'a>(registry: &mut Registry, tenants: impl Iterator<Item = &'a str>) -> Self {
        let money = Self {
            tenants: Names::new(MOST_TENANTS, tenants),
            providers: Names::new(MOST_PROVIDERS, []),
            models: Names::new(MOST_MODELS, []),
            tokens: Family::default(),
            spent: Family::default(),
            not_spent: Family::default(),
            not_spent_tokens: Family::default(),
            unpriced: Family::default(),
        };
        registry.register(
            "tokens",
            "Tokens that completed operations used; cache, reasoning and modalities are parts of input \
             and output",
            money.tokens.clone(),
        );
        registry.register(
            "spent_usd",
            "What completed operations cost, in US dollars",
            money.spent.clone(),
        );
        registry.register(
            "not_spent_usd",
            "What replays and joins would have cost as executions of their own, in US dollars",
            money.not_spent.clone(),
        );
        registry.register(
            "not_spent_tokens",
            "Input and output tokens that replays and joins would have used",
            money.not_spent_tokens.clone(),
        );
        registry.register(
            "unpriced_operations",
            "Completed operations of metered calls that have no cost",
            money.unpriced.clone(),
        );
        money
    }

    fn model<'a>(&self, metered: &'a Metered) -> ModelLabels {
        let named = |name: &'a str| match name {
            "" => UNKNOWN,
            name => name,
        };
        ModelLabels {
            provider: self.providers.of(named(&metered.provider)),
            model: self.models.of(named(metered.paid_model())),
        }
    }

    /// An operation of `tenant` is completed, and its execution used so much.
    pub(super) fn completed(&self, tenant: &str, metered: &Metered) {
        let of = self.model(metered);
        for (unit, count) in metered.usage.iter().filter(|(unit, _)| is_tokens(*unit)) {
            let labels = TokenLabels {
                provider: Arc::clone(&of.provider),
                model: Arc::clone(&of.model),
                unit: unit.as_str(),
            };
            self.tokens.get_or_create(&labels).inc_by(count);
        }
        if let Some(cost) = &metered.cost {
            let labels = SpentLabels {
                tenant: self.tenants.of(tenant),
                provider: of.provider,
                model: of.model,
            };
            let spent = self.spent.get_or_create(&labels);
            spent.inc_by(Nanos::of(cost.amount, 1));
        } else if metered.source != Source::NotMetered {
            self.unpriced.get_or_create(&of).inc();
        }
    }

    /// So many attempts got its answer without an execution of their own.
    pub(super) fn spared(&self, tenant: &str, metered: &Metered, got: Got, attempts: u32) {
        let of = self.model(metered);
        let (got, attempts) = (got.as_str(), u64::from(attempts));
        let tokens = [Unit::Input, Unit::Output].map(|unit| metered.usage.get(unit).unwrap_or(0));
        let tokens = tokens[0].saturating_add(tokens[1]);
        if tokens > 0 {
            let labels = SparedTokenLabels {
                provider: Arc::clone(&of.provider),
                model: Arc::clone(&of.model),
                got,
            };
            let counter = self.not_spent_tokens.get_or_create(&labels);
            counter.inc_by(tokens.saturating_mul(attempts));
        }
        if let Some(cost) = &metered.cost {
            let labels = SparedLabels {
                tenant: self.tenants.of(tenant),
                provider: of.provider,
                model: of.model,
                got,
            };
            let spared = self.not_spent.get_or_create(&labels);
            spared.inc_by(Nanos::of(cost.amount, attempts));
        }
    }
}

const fn is_tokens(unit: Unit) -> bool {
    !matches!(
        unit,
        Unit::WebSearches
            | Unit::StorageSearches
            | Unit::InputPages
            | Unit::InputCharacters
            | Unit::Requests
    )
}

/// A counter of dollars, which is exact inside.
type Dollars = Counter<Nanos, AtomicU64>;

/// Thousand-millionths of a dollar.
#[derive(Clone, Copy, Debug)]
struct Nanos(u64);

impl Nanos {
    /// So many times `amount`. A counter never goes down: less than nothing is nothing.
    fn of(amount: Usd, times: u64) -> Self {
        Self(
            u64::try_from(amount.nanos())
                .unwrap_or(0)
                .saturating_mul(times),
        )
    }
}

impl Atomic<Nanos> for AtomicU64 {
    fn inc(&self) -> Nanos {
        self.inc_by(Nanos(1))
    }

    fn inc_by(&self, more: Nanos) -> Nanos {
        Nanos(Atomic::<u64>::inc_by(self, more.0))
    }

    fn get(&self) -> Nanos {
        Nanos(Atomic::<u64>::get(self))
    }
}

impl EncodeCounterValue for Nanos {
    fn encode(&self, encoder: &mut CounterValueEncoder<'_>) -> std::fmt::Result {
        // For charts: from nine million dollars on, the last nano is lost.
        #[expect(clippy::cast_precision_loss)]
        let dollars = self.0 as f64 / 1e9;
        dollars.encode(encoder)
    }
}

/// Values of a label that are told apart, as many as there may be; all others are [`OTHER`] (I15).
struct Names {
    most: usize,
    known: RwLock<HashSet<Arc<str>>>,
    other: Arc<str>,
}

impl Names {
    fn new<'a>(most: usize, known: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            most,
            known: RwLock::new(known.into_iter().take(most).map(Arc::from).collect()),
            other: OTHER.into(),
        }
    }

    /// What `name` is called.
    fn of(&self, name: &str) -> Arc<str> {
        let is_full = {
            let known = self.known.read();
            if let Some(name) = known.get(name) {
                return Arc::clone(name);
            }
            known.len() >= self.most
        };
        if is_full {
            return Arc::clone(&self.other);
        }
        let mut known = self.known.write();
        match known.get(name) {
            Some(name) => Arc::clone(name),
            None if known.len() >= self.most => Arc::clone(&self.other),
            None => {
                let name: Arc<str> = name.into();
                known.insert(Arc::clone(&name));
                name
            }
        }
    }
}

/// Why answers were not read to their end for what they used.
#[derive(Clone)]
pub(crate) struct GaveUpMetrics([Counter; GaveUp::ALL.len()]);

impl GaveUpMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let family = Family::<WhyLabels, Counter>::default();
        registry.register(
            "meter_gave_up",
            "Answers that could not be read for what they used, by why",
            family.clone(),
        );
        Self(GaveUp::ALL.map(|why| family.get_or_create_owned(&WhyLabels { why: why.as_str() })))
    }

    /// An answer is not read on.
    pub(crate) fn gave_up(&self, why: GaveUp) {
        let mut counters = GaveUp::ALL.iter().zip(&self.0);
        if let Some((_, counter)) = counters.find(|(of, _)| **of == why) {
            counter.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use onlyonce_core::{Basis, Cost};

    use super::*;

    fn metered(model: &str, nanos: i64) -> Metered {
        Metered {
            provider: "openai".into(),
            model: model.into(),
            usage: [(Unit::Input, 10), (Unit::Output, 5), (Unit::WebSearches, 1)]
                .into_iter()
                .collect(),
            source: Source::Provider,
            cost: Some(Cost {
                amount: Usd::from_nanos(nanos),
                basis: Basis::Table,
                version: "1".into(),
            }),
            ..Metered::default()
        }
    }

    fn money() -> (Registry, Money) {
        let mut registry = Registry::with_prefix("onlyonce");
        let money = Money::new(&mut registry, ["configured"].into_iter());
        (registry, money)
    }

    fn lines(registry: &Registry, name: &str) -> Vec<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).expect("text");
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn amounts_are_summed_exactly() {
        let (registry, money) = money();
        for _ in 0..10 {
            money.completed("acme", &metered("gpt-5", 100_000_001));
        }
        assert_eq!(
            lines(&registry, "onlyonce_spent_usd_total"),
            [
                "onlyonce_spent_usd_total{tenant=\"acme\",provider=\"openai\",model=\"gpt-5\"} 1.00000001"
            ]
        );
        money.completed("acme", &metered("refund", -5));
        let refund = lines(
            &registry,
            "onlyonce_spent_usd_total{tenant=\"acme\",provider=\"openai\",model=\"refund\"",
        );
        assert!(refund[0].ends_with(" 0.0"), "{refund:?}");
    }

    #[test]
    fn i15_tenants_and_models_without_end_are_counted_as_others() {
        let (registry, money) = money();
        for number in 0..MOST_MODELS + 50 {
            money.completed(
                &format!("t{number}"),
                &metered(&format!("m{number}"), 1_000_000_000),
            );
        }
        money.completed("configured", &metered("m0", 1_000_000_000));
        let spent = lines(&registry, "onlyonce_spent_usd_total");
        let of = |label: &str| {
            let with = spent.iter().filter(|line| line.contains(label));
            with.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum::<f64>()
        };
        // One place was the configured tenant's from the start.
        assert_eq!(of("tenant=\"t98\""), 1.0);
        assert_eq!(of("tenant=\"t99\""), 0.0);
        assert_eq!(of("tenant=\"other\""), 151.0);
        assert_eq!(of("tenant=\"configured\""), 1.0);
        assert_eq!(of("model=\"other\""), 50.0);
        assert_eq!(of("model=\"m0\""), 2.0);
        assert!(spent.len() <= MOST_MODELS + 52, "{}", spent.len());
    }

    #[test]
    fn what_has_no_price_is_counted_and_what_is_not_metered_is_not() {
        let (registry, money) = money();
        let free = Metered {
            cost: None,
            ..metered("", 0)
        };
        money.completed("acme", &free);
        money.completed("acme", &Metered::default());
        money.spared("acme", &free, Got::Joined, 3);
        assert_eq!(
            lines(&registry, "onlyonce_unpriced_operations_total"),
            ["onlyonce_unpriced_operations_total{provider=\"openai\",model=\"unknown\"} 1"]
        );
        assert_eq!(
            lines(&registry, "onlyonce_not_spent"),
            [
                "onlyonce_not_spent_tokens_total{provider=\"openai\",model=\"unknown\",got=\"joined\"} 45"
            ]
        );
        assert!(lines(&registry, "onlyonce_spent_usd_total").is_empty());
        let tokens = lines(&registry, "onlyonce_tokens_total");
        assert_eq!(tokens.len(), 2, "{tokens:?}");
    }
}
