//! Keys and processes: killed with -9 while they take keys, racing for one, out of space.
//!
//! A child process is this test's own binary, which runs the "test" [`child`] alone.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use onlyonce_client::{KeyFolder, KeyStore};
use onlyonce_testkit::{read_only, small_disk};

use crate::support::{action, entry, note, run};

const FOLDER: &str = "ONLYONCE_TEST_KEYS";
const FIRST: &str = "ONLYONCE_TEST_FIRST";
const COUNT: &str = "ONLYONCE_TEST_COUNT";
const FILLER: &str = "filler";

/// What a child says of one action.
#[derive(Debug)]
struct Line {
    action: usize,
    key: String,
    is_new: bool,
}

struct Taking {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Taking {
    /// A process that takes the keys of actions `first` and on.
    fn start(wrapper: &[String], folder: &Path, first: usize, count: usize) -> Self {
        let own = std::env::current_exe().unwrap().display().to_string();
        let words = [&own, "--exact", "crash::child", "--ignored", "--nocapture"];
        let mut words: Vec<&str> = words.to_vec();
        words.splice(..0, wrapper.iter().map(String::as_str));
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .env(FOLDER, folder)
            .env(FIRST, first.to_string())
            .env(COUNT, count.to_string())
            .stdout(Stdio::piped())
            // Killed, or told to fail, it has nothing to say there.
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What it says next of an action; `None` once it is done.
    fn next(&mut self) -> Option<Line> {
        for line in &mut self.lines {
            let line = line.unwrap();
            // The harness writes on the same lines.
            let Some((_, said)) = line.split_once("took ") else {
                continue;
            };
            let words: Vec<_> = said.split(' ').collect();
            return Some(Line {
                action: words[0].parse().unwrap(),
                key: words[1].to_owned(),
                is_new: words[2] == "true",
            });
        }
        None
    }

    /// All that it says, up to its end.
    fn all(mut self) -> Vec<Line> {
        let lines = std::iter::from_fn(|| self.next()).collect();
        assert!(self.child.wait().unwrap().success());
        lines
    }

    fn kill_9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn number(name: &str) -> usize {
    std::env::var(name).unwrap().parse().unwrap()
}

#[test]
#[ignore = "it is the process that other tests start"]
fn child() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let keys = KeyFolder::open(folder).unwrap();
    run(async {
        for at in number(FIRST)..number(FIRST) + number(COUNT) {
            let action = action(&format!("a-{at}"));
            let taken = keys.take(&action, entry("body")).await.unwrap();
            println!("took {at} {} {}", taken.entry.key, taken.is_new);
            // A crash may fall into this one too.
            keys.note(&action, &taken.entry.key, note(200))
                .await
                .unwrap();
        }
    });
}

/// Numbers that look random and are the same each time.
fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

#[test]
fn hostile_094_kill_9_at_any_point_and_the_same_key_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut known: HashMap<usize, String> = HashMap::new();
    let mut seed = 17;
    for _ in 0..60 {
        // The last few again, the one that was being taken included, and then new ones.
        let first = known.len().saturating_sub(3);
        let mut child = Taking::start(&[], folder.path(), first, 1000);
        for _ in 0..random(&mut seed) % 12 {
            let line = child.next().unwrap();
            let key = known.entry(line.action).or_insert_with(|| line.key.clone());
            assert_eq!(*key, line.key, "{line:?}");
        }
        child.kill_9();
    }
    assert!(known.len() > 100, "only {} actions", known.len());
    let keys = KeyFolder::open(folder.path()).unwrap();
    run(async {
        for (at, key) in &known {
            let action = action(&format!("a-{at}"));
            let taken = keys.take(&action, entry("body")).await.unwrap();
            assert!(!taken.is_new);
            assert_eq!(taken.entry.key.as_str(), key);
        }
    });
}

#[test]
fn two_processes_that_race_for_an_action_get_one_key() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = [(); 2].map(|()| Taking::start(&[], folder.path(), 0, 150));
    let (one, other) = (one.all(), other.all());
    assert_eq!((one.len(), other.len()), (150, 150));
    for (one, other) in one.iter().zip(&other) {
        assert_eq!((one.action, &one.key), (other.action, &other.key));
        assert!(one.is_new != other.is_new, "{one:?} {other:?}");
    }
}

#[test]
fn hostile_088_a_read_only_folder_keeps_no_key_and_gives_none() {
    let folder = tempfile::tempdir().unwrap();
    let before = Taking::start(&[], folder.path(), 0, 1).all();
    let Some(wrapper) = read_only(folder.path()) else {
        return;
    };
    // What is there is known, and what is not is an error: the child ends with one.
    let mut child = Taking::start(&wrapper, folder.path(), 0, 1);
    let line = child.next().unwrap();
    assert_eq!((&line.key, line.is_new), (&before[0].key, false));
    assert!(child.next().is_none());
    let mut child = Taking::start(&wrapper, folder.path(), 1, 1);
    assert!(child.next().is_none());
    assert!(!child.child.wait().unwrap().success());
    // Once it can be written to again, all goes on.
    let after = Taking::start(&[], folder.path(), 1, 1).all();
    assert!(after[0].is_new);
}

#[test]
#[ignore = "it is the process that another test starts"]
fn full_child() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let folder = Path::new(&folder);
    let keys = KeyFolder::open(folder).unwrap();
    run(async {
        let first = keys.take(&action("a-0"), entry("body")).await.unwrap();
        let filler = folder.join(FILLER);
        while std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&filler)
            .and_then(|mut file| std::io::Write::write_all(&mut file, &[0; 4096]))
            .is_ok()
        {}
        let error = keys.take(&action("a-1"), entry("body")).await.unwrap_err();
        assert!(error.to_string().contains("No space left"), "{error}");
        let again = keys.take(&action("a-0"), entry("body")).await.unwrap();
        assert_eq!((&again.entry.key, again.is_new), (&first.entry.key, false));
        let error = keys.note(&action("a-0"), &first.entry.key, note(200)).await;
        error.unwrap_err();
        std::fs::remove_file(filler).unwrap();
        let taken = keys.take(&action("a-1"), entry("body")).await.unwrap();
        assert!(taken.is_new);
        // What was being written is gone.
        let new = std::fs::read_dir(folder.join("new")).unwrap();
        assert_eq!(new.count(), 0);
    });
    println!("took 0 all true");
}

#[test]
fn hostile_089_a_full_disk_gives_no_key_and_space_makes_it_work_again() {
    let folder = tempfile::tempdir().unwrap();
    let Some(wrapper) = small_disk(folder.path(), 64) else {
        return;
    };
    let own = std::env::current_exe().unwrap();
    let output = Command::new(&wrapper[0])
        .args(&wrapper[1..])
        .arg(own)
        .args(["--exact", "crash::full_child", "--ignored", "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("took 0 all"),
        "{output:?}"
    );
}
