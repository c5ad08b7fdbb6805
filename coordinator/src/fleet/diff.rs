//! What a new fleet file changes, for people, and whether it touches a cluster that must not be touched now.

use super::spec::{ClusterSpec, FleetSpec};

/// A line for everything that `new` adds, removes or changes. Empty when nothing does.
pub fn diff(old: &FleetSpec, new: &FleetSpec) -> Vec<String> {
    let mut changes = Vec::new();
    if old.name != new.name {
        changes.push(format!("fleet: name {} -> {}", shown(&old.name), shown(&new.name)));
    }
    let hosts = |spec: &FleetSpec| spec.hosts.iter().map(|h| (h.name.clone(), h.agent.clone())).collect();
    compare("host", hosts(old), hosts(new), &mut changes, |name, before, after, changes| {
        changes.push(format!("host {name}: agent {before} -> {after}"));
    });
    let racks = |host: &super::HostSpec| host.rack.clone().unwrap_or_default();
    for (before, after) in
        old.hosts.iter().filter_map(|h| Some((h, new.hosts.iter().find(|n| n.name == h.name)?)))
    {
        if before.rack != after.rack {
            let (name, before, after) = (&after.name, racks(before), racks(after));
            changes.push(format!("host {name}: rack {} -> {}", shown(&before), shown(&after)));
        }
    }
    for (what, changed) in [
        ("limits", old.limits != new.limits),
        ("windows", old.windows != new.windows),
        ("waves", old.waves != new.waves),
    ] {
        if changed && !old.name.is_empty() {
            changes.push(format!("fleet: {what}: changed"));
        }
    }
    let clusters = |spec: &FleetSpec| spec.clusters.iter().map(|c| (c.name.clone(), c.clone())).collect();
    compare("cluster", clusters(old), clusters(new), &mut changes, |name, before, after, changes| {
        cluster_changes(name, before, after, changes);
    });
    changes
}

impl FleetSpec {
    /// Whether going from `self` to `other` adds, removes or changes this cluster in any way, its agents' addresses
    /// included. Its place in the file does not matter.
    pub fn touches(&self, other: &FleetSpec, cluster: &str) -> bool {
        self.cluster(cluster) != other.cluster(cluster)
    }
}

type Named<T> = Vec<(String, T)>;

fn compare<T: PartialEq>(
    what: &str,
    old: Named<T>,
    new: Named<T>,
    changes: &mut Vec<String>,
    changed: impl Fn(&str, &T, &T, &mut Vec<String>),
) {
    let find = |list: &Named<T>, name: &str| list.iter().position(|(other, _)| other == name);
    for (name, after) in &new {
        match find(&old, name).and_then(|index| old.get(index)) {
            None => changes.push(format!("{what} {name}: added")),
            Some((_, before)) if before != after => changed(name, before, after, changes),
            Some(_) => {}
        }
    }
    for (name, _) in old.iter().filter(|(name, _)| find(&new, name).is_none()) {
        changes.push(format!("{what} {name}: removed"));
    }
}

fn cluster_changes(name: &str, old: &ClusterSpec, new: &ClusterSpec, changes: &mut Vec<String>) {
    let scope = |patroni: &Option<super::PatroniSpec>| {
        patroni.as_ref().map(|patroni| patroni.scope.clone()).unwrap_or_default()
    };
    let facts = |c: &ClusterSpec| -> Named<String> {
        let (o, n, p) = (&c.old, &c.new, &c.options);
        [
            ("old.version", o.version.to_string()),
            ("old.bin_dir", o.bin_dir.clone()),
            ("old.superuser", o.superuser.clone()),
            ("old.replication", login(&o.replication)),
            ("old.rehearsal", login(&o.rehearsal)),
            ("old.environment", format!("{:?}", o.environment)),
            ("old.patroni.scope", scope(&o.patroni)),
            ("new.version", n.version.to_string()),
            ("new.bin_dir", n.bin_dir.clone()),
            ("new.old_bin_dir", n.old_bin_dir.clone()),
            ("new.jobs", n.jobs.map_or("processors".into(), |jobs| jobs.to_string())),
            ("new.replication", login(&n.replication)),
            ("new.environment", format!("{:?}", n.environment)),
            ("new.patroni.scope", scope(&n.patroni)),
            ("new.patroni.seed_scope", n.patroni.as_ref().map(|p| p.seed_scope.clone()).unwrap_or_default()),
            ("options.slot_timeout", format!("{} ms", p.slot_timeout_ms)),
            ("options.long_transaction", format!("{} ms", p.long_transaction_ms)),
            ("options.verify_sample_percent", p.verify_sample_percent.to_string()),
            ("options.disk_margin_percent", p.disk_margin_percent.to_string()),
            ("options.validate.parallel", p.validate.parallel.to_string()),
            ("options.validate.chunk_rows", p.validate.chunk_rows.to_string()),
            ("options.validate.rows_per_second", p.validate.rows_per_second.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    };
    for ((key, before), (_, after)) in facts(old).into_iter().zip(facts(new)) {
        if before != after {
            changes.push(format!("cluster {name}: {key} {} -> {}", shown(&before), shown(&after)));
        }
    }
    let nodes =
        |list: &[crate::fleet::OldNodeSpec]| list.iter().map(|n| (n.name.clone(), n.clone())).collect();
    let what = format!("cluster {name}: old node");
    compare(&what, nodes(&old.old.nodes), nodes(&new.old.nodes), changes, |node, _, _, changes| {
        changes.push(format!("{what} {node}: changed"));
    });
    let nodes =
        |list: &[crate::fleet::NewNodeSpec]| list.iter().map(|n| (n.name.clone(), n.clone())).collect();
    let what = format!("cluster {name}: new node");
    compare(&what, nodes(&old.new.nodes), nodes(&new.new.nodes), changes, |node, _, _, changes| {
        changes.push(format!("{what} {node}: changed"));
    });
    let poolers = |c: &ClusterSpec| c.poolers.iter().map(|p| (p.name.clone(), p.clone())).collect();
    let what = format!("cluster {name}: pooler");
    compare(&what, poolers(old), poolers(new), changes, |pooler, _, _, changes| {
        changes.push(format!("{what} {pooler}: changed"));
    });
    let balancers = |c: &ClusterSpec| c.balancers.iter().map(|b| (b.name.clone(), b.clone())).collect();
    let what = format!("cluster {name}: balancer");
    compare(&what, balancers(old), balancers(new), changes, |balancer, _, _, changes| {
        changes.push(format!("{what} {balancer}: changed"));
    });
    if old.traffic != new.traffic {
        changes.push(format!("cluster {name}: traffic: changed"));
    }
    let (before, after) = (leader(old), leader(new));
    if before != after {
        changes.push(format!("cluster {name}: new leader {} -> {}", shown(before), shown(after)));
    }
}

fn leader(cluster: &ClusterSpec) -> &str {
    cluster.new_leader().map_or("", |node| &node.name)
}

fn login(login: &super::spec::LoginSpec) -> String {
    let parts = [&login.user, &login.passfile, &login.sslmode];
    parts.into_iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(" ")
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "(none)" } else { value }
}
