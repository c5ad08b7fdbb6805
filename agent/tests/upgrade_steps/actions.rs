//! The actions as the planner makes them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use pgleap_agent::step;
use pgleap_proto::node::{ControlData, Node};
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{
    CheckUpgrade, InitNew, Output, Rehearse, StartLeader, StopLeader, StopReplica, StoppedOutput, Upgrade,
    output,
};

use crate::world::{New, World};

pub fn init(new: &New) -> Kind {
    Kind::InitNew(InitNew { seed: Some(new.seed.clone()), node: Some(new.node.clone()) })
}

pub fn check(new: &New) -> Kind {
    Kind::CheckUpgrade(CheckUpgrade {
        seed: Some(new.seed.clone()),
        node: Some(new.node.clone()),
        jobs: 2,
        rehearsed: String::new(),
    })
}

pub fn upgrade(new: &New) -> Kind {
    Kind::Upgrade(Upgrade { seed: Some(new.seed.clone()), node: Some(new.node.clone()), jobs: 2 })
}

pub fn stop_leader(new: &New) -> Kind {
    Kind::StopLeader(StopLeader { node: Some(new.seed.clone()) })
}

pub fn stop_replica(new: &New, leader: ControlData) -> Kind {
    Kind::StopReplica(StopReplica { node: Some(new.seed.clone()), leader: Some(leader) })
}

pub fn start_leader(new: &New) -> Kind {
    Kind::StartLeader(StartLeader { node: Some(new.node.clone()), moved: None })
}

pub fn rehearse(world: &World, node: &Node, upstream: &Node) -> Kind {
    Kind::Rehearse(Rehearse {
        node: Some(node.clone()),
        seed: None,
        upstream: Some(world.conninfo(upstream)),
        databases: vec!["app".into(), r#"we"ird ☃"#.into()],
    })
}

/// What was rehearsed on the primary needs no second rehearsal on its standby, until anything of it has changed.
pub async fn rehearsed_once(world: &World, new: &New) {
    let params = |upstream: Node| Rehearse {
        node: Some(new.node.clone()),
        seed: None,
        upstream: Some(world.conninfo(&upstream)),
        databases: Vec::new(),
    };
    let (old, seed) = (params(world.old.clone()), params(new.seed.clone()));
    let cx = world.context("rehearse");
    let fingerprint = step::rehearse::rehearse(&cx, &old, "").await.unwrap();
    assert!(!fingerprint.is_empty(), "{:?}", cx.report.last_lines(5));
    let restored_again = async |rehearsed: &str| {
        let cx = world.context("rehearse");
        let fingerprint = step::rehearse::rehearse(&cx, &seed, rehearsed).await.unwrap();
        let saved = cx.report.last_lines(50).iter().any(|line| line.contains("not restored again"));
        assert_eq!(saved, fingerprint == rehearsed);
        !saved
    };
    assert!(!restored_again(&fingerprint).await, "the standby has the same schema");
    assert!(restored_again("").await, "nothing was rehearsed");
    // Vacuum and statistics are no part of it; the smallest DDL is, also when it was taken back.
    world.sql(&world.old, "app", &["VACUUM ANALYZE"]).await;
    world.eventually_replayed(&new.seed).await;
    assert!(!restored_again(&fingerprint).await, "only statistics have changed");
    world.sql(&world.old, "app", &["ALTER TABLE public.t ALTER b SET STATISTICS 77"]).await;
    world.sql(&world.old, "app", &["ALTER TABLE public.t ALTER b SET STATISTICS -1"]).await;
    world.eventually_replayed(&new.seed).await;
    assert!(restored_again(&fingerprint).await, "the schema has changed");
}

pub fn stopped(output: Output) -> StoppedOutput {
    let Some(output::Kind::Stopped(stopped)) = output.kind else { panic!("{output:?}") };
    stopped
}
