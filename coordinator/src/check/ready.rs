//! Whether what the check found lets an operation begin.

use pgleap_proto::fleet::Finding;
use pgleap_proto::fleet::finding::Severity;

/// What keeps a cluster from beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unready {
    /// `2 errors`, or `1 warning`.
    pub what: String,
    /// They are errors; else warnings, which can be accepted.
    pub errors: bool,
    /// Each of them, with its cure.
    pub lines: Vec<String>,
}

/// Errors keep it; warnings keep it unless they were accepted.
///
/// # Errors
/// What keeps it.
pub fn ready(findings: &[Finding], accept_warnings: bool) -> Result<(), Unready> {
    let of = |severity: Severity| -> Vec<String> {
        findings.iter().filter(|finding| finding.severity() == severity).map(line).collect()
    };
    let (errors, warnings) = (of(Severity::Error), of(Severity::Warning));
    if !errors.is_empty() {
        return Err(Unready { what: counted(errors.len(), "error"), errors: true, lines: errors });
    }
    if !warnings.is_empty() && !accept_warnings {
        return Err(Unready { what: counted(warnings.len(), "warning"), errors: false, lines: warnings });
    }
    Ok(())
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn line(finding: &Finding) -> String {
    let Finding { check, subject, message, cure, .. } = finding;
    let cure = if cure.is_empty() { String::new() } else { format!("; {cure}") };
    format!("{check}: {subject}: {message}{cure}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity) -> Finding {
        Finding {
            check: "slots".into(),
            severity: severity.into(),
            subject: "node o1".into(),
            message: "no free slot".into(),
            why: String::new(),
            cure: "raise max_replication_slots".into(),
        }
    }

    #[test]
    fn errors_always_keep_it_and_warnings_until_accepted() {
        let [note, warning, error] = [Severity::Note, Severity::Warning, Severity::Error].map(finding);
        assert_eq!(ready(std::slice::from_ref(&note), false), Ok(()));
        assert_eq!(ready(&[note, warning.clone()], true), Ok(()));
        let unready = ready(std::slice::from_ref(&warning), false).unwrap_err();
        assert_eq!((unready.errors, unready.what.as_str()), (false, "1 warning"));
        let unready = ready(&[warning, error], true).unwrap_err();
        assert_eq!(unready.lines, ["slots: node o1: no free slot; raise max_replication_slots"]);
    }
}
