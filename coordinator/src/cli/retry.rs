//! `pgleap retry`: tries the step at which an operation stopped again.

use clap::Args;
use pgleap_proto::fleet::RetryRequest;

use super::client::request_id;
use super::output::Out;
use super::{Connection, Outcome};

#[derive(Debug, Args)]
pub struct Retry {
    /// Cluster or operation
    name: String,
}

impl Retry {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        let request = RetryRequest { name: self.name.clone(), request_id: request_id() };
        let reply = connection.open().await?.retry(request).await?.into_inner();
        if out.json {
            return Ok(out.value(&reply)?);
        }
        out.line(&reply.operation)?;
        out.talk(&format!("goes on; next: pgleap watch {}", self.name));
        Ok(())
    }
}
