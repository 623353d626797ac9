//! One connection: what two durable writes add to a request.

use std::fmt::Write as _;
use std::fs;
use std::io::{Seek, SeekFrom, Write as _};
use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::Size;
use super::numbers::median;
use super::peers::{Running, Stage};
use super::report::{Section, Target};
use super::wrk::{self, Keys};

/// How often a bare log is synced in each pair.
const SYNCS: usize = 500;

/// What one write to the bare log holds, in bytes.
const WRITE: usize = 1024;

/// Pairs of nginx and the gateway, and the bare log after each.
pub fn measure(stage: &Stage, size: &Size) -> Result<Section> {
    let nginx = stage.nginx()?;
    let gateway = stage.onlyonce("single")?;
    let log = stage.file("bare.log");
    let mut figures = format!(
        "One connection, every request a new key, {} pairs of {} s for each program; medians in µs. The bare\n\
         log is a write of 1 KB and one fdatasync, {SYNCS} times after each pair, into room made before (as\n\
         the embedded store does; the limit follows from this one) and appended.\n\n\
         | pair | nginx | onlyonce | added | sync of a bare log | the same, appended |\n\
         |---|---|---|---|---|---|\n",
        size.pairs, size.seconds
    );
    let (mut added, mut syncs) = (Vec::new(), Vec::new());
    for pair in 1..=size.pairs {
        let latency = |peer: &Running| -> Result<f64> {
            let prefix = format!("pair{pair}");
            let one = wrk::run(&[peer.url()], Keys::New, &prefix, 1, size.seconds)?;
            Ok(one.median * 1e3)
        };
        let (nginx, onlyonce) = (latency(&nginx)?, latency(&gateway)?);
        let (sync, appended) = (bare_sync(&log, true)?, bare_sync(&log, false)?);
        let row = format!(
            "| {pair} | {nginx:.0} | {onlyonce:.0} | {:.0} | {sync:.0} | {appended:.0} |",
            onlyonce - nginx
        );
        println!("   {row}");
        writeln!(figures, "{row}")?;
        added.push(onlyonce - nginx);
        syncs.push(sync);
    }
    let limit = (2.0 * median(&mut syncs) + 100.0).round();
    let what = "added to a request of nginx, median (limit: two syncs of the bare log + 100 µs)";
    Ok(Section {
        targets: vec![Target::at_most(what, median(&mut added), limit, "µs")],
        figures,
    })
}

/// The median time of one write and its sync, in microseconds.
fn bare_sync(path: &Path, room_made: bool) -> Result<f64> {
    let mut file = fs::File::create(path)?;
    if room_made {
        file.write_all(&vec![0; SYNCS * WRITE])?;
        file.sync_all()?;
        file.seek(SeekFrom::Start(0))?;
    }
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        let start = Instant::now();
        file.write_all(&[7; WRITE])?;
        file.sync_data()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    fs::remove_file(path)?;
    Ok(median(&mut times))
}
