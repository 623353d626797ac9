//! What servers declare of their tools, as their lists pass: which may run again without harm. Nothing is
//! kept over a restart, and what is not known is taken for harmful.

use std::collections::{HashMap, HashSet};

use http::Uri;
use onlyonce_http::mcp::Declared;
use parking_lot::Mutex;

use crate::config::Route;

/// Tenants of routes whose lists are known (I15); the one that was listed longest ago goes.
const MOST_LISTS: usize = 1_000;
/// Harmless tools of one list.
const MOST_TOOLS: usize = 200;
/// Tools of which it is said that their calls pass unprotected (I15).
const MOST_WARNED_OF: usize = 1_000;
/// Bytes of a tool's name, as the protocol has it.
const MOST_OF_A_NAME: usize = 128;

/// The tools that servers declare, each to whom it declares them: not all callers need to see the same.
#[derive(Default)]
pub(crate) struct Tools(Mutex<Lists>);

/// Who is told of tools, and by which server: what stands behind one route may be several.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Told {
    route: usize,
    tenant: Box<str>,
    /// A hash of path and query, which may be long.
    server: blake3::Hash,
}

impl Told {
    /// The tenant, by the server that it asks at `uri` on `route`.
    pub(crate) fn of(route: &Route, tenant: &str, uri: &Uri) -> Self {
        let server = uri.path_and_query().map_or("", |server| server.as_str());
        Self {
            route: route.index,
            tenant: tenant.into(),
            server: blake3::hash(server.as_bytes()),
        }
    }
}

#[derive(Default)]
struct Lists {
    by_told: HashMap<Told, List>,
    /// How many lists have passed.
    passed: u64,
    /// Of which tools of which routes it was said that their calls pass unprotected.
    warned_of: HashSet<(usize, Box<str>)>,
}

#[derive(Default)]
struct List {
    /// The names of those that may run again.
    may_repeat: HashSet<Box<str>>,
    /// When it was last heard of.
    passed: u64,
}

impl Tools {
    /// Takes in a list, or a page of one.
    pub(crate) fn learn(&self, told: &Told, declared: Vec<Declared>) {
        let mut lists = self.0.lock();
        lists.passed += 1;
        let passed = lists.passed;
        if lists.by_told.len() >= MOST_LISTS && !lists.by_told.contains_key(told) {
            lists.forget_oldest();
        }
        let list = lists.by_told.entry(told.clone()).or_default();
        list.passed = passed;
        for tool in declared {
            let is_kept = tool.may_repeat
                && tool.name.len() <= MOST_OF_A_NAME
                && list.may_repeat.len() < MOST_TOOLS;
            match is_kept {
                true => list.may_repeat.insert(tool.name),
                false => !tool.may_repeat && list.may_repeat.remove(&tool.name),
            };
        }
    }

    /// Takes nothing for harmless any more: a list has passed that could not be read.
    pub(crate) fn forget(&self, told: &Told) {
        self.0.lock().by_told.remove(told);
    }

    /// Whether calls of `tool` pass on `route`, which is that of `told`.
    pub(crate) fn pass(&self, route: &Route, told: &Told, tool: &str) -> bool {
        let mcp = &route.policy.mcp;
        if Self::is_named(route, tool) {
            return false;
        }
        let passes = mcp.pass.iter().any(|name| **name == *tool);
        passes || (mcp.trust_annotations && self.may_repeat(told, tool))
    }

    /// Whether the calls of `tool` are operations whatever is declared, by its name.
    pub(crate) fn is_named(route: &Route, tool: &str) -> bool {
        route.policy.mcp.protect.iter().any(|name| **name == *tool)
    }

    /// Whether it is yet to be said that calls of `tool` pass on `route` and nothing protects them. Once.
    pub(crate) fn is_to_be_warned_of(&self, route: &Route, tool: &str) -> bool {
        let warned_of = &mut self.0.lock().warned_of;
        tool.len() <= MOST_OF_A_NAME
            && warned_of.len() < MOST_WARNED_OF
            && warned_of.insert((route.index, tool.into()))
    }

    fn may_repeat(&self, told: &Told, tool: &str) -> bool {
        let lists = self.0.lock();
        let list = lists.by_told.get(told);
        list.is_some_and(|list| list.may_repeat.contains(tool))
    }
}

impl Lists {
    fn forget_oldest(&mut self) {
        let oldest = self.by_told.iter().min_by_key(|(_, list)| list.passed);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.by_told.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides, Source};

