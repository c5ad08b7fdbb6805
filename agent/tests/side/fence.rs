//! The fence on its own: who is kept out, who gets in, what survives, and what is restored.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use pgleap_agent::fence::{self, Content};
use pgleap_agent::pg::sql;

use crate::client::{connect, is_kept_out};
use crate::pair::{OPERATION, Place, hba, server};
use crate::postgres::Cluster;
use crate::{eventually, majors, scenario};

pub const LIMIT: Duration = Duration::from_secs(20);

/// A start-up message of the protocol, which the server answers by asking for a password.
fn begin_login(server: &Cluster, user: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", u16::try_from(server.node.port).unwrap())).unwrap();
    let body = format!("user\0{user}\0database\0app\0\0");
    let mut message = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
    message.extend(196_608u32.to_be_bytes());
    message.extend(body.as_bytes());
    stream.write_all(&message).unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"R", "asked to authenticate");
    stream
}

/// Whether the server has hung up, whatever it said before.
fn is_closed(mut stream: TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// Whether a role gets a walsender.
fn replicates(server: &Cluster, user: &str, mode: &str) -> bool {
    let target =
        format!("host=127.0.0.1 port={} user={user} dbname=app replication={mode}", server.node.port);
    let output =
        server.command("psql").args(["-XAtq", "-d", &target, "-c", "IDENTIFY_SYSTEM"]).output().unwrap();
    output.status.success()
}

async fn keeps_out_and_lets_in(major: u32) {
    let place = Place::new();
    let server = server("one", major);
    server
        .sql("app", "CREATE TABLE t (v int); GRANT ALL ON t TO client; CREATE ROLE slow LOGIN PASSWORD 'x'");
    let path = hba(&server);
    let original = "# \u{fc}ber\nhost app slow 127.0.0.1/32 scram-sha-256\n".to_owned()
        + &std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &original).unwrap();
    server.sql("postgres", "SELECT pg_reload_conf()");
    eventually("the password is asked for", async || {
        server.sql("postgres", "SELECT count(*) FROM pg_hba_file_rules WHERE 'slow' = ANY (user_name)").trim()
            == "1"
            && connect_asks_for_password(&server).await
    })
    .await;

    let open = connect(&server.node, "app").await.unwrap();
    open.batch_execute(
        "SET default_transaction_read_only = off; SET statement_timeout = 0; BEGIN; INSERT INTO t VALUES (1)",
    )
    .await
    .unwrap();
    let busy = connect(&server.node, "app").await.unwrap();
    let sleeping = tokio::spawn(async move { busy.batch_execute("SELECT pg_sleep(600)").await });
    let silent = TcpStream::connect(("127.0.0.1", u16::try_from(server.node.port).unwrap())).unwrap();
    let authenticating = begin_login(&server, "slow");

    let fence = fence::prepare(&place.config, &server.node, OPERATION, &["follower".into()]).await.unwrap();
    let session = sql::connect(&server.node, "app").await.unwrap();
    assert!(!fence::is_fenced(&server.node).await.unwrap());
    for round in 0..2 {
        let applied = fence.apply(&session, LIMIT).await.unwrap();
        assert_eq!(applied.terminated >= 4, round == 0, "{applied:?}");
    }
    let state = fence::state(&server.node).await.unwrap();
    assert!(state.is_fenced() && state.operation() == Some(OPERATION), "{state:?}");
    assert!(open.batch_execute("COMMIT").await.is_err());
    assert!(sleeping.await.unwrap().is_err());
    assert!(is_closed(silent) && is_closed(authenticating));
    assert!(is_kept_out(&server.node).await);
    assert!(replicates(&server, "other", "true"), "a physical standby");
    assert!(replicates(&server, "follower", "database") && !replicates(&server, "other", "database"));
    assert!(session.query_one("SELECT count(*) FROM public.t", &[]).await.unwrap().get::<_, i64>(0) == 0);

    server.sql("postgres", "SELECT pg_reload_conf()");
    assert!(is_kept_out(&server.node).await && fence::is_fenced(&server.node).await.unwrap());
    drop(session);
    server.run("pg_ctl", &["-D", &server.node.data_dir, "-m", "fast", "-w", "-s", "stop"]);
    assert!(fence::is_fenced(&server.node).await.unwrap(), "stopped");
    start(&server);
    assert!(is_kept_out(&server.node).await && fence::is_fenced(&server.node).await.unwrap());

    assert!(fence::lift(&server.node, "another").await.is_err());
    for _ in 0..2 {
        assert_eq!(fence::lift(&server.node, OPERATION).await.unwrap(), Vec::<String>::new());
        assert!(!is_kept_out(&server.node).await && !fence::is_fenced(&server.node).await.unwrap());
    }
    assert_eq!(std::fs::read(&path).unwrap(), original.as_bytes());
}

