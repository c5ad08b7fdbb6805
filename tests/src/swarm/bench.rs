//! The two runs of one size of fleet: undisturbed, for what it costs; and with the leader killed again and again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use pgleap_proto::fleet::OperationEvent;

use super::arena::Arena;
use super::disk;
use super::failover::{Failover, kill_leader};
use super::figures::{Cost, Disturbed, Figures, Spread, Undisturbed};
use super::group::{Group, MEMBERS};
use super::layout::PROBE;
use super::load::{Load, prepare};
use super::probe::Probe;
use super::serve::Swarm;
use super::verify::Story;

/// Longest wait for all operations to reach their gates.
const LIMIT: Duration = Duration::from_secs(1800);

/// What is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Simulated agents, by size of fleet.
    pub sizes: Vec<usize>,
    /// Mean length of a step in the first run: short, so that the group is what is measured.
    pub work: Duration,
    /// And in the second: long enough for the work to outlast all the deaths.
    pub long_work: Duration,
    /// Deaths of leaders in the second run.
    pub kills: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            sizes: vec![10, 100, 1000],
            work: Duration::from_millis(5),
            long_work: Duration::from_millis(600),
            kills: 7,
        }
    }
}

/// Both runs of one size.
///
/// # Errors
/// When an operation does not reach its gate, or something that must hold does not.
pub async fn measure(arena: &Arena, agents: usize, options: &Options) -> Result<Figures> {
    let (undisturbed, steps) = undisturbed(arena, agents, options).await.context("undisturbed")?;
    let disturbed =
        disturbed(arena, agents, options.long_work, options.kills).await.context("with deaths")?;
    Ok(Figures { agents, operations: agents / 10 * 3, steps, undisturbed, disturbed })
}

async fn undisturbed(arena: &Arena, agents: usize, options: &Options) -> Result<(Undisturbed, u64)> {
    let swarm = Swarm::serve(arena, agents, options.work)?;
    let mut group = Group::begin(arena, &format!("load-{agents}")).await?;
    let operator = group.operator.clone();
    prepare(&operator, &swarm.layout).await?;
    let (leader, led, before) = (group.leader().await?, term(&group).await?, group.usage()?);
    let probe = Probe::begin(operator.clone());
    let load = Load::begin(&operator, &swarm).await?;
    load.wait_gates(&operator, &swarm, LIMIT).await?;
    let answers = probe.end().await?;
    let after = group.usage()?;
    let one_leader = term(&group).await? == led;
    let processes = before.iter().zip(&after).map(|((index, before), (_, after))| {
        Cost::between(*index, *index == leader && one_leader, *before, *after)
    });
    let processes = processes.collect();
    let events = operator.events().await?;
    let seconds = seconds_to_gates(&load, &events)?;
    let hosts = swarm.book.steps();
    let story = story(&load, &hosts, &events);
    let turnaround_ms = Spread::of(&story.turnarounds());
    must_hold(story.faults())?;
    let files = end(&mut group)?;
    let undisturbed = Undisturbed {
        start_seconds: load.start_seconds,
        seconds,
        steps_per_second: load.steps() as f64 / seconds,
        turnaround_ms,
        commit_ms: Spread::of(&answers.commit),
        status_ms: Spread::of(&answers.status),
        status_all_ms: Spread::of(&answers.all),
        processes,
        files,
        one_leader,
    };
    Ok((undisturbed, load.steps()))
}

/// A load in which leaders are killed, spread evenly over its steps; each is started again before the next one dies.
///
/// # Errors
/// When an operation does not reach its gate, or something that must hold does not.
pub async fn disturbed(arena: &Arena, agents: usize, work: Duration, kills: u32) -> Result<Disturbed> {
    let swarm = Swarm::serve(arena, agents, work)?;
    let mut group = Group::begin(arena, &format!("deaths-{agents}")).await?;
    let operator = group.operator.clone();
    prepare(&operator, &swarm.layout).await?;
    let load = Load::begin(&operator, &swarm).await?;
    let mut failovers: Vec<Failover> = Vec::new();
    for kill in 1..=u64::from(kills) {
        let due = load.steps() * kill / (u64::from(kills) + 1);
        load.wait_acts(&operator, &swarm, due, LIMIT).await?;
        let failover = kill_leader(&mut group, &swarm.book).await?;
        failovers.push(failover);
        group.revive(failover.killed - 1).await?;
    }
    load.wait_gates(&operator, &swarm, LIMIT).await?;
    let events = operator.events().await?;
    let hosts = swarm.book.steps();
    let story = story(&load, &hosts, &events);
    let joined = story.joined();
    must_hold(story.faults())?;
    let (seconds, refused) = (seconds_to_gates(&load, &events)?, swarm.book.calls_refused());
    end(&mut group)?;
    Ok(Disturbed { seconds, failovers, joined, refused })
}

fn story<'s>(
    load: &'s Load,
    hosts: &'s std::collections::BTreeMap<super::book::Key, super::book::StepSeen>,
    events: &'s [OperationEvent],
) -> Story<'s> {
    Story { operations: &load.operations, plans: &load.plans, hosts, events }
}

/// From the first `start` until the log has the last operation at its gate.
fn seconds_to_gates(load: &Load, events: &[OperationEvent]) -> Result<f64> {
    let gates = events.iter().filter(|event| event.kind == "waiting");
    let times = gates.map(|event| event.at.parse::<Timestamp>()).collect::<Result<Vec<_>, _>>()?;
    let last = times.into_iter().max().context("no operation came to its gate")?;
    Ok(last.duration_since(load.began).as_secs_f64())
}

/// The Raft term: the same twice means that one member led all the time between.
async fn term(group: &Group<'_>) -> Result<u64> {
    let reply = group.operator.status(PROBE).await?;
    Ok(reply.coordinator.context("the status names no coordinator")?.term)
}

fn must_hold(faults: Vec<String>) -> Result<()> {
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Ends the group and looks at what it leaves: the same log everywhere.
fn end(group: &mut Group<'_>) -> Result<Vec<disk::Stored>> {
    group.stop()?;
    let read = (0..MEMBERS).map(|index| disk::read(&group.file(index))).collect::<Result<Vec<_>>>()?;
    let (files, logs): (Vec<_>, Vec<_>) = read.into_iter().unzip();
    must_hold(disk::differences(&logs))?;
    Ok(files)
}
