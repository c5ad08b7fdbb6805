//! What is asked for traffic to be moved: the way back, and everybody who has a part in a switchover.

use pgleap_proto::node::Node;
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{Action, CreateSlots, KeepTraffic, Publish, StageBalancer, StagePooler, Subscribe};

use super::super::draft::Draft;
use super::super::traffic::Side;
use super::of;
use crate::fleet::{BalancerSpec, NewNodeSpec, OldNodeSpec, PoolerSpec};

pub(in crate::plan) fn reverse_publish(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::Publish(Publish {
        node: Some(draft.cluster.served_node(node)),
        publication: draft.reverse_tag(),
        databases: draft.replicated_names(),
    }))
}

pub(in crate::plan) fn reverse_slots(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::CreateSlots(CreateSlots {
        node: Some(draft.cluster.served_node(node)),
        slots: draft.reverse_slots.clone(),
        timeout_ms: draft.cluster.options.slot_timeout_ms,
        failover: false,
    }))
}

pub(in crate::plan) fn reverse_subscribe(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::Subscribe(Subscribe {
        node: Some(draft.old_leader_node()),
        publisher: Some(draft.cluster.reach_back(node)),
        publication: draft.reverse_tag(),
        subscription: draft.reverse_tag(),
        slots: draft.reverse_slots.clone(),
        target_lsn: 0,
    }))
}

pub(in crate::plan) fn keep_old(draft: &Draft<'_>, node: &OldNodeSpec) -> Action {
    let leader = node.name == draft.old_leader.name;
    of(Kind::KeepTraffic(keep_traffic(draft, draft.cluster.old_node(node), Side::Old, leader)))
}

pub(in crate::plan) fn keep_new(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    let leader = node.name == draft.new_leader.name;
    of(Kind::KeepTraffic(keep_traffic(draft, draft.cluster.served_node(node), Side::New, leader)))
}

fn keep_traffic(draft: &Draft<'_>, node: Node, side: Side, leader: bool) -> KeepTraffic {
    KeepTraffic {
        stays: 0,
        node: Some(node),
        side: side.message(),
        leader,
        cluster: Some(draft.traffic_cluster()),
        max_lag_bytes: draft.cluster.traffic.read_max_lag_bytes,
        max_lag_ms: draft.cluster.traffic.read_max_age_ms,
    }
}

pub(in crate::plan) fn stage_pooler(draft: &Draft<'_>, pooler: &PoolerSpec) -> Action {
    of(Kind::StagePooler(StagePooler {
        operation: draft.operation.to_owned(),
        pooler: Some(pooler.message()),
        old_leader: Some(draft.old_leader_party()),
        new_leader: Some(draft.new_leader_party()),
        refuse_session_pools: draft.cluster.traffic.refuse_session_pools,
        ..StagePooler::default()
    }))
}

pub(in crate::plan) fn stage_balancer(draft: &Draft<'_>, balancer: &BalancerSpec) -> Action {
    of(Kind::StageBalancer(StageBalancer {
        operation: draft.operation.to_owned(),
        balancer: Some(balancer.message()),
        ..StageBalancer::default()
    }))
}
