//! A sound file is read completely, and what changes it is told.

mod faults;

use super::samples::{LEDGER, TRAFFIC};
use super::*;

const OPTIONS: &str = "[cluster.options]";

fn broken(edits: &[(&str, &str)]) -> String {
    let mut text = LEDGER.to_owned();
    for (from, to) in edits {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    text
}

#[test]
fn a_sound_file_is_read_with_its_defaults() {
    let spec = parse(LEDGER, "fleet.toml").unwrap();
    let cluster = spec.cluster("ledger").unwrap();
    assert_eq!(spec.agents().len(), 4);
    assert_eq!(cluster.agents().get("db3").unwrap(), "10.0.0.3:7432");
    let old = cluster.old.nodes.first().unwrap();
    assert_eq!(
        (old.address.as_str(), old.port, old.socket_dir.as_str()),
        ("10.0.0.1", 5432, "/var/run/postgresql")
    );
    assert_eq!(cluster.new.old_bin_dir, "/usr/lib/postgresql/15/bin");
    assert_eq!(cluster.old.rehearsal, cluster.old.replication);
    assert_eq!(cluster.options.slot_timeout_ms, 600_000);
    assert_eq!(cluster.options.verify_sample_percent, 5);
    assert_eq!(cluster.options.validate.chunk_rows, 5000);
    let leader = cluster.new_leader().unwrap();
    let (seed, node) = (cluster.seed(leader), cluster.new_node(leader));
    assert_eq!((seed.major, seed.data_dir.as_str()), (15, "/var/lib/postgresql/15/ledger"));
    assert_eq!((node.major, node.data_dir.as_str()), (18, "/var/lib/postgresql/18/ledger"));
    assert_eq!((seed.port, &seed.name), (node.port, &node.name));
    assert_eq!(cluster.reach_old(old).passfile, "/var/lib/postgresql/.pgpass");
}

#[test]
fn what_moves_traffic_is_read_with_its_defaults() {
    let spec = parse(&format!("{LEDGER}{TRAFFIC}"), "fleet.toml").unwrap();
    let cluster = spec.cluster("ledger").unwrap();
    let names: Vec<&str> = cluster.poolers.iter().map(|pooler| pooler.name.as_str()).collect();
    assert_eq!(names, ["pool-1", "pool-2", "shop"]);
    assert_eq!(cluster.poolers[0].agent, "10.0.0.1:7432");
    let PoolerKind::PgBouncer { port, .. } = &cluster.poolers[1].kind else { panic!() };
    assert_eq!(*port, 6432);
    assert_eq!(cluster.poolers[2].kind, PoolerKind::Hook { name: "flip".into(), drain_ms: 2000 });
    assert_eq!(cluster.balancers[0].new_servers, ["new2"]);
    let usual = TrafficSpec::default();
    assert_eq!(cluster.traffic, TrafficSpec { hold_ms: 10_000, tries: 3, ..usual });
    assert_eq!(cluster.new.replication, cluster.old.replication);
    let text = broken(&[("version = 18", "version = 18\nreplication = { user = \"back\" }")]);
    let spec = parse(&text, "fleet.toml").unwrap();
    assert_eq!(spec.clusters[0].new.replication.user, "back");
    assert_eq!(
        (spec.clusters[0].traffic.clone(), spec.clusters[0].poolers.len()),
        (TrafficSpec::default(), 0)
    );
}

#[test]
fn what_is_said_of_many_operations_is_read() {
    let more = "[limits]\nper_rack = 1\n[[window]]\nfrom = \"22:00\"\nto = \"24:00\"\nzone = \"Europe/Zurich\"\n\
                [[wave]]\nclusters = [\"ledger\"]\nsoak = \"24h\"\n[[wave]]\nrest = true\n[cluster.options]";
    let racked = ("agent = \"10.0.0.2:7432\"", "agent = \"10.0.0.2:7432\"\nrack = \"r2\"");
    let spec = parse(&broken(&[racked, (OPTIONS, more)]), "f").unwrap();
    assert_eq!(spec.limits, Limits { operations: Some(20), per_rack: Some(1) });
    assert_eq!((spec.windows[0].from, spec.windows[0].to, spec.windows[0].days.len()), (1320, 1440, 0));
    assert_eq!((spec.waves.len(), spec.waves[0].soak_ms, &spec.waves[1].who), (2, 86_400_000, &Who::Rest));
    let policy = spec.policy(jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(policy.racks, [("db2".to_owned(), "r2".to_owned())].into());
    assert!(policy.windows[0].days.iter().all(|day| *day) && !policy.windows[0].zone.changes.is_empty());
    let before = parse(LEDGER, "f").unwrap();
    assert_eq!(before.limits, Limits { operations: Some(20), per_rack: None });
    // A cluster under way is not touched by any of it.
    assert!(!before.touches(&spec, "ledger"));
    let changes = [
        "host db2: rack (none) -> r2",
        "fleet: limits: changed",
        "fleet: windows: changed",
        "fleet: waves: changed",
    ];
    assert_eq!(diff(&before, &spec), changes);
}

#[test]
fn hosts_of_poolers_and_balancers_are_hosts_of_the_cluster() {
    let more = "[[host]]\nname = \"app1\"\nagent = \"10.0.0.9:7432\"\n\n[[cluster]]";
    let text = broken(&[("[[cluster]]", more)]) + &TRAFFIC.replacen("db1", "app1", 1);
    let spec = parse(&text, "fleet.toml").unwrap();
    assert_eq!(spec.clusters[0].agents().get("app1").unwrap(), "10.0.0.9:7432");
}

#[test]
fn a_new_node_is_patronis_only_when_it_has_been_handed_over() {
    let edits = [
        ("name = \"ledger-new-1\"", "rest = \"https://db3:8008\"\nname = \"ledger-new-1\""),
        ("name = \"ledger-new-2\"", "rest = \"https://db4:8008\"\nname = \"ledger-new-2\""),
    ];
    let section =
        [("[[cluster.new.node]]", "[cluster.new.patroni]\nscope = \"ledger18\"\n[[cluster.new.node]]")];
    let spec = parse(&broken(&[edits.as_slice(), &section].concat()), "f").unwrap();
    let cluster = spec.cluster("ledger").unwrap();
    let leader = cluster.new_leader().unwrap();
    let patroni = cluster.served_node(leader).patroni.unwrap();
    assert_eq!((patroni.scope.as_str(), patroni.rest.as_str()), ("ledger18", "https://db3:8008"));
    assert_eq!((cluster.new_node(leader).patroni, cluster.seed(leader).patroni), (None, None));
    let plain = parse(LEDGER, "f").unwrap();
    assert!(diff(&plain, &spec).contains(&"cluster ledger: new.patroni.scope (none) -> ledger18".to_owned()));
    assert_eq!(cluster.seed_patroni(leader), None);
    let seeded = [("scope = \"ledger18\"", "scope = \"ledger18\"\nseed_scope = \"seed\"")];
    let text = broken(&[edits.as_slice(), &section].concat()).replace(seeded[0].0, seeded[0].1);
    let seeded = parse(&text, "f").unwrap();
    assert_eq!(diff(&spec, &seeded), ["cluster ledger: new.patroni.seed_scope (none) -> seed"]);
    let cluster = seeded.cluster("ledger").unwrap();
    let seeds: Vec<_> = cluster.new.nodes.iter().map(|node| cluster.seed_patroni(node).unwrap()).collect();
    assert!(seeds[0].leader && !seeds[1].leader);
    assert_eq!(
        (seeds[1].scope.as_str(), seeds[1].entry.as_str(), seeds[1].rest.as_str()),
        ("seed", "ledger18", "https://db4:8008")
    );
    let cluster = plain.cluster("ledger").unwrap();
    let leader = cluster.new_leader().unwrap();
    assert_eq!(cluster.served_node(leader), cluster.new_node(leader));
}

#[test]
fn an_ipv6_agent_gives_a_bare_address() {
    let text = broken(&[("10.0.0.1:7432", "[fd00::1]:7432")]);
    let spec = parse(&text, "f").unwrap();
    assert_eq!(spec.cluster("ledger").unwrap().old.nodes.first().unwrap().address, "fd00::1");
}

/// The new side of a move is written down once.
#[test]
fn in_a_move_seed_and_node_are_one() {
    let edits = [
        ("version = 18", "version = 15"),
        ("bin_dir = \"/usr/lib/postgresql/18/bin\"", "bin_dir = \"/opt/pg15/bin\""),
        ("seed_dir = \"/var/lib/postgresql/15/ledger\"\n", ""),
    ];
    let mut text = broken(&edits);
    text = text.replacen("seed_dir = \"/var/lib/postgresql/15/ledger\"\n", "", 1);
    let spec = parse(&text, "f").unwrap();
    let cluster = spec.cluster("ledger").unwrap();
    assert!(cluster.is_move());
    for node in &cluster.new.nodes {
        let seed = cluster.seed(node);
        assert_eq!(seed, cluster.new_node(node));
        assert_eq!(
            (seed.data_dir.as_str(), seed.bin_dir.as_str()),
            ("/var/lib/postgresql/18/ledger", "/opt/pg15/bin")
        );
    }
}

#[test]
fn changes_are_told_and_found() {
    let old = parse(LEDGER, "f").unwrap();
    let text = broken(
        &[
            ("10.0.0.4:7432", "10.0.0.5:7432"),
            ("version = 18", "version = 18\njobs = 4"),
            ("socket_dir", "socket_dir"),
        ][..2],
    );
    let new = parse(&text, "f").unwrap();
    assert_eq!(
        diff(&old, &new),
        [
            "host db4: agent 10.0.0.4:7432 -> 10.0.0.5:7432",
            "cluster ledger: new.jobs processors -> 4",
            "cluster ledger: new node ledger-new-2: changed",
        ]
    );
    assert!(old.touches(&new, "ledger"));
    assert!(!old.touches(&new, "another"));
    assert_eq!(diff(&old, &old), Vec::<String>::new());
    let removed = FleetSpec { clusters: Vec::new(), ..old.clone() };
    assert_eq!(diff(&old, &removed), ["cluster ledger: removed"]);
    assert!(old.touches(&removed, "ledger"));
    assert_eq!(diff(&removed, &old), ["cluster ledger: added"]);
}
