//! The driver with real log files and agents over mutual TLS that act out a script.

use std::sync::Arc;

use pgleap_proto::agent::Verb as Asked;
use pgleap_proto::tls::Role;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Agents, Driver, Live};
use crate::plan::PlannedStep;
use crate::raft::{Raft, RaftThread};
use crate::state::samples::{plan, step};
use crate::state::{Command, Operation, Status, StepState};
use crate::testing::{Behaviour, FakeAgent, Pki, open_raft, poll, until};

pub(super) const OP: &str = "c-000001";

/// Two hosts with agents, and a data directory on which coordinators can be started and killed.
pub(super) struct Fixture {
    pki: Pki,
    data: tempfile::TempDir,
    pub(super) first: FakeAgent,
    pub(super) second: FakeAgent,
    addresses: [String; 2],
}

/// One life of a coordinator.
pub(super) struct Coordinator {
    pub(super) raft: Raft,
    thread: RaftThread,
    pub(super) live: Arc<Live>,
    driver: JoinHandle<()>,
}

impl Fixture {
    pub(super) async fn new() -> Fixture {
        let pki = Pki::new();
        let (first, second) = (FakeAgent::new("h1"), FakeAgent::new("h2"));
        let mut addresses = Vec::new();
        for (agent, host) in [(&first, "h1"), (&second, "h2")] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(agent.serve(&pki.identity(Role::Agent, host), listener).to_string());
        }
        let addresses = addresses.try_into().unwrap();
        Fixture { pki, data: tempfile::tempdir().unwrap(), first, second, addresses }
    }

    pub(super) fn coordinator(&self) -> Coordinator {
        let (raft, thread) = open_raft(&self.data.path().join("data"));
        let agents = Arc::new(Agents::new(self.pki.identity(Role::Coordinator, "c1"), raft.clone()));
        let live = Arc::new(Live::default());
        let driver = Driver::new(raft.clone(), agents, live.clone(), "c1");
        let driver = tokio::spawn(driver.run(CancellationToken::new()));
        Coordinator { raft, thread, live, driver }
    }

    /// A step on host 1 or 2.
    pub(super) fn on(&self, host: usize, id: &str, after: &[&str]) -> PlannedStep {
        step(id, &format!("h{host}"), &self.addresses[host - 1], after)
    }

    /// `a` then `b/n1` and `b/n2` side by side, then `c`.
    fn diamond(&self) -> Vec<PlannedStep> {
        let c = &["s.b/n1", "s.b/n2"];
        vec![
            self.on(1, "s.a", &[]),
            self.on(1, "s.b/n1", &["s.a"]),
            self.on(2, "s.b/n2", &["s.a"]),
            self.on(1, "s.c", c),
        ]
    }
}

impl Coordinator {
    pub(super) async fn begin(&self, steps: Vec<PlannedStep>) {
        let command = Command::StartOperation { id: OP.into(), plan: plan("c", steps), generation: 0 };
        self.raft.propose("operator test", None, command).await.unwrap();
    }

    pub(super) async fn tell(&self, command: Command) {
        self.raft.propose("operator test", None, command).await.unwrap();
    }

    pub(super) fn operation(&self) -> Arc<Operation> {
        self.raft.latest().state.operations[OP].clone()
    }

    pub(super) async fn until(&self, what: &str, condition: impl Fn(&Operation) -> bool) {
        until(&self.raft, what, |state| state.operations.get(OP).is_some_and(|op| condition(op))).await;
    }

    pub(super) async fn at_gate(&self) {
        self.until("at the gate", |op| op.status == Status::AtGate).await;
    }

    /// As if the process had died: nobody is told, agents go on.
    pub(super) async fn die(mut self) {
        self.driver.abort();
        let _ = (&mut self.driver).await;
        self.raft.stop();
        self.thread.ended().await.unwrap();
    }
}

fn hold() -> (watch::Sender<bool>, Behaviour) {
    let (go, wait) = watch::channel(false);
    (go, Behaviour::Hold(wait))
}

