//! From the first slot to caught up, with writes going on: what is on the new leader afterwards is exactly what is on
//! the old one, in every database, also when the target LSN falls on a commit record.

use std::time::Duration;

use pgleap_proto::Lsn;
use pgleap_proto::node::Node;
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{
    CatchUp, CleanPromoted, CloneNode, CreatePhysicalSlot, CreateSlots, DatabaseSlot, EnableSubscriptions,
    HaltStandby, Publish, RecoverTo, StartStandby, Subscribe, output,
};

use crate::on_servers;
use crate::servers::{Servers, conninfo};

pub const TAG: &str = "pgleap_abc123";
const SNOWMAN: &str = "we\"ird ☃";

pub fn physical_slot(node: &Node, slot: &str) -> Kind {
    Kind::CreatePhysicalSlot(CreatePhysicalSlot { node: Some(node.clone()), slot: slot.into() })
}

pub fn clone(node: &Node, upstream: &Node, slot: &str, system_identifier: u64) -> CloneNode {
    CloneNode {
        node: Some(node.clone()),
        upstream: Some(conninfo(upstream)),
        slot: slot.into(),
        system_identifier,
        ..Default::default()
    }
}

pub fn standby(node: &Node, upstream: &Node, slot: &str, timeline: u32) -> Kind {
    let upstream = Some(conninfo(upstream));
    Kind::StartStandby(StartStandby { node: Some(node.clone()), upstream, slot: slot.into(), timeline })
}

pub fn halt(node: &Node) -> Kind {
    Kind::HaltStandby(HaltStandby { node: Some(node.clone()) })
}

pub fn recover(node: &Node, upstream: &Node, slot: &str, target_lsn: u64) -> Kind {
    let upstream = Some(conninfo(upstream));
    Kind::RecoverTo(RecoverTo { node: Some(node.clone()), upstream, slot: slot.into(), target_lsn })
}

pub fn publish(node: &Node, databases: &[String]) -> Kind {
    Kind::Publish(Publish { node: Some(node.clone()), publication: TAG.into(), databases: databases.into() })
}

pub fn create_slots(node: &Node, databases: &[String], timeout_ms: u64) -> CreateSlots {
    let slot = |(i, database): (usize, &String)| DatabaseSlot {
        database: database.clone(),
        slot: format!("{TAG}_{i}"),
        lsn: 0,
    };
    let slots = databases.iter().enumerate().map(slot).collect();
    CreateSlots { node: Some(node.clone()), slots, timeout_ms, failover: node.major >= 17 }
}

/// Makes the slots again and again until the highest LSN is the start of a commit record, as one in ten is under load.
/// The last ones stay, hit or not.
async fn slots_on_a_commit(servers: &Servers, old: &Node, databases: &[String]) -> (Vec<DatabaseSlot>, bool) {
    let step = create_slots(old, databases, 60_000);
    for attempt in 1..=150 {
        let output = servers.step("create_slots", Kind::CreateSlots(step.clone())).await.unwrap();
        let Some(output::Kind::Slots(slots)) = output.kind else { panic!("no slots") };
        let target = slots.slots.iter().map(|slot| slot.lsn).max().unwrap();
        let wal = format!("{}/pg_wal", old.data_dir);
        let start = Lsn(target).to_string();
        let record = servers.run("pg_waldump", &["-p", &wal, "-s", &start, "-n", "1"]);
        if record.contains("Transaction")
            && record.contains("COMMIT")
            && record.contains(&format!("lsn: 0/{:08X}", target))
        {
            println!("attempt {attempt}: {}", record.trim());
            return (slots.slots, true);
        }
        if attempt == 150 {
            return (slots.slots, false);
        }
        servers.undo("create_slots", Kind::CreateSlots(step.clone())).await;
    }
    unreachable!("the loop returns");
}

pub async fn same(servers: &Servers, old: &Node, new: &Node, database: &str, table: &str) {
    let query =
        format!("SELECT count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)), 0) FROM {table} t");
    let (left, right) = (servers.ask(old, database, &query).await, servers.ask(new, database, &query).await);
    println!("{database} {table}: {left}");
    assert_eq!(left, right, "{table} of {database} differs");
}

