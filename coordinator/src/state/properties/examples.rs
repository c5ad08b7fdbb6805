//! Histories worked out by hand: requests, plans, and every turn of a switchover.

use super::*;

#[test]
fn a_repeated_request_is_one_request() {
    let mut state = State::default();
    let plan = plan("c", vec![step("a", "h", "x:1", &[])]);
    for (index, id) in [(1, "c-1"), (2, "c-2")] {
        let start = Command::StartOperation { id: id.into(), plan: Arc::clone(&plan), generation: 0 };
        let envelope = Envelope { request_id: Some("r".into()), ..envelope(index, start) };
        let reply = state.apply(position(index), &envelope).unwrap();
        assert_eq!(reply, Reply::Operation { id: "c-1".into() });
    }
    assert_eq!(state.operations.len(), 1);
}

#[test]
fn a_plan_that_points_forward_is_refused() {
    let mut state = State::default();
    let plan = plan("c", vec![step("a", "h", "x:1", &["b"]), step("b", "h", "x:1", &[])]);
    let start = Command::StartOperation { id: "c-1".into(), plan, generation: 0 };
    assert!(matches!(state.apply(position(1), &envelope(1, start)), Err(Rejection::BadPlan(_))));
}

#[test]
fn asking_a_blocked_agent_again_makes_no_events() {
    let mut state = started(vec![step("a", "h", "x:1", &[])]);
    let mut index = 1;
    for attempt in 1..5 {
        for command in [
            start_step("c-1", "a", Verb::Do),
            Command::StepBlocked {
                operation: "c-1".into(),
                step: "a".into(),
                attempt,
                reason: "busy".into(),
            },
        ] {
            index += 1;
            state.apply(position(index), &envelope(index, command)).unwrap();
        }
    }
    let kinds: Vec<&str> = state.operations["c-1"].events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["operation-started", "started", "blocked"]);
}

#[test]
fn a_decision_after_the_failure_of_its_try_is_refused() {
    let mut gate = Gate::new();
    let attempt = gate.begin(5, Side::New);
    gate.traffic(5, Kind::Failed(true), attempt).unwrap();
    let refused = gate.refused(5, Kind::Decide, attempt);
    assert!(refused.contains("is not trying: attempt"), "{refused}");
    gate.traffic(5, Kind::Undone, attempt).unwrap();
    assert_eq!(gate.operation().traffic.switchover.as_ref().unwrap().stage, Stage::Waiting);
    let next = gate.start(5);
    gate.refused(5, Kind::Decide, attempt);
    gate.traffic(5, Kind::Decide, next).unwrap();
    gate.refused(5, Kind::Decide, next);
    assert_eq!((gate.operation().traffic.writer, gate.operation().traffic.count), (Side::New, 1));
}

#[test]
fn a_decision_of_another_term_is_refused() {
    let mut gate = Gate::new();
    let attempt = gate.begin(5, Side::New);
    // Proposed by the coordinator of term 5, and committed after all by that of term 6.
    let refused = gate.refused(6, Kind::Decide, attempt);
    assert!(refused.contains("the try began in term 5, and this is term 6"), "{refused}");
    // Whoever takes over finds an undecided try and takes it back.
    let taken = gate.start(6);
    gate.refused(6, Kind::Decide, attempt);
    gate.refused(6, Kind::Decide, taken);
    gate.traffic(6, Kind::Undone, taken).unwrap();
    let traffic = &gate.operation().traffic;
    assert_eq!(
        (traffic.writer, traffic.reads, gate.operation().status.clone()),
        (Side::Old, 0, Status::AtGate)
    );
    assert!(!traffic.last.as_ref().unwrap().decided);
}

#[test]
fn a_decision_outlives_its_coordinator() {
    let mut gate = Gate::new();
    let attempt = gate.begin(5, Side::New);
    gate.traffic(5, Kind::Decide, attempt).unwrap();
    let taken = gate.start(6);
    gate.refused(6, Kind::Done, attempt);
    gate.refused(6, Kind::Failed(false), taken);
    assert!(gate.cancel().unwrap_err().to_string().contains("`pgleap reverse` leads back"));
    gate.traffic(6, Kind::Done, taken).unwrap();
    assert_eq!((gate.operation().traffic.writer, gate.operation().traffic.reads), (Side::New, 100));
    assert!(gate.refused(6, Kind::Begin(Side::New), 0).contains("takes the writes already"));
    assert!(gate.cancel().unwrap_err().to_string().contains("`pgleap reverse` first, or `pgleap finish`"));
    gate.begin(6, Side::Old);
}

