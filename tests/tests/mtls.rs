//! Who may do what, proven by knocking on every door with every certificate.
//!
//! Claims: there is no plaintext; a certificate of another CA opens nothing; an agent obeys only coordinators and shows
//! its files only to agents; the coordinator lets viewers read and operators act, and agents do neither; an agent that
//! is not who the fleet file says is not taken for it; and a whole fleet changes its CA while an operation runs, without any restart.

use std::time::Duration;

use anyhow::{Result, ensure};
use pgleap_proto::agent::agent_client::AgentClient;
use pgleap_proto::agent::peer_client::PeerClient;
use pgleap_proto::agent::{HelloRequest, ManifestRequest};
use pgleap_proto::tls::{self, Role, TlsFiles};
use pgleap_tests::harness::pgleap::Ran;
use pgleap_tests::harness::{Fleet, FleetOptions, eventually};
use pgleap_tests::scenario::LIMIT;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

async fn fleet() -> Result<Fleet> {
    fleet_of(1).await
}

async fn fleet_of(coordinators: usize) -> Result<Fleet> {
    let mut options = FleetOptions { coordinators, ..FleetOptions::default() };
    options.old.nodes.truncate(1);
    options.new_nodes.truncate(1);
    let fleet = Fleet::make(options).await?;
    fleet.apply().await?;
    Ok(fleet)
}

async fn as_holder(fleet: &Fleet, holder: &str, arguments: &[&str]) -> Result<Ran> {
    fleet.run_verb(fleet.holder(holder, arguments), arguments, Duration::from_secs(60)).await
}

