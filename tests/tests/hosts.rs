//! Three real hosts: installed over ssh by the project's own playbooks, one cluster upgraded on them, while pgleap itself is upgraded and
//! one host loses its power.
//!
//! Claims: a dry run changes nothing; a second run changes nothing; what the agent has started lives in a service of its own and
//! goes on when the agent is restarted and removed; the log of an operation can be read by its name; a host whose power fails in the middle is
//! waited for, or the operation stops with its reason, and it finishes when the host is back.
//!
//! `make hosts` runs it; without the rights or the programs it needs, it says so and passes.

use anyhow::{Context, Result, ensure};
use pgleap_tests::harness::eventually;
use pgleap_tests::harness::fleet_file::{FleetFile, NodeEntry};
use pgleap_tests::hosts::{AgentVars, Hosts, Inventory, Operator, PART, impossible};

/// Directory of data on every host.
const DATA: &str = "/var/lib/postgresql";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots containers: make hosts"]
async fn from_an_inventory_to_an_upgraded_cluster() -> Result<()> {
    if let Some(why) = impossible()? {
        eprintln!("skipped: real hosts cannot be made here: {why}");
        return Ok(());
    }
    let mut hosts = Hosts::boot(&["h1", "h2", "h3"]).await?;
    let inventory = Inventory::write(&hosts, &["h1", "h2", "h3"], |_| AgentVars::default())?;
    installed(&hosts, &inventory).await?;
    println!("installed");

    let fleet = Operator::of(&hosts, &inventory);
    old_cluster(&hosts)?;
    let file = hosts.directory.path().join("fleet.toml");
    std::fs::write(&file, fleet_file(&hosts)?)?;
    fleet.pgleap(&["fleet", "apply", &file.display().to_string()])?;
    fleet.pgleap(&["check", "ledger"])?;
    fleet.pgleap(&["start", "ledger"])?;

    fleet.reaches("upgrade").await?;
    drop(fleet);
    println!("the upgrade is under way; h3 loses its power");

    hosts.power_off("h3")?;
    Operator::of(&hosts, &inventory).misses(3).await?;
    hosts.power_on("h3").await?;
    println!("h3 is back");

    // What is left of the operation goes on while pgleap itself is upgraded.
    let upgraded = inventory.play(&hosts, "upgrade", 2, &[]).await?;
    ensure!(upgraded.changed > 0, "nothing was upgraded:\n{}", upgraded.output);
    for machine in &hosts.machines {
        let versions = machine.ssh("dpkg-query -W -f '${Version} ' pgleap pgleap-agent")?;
        ensure!(versions == "0.1.0-2 0.1.0-2", "{}: {versions}", machine.name);
    }

    println!("pgleap is upgraded");
    let fleet = Operator::of(&hosts, &inventory);
    if let Some(reason) = fleet.finished().await? {
        println!("the power cut stopped it: {reason}");
    }
    fleet.equal("h1", ["h2", "h3"]).await?;
    fleet.followed_by_name("h2")?;
    println!("the cluster is upgraded, and its nodes hold the same rows");
    outlives_the_agent(&hosts, &inventory).await
}

/// The playbook, dry, wet and once more.
async fn installed(hosts: &Hosts, inventory: &Inventory) -> Result<()> {
    inventory.play(hosts, "install", 1, &["--check"]).await?;
    for machine in &hosts.machines {
        machine
            .ssh("test ! -e /usr/bin/pgleap-agent -a ! -e /etc/pgleap")
            .context("a dry run has changed something")?;
    }
    inventory.play(hosts, "install", 1, &[]).await?;
    for more in [&[][..], &["--check"]] {
        let again = inventory.play(hosts, "install", 1, more).await?;
        ensure!(again.changed == 0, "a second run changes something:\n{}", again.output);
    }
    for machine in &hosts.machines {
        machine.ssh("systemctl is-active pgleap-agent pgleap-coordinator pgleap-postgres.socket")?;
        let key = machine.ssh("find / -xdev -name ca.key")?;
        ensure!(key.is_empty(), "the CA's key is on {}: {key}", machine.name);
    }
    Ok(())
}

