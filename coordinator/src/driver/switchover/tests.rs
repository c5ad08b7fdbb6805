//! Switchovers with real log files and agents over mutual TLS that act out a script. Host h1 has the old leader, a pooler and the
//! balancer; host h2 the new leader and a pooler.

mod lost;

use std::sync::Arc;

use pgleap_proto::node::Node;
use pgleap_proto::step::{Action, KeepTraffic, StageBalancer, StagePooler, action::Kind};
use pgleap_proto::traffic::{Balancer, Cluster, Leader, Pooler, SideDatabase};
use tokio::sync::watch;

use super::super::tests::{Coordinator, Fixture, OP};
use super::pause_before;
use crate::plan::PlannedStep;
use crate::state::traffic::LastSwitchover;
use crate::state::{Command, Operation, READS, Side, Stage, Status};
use crate::testing::{Answer, Moved, poll};

fn movable(fixture: &Fixture) -> Vec<PlannedStep> {
    let database = SideDatabase { database: "app".into(), ..SideDatabase::default() };
    let cluster = Cluster {
        operation: OP.into(),
        databases: vec![database],
        old_leader: Some(Leader::default()),
        new_leader: Some(Leader::default()),
        ..Cluster::default()
    };
    let with = |host: usize, id: &str, kind: Kind| PlannedStep {
        action: Action { kind: Some(kind) },
        ..fixture.on(host, id, &[])
    };
    let keep = |name: &str, side: Side| {
        Kind::KeepTraffic(KeepTraffic {
            node: Some(Node { name: name.into(), ..Node::default() }),
            side: side.message(),
            leader: true,
            cluster: Some(cluster.clone()),
            ..KeepTraffic::default()
        })
    };
    let pooler = |name: &str| {
        let pooler = Some(Pooler { name: name.into(), kind: None });
        Kind::StagePooler(StagePooler { pooler, ..StagePooler::default() })
    };
    let balancer = Some(Balancer { name: "b".into(), ..Balancer::default() });
    let balancer = Kind::StageBalancer(StageBalancer { operation: OP.into(), balancer, weights_stay: false });
    vec![
        with(1, "route.keep_traffic/o", keep("o", Side::Old)),
        with(2, "route.keep_traffic/n", keep("n", Side::New)),
        with(1, "route.stage_pooler/p1", pooler("p1")),
        with(2, "route.stage_pooler/p2", pooler("p2")),
        with(1, "route.stage_balancer/b", balancer),
    ]
}

/// At the gate.
async fn ready(fixture: &Fixture) -> Coordinator {
    let coordinator = fixture.coordinator();
    coordinator.begin(movable(fixture)).await;
    coordinator.at_gate().await;
    coordinator
}

async fn switch(coordinator: &Coordinator, to: Side) {
    let command = Command::BeginSwitchover { operation: OP.into(), to, accepted: Vec::new() };
    coordinator.tell(command).await;
}

async fn ended(coordinator: &Coordinator) -> LastSwitchover {
    coordinator.until("the end of the switchover", |op| op.status == Status::AtGate).await;
    coordinator.operation().traffic.last.clone().unwrap()
}

/// All calls but those about reads, in order.
fn calls(fixture: &Fixture) -> Vec<Moved> {
    let mut all = [fixture.first.moved(), fixture.second.moved()].concat();
    all.retain(|moved| moved.call != "route_reads");
    all.sort_by_key(|moved| moved.at);
    all
}

fn named<'c>(calls: &'c [Moved], call: &str) -> Vec<&'c Moved> {
    calls.iter().filter(|moved| moved.call == call).collect()
}

/// Every call of the first kind came before every call of the second.
fn before(calls: &[Moved], first: &str, second: &str) {
    let last = named(calls, first).last().unwrap_or_else(|| panic!("no {first}: {calls:#?}")).at;
    let next = named(calls, second).first().unwrap_or_else(|| panic!("no {second}: {calls:#?}")).at;
    assert!(last < next, "{first} before {second}: {calls:#?}");
}

