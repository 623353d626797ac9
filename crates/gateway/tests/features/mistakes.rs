//! Every mistake gets one clear line, says what to do, and ends with a code that is not zero.

use std::net::TcpListener;

use onlyonce_testkit::{Run, Upstream, run_to_exit};

use crate::{BIN, setup};

/// One line on standard error that starts with our name and says these words and what to do.
#[track_caller]
fn one_clear_line(run: &Run, code: i32, words: &[&str]) {
    assert_eq!(run.code, Some(code), "{run:?}");
    assert_eq!(run.stderr.lines().count(), 1, "one line: {:?}", run.stderr);
    assert!(run.stderr.starts_with("onlyonce: "), "{:?}", run.stderr);
    assert!(run.stderr.contains("; "), "what to do: {:?}", run.stderr);
    for word in words {
        assert!(run.stderr.contains(word), "{word:?} in {:?}", run.stderr);
    }
}

/// `serve` and `check` both refuse this file, with the same words.
#[track_caller]
fn refused(text: &str, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("onlyonce.toml");
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    for command in [&["check", &file][..], &["serve", "--config", &file]] {
        one_clear_line(&run_to_exit(BIN, command, &[]), 2, words);
    }
    assert!(!folder.path().join("onlyonce-data").exists());
}

const UPSTREAM: &str = "[[upstream]]\nname = \"up\"\nurl = \"http://127.0.0.1:9\"\n";

#[test]
fn an_unknown_setting_names_its_line_and_what_was_meant() {
    refused(
        &format!("[server]\nlisten = \"127.0.0.1:0\"\nheader_timeot = \"1s\"\n{UPSTREAM}"),
        &["line 3", "header_timeot", "header_timeout"],
    );
    refused(
        &format!("{UPSTREAM}[[route]]\nupstream = \"up\"\nconcurent = \"join\"\n"),
        &["line 6", "concurent", "concurrent"],
    );
    refused(
        &format!("{UPSTREAM}[serverr]\n"),
        &["line 4", "serverr", "server"],
    );
}

#[test]
fn a_broken_file_names_its_line() {
    refused("[server\n", &["line 1"]);
    refused(
        &format!("{UPSTREAM}[server]\nlisten = 127\n= 5\n"),
        &["line"],
    );
}

#[test]
fn durations_and_sizes_need_a_unit_that_is_known() {
    for wrong in ["\"10\"", "\"10 years\"", "10", "\"-1s\"", "\"\"", "\"0s\""] {
        refused(
            &format!("{UPSTREAM}[[route]]\nupstream = \"up\"\nwindow = {wrong}\n"),
            &["line 6", "window"],
        );
    }
    for wrong in ["\"10 bananas\"", "\"-1\"", "\"\"", "1.5"] {
        refused(
            &format!("{UPSTREAM}[limits]\nrequest_body = {wrong}\n"),
            &["line 5", "request_body"],
        );
    }
}

#[test]
fn a_word_that_is_no_choice_names_what_was_meant() {
    refused(
        &format!("{UPSTREAM}[[route]]\nupstream = \"up\"\nconcurrent = \"joni\"\n"),
        &["line 6", "joni", "join"],
    );
    refused(
        &format!("{UPSTREAM}[[route]]\nupstream = \"upp\"\n"),
        &["line 5", "upp", "up"],
    );
    refused(
        "[[upstream]]\nname = \"up\"\nurl = \"http://a.test\"\npreset = \"opnai\"\n",
        &["line 4", "opnai", "openai"],
    );
}

