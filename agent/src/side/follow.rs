//! Follow: after the decision, the side that took writes follows the other from the decided positions on, and stays fenced.

use futures::future::try_join_all;
use pgleap_proto::Lsn;
use pgleap_proto::traffic::{FollowReply, FollowRequest};

use super::sessions::{Limit, Sessions, Watch};
use super::view::View;
use super::{Call, following, locks};
use crate::error::{Doing, Result, StepError};
use crate::fence;

/// How long is waited for the workers: they go on starting after that, and the caller asks again.
const START_MS: u64 = 8_000;

pub(super) async fn run(call: &Call, request: FollowRequest) -> Result<FollowReply> {
    let mut watch = Watch::start();
    let view = View::of(&call.config, request.cluster, request.side)?;
    let sessions = Sessions::open(&view).await?;
    watch.lap("connected");
    let held = locks::hold(view.node()).await;
    let state = fence::state_by(sessions.any()?).await?;
    if !state.is_fenced() {
        return Err(StepError::new(format!(
            "node {} should follow the other side, but is {}; fence it (resume the operation) before it follows",
            view.node().name,
            state.describe()
        )));
    }
    let begin = sessions.0.iter().map(|database| {
        let name = &database.facts.database;
        let at = request.positions.iter().find(|at| at.database == *name);
        following::begin_at(&view, database, Lsn(at.map_or(0, |at| at.lsn)))
    });
    try_join_all(begin).await?;
    watch.lap("enabled");
    // The register speaks for the fence from now on.
    call.records.remove(&call.ticket.operation)?;
    drop(held);
    following::wait_running(&view, &sessions, Limit::of_ms(START_MS)).await?;
    watch.lap("running");
    pgleap_proto::failpoint::reach("side.followed").await.doing(|| "following")?;
    Ok(FollowReply { timings: watch.timings() })
}
