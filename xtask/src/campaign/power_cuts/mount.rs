//! A [`Disk`] as a mounted file system, over FUSE.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite,
    Request, TimeOrNow, WriteFlags,
};

use super::disk::{Disk, Fault, Node};

/// How long the kernel may keep what it knows: nobody else changes the disk.
const KEEP: Duration = Duration::from_secs(3600);

/// A mounted disk; unmounted when it is dropped.
pub struct Mounted {
    disk: Arc<Mutex<Disk>>,
    session: Option<BackgroundSession>,
}

impl Mounted {
    /// Mounts a disk on a folder.
    pub fn mount(disk: Disk, folder: &Path) -> Result<Self> {
        let disk = Arc::new(Mutex::new(disk));
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("power-cuts".into()),
            MountOption::NoAtime,
        ];
        let session = fuser::spawn_mount(
            Fuse {
                disk: Arc::clone(&disk),
            },
            folder,
            &config,
        )
        .context("cannot mount a FUSE file system")?;
        Ok(Self {
            disk,
            session: Some(session),
        })
    }

    /// The disk.
    pub fn disk(&self) -> MutexGuard<'_, Disk> {
        locked(&self.disk)
    }

    /// Unmounts it and gives the disk back.
    pub fn unmount(mut self) -> Result<Disk> {
        if let Some(session) = self.session.take() {
            session
                .umount_and_join()
                .context("cannot unmount the FUSE file system")?;
        }
        let disk = locked(&self.disk).clone();
        Ok(disk)
    }
}

fn locked(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Fuse {
    disk: Arc<Mutex<Disk>>,
}

impl From<Fault> for Errno {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Cut => Self::EIO,
            Fault::NotFound => Self::ENOENT,
            Fault::Exists => Self::EEXIST,
            Fault::IsFolder => Self::EISDIR,
            Fault::NotFolder => Self::ENOTDIR,
            Fault::NotEmpty => Self::ENOTEMPTY,
        }
    }
}

impl Fuse {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        locked(&self.disk)
    }

    fn attributes(&self, ino: u64) -> Result<FileAttr, Fault> {
        let disk = self.disk();
        let (kind, perm, size) = match disk.node(ino)? {
            Node::File(file) => (FileType::RegularFile, 0o600, file.now.len() as u64),
            Node::Folder(..) => (FileType::Directory, 0o700, 0),
        };
        let epoch = SystemTime::UNIX_EPOCH;
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: epoch,
            mtime: epoch,
            ctime: epoch,
            crtime: epoch,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn entry(&self, ino: Result<u64, Fault>, reply: ReplyEntry) {
        match ino.and_then(|ino| self.attributes(ino)) {
            Ok(attributes) => reply.entry(&KEEP, &attributes, Generation(0)),
            Err(fault) => reply.error(fault.into()),
        }
    }
}

fn done(result: Result<(), Fault>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(fault) => reply.error(fault.into()),
    }
}

impl Filesystem for Fuse {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ino = self.disk().lookup(parent.0, name);
        self.entry(ino, reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino.0) {
            Ok(attributes) => reply.attr(&KEEP, &attributes),
            Err(fault) => reply.error(fault.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let resized = match size {
            Some(size) => self.disk().resize(ino.0, size as usize),
            None => Ok(()),
        };
        match resized.and_then(|()| self.attributes(ino.0)) {
            Ok(attributes) => reply.attr(&KEEP, &attributes),
            Err(fault) => reply.error(fault.into()),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let ino = self.disk().create(parent.0, name, true);
        self.entry(ino, reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.disk().remove(parent.0, name, false);
        done(removed, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.disk().remove(parent.0, name, true);
        done(removed, reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            return reply.error(Errno::EINVAL);
        }
        let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        let renamed = self
            .disk()
            .rename((parent.0, name), (new_parent.0, new_name), replace);
        done(renamed, reply);
    }

    fn link(
        &self,
        _: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let linked = self.disk().link(ino.0, new_parent.0, new_name);
        self.entry(linked.map(|()| ino.0), reply);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let created = self.disk().create(parent.0, name, false);
        match created.and_then(|ino| self.attributes(ino)) {
            Ok(attributes) => reply.created(
                &KEEP,
                &attributes,
                Generation(0),
                FileHandle(0),
                FopenFlags::empty(),
            ),
            Err(fault) => reply.error(fault.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.disk().node(ino.0) {
            Ok(Node::File(file)) => {
                let start = file.now.len().min(offset as usize);
                let end = file.now.len().min(start + size as usize);
                reply.data(&file.now[start..end]);
            }
            Ok(Node::Folder(..)) => reply.error(Errno::EISDIR),
            Err(fault) => reply.error(fault.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.disk().write(ino.0, offset as usize, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(fault) => reply.error(fault.into()),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let mut disk = self.disk();
        let now = match disk.node(ino.0) {
            Ok(Node::File(file)) => file.now.len(),
            Ok(Node::Folder(..)) => return reply.error(Errno::EISDIR),
            Err(fault) => return reply.error(fault.into()),
        };
        done(
            disk.resize(ino.0, now.max((offset + length) as usize)),
            reply,
        );
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.disk().sync_file(ino.0);
        done(synced, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.disk().sync_folder(ino.0);
        done(synced, reply);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let disk = self.disk();
        let names = match disk.names(ino.0) {
            Ok(names) => names,
            Err(fault) => return reply.error(fault.into()),
        };
        let dots = [(OsStr::new("."), ino.0), (OsStr::new(".."), ino.0)];
        let entries = dots
            .into_iter()
            .chain(names.iter().map(|(name, ino)| (name.as_os_str(), *ino)));
        for (index, (name, ino)) in entries.enumerate().skip(offset as usize) {
            let kind = match disk.node(ino) {
                Ok(Node::Folder(..)) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            if reply.add(INodeNo(ino), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // 64 GiB, nearly empty.
        let blocks = 64 << 18;
        reply.statfs(blocks, blocks, blocks, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}
