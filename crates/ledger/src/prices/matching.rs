//! Which model of which provider a name means, by the rules in the data.

use std::borrow::Cow;

use fancy_regex::Regex;

use super::data::{Provider, Table};

/// Longer names are nobody's: what an upstream sends must not cost time without bound (I15).
pub(super) const MAX_NAME_BYTES: usize = 256;

/// A rule about a name. Names and rules are in lower case.
#[derive(Debug)]
pub(super) enum Rule {
    And(Box<[Rule]>),
    Or(Box<[Rule]>),
    Contains(Box<str>),
    EndsWith(Box<str>),
    Equals(Box<str>),
    Regex(Box<Regex>),
    StartsWith(Box<str>),
}

impl Rule {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::And(rules) => rules.iter().all(|rule| rule.matches(name)),
            Self::Or(rules) => rules.iter().any(|rule| rule.matches(name)),
            Self::Contains(part) => name.contains(&**part),
            Self::EndsWith(end) => name.ends_with(&**end),
            Self::Equals(all) => name == &**all,
            // One that gives up has found nothing.
            Self::Regex(regex) => regex.is_match(name).unwrap_or(false),
            Self::StartsWith(start) => name.starts_with(&**start),
        }
    }
}

/// A model of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The provider whose model it is.
    pub(super) provider: usize,
    /// Its place among that provider's models.
    pub(super) model: usize,
    /// Whether that provider was the one asked for, and not one whose models it sells.
    pub(super) is_own: bool,
}

/// Finds `model` at `provider`, both as they are named by people and answers.
pub(super) fn find(table: &Table, provider: &str, model: &str) -> Option<Found> {
    if provider.len().max(model.len()) > MAX_NAME_BYTES {
        return None;
    }
    let (provider, model) = (lower(provider.trim()), lower(model));
    let (seller, model) = find_seller(&table.providers, &provider, &model)?;
    find_dated(table, seller, model)
        .or_else(|| find_dated(table, seller, &with_dashed_dates(model)?))
}

/// The provider, and the name it knows the model by.
fn find_seller<'a>(
    providers: &[Provider],
    provider: &str,
    model: &'a str,
) -> Option<(usize, &'a str)> {
    // LiteLLM is a proxy; it says whose model it is by a prefix, or not at all.
    if provider == "litellm" {
        if let Some((prefix, rest)) = model.split_once('/')
            && let Some(found) = find_provider(providers, prefix)
        {
            return Some((found, rest));
        }
        return find_provider(providers, provider)
            .or_else(|| position(providers, |provider| provider.model_match.as_ref(), model))
            .map(|found| (found, model));
    }
    Some((find_provider(providers, provider)?, model))
}

fn find_provider(providers: &[Provider], name: &str) -> Option<usize> {
    if name.is_empty() {
        return None;
    }
    let by_id = providers.iter().position(|provider| &*provider.id == name);
    by_id.or_else(|| position(providers, |provider| provider.provider_match.as_ref(), name))
}

fn position(
    providers: &[Provider],
    rule: impl Fn(&Provider) -> Option<&Rule>,
    name: &str,
) -> Option<usize> {
    providers
        .iter()
        .position(|provider| rule(provider).is_some_and(|rule| rule.matches(name)))
}

/// The first model whose rule matches: of the seller, then of those whose models it sells.
fn find_dated(table: &Table, seller: usize, name: &str) -> Option<Found> {
    let sources = &table.providers[seller].fallbacks;
    std::iter::once(&seller)
        .chain(sources)
        .find_map(|provider| {
            let models = &table.providers[*provider].models;
            let model = models.iter().position(|model| model.rule.matches(name))?;
            Some(Found {
                provider: *provider,
                model,
                is_own: *provider == seller,
            })
        })
}

pub(super) fn lower(text: &str) -> Cow<'_, str> {
    match text
        .bytes()
        .any(|b| !b.is_ascii() || b.is_ascii_uppercase())
    {
        true => Cow::Owned(text.to_lowercase()),
        false => Cow::Borrowed(text),
    }
}

/// `name` with `-20251211` written as `-2025-12-11`, as the rules write dates; `None` where it has none.
/// LiteLLM and OpenRouter leave the dashes out.
fn with_dashed_dates(name: &str) -> Option<String> {
    let mut dashed = String::with_capacity(name.len() + 4);
    let mut rest = name;
    while let Some(at) = rest.find('-') {
        let (before, after) = rest.split_at(at + 1);
        dashed.push_str(before);
        rest = after;
        let Some(date) = after.get(..8).filter(|date| is_date(date)) else {
            continue;
        };
        if matches!(after.as_bytes().get(8), None | Some(b'-' | b':')) {
            dashed.push_str(&format!("{}-{}-{}", &date[..4], &date[4..6], &date[6..]));
            rest = &after[8..];
        }
    }
    dashed.push_str(rest);
    (dashed != name).then_some(dashed)
}

/// Whether `text` is a day of this century, written `YYYYMMDD`.
fn is_date(text: &str) -> bool {
    text.starts_with("20")
        && text.bytes().all(|b| b.is_ascii_digit())
        && super::data::day(&format!("{}-{}-{}", &text[..4], &text[4..6], &text[6..])).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_dates_get_their_dashes() {
        for (name, dashed) in [
            ("gpt-5.2-20251211", Some("gpt-5.2-2025-12-11")),
            ("model-20251211:free", Some("model-2025-12-11:free")),
            ("a-20251211-20240229", Some("a-2025-12-11-2024-02-29")),
            ("model-20250230", None),
            ("model-202512110", None),
            ("model-2025é211", None),
            ("model", None),
            ("model-", None),
        ] {
            assert_eq!(with_dashed_dates(name).as_deref(), dashed, "{name}");
        }
    }
}
