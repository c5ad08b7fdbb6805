//! What must hold between the keys of a fleet file, one rule per file.

mod directories;
mod endpoints;
mod hosts;
mod layout;
mod many;
mod names;
mod paths;
mod patroni;
mod traffic;
mod versions;

use super::reader::Reader;
use super::spec::FleetSpec;

/// All rules, in the order in which their faults matter.
const RULES: [fn(&FleetSpec, &Reader<'_>); 10] = [
    names::apply,
    hosts::apply,
    versions::apply,
    paths::apply,
    directories::apply,
    endpoints::apply,
    layout::apply,
    patroni::apply,
    traffic::apply,
    many::apply,
];

/// Reports every broken rule to the reader.
pub(super) fn apply(spec: &FleetSpec, reader: &Reader<'_>) {
    for rule in RULES {
        rule(spec, reader);
    }
}

/// Path of an old node in the file.
fn old_path(cluster: usize, node: usize) -> String {
    format!("cluster[{cluster}].old.node[{node}]")
}

/// Path of a pooler in the file.
fn pooler_path(cluster: usize, pooler: usize) -> String {
    format!("cluster[{cluster}].pooler[{pooler}]")
}

/// Path of a balancer in the file.
fn balancer_path(cluster: usize, balancer: usize) -> String {
    format!("cluster[{cluster}].balancer[{balancer}]")
}

/// Path of a new node in the file.
fn new_path(cluster: usize, node: usize) -> String {
    format!("cluster[{cluster}].new.node[{node}]")
}
