//! Four real hosts that run Patroni as units of systemd, with etcd on three of them, REST APIs behind TLS and a password, and a synchronous
//! replica, the old cluster by IPv4 and the new one by IPv6: pgleap installed over ssh by its own playbooks, the cluster of two hosts upgraded to the other two, one of these cut off and powered off meanwhile.
//!
//! Claims: the fleet file can be written from what `fleet import` says; the operation finishes, or stops with its reason and goes on after `retry`; the
//! new cluster is Patroni's, started by its unit by the agent's user; writes move to it, back and there again; `finish`
//! wants the old cluster's Patroni stopped before it ends its servers; Patroni switches the new cluster over within itself, and no row is
//! missing.
//!
//! Where the machine cannot do it, a line says so and it passes.

use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use pgleap_tests::harness::eventually;
use pgleap_tests::harness::fleet_file::{FleetFile, NodeEntry};
use pgleap_tests::hosts::patroni::{self, RestTls, Scope};
use pgleap_tests::hosts::{AgentVars, Hosts, Inventory, Operator, PART, impossible};

/// Directory of data on every host.
const DATA: &str = "/var/lib/postgresql";
const STORE: [&str; 3] = ["h1", "h2", "h4"];
const OLD_BIN: &str = "/usr/lib/postgresql/15/bin";

#[tokio::test(flavor = "multi_thread")]
async fn patronis_hosts_are_upgraded() -> Result<()> {
    if let Some(why) = impossible()? {
        // Past the capture of what tests print.
        let _ = writeln!(std::io::stderr().lock(), "SKIPPED: real hosts cannot be made here: {why}");
        return Ok(());
    }
    let mut hosts = Hosts::boot(&["h1", "h2", "h3", "h4"]).await?;
    let new_bin = hosts.binaries.postgres("18")?.display().to_string();
    let old = Scope { name: "ledger", major: 15, bin_dir: OLD_BIN.into(), ipv6: false };
    let new = Scope { name: "ledger18", major: 18, bin_dir: new_bin, ipv6: true };
    patronis(&hosts, &old, &new).await?;
    println!("Patroni runs the old cluster");

    let inventory = Inventory::write(&hosts, &STORE, |machine| {
        let scope = scope_of(&machine.name, &old, &new);
        let address = scope.address(machine).to_owned();
        AgentVars {
            address,
            units: vec!["patroni.service".into()],
            settings: patroni::agent_settings(scope.name),
        }
    })?;
    inventory.play(&hosts, "install", 1, &[]).await?;
    println!("pgleap is installed");

    let operator = Operator::of(&hosts, &inventory);
    imported(&hosts, &operator)?;
    let file = hosts.directory.path().join("fleet.toml");
    std::fs::write(&file, fleet_file(&hosts, &old, &new).text())?;
    operator.pgleap(&["fleet", "apply", &file.display().to_string()])?;
    operator.pgleap(&["check", "ledger"])?;
    operator.pgleap(&["start", "ledger"])?;
    operator.reaches("upgrade").await?;
    drop(operator);
    hosts.cut_off("h4")?;
    println!("the upgrade is under way; h4 is cut off");
    Operator::of(&hosts, &inventory).misses(3).await?;
    hosts.power_off("h4")?;
    println!("h4 has no power");
    hosts.power_on("h4").await?;

    let operator = Operator::of(&hosts, &inventory);
    if let Some(reason) = operator.finished().await? {
        println!("the power cut stopped it: {reason}");
    }
    operator.equal("h1", ["h3", "h4"]).await?;
    operator.followed_by_name("h3")?;
    for (host, role) in [("h3", "primary"), ("h4", "replica")] {
        let machine = hosts.machine(host);
        let pid = machine.ssh(&format!("head -1 {DATA}/18/main/postmaster.pid"))?;
        let unit = machine.unit_of(&pid)?;
        ensure!(unit == "patroni.service", "PostgreSQL of {host} lives in {unit}");
        ensure!(patroni::state(machine, &new)?.0 == role, "{host} is no {role}");
    }
    println!("the new cluster is Patroni's");

    for (verb, writes, host) in [("switchover", "h3", "n"), ("reverse", "h1", "o"), ("switchover", "h3", "m")]
    {
        operator.pgleap(&[verb, "ledger"])?;
        let text = format!("by {verb} {host}");
        hosts.machine(writes).ssh(&psql(&format!("INSERT INTO entry (what) VALUES ('{text}')")))?;
        everywhere(&hosts, &text).await.with_context(|| format!("after {verb}"))?;
        println!("{verb}: {writes} takes writes");
    }
    decommissioned(&hosts, &operator).await?;
    println!("finished, and the old cluster is stopped");
    within_the_new_cluster(&hosts, &new).await
}

