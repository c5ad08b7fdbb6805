//! What cannot be upgraded is refused before anything is changed.

use super::*;

/// Minor releases of different release sets: `pg_upgrade --check` finds nothing, the rehearsal must.
#[tokio::test]
async fn a_release_set_the_new_binaries_do_not_know_is_refused() {
    if delegated("refuse::a_release_set_the_new_binaries_do_not_know_is_refused") {
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
    if delegated("refuse::what_cannot_be_is_refused_before_anything_changes") {
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
