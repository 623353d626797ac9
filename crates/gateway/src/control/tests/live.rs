//! Pages that browsers follow.

use onlyonce_store::memory::Call;

use super::*;

/// A browser's stream of what changes on `page`.
async fn follow(fixture: &Fixture, page: &str) -> Body {
    let request =
        Request::get(format!("/console/live?page={page}")).header("host", "127.0.0.1:8788");
    let request = match fixture.token {
        Some(token) => request.header("authorization", format!("Bearer {token}")),
        None => request,
    };
    let request = request.body(Body::empty()).unwrap();
    let response = fixture.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body()
}

/// What it tells next.
async fn next(body: &mut Body) -> String {
    let frame = body.frame().await.unwrap().unwrap();
    String::from_utf8(frame.data_ref().unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn a_page_that_is_followed_tells_only_what_changed() {
    let fixture = fixture();
    fixture.completed("acme", "first").await;
    let mut body = follow(&fixture, "/console/operations").await;
    assert!(next(&mut body).await.contains("[\"head\",\"list\"]"));
    assert!(next(&mut body).await.contains("\"id\":\"head\""));
    assert!(next(&mut body).await.contains("first"));
    fixture.completed("acme", "second").await;
    let event = next(&mut body).await;
    assert!(
        event.starts_with("event: section") && event.contains("\"id\":\"list\""),
        "{event}"
    );
    assert!(event.contains("second"));
}

#[tokio::test]
async fn fifty_browsers_cost_the_store_what_one_costs() {
    let fixture = fixture();
    fixture.completed("acme", "first").await;
    let held = fixture.shared.engine.store().faults().hold(Call::Books);
    let mut browsers = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let mut body = follow(&fixture, "/console").await;
        browsers.spawn(async move { (next(&mut body).await, body) });
    }
    held.until_waiting(1).await;
    // Whatever else was to ask the store has had its turn.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(held.waiting(), 1);
    drop(held);
    let told = browsers.join_all().await;
    assert!(told.iter().all(|(event, _)| event == &told[0].0));
    assert!(told[0].0.contains("latest"), "{}", told[0].0);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_follows_any_more_is_not_made_and_can_be_followed_again() {
    let fixture = fixture();
    fixture.completed("acme", "first").await;
    let mut body = follow(&fixture, "/console").await;
    next(&mut body).await;
    drop(body);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let held = fixture.shared.engine.store().faults().hold(Call::Books);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(held.waiting(), 0);
    drop(held);
    let mut again = follow(&fixture, "/console").await;
    assert!(next(&mut again).await.contains("latest"));
}