fn stage(op: &Operation) -> Option<Stage> {
    op.traffic.switchover.as_ref().map(|switchover| switchover.stage)
}

#[tokio::test]
async fn writes_move_in_the_order_of_the_barrier_and_back() {
    let fixture = Fixture::new().await;
    let coordinator = ready(&fixture).await;
    switch(&coordinator, Side::New).await;
    let last = ended(&coordinator).await;
    assert!(last.decided && last.tries == 1 && last.pause_us.is_some(), "{last:#?}");
    let names: Vec<&str> = last.timings.iter().map(|part| part.name.as_str()).collect();
    assert_eq!(names, ["pause", "fence", "fence.clients", "settle", "seal", "decide", "lead", "resume"]);
    assert_eq!(coordinator.operation().traffic.writer, Side::New);
    assert_eq!(coordinator.operation().traffic.reads, 100);
    let forward = calls(&fixture);
    let order = ["arm_source", "arm_target", "pause", "fence", "settle", "seal", "lead", "resume", "follow"];
    for pair in order.windows(2) {
        before(&forward, pair[0], pair[1]);
    }
    before(&forward, "arm_pooler", "pause");
    assert_eq!((named(&forward, "pause").len(), named(&forward, "resume").len()), (2, 2));
    let where_and_what = |call: &str| {
        let found = named(&forward, call)[0];
        (found.host.clone(), found.what.clone())
    };
    assert_eq!(where_and_what("arm_target"), ("h2".into(), "new with 1".into()));
    assert_eq!(where_and_what("fence"), ("h1".into(), String::new()));
    assert_eq!(where_and_what("settle"), ("h2".into(), "42 at 500".into()));
    assert_eq!(where_and_what("seal"), ("h1".into(), "500".into()));
    assert_eq!(where_and_what("lead"), ("h2".into(), "new".into()));
    assert_eq!(where_and_what("resume").1, "p1 to new");
    assert_eq!(where_and_what("follow"), ("h1".into(), "old from 900".into()));
    assert!(forward.iter().all(|moved| moved.ticket == forward[0].ticket), "{forward:#?}");

    switch(&coordinator, Side::Old).await;
    let last = ended(&coordinator).await;
    assert!(last.decided && last.to == Side::Old, "{last:#?}");
    let traffic = coordinator.operation().traffic.clone();
    assert_eq!((traffic.writer, traffic.reads, traffic.count), (Side::Old, 0, 2));
    let back = &calls(&fixture)[forward.len()..];
    assert_eq!((named(back, "fence")[0].host.as_str(), named(back, "lead")[0].host.as_str()), ("h2", "h1"));
    assert_eq!(named(back, "follow")[0].what, "new from 900");
    assert!(back[0].ticket > forward[0].ticket);
}

#[tokio::test]
async fn a_pause_that_is_not_acquired_lets_all_go_and_is_tried_again() {
    let fixture = Fixture::new().await;
    fixture.second.answer("pause", [Answer::Blocked(vec![77])]);
    let coordinator = ready(&fixture).await;
    switch(&coordinator, Side::New).await;
    let last = ended(&coordinator).await;
    assert!(last.decided && last.tries == 2, "{last:#?}");
    let calls = calls(&fixture);
    let first = calls[0].ticket;
    let (failed, good): (Vec<_>, Vec<_>) = calls.into_iter().partition(|moved| moved.ticket == first);
    let resumed: Vec<&str> = named(&failed, "resume").iter().map(|moved| moved.what.as_str()).collect();
    assert!(resumed.contains(&"p1 to old") && resumed.contains(&"p2 to old"), "{resumed:?}");
    assert_eq!(named(&failed, "blockers")[0].what, "[77]");
    assert!(named(&failed, "fence").is_empty() && !named(&good, "fence").is_empty());
    assert!(last.evidence.iter().any(|line| line.starts_with("pid 77 (app as u")), "{:?}", last.evidence);
}

