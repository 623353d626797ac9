//! What calls cost, where the list prices do not say so: `[[tenant.price]]` and a route's `per_call`.

use onlyonce_core::{Unit, Usd};
use onlyonce_ledger::prices::{
    Factor, PerCall, Rates, RatesError, Statuses, TenantPrice, Terms, UnitPrice, parse_amount,
};

use super::error::ConfigError;
use super::section::{Entry, Section};

/// All `[[tenant.price]]` of a tenant, in their order.
pub(super) fn tenant_prices(tenant: &mut Section<'_>) -> Result<Vec<TenantPrice>, ConfigError> {
    let mut prices = Vec::new();
    for mut section in tenant.tables("price")? {
        let provider = section.take("provider");
        let provider = provider.map(|entry| entry.filled()).transpose()?;
        let model = match section.take("model") {
            Some(entry) => entry.filled()?,
            None => "*",
        };
        let terms = terms(&mut section)?;
        section.finish()?;
        prices.push(TenantPrice::new(provider, model, terms));
    }
    Ok(prices)
}

fn terms(section: &mut Section<'_>) -> Result<Terms, ConfigError> {
    let per_call = section.take("per_call");
    let factor = section.take("factor");
    let units: Vec<_> = Unit::ALL
        .iter()
        // What a call costs is `per_call`.
        .filter(|unit| **unit != Unit::Requests)
        .filter_map(|unit| Some((*unit, section.take(unit.as_str())?)))
        .collect();
    match (per_call, factor, units.as_slice()) {
        (Some(entry), None, []) => amount(&entry).map(Terms::PerCall),
        (None, Some(entry), []) => {
            let text = entry.digits()?;
            let factor = Factor::parse(text).ok_or_else(|| {
                entry.fail(
                    format!("cannot be \"{text}\""),
                    "write how many times the list price it is, with up to 6 decimals, like \"0.9\"",
                )
            })?;
            Ok(Terms::Factor(factor))
        }
        (None, None, []) => Err(section.fail(
            "a [[tenant.price]] says no price",
            "write prices of units like input = \"1.25\", or per_call, or factor",
        )),
        (None, None, units) => rates(units).map(Terms::Rates),
        (Some(entry), ..) | (_, Some(entry), _) => Err(entry.fail(
            "stands beside another kind of price",
            "keep one of the three: prices of units, per_call, or factor",
        )),
    }
}

fn rates(units: &[(Unit, Entry<'_>)]) -> Result<Rates, ConfigError> {
    let mut prices = Vec::with_capacity(units.len());
    for (unit, entry) in units {
        let text = entry.digits()?;
        let price = UnitPrice::parse(text).ok_or_else(|| {
            entry.fail(
                format!("cannot be \"{text}\""),
                "write dollars for 1,000,000 of them, below a million and with up to 15 decimals, like \
                 \"1.25\"",
            )
        })?;
        prices.push((*unit, price));
    }
    Rates::new(&prices).map_err(|error| {
        let (at, what, next) = match error {
            RatesError::Whole { part, whole } => (
                part,
                format!("is a price of a part of `{whole}`, which has no price"),
                format!("set {whole} too"),
            ),
            RatesError::Overlap { one, other, both } => (
                one,
                format!("and `{other}` are prices of what may be both, which has no price"),
                match both {
                    Some(both) => format!("set {both} too"),
                    None => "take one of the two away".to_owned(),
                },
            ),
        };
        let entry = units.iter().find(|(unit, _)| *unit == at);
        let (_, entry) = entry.unwrap_or(&units[0]);
        entry.fail(what, next)
    })
}

/// The fixed price of the calls of the route `name`.
pub(super) fn per_call(
    route: &mut Section<'_>,
    name: &str,
) -> Result<Option<PerCall>, ConfigError> {
    let (price, charge_on) = (route.take("per_call"), route.take("charge_on"));
    let charged = match &charge_on {
        Some(entry) => statuses(entry)?,
        None => Statuses::success(),
    };
    match (price, charge_on) {
        (Some(price), _) => {
            let whose = format!("route {name}");
            Ok(Some(PerCall::new(&whose, amount(&price)?, charged)))
        }
        (None, None) => Ok(None),
        (None, Some(entry)) => Err(entry.fail(
            "has no effect without `per_call`",
            "set per_call too, or take it away",
        )),
    }
}

fn statuses(entry: &Entry<'_>) -> Result<Statuses, ConfigError> {
    let next = "write a class or a status, like \"2xx\" or [\"2xx\", 402]";
    let one = |entry: &Entry<'_>| {
        let text = entry.digits()?;
        Statuses::parse(text).ok_or_else(|| entry.fail(format!("cannot be \"{text}\""), next))
    };
    if !entry.is_list() {
        return one(entry);
    }
    let all = entry.list("[\"2xx\"]")?;
    let all = all.iter().map(one).reduce(|all, next| Ok(all?.and(next?)));
    all.unwrap_or_else(|| Err(entry.fail("is empty", next)))
}

fn amount(entry: &Entry<'_>) -> Result<Usd, ConfigError> {
    let text = entry.digits()?;
    parse_amount(text).ok_or_else(|| {
        entry.fail(
            format!("cannot be \"{text}\""),
            "write dollars for a call, below a million and with up to 9 decimals, like \"0.002\"",
        )
    })
}
