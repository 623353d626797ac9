//! The table of list prices, read from the data of genai-prices.
//!
//! Numbers are read as text: a price must not pass through a float.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fancy_regex::Regex;
use onlyonce_core::Timestamp;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::value::RawValue;

use super::charge::{Charge, Gap};
use super::matching::Rule;
use super::rate::{PriceList, Rate, Tier};

const DAY: Duration = Duration::from_secs(86_400);

/// All list prices.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) providers: Box<[Provider]>,
}

#[derive(Debug)]
pub(super) struct Provider {
    pub(super) id: Box<str>,
    /// Which other names are its.
    pub(super) provider_match: Option<Rule>,
    /// Which models are its where nobody says whose they are.
    pub(super) model_match: Option<Rule>,
    /// The providers whose models it sells too.
    pub(super) fallbacks: Box<[usize]>,
    pub(super) models: Box<[Model]>,
}

#[derive(Debug)]
pub(super) struct Model {
    pub(super) rule: Rule,
    /// Of those that hold at a moment the last one counts. One always holds.
    prices: Box<[Dated]>,
    /// Of those that hold the first one counts, price by price.
    variants: Box<[Variant]>,
}

#[derive(Debug)]
struct Dated {
    when: When,
    prices: PriceList,
}

/// Prices of a class of service.
#[derive(Debug)]
struct Variant {
    tier: Box<str>,
    when: When,
    prices: PriceList,
}

/// At which moments a price holds.
#[derive(Clone, Copy, Debug)]
enum When {
    Always,
    From(Timestamp),
    /// Every day from a time to another (UTC), over midnight where that comes first.
    Daily {
        start: Duration,
        end: Duration,
    },
}

impl When {
    fn holds(self, at: Timestamp) -> bool {
        match self {
            Self::Always => true,
            Self::From(start) => at >= start,
            Self::Daily { start, end } => {
                let now = Duration::from_millis(at.as_millis() % 86_400_000);
                match end < start {
                    true => now >= start || now < end,
                    false => now >= start && now < end,
                }
            }
        }
    }
}

impl Model {
    /// The prices at a moment.
    pub(super) fn prices(&self, at: Timestamp) -> &PriceList {
        let mut dated = self.prices.iter().rev();
        let holds = dated.find(|dated| dated.when.holds(at));
        &holds.unwrap_or(&self.prices[0]).prices
    }

    /// What replaces some of them for a class of service; what comes later is stronger.
    pub(super) fn variants<'a>(
        &'a self,
        tier: &'a str,
        at: Timestamp,
    ) -> impl Iterator<Item = &'a PriceList> {
        self.variants
            .iter()
            .rev()
            .filter(move |variant| &*variant.tier == tier && variant.when.holds(at))
            .map(|variant| &variant.prices)
    }
}

/// Why a text is no table of prices.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// It is not written like one.
    #[error("it is not the data of genai-prices: {0}")]
    Shape(#[from] serde_json::Error),
    /// Prices of a model make no sense.
    #[error("model {model} of {provider}: {what}")]
    Prices {
        /// The id of the provider.
        provider: Box<str>,
        /// The id of the model.
        model: Box<str>,
        /// What is wrong with them.
        what: String,
    },
}

impl Table {
    /// Reads the data of genai-prices, in its second format. Prices that this program does not know are
    /// left out.
    pub(super) fn read(text: &str) -> Result<Self, TableError> {
        let raw: Vec<RawProvider<'_>> = serde_json::from_str(text)?;
        let places: HashMap<Box<str>, usize> = raw
            .iter()
            .enumerate()
            .map(|(place, provider)| (provider.id.as_ref().into(), place))
            .collect();
        let providers = raw.into_iter().map(|provider| provider.checked(&places));
        Ok(Self {
            providers: providers.collect::<Result<_, _>>()?,
        })
    }
}

#[derive(serde::Deserialize)]
struct RawProvider<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    provider_match: Option<Rule>,
    model_match: Option<Rule>,
    #[serde(borrow, default)]
    fallback_model_providers: Vec<Cow<'a, str>>,
    #[serde(borrow)]
    models: Vec<RawModel<'a>>,
}

#[derive(serde::Deserialize)]
struct RawModel<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(rename = "match")]
    rule: Rule,
    prices: RawPrices,
    #[serde(borrow, default)]
    price_variants: Vec<RawVariant<'a>>,
}

struct RawPrices(Vec<RawDated>);

#[derive(serde::Deserialize)]
struct RawDated {
    constraint: Option<When>,
    prices: PriceList,
}

#[derive(serde::Deserialize)]
struct RawVariant<'a> {
    #[serde(borrow)]
    when: BTreeMap<&'a str, Cow<'a, str>>,
    constraint: Option<When>,
    prices: PriceList,
}

