//! The page Store and health.

use maud::{Markup, html};
use onlyonce_store::Store;

use super::super::answer::Refusal;
use super::super::desk::Desk;
use super::super::health::{GatewayHealth, Health, StoreHealth};
use super::overview::percent;
use super::parts::{self, number, size};
use super::{Place, Section, View};

pub(super) fn view<S: Store>(desk: &Desk<S>) -> Result<View, Refusal> {
    let Health { store, gateway } = Health::of(desk.whole()?);
    Ok(View {
        title: "Store and health".to_owned(),
        place: Place::Health,
        sections: vec![
            Section::new("head", html! { header.page { h1 { "Store and health" } } }),
            Section::new("store", store_card(&store)),
            Section::new("gateway", gateway_card(&gateway)),
        ],
    })
}

fn store_card(store: &StoreHealth) -> Markup {
    let group = store.committed_writes.checked_div(store.commits);
    let most = store.max_bytes.map_or("no limit".to_owned(), size);
    html! {
        section.card aria-labelledby="store-title" {
            header {
                h2 #store-title { "Store" }
                @if store.takes_writes { span.state.completed { "takes writes" } }
                @else { span.state.bad { "takes no writes" } }
            }
            @if let Some(reason) = &store.reason { p.alert role="alert" { (reason) } }
            (parts::facts(&[
                ("Where", html! { code { (store.place) } }),
                ("Records", html! { (number(store.records)) " of " (number(store.max_records)) }),
                ("Space", html! { (size(store.bytes)) " of " (most) }),
                ("Durable commits", html! { (number(store.commits)) }),
                ("Writes a commit", html! {
                    @match group { Some(group) => (number(group)), None => "–" }
                }),
                ("Latest commit took", html! { (millis(store.latest_commit_us)) }),
            ]))
            (gauge("Records", store.records, store.max_records))
            @if let Some(most) = store.max_bytes { (gauge("Space", store.bytes, most)) }
        }
    }
}

fn gateway_card(gateway: &GatewayHealth) -> Markup {
    let live = u64::try_from(gateway.live_operations).unwrap_or(u64::MAX);
    let most = u64::try_from(gateway.max_live_operations).unwrap_or(u64::MAX);
    html! {
        section.card aria-labelledby="gateway-title" {
            header {
                h2 #gateway-title { "This gateway" }
                @if gateway.phase == "serving" { span.state.completed { "serving" } }
                @else { span.state.unknown { (gateway.phase) } }
            }
            (parts::facts(&[
                ("Version", html! { (gateway.version) }),
                ("Started", parts::moment(gateway.started_at)),
                ("Workers", html! { (gateway.workers) }),
                ("Connections of callers", html! {
                    (gateway.connections) " of " (number(gateway.max_connections as u64))
                }),
                ("Running operations", html! { (number(live)) " of " (number(most)) }),
            ]))
            (gauge("Running operations", live, most))
        }
    }
}

/// How much of a limit is used.
fn gauge(name: &str, used: u64, limit: u64) -> Markup {
    let is_near = used > limit / 10 * 9;
    html! {
        div.gauge {
            span.label.small {
                (name) " used: "
                @if used > 0 && used < limit / 10_000 { "under 0.01%" } @else { (percent(used, limit)) }
            }
            svg width="100%" height="8" aria-hidden="true" {
                rect.track width="100%" height="8" rx="4" {}
                rect.fill .near[is_near] width=(percent(used.min(limit), limit)) height="8" rx="4" {}
            }
        }
    }
}

fn millis(micros: u64) -> String {
    format!("{}.{} ms", micros / 1000, micros % 1000 / 100)
}
