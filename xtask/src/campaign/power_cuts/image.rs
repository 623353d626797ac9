//! What a power cut leaves of a disk: one of the many images that are possible.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::disk::{Change, Disk, File, Ino, Node, ROOT, Rules};
use crate::faults::random::{Random, hash};

/// Folders and files, by path; a folder has no bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    entries: BTreeMap<PathBuf, Option<Vec<u8>>>,
}

/// How a cut treats what was not synced.
#[derive(Clone, Copy, Debug)]
struct Style {
    /// How many of a hundred unsynced changes of names survive.
    names: u64,
    /// How many of a hundred pieces of unsynced writes survive.
    pieces: u64,
    /// The size of a piece: 512 bytes (a sector) to 4 KiB (a page).
    piece: usize,
    /// Whether a file may have its new length while the bytes are missing, and what is there then.
    length: Length,
}

#[derive(Clone, Copy, Debug)]
enum Length {
    /// As long as what survived.
    Survivors,
    /// The new length, and zeros.
    Zeros,
    /// The new length, and whatever the disk had there before.
    Stale,
}

impl Style {
    fn choose(random: &mut Random) -> Self {
        let share = |random: &mut Random| [0, 0, 10, 50, 90, 100, 100][random.below(7) as usize];
        Self {
            names: share(random),
            pieces: share(random),
            piece: 512 << random.below(4),
            length: match random.below(6) {
                0..=2 => Length::Survivors,
                3..=4 => Length::Zeros,
                _ => Length::Stale,
            },
        }
    }
}

impl Image {
    /// One image of a disk whose power is gone.
    pub fn of_disk(disk: &Disk, random: &mut Random) -> Self {
        let style = Style::choose(random);
        let mut nodes = disk.nodes.clone();
        let kept = match disk.rules() {
            // A journal is cut at one place.
            Rules::Journal => {
                let length = disk.journal.len() as u64;
                let end = match style.names {
                    0 => 0,
                    100 => length,
                    _ => random.below(length + 1),
                };
                disk.journal.iter().take(end as usize).collect()
            }
            Rules::Strict => disk
                .journal
                .iter()
                .filter(|_| random.percent(style.names))
                .collect::<Vec<_>>(),
        };
        for naming in kept {
            Disk::make_durable(&mut nodes, naming);
        }
        let mut image = Self::default();
        image.add_folder(&nodes, ROOT, Path::new(""), style, random);
        image
    }

    fn add_folder(
        &mut self,
        nodes: &BTreeMap<Ino, Node>,
        folder: Ino,
        path: &Path,
        style: Style,
        random: &mut Random,
    ) {
        let Some(Node::Folder(_, durable)) = nodes.get(&folder) else {
            return;
        };
        for (name, ino) in durable {
            let path = path.join(name);
            match nodes.get(ino) {
                Some(Node::File(file)) => {
                    self.entries
                        .insert(path, Some(survivors(file, style, random)));
                }
                Some(Node::Folder(..)) => {
                    self.entries.insert(path.clone(), None);
                    self.add_folder(nodes, *ino, &path, style, random);
                }
                None => {}
            }
        }
    }

    /// A number that differs between images that differ.
    pub fn fingerprint(&self) -> u64 {
        self.entries.iter().fold(0, |sum, (path, bytes)| {
            let path = hash(path.as_os_str().as_encoded_bytes());
            let bytes = bytes.as_deref().map_or(1, hash);
            (sum ^ path).wrapping_mul(31) ^ bytes.rotate_left(17)
        })
    }

    /// Writes it into an empty folder.
    pub fn write_to(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        for (path, bytes) in &self.entries {
            match bytes {
                None => fs::create_dir_all(folder.join(path))?,
                Some(bytes) => fs::write(folder.join(path), bytes)?,
            }
        }
        Ok(())
    }

    /// Reads it back from a folder.
    pub fn read_from(folder: &Path) -> Result<Self> {
        let mut image = Self::default();
        let mut folders = vec![PathBuf::new()];
        while let Some(path) = folders.pop() {
            for entry in fs::read_dir(folder.join(&path))? {
                let entry = entry?;
                let path = path.join(entry.file_name());
                if entry.file_type()?.is_dir() {
                    image.entries.insert(path.clone(), None);
                    folders.push(path);
                } else {
                    image.entries.insert(path, Some(fs::read(entry.path())?));
                }
            }
        }
        Ok(image)
    }

