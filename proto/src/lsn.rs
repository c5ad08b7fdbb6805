//! A position in the write-ahead log.

use std::fmt;
use std::str::FromStr;

/// A byte position in the write-ahead log, printed as PostgreSQL prints `pg_lsn`: two hexadecimal halves, `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// The text was not two hexadecimal numbers of up to eight digits with a slash between them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an LSN (expected the form 16/B374D848)")]
pub struct ParseLsnError(String);

impl Lsn {
    /// No position: PostgreSQL's `InvalidXLogRecPtr`.
    pub const INVALID: Lsn = Lsn(0);

    /// Whether this is a position at all.
    pub fn is_valid(self) -> bool {
        self != Self::INVALID
    }

    /// Bytes from `earlier` to this position; 0 when `earlier` is later.
    pub fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseLsnError(text.to_owned());
        let (high, low) = text.trim().split_once('/').ok_or_else(bad)?;
        let half = |s: &str| match s.len() {
            1..=8 if s.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u64::from_str_radix(s, 16).map_err(|_| bad())
            }
            _ => Err(bad()),
        };
        Ok(Lsn(half(high)? << 32 | half(low)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prints_as_postgres_does() {
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!(Lsn(0x2000_0000).to_string(), "0/20000000");
    }

    #[test]
    fn refuses_what_is_no_lsn() {
        for text in ["", "/", "1/", "/1", "1/2/3", "G/0", "123456789/0", "+1/0", "-1/0", "0x1/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trips(position: u64) {
            prop_assert_eq!(Lsn(position).to_string().parse::<Lsn>(), Ok(Lsn(position)));
        }
    }
}
