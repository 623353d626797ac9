//! The page Operations: filters, a table, pages.

use axum::extract::Query;
use axum::http::Uri;
use maud::{Markup, html};
use onlyonce_core::StateName;
use onlyonce_store::{Page, Store};

use super::super::answer::Refusal;
use super::super::desk::Desk;
use super::super::query::ListQuery;
use super::parts;
use super::{Place, Section, View};

/// Operations on a page unless its address says otherwise.
const PAGE: usize = 50;

pub(super) async fn view<S: Store>(desk: &Desk<S>, query: &str) -> Result<View, Refusal> {
    let filter = read(query)?;
    let page = desk.list(filter.clone().for_store(desk.now())?).await?;
    let is_scoped = desk.access().tenant.is_some();
    Ok(View {
        title: "Operations".to_owned(),
        place: Place::Operations,
        sections: vec![
            Section::new("head", head(&filter, is_scoped)),
            Section::new("list", list(&page, &filter)),
        ],
    })
}

/// The filters that `query` has. A form sends the fields that were left empty too.
pub(super) fn read(query: &str) -> Result<ListQuery, Refusal> {
    let filled: Vec<_> = query
        .split('&')
        .filter(|pair| {
            pair.split_once('=')
                .is_some_and(|(_, value)| !value.is_empty())
        })
        .collect();
    let uri = format!("/?{}", filled.join("&"));
    let wrong = |what: String| {
        Refusal::bad_request(
            what,
            "use key, tenant, state, since, until, limit and cursor",
        )
    };
    let uri: Uri = uri.parse().map_err(|_| wrong("no filter".to_owned()))?;
    let Query(mut filter) =
        Query::<ListQuery>::try_from_uri(&uri).map_err(|error| wrong(error.body_text()))?;
    filter.limit.get_or_insert(PAGE);
    Ok(filter)
}

fn head(filter: &ListQuery, is_scoped: bool) -> Markup {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    html! {
        header.page {
            h1 { "Operations" }
            button.quiet.share type="button" hidden data-copy-address { "Copy link to this view" }
        }
        form.filters.card role="search" action="/console/operations" {
            @if !is_scoped {
                (field("tenant", "Tenant", &text(&filter.tenant), "any"))
            }
            (field("key", "Key", &text(&filter.key), "any"))
            div {
                label for="state" { "State" }
                select #state name="state" {
                    option value="" { "any" }
                    @for state in StateName::ALL {
                        option value=(state.as_str())
                            selected[filter.state.as_deref() == Some(state.as_str())] {
                            (parts::state_word(state))
                        }
                    }
                }
            }
            (field("since", "Since", &text(&filter.since), "2h or 2026-01-31T08:00:00Z"))
            (field("until", "Until", &text(&filter.until), "now"))
            div.actions {
                button.primary type="submit" { "Filter" }
                a.button.quiet href="/console/operations" { "Clear" }
            }
        }
    }
}

fn field(name: &str, label: &str, value: &str, hint: &str) -> Markup {
    html! {
        div {
            label for=(name) { (label) }
            input id=(name) name=(name) value=(value) placeholder=(hint) spellcheck="false"
                autocomplete="off";
        }
    }
}

fn list(page: &Page, filter: &ListQuery) -> Markup {
    html! {
        section.card aria-label="Operations" {
            @if page.records.is_empty() && page.next.is_some() {
                (parts::empty("None found so far", &html! { "Older ones were not looked at yet." }))
            } @else if page.records.is_empty() {
                (parts::empty("No operation matches", &html! {
                    "Widen the filters, or " a href="/console/operations" { "clear them" } "."
                }))
            } @else {
                (parts::operations(&page.records, "Operations, newest first"))
            }
            (pager(page, filter))
        }
    }
}

/// The way to older operations, and back to the newest.
pub(super) fn pager(page: &Page, filter: &ListQuery) -> Markup {
    let is_later = filter.cursor.is_some();
    html! {
        @if is_later || page.next.is_some() {
            nav.pager aria-label="Pages" {
                @if is_later {
                    a.button.quiet href=(filter.address(None)) { "Newest" }
                }
                @if let Some(next) = page.next {
                    a.button.quiet rel="next" href=(filter.address(Some(&next.to_string()))) {
                        "Older"
                    }
                }
            }
        }
    }
}
