//! Poolers: armed, paused, repointed and resumed; and the promise that a pause ends by itself, toward the only leader whose agent says
//! that it is open.

use std::sync::Arc;
use std::time::Duration;

use pgleap_proto::traffic::{ArmPoolerRequest, Leader, PauseReply, PauseRequest, ResumeRequest};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::AgentModel;
use super::journal::{Order, Owed};
use super::sides::{Call, side_of};
use crate::simulation::invariants::pooler_follows_register;
use crate::simulation::network::trip;
use crate::state::Side;

/// How often the leaders are asked.
const AGAIN: Duration = Duration::from_millis(100);
/// How long one of them may take to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// One pooler of one operation, locked for as long as something is done to it.
#[derive(Default)]
pub(super) struct Slot {
    ready: Option<(Order, ArmPoolerRequest)>,
    owed: Option<u64>,
}

type Key = (String, String);

impl Call {
    pub(super) async fn arm_pooler(self, request: ArmPoolerRequest) -> Result<(), String> {
        let key =
            (self.operation.clone(), request.pooler.as_ref().map(|p| p.name.clone()).unwrap_or_default());
        let mut slot = self.agent.slot(&key).await;
        if slot.owed.is_some() && self.agent.journal(|journal| journal.owed.contains_key(&key)) {
            return Err("it is still paused by an earlier try; it is resumed first".to_owned());
        }
        slot.ready = None;
        self.stumble().await?;
        slot.ready = Some((self.ticket, request));
        Ok(())
    }

    pub(super) async fn pause(self, request: PauseRequest) -> Result<PauseReply, String> {
        let key = (self.operation.clone(), request.pooler.clone());
        let mut slot = self.agent.slot(&key).await;
        let armed = slot.ready.as_ref().filter(|(ticket, _)| *ticket == self.ticket);
        let Some((_, armed)) = armed.cloned() else {
            return Err("the pooler is not armed for this try".to_owned());
        };
        let sim = self.agent.sim();
        let hold = Duration::from_millis(request.hold_ms);
        let owed = Owed {
            id: sim.draw(rand::RngCore::next_u64),
            armed,
            deadline: sim.wall(&self.agent.host).as_millisecond() + request.hold_ms as i64,
            hold_ms: request.hold_ms,
        };
        self.agent.journal(|journal| journal.owed.insert(key.clone(), owed.clone()));
        slot.owed = Some(owed.id);
        drop(self.agent.spawn(self.agent.clone().keep(key.clone(), owed, Instant::now() + hold)));
        self.stumble().await?;
        if sim.fault(sim.temper.stumbling) {
            sleep(Duration::from_millis(request.acquire_ms)).await;
            slot.owed = None;
            self.agent.journal(|journal| journal.owed.remove(&key));
            return Ok(PauseReply { reason: "in use".to_owned(), ..PauseReply::default() });
        }
        sim.count("pauses", format_args!("{} is paused", key.1));
        let mut world = sim.world.lock().unwrap();
        if let Some(pooler) = world.of(&key.0).poolers.get_mut(&key.1) {
            pooler.paused = true;
        }
        Ok(PauseReply { paused: true, ..PauseReply::default() })
    }

    pub(super) async fn resume(self, request: ResumeRequest) -> Result<(), String> {
        let key = (self.operation.clone(), request.pooler.clone());
        let mut slot = self.agent.slot(&key).await;
        self.stumble().await?;
        self.agent.let_go(&key, &mut slot, side_of(request.to));
        Ok(())
    }

    async fn stumble(&self) -> Result<(), String> {
        let sim = self.agent.sim();
        sleep(sim.between(0, 10)).await;
        if sim.fault(sim.temper.stumbling) { Err("the simulated pooler stumbled".to_owned()) } else { Ok(()) }
    }
}

impl AgentModel {
    async fn slot(&self, key: &Key) -> OwnedMutexGuard<Slot> {
        let slot: Arc<tokio::sync::Mutex<Slot>> =
            self.process.slots.lock().unwrap().entry(key.clone()).or_default().clone();
        slot.lock_owned().await
    }

    /// Points it to a side and resumes it.
    fn let_go(&self, key: &Key, slot: &mut Slot, to: Side) {
        let sim = self.sim();
        let register = sim.ledger.lock().unwrap().register(&key.0);
        sim.check("poolers follow the register", pooler_follows_register::check(&key.1, to, register));
        sim.note(format_args!("{} goes on with the {to} side", key.1));
        if let Some(pooler) = sim.world.lock().unwrap().of(&key.0).poolers.get_mut(&key.1) {
            (pooler.to, pooler.paused) = (to, false);
        }
        (slot.ready, slot.owed) = (None, None);
        self.journal(|journal| journal.owed.remove(key));
    }

    /// Waits for the deadline, then resumes until somebody has.
    async fn keep(self, key: Key, owed: Owed, deadline: Instant) {
        sleep_until(deadline).await;
        let sim = self.sim();
        loop {
            sim.awake(&self.host).await;
            let mut slot = self.slot(&key).await;
            if slot.owed != Some(owed.id) {
                return;
            }
            drop(slot);
            let (source, target) =
                tokio::join!(self.is_open(&owed.armed.source), self.is_open(&owed.armed.target));
            let open = match (source == Some(true), target == Some(true)) {
                (true, false) => &owed.armed.source,
                (false, true) => &owed.armed.target,
                _ => &None,
            };
            slot = self.slot(&key).await;
            if let (Some(leader), true) = (open, slot.owed == Some(owed.id)) {
                sim.count(
                    "pauses ended by agents",
                    format_args!("{}: the pause of {} is over", self.host, key.1),
                );
                return self.let_go(&key, &mut slot, side_of_leader(leader));
            }
            drop(slot);
            sleep(AGAIN).await;
        }
    }

    /// What the agent of a leader says, if it does.
    async fn is_open(&self, leader: &Option<Leader>) -> Option<bool> {
        let sim = self.sim();
        let leader = leader.as_ref()?;
        let host = leader.node.as_ref()?.host.clone();
        let ask = async {
            if !trip(&sim, &self.host, &host).await || sim.hosts[&host].life().is_none() {
                return None;
            }
            let side = side_of_leader(leader);
            let open = {
                let mut world = sim.world.lock().unwrap();
                world.clusters.values_mut().find(|cluster| cluster.has_host(&host)).map(|c| c.side(side).open)
            };
            if trip(&sim, &host, &self.host).await { open } else { None }
        };
        timeout(ANSWER, ask).await.ok().flatten()
    }

    /// Pauses that an earlier life owes an end. The host's clock may have jumped, but never makes one longer than it was to be.
    pub(super) fn take_over_pauses(&self) {
        let owed: Vec<(Key, Owed)> = self
            .journal(|journal| journal.owed.iter().map(|(key, owed)| (key.clone(), owed.clone())).collect());
        let now = self.sim().wall(&self.host).as_millisecond();
        for (key, owed) in owed {
            let left = u64::try_from(owed.deadline - now).unwrap_or(0).min(owed.hold_ms);
            let slot = Slot { ready: None, owed: Some(owed.id) };
            self.process.slots.lock().unwrap().insert(key.clone(), Arc::new(tokio::sync::Mutex::new(slot)));
            let deadline = Instant::now() + Duration::from_millis(left);
            drop(self.spawn(self.clone().keep(key, owed, deadline)));
        }
    }
}

/// Hosts are named after their side.
fn side_of_leader(leader: &Leader) -> Side {
    let name = leader.node.as_ref().map(|node| node.name.as_str()).unwrap_or_default();
    if name.contains("-new-") { Side::New } else { Side::Old }
}
