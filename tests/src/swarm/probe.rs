//! How long an operator waits while everything works: three loops beside the load, each with one request at a time.
//!
//! - `commit`: `switch-reads` on the probe, back and forth. Its answer comes when the leader has confirmed that it leads
//!   (a round of heartbeats), a majority has the entry on disk, and the state has it applied.
//! - `status`: of one operation, which is a linearizable read and the figures of its subscriptions' lag.
//! - `status of all`: the same for every operation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use pgleap_proto::fleet::SwitchReadsRequest;
use tokio::sync::watch;

use super::layout::PROBE;
use super::operator::{Operator, request_id};

/// Between two requests of a loop.
const COMMIT_EVERY: Duration = Duration::from_millis(25);
const STATUS_EVERY: Duration = Duration::from_millis(50);
const ALL_EVERY: Duration = Duration::from_secs(1);

/// Times of answers, in milliseconds.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// Of a small change.
    pub commit: Vec<f64>,
    /// Of the status of one operation.
    pub status: Vec<f64>,
    /// Of the status of all.
    pub all: Vec<f64>,
}

/// Asks until told to stop.
#[derive(Debug)]
pub struct Probe {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<Result<Answers>>,
}

impl Probe {
    /// Begins to ask.
    pub fn begin(operator: Arc<Operator>) -> Probe {
        let (stop, told) = watch::channel(false);
        let task = tokio::spawn(async move {
            let (commit, status, all) = tokio::join!(
                repeat(COMMIT_EVERY, told.clone(), |turn| set_reads(&operator, turn)),
                repeat(STATUS_EVERY, told.clone(), |_| async { operator.status(PROBE).await.map(drop) }),
                repeat(ALL_EVERY, told.clone(), |_| async { operator.status("").await.map(drop) }),
            );
            Ok(Answers { commit: commit?, status: status?, all: all? })
        });
        Probe { stop, task }
    }

    /// Ends it; the answers so far.
    ///
    /// # Errors
    /// When a request was refused.
    pub async fn end(self) -> Result<Answers> {
        self.stop.send_replace(true);
        self.task.await?
    }
}

async fn set_reads(operator: &Operator, turn: u32) -> Result<()> {
    let request = SwitchReadsRequest { name: PROBE.into(), percent: turn % 100, request_id: request_id() };
    let told = operator.ask("switch-reads", |mut client| {
        let request = request.clone();
        async move { client.switch_reads(request).await }
    });
    told.await.map(drop)
}

async fn repeat<F, Fut>(every: Duration, told: watch::Receiver<bool>, mut ask: F) -> Result<Vec<f64>>
where
    F: FnMut(u32) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let mut took = Vec::new();
    let mut next = tokio::time::interval(every);
    next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for turn in 0.. {
        next.tick().await;
        if *told.borrow() {
            break;
        }
        let asked = Instant::now();
        ask(turn).await?;
        took.push(asked.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(took)
}
