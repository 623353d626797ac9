//! The page Overview.

use maud::{Markup, html};
use onlyonce_store::{Page, Store};

use super::super::answer::Refusal;
use super::super::desk::Desk;
use super::super::overview::{Overview, OverviewQuery, SinceStart, UNKNOWN};
use super::super::spend::{By, Range, Spend};
use super::super::suspects::Suspected;
use super::{Place, Section, View, asked, money, parts};
use crate::observe::{Kind, Sum};

/// Kinds of repeats that are shown.
const KINDS: usize = 10;

pub(super) async fn view<S: Store>(desk: &Desk<S>, query: &str) -> Result<View, Refusal> {
    let OverviewQuery { range } = asked(query, OverviewQuery::FIELDS)?;
    let overview = Overview::of(desk, Range::read(range.as_deref())?).await?;
    let spend = &overview.spend;
    let is_empty = overview.latest.records.is_empty();
    let mut sections = vec![Section::new(
        "head",
        html! { header.page { h1 { "Overview" } (money::ranges(spend.range, "/console")) } },
    )];
    let suspected = desk.suspects();
    if !suspected.observing.is_empty() {
        sections.push(Section::new("suspects", suspects(&suspected)));
    }
    if is_empty {
        sections.push(Section::new("first", way_in(desk)));
    } else {
        sections.push(Section::new("money", money::figures(spend)));
        sections.push(Section::new("chart", money::chart(spend)));
        sections.push(Section::new("figures", figures(&overview)));
        sections.push(Section::new(
            "top",
            top(spend, desk.access().tenant.is_some()),
        ));
        sections.push(Section::new("open", open(&overview.unknown)));
        sections.push(Section::new("latest", latest(&overview.latest)));
        if let Some(since) = &overview.since_start {
            sections.push(Section::new("since", since_start(since)));
        }
    }
    Ok(View {
        title: "Overview".to_owned(),
        place: Place::Overview,
        sections,
    })
}

fn top(spend: &Spend, is_scoped: bool) -> Markup {
    html! {
        div.pair {
            (money::top(spend, By::Model, "Models"))
            @if is_scoped { (money::top(spend, By::Route, "Routes")) }
            @else { (money::top(spend, By::Tenant, "Tenants")) }
        }
    }
}

/// What looks like repeats where a route observes.
fn suspects(suspected: &Suspected) -> Markup {
    let total = suspected.total();
    html! {
        section.card aria-labelledby="suspects-title" {
            h2 #suspects-title { "What looks like repeats" }
            @if total.times == 0 {
                p.fine { "No request looks like a repeat since " (parts::moment(suspected.since)) "." }
            } @else {
                p {
                    strong { (parts::number(total.times)) }
                    @if total.times == 1 { " request looks like a repeat: " }
                    @else { " requests look like repeats: " }
                    strong { "$" (total.cost) }
                    " since " (parts::moment(suspected.since))
                    @if let Some((client, times)) = suspected.main_client() {
                        ", " (parts::number(times)) " of them from " (client)
                    }
                    @if total.unpriced > 0 {
                        "; of " (parts::number(total.unpriced)) " nobody knows the cost"
                    }
                    "."
                }
                (kinds(&suspected.kinds))
            }
            p.muted.small {
                "At least so many: this gateway counts what it sees itself, in memory. Observed: "
                (suspected.observing.join(", ")) "."
            }
        }
    }
}

fn kinds(kinds: &[(Kind, Sum)]) -> Markup {
    html! {
        div.scroll {
            table {
                caption.hidden { "Kinds of repeats, what cost most first" }
                thead { tr {
                    th scope="col" { "Client" }
                    th scope="col" { "Model" }
                    th scope="col" { "Route" }
                    th scope="col" { "Tenant" }
                    th.number scope="col" { "Times" }
                    th.number scope="col" { "Cost" }
                } }
                tbody {
                    @for (kind, sum) in kinds.iter().take(KINDS) {
                        tr {
                            td { (kind.client) }
                            td { (kind.model) }
                            td { (kind.route) }
                            td { (parts::tenant(kind.tenant.as_deref().unwrap_or("others"))) }
                            td.number { (parts::number(sum.times)) }
                            td.number { "$" (sum.cost) }
                        }
                    }
                }
            }
        }
    }
}

/// How many a page has, or that there are more.
fn count(page: &Page) -> String {
    let more = if page.next.is_some() { "+" } else { "" };
    format!("{}{more}", page.records.len())
}

