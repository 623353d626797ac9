//! The configuration.

use onlyonce_gateway::config::{Config, ConfigError, Overrides, Source};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "config",
    holds: "any text is a configuration or one line that says where it is wrong",
    run,
    seeds,
    words: &[
        "[",
        "]",
        "[[",
        "]]",
        " = ",
        "\"",
        "'",
        "\n",
        "[[route]]\n",
        "[[upstream]]\n",
        "name = ",
        "env:X",
        "\"1h\"",
        "\"64 MiB\"",
        "true",
        "0",
        "-1",
        "99999999999999999999",
        "1e9",
        "{}",
        "*",
        "/",
        "\"http://h\"",
        "preset = \"openai\"\n",
        "[[tenant]]\n",
        "\u{20ac}",
        "\\u0000",
    ],
};

const EXAMPLE: &str = include_str!("../../../../config.example.toml");

const SMALL: &str = r#"
[server]
listen = "127.0.0.1:8787"
control_token = "env:TOKEN"
[store]
path = "data"
[limits]
max_response = "64 MiB"
[[tenant]]
name = "acme"
keys = ["env:KEY"]
[[upstream]]
name = "u"
url = "https://api.example.com/v1"
preset = "openai"
[[route]]
path = "/v1/*"
upstream = "u"
window = "24h"
on_unknown = "resend"
upstream_honours_keys = true
fingerprint = { body = "json", ignore = ["/metadata/sent_at"] }
"#;

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![SMALL.as_bytes().to_vec(), EXAMPLE.as_bytes().to_vec()];
    // Each table of the example by itself.
    let tables = EXAMPLE.split("\n\n").filter(|part| part.contains('['));
    seeds.extend(tables.map(|table| table.as_bytes().to_vec()));
    seeds
}

fn run(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let read = read(text);
    if let Err(error) = &read {
        let line = error.to_string();
        assert!(line.starts_with("file.toml"), "{line}");
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(!error.what.is_empty() && !error.next.is_empty(), "{line}");
        let lines = text.split('\n').count();
        assert!(
            error.line.is_none_or(|at| (1..=lines).contains(&at)),
            "{line}"
        );
    }
    // An empty line more says nothing more.
    let again = self::read(&format!("{text}\n"));
    let what = |read: Result<Config, ConfigError>| read.err().map(|error| error.what);
    if !text.ends_with('\r') && !text.ends_with('\\') {
        assert_eq!(
            what(again).is_some(),
            what(read).is_some(),
            "an empty line more"
        );
    }
}

fn read(text: &str) -> Result<Config, ConfigError> {
    let source = Source {
        name: "file.toml",
        text,
        env: &|name| (name != "MISSING").then(|| "a-secret-of-32-characters-or-more".to_owned()),
    };
    Config::read(&source, &Overrides::default())
}
