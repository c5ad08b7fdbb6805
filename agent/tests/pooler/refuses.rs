//! What cannot be moved is refused beforehand, with the reason.

use pgleap_proto::traffic::{PauseRequest, Pooler, Side, pooler};

use crate::in_world;
use crate::world::{World, eventually, free_port};

async fn refused(world: &mut World, pooler: &Pooler, expected: &str) {
    let status = world.arm(pooler, Side::New).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains(expected), "{} lacks {expected}", status.message());
}

#[test]
fn each_reason_is_told() {
    in_world("refuses::each_reason_is_told", async |world| {
        let old = World::reach(&world.old);
        let good = world.bouncer("good", free_port(), &format!("app = {old}"), "").await;
        world.arm(&good.pooler("good"), Side::New).await.unwrap();

        let session = world
            .bouncer("session", free_port(), &format!("a = {old}\nb = {old} pool_mode=session"), "")
            .await;
        refused(world, &session.pooler("s"), "pool_mode of b is session").await;

        refused(world, &good.pooler_as("eye", "eye"), "add it to admin_users").await;
        refused(world, &good.pooler_as("nobody", "nobody"), "admin_users").await;

        let Some(pooler::Kind::Pgbouncer(definition)) = good.pooler("x").kind else { panic!() };
        let with = |change: &dyn Fn(&mut pgleap_proto::traffic::PgBouncer)| {
            let mut definition = definition.clone();
            change(&mut definition);
            Pooler { name: "x".into(), kind: Some(pooler::Kind::Pgbouncer(definition)) }
        };
        refused(world, &with(&|d| d.port = 1), "is it running").await;
        refused(world, &with(&|d| d.config = "/etc/pgbouncer/pgbouncer.ini".into()), "roots").await;
        refused(world, &with(&|d| d.config = session.config.display().to_string()), "correct the fleet file")
            .await;
        refused(world, &with(&|d| d.config.push_str(".none")), "reading the pooler's configuration").await;

        let none = world.bouncer("none", free_port(), "a = host=127.0.0.1 port=1", "").await;
        refused(world, &none.pooler("n"), "no entry of [databases]").await;

        let list = format!("a = host=127.0.0.1,127.0.0.2 port={}", world.old.port);
        let list = world.bouncer("list", free_port(), &format!("{list}\nb = {old}"), "").await;
        refused(world, &list.pooler("l"), "among several hosts").await;

        let named = format!("a = host=localhost port={}\nb = {old}", world.old.port);
        let named = world.bouncer("named", free_port(), &named, "").await;
        refused(world, &named.pooler("n"), "under the name localhost").await;

        good.ask("PAUSE app").await;
        refused(world, &good.pooler("good"), "paused already").await;
        good.ask("RESUME app").await;
        let stale = good.text().replace(&old, "host=127.0.0.1 port=1");
        std::fs::write(&good.config, stale).unwrap();
        refused(world, &good.pooler("good"), "RELOAD it first").await;
        assert!(good.serves(&["app"], &world.old).await, "a refusal changes nothing");

        let read_only = world.bouncer("ro", free_port(), &format!("app = {old}"), "").await;
        let dir = read_only.config.parent().unwrap();
        let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(dir, mode(0o555)).unwrap();
        refused(world, &read_only.pooler("ro"), "write permission").await;
        std::fs::set_permissions(dir, mode(0o755)).unwrap();
    });
}

#[test]
fn what_reload_would_change_besides_is_told_and_calls_out_of_order_are_refused() {
    in_world(
        "refuses::what_reload_would_change_besides_is_told_and_calls_out_of_order_are_refused",
        async |world| {
            let old = World::reach(&world.old);
            let bouncer =
                world.bouncer("b1", free_port(), &format!("app = {old}"), "query_wait_timeout = 2\n").await;
            let pooler = bouncer.pooler("b1");
            let text = bouncer.text().replace("max_client_conn = 200", "max_client_conn = 7");
            std::fs::write(
                &bouncer.config,
                text.replace("[pgbouncer]", "late = host=127.0.0.1 port=1\n[pgbouncer]"),
            )
            .unwrap();
            world.pause(&pooler, 100, 100).await.unwrap_err();
            let notes = world.arm(&pooler, Side::New).await.unwrap().notes.join("\n");
            for expected in ["max_client_conn, database \"late\"", "query_wait_timeout is 2 s"] {
                assert!(notes.contains(expected), "{notes} lacks {expected}");
            }
            // A newer try makes the older one void.
            let other = Pooler { name: "other".into(), ..pooler.clone() };
            world.arm(&other, Side::New).await.unwrap();
            let status = world.pause(&pooler, 100, 100).await.unwrap_err();
            assert!(status.message().contains("not armed for this try"), "{status}");
        },
    );
}

#[test]
fn a_wrong_role_is_refused_and_told_with_name_and_address() {
    in_world("refuses::a_wrong_role_is_refused_and_told_with_name_and_address", async |world| {
        let mut client = world.wrong_role().await;
        for _ in 0..3 {
            let refused = client.pause(PauseRequest::default()).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::PermissionDenied);
            assert!(refused.message().contains("coordinator is needed"), "{refused}");
        }
        let log = || std::fs::read_to_string(world.servers.path("agent.log")).unwrap();
        eventually("the agent warns", async || log().contains("a caller was refused")).await;
        let told: Vec<String> =
            log().lines().filter(|line| line.contains("a caller was refused")).map(str::to_owned).collect();
        let [told] = &told[..] else { panic!("once a minute: {told:?}") };
        assert!(told.contains("agent there at 127.0.0.1") && told.contains("Traffic/Pause"), "{told}");
    });
}
