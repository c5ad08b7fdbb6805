//! Endpoints: no two nodes share address and port, nor host and port.

use std::collections::BTreeMap;

use super::super::reader::Reader;
use super::super::spec::FleetSpec;
use super::{new_path, old_path};

pub(super) fn apply(spec: &FleetSpec, reader: &Reader<'_>) {
    let mut addresses: BTreeMap<(&str, u16), String> = BTreeMap::new();
    let mut hosts: BTreeMap<(&str, u16), String> = BTreeMap::new();
    for (c, cluster) in spec.clusters.iter().enumerate() {
        let old = cluster.old.nodes.iter().enumerate();
        let old = old.map(|(n, node)| (&node.host, &node.address, node.port, old_path(c, n)));
        let new = cluster.new.nodes.iter().enumerate();
        let new = new.map(|(n, node)| (&node.host, &node.address, node.port, new_path(c, n)));
        for (host, address, port, node) in old.chain(new) {
            check_address(reader, &format!("{node}.address"), address);
            let path = format!("{node}.port");
            let cure = "give each node its own port";
            let by_host = hosts.get(&(host.as_str(), port)).filter(|_| !host.is_empty());
            let by_address = addresses.get(&(address.as_str(), port)).filter(|_| !address.is_empty());
            if let Some(other) = by_host {
                let message =
                    format!("port {port} on host {host} is taken by the node on {}", reader.line(other));
                reader.fault(&path, message, cure);
            } else if let Some(other) = by_address {
                let message = format!("{address}:{port} is taken by the node on {}", reader.line(other));
                reader.fault(&path, message, cure);
            } else {
                hosts.insert((host, port), node.clone());
                addresses.insert((address, port), node);
            }
        }
    }
}

fn check_address(reader: &Reader<'_>, path: &str, address: &str) {
    let bad = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%'));
    if !address.is_empty() && !reader.is_faulty(path) && address.contains(bad) {
        let message = format!("\"{address}\" is neither an address nor a DNS name");
        reader.fault(path, message, "write only the address or name; the port is a key of its own");
    }
}
