//! `pgleap watch`: follows an operation. On a terminal the status screen repaints itself; elsewhere each change is a line.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use pgleap_proto::fleet::{OperationStatus, StatusReply, StatusRequest};

use super::output::{Out, Tone};
use super::{Connection, Failure, Outcome, format, status};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// Between two looks at a switchover.
const SOON: Duration = Duration::from_millis(100);
/// How long a coordinator may be away before `watch` gives up.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct Watch {
    /// Cluster, operation or rollout; all when left out
    name: Option<String>,
    /// End when nothing goes on by itself any more: at a gate, cancelled, held, or (exit code 5) stopped
    #[arg(long)]
    until_idle: bool,
}

impl Watch {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        follow(connection, out, &self.name.unwrap_or_default(), self.until_idle).await
    }
}

/// Follows until interrupted or, if told so, until nothing goes on by itself.
pub(super) async fn follow(connection: &Connection, out: &mut Out, name: &str, until_idle: bool) -> Outcome {
    let mut view = View::default();
    let mut look = Look { interval: INTERVAL, ..Look::new(connection) };
    loop {
        let reply = look.at(out, StatusRequest { name: name.to_owned(), brief: !out.json }).await?;
        view.show(out, &reply)?;
        if until_idle && reply.operations.iter().all(|operation| operation.idle) {
            let stopped = reply.operations.iter().any(|o| o.state == "stopped");
            return if stopped { Err(Failure::Stopped) } else { Ok(()) };
        }
        look.pause().await;
    }
}

type Client = pgleap_proto::fleet::fleet_client::FleetClient<super::follow::Leading>;

/// Asks for the status again and again, and bears with a coordinator that is away for a while.
pub(super) struct Look<'c> {
    connection: &'c Connection,
    client: Option<Client>,
    interval: Duration,
}

impl<'c> Look<'c> {
    /// At the pace at which a switchover changes.
    pub(super) fn new(connection: &'c Connection) -> Look<'c> {
        Look { connection, client: None, interval: SOON }
    }

    /// The status, as soon as there is one.
    pub(super) async fn at(&mut self, out: &mut Out, request: StatusRequest) -> Result<StatusReply, Failure> {
        let mut away_since: Option<tokio::time::Instant> = None;
        loop {
            match self.ask(request.clone()).await {
                // The coordinator may be starting again; the operation goes on by itself.
                Err(Failure::Unreachable(why)) => {
                    self.client = None;
                    let since = *away_since.get_or_insert_with(|| {
                        out.talk(&format!("{why}; trying again"));
                        tokio::time::Instant::now()
                    });
                    if since.elapsed() > PATIENCE {
                        return Err(Failure::Unreachable(why));
                    }
                }
                other => return other,
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Until the next look.
    pub(super) async fn pause(&self) {
        tokio::time::sleep(self.interval).await;
    }

    async fn ask(&mut self, request: StatusRequest) -> Result<StatusReply, Failure> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.connection.open().await?,
        };
        let reply = match request.brief {
            true => status::ask(&mut client, request.name, false).await?,
            false => client.status(request).await?.into_inner(),
        };
        self.client = Some(client);
        Ok(reply)
    }
}

/// What was shown last, so that only changes are printed.
#[derive(Default)]
struct View {
    height: usize,
    steps: BTreeMap<(String, String), String>,
    states: BTreeMap<String, String>,
    last: Option<StatusReply>,
}

impl View {
    fn show(&mut self, out: &mut Out, reply: &StatusReply) -> std::io::Result<()> {
        if out.json {
            if self.last.as_ref() != Some(reply) {
                out.value(reply)?;
                self.last = Some(reply.clone());
            }
            return Ok(());
        }
        if out.terminal {
            let text = status::render(out, reply, false);
            self.height = out.repaint(&text, self.height)?;
            return Ok(());
        }
        reply.operations.iter().try_for_each(|operation| self.show_changes(out, operation))
    }

    fn show_changes(&mut self, out: &mut Out, operation: &OperationStatus) -> std::io::Result<()> {
        for step in &operation.steps {
            let key = (operation.operation.clone(), step.id.clone());
            let before = self.steps.insert(key, step.state.clone());
            if before.as_deref().unwrap_or("pending") == step.state {
                continue;
            }
            let took = if matches!(step.state.as_str(), "done" | "failed" | "undone") {
                format!("  {}", format::seconds(step.seconds))
            } else {
                String::new()
            };
            let message = if step.message.is_empty() { String::new() } else { format!("  {}", step.message) };
            out.line(&format!(
                "{}  {:<8} {}  {}{took}{message}",
                operation.cluster,
                step.state,
                step.title,
                out.paint(Tone::Dim, &format!("on {}", step.host))
            ))?;
        }
        let state = format!("{} {}", operation.state, operation.reason);
        if self.states.insert(operation.operation.clone(), state.clone()) != Some(state) {
            let reason =
                if operation.reason.is_empty() { String::new() } else { format!(": {}", operation.reason) };
            out.line(&format!("{}  {}{reason}", operation.cluster, operation.state))?;
            for line in &operation.evidence {
                out.line(&format!("    {line}"))?;
            }
            if !operation.next.is_empty() && !matches!(operation.state.as_str(), "running" | "switching") {
                out.line(&format!("    next: {}", operation.next))?;
            }
        }
        Ok(())
    }
}
