//! Values as the server knows them.

use bytes::{BufMut, BytesMut};
use onlyonce_core::{Address, OperationId};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

type AnyError = Box<dyn std::error::Error + Sync + Send>;

/// Sixteen bytes: an address, or the id of an operation. The server compares them as we do, byte by
/// byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(pub [u8; 16]);

impl From<Address> for Id {
    fn from(address: Address) -> Self {
        Self(*address.as_bytes())
    }
}

impl From<OperationId> for Id {
    fn from(id: OperationId) -> Self {
        Self(*id.as_bytes())
    }
}

impl From<Id> for Address {
    fn from(id: Id) -> Self {
        Self::from_bytes(id.0)
    }
}

impl From<Id> for OperationId {
    fn from(id: Id) -> Self {
        Self::from_bytes(id.0)
    }
}

impl ToSql for Id {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, AnyError> {
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::UUID
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Id {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, AnyError> {
        Ok(Self(raw.try_into()?))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::UUID
    }
}