impl RawProvider<'_> {
    fn checked(self, places: &HashMap<Box<str>, usize>) -> Result<Provider, TableError> {
        let fallbacks = self.fallback_model_providers.iter();
        let fallbacks = fallbacks.filter_map(|id| places.get(id.as_ref()).copied());
        let models = self.models.into_iter().map(|model| {
            let id = model.id.clone();
            model.checked().map_err(|what| TableError::Prices {
                provider: self.id.as_ref().into(),
                model: id.into(),
                what,
            })
        });
        Ok(Provider {
            models: models.collect::<Result<_, _>>()?,
            fallbacks: fallbacks.collect(),
            provider_match: self.provider_match,
            model_match: self.model_match,
            id: self.id.into(),
        })
    }
}

impl RawModel<'_> {
    fn checked(self) -> Result<Model, String> {
        let RawPrices(prices) = self.prices;
        let always = prices.iter().filter(|dated| dated.constraint.is_none());
        if always.count() != 1 {
            return Err("not exactly one of its prices holds always".to_owned());
        }
        for dated in &prices {
            if let Some(gap) = Gap::find(dated.prices.charges()) {
                return Err(described(gap));
            }
        }
        let dated = prices.into_iter().map(|dated| Dated {
            when: dated.constraint.unwrap_or(When::Always),
            prices: dated.prices,
        });
        // Other variants go by what no answer tells (`batch`, a region): they never hold.
        let variants = self.price_variants.into_iter().filter_map(|mut variant| {
            let tier = variant.when.remove("service_tier")?;
            variant.when.is_empty().then(|| Variant {
                tier: tier.into(),
                when: variant.constraint.unwrap_or(When::Always),
                prices: variant.prices,
            })
        });
        Ok(Model {
            rule: self.rule,
            prices: dated.collect(),
            variants: variants.collect(),
        })
    }
}

fn described(gap: Gap) -> String {
    match gap {
        Gap::Whole { part, whole } => format!("{} needs {} too", part.key(), whole.key()),
        Gap::Overlap { one, other, both } => format!(
            "{} and {} need {} too",
            one.key(),
            other.key(),
            both.map_or("a price of what is both", Charge::key)
        ),
    }
}

impl<'de> Deserialize<'de> for RawPrices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        let read = match raw.starts_with('[') {
            true => serde_json::from_str(raw).map(Self),
            false => serde_json::from_str(raw).map(|prices| {
                Self(vec![RawDated {
                    constraint: None,
                    prices,
                }])
            }),
        };
        read.map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for PriceList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = BTreeMap::<Cow<'de, str>, Option<Rate>>::deserialize(deserializer)?;
        let rates = raw
            .into_iter()
            .filter_map(|(key, rate)| Some((Charge::named(&key)?, rate?)));
        Ok(Self(rates.collect()))
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Tiered<'a> {
            #[serde(borrow)]
            base: &'a RawValue,
            #[serde(borrow)]
            tiers: Vec<RawTier<'a>>,
        }
        #[derive(serde::Deserialize)]
        struct RawTier<'a> {
            start: u64,
            #[serde(borrow)]
            price: &'a RawValue,
        }

        let price = |text: &str| {
            Self::price(text).ok_or_else(|| D::Error::custom(format!("{text} is no price")))
        };
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        if !raw.starts_with('{') {
            return Ok(Self::flat(price(raw)?));
        }
        let tiered: Tiered<'_> = serde_json::from_str(raw).map_err(D::Error::custom)?;
        let mut tiers = Vec::with_capacity(tiered.tiers.len());
        for tier in tiered.tiers {
            tiers.push(Tier {
                above: tier.start,
                price: price(tier.price.get())?,
            });
        }
        tiers.sort_by_key(|tier| tier.above);
        Ok(Self {
            base: price(tiered.base.get())?,
            tiers: tiers.into(),
        })
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Raw<'a> {
            And(Vec<Rule>),
            Or(Vec<Rule>),
            Contains(#[serde(borrow)] Cow<'a, str>),
            EndsWith(#[serde(borrow)] Cow<'a, str>),
            Equals(#[serde(borrow)] Cow<'a, str>),
            Regex(#[serde(borrow)] Cow<'a, str>),
            StartsWith(#[serde(borrow)] Cow<'a, str>),
        }
        let lower = |text: Cow<'_, str>| text.to_lowercase().into_boxed_str();
        Ok(match Raw::deserialize(deserializer)? {
            Raw::And(rules) => Self::And(rules.into()),
            Raw::Or(rules) => Self::Or(rules.into()),
            Raw::Contains(part) => Self::Contains(lower(part)),
            Raw::EndsWith(end) => Self::EndsWith(lower(end)),
            Raw::Equals(all) => Self::Equals(lower(all)),
            Raw::Regex(pattern) => {
                // The dates in names have no digits of other scripts, and all scripts' would be 2.5 MiB.
                let pattern = pattern.replace(r"\d", "[0-9]");
                Self::Regex(Box::new(Regex::new(&pattern).map_err(D::Error::custom)?))
            }
            Raw::StartsWith(start) => Self::StartsWith(lower(start)),
        })
    }
}

impl<'de> Deserialize<'de> for When {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw<'a> {
            /// What the other fields say too.
            #[serde(rename = "type")]
            _type: Option<&'a str>,
            start_date: Option<&'a str>,
            start_time: Option<&'a str>,
            end_time: Option<&'a str>,
        }
        let raw = Raw::deserialize(deserializer)?;
        match (raw.start_date, raw.start_time, raw.end_time) {
            (Some(date), None, None) => day(date).map(Self::From),
            (None, Some(start), Some(end)) => time_of_day(start)
                .zip(time_of_day(end))
                .map(|(start, end)| Self::Daily { start, end }),
            _ => None,
        }
        .ok_or_else(|| D::Error::custom("a constraint is neither a date nor two times of day"))
    }
}

