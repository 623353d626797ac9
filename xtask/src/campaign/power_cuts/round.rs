//! One round: load, cut, images, and the check of each.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::disk::{Disk, Rules};
use super::image::Image;
use super::mount::Mounted;
use crate::campaign::figures::Figures;
use crate::campaign::{Done, SHOWN};
use crate::command::target_dir;
use crate::faults::gateway::{Gateway, Setup, Starting};
use crate::faults::history::History;
use crate::faults::load::{Load, Shared, Target, settle};
use crate::faults::random::Random;
use crate::faults::upstream::{Ledger, Upstream, lock};

/// How many images are taken of one cut.
const IMAGES_OF_A_CUT: u64 = 12;

/// How many clients send at once.
const CLIENTS: u64 = 12;

/// How long a round may go on before the power goes anyway.
const ROUND_LIMIT: Duration = Duration::from_secs(4);

/// With this many keys a round starts again from an empty disk.
const KEYS_LIMIT: usize = 1_500;

/// What is known at one moment: the disk, the clients' view and the upstream's.
#[derive(Clone, Default)]
struct World {
    image: Image,
    history: History,
    ledger: Ledger,
    next_key: u64,
}

/// Cuts of one seed.
pub struct Cuts {
    binary: PathBuf,
    seed: u64,
    wanted: u64,
    /// Distinct images that were checked.
    images: u64,
    folder: PathBuf,
    upstream: Upstream,
    generation: u64,
    fingerprints: BTreeSet<u64>,
    world: World,
    figures: Figures,
    violations: Vec<String>,
}

