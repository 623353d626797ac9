//! Pages that change while somebody looks: server-sent events with what changed.
//!
//! A page is made once at a tick, for all browsers that follow it with the same token.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::{StatusCode, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use onlyonce_store::Store;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use super::super::access::{May, Read};
use super::super::answer::Refusal;
use super::super::desk::Desk;
use super::{View, view};
use crate::shared::Phase;

/// From one look to the next.
const PACE: Duration = Duration::from_secs(1);
/// A browser asks again after that, and shows anew that it may.
const LONGEST: Duration = Duration::from_secs(600);
/// Browsers that may follow a page live at once.
const LISTENERS: usize = 256;
/// Different pages that they may follow at once: each costs a look at the store at every tick.
const PAGES: usize = 64;

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
    let followed = Arc::clone(desk.followed());
    let watch = followed.watch(desk, page).ok_or_else(|| {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "enough browsers follow a page live",
            "reload the page to see what is new, or close another one",
        )
    })?;
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

/// The pages that browsers follow now.
pub(in crate::control) struct Followed {
    seats: Arc<Semaphore>,
    pages: Mutex<HashMap<Followable, watch::Receiver<Arc<Made>>>>,
}

/// The name of a token, and a page as its holder sees it.
type Followable = (Box<str>, Uri);

/// A page, as it was made last.
struct Made {
    /// When the making began.
    begun: Instant,
    /// Which sections there are, and then each of them.
    parts: Vec<Part>,
}

/// What is sent where it has changed.
struct Part {
    event: &'static str,
    /// The section, where it is one.
    id: &'static str,
    hash: blake3::Hash,
    data: String,
}

impl Part {
    fn new(event: &'static str, id: &'static str, data: &Value) -> Self {
        let data = data.to_string();
        Self {
            event,
            id,
            hash: blake3::hash(data.as_bytes()),
            data,
        }
    }
}

impl Default for Followed {
    fn default() -> Self {
        Self {
            seats: Arc::new(Semaphore::new(LISTENERS)),
            pages: Mutex::default(),
        }
    }
}

impl Followed {
    /// A browser's place among those that follow `page`, while there is one.
    fn watch<S: Store>(self: &Arc<Self>, desk: Desk<S>, page: Uri) -> Option<Watch> {
        let seat = Arc::clone(&self.seats).try_acquire_owned().ok()?;
        let now = Instant::now();
        let followable = (desk.access().name.clone(), page);
        let mut pages = self.pages.lock();
        // One whose maker is gone is made anew.
        pages.retain(|_, made| made.has_changed().is_ok());
        let made = match pages.get(&followable) {
            Some(made) => made.clone(),
            None if pages.len() >= PAGES => return None,
            None => {
                let (maker, made) = watch::channel(Arc::new(Made::nothing(now)));
                pages.insert(followable.clone(), made.clone());
                tokio::spawn(Arc::clone(self).make(desk, followable, maker));
                made
            }
        };
        Some(Watch {
            shown: HashMap::new(),
            made,
            since: now,
            until: now + LONGEST,
            _seat: seat,
        })
    }

    /// Makes a page at each tick for as long as somebody follows it.
    async fn make<S: Store>(
        self: Arc<Self>,
        desk: Desk<S>,
        followable: Followable,
        maker: watch::Sender<Arc<Made>>,
    ) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            pace.tick().await;
            if desk.phase() != Phase::Serving || self.forget_unfollowed(&followable, &maker) {
                return;
            }
            let begun = Instant::now();
            // What cannot be shown now may be shown at the next look.
            if let Ok(view) = view(&desk, &followable.1).await {
                maker.send_replace(Arc::new(Made::of(begun, view)));
            }
        }
    }

    /// Whether nobody follows it any more but the list itself, which then has it no longer.
    fn forget_unfollowed(&self, page: &Followable, maker: &watch::Sender<Arc<Made>>) -> bool {
        let mut pages = self.pages.lock();
        let is_unfollowed = maker.receiver_count() <= 1;
        if is_unfollowed {
            pages.remove(page);
        }
        is_unfollowed
    }
}

impl Made {
    fn nothing(begun: Instant) -> Self {
        Self {
            begun,
            parts: Vec::new(),
        }
    }

    fn of(begun: Instant, view: View) -> Self {
        let ids: Vec<_> = view.sections.iter().map(|section| section.id).collect();
        let mut parts = vec![Part::new("layout", "", &json!(ids))];
        parts.extend(view.sections.into_iter().map(|section| {
            let html = section.markup.into_string();
            let data = json!({ "id": section.id, "html": html });
            Part::new("section", section.id, &data)
        }));
        Self { begun, parts }
    }
}

/// One browser that follows a page.
struct Watch {
    /// What each part was when it was last sent.
    shown: HashMap<&'static str, blake3::Hash>,
    made: watch::Receiver<Arc<Made>>,
    since: Instant,
    until: Instant,
    _seat: OwnedSemaphorePermit,
}

impl Watch {
    /// What has changed since, at the next look; `None` at the end.
    async fn next(&mut self) -> Option<Vec<Event>> {
        let made = timeout_at(self.until, self.look()).await.ok()??;
        let changed = made.parts.iter().filter_map(|part| {
            let before = self.shown.insert(part.id, part.hash);
            let event = || Event::default().event(part.event).data(&part.data);
            (before != Some(part.hash)).then(event)
        });
        Some(changed.collect())
    }

    /// What was made next, once the browser had its page: what it has is never taken back.
    async fn look(&mut self) -> Option<Arc<Made>> {
        loop {
            self.made.changed().await.ok()?;
            let made = Arc::clone(&self.made.borrow_and_update());
            if made.begun >= self.since {
                return Some(made);
            }
        }
    }
}
