//! Verdicts about one failover, spoilt in one place each.

use pgleap_proto::traffic::{Fork, SlotAt};

use super::*;
use crate::plan::tests::a_move_of_17;

const FORK: u64 = 0x5000;

/// What every node says after old-1 was promoted on timeline 3, off timeline 2 of old-0.
struct World {
    plan: Plan,
    moving: Moving,
    replies: Vec<ObserveReply>,
}

impl World {
    fn new() -> World {
        let plan = a_move_of_17();
        let moving = plan.moving().unwrap();
        let replies = moving.nodes.iter().map(|(side, at)| reply(*side, &at.what.name, &moving)).collect();
        let mut world = World { plan, moving, replies };
        *world.of("old-0") = ObserveReply::default();
        let promoted = world.of("old-1");
        promoted.in_recovery = false;
        promoted.timeline = 3;
        promoted.forks = vec![Fork { parent: 1, lsn: 0x100 }, Fork { parent: 2, lsn: FORK }];
        world
    }

    fn of(&mut self, name: &str) -> &mut ObserveReply {
        let index = self.moving.nodes.iter().position(|(_, at)| at.what.name == name).unwrap();
        &mut self.replies[index]
    }

    fn verdict(&self, timeline: u32) -> Survival {
        let nodes = self.moving.nodes.iter().zip(&self.replies);
        let seen: Vec<Seen<'_>> = nodes.map(|((side, at), reply)| Seen { side: *side, at, reply }).collect();
        survival(&self.plan, timeline, &seen)
    }

    fn lost(&self, part: &str) {
        assert!(
            matches!(self.verdict(2), Survival::Lost(why) if why.contains(part)),
            "{:?}",
            self.verdict(2)
        );
    }

    fn unclear(&self, part: &str) {
        assert!(
            matches!(self.verdict(2), Survival::Unclear(why) if why.contains(part)),
            "{:?}",
            self.verdict(2)
        );
    }

    fn survives(&self, to: &str) {
        assert!(
            matches!(self.verdict(2), Survival::Survives { to: leader, .. } if leader == to),
            "{:?}",
            self.verdict(2)
        );
    }
}

fn reply(side: Side, name: &str, moving: &Moving) -> ObserveReply {
    let databases = &moving.cluster.databases;
    let copy = name != "old-0";
    let slot = |database: &pgleap_proto::traffic::SideDatabase| SlotState {
        database: database.database.clone(),
        slot: database.forward_slot.clone(),
        failover: true,
        synced: copy,
        temporary: false,
        lost: false,
    };
    let origin = |database: &pgleap_proto::traffic::SideDatabase| SlotAt {
        database: database.database.clone(),
        slot: String::new(),
        lsn: FORK,
    };
    ObserveReply {
        running: true,
        in_recovery: name != moving.old.what.name && name != moving.new.what.name,
        timeline: 2,
        slots: if side == Side::Old { databases.iter().map(slot).collect() } else { Vec::new() },
        origins: databases.iter().map(origin).collect(),
        ..ObserveReply::default()
    }
}

#[test]
fn a_promoted_node_with_every_slot_and_all_that_was_applied_is_followed() {
    let world = World::new();
    let Survival::Survives { to, timeline, evidence } = world.verdict(2) else {
        panic!("{:?}", world.verdict(2))
    };
    assert_eq!((to.as_str(), timeline), ("old-1", 3));
    assert_eq!(evidence.len(), 1 + world.moving.cluster.databases.len());
}

#[test]
fn a_new_side_that_is_ahead_is_told() {
    let mut world = World::new();
    world.of("new-0").origins.last_mut().unwrap().lsn = FORK + 1;
    world.lost("the new cluster is ahead");
}

#[test]
fn of_two_failovers_the_first_one_counts() {
    let mut world = World::new();
    let promoted = world.of("old-1");
    promoted.timeline = 4;
    promoted.forks = vec![
        Fork { parent: 1, lsn: 0x100 },
        Fork { parent: 2, lsn: FORK - 1 },
        Fork { parent: 3, lsn: FORK + 100 },
    ];
    world.lost("the new cluster is ahead");
}

#[test]
fn one_that_was_never_on_the_former_timeline_tells_nothing() {
    let mut world = World::new();
    let promoted = world.of("old-1");
    promoted.timeline = 4;
    // Where it left a later one says nothing of what the former leader had.
    promoted.forks = vec![Fork { parent: 1, lsn: 0x100 }, Fork { parent: 3, lsn: FORK + 100 }];
    world.unclear("cannot be told");
}

#[test]
fn a_slot_that_is_of_no_use_is_told() {
    type Spoil = fn(&mut Vec<SlotState>);
    let spoilt: [(Spoil, &str); 4] = [
        (|slots| drop(slots.pop()), "has no copy of slot"),
        (|slots| slots[0].temporary = true, "had not been copied whole"),
        (|slots| slots[0].lost = true, "is invalid, or the WAL it needs is gone"),
        (|slots| slots[0].failover = false, "was made without failover"),
    ];
    for (spoil, why) in spoilt {
        let mut world = World::new();
        spoil(&mut world.of("old-1").slots);
        world.lost(why);
    }
}

#[test]
fn what_is_not_known_is_waited_for() {
    let mut world = World::new();
    world.of("old-1").forks.clear();
    world.unclear("cannot be told");
    let mut world = World::new();
    world.of("new-0").running = false;
    world.unclear("cannot be asked");
    let mut world = World::new();
    world.of("new-0").origins.pop();
    world.unclear("is not known");
    let mut world = World::new();
    let database = world.moving.cluster.databases[0].database.clone();
    world.of("new-0").receiving.push(database);
    world.unclear("still connected to the former leader");
    let mut world = World::new();
    world.of("old-1").in_recovery = true;
    world.unclear("nobody is seen to lead");
    let mut world = World::new();
    let former = reply(Side::Old, "old-0", &world.moving.clone());
    *world.of("old-0") = former;
    world.unclear("more than one node leads");
}

#[test]
fn without_the_timeline_of_the_former_leader_nothing_is_certain() {
    let world = World::new();
    assert!(matches!(world.verdict(0), Survival::Lost(_)));
}

#[test]
fn a_leader_that_restarts_on_a_new_timeline_has_its_own_slots_still() {
    let mut world = World::new();
    *world.of("old-1") = ObserveReply::default();
    let mut former = reply(Side::Old, "old-0", &world.moving.clone());
    former.timeline = 3;
    *world.of("old-0") = former.clone();
    // The new side has read on meanwhile, and is connected to it.
    let database = world.moving.cluster.databases[0].database.clone();
    world.of("new-0").receiving.push(database);
    world.of("new-0").origins[0].lsn = FORK + 100;
    world.survives("old-0");
    // One that was cloned anew, or rewound, has copies at best.
    for slot in &mut world.of("old-0").slots {
        slot.synced = true;
    }
    world.of("old-0").forks = vec![Fork { parent: 2, lsn: FORK }];
    world.lost("the new cluster is ahead");
}

#[test]
fn before_17_no_slot_moves() {
    let mut world = World::new();
    for step in &mut world.plan.steps {
        if let Some(Kind::CreateSlots(create)) = &mut step.action.kind {
            create.failover = false;
        }
    }
    world.lost("did not move with it");
}
