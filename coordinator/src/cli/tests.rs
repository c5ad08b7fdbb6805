//! The command line against a whole coordinator with agents that act out a script: what each verb changes, and its exit code.

use std::path::PathBuf;

use clap::{CommandFactory, Parser};
use pgleap_proto::agent::Progress;
use pgleap_proto::fleet::{
    LagStatus, NodeStatus, OperationStatus, PhaseTime, StatusReply, StatusRequest, StepStatus, TrafficStatus,
};
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

    /// How the verb ends with `--json`, once all that it printed on stdout is JSON, one value a line.
    async fn json(&self, line: &str) -> Outcome {
        let cli = self.cli(&format!("--json {line}"));
        let mut out = Out::kept(cli.json);
        let outcome = run(cli.verb, &cli.connection, &mut out).await;
        let printed = out.data();
        assert!(printed.ends_with('\n'), "{line} printed {printed:?}");
        for text in printed.lines() {
            let value: serde_json::Value =
                serde_json::from_str(text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"));
            assert!(value.is_object(), "{line}: {text}");
        }
        outcome
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
async fn with_json_every_verb_prints_json_and_nothing_else() {
    let fixture = Fixture::movable().await;
    let go = held_up(&fixture, 1, "convert.publish");
    fixture.agents[2].script("upgrade.upgrade", [Behaviour::Fail("disk full")]);
    let serving = fixture.serve().await;
    let alice = Person::new(&fixture, &serving, Role::Operator);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &fixture.toml).unwrap();
    let apply = format!("fleet apply {}", file.path().display());
    for line in
        ["fleet show", "status", &apply, "fleet show", "check ledger", "plan ledger", "members", "status"]
    {
        alice.json(line).await.unwrap();
    }
    // Held, let go on, stopped, tried again.
    for line in ["start ledger --accept-warnings", "hold ledger --at upgrade", "status ledger --brief"] {
        alice.json(line).await.unwrap();
    }
    go.send(true).unwrap();
    for line in ["watch ledger --until-idle", "status ledger", "proceed ledger"] {
        alice.json(line).await.unwrap();
    }
    let stopped = alice.json("watch --until-idle").await;
    assert!(matches!(stopped, Err(Failure::Stopped)), "{stopped:?}");
    for line in ["status ledger", "retry ledger", "watch ledger --until-idle", "events ledger --logs"] {
        alice.json(line).await.unwrap();
    }
    // Taken back, but for a host that never comes back.
    fixture.agents[2].script("upgrade.upgrade", [Behaviour::Fail("no such host")]);
    let stopped = alice.json("cancel ledger --yes --wait").await;
    assert!(matches!(stopped, Err(Failure::Stopped)), "{stopped:?}");
    for line in ["abandon ledger db3 --yes", "watch ledger --until-idle"] {
        alice.json(line).await.unwrap();
    }
    assert_eq!(alice.state("ledger").await, "cancelled");
    for line in ["start ledger --accept-warnings", "cancel ledger --yes", "watch ledger --until-idle"] {
        alice.json(line).await.unwrap();
    }
    // There, back, and there for good.
    for line in
        ["start ledger --accept-warnings", "watch ledger --until-idle", "switch-reads ledger --percent 30"]
    {
        alice.json(line).await.unwrap();
    }
    alice.json("switchover ledger").await.unwrap();
    // The new leader runs by now.
    fixture.agents[2].inspected(fixture.facts("db1"));
    for line in ["status", "reverse ledger", "switchover ledger --no-wait", "watch ledger --until-idle"] {
        alice.json(line).await.unwrap();
    }
    for line in ["finish ledger --yes", "status", "events ledger", "audit", "audit --cluster ledger"] {
        alice.json(line).await.unwrap();
    }
    assert_eq!(alice.state("ledger").await, "finished");
    serving.stop().await;
}

/// One operation on its way and one that stopped, beside one whose writes have moved: all that `status` is asked for.
#[test]
fn the_status_screen() {
    let step = |title: &str, host: &str, state: &str, seconds: f64| StepStatus {
        title: title.into(),
        host: host.into(),
        state: state.into(),
        seconds,
        remaining_seconds: -1.0,
        ..StepStatus::default()
    };
    let phase = |name: &str, seconds: f64, complete: bool| PhaseTime { name: name.into(), seconds, complete };
    let operation = |cluster: &str, state: &str, phase: &str, next: &str| OperationStatus {
        cluster: cluster.into(),
        operation: format!("{cluster}-9fce8c"),
        old_major: 15,
        new_major: 18,
        state: state.into(),
        phase: phase.into(),
        started_at: "2026-11-28T04:54:50.123Z".into(),
        started_by: "operator alice".into(),
        steps_done: 20,
        steps_total: 48,
        next: next.into(),
        ..OperationStatus::default()
    };
    let progress =
        |done, total, unit: &str| Progress { done, total, unit: unit.into(), message: "base".into() };
    let running = OperationStatus {
        steps: vec![
            step("Publish all tables of every database of o1", "o1", "done", 0.3),
            StepStatus {
                progress: Some(progress(3 << 30, 4 << 30, "bytes")),
                remaining_seconds: 70.0,
                ..step("Clone n1 from o2, or adopt it", "n1", "running", 210.0)
            },
            StepStatus {
                message: "agent of host n2 at 10.0.0.4:7432 does not answer since 04:55".into(),
                ..step("Stop n2", "n2", "blocked", 12.0)
            },
            step("Upgrade n1 with pg_upgrade --link", "n1", "pending", 0.0),
        ],
        phases: vec![phase("check", 4.1, true), phase("seed", 222.0, false)],
        lag: vec![
            LagStatus { database: "app".into(), bytes: 25_800, active: true },
            LagStatus { database: "shop".into(), bytes: 5 << 20, active: false },
            LagStatus { database: "log".into(), bytes: -1, active: false },
        ],
        held: "held by operator bob since 04:58, at the phase convert".into(),
        ..operation("ledger", "running", "seed", "pgleap watch ledger")
    };
    let stopped = OperationStatus {
        steps: vec![StepStatus { message: "disk full".into(), ..step("Analyze n1", "n1", "failed", 3.0) }],
        reason: "step upgrade.analyze failed on host n1: disk full".into(),
        evidence: vec!["vacuumdb: error: could not extend file".into()],
        ..operation("shop", "stopped", "upgrade", "pgleap retry shop   (or take it back: pgleap cancel shop)")
    };
    let node = |name: &str, side: &str, fenced, lag_bytes, lag_ms| NodeStatus {
        name: name.into(),
        side: side.into(),
        role: "leader".into(),
        fenced,
        lag_bytes,
        lag_ms,
        reason: if lag_bytes < 0 { "it does not answer".into() } else { String::new() },
    };
    let traffic = TrafficStatus {
        writer: "new".into(),
        switchovers: 1,
        reads: 100,
        nodes: vec![node("o1", "old", true, 25_800, 225), node("n1", "new", false, -1, -1)],
        ..TrafficStatus::default()
    };
    let waiting = OperationStatus {
        traffic: Some(traffic),
        reason: "burn-in: every step is done, and the old cluster follows the new one".into(),
        ..operation("audit", "waiting", "route", "pgleap finish audit   (or: pgleap reverse audit)")
    };
    let reply = StatusReply { operations: vec![running, stopped, waiting], ..StatusReply::default() };
    let text = super::status::render(&Out::kept(false), &reply, false);
    crate::golden::check("coordinator/src/cli/golden/status.txt", &(text + "\n"));
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
