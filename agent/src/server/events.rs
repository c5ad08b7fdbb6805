//! A run as the stream a caller gets: what was said lately, what is said from now on, and the outcome last, once.

use std::sync::Arc;

use pgleap_proto::agent::{Finished, StepEvent, step_event};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Answers;
use crate::journal::Journal;
use crate::run::Watch;

/// Events waiting for a slow caller; beyond them the oldest ones are left out.
const WAITING: usize = 64;

/// The run's events, with how far the journal has come at its end, when there is one. Dropping the stream leaves the run alone.
pub(super) fn stream(watch: Watch, journal: Option<Arc<Journal>>) -> Answers<StepEvent> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let Watch { recent, events, finished } = watch;
    tokio::spawn(async move {
        let sent = forward(&sender, recent, events, finished.clone()).await;
        if sent.is_some() {
            let generation = || journal.map(|journal| journal.identity().generation).unwrap_or_default();
            let last = last(finished).await.map(|event| StepEvent { generation: generation(), ..event });
            let _ = sender.send(last).await;
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

/// Sends everything but the outcome; none when the caller has gone.
async fn forward(
    sender: &mpsc::Sender<Result<StepEvent, Status>>,
    recent: Vec<StepEvent>,
    mut events: broadcast::Receiver<StepEvent>,
    mut finished: watch::Receiver<Option<Finished>>,
) -> Option<()> {
    for event in recent {
        sender.send(Ok(event)).await.ok()?;
    }
    loop {
        tokio::select! {
            // Events first: whatever was said before the outcome is sent before it.
            biased;
            event = events.recv() => match event {
                Ok(event) => sender.send(Ok(event)).await.ok()?,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Some(()),
            },
            () = known(&mut finished) => return Some(()),
            () = sender.closed() => return None,
        }
    }
}

/// Resolves when there is an outcome, or never will be.
async fn known(finished: &mut watch::Receiver<Option<Finished>>) {
    let _ = finished.wait_for(Option::is_some).await;
}

async fn last(mut finished: watch::Receiver<Option<Finished>>) -> Result<StepEvent, Status> {
    let outcome = match finished.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone(),
        Err(_) => None,
    };
    let gone =
        || Status::unavailable("the agent shuts down before the step has ended; ask again when it is back");
    let outcome = outcome.ok_or_else(gone)?;
    Ok(StepEvent { kind: Some(step_event::Kind::Finished(outcome)), generation: 0 })
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;
    use crate::report::Reporter;

    fn outcome(already: bool) -> Finished {
        use pgleap_proto::agent::{Done, finished};
        Finished { outcome: Some(finished::Outcome::Done(Done { output: None, already })) }
    }

    fn watch_of(report: &Reporter, finished: &watch::Sender<Option<Finished>>) -> Watch {
        let (recent, events) = report.watch();
        Watch { recent, events, finished: finished.subscribe() }
    }

    async fn kinds(stream: Answers<StepEvent>) -> Vec<String> {
        let name = |event: Result<StepEvent, Status>| match event.map(|e| e.kind) {
            Ok(Some(step_event::Kind::Log(line))) => line.line,
            Ok(Some(step_event::Kind::Finished(_))) => "finished".to_owned(),
            Ok(other) => format!("{other:?}"),
            Err(status) => format!("{:?}", status.code()),
        };
        stream.map(name).collect().await
    }

    #[tokio::test]
    async fn the_outcome_comes_last_and_once() {
        let report = Reporter::default();
        let finished = watch::Sender::new(None);
        report.log("t", "before");
        let stream = stream(watch_of(&report, &finished), None);
        report.log("t", "after");
        finished.send_replace(Some(outcome(false)));
        assert_eq!(kinds(stream).await, ["before", "after", "finished"]);
        assert_eq!(
            kinds(super::stream(watch_of(&report, &finished), None)).await,
            ["before", "after", "finished"]
        );
    }

    #[tokio::test]
    async fn a_run_that_ended_long_ago_has_only_its_outcome() {
        let finished = watch::Sender::new(Some(outcome(true)));
        let watch = watch_of(&Reporter::default(), &finished);
        drop(finished);
        assert_eq!(kinds(stream(watch, None)).await, ["finished"]);
    }

    #[tokio::test]
    async fn an_abandoned_run_ends_in_an_error_that_invites_to_ask_again() {
        let report = Reporter::default();
        let finished = watch::Sender::new(None);
        let stream = stream(watch_of(&report, &finished), None);
        report.log("t", "said");
        drop(finished);
        assert_eq!(kinds(stream).await, ["said", "Unavailable"]);
    }
}
