//! Numbers as people read them. Pure.

/// `1.4 GB`; powers of 1024 as PostgreSQL's `pg_size_pretty` has them.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["bytes", "kB", "MB", "GB", "TB", "PB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} bytes") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `850 ms`, `12.4 s`, `3m 05s`, `2h 07m`, `3d 04h`.
pub fn seconds(value: f64) -> String {
    let whole = value.max(0.0) as u64;
    match whole {
        0 => format!("{:.0} ms", value.max(0.0) * 1000.0),
        1..60 => format!("{value:.1} s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
        _ => format!("{}d {:02}h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// `4 of 9 tables`, bytes in their unit, nothing when nothing is known.
pub fn amount(done: u64, total: u64, unit: &str) -> String {
    let one = |n: u64| if unit == "bytes" { bytes(n) } else { n.to_string() };
    let suffix = if unit == "bytes" || unit.is_empty() { String::new() } else { format!(" {unit}") };
    match (done, total) {
        (0, 0) => String::new(),
        (done, 0) => format!("{}{suffix}", one(done)),
        (done, total) => format!("{} of {}{suffix}", one(done), one(total)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_well() {
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(1536), "1.5 kB");
        assert_eq!(bytes(u64::MAX), "16384.0 PB");
        assert_eq!(seconds(0.85), "850 ms");
        assert_eq!(seconds(12.44), "12.4 s");
        assert_eq!(seconds(185.0), "3m 05s");
        assert_eq!(seconds(7620.0), "2h 07m");
        assert_eq!(amount(4, 9, "tables"), "4 of 9 tables");
        assert_eq!(amount(1 << 30, 3 << 30, "bytes"), "1.0 GB of 3.0 GB");
    }
}
