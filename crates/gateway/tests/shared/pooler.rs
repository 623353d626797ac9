//! Gateways whose way to PostgreSQL leads through a pooler that gives every transaction another
//! connection.

use onlyonce_testkit::{Gateway, Pgbouncer, Setup, Signal, eventually};

use crate::servers::{OnPostgres, Server};
use crate::{BIN, held, post};

/// With a URL past the pooler in `store.listen_url`, notices arrive: each gateway listens there, and only
/// listens. A retry on another gateway joins byte for byte.
#[test]
fn with_a_way_past_the_pooler_gateways_hear_each_other() {
    let server = OnPostgres::start();
    let pooler = Pgbouncer::start(&server.0, 3);
    let (upstream, go) = held();
    let setup = Setup::new(BIN, &upstream.url()).store(&format!(
        "url = \"{}\"\nlisten_url = \"{}\"",
        pooler.url(),
        server.0.url()
    ));
    let (a, b) = (setup.clone().start(), setup.start());
    let listening = || {
        let text = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN %'";
        server.0.sql(text)
    };
    eventually("both listen", || listening() == "2");
    joins(&a, &b, &go, "k");
    assert_eq!(upstream.hits(), 1);
    for gateway in [&a, &b] {
        assert!(
            !gateway.stderr().contains("notices"),
            "{}",
            gateway.stderr()
        );
    }
}

/// Without one, or with one that is wrong, a line says so and joins go on.
#[test]
fn without_a_way_past_the_pooler_a_line_says_so_and_joins_go_on() {
    let server = OnPostgres::start();
    let pooler = Pgbouncer::start(&server.0, 3);
    server.0.sql("CREATE DATABASE another");
    let another = format!("{}another", server.0.url().trim_end_matches("postgres"));
    let nowhere = "postgres://postgres:secret@127.0.0.1:1/postgres".to_owned();
    for (key, listen_url, why) in [
        ("none", None, "pooler"),
        ("another", Some(another), "another database"),
        ("nowhere", Some(nowhere), "does not answer"),
    ] {
        let (upstream, go) = held();
        let mut setup =
            Setup::new(BIN, &upstream.url()).store(&format!("url = \"{}\"", pooler.url()));
        if let Some(listen_url) = listen_url {
            setup = setup.store(&format!("listen_url = \"{listen_url}\""));
        }
        let (a, b) = (setup.clone().start(), setup.start());
        eventually("it says so", || {
            let said = b.stderr();
            said.contains("notices are not heard") && said.contains(why)
        });
        joins(&a, &b, &go, key);
        assert_eq!(upstream.hits(), 1);
        let said = b.stderr();
        let lines = said.matches("notices are not heard").count();
        assert!(lines <= 2, "{said}");
        assert!(!said.contains("secret"), "{said}");
    }
}

fn joins(a: &Gateway, b: &Gateway, go: &Signal, key: &str) {
    let mut first = a.begin(&post(key));
    first.read_head();
    first.read_until("begun");
    let mut second = b.begin(&post(key));
    assert_eq!(second.read_head().header("onlyonce-status"), Some("joined"));
    second.read_until("begun");
    go.fire();
    let (first, second) = (first.finish(), second.finish());
    assert!(first.whole() && second.whole());
    assert_eq!(first.text(), "execution 1 begun, and ended");
    assert_eq!(first.text(), second.text());
}
