//! A disk that tells what was written from what would be there after a power cut.
//!
//! Contents and names have two states each: what a running program sees, and what was made
//! durable by a sync. In between lie the unsynced changes, of which a cut keeps an arbitrary part
//! (see `image.rs`). How much a sync covers depends on the file system one thinks of: see [`Rules`].

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

/// A number that names a file or folder.
pub type Ino = u64;

/// The root folder.
pub const ROOT: Ino = 1;

/// What a sync makes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// As little as POSIX allows: a file's sync covers its bytes, a folder's sync the names in it.
    /// Names that were not synced survive in any combination.
    Strict,
    /// As ext4 and XFS do: names go through a journal in order, and any sync commits all of it up
    /// to there. Bytes of other files are still not covered.
    Journal,
}

/// Why an operation failed, as the system call would say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power is gone.
    Cut,
    /// No such file or folder.
    NotFound,
    /// There is one already.
    Exists,
    /// It is a folder.
    IsFolder,
    /// It is not a folder.
    NotFolder,
    /// The folder is not empty.
    NotEmpty,
}

/// A change of a file's bytes.
#[derive(Clone, Debug)]
pub enum Change {
    /// Bytes were written at an offset.
    Write(usize, Vec<u8>),
    /// The file was made shorter, or longer with zeros.
    Resize(usize),
}

impl Change {
    /// Applies it to a file's bytes.
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Resize(length) => bytes.resize(*length, 0),
            Self::Write(at, new) => {
                let end = at + new.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at..end].copy_from_slice(new);
            }
        }
    }
}

/// A file: what is seen, what is durable, and the changes between the two.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// What a running program reads.
    pub now: Vec<u8>,
    /// What the last sync made durable.
    pub durable: Vec<u8>,
    /// What came after it, in order.
    pub unsynced: Vec<Change>,
}

impl File {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.unsynced.push(change);
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            change.apply(&mut self.durable);
        }
    }
}

/// Names and what they stand for.
pub type Names = BTreeMap<OsString, Ino>;

/// A file or a folder.
#[derive(Clone, Debug)]
pub enum Node {
    /// A file.
    File(File),
    /// A folder: the names that are seen, and the durable ones.
    Folder(Names, Names),
}

/// A change of names: every part of it happens, or none.
#[derive(Clone, Debug)]
pub struct Naming {
    /// Folder, name, and what the name stands for from now on.
    pub parts: Vec<(Ino, OsString, Option<Ino>)>,
}

/// The disk.
#[derive(Clone)]
pub struct Disk {
    /// All that ever was: what has lost its name may still have a durable one.
    pub nodes: BTreeMap<Ino, Node>,
    /// The changes of names that are not durable yet, in order.
    pub journal: Vec<Naming>,
    rules: Rules,
    next: Ino,
    /// How many changes and syncs are left before the power goes.
    left: Option<u64>,
    cut: bool,
    /// How many changes and syncs there were.
    pub operations: u64,
    /// How many of them were syncs.
    pub syncs: u64,
}

