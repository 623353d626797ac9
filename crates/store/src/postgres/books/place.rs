//! Where an entry stands: the number of its transaction, and one within that.

use tokio_postgres::{Row, types::Type};

use crate::books::Position;

/// The types of the two columns.
pub const TYPES: [Type; 2] = [Type::INT8, Type::INT4];

/// A place in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub xid: i64,
    pub n: i32,
}

impl Place {
    /// Before all entries.
    pub const START: Self = Self { xid: 0, n: 0 };

    /// The place that stands in two columns from `first` on.
    pub fn take(row: &Row, first: usize) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            xid: row.try_get(first)?,
            n: row.try_get(first + 1)?,
        })
    }

    /// The same, where there may be none.
    pub fn take_some(row: &Row, first: usize) -> Result<Option<Self>, tokio_postgres::Error> {
        let xid: Option<i64> = row.try_get(first)?;
        xid.map(|_| Self::take(row, first)).transpose()
    }
}

impl From<Place> for Position {
    fn from(place: Place) -> Self {
        let (xid, n) = (place.xid.cast_unsigned(), place.n.cast_unsigned());
        Self(u128::from(xid) << 32 | u128::from(n))
    }
}

impl From<Position> for Place {
    /// Beyond all places, where it is none of this store's.
    fn from(position: Position) -> Self {
        match i64::try_from(position.0 >> 32) {
            Ok(xid) => Self {
                xid,
                n: (position.0 as u32).cast_signed(),
            },
            Err(_) => Self {
                xid: i64::MAX,
                n: i32::MAX,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_stand_in_the_order_of_their_places() {
        let mut places = Vec::new();
        for xid in [0, 7, i64::from(u32::MAX) + 1, i64::MAX] {
            for n in [0, 1, 127, i32::MAX] {
                places.push(Place { xid, n });
            }
        }
        let positions: Vec<Position> = places.iter().copied().map(Position::from).collect();
        assert!(positions.is_sorted() && places.is_sorted());
        let back: Vec<Place> = positions.into_iter().map(Place::from).collect();
        assert_eq!(back, places);
        let last = places.pop();
        assert_eq!(Some(Place::from(Position(u128::MAX))), last);
    }
}
