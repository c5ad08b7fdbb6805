//! The steps an agent can do, one file each, behind one trait.

pub mod analyze;
pub mod catch_up;
pub mod check_upgrade;
pub mod clean_promoted;
pub mod clone_node;
pub mod create_marker;
pub mod create_physical_slot;
pub mod create_slots;
pub mod drop_physical_slot;
pub mod enable_subscriptions;
pub mod fence_node;
pub mod halt_standby;
pub mod hand_over;
pub mod hand_over_replica;
pub mod init_new;
pub mod keep_traffic;
pub mod offer_files;
pub mod protect_from_patroni;
pub mod publish;
pub mod recover_to;
pub mod refresh_collations;
pub mod rehearse;
pub mod relink;
pub mod seed_by_patroni;
pub mod stage_balancer;
pub mod stage_pooler;
pub mod start_leader;
pub mod start_replica;
pub mod start_standby;
pub mod stop_leader;
pub mod stop_replica;
pub mod subscribe;
pub mod take_from_patroni;
pub mod update_extensions;
pub mod upgrade;
pub mod validate;
pub mod verify_relink;

use std::path::Path;

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{Action, Output};

use crate::context::Context;
use crate::error::{Result, StepError};
use crate::pg::ctl::{self, ServerState};
use crate::pg::marker;

/// What a look at the world says before acting.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// The work is done already; the output is read from the world, not remembered.
    Done(Output),
    /// The act can go ahead, from scratch or from wherever an earlier attempt was cut off.
    Ready,
    /// Not now; nothing was changed. Asking again later may help.
    Blocked(String),
}

/// The parts of an action that a coordinator must send.
///
/// # Errors
/// Names what is missing: a coordinator older or newer than this agent.
pub fn given<'m, T>(field: &'m Option<T>, name: &str) -> Result<&'m T> {
    field.as_ref().ok_or_else(|| {
        StepError::new(format!(
            "the request lacks \"{name}\": coordinator and agent are of different versions; install the same on both"
        ))
    })
}

/// One kind of step. First run, retry and run after a crash are the same path: `probe`, then (when ready)
/// `act`, then `verify`. Nothing here trusts a memory of what was done: it reads control data, catalogs, inodes.
#[async_trait]
pub trait Step: Send + Sync {
    /// Looks, and changes nothing.
    async fn probe(&self, cx: &Context) -> Result<Probe>;

    /// Does the work. May be cut off at any point by a crash, and is then probed and called again.
    async fn act(&self, cx: &Context) -> Result<()>;

    /// Proves that the work is done and says what came of it.
    async fn verify(&self, cx: &Context) -> Result<Output>;

    /// Takes the work back, whether it was done wholly, partly or not at all. Idempotent.
    async fn undo(&self, cx: &Context) -> Result<()>;
}

