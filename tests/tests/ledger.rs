//! The load generator on one PostgreSQL 15, because everything else is judged by it.
//!
//! Claims: an undisturbed load verifies as exact; so does one through a crash and restart of the server; and every
//! kind of fault made behind its back is found: a transaction lost, one doubled, a row of the table without a key
//! doubled, a row changed, a transaction that was rolled back come back to life.

use std::time::Duration;

use anyhow::Result;
use pgleap_tests::harness::postgres::APP;
use pgleap_tests::harness::turn::Turn;
use pgleap_tests::harness::{Base, Cluster, ClusterOptions, eventually};
use pgleap_tests::ledger::{self, Ledger, Options, Target, Verdict, verify};

async fn cluster(base: &Base, nodes: &[&str]) -> Result<Cluster> {
    let nodes = nodes.iter().map(|name| name.to_string()).collect();
    Cluster::make(base, ClusterOptions { nodes, fsync: false, ..ClusterOptions::default() }).await
}

fn targets(cluster: &Cluster, databases: &[&str]) -> Vec<Target> {
    let target = |name: &&str| Target::new(name, cluster.primary().config_as(APP, name));
    databases.iter().map(target).collect()
}

async fn at_least(load: &Ledger, commits: u64) -> Result<()> {
    eventually(&format!("{commits} commits"), Duration::from_secs(60), || async {
        Ok((load.acknowledged() >= commits).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn finds_every_fault_and_no_other() -> Result<()> {
    let _turn = Turn::take().await?;
    let mut base = Base::new()?;
    let cluster = cluster(&base, &["o1", "o2"]).await?;
    let primary = cluster.primary();
    let databases = ["postgres", "we\"ird ☃"];
    primary.execute("postgres", "CREATE DATABASE \"we\"\"ird ☃\"").await?;
    for database in databases {
        ledger::create(&primary.connect(database).await?, None).await?;
    }
    let load =
        Ledger::start(targets(&cluster, &databases), Options { rate: 0.0, workers: 3, ..Options::default() })
            .await?;
    let held = Options { rate: 0.0, workers: 2, first_worker: 10, ..Options::default() };
    let held =
        Ledger::start(targets(&cluster, &databases), Options { hold: Duration::from_millis(300), ..held })
            .await?;
    at_least(&load, 3000).await?;
    let (record, held) = (load.stop().await?, held.stop().await?);
    assert_eq!(record.failures(), Vec::<String>::new());
    assert!(held.acknowledged() > 4);
    assert!(record.longest_gap() < Duration::from_secs(5) && record.longest_gap() > Duration::ZERO);

    let replica = &cluster.nodes[1];
    replica.catch_up(primary).await?;
    for server in [primary, replica] {
        for record in [&record, &held] {
            let verdict = verify(record, |database| server.config(database)).await?;
            verdict.require(&server.name)?;
            assert_eq!(verdict.acknowledged, record.acknowledged());
        }
    }

    let judge = || verify(&record, |database| primary.config(database));
    let spoil = async |sql: &str| -> Result<Verdict> {
        primary.execute("postgres", &format!("SET session_replication_role = replica; {sql}")).await?;
        judge().await
    };
    let one = "(SELECT ctid FROM load.ledger WHERE worker = 2 ORDER BY counter LIMIT 1)";

    let lost = spoil(&format!("DELETE FROM load.ledger WHERE ctid = {one}")).await?;
    assert_eq!((lost.lost.len(), lost.duplicated.len()), (1, 0), "{}", lost.faults());
    let doubled =
        spoil(&format!("INSERT INTO load.ledger SELECT * FROM load.ledger WHERE ctid = {one}")).await?;
    assert_eq!((doubled.lost.len(), doubled.duplicated.len()), (1, 1), "{}", doubled.faults());
    let plain = "(SELECT max(ctid) FROM load.plain WHERE worker < 10)";
    let before = doubled.wrong_state.len();
    let plain =
        spoil(&format!("INSERT INTO load.plain SELECT * FROM load.plain WHERE ctid = {plain}")).await?;
    assert_eq!(plain.wrong_state.len(), before + 1, "{}", plain.faults());
    let undead = spoil("INSERT INTO load.ledger VALUES (1, -5, 'savepoint')").await?;
    assert_eq!(undead.resurrected.len(), 1, "{}", undead.faults());
    for (table, change) in [
        ("accounts", "UPDATE load.accounts SET balance = balance + 1 WHERE id = 1003"),
        ("counters", "UPDATE load.counters SET value = value + 1 WHERE id = 1"),
        (
            "blobs",
            "UPDATE load.blobs SET body = body || 'x' WHERE id = (SELECT min(id) FROM load.blobs WHERE worker < 10)",
        ),
        ("events", "DELETE FROM load.events WHERE id = (SELECT max(id) FROM load.events WHERE worker < 10)"),
    ] {
        let verdict = spoil(change).await?;
        assert!(verdict.wrong_state.iter().any(|text| text.contains(table)), "{table}: {}", verdict.faults());
    }
    // The other database was left alone throughout. (Values have a ☃ in them, too.)
    let faults = judge().await?.faults();
    assert!(faults.lines().all(|line| !line.trim_start().starts_with("we\"ird ☃: ")), "{faults}");
    base.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stays_exact_through_a_crash_of_the_server() -> Result<()> {
    let _turn = Turn::take().await?;
    let mut base = Base::new()?;
    let cluster = cluster(&base, &["o1"]).await?;
    let primary = cluster.primary();
    ledger::create(&primary.connect("postgres").await?, None).await?;
    let load =
        Ledger::start(targets(&cluster, &["postgres"]), Options { rate: 0.0, ..Options::default() }).await?;
    for round in 1..=3 {
        at_least(&load, round * 400).await?;
        primary.kill().await?;
        primary.start(&base).await?;
    }
    at_least(&load, 1600).await?;
    let record = load.stop().await?;
    assert!(record.failed() > 0, "three crashes and no transaction failed");
    let verdict = verify(&record, |database| primary.config(database)).await?;
    verdict.require("the server that crashed")?;
    assert!(record.longest_gap() > Duration::from_millis(50));
    base.passed();
    Ok(())
}
