//! At the gate: every balancer has the share of reads that the state wants, and people see what it has.
//!
//! The balancer's agent keeps the share by itself and gives way to lag; this only tells it what is wanted, again and again.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use pgleap_proto::traffic::{Balancer, RouteReadsRequest, Ticket};
use tokio::sync::Notify;

use super::agents::{Agents, explain_status};
use super::greet::Greeter;
use super::live::Live;
use crate::plan::{Moving, Placed};
use crate::raft::Raft;
use crate::state::{Command, Reply, Status, Traffic};

/// Between two looks; a change of what is wanted is told at once.
const AGAIN: Duration = Duration::from_secs(2);
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(5);

pub(super) struct ReadsRun {
    pub(super) raft: Raft,
    pub(super) agents: Arc<Agents>,
    pub(super) live: Arc<Live>,
    pub(super) by: String,
    /// There is a new view.
    pub(super) news: Arc<Notify>,
    pub(super) operation: String,
    pub(super) moving: Moving,
    pub(super) term: u64,
}

impl ReadsRun {
    /// Until the operation leaves the gate; the driver ends it then.
    pub(super) async fn run(self) {
        loop {
            let Some((ticket, percent)) = self.wanted().await else { return };
            let asked = self.moving.balancers.iter().map(|at| self.tell(at, &ticket, percent));
            join_all(asked).await;
            let changed = self.changed(ticket.attempt, percent);
            // Whether it changed or time has passed, the answer is the same: look again.
            let _ = tokio::time::timeout(AGAIN, changed).await;
        }
    }

    /// Waits until something else is wanted than the share that was told under this attempt's ticket.
    async fn changed(&self, attempt: u64, percent: u32) {
        loop {
            let news = self.news.notified();
            let state = self.raft.latest().state;
            let traffic = state.operations.get(&self.operation).map(|operation| &operation.traffic);
            let same =
                |traffic: &Traffic| u32::from(traffic.reads) == percent && traffic.ticket.attempt == attempt;
            if !traffic.is_some_and(same) {
                return;
            }
            news.await;
        }
    }

    /// A ticket of this term and the share; none when it is no longer this run's business.
    async fn wanted(&self) -> Option<(Ticket, u32)> {
        let view = self.raft.latest();
        if view.leading != Some(self.term) {
            return None;
        }
        let known = view.state.operations.get(&self.operation)?;
        if known.status != Status::AtGate {
            return None;
        }
        let ticket = ticket(&self.raft, &self.by, &self.operation, &known.traffic, self.term).await?;
        Some((ticket, u32::from(known.traffic.reads)))
    }

    async fn tell(&self, at: &Placed<Balancer>, ticket: &Ticket, percent: u32) {
        let request =
            RouteReadsRequest { ticket: Some(ticket.clone()), balancer: Some(at.what.clone()), percent };
        let ask = async {
            let client = self.agents.traffic(&at.host, &at.agent).await.map_err(|error| error.to_string());
            match client?.route_reads(request).await {
                Ok(reply) => Ok(reply.into_inner()),
                Err(status) => {
                    let greeter = Greeter { raft: &self.raft, agents: &self.agents, by: &self.by };
                    greeter.again(&at.host, &at.agent, &status).await;
                    Err(explain_status(&status))
                }
            }
        };
        let late = || Err(format!("no answer within {} s", ANSWER.as_secs()));
        let answer = tokio::time::timeout(ANSWER, ask).await.unwrap_or_else(|_| late());
        self.live.traffic(&self.operation, |now| {
            now.balancers.insert(at.what.name.clone(), answer);
        });
    }
}

/// One of the present term, under which agents may be asked for something at the gate; taken if there is none yet. None when this
/// coordinator leads no more.
pub(super) async fn ticket(
    raft: &Raft,
    by: &str,
    operation: &str,
    traffic: &Traffic,
    term: u64,
) -> Option<Ticket> {
    let kept = traffic.ticket;
    let attempt = if kept.term == term {
        kept.attempt
    } else {
        match raft.propose(by, None, Command::TakeTicket { operation: operation.to_owned() }).await {
            Ok(Reply::Started { attempt, term: now }) if now == term => attempt,
            _ => return None,
        }
    };
    Some(Ticket { operation: operation.to_owned(), term, attempt })
}
