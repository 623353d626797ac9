//! What billing services are told: who pays, and for how much of what.

use std::collections::BTreeMap;

use onlyonce_core::{Entry, Unit};

/// Who pays, by tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Customers {
    /// What the service calls a tenant.
    pub named: BTreeMap<Box<str>, Box<str>>,
    /// Whether a tenant that is not named is given up, and not passed over.
    pub must_be_named: bool,
}

impl Customers {
    /// The customer of the entry's tenant. `None` where it is passed over.
    pub(super) fn of(&self, entry: &Entry) -> Result<Option<&str>, String> {
        let tenant = &entry.scope.tenant;
        match self.named.get(tenant) {
            Some(customer) => Ok(Some(customer)),
            None if self.must_be_named => Err(format!("the tenant \"{tenant}\" has no customer")),
            None => Ok(None),
        }
    }
}

/// What of an entry is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Input and output tokens together.
    TotalTokens,
    /// One unit.
    Unit(Unit),
    /// The cost in millionths of a dollar, rounded half to even.
    CostMicros,
    /// One, for each operation.
    Operations,
}

impl Value {
    /// The one with this name: `total_tokens`, `cost_micros`, `operations` or a unit's.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "total_tokens" => Some(Self::TotalTokens),
            "cost_micros" => Some(Self::CostMicros),
            "operations" => Some(Self::Operations),
            unit => Unit::named(unit).map(Self::Unit),
        }
    }

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TotalTokens => "total_tokens",
            Self::Unit(unit) => unit.as_str(),
            Self::CostMicros => "cost_micros",
            Self::Operations => "operations",
        }
    }

    /// How much of it the entry has; what was not told counts as 0.
    pub fn of(self, entry: &Entry) -> i128 {
        let metered = &entry.metered;
        let units = |unit| i128::from(metered.usage.get(unit).unwrap_or(0));
        match self {
            Self::TotalTokens => units(Unit::Input) + units(Unit::Output),
            Self::Unit(unit) => units(unit),
            Self::CostMicros => metered.cost.as_ref().map_or(0, |cost| {
                onlyonce_core::metered::rounded(i128::from(cost.amount.nanos()), 1_000)
            }),
            Self::Operations => 1,
        }
    }
}
