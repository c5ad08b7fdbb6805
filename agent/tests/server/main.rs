//! The server over real mutual TLS: who gets in, and what a caller of a step sees.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail them")]

mod agent;
#[path = "../fake/mod.rs"]
mod fake;
mod starting;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use agent::{Agent, directory};
use fake::caller::{self, GROUP};
use fake::certificates::Authority;
use fake::{Behaviour, Fake, World, request, until};
use futures::StreamExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgleap_agent::server::{Server, StartError, prepare};
use pgleap_agent::{group, peer_client};
use pgleap_proto::agent::agent_client::AgentClient;
use pgleap_proto::agent::{
    AgentIdentity, HelloReply, HelloRequest, LagRequest, ManifestRequest, StepEvent, StepRequest, Verb,
    finished::Outcome, step_event,
};
use pgleap_proto::caller::{Caller, Meant, NOT_MEANT};
use pgleap_proto::tls::{self, Role, TlsIdentity};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status, Streaming};

/// The events up to the end of the stream, in words.
async fn words(mut stream: Streaming<StepEvent>) -> Vec<String> {
    let mut words = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(event)) => words.push(match event.kind.unwrap() {
                step_event::Kind::Log(line) => line.line,
                step_event::Kind::Progress(progress) => progress.message,
                step_event::Kind::Finished(finished) => match finished.outcome.unwrap() {
                    Outcome::Done(done) => format!("done, already: {}", done.already),
                    Outcome::Blocked(blocked) => format!("blocked: {}", blocked.reason),
                    Outcome::Failed(failed) => format!("failed: {}", failed.message),
                },
            }),
            Ok(None) => return words,
            Err(status) => words.push(format!("{:?}", status.code())),
        }
    }
}

#[tokio::test]
async fn a_coordinator_is_greeted_and_the_journal_named() {
    let agent = Agent::start(Behaviour::Plain).await;
    let first = agent.hello(Role::Coordinator).await.unwrap();
    assert_eq!((first.host.as_str(), first.version.as_str()), ("db1", env!("CARGO_PKG_VERSION")));
    let (directory, authority, world) = agent.stop().await;
    let agent = Agent::start_on(directory, authority, world).await;
    let second = agent.hello(Role::Coordinator).await.unwrap();
    let (first, second) = (first.identity.unwrap(), second.identity.unwrap());
    assert_eq!(first.journal, second.journal);
    assert_ne!(first.incarnation, second.incarnation);
    assert!(first.generation < second.generation);
}

/// An operation's worth of agents: restarted, restored from a copy of its state directory, and the first one again.
#[tokio::test]
async fn an_agent_knows_its_past_and_a_restored_one_lacks_a_part_of_it() {
    let agent = Agent::start(Behaviour::Plain).await;
    let known = agent.greeted_by(GROUP, None).await.unwrap().identity;
    let stream = agent.run(request("s", 1, 1, Verb::Do)).await.unwrap();
    let events: Vec<StepEvent> = stream.map(Result::unwrap).collect().await;
    let written = events.last().unwrap().generation;
    let after = agent.greeted_by(GROUP, known.clone()).await.unwrap();
    assert!(after.remembers, "it went on writing");
    assert_eq!(after.identity.as_ref().unwrap().generation, written, "told with the outcome");
    let known = after.identity;

    let (directory, authority, world) = agent.stop().await;
    let image = std::fs::read(directory.path().join("journal.redb")).unwrap();
    let agent = Agent::start_on(directory, authority, world).await;
    let restarted = agent.greeted_by(GROUP, known.clone()).await.unwrap();
    assert!(restarted.remembers, "a restart");
    let status = agent.run_as(meaning(known.as_ref()), request("s", 1, 2, Verb::Do)).await.unwrap_err();
    assert_eq!(status.code(), NOT_MEANT, "{status}");
    assert!(status.message().contains("restarted, restored or replaced"), "{status}");
    drop(agent.run(request("s", 1, 2, Verb::Do)).await.unwrap());
    let newest = agent.greeted_by(GROUP, None).await.unwrap().identity;

    let (directory, authority, world) = agent.stop().await;
    std::fs::write(directory.path().join("journal.redb"), &image).unwrap();
    let calls = world.calls().len();
    let mut agent = Agent::start_on(directory, authority, world).await;
    for _ in 0..3 {
        assert!(!agent.greeted_by(GROUP, newest.clone()).await.unwrap().remembers, "restored");
        assert!(agent.greeted_by(GROUP, known.clone()).await.unwrap().remembers, "from then");
        let status = agent.run_as(meaning(newest.as_ref()), request("s", 1, 1, Verb::Do)).await.unwrap_err();
        assert_eq!(status.code(), NOT_MEANT, "{status}");
        // However often it is restarted since.
        let (directory, authority, world) = agent.stop().await;
        agent = Agent::start_on(directory, authority, world).await;
    }
    assert_eq!(agent.world.calls().len(), calls, "a call that means another agent acts on nothing");
}

