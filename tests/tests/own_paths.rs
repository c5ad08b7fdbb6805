//! Old nodes whose settings name certificates, access rules and logs by absolute paths below their data directory,
//! while every node has its data directory elsewhere.
//!
//! Claims: each seed and each new node reads its own copies, never another node's files; and TLS still works. An unlogged table, which a
//! standby has without its rows, comes along empty, and keeps no replica from being relinked.

use std::path::Path;

use anyhow::{Result, ensure};
use pgleap_tests::harness::Server;
use pgleap_tests::scenario::{LIMIT, Options, Scenario, relinked};

const FILES: [(&str, &str); 4] = [
    ("hba_file", "pg_hba.conf"),
    ("ident_file", "rules/ident.conf"),
    ("ssl_cert_file", "certs/tls.crt"),
    ("ssl_key_file", "certs/tls.key"),
];

/// Gives an old node settings with absolute paths of its own.
async fn name_absolute_paths(scenario: &Scenario, node: &Server) -> Result<()> {
    let base = &scenario.fleet.base;
    let data_dir = &node.data_dir;
    for directory in ["certs", "rules"] {
        base.user.make_dir(&data_dir.join(directory), 0o700)?;
    }
    for file in ["tls.crt", "tls.key"] {
        let text = std::fs::read_to_string(base.join(format!("pki/agent-{}/{file}", node.name)))?;
        base.user.write(&data_dir.join("certs").join(file), &text, 0o600)?;
    }
    base.user.write(&data_dir.join("rules/ident.conf"), "", 0o600)?;
    let mut conf = std::fs::read_to_string(data_dir.join("postgresql.conf"))?;
    for (name, file) in FILES.into_iter().chain([("log_directory", "log")]) {
        conf.push_str(&format!("{name} = '{}'\n", data_dir.join(file).display()));
    }
    conf.push_str("ssl = on\n");
    base.user.write(&data_dir.join("postgresql.conf"), &conf, 0o600)?;
    node.stop(base).await?;
    node.start(base).await
}

/// The file that a setting of a node means, as its server would open it.
async fn meant(scenario: &Scenario, node: &Server, name: &str) -> Result<std::path::PathBuf> {
    let data_dir = node.data_dir.to_string_lossy();
    let arguments = ["-C", name, "-D", data_dir.as_ref()];
    let printed = scenario.fleet.base.run(node.bin_dir.join("postgres"), &arguments).await?;
    Ok(node.data_dir.join(Path::new(printed.trim_end_matches('\n'))))
}

#[tokio::test(flavor = "multi_thread")]
async fn lead_to_each_nodes_own_files() -> Result<()> {
    let mut scenario = Scenario::begin(Options { rate: 0.0, ..Options::default() }).await?;
    for node in scenario.fleet.old.nodes.clone() {
        name_absolute_paths(&scenario, &node).await?;
    }
    let unlogged = "CREATE UNLOGGED TABLE shop.fleeting AS SELECT generate_series(1, 1000) AS x";
    scenario.fleet.old.primary().execute("shop", unlogged).await?;
    scenario.start().await?;
    relinked(&scenario.fleet.wait_done(LIMIT).await?)?;
    for node in &scenario.fleet.new {
        // A standby would refuse to read it.
        let kept = "SELECT relpersistence::text FROM pg_class WHERE oid = 'shop.fleeting'::regclass";
        ensure!(node.value("shop", kept).await?.as_deref() == Some("u"), "{}: it was unlogged", node.name);
    }
    let rows = scenario.fleet.new_leader().value("shop", "SELECT count(*) FROM shop.fleeting").await?;
    ensure!(rows.as_deref() == Some("0"), "{rows:?} rows of an unlogged table");

    for node in &scenario.fleet.new {
        for server in [scenario.fleet.seed(node), node.clone()] {
            let own = |file: &str| server.data_dir.join(file);
            for (name, file) in FILES {
                // The new cluster has its access rules where servers look for them by themselves.
                let upgraded = server.data_dir == node.data_dir;
                let file = if name == "ident_file" && upgraded { "pg_ident.conf" } else { file };
                let found = meant(&scenario, &server, name).await?;
                ensure!(found == own(file), "{name} of {}: {}", server.data_dir.display(), found.display());
                ensure!(own(file).exists(), "{} is missing", own(file).display());
            }
            let log = meant(&scenario, &server, "log_directory").await?;
            ensure!(log == own("log"), "log_directory of {}: {}", server.data_dir.display(), log.display());
        }
        let ssl = node.value("postgres", "SHOW ssl").await?;
        ensure!(ssl.as_deref() == Some("on"), "ssl of {}: {ssl:?}", node.name);
        let hba = node.value("postgres", "SHOW hba_file").await?.unwrap_or_default();
        ensure!(Path::new(&hba) == node.data_dir.join("pg_hba.conf"), "hba_file of {}: {hba}", node.name);
    }
    scenario.prove().await?;
    scenario.fleet.passed();
    Ok(())
}
