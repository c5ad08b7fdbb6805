//! Where a REST API listens: `http://10.0.0.1:8008`, `https://[fd00::1]:8008`, or without a scheme, which means http.

use std::fmt;
use std::str::FromStr;

/// What Patroni listens on unless it is told otherwise.
const PORT: u16 = 8008;

/// Scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Whether it is https.
    pub tls: bool,
    /// A DNS name or an address; an IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// A text is no such address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not the address of a REST API; write it as http://10.0.0.1:8008, https://db1:8008 or http://[fd00::1]:8008"
)]
pub struct AddressError(pub String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let wrong = || AddressError(text.to_owned());
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(_) => return Err(wrong()),
            None => (false, text),
        };
        // Patroni tells the address of a member with a path behind it (`…/patroni`).
        let place = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (host, port) = match place.strip_prefix('[') {
            Some(bracketed) => {
                let (host, behind) = bracketed.split_once(']').ok_or_else(wrong)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
                let port = behind.strip_prefix(':').or(behind.is_empty().then_some("")).ok_or_else(wrong)?;
                (host, port)
            }
            None => place.split_once(':').unwrap_or((place, "")),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(plain) {
            return Err(wrong());
        }
        let port = if port.is_empty() { PORT } else { port.parse().map_err(|_| wrong())? };
        if port == 0 {
            return Err(wrong());
        }
        Ok(Address { tls, host: host.to_owned(), port })
    }
}

impl Address {
    /// `host:port`, with brackets where they are needed.
    pub fn place(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.place())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let whole = |text: &str| text.parse::<Address>().map(|address| address.to_string());
        for (text, expected) in [
            ("10.0.0.1:8008", "http://10.0.0.1:8008"),
            ("db1", "http://db1:8008"),
            ("https://db1.example:9", "https://db1.example:9"),
            ("http://[fd00::1]:8009/patroni", "http://[fd00::1]:8009"),
            ("[::1]", "http://[::1]:8008"),
        ] {
            assert_eq!(whole(text).as_deref(), Ok(expected), "{text}");
        }
        for text in
            ["", "ftp://db1", "http://", "db1:0", "db1:70000", "[::1", "[db1]:1", "a b:1", "::1", "u:p@db1:1"]
        {
            assert!(whole(text).is_err(), "{text}");
        }
    }
}
