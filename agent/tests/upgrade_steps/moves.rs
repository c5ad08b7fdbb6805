//! The same phase of a move, which keeps its major.

use super::*;

/// Within a major: the promoted seed and its replica go on in their directories, with the settings of a side that follows.
#[tokio::test]
async fn a_move_goes_on_in_the_seeds_directories() {
    if delegated("moves::a_move_goes_on_in_the_seeds_directories") {
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