#[tokio::test]
async fn whatever_fails_before_the_decision_is_taken_back_and_never_decided() {
    let cases = [
        ("arm_pooler", 2),
        ("arm_source", 1),
        ("arm_target", 2),
        ("pause", 1),
        ("fence", 1),
        ("settle", 2),
        ("seal", 1),
    ];
    for (call, host) in cases {
        let fixture = Fixture::new().await;
        let agent = if host == 1 { &fixture.first } else { &fixture.second };
        agent.answer(call, [Answer::Fail("it broke\nFATAL: proof")]);
        let coordinator = ready(&fixture).await;
        switch(&coordinator, Side::New).await;
        let last = ended(&coordinator).await;
        assert!(!last.decided && last.reason.contains("it broke") && last.tries == 1, "{call}: {last:#?}");
        assert_eq!(last.evidence, ["FATAL: proof"], "{call}");
        let traffic = coordinator.operation().traffic.clone();
        assert_eq!((traffic.writer, traffic.reads, traffic.count), (Side::Old, 0, 0), "{call}");
        let calls = calls(&fixture);
        assert!(named(&calls, "lead").is_empty() && named(&calls, "follow").is_empty(), "{call}");
        let mut aborted: Vec<&str> = named(&calls, "abort").iter().map(|moved| moved.what.as_str()).collect();
        aborted.sort_unstable();
        assert_eq!(aborted, ["new for old", "old for old"], "{call}");
        let resumed = named(&calls, "resume");
        assert!(resumed.len() == 2 && resumed.iter().all(|moved| moved.what.ends_with("to old")), "{call}");
        let opened = named(&calls, "abort").into_iter().find(|moved| moved.what == "old for old").unwrap();
        assert!(resumed.iter().all(|moved| moved.at > opened.at), "{call}: opened before clients go on");
    }
}

#[tokio::test]
async fn reads_that_cannot_go_along_hold_the_writes_up_unless_that_is_accepted() {
    let fixture = Fixture::new().await;
    fixture.first.keep_reads();
    let coordinator = ready(&fixture).await;
    switch(&coordinator, Side::New).await;
    let asked = || {
        fixture
            .first
            .moved()
            .iter()
            .filter(|moved| moved.call == "route_reads" && moved.what == "100")
            .count()
    };
    poll("reads to be asked for again", || asked() > 2).await;
    assert_eq!(calls(&fixture), [], "nothing else is done before");

    let fixture = Fixture::new().await;
    fixture.first.keep_reads();
    let coordinator = ready(&fixture).await;
    let accepted = vec![READS.to_owned()];
    coordinator.tell(Command::BeginSwitchover { operation: OP.into(), to: Side::New, accepted }).await;
    let last = ended(&coordinator).await;
    let traffic = coordinator.operation().traffic.clone();
    assert!(last.decided && (traffic.writer, traffic.reads) == (Side::New, 100), "{last:#?}");
}

#[tokio::test]
async fn a_target_that_became_a_standby_meanwhile_is_not_decided_for() {
    let fixture = Fixture::new().await;
    let (go, wait) = watch::channel(false);
    fixture.second.answer("settle", [Answer::Hold(wait)]);
    let coordinator = ready(&fixture).await;
    switch(&coordinator, Side::New).await;
    poll("it comes to the last write", || !named(&calls(&fixture), "settle").is_empty()).await;
    fixture.second.demote();
    go.send(true).unwrap();
    coordinator.until("stopped", |op| matches!(op.status, Status::Stopped(_))).await;
    let traffic = coordinator.operation().traffic.clone();
    let last = traffic.last.unwrap();
    assert!(!last.decided && last.reason.ends_with("is a standby now"), "{last:#?}");
    assert_eq!((traffic.writer, traffic.count), (Side::Old, 0));
    assert!(named(&calls(&fixture), "lead").is_empty());
}

