//! The console's files. Their addresses change with what is in them, so that a browser may keep them.

use std::sync::LazyLock;

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};

const STYLE: &str = include_str!("assets/console.css");
const SCRIPT: &str = include_str!("assets/console.js");
const ICON: &str = include_str!("assets/icon.svg");

/// Where the pages say that the files are.
pub(super) struct Addresses {
    pub(super) style: String,
    pub(super) script: String,
    pub(super) icon: String,
}

pub(super) static ADDRESSES: LazyLock<Addresses> = LazyLock::new(|| {
    let address = |name, content: &str| {
        let hash = blake3::hash(content.as_bytes()).to_hex();
        format!("/console/{name}?v={}", &hash[..16])
    };
    Addresses {
        style: address("console.css", STYLE),
        script: address("console.js", SCRIPT),
        icon: address("icon.svg", ICON),
    }
});

/// `GET /console/console.css`.
pub(in crate::control) async fn style() -> Response {
    file("text/css; charset=utf-8", STYLE)
}

/// `GET /console/console.js`.
pub(in crate::control) async fn script() -> Response {
    file("text/javascript; charset=utf-8", SCRIPT)
}

/// `GET /console/icon.svg`.
pub(in crate::control) async fn icon() -> Response {
    file("image/svg+xml", ICON)
}

fn file(kind: &'static str, content: &'static str) -> Response {
    let keep = "public, max-age=31536000, immutable";
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, keep)], content).into_response()
}
