//! What begin, run and complete promise.

use onlyonce_postgres::{Begin, Call, Database, Error, Operation};
use onlyonce_testkit::Postgres;

use crate::bank::{Bank, call, write};
use crate::drivers::{Driver, on_both_drivers};

on_both_drivers! {
    i01_a_payment_is_paid_once_and_its_result_replayed
}

async fn i01_a_payment_is_paid_once_and_its_result_replayed<D: Driver>() {
    let bank = Bank::open().await;
    let mut connection = bank.connect::<D>().await;
    let first = bank.pay::<D>(&mut connection, "k").await.unwrap();
    for _ in 0..3 {
        assert_eq!(bank.pay::<D>(&mut connection, "k").await.unwrap(), first);
    }
    assert_eq!(bank.told(Postgres::shared(), Some("k")), (1, vec![first]));
    assert_eq!(bank.operations(Postgres::shared(), 2), 1);
}
