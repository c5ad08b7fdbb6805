//! The new major can have the old one's locale provider and encoding.

use super::{Check, Problem, Verdict, View};

pub(super) const CHECK: Check = Check {
    name: "locale",
    why: "pg_upgrade demands the same encoding, provider and locale of both clusters' template0; initdb of the new major has \
          to be able to give them.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let new = view.cluster.new.version;
    let mut problems = Vec::new();
    for db in &server.databases {
        let subject = format!("database \"{}\"", db.name);
        if db.locale_provider == "b" && new < 17 {
            problems.push(Problem::error(
                subject,
                format!("it uses the builtin locale provider, which PostgreSQL {new} does not have"),
                "upgrade to 17 or later",
            ));
        } else if db.encoding == "MULE_INTERNAL" && new >= 19 {
            problems.push(Problem::error(
                subject,
                format!("its encoding {} is gone in PostgreSQL {new}", db.encoding),
                "dump it and restore it in UTF8 first",
            ));
        } else if db.encoding == "SQL_ASCII" {
            problems.push(Problem::note(
                subject,
                "its encoding SQL_ASCII lets any bytes in",
                "nothing: bytes are copied as they are, and subscriptions use the same encoding on both sides",
            ));
        }
    }
    Some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::{Error, Note};

    #[test]
    fn what_the_new_major_lacks() {
        let mut case = healthy();
        case.database("app").locale_provider = "b".into();
        case.expect_none("locale");
        case.cluster.new.version = 16;
        case.expect("locale", Error, "builtin locale provider");
    }

    #[test]
    fn sql_ascii_is_noted() {
        let mut case = healthy();
        case.database("app").encoding = "SQL_ASCII".into();
        case.expect("locale", Note, "SQL_ASCII");
    }
}