#[test]
fn who_never_follows_any_more_does_not_keep_the_way_back_from_being_given_up() {
    let mut gate = Gate::new();
    let attempt = gate.begin(5, Side::New);
    gate.refused(5, Kind::Served, attempt);
    gate.traffic(5, Kind::Decide, attempt).unwrap();
    assert!(gate.refused(5, Kind::Finish, 0).contains("a switchover is under way"), "clients may wait");
    gate.traffic(5, Kind::Served, attempt).unwrap();
    gate.traffic(5, Kind::Served, attempt).unwrap();
    gate.traffic(5, Kind::Finish, 0).unwrap();
    let operation = gate.operation();
    assert_eq!((operation.traffic.writer, operation.status.clone()), (Side::New, Status::Finishing));
    assert!(operation.traffic.switchover.is_none() && operation.traffic.last.as_ref().unwrap().decided);
    gate.refused(5, Kind::Done, attempt);
}

#[test]
fn tries_end_and_the_share_of_reads_comes_back() {
    let mut gate = Gate::new();
    gate.traffic(5, Kind::Reads, 0).unwrap();
    let mut attempt = gate.begin(5, Side::New);
    let mut tries = 1;
    loop {
        assert_eq!(gate.operation().traffic.reads, 100);
        gate.traffic(5, Kind::Failed(true), attempt).unwrap();
        gate.traffic(5, Kind::Undone, attempt).unwrap();
        if gate.operation().status == Status::AtGate {
            break;
        }
        attempt = gate.start(5);
        tries += 1;
    }
    assert_eq!(tries, gate.operation().plan.traffic.tries);
    assert_eq!((gate.operation().traffic.reads, gate.operation().traffic.writer), (50, Side::Old));
}

#[test]
fn cancel_between_two_tries_gives_up_the_switchover_only() {
    let mut gate = Gate::new();
    let attempt = gate.begin(5, Side::New);
    assert!(gate.cancel().unwrap_err().to_string().contains("between two tries"));
    gate.traffic(5, Kind::Failed(true), attempt).unwrap();
    gate.traffic(5, Kind::Undone, attempt).unwrap();
    gate.cancel().unwrap();
    assert_eq!(gate.operation().status, Status::AtGate);
    let reason = &gate.operation().traffic.last.as_ref().unwrap().reason;
    assert_eq!(reason, "given up by test; the latest try: it broke");
    // While it is taken back, only no other try follows.
    let attempt = gate.begin(5, Side::New);
    gate.traffic(5, Kind::Failed(true), attempt).unwrap();
    gate.cancel().unwrap();
    assert_eq!(gate.operation().status, Status::Switching);
    gate.traffic(5, Kind::Undone, attempt).unwrap();
    assert_eq!(gate.operation().status, Status::AtGate);
    gate.cancel().unwrap();
    assert_eq!(gate.operation().status, Status::Cancelling);
}

#[test]
fn a_plan_that_cannot_move_traffic_says_so() {
    let mut state = started(vec![step("a", "h", "x:1", &[])]);
    run_to_rest(&mut state, "c-1");
    for what in [Kind::Begin(Side::New), Kind::Finish] {
        let index = state.applied + 1;
        let refused =
            state.apply(position(index), &envelope(index, traffic("c-1".into(), what, 0))).unwrap_err();
        assert!(refused.to_string().contains("older pgleap"), "{refused}");
    }
}

