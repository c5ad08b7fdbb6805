//! Calls to agents during a switchover: bounded by a deadline before the decision, repeated until answered after it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tonic::{Code, Response, Status};

use super::super::agents::{TrafficCalls, Unreachable, explain_status};
use super::super::backoff::Backoff;
use super::super::greet::{Greeter, News};
use super::super::live::TrafficWait;
use super::{Failure, Hand, Over};
use crate::plan::Placed;
use crate::raft::LOST_DISK;

/// Between two calls to an agent that does not answer, or cannot do it yet.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Longest wait for one answer where it is asked again.
const ANSWER: Duration = Duration::from_secs(20);

/// An agent with an open connection.
pub(super) struct Party {
    host: String,
    /// Names it in messages: "pooler pool-1", "the old leader".
    name: String,
    pub(super) client: TrafficCalls,
}

impl Party {
    /// What it noted, with who noted it.
    pub(super) fn notes(&self, notes: Vec<String>) -> Vec<String> {
        notes.into_iter().map(|note| format!("{} (host {}): {note}", self.name, self.host)).collect()
    }

    /// Waits for one answer, not beyond `until`.
    pub(super) async fn answer<T>(
        &self,
        until: Instant,
        what: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let Party { host, name, .. } = self;
        match tokio::time::timeout_at(until, call).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => {
                let mut lines = explain_status(&status);
                // Agents put the evidence below the message.
                let evidence = lines.find('\n').map(|end| lines.split_off(end)).unwrap_or_default();
                let evidence = evidence.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
                let reason = format!("{name} (host {host}) could not {what}: {lines}");
                Err(Failure { reason, evidence, again: status.code() == Code::DeadlineExceeded })
            }
            Err(_) => Err(Failure::passing(format!("{name} (host {host}) could not {what} in time"))),
        }
    }
}

impl Hand<'_> {
    /// Opens the connection to the agent of something that takes part, and sees to it that it is the one known.
    pub(super) async fn connect<T>(&self, at: &Placed<T>, name: String) -> Result<Party, Failure> {
        let greeted = self.greeter().greet(&at.host, &at.agent, News::Generation).await;
        greeted.map_err(|cause| {
            let (host, address) = (at.host.clone(), at.agent.clone());
            Failure::lasting(format!("{name}: {}", Unreachable { host, address, cause }))
        })?;
        let client = self.run.agents.traffic(&at.host, &at.agent).await;
        let client = client.map_err(|error| Failure::lasting(format!("{name}: {error}")))?;
        Ok(Party { host: at.host.clone(), name, client })
    }

    fn greeter(&self) -> Greeter<'_> {
        Greeter { raft: &self.run.raft, agents: &self.run.agents, by: &self.run.by }
    }

    /// Asks until it is done: where there is no other way than forward, or back. Others are not held up by it, and the status
    /// tells who is waited for. None when it could not be done, and the operator has given up the host.
    ///
    /// Over when the ticket is of the past, or this coordinator leads no more.
    pub(super) async fn insist<T, A, F>(
        &self,
        at: &Placed<A>,
        name: &str,
        what: &str,
        call: impl Fn(TrafficCalls) -> F,
    ) -> Result<Option<T>, Over>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut backoff = Backoff::new(AGAIN.0, AGAIN.1);
        let mut greeted = false;
        loop {
            // Known before it is asked: it is asked once more at least.
            let given_up = self.is_given_up(&at.host);
            let why = match self.run.agents.traffic(&at.host, &at.agent).await {
                Err(error) => error.cause,
                Ok(client) => match tokio::time::timeout(ANSWER, call(client)).await {
                    Ok(Ok(reply)) => {
                        self.run.live.traffic(&self.ticket.operation, |now| {
                            now.waiting.remove(name);
                        });
                        return Ok(Some(reply.into_inner()));
                    }
                    Ok(Err(status)) => {
                        if status.code() == Code::Aborted {
                            self.waits(at, name, what, &self.ahead(&status));
                            return Err(Over);
                        }
                        // Clients may be waiting: at once, but not for ever at once.
                        if self.greeter().again(&at.host, &at.agent, &status).await && !greeted {
                            greeted = true;
                            continue;
                        }
                        if status.code() == Code::Unavailable {
                            self.run.agents.forget(&at.host, &at.agent);
                        }
                        explain_status(&status)
                    }
                    Err(_) => {
                        self.run.agents.forget(&at.host, &at.agent);
                        format!("no answer within {} s", ANSWER.as_secs())
                    }
                },
            };
            if self.run.raft.latest().leading != Some(self.run.term) {
                return Err(Over);
            }
            if given_up {
                tracing::warn!(host = at.host, why, "{name} was to {what}, and is not waited for any more");
                return Ok(None);
            }
            self.waits(at, name, what, &why);
            backoff.wait().await;
        }
    }

    /// Whether the operator has given up a host, as the log says now.
    pub(super) fn is_given_up(&self, host: &str) -> bool {
        let state = self.run.raft.latest().state;
        state.operations.get(&self.ticket.operation).is_some_and(|known| known.abandoned.contains(host))
    }

    pub(super) fn waits<T>(&self, at: &Placed<T>, name: &str, what: &str, why: &str) {
        self.run.live.traffic(&self.ticket.operation, |now| {
            let since = now.waiting.get(name).map_or_else(Timestamp::now, |waiting| waiting.since);
            let (host, operation) = (&at.host, &self.ticket.operation);
            let why = format!(
                "{name} (host {host}) is to {what} since {since:.0}: {why}; if host {host} never comes back: pgleap abandon {operation} \
                 {host}"
            );
            now.waiting.insert(name.to_owned(), TrafficWait { since, why });
        });
    }

    /// The agent has seen newer tickets than this one: it is of the past, or the log is.
    fn ahead(&self, status: &Status) -> String {
        format!(
            "it knows a later ticket of operation {} ({}): another coordinator leads by now, or, if this lasts, the data \
             directory of this one was restored from an older copy: {LOST_DISK}",
            self.ticket.operation,
            explain_status(status)
        )
    }
}
