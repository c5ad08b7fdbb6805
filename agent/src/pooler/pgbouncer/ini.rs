//! PgBouncer's configuration text: where its database entries are, and which server each one reaches. Pure.
//!
//! The rules are those of libusual's `cfparser.c` and of PgBouncer's `loader.c`, checked on 1.18: one entry a line, no
//! comments behind values, keys of letters, digits and `_.-*` (or, in newer versions, in double quotes), values as
//! connection strings in which the last of two equal keys wins.

use std::ops::Range;

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// `[name]`: open from here on, also behind the end of an included file.
    Section(String),
    /// `name = value`.
    Entry(Entry),
    /// `%include FILE`: read at this place, in the section that is open here.
    Include(String),
}

/// One `name = value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// In `[databases]` the name clients use; `*` for every name that is not listed.
    pub name: String,
    /// Place of the value in the text: in `[databases]` a connection string.
    pub value: Range<usize>,
    /// Its line, counted from 1.
    pub line: usize,
}

/// One `key=value` of a connection string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The key.
    pub key: String,
    /// The value without its quotes.
    pub value: String,
    /// Place of the value, quotes included, in the connection string.
    pub place: Range<usize>,
}

/// Reads a text.
///
/// # Errors
/// Names the line that PgBouncer would refuse.
pub fn items(text: &str) -> Result<Vec<Item>, String> {
    let mut items = Vec::new();
    let mut at = 0;
    for (number, whole) in text.split_inclusive('\n').enumerate() {
        let begin = at;
        at += whole.len();
        let line = whole.trim_start();
        let start = begin + whole.len() - line.len();
        let line = line.trim_end();
        let refuse = |what: &str| Err(format!("line {}: {what}", number + 1));
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(rest) = line.strip_prefix("%include").filter(|rest| rest.starts_with([' ', '\t'])) {
            items.push(Item::Include(rest.trim().to_owned()));
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            match rest.split_once(']') {
                Some((name, "")) => items.push(Item::Section(name.to_owned())),
                // PgBouncer would go on in the same line; nobody writes so, and guessing would be worse.
                Some(_) => return refuse("something stands behind a section's name"),
                None => return refuse("a section's name without its ]"),
            }
            continue;
        }
        let Some((name, length)) = key(line) else { return refuse("a name is expected here") };
        let Some(rest) = line.get(length..).map(str::trim_start).and_then(|rest| rest.strip_prefix('='))
        else {
            return refuse(&format!("\"{name}\" without ="));
        };
        let value = rest.trim_start_matches([' ', '\t']);
        let from = start + line.len() - value.len();
        items.push(Item::Entry(Entry { name, value: from..from + value.len(), line: number + 1 }));
    }
    Ok(items)
}

/// The key at a line's beginning, and its length in the text.
fn key(line: &str) -> Option<(String, usize)> {
    if let Some(quoted) = line.strip_prefix('"') {
        let (mut name, mut rest, mut length) = (String::new(), quoted, 1);
        loop {
            let end = rest.find('"')?;
            name.push_str(rest.get(..end)?);
            length += end + 1;
            rest = rest.get(end + 1..)?;
            match rest.strip_prefix('"') {
                Some(after) => {
                    name.push('"');
                    length += 1;
                    rest = after;
                }
                None => return Some((name, length)),
            }
        }
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-*".contains(c);
    let length = line.find(|c| !plain(c)).unwrap_or(line.len());
    (length > 0).then(|| (line.get(..length).unwrap_or_default().to_owned(), length))
}

/// Splits a connection string.
///
/// # Errors
/// When PgBouncer would refuse it.
pub fn pairs(text: &str) -> Result<Vec<Pair>, String> {
    let mut pairs = Vec::new();
    let mut at = 0;
    let skip = |at: usize| text.get(at..).map_or(at, |rest| at + rest.len() - rest.trim_start().len());
    loop {
        at = skip(at);
        let rest = text.get(at..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(pairs);
        }
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let key = rest.get(..end).unwrap_or_default().to_owned();
        at = skip(at + end);
        if key.is_empty() || !text.get(at..).unwrap_or_default().starts_with('=') {
            // Never the text itself: it may hold a password.
            return Err("the value is no connection string: it has a word without =".to_owned());
        }
        at = skip(at + 1);
        let (value, length) = value(text.get(at..).unwrap_or_default())
            .ok_or_else(|| format!("the value of {key} has a quote that does not end"))?;
        pairs.push(Pair { key, value, place: at..at + length });
        at += length;
    }
}

/// The value at the beginning, and its length with quotes.
fn value(text: &str) -> Option<(String, usize)> {
    let Some(quoted) = text.strip_prefix('\'') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        return text.get(..end).map(|value| (value.to_owned(), end));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        if c != '\'' {
            value.push(c);
        } else if characters.next_if(|(_, next)| *next == '\'').is_some() {
            value.push('\'');
        } else {
            return Some((value, at + 2));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let told = items(text).unwrap().into_iter().map(|item| match item {
            Item::Entry(Entry { name, value, line }) => format!("{line} {name} {}", &text[value]),
            Item::Section(name) => format!("[{name}]"),
            Item::Include(path) => format!("%{path}"),
        });
        told.collect()
    }

    #[test]
    fn entries_are_found_whatever_is_around_them() {
        let text = "; a = host=x\n[databases]\n\n  app = host=a port=1 \r\n# b = host=b\n\tc.d-e_F*=\n\
                    \"we\"\"ird ☃\" = host='b c'\n%include /etc/x y.ini \n* =\thost=a\n [pgbouncer]\npool_mode = session";
        let expected = [
            "[databases]",
            "4 app host=a port=1",
            "6 c.d-e_F* ",
            "7 we\"ird ☃ host='b c'",
            "%/etc/x y.ini",
            "9 * host=a",
            "[pgbouncer]",
            "11 pool_mode session",
        ];
        assert_eq!(found(text), expected);
    }

    #[test]
    fn what_pgbouncer_refuses_is_refused_with_its_line() {
        for (text, expected) in [
            ("[databases]\napp", "line 2: \"app\" without ="),
            ("[databases\n", "line 1"),
            ("[databases]\n\n= host=a", "line 3"),
        ] {
            let error = items(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(pairs("host=127.0.0.1 ; c").unwrap_err().contains("no connection string"));
        assert!(pairs("host='b").unwrap_err().contains("quote"));
    }

    #[test]
    fn connection_strings_are_split_as_pgbouncer_does() {
        let split = |text: &str| -> Vec<(String, String, String)> {
            let pairs = pairs(text).unwrap().into_iter();
            pairs.map(|pair| (pair.key, pair.value, text[pair.place].to_owned())).collect()
        };
        assert_eq!(
            split("host = 'a''b'  port=5 dbname='x y'"),
            [("host", "a'b", "'a''b'"), ("port", "5", "5"), ("dbname", "x y", "'x y'")].map(|(a, b, c)| (
                a.to_owned(),
                b.to_owned(),
                c.to_owned()
            ))
        );
        assert!(split("").is_empty());
    }
}