async fn channel(fleet: &Fleet, host: &str, holder: &str) -> Result<Channel> {
    let identity = TlsFiles::in_directory(&fleet.base.join("pki").join(holder)).load()?;
    let address = fleet.agent_address(host).unwrap_or_default();
    Ok(identity.connect(&tls::endpoint(&address)?, Role::Agent, host).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_door_asks_who_is_there() -> Result<()> {
    let mut fleet = fleet().await?;

    // A second fleet's CA, with the same names.
    let foreign = fleet.base.join("pki/foreign-ca").to_string_lossy().into_owned();
    fleet.base.run(fleet.base.join("bin/pgleap"), &["pki", "init", "--dir", &foreign]).await?;
    fleet.issue(&foreign, "coordinator", "c1", "foreign-coordinator").await?;
    fleet.issue(&foreign, "operator", "alice", "foreign-operator").await?;

    // The agent's orders.
    let hello = fleet.agent("n1", "coordinator").await?.hello(HelloRequest::default()).await?.into_inner();
    assert_eq!(hello.host, "n1");
    for holder in ["operator", "viewer", "agent-o1"] {
        let refused = match fleet.agent("n1", holder).await?.hello(HelloRequest::default()).await {
            Ok(_) => anyhow::bail!("the agent obeys {holder}"),
            Err(status) => status,
        };
        assert_eq!(refused.code(), Code::PermissionDenied, "{holder}: {refused}");
    }
    // With the wrong CA the agent's own certificate is refused first; trusting it, the agent refuses.
    assert!(channel(&fleet, "n1", "foreign-coordinator").await.is_err());
    for file in ["tls.crt", "tls.key"] {
        let from = fleet.base.join("pki/foreign-coordinator").join(file);
        std::fs::create_dir_all(fleet.base.join("pki/mixed"))?;
        std::fs::copy(from, fleet.base.join("pki/mixed").join(file))?;
    }
    std::fs::copy(fleet.base.join("pki/ca/ca.crt"), fleet.base.join("pki/mixed/ca.crt"))?;
    let knock = async || -> Result<()> {
        AgentClient::new(channel(&fleet, "n1", "mixed").await?).hello(HelloRequest::default()).await?;
        Ok(())
    };
    assert!(knock().await.is_err(), "a foreign certificate was let in");
    // Another host's name does not fit the certificate.
    let identity = TlsFiles::in_directory(&fleet.base.join("pki/coordinator")).load()?;
    let address = fleet.agent_address("n1").unwrap_or_default();
    assert!(identity.connect(&tls::endpoint(&address)?, Role::Agent, "o1").await.is_err());
    // Nothing is said in plaintext.
    let plain = Endpoint::from_shared(format!("http://{address}"))?.connect().await;
    if let Ok(channel) = plain {
        assert!(
            AgentClient::new(channel).hello(HelloRequest::default()).await.is_err(),
            "plaintext was answered"
        );
    }

    // The agent's files.
    for (holder, may) in [("agent-o1", true), ("coordinator", false), ("operator", false), ("viewer", false)]
    {
        let mut peer = PeerClient::new(channel(&fleet, "n1", holder).await?);
        let request = ManifestRequest { operation: "none".into(), sample_percent: 1, ..Default::default() };
        let code = match peer.manifest(request).await {
            Ok(reply) => reply.into_inner().message().await.err().map_or(Code::Ok, |status| status.code()),
            Err(status) => status.code(),
        };
        // An agent is let in, and told that there is no such offer.
        assert_eq!(code != Code::PermissionDenied, may, "{holder}: {code:?}");
        assert_ne!(code, Code::Ok, "{holder} was shown files that nobody offered");
    }

    // The coordinator.
    let file = fleet.write_file()?.to_string_lossy().into_owned();
    let acts: [&[&str]; 4] = [
        &["fleet", "apply", &file],
        &["start", "ledger", "--accept-warnings"],
        &["cancel", "ledger", "--yes"],
        &["retry", "ledger"],
    ];
    for act in acts {
        for holder in ["viewer", "agent-o1", "coordinator"] {
            let ran = as_holder(&fleet, holder, act).await?;
            ensure!(ran.code == 1 && ran.stderr.contains("may not"), "{holder} {act:?}: {}", ran.text());
        }
    }
    for (holder, may) in [("viewer", true), ("operator", true), ("agent-o1", false)] {
        for look in [&["status"] as &[&str], &["fleet", "show"]] {
            let ran = as_holder(&fleet, holder, look).await?;
            ensure!((ran.code == 0) == may, "{holder} {look:?}: {}", ran.text());
        }
    }
    let ran = as_holder(&fleet, "foreign-operator", &["status"]).await?;
    ensure!(ran.code == 4, "a foreign operator: {}", ran.text());
    fleet.passed();
    Ok(())
}

/// An impostor: host o1's certificate answers at the address of n1's agent.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_must_be_who_the_fleet_file_says() -> Result<()> {
    let mut fleet = fleet().await?;
    for (host, agent) in [("n1", "agent-n1"), ("o1", "agent-o1")] {
        fleet.kill_agent(host);
        let directory = fleet.base.join("pki").join(agent);
        std::fs::rename(&directory, fleet.base.join(format!("pki/swap-{host}")))?;
    }
    std::fs::rename(fleet.base.join("pki/swap-n1"), fleet.base.join("pki/agent-o1"))?;
    std::fs::rename(fleet.base.join("pki/swap-o1"), fleet.base.join("pki/agent-n1"))?;
    // Its own certificate says another host than its configuration: it does not even start.
    let refused = match fleet.start_agent("n1").await {
        Ok(()) => anyhow::bail!("an agent runs with another host's certificate"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(refused.contains("n1") && refused.contains("o1"), "{refused}");
    fleet.passed();
    Ok(())
}

/// Whether an agent takes this holder's certificate; what it then thinks of the call is another matter.
async fn is_let_in(fleet: &Fleet, host: &str, holder: &str) -> bool {
    let Ok(channel) = channel(fleet, host, holder).await else { return false };
    match AgentClient::new(channel).hello(HelloRequest::default()).await {
        Ok(_) => true,
        Err(status) => {
            !matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
        }
    }
}

/// Waits until every agent and a coordinator take the certificates of these holders (a coordinator's and an operator's), or do not.
async fn until_let_in(fleet: &Fleet, coordinator: &str, operator: &str, wanted: bool) -> Result<()> {
    let what = format!("{coordinator} and {operator} to be let in: {wanted}");
    eventually(&what, Duration::from_secs(60), || async {
        for host in fleet.host_names() {
            if is_let_in(fleet, &host, coordinator).await != wanted {
                return Ok(None);
            }
        }
        let ran = as_holder(fleet, operator, &["status"]).await?;
        ensure!(matches!(ran.code, 0 | 4), "{}", ran.text());
        Ok(((ran.code == 0) == wanted).then_some(()))
    })
    .await
}

/// As docs/security.md says: both CAs are trusted, certificates of the new one, only the new one is trusted.
#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_changes_its_ca_while_an_operation_runs() -> Result<()> {
    let mut fleet = fleet_of(3).await?;
    let pki = fleet.base.join("pki");
    let path = |name: &str| pki.join(name).to_string_lossy().into_owned();
    let (old, new) = (path("ca/ca.crt"), path("ca2/ca.crt"));
    let pgleap = fleet.base.join("bin/pgleap");
    let mut holders = vec![("coordinator".to_owned(), "c1".to_owned(), "coordinator".to_owned())];
    holders.push(("operator".to_owned(), "alice".to_owned(), "operator".to_owned()));
    holders.extend(fleet.host_names().into_iter().map(|host| {
        let directory = format!("agent-{host}");
        ("agent".to_owned(), host, directory)
    }));

    let place = fleet.hold_phase("upgrade").await?;
    fleet.pgleap_ok(&["start", "ledger", "--accept-warnings"]).await?;
    fleet.held(&place.process, &place.name, LIMIT).await?;

    // Of the old CA, and nobody renews them.
    fleet.issue(&path("ca"), "coordinator", "c1", "old-coordinator").await?;
    fleet.issue(&path("ca"), "operator", "alice", "old-operator").await?;
    fleet.base.run(&pgleap, &["pki", "init", "--dir", &path("ca2")]).await?;
    let trust = async |directory: &str, cas: &[&str]| -> Result<()> {
        let out = path(directory);
        let mut arguments = vec!["pki", "trust", "--out", &out];
        cas.iter().for_each(|ca| arguments.extend(["--ca", *ca]));
        fleet.base.run(&pgleap, &arguments).await.map(drop)
    };
    let issue = async |role: &str, name: &str, directory: &str, cas: &[&str]| -> Result<()> {
        let (ca, out) = (path("ca2"), path(directory));
        let mut arguments = vec!["pki", "issue", "--dir", &ca, "--role", role, "--name", name, "--out", &out];
        cas.iter().for_each(|ca| arguments.extend(["--trust", *ca]));
        fleet.base.run(&pgleap, &arguments).await.map(drop)
    };
    let both = [old.as_str(), new.as_str()];
    for (role, name, prefix) in [("coordinator", "c1", "coordinator"), ("operator", "alice", "operator")] {
        issue(role, name, &format!("both-{prefix}"), &both).await?;
        issue(role, name, &format!("new-{prefix}"), &[&new]).await?;
        trust(&format!("old-{prefix}"), &both).await?;
    }
    ensure!(!is_let_in(&fleet, "n1", "both-coordinator").await, "a CA is trusted that nobody put there");

    for (_, _, directory) in &holders {
        trust(directory, &both).await?;
    }
    until_let_in(&fleet, "both-coordinator", "both-operator", true).await?;
    for (role, name, directory) in &holders {
        issue(role, name, directory, &both).await?;
    }
    // They trust only the new one: so it is certificates of the new one that daemons show.
    until_let_in(&fleet, "new-coordinator", "new-operator", true).await?;
    until_let_in(&fleet, "old-coordinator", "old-operator", true).await?;
    for (_, _, directory) in &holders {
        trust(directory, &[&new]).await?;
    }
    until_let_in(&fleet, "old-coordinator", "old-operator", false).await?;
    until_let_in(&fleet, "new-coordinator", "new-operator", true).await?;

    // Everybody has to connect anew to the next leader, and it to them; nobody was started again.
    fleet.kill_leader().await?;
    fleet.release(&place.process, &place.name)?;
    fleet.wait_done(LIMIT).await?;
    for host in fleet.host_names() {
        ensure!(!fleet.has_ended(&host), "the agent of {host} has ended");
    }
    fleet.passed();
    Ok(())
}