impl Cuts {
    /// None yet, of so many; fails where FUSE does not work.
    pub fn start(binary: &Path, seed: u64, wanted: u64) -> Result<Self> {
        let folder = target_dir().join(format!("power-cuts-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("disk"))?;
        Mounted::mount(Disk::new(Rules::Strict), &folder.join("disk"))?.unmount()?;
        Ok(Self {
            binary: binary.to_path_buf(),
            seed,
            wanted,
            images: 0,
            folder,
            upstream: Upstream::start()?,
            generation: 0,
            fingerprints: BTreeSet::new(),
            world: World::default(),
            figures: Figures::default(),
            violations: Vec::new(),
        })
    }

    /// Whether all images that were wanted were checked, or too much was violated to go on.
    pub fn is_over(&self) -> bool {
        self.images >= self.wanted || self.violations.len() > SHOWN
    }

    /// What was counted and violated; an error if nothing was tested.
    pub fn conclude(mut self) -> Result<Done> {
        self.figures.add("images", self.images);
        if self.figures.of("keys completed") == 0 {
            bail!("no key was completed: nothing was tested");
        }
        Ok(Done {
            to: self.seed + 1,
            figures: std::mem::take(&mut self.figures),
            violations: std::mem::take(&mut self.violations),
        })
    }

    /// Runs one round.
    pub fn round(&mut self, number: u64) -> Result<()> {
        let mut random = Random::part(self.seed, number);
        if self.world.history.keys().len() > KEYS_LIMIT || random.percent(20) {
            self.world = World {
                next_key: self.world.next_key,
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
        let (disk, cut) = self.load_and_cut(&before, rules, operations, &mut random)?;

        let label = format!("round {number} ({rules:?}, cut after {operations})");
        for index in 0..IMAGES_OF_A_CUT {
            let image = Image::of_disk(&disk, &mut random);
            let world = World {
                image,
                ..cut.clone()
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
                let (disk, cut) = self.load_and_cut(&world, rules, operations, random)?;
                world = World {
                    image: Image::of_disk(&disk, random),
                    ..cut
                };
                label = format!("{label}, cut again after {operations}");
                if !self.fingerprints.insert(world.image.fingerprint()) {
                    return Ok(());
                }
                self.figures.add("images of a cut during recovery", 1);
            }
            3 => {
                if let Some(place) = world.image.rot(random) {
                    label = format!("{label}, flipped bits in {place}");
                    rotten = true;
                    self.figures.add("images with flipped bits", 1);
                }
            }
            _ => {}
        }
        self.images += 1;
        let after = self.check(&world, &label, rotten)?;
        // The next round goes on from an image that was recovered from.
        if let Some(after) = after
            && !rotten
        {
            self.world = after;
        }
        Ok(())
    }

    /// Runs the gateway on a mounted disk that holds the world's image, under load, until the
    /// power goes.
    fn load_and_cut(
        &mut self,
        world: &World,
        rules: Rules,
        operations: u64,
        random: &mut Random,
    ) -> Result<(Disk, World)> {
        let place = self.folder.join("disk");
        let mut disk = world.image.to_disk(rules);
        disk.cut_after(operations);
        let mounted = Mounted::mount(disk, &place)?;
        let setup = self.setup(place.join("data"));
        let shared = self.shared(world);
        shared
            .next_key
            .fetch_add(random.below(1_000), Ordering::SeqCst);

        lock(&shared.history).failing_disk = true;
        match Starting::spawn(&setup)?.ready() {
            Ok(gateway) => {
                self.generation += 1;
                shared.target.set(Some((gateway.address, self.generation)));
                let load = Load::start(&shared, CLIENTS);
                let deadline = Instant::now() + ROUND_LIMIT;
                while !mounted.disk().is_cut() && Instant::now() < deadline {
                    thread::sleep(Duration::from_micros(200));
                }
                mounted.disk().cut_now();
                gateway.kill()?;
                shared.target.set(None);
                load.stop();
            }
            Err(_) if mounted.disk().is_cut() => {}
            Err(error) => self.violated(&format!("start on a mounted disk: {error:#}")),
        }
        self.upstream.wait_until_idle()?;
        let disk = mounted.unmount()?;
        self.figures.add("cuts", 1);
        self.figures
            .add("changes before the cuts", disk.operations - disk.syncs);
        self.figures.add("syncs before the cuts", disk.syncs);
        let world = World {
            image: Image::default(),
            history: self.take_history(&shared, "before the cut"),
            ledger: self.upstream.ledger(),
            next_key: shared.next_key.load(Ordering::SeqCst),
        };
        Ok((disk, world))
    }

    /// Starts the gateway on an image in a plain folder and sends every key again, twice.
    fn check(&mut self, world: &World, label: &str, rotten: bool) -> Result<Option<World>> {
        let place = self.folder.join("image");
        let _ = fs::remove_dir_all(&place);
        world.image.write_to(&place)?;
        let setup = self.setup(place.join("data"));
        let shared = self.shared(world);
        lock(&shared.history).rotten = rotten;
        lock(&shared.history).failing_disk = false;
        let violations = self.violations.len();
        for _ in 0..2 {
            let gateway = match Gateway::start(&setup) {
                Ok(gateway) => gateway,
                Err(_) if rotten => {
                    self.figures.add("of them refused", 1);
                    return Ok(None);
                }
                Err(error) => {
                    self.violated(&format!("L6: {label}: {error:#}"));
                    self.keep(&world.image)?;
                    return Ok(None);
                }
            };
            let start_up = u64::try_from(gateway.start_up.as_millis())?;
            self.figures.add("longest start in ms", start_up);
            self.generation += 1;
            shared.target.set(Some((gateway.address, self.generation)));
            settle(&shared, CLIENTS as usize);
            gateway.kill()?;
        }
        self.upstream.wait_until_idle()?;

        let ledger = self.upstream.ledger();
        lock(&shared.history).check_ledger(&ledger);
        let history = self.take_history(&shared, label);
        let (completed, unknown) = history.outcomes();
        for (name, number) in [
            ("keys", history.keys().len()),
            ("keys completed", completed),
            ("keys unknown", unknown),
        ] {
            self.figures.add(name, number as u64);
        }
        if self.violations.len() > violations {
            self.keep(&world.image)?;
            return Ok(None);
        }
        let image = Image::read_from(&place)?;
        Ok(Some(World {
            image,
            history,
            ledger,
            next_key: world.next_key,
        }))
    }

    fn setup(&self, data: PathBuf) -> Setup {
        Setup {
            binary: self.binary.clone(),
            config: self.folder.join("onlyonce.toml"),
            data,
            upstream: self.upstream.address(),
            more: String::new(),
        }
    }

    /// Clients and upstream as they were at the world's moment.
    fn shared(&self, world: &World) -> Shared {
        self.upstream.replace_ledger(world.ledger.clone());
        Shared {
            target: Target::default(),
            history: Arc::new(Mutex::new(world.history.clone())),
            next_key: Arc::new(AtomicU64::new(world.next_key)),
            seed: self.seed,
        }
    }

    /// Takes the history, and its violations to the others.
    fn take_history(&mut self, shared: &Shared, label: &str) -> History {
        let mut history = std::mem::take(&mut *lock(&shared.history));
        for violation in history.violations.drain(..) {
            self.violated(&format!("{violation}; {label}"));
        }
        history
    }

    fn violated(&mut self, what: &str) {
        self.violations.push(format!("seed {}: {what}", self.seed));
    }

    /// Keeps an image for whoever has to find out why.
    fn keep(&self, image: &Image) -> Result<()> {
        let place = self.folder.with_extension(format!("image-{}", self.images));
        image.write_to(&place).context("cannot keep the image")?;
        println!("   the image is in {}", place.display());
        Ok(())
    }
}

impl Drop for Cuts {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Path::new(&self.folder));
    }
}
