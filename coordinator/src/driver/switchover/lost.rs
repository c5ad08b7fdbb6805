//! A target that was decided for, let nobody in and is not there any more: whether the decision may be taken back.
//!
//! The operator's consent is in the log (`pgleap abandon`); here it is looked whether what they say is so. The ticket is newer than any by
//! which the target was told to lead, so what is still on its way there is void. An agent that answers decides it: its node is as
//! closed as before the decision, or it is not lost. One that cannot be reached is taken at the operator's word, unless anybody else
//! finds its node open to clients. It never moves the register by itself: that is `TakeBack`, which the log may refuse.

use std::time::Duration;

use futures::future::join_all;
use pgleap_proto::node::Node;
use pgleap_proto::traffic::{AbortReply, AbortRequest, ObserveRequest};
use tonic::Code;

use super::super::agents::explain_status;
use super::{Hand, Over};
use crate::plan::Placed;
use crate::state::Command;

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What an agent said, or why it could not be asked.
enum Asked {
    Yes(AbortReply),
    /// It answers, and that is all that counts.
    No(String),
    Away(String),
}

impl Hand<'_> {
    /// Whether the target has let clients in, as the log says now.
    pub(super) fn has_led(&self) -> bool {
        self.run.latest().is_none_or(|(_, switchover)| switchover.led)
    }

    /// Brings that into the log, before any pooler sends clients there: what they wrote must never be taken for nothing.
    pub(super) async fn led(&self) -> Result<(), Over> {
        if self.has_led() {
            return Ok(());
        }
        let (operation, attempt) = (self.ticket.operation.clone(), self.ticket.attempt);
        self.run.propose(Command::SwitchoverLed { operation, attempt }).await.map(drop)
    }

    /// Why the decision is to be taken back; none when it stands.
    pub(super) async fn is_lost(&self) -> Option<Vec<String>> {
        let (from, to) = (self.switchover.to.other(), self.switchover.to);
        let at = self.moving.leader(to);
        if !self.is_given_up(&at.host) || self.has_led() {
            return None;
        }
        let (host, node) = (&at.host, &at.what.name);
        let refused = match self.close_unopened(at).await {
            Asked::Yes(AbortReply { unopened: true, .. }) => {
                return Some(vec![format!(
                    "the agent of host {host} says that {node} was never opened to clients"
                )]);
            }
            Asked::Yes(_) => {
                "its agent is of another version, and cannot tell whether it was opened".to_owned()
            }
            Asked::No(why) => why,
            Asked::Away(why) => match self.found_open().await {
                Ok(()) => {
                    let unseen = format!("no agent of the other nodes finds {node} open to clients");
                    return Some(vec![format!("the agent of host {host} does not answer: {why}"), unseen]);
                }
                Err(why) => why,
            },
        };
        let name = format!("the {to} leader");
        let what = format!("take the writes, and is not given up for the {from} one");
        self.waits(at, &name, &what, &refused);
        None
    }

    /// The register goes back, and then everything else.
    pub(super) async fn take_back(&self, evidence: Vec<String>) -> Result<(), Over> {
        let (operation, attempt) = (self.ticket.operation.clone(), self.ticket.attempt);
        self.run.propose(Command::TakeBack { operation, attempt, evidence }).await?;
        self.undo().await
    }

    /// Has the target stay closed from now on, if it is still as it was before the decision.
    async fn close_unopened(&self, at: &Placed<Node>) -> Asked {
        let (from, to) = (self.switchover.to.other(), self.switchover.to);
        let request = AbortRequest {
            ticket: Some(self.ticket.clone()),
            cluster: Some(self.moving.cluster.clone()),
            side: to.message(),
            writer: from.message(),
            unopened: true,
        };
        // A connection from before may be dead without knowing it.
        self.run.agents.forget(&at.host, &at.agent);
        let mut client = match self.run.agents.traffic(&at.host, &at.agent).await {
            Ok(client) => client,
            Err(unreachable) => return Asked::Away(unreachable.cause),
        };
        match tokio::time::timeout(ANSWER, client.abort(request)).await {
            Ok(Ok(reply)) => Asked::Yes(reply.into_inner()),
            Ok(Err(status)) => match status.code() {
                Code::Unavailable | Code::Unknown | Code::Cancelled => Asked::Away(explain_status(&status)),
                _ => Asked::No(explain_status(&status)),
            },
            Err(_) => Asked::Away(format!("no answer within {} s", ANSWER.as_secs())),
        }
    }

    /// An error when an agent of another node finds the target open, or when the source's cannot be asked, which has to be opened then.
    async fn found_open(&self) -> Result<(), String> {
        let (from, to) =
            (self.moving.leader(self.switchover.to.other()), self.moving.leader(self.switchover.to));
        let others = self.moving.nodes.iter().map(|(_, at)| at);
        let others = others.filter(|at| at.host != to.host && !self.is_given_up(&at.host));
        let asked = join_all(others.map(async |at| (at, self.writer_seen_by(at).await))).await;
        for (at, seen) in asked {
            match seen {
                Ok(writer) if writer == self.switchover.to.message() => {
                    return Err(format!(
                        "the agent of host {} reaches it and finds it open to clients: it is not lost, only out of reach from here",
                        at.host
                    ));
                }
                Err(why) if at.host == from.host => {
                    return Err(format!("{} cannot be opened instead: {why}", from.what.name));
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn writer_seen_by(&self, at: &Placed<Node>) -> Result<i32, String> {
        let request = ObserveRequest {
            operation: self.ticket.operation.clone(),
            node: Some(at.what.clone()),
            ..ObserveRequest::default()
        };
        let ask = async {
            let client = self.run.agents.traffic(&at.host, &at.agent).await;
            let seen = client.map_err(|error| error.to_string())?.observe(request).await;
            seen.map(|seen| seen.into_inner().writer).map_err(|status| explain_status(&status))
        };
        let late = |_| Err(format!("its agent gave no answer within {} s", ANSWER.as_secs()));
        tokio::time::timeout(ANSWER, ask).await.unwrap_or_else(late)
    }
}
