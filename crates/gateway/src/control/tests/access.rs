//! Who sees what: tokens, tenants, rights, sessions, forms.

use super::*;

const VIEWER: &str = "viewer-of-acme-0123456789abcdef01";
const CLERK: &str = "clerk-of-acme-0123456789abcdef012";

/// A gateway with the control token, one that sees a tenant, and one that does all to it.
fn guarded() -> Fixture {
    fixture_with(&format!(
        "control_token = \"{TOKEN}\"\n[[server.token]]\nname = \"viewer\"\ntoken = \"{VIEWER}\"\ntenant = \
         \"acme\"\nrights = [\"read\"]\n[[server.token]]\nname = \"clerk\"\ntoken = \"{CLERK}\"\ntenant = \
         \"acme\"\nrights = [\"read\", \"payload\", \"resolve\", \"admin\", \"work\"]\n"
    ))
}

/// Signs in; the cookie is kept.
async fn sign_in(fixture: &mut Fixture, token: &str) -> Answer {
    let entry = format!("token={token}&next=/console/unknown");
    let answer = fixture.submit("/console/login", &entry).await.expect(303);
    let cookie = answer.headers["set-cookie"].to_str().unwrap();
    fixture.cookie = Some(cookie.split(';').next().unwrap().to_owned());
    answer
}

/// What the forms of a page carry.
fn form_of(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"form\" value=\"").expect("a form");
    rest.split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn i07_a_tenant_scoped_token_sees_nothing_of_another_tenant() {
    let mut fixture = guarded();
    let completed = fixture
        .completed("tenant-of-others", "key-of-others-1")
        .await;
    let unknown = fixture
        .unknown_of("tenant-of-others", "key-of-others-2")
        .await;
    let (running, _reader) = fixture.claim("tenant-of-others", "key-of-others-3").await;
    let others = [completed, unknown, running.id().to_string()];
    let own = fixture.completed("acme", "own-key").await;
    fixture.shared.engine.upkeep().await;
    for tenant in ["tenant-of-others", "acme"] {
        let now = fixture.shared.engine.store().now();
        let suspects = &fixture.shared.suspects;
        suspects.count(tenant, "up", "curl/8", None, now);
    }
    let names = ["tenant-of-others", "key-of-others"].map(str::to_owned);
    let secrets: Vec<_> = names.into_iter().chain(others.clone()).collect();

    let mut walked = 0;
    for endpoint in endpoints::<MemoryStore>() {
        let paths = match endpoint.path.contains("{id}") {
            true => others
                .iter()
                .map(|id| endpoint.path.replace("{id}", id))
                .collect(),
            false => vec![
                endpoint.path.replace("{name}", "key-reused"),
                format!("{}?tenant=tenant-of-others", endpoint.path),
                format!("{}?key=key-of-others-2", endpoint.path),
                format!("{}?model=gpt-5", endpoint.path),
            ],
        };
        for path in paths {
            if endpoint.path == "/console/live" {
                continue;
            }
            for token in [VIEWER, CLERK] {
                fixture.token = Some(token);
                let body = json!({ "outcome": "released", "tenant": "tenant-of-others" });
                for answer in [fixture.get(&path).await, fixture.post(&path, &body).await] {
                    // What was asked for may be repeated.
                    let mut news = secrets.iter().filter(|secret| !path.contains(*secret));
                    let told = news.find(|secret| answer.text.contains(*secret));
                    assert_eq!(told, None, "{path}: {}", answer.text);
                    let is_of_another = others.iter().any(|id| path.contains(id.as_str()));
                    assert!(!is_of_another || !answer.status.is_success(), "{path}");
                    walked += 1;
                }
            }
        }
    }
    assert!(walked > 200, "{walked}");
    // It does see its own.
    fixture.token = Some(VIEWER);
    let list = fixture.get("/v1/operations").await.expect(200).json();
    assert_eq!(list["operations"].as_array().unwrap().len(), 1);
    assert_eq!(list["operations"][0]["id"], json!(own));
    let suspects = fixture.get("/v1/suspects").await.expect(200).json();
    assert_eq!(suspects["total"]["times"], 1);
    assert_eq!(suspects["suspects"][0]["tenant"], "acme");
    // The gateway as a whole is not of one tenant.
    for path in [
        "/metrics",
        "/v1/health",
        "/v1/config",
        "/console/health",
        "/console/config",
    ] {
        fixture.get(path).await.expect(403);
    }
    assert_eq!(
        fixture.get("/v1/overview").await.json()["since_start"],
        Value::Null
    );
    let ledger = fixture.get("/v1/ledger?by=tenant").await.expect(200).json();
    assert_eq!(ledger["rows"].as_array().unwrap().len(), 1);
    assert_eq!(ledger["total"]["operations"], 1);
    let entries = fixture.get("/v1/ledger/entries").await.expect(200).json();
    assert_eq!(entries["entries"].as_array().unwrap().len(), 1);
    let of_model = fixture.get("/v1/operations?model=gpt-5").await.json();
    assert_eq!(of_model["operations"], list["operations"]);
    let overview = fixture.get("/v1/overview").await.expect(200).json();
    assert_eq!(overview["total"]["operations"], 1);
    // And nothing of the others was changed.
    fixture.token = Some(TOKEN);
    let all = fixture.get("/v1/operations").await.expect(200).json();
    assert_eq!(all["operations"].as_array().unwrap().len(), 4);
    for (id, state) in others.iter().zip(["completed", "unknown", "in_flight"]) {
        let shown = fixture.get(&format!("/v1/operations/{id}")).await.json();
        assert_eq!(shown["state"], state);
    }
}

