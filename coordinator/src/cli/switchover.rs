//! `pgleap switchover` and `pgleap reverse`: move the writes, and wait until it is done or taken back.

use clap::Args;
use pgleap_proto::fleet::{LastSwitchover, StatusRequest, SwitchoverRequest, SwitchoverStatus};
use pgleap_proto::traffic::Side;

use super::client::request_id;
use super::output::{Out, Tone};
use super::{Connection, Failure, Outcome, watch};

#[derive(Debug, Args)]
pub struct Switchover {
    /// Cluster or operation
    name: String,
    /// What replication does not carry and may be as it is on the other side:
    /// large-objects, unlogged-tables, materialized-views, new-databases; and reads, which may stay behind when no server of that
    /// side can have them
    #[arg(long, value_delimiter = ',', value_name = "WHAT")]
    accept: Vec<String>,
    /// Do not wait for the end
    #[arg(long)]
    no_wait: bool,
}

impl Switchover {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out, to: Side) -> Outcome {
        let request = SwitchoverRequest {
            name: self.name.clone(),
            to: to.into(),
            accept: self.accept,
            request_id: request_id(),
        };
        let reply = connection.open().await?.switchover(request).await?.into_inner();
        if self.no_wait {
            if out.json {
                return Ok(out.value(&reply)?);
            }
            out.line(&reply.operation)?;
            out.talk(&format!("under way; next: pgleap watch {}", self.name));
            return Ok(());
        }
        let last = wait(connection, out, &reply.operation).await?;
        if out.json {
            out.value(&last)?;
        } else {
            out.line(&told(out, &last))?;
        }
        if last.decided { Ok(()) } else { Err(Failure::TakenBack) }
    }
}

/// Follows the switchover to its end, telling of each try.
async fn wait(connection: &Connection, out: &mut Out, operation: &str) -> Result<LastSwitchover, Failure> {
    let mut shown = String::new();
    let mut look = watch::Look::new(connection);
    loop {
        let reply = look.at(out, StatusRequest { name: operation.to_owned(), brief: false }).await?;
        let Some(found) = reply.operations.into_iter().next() else {
            return Err(Failure::Refused(format!("operation {operation} is gone; see `pgleap status`")));
        };
        let state = found.state;
        let Some(traffic) = found.traffic else {
            return Err(Failure::Refused(format!("operation {operation} is {state} and moves no traffic")));
        };
        match (traffic.switchover, traffic.last) {
            (Some(now), _) => {
                let news = progress(&now);
                if news != shown && !out.json {
                    out.talk(&news);
                }
                shown = news;
            }
            (None, Some(last)) => return Ok(last),
            (None, None) => {
                return Err(Failure::Refused(format!(
                    "operation {operation} is {state} without a switchover"
                )));
            }
        }
        look.pause().await;
    }
}

fn progress(now: &SwitchoverStatus) -> String {
    let mut text = format!("to {}: try {} of {}, {}", now.to, now.tries, now.most, now.stage);
    if !now.reason.is_empty() {
        text.push_str(&format!("; {}", now.reason));
        text.extend(now.evidence.iter().map(|line| format!("\n    {line}")));
    }
    text.extend(now.waiting.iter().map(|who| format!("\n    waits: {who}")));
    text
}

/// The end of a switchover for people.
pub(super) fn told(out: &Out, last: &LastSwitchover) -> String {
    let tries = if last.tries == 1 { "1 try".to_owned() } else { format!("{} tries", last.tries) };
    if !last.decided {
        let mut text = out.paint(Tone::Bad, &format!("taken back after {tries}: {}", last.reason));
        text.extend(last.evidence.iter().map(|line| format!("\n    {line}")));
        return text;
    }
    let pause = if last.pause_ms >= 0.0 {
        format!("clients waited {:.1} ms", last.pause_ms)
    } else {
        "how long clients waited is unknown: a coordinator took over".to_owned()
    };
    out.paint(Tone::Good, &format!("the {} cluster takes the writes; {pause}; {tries}", last.to))
}
