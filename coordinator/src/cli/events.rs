//! `pgleap events`: what happened, when, on which host, by whom.

use clap::Args;
use pgleap_proto::fleet::{EventsRequest, OperationEvent};

use super::output::{Out, Tone};
use super::{Connection, Outcome};

#[derive(Debug, Args)]
pub struct Events {
    /// Cluster or operation; all when left out
    name: Option<String>,
    /// Go on printing as things happen
    #[arg(long, short)]
    follow: bool,
    /// The tools' own output too (pg_basebackup, pg_upgrade, rsync, vacuumdb)
    #[arg(long)]
    logs: bool,
}

impl Events {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        let request =
            EventsRequest { name: self.name.unwrap_or_default(), follow: self.follow, logs: self.logs };
        let mut stream = connection.open().await?.events(request).await?.into_inner();
        while let Some(event) = stream.message().await? {
            if out.json {
                out.value(&event)?;
            } else {
                let text = render(out, &event);
                out.line(&text)?;
            }
        }
        Ok(())
    }
}

fn render(out: &Out, event: &OperationEvent) -> String {
    let tone = match event.kind.as_str() {
        "done" | "undone" | "finished" | "cancelled" => Tone::Good,
        "failed" | "stopped" | "rejected" => Tone::Bad,
        "blocked" | "unreachable" | "cancelling" => Tone::Warn,
        _ => Tone::Dim,
    };
    let at = event.at.split('.').next().unwrap_or(&event.at);
    let what = [event.step.as_str(), event.host.as_str(), event.message.as_str()];
    let what = what.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  ");
    let by = if event.by.is_empty() { String::new() } else { format!("  (by {})", event.by) };
    format!(
        "{}  {}  {}  {what}{by}",
        out.paint(Tone::Dim, at),
        event.operation,
        out.paint(tone, &format!("{:<9}", event.kind))
    )
}
