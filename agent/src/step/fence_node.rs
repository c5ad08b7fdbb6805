//! Keeps every client out of the new leader from before its first start until it takes writes. See [`crate::fence`].

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::{FenceNode, Output};

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::fence::{self, Fence};

/// How long clients may take to leave when the server runs.
const EVICT: Duration = Duration::from_secs(30);

/// See [`FenceNode`].
pub struct FenceNodeStep(pub FenceNode);

impl FenceNodeStep {
    fn node(&self) -> Result<&Node> {
        super::given(&self.0.node, "node")
    }

    async fn fence(&self, cx: &Context) -> Result<Fence> {
        let node = self.node()?;
        cx.confine(&node.data_dir)?;
        fence::prepare(&cx.config, node, &self.0.operation, std::slice::from_ref(&self.0.login)).await
    }
}

#[async_trait]
impl Step for FenceNodeStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let there = self.fence(cx).await?.is_put()? && fence::is_fenced(self.node()?).await?;
        Ok(if there { Probe::Done(Output::default()) } else { Probe::Ready })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let applied = self.fence(cx).await?.ensure(EVICT).await?;
        for note in applied.notes {
            cx.report.log("pgleap", note);
        }
        Ok(())
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        let node = self.node()?;
        let state = fence::state(node).await?;
        if state.is_fenced() && state.operation() == Some(self.0.operation.as_str()) {
            return Ok(Output::default());
        }
        Err(StepError::new(format!(
            "node {} is {}; something else writes that file or restored it: stop that, then retry",
            node.name,
            state.describe()
        )))
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let node = self.node()?;
        // With the directory went the fence.
        if !Path::new(&node.data_dir).join("PG_VERSION").exists() {
            return Ok(());
        }
        let file = fence::hba_file(node).await?;
        match file.content()? {
            fence::Content::Fenced { operation, .. } if operation != self.0.operation => {
                cx.report.log(
                    "pgleap",
                    format!("node {} is fenced for operation {operation}: left alone", node.name),
                );
            }
            _ => {
                for note in fence::lift(node, &self.0.operation).await? {
                    cx.report.log("pgleap", note);
                }
            }
        }
        Ok(())
    }
}
