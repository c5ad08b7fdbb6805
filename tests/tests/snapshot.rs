//! The snapshot of a cluster with the rich schema: two taken in a row are the same, under load too, and each kind of
//! thing that an upgrade could leave behind shows.

use anyhow::Result;
use pgleap_tests::harness::postgres::APP;
use pgleap_tests::harness::turn::Turn;
use pgleap_tests::harness::{Base, Cluster, ClusterOptions};
use pgleap_tests::ledger::{Ledger, Options, Target};
use pgleap_tests::schema;
use pgleap_tests::snapshot::Snapshot;

#[tokio::test(flavor = "multi_thread")]
async fn sees_what_is_left_behind_and_nothing_else() -> Result<()> {
    let _turn = Turn::take().await?;
    let mut base = Base::new()?;
    let tablespaces = vec!["fast".to_owned()];
    let cluster = Cluster::make(&base, ClusterOptions { tablespaces, ..ClusterOptions::default() }).await?;
    let primary = cluster.primary();
    let databases = schema::make(primary, Some("fast"), 2000).await?;
    let targets = databases.iter().map(|name| Target::new(name, primary.config_as(APP, name)));
    let load = Ledger::start(targets.collect(), Options::default()).await?;

    let before = Snapshot::take(&base, primary).await?;
    before.require_same(&Snapshot::take(&base, primary).await?)?;
    let leave = [
        ("postgres", "SELECT pg_create_physical_replication_slot('left')", "slots"),
        ("shop", "CREATE PUBLICATION left_behind FOR ALL TABLES", "publications of shop"),
        (schema::WEIRD, "CREATE ROLE left_behind", "roles"),
        ("postgres", "ALTER SYSTEM SET work_mem = '5MB'", "file postgresql.auto.conf"),
        ("postgres", "ALTER DATABASE shop CONNECTION LIMIT 0", "databases"),
        (schema::WEIRD, "CREATE TABLE shop.left_behind ()", "schema of we\"ird ☃"),
    ];
    for (database, sql, section) in leave {
        primary.execute(database, sql).await?;
        let differences = before.differences(&Snapshot::take(&base, primary).await?);
        assert!(differences.iter().any(|line| line.starts_with(section)), "{sql}: {differences:?}");
    }
    load.stop().await?;
    base.passed();
    Ok(())
}
