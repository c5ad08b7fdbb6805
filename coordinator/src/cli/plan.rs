//! `pgleap plan`: every step with its commands, before anything is started.

use clap::Args;
use pgleap_proto::fleet::{PlanReply, PlanRequest};

use super::output::{Out, Tone};
use super::{Connection, Outcome};

#[derive(Debug, Args)]
pub struct Plan {
    /// Cluster of the fleet file
    cluster: String,
}

impl Plan {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        let request = PlanRequest { cluster: self.cluster };
        let reply = connection.open().await?.plan(request).await?.into_inner();
        if out.json {
            return Ok(out.value(&reply)?);
        }
        let text = render(out, &reply);
        out.line(&text)?;
        out.talk(&format!("next: pgleap start {}", reply.cluster));
        Ok(())
    }
}

fn render(out: &Out, plan: &PlanReply) -> String {
    let mut lines = vec![format!(
        "{}  {} → {}, {} steps",
        out.paint(Tone::Strong, &plan.cluster),
        plan.old_major,
        plan.new_major,
        plan.steps.len()
    )];
    let mut phase = "";
    for (number, step) in plan.steps.iter().enumerate() {
        if step.phase != phase {
            phase = &step.phase;
            lines.push(String::new());
            lines.push(out.paint(Tone::Strong, phase));
        }
        lines.push(format!(
            "{:>3}  {}  {}",
            number + 1,
            step.title,
            out.paint(Tone::Dim, &format!("on {}", step.host))
        ));
        lines.extend(step.commands.iter().flat_map(|c| c.lines()).map(|c| format!("       $ {c}")));
        if !step.waits_for.is_empty() {
            lines.push(format!("     {} {}", out.paint(Tone::Warn, "waits for:"), step.waits_for));
        }
        let undo = match (step.undoable, step.undo.is_empty()) {
            (true, true) => "nothing to take back".to_owned(),
            (true, false) => step.undo.clone(),
            (false, _) => out.paint(Tone::Warn, "cannot be taken back"),
        };
        lines.push(format!("     {} {undo}", out.paint(Tone::Dim, "undo:")));
    }
    lines.join("\n")
}
