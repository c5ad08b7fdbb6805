//! The leaders of both sides in a switchover: fence, last LSN, sequences, and who follows whom.
//!
//! | file | call |
//! | --- | --- |
//! | `arm.rs` | ArmSource, ArmTarget: everything that can be done before clients wait |
//! | `fence.rs`, `record.rs`, `memory.rs` | Fence, and its end when nobody seals it |
//! | `settle.rs` | Settle, on the target |
//! | `seal.rs` | Seal, on the source: the last call before the decision |
//! | `lead.rs`, `follow.rs` | Lead and Follow, after the decision |
//! | `abort.rs` | Abort: what the register says, from whatever state |
//! | `blockers.rs`, `leadership.rs` | what others ask |
//!
//! What is armed lives in memory, under the ticket that armed it. Lead, Follow and Abort need none of it. Calls of one
//! operation exclude each other on each of the two roles, and run to their end also when nobody waits for their answer
//! any more: half a fence is nobody's.

mod abort;
mod arm;
mod blockers;
mod fence;
mod follow;
mod following;
mod lead;
mod leadership;
mod locks;
mod memory;
mod record;
mod running;
mod seal;
mod sequences;
mod sessions;
mod settle;
mod slots;
mod tables;
mod view;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pgleap_proto::node::Node;
use pgleap_proto::tls::TlsIdentity;
use pgleap_proto::traffic::{
    AbortReply, AbortRequest, ArmSourceReply, ArmSourceRequest, ArmTargetReply, ArmTargetRequest,
    BlockersReply, BlockersRequest, FenceReply, FenceRequest, FollowReply, FollowRequest, LeadReply,
    LeadRequest, SealReply, SealRequest, SettleReply, SettleRequest,
};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

pub(crate) use leadership::leadership;
pub(crate) use locks::hold;
pub use memory::Memory;
pub use slots::advance_idle;

use arm::{Source, Target};
use record::Records;

use crate::config::AgentConfig;
use crate::error::{Result, StepError};
use crate::tickets::Admitted;

/// The right to write to a node that takes writes, for the agent itself: while it is held, nobody fences the node.
#[derive(Debug)]
pub struct MayWrite {
    _held: OwnedMutexGuard<()>,
}

/// Whether the agent itself may write to a leader now (a heartbeat): not while it is fenced, since nothing may be written behind
/// the mark of a switchover. None when it is fenced.
///
/// # Errors
/// When that cannot be told: then it may not.
pub async fn may_write(node: &Node, session: &crate::pg::sql::Session) -> Result<Option<MayWrite>> {
    let held = locks::hold(node).await;
    let state = crate::fence::state_by(session).await?;
    Ok(state.operation().is_none().then_some(MayWrite { _held: held }))
}

/// What one operation has armed on this host. Source and target are on different hosts, but for tests and small fleets.
#[derive(Default)]
struct Operation {
    /// The newest ticket that came: calls that waited meanwhile under an older one are void.
    newest: Mutex<Option<Admitted>>,
    source: Arc<tokio::sync::Mutex<Option<Source>>>,
    target: Arc<tokio::sync::Mutex<Option<Target>>>,
}

/// What every call may use.
struct Call {
    ticket: Admitted,
    config: Arc<AgentConfig>,
    tls: TlsIdentity,
    records: Records,
    operation: Arc<Operation>,
}

impl Call {
    /// Whether no newer ticket came while this call waited.
    fn check_newest(&self) -> Result<()> {
        let newest = self.operation.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.as_ref().is_none_or(|newest| *newest <= self.ticket) {
            return Ok(());
        }
        Err(StepError::new(
            "this call is void: a newer try of the switchover has begun, or this one is being taken back",
        ))
    }

    fn not_armed<T>(&self, what: &str, under: Option<&Admitted>) -> Result<T> {
        let why = match under {
            Some(other) => format!("it was armed under term {} attempt {}", other.term, other.attempt),
            None => {
                "nothing is armed: the agent was restarted, or its fence was not sealed in time and lifted"
                    .to_owned()
            }
        };
        Err(StepError::new(format!(
            "the {what} is not armed under this ticket (term {} attempt {}): {why}; take the try back and begin a new one",
            self.ticket.term, self.ticket.attempt
        )))
    }

    async fn source(&self) -> Result<OwnedMutexGuard<Option<Source>>> {
        let source = self.operation.source.clone().lock_owned().await;
        self.check_newest()?;
        Ok(source)
    }

    async fn target(&self) -> Result<OwnedMutexGuard<Option<Target>>> {
        let target = self.operation.target.clone().lock_owned().await;
        self.check_newest()?;
        Ok(target)
    }
}

/// What this agent holds of leaders on its host while a switchover is under way.
pub struct Sides {
    config: Arc<AgentConfig>,
    tls: TlsIdentity,
    records: Records,
    operations: Mutex<HashMap<String, Arc<Operation>>>,
}

impl std::fmt::Debug for Sides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sides").field("records", &self.records).finish_non_exhaustive()
    }
}