#[tokio::test]
async fn i07_a_page_followed_live_shows_one_tenants_token_that_tenant_only() {
    let mut fixture = guarded();
    fixture.completed("tenant-of-others", "key-of-others").await;
    fixture.completed("acme", "own-key").await;
    for (page, sections, is_shown) in [
        ("/console/operations", 2, true),
        ("/console/operations?tenant=tenant-of-others", 2, false),
        ("/console", 7, true),
    ] {
        let page: String = form_urlencoded::byte_serialize(page.as_bytes()).collect();
        fixture.token = Some(VIEWER);
        let events = first_events(&fixture, &format!("/console/live?page={page}"), sections).await;
        assert!(!events.contains("key-of-others"), "{events}");
        assert_eq!(events.contains("own-key"), is_shown, "{page}: {events}");
    }
}

#[tokio::test]
async fn i07_browsers_share_a_page_with_the_same_token_only() {
    let mut fixture = guarded();
    fixture.completed("tenant-of-others", "key-of-others").await;
    fixture.completed("acme", "own-key").await;
    let live = "/console/live?page=/console/operations";
    fixture.token = Some(TOKEN);
    let whole = first_events(&fixture, live, 2).await;
    assert!(whole.contains("key-of-others"), "{whole}");
    // The same page, while the maker of that one still runs.
    for token in [VIEWER, CLERK] {
        fixture.token = Some(token);
        let events = first_events(&fixture, live, 2).await;
        assert!(!events.contains("key-of-others"), "{events}");
        assert!(events.contains("own-key"), "{events}");
    }
}

/// The events that are there at once.
async fn first_events(fixture: &Fixture, path: &str, sections: usize) -> String {
    let request = Request::get(path).header("host", "127.0.0.1:8788").header(
        "authorization",
        format!("Bearer {}", fixture.token.unwrap()),
    );
    let request = request.body(Body::empty()).unwrap();
    let response = fixture.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let mut events = String::new();
    while events.matches("event: section").count() < sections {
        let frame = body.frame().await.unwrap().unwrap();
        events += std::str::from_utf8(frame.data_ref().unwrap()).unwrap();
    }
    events
}

