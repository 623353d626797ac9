//! Where the servers are: the URL of a Redis store.
//!
//! ```text
//! redis://[USER[:PASSWORD]@]HOST[:PORT][/DB]                        one server
//! redis+cluster://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]...]    a cluster, by some of its nodes
//! redis+sentinel://[USER[:PASSWORD]@]HOST[:PORT][,...][/DB]?master=NAME    by its sentinels
//! ```
//!
//! `rediss`, `rediss+cluster` and `rediss+sentinel` are the same over TLS. Parameters, after a `?`:
//!
//! | parameter | meaning |
//! |---|---|
//! | `prefix` | what the names of all keys start with; default `onlyonce` |
//! | `master` | the name under which the sentinels know the master |
//! | `sentinel_user`, `sentinel_password` | who the sentinels are asked as |
//!
//! User, password and parameters may hold any byte, written as `%2F`.

use std::fmt;

use percent_encoding::percent_decode_str;

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Who to log in as.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    pub user: Option<String>,
    pub password: Option<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// How the servers stand together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    One(Place),
    Cluster(Vec<Place>),
    Sentinel {
        sentinels: Vec<Place>,
        master: String,
        login: Login,
    },
}

/// All that a URL says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub shape: Shape,
    pub tls: bool,
    pub login: Login,
    pub db: i64,
    pub prefix: String,
}

/// Why a text is not the URL of a Redis store. It repeats nothing of the URL but the part that is
/// wrong, and never a password (I16).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not one of the schemes.
    #[error(
        "the URL starts with none of redis://, rediss://, redis+cluster://, rediss+cluster://, \
         redis+sentinel:// and rediss+sentinel://"
    )]
    Scheme,
    /// No host is named.
    #[error("the URL names no host")]
    NoHost,
    /// A port is not a number from 1 to 65535.
    #[error("the port {0:?} is not a number from 1 to 65535")]
    Port(String),
    /// What stands after the hosts is not the number of a database.
    #[error("the database {0:?} is not a number")]
    Database(String),
    /// A cluster has database 0 only.
    #[error("a cluster has database 0 only, and the URL names database {0}")]
    ClusterDatabase(i64),
    /// One server is meant, and several are named.
    #[error("several hosts are named; a cluster is redis+cluster://, sentinels redis+sentinel://")]
    SeveralHosts,
    /// The master is not named.
    #[error("the name of the master is missing; write redis+sentinel://HOST:PORT?master=NAME")]
    NoMaster,
    /// A parameter that nobody knows.
    #[error(
        "there is no parameter {0:?}; there are prefix, master, sentinel_user and sentinel_password"
    )]
    Parameter(String),
    /// A prefix that would break the names of keys.
    #[error("the prefix is 1 to 64 letters, digits and any of . _ - : /")]
    Prefix,
    /// `%` is not followed by the digits of UTF-8.
    #[error("a part of the URL does not decode; write % as %25, @ as %40, / as %2F, : as %3A")]
    Encoding,
}

impl Target {
    /// Takes a URL apart.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = url.split_once("://").ok_or(UrlError::Scheme)?;
        let (secure, shape) = match scheme.split_once('+') {
            None => (scheme, ""),
            Some((secure, shape)) => (secure, shape),
        };
        let tls = match secure {
            "redis" => false,
            "rediss" => true,
            _ => return Err(UrlError::Scheme),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // A password may hold an @ that nobody encoded; a host may not.
        let (login, rest) = match rest.rsplit_once('@') {
            Some((login, rest)) => (parse_login(login)?, rest),
            None => (Login::default(), rest),
        };
        let (hosts, db) = rest.split_once('/').unwrap_or((rest, ""));
        let db = match db {
            "" => 0,
            text => text
                .parse()
                .ok()
                .filter(|db| *db >= 0)
                .ok_or_else(|| UrlError::Database(text.to_owned()))?,
        };
        let mut parameters = Parameters::parse(query)?;
        let shape = match shape {
            "" => {
                let mut places = parse_places(hosts, PORT)?;
                match (places.pop(), places.is_empty()) {
                    (Some(place), true) => Shape::One(place),
                    _ => return Err(UrlError::SeveralHosts),
                }
            }
            "cluster" if db != 0 => return Err(UrlError::ClusterDatabase(db)),
            "cluster" => Shape::Cluster(parse_places(hosts, PORT)?),
            "sentinel" => Shape::Sentinel {
                sentinels: parse_places(hosts, SENTINEL_PORT)?,
                master: parameters.master.take().ok_or(UrlError::NoMaster)?,
                login: Login {
                    user: parameters.sentinel_user.take(),
                    password: parameters.sentinel_password.take(),
                },
            },
            _ => return Err(UrlError::Scheme),
        };
        parameters.check_all_used()?;
        let prefix = parameters.prefix.unwrap_or_else(|| "onlyonce".to_owned());
        if !is_prefix(&prefix) {
            return Err(UrlError::Prefix);
        }
        Ok(Self {
            shape,
            tls,
            login,
            db,
            prefix,
        })
    }
}

/// Braces would make another slot of the names.
fn is_prefix(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(fits)
}

fn parse_login(text: &str) -> Result<Login, UrlError> {
    let (user, password) = match text.split_once(':') {
        Some((user, password)) => (user, Some(decode(password)?)),
        None => (text, None),
    };
    Ok(Login {
        user: Some(decode(user)?).filter(|user| !user.is_empty()),
        password,
    })
}