fn started(op: &Operation, step: &str) -> bool {
    matches!(op.steps[step].state, StepState::Started(_))
}

fn stopped(op: &Operation) -> Option<&crate::state::operation::Stop> {
    match &op.status {
        Status::Stopped(stop) => Some(stop),
        _ => None,
    }
}

#[tokio::test]
async fn a_plan_runs_to_the_gate_in_the_order_of_its_dependencies() {
    let fixture = Fixture::new().await;
    let coordinator = fixture.coordinator();
    coordinator.begin(fixture.diamond()).await;
    coordinator.at_gate().await;
    assert_eq!(fixture.first.acts(Asked::Do), ["s.a", "s.b:n1", "s.c"]);
    assert_eq!(fixture.second.acts(Asked::Do), ["s.b:n2"]);
    let fences: Vec<(u64, u64)> = fixture.first.calls().iter().map(|call| call.fence).collect();
    assert!(fences.is_sorted() && fences.windows(2).all(|pair| pair[0] != pair[1]), "{fences:?}");
    assert_eq!(coordinator.operation().outputs().len(), 4);
}

#[tokio::test]
async fn a_killed_coordinator_joins_the_run_that_went_on_without_it() {
    let fixture = Fixture::new().await;
    let (go, behaviour) = hold();
    fixture.first.script("s.a", [behaviour]);
    let coordinator = fixture.coordinator();
    coordinator.begin(fixture.diamond()).await;
    poll("the agent acts", || !fixture.first.calls().is_empty()).await;
    coordinator.die().await;
    let coordinator = fixture.coordinator();
    poll("the run is joined", || fixture.first.calls().len() == 2).await;
    go.send(true).unwrap();
    coordinator.at_gate().await;
    let calls = fixture.first.calls();
    assert!(!calls[0].joined && calls[1].joined && calls[1].fence > calls[0].fence, "{calls:?}");
    assert_eq!(fixture.first.acts(Asked::Do), ["s.a", "s.b:n1", "s.c"]);
}

#[tokio::test]
async fn a_failure_stops_and_retry_goes_on() {
    let fixture = Fixture::new().await;
    let (fail, wait) = watch::channel(false);
    let (go, behaviour) = hold();
    fixture.first.script("s.b:n1", [Behaviour::FailAfter(wait, "disk full on h1; make room")]);
    fixture.second.script("s.b:n2", [behaviour]);
    let coordinator = fixture.coordinator();
    coordinator.begin(fixture.diamond()).await;
    coordinator.until("both run", |op| started(op, "s.b/n1") && started(op, "s.b/n2")).await;
    fail.send(true).unwrap();
    coordinator.until("stopped", |op| stopped(op).is_some()).await;
    go.send(true).unwrap();
    coordinator
        .until("the other is watched to its end", |op| op.steps["s.b/n2"].state == StepState::Done)
        .await;
    let operation = coordinator.operation();
    let stop = stopped(&operation).unwrap();
    assert_eq!(stop.reason, "disk full on h1; make room");
    assert_eq!(stop.evidence, ["FATAL:  it broke"]);
    assert_eq!(stop.step.as_deref(), Some("s.b/n1"));
    assert_eq!(operation.steps["s.c"].state, StepState::Pending);
    coordinator.tell(Command::Retry { operation: OP.into() }).await;
    coordinator.at_gate().await;
    assert_eq!(fixture.first.acts(Asked::Do), ["s.a", "s.b:n1", "s.b:n1", "s.c"]);
}

