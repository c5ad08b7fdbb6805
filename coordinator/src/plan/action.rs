//! What each step asks of its agent. Fields marked BOUND in `step.proto` stay empty here; `bind` fills them.

mod seed;

use pgleap_proto::agent::DatabaseFacts;
use pgleap_proto::node::Node;
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{
    Action, Analyze, CatchUp, CheckUpgrade, CleanPromoted, CloneNode, CreateMarker, CreatePhysicalSlot,
    CreateSlots, DatabaseCollations, DatabaseSlot, DropPhysicalSlot, EnableSubscriptions, FenceNode,
    HaltStandby, HandOver, HandOverReplica, InitNew, KeepTraffic, OfferFiles, ProtectFromPatroni, Publish,
    RecoverTo, RefreshCollations, Rehearse, Relink, SparedSlot, StageBalancer, StagePooler, StartLeader,
    StartReplica, StartStandby, StopLeader, StopReplica, Subscribe, UpdateExtensions, Upgrade, Validate,
    VerifyRelink,
};

use super::draft::Draft;
use super::survival::FAILOVER_SLOTS;
use super::traffic::Side;
use crate::fleet::{BalancerSpec, NewNodeSpec, OldNodeSpec, PoolerSpec};

pub(super) use seed::{seed_by_patroni, take_from_patroni};

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

pub(super) fn protect_from_patroni(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    // The physical slot of the new leader lies on whichever old node it streams from; the reverse slots are not Patroni's.
    protect(draft.old_leader_node(), Side::Old, vec![draft.physical_slot(node)], &draft.slots)
}

pub(super) fn protect_from_new_patroni(draft: &Draft<'_>, _: &NewNodeSpec) -> Action {
    // Those of the replicas are needed until each is handed over.
    let physical = draft.cluster.new_replicas().iter().map(|replica| draft.physical_slot(replica)).collect();
    protect(draft.served_leader(), Side::New, physical, &draft.reverse_slots)
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

pub(super) fn hand_over(draft: &Draft<'_>, _: &NewNodeSpec) -> Action {
    of(Kind::HandOver(HandOver { node: Some(draft.served_leader()) }))
}

pub(super) fn hand_over_replica(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::HandOverReplica(HandOverReplica {
        node: Some(draft.cluster.served_node(node)),
        slot: draft.physical_slot(node),
    }))
}

pub(super) fn drop_new_slot(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::DropPhysicalSlot(DropPhysicalSlot {
        node: Some(draft.served_leader()),
        slot: draft.physical_slot(node),
    }))
}

pub(super) fn seed_slot(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    let upstream = Some(draft.upstream_node_of(node));
    of(Kind::CreatePhysicalSlot(CreatePhysicalSlot { node: upstream, slot: draft.physical_slot(node) }))
}

pub(super) fn drop_seed_slot(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::DropPhysicalSlot(DropPhysicalSlot {
        node: Some(draft.upstream_node()),
        slot: draft.physical_slot(node),
    }))
}

pub(super) fn clone_seed(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::CloneNode(CloneNode {
        node: Some(Node { tablespaces: draft.cloned_tablespaces(node), ..draft.cluster.seed(node) }),
        upstream: Some(draft.upstream_of(node)),
        slot: draft.physical_slot(node),
        system_identifier: draft.server.system_identifier,
        upstream_data_dir: draft.upstream_node_of(node).data_dir,
        ..CloneNode::default()
    }))
}

pub(super) fn start_seed(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::StartStandby(StartStandby {
        node: Some(draft.cluster.seed(node)),
        upstream: Some(draft.upstream_of(node)),
        slot: draft.physical_slot(node),
        timeline: 0,
    }))
}

pub(super) fn init_new(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::InitNew(InitNew {
        seed: Some(draft.cluster.seed(node)),
        node: Some(draft.cluster.new_node(node)),
    }))
}

pub(super) fn check_upgrade(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::CheckUpgrade(CheckUpgrade {
        seed: Some(draft.cluster.seed(node)),
        node: Some(draft.cluster.new_node(node)),
        jobs: draft.jobs,
        rehearsed: String::new(),
    }))
}

