//! The work behind a model of svix's idempotency middleware, as it was at commit 4fc0cfb8 of
//! svix/svix-webhooks (`server/svix-server/src/core/idempotency.rs`), on Redis.
//!
//! Written from what that file does, not a copy of it: the rest of svix's server is left out. What counts
//! here is the order of steps and their times:
//!
//! 1. A key is scoped by the caller's token and the URL; the body is not looked at.
//! 2. `SET NX` of a lock that lasts 5 seconds, and is never renewed.
//! 3. Who does not get the lock looks every 200 ms for an answer, while the lock is there and for no longer
//!    than 5 seconds; then it takes the lock itself, or answers 500.
//! 4. Who has it runs the handler, in the task of the request. A 2xx is collected, stored for 12 hours and
//!    sent; anything else deletes the lock and is sent. Neither asks whose lock it is.

use std::collections::HashMap;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};

const LOCK: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(200);
const KEPT: Duration = Duration::from_secs(12 * 60 * 60);

/// What Redis holds under a key.
#[derive(Serialize, Deserialize)]
enum Entry {
    Start,
    Finished {
        code: u16,
        /// One value for each name, as there.
        headers: HashMap<String, Vec<u8>>,
        body: Vec<u8>,
    },
}

#[tokio::main]
async fn main() {
    let url = std::env::var("REDIS_URL").expect("REDIS_URL");
    let client = redis::Client::open(url).expect("the URL of Redis");
    let redis = client.get_multiplexed_async_connection().await;
    let app = Router::new()
        .route("/work", post(compared::work))
        .layer(from_fn_with_state(redis.expect("Redis"), once));
    compared::serve(app).await;
}

async fn once(
    State(redis): State<MultiplexedConnection>,
    request: Request,
    next: Next,
) -> Response {
    let Some(key) = key(&request) else {
        return next.run(request).await;
    };
    match keyed(redis, &key, request, next).await {
        Ok(response) => response,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Without a key or a token, and for all but POST, nothing is done.
fn key(request: &Request) -> Option<String> {
    let header = |name| request.headers().get(name)?.to_str().ok();
    let (key, token) = (header("idempotency-key")?, header("authorization")?);
    (request.method() == Method::POST).then(|| format!("{token}:{key}:{}", request.uri()))
}

async fn keyed(
    mut redis: MultiplexedConnection,
    key: &str,
    request: Request,
    next: Next,
) -> redis::RedisResult<Response> {
    if !lock(&mut redis, key).await? {
        if let Some(Entry::Finished {
            code,
            headers,
            body,
        }) = finished(&mut redis, key).await?
        {
            return Ok(replay(code, headers, body));
        }
        if !lock(&mut redis, key).await? {
            return Ok(StatusCode::INTERNAL_SERVER_ERROR.into_response());
        }
    }
    let (parts, body) = next.run(request).await.into_parts();
    if !parts.status.is_success() {
        let () = redis.del(key).await?;
        return Ok(Response::from_parts(parts, body));
    }
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let headers = parts.headers.iter();
    let entry = Entry::Finished {
        code: parts.status.as_u16(),
        headers: headers
            .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
            .collect(),
        body: body.to_vec(),
    };
    let () = redis.pset_ex(key, text(&entry), millis(KEPT)).await?;
    Ok(Response::from_parts(parts, Body::from(body)))
}

async fn lock(redis: &mut MultiplexedConnection, key: &str) -> redis::RedisResult<bool> {
    let mut set = redis::cmd("SET");
    set.arg(key).arg(text(&Entry::Start));
    set.arg("PX").arg(millis(LOCK)).arg("NX");
    let taken: Option<String> = set.query_async(redis).await?;
    Ok(taken.is_some())
}

/// The answer of whoever has the lock, if it comes before the lock is gone.
async fn finished(
    redis: &mut MultiplexedConnection,
    key: &str,
) -> redis::RedisResult<Option<Entry>> {
    // The first look is at once, and takes a missing entry for one that is about to come.
    let mut waited = Duration::ZERO;
    loop {
        let found: Option<String> = redis.get(key).await?;
        match found.and_then(|text| serde_json::from_str(&text).ok()) {
            Some(entry @ Entry::Finished { .. }) => return Ok(Some(entry)),
            Some(Entry::Start) if waited <= LOCK => {}
            None if waited.is_zero() => {}
            _ => return Ok(None),
        }
        waited += POLL;
        tokio::time::sleep(POLL).await;
    }
}

fn replay(code: u16, headers: HashMap<String, Vec<u8>>, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(code).expect("a status that was stored");
    for (name, value) in headers {
        let name = HeaderName::try_from(name).expect("a name that was stored");
        let value = HeaderValue::from_bytes(&value).expect("a value that was stored");
        response.headers_mut().insert(name, value);
    }
    response
}

fn text(entry: &Entry) -> String {
    serde_json::to_string(entry).expect("an entry is JSON")
}

fn millis(span: Duration) -> u64 {
    span.as_millis() as u64
}