impl Disk {
    /// An empty disk.
    pub fn new(rules: Rules) -> Self {
        let root = Node::Folder(Names::new(), Names::new());
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            journal: Vec::new(),
            rules,
            next: ROOT + 1,
            left: None,
            cut: false,
            operations: 0,
            syncs: 0,
        }
    }

    /// The power goes after this many more changes and syncs.
    pub fn cut_after(&mut self, operations: u64) {
        self.left = Some(operations);
    }

    /// The power goes now.
    pub fn cut_now(&mut self) {
        self.cut = true;
    }

    /// Whether the power is gone.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// Adds a durable file or folder while an image is loaded.
    pub fn load(&mut self, parent: Ino, name: &OsStr, file: Option<Vec<u8>>) -> Ino {
        let node = match file {
            Some(bytes) => Node::File(File {
                now: bytes.clone(),
                durable: bytes,
                unsynced: Vec::new(),
            }),
            None => Node::Folder(Names::new(), Names::new()),
        };
        let ino = self.add(node);
        if let Some(Node::Folder(now, durable)) = self.nodes.get_mut(&parent) {
            now.insert(name.to_os_string(), ino);
            durable.insert(name.to_os_string(), ino);
        }
        ino
    }

    /// What a name stands for.
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Ino, Fault> {
        self.names(parent)?
            .get(name)
            .copied()
            .ok_or(Fault::NotFound)
    }

    /// The names in a folder.
    pub fn names(&self, folder: Ino) -> Result<&Names, Fault> {
        match self.node(folder)? {
            Node::Folder(now, _) => Ok(now),
            Node::File(_) => Err(Fault::NotFolder),
        }
    }

    /// A file or folder.
    pub fn node(&self, ino: Ino) -> Result<&Node, Fault> {
        if self.cut {
            return Err(Fault::Cut);
        }
        self.nodes.get(&ino).ok_or(Fault::NotFound)
    }

    /// Makes a file or a folder.
    pub fn create(&mut self, parent: Ino, name: &OsStr, folder: bool) -> Result<Ino, Fault> {
        self.step()?;
        if self.names(parent)?.contains_key(name) {
            return Err(Fault::Exists);
        }
        let ino = self.add(if folder {
            Node::Folder(Names::new(), Names::new())
        } else {
            Node::File(File::default())
        });
        self.name(vec![(parent, name.to_os_string(), Some(ino))]);
        Ok(ino)
    }

    /// Gives a file one more name.
    pub fn link(&mut self, ino: Ino, parent: Ino, name: &OsStr) -> Result<(), Fault> {
        self.step()?;
        if self.names(parent)?.contains_key(name) {
            return Err(Fault::Exists);
        }
        self.name(vec![(parent, name.to_os_string(), Some(ino))]);
        Ok(())
    }

    /// Takes a name away; `folder` says which kind it must be.
    pub fn remove(&mut self, parent: Ino, name: &OsStr, folder: bool) -> Result<(), Fault> {
        self.step()?;
        let ino = self.lookup(parent, name)?;
        match self.node(ino)? {
            Node::Folder(..) if !folder => return Err(Fault::IsFolder),
            Node::Folder(now, _) if !now.is_empty() => return Err(Fault::NotEmpty),
            Node::File(_) if folder => return Err(Fault::NotFolder),
            _ => {}
        }
        self.name(vec![(parent, name.to_os_string(), None)]);
        Ok(())
    }

    /// Moves a name, over another one if `replace`.
    pub fn rename(
        &mut self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        replace: bool,
    ) -> Result<(), Fault> {
        self.step()?;
        let ino = self.lookup(from.0, from.1)?;
        if let Ok(other) = self.lookup(to.0, to.1) {
            if !replace {
                return Err(Fault::Exists);
            }
            match self.node(other)? {
                Node::Folder(now, _) if !now.is_empty() => return Err(Fault::NotEmpty),
                _ => {}
            }
        }
        if from != to {
            self.name(vec![
                (from.0, from.1.to_os_string(), None),
                (to.0, to.1.to_os_string(), Some(ino)),
            ]);
        }
        Ok(())
    }

    /// Writes bytes.
    pub fn write(&mut self, ino: Ino, at: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.step()?;
        self.file_mut(ino)?
            .change(Change::Write(at, bytes.to_vec()));
        Ok(())
    }

    /// Makes a file this long.
    pub fn resize(&mut self, ino: Ino, length: usize) -> Result<(), Fault> {
        self.step()?;
        let file = self.file_mut(ino)?;
        if file.now.len() != length {
            file.change(Change::Resize(length));
        }
        Ok(())
    }

    /// Makes a file's bytes durable.
    pub fn sync_file(&mut self, ino: Ino) -> Result<(), Fault> {
        self.step()?;
        self.syncs += 1;
        self.file_mut(ino)?.sync();
        if self.rules == Rules::Journal {
            self.commit(|_| true);
        }
        Ok(())
    }

    /// Makes the names in a folder durable.
    pub fn sync_folder(&mut self, ino: Ino) -> Result<(), Fault> {
        self.step()?;
        self.syncs += 1;
        let all = self.rules == Rules::Journal;
        self.commit(|naming| all || naming.parts.iter().any(|(folder, ..)| *folder == ino));
        Ok(())
    }

    /// The rules of this disk.
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// Applies a change of names to the durable ones.
    pub fn make_durable(nodes: &mut BTreeMap<Ino, Node>, naming: &Naming) {
        for (folder, name, ino) in &naming.parts {
            if let Some(Node::Folder(_, durable)) = nodes.get_mut(folder) {
                set(durable, name, *ino);
            }
        }
    }

    fn commit(&mut self, covered: impl Fn(&Naming) -> bool) {
        // A later change of the same name must not be overtaken by an earlier one that stays
        // behind: what touches the same names goes along.
        let mut touched: BTreeSet<(Ino, OsString)> = BTreeSet::new();
        let mut goes = vec![false; self.journal.len()];
        for (index, naming) in self.journal.iter().enumerate().rev() {
            let names = naming
                .parts
                .iter()
                .map(|(folder, name, _)| (*folder, name.clone()));
            if covered(naming) || names.clone().any(|name| touched.contains(&name)) {
                goes[index] = true;
                touched.extend(names);
            }
        }
        let journal = std::mem::take(&mut self.journal);
        for (naming, goes) in journal.into_iter().zip(goes) {
            if goes {
                Self::make_durable(&mut self.nodes, &naming);
            } else {
                self.journal.push(naming);
            }
        }
    }

    fn name(&mut self, parts: Vec<(Ino, OsString, Option<Ino>)>) {
        for (folder, name, ino) in &parts {
            if let Some(Node::Folder(now, _)) = self.nodes.get_mut(folder) {
                set(now, name, *ino);
            }
        }
        self.journal.push(Naming { parts });
    }

    fn add(&mut self, node: Node) -> Ino {
        let ino = self.next;
        self.next += 1;
        self.nodes.insert(ino, node);
        ino
    }

    fn file_mut(&mut self, ino: Ino) -> Result<&mut File, Fault> {
        match self.nodes.get_mut(&ino) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Folder(..)) => Err(Fault::IsFolder),
            None => Err(Fault::NotFound),
        }
    }

    /// Counts a change or a sync, and refuses it when the power is gone.
    fn step(&mut self) -> Result<(), Fault> {
        if self.left == Some(0) {
            self.cut = true;
        }
        if self.cut {
            return Err(Fault::Cut);
        }
        self.left = self.left.map(|left| left - 1);
        self.operations += 1;
        Ok(())
    }
}

fn set(names: &mut Names, name: &OsString, ino: Option<Ino>) {
    match ino {
        Some(ino) => names.insert(name.clone(), ino),
        None => names.remove(name),
    };
}
