//! A client authentication file cut into lines, fields and names, as hba.c does it (`next_token`, `next_field_expand`).

/// A name of a list, or the word of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    /// As it stands in the file, quotes included.
    pub raw: String,
    /// What PostgreSQL compares.
    pub text: String,
    /// It begins with a quote: keywords and `+` lose their meaning, `@` too; `/` keeps it.
    pub quoted: bool,
}

impl Token {
    pub(super) fn is_keyword(&self, word: &str) -> bool {
        !self.quoted && self.text == word
    }
}

/// A line that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it begins in the file, counted from 1.
    pub number: usize,
    /// The first fields: type, databases, users. Fewer when the line is broken, or an include.
    pub fields: Vec<Vec<Token>>,
    /// Everything behind them, as it stands there.
    pub rest: String,
}

/// The lines with their numbers. One with a backslash at its end goes on in the next (14 and later; earlier none such is
/// valid), also within a comment.
pub(super) fn lines(text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut open = String::new();
    let mut begun = 1;
    for (at, line) in text.lines().enumerate() {
        if open.is_empty() {
            begun = at + 1;
        }
        if let Some(part) = line.strip_suffix('\\') {
            open.push_str(part);
            continue;
        }
        open.push_str(line);
        lines.extend(cut(begun, &std::mem::take(&mut open)));
    }
    lines.extend(cut(begun, &open));
    lines
}

fn cut(number: usize, line: &str) -> Option<Line> {
    let mut scanner = Scanner { rest: line };
    let mut fields = Vec::new();
    while fields.len() < 3 {
        match scanner.field() {
            Some(field) => fields.push(field),
            None => break,
        }
    }
    (!fields.is_empty()).then(|| Line { number, fields, rest: scanner.rest.trim().to_owned() })
}

struct Scanner<'l> {
    rest: &'l str,
}

impl Scanner<'_> {
    /// A list of names: it goes on after a comma that ends a name, also over blanks.
    fn field(&mut self) -> Option<Vec<Token>> {
        let mut tokens = Vec::new();
        while let Some(token) = self.token() {
            tokens.push(token);
            if !self.rest.starts_with(',') {
                break;
            }
        }
        (!tokens.is_empty()).then_some(tokens)
    }

    fn token(&mut self) -> Option<Token> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', ',']);
        let (mut text, mut saw_quote, mut in_quote, mut was_quote) = (String::new(), false, false, false);
        let quoted = self.rest.starts_with('"');
        let mut end = self.rest.len();
        for (at, c) in self.rest.char_indices() {
            if !in_quote && (matches!(c, ' ' | '\t' | '\r' | ',')) {
                end = at;
                break;
            }
            if !in_quote && c == '#' {
                // The rest is a comment.
                let raw = self.rest.get(..at).unwrap_or_default().to_owned();
                self.rest = "";
                return (saw_quote || !text.is_empty()).then_some(Token { raw, text, quoted });
            }
            // A quote within quotes is written twice.
            if c != '"' || was_quote {
                text.push(c);
            }
            was_quote = in_quote && c == '"' && !was_quote;
            if c == '"' {
                in_quote = !in_quote;
                saw_quote = true;
            }
        }
        let (raw, rest) = self.rest.split_at(end);
        self.rest = rest;
        (saw_quote || !text.is_empty()).then(|| Token { raw: raw.to_owned(), text, quoted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(line: &str) -> Vec<Vec<String>> {
        let line = lines(line).remove(0);
        line.fields.iter().map(|field| field.iter().map(|token| token.text.clone()).collect()).collect()
    }

    #[test]
    fn lists_quotes_and_comments_are_cut_as_postgres_cuts_them() {
        assert_eq!(texts(r#"host a,b "c d" md5"#), [vec!["host"], vec!["a", "b"], vec!["c d"]]);
        assert_eq!(texts("host a, b c 1.2.3.4/32 md5"), [vec!["host"], vec!["a", "b"], vec!["c"]]);
        assert_eq!(texts("host a ,b c"), [vec!["host"], vec!["a"], vec!["b"]]);
        assert_eq!(
            texts(r#"host "we""ird,☃" "/^a\d{2,4}$" x"#)[1..],
            [vec!["we\"ird,☃"], vec!["/^a\\d{2,4}$"]]
        );
        assert_eq!(texts("local all all#x"), [["local"], ["all"], ["all"]]);
        assert!(lines("# local all all\n\n  \n").is_empty());
    }

    #[test]
    fn lines_go_on_after_a_backslash_and_keep_their_number() {
        let text = "# c\nlocal all \\\npostgres peer map=x\nhost a b 0.0.0.0/0 trust # no\n";
        let found = lines(text);
        assert_eq!((found[0].number, found[0].rest.as_str()), (2, "peer map=x"));
        assert_eq!((found[1].number, found[1].rest.as_str()), (4, "0.0.0.0/0 trust # no"));
        assert!(lines("# comment \\\nlocal all all trust").is_empty(), "the comment goes on");
    }

    #[test]
    fn a_quote_takes_its_meaning_from_a_keyword() {
        let found = lines(r#"local "all" all peer"#).remove(0);
        assert!(!found.fields[1][0].is_keyword("all") && found.fields[2][0].is_keyword("all"));
        assert_eq!(found.fields[1][0].raw, r#""all""#);
    }
}
