//! Keys in a folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::Duration;

use onlyonce_client::{FolderError, KeyFolder, KeyStore};

use crate::support::{action, day, entry, note, run};

fn folder() -> (tempfile::TempDir, KeyFolder) {
    let temporary = tempfile::tempdir().unwrap();
    let keys = KeyFolder::open(temporary.path().join("a/b/keys")).unwrap();
    (temporary, keys)
}

/// The files of a kind, in order.
fn files(keys: &KeyFolder, extension: &str) -> Vec<PathBuf> {
    let paths = fs::read_dir(keys.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    paths
}

#[test]
fn an_action_has_one_key_whoever_opens_the_folder() {
    let (_temporary, keys) = folder();
    run(async {
        let first = keys
            .take(&action("order-17/charge"), entry("one"))
            .await
            .unwrap();
        assert!(first.is_new && first.note.is_none());
        let again = KeyFolder::open(keys.path()).unwrap();
        let second = again
            .take(&action("order-17/charge"), entry("two"))
            .await
            .unwrap();
        assert!(!second.is_new);
        assert_eq!(second.entry, first.entry);
        let other = keys
            .take(&action("order-18/charge"), entry("one"))
            .await
            .unwrap();
        assert!(other.is_new);
        assert_ne!(other.entry.key, first.entry.key);
    });
}

#[test]
fn hostile_017_an_action_that_looks_like_a_path_is_only_a_name() {
    let (temporary, keys) = folder();
    run(async {
        for name in [
            "../../etc/x",
            "/etc/passwd",
            "*",
            "'; drop table",
            "a\u{e9} b",
            "..",
            ".",
        ] {
            let taken = keys.take(&action(name), entry("one")).await.unwrap();
            assert!(taken.is_new, "{name}");
        }
    });
    assert_eq!(files(&keys, "key").len(), 7);
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1);
}

#[test]
fn what_the_server_said_is_kept_and_replaced() {
    let (_temporary, keys) = folder();
    let action = action("a");
    run(async {
        let key = keys.take(&action, entry("one")).await.unwrap().entry.key;
        for status in [402, 200] {
            keys.note(&action, &key, note(status)).await.unwrap();
            let taken = keys.take(&action, entry("one")).await.unwrap();
            assert_eq!(taken.note, Some(note(status)));
        }
    });
    assert_eq!(files(&keys, "note").len(), 1);
}

#[test]
fn a_forgotten_action_is_new_and_a_late_note_of_its_old_key_means_nothing() {
    let (_temporary, keys) = folder();
    let action = action("a");
    run(async {
        let old = keys.take(&action, entry("one")).await.unwrap().entry.key;
        assert!(keys.forget(&action).await.unwrap());
        assert!(!keys.forget(&action).await.unwrap());
        let new = keys.take(&action, entry("two")).await.unwrap();
        assert!(new.is_new);
        keys.note(&action, &old, note(200)).await.unwrap();
        let again = keys.take(&action, entry("two")).await.unwrap();
        assert_eq!((again.entry, again.note), (new.entry, None));
    });
}

#[test]
fn only_what_is_done_and_old_enough_is_forgotten_together() {
    let (_temporary, keys) = folder();
    run(async {
        for (name, status) in [("done", Some(200)), ("refused", Some(402)), ("open", None)] {
            let key = keys
                .take(&action(name), entry("one"))
                .await
                .unwrap()
                .entry
                .key;
            if let Some(status) = status {
                keys.note(&action(name), &key, note(status)).await.unwrap();
            }
        }
        assert_eq!(keys.forget_done_before(day()).unwrap(), 0);
        let later = day() + Duration::from_secs(60);
        assert_eq!(keys.forget_done_before(later).unwrap(), 1);
        assert!(
            keys.take(&action("done"), entry("one"))
                .await
                .unwrap()
                .is_new
        );
        assert!(
            !keys
                .take(&action("refused"), entry("one"))
                .await
                .unwrap()
                .is_new
        );
        assert!(
            !keys
                .take(&action("open"), entry("one"))
                .await
                .unwrap()
                .is_new
        );
    });
}