fn scope_of<'s>(host: &str, old: &'s Scope, new: &'s Scope) -> &'s Scope {
    if ["h1", "h2"].contains(&host) { old } else { new }
}

fn psql(statement: &str) -> String {
    format!("runuser -u postgres -- psql -XAtqv ON_ERROR_STOP=1 -c \"{statement}\"")
}

/// etcd, the old cluster with somebody who writes all the time, and configuration and unit of the new members, which do not run.
async fn patronis(hosts: &Hosts, old: &Scope, new: &Scope) -> Result<()> {
    patroni::start_etcd(hosts, STORE).await?;
    let tls = RestTls::new()?;
    for machine in &hosts.machines {
        patroni::configure(hosts, &tls, STORE, scope_of(&machine.name, old, new), &machine.name)?;
    }
    for host in ["h1", "h2"] {
        patroni::start(hosts, old, host).await?;
    }
    let machine = hosts.machine("h1");
    machine.ssh(&psql("GRANT pg_read_all_data TO replicator"))?;
    machine
        .ssh(&psql("CREATE TABLE entry (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, what text)"))?;
    machine.ssh(&psql("INSERT INTO entry (what) SELECT 'before' FROM generate_series(1, 1000)"))?;
    machine.ssh(
        "systemd-run --quiet --unit=writer --uid=postgres sh -c \
         \"while psql -Xqc \\\"INSERT INTO entry (what) VALUES ('meanwhile')\\\"; do sleep 0.1; done\"",
    )?;
    Ok(())
}

/// What discovery says of the old cluster, from the outside, is what is there.
fn imported(hosts: &Hosts, operator: &Operator<'_>) -> Result<()> {
    let directory = hosts.directory.path();
    let ca = directory.join("patroni-ca.crt");
    std::fs::write(&ca, hosts.machine("h1").ssh("cat /etc/patroni/ca.crt")?)?;
    let password = directory.join("patroni-password");
    std::fs::write(&password, hosts.machine("h1").ssh("cat /etc/patroni/password")?)?;
    let rest = format!("https://{}:8008", hosts.machine("h2").address);
    let (ca, password) = (ca.display().to_string(), password.display().to_string());
    let said = operator.pgleap(&[
        "fleet",
        "import",
        &rest,
        "--cacert",
        &ca,
        "--user",
        "rest",
        "--password-file",
        &password,
    ])?;
    for wanted in ["scope = \"ledger\"", "name = \"h1\"", "name = \"h2\"", &format!("rest = \"{rest}\"")] {
        ensure!(said.contains(wanted), "{wanted} is not in what was imported:\n{said}");
    }
    Ok(())
}

