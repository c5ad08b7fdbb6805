//! What is asked while the new nodes get the new major, and who runs them.

use pgleap_proto::agent::DatabaseFacts;
use pgleap_proto::node::Node;
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{
    Action, Analyze, CloneNode, CreateMarker, CreatePhysicalSlot, DatabaseCollations, DropPhysicalSlot,
    FenceNode, HandOver, HandOverReplica, OfferFiles, RefreshCollations, Relink, StartLeader, StartReplica,
    StopLeader, StopReplica, UpdateExtensions, Upgrade, VerifyRelink,
};

use super::super::draft::Draft;
use super::super::traffic::Side;
use super::{of, protect};
use crate::fleet::NewNodeSpec;

pub(in crate::plan) fn stop_leader(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::StopLeader(StopLeader { node: Some(draft.cluster.seed(node)) }))
}

pub(in crate::plan) fn stop_replica(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::StopReplica(StopReplica { node: Some(draft.cluster.seed(node)), leader: None }))
}

pub(in crate::plan) fn upgrade(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::Upgrade(Upgrade {
        seed: Some(draft.cluster.seed(node)),
        node: Some(draft.cluster.new_node(node)),
        jobs: draft.jobs,
    }))
}

pub(in crate::plan) fn offer_files(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    let mut readers: Vec<String> = draft.cluster.new_replicas().iter().map(|r| r.host.clone()).collect();
    readers.sort();
    readers.dedup();
    of(Kind::OfferFiles(OfferFiles {
        seed: Some(draft.cluster.seed(node)),
        node: Some(draft.cluster.new_node(node)),
        readers,
    }))
}

pub(in crate::plan) fn relink(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::Relink(Relink {
        seed: Some(draft.cluster.seed(node)),
        node: Some(draft.cluster.new_node(node)),
        leader_seed: Some(draft.leader_seed()),
        leader: Some(draft.leader_node()),
        leader_agent: draft.new_leader.agent.clone(),
        same_checkpoint: false,
    }))
}

pub(in crate::plan) fn verify_relink(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
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

pub(in crate::plan) fn fence_node(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::FenceNode(FenceNode {
        operation: draft.operation.to_owned(),
        node: Some(draft.cluster.new_node(node)),
        login: draft.cluster.new.replication.user.clone(),
    }))
}

pub(in crate::plan) fn start_leader(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::StartLeader(StartLeader { node: Some(draft.cluster.new_node(node)), moved: draft.moved() }))
}

pub(in crate::plan) fn hand_over(draft: &Draft<'_>, _: &NewNodeSpec) -> Action {
    of(Kind::HandOver(HandOver { node: Some(draft.served_leader()) }))
}

pub(in crate::plan) fn protect_from_new_patroni(draft: &Draft<'_>, _: &NewNodeSpec) -> Action {
    // Those of the replicas are needed until each is handed over.
    let physical = draft.cluster.new_replicas().iter().map(|replica| draft.physical_slot(replica)).collect();
    protect(draft.served_leader(), Side::New, physical, &draft.reverse_slots)
}

pub(in crate::plan) fn new_slot(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::CreatePhysicalSlot(CreatePhysicalSlot {
        node: Some(draft.served_leader()),
        slot: draft.physical_slot(node),
    }))
}

pub(in crate::plan) fn clone_new(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
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

pub(in crate::plan) fn start_replica(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::StartReplica(StartReplica {
        node: Some(draft.cluster.new_node(node)),
        upstream: Some(draft.cluster.reach_new(draft.new_leader)),
        slot: draft.physical_slot(node),
        verified: false,
        moved: draft.moved(),
    }))
}

pub(in crate::plan) fn hand_over_replica(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::HandOverReplica(HandOverReplica {
        node: Some(draft.cluster.served_node(node)),
        slot: draft.physical_slot(node),
    }))
}

pub(in crate::plan) fn drop_new_slot(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::DropPhysicalSlot(DropPhysicalSlot {
        node: Some(draft.served_leader()),
        slot: draft.physical_slot(node),
    }))
}

pub(in crate::plan) fn inherited_marker(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::CreateMarker(CreateMarker {
        node: Some(draft.cluster.served_node(node)),
        tag: draft.tag.to_owned(),
        databases: draft.replicated_names(),
        inherited: true,
    }))
}

pub(in crate::plan) fn update_extensions(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::UpdateExtensions(UpdateExtensions {
        node: Some(draft.cluster.served_node(node)),
        databases: draft.connectable_names(),
    }))
}

pub(in crate::plan) fn refresh_collations(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
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

pub(in crate::plan) fn analyze(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::Analyze(Analyze {
        node: Some(draft.cluster.served_node(node)),
        old_major: draft.cluster.old.version,
        jobs: draft.jobs,
    }))
}
