//! Operators: they ask any coordinator, go to the one that leads, and repeat a request that was not answered with the same id. While there
//! are faults they do what operators do; afterwards they bring every operation to its end.

use std::time::Duration;

use rand::Rng;
use tokio::time::{sleep, timeout};

use super::coordinator::{PATIENCE, breathe};
use super::invariants::heals;
use super::network::trip;
use super::sim::Shared;
use super::world::cluster_of;
use crate::raft::{ProposeError, View};
use crate::state::{Command, Operation, Rejection, Reply, Side, Status};

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

    /// What the operator of an operation in this status might want.
    fn think(&self, operation: &Operation) -> Option<Command> {
        let id = operation.id.clone();
        let writer = operation.traffic.writer;
        self.sim.draw(|dice| {
            let roll = dice.random_range(0..100);
            let begin =
                Command::BeginSwitchover { operation: id.clone(), to: writer.other(), accepted: vec![] };
            match &operation.status {
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
        if finished {
            return;
        }
        self.begun += 1;
        let id = format!("{}-{:06}", self.cluster, self.begun);
        let hold = self.sim.between(2_000, 15_000).as_millis() as u64;
        let plan = self.sim.world.lock().unwrap().of(&id).plan(&id, hold);
        self.operation = Some(id.clone());
        let _ = self.ask(Command::StartOperation { id, plan, generation: 0 }).await;
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
