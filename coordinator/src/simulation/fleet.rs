//! The fleet file of the little world: per cluster two old nodes, two new ones, two poolers and a balancer. Its text goes into the log of
//! seeds that have a rollout, where operations are planned by coordinators as they are admitted.

use std::fmt::Write as _;

use crate::fleet::{FleetSpec, parse};

/// How long a pause may last in operations that coordinators plan, in seconds.
const HOLD: u64 = 6;

/// The text for so many clusters; `at_once` is the limit of operations on their way to the gate.
pub(super) fn text(clusters: usize, at_once: usize) -> String {
    let mut text = format!("[fleet]\nname = \"simulated\"\n\n[limits]\noperations = {at_once}\n");
    for name in (1..=clusters).map(|n| format!("k{n}")) {
        for host in ["o0", "o1", "n0", "n1", "p0", "p1"] {
            let _ = write!(text, "\n[[host]]\nname = \"{name}{host}\"\nagent = \"{name}{host}:7432\"\n");
        }
        text.push_str(&cluster(&name));
    }
    text
}

/// The same, read.
pub(super) fn spec(text: &str) -> FleetSpec {
    parse(text, "the simulated fleet file").unwrap()
}

fn cluster(name: &str) -> String {
    let node = |side: &str, n: usize, directories: &str| {
        let letter = &side[..1];
        format!(
            "[[cluster.{side}.node]]\nname = \"{name}-{side}-{n}\"\nhost = \"{name}{letter}{n}\"\n{directories}\n"
        )
    };
    let old = "data_dir = \"/var/lib/postgresql/15/ledger\"";
    let new = "seed_dir = \"/var/lib/postgresql/15/ledger\"\ndata_dir = \"/var/lib/postgresql/18/ledger\"\n\
               tablespaces = [{ from = \"/srv/fast\", to = \"/srv/fast\" }]";
    let mut text = format!(
        "\n[[cluster]]\nname = \"{name}\"\n\n[cluster.old]\nversion = 15\nbin_dir = \"/usr/lib/postgresql/15/bin\"\n\
         replication = {{ user = \"replicator\", passfile = \"/var/lib/postgresql/.pgpass\" }}\n{}{}\n[cluster.new]\n\
         version = 18\nbin_dir = \"/usr/lib/postgresql/18/bin\"\n{}{}\n[cluster.options]\nslot_timeout = \"10m\"\n",
        node("old", 0, old),
        node("old", 1, old),
        node("new", 0, new),
        node("new", 1, new),
    );
    for n in 0..2 {
        let _ = write!(
            text,
            "\n[[cluster.pooler]]\nname = \"{name}-pool-{n}\"\nhost = \"{name}p{n}\"\nhook = {{ name = \"{name}-pool-{n}\", drain = \
             \"1ms\" }}\n"
        );
    }
    let _ = write!(
        text,
        "\n[[cluster.balancer]]\nname = \"{name}-b\"\nhost = \"{name}p0\"\nhaproxy = {{ socket = \"/run/haproxy.sock\", backend = \
         \"reads\", old_servers = [\"o1\"], new_servers = [\"n1\"] }}\n\n[cluster.traffic]\nacquire = \"500ms\"\nhold = \
         \"{HOLD}s\"\ntries = 3\n"
    );
    text
}
