//! A folder of keys: one small file for each action.
//!
//! ```text
//! FOLDER/<hash of the action>.key           the key, its request, when it was made. Written once
//! FOLDER/<hash of action and key>.note      what the server said last. Replaced as a whole
//! FOLDER/new/<random>                       being written; what a crash left of one is removed
//! ```
//!
//! A key file comes into being whole: it is written under another name, synced, then linked to its own
//! name, which fails where that exists, and the folder is synced. It is never written again, so nothing
//! can damage a key that was once handed out but the disk itself; a checksum tells. What the server said
//! is in a file of its own, whose name holds the key too, so that a process that comes late with it can
//! never touch the key of another.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use onlyonce_core::{Fingerprint, Key};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::keys::{Entry, KeyStore, Note, Said, Taken};
use crate::{Action, time};

/// The format of the files. A newer one is refused.
const FORMAT: u32 = 1;
/// No file of ours is longer, in bytes.
const LONGEST: u64 = 64 << 10;
/// A key that is forgotten as often between two looks is no key.
const TRIES: usize = 100;
/// The folder of files that are being written.
const NEW: &str = "new";
/// A file that was being written this long ago is what a crash left.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);

/// A [`KeyStore`] in a folder, for any number of processes of one machine.
///
/// ```no_run
/// # fn main() -> Result<(), onlyonce_client::FolderError> {
/// let keys = onlyonce_client::KeyFolder::open("/var/lib/myapp/keys")?;
/// # Ok(()) }
/// ```
///
/// A new key costs two syncs of the disk, and what the server said one more. The folder must be on a
/// file system with hard links, and on one that keeps what it has synced: a disk, not a `tmpfs`. It is
/// as private as what it is about; new folders and files are for their owner alone.
#[derive(Clone, Debug)]
pub struct KeyFolder {
    folder: Arc<Path>,
}

/// Why a folder of keys cannot be used. Nothing was sent because of it, and no key was made anew.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// The file system refuses: it is full, read-only, or not ours.
    #[error("cannot {doing} {path}: {source}; make it writable and give it space, then call again", path = path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not as it was written.
    #[error(
        "{path} is damaged ({why}), and a new key could run the action twice; find out at the server \
         whether it ran, and remove the file only then",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file is of a newer version of this library.
    #[error(
        "{path} has format {format}, and this version reads up to {FORMAT}; use the newer one",
        path = path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
}