/// The step that does this action; none when the action is empty (a coordinator newer than this agent).
pub fn of(action: Action) -> Option<Box<dyn Step>> {
    Some(match action.kind? {
        Kind::Analyze(params) => Box::new(analyze::AnalyzeStep(params)),
        Kind::CatchUp(params) => Box::new(catch_up::CatchUpStep(params)),
        Kind::CheckUpgrade(params) => Box::new(check_upgrade::CheckUpgradeStep(params)),
        Kind::CleanPromoted(params) => Box::new(clean_promoted::CleanPromotedStep(params)),
        Kind::CloneNode(params) => Box::new(clone_node::CloneNodeStep(params)),
        Kind::CreateMarker(params) => Box::new(create_marker::CreateMarkerStep(params)),
        Kind::CreatePhysicalSlot(params) => Box::new(create_physical_slot::CreatePhysicalSlotStep(params)),
        Kind::CreateSlots(params) => Box::new(create_slots::CreateSlotsStep(params)),
        Kind::DropPhysicalSlot(params) => Box::new(drop_physical_slot::DropPhysicalSlotStep(params)),
        Kind::EnableSubscriptions(params) => Box::new(enable_subscriptions::EnableSubscriptionsStep(params)),
        Kind::FenceNode(params) => Box::new(fence_node::FenceNodeStep(params)),
        Kind::HaltStandby(params) => Box::new(halt_standby::HaltStandbyStep(params)),
        Kind::HandOver(params) => Box::new(hand_over::HandOverStep(params)),
        Kind::HandOverReplica(params) => Box::new(hand_over_replica::HandOverReplicaStep(params)),
        Kind::InitNew(params) => Box::new(init_new::InitNewStep(params)),
        Kind::KeepTraffic(params) => Box::new(keep_traffic::KeepTrafficStep(params)),
        Kind::OfferFiles(params) => Box::new(offer_files::OfferFilesStep(params)),
        Kind::ProtectFromPatroni(params) => Box::new(protect_from_patroni::ProtectFromPatroniStep(params)),
        Kind::Publish(params) => Box::new(publish::PublishStep(params)),
        Kind::RecoverTo(params) => Box::new(recover_to::RecoverToStep(params)),
        Kind::RefreshCollations(params) => Box::new(refresh_collations::RefreshCollationsStep(params)),
        Kind::Rehearse(params) => Box::new(rehearse::RehearseStep::new(params)),
        Kind::Relink(params) => Box::new(relink::RelinkStep(params)),
        Kind::SeedByPatroni(params) => Box::new(seed_by_patroni::SeedByPatroniStep(params)),
        Kind::StageBalancer(params) => Box::new(stage_balancer::StageBalancerStep(params)),
        Kind::StagePooler(params) => Box::new(stage_pooler::StagePoolerStep(params)),
        Kind::StartLeader(params) => Box::new(start_leader::StartLeaderStep(params)),
        Kind::StartReplica(params) => Box::new(start_replica::StartReplicaStep(params)),
        Kind::StartStandby(params) => Box::new(start_standby::StartStandbyStep(params)),
        Kind::StopLeader(params) => Box::new(stop_leader::StopLeaderStep(params)),
        Kind::StopReplica(params) => Box::new(stop_replica::StopReplicaStep(params)),
        Kind::Subscribe(params) => Box::new(subscribe::SubscribeStep(params)),
        Kind::TakeFromPatroni(params) => Box::new(take_from_patroni::TakeFromPatroniStep(params)),
        Kind::UpdateExtensions(params) => Box::new(update_extensions::UpdateExtensionsStep(params)),
        Kind::Upgrade(params) => Box::new(upgrade::UpgradeStep(params)),
        Kind::Validate(params) => Box::new(validate::ValidateStep::new(params)),
        Kind::VerifyRelink(params) => Box::new(verify_relink::VerifyRelinkStep(params)),
    })
}

/// Why a standby is refused where only the leader of its side can serve.
pub(crate) fn not_leading(node: &Node, what: &str, undo: bool) -> StepError {
    let cure = if undo {
        "let exactly one node of its side lead, then retry"
    } else {
        "make it the leader again and retry, or cancel and start again, which finds the leader by itself"
    };
    StepError::new(format!(
        "node {} is a standby, and {what} on the leader of its side only: {cure}",
        node.name
    ))
}

/// Whether a node has nothing inside it to take back any more: its server is stopped, and what was made in it goes with its
/// directory, which is this operation's, is gone already, or was taken out of service by `pg_upgrade --link`.
///
/// # Errors
/// When that cannot be told, or a server is stopped that stays: what was made in it would be there when it runs again.
pub(crate) async fn is_gone(cx: &Context, node: &Node) -> Result<bool> {
    if ctl::manager(cx, node).state().await? != ServerState::Stopped {
        return Ok(false);
    }
    let data_dir = Path::new(&node.data_dir);
    // At the end of an operation the directory of the side that stays is not removed.
    let removed = !cx.finishing && marker::made_by_operation(cx, data_dir)?;
    if removed || !data_dir.join("global/pg_control").exists() {
        cx.report.log("pgleap", format!("node {} does not run: nothing to take back inside it", node.name));
        return Ok(true);
    }
    Err(StepError::new(format!(
        "node {} ({}) is stopped, so what pgleap made in it cannot be taken back and would be there when it runs again; start \
         it, as a standby if another one leads by now, then retry; if host {} never comes back: pgleap abandon {} {}",
        node.name, node.data_dir, node.host, cx.operation, node.host
    )))
}
