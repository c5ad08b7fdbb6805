//! Operators: they ask any coordinator, go to the one that leads, and repeat a request that was not answered with the same id. While there
//! are faults they do what operators do; afterwards they bring every operation to its end.

use std::time::Duration;

use rand::Rng;
use tokio::time::{sleep, timeout};

use super::coordinator::{PATIENCE, breathe};
use super::fleet;
use super::invariants::heals;
use super::network::trip;
use super::sim::Shared;
use super::world::cluster_of;
use crate::plan::Phase;
use crate::raft::{ProposeError, View};
use crate::state::{Command, NewOperation, NewRollout, Operation, Rejection, Reply, Side, Status, Wave};

/// The rollout of seeds that have one.
const ROLLOUT: &str = "rollout-000001";

/// One for each cluster.
pub(super) struct Operator {
    sim: Shared,
    cluster: String,
    /// Requests made so far.
    requests: u64,
    /// Operations begun.
    begun: u32,
    operation: Option<String>,
    /// The coordinator that answered last.
    asks: u64,
}

impl Operator {
    pub(super) fn new(sim: &Shared, cluster: &str) -> Operator {
        Operator {
            sim: sim.clone(),
            cluster: cluster.to_owned(),
            requests: 0,
            begun: 0,
            operation: None,
            asks: 1,
        }
    }

    /// All clusters are to be upgraded in waves: the first one alone, then the others. For each cluster its operator.
    pub(super) async fn roll_out(sim: &Shared) -> Vec<Operator> {
        let spec = fleet::spec(&sim.fleet);
        let clusters: Vec<&str> = spec.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        let mut operators: Vec<Operator> = clusters.iter().map(|name| Operator::new(sim, name)).collect();
        if !sim.temper.rollout {
            return operators;
        }
        let (toml, policy) = (sim.fleet.clone(), spec.policy(sim.wall("operator")));
        let mut starter = Operator::new(sim, "rollout");
        let _ = starter.ask(Command::ApplyFleet { toml, generation: 1, keeps: vec![], policy }).await;
        let id = |cluster: &str| format!("{cluster}-000001");
        let new = spec.clusters.iter().map(|cluster| NewOperation {
            id: id(&cluster.name),
            cluster: cluster.name.clone(),
            old_major: cluster.old.version,
            new_major: cluster.new.version,
            hosts: cluster.agents().into_keys().collect(),
        });
        let soak_ms = sim.between(0, 20_000).as_millis() as u64;
        let wave = |of: &[&str]| Wave { operations: of.iter().map(|name| id(name)).collect(), soak_ms };
        let waves = vec![wave(&clusters[..1]), wave(&clusters[1..])];
        let rollout = Some(NewRollout { id: ROLLOUT.to_owned(), waves });
        let queue =
            Command::Queue { operations: new.collect(), rollout, generation: 1, accept_warnings: true };
        if starter.ask(queue).await.is_ok() {
            for operator in &mut operators {
                operator.begun = 1;
                operator.operation = Some(id(&operator.cluster));
            }
            tokio::spawn(async move { starter.oversee().await });
        }
        operators
    }

    /// Holds the rollout and lets it go on, until faults end.
    async fn oversee(mut self) {
        while !self.sim.heals() {
            sleep(self.sim.between(5_000, 30_000)).await;
            let name = ROLLOUT.to_owned();
            let command = if self.sim.chance(0.3) {
                Command::Hold { name, at: None }
            } else {
                Command::Proceed { name }
            };
            let _ = self.ask(command).await;
        }
    }

    /// Until faults end.
    pub(super) async fn work(&mut self) {
        while !self.sim.heals() {
            let pause = self.sim.between(self.sim.temper.thinking / 2, self.sim.temper.thinking * 2);
            match self.look().await {
                None => self.begin().await,
                Some(operation) => match self.think(&operation) {
                    Some(command) => drop(self.ask(command).await),
                    None if operation.status == Status::Cancelled => self.operation = None,
                    None => {}
                },
            }
            sleep(pause).await;
        }
    }

