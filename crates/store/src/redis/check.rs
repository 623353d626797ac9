//! What a server must be like, looked at on every new connection.

use std::{collections::HashMap, sync::OnceLock};

use redis::{RedisError, aio::MultiplexedConnection};

use super::{
    failure::{Failure, Refusal},
    node::Node,
    servers::Servers,
    url::{Login, Place},
};

/// What is expected of every server of a store.
pub struct Expected {
    pub login: Login,
    pub db: i64,
    pub cluster: bool,
    pub meta: Meta,
}

/// The store's own key, once it is known.
pub struct Meta {
    pub key: String,
    /// The server that holds it: the only one of a cluster that can be asked for it.
    pub bytes: OnceLock<Vec<u8>>,
}

/// Checks that records may be kept on the server behind `connection`.
pub async fn server(
    connection: &mut MultiplexedConnection,
    place: &Place,
    expected: &Expected,
) -> Result<(), Refusal> {
    let told = |error: RedisError| Refusal::of_connect(place, &error);
    let info = redis::cmd("INFO");
    let info: String = info.query_async(connection).await.map_err(told)?;
    let info = Info::parse(&info);
    info.check(place, expected.cluster)?;
    let Some(bytes) = expected.meta.bytes.get() else {
        return Ok(());
    };
    let held: Result<Option<Vec<u8>>, RedisError> = redis::cmd("GET")
        .arg(&expected.meta.key)
        .query_async(connection)
        .await;
    match held {
        Ok(held) if held.as_ref() == Some(bytes) => Ok(()),
        Ok(_) => Err(Refusal::OtherStore {
            place: place.to_string(),
        }),
        // Another node of the cluster holds it.
        Err(error) if matches!(error.code(), Some("MOVED" | "ASK")) => Ok(()),
        Err(error) => Err(told(error)),
    }
}

/// What `INFO` says.
pub struct Info<'a>(HashMap<&'a str, &'a str>);

impl<'a> Info<'a> {
    pub fn parse(text: &'a str) -> Self {
        Self(
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> &'a str {
        self.0.get(name).copied().unwrap_or_default()
    }

    pub fn number(&self, name: &str) -> u64 {
        self.get(name).parse().unwrap_or(0)
    }

    fn check(&self, place: &Place, cluster: bool) -> Result<(), Refusal> {
        let place = place.to_string();
        // Valkey says the version of Redis that it is compatible with, 7.2.4.
        let version = self.get("redis_version");
        let major: u32 = version
            .split('.')
            .next()
            .and_then(|major| major.parse().ok())
            .unwrap_or(0);
        if major < 7 {
            let version = version.to_owned();
            return Err(Refusal::Old { place, version });
        }
        // Valkey's own name for it comes second.
        let mode = [self.get("redis_mode"), self.get("server_mode")];
        match (mode.contains(&"cluster"), cluster) {
            (true, false) => return Err(Refusal::InCluster { place }),
            (false, true) => return Err(Refusal::NotInCluster { place }),
            _ => {}
        }
        if self.get("loading") == "1" {
            let why = "it is loading what it holds".to_owned();
            return Err(Refusal::NotReady { place, why });
        }
        if self.get("role") != "master" {
            return Err(Refusal::Replica { place });
        }
        match self.get("maxmemory_policy") {
            "noeviction" | "" => Ok(()),
            policy => Err(Refusal::Evicting {
                place,
                policy: policy.to_owned(),
            }),
        }
    }
}

/// What is worth a warning about a server: it is used all the same.
pub async fn warnings(servers: &Servers, node: &Node) -> Result<Vec<String>, Failure> {
    let place = &node.place;
    let mut ask = redis::cmd("CONFIG");
    ask.arg("GET").arg(&["appendonly", "*appendfsync*"]);
    let (log, sync) = match servers.send_to(node, &ask).await {
        Ok(answer) => {
            let config: HashMap<String, String> =
                redis::from_redis_value(answer).unwrap_or_default();
            let is = |name: &str, value: &str| config.get(name).is_some_and(|held| held == value);
            // While the log is rewritten, it may be that nothing is synced.
            let always = is("appendfsync", "always") && !is("no-appendfsync-on-rewrite", "yes");
            (Some(!is("appendonly", "no")), Some(always))
        }
        // Managed services forbid it; whether there is a log is said elsewhere too.
        Err(Failure::Refused { .. }) => {
            let mut ask = redis::cmd("INFO");
            ask.arg("persistence");
            let answer = servers.send_to(node, &ask).await?;
            let info: String = redis::from_redis_value(answer).unwrap_or_default();
            let log = match Info::parse(&info).get("aof_enabled") {
                "1" => Some(true),
                "0" => Some(false),
                _ => None,
            };
            (log, None)
        }
        Err(failure) => return Err(failure),
    };
    let warning = match (log, sync) {
        (Some(false), _) => format!(
            "{place} keeps no log (appendonly no): what it holds is lost when it stops, and keys \
             used before run again; set appendonly to yes and appendfsync to always"
        ),
        (Some(true), Some(true)) => return Ok(Vec::new()),
        (_, Some(false)) => format!(
            "{place} acknowledges before it syncs (appendfsync is not always, or not while the log is \
             rewritten): a crash of its machine loses the latest claims, and their keys run again; \
             set appendfsync to always and no-appendfsync-on-rewrite to no"
        ),
        _ => format!(
            "{place} does not tell whether it syncs what it acknowledges; see to it that \
             appendonly is yes and appendfsync always, or keys used before may run again after a \
             crash"
        ),
    };
    Ok(vec![warning])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str, cluster: bool) -> Result<(), String> {
        let place = Place {
            host: "h".into(),
            port: 1,
        };
        let info = Info::parse(text).check(&place, cluster);
        info.map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn a_good_server_passes() {
        let text = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n\
                    role:master\r\nmaxmemory_policy:noeviction\r\n";
        assert_eq!(checked(text, false), Ok(()));
        let valkey = text.replace("7.0.15", "7.2.4\r\nserver_name:valkey");
        assert_eq!(checked(&valkey, false), Ok(()));
        assert!(checked(text, true).is_err_and(|why| why.contains("redis://")));
    }

    #[test]
    fn what_would_break_a_guarantee_is_refused() {
        for (text, why) in [
            ("redis_version:6.2.1\r\n", "7.0"),
            ("redis_version:7.2.0\r\nrole:slave\r\n", "replica"),
            (
                "redis_version:7.2.0\r\nrole:master\r\nmaxmemory_policy:allkeys-lru\r\n",
                "allkeys-lru",
            ),
            (
                "redis_version:7.2.0\r\nredis_mode:cluster\r\nrole:master\r\n",
                "redis+cluster://",
            ),
            (
                "redis_version:7.2.4\r\nserver_mode:cluster\r\nrole:master\r\n",
                "redis+cluster://",
            ),
        ] {
            let refused = checked(text, false).expect_err(text);
            assert!(refused.contains(why), "{refused}");
        }
    }
}
