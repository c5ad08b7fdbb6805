//! The actions as the planner makes them.
#![allow(clippy::panic, reason = "helpers of tests")]

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
    Kind::CheckUpgrade(CheckUpgrade { seed: Some(new.seed.clone()), node: Some(new.node.clone()), jobs: 2 })
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
    Kind::StartLeader(StartLeader { node: Some(new.node.clone()) })
}

pub fn rehearse(world: &World, node: &Node, upstream: &Node) -> Kind {
    Kind::Rehearse(Rehearse {
        node: Some(node.clone()),
        seed: None,
        upstream: Some(world.conninfo(upstream)),
        databases: vec!["app".into(), r#"we"ird ☃"#.into()],
    })
}

pub fn stopped(output: Output) -> StoppedOutput {
    let Some(output::Kind::Stopped(stopped)) = output.kind else { panic!("{output:?}") };
    stopped
}
