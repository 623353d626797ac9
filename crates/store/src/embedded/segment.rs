//! Segments: the files of the log.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rustix::io::{Errno, ReadWriteFlags};

use super::{catalog::Item, index::Place};

/// One file of the log.
pub struct Segment {
    pub number: u32,
    pub file: File,
    /// Bytes that it may hold.
    pub capacity: u32,
    /// Bytes that it holds and that are durable.
    pub used: AtomicU32,
    /// Bytes of entries that still count.
    pub live: AtomicU64,
    /// Whether nothing more will be written to it, and its catalog is durable or could not be written.
    pub sealed: AtomicBool,
    /// Its last batch, once it is sealed.
    pub last_seq: AtomicU64,
    /// What it holds, collected for its catalog until it is sealed.
    pub items: Mutex<Vec<Item>>,
    dir: PathBuf,
}

impl Segment {
    /// Makes a new segment of `capacity` zero bytes, durable with its name.
    ///
    /// The zeros are written, not only promised: a later write into them changes no metadata, so
    /// that its sync need not wait for the file system's journal (half the time on ext4), and it
    /// cannot fail for want of space (HOSTILE 89).
    pub fn create(dir: &Path, number: u32, capacity: u32) -> io::Result<Self> {
        const PIECE: usize = 256 << 10;
        let path = log_path(dir, number);
        let file = create_file(&path)?;
        let filled = (|| {
            let zeros = vec![0; PIECE];
            let mut at = 0;
            while at < capacity {
                let len = PIECE.min((capacity - at) as usize);
                file.write_all_at(&zeros[..len], at.into())?;
                at += len as u32;
            }
            file.sync_all()?;
            sync_dir(dir)
        })();
        if let Err(error) = filled {
            // Half a file would hold the very space that somebody will try to free.
            drop(fs::remove_file(&path));
            return Err(error);
        }
        Ok(Self::around(dir, number, file, capacity, 0))
    }

    /// Opens a segment that is there.
    pub fn open(dir: &Path, number: u32) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(log_path(dir, number))?;
        let len = u32::try_from(file.metadata()?.len()).unwrap_or(u32::MAX);
        Ok(Self::around(dir, number, file, len, len))
    }

    fn around(dir: &Path, number: u32, file: File, capacity: u32, used: u32) -> Self {
        Self {
            number,
            file,
            capacity,
            used: AtomicU32::new(used),
            live: AtomicU64::new(0),
            sealed: AtomicBool::new(false),
            last_seq: AtomicU64::new(0),
            items: Mutex::default(),
            dir: dir.to_owned(),
        }
    }

    /// The bytes at `place`, if they are in the page cache; `None` where that would block.
    pub fn read_cached(&self, place: Place) -> io::Result<Option<Bytes>> {
        let mut bytes = BytesMut::zeroed(place.len as usize);
        let buffer = &mut [io::IoSliceMut::new(&mut bytes)];
        match rustix::io::preadv2(
            &self.file,
            buffer,
            place.offset.into(),
            ReadWriteFlags::NOWAIT,
        ) {
            Ok(read) if read == place.len as usize => Ok(Some(bytes.freeze())),
            // Short, or a file system that does not know the flag: the patient way will tell.
            Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The bytes at `place`. Blocks.
    pub fn read(&self, place: Place) -> io::Result<Bytes> {
        let mut bytes = BytesMut::zeroed(place.len as usize);
        self.file.read_exact_at(&mut bytes, place.offset.into())?;
        Ok(bytes.freeze())
    }

    /// Cuts the zeros off the end: nothing more will be written.
    pub fn trim(&self) -> io::Result<()> {
        self.file.set_len(self.used.load(Ordering::Acquire).into())
    }

    /// Removes the file and its catalog.
    pub fn remove(&self) -> io::Result<()> {
        remove_if_there(&log_path(&self.dir, self.number))?;
        remove_if_there(&self.dir.join(catalog_name(self.number)))
    }

    /// Notes that nothing more comes: its last batch is `last_seq`.
    pub fn finish(&self, last_seq: u64) {
        self.last_seq.store(last_seq, Ordering::Relaxed);
        self.sealed.store(true, Ordering::Release);
    }

    /// Its last batch, where nothing more comes.
    pub fn finished(&self) -> Option<u64> {
        let is_sealed = self.sealed.load(Ordering::Acquire);
        is_sealed.then(|| self.last_seq.load(Ordering::Relaxed))
    }

    /// Bytes that its entries take on disk.
    pub fn len(&self) -> u64 {
        self.used.load(Ordering::Acquire).into()
    }

    pub fn add_live(&self, bytes: u32) {
        self.live.fetch_add(bytes.into(), Ordering::Relaxed);
    }

    pub fn sub_live(&self, bytes: u32) {
        self.live.fetch_sub(bytes.into(), Ordering::Relaxed);
    }
}

/// Makes or empties a file that only its owner may read.
pub fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Puts `bytes` in the place of the file `name` of `dir`, durably and as a whole.
pub fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.new"));
    let mut file = create_file(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    sync_dir(dir)
}

/// Makes the names in `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

pub fn log_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("seg-{number:08}.log"))
}

pub fn catalog_name(number: u32) -> String {
    format!("seg-{number:08}.idx")
}

/// The numbers of the segments in `dir`, in order.
pub fn numbers(dir: &Path) -> io::Result<Vec<u32>> {
    numbered(dir, "seg-", ".log")
}

/// The numbers of the files in `dir` whose names are a number between these, in order.
pub fn numbered(dir: &Path, before: &str, after: &str) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number: Option<u32> = name
            .to_str()
            .and_then(|name| name.strip_prefix(before)?.strip_suffix(after))
            .and_then(|number| number.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}
