//! `pgleap finish`: gives up the way back.

use clap::Args;
use pgleap_proto::fleet::FinishRequest;

use super::client::request_id;
use super::output::Out;
use super::{Connection, Outcome, watch};

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
            let stop = if self.decommission { " and its servers are stopped" } else { "" };
            let question = format!(
                "Finish {}: the side that takes the writes stays. Replication between the sides, publications, slots and \
                 marks are dropped; the other side stays closed to clients{stop}. There is no way back after this.",
                self.name
            );
            let unasked = "finish gives up the way back for ever; say --yes to mean it";
            out.confirm(&question, "not finished", Some(unasked))?;
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
