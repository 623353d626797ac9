//! Room among the files that the process may have open.
//!
//! ```text
//!  0                                            limit (ulimit -n)
//!  |--- callers ---------------------------|--|--|--|
//!                                   upstreams |  |  the store alone: its log goes on (I12, I15)
//!                                      control listener
//! ```
//!
//! The system gives a new file the lowest number that is free, so the number of a connection says how many
//! files are open at least. Whoever comes beyond its mark is turned away before it takes what those after
//! it need: peers that do nothing must not stop the store, and not the operator who looks why.

use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::time::Instant;

use onlyonce_engine::Seldom;
use rustix::process::{Resource, getrlimit};

/// Whose a connection is; the later, the more of the room it may use.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whose {
    /// One that brings requests.
    Caller,
    /// Ours to an upstream.
    Upstream,
    /// One to the control listener.
    Control,
}

/// Whether there is room for `connection`, which is open already: if not, it is to be closed.
pub(crate) fn has(connection: &impl AsRawFd, whose: Whose) -> bool {
    let number = u64::try_from(connection.as_raw_fd()).unwrap_or(0);
    limit().is_none_or(|limit| number < mark(limit, whose))
}

/// The most connections of the control listener, of `max` that the configuration allows: idle ones must
/// not take what callers need.
pub(crate) fn of_control(max: usize) -> usize {
    let quarter = limit().map(|limit| usize::try_from(limit / 4).unwrap_or(usize::MAX));
    quarter.map_or(max, |quarter| max.min(quarter.max(1)))
}

/// Notes in the log, now and then, that there is no room: `what` came of it.
pub(crate) fn say(what: &str) {
    static SAID: OnceLock<Seldom> = OnceLock::new();
    if let Some(held_back) = SAID.get_or_init(Seldom::default).turn(Instant::now()) {
        tracing::warn!(
            held_back,
            "{what}: too many files are open; raise the limit of the process (LimitNOFILE, ulimit -n), or \
             lower server.max_connections"
        );
    }
}

/// Files that the process may have open; `None` for no limit.
fn limit() -> Option<u64> {
    static LIMIT: OnceLock<Option<u64>> = OnceLock::new();
    *LIMIT.get_or_init(|| getrlimit(Resource::Nofile).current)
}

/// The number from which on there is no room for one of these.
fn mark(limit: u64, whose: Whose) -> u64 {
    // The store opens a segment or two at a time, and connections of its own.
    let reserve = (limit / 16).clamp(8, 64);
    let steps = match whose {
        Whose::Caller => 3,
        Whose::Upstream => 2,
        Whose::Control => 1,
    };
    limit.saturating_sub(steps * reserve)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i15_who_comes_later_in_line_finds_room_where_callers_find_none() {
        for limit in [64, 300, 1024, 1 << 20] {
            let marks = [Whose::Caller, Whose::Upstream, Whose::Control];
            let marks = marks.map(|whose| mark(limit, whose));
            assert!(marks.is_sorted_by(|a, b| a + 8 <= *b), "{limit}: {marks:?}");
            assert!(
                marks[2] + 8 <= limit,
                "nothing is left for the store: {marks:?}"
            );
            assert!(marks[0] >= limit / 2, "{limit}: {marks:?}");
        }
    }

    #[test]
    fn a_connection_has_room_as_long_as_few_files_are_open() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(has(&listener, Whose::Caller));
        assert!(of_control(1) == 1);
    }
}
