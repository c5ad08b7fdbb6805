//! `pgleap cancel`: takes an operation back.

use clap::Args;
use pgleap_proto::fleet::CancelRequest;

use super::client::request_id;
use super::output::Out;
use super::{Connection, Outcome, watch};

#[derive(Debug, Args)]
pub struct Cancel {
    /// Cluster or operation; of a rollout, everything that has not begun yet is given up
    name: String,
    /// Do not ask on a terminal
    #[arg(long, short)]
    yes: bool,
    /// Follow it until everything is taken back
    #[arg(long)]
    wait: bool,
}

impl Cancel {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        if !self.yes {
            let question = format!(
                "Cancel {}: its slots and publications on the old cluster are dropped, and the new cluster that \
                 pgleap made is removed. The old cluster is left as it was found.",
                self.name
            );
            // All of it can be made again, so nobody is needed who says yes.
            out.confirm(&question, "not cancelled", None)?;
        }
        let request = CancelRequest { name: self.name.clone(), request_id: request_id() };
        let reply = connection.open().await?.cancel(request).await?.into_inner();
        if self.wait {
            return watch::follow(connection, out, &reply.operation, true).await;
        }
        if out.json {
            return Ok(out.value(&reply)?);
        }
        out.line(&reply.operation)?;
        out.talk(&format!("is being taken back; next: pgleap watch {}", self.name));
        Ok(())
    }
}
