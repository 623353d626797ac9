//! What was spent, and what was not: sums of the books, grouped as somebody asks.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use onlyonce_core::{Count, Sums, Timestamp};
use onlyonce_store::Store;
use onlyonce_store::books::{Cell, Grain, Of, SumsQuery};
use serde::{Deserialize, Serialize};

use super::access::{May, Read};
use super::answer::Refusal;
use super::desk::Desk;
use super::query::{moment, show_moment};

/// By what sums can be grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum By {
    Day,
    Hour,
    Tenant,
    Route,
    Provider,
    Model,
}

impl By {
    const ALL: [Self; 6] = [
        Self::Day,
        Self::Hour,
        Self::Tenant,
        Self::Route,
        Self::Provider,
        Self::Model,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Hour => "hour",
            Self::Tenant => "tenant",
            Self::Route => "route",
            Self::Provider => "provider",
            Self::Model => "model",
        }
    }

    /// The parts of a list like `tenant,model`.
    pub(super) fn list(text: &str) -> Result<Vec<Self>, Refusal> {
        let mut list = Vec::new();
        for name in text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            let Some(by) = Self::ALL.into_iter().find(|by| by.as_str() == name) else {
                return Err(Refusal::bad_request(
                    format!("sums cannot be grouped by {name}"),
                    "use some of: day, hour, tenant, route, provider, model",
                ));
            };
            if !list.contains(&by) {
                list.push(by);
            }
        }
        Ok(list)
    }

    fn of(self, cell: &Cell) -> String {
        let account = &cell.account;
        match self {
            Self::Day | Self::Hour => show_moment(cell.period),
            Self::Tenant => account.tenant.to_string(),
            Self::Route => account.route.to_string(),
            Self::Provider => account.provider.to_string(),
            Self::Model => account.model.to_string(),
        }
    }
}

/// Sums of one group. Its names stand in the order of what was grouped by.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) names: Vec<String>,
    pub(super) sums: Sums,
}

/// `cells`, summed by what `by` says; the groups in the order of their names.
pub(super) fn group(cells: &[Cell], by: &[By]) -> Vec<Group> {
    let mut groups: BTreeMap<Vec<String>, Sums> = BTreeMap::new();
    for cell in cells {
        let names = by.iter().map(|by| by.of(cell)).collect();
        groups.entry(names).or_default().merge(&cell.sums);
    }
    let groups = groups.into_iter();
    groups.map(|(names, sums)| Group { names, sums }).collect()
}

/// The sum of all `cells`.
pub(super) fn total(cells: &[Cell]) -> Sums {
    let mut total = Sums::default();
    for cell in cells {
        total.merge(&cell.sums);
    }
    total
}

/// The last day, week or month, in periods that fit it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Range {
    #[default]
    Day,
    Week,
    Month,
}

impl Range {
    pub(super) const ALL: [Self; 3] = [Self::Day, Self::Week, Self::Month];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "24h",
            Self::Week => "7d",
            Self::Month => "30d",
        }
    }

    pub(super) fn read(text: Option<&str>) -> Result<Self, Refusal> {
        let Some(text) = text else {
            return Ok(Self::default());
        };
        let found = Self::ALL.into_iter().find(|range| range.as_str() == text);
        found.ok_or_else(|| {
            Refusal::bad_request(format!("there is no range {text}"), "use 24h, 7d or 30d")
        })
    }

    pub(super) const fn grain(self) -> Grain {
        match self {
            Self::Day => Grain::Hour,
            Self::Week | Self::Month => Grain::Day,
        }
    }

    const fn periods(self) -> u32 {
        match self {
            Self::Day => 24,
            Self::Week => 7,
            Self::Month => 30,
        }
    }

    /// The beginnings of its periods, the one that `now` is in as the last.
    pub(super) fn series(self, now: Timestamp) -> Vec<Timestamp> {
        let (grain, count) = (self.grain(), self.periods());
        let last = grain.period(now).as_millis();
        let span = u64::try_from(grain.span().as_millis()).unwrap_or(u64::MAX);
        (0..u64::from(count))
            .rev()
            .map(|back| Timestamp::from_millis(last.saturating_sub(back * span)))
            .collect()
    }
}

/// What was spent in a range.
pub(super) struct Spend {
    pub(super) range: Range,
    /// One for each period, the last one now.
    pub(super) series: Vec<(Timestamp, Sums)>,
    pub(super) total: Sums,
    pub(super) accounts: Vec<Cell>,
}

impl Spend {
    /// In `range`, as `desk` may see it.
    pub(super) async fn of<S: Store>(desk: &Desk<S>, range: Range) -> Result<Self, Refusal> {
        let periods = range.series(desk.now());
        let since = periods.first().copied().unwrap_or_default();
        let query = |of| SumsQuery {
            grain: range.grain(),
            since,
            until: desk.now().after(range.grain().span()),
            of,
        };
        let accounts = desk.sums(query(Of::Accounts)).await?;
        // What one tenant may see is summed here; of everything, the store has the sums.
        let all = match desk.access().tenant {
            None => desk.sums(query(Of::All)).await?,
            Some(_) => accounts.clone(),
        };
        let mut by_period: BTreeMap<Timestamp, Sums> = BTreeMap::new();
        for cell in &all {
            by_period.entry(cell.period).or_default().merge(&cell.sums);
        }
        let series = periods
            .into_iter()
            .map(|period| (period, by_period.remove(&period).unwrap_or_default()))
            .collect();
        Ok(Self {
            range,
            series,
            total: total(&all),
            accounts,
        })
    }

