//! Answers as Patroni 4.1.5 gave them, and files as its own documentation writes them.

use pgleap_proto::patroni::{Cluster, Status};
use serde_json::{Value, json};

use super::{Config, Told, find, toml};
use crate::fleet;

/// A member's file, shortened by what pgleap does not read.
const FILE: &str = r#"
scope: &scope ledger
#namespace: /service/
name: o1

restapi:
  listen: 0.0.0.0:8008
  connect_address: 10.0.0.1:8008
  certfile: /etc/patroni/rest.crt
  keyfile: /etc/patroni/rest.key
  authentication: {username: rest, password: 'it''s: secret'}

ctl:
  cacert: /etc/patroni/ca.crt

etcd3:
  hosts:
  - 10.0.0.7:2379
  - 10.0.0.8:2379

bootstrap:
  dcs:
    ttl: 30
    postgresql:
      use_pg_rewind: yes
      parameters: {}
  initdb:
  - encoding: UTF8
  - data-checksums

postgresql:
  listen: "*:5432"
  connect_address: '[fd00::1]:5433'
  data_dir: /srv/pg/15/main
  config_dir: /etc/postgresql/15/main
  bin_dir: /usr/lib/postgresql/15/bin
  use_unix_socket: false
  use_unix_socket: yes
  authentication:
    superuser: {username: postgres, password: s}
    replication:
      username: replicator
      password: 1234
  parameters:
    unix_socket_directories: '/run/pg, /tmp'
    max_connections: 100
  create_replica_methods: [basebackup]
tags:
  nofailover: false
watchdog: {mode: off}
"#;

fn cluster() -> Cluster {
    serde_json::from_value(json!({
        "members": [
            {"name": "o2", "role": "replica", "state": "streaming", "api_url": "https://[fd00::2]:8008/patroni", "host": "fd00::2",
             "port": 5433, "timeline": 1, "tags": {"nofailover": true, "clonefrom": true}, "receive_lag": 0, "lag": 0,
             "lsn": "0/3000060"},
            {"name": "o1", "role": "leader", "state": "running", "api_url": "https://10.0.0.1:8008/patroni", "host": "fd00::1",
             "port": 5433, "timeline": 1, "tags": {"clonefrom": true, "nofailover": false}},
        ],
        "scope": "ledger"
    }))
    .unwrap()
}

fn status(name: &str, role: &str) -> Status {
    serde_json::from_value(json!({
        "state": "running", "postmaster_start_time": "2026-11-28 07:33:44.784817+00:00", "role": role, "server_version": 150018,
        "xlog": {"location": 50331744}, "timeline": 1,
        "replication": [{"usename": "replicator", "application_name": "o2", "client_addr": "127.0.0.1", "state": "streaming",
                         "sync_state": "async", "sync_priority": 0}],
        "dcs_last_seen": 1_795_851_256, "tags": {"clonefrom": true}, "database_system_identifier": "7713122261042387322",
        "pending_restart": true, "pending_restart_reason": {"max_connections": {"old_value": "100", "new_value": "80"}},
        "patroni": {"version": "4.1.5", "scope": "ledger", "name": name}
    }))
    .unwrap()
}

fn told() -> Told {
    Told {
        config: Some(Config::parse(FILE, "patroni.yml").unwrap()),
        cluster: Some(cluster()),
        dynamic: Some(
            json!({"ttl": 30, "synchronous_mode": "quorum", "postgresql": {"use_slots": true, "parameters": {}}}),
        ),
        statuses: [("o1", "primary"), ("o2", "replica")]
            .map(|(name, role)| (name.to_owned(), status(name, role)))
            .into(),
        ..Told::default()
    }
}

#[test]
fn a_file() {
    let config = Config::parse(FILE, "patroni.yml").unwrap();
    assert_eq!(config.scope, "ledger");
    assert_eq!(config.namespace, "/service/");
    assert_eq!(config.store, "etcd3");
    assert_eq!(config.rest.as_ref().map(ToString::to_string).as_deref(), Some("https://10.0.0.1:8008"));
    assert_eq!((config.rest_user.as_str(), config.rest_password.as_str()), ("rest", "it's: secret"));
    assert_eq!(config.ctl.cacert.as_deref(), Some("/etc/patroni/ca.crt"));
    assert!(config.use_unix_socket && !config.has_hba);
    assert_eq!((config.superuser.as_str(), config.replicator.as_str()), ("postgres", "replicator"));
}

#[test]
fn what_is_no_file_of_patroni_is_refused_with_the_reason() {
    let refused = |text: &str| Config::parse(text, "x.yml").unwrap_err().to_string();
    assert!(refused("name: o1\n").contains("it has no scope, which may come from PATRONI_SCOPE"));
    assert!(refused("scope: a\n").contains("it has no name"));
    let broken = refused("password: hush\nscope: [\n");
    assert!(
        broken.starts_with("x.yml is not a configuration of Patroni") && !broken.contains("hush"),
        "{broken}"
    );
    assert!(
        refused("scope: a\nname: b\nrestapi: {connect_address: 'a b'}\n")
            .contains("is not the address of a REST API")
    );
}

#[test]
fn the_leader_stands_first_and_what_needs_a_look_is_told() {
    let found = find(&told()).unwrap();
    let names: Vec<&str> = found.members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["o1", "o2"]);
    assert_eq!((found.major, found.hba.as_str(), found.synchronous_mode.as_str()), (15, "file", "quorum"));
    assert_eq!(found.members[0].config_file, "/etc/postgresql/15/main/postgresql.conf");
    assert!(!found.members[0].assumed && found.members[1].assumed);
    let notes = found.notes.join("\n");
    assert!(
        notes.contains("member o2 is tagged nofailover") && notes.contains("synchronous_mode is quorum"),
        "{notes}"
    );
    assert!(!notes.contains("o1 is tagged"), "{notes}");
}

