//! Steps of the phase "route" that are being built.
use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Result, StepError};
use async_trait::async_trait;
use pgleap_proto::step::Output;
/// Fails.
pub struct Unbuilt;
#[async_trait]
impl Step for Unbuilt {
    async fn probe(&self, _cx: &Context) -> Result<Probe> {
        Err(StepError::new("this step is not built yet"))
    }
    async fn act(&self, _cx: &Context) -> Result<()> {
        Err(StepError::new("this step is not built yet"))
    }
    async fn verify(&self, _cx: &Context) -> Result<Output> {
        Err(StepError::new("this step is not built yet"))
    }
    async fn undo(&self, _cx: &Context) -> Result<()> {
        Err(StepError::new("this step is not built yet"))
    }
}
