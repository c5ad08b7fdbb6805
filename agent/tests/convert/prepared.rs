//! Transactions that are prepared while the slots are made and committed when they have been: each arrives exactly once, and one
//! that is rolled back does not.

use std::time::Duration;

use pgleap_agent::pg::sql;
use pgleap_proto::node::Node;
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{CatchUp, CleanPromoted, EnableSubscriptions, Subscribe, output};

use crate::exact::{TAG, clone, create_slots, halt, physical_slot, publish, recover, same, standby};
use crate::on_servers;
use crate::servers::{Servers, conninfo};

/// Begins a transaction that has written a row; its id.
async fn begin(session: &sql::Session, row: &str) -> String {
    session.batch_execute(&format!("BEGIN; INSERT INTO public.t (v) VALUES ('{row}')")).await.unwrap();
    session.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap().get(0)
}

async fn prepare(servers: &Servers, old: &Node, row: &str) -> String {
    let session = sql::connect(old, "app").await.unwrap();
    let xid = begin(&session, row).await;
    session.batch_execute(&format!("PREPARE TRANSACTION '{row}'")).await.unwrap();
    let there = format!("SELECT count(*) FROM pg_prepared_xacts WHERE gid = '{row}'");
    assert_eq!(servers.ask(old, "app", &there).await, "1");
    xid
}

/// Until a slot's creation waits for the end of this transaction.
async fn waited_for(servers: &Servers, old: &Node, xid: &str) {
    let waits = format!(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted AND transactionid::text = '{xid}'"
    );
    while servers.ask(old, "app", &waits).await == "0" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_transaction_prepared_meanwhile_arrives_once_when_it_is_committed() {
    on_servers(
        "prepared::a_transaction_prepared_meanwhile_arrives_once_when_it_is_committed",
        async |servers| {
            let old = servers.old_leader("o1");
            servers.sql(&old, "postgres", "CREATE DATABASE app").await;
            servers.sql(&old, "app", "CREATE TABLE public.t (id bigserial PRIMARY KEY, v text)").await;
            let databases = ["app".to_owned()];
            let leader = servers.node("n1");
            servers.step("slot", physical_slot(&old, "pgleap_n1")).await.unwrap();
            let make = clone(&leader, &old, "pgleap_n1", 0);
            servers.step("clone", Kind::CloneNode(make)).await.unwrap();
            servers.step("start", standby(&leader, &old, "pgleap_n1", 0)).await.unwrap();
            servers.step("publish", publish(&old, &databases)).await.unwrap();
            servers.step("halt", halt(&leader)).await.unwrap();

            // The slot waits for what is older than it, prepared or not, and then for what has begun during that first wait. What
            // begins during the second one straddles its position (snapbuild.c): prepared before it, and committed after.
            let before = prepare(servers, &old, "before").await;
            let make_slots = Kind::CreateSlots(create_slots(&old, &databases, 60_000));
            let (made, ()) = tokio::join!(servers.step("slots", make_slots), async {
                waited_for(servers, &old, &before).await;
                let open = sql::connect(&old, "app").await.unwrap();
                let xid = begin(&open, "open").await;
                servers.sql(&old, "app", "COMMIT PREPARED 'before'").await;
                waited_for(servers, &old, &xid).await;
                prepare(servers, &old, "straddles").await;
                prepare(servers, &old, "undone").await;
                open.batch_execute("COMMIT").await.unwrap();
            });
            let Some(output::Kind::Slots(made)) = made.unwrap().kind else { panic!("no slots") };
            let (slots, target) = (made.slots.clone(), made.slots[0].lsn);
            prepare(servers, &old, "after").await;

            servers.step("recover", recover(&leader, &old, "pgleap_n1", target)).await.unwrap();
            let inherited = "SELECT string_agg(gid, ' ' ORDER BY gid) FROM pg_prepared_xacts";
            assert_eq!(
                servers.ask(&leader, "app", inherited).await,
                "straddles undone",
                "they straddle the position"
            );
            let clean = CleanPromoted { node: Some(leader.clone()), publication: TAG.into() };
            let output = servers.step("clean", Kind::CleanPromoted(clean)).await.unwrap();
            let Some(output::Kind::Cleaned(cleaned)) = output.kind else { panic!("{output:?}") };
            assert_eq!(cleaned.prepared_rolled_back.len(), 2, "{cleaned:?}");
            assert_eq!(
                servers.ask(&old, "app", inherited).await,
                "after straddles undone",
                "the old leader keeps its own"
            );

            // In place of the upgrade: a plain restart.
            servers.stop(&leader);
            servers.start(&leader);
            let subscribe = Subscribe {
                node: Some(leader.clone()),
                publisher: Some(conninfo(&old)),
                publication: TAG.into(),
                subscription: TAG.into(),
                slots: slots.clone(),
                target_lsn: target,
            };
            servers.step("subscribe", Kind::Subscribe(subscribe)).await.unwrap();
            servers.sql(&old, "app", "COMMIT PREPARED 'straddles'").await;
            let enable = EnableSubscriptions {
                node: Some(leader.clone()),
                subscription: TAG.into(),
                slots: slots.clone(),
                target_lsn: target,
            };
            servers.step("enable", Kind::EnableSubscriptions(enable)).await.unwrap();
            for end in ["COMMIT PREPARED 'after'", "ROLLBACK PREPARED 'undone'"] {
                servers.sql(&old, "app", end).await;
            }
            let catch_up = CatchUp {
                node: Some(leader.clone()),
                publisher: Some(conninfo(&old)),
                publication: TAG.into(),
                subscription: TAG.into(),
                slots,
                publisher_node: Some(old.clone()),
                publisher_agent: servers.serve(),
            };
            servers.step("catch_up", Kind::CatchUp(catch_up)).await.unwrap();
            let rows = "SELECT string_agg(v, ' ' ORDER BY v) FROM public.t";
            assert_eq!(servers.ask(&leader, "app", rows).await, "after before open straddles");
            same(servers, &old, &leader, "app", "public.t").await;
        },
    );
}
