//! The real binary on a disk whose power goes, and what it makes of the
//! images that can be left.
//!
//! A round runs the gateway under load on a mounted [`disk::Disk`] until the power goes at a
//! random write or sync. From what was and was not synced follow many images; each is put into a
//! plain folder, the gateway is started on it, and every key that was ever sent is sent again. The
//! upstream's ledger and the clients' history go back to the moment of the cut for each image,
//! since the images are alternatives to each other.

mod disk;
mod image;
mod mount;
mod round;

use std::time::Duration;

use anyhow::Result;

use super::{Batch, Ended};
use crate::command::Progress;
use round::Cuts;

/// The campaign.
pub const CAMPAIGN: super::Campaign = super::Campaign {
    name: "power-cuts",
    about: "power cuts of a file system that loses, tears and reorders what was not synced; needs FUSE",
    targets: &[(2_000, "images")],
    runs_gateway: true,
    batch,
};

/// How many images a batch checks.
const IMAGES: u64 = 96;

/// The same for the short one.
const IMAGES_SHORT: u64 = 24;

/// One seed.
fn batch(batch: &Batch<'_>) -> Result<Ended> {
    let images = if batch.short { IMAGES_SHORT } else { IMAGES };
    let binary = batch.gateway.path()?;
    let mut cuts = match Cuts::start(&binary, batch.from, images) {
        Ok(cuts) => cuts,
        Err(error) => {
            return Ok(Ended::Skipped(format!(
                "FUSE does not work here: {error:#}"
            )));
        }
    };
    let _progress = Progress::start("cutting", Duration::from_secs(10));
    for number in 0.. {
        if cuts.is_over() {
            break;
        }
        cuts.round(number)?;
    }
    cuts.conclude().map(Ended::Done)
}
