//! A fleet in which everything may be tried; what holds at every command is checked there.

use super::*;

pub(super) struct World {
    pub(super) setup: Setup,
    pub(super) state: State,
    pub(super) log: Vec<Envelope>,
    pub(super) now: i64,
    pub(super) made: usize,
}

impl World {
    pub(super) fn new(setup: Setup) -> World {
        let mut world = World { setup, state: State::default(), log: Vec::new(), now: 0, made: 0 };
        let racks = (0..12).map(|host| (format!("h{host}"), format!("r{}", host % 3))).collect();
        let zone = Zone { name: "UTC".into(), offset: 0, changes: Vec::new() };
        // Cluster 0 has its own: the other half of the day.
        let window = |clusters: Vec<String>, from, to| Window {
            clusters,
            days: [true; 7],
            from,
            to,
            zone: zone.clone(),
        };
        let windows = match world.setup.windows {
            true => vec![window(vec![], 0, 720), window(vec!["c0".into()], 720, 1440)],
            false => Vec::new(),
        };
        let limits = Limits { operations: world.setup.operations, per_rack: world.setup.per_rack };
        let policy = Policy { limits, racks, windows };
        let fleet = Command::ApplyFleet { toml: String::new(), generation: 1, keeps: Vec::new(), policy };
        world.tell(fleet).unwrap();
        world
    }

    pub(super) fn at(&self) -> Timestamp {
        Timestamp::from_second(self.now).unwrap()
    }

    /// Written without [`Policy::closed`], so that it can disagree with it.
    pub(super) fn is_open(&self, cluster: &str) -> bool {
        let first_half = self.now.rem_euclid(24 * HOUR) < 12 * HOUR;
        !self.setup.windows || first_half != (cluster == "c0")
    }

    pub(super) fn tell(&mut self, command: Command) -> Result<Reply, Rejection> {
        let index = self.log.len() as u64 + 1;
        let envelope = envelope(self.now.unsigned_abs(), command);
        let before = self.state.clone();
        let result = self.state.apply(Position { index, term: 1 + index / 20 }, &envelope);
        match &result {
            Err(_) => assert_eq!(unchanged(&self.state, &before), before),
            Ok(_) => {
                self.check_admitted(&before, &envelope.command);
                self.check_begun(&before, &envelope.command);
            }
        }
        check_hosts(&self.state);
        self.check_limits();
        self.log.push(envelope);
        result
    }

    pub(super) fn check_limits(&self) {
        let counted = self.state.operations.values().filter(|operation| operation.counts());
        let counted: Vec<&Arc<Operation>> = counted.collect();
        let most = self.setup.operations.map_or(usize::MAX, |most| most as usize);
        assert!(counted.len() <= most, "{} operations of at most {most}", counted.len());
        for rack in 0..3 {
            let in_it = |operation: &&&Arc<Operation>| {
                operation.hosts().iter().any(|host| host[1..].parse::<usize>().unwrap() % 3 == rack)
            };
            let there = counted.iter().filter(in_it).count();
            assert!(
                there <= self.setup.per_rack.map_or(usize::MAX, |most| most as usize),
                "rack {rack}: {there}"
            );
        }
    }

    pub(super) fn check_admitted(&self, before: &State, command: &Command) {
        let Command::Admit { operation, .. } = command else { return };
        let operation = &before.operations[operation];
        assert_eq!(operation.status, Status::Queued);
        assert!(self.is_open(&operation.plan.cluster), "outside its window");
        assert!(operation.place.hold.as_ref().is_none_or(|hold| hold.at.is_some()), "it was held");
        let Some(rollout) = &operation.place.rollout else { return };
        let rollout = &before.rollouts[rollout];
        assert_eq!(rollout.hold, None, "its rollout was held");
        let wave = rollout.wave_of(&operation.id).unwrap();
        for (n, earlier) in rollout.waves[..wave].iter().enumerate() {
            let mut latest = 0;
            for id in earlier.operations.iter().filter(|id| !rollout.accepted.contains(*id)) {
                let other = &before.operations[id];
                let well = matches!(
                    other.status,
                    Status::AtGate | Status::Switching | Status::Finishing | Status::Finished
                );
                assert!(well, "wave {n}: {id} is {:?}", other.status);
                latest = latest.max(other.place.gate_since.unwrap().as_second());
            }
            let soak = i64::try_from(earlier.soak_ms / 1000).unwrap();
            assert!(
                n < rollout.soaked || latest == 0 || latest + soak <= self.now,
                "wave {n} has not soaked"
            );
        }
    }

