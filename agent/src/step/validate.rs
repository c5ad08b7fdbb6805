//! Compares every table of every database between the old and the new leader. Reads only: nothing to take back.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::{Output, TableDifference, Validate, ValidatedOutput, output};

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::validate::applied::BySlots;
use crate::validate::run::Comparison;
use crate::validate::side::{Local, Remote, Side};

/// When the plan leaves it open.
const PARALLEL: u32 = 2;
/// When the plan leaves it open: a chunk takes some tens of milliseconds.
const CHUNK_ROWS: u32 = 10_000;
/// Differing tables named in the message.
const NAMED: usize = 5;

/// The step. A comparison of yesterday says nothing about today, so the probe never finds it done.
pub struct ValidateStep {
    params: Validate,
    /// What `act` found, for `verify`: the comparison has no other trace in the world.
    found: Mutex<Option<ValidatedOutput>>,
}

impl ValidateStep {
    /// A step that has compared nothing yet.
    pub fn new(params: Validate) -> ValidateStep {
        ValidateStep { params, found: Mutex::default() }
    }

    fn nodes(&self) -> Result<(&Node, &Node)> {
        let (new, old) = (self.params.node.as_ref(), self.params.publisher_node.as_ref());
        new.zip(old).ok_or_else(|| StepError::new("the validation step names no new or no old leader"))
    }
}

#[async_trait]
impl Step for ValidateStep {
    async fn probe(&self, _: &Context) -> Result<Probe> {
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let (new, old) = self.nodes()?;
        let params = &self.params;
        let remote = Remote::connect(&params.publisher_agent, &old.host, &cx.tls).await?;
        let rate = params.rows_per_second;
        let old_side = Arc::new(Side::new(old.clone(), Box::new(remote), rate));
        let slots = params.slots.iter().map(|slot| (slot.database.clone(), slot.slot.clone()));
        let or = |given: u32, default: u32| if given == 0 { default } else { given };
        let comparison = Comparison {
            applied: Arc::new(BySlots::new(old_side.clone(), slots)),
            old: old_side,
            new: Arc::new(Side::new(new.clone(), Box::new(Local), rate)),
            subscription: Some(params.subscription.clone()),
            databases: params.slots.iter().map(|slot| slot.database.clone()).collect(),
            parallel: or(params.parallel, PARALLEL) as usize,
            chunk_rows: u64::from(or(params.chunk_rows, CHUNK_ROWS)),
        };
        let output = comparison.run(cx.report.clone()).await?;
        verdict(&output, &old.name, &new.name)?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(output);
        Ok(())
    }

    async fn verify(&self, _: &Context) -> Result<Output> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = found.ok_or_else(|| StepError::new("nothing was compared yet: retry"))?;
        Ok(Output { kind: Some(output::Kind::Validated(found)) })
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        Ok(())
    }
}

/// PURE: a difference stops the operation. Nobody switches over to a cluster that is known to lack a row.
fn verdict(output: &ValidatedOutput, old: &str, new: &str) -> Result<()> {
    if output.differing.is_empty() {
        return Ok(());
    }
    let name = |d: &TableDifference| format!("{}: {}", d.database, d.table);
    let mut named: Vec<String> = output.differing.iter().take(NAMED).map(name).collect();
    if output.differing.len() > NAMED {
        named.push(format!("{} more", output.differing.len() - NAMED));
    }
    let evidence = output.differing.iter().flat_map(|difference| {
        let rows = match difference.rows {
            0 => String::new(),
            rows => format!("{rows} rows: "),
        };
        let examples =
            difference.examples.iter().map(move |example| format!("{}: {rows}{example}", name(difference)));
        examples.collect::<Vec<_>>()
    });
    Err(StepError::new(format!(
        "{} of {} compared tables differ between the old leader {old} and the new leader {new}: {}; the new cluster is not fit to be \
         switched to: find out what wrote to it or what was not replicated, repair it and retry, or cancel the operation",
        output.differing.len(),
        output.tables,
        named.join(", ")
    ))
    .with_evidence(evidence)
    .with_evidence(output.notes.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(table: &str, rows: u64) -> TableDifference {
        let examples = vec!["key (1): missing on the new leader".to_owned()];
        TableDifference { database: "shop".into(), table: table.into(), rows, examples }
    }

    #[test]
    fn equal_tables_pass() {
        assert_eq!(verdict(&ValidatedOutput { tables: 3, ..Default::default() }, "o1", "n1"), Ok(()));
    }

    #[test]
    fn a_difference_fails_with_its_evidence() {
        let output = ValidatedOutput {
            tables: 9,
            differing: (0..7).map(|n| difference(&format!("public.t{n}"), n)).collect(),
            ..Default::default()
        };
        let error = verdict(&output, "o1", "n1").unwrap_err();
        assert!(
            error.message.starts_with("7 of 9 compared tables differ between the old leader o1"),
            "{error}"
        );
        assert!(error.message.contains("shop: public.t4, 2 more"), "{error}");
        assert_eq!(error.evidence.len(), 7);
        assert_eq!(error.evidence[1], "shop: public.t1: 1 rows: key (1): missing on the new leader");
    }
}
