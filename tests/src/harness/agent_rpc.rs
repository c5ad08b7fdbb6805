//! Speaks to an agent directly, with any holder's certificate: for scenarios that drive single steps or knock on doors.

use anyhow::{Context, Result, bail};
use pgleap_proto::agent::agent_client::AgentClient;
use pgleap_proto::agent::{Fence, Finished, HelloRequest, StepRequest, Verb, finished, step_event};
use pgleap_proto::caller::{Caller, Meant};
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{Action, Output};
use pgleap_proto::tls::{self, Role, TlsFiles};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use super::fleet::Fleet;

/// The group of coordinators that the harness plays: for fleets whose hosts no coordinator drives.
pub const GROUP: &str = "harness";

/// Calls to an agent that say who asks.
pub type AgentCalls = AgentClient<InterceptedService<Channel, Caller>>;

impl Fleet {
    /// A connection to the agent of a host, as the holder whose TLS directory below `pki` is named.
    ///
    /// # Errors
    /// When the agent refuses the connection or the certificate.
    pub async fn agent(&self, host: &str, holder: &str) -> Result<AgentCalls> {
        let caller = Caller { group: GROUP.to_owned(), meant: None };
        Ok(AgentClient::with_interceptor(self.agent_channel(host, holder).await?, caller))
    }

    async fn agent_channel(&self, host: &str, holder: &str) -> Result<Channel> {
        let identity = TlsFiles::in_directory(&self.base.join("pki").join(holder)).load()?;
        let address = self.agent_address(host).with_context(|| format!("no host {host}"))?;
        let endpoint = tls::endpoint(&address)?;
        Ok(identity.connect(&endpoint, Role::Agent, host).await?)
    }

    /// The same, meant for the agent that answers now: for calls that act.
    async fn greeted_agent(&self, host: &str) -> Result<AgentCalls> {
        let hello = self.agent(host, "coordinator").await?.hello(HelloRequest::default()).await?.into_inner();
        let identity =
            hello.identity.with_context(|| format!("the agent of {host} does not say who it is"))?;
        let caller = Caller { group: GROUP.to_owned(), meant: Some(Meant::from(&identity)) };
        Ok(AgentClient::with_interceptor(self.agent_channel(host, "coordinator").await?, caller))
    }

    /// Runs one step as the coordinator would, to its end.
    ///
    /// # Errors
    /// When the agent cannot be reached or breaks off. How the step ended is in the answer.
    pub async fn step(&self, host: &str, call: StepCall<'_>) -> Result<Finished> {
        let request = StepRequest {
            finishing: false,
            operation: call.operation.to_owned(),
            step: call.step.to_owned(),
            fence: Some(Fence { term: 1, attempt: call.attempt }),
            verb: call.verb.into(),
            action: Some(Action { kind: Some(call.action) }),
        };
        let mut events = self.greeted_agent(host).await?.run_step(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            if let Some(step_event::Kind::Finished(finished)) = event.kind {
                return Ok(finished);
            }
        }
        bail!("the agent of {host} broke off step {}", call.step)
    }

    /// Runs one step that has to be done, and gives its output.
    ///
    /// # Errors
    /// When it is anything but done; with what the agent said.
    pub async fn step_done(&self, host: &str, call: StepCall<'_>) -> Result<Option<Output>> {
        let name = format!("{} on {host}", call.step);
        match self.step(host, call).await?.outcome {
            Some(finished::Outcome::Done(done)) => Ok(done.output),
            Some(finished::Outcome::Blocked(blocked)) => bail!("{name} is blocked: {}", blocked.reason),
            Some(finished::Outcome::Failed(failed)) => {
                bail!("{name} failed: {}\n{}", failed.message, failed.evidence.join("\n"))
            }
            None => bail!("{name} ended without an outcome"),
        }
    }
}

/// One call of a step.
#[derive(Debug, Clone)]
pub struct StepCall<'a> {
    /// Operation it belongs to.
    pub operation: &'a str,
    /// Name of the step.
    pub step: &'a str,
    /// Must rise from call to call on one host.
    pub attempt: u64,
    /// Do or undo.
    pub verb: Verb,
    /// What to do.
    pub action: Kind,
}
