//! The books' entries, and operations found by their model.

use super::*;

/// Of one model three operations of two tenants, of another one; the record of the oldest is gone.
async fn with_books() -> (Fixture, Vec<String>) {
    let fixture = fixture();
    let mut ids = Vec::new();
    for (tenant, key, model) in [
        ("acme", "first", "large"),
        ("acme", "second", "small"),
        ("globex", "third", "large"),
        ("acme", "fourth", "large"),
    ] {
        ids.push(fixture.completed_by(tenant, key, model).await);
        fixture.shared.engine.upkeep().await;
    }
    let id = ids[0].parse().unwrap();
    let store = fixture.shared.engine.store();
    let address = store.find(id).await.unwrap().unwrap();
    let fence = store.load(address).await.unwrap().unwrap().record.fence();
    assert!(store.remove(address, fence).await.unwrap());
    (fixture, ids)
}

/// The ids of all in the list `name` of a page.
fn ids_of(page: &Value, name: &str) -> Vec<String> {
    let all = page[name].as_array().unwrap().iter();
    all.map(|one| one["id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn the_entries_come_in_pages_the_last_booked_first() {
    let (fixture, ids) = with_books().await;
    let page = async |query: &str| {
        let path = format!("/v1/ledger/entries{query}");
        fixture.get(&path).await.expect(200).json()
    };
    let newest_first: Vec<_> = ids.iter().rev().cloned().collect();
    let all = page("").await;
    assert_eq!(ids_of(&all, "entries"), newest_first);
    assert_eq!(all["next_cursor"], Value::Null);
    let entry = &all["entries"][3];
    assert_eq!(
        (&entry["tenant"], &entry["model"]),
        (&json!("acme"), &json!("large"))
    );
    assert_eq!(entry["cost"]["amount"], "0.003465");
    for (query, count) in [
        ("?tenant=acme", 3),
        ("?model=large", 3),
        ("?route=up&model=small", 1),
        ("?route=down", 0),
        ("?since=1h", 4),
        ("?until=1h", 0),
    ] {
        assert_eq!(
            ids_of(&page(query).await, "entries").len(),
            count,
            "{query}"
        );
    }
    let mut walked = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = page(&format!("?limit=1&model=large{cursor}")).await;
        walked.extend(ids_of(&page, "entries"));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(walked, [&ids[3], &ids[2], &ids[0]].map(Clone::clone));
    for wrong in ["?key=k", "?limit=0", "?since=yesterday", "?cursor=op_1"] {
        let path = format!("/v1/ledger/entries{wrong}");
        fixture.get(&path).await.expect_refusal(400);
    }
    let schemas = openapi()["components"]["schemas"].clone();
    let described = |name: &str| names(&schemas[name]["properties"]);
    assert_eq!(names(&all), described("EntryPage"));
    assert_eq!(names(entry), described("Entry"));
    assert_eq!(names(&entry["cost"]), described("EntryCost"));
}

#[tokio::test]
async fn operations_are_found_by_model_also_when_their_record_is_gone() {
    let (fixture, ids) = with_books().await;
    let list = async |query: &str| {
        let path = format!("/v1/operations{query}");
        fixture.get(&path).await.expect(200).json()
    };
    let large = list("?model=large&state=completed").await;
    assert_eq!(
        ids_of(&large, "operations"),
        [&ids[3], &ids[2]].map(Clone::clone)
    );
    assert_eq!(ids_of(&large, "gone"), [ids[0].clone()]);
    let of_one = list("?model=large&tenant=globex&since=1h").await;
    assert_eq!(ids_of(&of_one, "operations"), [ids[2].clone()]);
    let first = list("?model=large&limit=2").await;
    assert_eq!(ids_of(&first, "gone"), Vec::<String>::new());
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = list(&format!("?model=large&limit=2&cursor={cursor}")).await;
    assert_eq!(ids_of(&second, "gone"), [ids[0].clone()]);
    assert_eq!(second["next_cursor"], Value::Null);
    for (wrong, word) in [
        ("?model=large&state=released", "completed"),
        ("?model=large&state=complete", "completed"),
        ("?model=large&key=first", "key"),
        ("?model=large&cursor=op_1", "next_cursor"),
    ] {
        let path = format!("/v1/operations{wrong}");
        let refusal = fixture.get(&path).await.expect_refusal(400).to_string();
        assert!(refusal.contains(word), "{wrong}: {refusal}");
    }
}

#[tokio::test]
async fn what_has_not_ended_is_found_by_the_model_that_it_asks_for() {
    let (fixture, _) = with_books().await;
    let lose = async |key: &str, model: &str| {
        let (execution, _reader) = fixture.claim_asking("acme", key, model).await;
        let id = execution.id().to_string();
        execution.lose(UnknownReason::Broke).await.unwrap();
        id
    };
    let mut lost = Vec::new();
    for number in 0..3 {
        lost.push(lose(&format!("lost-{number}"), "large").await);
        lose(&format!("other-{number}"), "small").await;
    }
    fixture.unknown("says-nothing").await;
    let (running, _reader) = fixture.claim_asking("globex", "runs", "large").await;
    let list = async |query: &str| fixture.get(query).await.expect(200).json();
    let in_flight = list("/v1/operations?model=large&state=in_flight").await;
    assert_eq!(ids_of(&in_flight, "operations"), [running.id().to_string()]);
    let metered = &in_flight["operations"][0]["metered"];
    assert_eq!(
        (
            &metered["request_model"],
            &metered["source"],
            &metered["cost"]
        ),
        (&json!("large"), &json!("none"), &Value::Null)
    );
    // Within a millisecond, ids have an order of their own.
    lost.sort_unstable_by(|a, b| b.cmp(a));
    let first = list("/v1/operations?model=large&state=unknown&limit=2").await;
    assert_eq!(ids_of(&first, "operations"), lost[..2]);
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = format!("/v1/operations?model=large&state=unknown&limit=2&cursor={cursor}");
    let second = list(&rest).await;
    assert_eq!(ids_of(&second, "operations"), lost[2..]);
    assert_eq!(second["next_cursor"], Value::Null);
    let inbox = list("/v1/unknown?model=large").await;
    assert_eq!(inbox["unknown"].as_array().unwrap().len(), 3);
    let none = list("/v1/operations?model=large&state=unknown&tenant=globex").await;
    assert_eq!(ids_of(&none, "operations"), Vec::<String>::new());

    let page = async |path: &str| fixture.get(path).await.expect(200).text;
    let listed = page("/console/operations?model=large&state=unknown").await;
    assert_eq!(listed.matches("<td class=\"key\">").count(), 3);
    assert_eq!(listed.matches("<td>large</td>").count(), 3);
    assert!(!listed.contains("What the ledger says"));
    let inbox = page("/console/unknown?model=large").await;
    assert_eq!(inbox.matches("<article").count(), 3);
    assert!(
        inbox.contains("<dt>Model asked for</dt><dd>large</dd>"),
        "{inbox}"
    );
    let one = page(&format!("/console/operations/{}", running.id())).await;
    assert!(one.contains("<dt>Asked for</dt><dd>large</dd>"), "{one}");
    assert!(one.contains("Not known yet: it is still running."), "{one}");
}

#[tokio::test]
async fn a_page_of_a_model_looks_at_so_many_records_and_no_more() {
    let (fixture, _) = with_books().await;
    let (execution, _reader) = fixture.claim_asking("acme", "oldest", "rare").await;
    let oldest = execution.id().to_string();
    execution.lose(UnknownReason::Broke).await.unwrap();
    let store = fixture.shared.engine.store();
    let then = store.now();
    while store.now() == then {
        std::hint::spin_loop();
    }
    for number in 0..2000 {
        fixture.unknown(&format!("newer-{number}")).await;
    }
    let first = "/v1/operations?model=rare&state=unknown";
    let page = fixture.get(first).await.expect(200).json();
    assert_eq!(ids_of(&page, "operations"), Vec::<String>::new());
    let cursor = page["next_cursor"].as_str().unwrap();
    let page = fixture
        .get(&format!("{first}&cursor={cursor}"))
        .await
        .expect(200)
        .json();
    assert_eq!(ids_of(&page, "operations"), [oldest]);
    let text = fixture
        .get("/console/operations?model=rare&state=unknown")
        .await
        .expect(200)
        .text;
    assert!(text.contains("None so far"), "{text}");
}

#[tokio::test]
async fn the_page_operations_lists_a_model_and_the_page_spend_links_to_it() {
    let (fixture, ids) = with_books().await;
    let page = async |path: &str| fixture.get(path).await.expect(200).text;
    let spend = page("/console/spend?range=24h").await;
    let (_, link) = spend
        .split_once("<a href=\"/console/operations?tenant=acme&amp;model=large&amp;since=")
        .expect("a link");
    let since = link.split('"').next().unwrap();
    let listed = page(&format!(
        "/console/operations?tenant=acme&key=&state=&model=large&since={since}"
    ))
    .await;
    assert_eq!(listed.matches("<td class=\"key\">").count(), 1);
    assert!(listed.contains(&ids[3]) && listed.contains(&format!("title=\"{}\"", ids[0])));
    assert!(listed.contains("record gone"), "{listed}");
    assert!(!listed.contains(&ids[1]) && !listed.contains(&ids[2]));
    assert!(
        page("/console")
            .await
            .contains("/console/operations?model=small")
    );
    // A route is no filter of operations.
    let by_route = page("/console/spend?by=route,model").await;
    assert!(!by_route.contains("/console/operations?"), "{by_route}");
    let next = page("/console/operations?model=large&limit=2").await;
    assert!(next.contains("href=\"?model=large&amp;cursor="), "{next}");
    let refused = fixture
        .get("/console/operations?model=large&state=released")
        .await;
    assert!(refused.expect(400).text.contains("What to do"));
}