fn fleet_file(hosts: &Hosts, old: &Scope, new: &Scope) -> FleetFile {
    let node = |name: &str, host: &str, scope: &Scope, seed: &str| {
        let machine = hosts.machine(host);
        NodeEntry {
            name: name.into(),
            host: host.into(),
            rest: scope.rest(machine),
            address: scope.address(machine).to_owned(),
            port: 5432,
            socket_dir: "/var/run/postgresql".into(),
            data_dir: format!("{DATA}/{}/main", scope.major),
            seed_dir: seed.into(),
            ..NodeEntry::default()
        }
    };
    let seed = format!("{DATA}/15/main");
    let agents = hosts.machines.iter().map(|machine| {
        let address = scope_of(&machine.name, old, new).address(machine);
        let agent =
            if address.contains(':') { format!("[{address}]:7432") } else { format!("{address}:7432") };
        (machine.name.clone(), agent)
    });
    FleetFile {
        hosts: agents.collect(),
        cluster: "ledger".into(),
        old_version: old.major,
        old_bin_dir: old.bin_dir.clone(),
        new_version: new.major,
        new_bin_dir: new.bin_dir.clone(),
        seed_bin_dir: old.bin_dir.clone(),
        passfile: format!("{DATA}/.pgpass"),
        scope: Some(old.name.into()),
        new_scope: Some(new.name.into()),
        old: vec![node("h1", "h1", old, ""), node("h2", "h2", old, "")],
        new: vec![node("h3", "h3", new, &seed), node("h4", "h4", new, &seed)],
        ..FleetFile::default()
    }
}

/// A row has come to every node.
async fn everywhere(hosts: &Hosts, text: &str) -> Result<()> {
    for machine in &hosts.machines {
        let arrived = async || {
            let count = machine.ssh(&psql(&format!("SELECT count(*) FROM entry WHERE what = '{text}'")))?;
            Ok((count == "1").then_some(()))
        };
        eventually(&format!("\"{text}\" on {}", machine.name), PART, arrived).await?;
    }
    Ok(())
}

/// Nobody is stopped whom Patroni would start again or replace: the operator stops it, replicas first, and pgleap sees that.
async fn decommissioned(hosts: &Hosts, operator: &Operator<'_>) -> Result<()> {
    let refused = operator.pgleap(&["finish", "ledger", "--yes", "--decommission"]).err();
    let refused = refused.context("it stopped a server under Patroni")?.to_string();
    ensure!(refused.contains("Patroni"), "{refused}");
    for host in ["h2", "h1"] {
        hosts.machine(host).ssh("systemctl disable -q --now patroni")?;
    }
    operator.pgleap(&["retry", "ledger"])?;
    let finished = async || Ok((operator.operation()?["state"] == "finished").then_some(()));
    eventually("the operation to be finished", PART, finished).await
}

/// Patroni switches the new cluster over; what is written then arrives at the former leader, and no row is missing.
async fn within_the_new_cluster(hosts: &Hosts, new: &Scope) -> Result<()> {
    let bin = hosts.binaries.setting("PGLEAP_PATRONI_BIN").context("no Patroni")?;
    let count = psql("SELECT count(*) FROM entry");
    let before: u64 = hosts.machine("h3").ssh(&count)?.parse()?;
    hosts.machine("h3").ssh(&format!(
        "{bin}/patronictl -c /etc/patroni/patroni.yml switchover ledger18 --leader h3 --candidate h4 --force"
    ))?;
    let leads =
        async || Ok((patroni::state(hosts.machine("h4"), new)? == ("primary".into(), true)).then_some(()));
    eventually("h4 to lead", PART, leads).await?;
    hosts.machine("h4").ssh(&psql("INSERT INTO entry (what) VALUES ('after')"))?;
    let arrived = async || {
        let now: u64 = hosts.machine("h3").ssh(&count)?.parse()?;
        ensure!(now == before + 1, "{now} rows, {before} before");
        Ok(Some(()))
    };
    eventually("the row on h3", PART, arrived).await?;
    let told = hosts.machine("h4").ssh(&format!("cat {}", patroni::TOLD))?;
    ensure!(told.lines().any(|line| line == "on_role_change primary ledger18"), "callbacks told: {told}");
    Ok(())
}
