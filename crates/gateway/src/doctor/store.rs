//! The store: whether it opens, keeps what it says, agrees on the time, and how fast it is.

use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use onlyonce_core::transition::{self, Claim, NotLawful};
use onlyonce_core::{
    Fingerprint, Got, Key, KeyError, OperationId, OwnerId, Record, RequestLine, Scope,
};
use onlyonce_store::{AttemptNote, Store, StoreError, Swap, Write, address};
use uuid::Uuid;

use super::finding::{Finding, Verdict, millis, size};
use super::{Report, folder, watch};
use crate::any_store::AnyStore;
use crate::config::{Config, StoreUrl};
use crate::open;

/// The tenant whose keys are claimed to see how long that takes.
const TENANT: &str = "onlyonce-doctor";
/// How many are.
pub(super) const COMMITS: usize = 20;
/// A commit that takes longer than this is told of.
const SLOW: Duration = Duration::from_millis(20);
/// By so much the clocks of gateway and store may differ.
const SKEW: Duration = Duration::from_secs(1);

/// Looks at the store that the configuration names.
pub(super) async fn check(config: &Arc<Config>, report: &mut Report) {
    match &config.store.url {
        StoreUrl::Memory => report.add([Finding::warn(
            "store: memory: forgets every key when the gateway stops",
            "set store.url to a store that keeps them",
        )]),
        StoreUrl::Embedded(folder) => folder::check(config, folder, report).await,
        StoreUrl::Postgres(_) | StoreUrl::Redis(_) => {
            let Some(store) = open(config, report).await else {
                return;
            };
            report.add(durability(&store));
            let wall = SystemTime::now().duration_since(UNIX_EPOCH);
            let theirs = Duration::from_millis(store.now().as_millis());
            report.add([skew(wall.unwrap_or_default(), theirs)]);
            commits(config, store, report).await;
        }
    }
}

/// Opens the store as `serve` does, and says what is in it.
pub(super) async fn open(config: &Arc<Config>, report: &mut Report) -> Option<Arc<AnyStore>> {
    let started = Instant::now();
    let opening = {
        let config = Arc::clone(config);
        tokio::spawn(async move { open::store(&config).await })
    };
    let opened = match watch("store", opening).await {
        Ok(opened) => opened,
        Err(finding) => {
            report.add([finding]);
            return None;
        }
    };
    match opened {
        Ok(store) => {
            let status = store.status();
            report.add([Finding::ok(format!(
                "store: opened in {}, {} records, {}",
                millis(started.elapsed()),
                status.records,
                size(status.bytes)
            ))]);
            Some(Arc::new(store))
        }
        Err(failure) => {
            let text = format!("store: {failure}");
            report.add([Finding::new(Verdict::Fail, &text)]);
            None
        }
    }
}

/// What the settings of a server mean for what it keeps.
fn durability(store: &AnyStore) -> Vec<Finding> {
    let warnings = match store {
        AnyStore::Postgres(store) => store.behind().warnings(),
        AnyStore::Redis(store) => store.behind().warnings(),
        AnyStore::Memory(_) | AnyStore::Embedded(_) => &[],
    };
    if warnings.is_empty() {
        return vec![Finding::ok(
            "durability: the server syncs what it acknowledges",
        )];
    }
    let warn = |warning: &String| Finding::new(Verdict::Warn, &format!("durability: {warning}"));
    warnings.iter().map(warn).collect()
}

/// How far two clocks are apart, both told as the time since 1970.
fn skew(ours: Duration, theirs: Duration) -> Finding {
    let apart = ours.abs_diff(theirs);
    let side = if theirs > ours { "ahead of" } else { "behind" };
    let text = format!(
        "clock: the store's is {} {side} this machine's",
        millis(apart)
    );
    if apart > SKEW {
        return Finding::warn(text, "set both by NTP; the store's is the one that counts");
    }
    Finding::ok(text)
}