#[tokio::test]
async fn taking_back_goes_on_until_every_agent_answers() {
    let fixture = Fixture::new().await;
    fixture.first.answer("seal", [Answer::Fail("no")]);
    fixture.second.answer("abort", [Answer::Away, Answer::Fail("still starting"), Answer::Away]);
    fixture.second.answer("resume", [Answer::Away]);
    let coordinator = ready(&fixture).await;
    switch(&coordinator, Side::New).await;
    assert!(!ended(&coordinator).await.decided);
    let calls = calls(&fixture);
    assert_eq!(named(&calls, "abort").iter().filter(|moved| moved.host == "h2").count(), 4);
    // The others did not wait for it.
    let slow = named(&calls, "abort").last().unwrap().at;
    let client = named(&calls, "resume").into_iter().find(|moved| moved.what == "p1 to old").unwrap();
    assert!(client.at < slow, "{calls:#?}");
}

#[tokio::test]
async fn a_decision_is_completed_by_the_next_coordinator() {
    let fixture = Fixture::new().await;
    let (_go, wait) = watch::channel(false);
    fixture.second.answer("lead", [Answer::Hold(wait)]);
    let coordinator = ready(&fixture).await;
    switch(&coordinator, Side::New).await;
    coordinator.until("decided", |op| stage(op) == Some(Stage::Decided)).await;
    poll("lead is asked", || !named(&calls(&fixture), "lead").is_empty()).await;
    coordinator.die().await;
    let coordinator = fixture.coordinator();
    let last = ended(&coordinator).await;
    assert!(last.decided && last.pause_us.is_none() && last.tries == 1, "{last:#?}");
    assert_eq!(coordinator.operation().traffic.writer, Side::New);
    let calls = calls(&fixture);
    assert!(named(&calls, "abort").is_empty());
    let led = named(&calls, "lead");
    assert!(led.len() == 2 && led[0].ticket < led[1].ticket, "{led:#?}");
    assert_eq!(named(&calls, "follow")[0].what, "old from 900");
    assert_eq!(named(&calls, "resume").len(), 2);
}

#[tokio::test]
async fn an_undecided_try_is_taken_back_by_the_next_coordinator() {
    for held in ["pause", "fence", "seal"] {
        let fixture = Fixture::new().await;
        let (_go, wait) = watch::channel(false);
        fixture.first.answer(held, [Answer::Hold(wait)]);
        let coordinator = ready(&fixture).await;
        switch(&coordinator, Side::New).await;
        poll("it is asked", || !named(&calls(&fixture), held).is_empty()).await;
        coordinator.die().await;
        let coordinator = fixture.coordinator();
        let last = ended(&coordinator).await;
        assert!(!last.decided && last.reason.contains("coordinator that led the try ended"), "{last:#?}");
        let traffic = coordinator.operation().traffic.clone();
        assert_eq!((traffic.writer, traffic.count), (Side::Old, 0));
        let calls = calls(&fixture);
        assert!(named(&calls, "lead").is_empty());
        assert!(named(&calls, "abort").iter().all(|moved| moved.ticket > calls[0].ticket), "{calls:#?}");
        assert_eq!(named(&calls, "resume").len(), 2);
    }
}

#[tokio::test]
async fn a_pooler_that_is_away_after_the_decision_holds_up_nobody_else() {
    let fixture = Fixture::new().await;
    fixture.second.answer("resume", vec![Answer::Away; 6]);
    let coordinator = ready(&fixture).await;
    switch(&coordinator, Side::New).await;
    assert!(ended(&coordinator).await.decided);
    let calls = calls(&fixture);
    let away = named(&calls, "resume").last().unwrap().at;
    assert!(named(&calls, "follow")[0].at < away, "{calls:#?}");
}

