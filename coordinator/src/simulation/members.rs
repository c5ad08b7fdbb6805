//! The operators of a group that changes: members are let in one after the other, and later replaced: removed, or robbed of their disk
//! first, and let in again with an empty one. One member at a time; what was begun is brought to its end after faults have ended.

use std::time::Duration;

use rand::Rng;
use tokio::time::{sleep, timeout};

use super::coordinator::{PATIENCE, address, breathe};
use super::network::trip;
use super::sim::Shared;
use crate::raft::{ProposeError, Raft, View, Wish};

/// Voters from which one may lose its disk: the others are a majority without it.
const ENOUGH: usize = 3;

/// Until faults end, and everybody is a voter.
pub(super) async fn work(sim: &Shared) {
    if !sim.temper.grows {
        return;
    }
    for id in 2..=sim.temper.members {
        sleep(sim.between(0, 5_000)).await;
        let_in(sim, id).await;
    }
    while !sim.heals() {
        sleep(sim.between(3_000, 40_000)).await;
        if !sim.heals() {
            replace(sim).await;
        }
    }
}

/// An empty disk, `members add`, then a start, until it votes. In this order: what runs there already asks to be taken in by itself, and
/// a disk that is emptied after that would be lost to the group.
async fn let_in(sim: &Shared, id: u64) {
    let machine = &sim.coordinators[id as usize - 1];
    machine.replace(sim);
    let added = Wish::Add { member: id, address: address(id) };
    sim.count("members added", format_args!("c{id} is to be let in"));
    change(sim, added).await;
    machine.start(sim);
    let votes = |view: &View| view.group.members.iter().any(|member| member.id == id && member.voter);
    until(sim, votes).await;
}

/// One that does not lead goes and comes back with an empty disk.
async fn replace(sim: &Shared) {
    let id = sim.draw(|dice| dice.random_range(1..=sim.temper.members));
    let view = until(sim, |_| true).await;
    let voters = view.group.members.iter().filter(|member| member.voter).count();
    if voters < ENOUGH || view.member == id {
        return;
    }
    if sim.chance(0.5) {
        sim.count("disks lost", format_args!("c{id} loses its disk"));
        let machine = &sim.coordinators[id as usize - 1];
        machine.replace(sim);
        machine.start(sim);
        sleep(sim.between(0, 5_000)).await;
    }
    sim.count("members removed", format_args!("c{id} is to be removed"));
    change(sim, Wish::Remove { member: id }).await;
    let_in(sim, id).await;
}

/// The view of whoever leads, once it is so.
async fn until(sim: &Shared, wanted: impl Fn(&View) -> bool) -> View {
    loop {
        if let Some(raft) = anybody(sim).await
            && let Ok(Ok(view)) = timeout(PATIENCE, raft.read()).await
            && wanted(&view)
        {
            return view;
        }
        breathe(sim).await;
    }
}

/// Asks until the group has agreed; leadership is given away when it would remove its leader.
async fn change(sim: &Shared, wish: Wish) {
    let id = format!("members-request-{}", sim.draw(rand::RngCore::next_u64));
    loop {
        if let Some(raft) = anybody(sim).await {
            match timeout(PATIENCE, raft.change("operator sim", &id, wish.clone())).await {
                Ok(Ok(())) => return,
                Ok(Err(ProposeError::Membership(why))) => {
                    sim.note(format_args!("{wish:?} is refused: {why}"));
                    let others = (1..=sim.temper.members)
                        .filter(|to| !matches!(&wish, Wish::Remove { member } if member == to));
                    let others: Vec<u64> = others.collect();
                    let to = sim.draw(|dice| others[dice.random_range(0..others.len())]);
                    if matches!(wish, Wish::Remove { .. }) {
                        let _ = timeout(PATIENCE, raft.transfer(to)).await;
                    }
                }
                _ => {}
            }
        }
        breathe(sim).await;
    }
}

/// Any that runs and can be reached.
async fn anybody(sim: &Shared) -> Option<Raft> {
    let at = sim.draw(|dice| dice.random_range(0..sim.coordinators.len()));
    let at = &sim.coordinators[at];
    if trip(sim, "operator", &at.name).await { at.raft() } else { None }
}

/// What a member with an empty disk does: it asks until the group takes it in.
pub(super) async fn join(sim: Shared, id: u64, raft: Raft) {
    let name = &sim.coordinators[id as usize - 1].name;
    while raft.latest().group.id.is_empty() {
        sleep(Duration::from_millis(500)).await;
        let at = sim.draw(|dice| dice.random_range(0..sim.coordinators.len()));
        let at = &sim.coordinators[at];
        if !trip(&sim, name, &at.name).await {
            continue;
        }
        let Some(leader) = at.raft().filter(|_| at.id != id) else { continue };
        let identity = raft.identity().to_owned();
        let wish = Wish::Join { member: id, identity, address: address(id) };
        let joined = timeout(PATIENCE, leader.change(name, "", wish)).await;
        if matches!(joined, Ok(Ok(()))) && trip(&sim, &at.name, name).await {
            let _ = raft.introduce(leader.latest().group.as_ref().clone());
        }
    }
}
