//! Lists of many operations.

use onlyonce_core::{Key, StateName};
use onlyonce_store::{Query, Store};
use onlyonce_testkit::Postgres;

use crate::support::{claim, finish, fresh_url, lose, open, schema_of};

/// A page looks at so many operations only, and the next one goes on behind them. What there is an index
/// of is found at once.
#[tokio::test]
async fn a_page_ends_after_many_that_are_not_wanted() {
    let url = fresh_url();
    let store = open(&url, Default::default()).await;
    finish(&store, "completed").await;
    claim(&store, "running").await;
    let unknown = claim(&store, "unknown").await;
    lose(&store, "unknown", &unknown).await;
    // Of another tenant, newer than those.
    Postgres::shared().sql(&format!(
        "INSERT INTO {schema}.operations (address, id, epoch, claim, until, period, attempts, executing,
            tenant_tag, state)
        SELECT md5(n::text)::uuid, overlay(md5(n::text) PLACING 'ffff' FROM 1 FOR 4)::uuid, 2, 1,
            9000000000000, 0, 1, 1, 1, 2
        FROM generate_series(1, 30000) n",
        schema = schema_of(&url)
    ));
    let query = |query| Query {
        limit: 10,
        tenant: Some("acme".into()),
        ..query
    };
    let found = async |wanted| {
        let page = store.list(query(wanted)).await.expect("a page");
        let keys = page.records.iter().map(|one| one.record.key.to_string());
        (keys.collect::<Vec<_>>(), page.next)
    };
    let (keys, older_than) = found(Query::default()).await;
    assert_eq!(keys, [""; 0]);
    assert!(older_than.is_some(), "the page is the last one");
    let older = Query {
        older_than,
        ..Query::default()
    };
    let all = ["unknown", "running", "completed"].map(str::to_owned);
    assert_eq!(found(older).await, (all.to_vec(), None));

    for (state, key) in [
        (StateName::InFlight, "running"),
        (StateName::Unknown, "unknown"),
    ] {
        let state = Some(state);
        let by_state = Query {
            state,
            ..Query::default()
        };
        assert_eq!(found(by_state).await, (vec![key.to_owned()], None));
    }
    let by_key = Query {
        key: Some(Key::new("completed").expect("a key")),
        ..Query::default()
    };
    assert_eq!(found(by_key).await, (vec!["completed".to_owned()], None));
}
