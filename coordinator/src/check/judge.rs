//! What a check is, and how its verdict becomes findings.

use pgleap_proto::fleet::Finding;
use pgleap_proto::fleet::finding::Severity;

use super::checks::TABLE;
use super::facts::{Facts, View};
use crate::fleet::ClusterSpec;

/// One precondition.
pub struct Check {
    /// In kebab case; unique.
    pub name: &'static str,
    /// Why it matters, in one sentence.
    pub why: &'static str,
    /// Looks at the facts.
    pub run: fn(&View<'_>) -> Verdict,
}

/// What a check says: nothing when the facts it needs are missing (another check tells why), else what it dislikes.
pub type Verdict = Option<Vec<Problem>>;

/// One thing a check dislikes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    severity: Severity,
    subject: String,
    message: String,
    cure: String,
}

impl Problem {
    /// The upgrade would fail or lose something.
    pub fn error(subject: impl Into<String>, message: impl Into<String>, cure: impl Into<String>) -> Problem {
        Problem::of(Severity::Error, subject, message, cure)
    }

    /// A person has to decide.
    pub fn warning(
        subject: impl Into<String>,
        message: impl Into<String>,
        cure: impl Into<String>,
    ) -> Problem {
        Problem::of(Severity::Warning, subject, message, cure)
    }

    /// Good to know.
    pub fn note(subject: impl Into<String>, message: impl Into<String>, cure: impl Into<String>) -> Problem {
        Problem::of(Severity::Note, subject, message, cure)
    }

    fn of(
        severity: Severity,
        subject: impl Into<String>,
        message: impl Into<String>,
        cure: impl Into<String>,
    ) -> Problem {
        Problem { severity, subject: subject.into(), message: message.into(), cure: cure.into() }
    }
}

/// Every check of [`TABLE`] in its order; each gives at least one finding.
pub fn run(cluster: &ClusterSpec, facts: &Facts) -> Vec<Finding> {
    let view = View::new(cluster, facts);
    TABLE.iter().flat_map(|check| findings(check, &view)).collect()
}

fn findings(check: &Check, view: &View<'_>) -> Vec<Finding> {
    let problems = match (check.run)(view) {
        None => vec![Problem::note(
            &view.cluster.name,
            "not checked, because facts it needs are missing",
            "cure the errors of the other checks and check again",
        )],
        Some(problems) if problems.is_empty() => {
            vec![Problem::of(Severity::Ok, &view.cluster.name, "", "")]
        }
        Some(problems) => problems,
    };
    problems
        .into_iter()
        .map(|Problem { severity, subject, message, cure }| Finding {
            check: check.name.to_owned(),
            severity: severity.into(),
            subject,
            message,
            why: check.why.to_owned(),
            cure,
        })
        .collect()
}

/// `12.3 GiB`, for messages.
pub(super) fn bytes(amount: u64) -> String {
    let mut value = amount as f64;
    let mut unit = "bytes";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "bytes" { format!("{amount} bytes") } else { format!("{value:.1} {unit}") }
}

/// The first few of a list, for messages.
pub(super) fn few<T: AsRef<str>>(names: &[T]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(bytes(1023), "1023 bytes");
        assert_eq!(bytes(3 * 1024 * 1024 * 1024 / 2), "1.5 GiB");
        assert_eq!(few(&["a", "b"]), "a, b");
        assert_eq!(few(&["a", "b", "c", "d", "e", "f", "g"]), "a, b, c, d, e and 2 more");
    }

    #[test]
    fn names_are_unique_and_everything_has_a_why() {
        let mut names: Vec<_> = TABLE.iter().map(|check| check.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for check in TABLE {
            assert!(check.name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{}", check.name);
            assert!(check.why.ends_with('.') || check.why.ends_with('?'), "{}: {}", check.name, check.why);
        }
    }

    #[test]
    fn a_healthy_cluster_is_all_ok() {
        let case = crate::check::testing::healthy();
        let bad: Vec<_> =
            run(&case.cluster, &case.facts).into_iter().filter(|f| f.severity() != Severity::Ok).collect();
        assert_eq!(bad, Vec::new());
    }

    #[test]
    fn without_facts_nothing_is_called_ok_that_needs_them() {
        let case = crate::check::testing::healthy();
        let facts = Facts {
            unreachable: case
                .cluster
                .agents()
                .into_keys()
                .map(|host| (host, "timed out".to_owned()))
                .collect(),
            ..Facts::default()
        };
        let ok: Vec<_> = run(&case.cluster, &facts)
            .into_iter()
            .filter(|f| f.severity() == Severity::Ok)
            .map(|f| f.check)
            .collect();
        assert_eq!(ok, Vec::<String>::new());
    }
}