#[tokio::test]
async fn one_that_never_follows_any_more_does_not_keep_anybody_from_finishing() {
    let fixture = Fixture::new().await;
    fixture.first.answer("follow", vec![Answer::Fail("node old is in recovery"); 1000]);
    let coordinator = ready(&fixture).await;
    switch(&coordinator, Side::New).await;
    let served = |op: &Operation| op.traffic.switchover.as_ref().is_some_and(|switchover| switchover.served);
    coordinator.until("clients are served", served).await;
    assert_eq!(named(&calls(&fixture), "resume").len(), 2);
    coordinator.tell(Command::Finish { operation: OP.into(), decommission: false }).await;
    coordinator.until("it is finished", |op| op.status == Status::Finished).await;
    let traffic = coordinator.operation().traffic.clone();
    assert!(traffic.last.unwrap().decided && traffic.writer == Side::New);
}

#[tokio::test]
async fn a_fence_that_was_taken_away_is_put_back_and_told_of() {
    let fixture = Fixture::new().await;
    let coordinator = ready(&fixture).await;
    fixture.second.let_in();
    coordinator.until("stopped", |op| matches!(op.status, Status::Stopped(_))).await;
    let Status::Stopped(stop) = coordinator.operation().status.clone() else { panic!() };
    assert!(!stop.failover && stop.reason.contains("let clients in"), "{stop:#?}");
    assert!(stop.evidence[0].contains("keeps clients out again"), "{stop:#?}");
    let calls = calls(&fixture);
    let aborted: Vec<&str> = named(&calls, "abort").iter().map(|moved| moved.what.as_str()).collect();
    assert_eq!(aborted, ["new for old"]);
}

#[tokio::test]
async fn a_fence_that_came_back_is_lifted_by_the_register_and_told_of() {
    let fixture = Fixture::new().await;
    let coordinator = ready(&fixture).await;
    fixture.first.keep_out();
    coordinator.until("stopped", |op| matches!(op.status, Status::Stopped(_))).await;
    let Status::Stopped(stop) = coordinator.operation().status.clone() else { panic!() };
    assert!(!stop.failover && stop.reason.contains("kept clients out"), "{stop:#?}");
    assert!(stop.evidence[0].contains("lets clients in again"), "{stop:#?}");
    let calls = calls(&fixture);
    let aborted: Vec<&str> = named(&calls, "abort").iter().map(|moved| moved.what.as_str()).collect();
    assert_eq!(aborted, ["old for old"]);
}

#[tokio::test]
async fn an_agent_with_newer_tickets_than_the_log_is_told_of() {
    let fixture = Fixture::new().await;
    fixture.second.remember_ticket(OP, (99, 1));
    let coordinator = ready(&fixture).await;
    switch(&coordinator, Side::New).await;
    let told = || {
        let waiting = coordinator.live.traffic_now(OP).waiting;
        waiting.values().any(|waiting| waiting.why.contains("restored from an older copy"))
    };
    poll("the status tells", told).await;
    assert_eq!(coordinator.operation().traffic.writer, Side::Old);
}

#[tokio::test]
async fn reads_are_kept_as_wanted_under_a_ticket_of_the_present_term() {
    let fixture = Fixture::new().await;
    let coordinator = ready(&fixture).await;
    let routed = |percent: &str, newer: (u64, u64)| {
        let moved = fixture.first.moved();
        let last = moved.iter().rfind(|moved| moved.call == "route_reads");
        last.is_some_and(|moved| moved.what == percent && moved.ticket > newer)
    };
    poll("nothing yet", || routed("0", (0, 0))).await;
    coordinator.tell(Command::SetReads { operation: OP.into(), percent: 25 }).await;
    poll("a quarter", || routed("25", (0, 0))).await;
    let effective = || {
        let answer = coordinator.live.traffic_now(OP).balancers.get("b").cloned();
        answer.is_some_and(|answer| answer.is_ok_and(|reply| reply.effective_percent == 25))
    };
    poll("it is shown", effective).await;
    let before = fixture.first.moved().last().unwrap().ticket;
    coordinator.die().await;
    let _coordinator = fixture.coordinator();
    poll("the next leader", || routed("25", before)).await;
}

