//! `pgleap start`: begins an operation.

use clap::Args;
use pgleap_proto::fleet::StartRequest;

use super::client::request_id;
use super::output::Out;
use super::{Connection, Outcome};

#[derive(Debug, Args)]
pub struct Start {
    /// Cluster of the fleet file
    cluster: String,
    /// Start although `check` has warnings
    #[arg(long)]
    accept_warnings: bool,
}

impl Start {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        let request = StartRequest {
            cluster: self.cluster.clone(),
            request_id: request_id(),
            accept_warnings: self.accept_warnings,
        };
        let reply = connection.open().await?.start(request).await?.into_inner();
        if out.json {
            return Ok(out.value(&reply)?);
        }
        out.line(&reply.operation)?;
        out.talk(&format!(
            "started; next: pgleap watch {0}   (take it back: pgleap cancel {0})",
            self.cluster
        ));
        Ok(())
    }
}
