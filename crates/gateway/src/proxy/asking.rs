//! What a keyed request asks for, and what it is made to ask for besides.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use http::header::ACCEPT_ENCODING;
use http::request::Parts;
use onlyonce_engine::AskedModel;
use onlyonce_http::fingerprint::is_plain_json;
use onlyonce_ledger::{Addition, NamedModel, UsageFormat};

use super::execute::Order;
use super::path::Path;
use super::spool::Collected;
use crate::config::{IncludeUsage, Route};

/// A larger body is read off the threads that serve requests.
const READ_AT_ONCE: usize = 64 * 1024;

/// What a request asks for.
#[derive(Default)]
pub(super) struct Asked {
    /// The model that its path or its body names.
    pub(super) model: Option<Box<str>>,
    /// Whether the gateway asks for the usage of a stream, and the caller does not.
    pub(super) adds_usage: bool,
}

impl Asked {
    /// What is known before it is read.
    pub(super) fn of_model(model: &str) -> Self {
        Self {
            model: Some(model.into()),
            adds_usage: false,
        }
    }
}

/// The model that the request of `head` and `body` asks for, where its path has a format that says where
/// that stands. What is in memory is read by who asks for it.
pub(super) async fn asked_model(path: &Arc<Path>, head: &Parts, body: &Collected) -> AskedModel {
    if path.route.policy.usage.is_empty() {
        return AskedModel::default();
    }
    let path = Arc::clone(path);
    let uri = head.uri.clone();
    let is_json = is_plain_json(&head.headers);
    let model_in = move |body: &[u8]| {
        let target = path.target(&uri).ok()?;
        let format = UsageFormat::of_path(&path.route.policy.usage, target.path())?;
        match format.names_model() {
            true => Some(format.model_of(target.path())?.into()),
            false if is_json => NamedModel::of(body),
            false => None,
        }
    };
    let (file, len) = match body {
        Collected::Whole(bytes) => {
            let bytes = bytes.clone();
            return AskedModel::read_late(move || model_in(&bytes));
        }
        Collected::Spooled { file, len, .. } => (Arc::clone(file), *len),
    };
    let len = usize::try_from(len).map_or(NamedModel::WITHIN, |l| l.min(NamedModel::WITHIN));
    let read = move || {
        let mut beginning = vec![0; len];
        file.read_exact_at(&mut beginning, 0).ok()?;
        model_in(&beginning)
    };
    let model = tokio::task::spawn_blocking(read).await.ok().flatten();
    model
        .as_deref()
        .map_or_else(AskedModel::default, AskedModel::from)
}

impl Order {
    /// What it asks for. Where `route` says so, it asks for the usage of its stream from now on; its
    /// fingerprint stays that of what the caller sent.
    pub(super) async fn asks(&mut self, route: &Route) -> Asked {
        let policy = &route.policy;
        let format = UsageFormat::of_path(&policy.usage, self.target.path());
        let adds = policy.include_usage == IncludeUsage::Add
            && format.is_some_and(|format| format.needs_include_usage())
            && is_plain_json(&self.headers);
        Asked {
            model: self.asked_model.get().map(Box::from),
            adds_usage: adds && self.ask_for_usage().await,
        }
    }

    /// Whether the usage is asked for in the caller's place.
    async fn ask_for_usage(&mut self) -> bool {
        if !self.body.add_usage().await {
            return false;
        }
        // What is packed could not be taken out of the answer again.
        self.headers
            .insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        true
    }
}

impl Collected {
    /// Makes it ask for the usage of its stream; whether it does so now, and did not before.
    async fn add_usage(&mut self) -> bool {
        match self {
            Self::Whole(bytes) => {
                let Some(asking) = asking(bytes).await else {
                    return false;
                };
                *bytes = asking;
                true
            }
            Self::Spooled {
                file,
                len,
                addition,
            } => {
                let whole = Spooled {
                    file: Arc::clone(file),
                    at: 0,
                    left: *len,
                };
                let found = tokio::task::spawn_blocking(move || Addition::to(whole)).await;
                *addition = found.ok().flatten();
                addition.is_some()
            }
        }
    }
}

/// The body that asks for usage, where `body` does not.
async fn asking(body: &Bytes) -> Option<Bytes> {
    let is_small = body.len() <= READ_AT_ONCE;
    let body = body.clone();
    let made = move || Addition::to(&*body)?.made(&body);
    match is_small {
        true => made(),
        false => tokio::task::spawn_blocking(made).await.ok()?,
    }
}

/// A body in a file, from its start to its end.
struct Spooled {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Spooled {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        let read = self.file.read_at(&mut into[..most], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
