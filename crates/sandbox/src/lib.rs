//! A pretend paid provider.
//!
//! It speaks enough of OpenAI, Anthropic, Gemini and Stripe for their official SDKs to be
//! pointed at it, counts and prices every execution, and fails on request, so that retry code
//! can be tested against something that remembers what was really run:
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use onlyonce_sandbox::Sandbox;
//!
//! let sandbox = Sandbox::bind("127.0.0.1:0").await?;
//! let ledger = sandbox.ledger();
//! println!("sandbox at http://{}", sandbox.local_addr());
//! sandbox.serve(async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await;
//! println!("{} executions, {} USD", ledger.snapshot().executions, ledger.snapshot().charged_usd);
//! # Ok(())
//! # }
//! ```
//!
//! It deliberately ignores idempotency keys (it only notes them): every request that reaches it
//! is one more execution. Each answer holds the number of its execution, so two executions never
//! give the same bytes.
//!
//! | path | speaks |
//! |---|---|
//! | `POST /v1/chat/completions` | OpenAI chat completions, `stream`, `stream_options.include_usage` |
//! | `POST /v1/responses`, `GET /v1/responses/{id}` | OpenAI Responses, `stream`, `background` |
//! | `POST /v1/messages` | Anthropic messages, `stream` |
//! | `POST /v1beta/models/{model}:generateContent`, `:streamGenerateContent` | Gemini (`/v1/models/` too), `alt=sse` or a JSON array |
//! | `POST /v1/charges`, `/v1/payment_intents`, `/v1/customers` | Stripe, form bodies |
//! | `POST /v1/echo` | any body |
//! | `GET /v1/models` | OpenAI, or Anthropic where `anthropic-version` is sent |
//! | `GET /_sandbox/ledger?key=&tag=`, `DELETE /_sandbox/ledger` | what ran, and forgetting it |
//!
//! | request header | effect |
//! |---|---|
//! | `X-Sandbox-Delay: 500ms` | waits before the response head |
//! | `X-Sandbox-Fault: hang` | never answers |
//! | `X-Sandbox-Fault: reset-before-head` | TCP reset in place of an answer |
//! | `X-Sandbox-Fault: reset-after-head` | response head, then TCP reset |
//! | `X-Sandbox-Fault: cut-stream` | half of the body, then the connection is closed |
//! | `X-Sandbox-Fault: status:503` | that status, in the provider's error shape |
//! | `X-Sandbox-Times: 1` | delay and fault strike only the first executions of this `X-Sandbox-Tag` |
//! | `X-Sandbox-Chunks: 40` | text events of a stream (20), words of an answer |
//! | `X-Sandbox-Interval: 20ms` | time between events (15 ms) |
//! | `X-Sandbox-Tag: checkout` | copied into the ledger |
//! | `X-Sandbox-Size: 1024` | body bytes of the echo |
//!
//! On HTTP/2 (cleartext, prior knowledge) the resets and the cut end the one stream, not the
//! connection.

mod answer;
mod body;
mod endpoint;
mod ledger;
mod provider;
mod script;
mod server;
mod wire;

pub use ledger::{Entry, Ledger, Outcome, Sha256, Snapshot, Timestamp, Usage, Usd};
pub use server::Sandbox;
