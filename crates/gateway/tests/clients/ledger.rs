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

/// What a provider does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// It answers. So many milliseconds pass before each event of a stream.
    Answer(u64),
    /// It refuses for its rate: nothing is generated.
    Refuse,
    /// It breaks the connection in place of an answer.
    Reset,
    /// It breaks the connection within its answer.
    Cut,
}

/// One execution, as the provider itself tells of it.
#[derive(Debug)]
struct Execution {
    key: String,
    /// `completed`, `failed` or `aborted`.
    outcome: &'static str,
    /// What it generated; of one that was aborted, what it would have been at most.
    tokens: Tokens,
}

/// A provider that keeps books of its own.
trait Counting {
    fn provider(&self) -> &Provider;

    /// Has it do so with the request of this job, which is the `number`th. No two jobs use as much, so
    /// that none can be taken for another.
    fn instruct(&self, job: &mut Value, number: usize, does: Does);

    /// All that it executed.
    fn executions(&self) -> Vec<Execution>;
}

/// Ours. It finds executions by their tag, which is the key.
struct Sandbox(Provider);

impl Counting for Sandbox {
    fn provider(&self) -> &Provider {
        &self.0
    }

    fn instruct(&self, job: &mut Value, number: usize, does: Does) {
        let (pause, fault) = match does {
            Does::Answer(pause) => (pause, None),
            Does::Refuse => (5, Some("status:429")),
            Does::Reset => (5, Some("reset-before-head")),
            Does::Cut => (5, Some("cut-stream")),
        };
        job["prompt"] = json!("word ".repeat(3 + 2 * number));
        job["headers"] = json!({
            "X-Sandbox-Chunks": PIECES.to_string(), "X-Sandbox-Interval": format!("{pause}ms"),
            "X-Sandbox-Tag": job["key"],
        });
        if let Some(fault) = fault {
            job["headers"]["X-Sandbox-Fault"] = json!(fault);
        }
    }

    fn executions(&self) -> Vec<Execution> {
        let ledger = self.0.ledger();
        let entries = ledger["entries"].as_array().expect("entries").iter();
        let execution = |entry: &Value| {
            let tokens = Tokens::told(&entry["usage"]);
            let outcome = match entry["outcome"].as_str() {
                Some("completed") => "completed",
                Some("failed") => "failed",
                Some("aborted") => "aborted",
                _ => panic!("another outcome: {entry}"),
            };
            match outcome {
                "completed" => assert_eq!(tokens.output, PIECES, "{entry}"),
                "failed" => assert_eq!(entry["usage"], Value::Null, "{entry}"),
                _ => {}
            }
            let key = entry["tag"].as_str().expect("a tag").to_owned();
            Execution {
                key,
                outcome,
                tokens,
            }
        };
        entries.map(execution).collect()
    }
}

/// aimock, from npm, which nobody here wrote. It tells of each answer the use that its fixture has, and
/// keeps in its journal what it was asked for, and what became of that.
struct Aimock {
    provider: Provider,
    _folder: tempfile::TempDir,
}

impl Aimock {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self {
            provider: Provider::aimock(folder.path(), &json!([])),
            _folder: folder,
        }
    }
}

impl Counting for Aimock {
    fn provider(&self) -> &Provider {
        &self.provider
    }

    fn instruct(&self, job: &mut Value, number: usize, does: Does) {
        let (input, output) = (1_009 + 101 * number, 211 + 17 * number);
        let answer = json!({
            "content": "One two three four five six seven eight nine ten eleven twelve thirteen.",
            "usage": { "prompt_tokens": input, "completion_tokens": output,
                "total_tokens": input + output },
        });
        // A fixture is found by what the user says.
        job["prompt"] = job["key"].clone();
        let mut fixture = json!({
            "match": { "userMessage": job["key"] }, "response": answer, "chunkSize": 6,
            "latency": 5,
        });
        match does {
            Does::Answer(pause) => fixture["latency"] = json!(pause),
            Does::Refuse => {
                let error = json!({ "type": "rate_limit_error", "message": "Not so fast." });
                fixture["response"] = json!({ "status": 429, "error": error });
            }
            Does::Reset => fixture["chaos"] = json!({ "disconnectRate": 1 }),
            Does::Cut => fixture["truncateAfterChunks"] = json!(5),
        }
        let more = json!({ "fixtures": [fixture] }).to_string();
        let added = self
            .provider
            .ask(&Request::post("/__aimock/fixtures").body(more));
        assert_eq!(added["added"], 1, "{added}");
    }

    fn executions(&self) -> Vec<Execution> {
        let journal = self.provider.ask(&Request::get("/__aimock/journal"));
        let asked = journal.as_array().expect("a journal").iter();
        let execution = |asked: &Value| {
            let (answer, fixture) = (&asked["response"], &asked["response"]["fixture"]);
            let count = |name: &str| fixture["response"]["usage"][name].as_u64().unwrap_or(0);
            let is_broken = answer["interrupted"] == true || answer["chaosAction"] == "disconnect";
            let key = fixture["match"]["userMessage"].as_str();
            Execution {
                key: key.expect("what the user says").to_owned(),
                outcome: match answer["status"].as_u64() {
                    _ if is_broken => "aborted",
                    Some(200) => "completed",
                    Some(429) => "failed",
                    _ => panic!("another answer: {asked}"),
                },
                tokens: Tokens {
                    input: count("prompt_tokens"),
                    output: count("completion_tokens"),
                },
            }
        };
        asked.map(execution).collect()
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
    counting: Box<dyn Counting>,
    gateway: Gateway,
    ended: Vec<(String, Ended)>,
}

impl Runs {
    fn of(sdk: Sdk, counting: impl Counting + 'static) -> Self {
        Self {
            sdk,
            gateway: sdk.gateway(counting.provider()),
            counting: Box::new(counting),
            ended: Vec::new(),
        }
    }