fn parse_places(text: &str, port: u16) -> Result<Vec<Place>, UrlError> {
    text.split(',')
        .map(|text| parse_place(text, port))
        .collect()
}

fn parse_place(text: &str, default: u16) -> Result<Place, UrlError> {
    let (host, port) = match text.strip_prefix('[') {
        // An IPv6 address.
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or(UrlError::NoHost)?;
            (host, after.strip_prefix(':'))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() {
        return Err(UrlError::NoHost);
    }
    let port = match port {
        None => default,
        Some(text) => text
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| UrlError::Port(text.to_owned()))?,
    };
    Ok(Place {
        host: host.to_owned(),
        port,
    })
}

#[derive(Default)]
struct Parameters {
    prefix: Option<String>,
    master: Option<String>,
    sentinel_user: Option<String>,
    sentinel_password: Option<String>,
}

impl Parameters {
    fn parse(query: &str) -> Result<Self, UrlError> {
        let mut parameters = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let slot = match name {
                "prefix" => &mut parameters.prefix,
                "master" => &mut parameters.master,
                "sentinel_user" => &mut parameters.sentinel_user,
                "sentinel_password" => &mut parameters.sentinel_password,
                _ => return Err(UrlError::Parameter(name.to_owned())),
            };
            *slot = Some(decode(value)?);
        }
        Ok(parameters)
    }

    /// What only sentinels need is left where there are none.
    fn check_all_used(&self) -> Result<(), UrlError> {
        let left = [
            ("master", &self.master),
            ("sentinel_user", &self.sentinel_user),
            ("sentinel_password", &self.sentinel_password),
        ];
        match left.into_iter().find(|(_, value)| value.is_some()) {
            Some((name, _)) => Err(UrlError::Parameter(name.to_owned())),
            None => Ok(()),
        }
    }
}

fn decode(text: &str) -> Result<String, UrlError> {
    percent_decode_str(text)
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| UrlError::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(host: &str, port: u16) -> Place {
        Place {
            host: host.into(),
            port,
        }
    }

    fn parsed(url: &str) -> Target {
        Target::parse(url).expect("a good URL")
    }

    #[test]
    fn one_server_needs_no_more_than_its_name() {
        let target = parsed("redis://cache");
        assert_eq!(target.shape, Shape::One(place("cache", 6379)));
        assert_eq!((target.tls, target.db), (false, 0));
        assert_eq!(target.prefix, "onlyonce");
        assert_eq!(target.login, Login::default());
    }

    #[test]
    fn everything_can_be_said() {
        let target = parsed("rediss://us%40er:p%2Fw%3A@[::1]:7000/3?prefix=a:b");
        assert_eq!(target.shape, Shape::One(place("::1", 7000)));
        assert_eq!((target.tls, target.db), (true, 3));
        assert_eq!(target.login.user.as_deref(), Some("us@er"));
        assert_eq!(target.login.password.as_deref(), Some("p/w:"));
        assert_eq!(target.prefix, "a:b");
    }

    #[test]
    fn a_password_without_a_user_is_the_default_users() {
        let target = parsed("redis://:secret@cache");
        assert_eq!(target.login.user, None);
        assert_eq!(target.login.password.as_deref(), Some("secret"));
    }

    #[test]
    fn clusters_and_sentinels_are_named_by_several_hosts() {
        let cluster = parsed("redis+cluster://a:1,b");
        assert_eq!(
            cluster.shape,
            Shape::Cluster(vec![place("a", 1), place("b", 6379)])
        );
        let sentinel = parsed("rediss+sentinel://:pw@a,b:2/1?master=main&sentinel_password=sesame");
        assert_eq!(
            sentinel.shape,
            Shape::Sentinel {
                sentinels: vec![place("a", 26379), place("b", 2)],
                master: "main".into(),
                login: Login {
                    user: None,
                    password: Some("sesame".into())
                }
            }
        );
        assert_eq!(sentinel.db, 1);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (url, error) in [
            ("cache:6379", UrlError::Scheme),
            ("http://cache", UrlError::Scheme),
            ("redis+tls://cache", UrlError::Scheme),
            ("redis://", UrlError::NoHost),
            ("redis://cache:port", UrlError::Port("port".into())),
            ("redis://cache:0", UrlError::Port("0".into())),
            ("redis://cache/first", UrlError::Database("first".into())),
            ("redis://a,b", UrlError::SeveralHosts),
            ("redis+cluster://a/1", UrlError::ClusterDatabase(1)),
            ("redis+sentinel://a", UrlError::NoMaster),
            ("redis://a?master=m", UrlError::Parameter("master".into())),
            ("redis://a?tls=1", UrlError::Parameter("tls".into())),
            ("redis://a?prefix={x}", UrlError::Prefix),
            ("redis://%ff@a", UrlError::Encoding),
        ] {
            assert_eq!(Target::parse(url), Err(error), "{url}");
        }
    }

    #[test]
    fn i16_a_password_shows_nowhere() {
        let target = parsed("redis+sentinel://u:hunter2@a?master=m&sentinel_password=hunter2");
        assert!(!format!("{target:?}").contains("hunter2"));
    }
}
