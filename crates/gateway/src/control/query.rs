//! Reading what a caller asks for: moments, states, pages.

use std::time::UNIX_EPOCH;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use onlyonce_core::{Key, OperationId, StateName, Timestamp};
use onlyonce_store::Query;
use onlyonce_store::books::{EntryQuery, Position};
use serde::Deserialize;

use super::answer::Refusal;
use crate::config::{nearest, parse_duration};

/// How many operations a page has unless the caller says.
const PAGE: usize = 100;
/// How many it has at most.
const LARGEST_PAGE: usize = 1000;

/// The one name in a path, decoded.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(error) => Err(Refusal::bad_request(
                error.body_text(),
                "percent-encode the path as UTF-8",
            )),
        }
    }
}

/// The query of `GET /v1/operations`. With `model` it asks the books, unless it is about what has not
/// ended; and else the store's records.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    pub(super) key: Option<String>,
    pub(super) tenant: Option<String>,
    pub(super) state: Option<String>,
    pub(super) model: Option<String>,
    pub(super) since: Option<String>,
    pub(super) until: Option<String>,
    pub(super) limit: Option<usize>,
    pub(super) cursor: Option<String>,
}

impl ListQuery {
    /// What it may have.
    pub(super) const FIELDS: &str = "use key, tenant, state, model, since, until, limit and cursor";

    /// The query that asks for the same from `cursor` on.
    pub(super) fn address(&self, cursor: Option<&str>) -> String {
        let mut query = form_urlencoded::Serializer::for_suffix("?".to_owned(), 1);
        let parts = [
            ("tenant", self.tenant.as_deref()),
            ("key", self.key.as_deref()),
            ("state", self.state.as_deref()),
            ("model", self.model.as_deref()),
            ("since", self.since.as_deref()),
            ("until", self.until.as_deref()),
            ("cursor", cursor),
        ];
        let filled = parts
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        query.extend_pairs(filled);
        query.finish()
    }

    /// Whether it is about operations that the books do not have yet, and whose records name the model that
    /// they ask for.
    pub(super) fn is_of_unsettled(&self) -> bool {
        let unsettled = [StateName::InFlight, StateName::Unknown].map(StateName::as_str);
        self.state
            .as_deref()
            .is_some_and(|state| unsettled.contains(&state))
    }

    /// What the store is to look for, which finds nothing by model. `now` is the store's clock, which
    /// spans are counted from.
    pub(super) fn for_store(self, now: Timestamp) -> Result<Query, Refusal> {
        let key = match self.key.as_deref().map(Key::new) {
            None => None,
            Some(Ok(key)) => Some(key),
            Some(Err(error)) => {
                return Err(Refusal::bad_request(
                    format!("no operation can have that key: {error}"),
                    "send the key without the quotes of a header",
                ));
            }
        };
        Ok(Query {
            key,
            tenant: self.tenant.map(Into::into),
            state: self.state.as_deref().map(state).transpose()?,
            since: moment("since", self.since.as_deref(), now)?,
            until: moment("until", self.until.as_deref(), now)?,
            older_than: self.cursor.as_deref().map(operation_id).transpose()?,
            limit: limit(self.limit)?,
        })
    }

    /// What the books are to look for: they know the model of each operation that completed, and no
    /// key.
    pub(super) fn for_books(self, now: Timestamp) -> Result<EntryQuery, Refusal> {
        let state = self.state.as_deref().map(state).transpose()?;
        if state.is_some_and(|state| state != StateName::Completed) {
            return Err(Refusal::bad_request(
                "what did not run asked no model",
                "leave model out, or ask for the state completed, unknown or in_flight",
            ));
        }
        if self.key.is_some() {
            return Err(Refusal::bad_request(
                "the books, which know the models, hold no keys",
                "ask for a key or for a model",
            ));
        }
        EntriesQuery {
            tenant: self.tenant,
            route: None,
            model: self.model,
            since: self.since,
            until: self.until,
            limit: self.limit,
            cursor: self.cursor,
        }
        .for_books(now)
    }
}

/// The query of `GET /v1/ledger/entries`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EntriesQuery {
    tenant: Option<String>,
    route: Option<String>,
    model: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

impl EntriesQuery {
    /// What the books are to look for. `now` is the store's clock, which spans are counted from.
    pub(super) fn for_books(self, now: Timestamp) -> Result<EntryQuery, Refusal> {
        Ok(EntryQuery {
            tenant: self.tenant.map(Into::into),
            route: self.route.map(Into::into),
            model: self.model.map(Into::into),
            since: moment("since", self.since.as_deref(), now)?,
            until: moment("until", self.until.as_deref(), now)?,
            older_than: self.cursor.as_deref().map(position).transpose()?,
            limit: limit(self.limit)?,
        })
    }
}

