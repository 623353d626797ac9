//! The page Tenants and spend.

use maud::{Markup, html};
use onlyonce_core::Count;
use onlyonce_store::Store;
use serde::Deserialize;

use super::super::answer::Refusal;
use super::super::desk::Desk;
use super::super::spend::{By, Group, Range, Spend, group};
use super::{Place, Section, View, asked, money, parts};

/// Groups that are shown; the API has all of them.
const SHOWN: usize = 200;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    range: Option<String>,
    by: Option<String>,
}

pub(super) async fn view<S: Store>(desk: &Desk<S>, query: &str) -> Result<View, Refusal> {
    let asked: Asked = asked(query, "use range and by")?;
    let spend = Spend::of(desk, Range::read(asked.range.as_deref())?).await?;
    let by = match asked.by.as_deref() {
        None if desk.access().tenant.is_some() => vec![By::Model],
        None => vec![By::Tenant, By::Model],
        Some(by) => By::list(by)?,
    };
    let mut groups = group(&spend.accounts, &by);
    groups.sort_by_key(|group| std::cmp::Reverse(group.sums.cost().nanos()));
    Ok(View {
        title: "Tenants and spend".to_owned(),
        place: Place::Spend,
        sections: vec![
            Section::new("head", head(&spend, &by)),
            Section::new("figures", money::figures(&spend)),
            Section::new("groups", table(&groups, &by, &spend)),
        ],
    })
}

fn head(spend: &Spend, by: &[By]) -> Markup {
    let names: Vec<_> = by.iter().map(|by| by.as_str()).collect();
    let choices = ["tenant,model", "tenant", "model", "route", "provider"];
    let range = spend.range.as_str();
    html! {
        header.page {
            div { h1 { "Tenants and spend" }
                p.muted { "Whole periods in UTC. The same as JSON: /v1/ledger" } }
            button.quiet.share type="button" hidden data-copy-address { "Copy link to this view" }
        }
        form.filters.card action="/console/spend" {
            div {
                label for="range" { "Range" }
                select #range name="range" {
                    @for one in Range::ALL {
                        option value=(one.as_str()) selected[one.as_str() == range] { "last " (one.as_str()) }
                    }
                }
            }
            div {
                label for="by" { "By" }
                select #by name="by" {
                    @for choice in choices {
                        option value=(choice) selected[choice == names.join(",")] { (choice.replace(',', " and ")) }
                    }
                }
            }
            div.actions { button.primary type="submit" { "Show" } }
        }
    }
}

fn table(groups: &[Group], by: &[By], spend: &Spend) -> Markup {
    html! {
        section.card aria-label="Spend" {
            @if groups.is_empty() {
                (parts::empty("Nothing was spent", &html! { "No operation was completed in this range." }))
            } @else {
                div.scroll { table {
                    caption.hidden { "Spend, most first" }
                    thead { tr {
                        @for by in by { th scope="col" { (money::by_word(*by)) } }
                        th.number scope="col" { "Operations" }
                        th.number scope="col" { "Tokens in" }
                        th.number scope="col" { "Tokens out" }
                        th.number scope="col" { "Spent" }
                        th.number scope="col" { "Replays" }
                        th.number scope="col" { "Joins" }
                        th.number scope="col" { "Not spent twice" }
                    } }
                    tbody { @for group in groups.iter().take(SHOWN) { (row(group, by, spend)) } }
                } }
                @if groups.len() > SHOWN {
                    p.muted.small { "The first " (SHOWN) " of " (groups.len()) "; /v1/ledger has all." }
                }
            }
        }
    }
}

fn row(group: &Group, by: &[By], spend: &Spend) -> Markup {
    let sums = &group.sums;
    let number = |count| parts::number(money::count(sums, count));
    html! {
        tr {
            @for name in money::names(group, by, spend) { td { (name) } }
            td.number { (number(Count::Operations)) }
            td.number { (number(Count::Input)) }
            td.number { (number(Count::Output)) }
            td.number { (money::usd(sums.cost())) }
            td.number { (number(Count::Replayed)) }
            td.number { (number(Count::Joined)) }
            (money::saved(sums))
        }
    }
}
