//! `stage_balancer`: looks at a balancer and begins to keep its weights, at first with no reads for the new side.
//!
//! Changes weights of the listed servers only, and remembers those it found: undo gives them back.

use async_trait::async_trait;
use pgleap_proto::step::{Output, StageBalancer};
use pgleap_proto::traffic::Balancer;

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::reads::balancer;

/// See the module.
pub struct StageBalancerStep(pub StageBalancer);

impl StageBalancerStep {
    fn balancer(&self) -> Result<&Balancer> {
        given(&self.0.balancer, "balancer")
    }
}

#[async_trait]
impl Step for StageBalancerStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let staged = balancer::is_staged(&cx.config.state_dir, &cx.operation, self.balancer()?).await?;
        Ok(if staged { Probe::Done(Output::default()) } else { Probe::Ready })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        balancer::stage(&cx.config.state_dir, &cx.operation, self.balancer()?).await
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        let balancer = self.balancer()?;
        if balancer::is_staged(&cx.config.state_dir, &cx.operation, balancer).await? {
            return Ok(Output::default());
        }
        Err(StepError::new(format!(
            "balancer {} is not kept after it was staged: something removed its record from {}; retry",
            balancer.name,
            cx.config.state_dir.display()
        )))
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let name = &self.balancer()?.name;
        for note in balancer::unstage(&cx.config.state_dir, &cx.operation, name).await? {
            cx.report.log("pgleap", note);
        }
        Ok(())
    }
}
