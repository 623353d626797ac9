//! ext4 on a block device that logs what is done to it: the storage daemon of QEMU exports an image as a file, over
//! FUSE, and logs its writes and flushes; a loop device makes a block device of that file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::log::{Log, count};
use crate::command::{apt_install, is_installed, quietly, terminate};

/// The size of the device, in bytes.
const DEVICE: u64 = 64 << 20;

/// More than a round can write.
const LOG: u64 = 4 << 30;

/// The unit in which holes are left in an image's file.
const BLOCK: usize = 4096;

const DAEMON: &str = "qemu-storage-daemon";

/// How long the daemon may take to be there.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether all of it can be done here; what is missing is installed.
pub fn works() -> Result<()> {
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if !Path::new(device).exists() {
            bail!("there is no {device}");
        }
    }
    apt_install(&[("mkfs.ext4", "e2fsprogs"), ("mount", "mount")])?;
    // Which package it is in depends on the release of Debian.
    apt_install(&[(DAEMON, "qemu-utils")])?;
    if !is_installed(DAEMON) {
        apt_install(&[(DAEMON, "qemu-system-common")])?;
    }
    let folder = std::env::temp_dir().join(format!("onlyonce-stage-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let tried = make_file_system(&folder)
        .and_then(|empty| LoggedDisk::start(&folder, &empty, "data=ordered")?.stop());
    let _ = fs::remove_dir_all(&folder);
    tried.map(drop)
}

/// A new ext4, all of it written now and nothing later.
pub fn make_file_system(folder: &Path) -> Result<Vec<u8>> {
    let file = folder.join("empty.img");
    File::create(&file)?.set_len(DEVICE)?;
    quietly(
        "mkfs.ext4",
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-b", "4096", "-m", "0"])
            .args(["-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(&file),
    )?;
    let bytes = fs::read(&file)?;
    fs::remove_file(&file)?;
    Ok(bytes)
}

/// Writes an image, with holes where it has nothing.
pub fn write(place: &Path, bytes: &[u8]) -> Result<()> {
    let _ = fs::remove_file(place);
    let file = File::create(place)?;
    file.set_len(bytes.len() as u64)?;
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        if block != [0; BLOCK] {
            file.write_all_at(block, (index * BLOCK) as u64)?;
        }
    }
    Ok(())
}

/// An image, mounted by a loop device; unmounted when it is dropped.
pub struct MountedImage {
    place: PathBuf,
    is_mounted: bool,
}

impl MountedImage {
    /// Mounts an image of these bytes.
    pub fn of_bytes(folder: &Path, bytes: &[u8]) -> Result<Self> {
        let file = folder.join("image.img");
        write(&file, bytes)?;
        Self::of_file(&file, folder.join("image"), "data=ordered")
    }

    fn of_file(file: &Path, place: PathBuf, mode: &str) -> Result<Self> {
        fs::create_dir_all(&place)?;
        quietly(
            "mount",
            Command::new("mount")
                .args(["-t", "ext4", "-o"])
                .arg(format!("loop,noatime,{mode}"))
                .arg(file)
                .arg(&place),
        )?;
        Ok(Self {
            place,
            is_mounted: true,
        })
    }

    /// Where it is.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Unmounts it.
    pub fn unmount(mut self) -> Result<()> {
        self.is_mounted = false;
        quietly("umount", Command::new("umount").arg(&self.place)).map(drop)
    }
}

impl Drop for MountedImage {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.place).status();
        }
    }
}

/// A mounted ext4 on a device that logs.
pub struct LoggedDisk {
    // Before the daemon: it is unmounted first.
    mounted: MountedImage,
    log: File,
    daemon: Daemon,
}

impl LoggedDisk {
    /// Mounts these bytes.
    pub fn start(folder: &Path, bytes: &[u8], mode: &str) -> Result<Self> {
        let (disk, log) = (folder.join("disk.img"), folder.join("writes.log"));
        write(&disk, bytes)?;
        let _ = fs::remove_file(&log);
        File::create(&log)?.set_len(LOG)?;
        let export = folder.join("export");
        File::create(&export)?;
        let daemon = Daemon::start(&disk, &log, &export)?;
        let mounted = MountedImage::of_file(&export, folder.join("disk"), mode)?;
        Ok(Self {
            mounted,
            log: File::open(&log)?,
            daemon,
        })
    }

    /// Where it is mounted.
    pub fn place(&self) -> &Path {
        self.mounted.place()
    }

    /// How many requests have been logged. Whatever relied on a flush comes after that flush counts here.
    pub fn position(&self) -> Result<u64> {
        count(&mut self.log.try_clone()?)
    }

    /// Unmounts it, and reads the log.
    pub fn stop(self) -> Result<Log> {
        let Self {
            mounted,
            mut log,
            daemon,
        } = self;
        mounted.unmount()?;
        daemon.stop()?;
        Log::read(&mut log).context("the log of writes")
    }
}

/// The storage daemon.
struct Daemon {
    child: Child,
    export: PathBuf,
}

impl Daemon {
    fn start(disk: &Path, log: &Path, export: &Path) -> Result<Self> {
        let file = |name: &str, place: &Path| {
            // What the host does with its own caches is nothing to us.
            let place = place.display();
            format!("driver=file,node-name={name},filename={place},cache.no-flush=on")
        };
        let writes = "driver=blklogwrites,node-name=logged,file=disk,log=log,log-sector-size=512,\
                      log-super-update-interval=1";
        let fuse = format!(
            "type=fuse,id=export,node-name=logged,mountpoint={},writable=on",
            export.display()
        );
        let child = Command::new(DAEMON)
            .args(["--blockdev", &file("disk", disk), "--blockdev"])
            .args([&file("log", log), "--blockdev", writes, "--export", &fuse])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {DAEMON}"))?;
        let mut daemon = Self {
            child,
            export: export.to_path_buf(),
        };
        daemon.wait_until_exported()?;
        Ok(daemon)
    }

    fn wait_until_exported(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while fs::metadata(&self.export)?.len() != DEVICE {
            if let Some(status) = self.child.try_wait()? {
                bail!("{DAEMON} ended ({status})");
            }
            if Instant::now() > deadline {
                bail!("{DAEMON} exports nothing");
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets it close its export and its log.
    fn stop(mut self) -> Result<()> {
        terminate(&mut self.child, PATIENCE)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = Command::new("umount").arg("-l").arg(&self.export).status();
        }
    }
}
