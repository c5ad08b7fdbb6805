//! Many operations on one screen: counts, rollouts with their waves, what is waited for, a line for each that wants attention.

use pgleap_proto::fleet::{FleetSummary, OperationStatus, RolloutStatus, StateCount, StatusReply};

use super::output::{Out, Tone};
use super::status::label;

/// Up to so many operations are shown in full.
pub(super) const FEW: usize = 4;
/// Most operations that get a line of their own.
const LINES: usize = 30;

/// The screen for many operations.
pub(super) fn render(out: &Out, reply: &StatusReply, lines: &mut Vec<String>) {
    let Some(summary) = &reply.summary else { return };
    let total = reply.operations.len();
    lines.push(format!(
        "{}  {}",
        out.paint(Tone::Strong, &format!("{total} operations")),
        counted(out, &summary.states)
    ));
    let limit = match summary.limit {
        0 => String::new(),
        limit => format!(" of at most {limit}"),
    };
    lines.push(format!("  {} {}{limit} on their way to the gate", label(out, "working"), summary.working));
    for rollout in &summary.rollouts {
        render_rollout(out, rollout, lines);
    }
    render_waiting(out, summary, lines);
    lines.push(String::new());
    // Those that want somebody first; those that only wait for their turn are told of above.
    let mut shown: Vec<&OperationStatus> =
        reply.operations.iter().filter(|one| attention(one) < QUIET).collect();
    shown.sort_by_key(|operation| attention(operation));
    lines.extend(shown.iter().take(LINES).map(|operation| line(out, operation)));
    if shown.len() > LINES {
        lines.push(format!("… and {} more; `pgleap --json status` has all", shown.len() - LINES));
    }
    lines.push(format!("  {} {}", label(out, "next"), out.paint(Tone::Strong, "pgleap status CLUSTER")));
}

const QUIET: u8 = 5;

fn attention(operation: &OperationStatus) -> u8 {
    match operation.state.as_str() {
        "stopped" => 0,
        "switching" | "finishing" | "cancelling" => 1,
        _ if !operation.held.is_empty() => 2,
        "running" => 3,
        "waiting" => 4,
        _ => QUIET,
    }
}

fn line(out: &Out, operation: &OperationStatus) -> String {
    let tone = match operation.state.as_str() {
        "stopped" => Tone::Bad,
        "cancelling" | "switching" | "finishing" => Tone::Warn,
        _ => Tone::Good,
    };
    let wave = if operation.wave > 0 { format!("wave {}", operation.wave) } else { String::new() };
    let state = out.paint(tone, &format!("{:<10}", operation.state));
    let steps = format!("{}/{}", operation.steps_done, operation.steps_total);
    let mut text =
        format!("  {:<24} {state} {:<10} {steps:<7} {wave:<8}", operation.cluster, operation.phase);
    if operation.state != "waiting" && !operation.reason.is_empty() {
        text.push_str(&format!(" {}", operation.reason));
    } else if !operation.held.is_empty() {
        text.push_str(&format!(" {}", operation.held));
    }
    let mut text = text.trim_end().to_owned();
    if operation.state == "stopped" {
        text.push_str(&format!("\n{:27}{}", "", out.paint(Tone::Strong, &operation.next)));
    }
    text
}

fn render_rollout(out: &Out, rollout: &RolloutStatus, lines: &mut Vec<String>) {
    let tone = match rollout.state.as_str() {
        "stopped" => Tone::Bad,
        "held" => Tone::Warn,
        _ => Tone::Good,
    };
    let started = rollout.started_at.split('.').next().unwrap_or_default();
    lines.push(String::new());
    lines.push(format!(
        "{}  {}  since {started} by {}",
        out.paint(Tone::Strong, &rollout.rollout),
        out.paint(tone, &rollout.state),
        rollout.started_by
    ));
    for (n, wave) in (1..).zip(&rollout.waves) {
        let icon = match wave.state.as_str() {
            "passed" => out.paint(Tone::Good, "✓"),
            "open" => out.paint(Tone::Strong, "▸"),
            _ => out.paint(Tone::Dim, "·"),
        };
        let name = label(out, &format!("wave {n}"));
        lines.push(format!("  {name} {icon} {:<4} {}", wave.total, counted(out, &wave.states)));
    }
    if !rollout.reason.is_empty() {
        lines.push(format!("  {} {}", label(out, "waits"), out.paint(tone, &rollout.reason)));
    }
    if !rollout.next.is_empty() {
        lines.push(format!("  {} {}", label(out, "next"), out.paint(Tone::Strong, &rollout.next)));
    }
}