async fn connect_asks_for_password(server: &Cluster) -> bool {
    match crate::client::connect_as(&server.node, "slow", "app").await {
        Ok(_) => false,
        Err(error) => format!("{error:?}").contains("password"),
    }
}

pub fn start(server: &Cluster) {
    let log = format!("{}/server.log", server.node.data_dir);
    server.run("pg_ctl", &["-D", &server.node.data_dir, "-l", &log, "-w", "-s", "start"]);
}

#[test]
fn clients_are_kept_out_and_replication_gets_in() {
    scenario("fence::clients_are_kept_out_and_replication_gets_in", async || {
        for (major, _) in majors() {
            keeps_out_and_lets_in(major).await;
        }
    });
}

#[test]
fn an_edit_is_told_and_groups_are_judged_by_the_server() {
    scenario("fence::an_edit_is_told_and_groups_are_judged_by_the_server", async || {
        let place = Place::new();
        for (major, _) in majors() {
            let server = server("one", major);
            server.sql(
                "postgres",
                "CREATE ROLE readers; CREATE ROLE nested ROLE follower; GRANT readers TO nested",
            );
            let path = hba(&server);
            let expression = if major >= 16 { "host all \"/^fol,?low\" 127.0.0.1/32 trust\n" } else { "" };
            let rules = format!(
                "local all postgres trust\nhost all +postgres 127.0.0.1/32 reject\n{expression}host all +readers all trust\n\
                 host all +pg_monitor all md5\nhost all all all trust\n"
            );
            std::fs::write(&path, &rules).unwrap();
            let session = sql::connect(&server.node, "app").await.unwrap();
            let fence =
                fence::prepare(&place.config, &server.node, OPERATION, &["follower".into()]).await.unwrap();
            fence.apply(&session, LIMIT).await.unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            let lines: Vec<&str> = text.lines().skip(1).collect();
            let mut expected = vec!["local all \"postgres\" trust"];
            if major >= 16 {
                expected.push("host all \"follower\" 127.0.0.1/32 trust");
            }
            expected.push("host all \"follower\" all trust");
            expected.push("host all \"follower\" all trust");
            assert_eq!(lines, expected, "{major}");
            assert!(replicates(&server, "follower", "database"));

            std::fs::write(&path, format!("{text}host all all all trust\n")).unwrap();
            let state = fence::state(&server.node).await.unwrap();
            assert!(!state.is_fenced(), "{state:?}");
            assert_eq!(state.content, Content::Fenced { operation: OPERATION.into(), intact: false });
            let notes = fence::lift(&server.node, OPERATION).await.unwrap();
            assert!(notes[0].contains("pgleap-edited"), "{notes:?}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), rules);

            std::fs::write(&path, "local all postgres trust\nhost all @names all trust\n").unwrap();
            let error = fence::prepare(&place.config, &server.node, OPERATION, &["follower".into()])
                .await
                .unwrap_err();
            assert!(error.message.contains("line 2"), "{error}");
            std::fs::write(&path, "local all postgres trust\nhost all all 300.0.0.1/99 trust\n").unwrap();
            let broken =
                fence::prepare(&place.config, &server.node, OPERATION, &["follower".into()]).await.unwrap();
            let error = broken.apply(&session, LIMIT).await.unwrap_err();
            assert!(error.message.contains("does not take"), "{error}");
        }
    });
}
