//! The upgrade phase's steps on real PostgreSQL 15 and 18: done, done twice, cut off, taken back, refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod actions;
#[path = "../fake/certificates.rs"]
mod certificates;
mod kill;
mod moves;
mod refuse;
mod world;

use std::path::Path;

use pgleap_agent::pg::ctl::StopMode;
use pgleap_agent::pg::marker::{self, Marker};
use pgleap_agent::pg::{auto_conf, collations, control, sql};
use pgleap_agent::step;
use pgleap_proto::agent::step_event;
use pgleap_proto::node::{Node, TablespaceMap};
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{
    Action, Analyze, CloneNode, CollationVersion, DatabaseCollations, Moved, Output, RefreshCollations,
    StartLeader, StartReplica, UpdateExtensions,
};

use actions::{
    check, init, rehearse, rehearsed_once, start_leader, stop_leader, stop_replica, stopped, upgrade,
};
use kill::{Victims, kill_some};
use world::{New, OPERATION, World, delegated, setting};

/// Old settings of every kind: taken over, gone, renamed, an extension's, a file in the data directory.
const SETTINGS: &str = "\
work_mem = 7MB
vacuum_defer_cleanup_age = 0
force_parallel_mode = off
shared_preload_libraries = 'pg_stat_statements'
pg_stat_statements.max = 500
archive_mode = on
archive_command = 'true'
synchronous_standby_names = ''
ignore_checksum_failure = off
log_line_prefix = 'it''s %m '
";

fn rows_query() -> &'static str {
    "SELECT count(*)::text || ' ' || sum(hashtext(a || b))::text FROM public.t"
}

