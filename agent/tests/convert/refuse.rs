//! What must not go on does not, with one clear error, and leaves nothing behind.

use std::time::Duration;

use pgleap_agent::step::of;
use pgleap_proto::node::Node;
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{
    Action, CleanPromoted, CleanedOutput, CreateSlots, DatabaseSlot, EnableSubscriptions, Publish, Subscribe,
    output,
};

use crate::exact::{clone, halt, physical_slot, recover, standby};
use crate::on_servers;
use crate::servers::{Servers, conninfo};

fn slots(old: &Node, timeout_ms: u64) -> Kind {
    let slot = DatabaseSlot { database: "postgres".into(), slot: "pgleap_abc123_5".into(), lsn: 0 };
    Kind::CreateSlots(CreateSlots {
        node: Some(old.clone()),
        slots: vec![slot],
        timeout_ms,
        ..Default::default()
    })
}

fn publish(old: &Node) -> Kind {
    let publication = "pgleap_abc123".into();
    Kind::Publish(Publish { node: Some(old.clone()), publication, databases: vec!["postgres".into()] })
}

async fn seeded(servers: &Servers, old: &Node) -> Node {
    let node = servers.node("n1");
    servers.step("slot", physical_slot(old, "s1")).await.unwrap();
    servers.step("clone", Kind::CloneNode(clone(&node, old, "s1", 0))).await.unwrap();
    servers.step("start", standby(&node, old, "s1", 0)).await.unwrap();
    node
}

