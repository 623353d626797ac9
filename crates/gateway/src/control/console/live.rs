//! Pages that change while somebody looks: server-sent events with the sections that changed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::{StatusCode, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use onlyonce_store::Store;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::super::access::{May, Read};
use super::super::answer::Refusal;
use super::super::desk::Desk;
use super::view;
use crate::shared::Phase;

/// From one look to the next.
const PACE: Duration = Duration::from_secs(1);
/// A browser asks again after that, and shows anew that it may.
const LONGEST: Duration = Duration::from_secs(600);

/// Which page is looked at.
#[derive(Deserialize)]
pub(in crate::control) struct Look {
    page: String,
}

/// `GET /console/live`.
pub(in crate::control) async fn stream<S: Store>(
    desk: May<S, Read>,
    query: Result<Query<Look>, QueryRejection>,
) -> Result<Response, Refusal> {
    let wrong = |what: String| Refusal::bad_request(what, "use page=/console and what follows it");
    let Query(Look { page }) = query.map_err(|error| wrong(error.body_text()))?;
    let page: Uri = page
        .parse()
        .map_err(|_| wrong("page is no address".to_owned()))?;
    let desk = desk.into_desk();
    let seat = desk.seat().ok_or_else(|| {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "enough browsers follow a page live",
            "reload the page to see what is new, or close another one",
        )
    })?;
    let mut watch = Watch {
        shown: HashMap::new(),
        pace: interval(PACE),
        until: Instant::now() + LONGEST,
        desk,
        page,
        _seat: seat,
    };
    watch
        .pace
        .set_missed_tick_behavior(MissedTickBehavior::Delay);
    let events = stream::unfold(watch, async |mut watch| {
        let changed = watch.next().await?;
        let events: Vec<_> = changed.into_iter().map(Ok::<_, Infallible>).collect();
        Some((stream::iter(events), watch))
    });
    let events = futures_util::StreamExt::flatten(events);
    Ok(Sse::new(events)
        .keep_alive(KeepAlive::default())
        .into_response())
}

/// One browser that follows a page.
struct Watch<S: Store> {
    desk: Desk<S>,
    page: Uri,
    /// What each section was when it was last sent.
    shown: HashMap<&'static str, blake3::Hash>,
    pace: Interval,
    until: Instant,
    _seat: OwnedSemaphorePermit,
}

impl<S: Store> Watch<S> {
    /// The sections that have changed since, at the next look; `None` at the end.
    async fn next(&mut self) -> Option<Vec<Event>> {
        self.pace.tick().await;
        if Instant::now() >= self.until || self.desk.phase() != Phase::Serving {
            return None;
        }
        // What cannot be shown now may be shown at the next look.
        let Ok(view) = view(&self.desk, &self.page).await else {
            return Some(Vec::new());
        };
        let changed = view.sections.into_iter().filter_map(|section| {
            let html = section.markup.into_string();
            let hash = blake3::hash(html.as_bytes());
            let before = self.shown.insert(section.id, hash);
            let data = json!({ "id": section.id, "html": html }).to_string();
            (before != Some(hash)).then(|| Event::default().event("section").data(data))
        });
        Some(changed.collect())
    }
}
