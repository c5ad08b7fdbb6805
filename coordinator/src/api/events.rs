//! `events`: what is kept, then, if asked to follow, what comes; with the tools' lines if asked for them.

use pgleap_proto::fleet::{EventsRequest, OperationEvent};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::error::{find, refused};
use super::{Api, Events};
use crate::driver::LiveLine;
use crate::raft::View;
use crate::state::events::Event;
use crate::state::{Operation, State};

impl Api {
    pub(super) async fn stream_events(
        &self,
        request: EventsRequest,
    ) -> Result<Events<OperationEvent>, Status> {
        let EventsRequest { name, follow, logs } = request;
        let view = self.raft.read().await.map_err(refused)?;
        let only = match name.as_str() {
            "" => None,
            name => Some(find(&view.state, name)?.id.clone()),
        };
        let (out, events) = mpsc::channel(64);
        let (kept, lines) = self.live.lines(only.as_deref());
        let kept: Vec<OperationEvent> = match logs {
            true => kept.iter().map(|line| from_line(line, &view.state)).collect(),
            false => Vec::new(),
        };
        let (view, stop) = (self.raft.watch(), self.stop.clone());
        let follower = Follower { only, logs, seen: 0, over: false, view, lines, stop, out };
        tokio::spawn(follower.run(kept, follow));
        Ok(Box::pin(ReceiverStream::new(events)))
    }
}

struct Follower {
    only: Option<String>,
    logs: bool,
    /// Raft index up to which events were sent.
    seen: u64,
    /// What was sent ends with the end of the one operation that is followed.
    over: bool,
    view: watch::Receiver<View>,
    lines: broadcast::Receiver<LiveLine>,
    stop: CancellationToken,
    out: mpsc::Sender<Result<OperationEvent, Status>>,
}

/// The reader has gone.
struct Gone;

impl Follower {
    async fn run(mut self, kept: Vec<OperationEvent>, follow: bool) {
        let _gone: Result<(), Gone> = async {
            let mut first = self.news();
            first.extend(kept);
            // As text, times of different precision do not sort.
            first.sort_by_cached_key(|event| event.at.parse::<jiff::Timestamp>().ok());
            self.send(first).await?;
            while follow && !self.over {
                self.next().await?;
            }
            Ok(())
        }
        .await;
    }

    async fn next(&mut self) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.out.closed() => Err(Gone),
            () = self.stop.cancelled() => {
                let _ = self.out.send(Err(Status::unavailable("the coordinator is stopping"))).await;
                Err(Gone)
            }
            line = self.lines.recv(), if self.logs => match line {
                Ok(line) if self.is_shown(&line.operation) => {
                    let state = self.view.borrow().state.clone();
                    self.send(vec![from_line(&line, &state)]).await
                }
                Ok(_) => Ok(()),
                Err(RecvError::Lagged(count)) => {
                    self.send(vec![left_out(count)]).await
                }
                Err(RecvError::Closed) => Err(Gone),
            },
            changed = self.view.changed() => {
                changed.map_err(|_| Gone)?;
                let news = self.news();
                self.send(news).await
            }
        }
    }

    /// Events after those already sent, in the order of the log.
    fn news(&mut self) -> Vec<OperationEvent> {
        let state = self.view.borrow_and_update().state.clone();
        let shown = state.operations.values().filter(|operation| self.is_shown(&operation.id));
        let mut news: Vec<OperationEvent> = shown
            .flat_map(|operation| {
                let after = operation.events.iter().filter(|event| event.index > self.seen);
                after.map(|event| from_event(event, operation)).collect::<Vec<_>>()
            })
            .collect();
        news.sort_by_key(|event| event.index);
        self.seen = state.applied;
        let active = |id: &String| state.operations.get(id).is_some_and(|operation| operation.is_active());
        self.over = self.only.as_ref().is_some_and(|id| !active(id));
        news
    }

    fn is_shown(&self, operation: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == operation)
    }

    async fn send(&self, events: Vec<OperationEvent>) -> Result<(), Gone> {
        for event in events {
            self.out.send(Ok(event)).await.map_err(|_| Gone)?;
        }
        Ok(())
    }
}

fn from_event(event: &Event, operation: &Operation) -> OperationEvent {
    OperationEvent {
        index: event.index,
        at: event.at.to_string(),
        operation: operation.id.clone(),
        step: event.step.clone(),
        host: host_of(operation, &event.step),
        kind: event.kind.clone(),
        message: event.message.clone(),
        by: event.by.clone(),
    }
}

fn from_line(line: &LiveLine, state: &State) -> OperationEvent {
    let operation = state.operations.get(&line.operation);
    OperationEvent {
        index: 0,
        at: line.at.to_string(),
        operation: line.operation.clone(),
        step: line.step.clone(),
        host: operation.map(|operation| host_of(operation, &line.step)).unwrap_or_default(),
        kind: "log".to_owned(),
        message: format!("{}: {}", line.log.source, line.log.line),
        by: String::new(),
    }
}

fn left_out(count: u64) -> OperationEvent {
    OperationEvent {
        at: jiff::Timestamp::now().to_string(),
        kind: "log".to_owned(),
        message: format!(
            "pgleap: {count} lines were left out here, because they came faster than they were read"
        ),
        ..OperationEvent::default()
    }
}

fn host_of(operation: &Operation, step: &str) -> String {
    operation.plan.step(step).map(|step| step.host.clone()).unwrap_or_default()
}
