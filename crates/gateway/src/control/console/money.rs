//! Money on pages: what was spent and what was not, by time, by model, by tenant.

use maud::{Markup, html};
use onlyonce_core::{Count, Sums, Timestamp, Usd};
use onlyonce_store::books::Grain;

use super::super::query::{ListQuery, show_moment};
use super::super::spend::{By, Group, Range, Spend};
use super::chart::{self, Bar};
use super::parts;

/// Rows of a list of the largest.
const TOP: usize = 6;

/// An amount for people: cents where there are dollars, and what counts of less.
pub(super) fn usd(amount: Usd) -> String {
    const CENT: u64 = 10_000_000;
    const DOLLAR: u64 = 100 * CENT;
    const MICRO: u64 = 1_000;
    let sign = if amount.nanos() < 0 { "-" } else { "" };
    let nanos = amount.nanos().unsigned_abs();
    if nanos >= DOLLAR {
        let cents = nanos / CENT + u64::from(nanos % CENT >= CENT / 2);
        let (dollars, cents) = (parts::number(cents / 100), cents % 100);
        return format!("{sign}${dollars}.{cents:02}");
    }
    if nanos > 0 && nanos < MICRO {
        return format!("{sign}<$0.000001");
    }
    let micros = i64::try_from(nanos / MICRO * MICRO).unwrap_or(i64::MAX);
    format!("{sign}${}", Usd::from_nanos(micros))
}

/// A count of sums; they are never below zero.
pub(super) fn count(sums: &Sums, count: Count) -> u64 {
    u64::try_from(sums.get(count)).unwrap_or(0)
}

/// The links to the ranges.
pub(super) fn ranges(here: Range, page: &str) -> Markup {
    html! {
        nav.ranges aria-label="Range" {
            @for range in Range::ALL {
                a href={ (page) "?range=" (range.as_str()) }
                    aria-current=[(range == here).then_some("true")] { (range.as_str()) }
            }
        }
    }
}

/// The two figures that all is about.
pub(super) fn figures(spend: &Spend) -> Markup {
    let total = &spend.total;
    let unpriced = count(total, Count::Unpriced);
    html! {
        div.figures.money {
            div.card.figure.saved {
                span.label { "Not spent twice" }
                strong { (usd(total.saved())) }
                span.muted.small {
                    "in " (parts::counted(count(total, Count::Replayed), "replay")) " and "
                    (parts::counted(count(total, Count::Joined), "join"))
                }
            }
            div.card.figure {
                span.label { "Spent" }
                strong { (usd(total.cost())) }
                span.muted.small {
                    "in " (parts::counted(count(total, Count::Operations), "operation"))
                    @if unpriced > 0 { ", " (parts::number(unpriced)) " of them without a price" }
                }
            }
        }
    }
}

/// Money by time.
pub(super) fn chart(spend: &Spend) -> Markup {
    let grain = spend.range.grain();
    let last = spend.series.len().saturating_sub(1);
    let money = |usd: Usd| u64::try_from(usd.nanos()).unwrap_or(0);
    let has_money = money(spend.total.cost()) + money(spend.total.saved()) > 0;
    let bars: Vec<Bar> = spend
        .series
        .iter()
        .enumerate()
        .map(|(index, (period, sums))| Bar {
            label: match (last - index) % 6 {
                0 => short(*period, grain),
                _ => String::new(),
            },
            title: title(*period, grain, sums),
            parts: match has_money {
                true => vec![
                    ("spent", money(sums.cost())),
                    ("saved", money(sums.saved())),
                ],
                false => vec![
                    ("spent", count(sums, Count::Operations)),
                    ("saved", again(sums)),
                ],
            },
        })
        .collect();
    let (spent, saved) = match has_money {
        true => ("Spent", "Not spent twice"),
        false => ("Executed", "Replayed or joined"),
    };
    html! {
        section.card aria-labelledby="chart-title" {
            header {
                h2 #chart-title { (spent) " and " (saved.to_lowercase()) }
                ul.legend { li.spent { (spent) } li.saved { (saved) } }
            }
            (chart::bars(
                &format!("{spent} and {}, by {}", saved.to_lowercase(), word(grain)),
                &bars,
                |highest| match has_money {
                    true => usd(Usd::from_nanos(i64::try_from(highest).unwrap_or(i64::MAX))),
                    false => parts::number(highest),
                },
            ))
        }
    }
}

fn again(sums: &Sums) -> u64 {
    count(sums, Count::Replayed) + count(sums, Count::Joined)
}

fn word(grain: Grain) -> &'static str {
    match grain {
        Grain::Hour => "hour",
        Grain::Day => "day",
    }
}