#[test]
fn the_conversion_loses_nothing_and_applies_nothing_twice() {
    on_servers("exact::the_conversion_loses_nothing_and_applies_nothing_twice", async |servers| {
        let old = servers.old_leader("o1");
        let databases = ["app".to_owned(), SNOWMAN.to_owned()];
        for (i, database) in databases.iter().enumerate() {
            let quoted = format!("CREATE DATABASE \"{}\"", database.replace('"', "\"\""));
            servers.sql(&old, "postgres", &quoted).await;
            let scale = if i == 0 { "5" } else { "1" };
            let port = old.port.to_string();
            servers.run(
                "pgbench",
                &["-i", "-q", "-s", scale, "-h", &old.socket_dir, "-p", &port, "-U", "postgres", database],
            );
        }
        servers.sql(&old, "app", "CREATE TABLE public.slow (id bigserial PRIMARY KEY, t text)").await;
        // Open while the slots are made: those that are older than a slot are waited for, others straddle the target.
        let slow = "BEGIN;\nINSERT INTO public.slow (t) VALUES ('a');\nSELECT pg_sleep(0.2);\n\
                    INSERT INTO public.slow (t) VALUES ('b');\nCOMMIT;\n";
        std::fs::write(servers.path("slow.sql"), slow).unwrap();
        let slow = servers.path("slow.sql").display().to_string();
        let load = [
            servers.load(&old, &["-c", "6", "app"]),
            servers.load(&old, &["-c", "2", SNOWMAN]),
            servers.load(&old, &["-c", "3", "-f", &slow, "app"]),
        ];
        let (leader, replica) = (servers.node("n1"), servers.node("n2"));
        let identifier = servers.ask(&old, "app", "SELECT system_identifier FROM pg_control_system()").await;
        let identifier: u64 = identifier.parse().unwrap();

        // Seed: the leader from the old one, its replica from it.
        for (node, upstream, slot) in [(&leader, &old, "pgleap_n1"), (&replica, &leader, "pgleap_n2")] {
            let name = |step: &str| format!("{step}_{}", node.name);
            let (make, start) = (clone(node, upstream, slot, identifier), standby(node, upstream, slot, 0));
            servers.step(&name("slot"), physical_slot(upstream, slot)).await.unwrap();
            assert!(servers.is_done(&name("slot"), physical_slot(upstream, slot)).await);
            let output = servers.step(&name("clone"), Kind::CloneNode(make.clone())).await.unwrap();
            let Some(output::Kind::Cloned(cloned)) = output.kind else { panic!("{output:?}") };
            assert!(cloned.created && cloned.needed && cloned.bytes > 10_000_000, "{cloned:?}");
            assert!(servers.is_done(&name("clone"), Kind::CloneNode(make)).await);
            servers.step(&name("start"), start.clone()).await.unwrap();
            servers.step(&name("start"), start).await.unwrap();
        }

        // Where WAL is archived, a standby may find there what comes behind the slots, too, as soon as it is written.
        for node in [&leader, &replica] {
            let conf = format!("{}/postgresql.conf", node.data_dir);
            let restore = format!("restore_command = 'cp \"{}/pg_wal/%f\" \"%p\"'\n", old.data_dir);
            std::fs::write(&conf, std::fs::read_to_string(&conf).unwrap() + &restore).unwrap();
        }

        // Convert.
        for _ in 0..2 {
            servers.step("publish", publish(&old, &databases)).await.unwrap();
        }
        assert!(servers.is_done("publish", publish(&old, &databases)).await);
        for node in [&replica, &leader] {
            servers.step("halt", halt(node)).await.unwrap();
            assert!(servers.is_done("halt", halt(node)).await);
        }
        // As a restored backup has it: with this left, the restart in place of the upgrade would fail.
        std::fs::write(format!("{}/recovery.signal", leader.data_dir), "").unwrap();
        let (slots, on_commit) = slots_on_a_commit(servers, &old, &databases).await;
        println!("slot LSN on a commit record: {on_commit}");
        let target = slots.iter().map(|slot| slot.lsn).max().unwrap();
        let make_slots = create_slots(&old, &databases, 60_000);
        assert!(servers.is_done("create_slots", Kind::CreateSlots(make_slots)).await);
        let recover_leader = recover(&leader, &old, "pgleap_n1", target);
        let output = servers.step("recover", recover_leader.clone()).await.unwrap();
        let Some(output::Kind::Recovered(recovered)) = output.kind else { panic!("{output:?}") };
        println!("{}", recovered.evidence);
        assert_eq!((recovered.lsn, recovered.timeline), (target, 2));
        assert!(servers.is_done("recover", recover_leader.clone()).await);
        let clean = CleanPromoted { node: Some(leader.clone()), publication: TAG.into() };
        servers.step("clean", Kind::CleanPromoted(clean.clone())).await.unwrap();
        assert!(servers.is_done("clean", Kind::CleanPromoted(clean)).await);
        let output = servers.step("follow", standby(&replica, &leader, "pgleap_n2", 2)).await.unwrap();
        let Some(output::Kind::Standby(followed)) = output.kind else { panic!("{output:?}") };
        assert_eq!(followed.timeline, 2);
        assert_eq!(servers.ask(&leader, "app", "SELECT current_setting('archive_mode')").await, "off");

        // Clients are kept out, the replica is not.
        let psql = std::process::Command::new(format!("{}/psql", old.bin_dir))
            .args([
                "-XAtw",
                "-h",
                "127.0.0.1",
                "-p",
                &leader.port.to_string(),
                "-U",
                "postgres",
                "app",
                "-c",
                "SELECT 1",
            ])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&psql.stderr).into_owned();
        assert!(!psql.status.success() && said.contains("no pg_hba.conf entry"), "{said}");

        // A restart by something else is noticed, and put right.
        servers.stop(&leader);
        servers.step("recover", recover_leader.clone()).await.unwrap();
        servers.stop(&leader);
        servers.start(&leader);
        assert!(!servers.is_done("recover", recover_leader.clone()).await);
        servers.step("recover", recover_leader).await.unwrap();

        // In place of the upgrade: a plain restart. Then replicate.
        servers.stop(&replica);
        servers.stop(&leader);
        servers.start(&leader);
        let subscribe = Kind::Subscribe(Subscribe {
            node: Some(leader.clone()),
            publisher: Some(conninfo(&old)),
            publication: TAG.into(),
            subscription: TAG.into(),
            slots: slots.clone(),
            target_lsn: target,
        });
        servers.step("subscribe", subscribe.clone()).await.unwrap();
        assert!(servers.is_done("subscribe", subscribe.clone()).await);
        let enable = Kind::EnableSubscriptions(EnableSubscriptions {
            node: Some(leader.clone()),
            subscription: TAG.into(),
            slots: slots.clone(),
            target_lsn: target,
        });
        servers.step("enable", enable.clone()).await.unwrap();
        assert!(servers.is_done("enable", enable.clone()).await);
        let catch_up = Kind::CatchUp(CatchUp {
            node: Some(leader.clone()),
            publisher: Some(conninfo(&old)),
            publication: TAG.into(),
            subscription: TAG.into(),
            slots: slots.clone(),
            publisher_node: Some(old.clone()),
            publisher_agent: servers.serve(),
        });
        // While writes go on, and once more when they have ended, so that the two can be compared.
        servers.step("catch_up", catch_up.clone()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(load);
        let output = servers.step("catch_up", catch_up.clone()).await.unwrap();
        let Some(output::Kind::CaughtUp(caught_up)) = output.kind else { panic!("{output:?}") };
        assert!(caught_up.mark_lsn > target);
        assert_eq!(caught_up.relations, 4 + 1 + 4);
        for database in &databases {
            for table in ["history", "accounts", "tellers", "branches"] {
                same(servers, &old, &leader, database, &format!("public.pgbench_{table}")).await;
            }
        }

        same(servers, &old, &leader, "app", "public.slow").await;

        // A worker that cannot apply ends the waiting with the reason, and is not given up: repaired, it goes on by itself.
        let change = async |sql: &str| servers.sql(&leader, "app", sql).await;
        change("ALTER SYSTEM SET wal_retrieve_retry_interval = '100ms'").await;
        change("SELECT pg_reload_conf()").await;
        change("ALTER TABLE public.pgbench_history ADD CONSTRAINT broken CHECK (tid <> -1) NOT VALID").await;
        servers.sql(&old, "app", "INSERT INTO public.pgbench_history (tid) VALUES (-1)").await;
        let refused = servers.step("catch_up", catch_up.clone()).await.unwrap_err();
        assert!(
            refused.message.contains("database \"app\"") && refused.message.contains("has failed"),
            "{refused}"
        );
        change("ALTER TABLE public.pgbench_history DROP CONSTRAINT broken").await;
        servers.step("catch_up", catch_up).await.unwrap();
        same(servers, &old, &leader, "app", "public.pgbench_history").await;

        // And everything back: the old leader has nothing left of it.
        servers.undo("enable", enable).await;
        servers.undo("subscribe", subscribe).await;
        servers.stop(&leader);
        servers.undo("clone_n2", Kind::CloneNode(clone(&replica, &leader, "pgleap_n2", identifier))).await;
        servers.undo("create_slots", Kind::CreateSlots(create_slots(&old, &databases, 1))).await;
        servers.undo("publish", publish(&old, &databases)).await;
        servers.undo("clone_n1", Kind::CloneNode(clone(&leader, &old, "pgleap_n1", identifier))).await;
        servers.undo("slot_n1", physical_slot(&old, "pgleap_n1")).await;
        for node in [&leader, &replica] {
            assert!(!std::path::Path::new(&node.data_dir).exists());
        }
        let left = "SELECT count(*) FROM pg_replication_slots";
        assert_eq!(servers.ask(&old, "app", left).await, "0");
        for database in &databases {
            assert_eq!(servers.ask(&old, database, "SELECT count(*) FROM pg_publication").await, "0");
        }
        let files: Vec<_> =
            std::fs::read_dir(servers.path("")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(!files.iter().any(|name| name.to_string_lossy().contains("pgleap.created")), "{files:?}");
    });
}
