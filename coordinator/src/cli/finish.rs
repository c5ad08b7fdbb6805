//! `pgleap finish`: gives up the way back.

use std::io::{self, BufRead, IsTerminal};

use clap::Args;
use pgleap_proto::fleet::FinishRequest;

use super::client::request_id;
use super::output::Out;
use super::{Connection, Failure, Outcome, watch};

#[derive(Debug, Args)]
pub struct Finish {
    /// Cluster or operation
    name: String,
    /// Do not ask; needed where there is no terminal
    #[arg(long, short)]
    yes: bool,
    /// Stop the servers of the side that does not take writes, too; data directories stay
    #[arg(long)]
    decommission: bool,
    /// Do not wait for the end
    #[arg(long)]
    no_wait: bool,
}

impl Finish {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        if !self.yes {
            if !io::stdin().is_terminal() {
                return Err(Failure::Refused(
                    "finish gives up the way back for ever; say --yes to mean it".to_owned(),
                ));
            }
            let stop = if self.decommission { " and its servers are stopped" } else { "" };
            out.talk(&format!(
                "Finish {}: the side that takes the writes stays. Replication between the sides, publications, slots and \
                 marks are dropped; the other side stays closed to clients{stop}. There is no way back after this. Go on? [y/N]",
                self.name
            ));
            let mut answer = String::new();
            io::stdin().lock().read_line(&mut answer)?;
            if !matches!(answer.trim(), "y" | "Y" | "yes") {
                return Err(Failure::Refused("not finished".to_owned()));
            }
        }
        let request = FinishRequest {
            name: self.name.clone(),
            decommission: self.decommission,
            request_id: request_id(),
        };
        let reply = connection.open().await?.finish(request).await?.into_inner();
        if !self.no_wait {
            return watch::follow(connection, out, &reply.operation, true).await;
        }
        if out.json {
            return Ok(out.value(&reply)?);
        }
        out.line(&reply.operation)?;
        out.talk(&format!("is being finished; next: pgleap watch {}", self.name));
        Ok(())
    }
}
