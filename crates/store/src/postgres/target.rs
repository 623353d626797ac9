//! Where the server is, out of a URL.
//!
//! ```text
//! postgres://user:password@host:port/database?schema=onlyonce&sslmode=verify-full
//! ```
//!
//! All that libpq knows of URLs and that `tokio-postgres` takes is taken (several hosts, timeouts), and
//! besides:
//!
//! - `schema`: where the tables are, `onlyonce` unless said otherwise;
//! - `sslmode=verify-full` and `sslrootcert=FILE`, as libpq means them;
//! - `prepared`: `off` for a pooler that does not keep prepared statements, `on` for one that does;
//!   unless it is said, a pooler is noticed and taken for one that does not.

use std::{str::FromStr, time::Duration};

use tokio_postgres::{
    config::{Host, SslMode, TargetSessionAttrs},
    error::SqlState,
};

use super::{
    error::{ConnectError, Failed},
    tls::{Tls, Trust},
};

/// Where the server is, and how to get there.
#[derive(Clone)]
pub struct Target {
    pub config: tokio_postgres::Config,
    pub tls: Tls,
    pub schema: String,
    /// Whether to prepare statements, where the user says so.
    pub prepared: Option<bool>,
    /// The server, as it is named in messages: without the password.
    pub place: String,
    pub user: String,
    /// How long a new connection may take.
    pub timeout: Duration,
}

impl Target {
    /// Parses `url`. New connections may take `timeout`.
    pub fn parse(url: &str, timeout: Duration) -> Result<Self, ConnectError> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(malformed("it does not start with postgres://"));
        }
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let mut schema = "onlyonce".to_owned();
        let mut prepared = None;
        let mut trust = Trust::Anybody;
        let mut is_verified = false;
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("schema", name) => schema = check_schema(name)?,
                ("prepared", "off") => prepared = Some(false),
                ("prepared", "on") => prepared = Some(true),
                ("prepared", _) => return Err(malformed("prepared is on or off")),
                ("sslmode", "verify-full" | "verify-ca") => {
                    is_verified = true;
                    rest.push("sslmode=require");
                }
                ("sslrootcert", file) => trust = Trust::File(unescape(file)?.into()),
                _ => rest.push(pair),
            }
        }
        if is_verified && matches!(trust, Trust::Anybody) {
            trust = Trust::System;
        }

        let url = format!("{base}?{}", rest.join("&"));
        let mut config = tokio_postgres::Config::from_str(&url).map_err(|error| {
            // Neither error holds the URL, which holds the password.
            let source = std::error::Error::source(&error);
            malformed(&source.map_or_else(|| error.to_string(), ToString::to_string))
        })?;
        let user = config
            .get_user()
            .ok_or_else(|| malformed("it names no user"))?
            .to_owned();
        if config.get_hosts().is_empty() {
            return Err(malformed("it names no host"));
        }
        if config.get_dbname().is_none() {
            config.dbname(&user);
        }
        if config.get_application_name().is_none() {
            config.application_name("onlyonce");
        }
        // Of several hosts, the one that takes writes; a replica alone is refused in our own words.
        if config.get_hosts().len() > 1 {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        config.connect_timeout(timeout);
        config.keepalives_idle(Duration::from_secs(10));
        let tls = match config.get_ssl_mode() {
            SslMode::Disable => Tls::none(),
            _ => Tls::new(&trust)?,
        };
        Ok(Self {
            place: place(&config),
            tls,
            schema,
            prepared,
            user,
            timeout,
            config,
        })
    }
}

impl Target {
    /// What a statement's failure means at the start.
    pub fn server_error(&self, failed: Failed) -> ConnectError {
        let place = self.place.clone();
        match failed {
            Failed::Refused { code, why } if code == SqlState::INSUFFICIENT_PRIVILEGE => {
                ConnectError::NoRight {
                    user: self.user.clone(),
                    schema: self.schema.clone(),
                    why,
                }
            }
            Failed::Refused { why, .. } => ConnectError::Server { place, why },
            Failed::NotSent(why) | Failed::Broken(why) => ConnectError::Unreachable { place, why },
        }
    }
}

fn place(config: &tokio_postgres::Config) -> String {
    let ports = config.get_ports();
    let hosts = config.get_hosts().iter().enumerate().map(|(at, host)| {
        let port = ports.get(at).or(ports.first()).unwrap_or(&5432);
        match host {
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(path) => format!("{}:{port}", path.display()),
        }
    });
    let hosts: Vec<_> = hosts.collect();
    format!("{}/{}", hosts.join(","), config.get_dbname().unwrap_or(""))
}

/// A name that needs no quotes anywhere.
fn check_schema(name: &str) -> Result<String, ConnectError> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let starts_well = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
    if starts_well && name.len() <= 48 && name.bytes().all(is_plain) && !name.starts_with("pg_") {
        Ok(name.to_owned())
    } else {
        Err(malformed(
            "schema is a name of small letters, digits and underscores, at most 48",
        ))
    }
}

fn unescape(text: &str) -> Result<String, ConnectError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| (digit as char).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(malformed("a % stands before two hexadecimal digits"));
        };
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).map_err(|_| malformed("a file name is not UTF-8"))
}

fn malformed(why: &str) -> ConnectError {
    ConnectError::Url(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Target, String> {
        Target::parse(url, Duration::from_secs(1)).map_err(|error| error.to_string())
    }

    #[test]
    fn our_own_parameters_are_taken_out() {
        let url =
            "postgres://me:secret@db.example:5433/shop?schema=once&prepared=off&application_name=x";
        let target = parse(url).expect("a URL");
        assert_eq!(
            (&*target.schema, target.prepared, &*target.place),
            ("once", Some(false), "db.example:5433/shop")
        );
        assert_eq!(target.config.get_application_name(), Some("x"));
        let target = parse("postgresql://me@one,two/shop").expect("a URL");
        assert_eq!(&*target.schema, "onlyonce");
        assert_eq!(
            target.config.get_target_session_attrs(),
            TargetSessionAttrs::ReadWrite
        );
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_its_password() {
        for url in [
            "mysql://me:secret@db/shop",
            "postgres://me:secret@db/shop?schema=Robert'); DROP",
            "postgres://me:secret@db/shop?prepared=maybe",
            "postgres://me:secret@db/shop?no_such_thing=1",
            "postgres://me:secret@db:port/shop",
            "postgres://me:secret@/shop",
            "postgres://db.example/shop",
            "postgres://me:secret@db/shop?sslmode=verify-full&sslrootcert=/no/such/file",
        ] {
            let error = parse(url).map(|_| ()).expect_err(url);
            assert!(!error.contains("secret"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