#[test]
fn the_side_that_goes_away_ends_only_when_ordered_and_last() {
    for (writer, decommission, ends) in
        [(Side::New, true, true), (Side::New, false, false), (Side::Old, true, false)]
    {
        let mut state = started(plan_of_masks("c", ["h", "g"], &[0; 5]).steps.clone());
        run_to_rest(&mut state, "c-1");
        let mut gate = Gate(state);
        if writer == Side::New {
            let attempt = gate.begin(5, Side::New);
            gate.traffic(5, Kind::Decide, attempt).unwrap();
            gate.traffic(5, Kind::Done, attempt).unwrap();
        }
        gate.tell(5, Command::Finish { operation: "c-1".into(), decommission }).unwrap();
        let undone = run_to_rest(&mut gate.0, "c-1");
        assert_eq!(undone, ["s4", "s3", "s2"]);
        assert_eq!(gate.operation().status, Status::Finished);
        let ended = gate.operation().steps["s0"].state == StepState::Done;
        assert_eq!(ended, ends, "{writer} {decommission}");
    }
}

/// A side that is to be stopped has a host that never comes back: whatever the host was asked before.
#[test]
fn a_host_that_never_comes_back_holds_up_no_decommission() {
    for begun in [false, true] {
        let mut gate = Gate(started(plan_of_masks("c", ["h", "g"], &[0; 5]).steps.clone()));
        run_to_rest(&mut gate.0, "c-1");
        let attempt = gate.begin(5, Side::New);
        gate.traffic(5, Kind::Decide, attempt).unwrap();
        gate.traffic(5, Kind::Done, attempt).unwrap();
        gate.tell(5, Command::Finish { operation: "c-1".into(), decommission: true }).unwrap();
        // Taken back on both hosts, and what ends the old side is about to be asked, or has been.
        while let Some(StepToRun { id: step, verb: verb @ Verb::Undo }) = runnable(gate.operation()).pop() {
            let attempt = gate.start_step(&step, verb);
            gate.end_step(&step, attempt, done());
        }
        if begun {
            gate.start_step("s0", Verb::Do);
        }
        assert_eq!(gate.operation().status, Status::Finishing);
        gate.tell(5, Command::Abandon { operation: "c-1".into(), host: "h".into() }).unwrap();
        assert_eq!(gate.operation().status, Status::Finished, "begun {begun}");
        let told = gate
            .operation()
            .events
            .iter()
            .any(|event| event.message.contains("s0 (its server is not stopped)"));
        assert!(told, "begun {begun}");
    }
}

#[test]
fn a_host_that_never_comes_back_holds_up_no_cancel_and_is_named_with_what_is_left() {
    let steps =
        || vec![step("a", "h", "x:1", &[]), step("b", "g", "x:2", &["a"]), step("c", "h", "x:1", &["b"])];
    let mut gate = Gate(started(steps()));
    run_to_rest(&mut gate.0, "c-1");
    let abandon = |host: &str| Command::Abandon { operation: "c-1".into(), host: host.into() };
    let early = gate.tell(5, abandon("g")).unwrap_err();
    assert!(early.to_string().contains("once the operation is being cancelled"), "{early}");
    gate.tell(5, Command::Cancel { operation: "c-1".into() }).unwrap();
    let unknown = gate.tell(5, abandon("elsewhere")).unwrap_err();
    assert!(unknown.to_string().contains("nothing to be taken back on host elsewhere"), "{unknown}");
    gate.tell(5, abandon("g")).unwrap();
    assert_eq!(
        gate.operation().events.iter().next_back().unwrap().message,
        "host g; not taken back there: b (undo b)"
    );
    gate.tell(5, abandon("g")).unwrap_err();
    assert_eq!(run_to_rest(&mut gate.0, "c-1"), ["c", "a"]);
    assert_eq!(gate.operation().status, Status::Cancelled);
}

