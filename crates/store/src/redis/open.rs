//! Opening a store: finding its servers, checking them, and reading or making its secret.
//!
//! ```text
//! PREFIX:{TAG}:meta    [magic 8][format u32][sealed u8][secret][crc u32]
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::RwLock;

use super::{
    Inner, Options, RedisStore,
    books::{Folded, ToldOf},
    check,
    failure::{Failure, Refusal},
    figures::{self, Figures},
    names::HOME,
    node::Dialing,
    servers::{Request, Servers},
    url::{Target, UrlError},
};
use crate::{
    Mark, StoreError,
    seal::{SealError, Sealer},
};

const MAGIC: &[u8; 8] = b"1ONCERED";
const FORMAT: u32 = 1;
/// How long servers may take to load what they hold.
const READY_WITHIN: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_millis(200);
const LABEL: &[u8] = b"onlyonce secret";

/// Why a Redis store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL cannot be read.
    #[error("store.url cannot be read: {0}")]
    Url(#[from] UrlError),
    /// A server does not answer, or is not one to keep records on.
    #[error("{0}")]
    Server(#[from] Refusal),
    /// It was written by a newer program.
    #[error(
        "the store has format {0}, and this program reads up to {FORMAT}; start the newer program \
         again, nothing was changed"
    )]
    Newer(u32),
    /// The key that holds the secret is missing or damaged, though there are records.
    #[error(
        "the key {0} is missing or damaged, and without it no record can be found; restore the \
         server's data from a copy, or choose another prefix in store.url, nothing was changed"
    )]
    Meta(String),
    /// It is encrypted, and not with the keys that are configured.
    #[error("the store is encrypted and does not open: {0}; configure the key in store.encryption")]
    Key(#[from] SealError),
    /// A server refused.
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl From<Failure> for OpenError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unsent(refusal) => Self::Server(refusal),
            other => Self::Store(other.of_read()),
        }
    }
}

pub async fn open(url: &str, options: Options) -> Result<RedisStore, OpenError> {
    let (servers, sealer) = dial(url, &options).await?;
    let home = servers.home().await?;
    let (meta, secret) = secret(&servers, sealer.as_ref()).await?;
    // From now on, a server without it is not this store's.
    let _ = servers.expected.meta.bytes.set(meta);

    let mut warnings = Vec::new();
    for node in servers.all().await? {
        warnings.extend(check::warnings(&servers, &node).await?);
    }
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let inner = Inner {
        servers,
        secret,
        sealer,
        warnings,
        given_clock: options.clock,
        home_clock: RwLock::new(home.clock.clone()),
        latest: AtomicU64::new(0),
        figures: Figures::default(),
        max_records: options.max_records,
        max_tenant_records: options.max_tenant_records,
        listeners: Arc::default(),
        folded: Folded::default(),
        told_of: ToldOf::default(),
        first_shard: AtomicU64::new(0),
        closed: AtomicBool::new(false),
    };
    inner.count().await?;
    Ok(RedisStore {
        inner: Arc::new(inner),
    })
}

/// Makes a store on the servers that `url` names with the secret `secret`, marked as `mark`. Says whether it
/// did: where there is a store already, nothing is changed.
///
/// # Errors
///
/// See [`OpenError`].
pub async fn make(
    url: &str,
    options: &Options,
    secret: &[u8; 32],
    mark: &Mark,
) -> Result<bool, OpenError> {
    let (servers, sealer) = dial(url, options).await?;
    let key = servers.names.meta();
    if figures::records(&servers)
        .await?
        .iter()
        .any(|&records| records > 0)
    {
        return Ok(false);
    }
    let meta = encode(sealer.as_ref(), secret)?;
    // Both or neither: there is no moment at which it is a store like any other.
    let mut set = redis::cmd("MSETNX");
    set.arg(key).arg(&*meta);
    set.arg(servers.names.mark(HOME)).arg(mark.encode());
    let set = servers.call(&Request::plain(HOME, set)).await;
    Ok(set.map_err(Failure::of_write)? == redis::Value::Int(1))
}

