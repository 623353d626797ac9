//! Where an entry stands: the era, the number of its transaction there, and its own number in that.

use bytes::{BufMut, BytesMut};
use tokio_postgres::{
    Row,
    types::{FromSql, IsNull, ToSql, Type, to_sql_checked},
};

use crate::books::Position;

type AnyError = Box<dyn std::error::Error + Sync + Send>;

/// The number of a transaction, with the rounds that the server has been through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xid(u64);

impl ToSql for Xid {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, AnyError> {
        out.put_u64(self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::XID8
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Xid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, AnyError> {
        Ok(Self(u64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::XID8
    }
}

/// The types of the three columns.
pub const TYPES: [Type; 3] = [Type::INT4, Type::XID8, Type::INT4];

/// A place in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub era: i32,
    pub xid: Xid,
    pub n: i32,
}

impl Place {
    /// The place that stands in three columns from `first` on.
    pub fn take(row: &Row, first: usize) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            era: row.try_get(first)?,
            xid: row.try_get(first + 1)?,
            n: row.try_get(first + 2)?,
        })
    }

    /// The same, where there may be none.
    pub fn take_some(row: &Row, first: usize) -> Result<Option<Self>, tokio_postgres::Error> {
        let era: Option<i32> = row.try_get(first)?;
        era.map(|_| Self::take(row, first)).transpose()
    }

    /// Before all entries.
    pub const START: Self = Self {
        era: 0,
        xid: Xid(0),
        n: 0,
    };
}

impl From<Place> for Position {
    fn from(place: Place) -> Self {
        let (era, n) = (place.era.cast_unsigned(), place.n.cast_unsigned());
        Self(u128::from(era) << 96 | u128::from(place.xid.0) << 32 | u128::from(n))
    }
}

impl From<Position> for Place {
    fn from(position: Position) -> Self {
        Self {
            era: ((position.0 >> 96) as u32).cast_signed(),
            xid: Xid((position.0 >> 32) as u64),
            n: (position.0 as u32).cast_signed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_stand_in_the_order_of_their_places() {
        let mut places = Vec::new();
        for era in [0, 1, i32::MAX] {
            for xid in [0, 7, u64::from(u32::MAX) + 1, u64::MAX] {
                for n in [0, 1, 127] {
                    let xid = Xid(xid);
                    places.push(Place { era, xid, n });
                }
            }
        }
        let positions: Vec<Position> = places.iter().copied().map(Position::from).collect();
        assert!(positions.is_sorted() && places.is_sorted());
        let back: Vec<Place> = positions.into_iter().map(Place::from).collect();
        assert_eq!(back, places);
    }
}
