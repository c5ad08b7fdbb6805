//! Histories worked out by hand: waves, holds and rollouts.

use super::super::rollout::WaveWait;
use super::*;

/// A canary, a second and two others, each on hosts of its own, and nothing bounds them.
fn waves(soak_hours: u64) -> World {
    let hosts = (0..CLUSTERS).map(|n| [n, n]).collect();
    let mut world = World::new(Setup { hosts, operations: None, per_rack: None, windows: false });
    let operations: Vec<NewOperation> = (0..4).map(|n| world.new_operation(n)).collect();
    let wave = |ids: &[NewOperation]| Wave {
        operations: ids.iter().map(|one| one.id.clone()).collect(),
        soak_ms: soak_hours * 3_600_000,
    };
    let waves = vec![wave(&operations[..1]), wave(&operations[1..2]), wave(&operations[2..])];
    let rollout = Some(NewRollout { id: "r".into(), waves });
    world.tell(Command::Queue { operations, rollout, generation: 1, accept_warnings: false }).unwrap();
    world
}

impl World {
    fn next(&self) -> Vec<String> {
        self.state.admissible(self.at()).operations
    }

    fn reach_gate(&mut self, id: &str) {
        self.admit(id.to_owned()).unwrap();
        self.run(id);
        assert_eq!(self.state.operations[id].status, Status::AtGate);
    }

    fn front(&self) -> Option<WaveWait> {
        self.state.rollouts["r"].front(&self.state.operations, self.at()).wait
    }
}

#[test]
fn a_stopped_canary_stops_the_rest_until_it_is_retried_to_success() {
    let mut world = waves(0);
    assert_eq!(world.next(), ["c0-1"]);
    world.admit("c0-1".into()).unwrap();
    assert_eq!(world.front(), Some(WaveWait::UnderWay(1)));
    world.step("c0-1", false);
    assert_eq!(world.front(), Some(WaveWait::Failed(vec!["c0-1".into()])));
    assert_eq!(world.next(), Vec::<String>::new());
    let refused = world.admit("c1-2".into()).unwrap_err().to_string();
    assert!(refused.contains("c0-1 failed") && refused.contains("`pgleap proceed r`"), "{refused}");
    world.tell(Command::Retry { operation: "c0-1".into() }).unwrap();
    assert_eq!(world.next(), Vec::<String>::new());
    world.run("c0-1");
    assert_eq!(world.next(), ["c1-2"]);
    // A canary that is disturbed at its gate stops what has not begun, whichever wave it is in.
    world.reach_gate("c1-2");
    assert_eq!(world.next(), ["c2-3", "c3-4"]);
    world.admit("c2-3".into()).unwrap();
    let disturbed = Command::Disturbed {
        operation: "c0-1".into(),
        reason: "failed over".into(),
        evidence: Vec::new(),
        failover: true,
    };
    world.tell(disturbed).unwrap();
    assert_eq!(world.next(), Vec::<String>::new());
    world.tell(Command::Retry { operation: "c0-1".into() }).unwrap();
    assert_eq!(world.next(), ["c3-4"]);
}

#[test]
fn proceed_goes_on_in_spite_of_what_failed_and_of_that_only() {
    let mut world = waves(0);
    world.admit("c0-1".into()).unwrap();
    let refused = world.tell(Command::Proceed { name: "r".into() }).unwrap_err().to_string();
    assert!(refused.contains("on their way to the gate"), "{refused}");
    world.tell(Command::Cancel { operation: "c0-1".into() }).unwrap();
    assert_eq!(world.next(), Vec::<String>::new());
    world.tell(Command::Proceed { name: "r".into() }).unwrap();
    assert_eq!(world.next(), ["c1-2"]);
    world.admit("c1-2".into()).unwrap();
    world.step("c1-2", false);
    assert_eq!(world.front(), Some(WaveWait::Failed(vec!["c1-2".into()])));
}

#[test]
fn a_new_operation_takes_the_place_of_its_clusters_cancelled_one() {
    let mut world = waves(0);
    world.tell(Command::Cancel { operation: "c0-1".into() }).unwrap();
    assert_eq!(world.front(), Some(WaveWait::Failed(vec!["c0-1".into()])));
    world.attempt(&Try::One { cluster: 0 });
    assert_eq!(world.front(), Some(WaveWait::UnderWay(1)));
    let [again] = &world.next()[..] else { panic!("{:?}", world.next()) };
    world.reach_gate(&again.clone());
    assert_eq!(world.next(), ["c1-2"]);
}

#[test]
fn a_wave_soaks_and_proceed_cuts_it_short() {
    let mut world = waves(24);
    world.reach_gate("c0-1");
    let until = Timestamp::from_second(24 * HOUR).unwrap();
    assert_eq!(world.front(), Some(WaveWait::Soaks(until)));
    let next = world.state.admissible(world.at());
    assert_eq!((next.operations.len(), next.again), (0, Some(until)));
    world.now = 24 * HOUR;
    world.reach_gate("c1-2");
    assert_eq!(world.next(), Vec::<String>::new());
    // A hold comes first: proceed lifts it, and nothing else.
    world.tell(Command::Hold { name: "r".into(), at: None }).unwrap();
    world.tell(Command::Proceed { name: "r".into() }).unwrap();
    assert_eq!(world.next(), Vec::<String>::new());
    world.tell(Command::Proceed { name: "r".into() }).unwrap();
    assert_eq!(world.next(), ["c2-3", "c3-4"]);
}

