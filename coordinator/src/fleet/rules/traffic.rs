//! Moving traffic: the bounds of a switchover fit into each other, no pooler or balancer is declared twice, and every balancer
//! has a server on either side.

use std::collections::BTreeMap;

use super::super::reader::Reader;
use super::super::spec::FleetSpec;
use super::super::traffic::PoolerKind;
use super::{balancer_path, pooler_path};

/// After the pause was acquired, the rest of a switchover needs at least this long on a busy machine.
const REST_MS: u64 = 1_000;
/// Clients give up on their own after minutes (PgBouncer's `query_wait_timeout` is 120 s); holding them longer is an outage.
const HOLD_MAX_MS: u64 = 110_000;

pub(super) fn apply(spec: &FleetSpec, reader: &Reader<'_>) {
    // Of all clusters: two switchovers must not meet in one process.
    let mut processes: BTreeMap<(&str, String), String> = BTreeMap::new();
    for (c, cluster) in spec.clusters.iter().enumerate() {
        let traffic = &cluster.traffic;
        let key = format!("cluster[{c}].traffic.hold");
        if traffic.hold_ms > HOLD_MAX_MS {
            let message = format!("clients would wait up to {} s", traffic.hold_ms / 1000);
            reader.fault(&key, message, format!("write at most {} s", HOLD_MAX_MS / 1000));
        } else if traffic.hold_ms < traffic.acquire_ms.saturating_add(REST_MS) {
            let message = format!(
                "{} ms leave no room for anything after the {} ms in which the pause may be acquired",
                traffic.hold_ms, traffic.acquire_ms
            );
            reader.fault(
                &key,
                message,
                format!("write at least {} ms", traffic.acquire_ms.saturating_add(REST_MS)),
            );
        }
        for (n, pooler) in cluster.poolers.iter().enumerate() {
            let path = pooler_path(c, n);
            let (key, process) = match &pooler.kind {
                PoolerKind::PgBouncer { socket_dir, port, .. } => {
                    (format!("{path}.pgbouncer.socket_dir"), format!("{socket_dir}:{port}"))
                }
                PoolerKind::Hook { name, .. } => (format!("{path}.hook.name"), format!("hook {name}")),
            };
            once(&mut processes, reader, &pooler.host, process, key);
        }
        for (n, balancer) in cluster.balancers.iter().enumerate() {
            let path = format!("{}.haproxy", balancer_path(c, n));
            let process = format!("{} {}", balancer.socket, balancer.backend);
            once(&mut processes, reader, &balancer.host, process, format!("{path}.backend"));
            for (key, servers) in
                [("old_servers", &balancer.old_servers), ("new_servers", &balancer.new_servers)]
            {
                let key = format!("{path}.{key}");
                if servers.is_empty() && !balancer.backend.is_empty() {
                    reader.fault(&key, "names no server", "name the backend's servers of this side");
                }
            }
            if let Some(both) = balancer.old_servers.iter().find(|name| balancer.new_servers.contains(name)) {
                let message = format!("\"{both}\" is also one of old_servers");
                reader.fault(&format!("{path}.new_servers"), message, "a server belongs to one side");
            }
        }
    }
}

fn once<'s>(
    seen: &mut BTreeMap<(&'s str, String), String>,
    reader: &Reader<'_>,
    host: &'s str,
    process: String,
    key: String,
) {
    if host.is_empty() || reader.is_faulty(&key) {
        return;
    }
    if let Some(other) = seen.get(&(host, process.clone())) {
        let message = format!("the same one on host {host} is declared already on {}", reader.line(other));
        reader.fault(&key, message, "declare each process once");
    } else {
        seen.insert((host, process), key);
    }
}
