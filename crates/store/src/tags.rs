//! Short keyed hashes, by which lists pass over most of what they do not want.
//!
//! Two names may share a tag, so what has the right tags is looked at once more.

use onlyonce_core::Address;

use crate::{Query, key_tag};

/// The tag of `text`.
pub(crate) fn tag(secret: &[u8; 32], text: &str) -> u32 {
    let [a, b, c, d, ..] = *blake3::keyed_hash(secret, text.as_bytes()).as_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// The tags of what stands at an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tags {
    pub tenant: u32,
    pub key: u32,
}

impl Tags {
    pub fn at(address: Address, tenant: u32) -> Self {
        Self {
            tenant,
            key: key_tag(address),
        }
    }
}

/// The tags that a query wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WantedTags {
    tenant: Option<u32>,
    key: Option<u32>,
}

impl WantedTags {
    pub fn of(query: &Query, secret: &[u8; 32]) -> Self {
        let tag_of = |text: &str| tag(secret, text);
        Self {
            tenant: query.tenant.as_deref().map(tag_of),
            key: query.key.as_ref().map(|key| tag_of(key.as_str())),
        }
    }

    /// Whether a record with these tags may be wanted.
    pub fn may_be(self, tags: Tags) -> bool {
        self.tenant.is_none_or(|tag| tag == tags.tenant)
            && self.key.is_none_or(|tag| tag == tags.key)
    }
}