#[tokio::test]
async fn a_token_does_what_its_rights_say_and_no_more() {
    let mut fixture = guarded();
    let id = fixture.completed("acme", "k").await;
    let unknown = fixture.unknown("lost").await;
    let recording = format!("/v1/operations/{id}/recording");
    let resolve = format!("/v1/operations/{unknown}/resolve");
    let released = json!({ "outcome": "released", "reason": "asked them" });
    fixture.token = Some(VIEWER);
    let refusal = fixture.get(&recording).await.expect_refusal(403);
    assert!(refusal["detail"].as_str().unwrap().contains("payload"));
    fixture.post(&resolve, &released).await.expect_refusal(403);
    fixture
        .post("/v1/purge", &json!({}))
        .await
        .expect_refusal(403);
    let page = fixture
        .get(&format!("/console/operations/{id}"))
        .await
        .expect(200);
    assert!(!page.text.contains("/recording") && page.text.contains("The body is hidden"));
    fixture.token = Some(CLERK);
    assert_eq!(
        fixture.get(&recording).await.expect(200).text,
        "answer to k"
    );
    fixture.post(&resolve, &released).await.expect(200);
    let purged = fixture
        .post("/v1/purge", &json!({}))
        .await
        .expect(200)
        .json();
    assert_eq!(purged["purged"], 2);
}

#[tokio::test]
async fn a_browser_signs_in_with_a_token_and_stays_in_without_it() {
    let mut fixture = guarded();
    let asked = fixture
        .get("/console/operations?tenant=acme")
        .await
        .expect(401);
    assert!(
        asked
            .text
            .contains("value=\"/console/operations?tenant=acme\"")
    );
    let answer = sign_in(&mut fixture, TOKEN).await;
    assert_eq!(answer.headers["location"], "/console/unknown");
    let cookie = answer.headers["set-cookie"].to_str().unwrap();
    for flag in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
        assert!(cookie.split("; ").any(|part| part == flag), "{cookie}");
    }
    assert!(!cookie.contains(TOKEN) && !cookie.contains("Secure"));
    fixture.get("/console").await.expect(200);
    fixture.get("/v1/operations").await.expect(200);
    let page = fixture.get("/console").await.text;
    let form = form_of(&page);
    fixture
        .submit("/console/logout", "form=guess")
        .await
        .expect(403);
    let out = fixture
        .submit("/console/logout", &format!("form={form}"))
        .await
        .expect(303);
    assert!(
        out.headers["set-cookie"]
            .to_str()
            .unwrap()
            .contains("Max-Age=0")
    );
    // The session of a token sees what the token sees.
    sign_in(&mut fixture, VIEWER).await;
    fixture.get("/metrics").await.expect(403);
    fixture.cookie = Some("onlyonce=v1.control_token.99999999999.00".to_owned());
    fixture.get("/console").await.expect(401);
}

#[tokio::test]
async fn behind_https_the_cookie_is_for_this_host_and_https_only() {
    let fixture = fixture_with(&format!(
        "control_token = \"{TOKEN}\"\npublic_url = \"https://once.example\""
    ));
    let request = Request::post("/console/login")
        .header("host", "once.example")
        .header("origin", "https://once.example")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from(format!("token={TOKEN}")))
        .unwrap();
    let answer = fixture.send_request(request).await.expect(303);
    let cookie = answer.headers["set-cookie"].to_str().unwrap();
    assert!(
        cookie.starts_with("__Host-onlyonce=") && cookie.ends_with("; Secure"),
        "{cookie}"
    );
}