    pub(super) fn check_begun(&self, before: &State, command: &Command) {
        match command {
            Command::StepStarted { operation, step, verb: Verb::Do } => {
                let operation = &before.operations[operation];
                let record = &operation.steps[step];
                let phase = operation.plan.step(step).unwrap().phase;
                if operation.status != Status::Running {
                    return;
                }
                if !matches!(record.state, StepState::Started(_)) {
                    let hold = operation.place.hold.as_ref();
                    assert!(hold.is_none_or(|hold| hold.at.is_some_and(|at| phase < at)), "it was held");
                }
                let begins =
                    record.touched_at.is_none()
                        && !operation.plan.steps.iter().any(|other| {
                            other.phase == phase && operation.steps[&other.id].touched_at.is_some()
                        });
                let waits = matches!(phase, Phase::Seed | Phase::Convert | Phase::Route);
                assert!(
                    !(begins && waits) || self.is_open(&operation.plan.cluster),
                    "{phase} began outside the window"
                );
            }
            Command::BeginSwitchover { operation, to: Side::New, .. } | Command::Finish { operation, .. } => {
                let operation = &before.operations[operation];
                assert!(operation.place.hold.is_none() && self.is_open(&operation.plan.cluster));
            }
            _ => {}
        }
    }

    pub(super) fn plan(&self, cluster: usize) -> Arc<Plan> {
        let [a, b] = self.setup.hosts[cluster];
        let mut steps: Vec<_> = PHASES
            .iter()
            .enumerate()
            .map(|(n, phase)| {
                let host = format!("h{}", if n % 2 == 0 { a } else { b });
                let before = n.checked_sub(1).map(|n| format!("s{n}"));
                let after: Vec<&str> = before.iter().map(String::as_str).collect();
                let step = step(&format!("s{n}"), &host, "127.0.0.1:1", &after);
                crate::plan::PlannedStep { phase: *phase, ..step }
            })
            .collect();
        for (n, side) in [(4, Side::Old), (5, Side::New)] {
            let phase = steps[n].phase;
            let movable = movable(steps[n].clone(), Some(side));
            steps[n] = crate::plan::PlannedStep { phase, finish: Finish::Keep, ..movable };
        }
        plan(&format!("c{cluster}"), steps)
    }

    pub(super) fn new_operation(&mut self, cluster: usize) -> NewOperation {
        self.made += 1;
        let hosts = self.setup.hosts[cluster].iter().map(|host| format!("h{host}")).collect();
        let (id, cluster) = (format!("c{cluster}-{}", self.made), format!("c{cluster}"));
        NewOperation { id, cluster, old_major: 15, new_major: 18, hosts }
    }

    /// Of the operations that are not over, mostly.
    pub(super) fn id(&self, op: usize) -> Option<String> {
        let active: Vec<&String> = self.state.active().map(|operation| &operation.id).collect();
        match active.len() {
            0 => self.state.operations.keys().nth(op).cloned(),
            many => active.get(op % many).map(|id| (*id).clone()),
        }
    }

    pub(super) fn cluster_of(&self, id: &str) -> usize {
        self.state.operations[id].plan.cluster[1..].parse().unwrap()
    }

    pub(super) fn admit(&mut self, operation: String) -> Result<Reply, Rejection> {
        let plan = self.plan(self.cluster_of(&operation));
        self.tell(Command::Admit { operation, plan, generation: 1 })
    }

    /// One step of an honest driver and agent; false when there is none, or it has to wait for the window.
    pub(super) fn step(&mut self, id: &str, ok: bool) -> bool {
        let operation = &self.state.operations[id];
        let Some(StepToRun { id: step, verb }) = runnable(operation).into_iter().next() else { return false };
        let attempt = match self.tell(start_step(id, &step, verb)) {
            Ok(Reply::Started { attempt, .. }) => attempt,
            Err(Rejection::NotNow { .. }) => return false,
            other => panic!("runnable, and {other:?}"),
        };
        let outcome = if ok { done() } else { failed("broken") };
        self.tell(end_step(id, &step, attempt, outcome)).unwrap();
        true
    }

    /// Until it stands.
    pub(super) fn run(&mut self, id: &str) {
        self.end_switchover(id);
        while self.step(id, true) {}
    }

    pub(super) fn end_switchover(&mut self, id: &str) {
        while self.state.operations[id].status == Status::Switching {
            let operation = id.to_owned();
            let Reply::Started { attempt, .. } =
                self.tell(Command::SwitchoverStarted { operation: operation.clone() }).unwrap()
            else {
                panic!()
            };
            let stage = self.state.operations[id].traffic.switchover.as_ref().unwrap().stage;
            let command = match stage {
                Stage::Trying => Command::Decide { operation, attempt, positions: Vec::new() },
                Stage::Undoing => Command::SwitchoverUndone { operation, attempt },
                Stage::Decided => {
                    Command::SwitchoverDone { operation, attempt, pause_us: None, timings: Vec::new() }
                }
                Stage::Waiting => panic!("started and waiting"),
            };
            // Refused in another term than the try began in: then it is taken back.
            let _ = self.tell(command);
        }
    }

