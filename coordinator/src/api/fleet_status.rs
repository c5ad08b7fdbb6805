//! The status of many operations: counts, rollouts with their waves, what is waited for, and what a single operation has to do with it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pgleap_proto::fleet::{FleetSummary, OperationStatus, RolloutStatus, StateCount, Waiting, WaveStatus};

use crate::driver::LiveStatus;
use crate::state::rollout::WaveWait;
use crate::state::{Admission, Operation, Rollout, State, Status as Stands, Wait, runnable};

/// In the order of an operation's life.
const STATES: [&str; 9] = [
    "queued",
    "running",
    "waiting",
    "switching",
    "finishing",
    "finished",
    "stopped",
    "cancelling",
    "cancelled",
];
/// Clusters named for each thing that is waited for.
const NAMED: usize = 5;

/// Adds what an operation has to do with the others: rollout, hold, and what its turn or its next phase waits for.
pub(super) fn place(
    status: &mut OperationStatus,
    state: &State,
    operation: &Operation,
    admission: &Admission<'_>,
    (live, now): (LiveStatus, Timestamp),
) {
    let cluster = &operation.plan.cluster;
    let rollout = operation.place.rollout.as_ref().and_then(|rollout| state.rollouts.get(rollout));
    if let Some(rollout) = rollout {
        status.rollout.clone_from(&rollout.id);
        status.wave = rollout.wave_of(&operation.id).map_or(0, |n| count(n + 1));
    }
    if let Some(hold) = operation.place.hold.as_ref().filter(|_| !is_ending(operation)) {
        let at = hold.at.map_or_else(String::new, |phase| format!(" before the phase {phase}"));
        status.held = format!("held{at} by {} since {:.0}", hold.by, hold.since);
    }
    status.idle = match operation.status {
        Stands::Running => operation.held().is_some() && runnable(operation).is_empty(),
        Stands::AtGate | Stands::Stopped(_) => true,
        _ => !operation.is_active(),
    };
    if operation.status == Stands::Queued {
        let wait = admission.wait(state, operation);
        status.idle = matches!(wait, Some(Wait::Held { .. } | Wait::Wave { why: WaveWait::Failed(_), .. }));
        let its_turn =
            || live.waiting.unwrap_or_else(|| "it is its turn: its cluster is looked at".to_owned());
        status.next = match (&operation.place.hold, &wait) {
            (_, Some(Wait::Held { name, .. })) => format!("pgleap proceed {name}"),
            _ => format!("pgleap watch {}   (give it up: pgleap cancel {cluster})", operation.id),
        };
        status.reason = wait.map_or_else(its_turn, |wait| wait.to_string());
    } else if operation.held().is_some() {
        hold_words(status, operation);
    } else if let Some(opening) = shut(state, operation, now) {
        status.reason = format!("the next phase begins when the maintenance window opens: {opening}");
    }
}

fn is_ending(operation: &Operation) -> bool {
    matches!(operation.status, Stands::Cancelling | Stands::Finishing) || !operation.is_active()
}

fn hold_words(status: &mut OperationStatus, operation: &Operation) {
    let cluster = &operation.plan.cluster;
    match operation.status {
        Stands::Running => {
            let under_way =
                status.steps.iter().filter(|step| !matches!(step.state.as_str(), "pending" | "done"));
            let rest = match under_way.count() {
                0 => "nothing is under way".to_owned(),
                1 => "1 step is under way and goes on to its end".to_owned(),
                count => format!("{count} steps are under way and go on to their end"),
            };
            let retains = operation.retains().map(|what| format!("; {what}")).unwrap_or_default();
            status.reason = format!("{}; {rest}{retains}", status.held);
            status.next =
                format!("pgleap proceed {cluster}   (or take everything back: pgleap cancel {cluster})");
        }
        Stands::AtGate => {
            status.reason = format!("{}; {}", status.reason, status.held);
            status.next = format!("pgleap proceed {cluster}");
        }
        // What else keeps it is more urgent, and the hold is told of in its own line.
        _ => {}
    }
}

/// When the window opens that all it could do next waits for.
fn shut(state: &State, operation: &Operation, now: Timestamp) -> Option<String> {
    let next = runnable(operation);
    let openings =
        next.iter().map(|step| state.window_before(operation, step, now)).collect::<Option<Vec<_>>>()?;
    openings.into_iter().next().map(|opening| opening.shown)
}