fn render_waiting(out: &Out, summary: &FleetSummary, lines: &mut Vec<String>) {
    let queue = summary.waiting.iter().take(LINES);
    let mut queue = queue.filter(|waiting| waiting.count > 0).peekable();
    if queue.peek().is_some() {
        lines.push(String::new());
    }
    for waiting in queue {
        let more = usize::try_from(waiting.count).unwrap_or_default().saturating_sub(waiting.clusters.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let who = waiting.clusters.join(", ");
        lines.push(format!(
            "  {} {}: {}{more}",
            label(out, "waits"),
            out.paint(Tone::Warn, &waiting.reason),
            who
        ));
    }
}

fn counted(out: &Out, states: &[StateCount]) -> String {
    let one = |state: &StateCount| {
        let text = format!("{} {}", state.count, state.state);
        match state.state.as_str() {
            "stopped" => out.paint(Tone::Bad, &text),
            "cancelled" | "cancelling" | "switching" => out.paint(Tone::Warn, &text),
            _ => text,
        }
    };
    states.iter().map(one).collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use pgleap_proto::fleet::{Waiting, WaveStatus};

    use super::*;

    fn states(counts: &[(&str, u32)]) -> Vec<StateCount> {
        counts.iter().map(|(state, count)| StateCount { state: (*state).into(), count: *count }).collect()
    }

    #[test]
    fn three_hundred_operations_fit_on_a_screen() {
        let operation = |n: usize| {
            let (state, reason, next) = match n {
                0 => ("waiting", "burn-in", "pgleap switchover c000"),
                1 => ("stopped", "seed.clone_node: disk full on db2; make room", "pgleap retry c001-000001"),
                2..20 => ("running", "", "pgleap watch"),
                _ => ("queued", "wave 2 of 3 of rollout-1 comes first", "pgleap watch"),
            };
            OperationStatus {
                cluster: format!("c{n:03}"),
                state: state.into(),
                phase: if n < 20 { "seed".into() } else { String::new() },
                wave: 1 + u32::from(n > 0),
                steps_done: 3,
                steps_total: 40,
                reason: reason.into(),
                next: next.into(),
                ..OperationStatus::default()
            }
        };
        let wave = |state: &str, total, counts: &[(&str, u32)]| WaveStatus {
            state: state.into(),
            total,
            states: states(counts),
        };
        let rollout = RolloutStatus {
            rollout: "rollout-4be1c0".into(),
            started_at: "2026-11-28T21:00:00.5Z".into(),
            started_by: "operator alice".into(),
            state: "stopped".into(),
            reason: "wave 2 of 3 failed: c001-000001; no later wave begins".into(),
            next: "pgleap retry c001-000001   (or go on without: pgleap proceed rollout-4be1c0)".into(),
            waves: vec![
                wave("passed", 1, &[("waiting", 1)]),
                wave("open", 19, &[("running", 18), ("stopped", 1)]),
                wave("waiting", 280, &[("queued", 280)]),
            ],
        };
        let waiting = Waiting {
            reason: "wave 2 of 3 of rollout-1 comes first".into(),
            count: 280,
            clusters: vec!["c020".into(), "c021".into()],
        };
        let summary = FleetSummary {
            states: states(&[("queued", 280), ("running", 18), ("waiting", 1), ("stopped", 1)]),
            working: 19,
            limit: 20,
            rollouts: vec![rollout],
            waiting: vec![waiting],
        };
        let operations = (0..300).map(operation).collect();
        let reply = StatusReply { operations, summary: Some(summary), ..StatusReply::default() };
        let mut lines = Vec::new();
        render(&Out::new(false), &reply, &mut lines);
        crate::golden::check("coordinator/src/cli/golden/summary.txt", &(lines.join("\n") + "\n"));
    }
}
