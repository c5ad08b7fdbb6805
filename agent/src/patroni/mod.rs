//! The Patroni that runs a node, by its REST API: what it is ([`facts`]), and what its dynamic configuration has to say while an
//! operation lasts ([`dynamic`], which only decides). It stays in charge of its cluster all the time. One that a new node is handed over
//! to ([`Daemon`]) has its file judged first ([`member`], pure). One that makes a new node ([`Seed`]) gets its file from pgleap, out of the
//! operator's template ([`template`], pure).

mod daemon;
pub mod dynamic;
mod facts;
mod hba;
mod judge;
pub mod member;
mod seed;
mod streams;
mod template;

use std::time::Duration;

use pgleap_proto::node::Patroni;
use pgleap_proto::patroni::{Access, Address, Cluster, Rest, Status};

use crate::config::{AgentConfig, PatroniConfig};
use crate::error::{Doing, Result, StepError};
use crate::wait::Wait;

pub use daemon::{Daemon, Role, Seen, to_come};
pub use facts::facts;
pub use hba::{Source, disowned, lies, source};
pub use seed::{Seed, seed_facts};
pub use streams::Streams;

/// The REST API of a node's Patroni.
///
/// # Errors
/// When its address or one of the files that it takes cannot be used.
pub fn rest(config: &AgentConfig, patroni: &Patroni) -> Result<Rest> {
    open(config, &patroni.scope, &patroni.rest)
}

fn open(config: &AgentConfig, scope: &str, address: &str) -> Result<Rest> {
    let address: Address = address.parse().doing(|| format!("Patroni of cluster {scope}"))?;
    let access = access(config, scope)?;
    Rest::new(address, &access).doing(|| format!("Patroni of cluster {scope} ([[patroni]] in agent.toml)"))
}

/// What `agent.toml` says of the Patroni of a cluster.
fn entry<'c>(config: &'c AgentConfig, scope: &str) -> Option<&'c PatroniConfig> {
    let own = config.patroni.iter().find(|one| one.scope.as_deref() == Some(scope));
    own.or_else(|| config.patroni.iter().find(|one| one.scope.is_none()))
}

fn access(config: &AgentConfig, scope: &str) -> Result<Access> {
    let Some(PatroniConfig { ca, cert, key, user, password_file, .. }) = entry(config, scope) else {
        return Ok(Access::default());
    };
    let login = match (user, password_file) {
        (Some(user), Some(file)) => {
            let password = std::fs::read_to_string(file).doing(|| format!("{}", file.display()))?;
            Some((user.clone(), password.trim_end_matches(['\r', '\n']).to_owned()))
        }
        _ => None,
    };
    Ok(Access { ca: ca.clone(), identity: cert.clone().zip(key.clone()), login })
}

/// Refuses a REST API of another cluster.
///
/// # Errors
/// When it does not answer, or answers for another scope.
pub async fn check_scope(rest: &Rest, patroni: &Patroni) -> Result<Status> {
    let status: Status = rest.get("/patroni").await.doing(|| "asking Patroni who it is")?;
    if status.patroni.scope != patroni.scope {
        return Err(StepError::new(format!(
            "the REST API at {} is of cluster \"{}\", not of \"{}\"; cancel, correct rest or scope in the fleet file and apply it, start again",
            rest.address(),
            status.patroni.scope,
            patroni.scope
        )));
    }
    Ok(status)
}

/// Waits until every member that answers has begun and ended a whole cycle of its work since now: what its configuration said
/// before is over then. `entry` is the scope whose `[[patroni]]` says how they are reached. Names of members that do not answer.
///
/// # Errors
/// When one answers, but does not go on within the limit.
pub async fn cycles(config: &AgentConfig, entry: &str, rest: &Rest, limit: Duration) -> Result<Vec<String>> {
    let cluster: Cluster = rest.get("/cluster").await.doing(|| "asking Patroni for its members")?;
    let one = |name: String, api_url: String| async move {
        let asked = async {
            let rest = open(config, entry, &api_url)?;
            let seen = async || rest.get::<Status>("/patroni").await.map(|status| status.dcs_last_seen);
            let mut last = seen().await.doing(|| format!("member {name}"))?;
            let (mut changes, wait) = (0, Wait::of(limit));
            // Begun before now, ended since; begun and ended since.
            while changes < 2 {
                if !wait.again().await {
                    return Ok(false);
                }
                let now = seen().await.doing(|| format!("member {name}"))?;
                changes += i32::from(now > last);
                last = now;
            }
            Ok::<bool, StepError>(true)
        };
        (name.clone(), asked.await)
    };
    let members = cluster.members.into_iter().map(|member| one(member.name, member.api_url));
    let mut silent = Vec::new();
    for (name, went_on) in futures::future::join_all(members).await {
        match went_on {
            Ok(true) => {}
            Ok(false) => {
                return Err(StepError::new(format!(
                    "Patroni of member {name} answers, but has not looked into its store for {} seconds; see its log, then retry",
                    limit.as_secs()
                )));
            }
            Err(_) => silent.push(name),
        }
    }
    Ok(silent)
}