impl KeyFolder {
    /// Opens the folder at `path`, and makes it where it is missing. Blocks for a few syncs of the disk.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, FolderError> {
        let path = path.into();
        make_folder(&path)?;
        make_folder(&path.join(NEW))?;
        remove_left_behind(&path.join(NEW))?;
        Ok(Self {
            folder: path.into(),
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The file that keeps the key of `action`.
    pub fn key_file(&self, action: &Action) -> PathBuf {
        self.named(&[action.as_str()], "key")
    }

    /// Forgets all actions that the server answered with success before `moment`, and says how many there
    /// were. From here on they are new actions: choose a moment before which no action of yours is called
    /// again. What was answered with an error, is unknown, or was not answered stays. Blocks while it
    /// reads the folder.
    pub fn forget_done_before(&self, moment: SystemTime) -> Result<usize, FolderError> {
        let mut forgotten = 0;
        for file in list(&self.folder)? {
            if file.extension().is_none_or(|extension| extension != "key") {
                continue;
            }
            let Some(kept): Option<KeyFile> = read(&file)? else {
                continue;
            };
            let action = Action::new(kept.action).map_err(|error| damaged(&file, error))?;
            let key = Key::new(&kept.key).map_err(|error| damaged(&file, error))?;
            let note = self.read_note(&action, &key)?;
            let is_done = note.is_some_and(|note| note.at < moment && note.said.is_success());
            if is_done && self.forget_now(&action)? {
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    fn named(&self, parts: &[&str], extension: &str) -> PathBuf {
        let mut hasher = blake3::Hasher::new_derive_key("onlyonce-client 1 name of a file");
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let hash = hasher.finalize().to_hex();
        self.folder.join(format!("{hash}.{extension}"))
    }

    fn note_file(&self, action: &Action, key: &Key) -> PathBuf {
        self.named(&[action.as_str(), key.as_str()], "note")
    }

    fn take_now(&self, action: &Action, fresh: &Entry) -> Result<Taken, FolderError> {
        for _ in 0..TRIES {
            if let Some(taken) = self.try_to_take(action, fresh)? {
                return Ok(taken);
            }
        }
        Err(damaged(&self.key_file(action), "it comes and goes"))
    }

    /// `None` where the key was there, and was forgotten before it could be read.
    fn try_to_take(&self, action: &Action, fresh: &Entry) -> Result<Option<Taken>, FolderError> {
        let file = self.key_file(action);
        // Most calls of a process are first ones, but one look is much cheaper than a new file.
        if let Some(kept) = self.read_entry(&file, action)? {
            return self.taken_before(action, kept).map(Some);
        }
        let new = self.write_new(&KeyFile::of(action, fresh))?;
        let linked = fs::hard_link(&new, &file);
        // Whatever came of it, the other name has had its use; a crash here leaves it to `open`.
        let _ = fs::remove_file(&new);
        match linked {
            Ok(()) => {
                sync_folder(&self.folder)?;
                Ok(Some(Taken {
                    entry: fresh.clone(),
                    is_new: true,
                    note: None,
                }))
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let kept = self.read_entry(&file, action)?;
                kept.map(|kept| self.taken_before(action, kept)).transpose()
            }
            Err(error) => Err(io_error("link a key to", &file)(error)),
        }
    }

    fn taken_before(&self, action: &Action, entry: Entry) -> Result<Taken, FolderError> {
        // Who made it may not have come to sync the folder yet, and we are about to send it.
        sync_folder(&self.folder)?;
        let note = self.read_note(action, &entry.key)?;
        Ok(Taken {
            entry,
            is_new: false,
            note,
        })
    }

    fn note_now(&self, action: &Action, key: &Key, note: &Note) -> Result<(), FolderError> {
        let file = self.note_file(action, key);
        let new = self.write_new(&NoteFile::of(action, note))?;
        fs::rename(&new, &file).map_err(|error| {
            let _ = fs::remove_file(&new);
            io_error("replace", &file)(error)
        })?;
        sync_folder(&self.folder)
    }

    fn forget_now(&self, action: &Action) -> Result<bool, FolderError> {
        let file = self.key_file(action);
        let Some(entry) = self.read_entry(&file, action)? else {
            return Ok(false);
        };
        // The key first: what is left by a crash in between is a note that nobody looks for.
        for file in [&file, &self.note_file(action, &entry.key)] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(io_error("remove", file)(error));
                }
                _ => {}
            }
        }
        sync_folder(&self.folder)?;
        Ok(true)
    }

    fn read_entry(&self, file: &Path, action: &Action) -> Result<Option<Entry>, FolderError> {
        let Some(kept) = read::<KeyFile>(file)? else {
            return Ok(None);
        };
        if kept.action != action.as_str() {
            return Err(damaged(file, "it is of another action"));
        }
        kept.entry().map(Some).map_err(|why| damaged(file, why))
    }

    fn read_note(&self, action: &Action, key: &Key) -> Result<Option<Note>, FolderError> {
        let file = self.note_file(action, key);
        let Some(kept) = read::<NoteFile>(&file)? else {
            return Ok(None);
        };
        kept.note().map(Some).map_err(|why| damaged(&file, why))
    }

    /// Writes `content` to a new file under a name that nobody looks for, synced; its path.
    fn write_new(&self, content: &impl Serialize) -> Result<PathBuf, FolderError> {
        let name = Uuid::new_v4().simple().to_string();
        let path = self.folder.join(NEW).join(name);
        let written = Checked::text(content).and_then(|text| {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        match written {
            Ok(()) => Ok(path),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(io_error("write", &path)(error))
            }
        }
    }
}

impl KeyStore for KeyFolder {
    type Error = FolderError;

    async fn take(&self, action: &Action, fresh: Entry) -> Result<Taken, FolderError> {
        let action = action.clone();
        self.blocking(move |folder| folder.take_now(&action, &fresh))
            .await
    }

    async fn note(&self, action: &Action, key: &Key, note: Note) -> Result<(), FolderError> {
        let (action, key) = (action.clone(), key.clone());
        self.blocking(move |folder| folder.note_now(&action, &key, &note))
            .await
    }

    async fn forget(&self, action: &Action) -> Result<bool, FolderError> {
        let action = action.clone();
        self.blocking(move |folder| folder.forget_now(&action))
            .await
    }
}

impl KeyFolder {
    /// Runs `work` where blocking delays nobody.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, FolderError> + Send + 'static,
    ) -> Result<T, FolderError> {
        let folder = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&folder)).await;
        // It does not panic and is not aborted; a runtime that ends drops it, and us.
        done.unwrap_or_else(|error| Err(io_error("use", &self.folder)(io::Error::other(error))))
    }
}

/// A file's content and a hash of it, so that a key with a flipped bit is not taken for a key.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checked<T> {
    format: u32,
    kept: T,
    check: String,
}

/// The part that every format has.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl<T: Serialize> Checked<T> {
    fn text(kept: T) -> io::Result<String> {
        let check = check(&kept)?;
        let file = Self {
            format: FORMAT,
            kept,
            check,
        };
        Ok(serde_json::to_string(&file)? + "\n")
    }
}