    pub(super) fn attempt(&mut self, attempt: &Try) {
        let rollout = |world: &World, n: usize| world.state.rollouts.keys().nth(n).cloned();
        let command = match *attempt {
            Try::Rollout { cuts, soak_hours } => {
                let busy: BTreeSet<String> =
                    self.state.active().map(|one| one.plan.cluster.clone()).collect();
                let free: Vec<usize> = (0..CLUSTERS).filter(|n| !busy.contains(&format!("c{n}"))).collect();
                let operations: Vec<NewOperation> = free.into_iter().map(|n| self.new_operation(n)).collect();
                let ids: Vec<String> = operations.iter().map(|one| one.id.clone()).collect();
                let (a, b) = (cuts[0].min(cuts[1]).min(ids.len()), cuts[0].max(cuts[1]).min(ids.len()));
                let wave =
                    |ids: &[String]| Wave { operations: ids.to_vec(), soak_ms: soak_hours * 3_600_000 };
                let waves = vec![wave(&ids[..a]), wave(&ids[a..b]), wave(&ids[b..])];
                self.made += 1;
                let rollout = Some(NewRollout { id: format!("r-{}", self.made), waves });
                Command::Queue { operations, rollout, generation: 1, accept_warnings: false }
            }
            Try::One { cluster } => {
                let operations = vec![self.new_operation(cluster)];
                Command::Queue { operations, rollout: None, generation: 1, accept_warnings: false }
            }
            Try::Start { cluster } => {
                let id = self.new_operation(cluster).id;
                Command::StartOperation { id, plan: self.plan(cluster), generation: 1 }
            }
            Try::Admit { op, rightly } => {
                let right = self.state.admissible(self.at()).operations;
                let id = if rightly && !right.is_empty() {
                    Some(right[op % right.len()].clone())
                } else {
                    self.id(op)
                };
                let Some(id) = id else { return };
                let result = self.admit(id);
                assert!(!rightly || right.is_empty() || result.is_ok(), "{result:?}");
                return;
            }
            Try::Step { op, ok } => {
                let Some(id) = self.id(op) else { return };
                self.step(&id, ok);
                return;
            }
            Try::ToGate { op } => {
                let Some(id) = self.id(op) else { return };
                return self.run(&id);
            }
            Try::Hours { hours } => {
                self.now += hours * HOUR;
                return;
            }
            Try::HoldRollout { n } | Try::ProceedRollout { n } | Try::CancelRollout { n } => {
                let Some(name) = rollout(self, n) else { return };
                match attempt {
                    Try::HoldRollout { .. } => Command::Hold { name, at: None },
                    Try::ProceedRollout { .. } => Command::Proceed { name },
                    _ => Command::Cancel { operation: name },
                }
            }
            Try::NotReady { op }
            | Try::Any { op, .. }
            | Try::Cancel { op }
            | Try::Retry { op }
            | Try::Finish { op }
            | Try::Disturb { op }
            | Try::Begin { op, .. }
            | Try::Hold { op, .. }
            | Try::Proceed { op } => {
                let Some(operation) = self.id(op) else { return };
                match *attempt {
                    Try::NotReady { .. } => {
                        Command::NotReady { operation, reason: "not ready".into(), evidence: Vec::new() }
                    }
                    Try::Any { step, .. } => start_step(&operation, &format!("s{step}"), Verb::Do),
                    Try::Cancel { .. } => Command::Cancel { operation },
                    Try::Retry { .. } => Command::Retry { operation },
                    Try::Finish { .. } => Command::Finish { operation, decommission: false },
                    Try::Disturb { .. } => Command::Disturbed {
                        operation,
                        reason: "failed over".into(),
                        evidence: Vec::new(),
                        failover: true,
                    },
                    Try::Begin { to, .. } => Command::BeginSwitchover { operation, to, accepted: Vec::new() },
                    Try::Hold { at, .. } => Command::Hold { name: operation, at },
                    _ => Command::Proceed { name: operation },
                }
            }
        };
        let _ = self.tell(command);
    }

    pub(super) fn queued(&self) -> Vec<String> {
        let queued = self.state.operations.values().filter(|one| one.status == Status::Queued);
        queued.map(|one| one.id.clone()).collect()
    }
}

pub(super) fn check_hosts(state: &State) {
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for operation in state.operations.values() {
        if matches!(operation.status, Status::Queued | Status::Cancelled | Status::Finished) {
            continue;
        }
        for host in operation.hosts() {
            let other = owners.insert(host, &operation.id);
            assert!(other.is_none(), "{other:?} and {} are on host {host}", operation.id);
        }
    }
}
