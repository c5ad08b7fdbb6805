//! `pgleap switch-reads`: the share of reads that the new side serves.

use clap::Args;
use pgleap_proto::fleet::SwitchReadsRequest;

use super::client::request_id;
use super::output::Out;
use super::{Connection, Outcome};

#[derive(Debug, Args)]
pub struct SwitchReads {
    /// Cluster or operation
    name: String,
    /// Share of reads for the new side, from 0 to 100
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100))]
    percent: u32,
}

impl SwitchReads {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        let SwitchReads { name, percent } = self;
        let request = SwitchReadsRequest { name: name.clone(), percent, request_id: request_id() };
        let reply = connection.open().await?.switch_reads(request).await?.into_inner();
        if out.json {
            return Ok(out.value(&reply)?);
        }
        out.line(&reply.operation)?;
        out.talk(&format!(
            "{percent} % of the reads are wanted on the new side; what is in force: pgleap status {name}"
        ));
        Ok(())
    }
}
