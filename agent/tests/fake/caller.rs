//! What a coordinator says with its calls, once it has greeted the agent.

use pgleap_proto::agent::agent_client::AgentClient;
use pgleap_proto::agent::{AgentIdentity, HelloRequest};
use pgleap_proto::caller::{Caller, Meant};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

/// The group that tests play.
pub const GROUP: &str = "group of the test";

/// A connection that says who asks, and means whom it greeted.
pub type Greeted = InterceptedService<Channel, Caller>;

/// Who answers.
pub async fn identity(channel: Channel) -> AgentIdentity {
    let caller = Caller { group: GROUP.into(), meant: None };
    let mut client = AgentClient::with_interceptor(channel, caller);
    client.hello(HelloRequest::default()).await.unwrap().into_inner().identity.unwrap()
}

/// Greets the agent.
pub async fn greet(channel: Channel) -> Greeted {
    let meant = Meant::from(&identity(channel.clone()).await);
    InterceptedService::new(channel, Caller { group: GROUP.into(), meant: Some(meant) })
}