#[tokio::test]
async fn what_another_page_makes_a_browser_send_is_refused() {
    let mut fixture = guarded();
    let login = format!("token={TOKEN}");
    let evil = "https://evil.example";
    fixture
        .submit_from(evil, "/console/login", &login)
        .await
        .expect_refusal(403);
    sign_in(&mut fixture, TOKEN).await;
    let id = fixture.unknown("lost").await;
    let page = fixture
        .get(&format!("/console/operations/{id}"))
        .await
        .expect(200);
    let form = form_of(&page.text);
    let path = format!("/console/operations/{id}/resolve");
    let settle = |form: &str| format!("form={form}&outcome=released&reason=looked");
    fixture
        .submit_from(evil, &path, &settle(&form))
        .await
        .expect(403);
    fixture.submit(&path, &settle("guess")).await.expect(403);
    // The API takes a session's cookie from its own pages only.
    let api = format!("/v1/operations/{id}/resolve");
    let released = json!({ "outcome": "released", "reason": "looked" });
    fixture.post(&api, &released).await.expect_refusal(403);
    let shown = fixture.get(&format!("/v1/operations/{id}")).await.json();
    assert_eq!(shown["state"], "unknown");
    // From the page itself it is taken, with a reason.
    fixture
        .submit(&path, &format!("form={form}&outcome=released&reason=+"))
        .await
        .expect(422);
    fixture.submit(&path, &settle(&form)).await.expect(303);
    let shown = fixture.get(&format!("/v1/operations/{id}")).await.json();
    assert_eq!(shown["state"], "released");
    fixture.submit(&path, &settle(&form)).await.expect(409);
}

#[tokio::test]
async fn a_form_settles_what_ran_with_its_answer() {
    let fixture = fixture();
    let id = fixture.unknown("ran").await;
    let page = fixture
        .get(&format!("/console/operations/{id}"))
        .await
        .expect(200);
    let form = form_of(&page.text);
    let body = format!(
        "form={form}&outcome=completed&reason=their+list&status=201&content_type=text/plain&body=it+ran"
    );
    let path = format!("/console/operations/{id}/resolve");
    // Without any token too, a page of another origin settles nothing.
    fixture
        .submit_from("http://evil.test", &path, &body)
        .await
        .expect(403);
    fixture.submit(&path, &body).await.expect(303);
    let shown = fixture.get(&format!("/v1/operations/{id}")).await.json();
    assert_eq!(
        (&shown["state"], &shown["status"]),
        (&json!("completed"), &json!(201))
    );
    assert_eq!(
        shown["response_headers"],
        json!([["content-type", "text/plain"]])
    );
    let recording = fixture.get(&format!("/v1/operations/{id}/recording")).await;
    assert_eq!(recording.expect(200).text, "it ran");
}

#[tokio::test]
async fn who_guesses_tokens_is_soon_refused() {
    let fixture = guarded();
    let guess = "token=guess";
    for _ in 0..10 {
        fixture.submit("/console/login", guess).await.expect(401);
    }
    fixture.submit("/console/login", guess).await.expect(429);
    // The form takes none from there now; who has the token itself is let in.
    fixture
        .submit("/console/login", &format!("token={TOKEN}"))
        .await
        .expect(429);
    let mut fixture = fixture;
    fixture.token = Some("guess");
    fixture.get("/v1/operations").await.expect_refusal(429);
    fixture.token = Some(TOKEN);
    fixture.get("/v1/operations").await.expect(200);
}

#[tokio::test]
async fn every_page_says_what_a_browser_may_do_with_it() {
    let fixture = guarded();
    for endpoint in endpoints::<MemoryStore>() {
        let path = endpoint
            .path
            .replace("{id}", "op_x")
            .replace("{name}", "key-reused");
        let answer = fixture.get(&path).await;
        let policy = answer.headers.get("content-security-policy");
        let policy = policy.map_or("", |policy| policy.to_str().unwrap());
        if !path.starts_with("/console") {
            continue;
        }
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self'"),
            "{path}: {policy}"
        );
        assert!(!policy.contains("unsafe"), "{path}");
        assert_eq!(
            answer.headers["x-content-type-options"], "nosniff",
            "{path}"
        );
        assert_eq!(answer.headers["referrer-policy"], "no-referrer", "{path}");
        for inline in [" style=", "<style", "<script>", " onclick", "javascript:"] {
            let is_file = path.ends_with(".js") || path.ends_with(".css");
            assert!(is_file || !answer.text.contains(inline), "{path}: {inline}");
        }
    }
}
