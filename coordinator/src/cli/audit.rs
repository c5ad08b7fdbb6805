//! `pgleap audit`: who asked for what, when, and what became of it.

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use pgleap_proto::fleet::{AuditEntry, AuditRequest};

use super::output::{Out, Tone};
use super::{Connection, Outcome};

#[derive(Debug, Args)]
pub struct Audit {
    /// Only what was asked since then: a time (2026-11-27T18:00:00Z) or how long ago (2h, 3d)
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<Timestamp>,
    /// Only what is about this cluster or operation
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
}

/// A time, or how long ago.
fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    // Days are not a part of a duration, because not all have 24 hours; here they have.
    let days = text.strip_suffix('d').and_then(|days| days.parse::<i64>().ok());
    let ago = match days {
        Some(days) => days.checked_mul(24).and_then(SignedDuration::try_from_hours),
        None => text.parse().ok(),
    };
    let when = ago.filter(|ago| !ago.is_negative()).and_then(|ago| Timestamp::now().checked_sub(ago).ok());
    when.ok_or_else(|| "expected a time like 2026-11-27T18:00:00Z, or how long ago: 30m, 2h, 3d".to_owned())
}

impl Audit {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> Outcome {
        let since = self.since.map(|since| since.to_string()).unwrap_or_default();
        let request = AuditRequest { since, name: self.cluster.unwrap_or_default() };
        let reply = connection.open().await?.audit(request).await?.into_inner();
        if out.json {
            return Ok(out.value(&reply)?);
        }
        for entry in &reply.entries {
            let text = render(out, entry);
            out.line(&text)?;
        }
        if reply.forgotten > 0 {
            out.talk(&format!("{} older entries made room for newer ones", reply.forgotten));
        }
        Ok(())
    }
}

fn render(out: &Out, entry: &AuditEntry) -> String {
    let at = entry.at.split('.').next().unwrap_or(&entry.at);
    let tone = if entry.result == "refused" { Tone::Bad } else { Tone::Good };
    let count = if entry.count > 1 { format!("  {} times", entry.count) } else { String::new() };
    let cluster = if entry.subject.contains(&entry.cluster) { "" } else { &entry.cluster };
    let what = [cluster, &entry.subject, &entry.detail];
    let what = what.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  ");
    let mut text = format!(
        "{}  {}  {}  {}  {what}{count}",
        out.paint(Tone::Dim, at),
        out.paint(tone, &entry.result),
        entry.by,
        out.paint(Tone::Strong, &entry.verb),
    );
    if let Some(reason) = entry.reason.lines().next() {
        text.push_str(&format!("\n    {}", out.paint(Tone::Dim, reason)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_is_a_time_or_a_while_ago() {
        assert_eq!(since("1970-01-01T00:00:00Z").unwrap(), Timestamp::UNIX_EPOCH);
        let now = Timestamp::now();
        for (text, hours) in [("2h", 2), ("3d", 72)] {
            let ago = now.duration_since(since(text).unwrap());
            assert_eq!((ago.as_secs() + 1) / 3600, hours, "{text}");
        }
        assert!(since("yesterday").is_err() && since("-2h").is_err());
    }
}