    /// The groups with the most spent and saved, at most `most`.
    pub(super) fn top(&self, by: By, most: usize) -> Vec<Group> {
        let mut groups = group(&self.accounts, &[by]);
        groups.sort_by_key(|group| {
            let money = group.sums.cost().nanos() + group.sums.saved().nanos();
            std::cmp::Reverse((money, group.sums.get(Count::Operations)))
        });
        groups.truncate(most);
        groups
    }
}

/// Sums as JSON: money in decimal US dollars, the rest as whole numbers.
#[derive(Debug, Serialize)]
pub(super) struct SumsView {
    spent_usd: String,
    not_spent_usd: String,
    #[serde(flatten)]
    counts: BTreeMap<&'static str, i64>,
}

impl From<&Sums> for SumsView {
    fn from(sums: &Sums) -> Self {
        let is_money = |count| matches!(count, Count::Cost | Count::Saved);
        let counts = sums.iter().filter(|(count, _)| !is_money(*count));
        Self {
            spent_usd: sums.cost().to_string(),
            not_spent_usd: sums.saved().to_string(),
            counts: counts.map(|(count, sum)| (count.as_str(), sum)).collect(),
        }
    }
}

/// The query of `GET /v1/ledger`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LedgerQuery {
    by: Option<String>,
    tenant: Option<String>,
    since: Option<String>,
    until: Option<String>,
}

#[derive(Debug, Serialize)]
struct RowView {
    #[serde(flatten)]
    names: BTreeMap<&'static str, String>,
    #[serde(flatten)]
    sums: SumsView,
}

/// The answer of `GET /v1/ledger`.
#[derive(Debug, Serialize)]
pub(super) struct LedgerView {
    as_of: String,
    since: String,
    until: String,
    by: Vec<&'static str>,
    rows: Vec<RowView>,
    total: SumsView,
}

const MONTH: Duration = Duration::from_secs(30 * 86_400);

/// `GET /v1/ledger`.
pub(super) async fn ledger<S: Store>(
    desk: May<S, Read>,
    query: Result<Query<LedgerQuery>, QueryRejection>,
) -> Result<Json<LedgerView>, Refusal> {
    let Query(query) = query.map_err(|error| {
        Refusal::bad_request(error.body_text(), "use by, tenant, since and until")
    })?;
    let by = By::list(query.by.as_deref().unwrap_or("day"))?;
    let now = desk.now();
    let grain = match by.contains(&By::Hour) {
        true => Grain::Hour,
        false => Grain::Day,
    };
    let month = u64::try_from(MONTH.as_millis()).unwrap_or(u64::MAX);
    let since = moment("since", query.since.as_deref(), now)?;
    let since = since.unwrap_or(Timestamp::from_millis(
        now.as_millis().saturating_sub(month),
    ));
    let since = grain.period(since);
    let until = moment("until", query.until.as_deref(), now)?.unwrap_or(now);
    let cells = desk
        .sums(SumsQuery {
            grain,
            since,
            until: until.after(Duration::from_millis(1)),
            of: match query.tenant {
                Some(tenant) => Of::Tenant(tenant.into()),
                None => Of::Accounts,
            },
        })
        .await?;
    let rows = group(&cells, &by).into_iter().map(|group| RowView {
        names: by.iter().map(|by| by.as_str()).zip(group.names).collect(),
        sums: SumsView::from(&group.sums),
    });
    Ok(Json(LedgerView {
        as_of: show_moment(now),
        since: show_moment(since),
        until: show_moment(until),
        by: by.iter().map(|by| by.as_str()).collect(),
        rows: rows.collect(),
        total: SumsView::from(&total(&cells)),
    }))
}

#[cfg(test)]
mod tests {
    use onlyonce_core::Account;

    use super::*;

    fn cell(day: u64, tenant: &str, model: &str, cost: i64) -> Cell {
        Cell {
            period: Timestamp::from_millis(day * 86_400_000),
            account: Account {
                tenant: tenant.into(),
                model: model.into(),
                ..Account::default()
            },
            sums: [(Count::Operations, 1), (Count::Cost, cost)]
                .into_iter()
                .collect(),
        }
    }

    #[test]
    fn sums_are_grouped_in_the_order_that_was_asked_for() {
        let cells = [
            cell(1, "b", "large", 1),
            cell(0, "a", "large", 10),
            cell(0, "b", "small", 100),
            cell(1, "b", "large", 1000),
        ];
        let costs = |by: &str| {
            let by = By::list(by).unwrap();
            let groups = group(&cells, &by).into_iter();
            groups
                .map(|group| (group.names.join("/"), group.sums.cost().nanos()))
                .collect::<Vec<_>>()
        };
        assert_eq!(costs("tenant"), [("a".into(), 10), ("b".into(), 1101)]);
        assert_eq!(
            costs("model,tenant"),
            [
                ("large/a".into(), 10),
                ("large/b".into(), 1001),
                ("small/b".into(), 100)
            ]
        );
        assert_eq!(costs(""), [(String::new(), 1111)]);
        assert_eq!(costs("day")[1].0, "1970-01-02T00:00:00.000Z");
        assert_eq!(total(&cells).cost().nanos(), 1111);
        assert!(By::list("tenant,colour").is_err());
        assert_eq!(By::list("tenant, tenant").unwrap(), [By::Tenant]);
    }

    #[test]
    fn a_range_ends_in_the_period_of_now() {
        let now = Timestamp::from_millis(100 * 86_400_000 + 5);
        let week = Range::Week.series(now);
        assert_eq!(week.len(), 7);
        assert_eq!(week[6], Timestamp::from_millis(100 * 86_400_000));
        assert_eq!(week[0], Timestamp::from_millis(94 * 86_400_000));
        assert_eq!(Range::Day.series(now).len(), 24);
        assert!(Range::read(Some("1y")).is_err());
        assert_eq!(Range::read(None).unwrap(), Range::Day);
    }
}