    /// A disk that holds it, all of it durable.
    pub fn to_disk(&self, rules: Rules) -> Disk {
        let mut disk = Disk::new(rules);
        let mut folders = BTreeMap::from([(PathBuf::new(), ROOT)]);
        for (path, bytes) in &self.entries {
            let parent = path
                .parent()
                .and_then(|parent| folders.get(parent))
                .copied();
            let name = path.file_name().unwrap_or(OsStr::new(""));
            let ino = disk.load(parent.unwrap_or(ROOT), name, bytes.clone());
            if bytes.is_none() {
                folders.insert(path.clone(), ino);
            }
        }
        disk
    }

    /// Flips a few bits somewhere in one of the files, and says where.
    pub fn rot(&mut self, random: &mut Random) -> Option<String> {
        let full = |bytes: &Option<Vec<u8>>| bytes.as_ref().is_some_and(|bytes| !bytes.is_empty());
        let mut files: Vec<_> = self
            .entries
            .iter_mut()
            .filter(|(_, bytes)| full(bytes))
            .collect();
        if files.is_empty() {
            return None;
        }
        let index = random.below(files.len() as u64) as usize;
        let (path, bytes) = &mut files[index];
        let bytes = bytes.as_mut()?;
        let at = random.below(bytes.len() as u64) as usize;
        let end = (at + random.between(1, 8) as usize).min(bytes.len());
        for byte in &mut bytes[at..end] {
            *byte ^= random.between(1, 255) as u8;
        }
        Some(format!("{} at {at}", path.display()))
    }
}

/// What is left of a file.
fn survivors(file: &File, style: Style, random: &mut Random) -> Vec<u8> {
    let mut bytes = file.durable.clone();
    for change in &file.unsynced {
        match change {
            Change::Resize(_) => {
                if random.percent(style.pieces) {
                    change.apply(&mut bytes);
                }
            }
            Change::Write(at, new) => {
                for (at, piece) in pieces(*at, new, style.piece) {
                    if random.percent(style.pieces) {
                        Change::Write(at, piece.to_vec()).apply(&mut bytes);
                    }
                }
            }
        }
    }
    let missing = file.now.len().saturating_sub(bytes.len());
    if missing > 0 && random.percent(60) {
        match style.length {
            Length::Survivors => {}
            Length::Zeros => bytes.resize(file.now.len(), 0),
            Length::Stale => bytes.extend((0..missing).map(|_| random.next() as u8)),
        }
    }
    bytes
}

