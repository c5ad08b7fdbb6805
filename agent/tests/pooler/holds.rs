//! A pause is all or nothing, and it ends, whoever dies.

use pgleap_proto::traffic::Side;

use crate::in_world;
use crate::leaders::Says;
use crate::load::{Load, connect};
use crate::world::{Bouncer, World, eventually, free_port};

async fn bouncer(world: &World) -> Bouncer {
    let old = World::reach(&world.old);
    world.bouncer("b1", free_port(), &format!("app = {old}\nshop = {old}"), "").await
}

async fn paused(bouncer: &Bouncer) -> Vec<String> {
    bouncer.databases().await.into_iter().filter(|(.., paused)| *paused).map(|(name, ..)| name).collect()
}

fn records(world: &World) -> usize {
    let entries = std::fs::read_dir(world.servers.path("state/poolers"));
    entries.map_or(0, |entries| {
        entries.filter(|e| e.as_ref().unwrap().path().extension().unwrap() == "owed").count()
    })
}

#[test]
fn a_long_transaction_is_named_and_nothing_stays_paused() {
    in_world("holds::a_long_transaction_is_named_and_nothing_stays_paused", async |world| {
        let bouncer = bouncer(world).await;
        let pooler = bouncer.pooler("b1");
        let (long, connection) = connect(bouncer.port, "shop").await.unwrap();
        tokio::spawn(connection);
        long.simple_query("BEGIN; INSERT INTO t DEFAULT VALUES").await.unwrap();
        let pid = long.simple_query("SELECT pg_backend_pid()").await.unwrap();
        let pid = pid.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).unwrap().parse::<i32>().ok(),
            _ => None,
        });
        let load = Load::start(bouncer.port, &["app", "shop"], 2);
        load.more(50).await;
        world.arm(&pooler, Side::New).await.unwrap();
        // Known beforehand, and clients notice nothing of it.
        let seen = world.in_use(&pooler).await.unwrap();
        assert!(seen.contains(&pid.unwrap()), "{seen:?} lacks {pid:?}");
        assert!(paused(&bouncer).await.is_empty());
        let reply = world.pause(&pooler, 300, 60_000).await.unwrap();
        assert!(!reply.paused && reply.reason.contains("b1"), "{reply:?}");
        assert!(reply.blocking_pids.contains(&pid.unwrap()), "{reply:?} lacks {pid:?}");
        assert!(paused(&bouncer).await.is_empty());
        assert_eq!(records(world), 0);
        // Tried again in the same try once it is gone.
        load.more(50).await;
        long.simple_query("COMMIT").await.unwrap();
        eventually("it is in nobody's way", async || {
            !world.in_use(&pooler).await.unwrap().contains(&pid.unwrap())
        })
        .await;
        assert!(world.pause(&pooler, 10_000, 60_000).await.unwrap().paused);
        assert_eq!(paused(&bouncer).await, ["app", "shop"]);
        assert_eq!(records(world), 1);
        world.resume(&pooler, Side::Old).await.unwrap();
        assert!(bouncer.serves(&["app", "shop"], &world.old).await);
        eventually("the record is gone", async || records(world) == 0).await;
        load.more(50).await;
        load.end().await;
    });
}

#[test]
fn the_hold_ends_alone_toward_the_open_leader_and_only_then() {
    in_world("holds::the_hold_ends_alone_toward_the_open_leader_and_only_then", async |world| {
        let bouncer = bouncer(world).await;
        let pooler = bouncer.pooler("b1");
        let load = Load::start(bouncer.port, &["app", "shop"], 2);
        load.more(50).await;
        for (first, then, node) in [
            ((Says::Fenced, Says::Fenced), (Says::Fenced, Says::Open), world.new.clone()),
            ((Says::Open, Says::Open), (Says::Open, Says::Standby), world.old.clone()),
            ((Says::Stopped, Says::Standby), (Says::Stopped, Says::Open), world.new.clone()),
        ] {
            let to = if bouncer.serves(&["app"], &world.old).await { Side::New } else { Side::Old };
            world.leaders.say("old", first.0);
            world.leaders.say("new", first.1);
            world.arm(&pooler, to).await.unwrap();
            assert!(world.pause(&pooler, 10_000, 1).await.unwrap().paused);
            let asked = world.leaders.asked("old");
            eventually("both are asked again and again", async || world.leaders.asked("old") > asked + 3)
                .await;
            assert_eq!(paused(&bouncer).await, ["app", "shop"]);
            world.leaders.say("old", then.0);
            world.leaders.say("new", then.1);
            eventually("resumed alone", async || bouncer.serves(&["app", "shop"], &node).await).await;
            load.more(20).await;
            eventually("the record is gone", async || records(world) == 0).await;
        }
        load.end().await;
    });
}