pub(super) fn publish(draft: &Draft<'_>, _: &NewNodeSpec) -> Action {
    of(Kind::Publish(Publish {
        node: Some(draft.old_leader_node()),
        publication: draft.tag.to_owned(),
        databases: draft.replicated_names(),
    }))
}

pub(super) fn halt_standby(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::HaltStandby(HaltStandby { node: Some(draft.cluster.seed(node)) }))
}

pub(super) fn create_slots(draft: &Draft<'_>, _: &NewNodeSpec) -> Action {
    of(Kind::CreateSlots(CreateSlots {
        node: Some(draft.old_leader_node()),
        slots: draft.slots.clone(),
        timeout_ms: draft.cluster.options.slot_timeout_ms,
        // Before 17 there is no such thing.
        failover: draft.cluster.old.version >= FAILOVER_SLOTS,
    }))
}

pub(super) fn recover_to(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::RecoverTo(RecoverTo {
        node: Some(draft.cluster.seed(node)),
        upstream: Some(draft.upstream_of(node)),
        slot: draft.physical_slot(node),
        target_lsn: 0,
    }))
}

pub(super) fn clean_promoted(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::CleanPromoted(CleanPromoted {
        node: Some(draft.cluster.seed(node)),
        publication: draft.tag.to_owned(),
    }))
}

pub(super) fn stop_leader(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::StopLeader(StopLeader { node: Some(draft.cluster.seed(node)) }))
}

pub(super) fn stop_replica(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::StopReplica(StopReplica { node: Some(draft.cluster.seed(node)), leader: None }))
}

pub(super) fn upgrade(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::Upgrade(Upgrade {
        seed: Some(draft.cluster.seed(node)),
        node: Some(draft.cluster.new_node(node)),
        jobs: draft.jobs,
    }))
}

pub(super) fn offer_files(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    let mut readers: Vec<String> = draft.cluster.new_replicas().iter().map(|r| r.host.clone()).collect();
    readers.sort();
    readers.dedup();
    of(Kind::OfferFiles(OfferFiles {
        seed: Some(draft.cluster.seed(node)),
        node: Some(draft.cluster.new_node(node)),
        readers,
    }))
}

pub(super) fn relink(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::Relink(Relink {
        seed: Some(draft.cluster.seed(node)),
        node: Some(draft.cluster.new_node(node)),
        leader_seed: Some(draft.leader_seed()),
        leader: Some(draft.leader_node()),
        leader_agent: draft.new_leader.agent.clone(),
        same_checkpoint: false,
    }))
}

pub(super) fn verify_relink(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::VerifyRelink(VerifyRelink {
        seed: Some(draft.cluster.seed(node)),
        node: Some(draft.cluster.new_node(node)),
        leader_seed: Some(draft.leader_seed()),
        leader: Some(draft.leader_node()),
        leader_agent: draft.new_leader.agent.clone(),
        sample_percent: draft.cluster.options.verify_sample_percent,
        same_checkpoint: false,
    }))
}

pub(super) fn start_leader(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::StartLeader(StartLeader { node: Some(draft.cluster.new_node(node)), moved: draft.moved() }))
}

pub(super) fn new_slot(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::CreatePhysicalSlot(CreatePhysicalSlot {
        node: Some(draft.served_leader()),
        slot: draft.physical_slot(node),
    }))
}

pub(super) fn clone_new(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::CloneNode(CloneNode {
        node: Some(Node { tablespaces: draft.cloned_tablespaces(node), ..draft.cluster.new_node(node) }),
        upstream: Some(draft.cluster.reach_new(draft.new_leader)),
        slot: draft.physical_slot(node),
        // Chosen by initdb, unknown to the plan; 0 is "do not compare".
        system_identifier: 0,
        only_if_unverified: true,
        verified: false,
        replace: true,
        upstream_data_dir: draft.leader_node().data_dir,
    }))
}

pub(super) fn start_replica(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::StartReplica(StartReplica {
        node: Some(draft.cluster.new_node(node)),
        upstream: Some(draft.cluster.reach_new(draft.new_leader)),
        slot: draft.physical_slot(node),
        verified: false,
        moved: draft.moved(),
    }))
}