/// Cuts a write at the borders of the disk's pieces.
fn pieces(at: usize, bytes: &[u8], piece: usize) -> impl Iterator<Item = (usize, &[u8])> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == bytes.len() {
            return None;
        }
        let from = start;
        let to_border = piece - (at + from) % piece;
        start = bytes.len().min(from + to_border);
        Some((at + from, &bytes[from..start]))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsStr;

    use super::{Image, pieces};
    use crate::campaign::power_cuts::disk::{Disk, Fault, ROOT, Rules};
    use crate::faults::random::Random;

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    fn images(disk: &Disk) -> Vec<Image> {
        (0..300)
            .map(|seed| Image::of_disk(disk, &mut Random::part(7, seed)))
            .collect()
    }

    fn file<'a>(image: &'a Image, path: &str) -> Option<&'a [u8]> {
        image
            .entries
            .get(std::path::Path::new(path))
            .and_then(|bytes| bytes.as_deref())
    }

    #[test]
    fn what_was_synced_is_in_every_image() {
        for rules in [Rules::Strict, Rules::Journal] {
            let mut disk = Disk::new(rules);
            let log = disk.create(ROOT, name("log"), false).unwrap();
            disk.write(log, 0, b"durable").unwrap();
            disk.sync_file(log).unwrap();
            disk.sync_folder(ROOT).unwrap();
            disk.write(log, 7, &[b'x'; 5_000]).unwrap();
            let images = images(&disk);
            assert!(
                images
                    .iter()
                    .all(|image| file(image, "log").unwrap().starts_with(b"durable"))
            );
            let distinct: BTreeSet<u64> = images.iter().map(Image::fingerprint).collect();
            assert!(
                distinct.len() > 20,
                "the unsynced write is lost in one way only"
            );
        }
    }

    #[test]
    fn a_name_without_a_sync_of_its_folder_can_be_lost_under_strict_rules_only() {
        for rules in [Rules::Strict, Rules::Journal] {
            let mut disk = Disk::new(rules);
            let log = disk.create(ROOT, name("log"), false).unwrap();
            disk.write(log, 0, b"bytes").unwrap();
            disk.sync_file(log).unwrap();
            let lost = images(&disk)
                .iter()
                .any(|image| file(image, "log").is_none());
            assert_eq!(lost, rules == Rules::Strict);
        }
    }

    #[test]
    fn a_rename_happens_whole_or_not_at_all() {
        for rules in [Rules::Strict, Rules::Journal] {
            let mut disk = Disk::new(rules);
            for (path, bytes) in [("meta", b"old"), ("meta.new", b"new")] {
                let ino = disk.create(ROOT, name(path), false).unwrap();
                disk.write(ino, 0, bytes).unwrap();
                disk.sync_file(ino).unwrap();
            }
            disk.sync_folder(ROOT).unwrap();
            disk.rename((ROOT, name("meta.new")), (ROOT, name("meta")), true)
                .unwrap();
            let images = images(&disk);
            assert!(
                images
                    .iter()
                    .all(|image| match file(image, "meta").unwrap() {
                        b"old" => file(image, "meta.new").is_some(),
                        _ => file(image, "meta.new").is_none(),
                    })
            );
            assert!(
                images
                    .iter()
                    .any(|image| file(image, "meta").unwrap() == b"old")
            );
            assert!(
                images
                    .iter()
                    .any(|image| file(image, "meta").unwrap() == b"new")
            );
        }
    }

    #[test]
    fn a_removed_file_can_be_there_again() {
        let mut disk = Disk::new(Rules::Strict);
        disk.create(ROOT, name("seg"), false).unwrap();
        disk.sync_folder(ROOT).unwrap();
        disk.remove(ROOT, name("seg"), false).unwrap();
        assert!(
            images(&disk)
                .iter()
                .any(|image| file(image, "seg").is_some())
        );
        disk.sync_folder(ROOT).unwrap();
        assert!(
            images(&disk)
                .iter()
                .all(|image| file(image, "seg").is_none())
        );
    }

    #[test]
    fn nothing_works_once_the_power_is_gone() {
        let mut disk = Disk::new(Rules::Strict);
        let log = disk.create(ROOT, name("log"), false).unwrap();
        disk.cut_after(1);
        disk.write(log, 0, b"last").unwrap();
        assert_eq!(disk.sync_file(log), Err(Fault::Cut));
        assert_eq!(disk.lookup(ROOT, name("log")), Err(Fault::Cut));
        assert!(disk.is_cut());
    }

    #[test]
    fn an_image_that_was_loaded_is_durable() {
        let mut disk = Disk::new(Rules::Strict);
        let folder = disk.create(ROOT, name("data"), true).unwrap();
        let log = disk.create(folder, name("log"), false).unwrap();
        disk.write(log, 0, b"bytes").unwrap();
        disk.sync_file(log).unwrap();
        disk.sync_folder(folder).unwrap();
        disk.sync_folder(ROOT).unwrap();
        let image = Image::of_disk(&disk, &mut Random::new(1));
        assert_eq!(file(&image, "data/log"), Some(&b"bytes"[..]));
        let again = Image::of_disk(&image.to_disk(Rules::Strict), &mut Random::new(2));
        assert_eq!(image, again);
    }

    #[test]
    fn writes_are_cut_at_borders_of_the_disk() {
        let cut: Vec<_> = pieces(500, &[0; 600], 512)
            .map(|(at, bytes)| (at, bytes.len()))
            .collect();
        assert_eq!(cut, [(500, 12), (512, 512), (1024, 76)]);
    }
}
