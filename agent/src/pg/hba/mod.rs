//! A client authentication file narrowed to those who may come in while clients are kept out: the agent, physical
//! standbys, and named roles of subscriptions. Whoever may still come in does so in exactly the same way as before: the lines
//! keep their order, and each matches them as it did. Only decides; files are others' work.

mod tokens;

use std::collections::BTreeMap;

use tokens::{Line, Token};

/// Who is let in besides physical standbys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// The role by which the agent connects over the local socket.
    pub superuser: String,
    /// Roles by which subscriptions connect over the network: to ordinary databases, since their walsenders name one.
    pub logins: Vec<String>,
    /// Major version: names that begin with `/` are regular expressions from 16 on.
    pub major: u32,
}

/// Whether a role is matched by a name that only the server can judge: `(role, name)`. See [`questions`].
pub type Answers = BTreeMap<(String, String), bool>;

/// Why a file cannot be narrowed faithfully.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Other files are part of it.
    #[error(
        "line {line} takes names or lines from another file ({what}), which pgleap cannot narrow; write them out"
    )]
    OtherFile {
        /// Where.
        line: usize,
        /// What is there.
        what: String,
    },
    /// Not a line of such a file.
    #[error("line {line} ({what}) is not a line that PostgreSQL understands; correct it")]
    Broken {
        /// Where.
        line: usize,
        /// What is there.
        what: String,
    },
    /// Only a running server knows.
    #[error(
        "whether role {role} is meant by {name} in line {line} is known only to a running server; name the role itself in a line before it"
    )]
    Unknown {
        /// Where.
        line: usize,
        /// Whom it is about.
        role: String,
        /// A group, or a regular expression.
        name: String,
    },
    /// The agent itself would be locked out.
    #[error("no `local` line lets role {0} in, by which the agent connects; add one")]
    NoAgent(String),
    /// The other side's subscriptions would be locked out.
    #[error("no `host` line lets role {0} in, by which the subscriptions of the other side connect; add one")]
    NoLogin(String),
}

/// Names in the file that only a running server can judge: groups (`+name`) and, from 16 on, regular expressions (`/…`).
pub fn questions(original: &str, major: u32) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for line in tokens::lines(original) {
        let users = line.fields.get(2).into_iter().flatten();
        names.extend(users.filter(|token| is_question(token, major)).map(|token| token.text.clone()));
    }
    names.sort_unstable();
    names.dedup();
    names
}

fn is_group(token: &Token) -> bool {
    !token.quoted && token.text.len() > 1 && token.text.starts_with('+')
}

/// Also within quotes (hba.c, `regcomp_auth_token`).
fn is_regex(token: &Token, major: u32) -> bool {
    major >= 16 && token.text.starts_with('/')
}

fn is_question(token: &Token, major: u32) -> bool {
    is_group(token) || is_regex(token, major)
}

/// The lines of the narrowed file.
///
/// # Errors
/// When it cannot be narrowed faithfully, with the line.
pub fn narrowed(original: &str, kept: &Kept, answers: &Answers) -> Result<String, Refused> {
    let mut out = String::new();
    let mut agent = Entry::default();
    let mut logins = vec![Entry::default(); kept.logins.len()];
    for line in tokens::lines(original) {
        let (kind, databases, users) = parts(&line)?;
        if databases.iter().any(|name| name.is_keyword("replication")) {
            out.push_str(&written(kind, "replication", &raw(users), &line.rest));
        }
        // For anything else than physical replication the word matches nothing (hba.c, check_db).
        let ordinary: Vec<Token> =
            databases.iter().filter(|name| !name.is_keyword("replication")).cloned().collect();
        if ordinary.is_empty() {
            continue;
        }
        let mut keep = |role: &str, entry: &mut Entry| -> Result<(), Refused> {
            if entry.decided || !matches(role, users, line.number, kept.major, answers)? {
                return Ok(());
            }
            out.push_str(&written(kind, &raw(&ordinary), &quoted(role), &line.rest));
            entry.open |= !rejects(&line.rest);
            // Nothing behind it can match any more; only for local lines, which know no addresses.
            entry.decided = kind == "local" && ordinary.iter().any(|name| name.is_keyword("all"));
            Ok(())
        };
        if kind == "local" {
            keep(&kept.superuser, &mut agent)?;
        } else {
            for (role, entry) in kept.logins.iter().zip(&mut logins) {
                keep(role, entry)?;
            }
        }
    }
    if !agent.open {
        return Err(Refused::NoAgent(kept.superuser.clone()));
    }
    match kept.logins.iter().zip(&logins).find(|(_, entry)| !entry.open) {
        Some((role, _)) => Err(Refused::NoLogin(role.clone())),
        None => Ok(out),
    }
}

