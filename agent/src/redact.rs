//! Takes secrets out of texts that leave the host or go into a log: what tools print and servers log may hold a connection
//! string, a statement that sets a password, or a URL with a user in it. Pure.
//!
//! Errors and log lines of steps pass through here when they are made. It is the last line, not the first: what pgleap itself
//! says, it says without secrets.

use std::ops::Range;

/// Stands for a secret.
const MASK: &str = "***";
/// Words that a secret follows, after `=` or `:` or in quotes.
const KEYS: [&str; 3] = ["password", "passwd", "passphrase"];
/// Beginnings of stored password hashes, and how they go on.
const HASHES: [Hash; 2] = [
    ("SCRAM-SHA-256$", |c| c.is_ascii_alphanumeric() || "$:+/=".contains(c)),
    ("md5", |c| c.is_ascii_hexdigit()),
];
/// How a hash begins, and what it goes on with.
type Hash = (&'static str, fn(char) -> bool);
/// Length of an md5 hash.
const MD5: usize = 32;

/// The text without secrets.
pub fn redacted(text: impl Into<String>) -> String {
    let mut text = text.into();
    let mut secrets = Vec::new();
    // The same length in bytes: only ASCII letters change.
    let lower = text.to_ascii_lowercase();
    for key in KEYS {
        for (at, _) in lower.match_indices(key) {
            secrets.extend(after_key(&text, at + key.len()));
        }
    }
    for (at, _) in text.match_indices("://") {
        secrets.extend(in_url(&text, at + 3));
    }
    for (begin, goes_on) in HASHES {
        for (at, _) in text.match_indices(begin) {
            let from = at + begin.len();
            let length = run(&text, from, goes_on);
            if begin != "md5" || length == MD5 {
                secrets.push(from..from + length);
            }
        }
    }
    secrets.retain(|secret| !secret.is_empty());
    secrets.sort_by_key(|secret| (secret.start, std::cmp::Reverse(secret.end)));
    // What overlaps is one: a quote that one key opens may be closed by the one before the next secret.
    let mut masked: Vec<Range<usize>> = Vec::new();
    for secret in secrets {
        match masked.last_mut() {
            Some(last) if secret.start < last.end => last.end = last.end.max(secret.end),
            _ => masked.push(secret),
        }
    }
    for secret in masked.into_iter().rev() {
        text.replace_range(secret, MASK);
    }
    text
}

fn rest(text: &str, from: usize) -> &str {
    text.get(from..).unwrap_or_default()
}

/// Bytes of the characters from there on for which this holds.
fn run(text: &str, from: usize, holds: impl Fn(char) -> bool) -> usize {
    let rest = rest(text, from);
    rest.find(|c| !holds(c)).unwrap_or(rest.len())
}

/// `password=x`, `password = 'x'`, `"password": "x"`, `PASSWORD 'x'`; not `password authentication failed`.
fn after_key(text: &str, end: usize) -> Option<Range<usize>> {
    // The quote that ends a quoted key, or the rest of PGPASSWORD_FILE and its like, which is no secret.
    let mut at = end + usize::from(rest(text, end).starts_with('"'));
    at += run(text, at, |c| c == ' ' || c == '\t');
    let assigned = rest(text, at).starts_with(['=', ':']);
    if assigned {
        at += 1;
        at += run(text, at, |c| c == ' ' || c == '\t');
    }
    let quote = rest(text, at).chars().next().filter(|c| matches!(c, '\'' | '"'));
    match quote {
        Some(quote) => Some(at..at + quoted(rest(text, at), quote)),
        None if assigned => {
            Some(at..at + run(text, at, |c| !c.is_whitespace() && !matches!(c, '"' | ',' | ';')))
        }
        None => None,
    }
}

/// Length of a quoted text with its quotes; doubled and escaped ones are inside. One that does not end goes to the end of the line.
fn quoted(text: &str, quote: char) -> usize {
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = characters.next() {
        match c {
            '\n' => return at,
            '\\' => drop(characters.next()),
            c if c == quote => match characters.peek() {
                Some((_, next)) if *next == quote => drop(characters.next()),
                _ => return at + quote.len_utf8(),
            },
            _ => {}
        }
    }
    text.len()
}

/// The password of `user:password@host`.
fn in_url(text: &str, from: usize) -> Option<Range<usize>> {
    let authority = run(text, from, |c| !c.is_whitespace() && !matches!(c, '/' | '?' | '#' | '"' | '\''));
    let authority = text.get(from..from + authority)?;
    let (user, _) = authority.rsplit_once('@')?;
    let (name, _) = user.split_once(':')?;
    Some(from + name.len() + 1..from + user.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_are_masked_and_what_is_none_stays() {
        let cases = [
            ("host=db1 password=canary user=x", "host=db1 password=*** user=x"),
            ("password = 'can\\'ary' user=x", "password = *** user=x"),
            ("sslpassword='can''ary' x", "sslpassword=*** x"),
            ("password='canary", "password=***"),
            ("a password='canary\nnext line", "a password=***\nnext line"),
            (r#"{"password": "canary", "user": "x"}"#, r#"{"password": ***, "user": "x"}"#),
            ("STATEMENT:  ALTER ROLE x PASSWORD 'canary';", "STATEMENT:  ALTER ROLE x PASSWORD ***;"),
            ("PGPASSWORD=canary psql", "PGPASSWORD=*** psql"),
            ("POST http://app:canary@127.0.0.1:80/x", "POST http://app:***@127.0.0.1:80/x"),
            ("postgresql://u:can@ary@h/db?password=canary", "postgresql://u:***@h/db?password=***"),
            ("\"u\" \"SCRAM-SHA-256$4096:c2FsdA==$a=:b=\"", "\"u\" \"SCRAM-SHA-256$***\""),
            ("x md50123456789abcdef0123456789abcdef y", "x md5*** y"),
        ];
        for (text, expected) in cases {
            assert_eq!(redacted(text), expected);
        }
        for text in [
            "FATAL:  password authentication failed for user \"x\"",
            "correct user, password file or pg_hba.conf",
            "--no-password -d app",
            "http://127.0.0.1:8080/pgleap",
            "host all all 10.0.0.0/8 md5",
            "passfile='/home/x/.pgpass'",
            "2026-11-27 18:00:00.000 UTC [1] LOG:  ☃",
        ] {
            assert_eq!(redacted(text), text);
        }
    }

    proptest! {
        #[test]
        fn a_password_is_masked_whatever_stands_around_it(
            before in "(password|://|@|:|=|'|\"|\\\\|md5|é|[a-f0-9]{32}| |\n){0,12}",
            after in "(password|://|@|:|=|'|\"|\\\\|md5|é|[a-f0-9]{32}| |\n){0,12}",
            quote in "'|\"|",
        ) {
            let text = format!("{before} password={quote}canary{quote} {after}");
            prop_assert!(!redacted(text.clone()).contains("canary"), "{:?}", redacted(text));
        }
    }
}
