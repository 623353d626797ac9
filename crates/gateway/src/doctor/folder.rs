//! The data folder of an embedded store, which a gateway may have open.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{statfs, statvfs};
use rustix::process::geteuid;

use super::finding::{Finding, size};
use super::{Report, store, watch};
use crate::config::{Config, Store};

/// What makes commits faster.
pub(super) const FASTER: &str =
    "put the data folder on a faster disk, best on one whose cache survives a power cut";

/// File systems that forget, by their magic numbers (statfs(2)).
const IN_MEMORY: [(u64, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];
/// Those behind a network.
const REMOTE: [(u64, &str); 6] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x0102_1997, "9P"),
];

/// Looks at the folder, and at the store in it where nobody else has it open.
pub(super) async fn check(config: &Arc<Config>, folder: &Path, report: &mut Report) {
    let found = match look(folder) {
        Ok(found) => found,
        Err(error) => {
            report.add([Finding::fail(
                format!("store: {} cannot be looked at ({error})", folder.display()),
                "see to it that it is a folder which this user may read and write",
            )]);
            return;
        }
    };
    let opened = match &found {
        Found::Store => store::open(config, report).await,
        Found::Absent { .. } | Found::InUse | Found::Foreign { .. } => None,
    };
    report.add(about(&found, folder));

    let place = match found {
        Found::Absent { above } => above,
        _ => folder.to_owned(),
    };
    match (file_system(&place), free(&place, folder)) {
        (Ok(kind), Ok((free, taken))) => {
            report.add([kind, space(&config.store, &place, free, taken)]);
        }
        (Err(error), _) | (_, Err(error)) => report.add([Finding::fail(
            format!("disk: {} cannot be looked at ({error})", place.display()),
            "look at the folder and its rights",
        )]),
    }
    match opened {
        Some(opened) => store::commits(config, opened, report).await,
        None => syncs(place, report).await,
    }
}

/// What is in a data folder.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// A store that nobody has open.
    Store,
    /// None yet; the folder would be made in `above`, or is that one.
    Absent { above: PathBuf },
    /// A store that a process has open.
    InUse,
    /// A store of another user: files that were made in it now would be closed to its gateway.
    Foreign { owner: u32 },
}

fn look(folder: &Path) -> io::Result<Found> {
    if !folder.exists() {
        let whole = std::path::absolute(folder)?;
        let above = whole.ancestors().skip(1).find(|above| above.is_dir());
        let above = above.unwrap_or(Path::new("/")).to_owned();
        return Ok(Found::Absent { above });
    }
    let mut is_empty = true;
    for entry in folder.read_dir()? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        is_empty &= !(name == "LOCK" || name == "meta" || name.starts_with("seg-"));
    }
    if is_empty {
        let above = folder.to_owned();
        return Ok(Found::Absent { above });
    }
    if is_locked(&folder.join("LOCK"))? {
        return Ok(Found::InUse);
    }
    let owner = folder.metadata()?.uid();
    if owner != geteuid().as_raw() {
        return Ok(Found::Foreign { owner });
    }
    Ok(Found::Store)
}