#[tokio::test]
async fn the_whole_phase_each_step_twice_and_back() {
    if delegated("the_whole_phase_each_step_twice_and_back") {
        return;
    }
    let (b15, b18) = (setting("PGLEAP_PG15_BIN"), setting("PGLEAP_PG18_BIN"));
    let mut world = World::old(&b15, SETTINGS).await;
    world
        .sql(
            &world.old,
            "app",
            &[
                "CREATE EXTENSION pg_stat_statements VERSION '1.9'",
                "ALTER ROLE bob SET work_mem = '9MB'",
                r#"CREATE TABLE named (n text COLLATE "en-x-icu" PRIMARY KEY)"#,
            ],
        )
        .await;
    let old = world.old.clone();
    world.add_new("n1", &old, &b18).await;
    let upstream = world.new[0].seed.clone();
    world.add_new("n2", &upstream, &b18).await;
    let (n1, n2) = (&world.new[0], &world.new[1]);
    let state = world.config().state_dir.clone();

    world.twice("rehearse", rehearse(&world, &n1.node, &world.old)).await;
    rehearsed_once(&world, n1).await;
    assert_eq!(world.list(state.join("rehearsal")), Vec::<String>::new(), "nothing stays behind");

    world.twice("init", init(n1)).await;
    let conf = std::fs::read_to_string(Path::new(&n1.node.data_dir).join("postgresql.conf")).unwrap();
    for line in [
        "work_mem = '7MB'",
        "pg_stat_statements.max = '500'",
        "log_line_prefix = 'it''s %m '",
        "archive_mode = 'off'",
        "ignore_checksum_failure = 'off'",
        "# left out: vacuum_defer_cleanup_age",
        "max_connections = '60'",
    ] {
        assert!(conf.contains(line), "{line} in\n{conf}");
    }
    assert!(!conf.contains(&format!("\nport = '{}'", world.old.port)));

    world.twice("check", check(n1)).await;
    assert_eq!(world.list(state.join("work")), Vec::<String>::new());
    assert_eq!(world.list(state.join("s")), Vec::<String>::new());
    assert!(!world.list(&n1.node.data_dir).contains(&"pg_upgrade_output.d".to_owned()));

    world.promote().await;
    world
        .eventually(
            "n2 follows the new timeline",
            &n2.seed,
            "SELECT (received_tli = 2)::text FROM pg_stat_wal_receiver",
        )
        .await;
    let rows = world.value(&n1.seed, "app", rows_query()).await;

    let leader = stopped(world.twice("stop-n1", stop_leader(n1)).await).control.unwrap();
    let replica = stopped(world.twice("stop-n2", stop_replica(n2, leader.clone())).await);
    assert!(replica.same_checkpoint, "{replica:?}");
    assert_eq!(replica.control.unwrap().checkpoint_lsn, leader.checkpoint_lsn);

    let error = world.run("start-n1", start_leader(n1)).await.unwrap_err();
    assert!(error.message.contains("has not been upgraded"), "{error}");

    world.twice("upgrade", upgrade(n1)).await;
    let spaces = world.list(world.dir.path().join("d/n1/ts"));
    assert_eq!(spaces.iter().filter(|n| n.starts_with("PG_18_")).count(), 1, "{spaces:?}");
    world.twice("start-n1", start_leader(n1)).await;
    assert_eq!(world.value(&n1.node, "app", rows_query()).await, rows);

    // A replica that was neither verified nor cloned is refused; a clone (its own mark) is started.
    world.sql(&n1.node, "postgres", &["SELECT pg_create_physical_replication_slot('again')"]).await;
    // What the plan has to say: from where the leader has its tablespaces.
    let map =
        TablespaceMap { from: n1.node.tablespaces[0].to.clone(), to: n2.node.tablespaces[0].to.clone() };
    let clone = Kind::CloneNode(CloneNode {
        node: Some(Node { tablespaces: vec![map], ..n2.node.clone() }),
        upstream: Some(world.conninfo(&n1.node)),
        slot: "again".into(),
        system_identifier: 0,
        only_if_unverified: true,
        verified: false,
        replace: true,
        upstream_data_dir: n1.node.data_dir.clone(),
    });
    let replica = |verified| {
        let upstream = Some(world.conninfo(&n1.node));
        Kind::StartReplica(StartReplica {
            node: Some(n2.node.clone()),
            upstream,
            slot: "again".into(),
            verified,
            moved: None,
        })
    };
    std::fs::create_dir(&n2.node.data_dir).unwrap();
    let relinked = Marker { operation: OPERATION.into(), step: "relink".into() };
    marker::write(Path::new(&n2.node.data_dir), &relinked).unwrap();
    let error = world.run("start-n2", replica(false)).await.unwrap_err();
    assert!(error.message.contains("not proven equal"), "{error}");
    world.twice("clone-n2", clone).await;
    world.twice("start-n2", replica(false)).await;
    assert_eq!(world.value(&n2.node, "app", rows_query()).await, rows);

    let extensions = Kind::UpdateExtensions(UpdateExtensions {
        node: Some(n1.node.clone()),
        databases: vec!["app".into()],
    });
    world.twice("extensions", extensions).await;
    let version = "SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'pg_stat_statements'";
    assert_ne!(world.value(&n1.node, "app", version).await, "1.9");

    // The two majors come with different releases of ICU.
    let collations = |old| {
        let old = vec![DatabaseCollations { database: "app".into(), collations: old }];
        Kind::RefreshCollations(RefreshCollations { node: Some(n1.node.clone()), old, jobs: 2 })
    };
    let session = sql::connect(&world.old, "app").await.unwrap();
    let told =
        collations::read(&session).await.unwrap().into_iter().filter(|c| c.used).map(|c| CollationVersion {
            schema: c.schema,
            name: c.name,
            provider: c.provider,
            recorded: c.recorded,
            actual: c.actual,
        });
    let told: Vec<_> = told.collect();
    assert_eq!(
        told.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(),
        ["en-x-icu"],
        "C.UTF-8 has no version"
    );
    let file = "SELECT pg_relation_filenode('public.named_pkey')::text";
    let before = world.value(&n1.node, "app", file).await;
    world.twice("collations", collations(told)).await;
    assert_ne!(world.value(&n1.node, "app", file).await, before, "it was sorted by the old ICU");

    world
        .twice("analyze", Kind::Analyze(Analyze { node: Some(n1.node.clone()), old_major: 15, jobs: 2 }))
        .await;
    let analysed =
        "SELECT (last_analyze IS NOT NULL)::text FROM pg_catalog.pg_stat_user_tables WHERE relname = 't'";
    assert_eq!(world.value(&n1.node, "app", analysed).await, "true");

    world.undo("start-n2", replica(false)).await;
    world.undo("start-n1", start_leader(n1)).await;
    world.undo("upgrade", upgrade(n1)).await;
    world.undo("check", check(n1)).await;
    world.undo("init", init(n1)).await;
    assert!(!Path::new(&n1.node.data_dir).exists());
    assert!(world.list(world.dir.path().join("d/n1/ts")).iter().all(|name| !name.starts_with("PG_18_")));
    assert!(
        Path::new(&n1.seed.data_dir).join("global/pg_control.old").exists(),
        "the old server must not start again"
    );
}

