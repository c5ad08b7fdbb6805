//! The seed of the new cluster comes from a backup, by real tools for backups, called by real Patroni.
//!
//! Claims: with pgBackRest, and with barman, as the only method, a whole upgrade goes through to the gate and beyond, though the old nodes
//! have none of the backup's WAL any more: the nodes were restored, and their WAL came from the archive, then by streaming. Not a
//! transaction is lost or failed. The archive stays the old cluster's alone: neither seed nor converted nor upgraded cluster puts
//! anything into it, and `check` refuses a new Patroni that would.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use pgleap_tests::harness::backup::{Backup, Tool};
use pgleap_tests::harness::patroni::PatroniOptions;
use pgleap_tests::harness::seed::SeedOptions;
use pgleap_tests::harness::{Server, eventually};
use pgleap_tests::ledger::{self, Record};
use pgleap_tests::patroni_fleets;
use pgleap_tests::scenario::{LIMIT, Options, Scenario, relinked};
use pgleap_tests::switching::Side;

/// The new replica is about to be started as a standby of the promoted leader.
const FOLLOWS: &str = "step.before-journal@convert.start_standby:n2";

fn options() -> Options {
    let patroni = PatroniOptions { password: true, ..PatroniOptions::steady() };
    let mut options = patroni_fleets::options(2, patroni.clone());
    // Nothing is kept that only an archive should have.
    let archiving = [("archive_mode", "on"), ("wal_keep_size", "0")];
    options.fleet.old.settings.extend(archiving.map(|(name, value)| (name.to_owned(), value.to_owned())));
    options.fleet.new_patroni = Some(patroni.for_new());
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
    scenario.load(ledger::Options::light(40.0)).await?;
    scenario.write_more(50).await?;
    backup.outdate(&scenario.fleet).await?;

    // The new members' files are copies of the old ones': archive_mode is on, and archive_command comes along with the configuration.
    let ran = scenario.fleet.pgleap(&["check", &name]).await?;
    let found = ran.text();
    ensure!(
        ran.code == 3 && found.contains("archiving: node n1 on n1: Patroni would have"),
        "{}: {found}",
        ran.code
    );
    let own = Backup::give_the_new_cluster_its_own(&scenario.fleet)?;

    // When the new replica begins to follow the promoted leader, the archive has what comes behind the slots already.
    scenario.fleet.hold("n2", FOLLOWS)?;
    scenario.start().await?;
    scenario.fleet.held("n2", FOLLOWS, LIMIT).await?;
    scenario.write_more(50).await?;
    archive_all(scenario.fleet.old.primary()).await?;
    scenario.fleet.release("n2", FOLLOWS)?;
    scenario.fleet.wait_done(LIMIT).await?;
    relinked(&scenario.fleet.status(&name).await?.context("no operation")?)?;
    for node in &scenario.fleet.new {
        let log = scenario.fleet.base.join(format!("log/patroni-seed-{}.log", node.name));
        let log = std::fs::read_to_string(&log)?;
        let method = format!("replica has been created using {}", tool.name());
        ensure!(log.matches("replica has been created using").count() == 1 && log.contains(&method), "{log}");
        ensure!(log.contains("restored log file \"0000000100000000"), "no WAL came from the archive: {log}");
        let restores = backup.restores(&scenario.fleet.base, &node.name)?;
        ensure!(restores == 1, "restored {restores} times on {}", node.name);
    }
    scenario.patroni_mut(Side::New)?.wait_healthy().await?;
    archives_into_its_own(&scenario, &own).await?;

    scenario.there_back_and_there().await?;
    let records = scenario.stop_load().await?;
    records.iter().try_for_each(Record::none_failed)?;
    scenario.prove_both_sides(Side::New, &records).await?;
    scenario.finish().await?;
    scenario.nothing_is_left(Side::New).await?;
    archives_into_its_own(&scenario, &own).await?;
    // Whatever was promoted began another timeline.
    let timelines = backup.timelines();
    ensure!(timelines.iter().eq(["00000001"]), "the old cluster's archive has {timelines:?}");
    scenario.fleet.passed();
    Ok(())
}

/// Has a leader archive everything that it has written; gives the name of the last file.
async fn archive_all(leader: &Server) -> Result<String> {
    leader.execute("postgres", "SELECT pg_logical_emit_message(true, 'tests', 'archived')").await?;
    let file = leader.value("postgres", "SELECT pg_walfile_name(pg_switch_wal())").await?;
    let file = file.context("no WAL file")?;
    let done = format!("SELECT 1 FROM pg_stat_archiver WHERE last_archived_wal >= '{file}'");
    eventually(&format!("{file} to be archived"), LIMIT, || leader.value("postgres", &done)).await?;
    Ok(file)
}

/// The new leader puts its WAL into this directory.
async fn archives_into_its_own(scenario: &Scenario, archive: &Path) -> Result<()> {
    let file = archive.join(archive_all(scenario.fleet.new_leader()).await?);
    ensure!(file.exists(), "{} is not there", file.display());
    Ok(())
}
