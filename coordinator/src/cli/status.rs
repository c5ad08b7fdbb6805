//! `pgleap status`: one screen an operation, or one for many.

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use pgleap_proto::fleet::fleet_client::FleetClient;
use pgleap_proto::fleet::{CoordinatorStatus, OperationStatus, StatusReply, StatusRequest, StepStatus};
use pgleap_proto::tls::ENDS_SOON;

use super::follow::Leading;
use super::format;
use super::output::{Out, Tone};
use super::{Connection, Failure, Outcome, members, summary, traffic};

#[derive(Debug, Args)]
pub struct Status {
    /// Cluster, operation or rollout; all when left out
    name: Option<String>,
    /// Every step, not only those under way
    #[arg(long, short)]
    steps: bool,
    /// Leave out what is long, as it is done for people anyway when there are many: steps, phases, lag, traffic
    #[arg(long, conflicts_with = "steps")]
    brief: bool,
}

impl Status {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        let name = self.name.unwrap_or_default();
        if out.json {
            let request = StatusRequest { name, brief: self.brief };
            return Ok(out.value(&connection.open().await?.status(request).await?.into_inner())?);
        }
        let reply = ask(&mut connection.open().await?, name, self.brief).await?;
        let text = render(out, &reply, self.steps);
        Ok(out.line(&text)?)
    }
}

/// As much as fits on a screen: of many operations, what is long is not even asked for.
pub(super) async fn ask(
    client: &mut FleetClient<Leading>,
    name: String,
    brief_wanted: bool,
) -> Result<StatusReply, Failure> {
    let brief = client.status(StatusRequest { name: name.clone(), brief: true }).await?.into_inner();
    if brief_wanted || brief.operations.len() > summary::FEW {
        return Ok(brief);
    }
    Ok(client.status(StatusRequest { name, brief: false }).await?.into_inner())
}

/// The screen, for `status` and `watch`.
pub(super) fn render(out: &Out, reply: &StatusReply, all_steps: bool) -> String {
    let mut lines: Vec<String> = members::summary(out, reply.coordinator.as_ref()).into_iter().collect();
    lines.extend(reply.coordinator.as_ref().and_then(|coordinator| certificate(out, coordinator)));
    if reply.operations.len() > summary::FEW {
        summary::render(out, reply, &mut lines);
        return lines.join("\n");
    }
    for operation in &reply.operations {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        render_operation(out, operation, all_steps, &mut lines);
    }
    if reply.operations.is_empty() {
        lines.push("no operations; next: pgleap check CLUSTER, then pgleap start CLUSTER".to_owned());
    }
    lines.join("\n")
}

/// A word when the coordinator's certificate should be renewed.
fn certificate(out: &Out, coordinator: &CoordinatorStatus) -> Option<String> {
    let ends: Timestamp = coordinator.certificate_ends.parse().ok()?;
    let left = ends.duration_since(Timestamp::now());
    let soon = SignedDuration::try_from(ENDS_SOON).is_ok_and(|soon| left < soon);
    let member = coordinator.member;
    soon.then(|| {
        let left = format::seconds(left.as_secs_f64());
        let text = format!(
            "the certificate of coordinator {member} ends in {left}: renew it with `pgleap pki issue`; no restart is needed"
        );
        out.paint(Tone::Warn, &text)
    })
}