/// All that is shown in a few lines.
pub(super) fn summary(
    state: &State,
    shown: &[OperationStatus],
    admission: &Admission<'_>,
    now: Timestamp,
) -> FleetSummary {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for operation in shown.iter().filter(|one| !one.reason.is_empty() && one.state != "cancelled") {
        // Those at the gate wait for nothing but their operator.
        if operation.state != "waiting" || !operation.held.is_empty() {
            reasons.entry(&operation.reason).or_default().push(&operation.cluster);
        }
    }
    let mut waiting: Vec<Waiting> = reasons
        .into_iter()
        .map(|(reason, clusters)| Waiting {
            reason: reason.to_owned(),
            count: count(clusters.len()),
            clusters: clusters.iter().take(NAMED).map(|cluster| (*cluster).to_owned()).collect(),
        })
        .collect();
    waiting.sort_by_key(|waiting| std::cmp::Reverse(waiting.count));
    let of_shown = |rollout: &&Rollout| shown.iter().any(|operation| operation.rollout == rollout.id);
    let rollouts = state.rollouts.values().map(AsRef::as_ref).filter(of_shown);
    FleetSummary {
        states: counts(shown.iter().map(|operation| operation.state.as_str())),
        working: admission.working(),
        limit: state.policy().limits.operations.unwrap_or_default(),
        rollouts: rollouts.map(|rollout| present(state, rollout, now)).collect(),
        waiting,
    }
}

fn present(state: &State, rollout: &Rollout, now: Timestamp) -> RolloutStatus {
    let front = rollout.front(&state.operations, now);
    let failed = rollout.failed(&state.operations);
    let of = rollout.waves.len();
    let id = &rollout.id;
    let operations = rollout.waves.iter().flat_map(|wave| &wave.operations);
    let on_their_way = operations
        .filter_map(|id| state.operations.get(id))
        .filter(|operation| operation.status == Stands::Queued || operation.counts())
        .count();
    let wave = front.open + 1;
    let (name, reason, next) = match (&rollout.hold, &front.wait) {
        (Some(hold), _) => {
            ("held", format!("held by {} since {:.0}", hold.by, hold.since), format!("pgleap proceed {id}"))
        }
        (None, Some(WaveWait::Failed(_))) => {
            let first = failed.first().map_or("", String::as_str);
            let names = failed.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
            let retry = match state.operations.get(first).map(|operation| &operation.status) {
                Some(Stands::Cancelled) => {
                    let cluster = state.operations.get(first).map_or("", |operation| &operation.plan.cluster);
                    format!("pgleap start {cluster}")
                }
                _ => format!("pgleap retry {first}"),
            };
            (
                "stopped",
                format!("wave {wave} of {of} failed: {names}; no later wave begins"),
                format!("{retry}   (or go on without: pgleap proceed {id})"),
            )
        }
        (None, Some(WaveWait::UnderWay(1))) => {
            ("running", format!("wave {wave} of {of} has 1 operation on its way to the gate"), String::new())
        }
        (None, Some(WaveWait::UnderWay(count))) => (
            "running",
            format!("wave {wave} of {of} has {count} operations on their way to the gate"),
            String::new(),
        ),
        (None, Some(WaveWait::Soaks(until))) => (
            "running",
            format!("wave {wave} of {of} soaks until {until:.0}"),
            format!("pgleap hold {id}   (to stop here; or not to wait: pgleap proceed {id})"),
        ),
        (None, None) if on_their_way > 0 => ("running", String::new(), String::new()),
        (None, None) => ("done", String::new(), String::new()),
    };
    let waves = (0..).zip(&rollout.waves).map(|(n, wave): (usize, _)| WaveStatus {
        state: match n.cmp(&front.open) {
            std::cmp::Ordering::Less => "passed",
            std::cmp::Ordering::Equal => "open",
            std::cmp::Ordering::Greater => "waiting",
        }
        .to_owned(),
        total: count(wave.operations.len()),
        states: counts(wave.operations.iter().filter_map(|id| Some(state.operations.get(id)?.status_name()))),
    });
    RolloutStatus {
        rollout: id.clone(),
        started_at: rollout.started_at.to_string(),
        started_by: rollout.started_by.clone(),
        state: name.to_owned(),
        reason,
        next,
        waves: waves.collect(),
    }
}

fn counts<'s>(states: impl Iterator<Item = &'s str>) -> Vec<StateCount> {
    let mut counted = [0_usize; STATES.len()];
    for state in states {
        if let Some(at) = STATES.iter().position(|known| *known == state).and_then(|at| counted.get_mut(at)) {
            *at += 1;
        }
    }
    let some = STATES.iter().zip(counted).filter(|(_, number)| *number > 0);
    some.map(|(state, number)| StateCount { state: (*state).to_owned(), count: count(number) }).collect()
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
