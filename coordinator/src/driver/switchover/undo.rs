//! Back to the source, after the log has ruled out the decision for ever. A host that was given up is not waited for.

use futures::future::join_all;
use pgleap_proto::traffic::{AbortRequest, ResumeRequest};

use super::{Hand, Over};
use crate::plan::Side;
use crate::state::Command;

impl Hand<'_> {
    pub(super) async fn undo(&self) -> Result<(), Over> {
        let (from, to) = (self.switchover.to.other(), self.switchover.to);
        // Clients come first: they wait for the source only. The target stays fenced whatever becomes of it.
        let clients = async {
            self.abort(from).await?;
            self.resume(from).await
        };
        let (target, clients) = tokio::join!(self.abort(to), clients);
        target.and(clients)?;
        let (operation, attempt) = (self.ticket.operation.clone(), self.ticket.attempt);
        self.run.propose(Command::SwitchoverUndone { operation, attempt }).await?;
        Ok(())
    }

    async fn abort(&self, side: Side) -> Result<(), Over> {
        let request = AbortRequest {
            ticket: Some(self.ticket.clone()),
            cluster: Some(self.moving.cluster.clone()),
            side: side.message(),
            writer: self.switchover.to.other().message(),
            unopened: false,
        };
        let what = if side == self.switchover.to { "go on following" } else { "be opened" };
        let name = format!("the {side} leader");
        self.insist(self.moving.leader(side), &name, what, |mut client| {
            let request = request.clone();
            async move { client.abort(request).await }
        })
        .await
        .map(drop)
    }

    /// Every pooler to a side, each until it is there.
    pub(super) async fn resume(&self, side: Side) -> Result<(), Over> {
        let resumed = self.moving.poolers.iter().map(|at| async move {
            let request = ResumeRequest {
                ticket: Some(self.ticket.clone()),
                pooler: at.what.name.clone(),
                to: side.message(),
                definition: Some(at.what.clone()),
                old_leader: self.moving.cluster.old_leader.clone(),
                new_leader: self.moving.cluster.new_leader.clone(),
            };
            let name = format!("pooler {}", at.what.name);
            let what = format!("go on with the {side} leader");
            self.insist(at, &name, &what, |mut client| {
                let request = request.clone();
                async move { client.resume(request).await }
            })
            .await
            .map(drop)
        });
        join_all(resumed).await.into_iter().collect()
    }
}