/// What is known of one role's lines so far.
#[derive(Debug, Clone, Default)]
struct Entry {
    open: bool,
    decided: bool,
}

const KINDS: [&str; 6] = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];

type Parts<'l> = (&'l str, &'l [Token], &'l [Token]);

fn parts(line: &Line) -> Result<Parts<'_>, Refused> {
    let what = || line.fields.iter().map(|field| raw(field)).collect::<Vec<_>>().join(" ");
    let number = line.number;
    // include, include_if_exists, include_dir: from 16 on (hba.c, tokenize_auth_file).
    let first = line.fields.first().and_then(|field| field.first());
    if first.is_some_and(|word| !word.quoted && word.text.starts_with("include")) {
        return Err(Refused::OtherFile { line: number, what: what() });
    }
    let names = line.fields.iter().flatten();
    if let Some(file) =
        names.clone().find(|name| !name.quoted && name.text.len() > 1 && name.text.starts_with('@'))
    {
        return Err(Refused::OtherFile { line: number, what: file.raw.clone() });
    }
    match line.fields.as_slice() {
        [kind, databases, users] if kind.len() == 1 && !line.rest.is_empty() => {
            let kind = kind.first().map(|token| token.text.as_str()).unwrap_or_default();
            if KINDS.contains(&kind) {
                return Ok((kind, databases, users));
            }
            Err(Refused::Broken { line: number, what: what() })
        }
        _ => Err(Refused::Broken { line: number, what: what() }),
    }
}

/// Whether a role is one of the users (hba.c, `check_role`): the first that matches decides, all mean the same.
fn matches(role: &str, users: &[Token], line: usize, major: u32, answers: &Answers) -> Result<bool, Refused> {
    let literal = |token: &&Token| !is_question(token, major);
    if users.iter().filter(literal).any(|token| token.is_keyword("all") || token.text == role) {
        return Ok(true);
    }
    let mut matched = false;
    for token in users.iter().filter(|token| is_question(token, major)) {
        match answers.get(&(role.to_owned(), token.text.clone())) {
            Some(answer) => matched |= answer,
            None => return Err(Refused::Unknown { line, role: role.to_owned(), name: token.raw.clone() }),
        }
    }
    Ok(matched)
}

/// Whether the method, which stands behind an address of one or two words, or first in a local line, is `reject`.
fn rejects(rest: &str) -> bool {
    rest.split_whitespace()
        .take_while(|word| !word.starts_with('#'))
        .take(3)
        .any(|word| word.trim_matches('"') == "reject")
}

fn raw(names: &[Token]) -> String {
    names.iter().map(|name| name.raw.as_str()).collect::<Vec<_>>().join(",")
}

fn quoted(role: &str) -> String {
    format!("\"{}\"", role.replace('"', "\"\""))
}