#[test]
fn a_decision_for_a_host_that_is_lost_goes_back_unless_it_let_clients_in() {
    let mut gate = Gate::new();
    assert!(
        gate.refused(5, Kind::GiveUp, 0).contains("once the operation is being cancelled"),
        "at the gate"
    );
    let attempt = gate.begin(5, Side::New);
    assert!(gate.refused(5, Kind::GiveUp, 0).contains("is not decided"));
    gate.traffic(5, Kind::Decide, attempt).unwrap();
    assert!(gate.refused(5, Kind::TakeBack, attempt).contains("not given up"), "without consent");
    gate.traffic(5, Kind::GiveUp, 0).unwrap();
    assert_eq!(gate.operation().traffic.writer, Side::New, "consent alone moves nothing");
    assert!(gate.refused(6, Kind::TakeBack, attempt).contains("another coordinator leads"));
    let attempt = gate.start(6);
    gate.traffic(6, Kind::TakeBack, attempt).unwrap();
    gate.refused(6, Kind::TakeBack, attempt);
    gate.refused(6, Kind::Led, attempt);
    gate.traffic(6, Kind::Undone, attempt).unwrap();
    let operation = gate.operation();
    assert_eq!((operation.traffic.writer, operation.status.clone()), (Side::Old, Status::AtGate));
    let last = operation.traffic.last.clone().unwrap();
    assert!(!last.decided && last.reason.contains("host g") && last.evidence == ["not there"], "{last:#?}");
    assert!(operation.events.iter().any(|event| event.kind == "decision-taken-back"));
    assert!(gate.refused(6, Kind::Begin(Side::New), 0).contains("`pgleap cancel`, then start again"));
    gate.cancel().unwrap();

    let mut gate = Gate::new();
    let attempt = gate.begin(5, Side::New);
    gate.traffic(5, Kind::Decide, attempt).unwrap();
    gate.traffic(5, Kind::Led, attempt).unwrap();
    gate.traffic(5, Kind::GiveUp, 0).unwrap();
    assert!(gate.refused(5, Kind::TakeBack, attempt).contains("may have written there"));
}

#[test]
fn what_agents_note_is_an_event_once() {
    let mut gate = Gate::new();
    let mut attempt = gate.begin(5, Side::New);
    for _ in 0..2 {
        gate.traffic(5, Kind::Noted, attempt).unwrap();
        gate.traffic(5, Kind::Noted, attempt).unwrap();
        gate.traffic(5, Kind::Failed(true), attempt).unwrap();
        gate.refused(5, Kind::Noted, attempt);
        gate.traffic(5, Kind::Undone, attempt).unwrap();
        attempt = gate.start(5);
    }
    let told: Vec<_> = gate.operation().events.iter().filter(|event| event.kind == "note").collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].message, "told once");
}

/// At the gate, with the plan of a move within 17.
fn move_at_the_gate() -> (Gate, Arc<Plan>) {
    let plan = Arc::new(crate::plan::tests::a_move_of_17());
    let mut gate = Gate(started(plan.steps.clone()));
    run_to_rest(&mut gate.0, "c-1");
    assert_eq!(gate.operation().status, Status::AtGate);
    let plan = gate.operation().plan.clone();
    (gate, plan)
}

fn redirected(plan: &Plan, to: &str) -> Command {
    let plan = Arc::new(crate::plan::redirect(plan, to).unwrap());
    let (reason, evidence) = (format!("{to} leads"), vec!["nothing is missing".into()]);
    Command::Redirected { operation: "c-1".into(), plan, timeline: 7, reason, evidence }
}

#[test]
fn what_names_the_old_leader_is_done_again_with_another_one() {
    let (mut gate, plan) = move_at_the_gate();
    gate.traffic(5, Kind::Reads, 0).unwrap();
    let ticket = gate.operation().traffic.ticket;
    gate.tell(5, redirected(&plan, "old-1")).unwrap();
    let operation = gate.operation();
    assert_eq!((&operation.status, operation.traffic.reads), (&Status::Running, 0));
    assert!(operation.traffic.ticket > ticket, "what is on its way to a balancer is void");
    assert_eq!(
        (operation.old_timeline(), operation.plan.moving().unwrap().old.what.name.as_str()),
        (7, "old-1")
    );
    let open = operation.steps.iter().filter(|(_, record)| record.state == StepState::Pending);
    let open: Vec<&str> =
        open.map(|(id, _)| id.split('/').next().unwrap()).filter(|id| !id.starts_with("retire")).collect();
    let mut kinds = open.clone();
    kinds.dedup();
    assert_eq!(
        kinds,
        [
            "replicate.catch_up",
            "replicate.enable_subscriptions",
            "replicate.subscribe",
            "route.keep_traffic",
            "route.stage_balancer",
            "route.stage_pooler"
        ]
    );
    assert_eq!(open.iter().filter(|id| **id == "route.keep_traffic").count(), 5);
    let next: Vec<String> = runnable(operation).into_iter().map(|step| step.id).collect();
    assert!(
        next.contains(&"replicate.subscribe".to_owned()) && !next.contains(&"replicate.catch_up".to_owned()),
        "{next:?}"
    );
    assert!(
        operation
            .events
            .iter()
            .any(|event| event.kind == "redirected" && event.message.contains("nothing is missing"))
    );
    run_to_rest(&mut gate.0, "c-1");
    assert_eq!(gate.operation().status, Status::AtGate);
    // Slots are taken back where they are now, and so is everything that was pending for a while.
    gate.tell(5, redirected(&plan, "old-2")).unwrap();
    gate.cancel().unwrap();
    let undone = run_to_rest(&mut gate.0, "c-1");
    assert!(undone.contains(&"route.keep_traffic/old-1".to_owned()), "{undone:?}");
    assert_eq!(gate.operation().plan.step("convert.create_slots").unwrap().host, "o2");
    assert_eq!(gate.operation().status, Status::Cancelled);
}

