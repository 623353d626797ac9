//! The example does what its page says.

use onlyonce_testkit::{Postgres, example};

#[test]
fn the_example_transfers_once_however_often_it_is_run() {
    let server = Postgres::start(&[]);
    let transfer = |cents: &str| {
        let words = [&*server.url(), "order-17", "ada", cents];
        example("transfer").args(words).output().unwrap()
    };
    for _ in 0..2 {
        let said = transfer("1999");
        assert!(said.status.success(), "{said:?}");
        let text = String::from_utf8(said.stdout).unwrap();
        assert_eq!(text, "Receipt { balance: 1999, letter: 1 }\n");
    }
    let other = transfer("2000");
    assert!(!other.status.success(), "{other:?}");
    assert_eq!(server.sql("SELECT name, cents FROM accounts"), "ada|1999");
    assert_eq!(server.sql("SELECT count(*) FROM outbox"), "1");
}