    /// After faults have ended: until there is nothing left to decide. False when that takes too long.
    pub(super) async fn conclude(&mut self) -> bool {
        let stays = self.sim.chance(0.3);
        for _ in 0..400 {
            let Some(operation) = self.look().await else { return true };
            let id = operation.id.clone();
            let command = match operation.status {
                _ if operation.place.hold.is_some() => Some(Command::Proceed { name: id }),
                Status::Queued | Status::Running if self.lost().is_some() => {
                    Some(Command::Cancel { operation: id })
                }
                Status::Queued => operation.place.rollout.clone().map(|name| Command::Proceed { name }),
                _ if self.waits_for_lost(&operation) => self.abandon(&operation),
                Status::Stopped(_) => Some(Command::Retry { operation: id }),
                Status::AtGate if stays => return true,
                Status::AtGate => match operation.traffic.writer {
                    Side::Old if self.sim.chance(0.5) => Some(Command::Cancel { operation: id }),
                    _ => Some(Command::Finish { operation: id, decommission: self.sim.chance(0.5) }),
                },
                _ if heals::at_rest(&operation) => return true,
                _ => None,
            };
            if let Some(command) = command {
                let _ = self.ask(command).await;
            }
            sleep(Duration::from_secs(2)).await;
        }
        false
    }

    /// A host of the cluster that never comes back.
    fn lost(&self) -> Option<String> {
        self.sim.world.lock().unwrap().clusters[&self.cluster].lost.clone()
    }

    /// What it takes back there is never taken back.
    fn waits_for_lost(&self, operation: &Operation) -> bool {
        let (cancelling, finishing) = match &operation.status {
            Status::Stopped(stop) => (stop.cancelling, stop.finishing),
            status => (*status == Status::Cancelling, *status == Status::Finishing),
        };
        let Some(lost) = self.lost().filter(|host| !operation.abandoned.contains(host)) else { return false };
        let mut left = operation.touched().map(|(id, _)| id).chain(operation.to_retire());
        (cancelling || finishing)
            && left.any(|id| operation.plan.step(id).is_some_and(|step| step.host == lost))
    }

    fn abandon(&self, operation: &Operation) -> Option<Command> {
        Some(Command::Abandon { operation: operation.id.clone(), host: self.lost()? })
    }

    /// What the operator of an operation in this status might want.
    fn think(&self, operation: &Operation) -> Option<Command> {
        let id = operation.id.clone();
        let writer = operation.traffic.writer;
        let (lost, phases) = (self.lost(), [Phase::Convert, Phase::Upgrade, Phase::Replicate, Phase::Route]);
        let stuck = self.waits_for_lost(operation);
        let abandon = self.abandon(operation);
        self.sim.draw(|dice| {
            let roll = dice.random_range(0..100);
            let begin =
                Command::BeginSwitchover { operation: id.clone(), to: writer.other(), accepted: vec![] };
            let hold = |at| Some(Command::Hold { name: id.clone(), at });
            match &operation.status {
                _ if operation.place.hold.is_some() && roll < 40 => Some(Command::Proceed { name: id }),
                _ if stuck && roll < 50 => abandon,
                Status::Queued | Status::Running if lost.is_some() && roll < 30 => {
                    Some(Command::Cancel { operation: id })
                }
                Status::Queued if roll < 2 => Some(Command::Cancel { operation: id }),
                Status::Queued | Status::Running | Status::AtGate if roll >= 97 => hold(None),
                Status::Running if roll >= 94 => hold(Some(phases[dice.random_range(0..phases.len())])),
                Status::Running if roll < 4 => Some(Command::Cancel { operation: id }),
                Status::Running if roll < 6 => Some(begin),
                Status::Stopped(_) if roll < 60 => Some(Command::Retry { operation: id }),
                Status::Stopped(_) if roll < 70 => Some(Command::Cancel { operation: id }),
                Status::AtGate if roll < 60 => Some(begin),
                Status::AtGate if roll < 75 => {
                    Some(Command::SetReads { operation: id, percent: dice.random_range(0..=100) })
                }
                Status::AtGate if roll < 80 => Some(Command::Cancel { operation: id }),
                Status::AtGate if roll < 83 => {
                    Some(Command::Finish { operation: id, decommission: dice.random_bool(0.5) })
                }
                Status::Switching if roll < 10 => Some(Command::Cancel { operation: id }),
                _ => None,
            }
        })
    }

