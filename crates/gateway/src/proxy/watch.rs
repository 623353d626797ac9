//! What a connection is doing and since when, for the deadlines that it is held to.
//!
//! The gate notes it as bytes pass; the connection's task looks at it when its timer fires. No
//! timer is set or reset while requests flow: the timer fires once a shortest deadline and looks.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::Waker;
use std::time::Duration;

use onlyonce_http::scan::Place;
use onlyonce_tower::shell::audience::Presence;
use parking_lot::Mutex;
use tokio::time::Instant;

/// The deadlines of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    /// From the first byte of a head to its end.
    pub(super) header: Duration,
    /// Between messages.
    pub(super) idle: Duration,
    /// How long the client may take nothing of what is ready for it.
    pub(super) write: Duration,
}

impl Deadlines {
    pub(super) fn shortest(&self) -> Duration {
        self.header.min(self.idle).min(self.write)
    }
}

/// What a connection is doing. Written and read on one thread, and shared between the connection's
/// task and what its service spawns.
pub(crate) struct Watch {
    began: Instant,
    place: AtomicU8,
    since: AtomicU64,
    /// When writing was first held up, 0 while it is not.
    held_up_since: AtomicU64,
    /// Requests that are being answered.
    busy: AtomicU32,
    /// Whether the client has closed its sending half.
    half_closed: AtomicBool,
    /// Whether an answer is under way of which only the connection's end tells the end.
    unframed: AtomicBool,
    /// Whether reading waits for the end of the request that is being answered.
    waits: AtomicBool,
    waiter: Mutex<Option<Waker>>,
}

/// What the deadlines ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing before this span has passed.
    Nothing(Duration),
    /// The head did not come in time.
    SlowHead,
    /// The connection was not used for too long.
    Idle,
    /// The client takes nothing of its answer.
    SlowReader,
}

impl Presence for Watch {
    /// Who will send no more has left, or waits for its last answer.
    fn has_left(&self) -> bool {
        self.is_half_closed()
    }
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            place: AtomicU8::new(Place::Between as u8),
            since: AtomicU64::new(1),
            held_up_since: AtomicU64::new(0),
            busy: AtomicU32::new(0),
            half_closed: AtomicBool::new(false),
            unframed: AtomicBool::new(false),
            waits: AtomicBool::new(false),
            waiter: Mutex::new(None),
        }
    }

    /// Notes where the client's bytes stand.
    pub(super) fn note_place(&self, place: Place) {
        if place == Place::Head && self.place.load(Relaxed) == place as u8 {
            // Slow bytes of one head do not put its deadline off.
            return;
        }
        self.place.store(place as u8, Relaxed);
        self.since.store(self.now(), Relaxed);
    }

    /// Notes whether the client takes what is written.
    pub(super) fn note_write(&self, held_up: bool) {
        let since = self.held_up_since.load(Relaxed);
        match (held_up, since) {
            (true, 0) => self.held_up_since.store(self.now(), Relaxed),
            (false, 1..) => self.held_up_since.store(0, Relaxed),
            _ => {}
        }
    }

    /// Notes that the client will send no more.
    pub(super) fn note_half_closed(&self) {
        self.half_closed.store(true, Relaxed);
    }

    /// Whether the client will send no more: it has left, or waits for its last answer.
    pub(super) fn is_half_closed(&self) -> bool {
        self.half_closed.load(Relaxed)
    }

    /// Notes whether an answer is under way of which only the connection's end tells the end (HTTP/1.0): until it is
    /// whole, that end has to be a reset.
    pub(super) fn note_unframed(&self, under_way: bool) {
        self.unframed.store(under_way, Relaxed);
    }

    /// Whether such an answer is under way.
    pub(super) fn is_unframed(&self) -> bool {
        self.unframed.load(Relaxed)
    }

    /// Notes that a request is being answered from now on.
    pub(crate) fn begin(&self) {
        self.busy.fetch_add(1, Relaxed);
    }

    /// Notes that a request is answered.
    pub(crate) fn end(&self) {
        self.busy.fetch_sub(1, Relaxed);
        self.since.store(self.now(), Relaxed);
        if self.waits.swap(false, Relaxed)
            && let Some(waker) = self.waiter.lock().take()
        {
            waker.wake();
        }
    }

    /// Wakes `waker` when the request that is being answered now is answered.
    pub(super) fn wake_at_end(&self, waker: &Waker) {
        *self.waiter.lock() = Some(waker.clone());
        self.waits.store(true, Relaxed);
    }

    /// Whether a request is being answered.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Relaxed) > 0
    }

    /// For how long nothing was answered here; `None` while something is.
    pub(crate) fn idle_for(&self) -> Option<Duration> {
        let since = self.since.load(Relaxed);
        (!self.is_busy()).then(|| Duration::from_millis(self.now().saturating_sub(since)))
    }

    /// What is due now.
    pub(super) fn due(&self, deadlines: &Deadlines) -> Due {
        let now = self.now();
        let passed = |since: u64| Duration::from_millis(now.saturating_sub(since));
        // What begins after this look lasts at least until the next one.
        let mut next = deadlines.shortest();
        let held_up_since = self.held_up_since.load(Relaxed);
        if held_up_since != 0 {
            match deadlines.write.checked_sub(passed(held_up_since)) {
                None | Some(Duration::ZERO) => return Due::SlowReader,
                Some(left) => next = next.min(left),
            }
        }
        let since = passed(self.since.load(Relaxed));
        let (limit, due) = match self.place.load(Relaxed) {
            place if place == Place::Head as u8 => (deadlines.header, Due::SlowHead),
            place if !self.is_busy() && place != Place::Body as u8 => (deadlines.idle, Due::Idle),
            _ => return Due::Nothing(next),
        };
        match limit.checked_sub(since) {
            None | Some(Duration::ZERO) => due,
            Some(left) => Due::Nothing(next.min(left)),
        }
    }

    /// Milliseconds since the connection began, plus one: never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).map_or(u64::MAX, |millis| millis + 1)
    }
}
