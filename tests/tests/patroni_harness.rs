//! The harness's own Patroni: a cluster of three members with a real etcd comes up, fails over, and goes away.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgleap_tests::harness::patroni::PatroniOptions;
use pgleap_tests::harness::{Base, Cluster, ClusterOptions, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn comes_up_fails_over_and_goes_away() -> Result<()> {
    let mut base = Base::new()?;
    let nodes = vec!["o1".into(), "o2".into(), "o3".into()];
    let options = ClusterOptions { nodes, patroni: Some(PatroniOptions::default()), ..Default::default() };
    let mut cluster = Cluster::make(&base, options).await?;
    let servers = cluster.nodes.clone();
    servers[0].execute("postgres", "CREATE TABLE kept (it int); INSERT INTO kept VALUES (1)").await?;
    for replica in &servers[1..] {
        replica.catch_up(&servers[0]).await?;
    }
    let patroni = cluster.patroni.as_mut().context("it is run by Patroni")?;
    ensure!(patroni.leader().await? == Some(0), "another one leads");

    // The host dies: Patroni and PostgreSQL.
    patroni.kill(0);
    servers[0].kill().await?;
    let next = eventually("another member to lead", Duration::from_secs(90), || async {
        Ok(patroni.leader().await?.filter(|index| *index != 0))
    })
    .await?;
    patroni.wait_for_leader(next).await?;
    ensure!(servers[next].value("postgres", "SELECT it FROM kept").await?.as_deref() == Some("1"), "lost");

    // It comes back, as a replica.
    patroni.start(&base, 0)?;
    patroni.wait_healthy().await?;
    ensure!(patroni.leader().await? == Some(next), "the lead moved");
    servers[0].catch_up(&servers[next]).await?;

    // Whoever runs it goes away with PostgreSQL.
    for (index, server) in servers.iter().enumerate() {
        patroni.stop(index);
        ensure!(!server.is_running(), "{} still runs", server.name);
    }
    base.passed();
    Ok(())
}
