//! Hybrid lag on real PostgreSQL: 15 published, 18 subscribed, and a physical replica of the 18.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgleap_agent::reads::Side;
use pgleap_agent::reads::heartbeat::Heart;
use pgleap_proto::Lsn;
use pgleap_proto::step::{KeepTraffic, StageBalancer, action::Kind};
use pgleap_proto::tls::Role;
use pgleap_proto::traffic::{self as wire, ObserveRequest, SideDatabase};

use crate::fake::certificates::Authority;
use crate::haproxy::{Haproxy, Named};
use crate::peers::FakeLeader;
use crate::postgres::{Cluster, binaries};
use crate::{Agent, OPERATION, eventually, talk};

const TAG: &str = "pgleap_app";
const DATABASES: [&str; 2] = ["app", "we\"ird ☃"];

fn marker(cluster: &Cluster) {
    for database in DATABASES {
        cluster.sql("postgres", &format!("CREATE DATABASE \"{}\"", database.replace('"', "\"\"")));
        cluster.sql(
            database,
            &format!(
                "CREATE SCHEMA {TAG}; CREATE TABLE {TAG}.marker (side text PRIMARY KEY, at timestamptz NOT NULL, mark bigint NOT NULL); \
                 INSERT INTO {TAG}.marker VALUES ('old', '2020-01-01', 0), ('new', '2020-01-01', 0); \
                 CREATE TABLE t (id int PRIMARY KEY, v text)"
            ),
        );
    }
}

fn subscription(cluster: &Cluster, verb: &str) {
    cluster.sql("app", &format!("ALTER SUBSCRIPTION {TAG} {verb}"));
}

