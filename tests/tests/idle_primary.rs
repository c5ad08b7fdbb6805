//! An old primary to which nobody writes, without a replica, to a new cluster of one node.
//!
//! Claims: the upgrade does not wait for a record that never comes (the slots' position lies ahead of all WAL), and the
//! rows that were there are there. What is written afterwards arrives. Checksums (none), the size of a WAL segment and the
//! locale provider are those of the old cluster, and not the new major's defaults.

use anyhow::Result;
use pgleap_tests::ledger;
use pgleap_tests::scenario::{Options, Scenario};

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
    scenario.start().await?;
    scenario.fleet.wait_done(pgleap_tests::scenario::LIMIT).await?;
    scenario.load(ledger::Options::default()).await?;
    let proof = scenario.prove().await?;
    assert!(proof.records[0].acknowledged() >= 100);
    scenario.fleet.passed();
    Ok(())
}
