//! The leader's own work on real PostgreSQL: a heartbeat while it takes writes, and none behind a fence.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use pgleap_proto::node::Node;
use pgleap_proto::step::{KeepTraffic, action::Kind};
use pgleap_proto::tls::Role;
use pgleap_proto::traffic::{self as wire, Leader, SideDatabase};

use crate::fake::{self, certificates::Authority};
use crate::peers::FakeLeader;
use crate::postgres::{Cluster, USER, binaries};
use crate::{Agent, OPERATION, eventually};

/// True when root has run the test as the user that servers run as.
fn was_run_as_ordinary_user(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        return false;
    }
    let status = Command::new("setpriv")
        .args(["--reuid", USER, "--regid", USER, "--clear-groups", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .current_dir("/")
        .env("HOME", "/")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed as user {USER}");
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_says_that_it_takes_writes_until_it_is_fenced() {
    let bin = binaries(15);
    // A fence is a file that the server's user has to be able to read: the agent is that user.
    if was_run_as_ordinary_user("heart::a_leader_says_that_it_takes_writes_until_it_is_fenced") {
        return;
    }
    let old = Cluster::start("o1", 15, &bin, "wal_level = logical");
    old.sql(
        "postgres",
        "CREATE SCHEMA t; CREATE TABLE t.marker (side text PRIMARY KEY, at timestamptz NOT NULL, mark bigint NOT NULL); \
         INSERT INTO t.marker VALUES ('old', '2020-01-01', 0), ('new', '2020-01-01', 0)",
    );
    old.sql("postgres", "SELECT pg_create_logical_replication_slot('forward', 'pgoutput')");
    // Nothing has to answer it: whether it follows is what its own subscription says.
    old.sql(
        "postgres",
        "CREATE SUBSCRIPTION t_r CONNECTION 'host=127.0.0.1 port=1 dbname=postgres' PUBLICATION t_r \
         WITH (connect = false, slot_name = 'reverse')",
    );
    let authority = Arc::new(Authority::new());
    let agent = Agent::start(&authority).await;
    let identity = authority.issue(&agent.path().join("new-host"), Role::Agent, "new-host");
    let new = FakeLeader::start("new-host", &identity).await;
    // Of the agent's own host: asked without a connection.
    let node = Node { host: "db1".into(), ..old.node.clone() };
    let cluster = wire::Cluster {
        operation: OPERATION.into(),
        tag: "t".into(),
        reverse_tag: "t_r".into(),
        databases: vec![SideDatabase {
            database: "postgres".into(),
            forward_slot: "forward".into(),
            reverse_slot: "reverse".into(),
        }],
        old_leader: Some(Leader { node: Some(node.clone()), agent: "127.0.0.1:1".into() }),
        new_leader: Some(new.leader.clone()),
        old_login: "replicator".into(),
        new_login: "replicator".into(),
    };
    let keep = Kind::KeepTraffic(KeepTraffic {
        stays: 0,
        node: Some(node.clone()),
        side: wire::Side::Old.into(),
        leader: true,
        cluster: Some(cluster.clone()),
        max_lag_bytes: 0,
        max_lag_ms: 0,
    });
    agent.step(keep.clone()).await.unwrap();
    let young = "SELECT bool_and((side = 'old') = (clock_timestamp() - at < interval '3 s')) FROM t.marker";
    let is = |query: &'static str| {
        let old = &old;
        async move || (old.sql("postgres", query).trim() == "t", old.sql("postgres", "TABLE t.marker"))
    };
    eventually("the row of its own side is young, and only that", is(young)).await;
    eventually("it is the primary", async || (agent.get("/primary") == 200, agent.figures("o1"))).await;
    assert_eq!((agent.get("/read-only"), agent.get("/replica")), (200, 503));

    let mut config = fake::config(agent.path(), "db1");
    config.roots = vec![old.node.socket_dir.clone().into()];
    let before = old.sql("postgres", "SELECT confirmed_flush_lsn FROM pg_replication_slots");
    let fence =
        pgleap_agent::fence::prepare(&config, &node, OPERATION, &["replicator".into()]).await.unwrap();
    fence.ensure(Duration::from_secs(30)).await.unwrap();
    // psql connects as the superuser, by the local socket: that is still let in.
    eventually(
        "nothing is written behind the fence",
        is("SELECT clock_timestamp() - max(at) > interval '3 s' FROM t.marker"),
    )
    .await;
    eventually("it is no primary any more", async || (agent.get("/primary") == 503, ())).await;
    assert_eq!(agent.figures("o1")["fenced"], true);
    // Fenced, and following nobody: the source in the middle of a switchover. What its slot holds is not applied anywhere.
    let refused = pgleap_agent::side::advance_idle(&cluster, &node, wire::Side::Old).await.unwrap_err();
    assert!(refused.message.contains("does not follow"), "{refused}");
    assert_eq!(old.sql("postgres", "SELECT confirmed_flush_lsn FROM pg_replication_slots"), before);
    old.sql("postgres", "ALTER SUBSCRIPTION t_r ENABLE");
    eventually("its idle slot moves on once it follows", async || {
        let now = old.sql("postgres", "SELECT confirmed_flush_lsn FROM pg_replication_slots");
        (now != before, now)
    })
    .await;

    pgleap_agent::fence::lift(&node, OPERATION).await.unwrap();
    eventually("it takes writes again", is(young)).await;
    agent.undo(keep).await;
    eventually(
        "and ends with its record",
        is("SELECT clock_timestamp() - max(at) > interval '3 s' FROM t.marker"),
    )
    .await;
}