/// `pg_upgrade` is killed as soon as it says a line, for several lines; then the step is run again.
#[tokio::test]
async fn a_killed_pg_upgrade_is_taken_back_and_done_again() {
    if delegated("a_killed_pg_upgrade_is_taken_back_and_done_again") {
        return;
    }
    let (b15, b18) = (setting("PGLEAP_PG15_BIN"), setting("PGLEAP_PG18_BIN"));
    let mut world = World::old(&b15, "").await;
    let old = world.old.clone();
    world.add_new("n1", &old, &b18).await;
    let n1 = &world.new[0];
    world.twice("init", init(n1)).await;
    let conf = Path::new(&n1.node.data_dir).join("postgresql.conf");
    let written = std::fs::read_to_string(&conf).unwrap() + "# a hand's work\n";
    std::fs::write(&conf, &written).unwrap();
    world.promote().await;
    let rows = world.value(&n1.seed, "app", rows_query()).await;
    world.twice("stop", stop_leader(n1)).await;
    for (round, (at, victims)) in [
        ("Checking cluster versions", Victims::Program),
        ("Creating dump of database schemas", Victims::Supervisor),
        ("Checking database connection settings", Victims::Host),
        ("Restoring database schemas", Victims::Supervisor),
        ("Linking user relation files", Victims::Program),
        ("Sync data directory", Victims::Supervisor),
        ("Checking for extension updates", Victims::Host),
    ]
    .into_iter()
    .enumerate()
    {
        if let Err(error) = act_and_kill(&world, n1, at, victims, round == 0).await {
            panic!("{at}: {error}\n{:#?}", error.evidence);
        }
        if at == "Checking database connection settings" {
            let control = control::read(&n1.seed, Path::new(&n1.seed.data_dir)).await.unwrap();
            assert_eq!(control.state, "in production", "the old server crashed while it ran");
        }
    }
    let (_, again) =
        (world.run("upgrade", upgrade(n1)).await).map_err(|e| panic!("{e}\n{:#?}", e.evidence)).unwrap();
    assert_eq!(again, Output::default());
    assert_eq!(std::fs::read_to_string(&conf).unwrap(), written, "the configuration survives");
    world.twice("start", start_leader(n1)).await;
    assert_eq!(world.value(&n1.node, "app", rows_query()).await, rows);
}

/// Begins the step, and drops it (as when the agent is killed) after killing `pg_upgrade` at that line.
async fn act_and_kill(
    world: &World,
    new: &New,
    at: &str,
    victims: Victims,
    first: bool,
) -> pgleap_agent::error::Result<()> {
    let cx = world.context("upgrade");
    let step = step::of(Action { kind: Some(upgrade(new)) }).unwrap();
    let (_, mut events) = cx.report.watch();
    let killing = async {
        // A run that is joined tells its lines again: only those of a new one count.
        let mut new_run = first;
        loop {
            let Some(step_event::Kind::Log(line)) = events.recv().await.unwrap().kind else { continue };
            new_run |= line.source == "pgleap" && line.line.contains("beginning again");
            if new_run && line.source == "pg_upgrade" && line.line.starts_with(at) {
                break;
            }
        }
        kill_some(new, victims);
    };
    tokio::select! {
        outcome = step.act(&cx) => outcome.map(|()| panic!("done before {at}")),
        () = killing => Ok(()),
    }
}

#[tokio::test]
async fn an_undone_upgrade_leaves_the_seed_as_it_was() {
    if delegated("an_undone_upgrade_leaves_the_seed_as_it_was") {
        return;
    }
    let (b15, b18) = (setting("PGLEAP_PG15_BIN"), setting("PGLEAP_PG18_BIN"));
    let mut world = World::old(&b15, "").await;
    let old = world.old.clone();
    world.add_new("n1", &old, &b18).await;
    let n1 = &world.new[0];
    world.twice("init", init(n1)).await;
    world.promote().await;
    let rows = world.value(&n1.seed, "app", rows_query()).await;
    world.twice("stop", stop_leader(n1)).await;
    world.twice("upgrade", upgrade(n1)).await;
    world.undo("upgrade", upgrade(n1)).await;
    // Done again after the undo: begins with initdb.
    assert!(!world.run("upgrade", upgrade(n1)).await.unwrap().0);
    world.undo("upgrade", upgrade(n1)).await;
    world.undo("init", init(n1)).await;
    assert_eq!(world.list(world.dir.path().join("d/n1")), ["15", "ts"]);
    world.start(&n1.seed).await;
    assert_eq!(world.value(&n1.seed, "app", rows_query()).await, rows);
}

#[tokio::test]
async fn a_replica_stopped_elsewhere_is_told_not_failed() {
    if delegated("a_replica_stopped_elsewhere_is_told_not_failed") {
        return;
    }
    let (b15, b18) = (setting("PGLEAP_PG15_BIN"), setting("PGLEAP_PG18_BIN"));
    let mut world = World::old(&b15, "").await;
    let old = world.old.clone();
    world.add_new("n1", &old, &b18).await;
    let upstream = world.new[0].seed.clone();
    world.add_new("n2", &upstream, &b18).await;
    let (n1, n2) = (&world.new[0], &world.new[1]);
    world.promote().await;
    // The wrong order.
    world.stop(&n2.seed, StopMode::Fast).await;
    world.sql(&n1.seed, "app", &["INSERT INTO t VALUES (-1, 'late')"]).await;
    let leader = stopped(world.twice("stop-n1", stop_leader(n1)).await).control.unwrap();
    let replica = stopped(world.twice("stop-n2", stop_replica(n2, leader)).await);
    assert!(!replica.same_checkpoint && replica.difference.contains("latest checkpoint"), "{replica:?}");
}
