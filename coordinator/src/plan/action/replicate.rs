//! What is asked for the new cluster to follow, and for the proof of it.

use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{Action, CatchUp, EnableSubscriptions, Subscribe, Validate};

use super::super::draft::Draft;
use super::of;
use crate::fleet::NewNodeSpec;

pub(in crate::plan) fn subscribe(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::Subscribe(Subscribe {
        node: Some(draft.cluster.served_node(node)),
        publisher: Some(draft.publisher()),
        publication: draft.tag.to_owned(),
        subscription: draft.tag.to_owned(),
        slots: draft.slots.clone(),
        target_lsn: 0,
    }))
}

pub(in crate::plan) fn enable_subscriptions(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::EnableSubscriptions(EnableSubscriptions {
        node: Some(draft.cluster.served_node(node)),
        subscription: draft.tag.to_owned(),
        slots: draft.slots.clone(),
        target_lsn: 0,
    }))
}

pub(in crate::plan) fn catch_up(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::CatchUp(CatchUp {
        node: Some(draft.cluster.served_node(node)),
        publisher: Some(draft.cluster.reach_old(draft.old_leader)),
        publication: draft.tag.to_owned(),
        subscription: draft.tag.to_owned(),
        slots: draft.slots.clone(),
        publisher_node: Some(draft.old_leader_node()),
        publisher_agent: draft.old_leader.agent.clone(),
    }))
}

pub(in crate::plan) fn validate(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    let options = &draft.cluster.options.validate;
    of(Kind::Validate(Validate {
        node: Some(draft.cluster.served_node(node)),
        publisher_node: Some(draft.old_leader_node()),
        publisher_agent: draft.old_leader.agent.clone(),
        subscription: draft.tag.to_owned(),
        slots: draft.slots.clone(),
        parallel: options.parallel,
        chunk_rows: options.chunk_rows,
        rows_per_second: options.rows_per_second,
    }))
}
