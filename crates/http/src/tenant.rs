//! Who the caller is.
//!
//! A caller is known by the credential that it sends to the upstream. A configured credential has
//! a name; of any other, only a keyed hash is kept, so that nobody can read it back (I16) and
//! another credential is another scope (I7).
//!
//! A cookie is not taken for a credential: cookies come and go between an attempt and its retry,
//! and the retry would be another tenant's and run again. Callers who are told apart by nothing but
//! cookies are all anonymous, which is why that is to be allowed on loopback only.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};

use crate::query;
use crate::secret::{HashKeys, hex_128};

/// What the name of a tenant that is a hash starts with.
pub const HASHED_PREFIX: &str = "cred_";
/// The name of the tenant of a request without a credential.
pub const ANONYMOUS: &str = "anonymous";

/// The headers whose whole value is a credential: Anthropic and others, Gemini, Azure OpenAI.
static KEY_HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-goog-api-key"),
    HeaderName::from_static("api-key"),
];

/// Who a caller is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Tenant {
    /// A configured name.
    Configured(Box<str>),
    /// `cred_` and 32 hex digits of the keyed hash of what was sent as credential.
    Hashed(Box<str>),
    /// No credential was sent.
    Anonymous,
}

impl Tenant {
    /// The name, as in a [`onlyonce_core::Scope`].
    pub fn name(&self) -> &str {
        match self {
            Self::Configured(name) | Self::Hashed(name) => name,
            Self::Anonymous => ANONYMOUS,
        }
    }

    /// Whether no credential was sent.
    pub fn is_anonymous(&self) -> bool {
        matches!(self, Self::Anonymous)
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A list of tenants that cannot be. The texts name tenants, never credentials.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TenantsError {
    /// A name that another kind of tenant has.
    #[error(
        "a tenant cannot be named {name:?}; choose a name that is not empty, not {ANONYMOUS:?} and does not start with {HASHED_PREFIX:?}"
    )]
    ReservedName {
        /// The name.
        name: String,
    },
    /// A credential without a character.
    #[error("tenant {name:?} has an empty credential; remove it or fill it in")]
    EmptyCredential {
        /// The tenant.
        name: String,
    },
    /// One credential under two names.
    #[error("tenants {first:?} and {second:?} share a credential; give each its own")]
    SharedCredential {
        /// The tenant that was listed first.
        first: String,
        /// The tenant that was listed later.
        second: String,
    },
}

/// Tells tenants by their credentials.
///
/// Configured credentials are kept as keyed hashes, and looked up by hash: the time that a look-up
/// takes says nothing about how much of a guess was right.
#[derive(Clone)]
pub struct Tenants {
    hash_key: [u8; 32],
    configured: HashMap<[u8; 32], Box<str>>,
}

impl Tenants {
    /// The tenants `(name, credential)` of a configuration. A tenant may be listed several times,
    /// once for each credential that it uses while it rotates them.
    ///
    /// A credential is given as it is sent, without a `Bearer` before it. For basic authentication
    /// it is the user where the password is empty (Stripe), else `user:password`.
    pub fn new<'a>(
        keys: &HashKeys,
        configured: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, TenantsError> {
        let mut tenants = Self {
            hash_key: keys.tenant,
            configured: HashMap::new(),
        };
        for (name, credential) in configured {
            tenants.add(name, credential)?;
        }
        Ok(tenants)
    }

    /// The tenant of a request.
    ///
    /// `credential_query` names the query parameter that carries a credential, where the upstream
    /// takes one there (Gemini: `key`).
    ///
    /// Where several credentials are sent, all of them together are the tenant: the gateway does
    /// not know which of them the upstream goes by, and two callers who share only one of them
    /// (`Bearer unused` beside a real `x-api-key`) must not share a scope. One configured
    /// credential is enough to be the configured tenant.
    pub fn tenant_of(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
        credential_query: Option<&str>,
    ) -> Tenant {
        let mut sent = Sent::default();
        self.collect(&mut sent, headers, query, credential_query);
        if let Some(name) = sent.name {
            return Tenant::Configured(name.into());
        }
        let hash = match sent.hashes {
            Hashes::None => return Tenant::Anonymous,
            Hashes::One(hash) => hash,
            Hashes::Many(hasher) => hasher.finalize(),
        };
        Tenant::Hashed(format!("{HASHED_PREFIX}{}", hex_128(&hash)).into())
    }