fn short(period: Timestamp, grain: Grain) -> String {
    let full = show_moment(period);
    match grain {
        Grain::Hour => full[11..16].to_owned(),
        Grain::Day => full[5..10].to_owned(),
    }
}

fn title(period: Timestamp, grain: Grain, sums: &Sums) -> String {
    let full = show_moment(period);
    let when = match grain {
        Grain::Hour => full[..16].replace('T', " "),
        Grain::Day => full[..10].to_owned(),
    };
    format!(
        "{when}: {} spent in {}, {} not spent in {} and {}",
        usd(sums.cost()),
        parts::counted(count(sums, Count::Operations), "operation"),
        usd(sums.saved()),
        parts::counted(count(sums, Count::Replayed), "replay"),
        parts::counted(count(sums, Count::Joined), "join"),
    )
}

/// The largest of one kind, each with its share.
pub(super) fn top(spend: &Spend, by: By, name: &str) -> Markup {
    let groups = spend.top(by, TOP);
    let all = spend.total.cost().nanos() + spend.total.saved().nanos();
    html! {
        section.card aria-label=(name) {
            header { h2 { (name) }
                a href={ "/console/spend?by=" (by.as_str()) "&range=" (spend.range.as_str()) } { "All of them" } }
            @if groups.is_empty() {
                p.muted { "Nothing in this range yet." }
            } @else {
                table {
                    thead { tr {
                        th scope="col" { (by_word(by)) }
                        th.number scope="col" { "Spent" }
                        th.number scope="col" { "Not spent twice" }
                    } }
                    tbody { @for group in &groups {
                        tr {
                            td.name {
                                @for name in names(group, &[by], spend) { (name) }
                                (share(&group.sums, all))
                            }
                            td.number { (usd(group.sums.cost())) }
                            (saved(&group.sums))
                        }
                    } }
                }
            }
        }
    }
}

/// What was not spent twice, as a cell of a table.
pub(super) fn saved(sums: &Sums) -> Markup {
    let has_saved = sums.saved().nanos() > 0;
    html! { td.number .saved[has_saved] .muted[!has_saved] { (usd(sums.saved())) } }
}

/// The names of a group of `spend`. A model is a link to the operations that were summed, where they are
/// grouped by nothing that operations cannot be filtered by.
pub(super) fn names(group: &Group, by: &[By], spend: &Spend) -> Vec<Markup> {
    let is_filter = |by: &By| matches!(by, By::Tenant | By::Model);
    let of = |wanted| {
        let mut pairs = by.iter().zip(&group.names);
        pairs.find_map(|(by, name)| (*by == wanted).then(|| name.clone()))
    };
    let address = by.iter().all(is_filter).then(|| {
        let operations = ListQuery {
            tenant: of(By::Tenant),
            model: of(By::Model),
            since: spend.series.first().map(|(period, _)| show_moment(*period)),
            ..ListQuery::default()
        };
        format!("/console/operations{}", operations.address(None))
    });
    let shown = by.iter().zip(&group.names).map(|(by, name)| match by {
        _ if name.is_empty() => html! { span.muted { "not said" } },
        By::Model => html! {
            @match &address { Some(address) => a href=(address) { (name) }, None => (name) }
        },
        _ => parts::tenant(name),
    });
    shown.collect()
}

pub(super) const fn by_word(by: By) -> &'static str {
    match by {
        By::Day => "Day",
        By::Hour => "Hour",
        By::Tenant => "Tenant",
        By::Route => "Route",
        By::Provider => "Provider",
        By::Model => "Model",
    }
}

/// What a group has of all, as a bar.
fn share(sums: &Sums, all: i64) -> Markup {
    let part = |usd: Usd| u64::try_from(usd.nanos()).unwrap_or(0);
    let all = u64::try_from(all).unwrap_or(0);
    let (spent, saved) = (part(sums.cost()), part(sums.saved()));
    html! {
        svg.share width="100%" height="4" aria-hidden="true" {
            rect.spent x="0" width=(super::overview::percent(spent, all)) y="0" height="4" {}
            rect.saved x=(super::overview::percent(spent, all))
                width=(super::overview::percent(saved, all)) y="0" height="4" {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_as_people_read_them() {
        for (nanos, text) in [
            (0, "$0.00"),
            (1, "<$0.000001"),
            (45_250, "$0.000045"),
            (500_000_000, "$0.50"),
            (1_999_999_999, "$2.00"),
            (1_284_070_000_000, "$1,284.07"),
            (-3_100_000_000, "-$3.10"),
        ] {
            assert_eq!(usd(Usd::from_nanos(nanos)), text);
        }
    }
}
