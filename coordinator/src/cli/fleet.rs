//! `pgleap fleet apply` and `pgleap fleet show`; `pgleap fleet import` is in a file of its own.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use pgleap_proto::fleet::{ApplyFleetRequest, ShowFleetRequest};

use super::client::request_id;
use super::import::Import;
use super::output::{Out, Tone};
use super::{Connection, Failure, Outcome};

#[derive(Debug, Args)]
pub struct Fleet {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check a fleet file and make it the one in force
    Apply {
        /// The fleet file (TOML)
        file: PathBuf,
    },
    /// Print the fleet file in force, and whether each agent answers
    Show,
    /// Ask Patroni what a cluster is, and print its part of a fleet file for review; needs no coordinator, changes nothing
    Import(Import),
}

impl Fleet {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        match self.verb {
            Verb::Apply { file } => apply(connection, out, &file).await,
            Verb::Show => show(connection, out).await,
            Verb::Import(verb) => verb.run(out).await,
        }
    }
}

async fn apply(connection: &Connection, out: &mut Out, file: &PathBuf) -> Outcome {
    let toml =
        std::fs::read_to_string(file).map_err(|e| Failure::Refused(format!("{}: {e}", file.display())))?;
    let request = ApplyFleetRequest { toml, source: file.display().to_string(), request_id: request_id() };
    let reply = connection.open().await?.apply_fleet(request).await?.into_inner();
    if out.json {
        return Ok(out.value(&reply)?);
    }
    for change in &reply.changes {
        out.line(change)?;
    }
    out.talk(&format!("fleet file {} is in force (generation {})", file.display(), reply.generation));
    Ok(())
}

async fn show(connection: &Connection, out: &mut Out) -> Outcome {
    let reply = connection.open().await?.show_fleet(ShowFleetRequest {}).await?.into_inner();
    if out.json {
        return Ok(out.value(&reply)?);
    }
    if reply.generation == 0 {
        out.talk("no fleet file is in force yet; next: pgleap fleet apply FILE");
        return Ok(());
    }
    out.line(reply.toml.trim_end())?;
    out.talk("");
    out.talk(&format!(
        "generation {}, applied {} by {}",
        reply.generation, reply.applied_at, reply.applied_by
    ));
    for agent in &reply.agents {
        let state = if agent.reachable {
            out.paint(Tone::Good, &format!("answers, version {}", agent.version))
        } else {
            out.paint(Tone::Bad, &agent.error)
        };
        out.talk(&format!("agent {} at {}: {state}", agent.host, agent.address));
    }
    Ok(())
}
