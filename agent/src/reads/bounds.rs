//! Bounds on lag as the health endpoints take them: `lag=16MB`, `age=5s`. Pure.

/// What a node may be behind and still serve reads; none for any known lag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// Bytes of WAL.
    pub bytes: Option<u64>,
    /// Milliseconds.
    pub ms: Option<u64>,
}

impl Bounds {
    /// These bounds, as far as a query string gives others.
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn with_query(self, query: &str) -> Result<Bounds, String> {
        let mut bounds = self;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "lag" => bounds.bytes = Some(size(value)?),
                "age" => bounds.ms = Some(duration(value)?),
                _ => return Err(format!("unknown parameter \"{key}\": lag and age are known")),
            }
        }
        Ok(bounds)
    }
}

/// Bytes from `1024`, `16MB`, `64kB`: units of 1024 as in PostgreSQL, in any case.
///
/// # Errors
/// Says what would be understood.
pub fn size(text: &str) -> Result<u64, String> {
    let units: [(&str, u64); 6] =
        [("", 1), ("b", 1), ("kb", 1 << 10), ("mb", 1 << 20), ("gb", 1 << 30), ("tb", 1 << 40)];
    scaled(text, &units)
        .ok_or_else(|| format!("\"{text}\" is no size: a whole number and B, kB, MB, GB or TB"))
}

/// Milliseconds from `500ms`, `5s`, `2min`, `1h`, `1d`. A number alone could be meant either way and is refused.
///
/// # Errors
/// Says what would be understood.
pub fn duration(text: &str) -> Result<u64, String> {
    let units: [(&str, u64); 5] =
        [("ms", 1), ("s", 1_000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    scaled(text, &units)
        .ok_or_else(|| format!("\"{text}\" is no duration: a whole number and ms, s, min, h or d"))
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, factor) = units.iter().find(|(name, _)| unit.eq_ignore_ascii_case(name))?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_and_durations() {
        for (text, bytes) in [("0", 0), ("1024", 1024), ("16MB", 16 << 20), ("64kB", 65536), ("1tb", 1 << 40)]
        {
            assert_eq!(size(text), Ok(bytes));
        }
        for (text, ms) in [("500ms", 500), ("5s", 5_000), ("2min", 120_000), ("1H", 3_600_000)] {
            assert_eq!(duration(text), Ok(ms));
        }
        for text in ["", "MB", "-1MB", "1.5MB", "1 MB", "16M", "99999999999TB", "0x10", "1MB "] {
            assert!(size(text).is_err(), "{text:?}");
        }
        for text in ["", "5", "s", "-5s", "5 s", "5sec", "18446744073709551615h"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_query_changes_what_it_names() {
        let own = Bounds { bytes: Some(1), ms: None };
        assert_eq!(own.with_query("").unwrap(), own);
        assert_eq!(own.with_query("age=5s").unwrap(), Bounds { bytes: Some(1), ms: Some(5_000) });
        assert_eq!(own.with_query("lag=0&age=1ms").unwrap(), Bounds { bytes: Some(0), ms: Some(1) });
        for query in ["lag", "lag=", "age=x", "lags=1", "lag=1&x"] {
            assert!(own.with_query(query).is_err(), "{query}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_misread(text in "\\PC{0,12}") {
            if let Ok(bytes) = size(&text) {
                let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
                prop_assert!(digits.parse::<u64>().is_ok_and(|number| bytes % number.max(1) == 0));
            }
            let _ = duration(&text);
        }
    }
}
