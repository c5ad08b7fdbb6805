//! `fleet apply` and `fleet show`.

use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use pgleap_proto::agent::HelloRequest;
use pgleap_proto::fleet::{AgentStatus, ApplyFleetReply, ApplyFleetRequest, ShowFleetReply};
use pgleap_proto::tls::Peer;
use tonic::Status;

use super::Api;
use super::error::{given, refused, reused};
use crate::driver::explain_status;
use crate::fleet::{FleetSpec, diff, parse};
use crate::state::{Command, Reply};

/// Longest wait for one agent's greeting.
const HELLO: Duration = Duration::from_secs(2);

impl Api {
    pub(super) async fn apply(
        &self,
        peer: &Peer,
        request: ApplyFleetRequest,
    ) -> Result<ApplyFleetReply, Status> {
        let ApplyFleetRequest { toml, source, request_id } = request;
        let spec = parse(&toml, &source).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let state = self.raft.read().await.map_err(refused)?.state;
        let before = match &state.fleet {
            None => FleetSpec::default(),
            // Nothing to do: so a repeated call is harmless, too.
            Some(fleet) if *fleet.toml == *toml => {
                return Ok(ApplyFleetReply { generation: fleet.generation, changes: Vec::new() });
            }
            // A file of an older pgleap that this one cannot read counts as empty: everything is new.
            Some(fleet) => parse(&fleet.toml, "the fleet file in force").unwrap_or_default(),
        };
        let names = spec.clusters.iter().map(|cluster| cluster.name.clone());
        let keeps = names.filter(|name| !before.touches(&spec, name)).collect();
        let generation = state.generation() + 1;
        let policy = spec.policy(Timestamp::now());
        let command = Command::ApplyFleet { toml, generation, keeps, policy };
        let reply = self.raft.propose(&peer.to_string(), given(&request_id), command).await;
        match reply.map_err(refused)? {
            Reply::Fleet { generation } => Ok(ApplyFleetReply { generation, changes: diff(&before, &spec) }),
            _ => Err(reused(&request_id)),
        }
    }

    pub(super) async fn show(&self) -> Result<ShowFleetReply, Status> {
        let state = self.raft.read().await.map_err(refused)?.state;
        let Some(fleet) = &state.fleet else { return Ok(ShowFleetReply::default()) };
        let agents = parse(&fleet.toml, "the fleet file in force").unwrap_or_default().agents();
        let agents = agents.into_iter().map(|(host, address)| self.greet(host, address));
        Ok(ShowFleetReply {
            generation: fleet.generation,
            toml: fleet.toml.to_string(),
            applied_by: fleet.by.clone(),
            applied_at: fleet.at.to_string(),
            agents: join_all(agents).await,
        })
    }

    async fn greet(&self, host: String, address: String) -> AgentStatus {
        let hello = async {
            let mut client = self.agents.client(&host, &address).await.map_err(|e| e.cause)?;
            let reply = client.hello(HelloRequest::default()).await.map_err(|status| {
                self.agents.forget(&host, &address);
                explain_status(&status)
            })?;
            Ok::<String, String>(reply.into_inner().version)
        };
        let answered = tokio::time::timeout(HELLO, hello).await;
        let late = || Err(format!("no answer within {} s", HELLO.as_secs()));
        let (reachable, version, error) = match answered.unwrap_or_else(|_| late()) {
            Ok(version) => (true, version, String::new()),
            Err(error) => (false, String::new(), error),
        };
        AgentStatus { host, address, reachable, version, error }
    }
}
