//! `check`: facts from every agent, judged; then, unless quick, the rehearsal on the new leader's host with its log live.

use pgleap_proto::agent::{Finished, finished, step_event};
use pgleap_proto::fleet::finding::Severity;
use pgleap_proto::fleet::{CheckEvent, CheckRequest, CheckSummary, Finding, check_event};
use pgleap_proto::step::Rehearse;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::error::{cluster, refused, spec};
use super::{Api, Events};
use crate::check::{Facts, rehearsal, run};
use crate::driver::explain_status;
use crate::fleet::ClusterSpec;

/// Name of the rehearsal among the checks.
pub(crate) const REHEARSAL: &str = "rehearsal";

impl Api {
    pub(super) async fn run_check(&self, request: CheckRequest) -> Result<Events<CheckEvent>, Status> {
        let state = self.raft.read().await.map_err(refused)?.state;
        let fleet = spec(&state)?;
        let cluster = cluster(&fleet, &request.cluster)?.clone();
        let (out, events) = mpsc::channel(64);
        let run = Run { api: self.clone(), cluster, out, summary: CheckSummary::default() };
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let closed = run.out.clone();
            tokio::select! {
                // Who asked has gone; the agents clean up after themselves.
                () = closed.closed() => {}
                () = stop.cancelled() => {}
                _ = run.go(request.quick) => {}
            }
        });
        Ok(Box::pin(ReceiverStream::new(events)))
    }
}

struct Run {
    api: Api,
    cluster: ClusterSpec,
    out: mpsc::Sender<Result<CheckEvent, Status>>,
    summary: CheckSummary,
}

impl Run {
    async fn go(mut self, quick: bool) -> Option<()> {
        let facts = self.api.agents.facts(&self.cluster).await;
        for finding in run(&self.cluster, &facts) {
            self.finding(finding).await?;
        }
        // In a move no schema is restored anywhere.
        if !quick && !self.cluster.is_move() {
            self.rehearse(&facts).await?;
        }
        self.send(check_event::Kind::Summary(self.summary)).await
    }

    async fn rehearse(&mut self, facts: &Facts) -> Option<()> {
        let Some((host, rehearse)) = rehearsal(&self.cluster, facts) else {
            let message = "not rehearsed, because it is not known where from".to_owned();
            let cure = "cure the errors of the other checks and check again".to_owned();
            return self.verdict(Severity::Note, self.cluster.name.clone(), message, cure).await;
        };
        let subject = format!("host {host}");
        match self.ask(&host, rehearse).await? {
            Ok(Finished { outcome: Some(finished::Outcome::Done(_)) }) => {
                self.verdict(Severity::Ok, subject, String::new(), String::new()).await
            }
            Ok(Finished { outcome: Some(finished::Outcome::Failed(failed)) }) => {
                let message = [vec![failed.message], failed.evidence].concat().join("\n    ");
                let cure = "correct what it names and check again".to_owned();
                self.verdict(Severity::Error, subject, message, cure).await
            }
            Ok(Finished { outcome: Some(finished::Outcome::Blocked(blocked)) }) => {
                self.verdict(Severity::Error, subject, blocked.reason, "check again later".to_owned()).await
            }
            Ok(Finished { outcome: None }) => {
                let message = "it ended without an outcome".to_owned();
                self.verdict(Severity::Error, subject, message, "check again".to_owned()).await
            }
            Err(why) => {
                let message = format!("it could not be run: {why}");
                let cure = "see that the agent runs there and check again".to_owned();
                self.verdict(Severity::Error, subject, message, cure).await
            }
        }
    }

    /// Runs it, its lines passed on as they come. The outer none: who asked has gone.
    async fn ask(&self, host: &str, rehearse: Rehearse) -> Option<Result<Finished, String>> {
        let address = self.cluster.agents().get(host).cloned().unwrap_or_default();
        let mut client = match self.api.agents.client(host, &address).await {
            Ok(client) => client,
            Err(error) => return Some(Err(error.to_string())),
        };
        let mut events = match client.rehearse(rehearse).await {
            Ok(events) => events.into_inner(),
            Err(status) => return Some(Err(explain_status(&status))),
        };
        loop {
            match events.message().await.map(|event| event.map(|event| event.kind)) {
                Ok(Some(Some(step_event::Kind::Log(line)))) => {
                    self.send(check_event::Kind::Log(line)).await?
                }
                Ok(Some(Some(step_event::Kind::Finished(finished)))) => return Some(Ok(finished)),
                Ok(Some(_)) => {}
                Ok(None) => return Some(Err("the agent ended it without an outcome".to_owned())),
                Err(status) => return Some(Err(explain_status(&status))),
            }
        }
    }

    async fn verdict(
        &mut self,
        severity: Severity,
        subject: String,
        message: String,
        cure: String,
    ) -> Option<()> {
        let why =
            "pg_upgrade restores the schema into the new major; what fails there, stops the upgrade midway";
        self.finding(Finding {
            check: REHEARSAL.to_owned(),
            severity: severity.into(),
            subject,
            message,
            why: why.to_owned(),
            cure,
        })
        .await
    }

    async fn finding(&mut self, finding: Finding) -> Option<()> {
        let CheckSummary { ok, notes, warnings, errors } = &mut self.summary;
        *match finding.severity() {
            Severity::Ok => ok,
            Severity::Note => notes,
            Severity::Warning => warnings,
            Severity::Error => errors,
        } += 1;
        self.send(check_event::Kind::Finding(finding)).await
    }

    /// None when who asked has gone.
    async fn send(&self, kind: check_event::Kind) -> Option<()> {
        self.out.send(Ok(CheckEvent { kind: Some(kind) })).await.ok()
    }
}
