//! Follow: after the decision, the side that took writes follows the other from the decided positions on, and stays fenced.

use pgleap_proto::traffic::{FollowReply, FollowRequest};

use super::sessions::{Limit, Sessions, Watch};
use super::view::View;
use super::{Call, following, locks};
use crate::error::{Doing, Result, StepError};
use crate::fence;

/// How long is waited for the workers: they go on starting after that, and the caller asks again. Until 15 the launcher starts
/// workers at most once in wal_retrieve_retry_interval (5 s), so some databases may wait for that; no client does.
const START_MS: u64 = 20_000;

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
    following::begin_at(&view, &sessions, &request.positions).await?;
    watch.lap("enabled");
    // The register speaks for the fence from now on.
    call.records.remove(&call.ticket.operation)?;
    drop(held);
    following::wait_running(&view, &sessions, Limit::of_ms(START_MS)).await?;
    watch.lap("running");
    pgleap_proto::failpoint::reach("side.followed").await.doing(|| "following")?;
    Ok(FollowReply { timings: watch.timings() })
}
