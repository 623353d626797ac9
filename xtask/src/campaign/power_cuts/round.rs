//! One round: load, cut, images, and the check of each.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::disk::{Disk, Rules};
use super::image::Image;
use super::mount::Mounted;
use crate::campaign::Done;
use crate::command::target_dir;
use crate::faults::gateway::{Starting, is_refusal};
use crate::faults::judge::{CLIENTS, Checked, Doubt, Judge, Known};
use crate::faults::load::Load;
use crate::faults::random::Random;
use crate::faults::upstream::lock;

/// How many images are taken of one cut.
const IMAGES_OF_A_CUT: u64 = 12;

/// How long a round may go on before the power goes anyway.
const ROUND_LIMIT: Duration = Duration::from_secs(4);

/// How long a gateway goes on after its power was cut.
const WITHOUT_DISK: Duration = Duration::from_millis(20);

/// With this many keys a round starts again from an empty disk.
const KEYS_LIMIT: usize = 1_500;

/// One moment: the disk, and what is known.
#[derive(Clone, Default)]
struct World {
    image: Image,
    known: Known,
}

/// Cuts of one seed.
pub struct Cuts {
    judge: Judge,
    seed: u64,
    wanted: u64,
    /// Distinct images that were checked.
    images: u64,
    folder: PathBuf,
    fingerprints: BTreeSet<u64>,
    world: World,
}

