//! What a replica may ask the leader's rsync to do: the exact shape that our own client makes rsync send. Pure.
//!
//! Nothing the client sends reaches the sender's command line as it came. Options are checked letter by letter
//! against what `rsync --archive --hard-links --relative` generates; a path only selects one of the offered
//! directories, and the command line is then written from the offer. Filter rules do not come as arguments:
//! [`super::filters`].

use std::path::{Component, Path, PathBuf};

/// Letters that `--archive --hard-links --relative` puts before the `e`: links, hard links, owner, group, devices,
/// times, perms, recursive, relative, and verbosity.
const LETTERS: &str = "lHogDtprRv";
/// Long options that our client uses and rsync forwards to the sender.
const LONG: [&str; 2] = ["--numeric-ids", "--no-implied-dirs"];
/// Seed and data directory, or the two directories of a tablespace.
const MOST_PATHS: usize = 2;

/// A request that has the right shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SenderRequest {
    /// Options to hand on, all of them from the allow-list.
    pub options: Vec<String>,
    /// What to read, each `base` and the part below it that the receiver is to see.
    pub sources: Vec<Source>,
}

/// One requested directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Before `/./`.
    pub base: PathBuf,
    /// After it; empty for the directory itself.
    pub below: PathBuf,
}

/// Reads the arguments that rsync gave to its remote shell, from the program's name on.
///
/// # Errors
/// Says which argument was refused.
pub fn parse(arguments: &[String]) -> Result<SenderRequest, String> {
    let [program, server, sender, rest @ ..] = arguments else {
        return Err("too few arguments".to_owned());
    };
    if program != "rsync" || server != "--server" || sender != "--sender" {
        return Err("only `rsync --server --sender` is served".to_owned());
    }
    let dot =
        rest.iter().position(|argument| argument == ".").ok_or("the \".\" before the paths is missing")?;
    let (options, paths) = (&rest[..dot], &rest[dot + 1..]);
    let (short, long): (Vec<&String>, Vec<&String>) =
        options.iter().partition(|option| !option.starts_with("--"));
    let [short] = short[..] else {
        return Err("exactly one group of one-letter options is expected".to_owned());
    };
    check_short(short)?;
    if let Some(option) = long.iter().find(|option| !LONG.contains(&option.as_str())) {
        return Err(format!("option {option:?} is not allowed"));
    }
    if paths.is_empty() || paths.len() > MOST_PATHS {
        return Err(format!("{} paths; one or two are expected", paths.len()));
    }
    let sources = paths.iter().map(|path| parse_source(path)).collect::<Result<_, _>>()?;
    let options = options.iter().map(|option| without_negotiation(option)).collect();
    Ok(SenderRequest { options, sources })
}

/// `-lHogDtprRe.LsfxCIvu`: allowed letters, each once, then `e` with the protocol's capabilities, which always ends the
/// group.
fn check_short(group: &str) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("options {group:?}: {why}"));
    let Some(letters) = group.strip_prefix('-') else { return refuse("not an option") };
    let (letters, capabilities) = letters.split_once('e').unwrap_or((letters, ""));
    for (index, letter) in letters.char_indices() {
        if !LETTERS.contains(letter) || letters[..index].contains(letter) {
            return refuse("a letter that our own client never sends");
        }
    }
    if !letters.contains('r') || !letters.contains('R') {
        return refuse("a recursive transfer with relative names is expected");
    }
    if !capabilities.chars().all(|c| c.is_ascii_alphanumeric() || c == '.') {
        return refuse("capabilities have unexpected characters");
    }
    Ok(())
}

/// Without the capability `v`, with which the client would name checksums before its filter rules: where those begin
/// would then depend on both rsync's versions (see [`super::filters`]). MD5 is used instead.
fn without_negotiation(option: &str) -> String {
    match option.split_once('e') {
        Some((letters, capabilities)) if !option.starts_with("--") => {
            format!("{letters}e{}", capabilities.replace('v', ""))
        }
        _ => option.to_owned(),
    }
}

fn parse_source(argument: &str) -> Result<Source, String> {
    let refuse = |why: &str| Err(format!("path {argument:?} {why}"));
    let Some(path) = unescaped(argument) else { return refuse("ends in a backslash") };
    if path.chars().any(char::is_control) {
        return refuse("has control characters");
    }
    let mut halves = path.split("/./");
    let (Some(base), Some(below), None) = (halves.next(), halves.next(), halves.next()) else {
        return refuse("does not have exactly one \"/./\"");
    };
    let source =
        Source { base: PathBuf::from(if base.is_empty() { "/" } else { base }), below: below.into() };
    if !source.base.is_absolute() || source.below.is_absolute() {
        return refuse("is not absolute");
    }
    let climbs = |path: &Path| path.components().any(|part| part == Component::ParentDir);
    if climbs(&source.base) || climbs(&source.below) {
        return refuse("contains \"..\"");
    }
    Ok(source)
}

