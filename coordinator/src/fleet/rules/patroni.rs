//! Patroni: each member of a cluster that it runs has a REST API of its own, and no other node has one.

use std::collections::BTreeMap;

use pgleap_proto::patroni::{Address, AddressError};

use super::super::reader::Reader;
use super::super::spec::FleetSpec;
use super::old_path;

pub(super) fn apply(spec: &FleetSpec, reader: &Reader<'_>) {
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    for (c, cluster) in spec.clusters.iter().enumerate() {
        for (n, node) in cluster.old.nodes.iter().enumerate() {
            let path = format!("{}.rest", old_path(c, n));
            if reader.is_faulty(&path) {
                continue;
            }
            match (&cluster.old.patroni, node.rest.as_str()) {
                (None, "") => {}
                (None, _) => {
                    let cure = "add [cluster.old.patroni] with its scope, or remove the key";
                    reader.fault(&path, "is the REST API of Patroni, which does not run this cluster", cure);
                }
                (Some(_), "") => {
                    let cure = "add rest = \"http://10.0.0.1:8008\": restapi.connect_address of this member";
                    reader.fault(&path, "is required and missing, because Patroni runs this cluster", cure);
                }
                (Some(_), text) => match text.parse::<Address>() {
                    Err(AddressError(_)) => {
                        let cure =
                            "write it as http://10.0.0.1:8008, https://db1:8008 or http://[fd00::1]:8008";
                        reader.fault(&path, format!("\"{text}\" is not the address of a REST API"), cure);
                    }
                    Ok(address) => {
                        if let Some(other) = places.insert(address.place(), path.clone()) {
                            let message = format!(
                                "{address} is the one of the node on {} already",
                                reader.line(&other)
                            );
                            reader.fault(&path, message, "give each member its own");
                        }
                    }
                },
            }
        }
    }
}