impl Sides {
    /// Nothing armed. Fences that an earlier run of the agent set on this very machine, and nobody sealed, are lifted at once, in the
    /// background of the runtime that this is called in. All others are left to the coordinator: sealed ones, and those that only the disk
    /// tells of, which may be an image from before the seal.
    pub fn new(config: Arc<AgentConfig>, tls: TlsIdentity, memory: Memory) -> Arc<Sides> {
        let records = Records::below(&config.state_dir, memory);
        let sides = Arc::new(Sides { config, tls, records, operations: Mutex::default() });
        for record in sides.records.all() {
            if !sides.records.may_lift(&record) {
                tracing::warn!(
                    operation = record.operation,
                    sealed = record.sealed,
                    "a fence was found that this agent may not lift by itself: it is sealed, or the machine was started or restored since; \
                     the coordinator opens the side that the register names"
                );
                continue;
            }
            tracing::warn!(operation = record.operation, "an unsealed fence was found and is lifted");
            let ticket =
                Admitted { operation: record.operation.clone(), term: record.term, attempt: record.attempt };
            let operation = sides.operation(&ticket);
            fence::lift_later(operation, sides.records.clone(), ticket, Instant::now());
        }
        sides
    }

    fn operation(&self, ticket: &Admitted) -> Arc<Operation> {
        let mut operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        let operation = operations.entry(ticket.operation.clone()).or_default().clone();
        drop(operations);
        let mut newest = operation.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.as_ref().is_none_or(|newest| newest < ticket) {
            *newest = Some(ticket.clone());
        }
        drop(newest);
        operation
    }

    /// Runs a call to its end, whether its caller waits or not.
    async fn run<T, F>(&self, ticket: Admitted, work: impl FnOnce(Call) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let call = Call {
            operation: self.operation(&ticket),
            ticket,
            config: self.config.clone(),
            tls: self.tls.clone(),
            records: self.records.clone(),
        };
        match tokio::spawn(work(call)).await {
            Ok(result) => result,
            Err(error) => Err(StepError::new(format!("the call ended abnormally: {error}"))),
        }
    }

    /// See the service's comment in traffic.proto; so for all of these.
    ///
    /// # Errors
    /// In words for the operator, with evidence.
    pub async fn arm_source(&self, ticket: Admitted, request: ArmSourceRequest) -> Result<ArmSourceReply> {
        self.run(ticket, |call| async move {
            let mut held = call.source().await?;
            *held = None;
            let (source, reply) = arm::source(&call, request).await?;
            *held = Some(source);
            Ok(reply)
        })
        .await
    }

    /// # Errors
    /// As [`Sides::arm_source`].
    pub async fn arm_target(&self, ticket: Admitted, request: ArmTargetRequest) -> Result<ArmTargetReply> {
        self.run(ticket, |call| async move {
            let mut held = call.target().await?;
            *held = None;
            let (target, reply) = arm::target(&call, request).await?;
            *held = Some(target);
            Ok(reply)
        })
        .await
    }

    /// # Errors
    /// As [`Sides::arm_source`]. What it did is taken back then.
    pub async fn fence(&self, ticket: Admitted, request: FenceRequest) -> Result<FenceReply> {
        self.run(ticket, |call| async move {
            let mut held = call.source().await?;
            match held.as_mut() {
                Some(source) if source.ticket == call.ticket => {
                    let fenced = fence::run(&call, source, request).await;
                    if fenced.is_err() {
                        *held = None;
                    }
                    fenced
                }
                other => call.not_armed("leader that takes writes", other.map(|source| &source.ticket)),
            }
        })
        .await
    }

    /// # Errors
    /// As [`Sides::arm_source`].
    pub async fn settle(&self, ticket: Admitted, request: SettleRequest) -> Result<SettleReply> {
        self.run(ticket, |call| async move {
            match call.target().await?.as_ref() {
                Some(target) if target.ticket == call.ticket => settle::run(target, request).await,
                other => call.not_armed("leader that follows", other.map(|target| &target.ticket)),
            }
        })
        .await
    }

    /// # Errors
    /// As [`Sides::arm_source`]. The fence is not sealed then.
    pub async fn seal(&self, ticket: Admitted, request: SealRequest) -> Result<SealReply> {
        self.run(ticket, |call| async move {
            match call.source().await?.as_ref() {
                Some(source) if source.ticket == call.ticket => seal::run(&call, source, request).await,
                other => call.not_armed("leader that takes writes", other.map(|source| &source.ticket)),
            }
        })
        .await
    }

    /// # Errors
    /// As [`Sides::arm_source`]. To be repeated.
    pub async fn lead(&self, ticket: Admitted, request: LeadRequest) -> Result<LeadReply> {
        self.run(ticket, |call| async move {
            let armed = call.target().await?.take();
            lead::run(&call, armed, request).await
        })
        .await
    }

    /// # Errors
    /// As [`Sides::arm_source`]. To be repeated.
    pub async fn follow(&self, ticket: Admitted, request: FollowRequest) -> Result<FollowReply> {
        self.run(ticket, |call| async move {
            let mut held = call.source().await?;
            *held = None;
            follow::run(&call, request).await
        })
        .await
    }

    /// # Errors
    /// As [`Sides::arm_source`]. To be repeated.
    pub async fn abort(&self, ticket: Admitted, request: AbortRequest) -> Result<AbortReply> {
        self.run(ticket, |call| async move {
            let (mut source, mut target) = (call.source().await?, call.target().await?);
            (*source, *target) = (None, None);
            abort::run(&call, request).await
        })
        .await
    }

    /// # Errors
    /// When the node cannot be asked.
    pub async fn blockers(&self, _ticket: Admitted, request: BlockersRequest) -> Result<BlockersReply> {
        blockers::run(request).await
    }
}
