//! What each step asks of its agent, a file for each phase. Fields marked BOUND in `step.proto` stay empty here; `bind` fills them.

mod convert;
mod replicate;
mod route;
mod seed;
mod upgrade;

use pgleap_proto::node::Node;
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{
    Action, DatabaseSlot, HaltStandby, ProtectFromPatroni, Rehearse, SparedSlot, StopLeader,
};

use super::draft::Draft;
use super::traffic::Side;
use crate::fleet::{NewNodeSpec, OldNodeSpec};

pub(super) use convert::*;
pub(super) use replicate::*;
pub(super) use route::*;
pub(super) use seed::*;
pub(super) use upgrade::*;

fn of(kind: Kind) -> Action {
    Action { kind: Some(kind) }
}

pub(super) fn rehearse(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::Rehearse(Rehearse {
        node: Some(draft.cluster.new_node(node)),
        seed: Some(draft.cluster.seed(node)),
        upstream: Some(draft.cluster.rehearse_old(draft.upstream)),
        databases: draft.connectable_names(),
    }))
}

fn protect(node: Node, side: Side, physical: Vec<String>, logical: &[DatabaseSlot]) -> Action {
    let physical = physical.into_iter().map(|slot| SparedSlot { slot, database: String::new() });
    let logical =
        logical.iter().map(|slot| SparedSlot { slot: slot.slot.clone(), database: slot.database.clone() });
    of(Kind::ProtectFromPatroni(ProtectFromPatroni {
        node: Some(node),
        slots: physical.chain(logical).collect(),
        stays: 0,
        side: side.message(),
    }))
}

pub(super) fn retire_old(draft: &Draft<'_>, node: &OldNodeSpec) -> Action {
    stop(draft.cluster.old_node(node), node.name == draft.old_leader.name)
}

pub(super) fn retire_new(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    stop(draft.cluster.served_node(node), node.name == draft.new_leader.name)
}

fn stop(node: Node, leader: bool) -> Action {
    if leader {
        of(Kind::StopLeader(StopLeader { node: Some(node) }))
    } else {
        of(Kind::HaltStandby(HaltStandby { node: Some(node) }))
    }
}
