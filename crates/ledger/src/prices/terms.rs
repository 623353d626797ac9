//! Prices that people agreed on: those of a tenant, and the fixed price of a route's calls.

use std::ops::RangeInclusive;

use onlyonce_core::metered::decimal;
use onlyonce_core::{Unit, Usd};

use super::charge::{Charge, Gap};
use super::rate::{Exact, PriceList, Rate};

/// A tenant's own price of some models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantPrice {
    provider: Option<Box<str>>,
    model: Box<str>,
    terms: Terms,
}

/// How a tenant pays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Terms {
    /// By what is used.
    Rates(Rates),
    /// So much for each call that succeeds (2xx), whatever it uses.
    PerCall(Usd),
    /// So many times the list price.
    Factor(Factor),
}

impl TenantPrice {
    /// The price of the models that `model` matches, in which `*` stands for any text; of one provider
    /// (by its name in [`Metered`](onlyonce_core::Metered) or in the price table), or of all.
    pub fn new(provider: Option<&str>, model: &str, terms: Terms) -> Self {
        Self {
            provider: provider.map(Into::into),
            model: model.to_lowercase().into(),
            terms,
        }
    }

    /// How the tenant pays for them.
    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Whether it is the price of `model`, in lower case, at a provider of any of these names.
    pub(super) fn is_for(&self, names: [&str; 2], model: &str) -> bool {
        let provider = self.provider.as_deref();
        provider.is_none_or(|own| names.iter().any(|name| name.eq_ignore_ascii_case(own)))
            && matches(&self.model, model)
    }

    /// Everything that it says, in one line.
    fn line(&self) -> String {
        let terms = match &self.terms {
            Terms::PerCall(amount) => format!("per call {}", amount.nanos()),
            Terms::Factor(Factor { millionths }) => format!("factor {millionths}"),
            Terms::Rates(Rates(list)) => list
                .0
                .iter()
                .map(|(charge, rate)| format!("{} {} ", charge.key(), rate.base))
                .collect(),
        };
        let provider = self.provider.as_deref().unwrap_or("*");
        format!("{provider}\t{}\t{terms}\n", self.model)
    }
}

/// The version of a tenant's prices: the start of a hash of all they say.
pub(super) fn version(prices: &[TenantPrice]) -> Box<str> {
    let mut hash = blake3::Hasher::new();
    for price in prices {
        hash.update(price.line().as_bytes());
    }
    format!("tenant {}", short(&hash.finalize())).into()
}

/// The first eight digits of a hash.
pub(super) fn short(hash: &blake3::Hash) -> String {
    hash.to_hex()[..8].to_owned()
}

/// Prices by what is used, each in dollars for 1,000,000 units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rates(pub(super) PriceList);

/// Why costs could not be told from some prices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RatesError {
    /// A part of something has a price, and the whole has none.
    #[error("`{part}` is a part of `{whole}`, which has no price")]
    Whole {
        /// What has a price.
        part: Unit,
        /// What needs one.
        whole: Unit,
    },
    /// Two have a price that something can be at once, and what is both has none.
    #[error("`{one}` and `{other}` have a price, and what is both has none")]
    Overlap {
        /// What has a price.
        one: Unit,
        /// What has one too.
        other: Unit,
        /// What needs one; `None` where such a thing is not counted.
        both: Option<Unit>,
    },
}

impl Rates {
    /// The prices of some units, each named once.
    pub fn new(prices: &[(Unit, UnitPrice)]) -> Result<Self, RatesError> {
        let list: Vec<_> = prices
            .iter()
            .map(|(unit, price)| {
                let charge = Charge::of(*unit);
                // From 10⁻¹⁵ dollars for a million to 10⁻¹⁸ for what the charge goes by.
                let rate = price.0 * i128::from(charge.per() / 1_000);
                (charge, Rate::flat(rate))
            })
            .collect();
        let list = PriceList(list.into());
        match Gap::find(list.charges()).and_then(in_units) {
            None => Ok(Self(list)),
            Some(error) => Err(error),
        }
    }
}

/// All that has a price here is a unit, and so is the whole of each.
fn in_units(gap: Gap) -> Option<RatesError> {
    Some(match gap {
        Gap::Whole { part, whole } => RatesError::Whole {
            part: part.unit()?,
            whole: whole.unit()?,
        },
        Gap::Overlap { one, other, both } => RatesError::Overlap {
            one: one.unit()?,
            other: other.unit()?,
            both: both.and_then(Charge::unit),
        },
    })
}

/// Dollars for 1,000,000 units, in 10⁻¹⁵.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitPrice(i128);

impl UnitPrice {
    /// Reads a price in dollars with up to 15 decimals, below a million; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        exactly(text, 15, 1_000_000).map(Self)
    }
}

/// How many times the list price a tenant pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factor {
    millionths: i128,
}

impl Factor {
    const ONE: i128 = 1_000_000;

    /// Reads a number with up to six decimals, below a thousand; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let millionths = exactly(text, 6, 1_000)?;
        Some(Self { millionths })
    }

    /// So many times `list`, rounded once; `None` where it does not fit.
    pub(super) fn of(self, list: Exact) -> Option<Usd> {
        list.rounded_times(self.millionths, Self::ONE)
    }
}

/// Reads an amount of dollars with up to nine decimals, below a million; `None` for anything else.
pub fn parse_amount(text: &str) -> Option<Usd> {
    let nanos = exactly(text, 9, 1_000_000)?;
    Some(Usd::from_nanos(i64::try_from(nanos).ok()?))
}