/// The new leader was started by the agent: it is the same server after restart and removal of that.
async fn outlives_the_agent(hosts: &Hosts, inventory: &Inventory) -> Result<()> {
    let machine = hosts.machine("h2");
    let pid = || machine.ssh(&format!("head -1 {DATA}/18/main/postmaster.pid"));
    let before = pid()?;
    let unit = machine.unit_of(&before)?;
    ensure!(unit.starts_with("pgleap-postgres@"), "PostgreSQL lives in {unit}");
    machine
        .ssh("systemctl restart pgleap-agent && systemctl kill --kill-who=main --signal KILL pgleap-agent")?;
    eventually("the agent is back", PART, async || Ok(machine.ssh("systemctl is-active pgleap-agent").ok()))
        .await?;
    let alive = || machine.ssh(&format!("kill -0 {before} && runuser -u postgres -- psql -XAtc 'SELECT 1'"));
    alive().context("after restart and kill of the agent")?;
    ensure!(pid()? == before, "it is another server now");

    inventory
        .play(hosts, "uninstall", 2, &["-e", "agent_purge=true", "-e", "coordinator_purge=true"])
        .await?;
    machine.ssh("test ! -e /usr/bin/pgleap-agent -a ! -e /var/lib/pgleap/agent")?;
    alive().context("after removal of the agent")?;
    // Its unit asks it to shut down fast.
    machine.ssh(&format!("systemctl stop '{unit}'"))?;
    let state = machine.ssh(&format!("{}/pg_controldata {DATA}/18/main", new_bin(hosts)?))?;
    ensure!(
        state.lines().any(|line| line.starts_with("Database cluster state") && line.ends_with("shut down")),
        "{state}"
    );
    Ok(())
}

fn new_bin(hosts: &Hosts) -> Result<String> {
    Ok(hosts.binaries.postgres("18")?.display().to_string())
}

/// PostgreSQL 15 on the first host, by the packages' programs, with somebody who writes all the time.
fn old_cluster(hosts: &Hosts) -> Result<()> {
    let net = hosts.machine("h1").address.rsplit_once('.').context("an address")?.0.to_owned();
    let bin = "/usr/lib/postgresql/15/bin";
    hosts.machine("h1").ssh(&format!(
            "set -e
            runuser -u postgres -- {bin}/initdb -D {DATA}/15/main --encoding=UTF8 --locale=C.UTF-8 --auth=peer --data-checksums >&2
            cat >>{DATA}/15/main/postgresql.conf <<'EOF'
listen_addresses = '*'
wal_level = logical
max_replication_slots = 20
max_worker_processes = 24
max_logical_replication_workers = 12
wal_keep_size = '128MB'
unix_socket_directories = '/var/run/postgresql'
EOF
            cat >>{DATA}/15/main/pg_hba.conf <<'EOF'
host all replicator {net}.0/24 scram-sha-256
host replication replicator {net}.0/24 scram-sha-256
EOF
            systemd-run --quiet --unit=old-postgresql --uid=postgres {bin}/postgres -D {DATA}/15/main
            until runuser -u postgres -- psql -XAtc 'SELECT 1'; do sleep 0.2; done
            runuser -u postgres -- psql -Xv ON_ERROR_STOP=1 <<'EOF'
CREATE ROLE replicator LOGIN REPLICATION PASSWORD 'secret';
GRANT pg_read_all_data TO replicator;
CREATE TABLE entry (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, what text);
INSERT INTO entry (what) SELECT 'before' FROM generate_series(1, 1000);
EOF
            systemd-run --quiet --unit=writer --uid=postgres sh -c \\
                \"while psql -Xqc \\\"INSERT INTO entry (what) VALUES ('meanwhile')\\\"; do sleep 0.1; done\""
        ))?;
    for machine in &hosts.machines {
        machine.ssh(&format!(
                "printf '*:*:*:replicator:secret\\n' >{DATA}/.pgpass && chmod 600 {DATA}/.pgpass && chown postgres: {DATA}/.pgpass"
            ))?;
    }
    Ok(())
}

fn fleet_file(hosts: &Hosts) -> Result<String> {
    let node = |name: &str, host: &str, major: u32, seed: &str| NodeEntry {
        name: name.into(),
        host: host.into(),
        address: hosts.machine(host).address.clone(),
        port: 5432,
        socket_dir: "/var/run/postgresql".into(),
        data_dir: format!("{DATA}/{major}/main"),
        seed_dir: seed.into(),
        ..NodeEntry::default()
    };
    let seed = format!("{DATA}/15/main");
    let old_bin = "/usr/lib/postgresql/15/bin";
    let file = FleetFile {
        hosts: hosts.machines.iter().map(|m| (m.name.clone(), format!("{}:7432", m.address))).collect(),
        cluster: "ledger".into(),
        old_version: 15,
        old_bin_dir: old_bin.into(),
        new_version: 18,
        new_bin_dir: new_bin(hosts)?,
        seed_bin_dir: old_bin.into(),
        passfile: format!("{DATA}/.pgpass"),
        old: vec![node("o1", "h1", 15, "")],
        new: vec![node("n1", "h2", 18, &seed), node("n2", "h3", 18, &seed)],
        ..FleetFile::default()
    };
    Ok(file.text())
}