#[tokio::test]
async fn cancel_takes_back_what_was_started_last_first() {
    let fixture = Fixture::new().await;
    let (_never, behaviour) = hold();
    fixture.second.script("s.b:n2", [behaviour]);
    let coordinator = fixture.coordinator();
    coordinator.begin(fixture.diamond()).await;
    coordinator
        .until("one done, one running", |op| {
            op.steps["s.b/n1"].state == StepState::Done && started(op, "s.b/n2")
        })
        .await;
    coordinator.tell(Command::Cancel { operation: OP.into() }).await;
    coordinator.until("cancelled", |op| op.status == Status::Cancelled).await;
    assert_eq!(fixture.second.acts(Asked::Undo), ["s.b:n2"]);
    assert_eq!(fixture.first.acts(Asked::Undo), ["s.b:n1", "s.a"]);
    let operation = coordinator.operation();
    let undone = operation.events.iter().filter(|event| event.kind == "undone");
    let undone: Vec<&str> = undone.map(|event| event.step.as_str()).collect();
    assert_eq!(undone, ["s.b/n2", "s.b/n1", "s.a"]);
    assert_eq!(operation.steps["s.c"].state, StepState::Pending);
}

#[tokio::test]
async fn a_failed_undo_stops_and_retry_goes_on_undoing() {
    let fixture = Fixture::new().await;
    let coordinator = fixture.coordinator();
    coordinator.begin(fixture.diamond()).await;
    coordinator.at_gate().await;
    fixture.first.script("s.b:n1", [Behaviour::Fail("slot is held by pid 7; end it")]);
    coordinator.tell(Command::Cancel { operation: OP.into() }).await;
    coordinator.until("stopped", |op| stopped(op).is_some_and(|stop| stop.cancelling)).await;
    coordinator.tell(Command::Retry { operation: OP.into() }).await;
    coordinator.until("cancelled", |op| op.status == Status::Cancelled).await;
    assert_eq!(fixture.first.acts(Asked::Undo), ["s.c", "s.b:n1", "s.b:n1", "s.a"]);
}

#[tokio::test]
async fn an_agent_that_is_away_is_waited_for_with_the_reason() {
    let mut fixture = Fixture::new().await;
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap();
    fixture.addresses[1] = away.local_addr().unwrap().to_string();
    drop(away);
    let coordinator = fixture.coordinator();
    coordinator.begin(fixture.diamond()).await;
    let reason = || coordinator.live.status(OP, "s.b/n2").waiting.unwrap_or_default();
    poll("a reason is shown", || !reason().is_empty()).await;
    let expected = format!("agent of host h2 at {} does not answer since ", fixture.addresses[1]);
    assert!(reason().starts_with(&expected) && reason().contains("refused"), "{}", reason());
    assert_eq!(coordinator.operation().steps["s.b/n2"].state, StepState::Pending);
    let listener = TcpListener::bind(&fixture.addresses[1]).await.unwrap();
    fixture.second.serve(&fixture.pki.identity(Role::Agent, "h2"), listener);
    coordinator.at_gate().await;
}

#[tokio::test]
async fn the_agent_of_another_host_is_no_agent_of_this_one() {
    let mut fixture = Fixture::new().await;
    fixture.addresses.swap(0, 1);
    let coordinator = fixture.coordinator();
    coordinator.begin(fixture.diamond()).await;
    let reason = || coordinator.live.status(OP, "s.a").waiting.unwrap_or_default();
    poll("a reason is shown", || !reason().is_empty()).await;
    assert!(reason().contains("certificate"), "{}", reason());
    assert!(fixture.first.calls().is_empty() && fixture.second.calls().is_empty());
}

#[tokio::test]
async fn a_blocked_step_is_asked_again_and_says_why() {
    let fixture = Fixture::new().await;
    fixture.first.script("s.a", [Behaviour::Block("pid 7 holds a transaction")]);
    let coordinator = fixture.coordinator();
    coordinator.begin(vec![fixture.on(1, "s.a", &[])]).await;
    coordinator
        .until("blocked", |op| {
            let StepState::Started(run) = &op.steps["s.a"].state else { return false };
            run.blocked.as_deref() == Some("pid 7 holds a transaction")
        })
        .await;
    coordinator.at_gate().await;
}

#[tokio::test]
async fn a_step_the_agent_does_not_know_fails_clearly() {
    let fixture = Fixture::new().await;
    fixture.first.script("s.a", [Behaviour::Unknown]);
    let coordinator = fixture.coordinator();
    coordinator.begin(fixture.diamond()).await;
    coordinator.until("stopped", |op| stopped(op).is_some()).await;
    let operation = coordinator.operation();
    let reason = &stopped(&operation).unwrap().reason;
    assert!(reason.contains("agent of host h1 refused step s.a") && reason.contains("update"), "{reason}");
}

