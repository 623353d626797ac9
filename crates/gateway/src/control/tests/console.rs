//! The pages, and what the API shows of the same.

use super::*;

#[tokio::test]
async fn a_page_shows_names_as_text() {
    let fixture = fixture();
    let id = fixture
        .completed("<b>acme</b>", "<script>alert(1)</script>")
        .await;
    for path in [
        "/console",
        "/console/operations",
        &format!("/console/operations/{id}"),
    ] {
        let page = fixture.get(path).await.expect(200).text;
        assert!(
            page.contains("&lt;script&gt;alert(1)") && !page.contains("<script>alert"),
            "{path}"
        );
        assert!(!page.contains("<b>acme"), "{path}");
    }
}

#[tokio::test]
async fn filters_narrow_the_page_as_they_narrow_the_list() {
    let fixture = fixture();
    for number in 0..60 {
        let tenant = if number % 2 == 0 { "even" } else { "odd" };
        fixture.completed(tenant, &format!("key-{number:02}")).await;
    }
    fixture.unknown("lost").await;
    let page = async |query: &str| {
        let path = format!("/console/operations{query}");
        fixture.get(&path).await.expect(200).text
    };
    let rows = |page: &str| page.matches("<td class=\"key\">").count();
    // Fields that a form leaves empty count for nothing.
    assert_eq!(
        rows(&page("?tenant=odd&key=&state=&since=&until=").await),
        30
    );
    assert_eq!(rows(&page("?key=key-07").await), 1);
    assert_eq!(rows(&page("?state=unknown").await), 1);
    assert_eq!(rows(&page("?until=1h").await), 0);
    let first = page("?since=1h").await;
    assert_eq!(rows(&first), 50);
    let (_, next) = first
        .split_once("rel=\"next\" href=\"")
        .expect("a next page");
    let next = next.split('"').next().unwrap().replace("&amp;", "&");
    assert!(next.starts_with("?since=1h&cursor=op_"), "{next}");
    assert_eq!(rows(&page(&next).await), 11);
    for wrong in [
        "?stat=unknown",
        "?state=complete",
        "?since=yesterday",
        "?cursor=3",
    ] {
        let answer = fixture.get(&format!("/console/operations{wrong}")).await;
        assert!(answer.expect(400).text.contains("What to do"), "{wrong}");
    }
}

#[tokio::test]
async fn the_overview_shows_what_waits_and_what_this_gateway_did() {
    use crate::metrics::Answer as How;
    let fixture = fixture();
    assert!(
        fixture
            .get("/console")
            .await
            .expect(200)
            .text
            .contains("Nothing has run yet")
    );
    fixture.completed("acme", "done").await;
    fixture.unknown("lost").await;
    let (_execution, _reader) = fixture.claim("acme", "running").await;
    let route = &fixture.shared.config.routes[0];
    let metrics = &fixture.shared.metrics;
    metrics.answered(route, How::Marked(onlyonce_http::Status::Replayed));
    metrics.answered(route, How::Marked(onlyonce_http::Status::Joined));
    let shown = fixture.get("/v1/overview").await.expect(200).json();
    let one = json!({ "number": 1, "at_least": false });
    assert_eq!((&shown["unknown_open"], &shown["in_flight"]), (&one, &one));
    assert_eq!(shown["since_start"]["replayed"], 1);
    assert_eq!(shown["unknown"][0]["key"], "lost");
    assert_eq!(shown["latest"].as_array().unwrap().len(), 3);
    let page = fixture.get("/console").await.expect(200).text;
    assert!(
        page.contains("Replayed <strong>1</strong>") && page.contains("Joined <strong>1</strong>")
    );
}