#[test]
fn blockers_of_slots_are_named_and_no_slot_stays() {
    on_servers("refuse::blockers_of_slots_are_named_and_no_slot_stays", async |servers| {
        let old = servers.old_leader("o1");
        servers.sql(&old, "postgres", "CREATE TABLE public.t (id int)").await;
        let prepare = "BEGIN; INSERT INTO public.t VALUES (1); PREPARE TRANSACTION 'it''s'";
        servers.sql(&old, "postgres", prepare).await;
        let open = pgleap_agent::pg::sql::connect(&old, "postgres").await.unwrap();
        open.batch_execute("BEGIN; INSERT INTO public.t VALUES (2)").await.unwrap();
        let error = servers.step("slots", slots(&old, 1500)).await.unwrap_err();
        println!("{}\n{:#?}", error.message, error.evidence);
        assert!(error.message.contains("prepared transaction 'it's'"), "{}", error.message);
        assert!(error.message.contains("no slot was left behind"), "{}", error.message);
        assert!(error.evidence.iter().any(|line| line.contains("INSERT INTO public.t VALUES (2)")));
        let count = "SELECT count(*) FROM pg_replication_slots";
        assert_eq!(servers.ask(&old, "postgres", count).await, "0");

        // An agent that died leaves a backend that waits; the next run ends it and makes the slot.
        let orphan = pgleap_agent::pg::sql::connect(&old, "postgres").await.unwrap();
        let waiting = tokio::spawn(async move {
            let sql = "SELECT pg_create_logical_replication_slot('pgleap_abc123_5', 'pgoutput')::text";
            orphan.query_one(sql, &[]).await.is_err()
        });
        let held = "SELECT coalesce(min(active_pid), 0) FROM pg_replication_slots";
        let orphan = async || servers.ask(&old, "postgres", held).await;
        while orphan().await == "0" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let left_over = orphan().await;
        drop(open);
        let (made, ()) = tokio::join!(servers.step("slots", slots(&old, 20_000)), async {
            while orphan().await == left_over {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            servers.sql(&old, "postgres", "ROLLBACK PREPARED 'it''s'").await;
        });
        made.unwrap();
        assert!(waiting.await.unwrap(), "the orphan was ended");
        assert_eq!(servers.ask(&old, "postgres", count).await, "1");
        servers.undo("slots", slots(&old, 1)).await;
        assert_eq!(servers.ask(&old, "postgres", count).await, "0");

        // Names that are taken.
        servers.sql(&old, "postgres", "CREATE PUBLICATION pgleap_abc123 FOR TABLE public.t").await;
        let error = servers.step("publish", publish(&old)).await.unwrap_err();
        assert!(error.message.contains("another publication named pgleap_abc123"), "{}", error.message);
        servers.undo("publish", publish(&old)).await;
        assert_eq!(servers.ask(&old, "postgres", "SELECT count(*) FROM pg_publication").await, "1");
        let taken = "SELECT pg_create_logical_replication_slot('pgleap_abc123_5', 'test_decoding')";
        servers.sql(&old, "postgres", taken).await;
        let error = servers.step("slots", slots(&old, 1000)).await.unwrap_err();
        assert!(error.message.contains("exists already and cannot be used"), "{}", error.message);
        let error = servers.step("slot", physical_slot(&old, "pgleap_abc123_5")).await.unwrap_err();
        assert!(error.message.contains("another replication slot"), "{}", error.message);
        servers.undo("slots", slots(&old, 1)).await;
        servers.undo("slot", physical_slot(&old, "pgleap_abc123_5")).await;
        assert_eq!(servers.ask(&old, "postgres", count).await, "1");
    });
}

#[test]
fn a_node_past_the_target_is_refused_and_an_idle_primary_is_no_obstacle() {
    on_servers(
        "refuse::a_node_past_the_target_is_refused_and_an_idle_primary_is_no_obstacle",
        async |servers| {
            let old = servers.old_leader("o1");
            servers.sql(&old, "postgres", "CREATE TABLE public.t (id int)").await;
            let node = seeded(servers, &old).await;
            let past = servers.ask(&old, "postgres", "SELECT pg_current_wal_lsn()").await;
            let past: pgleap_proto::Lsn = past.parse().unwrap();
            servers.sql(&old, "postgres", "INSERT INTO public.t SELECT generate_series(1, 1000)").await;
            servers.step("start", standby(&node, &old, "s1", 0)).await.unwrap();
            let error = servers.step("recover", recover(&node, &old, "s1", past.0)).await.unwrap_err();
            assert!(error.message.contains("it has replayed up to"), "{}", error.message);
            servers.step("halt", halt(&node)).await.unwrap();
            let error = servers.step("recover", recover(&node, &old, "s1", past.0)).await.unwrap_err();
            assert!(error.message.contains("its files hold changes up to"), "{}", error.message);
            let error = servers.step("halt", halt(&old)).await.unwrap_err();
            assert!(error.message.contains("is not a standby: it accepts writes"), "{}", error.message);

            // Nobody writes: the slots' own record is what recovery stops before.
            let output = servers.step("slots", slots(&old, 10_000)).await.unwrap();
            let Some(output::Kind::Slots(made)) = output.kind else { panic!("{output:?}") };
            // The agent dies as soon as the server runs: the next one finds it bound to the target, or promoted.
            let cx = servers.context("recover");
            let action = Action { kind: Some(recover(&node, &old, "s1", made.slots[0].lsn)) };
            let first = of(action).unwrap();
            tokio::select! {
                ended = first.act(&cx) => println!("it was quicker: {ended:?}"),
                () = async {
                    while !std::path::Path::new(&node.data_dir).join("postmaster.pid").exists() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                } => {}
            }
            servers.step("recover", recover(&node, &old, "s1", made.slots[0].lsn)).await.unwrap();
            let error = servers.step("start", standby(&node, &old, "s1", 0)).await.unwrap_err();
            assert!(error.message.contains("is no standby any more"), "{}", error.message);
            let error =
                servers.step("recover", recover(&node, &old, "s1", made.slots[0].lsn + 8)).await.unwrap_err();
            assert!(error.message.contains("it must be made anew"), "{}", error.message);
        },
    );
}

#[test]
fn what_was_inherited_is_cleaned_here_and_kept_there() {
    on_servers("refuse::what_was_inherited_is_cleaned_here_and_kept_there", async |servers| {
        let (old, far) = (servers.old_leader("o1"), servers.old_leader("far"));
        for node in [&old, &far] {
            servers.sql(node, "postgres", "CREATE TABLE public.t (id int PRIMARY KEY)").await;
        }
        servers.sql(&far, "postgres", "CREATE PUBLICATION p FOR ALL TABLES").await;
        let subscribe = format!(
            "CREATE SUBSCRIPTION inherited CONNECTION 'host=127.0.0.1 port={} user=postgres dbname=postgres' PUBLICATION p",
            far.port
        );
        servers.sql(&old, "postgres", &subscribe).await;
        let node = seeded(servers, &old).await;
        servers.step("publish", publish(&old)).await.unwrap();
        servers
            .sql(&old, "postgres", "BEGIN; INSERT INTO public.t VALUES (7); PREPARE TRANSACTION 'two'")
            .await;
        servers.sql(&old, "postgres", "SELECT pg_logical_emit_message(true, 'x', 'y')").await;
        let target: pgleap_proto::Lsn =
            servers.ask(&old, "postgres", "SELECT pg_current_wal_lsn()").await.parse().unwrap();
        servers.step("start", standby(&node, &old, "s1", 0)).await.unwrap();
        servers.step("halt", halt(&node)).await.unwrap();
        // A target that is the end of a record, as a slot's LSN is.
        servers.sql(&old, "postgres", "SELECT pg_logical_emit_message(true, 'x', 'y')").await;
        let recovered = servers.step("recover", recover(&node, &old, "s1", target.0)).await;
        println!("{recovered:?}");
        recovered.unwrap();
        let clean = CleanPromoted { node: Some(node.clone()), publication: "pgleap_abc123".into() };
        let expected = CleanedOutput {
            prepared_rolled_back: vec!["two (database \"postgres\")".into()],
            subscriptions_dropped: vec!["inherited (database \"postgres\")".into()],
            slots_dropped: vec![],
        };
        for _ in 0..2 {
            let output = servers.step("clean", Kind::CleanPromoted(clean.clone())).await.unwrap();
            assert_eq!(output.kind, Some(output::Kind::Cleaned(expected.clone())), "also when asked again");
        }
        for gone in ["pg_prepared_xacts", "pg_subscription", "pg_publication"] {
            let count = format!("SELECT count(*) FROM {gone}");
            assert_eq!(servers.ask(&node, "postgres", &count).await, "0", "{gone}");
            assert_eq!(servers.ask(&old, "postgres", &count).await, "1", "{gone}");
        }
        servers.sql(&far, "postgres", "INSERT INTO public.t VALUES (1)").await;
        while servers.ask(&old, "postgres", "SELECT count(*) FROM public.t").await != "1" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(servers.ask(&node, "postgres", "SELECT count(*) FROM public.t").await, "0");
    });
}

#[test]
fn a_standby_without_its_wal_and_a_subscription_in_the_wrong_place_are_refused() {
    on_servers(
        "refuse::a_standby_without_its_wal_and_a_subscription_in_the_wrong_place_are_refused",
        async |servers| {
            let old = servers.old_leader("o1");
            let node = seeded(servers, &old).await;
            servers.step("halt", halt(&node)).await.unwrap();
            servers.undo("slot", physical_slot(&old, "s1")).await;
            for _ in 0..3 {
                servers.sql(&old, "postgres", "SELECT pg_switch_wal()").await;
                servers.sql(&old, "postgres", "CHECKPOINT").await;
            }
            servers.step("slot", physical_slot(&old, "s1")).await.unwrap();
            let error = servers.step("start", standby(&node, &old, "s1", 0)).await.unwrap_err();
            println!("{}\n{:#?}", error.message, error.evidence);
            assert!(error.message.contains("has to be made anew"), "{}", error.message);
            assert!(error.evidence.iter().any(|line| line.contains("has already been removed")));

            // The origin decides whether a subscription may run.
            let new = servers.new_leader("new");
            for node in [&old, &new] {
                servers.sql(node, "postgres", "CREATE TABLE public.t (id int PRIMARY KEY)").await;
            }
            servers.step("publish", publish(&old)).await.unwrap();
            let output = servers.step("slots", slots(&old, 10_000)).await.unwrap();
            let Some(output::Kind::Slots(made)) = output.kind else { panic!("{output:?}") };
            let target_lsn = made.slots[0].lsn;
            let enable = |target_lsn| {
                let (node, slots) = (Some(new.clone()), made.slots.clone());
                let subscription = "pgleap_abc123".into();
                Kind::EnableSubscriptions(EnableSubscriptions { node, subscription, slots, target_lsn })
            };
            let subscribe = Kind::Subscribe(Subscribe {
                node: Some(new.clone()),
                publisher: Some(conninfo(&old)),
                publication: "pgleap_abc123".into(),
                subscription: "pgleap_abc123".into(),
                slots: made.slots.clone(),
                target_lsn,
            });
            assert!(
                servers
                    .step("enable", enable(target_lsn))
                    .await
                    .unwrap_err()
                    .message
                    .contains("has no subscription")
            );
            servers.step("subscribe", subscribe.clone()).await.unwrap();
            let error = servers.step("enable", enable(target_lsn + 8)).await.unwrap_err();
            assert!(error.message.contains("it would apply transactions twice"), "{}", error.message);
            // A table that is published and not subscribed would be skipped silently.
            servers.sql(&old, "postgres", "CREATE TABLE public.late (id int PRIMARY KEY)").await;
            let error = servers.step("subscribe", subscribe.clone()).await.unwrap_err();
            assert!(error.message.contains("public.late: published but not subscribed"), "{}", error.message);
            servers.sql(&old, "postgres", "DROP TABLE public.late").await;
            servers.step("enable", enable(target_lsn)).await.unwrap();
            servers.sql(&old, "postgres", "INSERT INTO public.t VALUES (1)").await;
            while servers.ask(&new, "postgres", "SELECT count(*) FROM public.t").await != "1" {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            servers.undo("enable", enable(target_lsn)).await;
            servers.undo("subscribe", subscribe).await;
            assert_eq!(servers.ask(&new, "postgres", "SELECT count(*) FROM pg_subscription").await, "0");
            let count =
                "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT active";
            assert_eq!(
                servers.ask(&old, "postgres", count).await,
                "1",
                "the slot is the old leader's to drop"
            );
        },
    );
}