#[test]
fn a_hold_keeps_the_next_step_and_lets_go_back() {
    let mut world = waves(0);
    world.admit("c0-1".into()).unwrap();
    world.tell(Command::Hold { name: "c0-1".into(), at: Some(Phase::Convert) }).unwrap();
    assert!(world.state.operations["c0-1"].held().is_none(), "it only holds later");
    world.run("c0-1");
    let operation = &world.state.operations["c0-1"];
    assert_eq!((operation.phase(), &operation.status), (Some(Phase::Convert), &Status::Running));
    assert!(operation.held().is_some());
    let refused = world.tell(Command::Hold { name: "c0-1".into(), at: Some(Phase::Seed) }).unwrap_err();
    assert!(refused.to_string().contains("that phase has begun"), "{refused}");
    world.tell(Command::Proceed { name: "c0-1".into() }).unwrap();
    world.run("c0-1");
    world.tell(Command::Hold { name: "c0-1".into(), at: None }).unwrap();
    let begin = |to| Command::BeginSwitchover { operation: "c0-1".into(), to, accepted: Vec::new() };
    let refused = world.tell(begin(Side::New)).unwrap_err().to_string();
    assert!(refused.contains("it is held by test; `pgleap proceed c0` first"), "{refused}");
    world.tell(Command::Proceed { name: "c0-1".into() }).unwrap();
    world.tell(begin(Side::New)).unwrap();
    world.end_switchover("c0-1");
    // The way back is never held.
    world.tell(Command::Hold { name: "c0-1".into(), at: None }).unwrap();
    world.tell(begin(Side::Old)).unwrap();
    world.end_switchover("c0-1");
    world.tell(Command::Cancel { operation: "c0-1".into() }).unwrap();
    let refused = world.tell(Command::Hold { name: "c0-1".into(), at: None }).unwrap_err().to_string();
    assert!(refused.contains("no place to stay"), "{refused}");
    world.run("c0-1");
    assert_eq!(world.state.operations["c0-1"].status, Status::Cancelled);
}

#[test]
fn a_held_switchover_ends_with_its_try() {
    let mut world = waves(0);
    world.reach_gate("c0-1");
    let operation = || "c0-1".to_owned();
    let begin = Command::BeginSwitchover { operation: operation(), to: Side::New, accepted: Vec::new() };
    world.tell(begin).unwrap();
    let Reply::Started { attempt, .. } =
        world.tell(Command::SwitchoverStarted { operation: operation() }).unwrap()
    else {
        panic!()
    };
    world.tell(Command::Hold { name: operation(), at: None }).unwrap();
    let (reason, evidence) = ("somebody was in the way".to_owned(), Vec::new());
    let failed = Command::SwitchoverFailed { operation: operation(), attempt, reason, evidence, again: true };
    world.tell(failed).unwrap();
    world.tell(Command::SwitchoverUndone { operation: operation(), attempt }).unwrap();
    let traffic = &world.state.operations["c0-1"].traffic;
    assert_eq!((traffic.writer, traffic.switchover.is_none()), (Side::Old, true));
    assert_eq!(world.state.operations["c0-1"].status, Status::AtGate);
}

#[test]
fn a_conversion_is_not_left_between_slots_and_subscriptions() {
    let mut world = waves(0);
    world.admit("c0-1".into()).unwrap();
    // Up to the end of convert; then the window closes.
    (0..3).for_each(|_| assert!(world.step("c0-1", true)));
    let policy = Policy {
        windows: vec![Window {
            clusters: Vec::new(),
            days: [true; 7],
            from: 60,
            to: 120,
            zone: Zone { name: "UTC".into(), offset: 0, changes: Vec::new() },
        }],
        ..Policy::default()
    };
    let keeps = (0..4).map(|n| format!("c{n}")).collect();
    let fleet = Command::ApplyFleet { toml: String::new(), generation: 2, keeps, policy };
    world.tell(fleet).unwrap();
    while world.step("c0-1", true) {}
    assert_eq!(world.state.operations["c0-1"].phase(), Some(Phase::Route));
    world.now = HOUR;
    world.run("c0-1");
    assert_eq!(world.state.operations["c0-1"].status, Status::AtGate);
}

#[test]
fn cancelling_a_rollout_gives_up_what_has_not_begun() {
    let mut world = waves(0);
    world.admit("c0-1".into()).unwrap();
    world.tell(Command::Cancel { operation: "r".into() }).unwrap();
    assert_eq!(world.queued(), Vec::<String>::new());
    assert_eq!(world.state.operations["c0-1"].status, Status::Running);
    assert!(world.tell(Command::Cancel { operation: "r".into() }).is_err());
}
