use proptest::prelude::*;

use super::*;

const NOW: i64 = 1_000_000_000;

fn held(database: &str, age_ms: i64, origin: Option<u64>) -> Held {
    Held { database: database.into(), mark_us: Some(NOW - age_ms * 1000), origin: origin.map(Lsn) }
}

fn own(side: Side, in_recovery: bool, lsn: u64, databases: Vec<Held>) -> Own {
    Own { side, in_recovery, lsn: Lsn(lsn), databases }
}

fn writer(side: Side, lsn: u64) -> Writer {
    Writer { side, lsn: Lsn(lsn), trail: Trail::default() }
}

#[test]
fn the_leader_that_takes_writes_is_never_behind() {
    let leader = own(Side::Old, false, 1, vec![]);
    assert_eq!(hybrid(NOW, &leader, &writer(Side::Old, 500)), Ok(Lag { bytes: 0, ms: 0 }));
}

#[test]
fn a_physical_replica_of_the_writer_is_measured_by_replay_and_marker() {
    let replica = own(Side::Old, true, 400, vec![held("a", 10, None), held("b", 30, None)]);
    assert_eq!(hybrid(NOW, &replica, &writer(Side::Old, 500)), Ok(Lag { bytes: 100, ms: 30 }));
    assert_eq!(hybrid(NOW, &replica, &writer(Side::Old, 300)).unwrap().bytes, 0);
    let silent = own(Side::Old, true, 0, vec![held("a", 10, None)]);
    assert!(hybrid(NOW, &silent, &writer(Side::Old, 500)).is_err());
}

#[test]
fn the_worst_database_of_a_following_node_counts_and_not_its_own_lsn() {
    for in_recovery in [false, true] {
        let node =
            own(Side::New, in_recovery, 9_999, vec![held("a", 10, Some(490)), held("b", 4_000, Some(200))]);
        assert_eq!(hybrid(NOW, &node, &writer(Side::Old, 500)), Ok(Lag { bytes: 300, ms: 4_000 }));
    }
}

#[test]
fn an_idle_database_is_as_old_as_its_marker() {
    let mut writer = writer(Side::Old, 500);
    for (age_ms, lsn) in [(3_000, 100), (2_000, 300), (1_000, 450)] {
        writer.trail.push(NOW - age_ms * 1000, Lsn(lsn));
    }
    let node = |age, origin| own(Side::New, true, 1, vec![held("idle", age, origin)]);
    assert_eq!(hybrid(NOW, &node(900, Some(7)), &writer), Ok(Lag { bytes: 50, ms: 900 }));
    assert_eq!(hybrid(NOW, &node(900, None), &writer).unwrap().bytes, 50, "no origin yet");
    assert_eq!(hybrid(NOW, &node(1_500, Some(7)), &writer).unwrap().bytes, 200);
    assert_eq!(hybrid(NOW, &node(5_000, Some(7)), &writer).unwrap().bytes, 493, "older than what is known");
    assert!(hybrid(NOW, &node(5_000, None), &writer).is_err());
}

#[test]
fn what_is_unknown_is_no_number() {
    let unmarked = Held { mark_us: None, ..held("b", 0, Some(500)) };
    for side in [Side::Old, Side::New] {
        let node = own(side, true, 500, vec![held("a", 0, Some(500)), unmarked.clone()]);
        let why = hybrid(NOW, &node, &writer(Side::Old, 500)).unwrap_err();
        assert!(why.contains("\"b\""), "{why}");
    }
    assert!(hybrid(NOW, &own(Side::New, true, 500, vec![]), &writer(Side::Old, 500)).is_err());
}

#[test]
fn a_trail_forgets_another_history_and_what_is_long_ago() {
    let mut trail = Trail::default();
    trail.push(0, Lsn(10));
    trail.push(MEMORY_US, Lsn(20));
    assert_eq!((trail.at(0), trail.at(MEMORY_US - 1)), (Some(Lsn(10)), Some(Lsn(10))));
    trail.push(MEMORY_US + 1, Lsn(30));
    assert_eq!(trail.at(5), None);
    trail.push(MEMORY_US + 2, Lsn(15));
    assert_eq!(trail.at(MEMORY_US + 1), None, "the server was another one");
    assert_eq!(trail.at(i64::MAX), Some(Lsn(15)));
}

proptest! {
    /// One more database, an older marker or an origin further back never makes a node look better.
    #[test]
    fn less_never_looks_like_more(
        ages in proptest::collection::vec((0i64..10_000, proptest::option::of(0u64..1_000)), 1..5),
        older in 0i64..5_000, back in 0u64..500, side: bool, positions in proptest::collection::vec(0u64..100, 0..20),
    ) {
        let mut writer = writer(Side::Old, 1_000);
        let mut lsn = 0;
        for (n, step) in positions.iter().enumerate() {
            lsn = (lsn + step).min(1_000);
            writer.trail.push(NOW - 10_000_000 + n as i64 * 500_000, Lsn(lsn));
        }
        let side = if side { Side::New } else { Side::Old };
        let databases: Vec<Held> = ages.iter().map(|(age, origin)| held("d", *age, *origin)).collect();
        let mut worse = databases.clone();
        worse[0].mark_us = worse[0].mark_us.map(|at| at - older * 1000);
        worse[0].origin = worse[0].origin.map(|origin| Lsn(origin.0.saturating_sub(back)));
        let lag = |databases| hybrid(NOW, &own(side, true, 500, databases), &writer);
        if let Ok(worse) = lag(worse) {
            let better = lag(databases.clone()).unwrap();
            prop_assert!(better.bytes <= worse.bytes && better.ms <= worse.ms);
            let fewer = lag(databases[..1].to_vec()).unwrap();
            prop_assert!(fewer.bytes <= better.bytes && fewer.ms <= better.ms);
        }
    }
}
