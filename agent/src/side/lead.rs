//! Lead: after the decision, the target lets clients in.

use futures::future::{try_join, try_join_all};
use pgleap_proto::traffic::{LeadReply, LeadRequest};

use super::arm::Target;
use super::sessions::{Limit, Sessions, Watch};
use super::view::View;
use super::{Call, following, locks};
use crate::error::{Doing, Result};
use crate::fence;
use crate::pg::sql;

/// How long its workers may take to end, should it still follow.
const STOP_MS: u64 = 10_000;

/// `armed` spares connections when the try that was decided is still in memory.
pub(super) async fn run(call: &Call, armed: Option<Target>, request: LeadRequest) -> Result<LeadReply> {
    let mut watch = Watch::start();
    let view = View::of(&call.config, request.cluster, request.side)?;
    let armed = armed.filter(|armed| armed.view.node() == view.node() && !armed.sessions.are_closed());
    let _held = locks::hold(view.node()).await;
    match &armed {
        Some(armed) => {
            // Settle has ended the following: this look makes it certain, and nobody has to wait for it. The source is sealed.
            let lift = armed.fence.lift(armed.sessions.any()?);
            let ((), notes) = try_join(stop_following(&view, &armed.sessions), lift).await?;
            tell(&view, notes);
        }
        None => {
            let sessions = Sessions::open(&view).await?;
            stop_following(&view, &sessions).await?;
            watch.lap("following");
            tell(&view, fence::lift(view.node(), &view.cluster.operation).await?);
        }
    }
    watch.lap("open");
    pgleap_proto::failpoint::reach("side.led").await.doing(|| "leading")?;
    Ok(LeadReply { timings: watch.timings() })
}

/// Whoever takes writes follows nobody. Settle has seen to that; this is what makes it certain.
pub(super) async fn stop_following(view: &View, sessions: &Sessions) -> Result<()> {
    let limit = Limit::of_ms(STOP_MS);
    let stop = sessions.0.iter().map(|database| async move {
        if following::find(view, database).await?.enabled {
            following::stop(view, database, limit).await
        } else {
            Ok(())
        }
    });
    try_join_all(stop).await.map(drop)
}

pub(super) fn tell(view: &View, notes: Vec<String>) {
    for note in notes {
        tracing::warn!(node = view.node().name, "{note}");
    }
}

/// Refuses to open what is not a primary: a standby takes no writes.
pub(super) async fn check_primary(view: &View) -> Result<()> {
    let session = sql::connect_any(view.node()).await?;
    super::sessions::check_primary(view, &session).await.map(drop)
}
