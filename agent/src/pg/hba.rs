//! A client authentication file that lets nobody in but the agent and physical standbys, for the time between a new
//! node's promotion and its upgrade. Made from the node's own file, so that whoever may still come in does so in the
//! same way. The node's own file is never changed.

/// The fenced file; none when the original cannot be fenced faithfully (it includes other files), which the caller has
/// to tell the operator.
///
/// Kept are: `local` lines, narrowed to `superuser`, and lines that serve physical replication, narrowed to it.
pub fn fenced(original: &str, superuser: &str) -> Option<String> {
    let mut out = String::from("# Written by pgleap for the time of a conversion: clients are kept out.\n");
    let mut local = false;
    for line in logical_lines(original) {
        let fields = fields(&line);
        let [kind, databases, users, rest @ ..] = fields.as_slice() else {
            match fields.first() {
                // include, include_if_exists, include_dir: from 16 on (hba.c, tokenize_auth_file).
                Some(word) if word.starts_with("include") => return None,
                _ => continue,
            }
        };
        // "@file" is looked for beside the file that names it.
        if kind.starts_with("include") || [databases, users].iter().any(|list| list.contains('@')) {
            return None;
        }
        let replication = names(databases).any(|name| name.eq_ignore_ascii_case("replication"));
        if replication {
            out.push_str(&join(kind, "replication", users, rest));
        }
        if kind.eq_ignore_ascii_case("local") {
            let anybody = names(users).any(|name| name == "all" || name.starts_with(['+', '/']));
            let named = names(users).any(|name| name.trim_matches('"') == superuser);
            let others: Vec<&str> = names(databases).filter(|name| *name != "replication").collect();
            if (anybody || named) && !others.is_empty() {
                let superuser = format!("\"{}\"", superuser.replace('"', "\"\""));
                out.push_str(&join(kind, &others.join(","), &superuser, rest));
                local = true;
            }
        }
    }
    local.then_some(out)
}

fn join(kind: &str, databases: &str, users: &str, rest: &[String]) -> String {
    let mut line = format!("{kind} {databases} {users}");
    for field in rest {
        line.push(' ');
        line.push_str(field);
    }
    line.push('\n');
    line
}

/// Lines with a backslash at their end go on in the next (14 and later; earlier none such is valid).
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = String::new();
    for line in text.lines() {
        if let Some(part) = line.strip_suffix('\\') {
            open.push_str(part);
            continue;
        }
        open.push_str(line);
        lines.push(std::mem::take(&mut open));
    }
    lines.push(open);
    lines
}

/// Fields as hba.c's `next_token` and `next_field_expand` see them: quotes kept, lists joined at their commas.
fn fields(line: &str) -> Vec<String> {
    let mut fields: Vec<String> = Vec::new();
    let mut field = String::new();
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                field.push(c);
            }
            '#' if !quoted => break,
            c if c.is_whitespace() && !quoted => {
                // A comma at the end: the list goes on after the blank.
                if !field.is_empty() && !field.ends_with(',') {
                    fields.push(std::mem::take(&mut field));
                }
            }
            c => field.push(c),
        }
    }
    if !field.is_empty() {
        fields.push(field);
    }
    fields
}

/// The names of a list; commas within quotes do not occur in what pgleap narrows, and would only keep a line.
fn names(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_agent_and_standbys_only() {
        let original = "\
# TYPE  DATABASE        USER            ADDRESS                 METHOD
local   all             postgres                                peer map=ops
local   all             all                                     scram-sha-256
local   app, other      \"App User\"                            trust
host    all             all             0.0.0.0/0               scram-sha-256   # everybody
host    replication,app repl, repl2     10.0.0.0/8              scram-sha-256
local   replication     all                                     peer
";
        assert_eq!(
            fenced(original, "postgres").unwrap().lines().skip(1).collect::<Vec<_>>(),
            [
                r#"local all "postgres" peer map=ops"#,
                r#"local all "postgres" scram-sha-256"#,
                "host replication repl,repl2 10.0.0.0/8 scram-sha-256",
                "local replication all peer",
            ]
        );
    }

    #[test]
    fn refuses_what_it_cannot_narrow() {
        assert_eq!(fenced("local all postgres peer\ninclude other.conf\n", "postgres"), None);
        assert_eq!(fenced("local @dbs postgres peer\n", "postgres"), None);
        assert_eq!(
            fenced("host all all 0.0.0.0/0 trust\n", "postgres"),
            None,
            "the agent itself would be locked out"
        );
    }

    #[test]
    fn lines_go_on_after_a_backslash() {
        assert!(
            fenced("local all \\\npostgres peer", "postgres")
                .unwrap()
                .contains("local all \"postgres\" peer")
        );
    }
}
