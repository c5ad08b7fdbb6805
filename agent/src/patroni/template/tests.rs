//! A sound template, what pgleap adds to it, and every way to spoil it.

use super::super::judge::testing::{each_edit_is_told, node};
use super::*;

const PATH: &str = "/t.yml";
const TEMPLATE: &str = "
namespace: /seeds/
etcd3: {hosts: '10.0.0.9:2379'}
bootstrap:
  dcs:
    ttl: 30
    standby_cluster:
      create_replica_methods: [pgbackrest, basebackup]
    postgresql:
      parameters: {max_connections: 700}
postgresql:
  listen: 10.0.0.3
  authentication:
    replication: {username: repl, password: x}
  pgbackrest: {command: /usr/local/bin/restore, no_params: on}
";

fn patroni() -> SeedPatroni {
    SeedPatroni {
        scope: "ledger-seed-0123ab".into(),
        rest: "http://10.0.0.3:8008".into(),
        entry: "ledger18".into(),
        leader: true,
    }
}

fn judged(text: &str) -> Vec<Complaint> {
    Template::parse(text, PATH).unwrap().judge(PATH, &node(15), &patroni())
}

fn part(text: &str) -> Value {
    let settings = [("max_connections", "300"), ("wal_level", "logical")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Template::parse(text, PATH).unwrap().part(&Part {
        node: &node(15),
        patroni: &patroni(),
        remote: &Conninfo { host: "10.0.0.2".into(), port: 5432, ..Conninfo::default() },
        slot: "pgleap_0123ab_n1",
        settings: &settings,
    })
}

#[test]
fn pgleap_says_what_the_plan_decides_and_leaves_the_rest() {
    assert_eq!(judged(TEMPLATE), Vec::new());
    assert_eq!(
        part(TEMPLATE),
        json!({
            "scope": "ledger-seed-0123ab",
            "name": "n1",
            "restapi": {"connect_address": "10.0.0.3:8008", "listen": "0.0.0.0:8008"},
            "bootstrap": {"dcs": {
                "standby_cluster": {"host": "10.0.0.2", "port": 5432, "primary_slot_name": "pgleap_0123ab_n1"},
                // The template has the other one.
                "postgresql": {"parameters": {"wal_level": "logical"}},
            }},
            "postgresql": {
                "data_dir": "/srv/15/ledger",
                "bin_dir": "/usr/lib/postgresql/15/bin",
                "listen": "10.0.0.3:5433",
                "connect_address": "10.0.0.3:5433",
                "use_unix_socket": true,
                "authentication": {"superuser": {"username": "admin"}},
                "parameters": {"archive_mode": "off", "unix_socket_directories": "/run/ledger"},
            },
        })
    );
    // What agrees may stand there, too.
    let agrees = TEMPLATE
        .replace("namespace:", "scope: ledger-seed\nname: n1\nrestapi: {listen: '[::]:8008', connect_address: 'db3:8008'}\nnamespace:")
        .replace("listen: 10.0.0.3\n", "listen: '*:5433'\n  data_dir: /srv/15/ledger/\n  parameters: {unix_socket_directories: '/tmp, /run/ledger/'}\n");
    assert_eq!(judged(&agrees), Vec::new());
    let part = part(&agrees);
    assert_eq!(part["restapi"], json!({"connect_address": "10.0.0.3:8008", "listen": "[::]:8008"}));
    assert_eq!(
        (&part["postgresql"]["listen"], &part["postgresql"]["parameters"]),
        (&json!("*:5433"), &json!({"archive_mode": "off"}))
    );
}

#[test]
fn each_fault_is_named_with_its_cure() {
    let wrong = [
        ("namespace: /seeds/", "namspace: /seeds/", "namspace is no key of Patroni's", "correct or remove"),
        ("etcd3: {hosts: '10.0.0.9:2379'}\n", "", "names no store", "etcd3"),
        ("etcd3:", "scope: ledger\netcd3:", "scope is ledger, and seed_scope", "remove scope"),
        ("etcd3:", "name: n2\netcd3:", "name is n2", "remove name"),
        (
            "  listen: 10.0.0.3\n",
            "  data_dir: /srv/18/ledger\n",
            "postgresql.data_dir is /srv/18",
            "remove postgresql.data_dir",
        ),
        ("  listen: 10.0.0.3\n", "  bin_dir: /usr/bin\n", "postgresql.bin_dir is /usr/bin", "remove"),
        (
            "  listen: 10.0.0.3\n",
            "  listen: '*:5432'\n",
            "the port of postgresql.listen",
            "leave the port out",
        ),
        (
            "  listen: 10.0.0.3\n",
            "  connect_address: 'a:1'\n",
            "the port of postgresql.connect_address",
            "leave",
        ),
        ("  listen: 10.0.0.3\n", "  pg_hba: [local all all peer]\n", "postgresql.pg_hba", "remove"),
        ("  listen: 10.0.0.3\n", "  config_dir: /etc/x\n", "postgresql.config_dir", "remove"),
        (
            "  listen: 10.0.0.3\n",
            "  parameters: {unix_socket_directories: /tmp}\n",
            "without the node's socket_dir",
            "remove",
        ),
        ("    ttl: 30\n", "    pause: true\n", "bootstrap.dcs.pause", "remove"),
        ("    ttl: 30\n", "    synchronous_mode: quorum\n", "bootstrap.dcs.synchronous_mode", "remove"),
        (
            "    postgresql:\n",
            "    postgresql:\n      pg_hba: [local all all peer]\n",
            "bootstrap.dcs.postgresql.pg_hba",
            "remove",
        ),
        (
            "    standby_cluster:\n",
            "    standby_cluster:\n      host: x\n",
            "standby_cluster.host is there",
            "remove",
        ),
        (
            "    standby_cluster:\n",
            "    standby_cluster:\n      primary_slot_name: x\n",
            "primary_slot_name is there",
            "remove",
        ),
        ("etcd3:", "tags: {nofailover: true}\netcd3:", "tags.nofailover", "remove"),
        ("etcd3:", "tags: {failover_priority: 0}\netcd3:", "failover_priority: 0", "remove"),
        (
            "etcd3:",
            "restapi: {connect_address: 'a:8009'}\netcd3:",
            "restapi.connect_address is a:8009",
            "remove",
        ),
        ("etcd3:", "restapi: {certfile: /c}\netcd3:", "restapi.certfile says otherwise", "exactly when"),
        ("username: repl", "user: repl", "replication.username is missing", "write the login"),
        (
            "    replication:",
            "    superuser: {username: root}\n    replication:",
            "superuser.username is root",
            "remove",
        ),
    ];
    each_edit_is_told(PATH, TEMPLATE, judged, &wrong);
    // What says no is fine.
    assert_eq!(
        judged(
            &TEMPLATE
                .replace("etcd3:", "tags: {nofailover: no}\netcd3:")
                .replace("    ttl: 30", "    pause: off\n    synchronous_mode: false")
        ),
        Vec::new()
    );
    for nonsense in ["", "- a", "a: [", "text"] {
        assert!(Template::parse(nonsense, PATH).unwrap_err().contains(PATH), "{nonsense}");
    }
}

#[test]
fn places_are_taken_apart() {
    for (place, expected) in
        [("*:5432", "*"), ("a,b:1", "a,b"), ("a", "a"), ("", "?"), ("[::]:1", "[::]"), (":1", "?")]
    {
        assert_eq!(host(place, "?"), expected, "{place}");
    }
}
