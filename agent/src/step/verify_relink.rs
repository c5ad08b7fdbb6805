//! `verify_relink`: the relinked replica is compared with the leader, file by file, before it may start.
//!
//! Changes nothing. Its verdict is an output, not an error: a replica that differs is cloned anew by a later step.

use std::path::Path;

use async_trait::async_trait;
use pgleap_proto::step::{Output, VerifiedOutput, VerifyRelink, output};
use tonic::Code;

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::peer_client;
use crate::relink::compare::{CompareError, Tree, compare};
use crate::relink::layout::replica_tablespace;
use crate::relink::manifest::tablespace_root;
use crate::relink::offer::running_in;
use crate::relink::remote::{Layout, Leader, is_lost};
use crate::relink::walk::Root;

/// A comparison that broke off with the connection is begun again this often.
const ATTEMPTS: u32 = 5;
/// Files between two progress reports.
const REPORT_EVERY: u64 = 100;

/// See [`VerifyRelink`].
pub struct VerifyRelinkStep(pub VerifyRelink);

#[async_trait]
impl Step for VerifyRelinkStep {
    async fn probe(&self, _cx: &Context) -> Result<Probe> {
        if self.0.same_checkpoint {
            return Ok(Probe::Ready);
        }
        let why = "stopped at another checkpoint than the leader; it was not relinked";
        Ok(Probe::Done(verdict(unequal(vec![why.to_owned()]))))
    }

    async fn act(&self, _cx: &Context) -> Result<()> {
        // Proving is all there is to do: see `verify`.
        Ok(())
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        let (Some(node), Some(leader)) = (&self.0.node, &self.0.leader) else {
            return Err(StepError::new("verify_relink needs a node and a leader"));
        };
        let data = cx.confine(&node.data_dir)?;
        if let Some(pid) = running_in(data) {
            return Err(StepError::new(format!(
                "a server (process {pid}) runs in {}; it can be compared only while it is stopped: stop it, then retry",
                data.display()
            )));
        }
        let agent = Leader { host: &leader.host, agent: &self.0.leader_agent };
        for attempt in 1.. {
            let layout = agent.layout(cx).await?;
            let (trees, wrong_links) = self.trees(cx, &layout)?;
            let status = match self.compare(cx, &agent, trees).await {
                Ok(mut found) => {
                    found.equal &= wrong_links.is_empty();
                    found.differences.splice(0..0, wrong_links);
                    tell(cx, &found);
                    return Ok(verdict(found));
                }
                Err(CompareError::Here(error)) => return Err(StepError::new(format!("comparing: {error}"))),
                Err(CompareError::Leader(status)) => status,
            };
            match status.code() {
                // A server was started on the leader meanwhile: the proof cannot be given any more.
                Code::FailedPrecondition => return Ok(verdict(unequal(vec![status.message().to_owned()]))),
                _ if is_lost(&status) && attempt < ATTEMPTS => {
                    cx.report.log("pgleap", format!("comparing again: {}", status.message()));
                }
                _ => return Err(peer_client::refused(agent.host, "listing files", &status)),
            }
        }
        Err(StepError::new("the comparison was never made to its end"))
    }

    async fn undo(&self, _cx: &Context) -> Result<()> {
        Ok(())
    }
}

impl VerifyRelinkStep {
    async fn compare(
        &self,
        cx: &Context,
        leader: &Leader<'_>,
        trees: Vec<Tree>,
    ) -> Result<VerifiedOutput, CompareError> {
        let manifest = leader.manifest(cx, self.0.sample_percent).await.map_err(CompareError::Leader)?;
        let report = cx.report.clone();
        compare(manifest, trees, move |files| {
            if files.is_multiple_of(REPORT_EVERY) {
                report.progress(files, 0, "files", "compared with the leader");
            }
        })
        .await
    }

    /// The directories here that stand for the leader's, and tablespace links that lead elsewhere than they should.
    fn trees(&self, cx: &Context, layout: &Layout) -> Result<(Vec<Tree>, Vec<String>)> {
        let (Some(seed), Some(node), Some(leader)) = (&self.0.seed, &self.0.node, &self.0.leader) else {
            return Err(StepError::new("verify_relink needs a seed, a node and a leader"));
        };
        let (seed, data) = (cx.confine(&seed.data_dir)?, cx.confine(&node.data_dir)?);
        let root = |name: String, dir: &Path, start: &str| Root {
            name,
            dir: dir.to_owned(),
            start: start.to_owned(),
            wal: None,
        };
        let mut trees = vec![Tree { root: root("data".to_owned(), data, ""), twin: seed.to_owned() }];
        let mut wrong = Vec::new();
        for space in &layout.tablespaces {
            let location = replica_tablespace(leader, node, &space.location.to_string_lossy());
            let location = cx.confine(&location)?;
            let link = data.join("pg_tblspc").join(space.oid.to_string());
            if !std::fs::read_link(&link).is_ok_and(|target| target == location) {
                wrong.push(format!("{} does not lead to {}", link.display(), location.display()));
            }
            trees.push(Tree {
                root: root(tablespace_root(space.oid), location, &space.new),
                twin: location.to_owned(),
            });
        }
        Ok((trees, wrong))
    }
}

fn tell(cx: &Context, found: &VerifiedOutput) {
    cx.report.log(
        "pgleap",
        format!(
            "{} linked and {} copied files compared, {} of them by content: {}",
            found.linked_files,
            found.copied_files,
            found.hashed_files,
            if found.equal { "equal to the leader" } else { "NOT equal to the leader" }
        ),
    );
    for difference in &found.differences {
        cx.report.log("pgleap", difference.as_str());
    }
}

fn unequal(differences: Vec<String>) -> VerifiedOutput {
    VerifiedOutput { differences, ..VerifiedOutput::default() }
}

fn verdict(found: VerifiedOutput) -> Output {
    Output { kind: Some(output::Kind::Verified(found)) }
}
