//! The command line against a whole coordinator with agents that act out a script: what each verb changes, and its exit code.

use std::path::PathBuf;

use clap::{CommandFactory, Parser};
use pgleap_proto::fleet::{StatusReply, StatusRequest};
use pgleap_proto::tls::Role;

use super::output::Out;
use super::{Cli, Failure, Outcome, run};
use crate::api::many_tests::{WAVES, fixture, held_up};
use crate::api::tests::{Fixture, Serving};
use crate::testing::Behaviour;

/// A person at a terminal.
struct Person {
    coordinator: String,
    tls_dir: PathBuf,
}

impl Person {
    fn new(fixture: &Fixture, serving: &Serving, role: Role) -> Person {
        Person { coordinator: serving.address.clone(), tls_dir: fixture.pki.issue(role, "alice") }
    }

    fn cli(&self, line: &str) -> Cli {
        let tls_dir = self.tls_dir.display().to_string();
        let connection = ["pgleap", "--coordinator", &self.coordinator, "--tls-dir", &tls_dir];
        Cli::try_parse_from(connection.into_iter().chain(line.split(' '))).unwrap()
    }

    async fn types(&self, line: &str) -> Outcome {
        let cli = self.cli(line);
        run(cli.verb, &cli.connection, &mut Out::new(cli.json)).await
    }

    async fn refused(&self, line: &str) -> String {
        match self.types(line).await {
            Err(Failure::Refused(message)) => message,
            other => panic!("{line}: {other:?}"),
        }
    }

    async fn status(&self) -> StatusReply {
        let mut client = self.cli("status").connection.open().await.unwrap();
        client.status(StatusRequest { name: String::new(), brief: true }).await.unwrap().into_inner()
    }

    async fn state(&self, cluster: &str) -> String {
        let status = self.status().await;
        let found = status.operations.into_iter().find(|operation| operation.cluster == cluster).unwrap();
        format!("{}{}", found.state, if found.held.is_empty() { "" } else { ", held" })
    }
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
    for wrong in
        [vec!["start"], vec!["start", "--all", "ledger"], vec!["hold"], vec!["status", "--brief", "--steps"]]
    {
        let line = std::iter::once("pgleap").chain(wrong.iter().copied());
        assert!(Cli::try_parse_from(line).is_err(), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_rollout_is_started_held_and_let_go_on() {
    let fixture = fixture(WAVES).await;
    let go = held_up(&fixture, 2, "upgrade.upgrade");
    fixture.agents[3].script("upgrade.upgrade", [Behaviour::Fail("disk full")]);
    let serving = fixture.serve().await;
    let alice = Person::new(&fixture, &serving, Role::Operator);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &fixture.toml).unwrap();
    alice.types(&format!("fleet apply {}", file.path().display())).await.unwrap();
    alice.types("--json start --all --accept-warnings").await.unwrap();
    let rollout = alice.status().await.summary.unwrap().rollouts.remove(0).rollout;
    alice.types(&format!("hold {rollout}")).await.unwrap();
    alice.types("hold canary --at route").await.unwrap();
    go.send(true).unwrap();
    // It ends where the hold is, and not with a failure.
    alice.types("watch canary --until-idle").await.unwrap();
    assert_eq!(alice.state("canary").await, "running, held");
    alice.types("status").await.unwrap();
    alice.types("proceed canary").await.unwrap();
    alice.types("watch canary --until-idle").await.unwrap();
    assert_eq!(
        (alice.state("canary").await, alice.state("ledger").await),
        ("waiting".into(), "queued".into())
    );
    alice.types(&format!("proceed {rollout}")).await.unwrap();
    // Shop waits for a host of the canary, ledger fails.
    let ended = alice.types("watch ledger --until-idle").await;
    assert!(matches!(ended, Err(Failure::Stopped)), "{ended:?}");
    let refused = alice.refused("proceed ledger").await;
    assert!(refused.contains("it is not held"), "{refused}");
    assert!(alice.refused(&format!("hold {rollout} --at seed")).await.contains("held as a whole"));
    alice.types(&format!("cancel --yes {rollout}")).await.unwrap();
    assert_eq!(
        (alice.state("shop").await, alice.state("ledger").await),
        ("cancelled".into(), "stopped".into())
    );
    let bob = Person::new(&fixture, &serving, Role::Viewer);
    assert!(bob.refused("hold canary").await.contains("viewer"), "a viewer changed something");
    bob.types(&format!("--json status {rollout}")).await.unwrap();
    serving.stop().await;
}
