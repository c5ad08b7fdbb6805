//! Faults, one after the other, at random times: crashes of coordinators, of their disks, of agents and their machines; ways cut in one or
//! both directions; processes stopped for a while; wall clocks that jump; leadership given away; hosts that come back from an older image,
//! or in whose place a copy answers.

use std::time::Duration;

use rand::Rng;
use tokio::time::sleep;

use super::sim::Shared;
use super::temper::Weights;

/// Until faults end.
pub(super) async fn rage(sim: Shared) {
    let every = sim.temper.every.as_millis() as u64;
    while sim.temper.weights.total() > 0 {
        sleep(sim.between(every / 4, every * 2)).await;
        if sim.heals() {
            return;
        }
        one(&sim);
    }
}

/// Everything that is down comes back.
pub(super) fn repair(sim: &Shared) {
    sim.coordinators.iter().for_each(|coordinator| coordinator.start(sim));
    sim.hosts.values().for_each(|host| host.start(sim));
}

fn one(sim: &Shared) {
    let Weights {
        crash_coordinator,
        fail_disk,
        crash_agent,
        crash_host,
        cut,
        isolate,
        freeze,
        jump,
        transfer,
        all_down,
        image,
        restore,
        copy,
        lose,
    } = sim.temper.weights.clone();
    let mut roll = sim.draw(|dice| dice.random_range(0..sim.temper.weights.total()));
    let mut falls = |weight: u32| {
        let here = roll < weight;
        roll = roll.saturating_sub(weight);
        here
    };
    if falls(crash_coordinator) {
        crash(sim, any_coordinator(sim));
    } else if falls(fail_disk) {
        let syncs = sim.draw(|dice| dice.random_range(0..6));
        sim.coordinators[any_coordinator(sim)].burn(syncs);
    } else if falls(crash_agent) {
        agent(sim, false);
    } else if falls(crash_host) {
        agent(sim, true);
    } else if falls(cut) {
        let (from, to) = (anybody(sim), anybody(sim));
        part(sim, &[(from, to)]);
    } else if falls(isolate) {
        isolate_one(sim);
    } else if falls(freeze) {
        let (name, time) = (anybody(sim), sim.between(500, 20_000));
        sim.count("freezes", format_args!("{name} is stopped for {time:?}"));
        sim.freeze(&name, time);
    } else if falls(jump) {
        let (name, by) = (anybody(sim), sim.draw(|dice| dice.random_range(-7_200_000..=7_200_000)));
        sim.count("clock jumps", format_args!("the clock of {name} jumps by {by} ms"));
        sim.jump(&name, by);
    } else if falls(transfer) {
        transfer_leadership(sim);
    } else if falls(all_down) {
        (0..sim.coordinators.len()).for_each(|at| crash(sim, at));
    } else if falls(image) {
        sim.hosts[&any_host(sim)].take_image(sim);
    } else if falls(restore) {
        restored(sim);
    } else if falls(copy) {
        copied(sim);
    } else if falls(lose) {
        lost(sim);
    }
}

fn any_coordinator(sim: &Shared) -> usize {
    sim.draw(|dice| dice.random_range(0..sim.coordinators.len()))
}

fn any_host(sim: &Shared) -> String {
    let at = sim.draw(|dice| dice.random_range(0..sim.hosts.len()));
    sim.hosts.keys().nth(at).cloned().unwrap_or_default()
}

fn anybody(sim: &Shared) -> String {
    if sim.chance(0.6) { sim.coordinators[any_coordinator(sim)].name.clone() } else { any_host(sim) }
}

fn crash(sim: &Shared, at: usize) {
    if sim.coordinators[at].crash(sim) {
        later(sim, move |sim| sim.coordinators[at].start(sim));
    }
}

fn agent(sim: &Shared, machine: bool) {
    let name = any_host(sim);
    let host = &sim.hosts[&name];
    let crashed = if machine { host.crash_machine(sim) } else { host.crash(sim) };
    if crashed {
        sim.trace.count(if machine { "machine crashes" } else { "agents killed" });
        later(sim, move |sim| sim.hosts[&name].start(sim));
    }
}

/// A host comes back as it was when an image was taken.
fn restored(sim: &Shared) {
    let name = any_host(sim);
    if sim.hosts[&name].restore(sim) {
        later(sim, move |sim| sim.hosts[&name].start(sim));
    }
}

/// For a while another agent answers at a host's address.
fn copied(sim: &Shared) {
    let name = any_host(sim);
    let original = sim.hosts[&name].copy_answers(sim);
    sim.hosts[&name].start(sim);
    later(sim, move |sim| {
        sim.hosts[&name].original_answers(sim, original);
        sim.hosts[&name].start(sim);
    });
}

/// A replica's host that never comes back, at most one of a cluster.
fn lost(sim: &Shared) {
    let (at, new) = sim.draw(|dice| (dice.random_range(0..sim.temper.clusters), dice.random_bool(0.5)));
    let name = {
        let mut world = sim.world.lock().unwrap();
        let Some(cluster) = world.clusters.values_mut().nth(at).filter(|cluster| cluster.lost.is_none())
        else {
            return;
        };
        cluster.lost.insert(cluster.replica(new)).clone()
    };
    sim.count("hosts lost", format_args!("{name} is lost for good"));
    sim.hosts[&name].lose(sim);
}

/// Nobody hears it, or it hears nobody, or both.
fn isolate_one(sim: &Shared) {
    let name = anybody(sim);
    let others = sim.coordinators.iter().map(|c| c.name.clone()).chain(sim.hosts.keys().cloned());
    let others: Vec<String> = others.filter(|other| *other != name).collect();
    let ways = sim.draw(|dice| dice.random_range(1..=3));
    let mut cuts = Vec::new();
    for other in others {
        if ways & 1 == 1 {
            cuts.push((name.clone(), other.clone()));
        }
        if ways & 2 == 2 {
            cuts.push((other, name.clone()));
        }
    }
    part(sim, &cuts);
}

fn part(sim: &Shared, cuts: &[(String, String)]) {
    let mut cuts = cuts.to_vec();
    if let [(from, to)] = &cuts[..] {
        if from == to {
            return;
        }
        if sim.chance(0.5) {
            cuts.push((to.clone(), from.clone()));
        }
    }
    let one_way = cuts.iter().any(|(from, to)| !cuts.contains(&(to.clone(), from.clone())));
    sim.trace.count(if one_way { "one-way cuts" } else { "cuts" });
    for (from, to) in &cuts {
        sim.note(format_args!("cut {from} -> {to}"));
        sim.network.cut(from, to);
    }
    later(sim, move |sim| cuts.iter().for_each(|(from, to)| sim.network.join(from, to)));
}

fn transfer_leadership(sim: &Shared) {
    let to = any_coordinator(sim) as u64 + 1;
    let leads = |raft: &crate::raft::Raft| raft.latest().leading.is_some();
    let Some(raft) = sim.coordinators.iter().filter_map(|c| c.raft()).find(leads) else { return };
    sim.count("transfers", format_args!("leadership is to go to c{to}"));
    tokio::spawn(async move { raft.transfer(to).await });
}

fn later(sim: &Shared, what: impl FnOnce(&Shared) + Send + 'static) {
    let long = if sim.chance(0.8) { 5_000 } else { 60_000 };
    let (sim, after) = (sim.clone(), sim.between(50, long));
    tokio::spawn(async move {
        sleep(after.max(Duration::from_millis(1))).await;
        what(&sim);
    });
}
