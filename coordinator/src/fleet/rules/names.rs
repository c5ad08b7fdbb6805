//! Names: what they may consist of (they become parts of slot names, file names and certificates), and that no two
//! things share one.

use std::collections::BTreeMap;

use super::super::reader::Reader;
use super::super::spec::FleetSpec;
use super::{balancer_path, new_path, old_path, pooler_path};

/// `pgleap_` and six hexadecimal digits and `_` precede a node's name in its slot's name, which PostgreSQL limits to 63
/// bytes (`NAMEDATALEN`).
const NODE_NAME_MAX: usize = 63 - "pgleap_000000_".len();
/// A DNS label.
const LABEL_MAX: usize = 63;

pub(super) fn apply(spec: &FleetSpec, reader: &Reader<'_>) {
    let mut hosts = Seen::new("host", reader);
    for (index, host) in spec.hosts.iter().enumerate() {
        let path = format!("host[{index}].name");
        let shape = "lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit";
        check(reader, &path, &host.name, LABEL_MAX, "-.", shape);
        hosts.add(&host.name, path);
    }
    let mut clusters = Seen::new("cluster", reader);
    let mut nodes = Seen::new("node", reader);
    let shape = "lower-case letters, digits, '-' and '_', beginning and ending with a letter or digit";
    for (c, cluster) in spec.clusters.iter().enumerate() {
        let path = format!("cluster[{c}].name");
        // The operation's id is this name, '-' and six digits, and it names directories.
        check(reader, &path, &cluster.name, LABEL_MAX, "-_", shape);
        clusters.add(&cluster.name, path);
        // Slots are made on this cluster's nodes only, one for each new node.
        let mut slots = Seen::new("slot", reader);
        let mut poolers = Seen::new("pooler", reader);
        for (n, pooler) in cluster.poolers.iter().enumerate() {
            let path = format!("{}.name", pooler_path(c, n));
            check(reader, &path, &pooler.name, LABEL_MAX, "-_", shape);
            poolers.add(&pooler.name, path);
        }
        let mut balancers = Seen::new("balancer", reader);
        for (n, balancer) in cluster.balancers.iter().enumerate() {
            let path = format!("{}.name", balancer_path(c, n));
            check(reader, &path, &balancer.name, LABEL_MAX, "-_", shape);
            balancers.add(&balancer.name, path);
        }
        let old = cluster.old.nodes.iter().enumerate().map(|(n, node)| (&node.name, old_path(c, n)));
        let new = cluster.new.nodes.iter().enumerate().map(|(n, node)| (&node.name, new_path(c, n)));
        for (name, path) in old.chain(new) {
            let path = format!("{path}.name");
            check(reader, &path, name, NODE_NAME_MAX, "-_", shape);
            nodes.add(name, path.clone());
            if !reader.is_faulty(&path) {
                slots.add_as(&name.replace('-', "_"), name, path);
            }
        }
    }
}

fn check(reader: &Reader<'_>, path: &str, name: &str, longest: usize, marks: &str, shape: &str) {
    if name.is_empty() || reader.is_faulty(path) {
        return;
    }
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = name.chars().all(|c| alphanumeric(c) || marks.contains(c))
        && name.starts_with(alphanumeric)
        && name.ends_with(alphanumeric);
    if !good {
        reader.fault(path, format!("\"{name}\" cannot be used as a name"), format!("use {shape}"));
    } else if name.len() > longest {
        let message = format!("\"{name}\" has {} characters, at most {longest} are possible", name.len());
        reader.fault(path, message, "shorten it");
    }
}

struct Seen<'r, 't> {
    what: &'static str,
    reader: &'r Reader<'t>,
    /// Name as compared -> name as written and where.
    first: BTreeMap<String, (String, String)>,
}

impl<'r, 't> Seen<'r, 't> {
    fn new(what: &'static str, reader: &'r Reader<'t>) -> Self {
        Seen { what, reader, first: BTreeMap::new() }
    }

    fn add(&mut self, name: &str, path: String) {
        self.add_as(name, name, path);
    }

    fn add_as(&mut self, compared: &str, written: &str, path: String) {
        if compared.is_empty() {
            return;
        }
        let Some((other, place)) = self.first.get(compared) else {
            self.first.insert(compared.to_owned(), (written.to_owned(), path));
            return;
        };
        let line = self.reader.line(place);
        if other == written {
            let message = format!("the {} name \"{written}\" is used already on {line}", self.what);
            self.reader.fault(&path, message, "give each its own name");
        } else {
            let message = format!(
                "\"{written}\" and \"{other}\" on {line} would share the {} name {compared}",
                self.what
            );
            self.reader.fault(&path, message, "let them differ in more than '-' and '_'");
        }
    }
}