    fn config(settings: &str) -> Config {
        let text = format!(
            "[[upstream]]\nname = \"up\"\nurl = \"http://localhost:1\"\n\
             [[route]]\nupstream = \"up\"\nkind = \"mcp\"\n[route.mcp]\n{settings}\n"
        );
        let source = Source {
            name: "onlyonce.toml",
            text: &text,
            env: &|_| None,
        };
        Config::read(&source, &Overrides::default()).expect("a configuration")
    }

    fn declared(name: &str, may_repeat: bool) -> Vec<Declared> {
        vec![Declared {
            name: name.into(),
            may_repeat,
        }]
    }

    fn told(route: &Route, tenant: &str) -> Told {
        Told::of(route, tenant, &Uri::from_static("/mcp"))
    }

    /// What one server declared read-only switched off the protection of another one's tool of that name.
    #[test]
    fn i01_what_one_server_declares_says_nothing_of_another_behind_the_same_route() {
        let (tools, config) = (Tools::default(), config(""));
        let route = &config.routes[0];
        let at = |uri: &'static str| Told::of(route, "a", &Uri::from_static(uri));
        tools.learn(&at("/mcp/docs"), declared("create", true));
        assert!(tools.pass(route, &at("/mcp/docs"), "create"));
        for other in ["/mcp/shop", "/mcp/docs/", "/mcp", "/mcp/docs?server=shop"] {
            assert!(!tools.pass(route, &at(other), "create"), "{other}");
        }
        tools.forget(&at("/mcp/docs"));
        assert!(!tools.pass(route, &at("/mcp/docs"), "create"));
    }

    #[test]
    fn what_is_declared_counts_for_the_tenant_that_was_told_until_it_is_declared_otherwise() {
        let (tools, config) = (Tools::default(), config(""));
        let route = &config.routes[0];
        assert!(!tools.pass(route, &told(route, "a"), "look"));
        tools.learn(&told(route, "a"), declared("look", true));
        tools.learn(&told(route, "a"), declared("pay", false));
        assert!(
            tools.pass(route, &told(route, "a"), "look")
                && !tools.pass(route, &told(route, "a"), "pay")
        );
        assert!(!tools.pass(route, &told(route, "b"), "look"));
        tools.learn(&told(route, "a"), declared("look", false));
        assert!(!tools.pass(route, &told(route, "a"), "look"));
    }

    #[test]
    fn what_the_configuration_names_wins_over_what_is_declared() {
        let (tools, config) = (
            Tools::default(),
            config("protect = [\"look\"]\npass = [\"pay\"]"),
        );
        let route = &config.routes[0];
        tools.learn(&told(route, "a"), declared("look", true));
        tools.learn(&told(route, "a"), declared("pay", false));
        assert!(
            tools.pass(route, &told(route, "a"), "pay")
                && !tools.pass(route, &told(route, "a"), "look")
        );
    }

    #[test]
    fn it_is_said_once_of_a_tool_that_nothing_protects_its_calls() {
        let (tools, config) = (Tools::default(), config(""));
        let route = &config.routes[0];
        assert!(tools.is_to_be_warned_of(route, "pay"));
        assert!(!tools.is_to_be_warned_of(route, "pay"));
        assert!(tools.is_to_be_warned_of(route, "send"));
    }

    #[test]
    fn what_is_declared_counts_for_nothing_where_it_is_not_trusted() {
        let (tools, config) = (Tools::default(), config("trust_annotations = false"));
        tools.learn(&told(&config.routes[0], "a"), declared("look", true));
        assert!(!tools.pass(&config.routes[0], &told(&config.routes[0], "a"), "look"));
    }

    #[test]
    fn i15_what_is_remembered_of_tools_is_bounded() {
        let (tools, config) = (Tools::default(), config(""));
        let route = &config.routes[0];
        for number in 0..=MOST_LISTS {
            tools.learn(
                &told(route, &format!("tenant {number}")),
                declared("look", true),
            );
        }
        assert_eq!(tools.0.lock().by_told.len(), MOST_LISTS);
        assert!(!tools.pass(route, &told(route, "tenant 0"), "look"));
        assert!(tools.pass(route, &told(route, "tenant 1"), "look"));
        for number in 0..=MOST_TOOLS {
            tools.learn(
                &told(route, "tenant 1"),
                declared(&format!("look {number}"), true),
            );
        }
        let one = told(route, "tenant 1");
        assert_eq!(tools.0.lock().by_told[&one].may_repeat.len(), MOST_TOOLS);
        for number in 0..=MOST_WARNED_OF {
            assert_eq!(
                tools.is_to_be_warned_of(route, &format!("pay {number}")),
                number < MOST_WARNED_OF
            );
        }
        tools.learn(&told(route, "tenant 2"), declared(&"x".repeat(129), true));
        assert!(!tools.pass(route, &told(route, "tenant 2"), &"x".repeat(129)));
    }
}
