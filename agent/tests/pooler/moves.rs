//! The order of a switchover: arm, pause, resume on the other side. Clients notice a pause and nothing else.

use pgleap_proto::traffic::Side;

use crate::in_world;
use crate::load::Load;
use crate::world::{World, free_port};

#[test]
fn a_pooler_moves_there_and_back_under_load() {
    in_world("moves::a_pooler_moves_there_and_back_under_load", async |world| {
        let included = world.servers.path("more.ini");
        let (old, new) = (World::reach(&world.old), World::reach(&world.new));
        // Several aliases of one database, another database, any order and quoting; one that is nobody's business.
        let more =
            format!("shop = {old}\n; comment host=127.0.0.1\nelsewhere = host=127.0.0.1 port=1 dbname=app\n");
        std::fs::write(&included, &more).unwrap();
        let entries = format!(
            "app = {old}\n\napp_rw=port = '{}'   dbname=app host='127.0.0.1'\n%include {}\n* = {old}",
            world.old.port,
            included.display()
        );
        let bouncer = world.bouncer("b1", free_port(), &entries, "").await;
        let pooler = bouncer.pooler("b1");
        let before = (bouncer.text(), more);
        let load = Load::start(bouncer.port, &["app", "app_rw", "shop"], 4);
        load.more(200).await;

        for (to, node) in
            [(Side::New, world.new.clone()), (Side::Old, world.old.clone()), (Side::New, world.new.clone())]
        {
            let armed = world.arm(&pooler, to).await.unwrap();
            assert_eq!(armed.aliases, ["app", "app_rw", "shop"]);
            assert!(
                armed.notes.iter().any(|note| note.contains("\"elsewhere\" is left alone")),
                "{:?}",
                armed.notes
            );
            let paused = world.pause(&pooler, 10_000, 60_000).await.unwrap();
            assert!(paused.paused, "{paused:?}");
            // Nothing of theirs is on a server, so the rows stand still.
            let rows = (world.rows(&world.old).await, world.rows(&world.new).await);
            assert_eq!(rows, (world.rows(&world.old).await, world.rows(&world.new).await));
            let begun = std::time::Instant::now();
            let resumed = world.resume(&pooler, to).await.unwrap();
            println!(
                "pause {} us, resume {} us: {:?}",
                paused.took_us,
                begun.elapsed().as_micros(),
                resumed.notes
            );
            assert!(bouncer.serves(&["app", "app_rw", "shop"], &node).await);
            let rows = world.rows(&node).await;
            load.more(100).await;
            assert!(world.rows(&node).await >= rows + 50);
            let text = std::fs::read_to_string(&included).unwrap();
            match to {
                Side::Old => assert_eq!((bouncer.text(), text), before),
                _ => assert_eq!(text, before.1.replace(&old, &new)),
            }
            assert!(bouncer.left_over().is_empty(), "{:?}", bouncer.left_over());
        }
        let acknowledged = load.end().await;
        assert_eq!(acknowledged, world.rows(&world.old).await + world.rows(&world.new).await);
        let elsewhere = bouncer.databases().await.into_iter().find(|(name, ..)| name == "elsewhere");
        assert_eq!(elsewhere, Some(("elsewhere".into(), 1, false)));
    });
}

#[test]
fn two_processes_that_share_a_port_are_moved_each() {
    in_world("moves::two_processes_that_share_a_port_are_moved_each", async |world| {
        let port = free_port();
        // The entries lie in one file that both include, as one would write it.
        let shared = world.servers.path("shared.ini");
        std::fs::write(&shared, format!("app = {}\n", World::reach(&world.old))).unwrap();
        let include = format!("%include {}", shared.display());
        let first = world.bouncer("b1", port, &include, "so_reuseport = 1\n").await;
        let second = world.bouncer("b2", port, &include, "so_reuseport = 1\n").await;
        let load = Load::start(port, &["app"], 16);
        load.more(100).await;
        for (to, node) in [(Side::New, world.new.clone()), (Side::Old, world.old.clone())] {
            world.arm(&first.pooler("b1"), to).await.unwrap();
            world.arm_again(&second.pooler("b2"), to).await.unwrap();
            let (one, two) = (first.pooler("b1"), second.pooler("b2"));
            let paused = tokio::join!(world.pause(&one, 10_000, 60_000), world.pause(&two, 10_000, 60_000));
            assert!(paused.0.unwrap().paused && paused.1.unwrap().paused);
            let rows = world.rows(&world.old).await + world.rows(&world.new).await;
            assert_eq!(rows, world.rows(&world.old).await + world.rows(&world.new).await);
            let resumed = tokio::join!(world.resume(&one, to), world.resume(&two, to));
            resumed.0.unwrap();
            resumed.1.unwrap();
            assert!(first.serves(&["app"], &node).await && second.serves(&["app"], &node).await);
            load.more(100).await;
        }
        assert_eq!(load.end().await, world.rows(&world.old).await + world.rows(&world.new).await);
    });
}

#[test]
fn what_is_not_paused_is_brought_into_line() {
    in_world("moves::what_is_not_paused_is_brought_into_line", async |world| {
        let entries = format!("app = {}", World::reach(&world.old));
        let bouncer = world.bouncer("b1", free_port(), &entries, "default_pool_size = 1").await;
        let pooler = bouncer.pooler("b1");
        let load = Load::start(bouncer.port, &["app"], 4);
        load.more(50).await;
        // Never armed, as after a restart of the agent; twice, because it is idempotent.
        let resumed = world.resume(&pooler, Side::New).await.unwrap();
        assert!(resumed.notes.iter().any(|note| note.contains("without a pause")), "{:?}", resumed.notes);
        // PgBouncer counts a login that a RELOAD meets as one that failed, and turns clients away for it (without a pause that can
        // happen): with one server connection, which serves, there is none under way.
        load.more(50).await;
        let again = world.resume(&pooler, Side::New).await.unwrap();
        assert!(again.notes.iter().all(|note| !note.contains("without a pause")), "{:?}", again.notes);
        assert!(bouncer.serves(&["app"], &world.new).await);
        load.more(50).await;
        load.end().await;
        assert!(world.rows(&world.new).await > 0);
    });
}
