//! The step that stages a pooler, and its undo: with the pooler running, and without.

use pgleap_proto::step::StagePooler;
use pgleap_proto::step::action::Kind;
use pgleap_proto::traffic::Side;

use crate::in_world;
use crate::world::{Bouncer, World, free_port};

fn stage(world: &World, bouncer: &Bouncer) -> Kind {
    Kind::StagePooler(StagePooler {
        operation: crate::world::OPERATION.into(),
        pooler: Some(bouncer.pooler("b1")),
        old_leader: world.leader(&world.old),
        new_leader: world.leader(&world.new),
        refuse_session_pools: true,
    })
}

#[test]
fn undo_gives_the_very_same_bytes_back() {
    in_world("stages::undo_gives_the_very_same_bytes_back", async |world| {
        // Without a port in the text, going back by editing alone would leave another text.
        let entries = format!(
            "app=dbname=app  {} \n\nmine = {}\nother = host=127.0.0.1 port=1",
            World::reach(&world.old),
            World::reach(&world.new)
        );
        let mut bouncer = world.bouncer("b1", free_port(), &entries, "").await;
        let (before, pooler) = (bouncer.text(), bouncer.pooler("b1"));
        let kind = stage(world, &bouncer);
        world.servers.undo("route.stage_pooler", kind.clone()).await;
        for down in [false, true] {
            world.servers.step("route.stage_pooler", kind.clone()).await.unwrap();
            assert!(world.servers.is_done("route.stage_pooler", kind.clone()).await);
            assert_eq!(bouncer.text(), before);
            let armed = world.arm(&pooler, Side::New).await.unwrap();
            assert_eq!(armed.aliases, ["app"]);
            assert!(world.pause(&pooler, 10_000, 60_000).await.unwrap().paused);
            world.resume(&pooler, Side::New).await.unwrap();
            assert_ne!(bouncer.text(), before);
            // What reached the new side before stays there, whichever way the others go.
            assert_eq!(world.arm(&pooler, Side::Old).await.unwrap().aliases, ["app"]);
            if down {
                bouncer.kill();
            }
            world.servers.undo("route.stage_pooler", kind.clone()).await;
            assert_eq!(bouncer.text(), before);
            assert!(bouncer.left_over().is_empty(), "{:?}", bouncer.left_over());
            if down {
                bouncer.start().await;
            }
            assert!(
                bouncer.serves(&["app"], &world.old).await && bouncer.serves(&["mine"], &world.new).await
            );
        }
    });
}

#[test]
fn undo_keeps_what_others_changed_meanwhile() {
    in_world("stages::undo_keeps_what_others_changed_meanwhile", async |world| {
        let entries = format!("app = {}", World::reach(&world.old));
        let bouncer = world.bouncer("b1", free_port(), &entries, "").await;
        let (before, pooler) = (bouncer.text(), bouncer.pooler("b1"));
        let kind = stage(world, &bouncer);
        world.servers.step("route.stage_pooler", kind.clone()).await.unwrap();
        world.resume(&pooler, Side::New).await.unwrap();
        let line = "max_client_conn = 201";
        std::fs::write(&bouncer.config, bouncer.text().replace("max_client_conn = 200", line)).unwrap();
        world.servers.undo("route.stage_pooler", kind).await;
        assert_eq!(bouncer.text(), before.replace("max_client_conn = 200", line));
        assert!(bouncer.serves(&["app"], &world.old).await);
        assert!(bouncer.left_over().is_empty(), "{:?}", bouncer.left_over());
    });
}
