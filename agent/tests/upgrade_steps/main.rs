//! The upgrade phase's steps on real PostgreSQL 15 and 18: done, done twice, cut off, taken back, refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod actions;
#[path = "../fake/certificates.rs"]
mod certificates;
mod kill;
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

/// Minor releases of different release sets: `pg_upgrade --check` finds nothing, the rehearsal must.
#[tokio::test]
async fn a_release_set_the_new_binaries_do_not_know_is_refused() {
    if delegated("a_release_set_the_new_binaries_do_not_know_is_refused") {
        return;
    }
    let (bin, b18) = (setting("PGLEAP_PG15_SECURITY_BIN"), setting("PGLEAP_PG18_BIN"));
    let world = World::old(&bin, "").await;
    let data_dir = world.dir.path().join("d/n1/18").to_string_lossy().into_owned();
    let node = Node { name: "n1".into(), major: 18, bin_dir: b18, data_dir, ..world.old.clone() };
    let error = world.run("rehearse", rehearse(&world, &node, &world.old)).await.unwrap_err();
    assert!(
        error.message.contains("pg_attver") && error.message.contains("update the new binaries"),
        "{error}"
    );
    assert!(error.evidence.iter().any(|line| line.contains("SET (pg_attver=")), "{:#?}", error.evidence);
    assert_eq!(world.list(world.config().state_dir.join("rehearsal")), Vec::<String>::new());
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_anything_changes() {
    if delegated("what_cannot_be_is_refused_before_anything_changes") {
        return;
    }
    let (b15, b18) = (setting("PGLEAP_PG15_BIN"), setting("PGLEAP_PG18_BIN"));
    let mut world = World::old(&b15, "").await;
    let old = world.old.clone();
    world.add_new("n1", &old, &b18).await;
    let n1 = &world.new[0];
    let data_dir = Path::new(&n1.node.data_dir);

    std::fs::create_dir(data_dir).unwrap();
    std::fs::write(data_dir.join("precious"), "x").unwrap();
    let error = world.run("init", init(n1)).await.unwrap_err();
    assert!(error.message.contains("not empty") && error.message.contains("precious"), "{error}");
    world.undo("init", init(n1)).await;
    assert_eq!(world.list(data_dir), ["precious"]);
    std::fs::remove_file(data_dir.join("precious")).unwrap();

    // A library that the new binaries cannot load: one of 15's.
    let library = world.dir.path().join("only_15.so");
    std::fs::copy(Path::new(&b15).join("../lib/auto_explain.so"), &library).unwrap();
    let library = library.to_string_lossy();
    let preload =
        |list| auto_conf::edit(Path::new(&n1.seed.data_dir), &[("shared_preload_libraries", list)]).unwrap();
    world.stop(&n1.seed, StopMode::Fast).await;
    preload(Some(&library));
    world.start(&n1.seed).await;
    let error = world.run("init", init(n1)).await.unwrap_err();
    assert!(error.message.contains("only_15") && error.message.contains("install the package"), "{error}");
    world.undo("init", init(n1)).await;
    world.stop(&n1.seed, StopMode::Fast).await;
    preload(None);
    world.start(&n1.seed).await;

    // A half-made directory of ours is made again; an empty one that existed stays after undo.
    let own = Marker { operation: OPERATION.into(), step: "init".into() };
    marker::write(data_dir, &own).unwrap();
    std::fs::create_dir_all(data_dir.join("pgleap.staging/base")).unwrap();
    world.twice("init", init(n1)).await;
    assert!(data_dir.join("PG_VERSION").exists() && !data_dir.join("pgleap.staging").exists());
    world.undo("init", init(n1)).await;
    assert_eq!(world.list(data_dir), Vec::<String>::new());
    assert!(data_dir.exists(), "it was there before");

    // What pg_upgrade itself objects to is told with the names of the objects.
    world.twice("init", init(n1)).await;
    world.sql(&world.old, "app", &["CREATE TABLE bad (a aclitem)"]).await;
    world
        .eventually_in(
            "the table arrives",
            &n1.seed,
            "app",
            "SELECT (to_regclass('public.bad') IS NOT NULL)::text",
        )
        .await;
    let error = world.run("check", check(n1)).await.unwrap_err();
    assert!(
        error.evidence.iter().any(|line| line.contains("public.bad.a")),
        "{error}\n{:#?}",
        error.evidence
    );
    assert!(error.message.contains("aclitem"), "{error}");
    world.sql(&world.old, "app", &["DROP TABLE bad"]).await;
    world
        .eventually_in("the table goes", &n1.seed, "app", "SELECT (to_regclass('public.bad') IS NULL)::text")
        .await;
    world.twice("check", check(n1)).await;

    // Never promoted.
    world.stop(&n1.seed, StopMode::Fast).await;
    let error = world.run("upgrade", upgrade(n1)).await.unwrap_err();
    assert!(error.message.contains("never promoted"), "{error}");
    let error = world.run("check", check(n1)).await.unwrap_err();
    assert!(error.message.contains("does not run"), "{error}");
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

/// Within a major: the promoted seed and its replica go on in their directories, with the settings of a side that follows.
#[tokio::test]
async fn a_move_goes_on_in_the_seeds_directories() {
    if delegated("a_move_goes_on_in_the_seeds_directories") {
        return;
    }
    let b18 = setting("PGLEAP_PG18_BIN");
    let of_the_old =
        "archive_mode = on\narchive_command = 'true'\nrestore_command = 'false'\nmax_worker_processes = 64\n";
    let mut world = World::old(&b18, of_the_old).await;
    world.old.major = 18;
    let old = world.old.clone();
    world.add_new("n1", &old, &b18).await;
    let upstream = world.new[0].seed.clone();
    world.add_new("n2", &upstream, &b18).await;
    let (n1, n2) = (world.new[0].seed.clone(), world.new[1].seed.clone());
    let moved = Some(Moved { databases: 12 });
    let leader = Kind::StartLeader(StartLeader { node: Some(n1.clone()), moved });
    let replica = Kind::StartReplica(StartReplica {
        node: Some(n2.clone()),
        upstream: Some(world.conninfo(&n1)),
        slot: "slot_n2".into(),
        verified: false,
        moved,
    });

    world.stop(&n1, StopMode::Fast).await;
    let error = world.run("start-n1", leader.clone()).await.unwrap_err();
    assert!(error.message.contains("has not been promoted"), "{error}");
    world.start(&n1).await;
    world.promote().await;
    world
        .eventually(
            "n2 follows",
            &n2,
            "SELECT coalesce((SELECT received_tli = 2 FROM pg_stat_wal_receiver), false)::text",
        )
        .await;
    // Started by somebody else, and not as a side that follows.
    let error = world.run("start-n1", leader.clone()).await.unwrap_err();
    assert!(
        error.message.contains("archive_mode = on") && error.message.contains("stop it, then retry"),
        "{error}"
    );

    let rows = world.value(&n1, "app", rows_query()).await;
    let control = stopped(world.twice("stop-n1", stop_leader(&world.new[0])).await).control.unwrap();
    assert!(stopped(world.twice("stop-n2", stop_replica(&world.new[1], control)).await).same_checkpoint);
    world.twice("start-n1", leader.clone()).await;
    world.twice("start-n2", replica.clone()).await;
    for node in [&n1, &n2] {
        assert_eq!(world.value(node, "app", rows_query()).await, rows);
        for (name, value) in [
            ("archive_mode", "off"),
            ("restore_command", ""),
            ("max_worker_processes", "64"),
            ("max_replication_slots", "34"),
            ("cluster_name", node.name.as_str()),
            ("port", &node.port.to_string()),
        ] {
            assert_eq!(
                world.value(node, "app", &format!("SHOW {name}")).await,
                value,
                "{name} of {}",
                node.name
            );
        }
    }
    world.sql(&n1, "app", &["INSERT INTO t VALUES (-1, 'moved')"]).await;
    world
        .eventually_in("it arrives", &n2, "app", "SELECT (EXISTS (SELECT FROM public.t WHERE a = -1))::text")
        .await;

    world.undo("start-n2", replica).await;
    world.undo("start-n1", leader).await;
    for node in [&n1, &n2] {
        assert!(
            !Path::new(&node.data_dir).join("postmaster.pid").exists(),
            "{} is stopped, though nobody marked it",
            node.name
        );
        assert!(Path::new(&node.data_dir).join("PG_VERSION").exists(), "and stays");
    }
}