/// Writes the marker of the side that leads, and lets its fake agent tell its position.
async fn beat(old: Arc<Cluster>, new: Arc<Cluster>, fakes: Arc<[FakeLeader; 2]>, leads_new: Arc<AtomicBool>) {
    let databases = DATABASES.map(str::to_owned);
    let mut hearts = [Heart::default(), Heart::default()];
    loop {
        let (index, cluster, side) =
            if leads_new.load(Ordering::SeqCst) { (1, &new, Side::New) } else { (0, &old, Side::Old) };
        for result in hearts[index].beat(&cluster.node, TAG, side, &databases).await {
            result.unwrap();
        }
        for (fake, cluster) in fakes.iter().zip([&old, &new]) {
            let lsn: Lsn = cluster.sql("app", "SELECT pg_current_wal_lsn()").trim().parse().unwrap();
            fake.say(|reply| reply.lsn = lsn.0);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_lag_of_a_replica_spans_both_hops() {
    let (old_bin, new_bin) = (binaries(15), binaries(18));
    let old = Arc::new(Cluster::start("o1", 15, &old_bin, "wal_level = logical"));
    let new =
        Arc::new(Cluster::start("n1", 18, &new_bin, "wal_level = logical\nwal_receiver_status_interval = 1"));
    marker(&old);
    marker(&new);
    for (number, database) in DATABASES.into_iter().enumerate() {
        old.sql(database, &format!("CREATE PUBLICATION {TAG} FOR ALL TABLES"));
        old.sql(
            database,
            &format!("SELECT pg_create_logical_replication_slot('{TAG}_{number}', 'pgoutput')"),
        );
        let quoted = database.replace('"', "\"\"").replace('\'', "''");
        let from =
            format!("host={} port={} user=postgres dbname=''{quoted}''", old.node.socket_dir, old.node.port);
        let from = from.replace("\"\"", "\"");
        new.sql(
            database,
            &format!(
                "CREATE SUBSCRIPTION {TAG} CONNECTION '{from}' PUBLICATION {TAG} WITH (create_slot = false, copy_data = false, \
                 slot_name = '{TAG}_{number}')"
            ),
        );
    }
    let replica = new.replica("n2");

    let authority = Arc::new(Authority::new());
    let mut agent = Agent::start(&authority).await;
    let mut fakes = Vec::new();
    for host in ["old-host", "new-host"] {
        let identity = authority.issue(&agent.path().join(host), Role::Agent, host);
        fakes.push(FakeLeader::start(host, &identity).await);
    }
    let fakes: Arc<[FakeLeader; 2]> = Arc::new(fakes.try_into().ok().unwrap());
    fakes[0].say(|reply| reply.fenced = false);
    let side_database = |database: &str| SideDatabase { database: database.into(), ..Default::default() };
    let cluster = wire::Cluster {
        operation: OPERATION.into(),
        tag: TAG.into(),
        reverse_tag: format!("{TAG}_r"),
        databases: DATABASES.into_iter().map(side_database).collect(),
        old_leader: Some(fakes[0].leader.clone()),
        new_leader: Some(fakes[1].leader.clone()),
        ..Default::default()
    };
    let keep = |node: &Cluster, side: wire::Side, leader| {
        Kind::KeepTraffic(KeepTraffic {
            stays: 0,
            node: Some(node.node.clone()),
            side: side.into(),
            leader,
            cluster: Some(cluster.clone()),
            max_lag_bytes: 64 << 20,
            max_lag_ms: 5_000,
        })
    };
    assert_eq!(agent.get("/replica"), 503, "nothing is kept yet");
    assert_eq!(talk(agent.check, ""), "down\n");
    agent.step(keep(&replica, wire::Side::New, false)).await.unwrap();

    let leads_new = Arc::new(AtomicBool::new(false));
    let beating = tokio::spawn(beat(old.clone(), new.clone(), fakes.clone(), leads_new.clone()));
    let is = |path: &'static str, status: u16| {
        let agent = &agent;
        async move || {
            let (seen, body) = agent.http("GET", path);
            (seen == status, body)
        }
    };
    // One node: it needs not be named.
    eventually("the replica is in bounds", is("/replica", 200)).await;
    assert_eq!(talk(agent.check, ""), "up 100%\n");
    assert_eq!((agent.get("/health"), agent.get("/read-only"), agent.get("/primary")), (200, 200, 503));
    assert_eq!(
        (agent.http("HEAD", "/replica"), agent.http("OPTIONS", "/replica").0),
        ((200, String::new()), 200)
    );
    for (method, path, status) in [
        ("GET", "/replica?lag=16M", 400),
        ("GET", "/replica?x=1", 400),
        ("GET", "/n9/replica", 404),
        ("GET", "/leader", 404),
        ("POST", "/replica", 405),
    ] {
        assert_eq!(agent.http(method, path).0, status, "{method} {path}");
    }
    assert!(talk(agent.health, "no request\r\n\r\n").contains(" 400 "));
    let figures = agent.figures("n2");
    assert_eq!(figures["writer"], "old");
    assert_eq!(figures["following"], serde_json::json!(DATABASES));
    assert_eq!(figures["in_recovery"], true);

    // The balancer believes these answers.
    let o1 = Named::start("o1", 0);
    let n2 = Named::start("n2", 0);
    let haproxy = Haproxy::start(
        "admin",
        &[
            "option httpchk GET /n2/replica?lag=1MB&age=3s".to_owned(),
            format!("server o1 127.0.0.1:{}", o1.port),
            format!("server n2 127.0.0.1:{} check port {} inter 100ms fall 2 rise 2", n2.port, agent.health),
        ],
    )
    .await;
    let balancer = haproxy.balancer(&["o1"], &["n2"]);
    let stage =
        StageBalancer { operation: OPERATION.into(), balancer: Some(balancer.clone()), weights_stay: false };
    agent.step(Kind::StageBalancer(stage)).await.unwrap();
    let shared = async |agent: &Agent, percent: u32| {
        eventually(&format!("{percent} percent of reads are on the new side"), async || {
            let reply = agent.route(&balancer, 50).await.unwrap();
            (reply.effective_percent == percent, reply)
        })
        .await;
    };
    shared(&agent, 50).await;

    // The logical hop stands still in one of two databases.
    subscription(&new, "DISABLE");
    old.sql("app", "INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 4000) n");
    eventually("too many bytes behind", is("/replica?lag=1MB&age=1h", 503)).await;
    eventually("too old", is("/replica?age=3s&lag=1TB", 503)).await;
    assert!(agent.http("GET", "/replica?age=3s&lag=1TB").1.contains("ms old"));
    assert_eq!(agent.get("/health"), 200);
    shared(&agent, 0).await;
    eventually("by its own bounds too", async || (talk(agent.check, "") == "up 0%\n", ())).await;
    let worst = agent.figures("n2");
    assert!(
        worst["lag_ms"].as_u64().unwrap() >= 3_000 && worst["lag_bytes"].as_u64().unwrap() > 1 << 20,
        "{worst}"
    );
    subscription(&new, "ENABLE");
    eventually("it has caught up", is("/replica?lag=1MB&age=3s", 200)).await;
    shared(&agent, 50).await;

    // The physical hop stands still.
    replica.sql("postgres", "SELECT pg_wal_replay_pause()");
    eventually("the replica does not replay", is("/replica?age=3s", 503)).await;
    replica.sql("postgres", "SELECT pg_wal_replay_resume()");
    eventually("it replays", is("/replica?age=3s", 200)).await;

    // Ages are told by the clock of the writer's host.
    fakes[0].say(|reply| reply.now_us = 3_600_000_000);
    eventually("the marker seems an hour old by the writer's clock", is("/replica?age=1min", 503)).await;
    fakes[0].say(|reply| reply.now_us = 0);
    eventually("it is not", is("/replica?age=3s", 200)).await;

    // Who takes writes is unknown; then the new side does.
    fakes[1].say(|reply| reply.fenced = false);
    eventually("two writers are none", is("/replica?age=1h&lag=1TB", 503)).await;
    assert!(agent.http("GET", "/replica").1.contains("both leaders"));
    leads_new.store(true, Ordering::SeqCst);
    fakes[0].say(|reply| reply.fenced = true);
    subscription(&new, "DISABLE");
    eventually("behind its own leader only", is("/replica?lag=1MB&age=3s", 200)).await;
    assert_eq!(agent.figures("n2")["writer"], "new");

    // The same over the wire, also after a restart of the agent.
    agent.stop().await;
    agent.run().await;
    let observe = ObserveRequest {
        operation: OPERATION.into(),
        node: Some(replica.node.clone()),
        ..Default::default()
    };
    let mut traffic = agent.traffic.clone().unwrap();
    eventually("the next agent goes on", async || {
        let reply = traffic.observe(observe.clone()).await.unwrap().into_inner();
        (reply.lag_ms >= 0 && reply.lag_ms < 3_000, reply)
    })
    .await;
    let reply = traffic.observe(observe.clone()).await.unwrap().into_inner();
    assert!(reply.running && reply.in_recovery && !reply.fenced && reply.timeline == 1, "{reply:?}");
    assert_eq!(reply.system_identifier.to_string(), agent.figures("n2")["system_identifier"]);
    assert_eq!(reply.following, [DATABASES[1]]);

    // Two nodes: which one has to be said.
    agent.step(keep(&old, wire::Side::Old, true)).await.unwrap();
    eventually("the second one is kept too", async || (agent.get("/o1/health") == 200, ())).await;
    assert_eq!((agent.get("/replica"), agent.get("/n2/replica")), (404, 200));
    assert_eq!(talk(agent.check, "n2\n"), "up 100%\n");

    beating.abort();
    eventually("without a heartbeat it grows old", async || (agent.get("/n2/replica?age=3s") == 503, ()))
        .await;
    replica.run("pg_ctl", &["-D", &replica.node.data_dir, "-m", "immediate", "-s", "stop"]);
    eventually("it is down", async || {
        (agent.get("/n2/health") == 503 && talk(agent.check, "n2\n") == "down\n", ())
    })
    .await;
    let gone = traffic.observe(observe.clone()).await.unwrap().into_inner();
    assert!(!gone.running && gone.lag_ms == -1 && !gone.reason.is_empty(), "{gone:?}");
    for node in [&replica, &*old] {
        agent.undo(keep(node, wire::Side::New, false)).await;
    }
    eventually("nothing is kept", async || (agent.get("/replica") == 503 && agent.get("/n2/lag") == 404, ()))
        .await;
}
