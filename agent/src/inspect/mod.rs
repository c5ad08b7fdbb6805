//! Facts about this host and the nodes on it, for `check` and for the planner. Reads only, and judges nothing:
//! the coordinator's checks do.

mod binaries;
mod database;
mod directory;
mod host;
mod reach;
mod server;

use std::path::Path;

use futures::future::join_all;
use pgleap_proto::agent::{InspectReply, InspectRequest, NodeFacts, NodeQuery};
use pgleap_proto::node::Node;

use crate::config::AgentConfig;
use crate::pg::{control, sql};

/// Looks at everything the request names, nodes side by side. What cannot be read is left empty or told in the
/// field made for it; a fact that is missing never hides the others.
pub async fn inspect(config: &AgentConfig, request: &InspectRequest) -> InspectReply {
    let nodes = join_all(request.nodes.iter().map(|query| node_facts(config, query))).await;
    InspectReply { host: Some(host::facts(config).await), nodes }
}

async fn node_facts(config: &AgentConfig, query: &NodeQuery) -> NodeFacts {
    let Some(node) = &query.node else { return NodeFacts::default() };
    let binaries = binaries::facts(node).await;
    let mut facts = NodeFacts {
        name: node.name.clone(),
        data_dir: Some(directory::facts(config, &node.data_dir)),
        tablespace_dirs: node.tablespaces.iter().map(|t| directory::facts(config, &t.to)).collect(),
        ..Default::default()
    };
    if Path::new(&node.data_dir).join("global/pg_control").exists() {
        facts.control = control::read(node, Path::new(&node.data_dir)).await.ok();
    }
    match sql::connect(node, "postgres").await {
        Ok(session) => {
            facts.running = true;
            match server::facts(node, &session).await {
                Ok(server) => facts.server = Some(server),
                Err(error) => facts.connect_error = error.to_string(),
            }
        }
        Err(error) => {
            facts.connect_error = error.to_string();
            facts.port_conflict = port_conflict(node);
        }
    }
    if binaries.missing.is_empty() {
        facts.reach = join_all(query.reach.iter().map(|target| reach::facts(node, target))).await;
    }
    facts.binaries = Some(binaries);
    if let Some(patroni) = &node.patroni {
        if query.expect_absent {
            facts.patroni_to_come = Some(crate::patroni::to_come(config, node, patroni).await);
        } else {
            facts.patroni = Some(crate::patroni::facts(config, node, patroni).await);
        }
    }
    if let Some(seed) = &query.seed_patroni {
        facts.patroni_seed = Some(crate::patroni::seed_facts(config, node, seed).await);
    }
    facts
}

/// Who holds the port of a node that does not run: asked by binding it, as PostgreSQL would.
fn port_conflict(node: &Node) -> String {
    let Ok(port) = u16::try_from(node.port) else { return format!("{} is no port", node.port) };
    match std::net::TcpListener::bind(("0.0.0.0", port)) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => format!("TCP port {port} is in use"),
        _ => String::new(),
    }
}
