//! The real binary on ext4, on a block device that logs every write and every flush; and what it makes of the file
//! systems that a power cut can leave.
//!
//! A round runs the gateway under load, and looks again and again at what clients and upstream know, together with
//! how far the log had come by then. A cut is a place in the log. Everything up to a flush is there; of what was
//! written after it, an arbitrary part, sector by sector. The kernel's ext4 mounts the image and replays its journal,
//! and the gateway is started on what it finds there. Who had an answer before the next flush was done relied on no
//! later flush: so each image is judged by the last look before that.

mod log;
mod stage;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Batch, Campaign, Done, Ended};
use crate::command::{Progress, target_dir};
use crate::faults::gateway::Starting;
use crate::faults::judge::{CLIENTS, Checked, Doubt, Judge, Known};
use crate::faults::load::Load;
use crate::faults::random::Random;
use crate::faults::upstream::{Ledger, lock};
use log::{Cut, Log};
use stage::{LoggedDisk, MountedImage, make_file_system};

/// The campaign.
pub const CAMPAIGN: Campaign = Campaign {
    name: "block-cuts",
    about: "power cuts of a block device under ext4: each flush, and parts of what was written after it",
    targets: &[(2_000, "images")],
    runs_gateway: true,
    batch,
};

/// How many images a batch checks, and how many are taken of one round.
const IMAGES: (u64, u64) = (192, 24);

/// The same for the short one.
const IMAGES_SHORT: (u64, u64) = (48, 8);

/// How long a round may go on.
const ROUND_LIMIT: Duration = Duration::from_secs(3);

/// How ext4 treats bytes that belong to names: written before the journal tells of them, or whenever it likes.
const MODES: [&str; 2] = ["data=ordered", "data=writeback"];

/// One seed.
fn batch(batch: &Batch<'_>) -> Result<Ended> {
    if let Err(error) = stage::works() {
        return Ok(Ended::Skipped(format!(
            "no logged block device here: {error:#}"
        )));
    }
    let mut cuts = Cuts::start(batch)?;
    let _progress = Progress::start("cutting", Duration::from_secs(10));
    for number in 0.. {
        if cuts.images >= cuts.wanted || cuts.judge.has_enough() {
            break;
        }
        cuts.round(number)?;
    }
    cuts.conclude().map(Ended::Done)
}

/// A file system, and what is known at its moment.
#[derive(Clone)]
struct World {
    bytes: Vec<u8>,
    known: Known,
    /// What the upstream had received up to some time after the cut: what is recorded may be of that.
    received: Ledger,
}

/// What was known when the log had so many entries.
struct Look {
    position: u64,
    known: Known,
}

/// A round's log, the looks that were taken meanwhile, in order, and what the upstream had received in the end.
struct Recorded {
    log: Log,
    /// How many entries the log had once the gateway was ready.
    ready_at: u64,
    looks: Vec<Look>,
    received: Ledger,
}

/// Cuts of one seed.
struct Cuts {
    judge: Judge,
    seed: u64,
    wanted: u64,
    of_a_round: u64,
    /// Distinct images that were checked.
    images: u64,
    folder: PathBuf,
    empty: Vec<u8>,
    fingerprints: BTreeSet<[u8; 32]>,
    next_key: u64,
}

