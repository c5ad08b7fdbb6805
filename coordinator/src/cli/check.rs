//! `pgleap check`: every precondition, why it matters, and how to cure it.

use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use pgleap_proto::fleet::finding::Severity;
use pgleap_proto::fleet::{CheckRequest, CheckSummary, Finding, check_event};

use super::output::{Out, Tone};
use super::{Connection, Failure, Outcome};

#[derive(Debug, Args)]
pub struct Check {
    /// Cluster of the fleet file
    cluster: String,
    /// Leave out what takes minutes: the schema-restore rehearsal against the new binaries
    #[arg(long)]
    quick: bool,
    /// Print what is as it should be, too
    #[arg(long, short)]
    all: bool,
}

impl Check {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        let request = CheckRequest { cluster: self.cluster.clone(), quick: self.quick };
        let mut stream = connection.open().await?.check(request).await?.into_inner();
        let spinner =
            if out.terminal && !out.json { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        spinner.enable_steady_tick(Duration::from_millis(120));
        spinner.set_message("asking the agents");
        let mut summary = None;
        while let Some(event) = stream.message().await? {
            if out.json {
                out.value(&event)?;
            }
            match event.kind {
                Some(check_event::Kind::Finding(finding))
                    if !out.json && (self.all || finding.severity() != Severity::Ok) =>
                {
                    let text = render(out, &finding);
                    spinner.suspend(|| out.line(&text))?;
                }
                Some(check_event::Kind::Log(log)) => {
                    spinner.set_message(format!("{}: {}", log.source, log.line))
                }
                Some(check_event::Kind::Summary(found)) => summary = Some(found),
                _ => {}
            }
        }
        spinner.finish_and_clear();
        let summary =
            summary.ok_or_else(|| Failure::Refused("the check was cut off; run it again".to_owned()))?;
        self.conclude(out, &summary)
    }

    fn conclude(&self, out: &Out, summary: &CheckSummary) -> Outcome {
        let CheckSummary { ok, notes, warnings, errors } = summary;
        out.talk(&format!("{ok} ok, {notes} notes, {warnings} warnings, {errors} errors"));
        if *errors > 0 {
            out.talk(&format!("nothing was changed; cure the errors, then: pgleap check {}", self.cluster));
            return Err(Failure::CheckFailed);
        }
        out.talk(&format!("next: pgleap plan {}", self.cluster));
        Ok(())
    }
}

fn render(out: &Out, finding: &Finding) -> String {
    let label = match finding.severity() {
        Severity::Ok => out.paint(Tone::Good, "ok     "),
        Severity::Note => out.paint(Tone::Dim, "note   "),
        Severity::Warning => out.paint(Tone::Warn, "warning"),
        Severity::Error => out.paint(Tone::Bad, "ERROR  "),
    };
    let mut text = format!("{label}  {}: {}: {}", finding.check, finding.subject, finding.message);
    for (name, value) in [("why", &finding.why), ("cure", &finding.cure)] {
        if !value.is_empty() && finding.severity() != Severity::Ok {
            text.push_str(&format!("\n         {} {value}", out.paint(Tone::Dim, &format!("{name}:"))));
        }
    }
    text
}