#[tokio::test]
async fn an_agent_with_newer_fences_than_the_log_stops_the_operation() {
    let fixture = Fixture::new().await;
    fixture.first.remember_fence(OP, "s.a", (99, 1));
    let coordinator = fixture.coordinator();
    coordinator.begin(fixture.diamond()).await;
    coordinator.until("stopped", |op| stopped(op).is_some()).await;
    let operation = coordinator.operation();
    let reason = &stopped(&operation).unwrap().reason;
    assert!(reason.contains("restored from an older copy"), "{reason}");
    assert!(fixture.first.acts(Asked::Do).is_empty());
}

#[tokio::test]
async fn a_broken_stream_is_joined_again_under_the_same_fence() {
    let fixture = Fixture::new().await;
    let (go, wait) = watch::channel(false);
    fixture.first.script("s.a", [Behaviour::Break(wait)]);
    let coordinator = fixture.coordinator();
    coordinator.begin(vec![fixture.on(1, "s.a", &[])]).await;
    poll("joined again", || fixture.first.calls().len() == 2).await;
    go.send(true).unwrap();
    coordinator.at_gate().await;
    let calls = fixture.first.calls();
    assert!(calls[1].joined && calls[0].fence == calls[1].fence, "{calls:?}");
}

#[tokio::test]
async fn a_lost_journal_stops_the_operation() {
    let fixture = Fixture::new().await;
    let (go, behaviour) = hold();
    fixture.second.script("s.b:n2", [behaviour]);
    let coordinator = fixture.coordinator();
    coordinator.begin(fixture.diamond()).await;
    coordinator.until("running on h2", |op| started(op, "s.b/n2")).await;
    coordinator.until("done on h1", |op| op.steps["s.b/n1"].state == StepState::Done).await;
    fixture.first.lose_journal();
    go.send(true).unwrap();
    coordinator.until("stopped", |op| stopped(op).is_some()).await;
    let operation = coordinator.operation();
    assert!(stopped(&operation).unwrap().reason.contains("host h1 has a new journal"));
    assert_eq!(operation.steps["s.c"].state, StepState::Pending);
    coordinator.tell(Command::Retry { operation: OP.into() }).await;
    coordinator.at_gate().await;
}

#[tokio::test]
async fn a_restarted_agent_goes_on_and_a_restored_one_stops_the_operation() {
    for restored in [false, true] {
        let fixture = Fixture::new().await;
        let (go, behaviour) = hold();
        fixture.second.script("s.b:n2", [behaviour]);
        let coordinator = fixture.coordinator();
        coordinator.begin(fixture.diamond()).await;
        coordinator.until("running on h2", |op| started(op, "s.b/n2")).await;
        coordinator.until("done on h1", |op| op.steps["s.b/n1"].state == StepState::Done).await;
        let wrote = fixture.first.identity();
        assert_eq!(coordinator.raft.latest().state.agents["h1"], wrote, "told with the outcome");
        if restored {
            // Only the last outcome is missing.
            fixture.first.restore(1, "second");
        } else {
            fixture.first.restart("second");
        }
        go.send(true).unwrap();
        if restored {
            coordinator.until("stopped", |op| stopped(op).is_some()).await;
            let operation = coordinator.operation();
            let reason = &stopped(&operation).unwrap().reason;
            assert!(reason.contains("host h1 has lost a part of what it had recorded"), "{reason}");
            assert_eq!(operation.steps["s.c"].state, StepState::Pending);
            assert_eq!(fixture.first.acts(Asked::Do), ["s.a", "s.b:n1"]);
            coordinator.tell(Command::Retry { operation: OP.into() }).await;
        }
        coordinator.at_gate().await;
        assert_eq!(coordinator.raft.latest().state.agents["h1"].incarnation, "second");
        assert!(fixture.first.greetings() >= 3);
    }
}