fn check(kept: &impl Serialize) -> serde_json::Result<String> {
    let text = serde_json::to_vec(kept)?;
    Ok(blake3::hash(&text).to_hex().to_string())
}

/// What the file at `path` keeps; `None` where there is none.
fn read<T: Serialize + DeserializeOwned>(path: &Path) -> Result<Option<T>, FolderError> {
    // A link that leads nowhere is there, though nothing can be read; a pipe would be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty()).map(File::from);
    let mut text = Vec::new();
    let read = opened.map_err(io::Error::from).and_then(|file| {
        let is_ours = file.metadata()?.is_file();
        if is_ours {
            file.take(LONGEST).read_to_end(&mut text)?;
        }
        Ok(is_ours)
    });
    match read {
        Ok(true) => {}
        Ok(false) => return Err(damaged(path, "it is no regular file")),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return Err(damaged(path, "it is a link"));
        }
        Err(error) => return Err(io_error("read", path)(error)),
    }
    let damaged = |why: serde_json::Error| damaged(path, why);
    let Format { format } = serde_json::from_slice(&text).map_err(damaged)?;
    if format > FORMAT {
        return Err(FolderError::Newer {
            path: path.to_owned(),
            format,
        });
    }
    let file: Checked<T> = serde_json::from_slice(&text).map_err(damaged)?;
    if file.format != FORMAT || check(&file.kept).map_err(damaged)? != file.check {
        return Err(self::damaged(path, "its checksum is another"));
    }
    Ok(Some(file.kept))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    action: String,
    key: String,
    fingerprint: String,
    made_at: String,
}

impl KeyFile {
    fn of(action: &Action, entry: &Entry) -> Self {
        let fingerprint = blake3::Hash::from_bytes(*entry.fingerprint.as_bytes());
        Self {
            action: action.to_string(),
            key: entry.key.to_string(),
            fingerprint: fingerprint.to_hex().to_string(),
            made_at: time::text(entry.made_at),
        }
    }

    fn entry(&self) -> Result<Entry, String> {
        let fingerprint = blake3::Hash::from_hex(&self.fingerprint).map_err(|e| e.to_string())?;
        Ok(Entry {
            key: Key::new(&self.key).map_err(|error| error.to_string())?,
            fingerprint: Fingerprint::from_bytes(*fingerprint.as_bytes()),
            made_at: time::parse(&self.made_at)?,
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoteFile {
    action: String,
    at: String,
    /// The status of an answer; none where the outcome is unknown.
    answered: Option<u16>,
    expires_at: Option<String>,
}

impl NoteFile {
    fn of(action: &Action, note: &Note) -> Self {
        Self {
            action: action.to_string(),
            at: time::text(note.at),
            answered: match note.said {
                Said::Answer(status) => Some(status.as_u16()),
                Said::Unknown => None,
            },
            expires_at: note.expires_at.map(time::text),
        }
    }

    fn note(&self) -> Result<Note, String> {
        let said = match self.answered {
            Some(status) => {
                Said::Answer(StatusCode::from_u16(status).map_err(|error| error.to_string())?)
            }
            None => Said::Unknown,
        };
        Ok(Note {
            at: time::parse(&self.at)?,
            said,
            expires_at: self.expires_at.as_deref().map(time::parse).transpose()?,
        })
    }
}

/// Makes the folder where it is missing, so that it is still there after a power cut.
fn make_folder(path: &Path) -> Result<(), FolderError> {
    let failed = io_error("make the folder", path);
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    for made in missing {
        let parent = made
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        sync_folder(parent.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

fn remove_left_behind(folder: &Path) -> Result<(), FolderError> {
    for file in list(folder)? {
        let age = fs::metadata(&file)
            .and_then(|metadata| metadata.modified())
            .map(|modified| modified.elapsed().unwrap_or_default());
        // One that cannot be looked at or removed harms nobody.
        if age.is_ok_and(|age| age > LEFT_BEHIND) {
            let _ = fs::remove_file(&file);
        }
    }
    Ok(())
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, FolderError> {
    let read = |entries: fs::ReadDir| entries.map(|entry| Ok(entry?.path())).collect();
    fs::read_dir(folder)
        .and_then(read)
        .map_err(io_error("list", folder))
}

fn sync_folder(folder: &Path) -> Result<(), FolderError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io_error("sync", folder))
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError + use<> {
    let path = path.to_owned();
    move |source| FolderError::Io {
        doing,
        path,
        source,
    }
}

fn damaged(path: &Path, why: impl ToString) -> FolderError {
    FolderError::Damaged {
        path: path.to_owned(),
        why: why.to_string(),
    }
}
