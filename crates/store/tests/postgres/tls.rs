//! TLS to the server.

use std::fs;

use onlyonce_store::{
    PostgresStore,
    postgres::{ConnectError, Options, migrate},
};
use onlyonce_testkit::Postgres;
use rcgen::{CertifiedKey, generate_simple_self_signed};

use crate::support::{assert_holds, finish};

#[tokio::test]
async fn the_server_is_believed_as_far_as_the_url_says() {
    let server = Postgres::start(&[]);
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let put = |name: &str, text: &str| {
        let path = format!("{}/{name}", server.data());
        fs::write(&path, text).expect("written");
        path
    };
    let trusted = put("server.crt", &cert.pem());
    server.adopt(&put("server.key", &signing_key.serialize_pem()));
    server.sql("ALTER SYSTEM SET ssl = on");
    server.sql("SELECT pg_reload_conf()");

    let url = |host: &str, parameters: &str| {
        format!(
            "postgres://postgres@{host}:{}/postgres?{parameters}",
            server.port()
        )
    };
    migrate(&url("localhost", "sslmode=require"), &Options::default())
        .await
        .expect("encrypted, and nobody asks by whom");
    let verified = url(
        "localhost",
        &format!("sslmode=verify-full&sslrootcert={trusted}"),
    );
    let store = PostgresStore::connect(&verified, Options::default()).await;
    let store = store.expect("its certificate is trusted");
    let kept = finish(&store, "k").await;
    assert_holds(&store, "k", &kept).await;
    let encrypted = server.sql(
        "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE application_name = 'onlyonce'",
    );
    assert_eq!(encrypted, "t");

    let other = generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let other = put("other.crt", &other.cert.pem());
    for (url, why) in [
        (
            url(
                "localhost",
                &format!("sslmode=verify-full&sslrootcert={other}"),
            ),
            "signed by another",
        ),
        (
            url(
                "127.0.0.1",
                &format!("sslmode=verify-full&sslrootcert={trusted}"),
            ),
            "for another name",
        ),
        (
            url("localhost", "sslmode=verify-full"),
            "unknown to the system",
        ),
    ] {
        let refused = PostgresStore::connect(&url, Options::default()).await;
        let error = refused.expect_err(why);
        assert!(
            matches!(error, ConnectError::Unreachable { .. }),
            "{why}: {error}"
        );
    }
}