fn render_operation(out: &Out, operation: &OperationStatus, all_steps: bool, lines: &mut Vec<String>) {
    let tone = match operation.state.as_str() {
        "stopped" => Tone::Bad,
        "queued" => Tone::Dim,
        "cancelling" | "cancelled" | "switching" => Tone::Warn,
        _ => Tone::Good,
    };
    lines.push(format!(
        "{}  {} → {}  {}  {}  since {} by {}",
        out.paint(Tone::Strong, &operation.cluster),
        operation.old_major,
        operation.new_major,
        operation.operation,
        out.paint(tone, &operation.state),
        operation.started_at.split('.').next().unwrap_or_default(),
        operation.started_by,
    ));
    if !operation.rollout.is_empty() {
        let text = format!("{}, wave {}", operation.rollout, operation.wave);
        lines.push(format!("  {} {text}", label(out, "rollout")));
    }
    if operation.steps_total > 0 {
        lines.push(format!(
            "  {} {}, {} of {} steps done",
            label(out, "phase"),
            operation.phase,
            operation.steps_done,
            operation.steps_total
        ));
    }
    let phases = operation.phases.iter().filter(|p| p.seconds > 0.0 || p.complete);
    let phases: Vec<String> = phases
        .map(|p| format!("{}{} {}", if p.complete { "✓ " } else { "▸ " }, p.name, format::seconds(p.seconds)))
        .collect();
    if !phases.is_empty() {
        lines.push(format!("  {} {}", label(out, "times"), phases.join("   ")));
    }
    for step in &operation.steps {
        let under_way = !matches!(step.state.as_str(), "pending" | "done" | "undone");
        if all_steps || under_way {
            lines.push(render_step(out, step));
        }
    }
    let lag: Vec<String> = operation
        .lag
        .iter()
        .map(|l| match (l.active, l.bytes) {
            (_, ..0) => format!("{} unknown", l.database),
            (true, b) => format!("{} {}", l.database, format::bytes(b.unsigned_abs())),
            (false, b) => format!("{} {} (not streaming)", l.database, format::bytes(b.unsigned_abs())),
        })
        .collect();
    if !lag.is_empty() {
        lines.push(format!("  {} {}", label(out, "lag"), lag.join(", ")));
    }
    if let Some(traffic) = &operation.traffic {
        traffic::render(out, traffic, lines);
    }
    if !operation.held.is_empty() && !operation.reason.contains(&operation.held) {
        lines.push(format!("  {} {}", label(out, "hold"), out.paint(Tone::Warn, &operation.held)));
    }
    if !operation.reason.is_empty() {
        let name = if operation.state == "stopped" { "stopped" } else { "waits" };
        lines.push(format!("  {} {}", label(out, name), out.paint(tone, &operation.reason)));
    }
    lines.extend(operation.evidence.iter().map(|line| format!("           {}", out.paint(Tone::Dim, line))));
    if !operation.next.is_empty() {
        lines.push(format!("  {} {}", label(out, "next"), out.paint(Tone::Strong, &operation.next)));
    }
}

pub(super) fn label(out: &Out, name: &str) -> String {
    out.paint(Tone::Dim, &format!("{name:<8}"))
}

fn render_step(out: &Out, step: &StepStatus) -> String {
    let (icon, tone) = match step.state.as_str() {
        "done" => ("✓", Tone::Good),
        "failed" => ("✗", Tone::Bad),
        "running" | "undoing" => ("▸", Tone::Strong),
        "blocked" => ("…", Tone::Warn),
        "undone" => ("↶", Tone::Dim),
        _ => ("·", Tone::Dim),
    };
    let mut text = format!(
        "  {} {} {}",
        label(out, if step.state == "undoing" { "undo" } else { "step" }),
        out.paint(tone, icon),
        step.title
    );
    text.push_str(&out.paint(Tone::Dim, &format!("  on {}", step.host)));
    if step.state != "pending" {
        text.push_str(&format!("  {}", format::seconds(step.seconds)));
    }
    if step.state == "running"
        && let Some(progress) = &step.progress
    {
        if progress.total > 0 {
            let percent = progress.done.min(progress.total) as f64 * 100.0 / progress.total as f64;
            text.push_str(&format!("  {percent:.0} %"));
        }
        let amount = format::amount(progress.done, progress.total, &progress.unit);
        if !amount.is_empty() {
            text.push_str(&format!("  ({amount})"));
        }
        if step.remaining_seconds >= 0.0 {
            text.push_str(&format!("  about {} left", format::seconds(step.remaining_seconds)));
        }
        if !progress.message.is_empty() {
            text.push_str(&format!("  {}", progress.message));
        }
    }
    if !step.message.is_empty() {
        text.push_str(&format!("\n           {}", out.paint(Tone::Warn, &step.message)));
    }
    text
}