/// How many a page is to have.
fn limit(asked: Option<usize>) -> Result<usize, Refusal> {
    let limit = asked.unwrap_or(PAGE);
    if (1..=LARGEST_PAGE).contains(&limit) {
        return Ok(limit);
    }
    Err(Refusal::bad_request(
        format!("limit is {limit}"),
        format!("ask for 1 to {LARGEST_PAGE}, and follow next_cursor"),
    ))
}

/// The place in the books that the cursor `text` is.
fn position(text: &str) -> Result<Position, Refusal> {
    let position = u128::from_str_radix(text, 16);
    position.map(Position).map_err(|_| {
        Refusal::bad_request(
            format!("the books have no place {text}"),
            "send the next_cursor of the page before, with the same filters",
        )
    })
}

/// A place in the books as a cursor.
pub(super) fn show_position(position: Position) -> String {
    format!("{:x}", position.0)
}

/// The state named `text`.
pub(super) fn state(text: &str) -> Result<StateName, Refusal> {
    let states = StateName::ALL;
    states
        .into_iter()
        .find(|state| state.as_str() == text)
        .ok_or_else(|| {
            let names = states.map(StateName::as_str);
            let next = match nearest(text, names) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("use one of: {}", names.join(", ")),
            };
            Refusal::bad_request(format!("there is no state {text}"), next)
        })
}

/// The operation's id that `text` is.
pub(super) fn operation_id(text: &str) -> Result<OperationId, Refusal> {
    text.parse()
        .map_err(|error: onlyonce_core::identity::NotAnOperationId| {
            Refusal::bad_request(error.to_string(), "list operations at /v1/operations")
        })
}

/// A moment: RFC 3339, or a span before `now` like `2h`.
pub(super) fn moment(
    name: &str,
    text: Option<&str>,
    now: Timestamp,
) -> Result<Option<Timestamp>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    if let Some(span) = parse_duration(text) {
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let moment = now.as_millis().saturating_sub(millis);
        return Ok(Some(Timestamp::from_millis(moment)));
    }
    let since_epoch = humantime::parse_rfc3339(text)
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let Some(since_epoch) = since_epoch else {
        return Err(Refusal::bad_request(
            format!("{name} is no moment: {text}"),
            "write it like 2026-11-25T08:00:00Z, or as a span until now like 2h",
        ));
    };
    let millis = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
    Ok(Some(Timestamp::from_millis(millis)))
}

/// A moment as RFC 3339 with milliseconds, in UTC.
pub(super) fn show_moment(moment: Timestamp) -> String {
    onlyonce_ledger::event::rfc3339(moment)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    #[test]
    fn a_moment_is_a_date_or_a_span_until_now() {
        let read =
            |text| moment("since", Some(text), NOW).map(|moment| moment.unwrap().as_millis());
        assert_eq!(read("2h").unwrap(), NOW.as_millis() - 7_200_000);
        assert_eq!(read("1970-01-01T00:00:01Z").unwrap(), 1000);
        assert_eq!(read("1970-01-01T00:00:01.250Z").unwrap(), 1250);
        assert!(read("yesterday").is_err());
        assert!(read("").is_err());
        assert_eq!(moment("since", None, NOW).unwrap(), None);
    }

    #[test]
    fn a_shown_moment_reads_back() {
        let shown = show_moment(NOW);
        assert_eq!(shown, "2027-01-15T08:00:00.000Z");
        assert_eq!(moment("until", Some(&shown), NOW).unwrap(), Some(NOW));
        assert_eq!(
            show_moment(Timestamp::from_millis(u64::MAX)),
            "9999-12-31T23:59:59.999Z"
        );
    }

    #[test]
    fn a_place_in_the_books_reads_back() {
        for place in [0, 77, u128::MAX] {
            let shown = show_position(Position(place));
            assert_eq!(position(&shown).unwrap(), Position(place));
        }
        assert!(position("").is_err());
        assert!(position("op_1").is_err());
    }

    #[test]
    fn a_page_has_bounds() {
        let of = |limit| ListQuery {
            limit: Some(limit),
            ..ListQuery::default()
        };
        assert!(of(0).for_store(NOW).is_err());
        assert!(of(1001).for_store(NOW).is_err());
        assert_eq!(of(7).for_store(NOW).unwrap().limit, 7);
        assert_eq!(ListQuery::default().for_store(NOW).unwrap().limit, 100);
    }
}