fn figures(overview: &Overview) -> Markup {
    let is_open = !overview.unknown.records.is_empty();
    html! {
        div.figures {
            a.card.figure .unknown[is_open] href="/console/unknown" {
                span.label { "Unknown open" }
                strong { (count(&overview.unknown)) }
                span.muted.small {
                    @if is_open { "waiting for somebody to find out" }
                    @else { "every outcome is known" }
                }
            }
            a.card.figure href="/console/operations?state=in_flight" {
                span.label { "Running now" }
                strong { (count(&overview.in_flight)) }
                span.muted.small { "operations in flight" }
            }
        }
    }
}

fn since_start(since: &SinceStart) -> Markup {
    let answers = [
        ("executed", "Executed", since.executed),
        ("replayed", "Replayed", since.replayed),
        ("joined", "Joined", since.joined),
        ("released", "Released", since.released),
        ("refused", "Refused", since.refused),
        ("passed", "Passed through", since.passed),
    ];
    let total: u64 = answers.iter().map(|(.., number)| number).sum();
    html! {
        section.card aria-labelledby="since" {
            h2 #since { "Requests of this gateway since its start" }
            p.muted.small {
                "Started " (parts::moment(since.started_at)) ", "
                (parts::counted(total, "request")) " answered. Counted in memory: a restart begins anew, and other gateways of \
                 the same store count their own."
            }
            @if total > 0 { (share_bar(&answers, total)) }
            ul.legend {
                @for (class, name, number) in answers {
                    li class=(class) { (name) " " strong { (parts::number(number)) } }
                }
            }
        }
    }
}

fn share_bar(answers: &[(&str, &str, u64)], total: u64) -> Markup {
    let mut start = 0;
    let shares: Vec<_> = answers
        .iter()
        .map(|(class, name, number)| {
            let share = (*class, *name, *number, start);
            start += number;
            share
        })
        .collect();
    html! {
        svg.share width="100%" height="12" role="img" aria-label="Shares of the answers" {
            @for (class, name, number, start) in shares {
                @if number > 0 {
                    rect class=(class) x=(percent(start, total)) width=(percent(number, total))
                        y="0" height="12" {
                        title { (name) ": " (parts::number(number)) }
                    }
                }
            }
        }
    }
}

/// `part` of `whole` as SVG writes it.
pub(super) fn percent(part: u64, whole: u64) -> String {
    let hundredths = u128::from(part) * 10_000 / u128::from(whole.max(1));
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}

fn open(unknown: &Page) -> Markup {
    html! {
        section.card aria-labelledby="unknown-title" {
            header { h2 #unknown-title { "Unknown" }
                @if !unknown.records.is_empty() { a href="/console/unknown" { "All of them" } } }
            @if unknown.records.is_empty() {
                p.fine { "Every outcome is known." }
            } @else {
                (parts::operations(
                    "The newest operations whose outcome is unknown",
                    unknown.records.iter().take(UNKNOWN).map(parts::row),
                ))
            }
        }
    }
}

fn latest(latest: &Page) -> Markup {
    html! {
        section.card aria-labelledby="latest-title" {
            header { h2 #latest-title { "Latest operations" }
                a href="/console/operations" { "All of them" } }
            (parts::operations("The newest operations", latest.records.iter().map(parts::row)))
        }
    }
}

fn way_in<S: Store>(desk: &Desk<S>) -> Markup {
    let address = desk
        .whole()
        .map_or_else(|_| "GATEWAY".to_owned(), |whole| whole.address());
    let call = format!(
        "curl -si {address}/v1/chat/completions \\\n  -H 'Authorization: Bearer sk-test' \\\n  -H \
         'Content-Type: application/json' \\\n  -H 'Idempotency-Key: first-1' \\\n  -d '{{\"model\": \
         \"gpt-5-mini\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'"
    );
    html! {
        section.card.first aria-labelledby="first-title" {
            p.waiting { span.pulse {} "Waiting for the first request with a key" }
            h2 #first-title { "Nothing has run yet" }
            p {
                "Send a request through the gateway with an " code { "Idempotency-Key" }
                ", and send it again: the second one is answered by what the first one recorded. It \
                 appears here by itself."
            }
            pre.code { code { (call) } }
            p.bar { button.quiet type="button" hidden data-copy=(call) { "Copy the call" } }
        }
    }
}