#[tokio::test]
async fn a_leader_that_became_a_standby_stops_the_operation() {
    let fixture = Fixture::new().await;
    let coordinator = ready(&fixture).await;
    fixture.first.demote();
    coordinator.until("stopped", |op| matches!(op.status, Status::Stopped(_))).await;
    let operation: Arc<Operation> = coordinator.operation();
    let Status::Stopped(stop) = &operation.status else { panic!() };
    assert!(
        stop.reason.starts_with("o was the leader of the old cluster and is a standby now"),
        "{}",
        stop.reason
    );
}

#[test]
fn tries_are_spread_out_and_bounded() {
    assert!(pause_before(1, 7) <= std::time::Duration::from_millis(750));
    assert!(pause_before(50, 7) <= std::time::Duration::from_secs(45));
}

#[tokio::test]
async fn an_agent_that_restarts_between_the_calls_is_greeted_and_goes_on() {
    let fixture = Fixture::new().await;
    let (go, wait) = watch::channel(false);
    fixture.first.answer("seal", [Answer::Hold(wait)]);
    let coordinator = ready(&fixture).await;
    switch(&coordinator, Side::New).await;
    poll("the last call before the decision", || !named(&calls(&fixture), "seal").is_empty()).await;
    fixture.second.restart("again");
    go.send(true).unwrap();
    assert!(ended(&coordinator).await.decided);
    assert_eq!(coordinator.raft.latest().state.agents["h2"].incarnation, "again");
    assert_eq!(named(&calls(&fixture), "lead").len(), 1);
    let events: Vec<String> = coordinator.operation().events.iter().map(|event| event.kind.clone()).collect();
    assert!(!events.iter().any(|kind| kind == "agent-forked"), "{events:?}");
}

#[tokio::test]
async fn a_restored_agent_ends_a_switchover_by_the_register_and_then_stops_everything() {
    for decided in [false, true] {
        let fixture = Fixture::new().await;
        let (go, wait) = watch::channel(false);
        let held = if decided { "seal" } else { "fence" };
        fixture.first.answer(held, [Answer::Hold(wait)]);
        let coordinator = ready(&fixture).await;
        switch(&coordinator, Side::New).await;
        poll("it is asked", || !named(&calls(&fixture), held).is_empty()).await;
        // It lacks what it was known to have before the switchover began.
        fixture.second.restore(2, "restored");
        go.send(true).unwrap();
        coordinator.until("stopped", |op| matches!(op.status, Status::Stopped(_))).await;
        let operation = coordinator.operation();
        let Status::Stopped(stop) = &operation.status else { panic!() };
        assert!(stop.reason.contains("agent of host h2 has lost a part"), "{}", stop.reason);
        assert_eq!(operation.traffic.writer, if decided { Side::New } else { Side::Old });
        let last = operation.traffic.last.as_ref().unwrap();
        assert_eq!((last.decided, last.tries), (decided, 1));
        // Clients wait for nothing any more.
        assert_eq!(named(&calls(&fixture), "resume").len(), 2);
        assert_eq!(named(&calls(&fixture), "lead").is_empty(), !decided);
        coordinator.tell(Command::Retry { operation: OP.into() }).await;
        coordinator.at_gate().await;
    }
}

#[tokio::test]
async fn at_the_gate_a_restart_is_noticed_and_a_second_copy_stops_the_operation() {
    let fixture = Fixture::new().await;
    let coordinator = ready(&fixture).await;
    let known = || coordinator.raft.latest().state.agents["h2"].clone();
    poll("greeted at the gate", || known() == fixture.second.identity()).await;
    fixture.second.restart("copy");
    poll("the restart is known", || known().incarnation == "copy").await;
    assert_eq!(coordinator.operation().status, Status::AtGate);
    // The one that was copied answers again.
    fixture.second.restore(1, "original");
    coordinator.until("stopped", |op| matches!(op.status, Status::Stopped(_))).await;
    let operation = coordinator.operation();
    let Status::Stopped(stop) = &operation.status else { panic!() };
    assert!(stop.reason.contains("second copy of the host answers"), "{}", stop.reason);
    assert!(stop.evidence[0].contains("start copy") && stop.evidence[1].contains("start original"));
}
