//! What a node's Patroni is, for `check`. Reads only.

use pgleap_proto::agent::{PatroniFacts, PatroniMember};
use pgleap_proto::node::{Node, Patroni};
use pgleap_proto::patroni::{Cluster, Status};
use serde_json::Value;

use super::{rest, source};
use crate::config::AgentConfig;
use crate::error::{Doing, Result};
use crate::fence;

/// Asks it; why it could not be asked is a fact, too.
pub async fn facts(config: &AgentConfig, node: &Node, patroni: &Patroni) -> PatroniFacts {
    match ask(config, node, patroni).await {
        Ok(facts) => facts,
        Err(error) => PatroniFacts { error: error.message, ..PatroniFacts::default() },
    }
}

async fn ask(config: &AgentConfig, node: &Node, patroni: &Patroni) -> Result<PatroniFacts> {
    let rest = rest(config, patroni)?;
    let status: Status = rest.get("/patroni").await.doing(|| "asking Patroni who it is")?;
    let cluster: Cluster = rest.get("/cluster").await.doing(|| "asking Patroni for its members")?;
    let dynamic: Value = rest.get("/config").await.doing(|| "asking Patroni for its configuration")?;
    let member = |member: &pgleap_proto::patroni::Member| PatroniMember {
        name: member.name.clone(),
        role: member.role.clone(),
        address: member.host.clone(),
        port: member.port.into(),
        nofailover: member.is_tagged("nofailover"),
    };
    let mode = &dynamic["synchronous_mode"];
    let file = fence::hba_file(node).await?.original()?;
    Ok(PatroniFacts {
        error: String::new(),
        version: status.patroni.version,
        scope: status.patroni.scope,
        member: status.patroni.name,
        role: status.role,
        paused: status.pause || cluster.pause,
        members: cluster.members.iter().map(member).collect(),
        synchronous_mode: if mode.is_null() { String::new() } else { mode.to_string() },
        hba: source(&file, &dynamic).name().to_owned(),
    })
}
