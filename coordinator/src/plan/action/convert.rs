//! What is asked while the seed becomes a server of its own.

use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{
    Action, CleanPromoted, CreateMarker, CreateSlots, DropPhysicalSlot, HaltStandby, Publish, RecoverTo,
};

use super::super::draft::Draft;
use super::super::survival::FAILOVER_SLOTS;
use super::of;
use crate::fleet::NewNodeSpec;

pub(in crate::plan) fn publish(draft: &Draft<'_>, _: &NewNodeSpec) -> Action {
    of(Kind::Publish(Publish {
        node: Some(draft.old_leader_node()),
        publication: draft.tag.to_owned(),
        databases: draft.replicated_names(),
    }))
}

pub(in crate::plan) fn create_marker(draft: &Draft<'_>, _: &NewNodeSpec) -> Action {
    of(Kind::CreateMarker(CreateMarker {
        node: Some(draft.old_leader_node()),
        tag: draft.tag.to_owned(),
        databases: draft.replicated_names(),
        inherited: false,
    }))
}

pub(in crate::plan) fn halt_standby(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::HaltStandby(HaltStandby { node: Some(draft.cluster.seed(node)) }))
}

pub(in crate::plan) fn create_slots(draft: &Draft<'_>, _: &NewNodeSpec) -> Action {
    of(Kind::CreateSlots(CreateSlots {
        node: Some(draft.old_leader_node()),
        slots: draft.slots.clone(),
        timeout_ms: draft.cluster.options.slot_timeout_ms,
        // Before 17 there is no such thing.
        failover: draft.cluster.old.version >= FAILOVER_SLOTS,
    }))
}

pub(in crate::plan) fn recover_to(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::RecoverTo(RecoverTo {
        node: Some(draft.cluster.seed(node)),
        upstream: Some(draft.upstream_of(node)),
        slot: draft.physical_slot(node),
        target_lsn: 0,
    }))
}

pub(in crate::plan) fn clean_promoted(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::CleanPromoted(CleanPromoted {
        node: Some(draft.cluster.seed(node)),
        publication: draft.tag.to_owned(),
    }))
}

pub(in crate::plan) fn drop_seed_slot(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::DropPhysicalSlot(DropPhysicalSlot {
        node: Some(draft.upstream_node()),
        slot: draft.physical_slot(node),
    }))
}
