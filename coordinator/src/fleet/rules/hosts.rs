//! Hosts: agents' addresses are `host:port`, no two hosts share one, and every node names a declared host.

use std::collections::BTreeMap;

use super::super::reader::Reader;
use super::super::spec::FleetSpec;
use super::super::suggest::nearest;
use super::{balancer_path, new_path, old_path, pooler_path};

pub(super) fn apply(spec: &FleetSpec, reader: &Reader<'_>) {
    let mut agents: BTreeMap<&str, String> = BTreeMap::new();
    for (index, host) in spec.hosts.iter().enumerate() {
        let path = format!("host[{index}].agent");
        if host.agent.is_empty() || reader.is_faulty(&path) {
            continue;
        }
        if !is_endpoint(&host.agent) {
            let message = format!("\"{}\" is no agent address", host.agent);
            reader.fault(
                &path,
                message,
                "write host:port, for example \"10.0.0.1:7432\" or \"[fd00::1]:7432\"",
            );
        } else if let Some(other) = agents.get(host.agent.as_str()) {
            let message =
                format!("{} is the agent of another host already, on {}", host.agent, reader.line(other));
            reader.fault(&path, message, "give each host the address of its own agent");
        } else {
            agents.insert(&host.agent, path);
        }
    }
    let known: Vec<&str> = spec.hosts.iter().map(|host| host.name.as_str()).collect();
    for (c, cluster) in spec.clusters.iter().enumerate() {
        let old = cluster.old.nodes.iter().enumerate().map(|(n, node)| (&node.host, old_path(c, n)));
        let new = cluster.new.nodes.iter().enumerate().map(|(n, node)| (&node.host, new_path(c, n)));
        let poolers = cluster.poolers.iter().enumerate();
        let poolers = poolers.map(|(n, pooler)| (&pooler.host, pooler_path(c, n)));
        let balancers = cluster.balancers.iter().enumerate();
        let balancers = balancers.map(|(n, balancer)| (&balancer.host, balancer_path(c, n)));
        for (host, path) in old.chain(new).chain(poolers).chain(balancers) {
            // Without any host the fault is that there is none.
            if host.is_empty() || known.is_empty() || known.contains(&host.as_str()) {
                continue;
            }
            let cure = match nearest(host, &known) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("add a [[host]] with this name, or use one of: {}", known.join(", ")),
            };
            reader.fault(&format!("{path}.host"), format!("there is no host \"{host}\""), cure);
        }
    }
}

fn is_endpoint(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bracketed = host.starts_with('[') && host.ends_with(']') && host.len() > 2;
    let plain =
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    (bracketed || plain) && port.parse::<u16>().is_ok_and(|port| port > 0)
}
