//! A replication password stays in its password file while a node is cloned, started, and while that fails.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};
use pgleap_agent::error::StepError;
use pgleap_agent::jobs::JobStatus;
use pgleap_agent::pg::server_log::ServerLog;
use pgleap_agent::step::of;
use pgleap_proto::node::{Conninfo, Node};
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{Action, CloneNode, StartStandby};

use crate::exact::{clone, physical_slot};
use crate::on_servers;
use crate::private::{assert_private, holders};
use crate::servers::{Servers, conninfo};

const CANARY: &str = "canary-51d0ee";

/// A role that needs its password over TCP, and the file it is in.
async fn with_password(servers: &Servers, old: &Node, password: &str) -> Conninfo {
    let role = format!("CREATE ROLE rep REPLICATION SUPERUSER LOGIN PASSWORD '{CANARY}'");
    servers.sql(old, "postgres", &format!("DROP ROLE IF EXISTS rep; {role}")).await;
    let hba = Path::new(&old.data_dir).join("pg_hba.conf");
    let rules = "local all all trust\nhost all rep 127.0.0.1/32 scram-sha-256\nhost replication rep 127.0.0.1/32 scram-sha-256\n";
    fs::write(hba, rules).unwrap();
    servers.sql(old, "postgres", "SELECT pg_reload_conf()").await;
    let passfile = servers.path("passfile");
    fs::write(&passfile, format!("127.0.0.1:*:*:rep:{password}\n")).unwrap();
    fs::set_permissions(&passfile, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    Conninfo { user: "rep".into(), passfile: passfile.display().to_string(), ..conninfo(old) }
}

/// Command lines and environments of this user's processes that hold the secret.
fn processes() -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
            if bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()) {
                found.push(format!("{} {file}", entry.path().display()));
            }
        }
    }
    found
}

fn no_canary(error: &StepError) {
    assert!(!format!("{error:?}").contains(CANARY), "{error:?}");
}

#[test]
fn a_password_stays_in_its_file() {
    on_servers("secrets::a_password_stays_in_its_file", async |servers| {
        umask(Mode::empty());
        let old = servers.old_leader("o1");
        let identifier =
            servers.ask(&old, "postgres", "SELECT system_identifier FROM pg_control_system()").await;
        let upstream = with_password(servers, &old, "wrong").await;
        servers.step("slot", physical_slot(&old, "s1")).await.unwrap();
        let node = servers.node("n1");
        let step = CloneNode {
            upstream: Some(upstream.clone()),
            ..clone(&node, &old, "s1", identifier.parse().unwrap())
        };

        // Refused by the server: the wrong one is not told either.
        fs::write(&upstream.passfile, format!("127.0.0.1:*:*:rep:{CANARY}x\n")).unwrap();
        no_canary(&servers.step("clone", Kind::CloneNode(step.clone())).await.unwrap_err());

        fs::write(&upstream.passfile, format!("127.0.0.1:*:*:rep:{CANARY}\n")).unwrap();
        let cx = servers.context("clone");
        let cloning = of(Action { kind: Some(Kind::CloneNode(step.clone())) }).unwrap();
        let mut seen = Vec::new();
        tokio::select! {
            done = cloning.act(&cx) => done.unwrap(),
            () = async {
                loop {
                    if cx.jobs.status("pg_basebackup").unwrap() == JobStatus::Running {
                        seen.extend(processes());
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            } => {}
        }
        assert!(seen.is_empty(), "{seen:?}");
        let start = StartStandby {
            node: Some(node.clone()),
            upstream: Some(upstream),
            slot: "s1".into(),
            timeline: 0,
        };
        servers.step("start", Kind::StartStandby(start)).await.unwrap();
        assert!(processes().is_empty(), "{:?}", processes());

        // A statement that sets a password and fails is logged by the server, and may become evidence.
        let log = ServerLog::from_now(&cx, &node);
        let session = pgleap_agent::pg::sql::connect(&node, "postgres").await.unwrap();
        session.batch_execute(&format!("ALTER ROLE nobody PASSWORD '{CANARY}'")).await.unwrap_err();
        session
            .batch_execute(&format!("SELECT dblink('host=x password={CANARY} user=y')"))
            .await
            .unwrap_err();
        let lines = log.lines();
        assert!(lines.iter().any(|line| line.contains(CANARY)), "the server logs it: {lines:?}");
        let error = StepError::new("it failed").with_evidence(lines);
        no_canary(&error);
        assert!(error.evidence.iter().any(|line| line.contains("PASSWORD ***")), "{error:?}");

        let state = servers.path("state");
        let logs = state.join("log");
        let holders: Vec<PathBuf> = holders(&state, CANARY);
        assert!(
            holders.iter().all(|path| path.starts_with(&logs)),
            "only what the server itself logged: {holders:?}"
        );
        assert_private(&state);
    });
}
