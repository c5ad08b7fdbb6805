//! Reads between the sides: shares on a real HAProxy, and hybrid lag on real PostgreSQL of two majors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may fail them")]
#![allow(clippy::print_stdout, reason = "tests say what they do")]

#[path = "../fake/mod.rs"]
mod fake;
mod haproxy;
mod heart;
mod lag;
mod peers;
#[path = "../postgres/mod.rs"]
mod postgres;
mod share;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fake::caller::Greeted;
use fake::certificates::Authority;
use pgleap_agent::context::Context;
use pgleap_agent::jobs::Jobs;
use pgleap_agent::report::Reporter;
use pgleap_agent::server::{Server, prepare};
use pgleap_agent::step::{self, Probe};
use pgleap_proto::agent::Fence;
use pgleap_proto::step::{Action, action};
use pgleap_proto::tls::{self, Role};
use pgleap_proto::traffic::traffic_client::TrafficClient;
use pgleap_proto::traffic::{Balancer, RouteReadsReply, RouteReadsRequest, Ticket};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Status;

const OPERATION: &str = "app-abc123";

/// An agent of host db1 that can be ended and started again on the same state.
struct Agent {
    directory: TempDir,
    authority: Arc<Authority>,
    health: u16,
    check: u16,
    traffic: Option<TrafficClient<Greeted>>,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Agent {
    async fn start(authority: &Arc<Authority>) -> Agent {
        let directory =
            tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o700)).tempdir().unwrap();
        authority.issue(&directory.path().join("tls"), Role::Agent, "db1");
        let (health, check) = (postgres::free_port(), postgres::free_port());
        let mut agent =
            Agent { directory, authority: authority.clone(), health, check, traffic: None, running: None };
        agent.run().await;
        agent
    }

    async fn run(&mut self) {
        let mut config = fake::config(self.path(), "db1");
        config.health_listen = Some(([127, 0, 0, 1], self.health).into());
        config.agent_check_listen = Some(([127, 0, 0, 1], self.check).into());
        let server = Server::bind(prepare(config).unwrap(), Arc::new(step::of)).unwrap();
        let address = server.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            let ended = async { drop(stopped.await) };
            server.serve(ended).await.unwrap();
        });
        self.running = Some((stop, served));
        let identity = self.authority.issue(&self.path().join("coordinator"), Role::Coordinator, "c1");
        let endpoint = tls::endpoint(&address.to_string()).unwrap();
        let channel = identity.connect(&endpoint, Role::Agent, "db1").await.unwrap();
        self.traffic = Some(TrafficClient::new(fake::caller::greet(channel).await));
    }

    /// Ends it and waits until nothing of it is left.
    async fn stop(&mut self) {
        self.traffic = None;
        let (stop, served) = self.running.take().unwrap();
        drop(stop);
        served.await.unwrap();
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn context(&self) -> Context {
        let report = Reporter::default();
        Context {
            finishing: false,
            operation: OPERATION.into(),
            step: "step".into(),
            fence: Fence { term: 1, attempt: 1 },
            config: Arc::new(fake::config(self.path(), "db1")),
            tls: fake::no_tls(self.path()),
            jobs: Jobs::new(self.path().join("jobs"), report.clone()),
            report,
        }
    }

    /// Probe, act unless done, verify; then it has to be done, and to be done again when it is run again.
    async fn step(&self, kind: action::Kind) -> Result<(), String> {
        let cx = self.context();
        let step = step::of(Action { kind: Some(kind) }).unwrap();
        let told = |error: pgleap_agent::error::StepError| error.message;
        if step.probe(&cx).await.map_err(told)? == Probe::Ready {
            step.act(&cx).await.map_err(told)?;
            step.verify(&cx).await.map_err(told)?;
        }
        assert!(matches!(step.probe(&cx).await.unwrap(), Probe::Done(_)));
        step.act(&cx).await.map_err(told)?;
        step.verify(&cx).await.map(drop).map_err(told)
    }

    async fn undo(&self, kind: action::Kind) {
        let step = step::of(Action { kind: Some(kind) }).unwrap();
        for _ in 0..2 {
            step.undo(&self.context()).await.unwrap();
        }
    }

    async fn route(&self, balancer: &Balancer, percent: u32) -> Result<RouteReadsReply, Status> {
        let ticket = Ticket { operation: OPERATION.into(), term: 1, attempt: 1 };
        let request = RouteReadsRequest { ticket: Some(ticket), balancer: Some(balancer.clone()), percent };
        self.traffic.clone().unwrap().route_reads(request).await.map(|reply| reply.into_inner())
    }

    /// Status and body of an HTTP request.
    fn http(&self, method: &str, path: &str) -> (u16, String) {
        let answer = talk(self.health, &format!("{method} {path} HTTP/1.0\r\n\r\n"));
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        (status.unwrap_or_else(|| panic!("no answer to {path}: {answer:?}")), body.unwrap_or_default())
    }

    fn get(&self, path: &str) -> u16 {
        self.http("GET", path).0
    }

    fn figures(&self, node: &str) -> serde_json::Value {
        serde_json::from_str(&self.http("GET", &format!("/{node}/lag")).1).unwrap()
    }
}

/// Sends and reads to the end.
fn talk(port: u16, text: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A connection that is closed with something unread ends with an error after the answer.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Waits until it holds; what is seen last is said when it never does.
async fn eventually<S: std::fmt::Debug>(what: &str, mut look: impl AsyncFnMut() -> (bool, S)) {
    let begun = Instant::now();
    loop {
        let (holds, seen) = look().await;
        if holds {
            println!("{what}: after {} ms", begun.elapsed().as_millis());
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "never happened: {what}; last seen: {seen:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