fn meaning(identity: Option<&AgentIdentity>) -> Caller {
    Caller { group: GROUP.into(), meant: identity.map(Meant::from) }
}

#[tokio::test]
async fn the_first_group_that_gives_orders_is_obeyed_and_no_other() {
    let agent = Agent::start(Behaviour::Plain).await;
    // Before that everybody may look, and looking binds nothing.
    let identity = agent.greeted_by("second", None).await.unwrap().identity;
    let first = Caller { group: "first".into(), ..meaning(identity.as_ref()) };
    let second = Caller { group: "second".into(), ..meaning(identity.as_ref()) };
    let nobody = Caller { group: String::new(), ..first.clone() };
    let code = async |caller: &Caller, attempt| {
        let asked = agent.run_as(caller.clone(), request("s", 1, attempt, Verb::Do)).await;
        asked.map(drop).map_err(|status| status.code())
    };
    assert_eq!(code(&nobody, 1).await, Err(Code::InvalidArgument));
    assert_eq!(code(&Caller { meant: None, ..first.clone() }, 1).await, Err(Code::InvalidArgument));
    assert_eq!(code(&first, 1).await, Ok(()));
    assert_eq!(code(&second, 2).await, Err(Code::PermissionDenied));
    assert_eq!(code(&nobody, 3).await, Err(Code::PermissionDenied));
    let refused = agent.greeted_by("second", None).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    for told in ["group first", "belongs to second", "coordinator c1", "pgleap-agent forget-group"] {
        assert!(refused.message().contains(told), "{refused}");
    }

    let (directory, authority, world) = agent.stop().await;
    let config = fake::config(directory.path(), "db1");
    let agent = Agent::start_on(directory, authority, world).await;
    assert!(agent.greeted_by("second", None).await.is_err(), "it outlives a restart");
    let error = group::forget(&config, true).unwrap_err().to_string();
    assert!(error.contains("another pgleap-agent runs"), "{error}");
    let (directory, authority, world) = agent.stop().await;
    assert_eq!(group::forget(&config, false).unwrap().as_deref(), Some("first"));
    assert_eq!(group::forget(&config, false).unwrap(), None);
    let agent = Agent::start_on(directory, authority, world).await;
    let identity = agent.greeted_by("second", None).await.unwrap().identity;
    let second = Caller { group: "second".into(), ..meaning(identity.as_ref()) };
    drop(agent.run_as(second, request("s", 1, 5, Verb::Do)).await.unwrap());
    assert!(agent.greeted_by("first", None).await.is_err());
}

#[tokio::test]
async fn a_group_is_not_forgotten_while_its_steps_are_open() {
    let agent = Agent::start(Behaviour::Hold).await;
    let _running = agent.run(request("s", 1, 1, Verb::Do)).await.unwrap();
    until("the step acts", || agent.world.calls().contains(&"act")).await;
    let (directory, ..) = agent.stop().await;
    let config = fake::config(directory.path(), "db1");
    let error = group::forget(&config, false).unwrap_err().to_string();
    assert!(error.contains("s of operation c-000001") && error.contains("--abandon-steps"), "{error}");
    assert_eq!(group::forget(&config, true).unwrap().as_deref(), Some(GROUP));

    let elsewhere = self::directory();
    let error = group::forget(&fake::config(elsewhere.path(), "db1"), true).unwrap_err().to_string();
    assert!(error.contains("no agent has run"), "{error}");
}

