//! An agent that ends at a bad moment, and a coordinator that comes too late.

use pgleap_agent::fence;
use pgleap_proto::traffic::Side;

use crate::client::is_kept_out;
use crate::pair::{OPERATION, Pair};
use crate::{eventually, scenario, switch};

#[test]
fn an_unsealed_fence_ends_by_itself_and_at_a_restart_and_a_sealed_one_stays() {
    let test = "crash::an_unsealed_fence_ends_by_itself_and_at_a_restart_and_a_sealed_one_stays";
    scenario(test, async || {
        let mut pair = Pair::new(15, 18).await;
        // The time is over.
        let ticket = pair.ticket();
        pair.arm(&ticket, Side::Old).await.unwrap();
        let fenced = pair.fence(&ticket, 1_500).await.unwrap();
        assert!(is_kept_out(&pair.old.node).await);
        pair.settle(&ticket, &fenced).await.unwrap();
        eventually("the fence is lifted", async || !is_kept_out(&pair.old.node).await).await;
        let late = pair.seal(&ticket, fenced.lsn).await.unwrap_err();
        assert!(late.message.contains("not armed") || late.message.contains("is over"), "{late}");
        pair.abort(&ticket, Side::New, Side::Old).await.unwrap();
        pair.abort(&ticket, Side::Old, Side::Old).await.unwrap();

        // The agent is gone before the seal.
        let ticket = pair.ticket();
        pair.arm(&ticket, Side::Old).await.unwrap();
        let fenced = pair.fence(&ticket, 600_000).await.unwrap();
        assert!(is_kept_out(&pair.old.node).await);
        pair.restart_agent();
        eventually("the fence is lifted at the start", async || !is_kept_out(&pair.old.node).await).await;
        let void = pair.seal(&ticket, fenced.lsn).await.unwrap_err();
        assert!(void.message.contains("not armed"), "{void}");
        pair.abort(&ticket, Side::New, Side::Old).await.unwrap();

        // So is its machine: only the register opens it then, since the disk might be an image from before a seal.
        let ticket = pair.ticket();
        pair.arm(&ticket, Side::Old).await.unwrap();
        let fenced = pair.fence(&ticket, 600_000).await.unwrap();
        for note in std::fs::read_dir(pair.place.memory()).unwrap() {
            std::fs::remove_file(note.unwrap().path()).unwrap();
        }
        pair.restart_agent();
        let void = pair.seal(&ticket, fenced.lsn).await.unwrap_err();
        assert!(void.message.contains("not armed"), "{void}");
        pair.abort(&ticket, Side::New, Side::Old).await.unwrap();
        assert!(is_kept_out(&pair.old.node).await);
        pair.abort(&ticket, Side::Old, Side::Old).await.unwrap();
        assert!(!is_kept_out(&pair.old.node).await);

        // Behind the seal.
        pair.old.sql("app", "INSERT INTO t (v) VALUES ('last')");
        let ticket = pair.ticket();
        let (fenced, positions) = pair.decide(&ticket, Side::Old).await.unwrap();
        pair.restart_agent();
        assert!(fence::is_fenced(&pair.old.node).await.unwrap());
        // Restored from an image that was taken between fence and seal.
        let record = pair.place.config.state_dir.join("fences").join(format!("{OPERATION}.json"));
        let image =
            std::fs::read_to_string(&record).unwrap().replace(r#""sealed": true"#, r#""sealed": false"#);
        assert!(image.contains(r#""sealed": false"#), "{image}");
        std::fs::write(&record, image).unwrap();
        pair.restart_agent();
        // Waits for a lift that was begun.
        pair.seal(&ticket, fenced.lsn).await.unwrap_err();
        pair.lead(&ticket, Side::New).await.unwrap();
        assert!(is_kept_out(&pair.old.node).await && !is_kept_out(&pair.new.node).await);
        pair.follow(&ticket, Side::Old, &positions).await.unwrap();
        assert_eq!(std::fs::read_dir(pair.place.config.state_dir.join("fences")).unwrap().count(), 0);
        pair.new.sql("app", "INSERT INTO t (v) VALUES ('new')");
        pair.old.until("app", "SELECT count(*) = 2 FROM t");
    });
}

#[test]
fn a_write_behind_the_fence_is_found_before_the_decision() {
    scenario("crash::a_write_behind_the_fence_is_found_before_the_decision", async || {
        let pair = Pair::new(15, 18).await;
        let ticket = pair.ticket();
        pair.arm(&ticket, Side::Old).await.unwrap();
        let fenced = pair.fence(&ticket, 600_000).await.unwrap();
        pair.settle(&ticket, &fenced).await.unwrap();
        // The operator, over the local socket.
        pair.old.sql("app", "INSERT INTO t (v) VALUES ('behind')");
        let error = pair.seal(&ticket, fenced.lsn).await.unwrap_err();
        assert!(error.message.contains("behind the fence"), "{error}");
        pair.abort(&ticket, Side::New, Side::Old).await.unwrap();
        pair.abort(&ticket, Side::Old, Side::Old).await.unwrap();
        pair.new.until("app", "SELECT count(*) = 1 FROM t");
        // A prepared transaction could still be committed.
        pair.old.sql("app", "BEGIN; INSERT INTO t (v) VALUES ('p'); PREPARE TRANSACTION 'forgotten'");
        let error = pair.arm(&pair.ticket(), Side::Old).await.unwrap_err();
        assert!(error.message.contains("forgotten"), "{error}");
        pair.old.sql("app", "ROLLBACK PREPARED 'forgotten'");
        // A fence that somebody took away.
        let ticket = pair.ticket();
        pair.arm(&ticket, Side::Old).await.unwrap();
        let fenced = pair.fence(&ticket, 600_000).await.unwrap();
        pair.settle(&ticket, &fenced).await.unwrap();
        std::fs::write(crate::pair::hba(&pair.old), "local all all trust\nhost all all all trust\n").unwrap();
        let error = pair.seal(&ticket, fenced.lsn).await.unwrap_err();
        assert!(error.message.contains("is open"), "{error}");
        pair.abort(&ticket, Side::New, Side::Old).await.unwrap();
        let aborted = pair.abort(&ticket, Side::Old, Side::Old).await.unwrap();
        assert!(aborted.notes.iter().any(|note| note.contains("pgleap-replaced")), "{aborted:?}");
        switch::assert_open(&pair, Side::Old).await;
    });
}

#[test]
fn slots_of_an_open_node_are_never_moved() {
    scenario("crash::slots_of_an_open_node_are_never_moved", async || {
        let pair = Pair::new(15, 18).await;
        pair.old.sql("app", "INSERT INTO t (v) VALUES ('w')");
        pair.new.until("app", "SELECT count(*) = 1 FROM t");
        let at = || {
            pair.new.sql("app", "SELECT string_agg(confirmed_flush_lsn::text, ',' ORDER BY slot_name) FROM pg_replication_slots")
        };
        let before = at();
        let moved = pgleap_agent::side::advance_idle(&pair.cluster, &pair.new.node, Side::New).await.unwrap();
        assert!(moved.len() == 2 && at() != before, "{moved:?}");
        let error =
            pgleap_agent::side::advance_idle(&pair.cluster, &pair.old.node, Side::Old).await.unwrap_err();
        assert!(error.message.contains("not moved on"), "{error}");
        fence::lift(&pair.new.node, crate::pair::OPERATION).await.unwrap();
        let before = at();
        assert!(pgleap_agent::side::advance_idle(&pair.cluster, &pair.new.node, Side::New).await.is_err());
        assert_eq!(at(), before);
        // And an open target cannot be armed.
        let error = pair.arm(&pair.ticket(), Side::Old).await.unwrap_err();
        assert!(error.message.contains("must take no writes"), "{error}");
    });
}

/// Between the comparison of the tables and the fence.
#[test]
fn a_table_that_is_made_while_a_switchover_is_prepared_ends_the_try() {
    scenario("crash::a_table_that_is_made_while_a_switchover_is_prepared_ends_the_try", async || {
        let pair = Pair::new(15, 18).await;
        let ticket = pair.ticket();
        pair.arm(&ticket, Side::Old).await.unwrap();
        pair.old.sql("app", "CREATE TABLE late (x int PRIMARY KEY)");
        let refused = pair.fence(&ticket, 600_000).await.unwrap_err();
        assert!(refused.message.contains("tables of database \"app\" of node old"), "{refused}");
        assert!(!is_kept_out(&pair.old.node).await, "the fence is lifted again");
        pair.abort(&ticket, Side::New, Side::Old).await.unwrap();
        pair.abort(&ticket, Side::Old, Side::Old).await.unwrap();
        // What empties a table, or is made beside it, is none of it.
        pair.old.sql("app", "DROP TABLE late");
        let ticket = pair.ticket();
        pair.arm(&ticket, Side::Old).await.unwrap();
        for beside in ["CREATE UNLOGGED TABLE beside (x int)", "VACUUM FULL t", "CREATE INDEX ON t (v)"] {
            pair.old.sql("app", beside);
        }
        pair.fence(&ticket, 600_000).await.unwrap();
    });
}

/// Its cluster failed over within the try: what was begun is taken back all the same, and nobody waits for ever.
#[test]
fn leaders_that_became_standbys_do_not_keep_a_try_from_being_taken_back() {
    let test = "crash::leaders_that_became_standbys_do_not_keep_a_try_from_being_taken_back";
    scenario(test, async || {
        let pair = Pair::new(15, 18).await;
        let ticket = pair.ticket();
        pair.arm(&ticket, Side::Old).await.unwrap();
        let fenced = pair.fence(&ticket, 600_000).await.unwrap();
        pair.settle(&ticket, &fenced).await.unwrap();
        pair.old.become_standby();
        pair.new.become_standby();
        assert!(is_kept_out(&pair.old.node).await, "a restart opens no fence");
        for (side, node) in [(Side::New, &pair.new.node), (Side::Old, &pair.old.node)] {
            let aborted = pair.abort(&ticket, side, Side::Old).await.unwrap();
            assert!(aborted.notes.iter().any(|note| note.contains("is a standby now")), "{aborted:?}");
            assert_eq!(is_kept_out(node).await, side == Side::New);
        }
    });
}