#[test]
fn another_old_leader_is_taken_up_where_it_can_be_only() {
    let (mut gate, plan) = move_at_the_gate();
    let refused = |gate: &mut Gate, command| gate.tell(5, command).unwrap_err().to_string();
    let mut other = crate::plan::redirect(&plan, "old-1").unwrap();
    other.steps.swap(0, 1);
    let command = Command::Redirected {
        operation: "c-1".into(),
        plan: Arc::new(other),
        timeline: 7,
        reason: String::new(),
        evidence: Vec::new(),
    };
    assert!(refused(&mut gate, command).contains("another old leader"));

    // On its way it has to stop first, with nothing under way.
    let (step, other) = ("replicate.subscribe", "route.keep_traffic/old-0");
    gate.tell(5, redirected(&plan, "old-1")).unwrap();
    let (first, second) = (gate.start_step(step, Verb::Do), gate.start_step(other, Verb::Do));
    assert!(refused(&mut gate, redirected(&plan, "old-2")).contains("at the gate, or when it is stopped"));
    gate.end_step(step, first, failed("old-1 is a standby"));
    assert!(refused(&mut gate, redirected(&plan, "old-2")).contains("is under way"));
    gate.end_step(other, second, failed("old-1 is a standby"));
    gate.tell(5, redirected(&plan, "old-2")).unwrap();
    run_to_rest(&mut gate.0, "c-1");

    let attempt = gate.begin(5, Side::New);
    gate.traffic(5, Kind::Decide, attempt).unwrap();
    gate.traffic(5, Kind::Done, attempt).unwrap();
    assert!(refused(&mut gate, redirected(&plan, "old-1")).contains("the new cluster takes the writes"));

    let mut early = Gate(started(plan.steps.clone()));
    let attempt = early.start_step(&plan.steps[0].id, Verb::Do);
    early.end_step(&plan.steps[0].id, attempt, failed("old-1 is a standby"));
    assert!(refused(&mut early, redirected(&plan, "old-1")).contains("not promoted yet"));
}

#[test]
fn the_host_of_a_former_leader_is_not_waited_for_and_told_when_it_is_back() {
    let (mut gate, plan) = move_at_the_gate();
    gate.tell(5, redirected(&plan, "old-1")).unwrap();
    let late = "route.keep_traffic/old-0";
    // Its agent does not answer, so that its step is not even started.
    while gate.operation().status == Status::Running {
        let next = runnable(gate.operation())
            .into_iter()
            .find(|step| step.id != late)
            .expect("somebody waits for it");
        let attempt = gate.start_step(&next.id, Verb::Do);
        gate.end_step(&next.id, attempt, done());
    }
    assert_eq!(gate.operation().status, Status::AtGate);
    assert_eq!(runnable(gate.operation()), [StepToRun { id: late.into(), verb: Verb::Do }]);
    let attempt = gate.begin(5, Side::New);
    gate.traffic(5, Kind::Decide, attempt).unwrap();
    gate.tell(5, start_step("c-1", late, Verb::Do)).unwrap_err();
    gate.traffic(5, Kind::Done, attempt).unwrap();
    let attempt = gate.start_step(late, Verb::Do);
    gate.end_step(late, attempt, done());
    assert_eq!((&gate.operation().status, runnable(gate.operation())), (&Status::AtGate, Vec::new()));
}
