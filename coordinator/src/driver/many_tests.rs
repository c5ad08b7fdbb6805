//! The driver with hundreds of operations: what did not change costs nothing, and a measurement to look at.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use pgleap_proto::tls::Role;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::wanted::wanted;
use super::{Agents, Driver, Live};
use crate::fleet::{Limits, Policy};
use crate::plan::{Plan, PlannedStep};
use crate::raft::{Raft, RaftThread, View};
use crate::state::samples::{done, end_step, envelope, plan, start_step, step};
use crate::state::{Command, NewOperation, Position, Reply, State, Status, Verb, runnable};
use crate::testing::{FakeAgent, Pki, open_raft};

/// A driver that is given views by hand; its runs are never polled.
struct ByHand {
    driver: Driver,
    raft: Raft,
    state: State,
    _thread: RaftThread,
    _data: tempfile::TempDir,
    _pki: Pki,
}

impl ByHand {
    fn new() -> ByHand {
        let (pki, data) = (Pki::new(), tempfile::tempdir().unwrap());
        let (raft, thread) = open_raft(&data.path().join("data"));
        let agents = Arc::new(Agents::new(pki.identity(Role::Coordinator, "c1"), raft.clone()));
        let driver = Driver::new(raft.clone(), agents, Arc::new(Live::default()), "c1");
        ByHand { driver, raft, state: State::default(), _thread: thread, _data: data, _pki: pki }
    }

    fn tell(&mut self, command: Command) -> Reply {
        let index = self.state.applied + 1;
        self.state.apply(Position { index, term: 1 }, &envelope(index, command)).unwrap()
    }

    fn reconcile(&mut self) {
        let view = View { state: Arc::new(self.state.clone()), leading: Some(1), ..self.raft.latest() };
        self.driver.reconcile(&view, Timestamp::UNIX_EPOCH, false);
    }

    fn begin(&mut self, n: usize, steps: usize) {
        self.tell(Command::StartOperation {
            id: format!("c{n}-1"),
            plan: chain(n, steps, "127.0.0.1:1"),
            generation: 0,
        });
    }
}

/// One step after the other on a host of its own.
fn chain(n: usize, steps: usize, agent: &str) -> Arc<Plan> {
    let steps: Vec<PlannedStep> = (0..steps)
        .map(|s| {
            let before = s.checked_sub(1).map(|s| format!("seed.step/{s}"));
            let after: Vec<&str> = before.iter().map(String::as_str).collect();
            step(&format!("seed.step/{s}"), &format!("h{n}"), agent, &after)
        })
        .collect();
    plan(&format!("c{n}"), steps)
}

#[tokio::test]
async fn an_operation_that_did_not_change_is_passed_over() {
    let mut hand = ByHand::new();
    (0..3).for_each(|n| hand.begin(n, 2));
    hand.reconcile();
    assert_eq!(hand.driver.tasks.len(), 3);
    let state = hand.state.clone();
    assert_eq!(hand.driver.changed(&state, true), BTreeSet::new());
    assert!(!hand.driver.queue.stale);
    hand.tell(start_step("c1-1", "seed.step/0", Verb::Do));
    let state = hand.state.clone();
    assert_eq!(hand.driver.changed(&state, false), ["c1-1".to_owned()].into());
    // A step lets nobody begin; the end of an operation does.
    assert!(!hand.driver.queue.stale);
    hand.reconcile();
    hand.tell(Command::Cancel { operation: "c2-1".into() });
    hand.reconcile();
    assert_eq!(hand.driver.known.len(), 2);
}

#[tokio::test]
async fn whose_turn_it_is_follows_what_changes() {
    let mut hand = ByHand::new();
    let limits = Limits { operations: Some(1), per_rack: None };
    let policy = Policy { limits, ..Policy::default() };
    hand.tell(Command::ApplyFleet { toml: String::new(), generation: 1, keeps: Vec::new(), policy });
    for n in 0..3 {
        let hosts = [format!("h{n}")].into();
        let (id, cluster) = (format!("c{n}-1"), format!("c{n}"));
        let operations = vec![NewOperation { id, cluster, old_major: 15, new_major: 18, hosts }];
        hand.tell(Command::Queue { operations, rollout: None, generation: 1, accept_warnings: false });
    }
    hand.reconcile();
    let turn = |hand: &ByHand| hand.driver.queue.turn.iter().cloned().collect::<Vec<_>>();
    assert_eq!((turn(&hand), hand.driver.tasks.len()), (vec!["c0-1".to_owned()], 1));
    let admit = |n: usize| Command::Admit {
        operation: format!("c{n}-1"),
        plan: chain(n, 1, "127.0.0.1:1"),
        generation: 1,
    };
    hand.tell(admit(0));
    hand.reconcile();
    assert_eq!(turn(&hand), Vec::<String>::new());
    hand.tell(Command::Hold { name: "c1-1".into(), at: None });
    hand.tell(Command::Cancel { operation: "c0-1".into() });
    hand.reconcile();
    assert_eq!(turn(&hand), ["c2-1"]);
    hand.tell(Command::Proceed { name: "c1-1".into() });
    hand.reconcile();
    assert_eq!(turn(&hand), ["c1-1"]);
    let policy = Policy::default();
    let keeps = vec!["c1".into(), "c2".into()];
    hand.tell(Command::ApplyFleet { toml: String::new(), generation: 2, keeps, policy });
    hand.reconcile();
    assert_eq!(turn(&hand), ["c1-1", "c2-1"]);
}

