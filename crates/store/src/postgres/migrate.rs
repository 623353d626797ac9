//! The schema, in versions.
//!
//! Each migration is one transaction under an advisory lock, and says from which version on programs
//! may go on using the schema: migrations add, so that older gateways keep running.

use aws_lc_rs::rand;
use tokio_postgres::{Client, error::SqlState, types::Type};
use uuid::Uuid;

use super::{
    connection::{open, refused},
    error::ConnectError,
    target::Target,
};

struct Migration {
    version: i32,
    /// The oldest program, by the schema it knows, that works with this schema.
    compatible_from: i32,
    text: &'static str,
}

const MIGRATIONS: [Migration; 2] = [
    Migration {
        version: 1,
        compatible_from: 1,
        text: include_str!("migrations/0001_operations.sql"),
    },
    // Programs that know version 1 alone were never released, and hash keys to other addresses.
    Migration {
        version: 2,
        compatible_from: 2,
        text: include_str!("migrations/0002_books.sql"),
    },
];

/// The version that this program brings.
pub const KNOWN: i32 = MIGRATIONS[MIGRATIONS.len() - 1].version;

/// What a migration did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The version that was found; 0 for none.
    pub from: i32,
    /// The version that stands there now.
    pub to: i32,
}

/// Brings the schema at `target` to the version of this program.
pub async fn migrate(target: &Target) -> Result<Migrated, ConnectError> {
    let birth = Birth {
        secret: random()?,
        mark: None,
    };
    begin(target, &birth).await
}

/// What a store that is not there yet is born with.
pub struct Birth {
    pub secret: [u8; 32],
    pub mark: Option<String>,
}

/// As [`migrate`]; where there is no store yet, it is made as `birth` has it.
pub async fn begin(target: &Target, birth: &Birth) -> Result<Migrated, ConnectError> {
    let (mut client, _) = open(target).await?;
    let mut from = None;
    loop {
        let (found, next) = step(&mut client, target, birth).await?;
        let from = *from.get_or_insert(found);
        if next == KNOWN {
            return Ok(Migrated { from, to: KNOWN });
        }
    }
}

/// One transaction: gives the version that was found, and the one that stands there now.
async fn step(
    client: &mut Client,
    target: &Target,
    birth: &Birth,
) -> Result<(i32, i32), ConnectError> {
    let failed = |error| refused(target, &error);
    let schema = &target.schema;
    let transaction = client.transaction().await.map_err(failed)?;
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
    let name = format!("onlyonce migration of {schema}");
    transaction
        .query_typed(lock, &[(&name, Type::TEXT)])
        .await
        .map_err(failed)?;
    // IF NOT EXISTS asks for the right to create even where nothing is to be created.
    let is_new = format!("SELECT to_regnamespace('{schema}') IS NULL");
    let is_new = transaction
        .query_typed(&is_new, &[])
        .await
        .map_err(failed)?;
    if is_new.first().is_none_or(|row| row.get(0)) {
        let create = format!("CREATE SCHEMA {schema}");
        transaction.batch_execute(&create).await.map_err(failed)?;
    }
    let prepare = format!(
        "SET LOCAL search_path TO {schema};
        CREATE TABLE IF NOT EXISTS migrations (
            version int4 PRIMARY KEY,
            compatible_from int4 NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT now(),
            applied_by text NOT NULL
        )"
    );
    transaction.batch_execute(&prepare).await.map_err(failed)?;
    let found = transaction
        .query_typed("SELECT coalesce(max(version), 0) FROM migrations", &[])
        .await
        .map_err(failed)?;
    let found: i32 = found.first().map_or(0, |row| row.get(0));
    if found > KNOWN {
        return Err(newer(target, found));
    }
    let Some(next) = MIGRATIONS.iter().find(|next| next.version > found) else {
        transaction.commit().await.map_err(failed)?;
        return Ok((found, found));
    };

    transaction.batch_execute(next.text).await.map_err(failed)?;
    if found == 0 {
        let insert = "INSERT INTO store (id, secret, sealed, mark) VALUES ($1, $2, false, $3)";
        let id = super::values::Id(Uuid::from_bytes(random()?).into_bytes());
        let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] = [
            (&id, Type::UUID),
            (&&birth.secret[..], Type::BYTEA),
            (&birth.mark, Type::TEXT),
        ];
        transaction
            .query_typed(insert, &params)
            .await
            .map_err(failed)?;
    }
    let note = "INSERT INTO migrations (version, compatible_from, applied_by) VALUES ($1, $2, $3)";
    let by = concat!("onlyonce ", env!("CARGO_PKG_VERSION"));
    transaction
        .query_typed(
            note,
            &[
                (&next.version, Type::INT4),
                (&next.compatible_from, Type::INT4),
                (&by, Type::TEXT),
            ],
        )
        .await
        .map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok((found, next.version))
}

/// Refuses a schema that this program cannot use.
pub async fn check_version(client: &Client, target: &Target) -> Result<(), ConnectError> {
    let text = format!(
        "SELECT version, compatible_from FROM {}.migrations ORDER BY version DESC LIMIT 1",
        target.schema
    );
    let rows = client
        .query_typed(&text, &[])
        .await
        .map_err(|error| match error.code() {
            Some(code) if *code == SqlState::UNDEFINED_TABLE => missing(target),
            _ => refused(target, &error),
        })?;
    let row = rows.first().ok_or_else(|| missing(target))?;
    let (version, compatible_from): (i32, i32) = (row.get(0), row.get(1));
    if version < KNOWN {
        return Err(ConnectError::OldSchema {
            place: target.place.clone(),
            schema: target.schema.clone(),
            version,
            known: KNOWN,
        });
    }
    if compatible_from > KNOWN {
        return Err(newer(target, version));
    }
    Ok(())
}

/// There are no tables.
pub fn missing(target: &Target) -> ConnectError {
    ConnectError::NoSchema {
        place: target.place.clone(),
        schema: target.schema.clone(),
    }
}

fn newer(target: &Target, version: i32) -> ConnectError {
    ConnectError::NewSchema {
        place: target.place.clone(),
        schema: target.schema.clone(),
        version,
        known: KNOWN,
    }
}

fn random<const N: usize>() -> Result<[u8; N], ConnectError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| ConnectError::Tls("the system has no randomness".into()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::MIGRATIONS;

    /// What has been applied somewhere stays as it was applied: what is to be different is another
    /// migration. Comments aside.
    #[test]
    fn a_migration_is_never_changed_again() {
        let checks = MIGRATIONS.map(|migration| {
            let lines = migration.text.lines().map(str::trim);
            let said: Vec<_> = lines.filter(|line| !line.starts_with("--")).collect();
            (
                migration.version,
                crc32fast::hash(said.join("\n").as_bytes()),
            )
        });
        assert_eq!(checks, [(1, 3_375_266_129), (2, 746_823_152)]);
    }
}