#[tokio::test]
async fn the_overview_shows_what_looks_like_repeats_where_a_route_observes() {
    assert!(!fixture().get("/console").await.text.contains("repeat"));
    let fixture = fixture_with(
        "[limits]\nobserved = 10\n[[route]]\nupstream = \"up\"\nname = \
         \"shadow\"\npath_prefix = \"/s\"\nkey = \"observe\"\n",
    );
    let page = fixture.get("/console").await.expect(200).text;
    assert!(
        page.contains("No request looks like a repeat since"),
        "{page}"
    );
    let metered = Metered {
        model: "gpt-5".into(),
        cost: Some(Cost {
            amount: Usd::from_nanos(65_000_000),
            basis: Basis::Table,
            version: "1".into(),
        }),
        ..Metered::default()
    };
    let now = fixture.shared.engine.store().now();
    let count = |client: &str, metered| {
        let suspects = &fixture.shared.suspects;
        suspects.count("acme", "shadow", client, metered, now);
    };
    for _ in 0..41 {
        count("OpenAI/Python python", Some(&metered));
    }
    for _ in 0..7 {
        count("<script>", Some(&metered));
    }
    let page = fixture.get("/console").await.expect(200).text;
    let text = text_of(&page);
    for sentence in [
        "48 requests look like repeats: $3.12 since ",
        ", 41 of them from OpenAI/Python python.",
        "Observed: shadow.",
    ] {
        assert!(text.contains(sentence), "{sentence}: {text}");
    }
    assert!(!page.contains("<script>"), "{page}");
    count("", None);
    let page = fixture.get("/console").await.expect(200).text;
    assert!(page.contains("of 1 nobody knows the cost"), "{page}");
}

#[tokio::test]
async fn an_unknown_operation_comes_with_what_to_do() {
    let fixture = fixture();
    fixture.completed("acme", "done").await;
    let id = fixture.unknown("lost").await;
    let shown = fixture.get("/v1/unknown").await.expect(200).json();
    let all = shown["unknown"].as_array().unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["operation"]["id"], json!(id));
    assert!(all[0]["advice"][0].as_str().unwrap().contains("POST /v1/x"));
    let page = fixture.get("/console/unknown").await.expect(200).text;
    for step in all[0]["advice"].as_array().unwrap() {
        assert!(page.contains(step.as_str().unwrap()), "{step}");
    }
}

#[tokio::test]
async fn an_operation_that_stopped_at_a_step_comes_with_what_to_do_about_the_step() {
    let fixture = fixture();
    for (reason, said) in [
        (UnknownReason::StepUnknown, "Settle the step"),
        (UnknownReason::Unfinished, "nothing to find out"),
    ] {
        let (execution, _reader) = fixture
            .claim("acme", &format!("k-{}", reason.number()))
            .await;
        execution.lose(reason).await.unwrap();
        let shown = fixture.get("/v1/unknown").await.expect(200).json();
        let advice = &shown["unknown"][0]["advice"];
        assert!(advice[0].as_str().unwrap().contains(said), "{advice}");
        assert!(advice.to_string().contains("Do not settle it as released"));
    }
}

#[tokio::test]
async fn i16_the_configuration_is_shown_without_its_secrets() {
    let fixture = fixture_with(
        "control_token = \"secret-1-of-the-file\"\n[[server.token]]\nname = \"n\"\ntoken = \
         \"secret-2-of-the-file\"\nrights = [\"read\"]\n[[tenant]]\nname = \"acme\"\ncredentials = \
         [\"secret-3-of-the-file\"]\n",
    );
    let fixture = Fixture {
        token: Some("secret-1-of-the-file"),
        ..fixture
    };
    let shown = fixture.get("/v1/config").await.expect(200);
    let page = fixture.get("/console/config").await.expect(200);
    assert!(!shown.text.contains("of-the-file") && !page.text.contains("of-the-file"));
    let shown = shown.json();
    assert_eq!(shown["server"]["control_token"], "••••••");
    assert_eq!(shown["server"]["token"][0]["rights"], json!(["read"]));
    assert_eq!(shown["tenant"][0]["credentials"], json!(["••••••"]));
    assert_eq!(shown["route"][0]["window"], "2h");
    assert_eq!(shown["upstream"][0]["url"], "http://localhost:1");
    assert!(page.text.contains("<code>window</code>"));
}

