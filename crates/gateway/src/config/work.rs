//! Routes of the kind `work`: the operations API among the requests, for workers that reach no other port.

use super::error::ConfigError;
use super::route::{Matcher, behind};
use super::section::Section;
use super::server::Server;

/// What of the control listener a route of workers serves.
const SERVED: [&str; 2] = ["/v1/work", "/v1/exec"];

/// Where workers reach the operations API. Only requests with a token are served there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkRoute {
    /// Which host it is on, and what comes before the paths of the operations API.
    pub matcher: Matcher,
}

impl WorkRoute {
    /// What is not there is refused, as it cannot mean anything here.
    pub(crate) fn read(mut section: Section<'_>, server: &Server) -> Result<Self, ConfigError> {
        if !server.has_token() {
            return Err(section.fail(
                "workers could not be told from anybody else: there is no token",
                "set server.control_token, or a [[server.token]] with rights = [\"work\"]",
            ));
        }
        let matcher = Matcher::read(&mut section)?;
        section.finish()?;
        Ok(Self { matcher })
    }

    /// Where a request to `host` for `path` goes in the operations API, if this is its route.
    pub fn below<'a>(&self, host: Option<&str>, path: &'a str) -> Option<&'a str> {
        let below = self.matcher.below(host, path)?;
        let is_served = |served: &&str| behind(below, served).is_some();
        SERVED.iter().any(is_served).then_some(below)
    }
}