    async fn begin(&mut self) {
        // What is finished is not upgraded again.
        let finished = {
            let ledger = self.sim.ledger.lock().unwrap();
            let of_cluster = |id: &str| cluster_of(id) == self.cluster;
            ledger.state.operations.iter().any(|(id, op)| of_cluster(id) && op.status == Status::Finished)
        };
        if finished || self.lost().is_some() {
            return;
        }
        self.begun += 1;
        let id = format!("{}-{:06}", self.cluster, self.begun);
        let hold = self.sim.between(2_000, 15_000).as_millis() as u64;
        let plan = self.sim.world.lock().unwrap().of(&id).plan(&id, hold);
        self.operation = Some(id.clone());
        let generation = self.sim.ledger.lock().unwrap().state.generation();
        let _ = self.ask(Command::StartOperation { id, plan, generation }).await;
    }

    /// The operation as the leader has it; none before there is one. A read after an acknowledged command sees it.
    async fn look(&mut self) -> Option<Operation> {
        let id = self.operation.clone()?;
        loop {
            let acknowledged = self.sim.ledger.lock().unwrap().acknowledged.clone();
            if let Some(view) = self.read().await {
                let kept = super::invariants::commands_kept::check(&acknowledged, &view.state);
                self.sim.check("reads see what was acknowledged", kept);
                return view.state.operations.get(&id).map(|operation| Operation::clone(operation));
            }
            breathe(&self.sim).await;
            self.asks = self.sim.draw(|dice| dice.random_range(1..=self.sim.temper.members));
        }
    }

    async fn read(&self) -> Option<View> {
        let at = &self.sim.coordinators[self.asks as usize - 1];
        if !trip(&self.sim, "operator", &at.name).await {
            return None;
        }
        let read = timeout(PATIENCE, at.raft()?.clone().read()).await.ok()?.ok()?;
        trip(&self.sim, &at.name, "operator").await.then_some(read)
    }

    /// Asks until there is an answer: accepted, or refused.
    pub(super) async fn ask(&mut self, command: Command) -> Result<Reply, Rejection> {
        self.requests += 1;
        let id = format!("{}-request-{}", self.cluster, self.requests);
        let mut tries = 0;
        loop {
            tries += 1;
            match self.ask_once(&id, &command).await {
                Some(Ok(reply)) => {
                    self.sim.count("commands accepted", format_args!("{id}: {reply:?} after {tries}"));
                    if tries > 1 {
                        self.sim.trace.count("commands repeated");
                    }
                    self.sim.ledger.lock().unwrap().acknowledged.insert(id, reply.clone());
                    return Ok(reply);
                }
                Some(Err(ProposeError::Rejected(rejection))) => {
                    self.sim.count("commands refused", format_args!("{id}: {rejection}"));
                    return Err(rejection);
                }
                _ => {}
            }
            breathe(&self.sim).await;
            self.asks = self.sim.draw(|dice| dice.random_range(1..=self.sim.temper.members));
        }
    }

    async fn ask_once(&self, id: &str, command: &Command) -> Option<Result<Reply, ProposeError>> {
        let at = &self.sim.coordinators[self.asks as usize - 1];
        if !trip(&self.sim, "operator", &at.name).await {
            return None;
        }
        let raft = at.raft()?;
        let proposed = raft.propose("operator sim", Some(id.to_owned()), command.clone());
        let answer = timeout(PATIENCE, proposed).await.ok()?;
        // The answer may be lost, though it was done.
        trip(&self.sim, &at.name, "operator").await.then_some(answer)
    }
}
