//! Sequences of every kind go over exactly, and go on where they were.

use pgleap_proto::traffic::Side;

use crate::pair::{DATABASES, Pair};
use crate::{scenario, switch};

const DRAWS: &str = "
INSERT INTO t (v) SELECT g::text FROM generate_series(1, 7) g;
INSERT INTO identity (v) VALUES (1), (2);
SELECT nextval('\"Od d\".\"Se q\"'), nextval('\"Od d\".\"Se q\"');
SELECT nextval('down'), nextval('down'), nextval('down');
SELECT nextval('bounded'); SELECT setval('bounded', 30, false);
SELECT nextval('full_up'), nextval('full_up'), nextval('full_up');
SELECT nextval('round'), nextval('round'), nextval('round'), nextval('round');
SELECT setval('told', 42, false);
SELECT nextval('wide'), nextval('wide')";

const ALL: &str = "
SELECT 'id', last_value, is_called FROM t_id_seq UNION ALL
SELECT 'identity', last_value, is_called FROM identity_id_seq UNION ALL
SELECT 'odd', last_value, is_called FROM \"Od d\".\"Se q\" UNION ALL
SELECT 'down', last_value, is_called FROM down UNION ALL
SELECT 'untouched', last_value, is_called FROM untouched UNION ALL
SELECT 'bounded', last_value, is_called FROM bounded UNION ALL
SELECT 'full', last_value, is_called FROM full_up UNION ALL
SELECT 'round', last_value, is_called FROM round UNION ALL
SELECT 'told', last_value, is_called FROM told UNION ALL
SELECT 'wide', last_value, is_called FROM wide ORDER BY 1";

/// What the next draws give, where there is a next one.
const NEXT: &str = "SELECT nextval('t_id_seq'), nextval('identity_id_seq'), nextval('down'), nextval('untouched'), \
    nextval('bounded'), nextval('round'), nextval('told'), nextval('wide')";

fn positions(pair: &Pair, side: Side) -> Vec<String> {
    DATABASES.iter().map(|database| pair.server(side).sql(database, ALL)).collect()
}

#[test]
fn every_kind_of_sequence_goes_over_exactly() {
    scenario("sequences::every_kind_of_sequence_goes_over_exactly", async || {
        let pair = Pair::new(15, 18).await;
        pair.old.sql(DATABASES[0], DRAWS);
        let expected = positions(&pair, Side::Old);
        assert!(expected[0].contains("told|42|f") && expected[0].contains("untouched|7|f"), "{expected:?}");
        pair.switch(Side::Old).await;
        assert_eq!(positions(&pair, Side::New), expected);
        let next = pair.new.sql(DATABASES[0], NEXT);
        assert_eq!(next.trim(), "8|106|34|7|30|2|42|3");
        let full = pair
            .new
            .command("psql")
            .args(["-X", "-d", "app", "-c", "SELECT nextval('full_up')"])
            .output()
            .unwrap();
        assert!(!full.status.success(), "it was drawn empty on the old side");
        let drawn = positions(&pair, Side::New);
        pair.switch(Side::New).await;
        assert_eq!(positions(&pair, Side::Old), drawn);
    });
}

#[test]
fn different_definitions_are_refused_and_named() {
    scenario("sequences::different_definitions_are_refused_and_named", async || {
        let pair = Pair::new(15, 18).await;
        pair.new.sql("app", "ALTER SEQUENCE bounded MAXVALUE 31");
        let ticket = pair.ticket();
        let error = pair.arm(&ticket, Side::Old).await.unwrap_err();
        assert!(error.message.contains("\"bounded\"") && error.message.contains("maximum 31"), "{error}");
        pair.new.sql("app", "ALTER SEQUENCE bounded MAXVALUE 30");
        let ticket = pair.ticket();
        pair.arm(&ticket, Side::Old).await.unwrap();
        assert_eq!(pair.new.sql("app", "SELECT last_value FROM t_id_seq").trim(), "10001", "headroom");
        assert_eq!(pair.new.sql("app", "SELECT last_value FROM full_up").trim(), "3", "within bounds");
        // Changed behind the look at it: the fence is taken back at once.
        pair.old.sql("app", "CREATE SEQUENCE late");
        let error = pair.fence(&ticket, 60_000).await.unwrap_err();
        assert!(error.message.contains("created, dropped or altered"), "{error}");
        switch::assert_open(&pair, Side::Old).await;
    });
}
