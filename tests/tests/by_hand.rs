//! The switchover by hand, which `make bench` holds pgleap's against, loses nothing either: a comparison with something that
//! cuts corners would be worth nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use pgleap_tests::by_hand;
use pgleap_tests::by_hand_switchover::ByHand;
use pgleap_tests::harness::drain::drain;
use pgleap_tests::harness::pooler::{ENTRIES, PoolerHost};
use pgleap_tests::harness::ports::Port;
use pgleap_tests::harness::turn::Turn;
use pgleap_tests::harness::{Base, Cluster, ClusterOptions, Server, eventually};
use pgleap_tests::ledger::{self, Ledger, Target, verify};
use pgleap_tests::schema;
use pgleap_tests::stalls::Stalls;

#[tokio::test(flavor = "multi_thread")]
async fn loses_nothing_either() -> Result<()> {
    let _turn = Turn::take().await?;
    let mut base = Base::new()?;
    let settings = vec![("max_connections".to_owned(), "150".to_owned())];
    let old = Cluster::make(&base, ClusterOptions { settings, ..ClusterOptions::default() }).await?;
    let databases = schema::make(old.primary(), None, 500).await?;
    let ports = [Port::reserve()?, Port::reserve()?];
    let mut new = Vec::new();
    for (name, port) in ["n1", "n2"].into_iter().zip(&ports) {
        new.push(Server {
            name: name.into(),
            bin_dir: base.binaries.postgres("18")?,
            data_dir: base.make_dir(format!("{name}/ledger"))?.join("18"),
            socket_dir: base.make_dir(format!("{name}/run"))?,
            address: base.network.address(name),
            port: port.number,
        });
    }
    by_hand::convert(&base, &old, &new[0], &new[1], 2).await?;
    let poolers = [
        PoolerHost::make(&base, "p1", 2, true, old.primary()).await?,
        PoolerHost::make(&base, "p2", 2, false, old.primary()).await?,
    ];
    let by_hand = ByHand {
        base: &base,
        old: old.primary(),
        new: &new[0],
        replica: &new[1],
        passfile: &old.passfile,
        databases: &databases,
        poolers: &poolers,
    };
    by_hand.prepare().await?;
    let ways = |database: &str| {
        let entries = ENTRIES.iter().filter(|(_, of)| *of == database);
        entries.flat_map(|(entry, _)| poolers.iter().map(|host| host.config(entry))).collect()
    };
    let targets =
        databases.iter().map(|name| Target { database: name.clone(), configs: ways(name) }).collect();
    let options = ledger::Options { light: true, rate: 0.0, ..ledger::Options::default() };
    let load = Ledger::start(targets, options).await?;
    let mut windows = Vec::new();
    for forward in [true, false, true, false] {
        let goal = load.acknowledged() + 300;
        eventually("more commits", Duration::from_secs(60), || async {
            Ok((load.acknowledged() >= goal).then_some(()))
        })
        .await?;
        let began = load.elapsed();
        by_hand.switch(forward).await?;
        windows.push((began, load.elapsed()));
    }
    let record = load.stop().await?;
    println!("by hand: {}", Stalls::of(&record, &windows));
    ensure!(record.failed() == 0, "{:?}", record.failures());
    let replicas = [old.nodes[1].clone(), new[1].clone()];
    drain(old.primary(), &new[0], &replicas, &databases, Duration::from_secs(60)).await?;
    for server in old.nodes.iter().chain(&new) {
        let verdict = verify(&record, |database| server.config(database)).await?;
        verdict.require(&server.name)?;
        ensure!(verdict.acknowledged == record.acknowledged(), "not all were looked for");
    }
    base.passed();
    Ok(())
}
