//! What is told of what the watch sees.

use super::*;

fn seen(in_recovery: bool, timeline: u32) -> ObserveReply {
    ObserveReply { running: true, in_recovery, timeline, system_identifier: 7, ..ObserveReply::default() }
}

#[test]
fn a_failover_is_told_with_what_must_be_redone() {
    let mut first = BTreeMap::new();
    let mut look = |sides, node: &str, leader, reply: ObserveReply| {
        disturbance(sides, node, (leader, 0), &reply, &mut first)
    };
    let (old, new) = ((Side::Old, Side::Old), (Side::New, Side::Old));
    assert_eq!(look(old, "o1", true, seen(false, 1)), None);
    assert_eq!(look(old, "o2", false, seen(true, 1)), None);
    assert_eq!(look(old, "o1", true, ObserveReply::default()), None);
    let open = ObserveReply { open: true, ..seen(false, 1) };
    assert_eq!(look(old, "o1", true, open.clone()), None);
    assert_eq!(look(new, "n1", true, seen(false, 1)), None);
    let opened = look(new, "n1", true, open);
    assert!(matches!(&opened, Some(Wrong::Open(told)) if told.ends_with("then retry")), "{opened:?}");
    let jobs = ObserveReply { scheduler: "pg_cron launches jobs in it".into(), ..seen(false, 1) };
    assert_eq!(look(old, "o1", true, jobs.clone()), None, "the side that takes writes launches its jobs");
    let launched = look(new, "n1", true, jobs);
    let told =
        |told: &str| told.contains("but pg_cron launches jobs in it. What") && told.ends_with("then retry");
    assert!(matches!(&launched, Some(Wrong::Jobs(text)) if told(text)), "{launched:?}");
    let fenced = ObserveReply { fenced: true, ..seen(false, 1) };
    assert_eq!(look(new, "n1", true, fenced.clone()), None);
    assert_eq!(look(old, "o2", false, ObserveReply { in_recovery: true, ..fenced.clone() }), None);
    let closed = look(old, "o1", true, fenced);
    assert!(matches!(&closed, Some(Wrong::Closed(told)) if told.ends_with("then retry")), "{closed:?}");
    let mut look = |sides, node: &str, leader, reply: ObserveReply| match look(sides, node, leader, reply) {
        Some(Wrong::FailedOver(what, so)) => Some(format!("{what}; {so}")),
        other => panic!("{other:?}"),
    };
    let lost = look(old, "o1", true, seen(true, 2)).unwrap();
    assert!(
        lost.starts_with("o1 was the leader of the old cluster and is a standby now; its logical slots"),
        "{lost}"
    );
    assert!(lost.contains("cancel and start again"), "{lost}");
    let second = look(new, "n2", false, seen(false, 2)).unwrap();
    assert!(
        second.contains("takes writes of its own") && second.contains("the old cluster takes the writes"),
        "{second}"
    );
    let moved = look(old, "o1", true, seen(false, 2)).unwrap();
    assert!(moved.contains("is on timeline 2 of system 7 and was on timeline 1"), "{moved}");
    let after = look((Side::New, Side::New), "n2", false, seen(false, 2)).unwrap();
    assert!(after.contains("no way back") && !after.contains("cancel"), "{after}");
}

#[test]
fn a_leader_that_began_a_new_timeline_before_anybody_watched_is_noticed() {
    let look = |known| {
        disturbance((Side::Old, Side::Old), "o1", (true, known), &seen(false, 2), &mut BTreeMap::new())
    };
    assert_eq!(look(2), None);
    assert!(matches!(look(1), Some(Wrong::FailedOver(what, _)) if what.contains("was on timeline 1")));
    let new = disturbance((Side::New, Side::Old), "n1", (true, 1), &seen(false, 2), &mut BTreeMap::new());
    assert_eq!(new, None, "that is the other side's");
}

#[test]
fn words_that_change_from_look_to_look_do_not_begin_the_count_anew() {
    let unclear = |why: &str| Wrong::Unclear("o1 is a standby now".into(), why.into());
    assert!(unclear("a").is_same(&unclear("b")) && unclear("a").looks() > SURE);
    let (to, other) = (Wrong::Survived("o2".into()), Wrong::Survived("o3".into()));
    assert!(to.is_same(&to.clone()) && !to.is_same(&other) && !to.is_same(&unclear("a")));
}
