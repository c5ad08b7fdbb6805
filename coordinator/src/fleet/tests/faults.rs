//! Every way a file is known to go wrong gets the faults of `golden/faults.txt`; and no text makes the reader panic.

use super::*;

/// Every way a file is known to go wrong. Each must be refused; the words are in the golden file.
const CASES: &[(&str, &[(&str, &str)])] = &[
    ("empty of meaning", &[(LEDGER, "")]),
    ("not TOML, twice", &[("name = \"db1\"", "name = \"db1"), ("version = 15", "version == 15")]),
    ("the same key twice", &[("version = 15", "version = 15\nversion = 16")]),
    ("a mistyped key", &[("seed_dir", "seed_dri")]),
    ("an unknown key far from any", &[("version = 18", "version = 18\ncompression = \"lz4\"")]),
    ("an unknown table", &[("[cluster.options]", "[cluster.opts]")]),
    ("an unknown key in an inline table", &[("chunk_rows = 5000", "chunk_row = 5000")]),
    ("text for a number", &[("version = 15", "version = \"15\"")]),
    ("number for a text", &[("host = \"db1\"", "host = 1")]),
    (
        "a table for a list",
        &[(
            "[[host]]\nname = \"db1\"\nagent = \"10.0.0.1:7432\"\n[[host]]\nname = \"db2\"\nagent = \"10.0.0.2:7432\"\n[[host]]\nname = \"db3\"\nagent = \"10.0.0.3:7432\"\n[[host]]",
            "[host]",
        )],
    ),
    ("a number in a list of tables", &[("[{ from = \"/srv/fast\", to = \"/srv/fast\" }]", "[1]")]),
    (
        "zero and too large",
        &[("version = 18", "version = 18\njobs = 0"), ("parallel = 4", "parallel = 99999")],
    ),
    ("a negative port", &[("host = \"db1\"", "host = \"db1\"\nport = -1")]),
    (
        "port 0 and port 65536",
        &[("host = \"db1\"", "host = \"db1\"\nport = 0"), ("host = \"db2\"", "host = \"db2\"\nport = 65536")],
    ),
    ("a duration without unit", &[("\"10m\"", "10")]),
    ("a duration of nothing", &[("\"10m\"", "\"0s\"")]),
    ("an empty name and a control character", &[("\"ledger\"", "\" \""), ("/srv/fast", "/srv/\\u0007")]),
    ("missing keys", &[("bin_dir = \"/usr/lib/postgresql/18/bin\"", ""), ("host = \"db3\"", "")]),
    (
        "no replication login",
        &[("replication = { user = \"replicator\", passfile = \"/var/lib/postgresql/.pgpass\" }", "")],
    ),
    ("a replication login without user", &[("user = \"replicator\", ", "")]),
    (
        "names that cannot be",
        &[("\"db1\"", "\"DB 1\""), ("\"ledger\"", "\"-ledger\""), ("\"ledger-old-1\"", "\"ledger☃\"")],
    ),
    (
        "a node name too long for a slot",
        &[("ledger-new-1", "ledger-new-1-in-the-northern-data-centre-of-the-second-region")],
    ),
    ("node names that make one slot", &[("ledger-new-2", "ledger_new-1")]),
    ("duplicate names", &[("name = \"db2\"", "name = \"db1\""), ("ledger-new-2", "ledger-old-1")]),
    ("two hosts with one agent", &[("10.0.0.2:7432", "10.0.0.1:7432")]),
    ("an agent without port", &[("10.0.0.2:7432", "10.0.0.2")]),
    ("an unknown host, nearly right", &[("host = \"db3\"", "host = \"dv3\"")]),
    ("an unknown host", &[("host = \"db3\"", "host = \"elsewhere\"")]),
    ("the new version is older", &[("version = 18", "version = 14")]),
    ("one version too old for all", &[("version = 15", "version = 9")]),
    ("new binaries are the old ones", &[("/usr/lib/postgresql/18/bin", "/usr/lib/postgresql/15/bin")]),
    (
        "relative and untidy paths",
        &[
            ("\"/usr/lib/postgresql/18/bin\"", "\"postgresql/18/bin\""),
            (
                "seed_dir = \"/var/lib/postgresql/15/ledger\"",
                "seed_dir = \"/var/lib/postgresql/15/../15/ledger\"",
            ),
        ],
    ),
    (
        "one directory twice",
        &[("data_dir = \"/var/lib/postgresql/18/ledger\"", "data_dir = \"/var/lib/postgresql/15/ledger\"")],
    ),
    (
        "a data directory of an old node on the same host",
        &[("host = \"db3\"", "host = \"db1\"\nport = 5433")],
    ),
    (
        "a directory inside another",
        &[(
            "seed_dir = \"/var/lib/postgresql/15/ledger\"",
            "seed_dir = \"/var/lib/postgresql/18/ledger/seed\"",
        )],
    ),
    (
        "a tablespace inside the data directory",
        &[("to = \"/srv/fast\"", "to = \"/var/lib/postgresql/18/ledger/fast\"")],
    ),
    ("a tablespace around the data directory", &[("to = \"/srv/fast\"", "to = \"/var\"")]),
    (
        "a tablespace mapped twice",
        &[(
            "[{ from = \"/srv/fast\", to = \"/srv/fast\" }]",
            "[{ from = \"/srv/fast\", to = \"/srv/a\" }, { from = \"/srv/fast\", to = \"/srv/b\" }]",
        )],
    ),
    (
        "one port twice on a host",
        &[(
            "host = \"db2\"\ndata_dir = \"/var/lib/postgresql/15/ledger\"",
            "host = \"db1\"\ndata_dir = \"/var/lib/postgresql/15/other\"",
        )],
    ),
    ("one address twice", &[("host = \"db2\"", "host = \"db2\"\naddress = \"10.0.0.1\"")]),
    ("an address with a port", &[("host = \"db2\"", "host = \"db2\"\naddress = \"10.0.0.2/24\"")]),
    (
        "replicas laid out differently",
        &[(
            "db4\"\nseed_dir = \"/var/lib/postgresql/15/ledger\"",
            "db4\"\nseed_dir = \"/var/lib/postgresql/15/other\"",
        )],
    ),
    (
        "no common parent",
        &[("seed_dir = \"/var/lib/postgresql/15/ledger\"", "seed_dir = \"/data/15/ledger\"")],
    ),
    (
        "a pooler of no kind and one of both",
        &[(
            OPTIONS,
            "[[cluster.pooler]]\nname = \"a\"\nhost = \"db1\"\n[[cluster.pooler]]\nname = \"b\"\nhost = \"db1\"\nhook = { name = \"h\" }\npgbouncer = { config = \"/c\", socket_dir = \"/s\", user = \"u\" }\n[cluster.options]",
        )],
    ),
    (
        "poolers that are one, and on no host",
        &[(
            OPTIONS,
            "[[cluster.pooler]]\nname = \"a\"\nhost = \"db1\"\nhook = { name = \"h\" }\n[[cluster.pooler]]\nname = \"a\"\nhost = \"db1\"\nhook = { name = \"h\", drain = \"1\" }\n[[cluster.pooler]]\nname = \"c\"\nhost = \"nowhere\"\npgbouncer = { config = \"c\", socket_dir = \"/s\", user = \"u\" }\n[cluster.options]",
        )],
    ),
    (
        "a balancer with one side, twice",
        &[(
            OPTIONS,
            "[[cluster.balancer]]\nname = \"a\"\nhost = \"db1\"\nhaproxy = { socket = \"/s\", backend = \"b\", old_servers = [\"x\", 1], new_servers = [\"x\"] }\n[[cluster.balancer]]\nname = \"b\"\nhost = \"db1\"\nhaproxy = { socket = \"/s\", backend = \"b\", new_servers = [\"y\"] }\n[[cluster.balancer]]\nname = \"c\"\nhost = \"db2\"\n[cluster.options]",
        )],
    ),
    (
        "a hold shorter than the pause",
        &[(
            OPTIONS,
            "[cluster.traffic]\nacquire = \"20s\"\nsession_pools = \"maybe\"\ntries = 0\n[cluster.options]",
        )],
    ),
    ("a hold that is an outage", &[(OPTIONS, "[cluster.traffic]\nhold = \"10m\"\n[cluster.options]")]),
    (
        "limits that bound nothing, or are none",
        &[(OPTIONS, "[limits]\noperations = 0\nper_rack = 1\nper_host = 2\n[cluster.options]")],
    ),
    (
        "windows that never open, anywhere",
        &[(
            OPTIONS,
            "[[window]]\ndays = [\"sat\", \"caturday\"]\nfrom = \"22:00\"\nto = \"22:00\"\nzone = \"Europe/Zürich\"\nclusters = [\"legder\"]\n[[window]]\nfrom = \"9:00\"\nto = \"24:01\"\n[cluster.options]",
        )],
    ),
    (
        "waves of nobody, of two kinds, and after the rest",
        &[(
            OPTIONS,
            "[[wave]]\nsoak = \"1\"\n[[wave]]\npercent = 5\nrest = true\n[[wave]]\nrest = true\n[[wave]]\nclusters = [\"ledger\", \"nobody\"]\n[[wave]]\nclusters = [\"ledger\"]\nrest = 1\n[cluster.options]",
        )],
    ),
    (
        "waves that leave somebody out",
        &[(OPTIONS, "[[wave]]\npercent = 101\n[[wave]]\npercent = 5\n[cluster.options]")],
    ),
    (
        "Patroni on both sides in one scope, and members with wrong addresses or none",
        &[
            (
                "[[cluster.old.node]]\nname = \"ledger-old-1\"",
                "[cluster.old.patroni]\nscope = \"ledger\"\n[[cluster.old.node]]\nrest = \"http://10.0.0.1:8008\"\nname = \"ledger-old-1\"",
            ),
            (
                "[[cluster.old.node]]\nname = \"ledger-old-2\"",
                "[[cluster.old.node]]\nrest = \"ftp://10.0.0.2\"\nname = \"ledger-old-2\"",
            ),
            (
                "[[cluster.new.node]]\nname = \"ledger-new-1\"",
                "[cluster.new.patroni]\nscope = \"ledger\"\n[[cluster.new.node]]\nrest = \"10.0.0.1:8008\"\nname = \"ledger-new-1\"",
            ),
        ],
    ),
    (
        "a seed by Patroni in the new cluster's own scope, with a configuration and tablespaces elsewhere",
        &[
            (
                "[[cluster.new.node]]\nname = \"ledger-new-1\"",
                "[cluster.new.patroni]\nscope = \"ledger18\"\nseed_scope = \"ledger18\"\n[[cluster.new.node]]\nrest = \"http://10.0.0.3:8008\"\nseed_config_file = \"/etc/pg.conf\"\nname = \"ledger-new-1\"",
            ),
            (
                "[[cluster.new.node]]\nname = \"ledger-new-2\"\nhost = \"db4\"\nseed_dir = \"/var/lib/postgresql/15/ledger\"\ndata_dir = \"/var/lib/postgresql/18/ledger\"\ntablespaces = [{ from = \"/srv/fast\", to = \"/srv/fast\" }]",
                "[[cluster.new.node]]\nname = \"ledger-new-2\"\nhost = \"db4\"\nseed_dir = \"/var/lib/postgresql/15/ledger\"\ndata_dir = \"/var/lib/postgresql/18/ledger\"\nrest = \"http://10.0.0.4:8008\"\ntablespaces = [{ from = \"/srv/fast\", to = \"/srv/slow\" }]",
            ),
        ],
    ),
    (
        "a seed by Patroni in a move, and on the old side",
        &[
            (
                "[[cluster.old.node]]\nname = \"ledger-old-1\"",
                "[cluster.old.patroni]\nscope = \"ledger\"\nseed_scope = \"x\"\n[[cluster.old.node]]\nrest = \"http://10.0.0.1:8008\"\nname = \"ledger-old-1\"",
            ),
            (
                "[[cluster.old.node]]\nname = \"ledger-old-2\"",
                "[[cluster.old.node]]\nrest = \"http://10.0.0.2:8008\"\nname = \"ledger-old-2\"",
            ),
            ("version = 18", "version = 15"),
            (
                "[[cluster.new.node]]\nname = \"ledger-new-1\"",
                "[cluster.new.patroni]\nscope = \"ledger18\"\nseed_scope = \"seed\"\n[[cluster.new.node]]\nrest = \"http://10.0.0.3:8008\"\nname = \"ledger-new-1\"",
            ),
            (
                "[[cluster.new.node]]\nname = \"ledger-new-2\"",
                "[[cluster.new.node]]\nrest = \"http://10.0.0.4:8008\"\nname = \"ledger-new-2\"",
            ),
        ],
    ),
    (
        "REST APIs where nobody runs Patroni",
        &[
            ("name = \"ledger-old-2\"", "name = \"ledger-old-2\"\nrest = \"10.0.0.2:8008\""),
            ("name = \"ledger-new-2\"", "name = \"ledger-new-2\"\nrest = \"10.0.0.4:8008\""),
        ],
    ),
    (
        "a move with two faces of a node",
        &[
            ("version = 18", "version = 15\nold_bin_dir = \"/opt/pg15/bin\""),
            (
                "data_dir = \"/var/lib/postgresql/18/ledger\"",
                "data_dir = \"/srv/ledger\"\nseed_config_file = \"/etc/pg.conf\"",
            ),
        ],
    ),
    (
        "no nodes",
        &[(
            "[[cluster.new.node]]\nname = \"ledger-new-1\"\nhost = \"db3\"\nseed_dir = \"/var/lib/postgresql/15/ledger\"\ndata_dir = \"/var/lib/postgresql/18/ledger\"\ntablespaces = [{ from = \"/srv/fast\", to = \"/srv/fast\" }]\n[[cluster.new.node]]\nname = \"ledger-new-2\"\nhost = \"db4\"\nseed_dir = \"/var/lib/postgresql/15/ledger\"\ndata_dir = \"/var/lib/postgresql/18/ledger\"\ntablespaces = [{ from = \"/srv/fast\", to = \"/srv/fast\" }]\n",
            "",
        )],
    ),
];

#[test]
fn broken_files_get_line_key_and_cure() {
    let mut text = String::new();
    for (name, edits) in CASES {
        let error = parse(&broken(edits), "fleet.toml").expect_err(name);
        for fault in &error.faults {
            assert!(fault.line > 0 && fault.column > 0 && !fault.cure.is_empty(), "{name}: {fault:?}");
        }
        text.push_str(&format!("# {name}\n{error}\n\n"));
    }
    crate::golden::check("coordinator/src/fleet/golden/faults.txt", &text);
}

#[test]
fn any_text_is_answered_and_never_panics() {
    use proptest::prelude::*;
    proptest!(|(at in 0..LEDGER.len(), with in "[\\[\\]={}\"\\n a-z0-9.]{0,8}", cut in 0usize..20)| {
        let end = (at + cut).min(LEDGER.len());
        let text = format!("{}{with}{}", &LEDGER[..at], &LEDGER[end..]);
        if let Err(error) = parse(&text, "f") {
            prop_assert!(!error.faults.is_empty());
        }
    });
}
