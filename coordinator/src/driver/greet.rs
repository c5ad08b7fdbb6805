//! Greets an agent before anything is asked of it: is it still the one known? What the answer means is the state's to say;
//! here it is only brought into the log, one greeting at a time for each host.

use std::time::Duration;

use pgleap_proto::agent::{AgentIdentity, HelloReply, HelloRequest};
use pgleap_proto::caller::{Meant, NOT_MEANT};
use tonic::{Request, Status};

use super::agents::{AgentCalls, Agents, explain_status};
use crate::raft::{ProposeError, Raft};
use crate::state::{Command, Rejection};

/// Longest wait for the answer to a greeting.
const HELLO: Duration = Duration::from_secs(5);
/// Between two tries to bring an answer into a log that is busy.
const BUSY: Duration = Duration::from_millis(20);

/// An agent that has answered, and is in the log as it is.
#[derive(Debug, Clone)]
pub(super) struct Greeted {
    /// Its calls are meant for the very agent that answered.
    pub(super) client: AgentCalls,
    pub(super) meant: Meant,
}

/// How much of an answer is news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// Another start, another journal, or a gap in its memory.
    Identity,
    /// How far its journal has come, too.
    Generation,
}

/// Who greets, and where the answer goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Greeter<'a> {
    pub(super) raft: &'a Raft,
    pub(super) agents: &'a Agents,
    pub(super) by: &'a str,
}

impl Greeter<'_> {
    /// Errors are in words: why it does not answer, or why its answer is not in the log.
    pub(super) async fn greet(self, host: &str, address: &str, news: News) -> Result<Greeted, String> {
        // Two answers of one agent may otherwise come into the log in the wrong order, and look like two agents.
        let turn = self.agents.turn(host);
        let _turn = turn.lock().await;
        loop {
            let known = self.raft.latest().state.agents.get(host).cloned();
            let HelloReply { identity, remembers, version, .. } =
                self.ask(host, address, HelloRequest { known: known.clone() }).await?;
            let Some(seen) = identity else {
                return Err(format!("it is pgleap-agent {version}, which does not say who it is; update it"));
            };
            let meant = Meant::from(&seen);
            let same = |known: &AgentIdentity| remembers && Meant::from(known) == meant;
            let told = match (&known, news) {
                (Some(known), News::Identity) => same(known),
                (Some(known), News::Generation) => same(known) && known.generation == seen.generation,
                (None, _) => false,
            };
            if !told {
                let host = host.to_owned();
                match self.tell(Command::AgentSeen { host, known, seen, remembers }).await {
                    Ok(()) => {}
                    Err(ProposeError::Rejected(Rejection::OtherAgentKnown { .. })) => continue,
                    Err(error) => return Err(error.to_string()),
                }
            }
            let client = self.agents.client_meaning(host, address, &meant).await;
            return Ok(Greeted { client: client.map_err(|unreachable| unreachable.cause)?, meant });
        }
    }

    /// Greets again when a call was refused because another agent was meant; whether it makes sense to ask again at once.
    pub(super) async fn again(self, host: &str, address: &str, refused: &Status) -> bool {
        refused.code() == NOT_MEANT && self.greet(host, address, News::Identity).await.is_ok()
    }

    async fn ask(self, host: &str, address: &str, hello: HelloRequest) -> Result<HelloReply, String> {
        let mut client = self.agents.client(host, address).await.map_err(|unreachable| unreachable.cause)?;
        let mut hello = Request::new(hello);
        hello.set_timeout(HELLO);
        let answered = tokio::time::timeout(HELLO, client.hello(hello)).await;
        let cause = match answered {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) => explain_status(&status),
            Err(_) => format!("no answer within {} s", HELLO.as_secs()),
        };
        self.agents.forget(host, address);
        Err(cause)
    }

    async fn tell(self, command: Command) -> Result<(), ProposeError> {
        loop {
            match self.raft.propose(self.by, None, command.clone()).await {
                Err(ProposeError::Busy) => tokio::time::sleep(BUSY).await,
                told => return told.map(drop),
            }
        }
    }
}