/// Takes back the quoting that rsync (since 3.2.4) adds for a remote shell: a backslash before each character a shell
/// could interpret. There is no shell here, so nothing else is interpreted: wildcards stay characters.
fn unescaped(argument: &str) -> Option<String> {
    let mut plain = String::with_capacity(argument.len());
    let mut characters = argument.chars();
    while let Some(character) = characters.next() {
        plain.push(if character == '\\' { characters.next()? } else { character });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<SenderRequest, String> {
        parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn takes_what_our_client_sends() {
        let line = "rsync --server --sender -lHogDtprRe.LsfxCIvu --numeric-ids --no-implied-dirs . /n3/./15 /n3/./18";
        let request = parsed(line).unwrap();
        assert_eq!(request.options, ["-lHogDtprRe.LsfxCIu", "--numeric-ids", "--no-implied-dirs"]);
        assert_eq!(request.sources[0], Source { base: "/n3".into(), below: "15".into() });
        assert_eq!(request.sources[1], Source { base: "/n3".into(), below: "18".into() });
    }

    #[test]
    fn takes_back_the_quoting_and_interprets_nothing() {
        let path = |text: &str| {
            let mut arguments: Vec<String> =
                ["rsync", "--server", "--sender", "-rRe.", "."].map(str::to_owned).to_vec();
            arguments.push(text.to_owned());
            parse(&arguments).map(|request| request.sources[0].base.join(&request.sources[0].below))
        };
        assert_eq!(path(r"/n\ 3/./a\'b").unwrap(), Path::new("/n 3/a'b"));
        assert_eq!(path("/n 3/./15").unwrap(), Path::new("/n 3/15"), "rsync before 3.2.4 does not quote");
        assert_eq!(path("/n3/./$(id)*").unwrap(), Path::new("/n3/$(id)*"), "just characters");
        assert!(path(r"/n3/./\").is_err());
        assert!(path("/n3/./a\nb").is_err());
    }

    #[test]
    fn refuses_attacks() {
        for (line, part) in [
            ("rsync --server", "too few"),
            ("rsync --server --daemon .", "only"),
            ("rsync --daemon --sender -rRe. . /a/./b", "only"),
            ("rsync --server -rRe. . /a/./b", "only"),
            ("sh --server --sender -rRe. . /a/./b", "only"),
            ("/bin/rsync --server --sender -rRe. . /a/./b", "only"),
            ("rsync --server --sender -rRe. --remove-source-files . /a/./b", "not allowed"),
            ("rsync --server --sender -rRe. --files-from=/etc/passwd . /a/./b", "not allowed"),
            ("rsync --server --sender -rRe. --temp-dir=/x . /a/./b", "not allowed"),
            ("rsync --server --sender -rRe. --numeric-ids=x . /a/./b", "not allowed"),
            ("rsync --server --sender -rRe. --log-file=/x . /a/./b", "not allowed"),
            ("rsync --server --sender -rRse. . /a/./b", "never sends"),
            ("rsync --server --sender -rRLe. . /a/./b", "never sends"),
            ("rsync --server --sender -rRke. . /a/./b", "never sends"),
            ("rsync --server --sender -rrRe. . /a/./b", "never sends"),
            ("rsync --server --sender -rRe.;id . /a/./b", "unexpected"),
            ("rsync --server --sender -rRe.=/bin/sh . /a/./b", "unexpected"),
            ("rsync --server --sender -re. . /a/./b", "relative"),
            ("rsync --server --sender -rRe. -rRe. . /a/./b", "exactly one"),
            ("rsync --server --sender . /a/./b", "exactly one"),
            ("rsync --server --sender -rRe. /a/./b", "missing"),
            ("rsync --server --sender -rRe. .", "0 paths"),
            ("rsync --server --sender -rRe. . /a/./b /a/./c /a/./d", "3 paths"),
            ("rsync --server --sender -rRe. . /a/b", "exactly one"),
            ("rsync --server --sender -rRe. . /a/./b/./c", "exactly one"),
            ("rsync --server --sender -rRe. . a/./b", "not absolute"),
            ("rsync --server --sender -rRe. . /a/.//etc", "not absolute"),
            ("rsync --server --sender -rRe. . /a/./../b", "\"..\""),
            ("rsync --server --sender -rRe. . /a/../c/./b", "\"..\""),
            (r"rsync --server --sender -rRe. . /a/./.\./b", "\"..\""),
            ("rsync --server --sender -rRe. . --daemon", "exactly one"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