impl Cuts {
    fn start(batch: &Batch<'_>) -> Result<Self> {
        let folder = target_dir().join(format!("block-cuts-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let (wanted, of_a_round) = if batch.short { IMAGES_SHORT } else { IMAGES };
        Ok(Self {
            judge: Judge::new(&batch.gateway.path()?, batch.from, &folder)?,
            seed: batch.from,
            wanted,
            of_a_round,
            images: 0,
            empty: make_file_system(&folder)?,
            folder,
            fingerprints: BTreeSet::new(),
            next_key: 0,
        })
    }

    fn conclude(self) -> Result<Done> {
        let mut done = self.judge.conclude()?;
        done.figures.add("images", self.images);
        if done.violations.is_empty() {
            fs::remove_dir_all(&self.folder).context("cannot remove the campaign's folder")?;
        }
        Ok(done)
    }

    /// Runs one round: from an empty file system, and of some images once more.
    fn round(&mut self, number: u64) -> Result<()> {
        let mut random = Random::part(self.seed, number);
        let mode = MODES[random.below(2) as usize];
        let start = World {
            bytes: self.empty.clone(),
            known: Known {
                next_key: random.below(1_000),
                ..Known::default()
            },
            received: Ledger::default(),
        };
        // Few looks hit the first start and every flush of it, many the load and the change of segments.
        let looks = random.up_to_power(3, 9);
        let recorded = self.record(&start, mode, looks)?;
        self.judge.figures.add("rounds", 1);
        let flushes = recorded.flushes();
        let number_of = flushes.len() as u64;
        self.judge.figures.add("flushes", number_of);
        for index in 0..self.of_a_round.min(2 * number_of) {
            // Each flush in turn where there are few, any where there are many; whole, then with a part of what
            // came after.
            let flush = if 2 * number_of <= self.of_a_round {
                flushes[(index / 2) as usize]
            } else {
                flushes[random.below(number_of) as usize]
            };
            let cut = if index % 2 == 0 {
                recorded.log.at_flush(flush)
            } else {
                recorded.log.after_flush(flush, &mut random)
            };
            let label = format!("round {number} ({mode}), {cut}");
            self.one_image(&recorded, &start, &cut, label, &mut random)?;
            if self.images >= self.wanted {
                break;
            }
        }
        Ok(())
    }

    /// Whether no image of this batch had the very same bytes.
    fn is_new(&mut self, world: &World) -> bool {
        self.fingerprints
            .insert(*blake3::hash(&world.bytes).as_bytes())
    }

    /// Checks one image: as it is, or of a gateway that was cut once more on it.
    fn one_image(
        &mut self,
        recorded: &Recorded,
        start: &World,
        cut: &Cut,
        mut label: String,
        random: &mut Random,
    ) -> Result<()> {
        let mut world = recorded.world(start, cut);
        if !self.is_new(&world) {
            return Ok(());
        }
        if random.percent(30) {
            let looks = random.up_to_power(0, 5);
            let again = self.record(&world, MODES[0], looks)?;
            let flushes = again.flushes();
            // A gateway may have died before it flushed anything.
            if !flushes.is_empty() {
                let flush = flushes[random.below(flushes.len() as u64) as usize];
                let cut = again.log.after_flush(flush, random);
                let was_ready = again.ready_at <= flush as u64;
                world = again.world(&world, &cut);
                if !self.is_new(&world) {
                    return Ok(());
                }
                label = format!("{label}, then {cut}");
                self.judge.figures.add("images of a second cut", 1);
                if !was_ready {
                    let name = "images of a second cut, during recovery";
                    self.judge.figures.add(name, 1);
                }
            }
        }
        self.images += 1;
        let kind = if cut.is_whole() {
            "images at a flush"
        } else {
            "images with a part of what came after it"
        };
        self.judge.figures.add(kind, 1);
        self.check(&world, &label)
    }

    /// Runs the gateway under load on a disk that logs, and looks so often at what is known.
    fn record(&mut self, world: &World, mode: &str, wanted: u64) -> Result<Recorded> {
        let disk = LoggedDisk::start(&self.folder, &world.bytes, mode)?;
        let shared = self.judge.shared(&world.known);
        // A key that came after the look may be on the disk: the next ones are others.
        shared.next_key.fetch_add(self.next_key, Ordering::SeqCst);
        let mut looks = vec![Look {
            position: 0,
            known: world.known.clone(),
        }];
        let setup = self.judge.setup(disk.place().join("data"));
        let gateway = Starting::spawn(&setup)?.ready()?;
        let ready_at = disk.position()?;
        self.judge.point(&shared, &gateway);
        let load = Load::start(&shared, CLIENTS);
        let deadline = Instant::now() + ROUND_LIMIT;
        let mut position = disk.position()?;
        while (looks.len() as u64) < wanted + 1 && Instant::now() < deadline {
            let now = disk.position()?;
            if now == position {
                thread::sleep(Duration::from_micros(100));
                continue;
            }
            let history = lock(&shared.history);
            let known = Known {
                history: history.clone(),
                ledger: self.judge.upstream().ledger(),
                next_key: shared.next_key.load(Ordering::SeqCst),
            };
            // After all that it is about.
            position = disk.position()?;
            drop(history);
            looks.push(Look { position, known });
        }
        let killed = gateway.kill();
        shared.target.set(None);
        load.stop();
        killed?;
        self.judge.upstream().wait_until_idle()?;
        self.judge.take_history(&shared, "before the cut");
        self.next_key = shared.next_key.load(Ordering::SeqCst);
        let log = disk.stop()?;
        let mut received = world.received.clone();
        for (key, sent) in self.judge.upstream().ledger() {
            received.entry(key).or_default().extend(sent);
        }
        Ok(Recorded {
            log,
            ready_at,
            looks,
            received,
        })
    }

    /// Mounts an image and has it checked.
    fn check(&mut self, world: &World, label: &str) -> Result<()> {
        let mounted = MountedImage::of_bytes(&self.folder, &world.bytes)?;
        let data = mounted.place().join("data");
        let doubt = Doubt::Later(&world.received);
        let checked = self.judge.check(&world.known, &data, label, doubt)?;
        mounted.unmount()?;
        if !matches!(checked, Checked::Held(_)) {
            let place = self.folder.join(format!("violated-{}.img", self.images));
            stage::write(&place, &world.bytes)?;
            println!("   the image is in {}", place.display());
        }
        Ok(())
    }
}

impl Recorded {
    /// Every flush before the last look that something was written before.
    fn flushes(&self) -> Vec<usize> {
        let end = self.looks.last().map_or(0, |look| look.position);
        self.log.flushes_up_to(end)
    }

    /// The image of a cut, and what was known by then.
    fn world(&self, start: &World, cut: &Cut) -> World {
        let next = self.log.next_flush(cut.flush()) as u64;
        let mut looks = self.looks.iter().rev();
        // The first one was taken before anything was written.
        let look = looks
            .find(|look| look.position <= next)
            .unwrap_or(&self.looks[0]);
        World {
            bytes: self.log.image(&start.bytes, cut),
            known: look.known.clone(),
            received: self.received.clone(),
        }
    }
}
