//! The seed of the new cluster comes from a backup, by real tools for backups, called by real Patroni.
//!
//! Claims: with pgBackRest, and with barman, as the only method, a whole upgrade goes through to the gate and beyond, though the old nodes
//! have none of the backup's WAL any more: the nodes were restored, and their WAL came from the archive, then by streaming. Not a
//! transaction is lost or failed. The archive stays the old cluster's alone: neither seed nor converted nor upgraded cluster puts
//! anything into it, and `check` refuses a new Patroni that would.

use anyhow::{Context, Result, ensure};
use pgleap_tests::harness::backup::{Backup, Tool};
use pgleap_tests::harness::patroni::PatroniOptions;
use pgleap_tests::harness::seed::SeedOptions;
use pgleap_tests::ledger;
use pgleap_tests::scenario::{Options, Scenario, relinked};
use pgleap_tests::switching::{self, Side};

fn options() -> Options {
    // On a busy machine nobody else may lead because of a pause.
    let patroni = PatroniOptions { password: true, ttl: 120, ..PatroniOptions::default() };
    let mut options = switching::options(&[]);
    options.rows = 300;
    options.fleet.old.tablespaces.clear();
    // Nothing is kept that only an archive should have.
    let archiving = [("archive_mode", "on"), ("wal_keep_size", "0")];
    options.fleet.old.settings.extend(archiving.map(|(name, value)| (name.to_owned(), value.to_owned())));
    options.fleet.old.patroni = Some(patroni.clone());
    options.fleet.new_patroni = Some(PatroniOptions { scope: "ledger18".into(), ..patroni });
    options.fleet.seed = Some(SeedOptions { scope: "ledger-seed".into(), snapshot: false, exists: false });
    options
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni: a whole upgrade"]
async fn restores_the_seed_with_pgbackrest() -> Result<()> {
    restores_the_seed(Tool::PgBackRest).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni: a whole upgrade"]
async fn restores_the_seed_with_barman() -> Result<()> {
    restores_the_seed(Tool::Barman).await
}

async fn restores_the_seed(tool: Tool) -> Result<()> {
    let mut scenario = Scenario::begin(options()).await?;
    let name = scenario.fleet.name.clone();
    let backup = Backup::make(&scenario.fleet, tool).await?;
    // What is written from here on is not in the backup.
    scenario.load(ledger::Options { rate: 40.0, light: true, workers: 4, ..Default::default() }).await?;
    scenario.write_more(50).await?;
    backup.outdate(&scenario.fleet).await?;

    scenario.to_the_gate().await?;
    relinked(&scenario.fleet.status(&name).await?.context("no operation")?)?;
    for (index, node) in scenario.fleet.new.iter().enumerate() {
        let log = scenario.fleet.base.join(format!("log/patroni-seed-{}.log", node.name));
        let log = std::fs::read_to_string(&log)?;
        let method = format!("replica has been created using {}", tool.name());
        ensure!(log.matches(&method).count() == 1, "{}: {log}", node.name);
        let restores = backup.restores(&scenario.fleet.base, index, node);
        println!("{restores}");
    }
    scenario.fleet.new_patroni.as_mut().context("Patroni")?.wait_healthy().await?;

    let watch = scenario.watch_sides();
    for _ in 0..3 {
        scenario.switch().await?;
        scenario.write_more(50).await?;
    }
    watch.end().await?;
    let records = scenario.stop_load().await?;
    for record in &records {
        ensure!(record.failed() == 0, "transactions failed: {:?}", record.failures());
    }
    scenario.prove_both_sides(Side::New, &records).await?;
    println!("{:?}", backup.archived());
    scenario.fleet.pgleap_ok(&["finish", &name, "--yes"]).await?;
    scenario.nothing_is_left(Side::New).await?;
    scenario.fleet.passed();
    Ok(())
}
