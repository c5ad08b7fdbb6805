//! An old primary to which nobody writes, without a replica, to a new cluster of one node, whose place already has a standby of the old
//! primary that streams from it.
//!
//! Claims: the upgrade does not wait for a record that never comes (the slots' position lies ahead of all WAL), and the
//! rows that were there are there. What is written afterwards arrives. Checksums (none), the size of a WAL segment and the
//! locale provider are those of the old cluster, and not the new major's defaults. The standby is adopted, not cloned; a cancel before its
//! promotion leaves it as it was found, streaming; one after it leaves it stopped, and removes none of its files.

use anyhow::{Context, Result, ensure};
use pgleap_proto::failpoint::STEP_PLACES;
use pgleap_proto::step::output::Kind;
use pgleap_tests::harness::Server;
use pgleap_tests::harness::cluster::tablespace_dir;
use pgleap_tests::ledger;
use pgleap_tests::scenario::{LIMIT, Options, Scenario, TABLESPACE};
use pgleap_tests::snapshot::Snapshot;

/// Makes the standby that will be found, and tells what it and the old cluster are.
async fn stand_by(scenario: &Scenario) -> Result<(Server, Snapshot, Vec<Snapshot>)> {
    let (fleet, base) = (&scenario.fleet, &scenario.fleet.base);
    let standby = fleet.seed(fleet.new_leader());
    base.user.make_dir(&tablespace_dir(base, &standby.name, TABLESPACE), 0o700)?;
    fleet.old.make_replica(base, &standby).await?;
    let found = Snapshot::glance(&standby).await?;
    Ok((standby, found, scenario.old_cluster().await?))
}

/// A cancel while it is stopped and not promoted yet.
async fn taken_back_before_its_promotion(scenario: &Scenario) -> Result<()> {
    let fleet = &scenario.fleet;
    let (primary, place) = (&fleet.old.primary().name, format!("{}@convert.create_slots", STEP_PLACES[0]));
    fleet.hold(primary, &place)?;
    scenario.start().await?;
    fleet.held(primary, &place, LIMIT).await?;
    fleet.pgleap_ok(&["cancel", &fleet.name, "--yes"]).await?;
    fleet.release(primary, &place)?;
    fleet.wait_for("cancelled", LIMIT, |status| status.state == "cancelled").await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn needs_nobody_to_write() -> Result<()> {
    let mut options = Options { rate: 0.0, ..Options::default() };
    options.fleet.old.nodes.truncate(1);
    options.fleet.new_nodes.truncate(1);
    // Nothing of it is the default: the new cluster takes it over from the old one.
    options.fleet.old.checksums = false;
    options.fleet.old.initdb =
        ["--wal-segsize=32", "--locale-provider=icu", "--icu-locale=de-AT"].map(str::to_owned).into();
    // Nothing may write WAL by itself.
    options.fleet.old.settings =
        [("autovacuum", "off"), ("checkpoint_timeout", "1h"), ("bgwriter_lru_maxpages", "0")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    let mut scenario = Scenario::begin(options).await?;
    let (standby, found, old) = stand_by(&scenario).await?;
    taken_back_before_its_promotion(&scenario).await.context("cancel before the promotion")?;
    scenario.old_as_found(&old).await?;
    found.require_same(&Snapshot::glance(&standby).await?).context("the adopted standby")?;
    standby.catch_up(scenario.fleet.old.primary()).await?;

    scenario.start().await?;
    scenario.fleet.wait_done(LIMIT).await?;
    scenario.load(ledger::Options::default()).await?;
    let proof = scenario.prove().await?;
    assert!(proof.records[0].acknowledged() >= 100);
    let outputs = proof.status.steps.iter().filter_map(|step| step.output.as_ref()?.kind.as_ref());
    let cloned: Vec<bool> = outputs
        .filter_map(|kind| if let Kind::Cloned(cloned) = kind { Some(cloned.created) } else { None })
        .collect();
    assert_eq!(cloned, [false], "adopted, and not cloned");

    scenario.cancel().await?;
    ensure!(!standby.is_running(), "a promoted standby still runs");
    for file in ["PG_VERSION", "base", "postgresql.conf"] {
        ensure!(standby.data_dir.join(file).exists(), "{file} of an adopted standby is gone");
    }
    let space = tablespace_dir(&scenario.fleet.base, &standby.name, TABLESPACE);
    ensure!(std::fs::read_dir(&space)?.count() == 1, "{} is not as pg_basebackup left it", space.display());
    let new = &scenario.fleet.new_leader().data_dir;
    ensure!(!new.exists() || std::fs::read_dir(new)?.count() == 0, "{} is left", new.display());
    scenario.fleet.passed();
    Ok(())
}