    fn add(&mut self, name: &str, credential: &str) -> Result<(), TenantsError> {
        if name.is_empty() || name == ANONYMOUS || name.starts_with(HASHED_PREFIX) {
            return Err(TenantsError::ReservedName { name: name.into() });
        }
        if credential.is_empty() {
            return Err(TenantsError::EmptyCredential { name: name.into() });
        }
        let hash = *blake3::keyed_hash(&self.hash_key, credential.as_bytes()).as_bytes();
        match self.configured.insert(hash, name.into()) {
            Some(first) if *first != *name => Err(TenantsError::SharedCredential {
                first: first.into(),
                second: name.into(),
            }),
            _ => Ok(()),
        }
    }

    fn collect<'a>(
        &'a self,
        sent: &mut Sent<'a>,
        headers: &HeaderMap,
        query: Option<&str>,
        credential_query: Option<&str>,
    ) {
        for value in headers.get_all(AUTHORIZATION) {
            self.note(sent, &authorization_credential(value.as_bytes()));
        }
        for name in &KEY_HEADERS {
            for value in headers.get_all(name) {
                self.note(sent, value.as_bytes());
            }
        }
        if let (Some(query), Some(parameter)) = (query, credential_query) {
            for value in query::values_of(query, parameter) {
                self.note(sent, &value);
            }
        }
    }

    fn note<'a>(&'a self, sent: &mut Sent<'a>, credential: &[u8]) {
        if credential.is_empty() {
            return;
        }
        let hash = blake3::keyed_hash(&self.hash_key, credential);
        if sent.name.is_none() {
            sent.name = self.configured.get(hash.as_bytes()).map(|name| &**name);
        }
        match &mut sent.hashes {
            Hashes::None => sent.hashes = Hashes::One(hash),
            Hashes::One(first) => {
                let mut hasher = blake3::Hasher::new_keyed(&self.hash_key);
                hasher.update(first.as_bytes()).update(hash.as_bytes());
                sent.hashes = Hashes::Many(Box::new(hasher));
            }
            Hashes::Many(hasher) => {
                hasher.update(hash.as_bytes());
            }
        }
    }
}

impl fmt::Debug for Tenants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenants")
            .field("credentials", &self.configured.len())
            .finish_non_exhaustive()
    }
}

/// What the credentials of one request come to.
#[derive(Default)]
struct Sent<'a> {
    name: Option<&'a str>,
    hashes: Hashes,
}

/// The hashes of the credentials seen, in the fixed order that they are looked for.
#[derive(Default)]
enum Hashes {
    #[default]
    None,
    One(blake3::Hash),
    Many(Box<blake3::Hasher>),
}

/// The credential in an `Authorization` value.
///
/// Of a scheme that is neither `Bearer` nor `Basic` the whole value counts. One that signs each
/// request afresh (AWS Signature 4) thereby makes every request its own tenant: its parts that stay
/// the same are public, and a public name must not open somebody's recordings.
fn authorization_credential(value: &[u8]) -> Cow<'_, [u8]> {
    let value = value.trim_ascii();
    let scheme_len = value.iter().position(|b| *b == b' ').unwrap_or(value.len());
    let (scheme, rest) = value.split_at(scheme_len);
    let rest = rest.trim_ascii_start();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        Cow::Borrowed(rest)
    } else if scheme.eq_ignore_ascii_case(b"basic") {
        basic_credential(rest).map_or(Cow::Borrowed(value), Cow::Owned)
    } else {
        Cow::Borrowed(value)
    }
}

