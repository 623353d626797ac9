//! What an execution costs: exact to the nano, by the first of these that has a price: the provider's own
//! word, the tenant's prices, the route's fixed price, the table of list prices.
//!
//! The table is the data of [genai-prices](https://github.com/pydantic/genai-prices), as it comes
//! (`data/`, MIT). Its rules are followed to the letter: the first model whose rule matches, the last
//! price that holds at the moment, special prices for what is read from caches or long, and each token
//! paid once. What has no price has no cost, which is not 0.
//!
//! ```
//! use onlyonce_core::{Metered, Timestamp, Unit};
//! use onlyonce_ledger::prices::{Prices, Sale};
//!
//! let prices = Prices::vendored();
//! let mut metered = Metered {
//!     provider: "openai".into(),
//!     model: "gpt-5".into(),
//!     usage: [(Unit::Input, 1_000), (Unit::Output, 100)].into_iter().collect(),
//!     ..Metered::default()
//! };
//! let at = Timestamp::from_millis(1_767_225_600_000);
//! prices.price(&mut metered, &Sale { tenant: "acme", seller: None, per_call: None, status: 200, at });
//! let cost = metered.cost.expect("gpt-5 has a price");
//! assert_eq!(cost.amount.to_string(), "0.00225");
//! assert_eq!(&*cost.version, prices.version());
//! ```

mod charge;
mod data;
mod matching;
mod rate;
mod terms;

use std::collections::HashMap;

use onlyonce_core::{Basis, Cost, Metered, Timestamp, Usd};
use quick_cache::{Equivalent, sync::Cache};

pub use data::TableError;
pub use terms::{
    Factor, PerCall, Rates, RatesError, Statuses, TenantPrice, Terms, UnitPrice, parse_amount,
};

use data::Table;
use matching::Found;
use rate::{Exact, Offer};

const VENDORED: &str = include_str!("../../data/genai-prices.json");
const VENDORED_VERSION: &str = include_str!("../../data/genai-prices.version");

/// Names of models that are remembered with what they mean.
const REMEMBERED: usize = 10_000;

/// All prices. Immutable; to be made once and shared.
#[derive(Debug)]
pub struct Prices {
    table: Table,
    version: Box<str>,
    tenants: HashMap<Box<str>, TenantPrices>,
    found: Cache<(Box<str>, Box<str>), Option<Found>>,
}

/// A tenant's own prices, the first that fits counts.
#[derive(Debug)]
struct TenantPrices {
    prices: Vec<TenantPrice>,
    version: Box<str>,
    /// Of what is a factor of the list price.
    factor_version: Box<str>,
}

/// What a price depends on besides what was used.
#[derive(Clone, Copy, Debug)]
pub struct Sale<'a> {
    /// Who called.
    pub tenant: &'a str,
    /// What the price table calls the provider, where it is not [`Metered::provider`].
    pub seller: Option<&'a str>,
    /// The fixed price of the route's calls.
    pub per_call: Option<&'a PerCall>,
    /// The status of the answer.
    pub status: u16,
    /// When the call was made.
    pub at: Timestamp,
}

/// The cost that a provider states itself.
pub fn stated(amount: Usd) -> Cost {
    Cost {
        amount,
        basis: Basis::Stated,
        version: "stated".into(),
    }
}

impl Prices {
    /// The list prices that this program comes with.
    pub fn vendored() -> Self {
        let table = Table::read(VENDORED).expect("the tests read it");
        Self::with_table(table, format!("genai-prices {}", VENDORED_VERSION.trim()))
    }

    /// The list prices in `text`, the data of genai-prices in its second format. Prices of things that
    /// this program does not count are left out.
    pub fn read(text: &str) -> Result<Self, TableError> {
        let hash = terms::short(&blake3::hash(text.as_bytes()));
        Ok(Self::with_table(
            Table::read(text)?,
            format!("genai-prices file {hash}"),
        ))
    }

    fn with_table(table: Table, version: String) -> Self {
        Self {
            table,
            version: version.into(),
            tenants: HashMap::new(),
            found: Cache::new(REMEMBERED),
        }
    }

    /// These, and `prices` for `tenant`: the first of them that fits counts.
    #[must_use]
    pub fn with_tenant(mut self, tenant: &str, prices: Vec<TenantPrice>) -> Self {
        let version = terms::version(&prices);
        let tenant_prices = TenantPrices {
            prices,
            factor_version: format!("{version} of {}", self.version).into(),
            version,
        };
        self.tenants.insert(tenant.into(), tenant_prices);
        self
    }

