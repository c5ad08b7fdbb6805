//! The two leaders in a switchover. Calls of one operation exclude each other on each of the two roles, and a call that waited while a
//! newer ticket came is void.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgleap_proto::traffic::{
    AbortRequest, ArmSourceRequest, ArmTargetRequest, FenceReply, FenceRequest, FollowRequest, LeadRequest,
    SealRequest, SettleReply, SettleRequest, SlotAt,
};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep, sleep_until};

use super::AgentModel;
use super::journal::{FenceRecord, Order};
use crate::simulation::sim::Shared;
use crate::simulation::world::{Cluster, SideState};
use crate::state::Side;

/// Between two looks.
const AGAIN: Duration = Duration::from_millis(5);

type Role<T> = Arc<tokio::sync::Mutex<Option<T>>>;

/// What one operation has armed on this host.
#[derive(Default)]
pub(super) struct Armed {
    newest: Mutex<Order>,
    source: Role<Source>,
    target: Role<Target>,
}

/// The leader that takes writes.
pub(super) struct Source {
    ticket: Order,
    side: Side,
    fenced: Option<(Instant, u64)>,
}

/// The leader that follows.
pub(super) struct Target {
    ticket: Order,
    side: Side,
}

/// A call that was let in.
pub(super) struct Call {
    pub(super) agent: AgentModel,
    pub(super) operation: String,
    pub(super) ticket: Order,
}

pub(super) fn side_of(side: i32) -> Side {
    if side == Side::New.message() { Side::New } else { Side::Old }
}

impl Call {
    fn sim(&self) -> Shared {
        self.agent.sim()
    }

    fn armed(&self) -> Arc<Armed> {
        let armed =
            self.agent.process.armed.lock().unwrap().entry(self.operation.clone()).or_default().clone();
        let mut newest = armed.newest.lock().unwrap();
        *newest = (*newest).max(self.ticket);
        drop(newest);
        armed
    }

    async fn hold<T>(&self, role: Role<T>) -> Result<OwnedMutexGuard<Option<T>>, String> {
        let held = role.lock_owned().await;
        let newest = *self.armed().newest.lock().unwrap();
        if newest > self.ticket {
            Err("this call is void: a newer try has begun".to_owned())
        } else {
            Ok(held)
        }
    }

    async fn source(&self) -> Result<OwnedMutexGuard<Option<Source>>, String> {
        self.hold(self.armed().source.clone()).await
    }

    async fn target(&self) -> Result<OwnedMutexGuard<Option<Target>>, String> {
        self.hold(self.armed().target.clone()).await
    }

    fn world<T>(&self, work: impl FnOnce(&Shared, &mut Cluster) -> T) -> T {
        let sim = self.sim();
        work(&sim, sim.world.lock().unwrap().of(&self.operation))
    }

    fn side(&self, side: Side) -> SideState {
        self.world(|_, cluster| cluster.side(side).clone())
    }

    /// Work takes time, and may fail.
    async fn work(&self) -> Result<(), String> {
        let sim = self.sim();
        sleep(sim.between(0, 20)).await;
        if sim.fault(sim.temper.stumbling) { Err("the simulated server stumbled".to_owned()) } else { Ok(()) }
    }

    pub(super) async fn arm_source(self, request: ArmSourceRequest) -> Result<(), String> {
        let mut held = self.source().await?;
        *held = None;
        let side = side_of(request.side);
        self.work().await?;
        if !self.side(side).open {
            return Err(format!("the {side} leader is fenced already"));
        }
        *held = Some(Source { ticket: self.ticket, side, fenced: None });
        Ok(())
    }

    pub(super) async fn arm_target(self, request: ArmTargetRequest) -> Result<(), String> {
        let mut held = self.target().await?;
        *held = None;
        let side = side_of(request.side);
        self.work().await?;
        if !self.side(side).following {
            return Err(format!("the {side} leader does not follow"));
        }
        *held = Some(Target { ticket: self.ticket, side });
        Ok(())
    }

    pub(super) async fn fence(self, request: FenceRequest) -> Result<FenceReply, String> {
        let mut held = self.source().await?;
        let Some(source) = held.as_mut().filter(|source| source.ticket == self.ticket) else {
            return Err("the leader that takes writes is not armed under this ticket".to_owned());
        };
        if let Some((_, rows)) = source.fenced {
            return Ok(FenceReply { lsn: rows, ..FenceReply::default() });
        }
        let (side, deadline) = (source.side, Instant::now() + Duration::from_millis(request.hold_ms));
        let record = FenceRecord { ticket: self.ticket, sealed: false, side };
        self.agent.journal(|journal| journal.fences.insert(self.operation.clone(), record));
        self.agent.memory(|memory| memory.insert(self.operation.clone(), self.ticket));
        // Of all moments the one that matters.
        if self.sim().fault(self.sim().temper.imaging) {
            self.sim().hosts[&self.agent.host].take_image(&self.sim());
        }
        let fenced = self.work().await;
        self.world(|sim, cluster| cluster.open(sim, side, fenced.is_err()));
        if let Err(why) = fenced {
            self.agent.forget_fence(&self.operation);
            *held = None;
            return Err(why);
        }
        let rows = self.side(side).has;
        source.fenced = Some((deadline, rows));
        let agent = self.agent.clone();
        drop(self.agent.spawn(agent.lift_later(self.operation.clone(), self.ticket, deadline)));
        Ok(FenceReply { lsn: rows, mark: self.ticket.1 as i64, ..FenceReply::default() })
    }