#[test]
fn an_upstream_needs_an_address() {
    for wrong in [
        "\"ftp://a.test\"",
        "\"a.test\"",
        "\"http://\"",
        "\"http://u:secret@a.test\"",
        "5",
    ] {
        refused(
            &format!("[[upstream]]\nname = \"up\"\nurl = {wrong}\n"),
            &["line 3", "url"],
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.toml");
    std::fs::write(
        &file,
        "[[upstream]]\nname = \"up\"\nurl = \"http://u:secret@a.test\"\n",
    )
    .unwrap();
    let run = run_to_exit(BIN, &["check", &file.display().to_string()], &[]);
    assert!(!run.stderr.contains("secret"), "{run:?}");
    refused("", &["upstream"]);
}

#[test]
fn a_resend_that_may_run_twice_is_refused_without_these_words() {
    refused(
        &format!("{UPSTREAM}[[route]]\nupstream = \"up\"\non_unknown = \"resend\"\n"),
        &["line 6", "on_unknown", "may-run-twice"],
    );
}

#[test]
fn a_secret_that_is_not_there_names_its_variable() {
    refused(
        &format!("[server]\ncontrol_token = \"env:ONLYONCE_TEST_NOT_SET\"\n{UPSTREAM}"),
        &["line 2", "ONLYONCE_TEST_NOT_SET"],
    );
}

#[test]
fn an_encryption_key_of_the_wrong_length_is_refused_and_not_shown() {
    let text = format!(
        "{UPSTREAM}[store.encryption]\nactive = 1\nkeys = [{{ id = 1, key = \"c2hvcnQtc2VjcmV0\" }}]\n"
    );
    refused(&text, &["line 6", "32 bytes"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.toml");
    std::fs::write(&file, text).unwrap();
    let run = run_to_exit(BIN, &["check", &file.display().to_string()], &[]);
    assert!(!run.stderr.contains("c2hvcnQtc2VjcmV0"), "{run:?}");
}

#[test]
fn a_control_listener_for_others_needs_a_long_token() {
    refused(
        &format!("[server]\ncontrol = \"0.0.0.0:0\"\n{UPSTREAM}"),
        &["control_token", "32"],
    );
    refused(
        &format!("[server]\ncontrol = \"0.0.0.0:0\"\ncontrol_token = \"short\"\n{UPSTREAM}"),
        &["control_token", "32"],
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let run = run_to_exit(BIN, &["check", "/no/such/file.toml"], &[]);
    one_clear_line(&run, 2, &["/no/such/file.toml"]);
    let run = run_to_exit(BIN, &["serve", "--config", "/no/such/file.toml"], &[]);
    one_clear_line(&run, 2, &["/no/such/file.toml"]);
}

#[test]
fn words_that_mean_nothing_are_refused() {
    for words in [
        &["serve"][..],
        &["serve", "--upsteam", "http://a"],
        &["no-such-command"],
        &[],
    ] {
        let run = run_to_exit(BIN, words, &[]);
        assert_eq!(run.code, Some(2), "{words:?}: {run:?}");
        assert!(!run.stderr.is_empty(), "{words:?}");
    }
    let run = run_to_exit(BIN, &["serve", "--upstream", "not an address"], &[]);
    one_clear_line(&run, 2, &["--upstream"]);
    let run = run_to_exit(
        BIN,
        &["serve", "--upstream", "http://a.test", "--preset", "opnai"],
        &[],
    );
    one_clear_line(&run, 2, &["opnai", "openai"]);
}

#[test]
fn a_busy_port_is_named() {
    let upstream = Upstream::counting();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = busy.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").display().to_string();
    for busy_one in ["--listen", "--control"] {
        let other = if busy_one == "--listen" {
            "--control"
        } else {
            "--listen"
        };
        let words = [
            "serve",
            "--upstream",
            &upstream.url(),
            busy_one,
            &addr,
            other,
            "127.0.0.1:0",
            "--data",
            &data,
        ];
        one_clear_line(&run_to_exit(BIN, &words, &[]), 1, &[&addr]);
    }
}

#[test]
fn a_data_folder_that_is_a_file_is_named() {
    let upstream = Upstream::counting();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let run = match setup(&upstream).data(&file).try_start() {
        Ok(_) => panic!("it starts on a file"),
        Err(run) => run,
    };
    one_clear_line(&run, 1, &[&file.display().to_string()]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn a_folder_with_other_things_is_left_alone() {
    let upstream = Upstream::counting();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("notes.txt"), "precious").unwrap();
    if let Err(run) = setup(&upstream).data(folder.path()).try_start() {
        one_clear_line(&run, 1, &[&folder.path().display().to_string()]);
    }
    assert_eq!(
        std::fs::read_to_string(folder.path().join("notes.txt")).unwrap(),
        "precious"
    );
}

#[test]
fn certificates_that_cannot_be_read_are_named() {
    let upstream = Upstream::counting();
    let run = match setup(&upstream)
        .extra("[server.tls]\ncert = \"/no/such/cert.pem\"\nkey = \"/no/such/key.pem\"")
        .try_start()
    {
        Ok(_) => panic!("it starts without its certificate"),
        Err(run) => run,
    };
    one_clear_line(&run, 2, &["/no/such/cert.pem", "server.tls.cert"]);
    for (what, words) in [
        (
            "tls_roots = \"/no/such/roots.pem\"",
            ["/no/such/roots.pem", "tls_roots"],
        ),
        (
            "tls_roots = \"/etc/hostname\"",
            ["/etc/hostname", "no certificate"],
        ),
    ] {
        refused(
            &format!("[[upstream]]\nname = \"up\"\nurl = \"https://a.test\"\n{what}\n"),
            &words,
        );
    }
}

#[test]
fn what_a_file_holds_never_makes_a_second_line() {
    refused(
        &format!("{UPSTREAM}[server]\nlisten = \"\"\"a\nb\"\"\"\n"),
        &["line 5", "a\\nb"],
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("onlyonce.toml");
    std::fs::write(&file, b"\xff\xfe\x00").unwrap();
    let run = run_to_exit(BIN, &["check", &file.display().to_string()], &[]);
    one_clear_line(&run, 2, &["UTF-8"]);
}

#[test]
fn a_mistake_has_its_exit_code_where_nobody_hears_of_it() {
    for (words, code) in [("check /no/such/file.toml", 2), ("no-such-command", 2)] {
        let script = format!("{BIN} {words} 2>/dev/full");
        let run = run_to_exit("/bin/sh", &["-c", &script], &[]);
        assert_eq!(run.code, Some(code), "{words}: {run:?}");
    }
}

#[test]
fn a_sandbox_on_a_busy_port_names_it() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = busy.local_addr().unwrap().to_string();
    let run = run_to_exit(BIN, &["sandbox", "--listen", &addr], &[]);
    one_clear_line(&run, 1, &[&addr, "--listen"]);
}

#[test]
fn keys_without_the_right_token_are_told_what_to_send() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .server("control_token = \"env:TOKEN\"")
        .env("TOKEN", "a-token-of-more-than-thirty-two-characters")
        .start();
    let control = format!("http://{}", gateway.control_addr());
    for token in [&[][..], &["--token", "wrong"]] {
        let words = [&["keys", "--control", &control][..], token, &["list"]].concat();
        let run = run_to_exit(BIN, &words, &[]);
        one_clear_line(&run, 1, &["token"]);
        assert!(!run.stderr.contains("wrong"), "{run:?}");
    }
}

#[test]
fn an_upstream_that_is_away_is_no_reason_not_to_start_and_its_callers_are_told() {
    let away = onlyonce_testkit::Refusing::new();
    let gateway = onlyonce_testkit::Gateway::before(BIN, &away.url());
    let told = gateway.post("/x", "k", "b");
    told.expect_problem(502, "upstream-unreachable")
        .expect_retry(true);
    let told = told.json();
    let detail = told["detail"].as_str().unwrap();
    assert!(detail.contains("Connection refused"), "{detail}");
    // Nothing is lost: the key is free, and runs as soon as somebody is there.
    assert_eq!(gateway.control().operation("k")["state"], "released");
    let listener = away.listen();
    let mut caller = gateway.begin(&crate::post("/x", "k", "b"));
    let (stream, _) = listener.accept().unwrap();
    let mut upstream = onlyonce_testkit::Wire::new(stream);
    upstream.take_head().unwrap();
    upstream
        .send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .unwrap();
    crate::expect_executed(&caller.response());
}

#[test]
fn a_file_of_prices_that_cannot_be_used_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prices.json");
    let data = folder.path().join("data");
    let text = format!(
        "{UPSTREAM}[prices]\nfile = \"{}\"\n[store]\nurl = \"embedded:{}\"\n",
        file.display(),
        data.display()
    );
    let name = file.display().to_string();
    refused(&text, &[&name, "cannot be read", "[prices]"]);
    std::fs::write(&file, "[{\"id\": 7}]").unwrap();
    refused(&text, &[&name, "genai-prices"]);
    assert!(!data.exists(), "it made a data folder");
}