/// Claims keys of its own, one after the other, and closes the store.
pub(super) async fn commits(config: &Config, store: Arc<AnyStore>, report: &mut Report) {
    let lease = config.store.lease;
    let claiming = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let mut times = Vec::with_capacity(COMMITS);
            for _ in 0..COMMITS {
                times.push(claim_and_remove(&store, lease).await?);
            }
            Ok::<_, Unclaimed>(times)
        })
    };
    let finding = match watch("commit", claiming).await {
        Ok(Ok(times)) if config.store.url.is_shared() => latency(
            "a durable claim",
            times,
            "bring the store nearer, or give it a faster disk",
        ),
        Ok(Ok(times)) => latency("a durable claim", times, folder::FASTER),
        Ok(Err(why)) => Finding::fail(
            format!("commit: a key of its own could not be claimed ({why})"),
            "look at the store's limits, its disk and its log",
        ),
        Err(finding) => finding,
    };
    report.add([finding]);
    if let Err(error) = store.close().await {
        report.add([Finding::fail(
            format!("store: it does not close ({error})"),
            "look at the store's disk and its log",
        )]);
    }
}

/// What times of commits say; `next` is what to do where they are long.
pub(super) fn latency(what: &str, mut times: Vec<Duration>, next: &str) -> Finding {
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let worst = times.last().copied().unwrap_or_default();
    let text = format!(
        "commit: {what} takes {}, the worst of {} {}",
        millis(median),
        times.len(),
        millis(worst)
    );
    if median > SLOW {
        return Finding::warn(text, next);
    }
    Finding::ok(text)
}

/// Why a key was not claimed, or not removed again.
#[derive(Debug, thiserror::Error)]
enum Unclaimed {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Claim(#[from] NotLawful),
    #[error("somebody else has it")]
    Lost,
    #[error("it could not be removed again")]
    Stays,
}

/// Claims a key that nobody else has, takes the time, and removes it at once.
async fn claim_and_remove(store: &AnyStore, lease: Duration) -> Result<Duration, Unclaimed> {
    let record = claim(store, lease)?;
    let address = address(store.secret(), &record.scope, &record.key);
    let fence = record.fence();
    let write = Write {
        record,
        last_chunk: None,
        attempt: Some(AttemptNote {
            peer: TENANT.into(),
            sdk_retry_count: None,
            trace: None,
            got: Got::Executed,
            at: None,
        }),
    };
    let started = Instant::now();
    let swapped = store.compare_and_set(address, None, write).await;
    let took = started.elapsed();
    // Also where the store did not say whether it wrote: left alone, it would become unknown.
    let removed = store.remove(address, fence).await;
    match swapped? {
        Swap::Done { .. } if removed? => Ok(took),
        Swap::Done { .. } => Err(Unclaimed::Stays),
        Swap::Lost => Err(Unclaimed::Lost),
    }
}

fn claim(store: &AnyStore, lease: Duration) -> Result<Record, Unclaimed> {
    let now = store.now();
    let unique = Uuid::now_v7();
    let [.., a, b, c, d, e, f, g, h, i, j] = *unique.as_bytes();
    let claim = Claim {
        id: OperationId::new(now.as_millis(), &[a, b, c, d, e, f, g, h, i, j]),
        scope: Scope {
            tenant: TENANT.into(),
            namespace: TENANT.into(),
        },
        key: Key::new(&unique.to_string())?,
        fingerprint: Fingerprint::from_bytes([0; 32]),
        request: RequestLine::default(),
        owner: OwnerId::new(u64::from_be_bytes([c, d, e, f, g, h, i, j])),
        raise: NonZero::<u32>::MIN,
    };
    Ok(transition::claim(None, claim, now, lease)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_may_differ_by_a_second() {
        let at = Duration::from_millis;
        let now = 1_700_000_000_000;
        for (theirs, text) in [
            (
                now + 1_000,
                "ok   clock: the store's is 1000.0 ms ahead of this machine's",
            ),
            (
                now - 1_001,
                "warn clock: the store's is 1001.0 ms behind this machine's; set both by NTP; the \
                 store's is the one that counts",
            ),
        ] {
            assert_eq!(skew(at(now), at(theirs)).to_string(), text);
        }
    }

    #[test]
    fn the_median_says_whether_commits_are_slow() {
        let times = |slow: usize| {
            let all = (0..20).map(|at| if at < slow { 21 } else { 1 });
            all.map(Duration::from_millis).collect()
        };
        assert_eq!(
            latency("it", times(9), "n").to_string(),
            "ok   commit: it takes 1.0 ms, the worst of 20 21.0 ms"
        );
        assert_eq!(
            latency("it", times(11), "n").to_string(),
            "warn commit: it takes 21.0 ms, the worst of 20 21.0 ms; n"
        );
    }
}