/// The user where the password is empty (how Stripe takes its keys), else `user:password`: a user's
/// name alone is no secret. RFC 7617.
fn basic_credential(encoded: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = STANDARD.decode(encoded).ok()?;
    if decoded.iter().position(|b| *b == b':') == Some(decoded.len().checked_sub(1)?) {
        decoded.pop();
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn tenants(configured: &[(&str, &str)]) -> Tenants {
        let keys = HashKeys::from_secret(&[7; 32]);
        Tenants::new(&keys, configured.iter().copied()).unwrap()
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn of(tenants: &Tenants, fields: &[(&'static str, &str)]) -> Tenant {
        tenants.tenant_of(&headers(fields), None, None)
    }

    #[test]
    fn hostile_025_another_credential_is_another_tenant() {
        let tenants = tenants(&[]);
        let one = of(&tenants, &[("authorization", "Bearer sk-1")]);
        let two = of(&tenants, &[("authorization", "Bearer sk-2")]);
        assert_ne!(one, two);
        assert_eq!(one, of(&tenants, &[("authorization", "bearer  sk-1")]));
        assert!(
            matches!(&one, Tenant::Hashed(name) if name.len() == 5 + 32),
            "{one}"
        );
    }

    #[test]
    fn hostile_026_every_credential_of_a_configured_tenant_is_that_tenant() {
        let tenants = tenants(&[("acme", "sk-old"), ("acme", "sk-new"), ("other", "sk-x")]);
        let acme = Tenant::Configured("acme".into());
        assert_eq!(of(&tenants, &[("authorization", "Bearer sk-old")]), acme);
        assert_eq!(of(&tenants, &[("authorization", "Bearer sk-new")]), acme);
        assert_eq!(of(&tenants, &[("x-api-key", "sk-new")]), acme);
        assert_ne!(of(&tenants, &[("authorization", "Bearer sk-x")]), acme);
        assert_ne!(of(&tenants, &[("authorization", "Bearer sk-old2")]), acme);
    }

    #[test]
    fn hostile_027_no_credential_is_anonymous() {
        let tenants = tenants(&[("acme", "sk")]);
        assert!(of(&tenants, &[]).is_anonymous());
        assert!(of(&tenants, &[("authorization", "Bearer ")]).is_anonymous());
        assert!(of(&tenants, &[("x-api-key", "")]).is_anonymous());
        assert_eq!(of(&tenants, &[]).name(), "anonymous");
    }

    #[test]
    fn one_secret_is_one_tenant_wherever_it_is_sent() {
        let tenants = tenants(&[]);
        let bearer = of(&tenants, &[("authorization", "Bearer secret")]);
        for name in ["x-api-key", "x-goog-api-key", "api-key"] {
            assert_eq!(of(&tenants, &[(name, "secret")]), bearer, "{name}");
        }
        let none = HeaderMap::new();
        for query in ["key=secret", "alt=sse&key=secret", "%6bey=s%65cret"] {
            assert_eq!(tenants.tenant_of(&none, Some(query), Some("key")), bearer);
            assert!(tenants.tenant_of(&none, Some(query), None).is_anonymous());
        }
    }

    #[test]
    fn the_user_of_basic_authentication_counts_alone_only_without_a_password() {
        let tenants = tenants(&[("acme", "sk_test"), ("bob", "bob:secret")]);
        let basic = |text: &str| {
            let value = format!("Basic {}", STANDARD.encode(text));
            of(&tenants, &[("authorization", &value)])
        };
        assert_eq!(basic("sk_test:").name(), "acme");
        assert_eq!(basic("bob:secret").name(), "bob");
        assert!(matches!(basic("bob:"), Tenant::Hashed(_)));
        assert!(matches!(basic("bob:wrong"), Tenant::Hashed(_)));
        assert_ne!(basic("bob:"), basic("bob:wrong"));
        assert_ne!(basic("a:b:"), basic("a:b"));
        assert!(!of(&tenants, &[("authorization", "Basic ???")]).is_anonymous());
    }

    #[test]
    fn callers_who_share_one_of_two_credentials_share_no_scope() {
        let tenants = tenants(&[("acme", "sk-acme")]);
        let both = |secret| {
            let fields = [("authorization", "Bearer unused"), ("x-api-key", secret)];
            of(&tenants, &fields)
        };
        assert_ne!(both("sk-1"), both("sk-2"));
        assert_ne!(both("sk-1"), of(&tenants, &[("x-api-key", "sk-1")]));
        assert_eq!(both("sk-1"), both("sk-1"));
        assert_eq!(both("sk-acme").name(), "acme");
    }

    #[test]
    fn a_name_depends_on_the_secret_and_shows_no_credential() {
        let fields = [("authorization", "Bearer sk-visible")];
        let other_keys = HashKeys::from_secret(&[8; 32]);
        let here = of(&tenants(&[]), &fields);
        let there = of(&Tenants::new(&other_keys, []).unwrap(), &fields);
        assert_ne!(here, there);
        let configured = tenants(&[("acme", "sk-visible")]);
        let shown = format!("{here} {here:?} {configured:?} {other_keys:?}");
        assert!(!shown.contains("sk-visible"), "{shown}");
    }

    #[test]
    fn lists_of_tenants_that_cannot_be_are_refused() {
        let keys = HashKeys::from_secret(&[7; 32]);
        let refused = |list: &[(&'static str, &'static str)]| {
            Tenants::new(&keys, list.iter().copied()).unwrap_err()
        };
        for name in ["", "anonymous", "cred_1"] {
            assert_eq!(
                refused(&[(name, "sk")]),
                TenantsError::ReservedName { name: name.into() }
            );
        }
        assert!(matches!(
            refused(&[("a", "")]),
            TenantsError::EmptyCredential { .. }
        ));
        let shared = refused(&[("a", "sk-1"), ("b", "sk-1")]);
        assert!(matches!(shared, TenantsError::SharedCredential { .. }));
        assert!(!shared.to_string().contains("sk-1"));
    }
}