impl Cuts {
    /// None yet, of so many; fails where FUSE does not work.
    pub fn start(binary: &Path, seed: u64, wanted: u64) -> Result<Self> {
        let folder = target_dir().join(format!("power-cuts-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("disk"))?;
        Mounted::mount(Disk::new(Rules::Strict), &folder.join("disk"))?.unmount()?;
        Ok(Self {
            judge: Judge::new(binary, seed, &folder)?,
            seed,
            wanted,
            images: 0,
            folder,
            fingerprints: BTreeSet::new(),
            world: World::default(),
        })
    }

    /// Whether all images that were wanted were checked, or too much was violated to go on.
    pub fn is_over(&self) -> bool {
        self.images >= self.wanted || self.judge.has_enough()
    }

    /// What was counted and violated; an error if nothing was tested.
    pub fn conclude(self) -> Result<Done> {
        let mut done = self.judge.conclude()?;
        done.figures.add("images", self.images);
        fs::remove_dir_all(&self.folder).context("cannot remove the campaign's folder")?;
        Ok(done)
    }

    /// Runs one round.
    pub fn round(&mut self, number: u64) -> Result<()> {
        let mut random = Random::part(self.seed, number);
        if self.world.known.history.keys().len() > KEYS_LIMIT || random.percent(20) {
            self.world = World {
                known: Known {
                    next_key: self.world.known.next_key,
                    ..Known::default()
                },
                ..World::default()
            };
        }
        let rules = if random.percent(50) {
            Rules::Strict
        } else {
            Rules::Journal
        };
        // Small numbers hit the first start, large ones the load and the change of segments.
        let operations = random.up_to_power(2, 12);
        let before = self.world.clone();
        let (disk, known, _) = self.load_and_cut(&before, rules, operations, &mut random)?;

        let label = format!("round {number} ({rules:?}, cut after {operations})");
        for index in 0..IMAGES_OF_A_CUT {
            let world = World {
                image: Image::of_disk(&disk, &mut random),
                known: known.clone(),
            };
            self.one_image(
                world,
                rules,
                &format!("{label}, image {index}"),
                &mut random,
            )?;
            if self.images >= self.wanted {
                break;
            }
        }
        Ok(())
    }

    /// Checks one image: as it is, or cut once more while it recovers, or with flipped bits.
    fn one_image(
        &mut self,
        mut world: World,
        rules: Rules,
        label: &str,
        random: &mut Random,
    ) -> Result<()> {
        if !self.fingerprints.insert(world.image.fingerprint()) {
            return Ok(());
        }
        let mut label = label.to_string();
        let mut rotten = false;
        match random.below(10) {
            0..=2 => {
                let operations = random.up_to_power(0, 7);
                let (disk, known, was_ready) =
                    self.load_and_cut(&world, rules, operations, random)?;
                world = World {
                    image: Image::of_disk(&disk, random),
                    known,
                };
                label = format!("{label}, cut again after {operations}");
                if !self.fingerprints.insert(world.image.fingerprint()) {
                    return Ok(());
                }
                self.judge.figures.add("images of a second cut", 1);
                if !was_ready {
                    let name = "images of a second cut, during recovery";
                    self.judge.figures.add(name, 1);
                }
            }
            3 => {
                if let Some(place) = world.image.rot(random) {
                    label = format!("{label}, flipped bits in {place}");
                    rotten = true;
                    self.judge.figures.add("images with flipped bits", 1);
                }
            }
            _ => {}
        }
        self.images += 1;
        self.check(&world, &label, rotten)
    }

    /// Runs the gateway on a mounted disk that holds the world's image, under load, until the
    /// power goes; also says whether the gateway was ready by then.
    fn load_and_cut(
        &mut self,
        world: &World,
        rules: Rules,
        operations: u64,
        random: &mut Random,
    ) -> Result<(Disk, Known, bool)> {
        let place = self.folder.join("disk");
        let mut disk = world.image.to_disk(rules);
        disk.cut_after(operations);
        let mounted = Mounted::mount(disk, &place)?;
        let setup = self.judge.setup(place.join("data"));
        let shared = self.judge.shared(&world.known);
        shared
            .next_key
            .fetch_add(random.below(1_000), Ordering::SeqCst);

        lock(&shared.history).failing_disk = true;
        let mut was_ready = true;
        match Starting::spawn(&setup)?.ready() {
            Ok(gateway) => {
                self.judge.point(&shared, &gateway);
                let load = Load::start(&shared, CLIENTS);
                let deadline = Instant::now() + ROUND_LIMIT;
                while !mounted.disk().is_cut() && Instant::now() < deadline {
                    thread::sleep(Duration::from_micros(200));
                }
                mounted.disk().cut_now();
                // A disk that is gone fails every call, reads too. What the gateway says meanwhile has to be true.
                thread::sleep(WITHOUT_DISK);
                let killed = gateway.kill();
                shared.target.set(None);
                load.stop();
                if let Err(error) = killed {
                    self.judge
                        .violated(&format!("{error:#}; on a disk that was cut off"));
                }
            }
            Err(error) if mounted.disk().is_cut() && is_refusal(&error) => was_ready = false,
            Err(error) => self
                .judge
                .violated(&format!("{error:#}; on a mounted disk")),
        }
        self.judge.upstream().wait_until_idle()?;
        let disk = mounted.unmount()?;
        for (name, number) in [
            ("cuts", 1),
            ("changes before the cuts", disk.operations - disk.syncs),
            ("syncs before the cuts", disk.syncs),
        ] {
            self.judge.figures.add(name, number);
        }
        let known = Known {
            history: self.judge.take_history(&shared, "before the cut"),
            ledger: self.judge.upstream().ledger(),
            next_key: shared.next_key.load(Ordering::SeqCst),
        };
        Ok((disk, known, was_ready))
    }

    /// Puts an image into a plain folder and has it checked. The next round goes on from an image that was
    /// recovered from.
    fn check(&mut self, world: &World, label: &str, rotten: bool) -> Result<()> {
        let place = self.folder.join("image");
        let _ = fs::remove_dir_all(&place);
        world.image.write_to(&place)?;
        let doubt = if rotten { Doubt::Rotten } else { Doubt::None };
        let data = place.join("data");
        match self.judge.check(&world.known, &data, label, doubt)? {
            Checked::Held(known) if !rotten => {
                let image = Image::read_from(&place)?;
                self.world = World { image, known };
            }
            Checked::Held(_) => {}
            Checked::Refused => self.judge.figures.add("images that were refused", 1),
            Checked::Violated => self.keep(&world.image)?,
        }
        Ok(())
    }

    /// Keeps an image for whoever has to find out why.
    fn keep(&self, image: &Image) -> Result<()> {
        let place = self.folder.with_extension(format!("image-{}", self.images));
        image.write_to(&place).context("cannot keep the image")?;
        println!("   the image is in {}", place.display());
        Ok(())
    }
}