fn is_locked(file: &Path) -> io::Result<bool> {
    let file = match File::open(file) {
        Ok(file) => file,
        // A copy that was put back has none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Why a store is not opened, where it is not.
fn about(found: &Found, folder: &Path) -> Option<Finding> {
    let folder = folder.display();
    match found {
        Found::Store => None,
        Found::Absent { .. } => Some(Finding::ok(format!(
            "store: there is none in {folder} yet, and serve will make it"
        ))),
        Found::InUse => Some(Finding::ok(format!(
            "store: {folder} is open in another process, a gateway that runs"
        ))),
        Found::Foreign { owner } => Some(Finding::warn(
            format!(
                "store: {folder} belongs to user {owner} and was not opened by user {}",
                geteuid().as_raw()
            ),
            "run this as the user of the gateway to have it opened",
        )),
    }
}

/// What kind of file system `place` is on.
fn file_system(place: &Path) -> io::Result<Finding> {
    // The kernel's magic numbers have 32 bits, in a field whose type each architecture chooses.
    let magic = statfs(place)?.f_type as u64 & 0xffff_ffff;
    let named = |list: &[(u64, &'static str)]| {
        let found = list.iter().find(|(number, _)| *number == magic);
        found.map(|(_, name)| *name)
    };
    let place = place.display();
    Ok(if let Some(name) = named(&IN_MEMORY) {
        Finding::fail(
            format!("disk: {place} is on {name}, which forgets every key when the machine stops"),
            "put the data folder on a disk",
        )
    } else if let Some(name) = named(&REMOTE) {
        Finding::warn(
            format!(
                "disk: {place} is on {name}, where syncs and locks depend on another machine's \
                 settings"
            ),
            "put the data folder on a disk of this machine",
        )
    } else {
        Finding::ok(format!("disk: {place} is on a disk of this machine"))
    })
}

/// Bytes that are free at `place`, and bytes that the log in `folder` takes already.
fn free(place: &Path, folder: &Path) -> io::Result<(u64, u64)> {
    let stat = statvfs(place)?;
    let mut taken = 0;
    if folder.is_dir() {
        for entry in folder.read_dir()? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("seg-") {
                // A segment that a gateway drops at this very moment takes nothing.
                taken += entry.metadata().map_or(0, |data| data.blocks() * 512);
            }
        }
    }
    Ok((stat.f_bavail.saturating_mul(stat.f_frsize), taken))
}

/// Whether the log has room to grow as far as it may.
fn space(store: &Store, place: &Path, free: u64, taken: u64) -> Finding {
    let has = format!("space: {} are free in {}", size(free), place.display());
    let next = "make room, or lower store.max_bytes";
    let least = 2 * store.segment_bytes;
    if free < least {
        let text = format!("{has}, less than two segments of the log ({})", size(least));
        return Finding::fail(text, next);
    }
    if store.max_bytes == 0 {
        return Finding::ok(format!("{has}, and the log has no limit"));
    }
    let more = store.max_bytes.saturating_sub(taken);
    let text = format!("{has}, and the log may take {} more", size(more));
    if free < more {
        return Finding::warn(text, next);
    }
    Finding::ok(text)
}

/// Writes and syncs a file that has no name, as a commit does to the log.
async fn syncs(place: PathBuf, report: &mut Report) {
    let writing = {
        let place = place.clone();
        tokio::task::spawn_blocking(move || write_and_sync(&place))
    };
    let finding = match watch("commit", writing).await {
        Ok(Ok(times)) => store::latency("a write and its sync", times, FASTER),
        Ok(Err(error)) => Finding::fail(
            format!("commit: {} takes no file ({error})", place.display()),
            "see to it that the gateway's user may write there, and that there is room",
        ),
        Err(finding) => finding,
    };
    report.add([finding]);
}

fn write_and_sync(place: &Path) -> io::Result<Vec<Duration>> {
    let mut file = tempfile::tempfile_in(place)?;
    (0..store::COMMITS)
        .map(|_| {
            let started = Instant::now();
            file.write_all(&[0x5a; 512])?;
            file.sync_data()?;
            Ok(started.elapsed())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    fn store(max_bytes: u64) -> Store {
        let config = Config::for_upstream("http://a", "generic", &Overrides::default());
        Store {
            segment_bytes: 1 << 20,
            max_bytes,
            ..config.unwrap().store
        }
    }

    #[test]
    fn what_the_log_may_still_take_must_be_free() {
        let mib = |count: u64| count << 20;
        for (max, free, taken, begins) in [
            (mib(100), mib(100), 0, "ok   space: 100.0 MiB are free"),
            (mib(100), mib(99), 0, "warn "),
            (mib(100), mib(99), mib(1), "ok   "),
            (mib(100), mib(3), mib(200), "ok   "),
            (mib(100), mib(2) - 1, mib(200), "fail "),
            (0, mib(3), 0, "ok   "),
            (0, mib(1), 0, "fail "),
        ] {
            let finding = space(&store(max), Path::new("/d"), free, taken).to_string();
            assert!(finding.starts_with(begins), "{begins}: {finding}");
        }
    }

    #[test]
    fn a_folder_is_looked_at_and_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let above = folder.path().to_owned();
        let inner = above.join("not/there");
        let absent = Found::Absent {
            above: above.clone(),
        };
        assert_eq!(look(&inner).unwrap(), absent);
        assert_eq!(look(&above).unwrap(), absent);
        std::fs::write(above.join("meta"), "").unwrap();
        assert_eq!(look(&above).unwrap(), Found::Store);
        let lock = File::create(above.join("LOCK")).unwrap();
        assert_eq!(look(&above).unwrap(), Found::Store);
        lock.lock().unwrap();
        assert_eq!(look(&above).unwrap(), Found::InUse);
        assert_eq!(above.read_dir().unwrap().count(), 2);
    }
}