fn written(kind: &str, databases: &str, users: &str, rest: &str) -> String {
    format!("{kind} {databases} {users} {rest}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(logins: &[&str]) -> Kept {
        Kept {
            superuser: "postgres".into(),
            logins: logins.iter().map(|login| (*login).to_owned()).collect(),
            major: 16,
        }
    }

    fn lines(
        original: &str,
        logins: &[&str],
        answers: &[(&str, &str, bool)],
    ) -> Result<Vec<String>, Refused> {
        let answers = answers.iter().map(|(r, n, a)| (((*r).to_owned(), (*n).to_owned()), *a)).collect();
        Ok(narrowed(original, &kept(logins), &answers)?.lines().map(str::to_owned).collect())
    }

    const ORIGINAL: &str = "\
# TYPE  DATABASE        USER            ADDRESS                 METHOD
local   all             postgres                                peer map=ops
local   all             all                                     scram-sha-256
local   app, other      \"App User\"                            trust
host    all             bad             0.0.0.0/0               reject
host    all             all             0.0.0.0/0               scram-sha-256   # everybody
host    replication,app repl, repl2     10.0.0.0/8              scram-sha-256
local   replication     all                                     peer
";

    #[test]
    fn keeps_the_agent_standbys_and_subscriptions_only() {
        assert_eq!(
            lines(ORIGINAL, &["repl"], &[]).unwrap(),
            [
                r#"local all "postgres" peer map=ops"#,
                r#"host all "repl" 0.0.0.0/0 scram-sha-256   # everybody"#,
                "host replication repl,repl2 10.0.0.0/8 scram-sha-256",
                r#"host app "repl" 10.0.0.0/8 scram-sha-256"#,
                "local replication all peer",
            ]
        );
        assert!(!lines(ORIGINAL, &[], &[]).unwrap().iter().any(|line| line.starts_with("host all")));
    }

    #[test]
    fn a_line_that_keeps_a_login_out_goes_on_doing_so() {
        let original = "local all postgres peer\nhost all repl 10.0.0.9/32 reject\nhost all all all md5\n";
        assert_eq!(
            lines(original, &["repl"], &[]).unwrap()[1..],
            [r#"host all "repl" 10.0.0.9/32 reject"#, r#"host all "repl" all md5"#]
        );
        let rejected = "local all postgres peer\nhost all repl 10.0.0.0 255.0.0.0 reject\n";
        assert_eq!(lines(rejected, &["repl"], &[]), Err(Refused::NoLogin("repl".into())));
    }

    #[test]
    fn groups_and_regular_expressions_are_answered_by_the_server() {
        let original = "local all +dba,\"/^post,g\" peer\nhost all \"+x\",+readers samenet md5\n";
        assert_eq!(questions(original, 16), ["+dba", "+readers", "/^post,g"]);
        assert_eq!(questions(original, 15), ["+dba", "+readers"]);
        let refused = lines(original, &["repl"], &[]).unwrap_err();
        assert!(matches!(&refused, Refused::Unknown { line: 1, .. }), "{refused}");
        let no = [("postgres", "+dba", false), ("postgres", "/^post,g", true), ("repl", "+readers", false)];
        assert_eq!(lines(original, &["repl"], &no), Err(Refused::NoLogin("repl".into())));
        let yes = [("postgres", "+dba", false), ("postgres", "/^post,g", true), ("repl", "+readers", true)];
        assert_eq!(
            lines(original, &["repl"], &yes).unwrap(),
            [r#"local all "postgres" peer"#, r#"host all "repl" samenet md5"#]
        );
        assert_eq!(lines(original, &["+x"], &yes[..2]).unwrap()[1], r#"host all "+x" samenet md5"#);
    }

    #[test]
    fn what_an_earlier_line_decides_is_not_asked() {
        assert!(lines("local all postgres peer\nlocal all +dba md5\n", &[], &[]).is_ok());
        assert!(lines("local app postgres peer\nlocal all +dba md5\n", &[], &[]).is_err());
    }

    #[test]
    fn quoted_keywords_are_names() {
        assert_eq!(
            lines("local all \"all\" trust\nlocal \"replication\" postgres trust\n", &[], &[]).unwrap(),
            [r#"local "replication" "postgres" trust"#]
        );
        assert_eq!(
            lines("local all \"all\" trust\n", &[], &[]),
            Err(Refused::NoAgent("postgres".into())),
            "the agent itself would be locked out"
        );
    }

    #[test]
    fn refuses_what_it_cannot_narrow_and_names_the_line() {
        let line = |original: &str| match lines(original, &[], &[]).unwrap_err() {
            Refused::OtherFile { line, .. } | Refused::Broken { line, .. } => line,
            other => panic!("{other}"),
        };
        assert_eq!(line("local all postgres peer\ninclude other.conf\n"), 2);
        assert_eq!(line("include_dir d\n"), 1);
        assert_eq!(line("local @dbs postgres peer\n"), 1);
        assert_eq!(line("local all postgres peer\n\nhost all a,@users all md5\n"), 3);
        assert_eq!(line("local all postgres peer\nlocl all all trust\n"), 2);
        assert_eq!(line("local all\n"), 1);
    }
}