    fn control(&self) -> Control {
        self.gateway.control()
    }

    /// A job under the key `CALL-KIND`, with which the provider does so.
    fn job(&self, call: &str, stream: bool, kind: &str, does: Does) -> Value {
        let mut job = json!({
            "base": base(&self.gateway), "call": call, "stream": stream,
            "key": format!("{call}-{kind}"), "max_retries": 0,
        });
        self.counting.instruct(&mut job, self.ended.len(), does);
        job
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
        let job = self.job(call, false, "plain", Does::Answer(5));
        run_once(self.sdk.script, &job).marked("executed");
        self.ended(&job, ALONE);
    }

    fn streamed(&mut self, call: &str) {
        let job = self.job(call, true, "streamed", Does::Answer(5));
        run_once(self.sdk.script, &job).marked("executed");
        self.ended(&job, ALONE);
    }

    /// Its caller dies within the stream; the execution goes on.
    fn left(&mut self, call: &str) {
        let job = self.job(call, true, "left", Does::Answer(50));
        let caller = Call::start(self.sdk.script, &job);
        caller.wait_for_piece("");
        caller.kill();
        self.ended(&job, ALONE);
    }

    fn joined(&mut self, call: &str) {
        let job = self.job(call, true, "joined", Does::Answer(250));
        let second = Call::prepare(self.sdk.script, &job);
        let first = Call::start(self.sdk.script, &job);
        first.wait_for_piece("");
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
        let kind = format!("replayed-{times}");
        let mut job = self.job(call, stream, &kind, Does::Answer(5));
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

    fn released(&mut self, call: &str) {
        let job = self.job(call, false, "released", Does::Refuse);
        run_once(self.sdk.script, &job).failed_with(429);
        self.ended(&job, Ended::Released);
    }

    fn unknown(&mut self, call: &str) {
        let job = self.job(call, false, "unknown", Does::Reset);
        run_once(self.sdk.script, &job).failed_with(502);
        self.ended(&job, Ended::Unknown);
    }

    fn cut(&mut self, call: &str, stream: bool) {
        let kind = if stream { "cut-stream" } else { "cut-answer" };
        let job = self.job(call, stream, kind, Does::Cut);
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
            self.cut(call, true);
            self.replayed(call, false, 2);
            self.replayed(call, true, 3);
        }
    }

    /// Compares what is told of each run with the provider's count of it, then the sums.
    fn compare(&self) {
        let executions = self.counting.executions();
        let mut books = Books::default();
        let mut partial = 0;
        for (key, how) in &self.ended {
            let mut of_key = executions.iter().filter(|one| one.key == *key);
            let execution = of_key.next().expect("an execution");
            assert!(of_key.next().is_none(), "{key} ran twice: {executions:?}");
            let tokens = execution.tokens;
            let metered = &self.control().operation(key)["metered"];
            match *how {
                Ended::Completed { joined, replayed } => {
                    assert_eq!(execution.outcome, "completed", "{execution:?}");
                    assert_eq!(Tokens::told(&metered["usage"]), tokens, "{key}: {metered}");
                    books.add(tokens, joined, replayed);
                }
                Ended::Released => {
                    assert_eq!(execution.outcome, "failed", "{execution:?}");
                    assert_eq!(metered, &Value::Null, "{key}");
                }
                Ended::Unknown => {
                    assert_eq!(execution.outcome, "aborted", "{execution:?}");
                    let told = Tokens::told(&metered["usage"]);
                    assert!(told.fits(tokens), "{key}: {metered}, {execution:?}");
                    assert_ne!(metered["source"], "provider", "{key}: {metered}");
                    partial += told.input;
                }
            }
        }
        // Nothing ran but what is above.
        assert_eq!(executions.len(), self.ended.len(), "{executions:?}");
        // A message of Anthropic's begins with the count of its input; OpenAI tells all at the end.
        assert_eq!(partial > 0, self.sdk.preset == "anthropic", "{partial}");
        // What the provider counts of completed executions, without a word of the gateway's.
        let completed = executions.iter().filter(|one| one.outcome == "completed");
        let completed: Vec<_> = completed.map(|one| one.tokens).collect();
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
    let mut runs = Runs::of(sdk, Sandbox(Provider::sandbox()));
    runs.every_kind();
    for call in sdk.calls {
        // aimock breaks off streams alone.
        runs.cut(call, false);
    }
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

fn is_what_aimock_told(sdk: Sdk) {
    let mut runs = Runs::of(sdk, Aimock::new());
    runs.every_kind();
    runs.compare();
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
