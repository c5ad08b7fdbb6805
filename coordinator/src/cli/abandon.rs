//! `pgleap abandon`: does not wait for a host that never comes back.

use clap::Args;
use pgleap_proto::fleet::AbandonRequest;

use super::client::request_id;
use super::output::Out;
use super::{Connection, Outcome};

#[derive(Debug, Args)]
pub struct Abandon {
    /// Cluster or operation, which is being cancelled or finished, or whose switchover cannot end without the host
    name: String,
    /// Host that never comes back, as in the fleet file
    host: String,
    /// Do not ask; needed where there is no terminal
    #[arg(long, short)]
    yes: bool,
}

impl Abandon {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        if !self.yes {
            let question = format!(
                "Abandon host {}: nothing waits for it, and nothing is taken back there any more. Should its PostgreSQL ever run again, its \
                 slots keep WAL until its disk is full, and it may be closed to clients; `pgleap events {}` lists what is left. If \
                 writes were just decided for a leader on it that let nobody in, the other cluster takes them again: be sure that it can \
                 serve no client any more.",
                self.host, self.name
            );
            let unasked = "what abandon leaves behind is left for ever; say --yes to mean it";
            out.confirm(&question, "not abandoned", Some(unasked))?;
        }
        let request =
            AbandonRequest { name: self.name.clone(), host: self.host.clone(), request_id: request_id() };
        let reply = connection.open().await?.abandon(request).await?.into_inner();
        if out.json {
            return Ok(out.value(&reply)?);
        }
        out.line(&reply.operation)?;
        out.talk(&format!("goes on without host {}; next: pgleap watch {}", self.host, self.name));
        Ok(())
    }
}