    pub(super) async fn settle(self, request: SettleRequest) -> Result<SettleReply, String> {
        let held = self.target().await?;
        let Some(target) = held.as_ref().filter(|target| target.ticket == self.ticket) else {
            return Err("the leader that follows is not armed under this ticket".to_owned());
        };
        let until = Instant::now() + Duration::from_millis(request.timeout_ms);
        while self.side(target.side).has < request.lsn {
            if Instant::now() > until {
                return Err("the last write did not arrive".to_owned());
            }
            sleep(AGAIN).await;
            self.world(|_, cluster| cluster.replicate());
        }
        self.work().await?;
        self.world(|sim, cluster| cluster.follow(sim, target.side, false));
        let at = SlotAt { database: "app".to_owned(), slot: "slot".to_owned(), lsn: request.lsn };
        Ok(SettleReply { positions: vec![at], ..SettleReply::default() })
    }

    pub(super) async fn seal(self, request: SealRequest) -> Result<(), String> {
        let held = self.source().await?;
        let fenced = held.as_ref().filter(|source| source.ticket == self.ticket);
        let Some((source, (deadline, rows))) = fenced.and_then(|source| Some((source, source.fenced?)))
        else {
            return Err("nothing was fenced in this try".to_owned());
        };
        self.work().await?;
        if rows != request.lsn || self.side(source.side).open {
            return Err("the fence is not what was sealed".to_owned());
        }
        if Instant::now() >= deadline {
            return Err("the time of the fence is over".to_owned());
        }
        self.agent.memory(|memory| memory.remove(&self.operation));
        self.agent.journal(|journal| {
            let record =
                journal.fences.get_mut(&self.operation).filter(|record| record.ticket == self.ticket);
            record.map(|record| record.sealed = true).ok_or_else(|| "the fence was lifted".to_owned())
        })
    }

    pub(super) async fn lead(self, request: LeadRequest) -> Result<(), String> {
        let mut held = self.target().await?;
        *held = None;
        let side = side_of(request.side);
        self.work().await?;
        self.world(|sim, cluster| {
            cluster.follow(sim, side, false);
            cluster.open(sim, side, true);
        });
        Ok(())
    }

    pub(super) async fn follow(self, request: FollowRequest) -> Result<(), String> {
        let mut held = self.source().await?;
        *held = None;
        let side = side_of(request.side);
        self.work().await?;
        let state = self.side(side);
        if state.open {
            return Err(format!("the {side} leader should follow, but lets clients in"));
        }
        if !state.subscribed {
            return Err(format!("the {side} leader has no subscription"));
        }
        self.world(|sim, cluster| cluster.follow(sim, side, true));
        self.agent.forget_fence(&self.operation);
        Ok(())
    }

    pub(super) async fn abort(self, request: AbortRequest) -> Result<(), String> {
        let (mut source, mut target) = (self.source().await?, self.target().await?);
        (*source, *target) = (None, None);
        let (side, writer) = (side_of(request.side), side_of(request.writer));
        self.work().await?;
        if side == writer {
            self.world(|sim, cluster| {
                cluster.follow(sim, side, false);
                cluster.open(sim, side, true);
            });
        } else {
            self.world(|sim, cluster| cluster.open(sim, side, false));
            if self.side(side).subscribed {
                self.world(|sim, cluster| cluster.follow(sim, side, true));
            }
        }
        self.agent.forget_fence(&self.operation);
        Ok(())
    }
}

impl AgentModel {
    /// Lifts the fence of this ticket when its time is over, unless it was sealed or is gone by then.
    async fn lift_later(self, operation: String, ticket: Order, deadline: Instant) {
        sleep_until(deadline).await;
        let sim = self.sim();
        sim.awake(&self.host).await;
        let call = Call { agent: self.clone(), operation: operation.clone(), ticket };
        // Excludes the seal: it is either written by now, or will find the fence gone.
        let mut held = call.armed().source.clone().lock_owned().await;
        let record = self.journal(|journal| journal.fences.get(&operation).cloned());
        let Some(record) = record.filter(|record| record.ticket == ticket && !record.sealed) else { return };
        sim.count("fences lifted by agents", format_args!("{}: lifts its fence", self.host));
        call.world(|sim, cluster| cluster.open(sim, record.side, true));
        self.forget_fence(&operation);
        if held.as_ref().is_some_and(|source| source.ticket == ticket) {
            *held = None;
        }
    }

    /// What the register says is in force, and needs no other memory.
    fn forget_fence(&self, operation: &str) {
        self.memory(|memory| memory.remove(operation));
        self.journal(|journal| journal.fences.remove(operation));
    }

    /// Unsealed fences of an earlier life are lifted at once, unless only the disk knows them.
    pub(super) fn take_over_fences(&self) {
        let fences: Vec<(String, FenceRecord)> = self.journal(|journal| {
            journal.fences.iter().map(|(of, record)| (of.clone(), record.clone())).collect()
        });
        let own = |operation: &String, record: &FenceRecord| {
            !record.sealed && self.memory(|memory| memory.get(operation) == Some(&record.ticket))
        };
        for (operation, record) in fences.into_iter().filter(|(operation, record)| own(operation, record)) {
            drop(self.spawn(self.clone().lift_later(operation, record.ticket, Instant::now())));
        }
    }
}