pub(super) fn update_extensions(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::UpdateExtensions(UpdateExtensions {
        node: Some(draft.cluster.served_node(node)),
        databases: draft.connectable_names(),
    }))
}

pub(super) fn refresh_collations(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    let old = |db: &&DatabaseFacts| DatabaseCollations {
        database: db.name.clone(),
        collations: db.collations.clone(),
    };
    of(Kind::RefreshCollations(RefreshCollations {
        node: Some(draft.cluster.served_node(node)),
        old: draft.connectable.iter().map(old).collect(),
        jobs: draft.jobs,
    }))
}

pub(super) fn analyze(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::Analyze(Analyze {
        node: Some(draft.cluster.served_node(node)),
        old_major: draft.cluster.old.version,
        jobs: draft.jobs,
    }))
}

pub(super) fn subscribe(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::Subscribe(Subscribe {
        node: Some(draft.cluster.served_node(node)),
        publisher: Some(draft.publisher()),
        publication: draft.tag.to_owned(),
        subscription: draft.tag.to_owned(),
        slots: draft.slots.clone(),
        target_lsn: 0,
    }))
}

pub(super) fn enable_subscriptions(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::EnableSubscriptions(EnableSubscriptions {
        node: Some(draft.cluster.served_node(node)),
        subscription: draft.tag.to_owned(),
        slots: draft.slots.clone(),
        target_lsn: 0,
    }))
}

pub(super) fn catch_up(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
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

pub(super) fn validate(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
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

pub(super) fn create_marker(draft: &Draft<'_>, _: &NewNodeSpec) -> Action {
    of(Kind::CreateMarker(CreateMarker {
        node: Some(draft.old_leader_node()),
        tag: draft.tag.to_owned(),
        databases: draft.replicated_names(),
        inherited: false,
    }))
}

pub(super) fn inherited_marker(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::CreateMarker(CreateMarker {
        node: Some(draft.cluster.served_node(node)),
        tag: draft.tag.to_owned(),
        databases: draft.replicated_names(),
        inherited: true,
    }))
}

pub(super) fn fence_node(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::FenceNode(FenceNode {
        operation: draft.operation.to_owned(),
        node: Some(draft.cluster.new_node(node)),
        login: draft.cluster.new.replication.user.clone(),
    }))
}

pub(super) fn reverse_publish(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::Publish(Publish {
        node: Some(draft.cluster.served_node(node)),
        publication: draft.reverse_tag(),
        databases: draft.replicated_names(),
    }))
}

pub(super) fn reverse_slots(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::CreateSlots(CreateSlots {
        node: Some(draft.cluster.served_node(node)),
        slots: draft.reverse_slots.clone(),
        timeout_ms: draft.cluster.options.slot_timeout_ms,
        failover: false,
    }))
}

pub(super) fn reverse_subscribe(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::Subscribe(Subscribe {
        node: Some(draft.old_leader_node()),
        publisher: Some(draft.cluster.reach_back(node)),
        publication: draft.reverse_tag(),
        subscription: draft.reverse_tag(),
        slots: draft.reverse_slots.clone(),
        target_lsn: 0,
    }))
}

pub(super) fn keep_old(draft: &Draft<'_>, node: &OldNodeSpec) -> Action {
    let leader = node.name == draft.old_leader.name;
    of(Kind::KeepTraffic(keep_traffic(draft, draft.cluster.old_node(node), Side::Old, leader)))
}

pub(super) fn keep_new(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
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

pub(super) fn stage_pooler(draft: &Draft<'_>, pooler: &PoolerSpec) -> Action {
    of(Kind::StagePooler(StagePooler {
        operation: draft.operation.to_owned(),
        pooler: Some(pooler.message()),
        old_leader: Some(draft.old_leader_party()),
        new_leader: Some(draft.new_leader_party()),
        refuse_session_pools: draft.cluster.traffic.refuse_session_pools,
        ..StagePooler::default()
    }))
}

pub(super) fn stage_balancer(draft: &Draft<'_>, balancer: &BalancerSpec) -> Action {
    of(Kind::StageBalancer(StageBalancer {
        operation: draft.operation.to_owned(),
        balancer: Some(balancer.message()),
        ..StageBalancer::default()
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
