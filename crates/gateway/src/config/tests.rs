//! Each mistake: its message names the line, what is wrong and what to do.

use std::time::Duration;

use onlyonce_core::{Metered, Timestamp, Unit};
use onlyonce_ledger::prices::Sale;

use super::*;

fn read_with(text: &str, overrides: &Overrides) -> Result<Config, ConfigError> {
    let source = Source {
        name: "onlyonce.toml",
        text,
        env: &|name| match name {
            "TOKEN" => Some("0123456789abcdef0123456789abcdef".to_owned()),
            "SHORT" => Some("too short".to_owned()),
            "KEY" => Some(format!("{}\n", "0f".repeat(32))),
            "KEY_BASE64" => Some("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        },
    };
    Config::read(&source, overrides)
}

fn read(text: &str) -> Result<Config, ConfigError> {
    read_with(text, &Overrides::default())
}

/// The upstream that every file needs, in its last three lines.
const UPSTREAM: &str = "[[upstream]]\nname = \"up\"\nurl = \"http://localhost:9000\"\n";

fn valid(text: &str) -> Config {
    read(&format!("{text}\n{UPSTREAM}")).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn mistake(text: &str) -> String {
    match read(text) {
        Ok(_) => panic!("this is taken:\n{text}"),
        Err(error) => error.to_string(),
    }
}

/// `text` stands before a valid upstream, and is refused with `message`.
#[track_caller]
fn refused(text: &str, message: &str) {
    let error = mistake(&format!("{text}\n{UPSTREAM}"));
    assert_eq!(error, format!("onlyonce.toml {message}"), "{text}");
}

/// `lines` stand in the only route, from line 5 on, and are refused with `message`.
#[track_caller]
fn refused_in_route(lines: &str, message: &str) {
    let error = mistake(&format!(
        "{UPSTREAM}[[route]]\nupstream = \"up\"\n{lines}\n"
    ));
    assert_eq!(error, format!("onlyonce.toml {message}"), "{lines}");
}

fn policy(lines: &str) -> Policy {
    let text = format!("{UPSTREAM}[[route]]\nupstream = \"up\"\n{lines}\n");
    let config = read(&text).unwrap_or_else(|error| panic!("{error}"));
    config.routes[0].policy.clone()
}

#[test]
fn an_upstream_is_all_that_is_needed() {
    let config = valid("");
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8787");
    assert_eq!(config.server.control.to_string(), "127.0.0.1:8788");
    assert!(config.server.allow_anonymous);
    assert_eq!(
        config.store.url,
        StoreUrl::Embedded("./onlyonce-data".into())
    );
    assert_eq!(config.routes.len(), 1);
    let route = &config.routes[0];
    assert_eq!((&*route.name, &*route.namespace), ("up", "up"));
    assert_eq!(route.policy, Policy::default());
    assert_eq!(route.policy.release, [401, 429, 503]);
    assert_eq!(route.policy.window, Duration::from_secs(86_400));
}

#[test]
fn an_unknown_setting_is_refused_with_its_line_and_the_nearest_name() {
    refused(
        "[server]\nlisten = \"127.0.0.1:1\"\nidle_timout = \"10s\"",
        "line 3: [server] has no setting `idle_timout`; did you mean `idle_timeout`?",
    );
    refused(
        "[servr]\nlisten = \"127.0.0.1:1\"",
        "line 1: the file has no setting `servr`; did you mean `server`?",
    );
    refused(
        "[store]\ncache-bytes = 1",
        "line 2: [store] has no setting `cache-bytes`; did you mean `cache_bytes`?",
    );
    refused_in_route(
        "windw = \"1h\"",
        "line 6: [[route]] number 1 has no setting `windw`; did you mean `window`?",
    );
    refused_in_route(
        "retries = { maximum = 1 }",
        "line 6: retries has no setting `maximum`; take it away, or use one of: backoff, budget, \
         max, max_backoff",
    );
    let far = mistake(&format!("[server]\ncolour = 1\n{UPSTREAM}"));
    assert!(
        far.contains("; take it away, or use one of: allow_anonymous, "),
        "{far}"
    );
}

#[test]
fn a_mistyped_name_of_a_needed_setting_is_named() {
    assert_eq!(
        mistake("[[upstream]]\nname = \"up\"\nulr = \"http://a\"\n"),
        "onlyonce.toml line 3: [[upstream]] number 1 has no setting `ulr`; did you mean `url`?"
    );
    assert_eq!(
        mistake("[[upstream]]\nname = \"up\"\n"),
        "onlyonce.toml line 1: [[upstream]] number 1 has no `url`; write url = \
         \"https://api.example.com\""
    );
}

#[test]
fn what_is_not_toml_is_refused_with_its_line() {
    let error = mistake("[server]\nlisten = 127.0.0.1:8787\n");
    assert!(
        error.starts_with("onlyonce.toml line 2: this is not TOML: "),
        "{error}"
    );
    assert!(
        error.contains("; strings stand in double quotes"),
        "{error}"
    );
    let error = mistake("[server]\nworkers = 1\nworkers = 2\n");
    assert!(
        error.starts_with("onlyonce.toml line 3: this is not TOML: duplicate key"),
        "{error}"
    );
    assert!(!mistake("[[upstream]\n").contains('\n'));
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_an_example() {
    for (text, message) in [
        (
            "[server]\nlisten = 8787",
            "line 2: `listen` is a whole number, and it must be a string; write it like \"text\"",
        ),
        (
            "[server]\nidle_timeout = 10",
            "line 2: `idle_timeout` is a whole number, and it must be a duration with its unit; \
             write it like \"10s\" or \"250ms\"",
        ),
        (
            "[server]\nallow_anonymous = \"yes\"",
            "line 2: `allow_anonymous` is a string, and it must be true or false; write it like \
             true, without quotes",
        ),
        (
            "[limits]\nrequest_body = 1.5",
            "line 2: `request_body` is a number, and it must be a size; write it like \"64MiB\"",
        ),
        (
            "route = 1",
            "line 1: `route` is a whole number, not a list of tables; write it with two brackets, \
             [[route]]",
        ),
        (
            "[tenant]\nname = \"a\"",
            "line 1: `tenant` is a table, not a list of tables; write it with two brackets, \
             [[tenant]]",
        ),
        (
            "server = 1",
            "line 1: `server` is a whole number, and it must be a table; write it like [server]",
        ),
    ] {
        refused(text, message);
    }
}

#[test]
fn durations_and_sizes_say_how_they_are_written() {
    refused(
        "[server]\nidle_timeout = \"10 parsecs\"",
        "line 2: `idle_timeout` is \"10 parsecs\", which is no duration; write whole numbers with \
         ms, s, m, h or d, like \"250ms\", \"10s\" or \"1h30m\"",
    );
    refused(
        "[server]\nheader_timeout = \"0s\"",
        "line 2: `header_timeout` is 0; write a duration above 0, like \"10s\"",
    );
    refused(
        "[limits]\nrequest_body = \"64mb\"",
        "line 2: `request_body` is \"64mb\", which is no size; write a whole number with B, KiB, \
         MiB, GiB or TiB, like \"64MiB\"",
    );
    refused(
        "[server]\nmax_header_bytes = \"1KiB\"",
        "line 2: `max_header_bytes` is 1024 bytes; write a size from 8192 to 16777216 bytes",
    );
    refused(
        "[server]\nworkers = 0",
        "line 2: `workers` is 0; write a whole number from 1 to 1024",
    );
    refused(
        "[server]\nmax_headers = -1",
        "line 2: `max_headers` is -1; write a whole number from 16 to 10000",
    );
    let config = valid("[limits]\nrequest_body = 1024\n[server]\nworkers = 0x2");
    assert_eq!(
        (config.limits.request_body, config.server.workers),
        (1024, 2)
    );
}

#[test]
fn a_token_has_a_name_a_secret_and_rights() {
    let token = "[[server.token]]\nname = \"ops\"\ntoken = \"env:TOKEN\"\n";
    let config = valid(&format!(
        "{token}tenant = \"acme\"\nrights = [\"read\", \"resolve\"]\n"
    ));
    let [read] = &config.server.tokens[..] else {
        panic!("{:?}", config.server.tokens)
    };
    assert_eq!((&*read.name, read.tenant.as_deref()), ("ops", Some("acme")));
    assert_eq!(read.rights, [Right::Read, Right::Resolve]);
    refused(
        &format!("{token}rights = [\"raed\"]\n"),
        "line 4: `rights`[0] cannot be \"raed\"; did you mean \"read\"?",
    );
    refused(
        &format!("{token}rights = [\"admin\"]\n"),
        "line 4: `rights` has no \"read\"; write rights = [\"read\"], and what more; or [\"work\"] alone",
    );
    refused(
        &format!("{token}rights = [\"read\"]\n{token}rights = [\"read\"]\n"),
        "line 6: `name` is \"ops\" again; choose another name: logs tell by it who did what",
    );
    refused(
        &format!("[server]\ncontrol_token = \"env:TOKEN\"\n{token}rights = [\"read\"]\n"),
        "line 5: `token` is a token that was already given; give each its own: `openssl rand \
         -base64 32`",
    );
    refused(
        &format!("{token}right = [\"read\"]\n"),
        "line 4: [[server.token]] number 1 has no setting `right`; did you mean `rights`?",
    );
    // Beyond loopback each of them is long.
    refused(
        "[server]\ncontrol = \"0.0.0.0:1\"\n[[server.token]]\nname = \"ops\"\ntoken = \
         \"env:SHORT\"\nrights = [\"read\"]\n",
        "line 1: the control listener 0.0.0.0:1 is not on loopback, and the token ops has 9 \
         characters; set control_token = \"env:ONLYONCE_CONTROL_TOKEN\" with at least 32 random \
         characters, or listen on 127.0.0.1",
    );
}

#[test]
fn a_control_listener_beyond_loopback_needs_a_long_token() {
    refused(
        "[server]\ncontrol = \"0.0.0.0:8788\"",
        "line 1: the control listener 0.0.0.0:8788 is not on loopback, and there is no \
         control_token; set control_token = \"env:ONLYONCE_CONTROL_TOKEN\" with at least 32 random \
         characters, or listen on 127.0.0.1",
    );
    refused(
        "[server]\ncontrol = \"0.0.0.0:8788\"\ncontrol_token = \"env:SHORT\"",
        "line 1: the control listener 0.0.0.0:8788 is not on loopback, and control_token has 9 \
         characters; set control_token = \"env:ONLYONCE_CONTROL_TOKEN\" with at least 32 random \
         characters, or listen on 127.0.0.1",
    );
    valid("[server]\ncontrol = \"0.0.0.0:8788\"\ncontrol_token = \"env:TOKEN\"");
    valid("[server]\ncontrol = \"[::1]:8788\"");
    valid("[server]\ncontrol = \"127.0.0.9:8788\"\ncontrol_token = \"env:SHORT\"");
    // The command line cannot open it either.
    let overrides = Overrides {
        control: Some("0.0.0.0:1".parse().unwrap()),
        ..Overrides::default()
    };
    let error = read_with(UPSTREAM, &overrides).unwrap_err();
    assert_eq!(error.line, None);
    assert!(error.what.contains("is not on loopback"), "{error}");
}

#[test]
fn the_command_line_wins_over_the_file() {
    let overrides = Overrides {
        listen: Some("0.0.0.0:1".parse().unwrap()),
        control: Some("127.0.0.1:2".parse().unwrap()),
        data: Some("/data".into()),
    };
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:3\"\ncontrol = \"127.0.0.1:4\"\n[store]\nurl = \
         \"memory:\"\n{UPSTREAM}"
    );
    let config = read_with(&text, &overrides).unwrap();
    assert_eq!(config.server.listen.to_string(), "0.0.0.0:1");
    assert_eq!(config.server.control.to_string(), "127.0.0.1:2");
    assert_eq!(config.store.url, StoreUrl::Embedded("/data".into()));
    assert!(
        !config.server.allow_anonymous,
        "it follows the address that counts"
    );
}

#[test]
fn a_folder_on_the_command_line_does_not_stand_for_a_store_that_is_shared() {
    let overrides = Overrides {
        data: Some("/data".into()),
        ..Overrides::default()
    };
    for url in ["postgres://db/onlyonce", "redis://cache"] {
        let text = format!("[store]\nurl = \"{url}\"\n{UPSTREAM}");
        let error = read_with(&text, &overrides).unwrap_err();
        assert_eq!(error.line, Some(2), "{error}");
        assert!(error.what.contains("they would run again"), "{error}");
        assert_eq!(error.next, "leave out --data");
    }
}

#[test]
fn callers_without_a_credential_are_served_by_default_on_loopback_alone() {
    assert!(
        valid("[server]\nlisten = \"localhost:1\"")
            .server
            .allow_anonymous
    );
    assert!(
        !valid("[server]\nlisten = \"0.0.0.0:1\"")
            .server
            .allow_anonymous
    );
    let chosen = valid("[server]\nlisten = \"0.0.0.0:1\"\nallow_anonymous = true");
    assert!(chosen.server.allow_anonymous);
}

#[test]
fn addresses_are_checked() {
    refused(
        "[server]\nlisten = \"8787\"",
        "line 2: `listen` cannot be \"8787\"; write an address and a port, like \
         \"127.0.0.1:8787\"",
    );
    refused(
        "[server]\nlisten = \"127.0.0.1:8788\"",
        "line 1: listen and control are both 127.0.0.1:8788; give the control listener another \
         port",
    );
    valid("[server]\nlisten = \"127.0.0.1:0\"\ncontrol = \"127.0.0.1:0\"");
}

#[test]
fn secrets_come_from_the_environment_and_are_never_repeated() {
    refused(
        "[server]\ncontrol_token = \"env:NOT_THERE\"",
        "line 2: `control_token` names the environment variable NOT_THERE, which is not set; set \
         NOT_THERE before the start",
    );
    refused(
        "[server]\ncontrol_token = \"env:EMPTY\"",
        "line 2: `control_token` names the environment variable EMPTY, which is empty; put the \
         secret there",
    );
    refused(
        "[server]\ncontrol_token = \"env:\"",
        "line 2: `control_token` names no environment variable; write it like env:NAME",
    );
    let error = mistake(&format!(
        "[store.encryption]\nactive = 1\nkeys = [{{ id = 1, key = \"sk-secret\" }}]\n{UPSTREAM}"
    ));
    assert_eq!(
        error,
        "onlyonce.toml line 3: `key` is not 32 bytes in base64 or hex; make one with `openssl \
         rand -base64 32`"
    );
    let config = valid("[server]\ncontrol_token = \"env:TOKEN\"");
    assert!(
        !format!("{config:?}").contains("0123456789"),
        "a secret shows itself"
    );
}

#[test]
fn secrets_come_from_files_and_are_never_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let named = |path: &str| {
        let text = format!("[server]\ncontrol_token = \"file:{path}\"\n{UPSTREAM}");
        read(&text).map_err(|error| error.to_string().replace(path, "PATH"))
    };
    let config = named(&file("token", b"0123456789abcdef0123456789abcdef\n")).unwrap();
    let token = config.server.control_token.as_ref().unwrap();
    assert_eq!(token.expose(), "0123456789abcdef0123456789abcdef");
    assert!(!format!("{config:?}").contains("0123456789"));

    let what = |path: &str| named(path).unwrap_err();
    assert_eq!(
        what(&file("empty", b" \n")),
        "onlyonce.toml line 2: `control_token` names the file PATH, which is empty; put the secret \
         there"
    );
    assert_eq!(
        what(&file("long", &[b'x'; (64 << 10) + 1])),
        "onlyonce.toml line 2: `control_token` names the file PATH, which is longer than 64 KiB; name a \
         file with the secret alone in it"
    );
    for path in [&file("binary", b"\xff"), "/nowhere/at/all"] {
        let error = what(path);
        assert!(
            error.contains("names the file PATH, which cannot be read ("),
            "{error}"
        );
    }
}

#[test]
fn encryption_keys_are_numbered_and_one_is_active() {
    let config = valid(
        "[store.encryption]\nactive = 2\nkeys = [{ id = 1, key = \"env:KEY\" }, { id = 2, key = \
         \"env:KEY_BASE64\" }]",
    );
    let encryption = config.store.encryption.unwrap();
    assert_eq!(encryption.active, 2);
    assert_eq!(encryption.keys, [(1, [0x0f; 32]), (2, [1; 32])]);
    assert!(
        !format!("{encryption:?}").contains("15"),
        "a key shows itself"
    );
    refused(
        "[store.encryption]\nactive = 3\nkeys = [{ id = 1, key = \"env:KEY\" }]",
        "line 2: `active` is 3, and no key has that id; write the id of one of the keys",
    );
    refused(
        "[store.encryption]\nactive = 1\nkeys = [{ id = 1, key = \"env:KEY\" }, { id = 1, key = \
         \"env:KEY\" }]",
        "line 3: `id` is 1 again; give each key its own number",
    );
    refused(
        "[store.encryption]\nactive = 1",
        "line 1: [store.encryption] has no `keys`; write keys = [{ id = 1, key = \"env:NAME\" }]",
    );
}

#[test]
fn the_books_outlive_the_records() {
    assert_eq!(show_duration(valid("").ledger.retention), "400d");
    let ledger = valid("[ledger]\nretention = \"0s\"").ledger;
    assert!(ledger.enabled && ledger.retention.is_zero());
    refused(
        "[ledger]\nretention = \"1h\"",
        "line 2: `retention` is 1h, and a route keeps its records for 1d; write a longer one, or \
         \"0s\" to keep the books for ever: they outlive the records",
    );
}

#[test]
fn a_sink_is_one_of_a_few_and_its_secret_is_never_repeated() {
    let sink = |lines: &str| format!("[[ledger.sink]]\nname = \"s\"\n{lines}");
    let stripe = "kind = \"stripe\"\nsecret = \"sk_1\"\nevent_name = \"tokens\"\n\
                  value = \"total_tokens\"\ncustomers = { acme = \"cus_1\" }";
    let read = &valid(&sink(stripe)).ledger.sinks[0];
    assert_eq!(read.target.kind(), "stripe");
    assert_eq!((read.in_flight, read.timeout.as_secs()), (8, 15));
    assert!(!format!("{read:?}").contains("sk_1"));
    let mistake = |text: &str| mistake(&format!("{text}\n{UPSTREAM}"));
    let said = mistake(&sink(
        "kind = \"webhook\"\nurl = \"http://a/\"\nsecret = \"hunter2\"",
    ));
    assert!(
        said.contains("line 5: `secret` is no secret of Standard Webhooks"),
        "{said}"
    );
    assert!(!said.contains("hunter2"), "{said}");
    for (lines, part) in [
        ("kind = \"webhok\"", "did you mean \"webhook\"?"),
        ("kind = \"file\"\nfolder = \"f\"", "has no `format`"),
        (
            "kind = \"openmeter\"\nurl = \"ftp://a\"",
            "`url` is no URL of a service",
        ),
    ] {
        let said = mistake(&sink(lines));
        assert!(said.contains(part), "{said}");
    }
    for format in [
        "csv",
        "jsonl",
        #[cfg(feature = "parquet")]
        "parquet",
    ] {
        let file = format!("kind = \"file\"\nfolder = \"f\"\nformat = \"{format}\"");
        assert_eq!(valid(&sink(&file)).ledger.sinks[0].target.kind(), "file");
    }
    let twice = format!("{0}\n{0}", sink(stripe));
    let said = mistake(&twice);
    assert!(said.contains("`name` cannot be \"s\""), "{said}");
    let off = format!("[ledger]\nenabled = false\n{}", sink(stripe));
    assert!(mistake(&off).contains("no books are kept"));
}

#[test]
fn a_store_is_embedded_shared_or_in_memory() {
    assert_eq!(
        valid("[store]\nurl = \"memory:\"").store.url,
        StoreUrl::Memory
    );
    let store = valid("[store]\nurl = \"embedded:/var/x\"\nmax_bytes = 0").store;
    assert_eq!(store.url, StoreUrl::Embedded("/var/x".into()));
    assert_eq!(store.max_records, 4_000_000);
    for url in ["postgres://u:p@h/d", "rediss://h", "redis+cluster://a,b"] {
        let store = valid(&format!("[store]\nurl = \"{url}\"")).store;
        assert!(store.url.is_shared());
        assert_eq!(store.max_records, 100_000_000);
        assert!(!format!("{store:?}").contains("u:p"), "a password is shown");
    }
    for url in ["mysql://a:secret@b", "embedded:", "memory:x", "/var/x"] {
        refused(
            &format!("[store]\nurl = \"{url}\""),
            "line 2: `url` is not the URL of a store; write \"embedded:FOLDER\", \
             \"postgres://USER@HOST/DATABASE\", \"redis://HOST\", \"env:NAME\", or \"memory:\" for \
             tests",
        );
    }
    let listen_url = "listen_url = \"postgres://u:p@h/d\"";
    let store = valid(&format!(
        "[store]\nurl = \"postgres://pooler/d\"\n{listen_url}"
    ))
    .store;
    assert_eq!(
        store.listen_url.as_ref().map(|url| url.expose()),
        Some("postgres://u:p@h/d")
    );
    assert!(!format!("{store:?}").contains("u:p"), "a password is shown");
    refused(
        &format!("[store]\nurl = \"redis://h\"\n{listen_url}"),
        "line 3: `listen_url` is for a store on PostgreSQL, and url is another one; take it away",
    );
    refused(
        "[store]\nurl = \"postgres://h/d\"\nlisten_url = \"h:5432\"",
        "line 3: `listen_url` is not the URL of a PostgreSQL server; write \
         \"postgres://USER@HOST/DATABASE\" past the pooler, or \"env:NAME\"",
    );
    refused(
        "[store]\nlease = \"10ms\"",
        "line 2: `lease` is below one second; write at least \"1s\"",
    );
    refused(
        "[store]\nmax_bytes = \"32MiB\"",
        "line 2: `max_bytes` is below two segments; write 0 for no limit, at least 67108864 \
         bytes, or lower segment_bytes",
    );
}

/// A cost as `prices` tells it.
fn cost_of(config: &Config, tenant: &str, model: &str, status: u16) -> String {
    let mut metered = Metered {
        provider: "openai".into(),
        model: model.into(),
        usage: [(Unit::Input, 1_000_000)].into_iter().collect(),
        ..Metered::default()
    };
    let sale = Sale {
        tenant,
        seller: None,
        per_call: config.routes[0].per_call.as_ref(),
        status,
        at: Timestamp::from_millis(1_795_680_000_000),
    };
    let prices = config.prices().expect("list prices");
    prices.price(&mut metered, &sale);
    metered.cost.map_or("none".to_owned(), |cost| {
        format!("{} {}", cost.amount, cost.basis)
    })
}

#[test]
fn tenants_have_prices_of_their_own() {
    let config = valid(
        "[[tenant]]\nname = \"acme\"\ncredentials = [\"a\"]\n\
         [[tenant.price]]\nprovider = \"openai\"\nmodel = \"gpt-5*\"\ninput = \"1.10\"\noutput = 9\n\
         cache_read = 0.11\n\
         [[tenant.price]]\nmodel = \"gpt-4o*\"\nper_call = \"0.002\"\n\
         [[tenant.price]]\nfactor = 0.9\n\
         [[tenant]]\nname = \"other\"\ncredentials = [\"b\"]",
    );
    assert_eq!(config.tenants[0].prices.len(), 3);
    assert!(config.tenants[1].prices.is_empty());
    assert_eq!(cost_of(&config, "acme", "gpt-5-mini", 200), "1.10 tenant");
    assert_eq!(cost_of(&config, "acme", "gpt-4o-mini", 200), "0.002 tenant");
    assert_eq!(cost_of(&config, "acme", "o3", 200), "1.80 tenant");
    assert_eq!(cost_of(&config, "other", "gpt-5", 200), "1.25 table");
}

#[test]
fn a_tenants_price_that_says_no_cost_is_refused() {
    for (lines, message) in [
        (
            "inptu = \"1\"\noutput = \"1\"",
            "line 5: [[tenant.price]] number 1 has no setting `inptu`; did you mean `input`?",
        ),
        (
            "requests = \"1\"\noutput = \"1\"",
            "line 5: [[tenant.price]] number 1 has no setting `requests`; take it away, or use one of: \
             cache_read, cache_read_audio, cache_read_image, cache_write, cache_write_1h, \
             cache_write_5m, factor, input, input_audio, input_characters, input_image, input_pages, \
             input_video, model, output, output_audio, output_image, output_video, per_call, \
             provider, reasoning, storage_searches, tool_input, web_searches",
        ),
        (
            "model = \"gpt-5\"",
            "line 4: a [[tenant.price]] says no price; write prices of units like input = \"1.25\", or \
             per_call, or factor",
        ),
        (
            "input = \"1\"\nfactor = \"0.9\"",
            "line 6: `factor` stands beside another kind of price; keep one of the three: prices of \
             units, per_call, or factor",
        ),
        (
            "input = \"-1\"",
            "line 5: `input` cannot be \"-1\"; write dollars for 1,000,000 of them, below a million and \
             with up to 15 decimals, like \"1.25\"",
        ),
        (
            "input = true",
            "line 5: `input` is true or false, and it must be a decimal number; write it like \"1.25\"",
        ),
        (
            "output = 1\ncache_read = 1",
            "line 6: `cache_read` is a price of a part of `input`, which has no price; set input too",
        ),
        (
            "input = 1\ncache_read = 1\ninput_audio = 1",
            "line 6: `cache_read` and `input_audio` are prices of what may be both, which has no \
             price; set cache_read_audio too",
        ),
        (
            "input = 1\ncache_write = 1\ninput_audio = 1",
            "line 6: `cache_write` and `input_audio` are prices of what may be both, which has no \
             price; take one of the two away",
        ),
        (
            "per_call = \"free\"",
            "line 5: `per_call` cannot be \"free\"; write dollars for a call, below a million and with \
             up to 9 decimals, like \"0.002\"",
        ),
        (
            "factor = \"90%\"",
            "line 5: `factor` cannot be \"90%\"; write how many times the list price it is, with up to \
             6 decimals, like \"0.9\"",
        ),
    ] {
        let tenant = "[[tenant]]\nname = \"a\"\ncredentials = [\"x\"]\n";
        refused(&format!("{tenant}[[tenant.price]]\n{lines}"), message);
    }
}

#[test]
fn a_route_has_a_price_of_its_calls() {
    let with = |lines: &str| {
        read(&format!(
            "{UPSTREAM}[[route]]\nupstream = \"up\"\n{lines}\n"
        ))
        .unwrap_or_else(|error| panic!("{error}"))
    };
    let config = with("per_call = \"0.002\"");
    assert_eq!(cost_of(&config, "acme", "gpt-5", 201), "0.002 route");
    assert_eq!(cost_of(&config, "acme", "gpt-5", 402), "0.00 route");
    let config = with("per_call = 0.002\ncharge_on = [\"2xx\", 402]");
    assert_eq!(cost_of(&config, "acme", "gpt-5", 402), "0.002 route");
    assert_eq!(cost_of(&config, "acme", "gpt-5", 500), "0.00 route");
    assert_eq!(cost_of(&with(""), "acme", "gpt-5", 201), "1.25 table");
    for (lines, message) in [
        (
            "charge_on = \"2xx\"",
            "line 6: `charge_on` has no effect without `per_call`; set per_call too, or take it away",
        ),
        (
            "per_call = 1\ncharge_on = \"20x\"",
            "line 7: `charge_on` cannot be \"20x\"; write a class or a status, like \"2xx\" or \
             [\"2xx\", 402]",
        ),
        (
            "per_call = 1\ncharge_on = [\"2xx\", 700]",
            "line 7: `charge_on`[1] cannot be \"700\"; write a class or a status, like \"2xx\" or \
             [\"2xx\", 402]",
        ),
        (
            "per_call = 1\ncharge_on = []",
            "line 7: `charge_on` is empty; write a class or a status, like \"2xx\" or [\"2xx\", 402]",
        ),
    ] {
        refused_in_route(lines, message);
    }
}

#[test]
fn a_route_of_kind_mcp_starts_from_its_preset_and_says_what_it_cannot_have() {
    let route = |text: &str| {
        let text = format!("{UPSTREAM}[[route]]\nupstream = \"up\"\n{text}\n");
        read(&text).unwrap_or_else(|error| panic!("{error}")).routes[0].clone()
    };
    let plain = route("kind = \"mcp\"");
    assert_eq!(plain.kind, RouteKind::Mcp);
    assert_eq!(
        plain.policy.mcp.release_codes,
        [-32700, -32600, -32601, -32602]
    );
    assert!(plain.policy.mcp.trust_annotations && plain.policy.releases(404));
    assert!(!route("").policy.releases(404));
    let own = route(
        "kind = \"mcp\"\n[route.mcp]\nrelease_codes = []\ntrust_annotations = false\n\
         meta_keys = [\"a\"]\nprotect = [\"b\"]\npass = [\"c\"]",
    );
    let expected = Mcp {
        meta_keys: vec!["a".into()],
        release_codes: Vec::new(),
        trust_annotations: false,
        protect: vec!["b".into()],
        pass: vec!["c".into()],
    };
    assert_eq!(own.policy.mcp, expected);
    for (lines, message) in [
        (
            "kind = \"mpc\"",
            "line 6: `kind` cannot be \"mpc\"; did you mean \"mcp\"?",
        ),
        (
            "[route.mcp]\npass = [\"a\"]",
            "line 4: [route.mcp] has no effect on a route of another kind; set kind = \"mcp\", or take \
             it away",
        ),
        (
            "kind = \"mcp\"\nkey = \"observe\"",
            "line 4: kind = \"mcp\" cannot be with key = \"observe\": a message and its repeat differ \
             in their ids; take key away",
        ),
        (
            "kind = \"mcp\"\nfingerprint_body = \"bytes\"",
            "line 4: kind = \"mcp\" compares calls as JSON, and fingerprint_body is \"bytes\"; take it \
             away, or let the upstream's preset extend \"mcp\"",
        ),
        (
            "kind = \"mcp\"\n[route.mcp]\nprotect = [\"a\"]\npass = [\"a\"]",
            "line 9: `pass` names \"a\", which `protect` names too; take it out of one of the two",
        ),
        (
            "kind = \"mcp\"\n[route.mcp]\nrelease_codes = [-1.5]",
            "line 8: `release_codes`[0] is a number, and it must be a whole number; write it like \
             -99999",
        ),
        (
            "kind = \"mcp\"\n[route.mcp]\nrelease_codes = [-100000]",
            "line 8: `release_codes`[0] is -100000; write a whole number from -99999 to 99999",
        ),
    ] {
        refused_in_route(lines, message);
    }
}

#[test]
fn list_prices_come_from_a_file_where_one_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("prices.json");
    let config = valid(&format!(
        "[prices]\nfile = {}",
        quoted(&file.display().to_string())
    ));
    let missing = config
        .prices()
        .expect_err("there is no such file")
        .to_string();
    assert!(
        missing.contains("prices.json: the file of prices cannot be read"),
        "{missing}"
    );
    std::fs::write(&file, "{}").expect("a file");
    let wrong = config.prices().expect_err("it holds no prices").to_string();
    assert!(
        wrong.contains("prices.json: it is not the data of genai-prices"),
        "{wrong}"
    );
    let table = r#"[{"id":"openai","models":[{"id":"m","match":{"equals":"m"},"prices":{"input_mtok":7}}]}]"#;
    std::fs::write(&file, table).expect("a file");
    assert_eq!(cost_of(&config, "acme", "m", 200), "7.00 table");
    assert_eq!(cost_of(&config, "acme", "gpt-5", 200), "none");
    assert_eq!(cost_of(&valid(""), "acme", "gpt-5", 200), "1.25 table");
    refused(
        "[prices]\nfil = \"a\"",
        "line 2: [prices] has no setting `fil`; did you mean `file`?",
    );
}

#[test]
fn tenants_have_names_and_credentials_of_their_own() {
    let config = valid("[[tenant]]\nname = \"acme\"\ncredentials = [\"env:TOKEN\", \"env:SHORT\"]");
    assert_eq!(config.tenants[0].credentials.len(), 2);
    for (text, message) in [
        (
            "[[tenant]]\nname = \"a\"\ncredentials = []",
            "line 3: `credentials` is empty; write credentials = [\"env:NAME\"]",
        ),
        (
            "[[tenant]]\nname = \"anonymous\"\ncredentials = [\"x\"]",
            "line 2: `name` cannot be \"anonymous\"; choose one that is not \"anonymous\" and does \
             not start with \"cred_\": those are tenants without a configured name",
        ),
        (
            "[[tenant]]\nname = \"a\"\ncredentials = [\"x\"]\n[[tenant]]\nname = \
             \"a\"\ncredentials = [\"y\"]",
            "line 5: `name` is \"a\" again; choose another name",
        ),
        (
            "[[tenant]]\nname = \"a\"\ncredentials = [\"x\"]\n[[tenant]]\nname = \
             \"b\"\ncredentials = [\"x\"]",
            "line 6: `credentials`[0] is a credential that was already given; a credential belongs \
             to one tenant; take one of the two away",
        ),
        (
            "[[tenant]]\nname = \"a b\"\ncredentials = [\"x\"]",
            "line 2: `name` cannot be \"a b\"; use up to 128 letters, digits and . _ - : /",
        ),
    ] {
        refused(text, message);
    }
}

#[test]
fn workers_have_a_route_of_their_own() {
    let token = "[server]\ncontrol_token = \"0123456789abcdef0123456789abcdef\"\n";
    // They need no upstream.
    let alone = read(&format!("{token}[[route]]\nkind = \"work\"\n")).unwrap();
    assert!(alone.routes.is_empty());
    assert_eq!(alone.work(None, "/v1/work"), Some("/v1/work"));
    assert_eq!(
        alone.work(Some("any"), "/v1/work/op_1/fail"),
        Some("/v1/work/op_1/fail")
    );
    assert_eq!(alone.work(None, "/v1/exec"), Some("/v1/exec"));
    assert_eq!(alone.work(None, "/v1/worker"), None);
    assert_eq!(alone.work(None, "/v1/operations"), None);
    let beside = valid(&format!(
        "{token}[[route]]\nkind = \"work\"\nhost = \"w\"\npath_prefix = \"/a/\""
    ));
    assert_eq!(beside.routes.len(), 1);
    assert_eq!(beside.work(Some("W:80"), "/a/v1/work"), Some("/v1/work"));
    assert_eq!(beside.work(Some("W:80"), "/v1/work"), None);
    assert_eq!(beside.work(None, "/a/v1/work"), None);
    refused(
        "[[route]]\nkind = \"work\"",
        "line 1: workers could not be told from anybody else: there is no token; set \
         server.control_token, or a [[server.token]] with rights = [\"work\"]",
    );
    refused(
        &format!("{token}[[route]]\nkind = \"work\"\nupstream = \"up\""),
        "line 5: [[route]] number 1 has no setting `upstream`; take it away, or use one of: host, kind, path_prefix",
    );
    refused_in_route(
        "kind = \"worker\"",
        "line 6: `kind` cannot be \"worker\"; did you mean \"work\"?",
    );
}

#[test]
fn an_upstream_has_an_address() {
    let at = |url: &str| {
        let text = format!("[[upstream]]\nname = \"up\"\nurl = \"{url}\"\n");
        read(&text).map(|config| Upstream::clone(&config.upstreams[0]))
    };
    let upstream = at("https://api.example.com/base/").unwrap();
    assert!(upstream.tls);
    assert_eq!((&*upstream.host, upstream.port), ("api.example.com", 443));
    assert_eq!(upstream.authority.as_str(), "api.example.com");
    assert_eq!(&*upstream.base_path, "/base");
    let upstream = at("http://[::1]:9000").unwrap();
    assert_eq!(
        (&*upstream.host, upstream.port, upstream.tls),
        ("::1", 9000, false)
    );
    assert_eq!(&*upstream.base_path, "");
    for (url, why) in [
        (
            "api.example.com",
            "cannot be \"api.example.com\": it does not start with http:// or \
          https://",
        ),
        (
            "ftp://a",
            "cannot be \"ftp://a\": it does not start with http:// or https://",
        ),
        (
            "http://a?x=1",
            "cannot be \"http://a?x=1\": it has a query or a fragment",
        ),
        (
            "http://a b",
            "cannot be \"http://a b\": it is not an http or https address",
        ),
        (
            "http://a:99999",
            "cannot be \"http://a:99999\": its port is not a number up to 65535",
        ),
        (
            "http://a:0",
            "cannot be \"http://a:0\": nothing listens on port 0",
        ),
        (
            "https://user:sk-1@a",
            "holds a user or a password; callers send their own",
        ),
    ] {
        let error = at(url).unwrap_err();
        assert_eq!(error.line, Some(3));
        assert_eq!(error.what, format!("`url` {why}"));
    }
}

#[test]
fn an_upstreams_settings_are_checked() {
    let with = |lines: &str| mistake(&format!("{UPSTREAM}{lines}\n"));
    assert_eq!(
        with("preset = \"opanai\""),
        "onlyonce.toml line 4: `preset` cannot be \"opanai\"; did you mean \"openai\"?"
    );
    assert_eq!(
        with("preset = \"acme-ai\""),
        "onlyonce.toml line 4: `preset` cannot be \"acme-ai\"; use one of: anthropic, bedrock, \
         cohere, gemini, generic, mcp, mistral, openai, openrouter, stripe"
    );
    assert_eq!(
        with("tls_roots = \"ca.pem\""),
        "onlyonce.toml line 4: `tls_roots` has no effect on an http address; take it away, or \
         write an https address"
    );
    assert_eq!(
        with(UPSTREAM),
        "onlyonce.toml line 5: `name` is \"up\" again; choose another name"
    );
    assert_eq!(
        mistake(""),
        "onlyonce.toml: there is no upstream; add [[upstream]] with a name and a url"
    );
    assert_eq!(
        with("[[upstream]]\nname = \"other\"\nurl = \"http://b\""),
        "onlyonce.toml: there are several upstreams and no route; add a [[route]] for each, with a \
         path_prefix or a host"
    );
}

#[test]
fn a_route_names_its_upstream_and_what_is_its() {
    let error = mistake(&format!("{UPSTREAM}[[route]]\nupstream = \"upp\"\n"));
    assert_eq!(
        error,
        "onlyonce.toml line 5: `upstream` names no upstream: \"upp\"; did you mean \"up\"?"
    );
    for prefix in ["v1", "/a//b", "/a/../b", "/a?x", "/a%20b"] {
        refused_in_route(
            &format!("path_prefix = \"{prefix}\""),
            &format!(
                "line 6: `path_prefix` cannot be \"{prefix}\"; write the start of a path, like \
                 \"/v1\", without `?`, `%`, `..` or empty segments"
            ),
        );
    }
    refused_in_route(
        "host = \"a.example:80\"",
        "line 6: `host` cannot be \"a.example:80\"; write the host alone, without scheme, port or \
         path",
    );
    refused_in_route(
        "path_prefix = \"/v1\"\n[[route]]\nupstream = \"up\"\npath_prefix = \"/v1/\"",
        "line 7: two routes are for /v1; take one away, or give it another host or path_prefix",
    );
    refused_in_route(
        "name = \"r\"\n[[route]]\nname = \"r\"\nupstream = \"up\"\npath_prefix = \"/v1/\"",
        "line 7: two routes are named \"r\"; give this one another name",
    );
}

#[test]
fn a_host_goes_before_none_and_a_long_prefix_before_a_short_one() {
    let route = |name: &str, more: &str| {
        format!("[[route]]\nname = \"{name}\"\nupstream = \"up\"\n{more}\n")
    };
    let text = [
        UPSTREAM.to_owned(),
        route("all", ""),
        route("v1", "path_prefix = \"/v1\""),
        route("chat", "path_prefix = \"/v1/chat/\""),
        route("host", "host = \"A.example\""),
        route("host-v1", "host = \"a.example\"\npath_prefix = \"/v1\""),
    ]
    .concat();
    let config = read(&text).unwrap();
    for (host, path, expected) in [
        (None, "/", "all"),
        (None, "/v1", "v1"),
        (None, "/v1x", "all"),
        (None, "/v1/models", "v1"),
        (None, "/v1/chat", "chat"),
        (None, "/v1/chat/completions", "chat"),
        (Some("b.example"), "/v1/chat", "chat"),
        (Some("a.example"), "/v1/chat", "host-v1"),
        (Some("a.EXAMPLE:8787"), "/v2", "host"),
        (Some("[::1]:8787"), "/v2", "all"),
    ] {
        let route = config.route(host, path).unwrap();
        assert_eq!(&*route.name, expected, "{host:?} {path}");
        assert!(Arc::ptr_eq(route, &config.routes[route.index]));
    }
    let narrow = read(&format!(
        "{UPSTREAM}[[route]]\nupstream = \"up\"\npath_prefix = \"/v1\"\n"
    ));
    assert!(narrow.unwrap().route(None, "/v2").is_none());
}

#[test]
fn every_policy_setting_is_read() {
    let policy = policy(
        "key = \"derived\"\nkey_headers = [\"PayPal-Request-Id\"]\nderived_window = \"1m\"\n\
         concurrent = \"reject\"\njoin_timeout = \"2s\"\non_unknown = \"resend:may-run-twice\"\n\
         client_gone = \"cancel\"\nforward = \"after-durable\"\nwindow = \"7d\"\n\
         release = [529, 429, 429]\nfingerprint_headers = [\"X-A\"]\nfingerprint_body = \"json\"\n\
         ignore_pointers = [\"/a~1b/0\"]\nforward_key = \"X-Key\"\nupstream_honours_keys = true\n\
         allow_set_cookie = true\nallow_close_delimited = true\nstreams = []\nlate_answer = \"0s\"\n\
         connect_timeout = \"1s\"\nfirst_byte_timeout = \"2s\"\nbetween_bytes_timeout = \"3s\"\n\
         total_timeout = \"4s\"\ncredential_query = \"key\"\nusage = [\"openai-chat\"]\n\
         include_usage = \"add\"\nobserve_window = \"5m\"\n\
         retries = { max = 3, backoff = \"1ms\", max_backoff = \"2ms\", budget = 0.5 }",
    );
    let expected = Policy {
        key: KeyMode::Derived,
        key_headers: vec!["paypal-request-id".parse().unwrap()],
        derived_window: Duration::from_secs(60),
        concurrent: onlyonce_core::Concurrent::Reject,
        join_timeout: Duration::from_secs(2),
        on_unknown: OnUnknown::ResendMayRunTwice,
        client_gone: ClientGone::Cancel,
        forward: Forward::AfterDurable,
        window: Duration::from_secs(7 * 86_400),
        release: vec![429, 529],
        fingerprint_headers: vec!["x-a".parse().unwrap()],
        fingerprint_body: FingerprintBody::Json,
        ignore_pointers: policy.ignore_pointers.clone(),
        forward_key: ForwardKey::In("x-key".parse().unwrap()),
        upstream_honours_keys: true,
        allow_set_cookie: true,
        allow_close_delimited: true,
        streams: [].into(),
        late_answer: Duration::ZERO,
        connect_timeout: Duration::from_secs(1),
        first_byte_timeout: Duration::from_secs(2),
        between_bytes_timeout: Duration::from_secs(3),
        total_timeout: Duration::from_secs(4),
        credential_query: Some("key".into()),
        retries: Retries {
            max: 3,
            backoff: Duration::from_millis(1),
            max_backoff: Duration::from_millis(2),
            budget: 0.5,
        },
        usage: policy.usage.clone(),
        include_usage: IncludeUsage::Add,
        observe_window: Duration::from_secs(300),
        mcp: Mcp::default(),
    };
    assert_eq!(policy, expected);
    assert_eq!(policy.ignore_pointers.len(), 1);
    assert_eq!(usage(&policy), ["openai-chat"]);
    assert!(policy.releases(529) && !policy.releases(503));
}

#[test]
fn mistakes_in_a_policy_say_what_to_write() {
    for (lines, message) in [
        (
            "observe_window = \"0s\"",
            "line 6: `observe_window` is 0; write a duration above 0, like \"10s\"",
        ),
        (
            "include_usage = \"yes\"",
            "line 6: `include_usage` cannot be \"yes\"; use one of: as-asked, add",
        ),
        (
            "include_usage = \"add\"",
            "line 4: include_usage = \"add\" has no effect: no format in `usage` needs it; take it \
             away, or name a format with include_usage = true, like \"openai-chat\"",
        ),
        (
            "key = \"requierd\"",
            "line 6: `key` cannot be \"requierd\"; did you mean \"required\"?",
        ),
        (
            "concurrent = \"wait\"",
            "line 6: `concurrent` cannot be \"wait\"; use one of: join, reject",
        ),
        (
            "key_headers = []",
            "line 6: `key_headers` is empty; name at least one header",
        ),
        (
            "key_headers = [\n\"A\",\n\"a\"]",
            "line 8: `key_headers`[1] names a again; take one of the two away",
        ),
        (
            "key_headers = [\"not a header\"]",
            "line 6: `key_headers`[0] cannot be \"not a header\"; write the name of an HTTP \
             header, like \"Idempotency-Key\"",
        ),
        (
            "key_headers = [\"Authorization\"]",
            "line 6: `key_headers`[0] cannot be authorization, which carries something else; choose \
             a header of its own for the key, like \"Idempotency-Key\"",
        ),
        (
            "forward_key = \"Host\"",
            "line 6: `forward_key` cannot be host, which carries something else; choose a header of \
             its own for the key, like \"Idempotency-Key\"",
        ),
        (
            "streams = [\"x\"]",
            "line 6: `streams`[0] is a string, and it must be a table; write it like { begins = \
             \"...\", ends = [\"...\"] }",
        ),
        (
            "release = [200]",
            "line 6: `release`[0] is 200; write a whole number from 400 to 599",
        ),
        (
            "release = 503",
            "line 6: `release` is a whole number, and it must be a list; write it like [401, 429, \
             503]",
        ),
        (
            "ignore_pointers = [\"/a\"]",
            "line 6: `ignore_pointers` has no effect on bytes; set fingerprint_body = \"json\" \
             beside it, or take it away",
        ),
        (
            "fingerprint_headers = [\"X-A\", \"TraceParent\"]",
            "line 6: `fingerprint_headers`[1] is traceparent, which differs from attempt to attempt; \
             take it away: a retry would be another request",
        ),
        (
            "fingerprint_body = \"json\"\nignore_pointers = [\"a\"]",
            "line 7: `ignore_pointers`[0] is \"a\", which is no JSON pointer; write it like \
             \"/metadata/trace_id\" (RFC 6901: `~` is ~0, `/` in a name is ~1)",
        ),
        (
            "retries = { budget = 2 }",
            "line 6: `budget` is 2; write a number from 0 to 1",
        ),
        (
            "retries = { max_backoff = \"1ms\" }",
            "line 6: `retries` has a max_backoff below its backoff; raise max_backoff, or lower \
             backoff",
        ),
    ] {
        refused_in_route(lines, message);
    }
}

#[test]
fn a_resend_needs_an_upstream_that_honours_keys_or_the_words() {
    let words = "set upstream_honours_keys = true if it does, write \"resend:may-run-twice\" if \
                 you accept that, or leave \"report\"";
    refused_in_route(
        "on_unknown = \"resend\"",
        &format!(
            "line 6: `on_unknown` is \"resend\", and the upstream is not known to honour keys, so \
             that a resend may run twice; {words}"
        ),
    );
    refused_in_route(
        "on_unknown = \"resend\"\nupstream_honours_keys = true\nforward_key = \"\"",
        "line 6: `on_unknown` is \"resend\", and forward_key = \"\" keeps the key from the \
         upstream, so that a resend may run twice; set forward_key to the header that the upstream \
         reads",
    );
    refused_in_route(
        "upstream_honours_keys = true\nforward_key = \"\"",
        "line 4: upstream_honours_keys is true, and forward_key = \"\" keeps the key from the \
         upstream; set forward_key to the header that the upstream reads, or upstream_honours_keys \
         = false",
    );
    assert_eq!(
        policy("on_unknown = \"resend\"\nupstream_honours_keys = true").on_unknown,
        OnUnknown::Resend
    );
    assert_eq!(
        policy("on_unknown = \"resend:may-run-twice\"").on_unknown,
        OnUnknown::ResendMayRunTwice
    );
}

#[test]
fn a_route_cannot_take_away_what_the_presets_resend_relies_on() {
    let text = "[[preset]]\nname = \"mine\"\nextends = \"stripe\"\non_unknown = \"resend\"\n\
                [[upstream]]\nname = \"up\"\nurl = \"http://a\"\npreset = \"mine\"\n\
                [[route]]\nupstream = \"up\"\n";
    let config = read(text).unwrap();
    assert_eq!(config.routes[0].policy.on_unknown, OnUnknown::Resend);
    let error = read(&format!("{text}upstream_honours_keys = false\n")).unwrap_err();
    assert_eq!(error.line, Some(9));
    assert_eq!(error.next, "set on_unknown = \"report\" here");
}

/// The names of the formats of a policy.
fn usage(policy: &Policy) -> Vec<&str> {
    policy.usage.iter().map(|format| format.name()).collect()
}

const FORMAT: &str = "name = \"mine\"\npaths = \"/v1/run\"\nprovider = \"me\"\n\
                      units = { input = \"/in\" }\n";

#[test]
fn formats_of_usage_are_named_or_written_where_they_are_used() {
    let route = |lines: &str| {
        format!("{UPSTREAM}preset = \"openai\"\n[[route]]\nupstream = \"up\"\n{lines}")
    };
    let of = |text: &str| {
        let config = read(text).unwrap_or_else(|error| panic!("{error}"));
        config.routes[0].policy.clone()
    };
    let openai = [
        "openai-chat",
        "openai-completions",
        "openai-responses",
        "openai-embeddings",
    ];
    assert_eq!(usage(&of(&route(""))), openai);
    assert!(usage(&of(&route("usage = []\n"))).is_empty());
    let named = route("usage = [\"mine\", \"openai-chat\", \"cohere-chat\"]\n");
    let policy = of(&format!("[[usage]]\n{FORMAT}{named}"));
    assert_eq!(usage(&policy), ["mine", "openai-chat", "cohere-chat"]);
    assert!(policy.usage[0].matches("/v1/run"));
    assert_eq!(
        usage(&of(&route(&format!("[[route.usage]]\n{FORMAT}")))),
        ["mine"]
    );
    // Those of a preset are known to what stands below it.
    let preset = format!(
        "[[preset]]\nname = \"a\"\n[[preset.usage]]\n{FORMAT}\
                          [[preset]]\nname = \"b\"\nextends = \"a\"\n"
    );
    let upstream = format!("{preset}{UPSTREAM}preset = \"b\"\n");
    assert_eq!(usage(&of(&upstream)), ["mine"]);
    let text = format!("{preset}{}", route("usage = [\"openai-chat\", \"mine\"]\n"));
    assert_eq!(usage(&of(&text)), ["openai-chat", "mine"]);
}

#[test]
fn mistakes_in_a_format_name_their_line() {
    for (old, new, message) in [
        (
            "paths",
            "pathz",
            "line 3: `usage`[0] has a mistake: unknown field `pathz`, expected one of `name`, \
             `paths`, `provider`, `prices`, `operation`, `within`, `model`, `response_id`, `tier`, \
             `at`, `units`, `cost`, `complete`, `include_usage`, `per_call`, `charge_on`; \
             docs/presets.md describes the keys",
        ),
        (
            "provider = \"me\"",
            "operation = \"chat\"",
            "line 1: `usage`[0] has a mistake: missing field `provider`; docs/presets.md describes \
             the keys",
        ),
        (
            "\"/v1/run\"",
            "[\"/v1/run\", 7]",
            "line 3: `usage`[0] has a mistake: invalid type: integer `7`, expected a string; \
             docs/presets.md describes the keys",
        ),
        (
            "\"/v1/run\"",
            "\"v1/run\"",
            "line 3: `paths` holds \"v1/run\", which does not start with / or **; write it like \
             \"/v1/chat/completions\", \"**/messages\" or \"/model/{model}/converse\"",
        ),
        (
            "\"/in\"",
            "\"in\"",
            "line 5: `units.input` is \"in\", which is no JSON pointer; write it like \
             \"/usage/input_tokens\" (RFC 6901: `~` is ~0, `/` in a name is ~1)",
        ),
        (
            "name = \"mine\"",
            "name = \"openai-chat\"",
            "line 2: `name` is \"openai-chat\", and there is a format of that name; choose another \
             name",
        ),
    ] {
        assert!(FORMAT.contains(old), "{old}");
        refused(&format!("[[usage]]\n{}", FORMAT.replace(old, new)), message);
    }
    let error = mistake(&format!(
        "[[usage]]\n{}{UPSTREAM}",
        FORMAT.replace("input", "inptu")
    ));
    assert!(
        error.starts_with("onlyonce.toml line 5: `units.inptu` is no unit; use one of: input, ")
    );
    refused(
        "usage = [\"openai-chat\"]",
        "line 1: `usage`[0] is a string, and it must be a table; write it like [[usage]]",
    );
    refused_in_route(
        "usage = [\"openai-chta\"]",
        "line 6: `usage`[0] cannot be \"openai-chta\"; did you mean \"openai-chat\"?",
    );
    refused_in_route(
        "usage = [\"openai-chat\", \"openai-chat\"]",
        "line 6: `usage`[1] is \"openai-chat\" again; take one of the two away",
    );
    refused_in_route(
        "usage = \"openai-chat\"",
        "line 6: `usage` is a string, and it must be a list; write it like [\"openai-chat\", \
         \"mine\"]",
    );
}

#[test]
fn the_documentation_of_presets_names_their_formats() {
    let page = include_str!("../../../../docs/presets.md");
    let presets = crate::presets::Presets::built_in().unwrap();
    for name in presets.names() {
        let policy = presets.policy(name);
        let formats: Vec<_> = usage(&policy)
            .iter()
            .map(|name| format!("`{name}`"))
            .collect();
        if !formats.is_empty() {
            let row = format!("\n| {name} | {} |\n", formats.join(", "));
            assert!(page.contains(&row), "{row}");
        }
    }
}

#[test]
fn the_built_in_presets_know_their_upstreams() {
    let of = |preset: &str| {
        let text = format!("{UPSTREAM}preset = \"{preset}\"\n");
        read(&text).unwrap().routes[0].policy.clone()
    };
    assert_eq!(of("generic"), Policy::default());
    assert_eq!(of("openai").release, [401, 403, 429, 503]);
    assert_eq!(of("anthropic").release, [401, 402, 403, 429, 503, 529]);
    assert_eq!(of("gemini").release, [401, 403, 429, 503]);
    assert_eq!(of("bedrock").release, [401, 403, 429, 503]);
    assert_eq!(of("mistral").release, [401, 429, 503]);
    assert_eq!(of("cohere").release, [401, 429, 503]);
    assert_eq!(of("openrouter").release, [401, 402, 429, 503]);
    assert_eq!(of("gemini").credential_query.as_deref(), Some("key"));
    let stripe = of("stripe");
    assert_eq!(stripe.release, [401, 409, 429, 503]);
    assert!(stripe.upstream_honours_keys);
    assert_eq!(
        stripe.forward_key,
        ForwardKey::In("idempotency-key".parse().unwrap())
    );
    assert_eq!(stripe.on_unknown, OnUnknown::Report);
    for preset in [
        "generic",
        "openai",
        "anthropic",
        "gemini",
        "bedrock",
        "mistral",
        "cohere",
        "openrouter",
    ] {
        let policy = of(preset);
        assert!(!policy.upstream_honours_keys, "{preset}");
        assert_eq!(policy.forward_key, ForwardKey::AsItCame, "{preset}");
        assert!(!policy.releases(500), "{preset}: a 500 may have run");
    }
}

#[test]
fn presets_of_ones_own_extend_others() {
    let config = read(
        "[[preset]]\nname = \"mine\"\nextends = \"openai\"\nrelease = [418]\n\
         [[preset]]\nname = \"more\"\nextends = \"mine\"\nwindow = \"1h\"\n\
         [[upstream]]\nname = \"up\"\nurl = \"http://a\"\npreset = \"more\"\n\
         [[route]]\nupstream = \"up\"\nkey = \"required\"\n",
    );
    let policy = config.unwrap().routes[0].policy.clone();
    assert_eq!(policy.release, [418]);
    assert_eq!(policy.window, Duration::from_secs(3600));
    assert_eq!(policy.key, KeyMode::Required);
    assert_eq!(policy.fingerprint_headers.len(), 3);
    refused(
        "[[preset]]\nname = \"openai\"",
        "line 2: `name` is \"openai\", and there is a preset of that name; choose another name, \
         and extends = \"openai\" to start from it",
    );
    refused(
        "[[preset]]\nname = \"mine\"\nextends = \"minne\"",
        "line 3: `extends` cannot be \"minne\"; use one that stands above it, or: anthropic, \
         bedrock, cohere, gemini, generic, mcp, mistral, openai, openrouter, stripe",
    );
    refused(
        "[[preset]]\nname = \"mine\"\nrelaese = [1]",
        "line 3: [[preset]] number 1 has no setting `relaese`; did you mean `release`?",
    );
}

#[test]
fn the_command_line_alone_makes_a_configuration() {
    let config =
        Config::for_upstream("https://api.openai.com/v1", "openai", &Overrides::default()).unwrap();
    assert_eq!(&*config.upstreams[0].name, "api.openai.com");
    assert_eq!(&*config.upstreams[0].preset, "openai");
    let error = Config::for_upstream("localhost:9000", "generic", &Overrides::default());
    assert_eq!(
        error.unwrap_err().to_string(),
        "the command line: --upstream cannot be \"localhost:9000\": it does not start with http:// \
         or https://; write it like \"https://api.example.com\""
    );
    let error = Config::for_upstream("http://a", "opneai", &Overrides::default());
    assert_eq!(
        error.unwrap_err().to_string(),
        "the command line: --preset cannot be \"opneai\"; did you mean \"openai\"?"
    );
}

#[test]
fn a_file_that_is_not_there_is_refused() {
    let error = Config::from_file(Path::new("/nowhere/onlyonce.toml"), &Overrides::default());
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/onlyonce.toml: the configuration file cannot be read"));
    assert!(
        error.ends_with("; name a file that exists and may be read"),
        "{error}"
    );
}

/// Every setting that a table takes, out of what it says about one that it does not.
fn settings(table: &str) -> Vec<String> {
    let error = mistake(table);
    let list = error
        .split_once("use one of: ")
        .unwrap_or_else(|| panic!("{error}"))
        .1;
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_documentation_names_every_setting_and_its_default() {
    let page = include_str!("../../../../docs/configuration.md");
    let nobody = "qqqqqqqqqqqqqqqqqqqqqqqq = 1\n";
    let tables = [
        format!("[server]\n{nobody}"),
        format!("[[server.token]]\nname = \"a\"\ntoken = \"b\"\nrights = [\"read\"]\n{nobody}"),
        format!("[server.tls]\ncert = \"a\"\nkey = \"b\"\n{nobody}"),
        format!("[store]\n{nobody}"),
        format!("[limits]\n{nobody}"),
        format!("[prices]\n{nobody}"),
        format!("[[tenant]]\nname = \"a\"\ncredentials = [\"b\"]\n{nobody}"),
        format!(
            "[[tenant]]\nname = \"a\"\ncredentials = [\"b\"]\n[[tenant.price]]\nfactor = 1\n{nobody}"
        ),
        format!("[[preset]]\nname = \"a\"\n{nobody}"),
        format!("{UPSTREAM}{nobody}"),
        format!("{UPSTREAM}[[route]]\nupstream = \"up\"\n{nobody}"),
        format!("{UPSTREAM}[[route]]\nupstream = \"up\"\nkind = \"mcp\"\n[route.mcp]\n{nobody}"),
    ];
    for table in tables {
        let settings = settings(&table);
        assert!(!settings.is_empty(), "{table}");
        let tables = ["encryption", "tls", "token", "price", "mcp"];
        for setting in settings
            .iter()
            .filter(|name| !tables.contains(&name.as_str()))
        {
            assert!(
                page.contains(&format!("| `{setting}` |")),
                "{setting} of {table}"
            );
        }
    }
    // Where a default is written down as it stands in a file, the file with it is the file without.
    let policy_table = page.split_once("And the policy.").unwrap().1;
    let policy_table = policy_table.split_once("## ").unwrap().0;
    let mut defaults = 0;
    for line in policy_table.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = line.split(" | ");
        let name = cells.next().unwrap().trim_matches(&['|', ' ', '`'][..]);
        let default = cells.next().unwrap();
        if let Some(default) = default
            .strip_prefix('`')
            .and_then(|rest| rest.strip_suffix('`'))
        {
            assert_eq!(
                policy(&format!("{name} = {default}")),
                Policy::default(),
                "{line}"
            );
            defaults += 1;
        }
    }
    assert!(defaults > 20, "{defaults}");
}

#[test]
fn the_documentation_of_presets_releases_what_they_release() {
    let page = include_str!("../../../../docs/presets.md");
    let presets = crate::presets::Presets::built_in().unwrap();
    for preset in presets.names() {
        let section = page.split_once(&format!("\n## {preset}\n")).unwrap().1;
        let section = section.split("\n## ").next().unwrap();
        let released: Vec<u16> = section
            .lines()
            .filter(|line| line.contains(" | released | "))
            .flat_map(|line| line.split('|').nth(1).unwrap().split([' ', ',']))
            .filter_map(|word| word.parse().ok())
            .collect();
        let text = format!("{UPSTREAM}preset = \"{preset}\"\n");
        let mut policy = read(&text).unwrap().routes[0].policy.release.clone();
        policy.sort_unstable();
        let mut documented = released;
        documented.sort_unstable();
        assert_eq!(documented, policy, "{preset}");
    }
}

#[test]
fn a_store_is_named_without_its_password() {
    for (url, place) in [
        (
            "postgres://me:secret@db:5432/app?schema=o&password=secret&sslmode=require",
            "postgres://me@db:5432/app?schema=o",
        ),
        (
            "redis://:s@cret@cache:6379/3?prefix=p",
            "redis://cache:6379/3?prefix=p",
        ),
        ("embedded:/var/x", "embedded:/var/x"),
        ("memory:", "memory:"),
    ] {
        assert_eq!(StoreUrl::parse(url).unwrap().place(), place);
    }
}

/// What `[telemetry]` is with `lines` in it, and `set` in the environment.
fn telemetry(lines: &str, set: &[(&str, &str)]) -> Result<Option<Telemetry>, ConfigError> {
    let source = Source {
        name: "onlyonce.toml",
        text: &format!("[telemetry]\n{lines}\n{UPSTREAM}"),
        env: &|name| {
            let found = set.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        },
    };
    Config::read(&source, &Overrides::default()).map(|config| config.telemetry)
}

#[test]
fn telemetry_is_off_without_an_endpoint() {
    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
    for (lines, set) in [
        ("sample = 0.5", &[][..]),
        ("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]),
        ("", &[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")]),
        (
            "endpoint = \"http://a\"",
            &[("OTEL_TRACES_EXPORTER", "none")],
        ),
    ] {
        assert!(telemetry(lines, set).unwrap().is_none(), "{lines} {set:?}");
    }
    assert!(telemetry("", &[ENDPOINT]).unwrap().is_some());
}

#[test]
fn the_file_wins_over_the_environment_and_traces_over_all_signals() {
    let all = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318/"),
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "https://traces/as/it/is",
        ),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2000"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "b=2 , c=%20d"),
        ("OTEL_SERVICE_NAME", "named"),
    ];
    let metrics = |telemetry: &Telemetry| {
        telemetry
            .metrics
            .as_ref()
            .map(http::Uri::to_string)
            .unwrap()
    };
    let by_environment = telemetry("", &all).unwrap().unwrap();
    assert_eq!(by_environment.endpoint, "https://traces/as/it/is");
    assert_eq!(metrics(&by_environment), "http://all:4318/v1/metrics");
    assert_eq!(by_environment.timeout, Duration::from_secs(2));
    let headers = |telemetry: &Telemetry| {
        let text =
            |(name, value): &(_, http::HeaderValue)| format!("{name}:{}", value.to_str().unwrap());
        telemetry.headers.iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(headers(&by_environment), ["b:2", "c: d"]);
    assert_eq!(&*by_environment.service_name, "named");

    let lines = "endpoint = \"http://file:1/base/\"\ntimeout = \"3s\"\nqueue = 7\n\
                 service_name = \"of the file\"\nheaders = { b = \"env:OTEL_SERVICE_NAME\" }";
    let by_file = telemetry(lines, &all).unwrap().unwrap();
    assert_eq!(by_file.endpoint, "http://file:1/base/v1/traces");
    assert_eq!(metrics(&by_file), "http://file:1/base/v1/metrics");
    let without = [all[1], ("OTEL_METRIC_EXPORT_INTERVAL", "250")];
    let traces_alone = telemetry("", &without).unwrap().unwrap();
    assert_eq!(traces_alone.metrics, None);
    assert_eq!(traces_alone.metrics_interval, Duration::from_millis(250));
    let none = [all[0], ("OTEL_METRICS_EXPORTER", "none")];
    assert_eq!(telemetry("", &none).unwrap().unwrap().metrics, None);
    assert_eq!(by_file.timeout, Duration::from_secs(3));
    assert_eq!((by_file.queue, &*by_file.service_name), (7, "of the file"));
    assert_eq!(headers(&by_file), ["c: d", "b:named"]);
    // I16: nor does a dump of the configuration show them.
    assert!(!format!("{by_file:?}").contains("named"));
}

#[test]
fn mistakes_in_telemetry_say_what_to_write() {
    for (lines, set, message) in [
        (
            "endpoint = \"collector:4318\"",
            &[][..],
            "line 2: `endpoint` cannot be \"collector:4318\"; write the base URL of the collector, \
             like \"http://127.0.0.1:4318\"",
        ),
        (
            "headers = { \"a b\" = \"c\" }",
            &[],
            "line 2: `a b` is not a header; write name = \"value\", or \"env:NAME\"",
        ),
        (
            "endpiont = \"\"",
            &[],
            "line 2: [telemetry] has no setting `endpiont`; did you mean `endpoint`?",
        ),
        (
            "",
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector")],
            "line 1: the environment variable OTEL_EXPORTER_OTLP_ENDPOINT is not a URL of a \
             collector; set it like http://127.0.0.1:4318, or unset it",
        ),
        (
            "",
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ],
            "line 1: OTEL_EXPORTER_OTLP_PROTOCOL is \"grpc\", and traces go by http/protobuf only; \
             unset OTEL_EXPORTER_OTLP_PROTOCOL, or set [telemetry] endpoint to a collector's HTTP \
             address",
        ),
        (
            "",
            &[("OTEL_EXPORTER_OTLP_HEADERS", "the-secret")],
            "line 1: the environment variable OTEL_EXPORTER_OTLP_HEADERS is not a list of \
             name=value; set it like name=value,name=value with values percent-encoded, or unset it",
        ),
        (
            "",
            &[("OTEL_EXPORTER_OTLP_TIMEOUT", "10s")],
            "line 1: the environment variable OTEL_EXPORTER_OTLP_TIMEOUT is \"10s\"; set it to a \
             number of milliseconds above 0, or unset it",
        ),
    ] {
        let error = telemetry(lines, set).unwrap_err().to_string();
        assert_eq!(error, format!("onlyonce.toml {message}"), "{lines} {set:?}");
    }
}