fn size(name: &str, usual: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// `cargo test -p pgleap-coordinator --lib many_tests -- --ignored --nocapture`, with OPERATIONS and STEPS.
#[tokio::test]
#[ignore = "a measurement: what the driver itself takes for every change of many operations"]
#[allow(clippy::print_stdout)]
async fn measure_the_driver_alone() {
    let (operations, steps) = (size("OPERATIONS", 300), size("STEPS", 40));
    let mut hand = ByHand::new();
    (0..operations).for_each(|n| hand.begin(n, steps));
    let (mut views, mut reconciling, mut all, mut looks) = (0, 0, 0, 0);
    for _ in 0..steps {
        for n in 0..operations {
            let operation = format!("c{n}-1");
            let next = runnable(&hand.state.operations[&operation]).remove(0);
            let (step, verb) = (next.id, next.verb);
            let started = hand.tell(start_step(&operation, &step, verb));
            let Reply::Started { attempt, .. } = started else { panic!() };
            reconciling += cpu(|| hand.reconcile());
            hand.tell(end_step(&operation, &step, attempt, done()));
            reconciling += cpu(|| hand.reconcile());
            views += 2;
            // What it would be to look at every operation at every change.
            if n % 50 == 0 {
                let wanted = |operation| wanted(&hand.state, operation, false, Timestamp::UNIX_EPOCH);
                all += cpu(|| drop(hand.state.active().map(|one| wanted(one)).collect::<Vec<_>>()));
                looks += 1;
            }
        }
    }
    println!(
        "{operations} operations of {steps} steps, {views} views: {} us a view; looking at all of them: {} us",
        reconciling / views / 1000,
        all / looks / 1000
    );
}

/// Nanoseconds of this thread's processor time, whatever else the machine does.
fn cpu(work: impl FnOnce()) -> u64 {
    let spent = || {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        stat.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let before = spent();
    work();
    spent() - before
}

/// The same from end to end: log with its fsyncs, mutual TLS, an agent for each operation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: many operations with an agent each"]
#[allow(clippy::print_stdout)]
async fn measure_many_operations() {
    let (operations, steps) = (size("OPERATIONS", 300), size("STEPS", 40));
    let (pki, data) = (Pki::new(), tempfile::tempdir().unwrap());
    let mut plans = Vec::new();
    for n in 0..operations {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("h{n}");
        let address = FakeAgent::new(&host).serve(&pki.identity(Role::Agent, &host), listener);
        plans.push(chain(n, steps, &address.to_string()));
    }
    let (raft, mut thread) = open_raft(&data.path().join("data"));
    let agents = Arc::new(Agents::new(pki.identity(Role::Coordinator, "c1"), raft.clone()));
    let driver = Driver::new(raft.clone(), agents, Arc::new(Live::default()), "c1");
    let stop = CancellationToken::new();
    let driving = tokio::spawn(driver.run(stop.clone()));
    let since = Instant::now();
    for (n, plan) in plans.into_iter().enumerate() {
        let command = Command::StartOperation { id: format!("c{n}-1"), plan, generation: 0 };
        raft.propose("operator test", None, command).await.unwrap();
    }
    let mut view = raft.watch();
    let done = |view: &View| {
        view.state.operations.len() == operations
            && view.state.operations.values().all(|operation| operation.status == Status::AtGate)
    };
    view.wait_for(done).await.unwrap();
    let took = since.elapsed().as_secs_f64();
    let entries = raft.latest().state.applied;
    println!(
        "{operations} operations of {steps} steps: {took:.1} s, {:.0} steps a second, {entries} entries",
        (operations * steps) as f64 / took
    );
    stop.cancel();
    driving.await.unwrap();
    raft.stop();
    thread.ended().await.unwrap();
}
