//! OpenAI Responses: <https://platform.openai.com/docs/api-reference/responses>

use std::collections::VecDeque;
use std::time::SystemTime;

use bytes::Bytes;
use http::StatusCode;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Job, Refusal, Reply, model, together};

/// Responses kept for looking up; the oldest is forgotten first.
const MAX_STORED: usize = 1_000;

/// The responses that can be looked up by id.
#[derive(Debug, Default)]
pub(crate) struct Stored(Mutex<VecDeque<Run>>);

#[derive(Debug)]
struct Run {
    id: String,
    finished_at: SystemTime,
    /// As it is once finished.
    response: Value,
}

impl Stored {
    fn keep(&self, run: Run) {
        let mut runs = self.0.lock();
        if runs.len() == MAX_STORED {
            runs.pop_front();
        }
        runs.push_back(run);
    }

    fn find(&self, id: &str, now: SystemTime) -> Option<Value> {
        let runs = self.0.lock();
        let run = runs.iter().rfind(|run| run.id == id)?;
        Some(match now.duration_since(run.finished_at) {
            Ok(_) => run.response.clone(),
            Err(_) => unfinished(&run.response, "in_progress"),
        })
    }
}

pub(crate) fn reply(job: &Job<'_>) -> Result<Reply, Refusal> {
    let request = job.json()?;
    let response = response(job, &request);
    let (background, stream) = (request["background"] == true, request["stream"] == true);
    let generating = background || stream;
    if request["store"] != false {
        let took = if generating {
            job.generation_time()
        } else {
            Default::default()
        };
        job.stored.keep(Run {
            id: id(job),
            // The caller's own clock would do as well: it only tells in_progress from completed.
            finished_at: job.now + job.script.delay + took,
            response: response.clone(),
        });
    }
    Ok(match (stream, background) {
        (true, _) => Reply::events(events(job, &response)),
        (false, true) => Reply::json(&unfinished(&response, "queued")),
        (false, false) => Reply::json(&response),
    })
}

pub(crate) fn look_up(job: &Job<'_>, id: &str) -> Result<Reply, Refusal> {
    match job.stored.find(id, job.now) {
        Some(response) => Ok(Reply::json(&response)),
        None => Err(Refusal {
            status: StatusCode::NOT_FOUND,
            message: format!("Response with id '{id}' not found."),
            code: None,
            param: None,
        }),
    }
}

fn id(job: &Job<'_>) -> String {
    format!("resp_{}", job.id)
}

/// The finished response.
fn response(job: &Job<'_>, request: &Value) -> Value {
    let or = |name: &str, fallback: Value| match &request[name] {
        Value::Null => fallback,
        given => given.clone(),
    };
    let (input, output) = (job.prompt_tokens(), job.completion_tokens());
    json!({
        "id": id(job),
        "object": "response",
        "created_at": job.now_s(),
        "status": "completed",
        "background": or("background", false.into()),
        "error": null,
        "incomplete_details": null,
        "instructions": request["instructions"],
        "max_output_tokens": request["max_output_tokens"],
        "metadata": or("metadata", json!({})),
        "model": model(request),
        "output": [message(job, "completed", &job.pieces().concat())],
        "parallel_tool_calls": or("parallel_tool_calls", true.into()),
        "previous_response_id": request["previous_response_id"],
        "reasoning": { "effort": null, "summary": null },
        "service_tier": "default",
        "store": or("store", true.into()),
        "temperature": or("temperature", json!(1.0)),
        "text": { "format": { "type": "text" }, "verbosity": "medium" },
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": or("top_p", json!(1.0)),
        "truncation": "disabled",
        "usage": {
            "input_tokens": input,
            "input_tokens_details": { "cached_tokens": 0 },
            "output_tokens": output,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": input + output,
        },
        "user": request["user"],
    })
}

/// The response before its generation has ended.
fn unfinished(response: &Value, status: &str) -> Value {
    let mut response = response.clone();
    response["status"] = status.into();
    response["output"] = json!([]);
    response["usage"] = Value::Null;
    response
}

fn message(job: &Job<'_>, status: &str, text: &str) -> Value {
    let content = if text.is_empty() {
        json!([])
    } else {
        json!([part(text)])
    };
    json!({
        "type": "message",
        "id": message_id(job),
        "status": status,
        "role": "assistant",
        "content": content,
    })
}

fn message_id(job: &Job<'_>) -> String {
    format!("msg_{}", job.id)
}

fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn events(job: &Job<'_>, finished: &Value) -> VecDeque<Bytes> {
    let mut numbered = Numbered::default();
    let started = unfinished(finished, "in_progress");
    let pieces = job.pieces();
    let text = pieces.concat();
    let place = json!({ "item_id": message_id(job), "output_index": 0, "content_index": 0 });
    let with = |name: &str, value: Value| {
        let mut event = place.clone();
        event[name] = value;
        event
    };

    let mut frames = VecDeque::with_capacity(pieces.len() + 2);
    frames.push_back(together([
        numbered.event("response.created", json!({ "response": started })),
        numbered.event("response.in_progress", json!({ "response": started })),
        numbered.event(
            "response.output_item.added",
            json!({ "output_index": 0, "item": message(job, "in_progress", "") }),
        ),
        numbered.event("response.content_part.added", with("part", part(""))),
    ]));
    for piece in pieces {
        let mut delta = with("delta", piece.into());
        delta["logprobs"] = json!([]);
        frames.push_back(numbered.event("response.output_text.delta", delta).into());
    }
    let mut done = with("text", text.as_str().into());
    done["logprobs"] = json!([]);
    frames.push_back(together([
        numbered.event("response.output_text.done", done),
        numbered.event("response.content_part.done", with("part", part(&text))),
        numbered.event(
            "response.output_item.done",
            json!({ "output_index": 0, "item": message(job, "completed", &text) }),
        ),
        numbered.event("response.completed", json!({ "response": finished })),
    ]));
    frames
}

/// Gives each event of a stream the next `sequence_number`.
#[derive(Default)]
struct Numbered(u64);

impl Numbered {
    fn event(&mut self, kind: &str, mut data: Value) -> String {
        data["type"] = kind.into();
        data["sequence_number"] = self.0.into();
        self.0 += 1;
        format!("event: {kind}\ndata: {data}\n\n")
    }
}
