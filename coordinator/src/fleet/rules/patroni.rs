//! Patroni: each member of a cluster that it runs, or will run, has a REST API of its own, and no other node has one.

use std::collections::BTreeMap;

use pgleap_proto::patroni::{Address, AddressError};

use super::super::reader::Reader;
use super::super::spec::{ClusterSpec, FleetSpec, PatroniSpec};
use super::{new_path, old_path};

/// What the two sides have different words for.
struct Side<'f> {
    patroni: Option<&'f PatroniSpec>,
    section: &'static str,
    runs: &'static str,
}

pub(super) fn apply(spec: &FleetSpec, reader: &Reader<'_>) {
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    for (c, cluster) in spec.clusters.iter().enumerate() {
        let (old, new) = (&cluster.old, &cluster.new);
        let side = Side { patroni: old.patroni.as_ref(), section: "[cluster.old.patroni]", runs: "runs" };
        for (n, node) in old.nodes.iter().enumerate() {
            member(&side, &node.rest, &old_path(c, n), reader, &mut places);
        }
        let side = Side { patroni: new.patroni.as_ref(), section: "[cluster.new.patroni]", runs: "will run" };
        for (n, node) in new.nodes.iter().enumerate() {
            member(&side, &node.rest, &new_path(c, n), reader, &mut places);
        }
        let path = format!("cluster[{c}].new.patroni.scope");
        if let (Some(before), Some(after)) = (&old.patroni, &new.patroni)
            && before.scope == after.scope
            && !reader.is_faulty(&path)
        {
            let message = format!("\"{}\" is the scope of the old cluster already", after.scope);
            let cure =
                "give the new cluster another one: in one store both would be the same cluster to Patroni";
            reader.fault(&path, message, cure);
        }
        seed(cluster, c, reader);
    }
}

/// What a Patroni that makes the seed goes with.
fn seed(cluster: &ClusterSpec, c: usize, reader: &Reader<'_>) {
    let path = format!("cluster[{c}].new.patroni.seed_scope");
    let Some(patroni) = cluster.new.patroni.as_ref().filter(|patroni| !patroni.seed_scope.is_empty()) else {
        return;
    };
    let old = cluster.old.patroni.as_ref().map(|old| &old.scope);
    if [Some(&patroni.scope), old].contains(&Some(&patroni.seed_scope)) && !reader.is_faulty(&path) {
        let message =
            format!("\"{}\" is the scope of the old or the new cluster already", patroni.seed_scope);
        reader.fault(&path, message, "give the seed another one: it is a cluster of its own, for a while");
    }
    if cluster.is_move() && !reader.is_faulty(&path) {
        let message = "is there in a move (old and new version are the same), where the seed's directory becomes the new node's: two \
                       Patronis would configure it one after the other";
        reader.fault(
            &path,
            message,
            "remove the line: pgleap clones the nodes, and hands them over to Patroni as it does otherwise",
        );
    }
    for (n, node) in cluster.new.nodes.iter().enumerate() {
        let path = format!("{}.seed_config_file", new_path(c, n));
        if !cluster.is_move() && !node.seed_config_file.is_empty() && !reader.is_faulty(&path) {
            let message =
                "is there, and Patroni makes the seed, whose configuration lies in its data directory";
            reader.fault(&path, message, "remove the line");
        }
        let path = format!("{}.tablespaces", new_path(c, n));
        if node.tablespaces.iter().any(|map| map.from != map.to) && !reader.is_faulty(&path) {
            let message = "puts tablespaces at other paths, and Patroni makes the seed, by methods of which pgleap knows nothing";
            reader.fault(&path, message, "use the same paths as on the old nodes, or remove seed_scope");
        }
    }
}

fn member(
    side: &Side<'_>,
    rest: &str,
    node: &str,
    reader: &Reader<'_>,
    places: &mut BTreeMap<String, String>,
) {
    let path = format!("{node}.rest");
    if reader.is_faulty(&path) {
        return;
    }
    let Side { patroni, section, runs } = side;
    match (patroni, rest) {
        (None, "") => {}
        (None, _) => {
            let cure = format!("add {section} with its scope, or remove the key");
            reader.fault(&path, "is the REST API of Patroni, which does not run this cluster", cure);
        }
        (Some(_), "") => {
            let cure = "add rest = \"http://10.0.0.1:8008\": restapi.connect_address of this member";
            reader.fault(
                &path,
                format!("is required and missing, because Patroni {runs} this cluster"),
                cure,
            );
        }
        (Some(_), text) => match text.parse::<Address>() {
            Err(AddressError(_)) => {
                let cure = "write it as http://10.0.0.1:8008, https://db1:8008 or http://[fd00::1]:8008";
                reader.fault(&path, format!("\"{text}\" is not the address of a REST API"), cure);
            }
            Ok(address) => {
                if let Some(other) = places.insert(address.place(), path.clone()) {
                    let message =
                        format!("{address} is the one of the node on {} already", reader.line(&other));
                    reader.fault(&path, message, "give each member its own");
                }
            }
        },
    }
}