/// The first moment of a day (UTC) that is written `YYYY-MM-DD`.
pub(super) fn day(text: &str) -> Option<Timestamp> {
    let since = since_1970(&format!("{text}T00:00:00Z"))?;
    Some(Timestamp::from_millis(
        u64::try_from(since.as_millis()).ok()?,
    ))
}

/// A time of the day that is written `HH:MM:SS` with a zone (`Z`, `+01:00`), from midnight UTC.
fn time_of_day(text: &str) -> Option<Duration> {
    let (time, zone) = text.split_at(text.find(['Z', '+', '-'])?);
    let local = since_1970(&format!("1970-01-01T{time}Z"))?;
    let offset = match zone.split_at_checked(1)? {
        ("Z", "") => return Some(local),
        (_, hours) => since_1970(&format!("1970-01-01T{hours}:00Z"))?,
    };
    // East of Greenwich it is later than there.
    let utc = match zone.starts_with('+') {
        true => (local + DAY).checked_sub(offset)?,
        false => local + offset,
    };
    Some(if utc >= DAY { utc - DAY } else { utc })
}

fn since_1970(text: &str) -> Option<Duration> {
    let at: SystemTime = humantime::parse_rfc3339(text).ok()?;
    at.duration_since(UNIX_EPOCH).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_times_are_read() {
        assert_eq!(
            day("2026-01-01"),
            Some(Timestamp::from_millis(1_767_225_600_000))
        );
        for text in ["2025-02-29", "2026-13-01", "2026-1-01", "soon", ""] {
            assert_eq!(day(text), None, "{text}");
        }
        for (text, seconds) in [
            ("01:00:00Z", 3_600),
            ("23:00:00+01:00", 79_200),
            ("00:30:00+01:00", 84_600),
            ("23:30:00-01:00", 1_800),
        ] {
            assert_eq!(
                time_of_day(text),
                Some(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        for text in [
            "24:00:00Z",
            "12:00:00",
            "12:00:00+0100",
            "12:60:00Z",
            "+",
            "",
        ] {
            assert_eq!(time_of_day(text), None, "{text}");
        }
    }

    #[test]
    fn a_table_that_makes_no_sense_is_refused() {
        let table = |prices: &str| {
            format!(
                r#"[{{"id":"p","models":[{{"id":"m","match":{{"equals":"m"}},"prices":{prices}}}]}}]"#
            )
        };
        assert!(Table::read(&table(r#"{"input_mtok":1,"new_mtok":2}"#)).is_ok());
        for (prices, why) in [
            (r#"{"input_mtok":-1}"#, "-1 is no price"),
            (r#"{"input_mtok":"1"}"#, "is no price"),
            (
                r#"{"cache_read_mtok":1}"#,
                "model m of p: cache_read_mtok needs input_mtok too",
            ),
            (
                r#"{"input_mtok":1,"cache_read_mtok":1,"input_audio_mtok":1}"#,
                "cache_read_mtok and input_audio_mtok need cache_audio_read_mtok too",
            ),
            (r#"[]"#, "not exactly one of its prices holds always"),
            (
                r#"[{"constraint":{"start_date":"2025-02-29"},"prices":{}}]"#,
                "neither a date nor two times of day",
            ),
            ("7", "invalid type"),
        ] {
            let error = Table::read(&table(prices)).expect_err(prices).to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