#[tokio::test]
async fn health_is_the_stores_and_the_gateways() {
    let fixture = fixture();
    fixture.completed("acme", "k").await;
    let shown = fixture.get("/v1/health").await.expect(200).json();
    assert_eq!(shown["store"]["records"], 1);
    assert_eq!(shown["store"]["takes_writes"], true);
    assert_eq!(shown["gateway"]["phase"], "serving");
    assert!(
        fixture
            .get("/console/health")
            .await
            .expect(200)
            .text
            .contains("takes writes")
    );
    let schemas = openapi()["components"]["schemas"].clone();
    let described = |name: &str| names(&schemas[name]["properties"]);
    assert_eq!(names(&shown["store"]), described("StoreHealth"));
    assert_eq!(names(&shown["gateway"]), described("ProcessHealth"));
    let config = fixture.get("/v1/config").await.expect(200).json();
    assert_eq!(names(&config), described("Config"));
    let overview = fixture.get("/v1/overview").await.expect(200).json();
    assert_eq!(names(&overview), described("Overview"));
    assert_eq!(names(&overview["since_start"]), described("SinceStart"));
    fixture.unknown("lost").await;
    let unknown = fixture.get("/v1/unknown").await.expect(200).json();
    assert_eq!(names(&unknown), described("UnknownPage"));
    assert_eq!(names(&unknown["unknown"][0]), described("Unknown"));
}

/// Three operations, one of them replayed twice.
async fn with_spend() -> Fixture {
    let fixture = fixture();
    fixture.completed("acme", "first").await;
    fixture.completed("acme", "second").await;
    fixture.completed("globex", "first").await;
    for _ in 0..2 {
        fixture.replay("acme", "second").await;
    }
    fixture.shared.engine.upkeep().await;
    fixture
}

#[tokio::test]
async fn the_ledger_tells_what_was_spent_and_what_was_not() {
    let fixture = with_spend().await;
    let ledger = async |query: &str| {
        let path = format!("/v1/ledger{query}");
        fixture.get(&path).await.expect(200).json()
    };
    let shown = ledger("?by=tenant,model&since=1h").await;
    let rows = shown["rows"].as_array().unwrap();
    let row = |row: &Value| {
        ["tenant", "model", "spent_usd", "not_spent_usd"]
            .map(|name| row[name].as_str().unwrap().to_owned())
    };
    assert_eq!(
        rows.iter().map(row).collect::<Vec<_>>(),
        [
            ["acme", "gpt-5", "0.00693", "0.00693"],
            ["globex", "gpt-5", "0.003465", "0.00"]
        ]
    );
    assert_eq!(shown["total"]["spent_usd"], "0.010395");
    assert_eq!(shown["total"]["operations"], 3);
    assert_eq!(shown["total"]["replayed"], 2);
    assert_eq!(shown["total"]["output"], 3 * 345);
    assert_eq!(shown["total"]["saved_output"], 2 * 345);
    let of_one = ledger("?by=hour,tenant&tenant=globex").await;
    assert_eq!(of_one["rows"].as_array().unwrap().len(), 1);
    assert!(
        of_one["rows"][0]["hour"]
            .as_str()
            .unwrap()
            .ends_with(":00:00.000Z")
    );
    assert_eq!(ledger("?until=2d").await["rows"], json!([]));
    for wrong in ["?by=colour", "?since=yesterday", "?limit=3"] {
        let refused = fixture.get(&format!("/v1/ledger{wrong}")).await;
        refused.expect_refusal(400);
    }
    let schemas = openapi()["components"]["schemas"].clone();
    let described = |name: &str| names(&schemas[name]["properties"]);
    assert_eq!(names(&shown), described("Ledger"));
    assert_eq!(names(&shown["total"]), described("Sums"));
    assert!(names(&shown["rows"][0]).is_subset(&described("LedgerRow")));
    let overview = fixture
        .get("/v1/overview?range=7d")
        .await
        .expect(200)
        .json();
    assert_eq!(overview["total"], shown["total"]);
    assert_eq!(overview["series"].as_array().unwrap().len(), 7);
    assert_eq!(names(&overview["series"][6]), described("Period"));
    assert_eq!(overview["top_tenants"][0]["name"], "acme");
    assert_eq!(names(&overview["top_models"][0]), described("Top"));
}

