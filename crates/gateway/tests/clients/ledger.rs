//! The ledger is the provider's own count: whatever the real SDKs went through, it holds what the
//! provider generated for answers that were completed, once, and nothing else.

use onlyonce_testkit::{Control, Gateway, Request, eventually};
use serde_json::{Value, json};

use crate::kit::{Call, Provider, Said, base, run, run_once, setup};

const PIECES: u64 = 12;

/// An SDK, and how its calls are made.
#[derive(Clone, Copy)]
struct Sdk {
    script: &'static str,
    preset: &'static str,
    model: &'static str,
    calls: &'static [&'static str],
}

const OPENAI_PYTHON: Sdk = Sdk {
    script: "openai_client.py",
    preset: "openai",
    model: "gpt-test",
    calls: &["chat", "responses"],
};

const OPENAI_NODE: Sdk = Sdk {
    script: "openai_client.cjs",
    ..OPENAI_PYTHON
};

const ANTHROPIC_PYTHON: Sdk = Sdk {
    script: "anthropic_client.py",
    preset: "anthropic",
    model: "claude-test",
    calls: &["messages"],
};

impl Sdk {
    /// A gateway before this provider. OpenAI's streams of chats tell their use only where asked.
    fn gateway(self, provider: &Provider) -> Gateway {
        let setup = setup(provider, self.preset);
        match self.preset {
            "openai" => setup.route("include_usage = \"add\"").start(),
            _ => setup.start(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tokens {
    input: u64,
    output: u64,
}

impl Tokens {
    /// As a provider or a record tells them: nothing is told as null.
    fn told(usage: &Value) -> Self {
        let count = |name: &str| usage[name].as_u64().unwrap_or(0);
        Self {
            input: count("input"),
            output: count("output"),
        }
    }

    fn times(self, times: u64) -> Self {
        Self {
            input: self.input * times,
            output: self.output * times,
        }
    }

    fn sum(all: impl IntoIterator<Item = Self>) -> Self {
        all.into_iter().fold(Self::default(), |sum, one| Self {
            input: sum.input + one.input,
            output: sum.output + one.output,
        })
    }

    /// No more than `other`, each.
    fn fits(self, other: Self) -> bool {
        self.input <= other.input && self.output <= other.output
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// By the answer of its one execution; so many attempts joined it, or had it from the recording.
    Completed {
        joined: u64,
        replayed: u64,
    },
    Released,
    Unknown,
}

const ALONE: Ended = Ended::Completed {
    joined: 0,
    replayed: 0,
};

/// What one SDK does, and what became of each key.
struct Runs {
    sdk: Sdk,
    provider: Provider,
    gateway: Gateway,
    ended: Vec<(String, Ended)>,
}

impl Runs {
    fn of(sdk: Sdk) -> Self {
        let provider = Provider::sandbox();
        let gateway = sdk.gateway(&provider);
        Self {
            sdk,
            provider,
            gateway,
            ended: Vec::new(),
        }
    }

    fn control(&self) -> Control {
        self.gateway.control()
    }

    /// A job whose executions are found in the sandbox's ledger by their tag, which is the key. Each
    /// prompt has a length of its own, so that no two runs can be taken for each other.
    fn job(&self, call: &str, stream: bool, key: &str) -> Value {
        json!({
            "base": base(&self.gateway), "call": call, "stream": stream, "key": key,
            "prompt": "word ".repeat(3 + 2 * self.ended.len()), "max_retries": 0,
            "headers": {
                "X-Sandbox-Chunks": PIECES.to_string(), "X-Sandbox-Interval": "5ms",
                "X-Sandbox-Tag": key,
            },
        })
    }

    fn ended(&mut self, job: &Value, how: Ended) {
        let key = job["key"].as_str().expect("a key");
        let state = match how {
            Ended::Completed { .. } => "completed",
            Ended::Released => "released",
            Ended::Unknown => "unknown",
        };
        self.control().wait_for_state(key, state);
        self.ended.push((key.to_owned(), how));
    }

    fn plain(&mut self, call: &str) {
        let job = self.job(call, false, &format!("{call}-plain"));
        run_once(self.sdk.script, &job).marked("executed");
        self.ended(&job, ALONE);
    }

    fn streamed(&mut self, call: &str) {
        let job = self.job(call, true, &format!("{call}-streamed"));
        run_once(self.sdk.script, &job).marked("executed");
        self.ended(&job, ALONE);
    }

    /// Its caller dies within the stream; the execution goes on.
    fn left(&mut self, call: &str) {
        let mut job = self.job(call, true, &format!("{call}-left"));
        job["headers"]["X-Sandbox-Interval"] = json!("50ms");
        let caller = Call::start(self.sdk.script, &job);
        caller.wait_for_piece("Execution ");
        caller.kill();
        self.ended(&job, ALONE);
    }

    fn joined(&mut self, call: &str) {
        let mut job = self.job(call, true, &format!("{call}-joined"));
        job["headers"]["X-Sandbox-Interval"] = json!("250ms");
        let second = Call::prepare(self.sdk.script, &job);
        let first = Call::start(self.sdk.script, &job);
        first.wait_for_piece("Execution ");
        let second = second.go().finish();
        let first = first.finish();
        assert_eq!(first[0].marked("executed"), second[0].marked("joined"));
        self.ended(
            &job,
            Ended::Completed {
                joined: 1,
                replayed: 0,
            },
        );
    }

    fn replayed(&mut self, call: &str, stream: bool, times: u64) {
        let mut job = self.job(call, stream, &format!("{call}-replayed-{times}"));
        let first = run_once(self.sdk.script, &job);
        let key = job["key"].as_str().expect("a key").to_owned();
        self.control().wait_for_state(&key, "completed");
        job["times"] = json!(times);
        for again in run(self.sdk.script, &job) {
            assert_eq!(again.marked("replayed"), first.marked("executed"));
        }
        self.ended(
            &job,
            Ended::Completed {
                joined: 0,
                replayed: times,
            },
        );
    }

    /// Too many requests: nothing was generated.
    fn released(&mut self, call: &str) {
        let mut job = self.job(call, false, &format!("{call}-released"));
        job["headers"]["X-Sandbox-Fault"] = json!("status:429");
        run_once(self.sdk.script, &job).failed_with(429);
        self.ended(&job, Ended::Released);
    }

    /// The provider breaks the connection in place of an answer.
    fn unknown(&mut self, call: &str) {
        let mut job = self.job(call, false, &format!("{call}-unknown"));
        job["headers"]["X-Sandbox-Fault"] = json!("reset-before-head");
        run_once(self.sdk.script, &job).failed_with(502);
        self.ended(&job, Ended::Unknown);
    }

    /// The provider breaks the connection within its answer.
    fn cut(&mut self, call: &str, stream: bool) {
        let kind = if stream { "stream" } else { "answer" };
        let mut job = self.job(call, stream, &format!("{call}-cut-{kind}"));
        job["headers"]["X-Sandbox-Fault"] = json!("cut-stream");
        let said = run_once(self.sdk.script, &job);
        assert!(matches!(said, Said::Error(..)), "{said:?}");
        self.ended(&job, Ended::Unknown);
    }

    fn every_kind(&mut self) {
        for call in self.sdk.calls {
            self.plain(call);
            self.streamed(call);
            self.left(call);
            self.joined(call);
            self.released(call);
            self.unknown(call);
            self.cut(call, false);
            self.cut(call, true);
            self.replayed(call, false, 2);
            self.replayed(call, true, 3);
        }
    }

    /// The sandbox's entry of the one execution of this key.
    #[track_caller]
    fn execution(&self, key: &str) -> Value {
        let ledger = self.provider.ledger();
        let entries = ledger["entries"].as_array().expect("entries");
        let mut of_key = entries.iter().filter(|entry| entry["tag"] == key);
        let entry = of_key.next().expect("an execution").clone();
        assert!(of_key.next().is_none(), "{key} ran twice: {ledger}");
        entry
    }

    /// Compares what is told of each run with the sandbox's count of it, then the sums.
    fn compare(&self) {
        let mut books = Books::default();
        let mut partial = 0;
        for (key, how) in &self.ended {
            let execution = self.execution(key);
            let tokens = Tokens::told(&execution["usage"]);
            let metered = &self.control().operation(key)["metered"];
            match *how {
                Ended::Completed { joined, replayed } => {
                    assert_eq!(execution["outcome"], "completed", "{execution}");
                    assert_eq!(tokens.output, PIECES, "{execution}");
                    assert_eq!(Tokens::told(&metered["usage"]), tokens, "{key}: {metered}");
                    books.add(tokens, joined, replayed);
                }
                Ended::Released => {
                    assert_eq!(execution["outcome"], "failed", "{execution}");
                    assert_eq!(execution["usage"], Value::Null, "{execution}");
                    assert_eq!(metered, &Value::Null, "{key}");
                }
                Ended::Unknown => {
                    assert_eq!(execution["outcome"], "aborted", "{execution}");
                    let told = Tokens::told(&metered["usage"]);
                    assert!(told.fits(tokens), "{key}: {metered}, {execution}");
                    assert_ne!(metered["source"], "provider", "{key}: {metered}");
                    partial += told.input;
                }
            }
        }
        assert_eq!(self.provider.executions(), self.ended.len() as u64);
        // A message of Anthropic's begins with the count of its input; OpenAI tells all at the end.
        assert_eq!(partial > 0, self.sdk.preset == "anthropic", "{partial}");
        // What the sandbox counts of completed executions, without a word of the gateway's.
        let ledger = self.provider.ledger();
        let completed = ledger["entries"].as_array().expect("entries").iter();
        let completed: Vec<_> = completed
            .filter(|entry| entry["outcome"] == "completed")
            .map(|entry| Tokens::told(&entry["usage"]))
            .collect();
        assert_eq!(completed.len() as u64, books.operations);
        assert_eq!(Tokens::sum(completed), books.used);
        books.expect(&self.control(), self.sdk);
    }
}

/// What the sums of the ledger have to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Books {
    operations: u64,
    joined: u64,
    replayed: u64,
    used: Tokens,
    saved: Tokens,
}

impl Books {
    fn add(&mut self, tokens: Tokens, joined: u64, replayed: u64) {
        self.operations += 1;
        self.joined += joined;
        self.replayed += replayed;
        self.used = Tokens::sum([self.used, tokens]);
        self.saved = Tokens::sum([self.saved, tokens.times(joined + replayed)]);
    }

    fn read(sums: &Value) -> Self {
        let count = |name: &str| sums[name].as_u64().unwrap_or(0);
        Self {
            operations: count("operations"),
            joined: count("joined"),
            replayed: count("replayed"),
            used: Tokens::told(sums),
            saved: Tokens {
                input: count("saved_input"),
                output: count("saved_output"),
            },
        }
    }

    /// Waits until the sums have caught up, and panics unless they are these, of one model.
    fn expect(&self, control: &Control, sdk: Sdk) {
        let ledger = || control.json("/v1/ledger?by=provider,model");
        let mut shown = Value::Null;
        eventually("the sums have caught up", || {
            shown = ledger();
            let now = Self::read(&shown["total"]);
            now.operations >= self.operations
                && now.joined + now.replayed >= self.joined + self.replayed
        });
        assert_eq!(Self::read(&shown["total"]), *self, "{shown}");
        assert_eq!(shown["total"]["unmetered"], 0, "{shown}");
        let rows = shown["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), 1, "{shown}");
        assert_eq!(rows[0]["provider"], sdk.preset);
        assert_eq!(rows[0]["model"], sdk.model);
        assert_eq!(Self::read(&rows[0]), *self, "{shown}");
    }
}

fn is_the_sandboxs_own_count(sdk: Sdk) {
    let mut runs = Runs::of(sdk);
    runs.every_kind();
    runs.compare();
}

#[test]
fn the_ledger_of_the_openai_sdk_for_python_is_the_sandboxs_own_count() {
    is_the_sandboxs_own_count(OPENAI_PYTHON);
}

#[test]
fn the_ledger_of_the_openai_sdk_for_node_is_the_sandboxs_own_count() {
    is_the_sandboxs_own_count(OPENAI_NODE);
}

#[test]
fn the_ledger_of_the_anthropic_sdk_for_python_is_the_sandboxs_own_count() {
    is_the_sandboxs_own_count(ANTHROPIC_PYTHON);
}

/// aimock, from npm, tells of each answer the use that its fixture has, and lists in its journal what
/// it was asked for.
fn is_what_aimock_told(sdk: Sdk) {
    let folder = tempfile::tempdir().expect("a folder");
    let fixture = |prompt: &str, tokens: Tokens| {
        let (input, output) = (tokens.input, tokens.output);
        json!({ "match": { "userMessage": prompt }, "chunkSize": 6, "response": {
            "content": format!("This is the answer of {prompt}."),
            "usage": { "prompt_tokens": input, "completion_tokens": output,
                "total_tokens": input + output },
        } })
    };
    let [plain, streamed] =
        [(1_009, 211), (10_007, 2_003)].map(|(input, output)| Tokens { input, output });
    let fixtures = json!([fixture("plain", plain), fixture("streamed", streamed)]);
    let aimock = Provider::aimock(folder.path(), &fixtures);
    let gateway = sdk.gateway(&aimock);
    let mut books = Books::default();
    for call in sdk.calls {
        for (prompt, stream, tokens, replayed) in
            [("plain", false, plain, 2), ("streamed", true, streamed, 3)]
        {
            let key = format!("{call}-{prompt}");
            let mut job = json!({
                "base": base(&gateway), "call": call, "stream": stream, "key": key,
                "prompt": prompt, "max_retries": 0,
            });
            let first = run_once(sdk.script, &job);
            gateway.control().wait_for_state(&key, "completed");
            job["times"] = json!(replayed);
            for again in run(sdk.script, &job) {
                assert_eq!(again.marked("replayed"), first.marked("executed"));
            }
            books.add(tokens, 0, replayed);
        }
    }
    let journal = aimock.ask(&Request::get("/__aimock/journal"));
    let asked = journal.as_array().expect("a journal").len() as u64;
    assert_eq!(asked, books.operations, "{journal}");
    books.expect(&gateway.control(), sdk);
}

#[test]
fn the_ledger_of_the_openai_sdk_for_python_is_what_aimock_told() {
    is_what_aimock_told(OPENAI_PYTHON);
}

#[test]
fn the_ledger_of_the_openai_sdk_for_node_is_what_aimock_told() {
    is_what_aimock_told(OPENAI_NODE);
}

#[test]
fn the_ledger_of_the_anthropic_sdk_for_python_is_what_aimock_told() {
    is_what_aimock_told(ANTHROPIC_PYTHON);
}
