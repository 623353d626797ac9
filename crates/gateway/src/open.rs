//! Opening the store that the configuration names.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use onlyonce_store::embedded::EncryptionKeys;
use onlyonce_store::{
    Cached, EmbeddedStore, Mark, MemoryStore, PostgresStore, RedisStore, Store as _, cached,
    embedded, memory, postgres, redis,
};

use crate::any_store::AnyStore;
use crate::config::{Config, Encryption, Limits, Store, StoreUrl};
use crate::failure::Failure;

/// The store of `config`, to serve from.
pub(crate) async fn store(config: &Config) -> Result<AnyStore, Failure> {
    let store = whatever_its_mark(&config.store, &config.limits).await?;
    let mark = store.mark().await.map_err(|error| failure(&error))?;
    mark.map_or(Ok(store), |mark| Err(marked(&mark)))
}

/// Nothing is served from a store that moves, or is filled from another one.
fn marked(mark: &Mark) -> Failure {
    let next = match mark {
        Mark::Moved { .. } => "set store.url to that store",
        Mark::Filling { .. } => {
            "run `onlyonce store copy` again until it says that all is copied: before that, keys that \
             were used would run again"
        }
    };
    Failure::other(format!("this store is closed: {mark}"), next)
}

/// The store that `store` describes, whether or not gateways may serve from it.
pub(crate) async fn whatever_its_mark(store: &Store, limits: &Limits) -> Result<AnyStore, Failure> {
    Ok(match &store.url {
        StoreUrl::Memory => AnyStore::Memory(Box::new(in_memory(store, limits))),
        StoreUrl::Embedded(folder) => AnyStore::Embedded(embedded(folder, store, limits)?),
        StoreUrl::Postgres(url) => {
            let opened = PostgresStore::connect(url.expose(), postgres_options(store, limits));
            let opened = opened.await.map_err(|error| failure(&error))?;
            AnyStore::Postgres(cached(opened, store))
        }
        StoreUrl::Redis(url) => {
            let opened = RedisStore::open(url.expose(), redis_options(store));
            let opened = opened.await.map_err(|error| failure(&error))?;
            AnyStore::Redis(cached(opened, store))
        }
    })
}

/// `shared`, with what is completed kept in memory for replays.
fn cached<S: onlyonce_store::Store>(shared: S, store: &Store) -> Cached<S> {
    let options = cached::Options {
        bytes: store.cache_bytes,
        ..cached::Options::default()
    };
    Cached::new(Arc::new(shared), options)
}

/// A store that is gone with the process.
fn in_memory(store: &Store, limits: &Limits) -> MemoryStore {
    MemoryStore::new().with_limits(memory::Limits {
        records: usize::try_from(store.max_records).unwrap_or(usize::MAX),
        tenant_records: usize::try_from(limits.tenant_records).unwrap_or(usize::MAX),
        bytes: match store.max_bytes {
            0 => u64::MAX,
            bytes => bytes,
        },
        entries: usize::try_from(store.max_records).unwrap_or(usize::MAX),
    })
}

/// The store in `folder`, which is made where it is not there.
pub fn embedded(folder: &Path, store: &Store, limits: &Limits) -> Result<EmbeddedStore, Failure> {
    EmbeddedStore::open(folder, embedded_options(store, limits))
        .map_err(|error| of_folder(folder, &error))
}

fn embedded_options(store: &Store, limits: &Limits) -> embedded::Options {
    embedded::Options {
        segment_bytes: u32::try_from(store.segment_bytes).unwrap_or(u32::MAX),
        cache_bytes: store.cache_bytes,
        max_bytes: store.max_bytes,
        max_records: store.max_records,
        max_tenant_records: limits.tenant_records,
        encryption: store.encryption.as_ref().map(keys),
        ..embedded::Options::default()
    }
}

/// What the store in a folder says has what to do in it, after a semicolon.
fn of_folder(folder: &Path, error: &embedded::OpenError) -> Failure {
    let text = error.to_string();
    let (what, next) = text.split_once("; ").unwrap_or((
        &text,
        "look at the folder, its rights and the space left there",
    ));
    let place = folder.display().to_string();
    let what = if what.contains(&place) {
        what.to_owned()
    } else {
        format!("the store in {place} does not open: {what}")
    };
    Failure::other(what, next)
}

/// Makes a store as `store` describes it, with `secret` and `mark`. Where there is one already, nothing is
/// changed.
pub(crate) async fn make(store: &Store, secret: &[u8; 32], mark: &Mark) -> Result<(), Failure> {
    let limits = Limits::default();
    match &store.url {
        StoreUrl::Memory => {}
        StoreUrl::Embedded(folder) => {
            let options = embedded_options(store, &limits);
            embedded::make(folder, &options, secret, mark)
                .map_err(|error| of_folder(folder, &error))?;
        }
        StoreUrl::Postgres(url) => {
            let options = postgres_options(store, &limits);
            let made = postgres::make(url.expose(), &options, secret, mark).await;
            made.map_err(|error| failure(&error))?;
        }
        StoreUrl::Redis(url) => {
            let options = redis_options(store);
            let made = redis::make(url.expose(), &options, secret, mark).await;
            made.map_err(|error| failure(&error))?;
        }
    }
    Ok(())
}

/// How the store on PostgreSQL is connected to.
pub(crate) fn postgres_options(store: &Store, limits: &Limits) -> postgres::Options {
    postgres::Options {
        max_records: store.max_records,
        max_tenant_records: limits.tenant_records,
        encryption: store.encryption.as_ref().map(keys),
        listen_url: store.listen_url.as_ref().map(|url| url.expose().to_owned()),
        ..postgres::Options::default()
    }
}

fn redis_options(store: &Store) -> redis::Options {
    redis::Options {
        encryption: store.encryption.as_ref().map(keys),
        ..redis::Options::default()
    }
}

/// What a shared store says at the start has what to do in it, after a semicolon.
pub(crate) fn failure(error: &impl Display) -> Failure {
    let text = error.to_string();
    let (what, next) = text
        .split_once("; ")
        .unwrap_or((&text, "look at the server, and at store.url"));
    Failure::other(what, next)
}

fn keys(encryption: &Encryption) -> EncryptionKeys {
    EncryptionKeys {
        active: encryption.active,
        keys: encryption.keys.iter().copied().collect(),
    }
}