#[tokio::test]
async fn pages_show_what_was_spent_and_what_was_not() {
    let fixture = with_spend().await;
    let page = fixture.get("/console?range=30d").await.expect(200).text;
    assert!(page.contains("<strong>$0.00693</strong>"), "{page}");
    assert!(page.contains("<strong>$0.010395</strong>"));
    assert!(page.contains("in 2 replays and 0 joins") && page.contains("in 3 operations"));
    assert_eq!(page.matches("<rect class=\"room\"").count(), 30);
    let page = fixture.get("/console/spend?by=tenant&range=24h").await;
    let page = page.expect(200).text;
    assert!(
        page.contains("globex") && page.contains("$0.003465"),
        "{page}"
    );
    for wrong in ["/console?range=1y", "/console/spend?by=colour"] {
        let answer = fixture.get(wrong).await;
        assert!(answer.expect(400).text.contains("What to do"), "{wrong}");
    }
}

#[tokio::test]
async fn an_operation_shows_what_its_retries_would_have_cost_and_who_settled_it() {
    let fixture = fixture();
    let id = fixture.completed("acme", "k").await;
    fixture.replay("acme", "k").await;
    let page = fixture.get(&format!("/console/operations/{id}")).await;
    let page = page.expect(200).text;
    assert!(page.contains("Not spent twice") && page.contains("1 attempt replayed or joined"));
    let not_spent = async |id: &str| {
        let path = format!("/v1/operations/{id}");
        fixture.get(&path).await.expect(200).json()["not_spent_usd"].clone()
    };
    fixture.replay("acme", "k").await;
    assert_eq!(not_spent(&id).await, "0.00693");
    let once = fixture.completed("acme", "once").await;
    assert_eq!(not_spent(&once).await, "0.00");
    let id = fixture.unknown("lost").await;
    assert_eq!(not_spent(&id).await, Value::Null);
    let resolve = format!("/v1/operations/{id}/resolve");
    let released = json!({ "outcome": "released", "reason": "asked <them>" });
    let settled = fixture.post(&resolve, &released).await.expect(200).json();
    assert_eq!(settled["ruling"]["reason"], "asked <them>");
    assert_eq!(settled["ruling"]["who"], "anybody here");
    let page = fixture.get(&format!("/console/operations/{id}")).await;
    let page = page.expect(200).text;
    assert!(page.contains("In their words") && page.contains("asked &lt;them&gt;"));
    let schemas = openapi()["components"]["schemas"].clone();
    assert_eq!(
        names(&settled["ruling"]),
        names(&schemas["Ruling"]["properties"])
    );
}

/// The text of a page, without its tags.
fn text_of(page: &str) -> String {
    page.split('<')
        .filter_map(|part| part.split_once('>'))
        .map(|(_, text)| text)
        .collect()
}

#[tokio::test]
async fn an_operation_says_what_is_not_known_yet_and_what_will_never_be() {
    let fixture = fixture();
    let page = async |id: &str| {
        let path = format!("/console/operations/{id}");
        text_of(&fixture.get(&path).await.expect(200).text)
    };
    let (execution, _reader) = fixture.claim("acme", "running").await;
    let id = execution.id().to_string();
    let running = page(&id).await;
    for words in [
        "–not known yetTokens",
        "–not known yetAttempts",
        "Not known yet: it is still running.",
        ", 1 attempt",
    ] {
        assert!(running.contains(words), "{words}: {running}");
    }
    assert!(!running.contains("1 attempts") && !running.contains("no price is known"));
    execution.lose(UnknownReason::Broke).await.unwrap();
    let lost = page(&id).await;
    for words in [
        "not known: its answer has told of none",
        "Not known: no answer has come",
    ] {
        assert!(lost.contains(words), "{words}: {lost}");
    }
    let released = json!({ "outcome": "released" });
    fixture
        .post(&format!("/v1/operations/{id}/resolve"), &released)
        .await
        .expect(200);
    let freed = page(&id).await;
    assert!(freed.contains("None: it did not run."), "{freed}");
    let (execution, _reader) = fixture.claim("acme", "free").await;
    let id = execution.id().to_string();
    let head = Head {
        status: 200,
        headers: HeaderBlock::default(),
    };
    execution
        .respond_whole(head, "{}".into(), HeaderBlock::default())
        .await
        .unwrap();
    let unmetered = page(&id).await;
    assert!(unmetered.contains("no price is known") && unmetered.contains("not metered"));
}
