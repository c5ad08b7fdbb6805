//! The share of reads on a real HAProxy.

use std::sync::Arc;

use pgleap_proto::step::{StageBalancer, action::Kind};
use pgleap_proto::traffic::{Balancer, RouteReadsReply};

use crate::fake::certificates::Authority;
use crate::haproxy::{Haproxy, Named};
use crate::postgres::free_port;
use crate::{Agent, OPERATION, eventually};

fn stage(balancer: &Balancer) -> Kind {
    Kind::StageBalancer(StageBalancer {
        operation: OPERATION.into(),
        balancer: Some(balancer.clone()),
        weights_stay: false,
    })
}

fn total(reply: &RouteReadsReply, server: &str) -> u64 {
    reply.servers.iter().find(|state| state.server == server).unwrap().sessions_total
}

/// Asks for the share until it is the one in force.
async fn in_effect(agent: &Agent, balancer: &Balancer, percent: u32) {
    eventually("the share is in force", async || {
        let reply = agent.route(balancer, percent).await.unwrap();
        (reply.effective_percent == percent, reply)
    })
    .await;
}

const CHECK: &str = "check inter 50ms fall 1 rise 1";

/// o1 and n1 with a check, and one that is nobody's business.
fn backend(old: u16, new: u16, other: u16) -> Vec<String> {
    vec![
        format!("server o1 127.0.0.1:{old} weight 7 {CHECK}"),
        format!("server n1 127.0.0.1:{new} weight 5 {CHECK}"),
        format!("server other 127.0.0.1:{other} weight 0"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_move_by_percent_and_back_by_themselves() {
    let (o1, n1, other) = (Named::start("o1", 0), Named::start("n1", 0), Named::start("other", 0));
    let haproxy = Haproxy::start("admin", &backend(o1.port, n1.port, other.port)).await;
    let mut agent = Agent::start(&Arc::new(Authority::new())).await;
    let balancer = haproxy.balancer(&["o1"], &["n1"]);

    let refused = agent.route(&balancer, 10).await.unwrap_err();
    assert!(refused.message().contains("not staged"), "{refused}");
    agent.step(stage(&balancer)).await.unwrap();
    assert_eq!((haproxy.weight("o1"), haproxy.weight("n1"), haproxy.weight("other")), (1, 0, 0));
    assert_eq!(haproxy.connect(30, "n1"), 0);

    // A side is used only after it was seen up several times.
    in_effect(&agent, &balancer, 10).await;
    let before = agent.route(&balancer, 10).await.unwrap();
    assert_eq!((before.effective_percent, before.reason.as_str()), (10, ""));
    assert_eq!((haproxy.weight("o1"), haproxy.weight("n1")), (9, 1));
    let hits = haproxy.connect(100, "n1");
    assert!((8..=12).contains(&hits), "{hits} of 100 at 10 percent");
    let after = agent.route(&balancer, 75).await.unwrap();
    assert_eq!(total(&after, "n1") - total(&before, "n1"), u64::from(hits), "HAProxy counts the same");
    let hits = haproxy.connect(100, "n1");
    assert!((70..=80).contains(&hits), "{hits} of 100 at 75 percent");
    assert_eq!(agent.route(&balancer, 100).await.unwrap().effective_percent, 100);
    assert_eq!(haproxy.connect(30, "o1"), 0);

    // Somebody sets weights, then HAProxy forgets them all: the share comes back by itself.
    agent.route(&balancer, 50).await.unwrap();
    haproxy.ask("set server reads/n1 weight 200").unwrap();
    let even = || async { (haproxy.weight("o1") == 1 && haproxy.weight("n1") == 1, haproxy.weight("n1")) };
    eventually("a weight that somebody set is corrected", async || even().await).await;
    haproxy.reload().await;
    eventually("a reload keeps the share", async || even().await).await;

    // The new side is lost: all reads go back; it is there again: its share too.
    let port = n1.port;
    drop(n1);
    let lost = async || {
        let reply = agent.route(&balancer, 50).await.unwrap();
        (reply.effective_percent == 0 && reply.reason.contains("no server of the new side"), reply)
    };
    eventually("the way back is taken", lost).await;
    assert_eq!(haproxy.connect(30, "o1"), 30);
    assert_eq!(haproxy.weight("n1"), 0, "it gets nothing at the moment it is back");
    let n1 = Named::start("n1", port);
    let mut hesitated = false;
    let back = async || {
        let reply = agent.route(&balancer, 50).await.unwrap();
        hesitated |= reply.reason.contains("for a moment only");
        (reply.effective_percent == 50, reply)
    };
    eventually("the new side is used again", back).await;
    assert!(hesitated, "a side that comes and goes would take its reads along");

    // An agent that was away finds the share in its record.
    agent.stop().await;
    haproxy.reload().await;
    assert_eq!((haproxy.weight("o1"), haproxy.weight("n1")), (7, 5), "nobody keeps it");
    agent.run().await;
    eventually("the next agent keeps it", async || even().await).await;

    agent.undo(stage(&balancer)).await;
    assert_eq!((haproxy.weight("o1"), haproxy.weight("n1"), haproxy.weight("other")), (7, 5, 0));
    assert!(agent.route(&balancer, 50).await.unwrap_err().message().contains("not staged"));
    drop((o1, n1));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_stay_where_they_are_and_are_told_of() {
    let quiet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let o1 = quiet.local_addr().unwrap().port();
    let n1 = Named::start("n1", 0);
    let haproxy = Haproxy::start("admin", &backend(o1, n1.port, n1.port)[..2]).await;
    let agent = Agent::start(&Arc::new(Authority::new())).await;
    let balancer = haproxy.balancer(&["o1"], &["n1"]);
    agent.step(stage(&balancer)).await.unwrap();
    let session = std::net::TcpStream::connect(("127.0.0.1", haproxy.port)).unwrap();
    eventually("the session is with o1", async || {
        let reply = agent.route(&balancer, 0).await.unwrap();
        (reply.servers[0].sessions == 1 && reply.reason.is_empty(), reply)
    })
    .await;
    in_effect(&agent, &balancer, 100).await;
    let reply = agent.route(&balancer, 100).await.unwrap();
    assert!(reply.reason.contains("1 on o1"), "{}", reply.reason);
    // The server ends it as well: HAProxy waits for both.
    drop((session, quiet));
    eventually("it is over", async || {
        let reply = agent.route(&balancer, 100).await.unwrap();
        (reply.servers[0].sessions == 0 && reply.reason.is_empty(), reply)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_kept_is_refused_with_the_cure() {
    let server = Named::start("o1", 0);
    let agent = Agent::start(&Arc::new(Authority::new())).await;
    let lines = backend(server.port, server.port, server.port);
    let haproxy = Haproxy::start("operator", &lines).await;
    let refused = agent.step(stage(&haproxy.balancer(&["o1"], &["n1"]))).await.unwrap_err();
    assert!(refused.contains("level admin"), "{refused}");
    drop(haproxy);

    let haproxy = Haproxy::start("admin", &lines).await;
    let refused = |balancer: Balancer| agent.step(stage(&balancer));
    let error = refused(haproxy.balancer(&["o1"], &["n9"])).await.unwrap_err();
    assert!(error.contains("has no server n9"), "{error}");
    let error = refused(haproxy.balancer(&["o1"], &["o1"])).await.unwrap_err();
    assert!(error.contains("both sides"), "{error}");
    let error = refused(haproxy.balancer(&["o1"], &[])).await.unwrap_err();
    assert!(error.contains("servers on both sides"), "{error}");
    let other = Balancer { backend: "writes".into(), ..haproxy.balancer(&["o1"], &["n1"]) };
    let error = refused(other).await.unwrap_err();
    assert!(error.contains("does it have that backend"), "{error}");
    assert_eq!(haproxy.weight("o1"), 7, "nothing was changed");

    let balancer = haproxy.balancer(&["o1"], &["n1"]);
    refused(balancer.clone()).await.unwrap();
    let changed = Balancer { new_servers: vec!["other".into()], ..balancer.clone() };
    assert!(agent.route(&changed, 5).await.unwrap_err().message().contains("staged with another"));
    assert!(agent.route(&balancer, 101).await.unwrap_err().message().contains("0 to 100"));

    // Without HAProxy there is nothing to give back, and no reason to be stuck.
    drop(haproxy);
    let error = agent.route(&balancer, 5).await.unwrap_err();
    assert!(error.message().contains("is HAProxy running"), "{error}");
    agent.undo(stage(&balancer)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_has_a_weight_at_every_moment() {
    let (o1, n1) = (Named::start("o1", 0), Named::start("n1", 0));
    let haproxy = Haproxy::start("admin", &backend(o1.port, n1.port, free_port())).await;
    let agent = Agent::start(&Arc::new(Authority::new())).await;
    let balancer = haproxy.balancer(&["o1"], &["n1"]);
    agent.step(stage(&balancer)).await.unwrap();
    for percent in [100, 0, 100] {
        in_effect(&agent, &balancer, percent).await;
    }
    agent.undo(stage(&balancer)).await;
    assert_eq!((haproxy.weight("o1"), haproxy.weight("n1")), (7, 5));
    // It says so of the very moment at which it would turn a connection away.
    assert!(!haproxy.log().contains("has no server available"), "{}", haproxy.log());
}
