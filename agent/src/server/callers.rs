//! Whose calls are taken: a coordinator's, of the one group this agent obeys, and, when they act, only those that mean this
//! very agent. It decides before anything is looked at or done; fences and tickets come after it.

use std::sync::Arc;

use pgleap_proto::caller::{Caller, Meant, NOT_MEANT};
use pgleap_proto::tls::{Peer, Role};
use tonic::{Request, Status};

use crate::journal::{Journal, OtherGroup};

/// The door for coordinators.
#[derive(Debug, Clone)]
pub(super) struct Callers {
    journal: Arc<Journal>,
    host: String,
}

impl Callers {
    pub(super) fn new(journal: Arc<Journal>, host: &str) -> Callers {
        Callers { journal, host: host.to_owned() }
    }

    /// A call that leaves nothing behind. Before any group has given orders every coordinator may look.
    pub(super) fn reads<T>(&self, request: &Request<T>, action: &str) -> Result<Peer, Status> {
        let peer = Peer::of(request)?.require(&[Role::Coordinator], action)?;
        let caller = Caller::of(request);
        match self.journal.group() {
            Some(group) if group != caller.group => Err(self.other_group(&peer, &caller.group, &group)),
            _ => Ok(peer),
        }
    }

    /// A call that acts, or may: the first one binds this agent to its group.
    pub(super) async fn acts<T>(&self, request: &Request<T>, action: &str) -> Result<Peer, Status> {
        let peer = self.reads(request, action)?;
        let Caller { group, meant } = Caller::of(request);
        let (Some(meant), false) = (meant, group.is_empty()) else {
            return Err(Status::invalid_argument(format!(
                "the call of {peer} says neither which group of coordinators asks nor which agent is meant: coordinator and \
                 agent are of different versions; install the same on both"
            )));
        };
        let identity = self.journal.identity();
        if meant != Meant::from(&identity) {
            tracing::warn!(%peer, action, ?meant, ?identity, "a call that means another agent is refused");
            return Err(Status::new(
                NOT_MEANT,
                format!(
                    "the call means start {} of the agent of host {} on journal {}, and this is start {} on journal {}: it was \
                     restarted, restored or replaced meanwhile; it has to be greeted first",
                    meant.incarnation, self.host, meant.journal, identity.incarnation, identity.journal
                ),
            ));
        }
        if self.journal.group().is_some() {
            return Ok(peer);
        }
        let (journal, asked) = (self.journal.clone(), group.clone());
        let bound = tokio::task::spawn_blocking(move || journal.obey(&asked)).await;
        let bound = bound.map_err(|error| Status::internal(error.to_string()))?;
        match bound.map_err(|error| Status::internal(error.to_string()))? {
            Ok(()) => Ok(peer),
            Err(OtherGroup(known)) => Err(self.other_group(&peer, &group, &known)),
        }
    }

    fn other_group(&self, peer: &Peer, asks: &str, obeyed: &str) -> Status {
        tracing::warn!(%peer, asks, obeyed, "a coordinator of another group is refused");
        let asks = if asks.is_empty() { "an unnamed group" } else { asks };
        Status::permission_denied(format!(
            "the agent of host {} obeys the coordinators' group {obeyed}, and {peer} belongs to {asks}: one host is never driven \
             by two groups; take the host out of that fleet file, or, when group {obeyed} is gone for good, stop the agent, run \
             `pgleap-agent forget-group` on its host and start it again",
            self.host
        ))
    }
}
