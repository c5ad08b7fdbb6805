//! The steps an agent can do, one file each, behind one trait.

pub mod validate;

use async_trait::async_trait;
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{Action, Output};

use crate::context::Context;
use crate::error::Result;

/// What a look at the world says before acting.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// The work is done already; the output is read from the world, not remembered.
    Done(Output),
    /// The act can go ahead, from scratch or from wherever an earlier attempt was cut off.
    Ready,
    /// Not now; nothing was changed. Asking again later may help.
    Blocked(String),
}

/// One kind of step. First run, retry and run after a crash are the same path: `probe`, then (when ready)
/// `act`, then `verify`. Nothing here trusts a memory of what was done: it reads control data, catalogs, inodes.
#[async_trait]
pub trait Step: Send + Sync {
    /// Looks, and changes nothing.
    async fn probe(&self, cx: &Context) -> Result<Probe>;

    /// Does the work. May be cut off at any point by a crash, and is then probed and called again.
    async fn act(&self, cx: &Context) -> Result<()>;

    /// Proves that the work is done and says what came of it.
    async fn verify(&self, cx: &Context) -> Result<Output>;

    /// Takes the work back, whether it was done wholly, partly or not at all. Idempotent.
    async fn undo(&self, cx: &Context) -> Result<()>;
}

/// The step that does this action; none when the action is empty (a coordinator newer than this agent).
pub fn of(action: Action) -> Option<Box<dyn Step>> {
    // One line for each kind: `Kind::Publish(params) => Box::new(publish::PublishStep(params))`.
    let step: Box<dyn Step> = match action.kind? {
        Kind::Validate(params) => Box::new(validate::ValidateStep::new(params)),
        _ => return None,
    };
    Some(step)
}