#[test]
fn a_restarted_agent_ends_the_pause_it_owes() {
    in_world("holds::a_restarted_agent_ends_the_pause_it_owes", async |world| {
        let bouncer = bouncer(world).await;
        let pooler = bouncer.pooler("b1");
        let load = Load::start(bouncer.port, &["app", "shop"], 2);
        load.more(50).await;
        world.leaders.say("old", Says::Open);
        world.leaders.say("new", Says::Fenced);
        world.arm(&pooler, Side::New).await.unwrap();
        // Killed after the effect, before the answer.
        world.failpoint("pooler.paused", "abort");
        world.pause(&pooler, 10_000, 1_000).await.unwrap_err();
        world.kill_agent();
        assert_eq!(paused(&bouncer).await, ["app", "shop"]);
        world.start_agent().await;
        eventually("resumed alone", async || bouncer.serves(&["app", "shop"], &world.old).await).await;
        load.more(50).await;

        // Killed again, and now a coordinator comes before the deadline.
        eventually("the record is gone", async || records(world) == 0).await;
        world.arm(&pooler, Side::New).await.unwrap();
        assert!(world.pause(&pooler, 10_000, 600_000).await.unwrap().paused);
        world.kill_agent();
        world.start_agent().await;
        assert_eq!(paused(&bouncer).await, ["app", "shop"]);
        world.pause(&pooler, 10_000, 600_000).await.unwrap_err();
        world.resume(&pooler, Side::New).await.unwrap();
        assert!(bouncer.serves(&["app", "shop"], &world.new).await);
        eventually("the record is gone", async || records(world) == 0).await;
        load.more(50).await;
        load.end().await;
    });
}

#[test]
fn a_pooler_that_is_killed_in_the_pause_comes_back_on_the_right_side() {
    in_world("holds::a_pooler_that_is_killed_in_the_pause_comes_back_on_the_right_side", async |world| {
        let mut bouncer = bouncer(world).await;
        let pooler = bouncer.pooler("b1");
        world.arm(&pooler, Side::New).await.unwrap();
        assert!(world.pause(&pooler, 10_000, 600_000).await.unwrap().paused);
        bouncer.kill();
        // It comes back while nobody looks: not paused, and still on the old side.
        bouncer.start().await;
        world.resume(&pooler, Side::New).await.unwrap();
        assert!(bouncer.serves(&["app", "shop"], &world.new).await);

        // Now it does not come back until everything is over.
        world.leaders.say("old", Says::Open);
        world.leaders.say("new", Says::Fenced);
        world.arm(&pooler, Side::Old).await.unwrap();
        assert!(world.pause(&pooler, 10_000, 600_000).await.unwrap().paused);
        bouncer.kill();
        let resumed = world.resume(&pooler, Side::Old).await.unwrap();
        assert!(resumed.notes.iter().any(|note| note.contains("does not run")), "{:?}", resumed.notes);
        let expected = format!("app = {}", World::reach(&world.old));
        assert!(bouncer.text().contains(&expected), "{}", bouncer.text());
        assert_eq!(records(world), 1);
        bouncer.start().await;
        assert!(bouncer.serves(&["app", "shop"], &world.old).await);
        eventually("it was looked at again", async || records(world) == 0).await;
        world.arm(&pooler, Side::New).await.unwrap();
    });
}
