//! `switch-reads`, `switchover`, `reverse` and `finish`: a look at what replication does not carry, then a proposal.

use std::time::Duration;

use pgleap_proto::agent::{DatabaseFacts, InspectRequest, NodeQuery, ServerFacts};
use pgleap_proto::fleet::{
    FinishReply, FinishRequest, SwitchReadsReply, SwitchReadsRequest, SwitchoverReply, SwitchoverRequest,
};
use pgleap_proto::tls::Peer;
use pgleap_proto::traffic;
use tonic::Status;

use super::Api;
use super::error::{find, operation_of, refused};
use crate::check;
use crate::driver::explain_status;
use crate::plan::{Moving, Side};
use crate::state::{Command, READS};

/// Longest wait for the facts of one node.
const INSPECT: Duration = Duration::from_secs(60);

/// What replication does not carry: its name for `--accept`, how much of it there is, and what becomes of it.
struct Uncarried {
    name: &'static str,
    count: fn(&DatabaseFacts) -> u64,
    what: &'static str,
    fate: &'static str,
}

const UNCARRIED: [Uncarried; 3] = [
    Uncarried {
        name: "large-objects",
        count: |database| database.large_objects,
        what: "large objects",
        fate: "those written since the conversion (or the latest switchover) are missing or old on the other side",
    },
    Uncarried {
        name: "unlogged-tables",
        count: |database| u64::try_from(database.unlogged_tables.len()).unwrap_or(u64::MAX),
        what: "unlogged tables",
        fate: "their rows stay behind: they are empty, or as they were, on the other side",
    },
    Uncarried {
        name: "materialized-views",
        count: |database| database.materialized_views,
        what: "materialized views",
        fate: "they are as old there as their latest refresh on that side; refresh them after the switchover",
    },
];

/// To be accepted like these: a database that was made after the plan, so that it has no publication, slot and subscription.
const NEW_DATABASES: &str = "new-databases";

impl Api {
    pub(super) async fn move_reads(
        &self,
        peer: &Peer,
        request: SwitchReadsRequest,
    ) -> Result<SwitchReadsReply, Status> {
        let SwitchReadsRequest { name, percent, request_id } = request;
        let percent = u8::try_from(percent).unwrap_or(u8::MAX);
        let operation =
            self.tell(peer, &name, &request_id, |operation| Command::SetReads { operation, percent }).await?;
        Ok(SwitchReadsReply { operation })
    }

    pub(super) async fn switch_writes(
        &self,
        peer: &Peer,
        request: SwitchoverRequest,
    ) -> Result<SwitchoverReply, Status> {
        let to = match request.to() {
            traffic::Side::Old => Side::Old,
            traffic::Side::New => Side::New,
            traffic::Side::Unspecified => {
                return Err(Status::invalid_argument("the request names no side; update pgleap"));
            }
        };
        let SwitchoverRequest { name, accept, request_id, .. } = request;
        known(&accept)?;
        let state = self.raft.read().await.map_err(refused)?.state;
        // Repeated after it succeeded: the same answer, without asking the agent again.
        if let Some(reply) = state.requests.get(&request_id) {
            return Ok(SwitchoverReply { operation: operation_of(reply.clone(), &request_id)? });
        }
        let operation = find(&state, &name)?;
        // What the log would refuse anyway is refused by it, with its own words.
        if operation.traffic.writer != to
            && operation.status == crate::state::Status::AtGate
            && let Some(moving) = operation.plan.moving()
        {
            let server = self.source_facts(&moving, to.other()).await?;
            carried(&server, &moving, &accept).map_err(Status::failed_precondition)?;
        }
        let accepted = accept.clone();
        let operation = self
            .tell(peer, &name, &request_id, |operation| Command::BeginSwitchover { operation, to, accepted })
            .await?;
        Ok(SwitchoverReply { operation })
    }

    pub(super) async fn finish_operation(
        &self,
        peer: &Peer,
        request: FinishRequest,
    ) -> Result<FinishReply, Status> {
        let FinishRequest { name, decommission, request_id } = request;
        let operation = self
            .tell(peer, &name, &request_id, |operation| Command::Finish { operation, decommission })
            .await?;
        Ok(FinishReply { operation })
    }

    async fn source_facts(&self, moving: &Moving, side: Side) -> Result<ServerFacts, Status> {
        let at = moving.leader(side);
        let query = NodeQuery { node: Some(at.what.clone()), ..NodeQuery::default() };
        let ask = async {
            let mut client = self.agents.client(&at.host, &at.agent).await.map_err(|e| e.to_string())?;
            let request = InspectRequest { nodes: vec![query] };
            let reply = client.inspect(request).await.map_err(|status| {
                self.agents.forget(&at.host, &at.agent);
                explain_status(&status)
            })?;
            let node = reply.into_inner().nodes.into_iter().next();
            let server = node.filter(|node| node.running).and_then(|node| node.server);
            server.ok_or_else(|| "the server does not run".to_owned())
        };
        let late = || Err(format!("no answer within {} s", INSPECT.as_secs()));
        let answer = tokio::time::timeout(INSPECT, ask).await.unwrap_or_else(|_| late());
        answer.map_err(|why| {
            let node = &at.what.name;
            Status::failed_precondition(format!(
                "{node}, the leader of the {side} cluster on host {}, could not be looked at: {why}. Nothing was changed.",
                at.host
            ))
        })
    }
}

