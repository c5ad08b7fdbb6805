//! ProtectFromPatroni: the Patroni of one of the clusters is told to spare pgleap's slots, which it would drop as unknown, and to write the
//! client authentication file no more, in which a fence may come to lie. Both are in its dynamic configuration, which every member
//! takes up without a restart. It stays in charge of everything else.
//!
//! Rules for clients in a member's own configuration file cannot be taken out from here, and win: then this fails, having changed
//! nothing. Where they come from is seen, not assumed: a comment behind those of the dynamic configuration has to arrive in the file.

use std::time::Duration;

use async_trait::async_trait;
use pgleap_proto::node::{Node, Patroni};
use pgleap_proto::patroni::Rest;
use pgleap_proto::step::{Output, ProtectFromPatroni};
use pgleap_proto::traffic::Side;
use serde_json::{Value, json};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::fence;
use crate::patroni::dynamic::{self, Rules};
use crate::patroni::{Source, check_scope, cycles, lies, rest, source};
use crate::wait::Wait;

/// Somebody else's change may come in between a look and a patch.
const TRIES: usize = 5;
/// Patroni's own default of `loop_wait`, in seconds.
const LOOP_WAIT: u64 = 10;

/// See the module.
pub struct ProtectFromPatroniStep(pub ProtectFromPatroni);

impl ProtectFromPatroniStep {
    fn node(&self) -> Result<&Node> {
        given(&self.0.node, "node")
    }

    fn patroni(&self) -> Result<&Patroni> {
        given(&self.node()?.patroni, "patroni")
    }

    /// The side whose Patroni it is.
    fn side(&self) -> Side {
        self.0.side().max(Side::Old)
    }

    fn rest(&self, cx: &Context) -> Result<Rest> {
        rest(&cx.config, self.patroni()?)
    }

    fn slots(&self) -> Vec<Value> {
        let one = |slot: &pgleap_proto::step::SparedSlot| {
            if slot.database.is_empty() {
                return json!({"name": slot.slot, "type": "physical"});
            }
            json!({"name": slot.slot, "type": "logical", "database": slot.database, "plugin": "pgoutput"})
        };
        self.0.slots.iter().map(one).collect()
    }

    async fn spare(&self, cx: &Context, rest: &Rest) -> Result<()> {
        for _ in 0..TRIES {
            let Some(patch) = dynamic::spare(&config(rest).await?, &cx.operation, &self.slots())? else {
                return Ok(());
            };
            send(rest, &patch).await?;
        }
        Err(changed_meanwhile("ignore_slots"))
    }

    /// Makes Patroni write the client authentication file no more.
    async fn release(&self, cx: &Context, rest: &Rest) -> Result<()> {
        let file = fence::hba_file(self.node()?).await?;
        for _ in 0..TRIES {
            let now = config(rest).await?;
            match dynamic::stage(&now, &cx.operation) {
                // Of a new member its own file was judged before it was started.
                Rules::Gone
                    if self.side() == Side::Old && source(&file.original()?, &now) == Source::Local =>
                {
                    return Err(self.local(&file.path().display().to_string()));
                }
                Rules::Gone => return Ok(()),
                // The file is not Patroni's, although it has rules: postgresql.parameters.hba_file names another one.
                Rules::There if source(&file.original()?, &now) == Source::File => return Ok(()),
                Rules::There => send(rest, &dynamic::mark_rules(&now, &cx.operation)?).await?,
                Rules::Marked(rules) => {
                    let wait = Wait::of(patience(&now));
                    while !lies(&file.original()?, &rules) {
                        if !wait.again().await {
                            self.restore(cx, rest).await?;
                            return Err(self.local(&file.path().display().to_string()));
                        }
                    }
                    send(rest, &dynamic::release_rules()).await?;
                    cx.report.log(
                        "pgleap",
                        "postgresql.pg_hba is taken out of Patroni's configuration until the end of the operation; edit the files \
                         themselves meanwhile",
                    );
                }
            }
        }
        Err(changed_meanwhile("postgresql.pg_hba"))
    }

