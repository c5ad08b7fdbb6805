//! Reads what `psql` and `pg_restore` complain of: each error with its statement. Pure.

/// Lines of a statement that are kept.
const STATEMENT_LINES: usize = 12;
/// Errors that are kept; later ones mostly follow from the first.
const MOST: usize = 20;

/// One failed statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The server's words.
    pub error: String,
    /// The statement, as far as it was printed.
    pub statement: Vec<String>,
}

/// Takes in lines in order.
#[derive(Debug, Default)]
pub struct Failures {
    /// The first ones.
    pub first: Vec<Failure>,
    /// How many there were in all.
    pub count: usize,
    in_statement: bool,
    expected: Option<String>,
}

impl Failures {
    /// Leaves out this error, which has to come.
    pub fn expecting(error: String) -> Failures {
        Failures { expected: Some(error), ..Failures::default() }
    }

    /// One more line of output.
    pub fn line(&mut self, line: &str) {
        if let Some(error) = error_in(line) {
            self.in_statement = false;
            if self.expected.as_deref() == Some(error) {
                return;
            }
            self.count += 1;
            if self.first.len() < MOST {
                self.first.push(Failure { error: error.to_owned(), statement: Vec::new() });
            }
            return;
        }
        let begun = ["Command was:", "STATEMENT:"]
            .iter()
            .find_map(|mark| line.split_once(mark))
            .map(|(_, text)| text);
        self.in_statement |= begun.is_some();
        if line.starts_with("pg_restore: ") || line.starts_with("psql:") && begun.is_none() {
            self.in_statement = false;
        }
        let text = begun.unwrap_or(line).trim_end();
        let worth = !text.trim().is_empty() && !text.trim_start().starts_with("--");
        if self.in_statement
            && worth
            && self.count <= MOST
            && let Some(failure) = self.first.last_mut().filter(|f| f.statement.len() < STATEMENT_LINES)
        {
            failure.statement.push(text.trim_start_matches(' ').to_owned());
        }
    }

    /// As evidence.
    pub fn evidence(&self) -> Vec<String> {
        let lines = |failure: &Failure| {
            let statement = failure.statement.iter().map(|line| format!("    {line}"));
            std::iter::once(failure.error.clone()).chain(statement).collect::<Vec<_>>()
        };
        self.first.iter().flat_map(lines).collect()
    }
}

/// `pg_restore: error: could not execute query: ERROR:  x`, `psql:file:7: ERROR:  x`, `pg_dump: error: x`.
fn error_in(line: &str) -> Option<&str> {
    for mark in ["ERROR:  ", "FATAL:  ", "PANIC:  "] {
        if let Some(at) = line.find(mark) {
            return line.get(at + mark.len()..);
        }
    }
    let rest = line.split_once(": error: ")?;
    rest.0.starts_with("pg_").then_some(rest.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESTORE: &str = "\
pg_restore: error: could not execute query: ERROR:  unrecognized parameter \"pg_attver\"
Command was: 
-- For binary upgrade, must preserve pg_type oid
SELECT 1;

ALTER TABLE ONLY public.t ALTER COLUMN a SET (pg_attver=24530400);

pg_restore: from TOC entry 3355; 0 0 STATISTICS DATA t (no owner)
pg_restore: error: could not execute query: ERROR:  relation \"public.t\" does not exist
Command was: ALTER TABLE public.t OWNER TO postgres;

pg_restore: warning: errors ignored on restore: 2
";

    fn of(text: &str) -> Failures {
        let mut failures = Failures::default();
        text.lines().for_each(|line| failures.line(line));
        failures
    }

    #[test]
    fn pairs_errors_with_their_statements() {
        let failures = of(RESTORE);
        assert_eq!(failures.count, 2);
        assert_eq!(failures.first[0].error, "unrecognized parameter \"pg_attver\"");
        assert_eq!(
            failures.first[0].statement,
            ["SELECT 1;", "ALTER TABLE ONLY public.t ALTER COLUMN a SET (pg_attver=24530400);"]
        );
        assert_eq!(failures.first[1].statement, ["ALTER TABLE public.t OWNER TO postgres;"]);
    }

    #[test]
    fn leaves_out_what_has_to_come() {
        let mut failures = Failures::expecting("role \"postgres\" already exists".to_owned());
        failures.line("psql:g.sql:5: ERROR:  role \"postgres\" already exists");
        failures.line("psql:g.sql:9: ERROR:  role \"app\" already exists");
        assert_eq!(failures.count, 1);
    }

    #[test]
    fn reads_psql_and_pg_dump() {
        let failures = of(
            "psql:g.sql:5: ERROR:  role \"x\" exists\npsql:g.sql:5: STATEMENT:  CREATE ROLE x;\nCREATE ROLE\n\
                           pg_dump: error: connection to server failed: FATAL:  no\n",
        );
        assert_eq!(failures.count, 2);
        assert_eq!(failures.first[0].error, "role \"x\" exists");
        assert_eq!(failures.first[0].statement[0].trim(), "CREATE ROLE x;");
        assert_eq!(failures.first[1].error, "no");
        assert_eq!(of("creating TABLE \"error: x\"\n").count, 0);
    }
}