#[test]
fn hostile_085_a_damaged_key_is_an_error_and_never_a_new_key() {
    let (_temporary, keys) = folder();
    let action = action("a");
    let key = run(keys.take(&action, entry("one"))).unwrap().entry.key;
    let file = keys.key_file(&action);
    let whole = fs::read(&file).unwrap();
    let fails = |what: &str| match run(keys.take(&action, entry("one"))) {
        Err(FolderError::Damaged { path, .. }) => assert_eq!(path, file),
        other => panic!("{what}: {other:?}"),
    };
    for length in 0..whole.len() - 1 {
        fs::write(&file, &whole[..length]).unwrap();
        fails(&format!("cut at {length}"));
    }
    for at in 0..whole.len() - 1 {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        fs::write(&file, &flipped).unwrap();
        match run(keys.take(&action, entry("one"))) {
            Err(FolderError::Damaged { .. } | FolderError::Newer { .. }) => {}
            other => panic!("flipped at {at}: {other:?}"),
        }
    }
    fs::write(&file, vec![b' '; 100_000]).unwrap();
    fails("far too long");
    run(async {
        let other = crate::support::action("other");
        keys.take(&other, entry("one")).await.unwrap();
        fs::copy(keys.key_file(&other), &file).unwrap();
    });
    fails("of another action");
    // It is the one thing that nobody may do away with in passing.
    run(keys.forget(&action)).unwrap_err();
    fs::write(&file, &whole).unwrap();
    let taken = run(keys.take(&action, entry("one"))).unwrap();
    assert_eq!(taken.entry.key, key);
}

/// Whatever else stands in a key's place: it is not taken for an absent key, and nothing waits for it.
#[test]
fn hostile_085_what_is_no_file_in_a_keys_place_is_an_error_at_once() {
    let (_temporary, keys) = folder();
    let action = action("a");
    let file = keys.key_file(&action);
    let fails = || {
        let taken = run(keys.take(&action, entry("one")));
        assert!(
            matches!(taken, Err(FolderError::Damaged { .. })),
            "{taken:?}"
        );
        fs::remove_file(&file)
            .or_else(|_| fs::remove_dir(&file))
            .unwrap();
    };
    std::os::unix::fs::symlink("/nonexistent/place", &file).unwrap();
    fails();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &file,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    fails();
    fs::create_dir(&file).unwrap();
    fails();
    assert!(run(keys.take(&action, entry("one"))).unwrap().is_new);
}

#[test]
fn a_damaged_note_is_an_error_too_since_the_window_may_be_over() {
    let (_temporary, keys) = folder();
    let action = action("a");
    run(async {
        let key = keys.take(&action, entry("one")).await.unwrap().entry.key;
        keys.note(&action, &key, note(200)).await.unwrap();
        fs::write(&files(&keys, "note")[0], "").unwrap();
        let error = keys.take(&action, entry("one")).await.unwrap_err();
        assert!(matches!(error, FolderError::Damaged { .. }), "{error}");
    });
}

#[test]
fn hostile_086_a_newer_format_is_refused_and_says_so() {
    let (_temporary, keys) = folder();
    let action = action("a");
    run(keys.take(&action, entry("one"))).unwrap();
    let file = keys.key_file(&action);
    let text = fs::read_to_string(&file).unwrap();
    let newer = text.replace("\"format\":1", "\"format\":2,\"more\":true");
    fs::write(&file, newer).unwrap();
    let error = run(keys.take(&action, entry("one"))).unwrap_err();
    assert!(
        matches!(error, FolderError::Newer { format: 2, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("use the newer one"), "{error}");
}

#[test]
fn many_threads_that_race_for_an_action_get_one_key() {
    let (_temporary, keys) = folder();
    for round in 0..20 {
        let action = action(&format!("race-{round}"));
        let barrier = Barrier::new(8);
        let all: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        run(keys.take(&action, entry("one"))).unwrap()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(all.iter().filter(|taken| taken.is_new).count(), 1);
        assert!(all.iter().all(|taken| taken.entry.key == all[0].entry.key));
    }
    let new = fs::read_dir(keys.path().join("new")).unwrap();
    assert_eq!(new.count(), 0);
}

#[test]
fn what_a_crash_left_of_a_new_file_is_removed_in_time() {
    let (_temporary, keys) = folder();
    let [old, new] = ["old", "new"].map(|name| keys.path().join("new").join(name));
    fs::write(&old, "x").unwrap();
    fs::write(&new, "x").unwrap();
    let past = std::time::SystemTime::now() - Duration::from_secs(4000);
    fs::File::options()
        .write(true)
        .open(&old)
        .unwrap()
        .set_modified(past)
        .unwrap();
    KeyFolder::open(keys.path()).unwrap();
    assert!(new.exists() && !old.exists());
}

#[test]
fn folder_and_files_are_for_their_owner_alone() {
    let (_temporary, keys) = folder();
    run(keys.take(&action("a"), entry("one"))).unwrap();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(keys.path()), 0o700);
    assert_eq!(mode(&files(&keys, "key")[0]), 0o600);
}

#[test]
fn a_folder_that_is_a_file_is_refused_with_a_reason() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = KeyFolder::open(file.path()).unwrap_err();
    assert!(error.to_string().contains("make the folder"), "{error}");
}