/// Every name is one that can be accepted.
fn known(accept: &[String]) -> Result<(), Status> {
    let names: Vec<&str> = UNCARRIED.iter().map(|kind| kind.name).chain([NEW_DATABASES, READS]).collect();
    match accept.iter().find(|name| !names.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(Status::invalid_argument(format!(
            "\"{name}\" is nothing to accept; known are {}",
            names.join(", ")
        ))),
    }
}

/// Everything in the replicated databases is carried over, or its loss accepted.
fn carried(server: &ServerFacts, moving: &Moving, accept: &[String]) -> Result<(), String> {
    let mut lines = Vec::new();
    let mut cures = Vec::new();
    for prepared in &server.prepared {
        lines.push(format!(
            "  prepared transaction \"{}\" of {} in database \"{}\" is {} s old and would block it",
            prepared.gid, prepared.owner, prepared.database, prepared.age_seconds
        ));
    }
    if !lines.is_empty() {
        cures.push("COMMIT PREPARED or ROLLBACK PREPARED each".to_owned());
    }
    let replicated = |database: &&DatabaseFacts| {
        moving.cluster.databases.iter().any(|known| known.database == database.name)
    };
    if !accept.iter().any(|name| name == NEW_DATABASES) {
        let new: Vec<String> = check::replicated(server)
            .filter(|database| !replicated(database))
            .map(|database| {
                format!(
                    "  database \"{}\" was made after the operation was started and is not replicated: what is written to it stays behind",
                    database.name
                )
            })
            .collect();
        if !new.is_empty() {
            cures.push(format!(
                "drop new databases, or cancel and start again to have them replicated, or accept that they stay behind with --accept \
                 {NEW_DATABASES}"
            ));
        }
        lines.extend(new);
    }
    for kind in UNCARRIED.iter().filter(|kind| !accept.iter().any(|name| name == kind.name)) {
        let found: Vec<String> = server
            .databases
            .iter()
            .filter(replicated)
            .filter(|database| (kind.count)(database) > 0)
            .map(|database| {
                let count = (kind.count)(database);
                format!("  database \"{}\" has {count} {}: {}", database.name, kind.what, kind.fate)
            })
            .collect();
        if !found.is_empty() {
            cures.push(format!("accept it with --accept {}", kind.name));
        }
        lines.extend(found);
    }
    if lines.is_empty() {
        return Ok(());
    }
    Err(format!(
        "replication does not carry everything:\n{}\nNothing was changed. {}.",
        lines.join("\n"),
        cures.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgleap_proto::agent::PreparedFacts;
    use pgleap_proto::traffic::{Cluster, SideDatabase};

    fn moving() -> Moving {
        let at = |host: &str| crate::plan::Placed {
            host: host.into(),
            agent: String::new(),
            what: pgleap_proto::node::Node::default(),
        };
        let database = SideDatabase { database: "app".into(), ..SideDatabase::default() };
        let cluster = Cluster { databases: vec![database], ..Cluster::default() };
        let (old, new) = (at("a"), at("b"));
        Moving { cluster, old, new, nodes: Vec::new(), poolers: Vec::new(), balancers: Vec::new() }
    }

    fn database(name: &str) -> DatabaseFacts {
        DatabaseFacts {
            name: name.into(),
            large_objects: 3,
            materialized_views: 2,
            unlogged_tables: vec!["public.cache".into()],
            ..DatabaseFacts::default()
        }
    }

    #[test]
    fn what_is_not_carried_is_refused_until_accepted() {
        let other = ServerFacts { databases: vec![database("postgres")], ..ServerFacts::default() };
        assert_eq!(carried(&other, &moving(), &[]), Ok(()));
        let server = ServerFacts { databases: vec![database("app")], ..ServerFacts::default() };
        let refused = carried(&server, &moving(), &["large-objects".into()]).unwrap_err();
        assert!(
            refused.contains("database \"app\" has 1 unlogged tables: their rows stay behind"),
            "{refused}"
        );
        assert!(refused.contains("--accept materialized-views") && !refused.contains("large"), "{refused}");
        let made = DatabaseFacts { allow_connections: true, ..database("made") };
        let template = DatabaseFacts { is_template: true, ..made.clone() };
        let later = ServerFacts { databases: vec![made, template], ..ServerFacts::default() };
        let refused = carried(&later, &moving(), &[]).unwrap_err();
        assert!(
            refused.matches("made after the operation was started").count() == 1
                && refused.contains("--accept new-databases"),
            "{refused}"
        );
        assert_eq!(carried(&later, &moving(), &[NEW_DATABASES.into()]), Ok(()));
        let all = UNCARRIED.map(|kind| kind.name.to_owned());
        assert_eq!(carried(&server, &moving(), &all), Ok(()));
        assert!(known(&all).is_ok() && known(&["everything".into()]).is_err());
    }

    #[test]
    fn prepared_transactions_cannot_be_accepted() {
        let prepared = PreparedFacts { gid: "x".into(), ..PreparedFacts::default() };
        let server = ServerFacts { prepared: vec![prepared], ..ServerFacts::default() };
        let refused = carried(&server, &moving(), &UNCARRIED.map(|kind| kind.name.to_owned())).unwrap_err();
        assert!(refused.contains("ROLLBACK PREPARED"), "{refused}");
    }
}