/// The number in `text` in units of 10 to the power of `-places`; `None` where it is negative, finer, or
/// not below `limit`.
fn exactly(text: &str, places: u32, limit: i128) -> Option<i128> {
    let (number, finer) = (decimal(text, places)?, decimal(text, places + 12)?);
    let fits = (0..limit * 10_i128.pow(places)).contains(&number);
    (fits && number * 1_000_000_000_000 == finer).then_some(number)
}

/// A fixed price for each answer with one of some statuses; the others cost nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerCall {
    pub(super) amount: Usd,
    pub(super) charge_on: Statuses,
    pub(super) version: Box<str>,
}

impl PerCall {
    /// What a call costs.
    pub fn amount(&self) -> Usd {
        self.amount
    }

    /// The price that `whose` sets, which its version names: `route chat`.
    pub fn new(whose: &str, amount: Usd, charge_on: Statuses) -> Self {
        Self {
            amount,
            charge_on,
            version: format!("{whose} {amount}").into(),
        }
    }

    /// What an answer costs.
    pub(super) fn of(&self, status: u16) -> Usd {
        match self.charge_on.contains(status) {
            true => self.amount,
            false => Usd::ZERO,
        }
    }
}

/// Statuses of answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statuses(Vec<RangeInclusive<u16>>);

impl Statuses {
    /// Those of success.
    pub fn success() -> Self {
        Self(vec![200..=299])
    }

    /// Reads a class (`2xx`) or one status (`402`); `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 3 || !text.starts_with(|c: char| ('1'..='5').contains(&c)) {
            return None;
        }
        let (first, last) = match text.strip_suffix("xx") {
            Some(class) => {
                let first = 100 * class.parse::<u16>().ok()?;
                (first, first + 99)
            }
            None => {
                let status = text.parse().ok()?;
                (status, status)
            }
        };
        Some(Self(vec![first..=last]))
    }

    /// These and `others`.
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Whether `status` is one of them.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

/// Whether `text` is what `pattern` says, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, fits) in [
            ("gpt-5", "gpt-5", true),
            ("gpt-5", "gpt-5-mini", false),
            ("gpt-5*", "gpt-5-mini", true),
            ("gpt-5*", "gpt-5", true),
            ("*", "", true),
            ("*-mini", "gpt-5-mini", true),
            ("*-mini", "gpt-5-mini-x", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn numbers_are_exact_or_refused() {
        assert_eq!(
            UnitPrice::parse("1.10"),
            Some(UnitPrice(1_100_000_000_000_000))
        );
        assert_eq!(UnitPrice::parse("0.000000000000001"), Some(UnitPrice(1)));
        assert_eq!(
            Factor::parse("0.9"),
            Some(Factor {
                millionths: 900_000
            })
        );
        for text in ["-1", "0.0000000000000001", "1000000", "a", ""] {
            assert_eq!(UnitPrice::parse(text), None, "{text}");
        }
        assert_eq!(parse_amount("0.002"), Some(Usd::from_nanos(2_000_000)));
        for text in ["-0.1", "0.0000000001", "1000000", "$1"] {
            assert_eq!(parse_amount(text), None, "{text}");
        }
        for text in ["-1", "0.0000001", "1000", "90%"] {
            assert_eq!(Factor::parse(text), None, "{text}");
        }
    }

    #[test]
    fn statuses_are_classes_or_single() {
        let statuses = Statuses::parse("2xx").expect("a class");
        let statuses = statuses.and(Statuses::parse("402").expect("a status"));
        for (status, is_in) in [
            (200, true),
            (299, true),
            (402, true),
            (300, false),
            (400, false),
        ] {
            assert_eq!(statuses.contains(status), is_in, "{status}");
        }
        for text in ["", "2x", "6xx", "20", "2000", "-xx", "xxx", "2xxx"] {
            assert_eq!(Statuses::parse(text), None, "{text}");
        }
    }

    #[test]
    fn rates_from_which_no_cost_can_be_told_are_refused() {
        let price = UnitPrice::parse("1").expect("a price");
        let rates = |units: &[Unit]| {
            let prices: Vec<_> = units.iter().map(|unit| (*unit, price)).collect();
            Rates::new(&prices).map(drop)
        };
        let (input, cached, audio) = (Unit::Input, Unit::CacheRead, Unit::InputAudio);
        assert_eq!(rates(&[input, cached, Unit::WebSearches]), Ok(()));
        assert_eq!(
            rates(&[cached]),
            Err(RatesError::Whole {
                part: cached,
                whole: input
            })
        );
        assert_eq!(
            rates(&[input, cached, audio]),
            Err(RatesError::Overlap {
                one: cached,
                other: audio,
                both: Some(Unit::CacheReadAudio)
            })
        );
        assert_eq!(
            rates(&[input, Unit::CacheWrite, audio]),
            Err(RatesError::Overlap {
                one: Unit::CacheWrite,
                other: audio,
                both: None
            })
        );
    }

    #[test]
    fn a_version_is_all_that_the_prices_say() {
        let price = |model, text| {
            let terms = Terms::PerCall(Usd::parse(text).expect("an amount"));
            version(&[TenantPrice::new(None, model, terms)])
        };
        assert_eq!(price("a", "1"), price("a", "1.00"));
        assert_ne!(price("a", "1"), price("a", "2"));
        assert_ne!(price("a", "1"), price("b", "1"));
        assert_eq!(price("a", "1").len(), "tenant ".len() + 8);
    }
}
