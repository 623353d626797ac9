#![doc = include_str!("../README.md")]

#[cfg(feature = "server")]
pub use onlyonce_tower::*;

/// For callers: keys that survive a crash, and retries that behave.
#[cfg(feature = "client")]
pub use onlyonce_client as client;

/// Records in a PostgreSQL that several processes share.
#[cfg(feature = "postgres")]
pub use onlyonce_store::postgres;

/// Records in a Redis or Valkey that several processes share. A failover may forget: see
/// [`RedisStore`](redis::RedisStore).
#[cfg(feature = "redis")]
pub use onlyonce_store::redis;

/// Operations whose claim, writes and result are one transaction of a PostgreSQL.
#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
pub use onlyonce_postgres as transactions;