    /// The version of the list prices: `genai-prices 0.2.1`, or `genai-prices file 3f2a91c0`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Says what an execution cost, where it has a price; a cost that the provider stated stays.
    pub fn price(&self, metered: &mut Metered, sale: &Sale<'_>) {
        let is_stated = |cost: &Cost| cost.basis == Basis::Stated;
        if !metered.cost.as_ref().is_some_and(is_stated) {
            metered.cost = self.cost(metered, sale);
        }
    }

    fn cost(&self, metered: &Metered, sale: &Sale<'_>) -> Option<Cost> {
        let tenant = self.tenants.get(sale.tenant);
        if let Some((tenant, price)) = tenant.and_then(|own| Some((own, own.find(metered, sale)?)))
        {
            return self.tenant_cost(tenant, price.terms(), metered, sale);
        }
        let (amount, basis, version) = match sale.per_call {
            Some(price) => (price.of(sale.status), Basis::Route, &price.version),
            None => {
                let amount = self.list_price(metered, sale)?.rounded()?;
                (amount, Basis::Table, &self.version)
            }
        };
        Some(Cost {
            amount,
            basis,
            version: version.clone(),
        })
    }

    fn tenant_cost(
        &self,
        tenant: &TenantPrices,
        terms: &Terms,
        metered: &Metered,
        sale: &Sale<'_>,
    ) -> Option<Cost> {
        let (amount, version) = match terms {
            Terms::Rates(Rates(list)) => {
                let amount = Offer::of(list).total(&metered.usage)?.rounded()?;
                (amount, &tenant.version)
            }
            Terms::PerCall(amount) => {
                let is_charged = Statuses::success().contains(sale.status);
                let amount = if is_charged { *amount } else { Usd::ZERO };
                (amount, &tenant.version)
            }
            Terms::Factor(factor) => {
                let amount = factor.of(self.list_price(metered, sale)?)?;
                (amount, &tenant.factor_version)
            }
        };
        Some(Cost {
            amount,
            basis: Basis::Tenant,
            version: version.clone(),
        })
    }

    fn list_price(&self, metered: &Metered, sale: &Sale<'_>) -> Option<Exact> {
        let seller = sale.seller.unwrap_or(&metered.provider);
        let found = self.find(seller, metered.paid_model())?;
        let model = &self.table.providers[found.provider].models[found.model];
        let mut offer = Offer::of(model.prices(sale.at));
        // Classes of service are the seller's own, not those of whose models it sells.
        if found.is_own && !metered.tier.is_empty() {
            for prices in model.variants(&metered.tier, sale.at) {
                offer.put(prices);
            }
            if !offer.is_whole() {
                return None;
            }
        }
        offer.total(&metered.usage)
    }

    /// What a name means, remembered.
    fn find(&self, seller: &str, model: &str) -> Option<Found> {
        if let Some(found) = self.found.get(&Name { seller, model }) {
            return found;
        }
        let found = matching::find(&self.table, seller, model);
        if seller.len().max(model.len()) <= matching::MAX_NAME_BYTES {
            self.found.insert((seller.into(), model.into()), found);
        }
        found
    }
}

impl TenantPrices {
    fn find(&self, metered: &Metered, sale: &Sale<'_>) -> Option<&TenantPrice> {
        let names = [&*metered.provider, sale.seller.unwrap_or_default()];
        let model = matching::lower(metered.paid_model());
        self.prices.iter().find(|price| price.is_for(names, &model))
    }
}

/// A name of a model that is not its own key.
#[derive(Hash)]
struct Name<'a> {
    seller: &'a str,
    model: &'a str,
}

impl Equivalent<(Box<str>, Box<str>)> for Name<'_> {
    fn equivalent(&self, (seller, model): &(Box<str>, Box<str>)) -> bool {
        self.seller == &**seller && self.model == &**model
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i15_names_of_models_are_remembered_within_a_bound() {
        let table = r#"[{"id":"p","models":[{"id":"m","match":{"equals":"m"},"prices":{"input_mtok":1}}]}]"#;
        let prices = Prices::read(table).expect("a table");
        let long = "m".repeat(matching::MAX_NAME_BYTES + 1);
        for (seller, model) in [("p", &*long), (&*long, "m")] {
            assert_eq!(prices.find(seller, model), None);
            assert_eq!(prices.found.len(), 0, "a long name is not remembered");
        }
        assert!(prices.find("p", "m").is_some());
        assert_eq!(prices.found.len(), 1);
        for number in 0..3 * REMEMBERED {
            assert_eq!(prices.find("p", &number.to_string()), None);
        }
        let remembered = prices.found.len();
        assert!(
            (REMEMBERED / 2..=REMEMBERED).contains(&remembered),
            "{remembered}"
        );
    }
}
