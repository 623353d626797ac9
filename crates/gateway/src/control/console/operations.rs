//! The page Operations: filters, a table, pages.

use maud::{Markup, html};
use onlyonce_core::StateName;
use onlyonce_store::Store;

use super::super::answer::Refusal;
use super::super::desk::Desk;
use super::super::listing::{Listing, Row};
use super::super::query::ListQuery;
use super::{Place, Section, View, asked, parts};

/// Operations on a page unless its address says otherwise.
const PAGE: usize = 50;

pub(super) async fn view<S: Store>(desk: &Desk<S>, query: &str) -> Result<View, Refusal> {
    let filter = read(query)?;
    let listing = Listing::of(desk, filter.clone()).await?;
    let is_scoped = desk.access().tenant.is_some();
    Ok(View {
        title: "Operations".to_owned(),
        place: Place::Operations,
        sections: vec![
            Section::new("head", head(&filter, is_scoped)),
            Section::new("list", list(&listing, &filter)),
        ],
    })
}

/// The filters that `query` has.
pub(super) fn read(query: &str) -> Result<ListQuery, Refusal> {
    let mut filter: ListQuery = asked(query, ListQuery::FIELDS)?;
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
            (field("model", "Model", &text(&filter.model), "any"))
            (field("since", "Since", &text(&filter.since), "like 2h"))
            (field("until", "Until", &text(&filter.until), "now"))
            div.actions {
                button.primary type="submit" { "Filter" }
                a.button.quiet href="/console/operations" { "Clear" }
            }
        }
    }
}

fn field(name: &str, label: &str, value: &str, hint: &str) -> Markup {
    let is_moment = matches!(name, "since" | "until");
    let title =
        is_moment.then_some("A moment like 2026-01-31T08:00:00Z, or a span until now like 2h");
    html! {
        div {
            label for=(name) { (label) }
            input id=(name) name=(name) value=(value) placeholder=(hint) title=[title]
                spellcheck="false" autocomplete="off";
        }
    }
}

fn list(listing: &Listing, filter: &ListQuery) -> Markup {
    let is_of_books = filter.model.is_some() && !filter.is_of_unsettled();
    let caption = match is_of_books {
        true => "Operations, completed last first",
        false => "Operations, newest first",
    };
    let rows = listing.rows.iter().map(|row| match row {
        Row::Kept(stored) => parts::row(stored),
        Row::Booked(entry) => parts::booked_row(entry),
    });
    html! {
        section.card aria-label="Operations" {
            @if is_of_books {
                p.muted.small {
                    "What the ledger says of this model: operations that completed, last ones first, also \
                     those whose record is gone. Since and until are about when they completed."
                }
            }
            @if listing.rows.is_empty() {
                (nothing(listing.next.is_some()))
            } @else {
                (parts::operations(caption, rows))
            }
            (pager(listing.next.as_deref(), filter))
        }
    }
}

fn nothing(has_more: bool) -> Markup {
    if has_more {
        return parts::empty(
            "None so far",
            &html! { "Older operations may match: go on." },
        );
    }
    parts::empty(
        "No operation matches",
        &html! {
            "Widen the filters, or " a href="/console/operations" { "clear them" } "."
        },
    )
}

/// The way to older operations, and back to the newest.
pub(super) fn pager(next: Option<&str>, filter: &ListQuery) -> Markup {
    let is_later = filter.cursor.is_some();
    html! {
        @if is_later || next.is_some() {
            nav.pager aria-label="Pages" {
                @if is_later {
                    a.button.quiet href=(filter.address(None)) { "Newest" }
                }
                @if let Some(next) = next {
                    a.button.quiet rel="next" href=(filter.address(Some(next))) {
                        "Older"
                    }
                }
            }
        }
    }
}
