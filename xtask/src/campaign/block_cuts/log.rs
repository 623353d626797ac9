//! The log of a block device, in the format of the kernel's `dm-log-writes`
//! (Documentation/admin-guide/device-mapper/log-writes.rst), and what a cut leaves of the device.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result, bail};

use crate::faults::random::Random;

/// What a device writes in one piece, in bytes.
const SECTOR: usize = 512;

/// The first eight bytes of a log.
const MAGIC: u64 = 0x006a_7366_7773_6872;

/// The first sector behind the block with the superblock.
const FIRST_TORN: usize = 8;

const FLUSH: u64 = 1;
const FORCED: u64 = 2;
const DISCARD: u64 = 4;

/// One request to the device, in the order in which they were done.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// Everything before it is durable.
    Flush,
    /// Bytes, from this sector on. Those that were forced are durable by themselves.
    Write {
        sector: usize,
        bytes: Vec<u8>,
        forced: bool,
    },
}

/// All requests to a device.
pub struct Log {
    entries: Vec<Entry>,
}

/// A cut: everything up to a flush, and of what was written after it these sectors.
pub struct Cut {
    flush: usize,
    /// Entries, and which sectors of each.
    kept: Vec<(usize, Vec<usize>)>,
}

impl Cut {
    /// The flush.
    pub fn flush(&self) -> usize {
        self.flush
    }

    /// Whether nothing is there of what came after the flush.
    pub fn is_whole(&self) -> bool {
        self.kept.is_empty()
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sectors: usize = self.kept.iter().map(|(_, sectors)| sectors.len()).sum();
        write!(
            f,
            "cut after entry {} with {sectors} sectors more",
            self.flush
        )
    }
}

/// How many entries a log has, as its head says.
pub fn count(file: &mut File) -> Result<u64> {
    let mut head = [0; 24];
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(&mut head)?;
    Ok(number(&head, 2))
}

impl Log {
    /// Reads a log.
    pub fn read(file: &mut File) -> Result<Self> {
        let mut block = [0; SECTOR];
        file.seek(SeekFrom::Start(0))?;
        file.read_exact(&mut block)?;
        if number(&block, 0) != MAGIC || number(&block, 1) != 1 {
            bail!("it is no log of writes");
        }
        let mut entries = Vec::new();
        for _ in 0..number(&block, 2) {
            file.read_exact(&mut block).context("the log ends early")?;
            let (sector, sectors) = (number(&block, 0), number(&block, 1));
            let flags = number(&block, 2);
            // One that both flushes and writes flushes first.
            if flags & FLUSH != 0 {
                entries.push(Entry::Flush);
            }
            let mut bytes = vec![0; usize::try_from(sectors)? * SECTOR];
            if flags & DISCARD == 0 {
                file.read_exact(&mut bytes).context("the log ends early")?;
            }
            if !bytes.is_empty() {
                entries.push(Entry::Write {
                    sector: usize::try_from(sector)?,
                    bytes,
                    forced: flags & FORCED != 0,
                });
            }
        }
        Ok(Self { entries })
    }

    /// Every flush among the first entries, but those with nothing to flush.
    pub fn flushes_up_to(&self, end: u64) -> Vec<usize> {
        let end = self.entries.len().min(end as usize);
        (1..end)
            .filter(|index| {
                self.entries[*index] == Entry::Flush && self.entries[index - 1] != Entry::Flush
            })
            .collect()
    }

    /// The flush after this one; or the end.
    pub fn next_flush(&self, flush: usize) -> usize {
        let after = self.entries[flush + 1..].iter();
        let between = after.take_while(|entry| **entry != Entry::Flush).count();
        flush + 1 + between
    }

    /// A cut right after a flush.
    pub fn at_flush(&self, flush: usize) -> Cut {
        Cut {
            flush,
            kept: Vec::new(),
        }
    }

    /// A cut between this flush and the next one. The device wrote what it liked of what it was given, in any order:
    /// of each sector there is the old or a newer state, since two writes of one sector are never under way at once.
    pub fn after_flush(&self, flush: usize, random: &mut Random) -> Cut {
        let share = [10, 50, 50, 90, 100][random.below(5) as usize];
        let torn = random.percent(60);
        let end = self.next_flush(flush);
        let mut kept = Vec::new();
        for index in flush + 1..end {
            let Entry::Write {
                sector,
                bytes,
                forced,
            } = &self.entries[index]
            else {
                continue;
            };
            // ext4 itself does not survive a torn superblock, so that one is there or not.
            let torn = torn && *sector >= FIRST_TORN;
            let all = 0..bytes.len() / SECTOR;
            let whole = *forced || (!torn && random.percent(share));
            let sectors: Vec<usize> = all
                .filter(|_| whole || (torn && random.percent(share)))
                .collect();
            if !sectors.is_empty() {
                kept.push((index, sectors));
            }
        }
        Cut { flush, kept }
    }

    /// The device after a cut, if it began with these bytes.
    pub fn image(&self, start: &[u8], cut: &Cut) -> Vec<u8> {
        let mut device = start.to_vec();
        for entry in &self.entries[..cut.flush] {
            if let Entry::Write { sector, bytes, .. } = entry {
                put(&mut device, *sector, bytes);
            }
        }
        for (index, sectors) in &cut.kept {
            if let Entry::Write { sector, bytes, .. } = &self.entries[*index] {
                for kept in sectors {
                    let part = &bytes[kept * SECTOR..(kept + 1) * SECTOR];
                    put(&mut device, sector + kept, part);
                }
            }
        }
        device
    }
}

fn put(device: &mut [u8], sector: usize, bytes: &[u8]) {
    let at = sector * SECTOR;
    device[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The `index`th number of a head.
fn number(head: &[u8], index: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&head[index * 8..(index + 1) * 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::{Entry, FIRST_TORN, Log, SECTOR};
    use crate::faults::random::Random;

    fn write(sector: usize, letters: &[u8]) -> Entry {
        let bytes = letters.iter().flat_map(|letter| [*letter; SECTOR]);
        Entry::Write {
            sector,
            bytes: bytes.collect(),
            forced: false,
        }
    }

    /// One letter for each sector but the first ones.
    fn tail(device: &[u8]) -> String {
        let sectors = device.chunks(SECTOR).skip(FIRST_TORN);
        sectors
            .map(|sector| {
                assert!(sector.iter().all(|byte| *byte == sector[0]));
                char::from(sector[0])
            })
            .collect()
    }

    #[test]
    fn what_was_flushed_is_there_and_of_the_rest_any_part() {
        let log = Log {
            entries: vec![
                write(8, b"ab"),
                Entry::Flush,
                write(9, b"cd"),
                write(10, b"e"),
                Entry::Flush,
                write(8, b"f"),
            ],
        };
        assert_eq!(log.flushes_up_to(6), [1, 4]);
        assert_eq!((log.next_flush(1), log.next_flush(4)), (4, 6));
        let start = [b'.'; 11 * SECTOR];
        assert_eq!(tail(&log.image(&start, &log.at_flush(1))), "ab.");
        assert_eq!(tail(&log.image(&start, &log.at_flush(4))), "ace");
        let mut random = Random::new(1);
        let mut seen: Vec<_> = (0..400)
            .map(|_| tail(&log.image(&start, &log.after_flush(1, &mut random))))
            .collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen, ["ab.", "abd", "abe", "ac.", "acd", "ace"]);
    }
}
