//! Dropping what the books have kept for long enough.

use std::{collections::HashSet, fs};

use onlyonce_core::Timestamp;

use super::{Ledger, Writer, file_path, unavailable};
use crate::{
    StoreError, Swept,
    embedded::segment::{remove_if_there, sync_dir},
    seal::Sealer,
};

impl Ledger {
    /// Drops the oldest files that hold nothing of `before` or later, and the sums of periods that
    /// ended before it. Blocks.
    pub fn trim(&self, before: Timestamp, sealer: Option<&Sealer>) -> Result<Swept, StoreError> {
        let mut writer = self.writer.lock();
        let dropped = {
            let mut shelf = self.shelf.lock();
            shelf.cells.trim(before);
            shelf.files_before(before)
        };
        if dropped.is_empty() {
            return Ok(Swept::default());
        }
        self.leave(&mut writer, &dropped)?;
        let files: HashSet<u32> = dropped.iter().copied().collect();
        let mut swept = Swept::default();
        self.shelf.lock().groups.retain(|group| {
            let stays = !files.contains(&group.file);
            swept.records += if stays { 0 } else { group.entries };
            stays
        });
        // What is dropped would be read again at the next start, and come back into the sums.
        self.save(&mut writer, sealer);
        for number in dropped {
            let path = file_path(&self.dir, number);
            swept.bytes += fs::metadata(&path).map_or(0, |data| data.len());
            remove_if_there(&path).map_err(unavailable)?;
        }
        sync_dir(&self.dir).map_err(unavailable)?;
        Ok(swept)
    }

    /// Sees to it that the next block goes to none of these files: one says where the numbers go on.
    fn leave(&self, writer: &mut Writer, dropped: &[u32]) -> Result<(), StoreError> {
        if writer
            .file
            .as_ref()
            .is_some_and(|open| !dropped.contains(&open.number))
        {
            return Ok(());
        }
        writer.file = Some(self.begin_file(writer).map_err(unavailable)?);
        Ok(())
    }
}
