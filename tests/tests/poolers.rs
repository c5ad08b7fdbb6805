//! What stands between clients and servers, without pgleap, because scenarios of switchovers are judged through it.
//!
//! Claims: a load through PgBouncer, several processes on one port, two names for one database, is exact, also when
//! processes are killed; PAUSE and RESUME of all of them fail no transaction; HAProxy sends readers to the servers
//! whose own health endpoint says so; and readers see by how much a replica is behind.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgleap_tests::harness::balancer::{BalancedServer, Balancer};
use pgleap_tests::harness::pooler::PoolerHost;
use pgleap_tests::harness::ports::Port;
use pgleap_tests::harness::postgres::APP;
use pgleap_tests::harness::turn::Turn;
use pgleap_tests::harness::{Base, Cluster, ClusterOptions, eventually};
use pgleap_tests::ledger::{self, Ledger, Options, Target, verify};
use pgleap_tests::readers::{self, ReadTarget, Readers};
use pgleap_tests::schema::WEIRD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn cluster(base: &Base) -> Result<Cluster> {
    let cluster = Cluster::make(base, ClusterOptions::default()).await?;
    let primary = cluster.primary();
    for (database, name) in [("shop", "shop"), (WEIRD, "\"we\"\"ird ☃\"")] {
        primary.execute("postgres", &format!("CREATE DATABASE {name} OWNER {APP}")).await?;
        ledger::create(&primary.connect(database).await?, None).await?;
    }
    Ok(cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_through_poolers_is_exact() -> Result<()> {
    let _turn = Turn::take().await?;
    let mut base = Base::new()?;
    let cluster = cluster(&base).await?;
    let primary = cluster.primary();
    let mut hosts = vec![
        PoolerHost::make(&base, "p1", 2, true, primary).await?,
        PoolerHost::make(&base, "p2", 2, false, primary).await?,
    ];
    let psql = primary.bin_dir.join("psql");
    for pooler in hosts.iter().flat_map(|host| &host.poolers) {
        assert_eq!(pooler.points_to(&base, &psql).await?, [primary.port; 3], "{}", pooler.name);
    }
    let both = |entry: &str| hosts.iter().map(|host| host.config(entry)).collect::<Vec<_>>();
    let targets = vec![
        Target { database: "shop".into(), configs: [both("shop"), both("shop_too")].concat() },
        Target { database: WEIRD.into(), configs: both("weird") },
    ];
    let load = Ledger::start(targets, Options { light: true, workers: 8, rate: 0.0, ..Options::default() });
    let load = load.await?;
    let more = async |load: &Ledger, commits: u64| {
        let goal = load.acknowledged() + commits;
        eventually("more commits", Duration::from_secs(60), || async {
            Ok((load.acknowledged() >= goal).then_some(()))
        })
        .await
    };
    more(&load, 3000).await?;
    println!("{:.0} transactions a second", load.acknowledged() as f64 / load.elapsed().as_secs_f64());
    for round in 0..3 {
        for command in ["PAUSE", "RESUME"] {
            for pooler in hosts.iter().flat_map(|host| &host.poolers) {
                pooler.console(&base, &psql, command).await.with_context(|| format!("round {round}"))?;
            }
        }
        more(&load, 200).await?;
    }
    assert_eq!(load.failed(), 0, "PAUSE failed transactions");
    for host in &mut hosts {
        let pooler = &mut host.poolers[1];
        pooler.kill();
        pooler.start(&base).await?;
        more(&load, 200).await?;
    }
    let record = load.stop().await?;
    println!("{:?}", record.failures());
    ensure!(record.reconnections() > 0, "two poolers were killed and no client noticed");
    let verdict = verify(&record, |database| primary.config(database)).await?;
    verdict.require("the primary")?;
    assert_eq!(verdict.acknowledged, record.acknowledged());
    base.passed();
    Ok(())
}

/// Answers 200 to the path while it is to be had, 503 to everything else.
async fn health(port: u16, path: &'static str) -> Result<tokio::task::JoinHandle<()>> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    Ok(tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = [0; 512];
            let length = stream.read(&mut asked).await.unwrap_or_default();
            let well = asked[..length].starts_with(format!("GET {path} HTTP/").as_bytes());
            let status = if well { "200 OK" } else { "503 Service Unavailable" };
            let answer = format!("HTTP/1.0 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_know_how_old_it_is_what_they_read() -> Result<()> {
    let _turn = Turn::take().await?;
    let mut base = Base::new()?;
    let cluster = cluster(&base).await?;
    let (primary, replica) = (cluster.primary(), &cluster.nodes[1]);
    let ports = [Port::reserve()?, Port::reserve()?];
    let servers = [("o1", primary.port, &ports[0]), ("o2", replica.port, &ports[1])];
    let servers = servers.map(|(node, port, health)| BalancedServer {
        node: node.into(),
        address: base.network.address(node),
        port,
        health: health.number,
    });
    let _endpoint = health(ports[1].number, "/o2/replica").await?;
    let wrong = health(ports[0].number, "/o2/replica").await?;
    let mut balancer = Balancer::make(&base, "lb1", &servers).await?;
    let up = async |balancer: &Balancer, wanted: [bool; 2]| {
        eventually("the balancer's states", Duration::from_secs(20), || async {
            let states = balancer.servers().await?;
            let found: Vec<bool> = states.iter().map(|(_, _, state)| state.starts_with("UP")).collect();
            ensure!(found == wanted, "{states:?}");
            Ok(Some(()))
        })
        .await
    };
    up(&balancer, [false, true]).await?;
    let targets = ["shop", WEIRD].map(|database| ReadTarget {
        database: database.into(),
        write: primary.config_as(APP, database),
        read: balancer.config(database),
    });
    let readers = Readers::start(targets.into(), readers::Options::default()).await?;
    let answered = async |readers: &Readers| {
        let mut sum = 0;
        let mut all = readers::Reads::default();
        eventually("answers", Duration::from_secs(60), || {
            let reads = readers.take();
            sum += reads.answered;
            all.connections.extend(reads.connections);
            all.failures.extend(reads.failures);
            all.oldest = all.oldest.max(reads.oldest);
            let enough = sum >= 300;
            async move { Ok(enough.then_some(())) }
        })
        .await?;
        anyhow::Ok(all)
    };
    let reads = answered(&readers).await?;
    ensure!(reads.failures.is_empty(), "{:?}", reads.failures);
    assert_eq!(reads.connections.keys().copied().collect::<Vec<_>>(), [i32::from(replica.port)]);
    ensure!(reads.oldest.0 < Duration::from_secs(3), "{:?}", reads.oldest);

    // A reload loses what was set at run time, and no reader's connection.
    balancer.ask("set server reads/o2 weight 7").await?;
    ensure!(balancer.servers().await?.iter().any(|(_, weight, _)| *weight == 7), "the weight was not set");
    balancer.reload().await?;
    up(&balancer, [false, true]).await?;
    ensure!(balancer.servers().await?.iter().all(|(_, weight, _)| *weight == 100), "a weight was kept");
    ensure!(answered(&readers).await?.failures.is_empty(), "a reload failed reads");

    // What is kept from the replica is seen as old.
    let held = Instant::now();
    replica.execute("postgres", "SELECT pg_wal_replay_pause()").await?;
    readers.take();
    eventually("old reads", Duration::from_secs(20), || async {
        Ok((readers.take().oldest.0 > Duration::from_millis(700)).then_some(()))
    })
    .await?;
    let reads = answered(&readers).await?;
    ensure!(reads.oldest.0 <= held.elapsed(), "{:?} is older than the pause", reads.oldest);
    replica.execute("postgres", "SELECT pg_wal_replay_resume()").await?;
    let reads = readers.stop().await?;
    ensure!(reads.beats > 20, "{} counts", reads.beats);
    wrong.abort();
    base.passed();
    Ok(())
}
