//! The limits of the process.

use rustix::process::{Resource, getrlimit};

use super::finding::Finding;
use crate::config::Config;

/// Files beside connections: the log, listeners, bodies that wait on disk.
const OTHER_FILES: usize = 100;

/// Whether as many files may be open as connections are allowed.
pub(super) fn files(config: &Config) -> Finding {
    judge(getrlimit(Resource::Nofile).current, needed(config))
}

/// The most files that the configuration lets a gateway open.
fn needed(config: &Config) -> u64 {
    let idle: usize = config
        .upstreams
        .iter()
        .map(|up| up.max_idle_per_worker)
        .sum();
    // An operation that runs holds one; those that lie idle were in use before.
    let to_upstreams = config
        .limits
        .live_operations
        .max(config.server.workers.saturating_mul(idle));
    let needed = config
        .server
        .max_connections
        .saturating_add(to_upstreams)
        .saturating_add(OTHER_FILES);
    u64::try_from(needed).unwrap_or(u64::MAX)
}

fn judge(limit: Option<u64>, needed: u64) -> Finding {
    let Some(limit) = limit else {
        return Finding::ok("files: no limit on open files");
    };
    if limit >= needed {
        return Finding::ok(format!(
            "files: {limit} may be open, {needed} are the most that the configuration needs"
        ));
    }
    Finding::warn(
        format!(
            "files: {limit} may be open, and connections of callers and to upstreams may need \
             {needed}"
        ),
        "raise the limit of the gateway (LimitNOFILE, ulimit -n), or lower server.max_connections \
         and limits.live_operations",
    )
}