#[test]
fn rules_for_clients_in_a_members_own_file_are_told() {
    let mut told = told();
    let file = FILE
        .replace("  create_replica_methods:", "  pg_hba:\n  - local all all peer\n  create_replica_methods:");
    told.config = Some(Config::parse(&file, "patroni.yml").unwrap());
    let found = find(&told).unwrap();
    assert_eq!(found.hba, "local");
    assert!(
        found.notes.iter().any(|note| note.contains("move it to the dynamic configuration")),
        "{:?}",
        found.notes
    );
}

#[test]
fn a_file_and_a_rest_api_of_different_clusters_are_refused() {
    let mut told = told();
    told.cluster = told.cluster.map(|cluster| Cluster { scope: "other".into(), ..cluster });
    assert!(find(&told).unwrap_err().contains("answers for \"other\""));
}

/// What is missing in an imported part, the new side and the fleet's name.
fn completed(part: &str) -> String {
    format!(
        "[fleet]\nname = \"f\"\n[[host]]\nname = \"n1\"\nagent = \"10.0.0.9:7432\"\n{part}\n[cluster.new]\nversion = 18\n\
         bin_dir = \"/usr/lib/postgresql/18/bin\"\n[[cluster.new.node]]\nname = \"n1\"\nhost = \"n1\"\n\
         seed_dir = \"/srv/pg/15/ledger\"\ndata_dir = \"/srv/pg/18/ledger\"\n"
    )
}

#[test]
fn the_written_part_is_a_sound_fleet_file_with_the_new_side_added() {
    let part = toml(&find(&told()).unwrap(), "patroni.yml");
    let spec =
        fleet::parse(&completed(&part), "fleet.toml").unwrap_or_else(|error| panic!("{error}\n{part}"));
    let cluster = &spec.clusters[0];
    assert_eq!(cluster.name, "ledger");
    assert_eq!(cluster.old.patroni.as_ref().map(|patroni| patroni.scope.as_str()), Some("ledger"));
    let node = &cluster.old.nodes[0];
    assert_eq!(
        (node.address.as_str(), node.port, node.rest.as_str()),
        ("fd00::1", 5433, "https://10.0.0.1:8008")
    );
    assert_eq!((node.socket_dir.as_str(), node.data_dir.as_str()), ("/run/pg", "/srv/pg/15/main"));
    assert_eq!(spec.hosts[1].agent, "[fd00::1]:7432");
    assert_eq!(cluster.old_node(node).patroni.map(|patroni| patroni.scope), Some("ledger".to_owned()));
    assert!(!part.contains("secret") && !part.contains("1234"), "a password is printed:\n{part}");
}

#[test]
fn what_a_rest_api_does_not_tell_is_a_comment_that_apply_asks_for() {
    let told = Told { config: None, ..told() };
    let part = toml(&find(&told).unwrap(), "https://10.0.0.1:8008");
    assert!(part.contains("# data_dir = ") && part.contains("# bin_dir = "), "{part}");
    let faults = fleet::parse(&completed(&part), "fleet.toml").unwrap_err().to_string();
    assert!(faults.contains("data_dir") && faults.contains("bin_dir"), "{faults}");
    let filled = part
        .replace("# data_dir", "data_dir")
        .replacen("# bin_dir", "bin_dir", 1)
        .replace("# superuser", "superuser");
    fleet::parse(&completed(&filled), "fleet.toml").unwrap_or_else(|error| panic!("{error}\n{filled}"));
}

#[test]
fn without_any_answer_the_file_alone_tells_of_one_member() {
    let unanswered = [("o1".to_owned(), "connection refused".to_owned())].into();
    let told = Told { config: told().config, unanswered, ..Told::default() };
    let found = find(&told).unwrap();
    assert_eq!(found.members.len(), 1);
    assert_eq!((found.members[0].address.as_str(), found.members[0].port), ("fd00::1", 5433));
    let notes = found.notes.join("\n");
    assert!(notes.contains("connection refused") && notes.contains("add the others"), "{notes}");
    assert!(find(&Told::default()).is_err());
}

#[test]
fn answers_of_other_versions_are_read() {
    let old: Cluster =
        serde_json::from_value(json!({"members": [{"name": "a", "role": "leader"}], "pause": true})).unwrap();
    assert!(old.pause && old.scope.is_empty());
    let strange: Result<Cluster, _> = serde_json::from_value::<Cluster>(Value::Null);
    assert!(strange.is_err());
}

#[test]
fn a_rest_key_and_the_section_go_together() {
    let part = toml(&find(&told()).unwrap(), "patroni.yml");
    let faults = |text: &str| fleet::parse(&completed(text), "f").unwrap_err().to_string();
    let without = part.replace("[cluster.old.patroni]\nscope = \"ledger\"\n", "");
    assert!(faults(&without).contains("does not run this cluster"));
    let missing = part.replace("rest = \"https://[fd00::2]:8008\"", "");
    assert!(faults(&missing).contains("because Patroni runs this cluster"));
    let twice = part.replace("[fd00::2]:8008", "10.0.0.1:8008");
    assert!(faults(&twice).contains("give each member its own"));
    let wrong = part.replace("https://[fd00::2]:8008", "ftp://x");
    assert!(faults(&wrong).contains("is not the address"));
}