/// The servers that `url` names, ready, and what seals.
async fn dial(url: &str, options: &Options) -> Result<(Servers, Option<Sealer>), OpenError> {
    let target = Target::parse(url)?;
    let sealer = options.encryption.as_ref().map(Sealer::new).transpose()?;
    let tls = target.tls;
    if tls {
        // The client library takes the provider of the process. If there is one, it stays.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
    let servers = Servers::new(
        target,
        Dialing {
            tls,
            root_certificates: options.root_certificates.clone(),
            connect_timeout: options.connect_timeout,
            response_timeout: options.response_timeout,
        },
    );
    wait_until_ready(&servers).await?;
    Ok((servers, sealer))
}

/// Waits for servers that are still loading what they hold.
async fn wait_until_ready(servers: &Servers) -> Result<(), Failure> {
    let started = Instant::now();
    loop {
        match are_ready(servers).await {
            Err(Failure::Unsent(Refusal::NotReady { .. })) if started.elapsed() < READY_WITHIN => {
                tokio::time::sleep(ASK_AGAIN).await;
            }
            answer => return answer,
        }
    }
}

async fn are_ready(servers: &Servers) -> Result<(), Failure> {
    for node in servers.all().await? {
        servers.send_to(&node, &redis::cmd("TIME")).await?;
    }
    Ok(())
}

/// The store's secret, and the bytes that hold it; drawn where there is none. Of gateways that
/// start at once, one draws it for all.
async fn secret(
    servers: &Servers,
    sealer: Option<&Sealer>,
) -> Result<(Vec<u8>, [u8; 32]), OpenError> {
    let key = servers.names.meta();
    let mut get = redis::cmd("GET");
    get.arg(&key);
    let get = Request::plain(HOME, get);
    let mut held = bytes_of(servers.call(&get).await?);
    if held.is_none() {
        if figures::records(servers)
            .await?
            .iter()
            .any(|&records| records > 0)
        {
            return Err(OpenError::Meta(key));
        }
        let mut set = redis::cmd("SET");
        set.arg(&key).arg(&*draw(sealer)?).arg("NX");
        let set = servers.call(&Request::plain(HOME, set)).await;
        set.map_err(Failure::of_write)?;
        held = bytes_of(servers.call(&get).await?);
    }
    let bytes = held.ok_or_else(|| OpenError::Meta(key.clone()))?;
    match decode(sealer, Bytes::from(bytes.clone()))? {
        Some(secret) => Ok((bytes, secret)),
        None => Err(OpenError::Meta(key)),
    }
}

fn bytes_of(value: redis::Value) -> Option<Vec<u8>> {
    match value {
        redis::Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

fn draw(sealer: Option<&Sealer>) -> Result<BytesMut, OpenError> {
    let mut secret = [0; 32];
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| SealError::Cipher)?;
    encode(sealer, &secret)
}

fn encode(sealer: Option<&Sealer>, secret: &[u8; 32]) -> Result<BytesMut, OpenError> {
    let mut out = BytesMut::with_capacity(96);
    out.put_slice(MAGIC);
    out.put_u32(FORMAT);
    out.put_u8(sealer.is_some().into());
    match sealer {
        Some(sealer) => out.put_slice(&sealer.seal(LABEL, secret)?),
        None => out.put_slice(secret),
    }
    let crc = crc32fast::hash(&out);
    out.put_u32(crc);
    Ok(out)
}

/// The secret that `bytes` hold; `None` where they are damaged.
fn decode(sealer: Option<&Sealer>, bytes: Bytes) -> Result<Option<[u8; 32]>, OpenError> {
    let Some((body, crc)) = bytes.split_last_chunk::<4>() else {
        return Ok(None);
    };
    if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
        return Ok(None);
    }
    let mut body = bytes.slice(..bytes.len() - 4);
    if body.len() < 13 || body.split_to(8) != MAGIC[..] {
        return Ok(None);
    }
    let format = body.get_u32();
    if format > FORMAT {
        return Err(OpenError::Newer(format));
    }
    let secret = match (body.get_u8(), sealer) {
        (0, _) => body,
        (_, Some(sealer)) => sealer.open(LABEL, &body)?,
        (_, None) => return Err(SealError::NoKey.into()),
    };
    Ok(secret[..].try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::EncryptionKeys;

    fn sealer(byte: u8) -> Sealer {
        Sealer::new(&EncryptionKeys {
            active: 1,
            keys: [(1, [byte; 32])].into(),
        })
        .expect("a good key")
    }

    #[test]
    fn a_secret_is_read_back() {
        let plain = draw(None).expect("drawn").freeze();
        assert!(matches!(decode(None, plain), Ok(Some(_))));
        let sealed = draw(Some(&sealer(1))).expect("drawn").freeze();
        let open = |sealer: Option<&Sealer>| decode(sealer, sealed.clone());
        assert!(matches!(open(Some(&sealer(1))), Ok(Some(_))));
        assert!(matches!(open(Some(&sealer(2))), Err(OpenError::Key(_))));
        assert!(matches!(open(None), Err(OpenError::Key(SealError::NoKey))));
    }

    #[test]
    fn a_damaged_secret_is_none() {
        let bytes = draw(None).expect("drawn");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(matches!(decode(None, damaged.freeze()), Ok(None)), "{at}");
        }
        assert!(matches!(decode(None, Bytes::new()), Ok(None)));
    }

    #[test]
    fn hostile_086_a_newer_store_is_left_alone() {
        let mut bytes = draw(None).expect("drawn");
        bytes.truncate(bytes.len() - 4);
        bytes[11] = 2;
        let crc = crc32fast::hash(&bytes);
        bytes.put_u32(crc);
        assert!(matches!(
            decode(None, bytes.freeze()),
            Err(OpenError::Newer(2))
        ));
    }
}
