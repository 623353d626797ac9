//! The work behind axum-idempotent, set up as its README shows: its memory store, keys from the header.

use std::sync::Arc;

use axum::Router;
use axum::routing::post;
use axum_idempotent::{IdempotentLayer, IdempotentOptions};
use ruts::store::Ttl;
use ruts::store::moka::MokaStore;
use ruts::{CookieOptions, Session, SessionLayer};
use tower_cookies::CookieManagerLayer;

#[tokio::main]
async fn main() {
    let store = Arc::new(MokaStore::builder().build());
    let options = IdempotentOptions::default()
        .use_idempotency_key_header(Some("Idempotency-Key"), true)
        .expire_after(60 * 5);
    let app = Router::new()
        .route("/work", post(compared::work))
        .layer(IdempotentLayer::<MokaStore>::new(options))
        // It keeps answers for callers that have a session already.
        .route("/login", post(login))
        .layer(SessionLayer::new(store).with_cookie_options(CookieOptions::build().name("session")))
        .layer(CookieManagerLayer::new());
    compared::serve(app).await;
}

async fn login(session: Session<MokaStore>) {
    let hour = Ttl::new(3600).expect("an hour");
    let set = session.set("user", &"caller", hour, None).await;
    set.expect("a session");
}