    fn local(&self, file: &str) -> StepError {
        let node = self.node().map(|node| node.name.clone()).unwrap_or_default();
        StepError::new(format!(
            "Patroni writes {file} on node {node} by rules that do not come from its dynamic configuration, and would write over a fence: \
             move postgresql.pg_hba from the configuration file of every member to the dynamic configuration (patronictl edit-config) and \
             reload Patroni, then retry; if no configuration has it any more, remove the two comment lines of Patroni from the file"
        ))
    }

    async fn restore(&self, cx: &Context, rest: &Rest) -> Result<()> {
        for _ in 0..TRIES {
            let Some((patch, note)) = dynamic::restore_rules(&config(rest).await?, &cx.operation)? else {
                return Ok(());
            };
            send(rest, &patch).await?;
            if let Some(note) = note {
                cx.report.log("pgleap", note);
            }
        }
        Err(changed_meanwhile("postgresql.pg_hba"))
    }

    async fn unspare(&self, cx: &Context, rest: &Rest) -> Result<()> {
        for _ in 0..TRIES {
            let Some(patch) = dynamic::unspare(&config(rest).await?, &cx.operation)? else { return Ok(()) };
            send(rest, &patch).await?;
        }
        Err(changed_meanwhile("ignore_slots"))
    }
}

async fn config(rest: &Rest) -> Result<Value> {
    rest.get("/config").await.doing(|| "asking Patroni for its configuration")
}

async fn send(rest: &Rest, patch: &Value) -> Result<()> {
    let sent = rest.change(pgleap_proto::patroni::PATCH, "/config", patch).await;
    sent.map(drop).doing(|| "changing Patroni's dynamic configuration")
}

fn changed_meanwhile(what: &str) -> StepError {
    StepError::new(format!(
        "{what} in Patroni's dynamic configuration is being changed by somebody else at the same time; find out by whom, then retry"
    ))
}

/// Longest time until a change has arrived: a few of its cycles.
fn patience(config: &Value) -> Duration {
    Duration::from_secs(30 + 3 * config["loop_wait"].as_u64().unwrap_or(LOOP_WAIT))
}

#[async_trait]
impl Step for ProtectFromPatroniStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        check_scope(&self.rest(cx)?, self.patroni()?).await?;
        // Whether every member has taken it up is not to be seen, so that this is waited for again.
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let rest = self.rest(cx)?;
        // First: when the rules cannot be taken out, nothing else was changed.
        self.release(cx, &rest).await?;
        self.spare(cx, &rest).await?;
        let limit = patience(&config(&rest).await?);
        for name in cycles(&cx.config, &self.patroni()?.scope, &rest, limit).await? {
            cx.report.log(
                "pgleap",
                format!(
                    "Patroni of member {name} does not answer; it takes up its configuration when it is back"
                ),
            );
        }
        Ok(())
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        let now = config(&self.rest(cx)?).await?;
        if dynamic::spare(&now, &cx.operation, &self.slots())?.is_some() {
            return Err(changed_meanwhile("ignore_slots"));
        }
        Ok(Output::default())
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let rest = self.rest(cx)?;
        let (own, stays) = (self.side(), self.0.stays().max(Side::Old));
        if let Err(error) = check_scope(&rest, self.patroni()?).await {
            if own == Side::New && !cx.finishing {
                // Its cluster goes, and what is in its configuration with it.
                cx.report.log(
                    "pgleap",
                    format!("what was put into Patroni's configuration stays there: {}", error.message),
                );
                return Ok(());
            }
            return Err(error);
        }
        if cx.finishing && stays != own {
            // The leader of the side that goes stays fenced: rules that Patroni writes again would open it.
            if let Some((patch, _)) = dynamic::restore_rules(&config(&rest).await?, &cx.operation)? {
                cx.report.log(
                    "pgleap",
                    format!(
                        "cluster {} stays closed to clients, so that postgresql.pg_hba stays out of its Patroni's configuration; it was {}",
                        self.patroni()?.scope,
                        patch["postgresql"]["pg_hba"]
                    ),
                );
            }
        } else {
            self.restore(cx, &rest).await?;
        }
        self.unspare(cx, &rest).await
    }
}
