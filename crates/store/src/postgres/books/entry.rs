//! Entries and dead letters, as they stand in their rows.
//!
//! ```text
//! ledger.entry   the entry
//! dead.letter    the dead letter, its entry included
//! ```

use bytes::{Bytes, BytesMut};
use onlyonce_core::{Account, Entry, OperationId};
use tokio_postgres::Row;

use super::days::Day;
use crate::{
    StoreError,
    books::DeadLetter,
    codec::{decode_entry, decode_letter, encode_entry, encode_letter},
    corrupt,
    parcel::{self, Label},
    postgres::{
        Core,
        body::{ENTRY, LETTER, millis},
        store::unreadable,
        values::Id,
    },
    seal::Sealer,
};

/// An entry on its way into the ledger.
pub struct Entered {
    pub day: Day,
    pub at: i64,
    pub tenant_tag: i32,
    pub route_tag: i32,
    pub model_tag: i32,
    pub bytes: Bytes,
}

impl Core {
    /// What is written of `entry`.
    pub fn enter(&self, entry: &Entry) -> Result<Entered, StoreError> {
        let mut plain = BytesMut::with_capacity(256);
        encode_entry(entry, &mut plain);
        let label = entry_label(entry.id);
        let Account {
            tenant,
            route,
            model,
            ..
        } = entry.posting().account;
        Ok(Entered {
            day: Day::of(entry.at),
            at: millis(entry.at),
            tenant_tag: self.tag(&tenant),
            route_tag: self.tag(&route),
            model_tag: self.tag(&model),
            bytes: parcel::close(self.sealer.as_ref(), &label, &plain)?,
        })
    }
}

/// The entry whose id and bytes stand in two columns from `first` on; `None` where it is damaged. What
/// only this gateway cannot read, for want of a key or of a newer program, is an error.
pub fn take(sealer: Option<&Sealer>, row: &Row, first: usize) -> Result<Option<Entry>, StoreError> {
    let id: Id = row.try_get(first).map_err(unreadable)?;
    let bytes: &[u8] = row.try_get(first + 1).map_err(unreadable)?;
    let id = OperationId::from(id);
    let label = entry_label(id);
    if parcel::is_damaged(&label, bytes) {
        tracing::error!(operation = %id, "its entry is damaged, and is in no books");
        return Ok(None);
    }
    let plain = parcel::open(sealer, &label, bytes)?;
    decode_entry(plain).map(Some).map_err(corrupt)
}

/// What is kept of a dead letter.
pub fn close_letter(sealer: Option<&Sealer>, letter: &DeadLetter) -> Result<Bytes, StoreError> {
    let mut plain = BytesMut::with_capacity(512);
    encode_letter(letter, &mut plain);
    parcel::close(sealer, &letter_label(letter.entry.id), &plain)
}

/// Takes it back.
pub fn open_letter(
    sealer: Option<&Sealer>,
    id: OperationId,
    bytes: &[u8],
) -> Result<DeadLetter, StoreError> {
    let plain = parcel::open(sealer, &letter_label(id), bytes)?;
    decode_letter(plain).map_err(corrupt)
}

fn entry_label(id: OperationId) -> Label {
    Label::new(ENTRY, &[id.as_bytes()])
}

fn letter_label(id: OperationId) -> Label {
    Label::new(LETTER, &[id.as_bytes()])
}