#[tokio::test]
async fn every_other_role_is_refused() {
    let agent = Agent::start(Behaviour::Plain).await;
    for role in [Role::Agent, Role::Operator, Role::Viewer] {
        let status = agent.hello(role).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{role}");
        assert!(status.message().contains("coordinator is needed"), "{status}");
        let mut client = agent.client(role).await;
        let status = client.run_step(request("s", 1, 1, Verb::Do)).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{role}");
        let status = client.lag(LagRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{role}");
    }
    assert!(agent.world.calls().is_empty());
}

#[tokio::test]
async fn without_a_certificate_of_the_same_authority_nobody_gets_in() {
    let agent = Agent::start(Behaviour::Plain).await;
    let ca = std::fs::read(agent.directory.path().join("tls/ca.crt")).unwrap();
    let ca = tonic::transport::Certificate::from_pem(ca);
    let none = ClientTlsConfig::new().ca_certificate(ca).domain_name("db1.agent.pgleap.internal");
    // With TLS 1.3 a refused client learns it from its first call.
    let endpoint = Endpoint::from_shared(format!("https://{}", agent.address)).unwrap();
    let refused = match endpoint.tls_config(none).unwrap().connect().await {
        Ok(channel) => AgentClient::new(channel).hello(HelloRequest::default()).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "no certificate");

    let stranger = Authority::new().issue(&agent.directory.path().join("x"), Role::Coordinator, "c");
    assert!(agent.channel(&stranger).await.is_err(), "another authority");

    let plain = Endpoint::from_shared(format!("http://{}", agent.address)).unwrap().connect().await;
    let refused = match plain {
        Ok(channel) => AgentClient::new(channel).hello(HelloRequest::default()).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "plaintext");
}

#[tokio::test]
async fn peers_are_agents_and_find_the_host_they_mean() {
    let agent = Agent::start(Behaviour::Plain).await;
    let address = agent.address.to_string();
    let manifest = ManifestRequest::default;

    let identity = agent.holder(Role::Agent, "db2");
    let mut peer = peer_client::connect(&address, "db1", &identity).await.unwrap();
    let status = peer.manifest(manifest()).await.map(drop).unwrap_err();
    assert_ne!(status.code(), Code::PermissionDenied, "an agent may ask: {status}");

    let identity = agent.holder(Role::Coordinator, "c1");
    let mut peer = peer_client::connect(&address, "db1", &identity).await.unwrap();
    let status = peer.manifest(manifest()).await.map(drop).unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);

    let identity = agent.holder(Role::Agent, "db2");
    let error = peer_client::connect(&address, "db9", &identity).await.unwrap_err();
    assert!(error.message.contains("host db9") && error.message.contains(&address), "{error}");
}

#[tokio::test]
async fn nobody_there_and_nobody_answering_are_errors_that_say_so() {
    let directory = directory();
    let identity = Authority::new().issue(directory.path(), Role::Agent, "db2");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = peer_client::connect(&address, "db1", &identity).await.unwrap_err();
    assert!(error.message.contains("refused") && error.message.contains("running"), "{error}");
    let error = peer_client::connect("not an address", "db1", &identity).await.unwrap_err();
    assert!(error.message.contains("not an address"), "{error}");
}

#[tokio::test]
async fn a_step_tells_its_lines_and_its_outcome_last() {
    let agent = Agent::start(Behaviour::Plain).await;
    let events = words(agent.run(request("s", 1, 1, Verb::Do)).await.unwrap()).await;
    assert_eq!(events, ["acting", "done, already: false"]);
    let events = words(agent.run(request("s", 1, 1, Verb::Do)).await.unwrap()).await;
    assert_eq!(events, ["done, already: false"]);
}

#[tokio::test]
async fn a_second_stream_joins_and_the_loss_of_the_first_stops_nothing() {
    let agent = Agent::start(Behaviour::Hold).await;
    let first = agent.run(request("s", 1, 1, Verb::Do)).await.unwrap();
    until("the step acts", || agent.world.calls().contains(&"act")).await;
    drop(first);
    let second = agent.run(request("s", 1, 1, Verb::Do)).await.unwrap();
    agent.world.release();
    assert_eq!(words(second).await, ["acting", "done, already: false"]);
    assert_eq!(agent.world.calls(), ["probe", "act", "verify"]);
}

#[tokio::test]
async fn refusals_have_codes_a_coordinator_can_act_on() {
    let agent = Agent::start(Behaviour::Hold).await;
    let _running = agent.run(request("s", 2, 2, Verb::Do)).await.unwrap();
    let code = async |request| agent.run(request).await.map(drop).unwrap_err().code();
    assert_eq!(code(request("s", 1, 3, Verb::Do)).await, Code::Aborted);
    assert_eq!(code(request("s", 2, 1, Verb::Do)).await, Code::Aborted);
    assert_eq!(code(request("../s", 2, 3, Verb::Do)).await, Code::InvalidArgument);
    let _undoing = agent.run(request("s", 2, 3, Verb::Undo)).await.unwrap();
    assert_eq!(code(request("s", 2, 4, Verb::Do)).await, Code::FailedPrecondition);
}

#[tokio::test]
async fn a_shutdown_ends_the_stream_and_the_next_agent_takes_the_step_up() {
    let agent = Agent::start(Behaviour::Hold).await;
    let stream = agent.run(request("s", 1, 1, Verb::Do)).await.unwrap();
    until("the step acts", || agent.world.calls().contains(&"act")).await;
    let (directory, authority, world) = agent.stop().await;
    assert_eq!(words(stream).await, ["acting", "Unavailable"]);
    world.release();
    let agent = Agent::start_on(directory, authority, world).await;
    let events = words(agent.run(request("s", 1, 1, Verb::Do)).await.unwrap()).await;
    assert_eq!(events, ["acting", "done, already: false"]);
}
