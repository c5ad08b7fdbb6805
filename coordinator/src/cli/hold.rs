//! `pgleap hold` and `pgleap proceed`.

use clap::Args;
use pgleap_proto::fleet::{HoldRequest, ProceedRequest};

use super::client::request_id;
use super::output::Out;
use super::{Connection, Outcome};

#[derive(Debug, Args)]
pub struct Hold {
    /// Cluster, operation or rollout. A rollout is held as a whole: nothing further of it begins
    name: String,
    /// Hold when this phase would begin (seed, convert, upgrade, replicate, route); else before the next step
    #[arg(long, value_name = "PHASE")]
    at: Option<String>,
}

impl Hold {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        let at = self.at.unwrap_or_default();
        let request = HoldRequest { name: self.name.clone(), at, request_id: request_id() };
        let reply = connection.open().await?.hold(request).await?.into_inner();
        if out.json {
            return Ok(out.value(&reply)?);
        }
        out.line(&reply.name)?;
        for note in &reply.notes {
            out.talk(&format!("note: {note}"));
        }
        out.talk(&format!("held; next: pgleap proceed {}", self.name));
        Ok(())
    }
}

#[derive(Debug, Args)]
pub struct Proceed {
    /// Cluster, operation or rollout. A rollout that is not held goes on in spite of the operations that failed, or without
    /// waiting for the soak time of its wave
    name: String,
}

impl Proceed {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        let request = ProceedRequest { name: self.name.clone(), request_id: request_id() };
        let reply = connection.open().await?.proceed(request).await?.into_inner();
        if out.json {
            return Ok(out.value(&reply)?);
        }
        out.line(&reply.name)?;
        out.talk(&format!("goes on; next: pgleap watch {}", self.name));
        Ok(())
    }
}
