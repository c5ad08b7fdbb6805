//! Log lines as entries of systemd's journal: the whole line as its message, and every field of it and of the spans around it as a
//! field of its own (`PGLEAP_OPERATION`, `PGLEAP_STEP`, …), so that one operation can be followed.
//!
//! It speaks the journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL). It never blocks and never fails its caller: what the
//! journal does not take is lost.

use std::fmt::{Debug, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Where the journal listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
/// Longest message and longest field, in bytes: an entry of several must fit into one datagram (some 200 KiB).
const LONGEST: usize = 48 * 1024;

/// Sends what is logged to the journal.
pub(super) struct Journal {
    socket: UnixDatagram,
    identifier: String,
}

/// Fields of a span or an event in the order in which they were recorded.
#[derive(Default)]
struct Fields(Vec<(&'static str, String)>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }
}

impl Journal {
    /// A journal that listens there.
    ///
    /// # Errors
    /// When nobody does.
    pub(super) fn at(socket: &Path, identifier: &str) -> io::Result<Journal> {
        let to = UnixDatagram::unbound()?;
        to.connect(socket)?;
        to.set_nonblocking(true)?;
        Ok(Journal { socket: to, identifier: identifier.to_owned() })
    }
}

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(around) = span.extensions().get::<Fields>() {
                // What the event says itself is not said again.
                let new = around.0.iter().filter(|(name, _)| fields.0.iter().all(|(known, _)| known != name));
                let new: Vec<_> = new.cloned().collect();
                fields.0.extend(new);
            }
        }
        let metadata = event.metadata();
        let entry = entry(*metadata.level(), metadata.target(), &self.identifier, &fields);
        let _ = self.socket.send(&entry);
    }
}

fn entry(level: Level, target: &str, identifier: &str, fields: &Fields) -> Vec<u8> {
    let message = |(name, value): &(&str, String)| (*name == "message").then(|| value.clone());
    let mut line = fields.0.iter().find_map(message).unwrap_or_default();
    let mut entry = Vec::with_capacity(512);
    for (name, value) in fields.0.iter().filter(|(name, _)| *name != "message") {
        let _ = write!(line, "{}{name}={value}", if line.is_empty() { "" } else { " " });
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
            .collect();
        put(&mut entry, &format!("{}_{name}", super::FIELD_PREFIX), value);
    }
    let priority = match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    };
    put(&mut entry, "PRIORITY", priority);
    put(&mut entry, "SYSLOG_IDENTIFIER", identifier);
    put(&mut entry, "TARGET", target);
    put(&mut entry, "MESSAGE", &line);
    entry
}

/// Name, newline, length in 64 bits, value, newline: the form that may hold anything.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let end = (0..=LONGEST.min(value.len())).rev().find(|at| value.is_char_boundary(*at)).unwrap_or(0);
    let value = value.get(..end).unwrap_or_default();
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use tracing_subscriber::layer::SubscriberExt;

    /// As the journal reads an entry.
    fn read(mut entry: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
            let name = String::from_utf8(entry[..end].to_vec()).unwrap();
            let length = u64::from_le_bytes(entry[end + 1..end + 9].try_into().unwrap()) as usize;
            let value = String::from_utf8(entry[end + 9..end + 9 + length].to_vec()).unwrap();
            entry = &entry[end + 10 + length..];
            assert_eq!(fields.insert(name, value), None);
        }
        fields
    }

    /// The entries that come of what `log` logs.
    fn entries(log: impl FnOnce()) -> Vec<BTreeMap<String, String>> {
        let directory = tempfile::tempdir().unwrap();
        let listening = UnixDatagram::bind(directory.path().join("socket")).unwrap();
        listening.set_nonblocking(true).unwrap();
        let journal = Journal::at(&directory.path().join("socket"), "test").unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), log);
        let mut entry = vec![0; 256 * 1024];
        std::iter::from_fn(|| listening.recv(&mut entry).ok().map(|length| read(&entry[..length]))).collect()
    }

    #[test]
    fn an_entry_has_the_whole_line_and_every_field_around_it() {
        let entries = entries(|| {
            let span = tracing::info_span!("run", operation = "ledger-1", step = tracing::field::Empty);
            span.record("step", "upgrade");
            let _entered = span.enter();
            tracing::warn!(error = %"no\nspace", "failed");
            tracing::info!(operation = "other", "seen");
        });
        let field =
            |entry: usize, name: &str| entries[entry].get(name).map(String::as_str).unwrap_or_default();
        assert_eq!(field(0, "MESSAGE"), "failed error=no\nspace operation=ledger-1 step=upgrade");
        assert_eq!(field(0, "PGLEAP_OPERATION"), "ledger-1");
        assert_eq!(field(0, "PGLEAP_STEP"), "upgrade");
        assert_eq!(field(0, "PGLEAP_ERROR"), "no\nspace");
        assert_eq!((field(0, "PRIORITY"), field(1, "PRIORITY")), ("4", "6"));
        assert_eq!(field(0, "SYSLOG_IDENTIFIER"), "test");
        assert_eq!(field(1, "PGLEAP_OPERATION"), "other");
    }

    #[test]
    fn a_line_too_long_is_cut_and_still_sent() {
        let entries = entries(|| tracing::info!("{}", "☃".repeat(LONGEST)));
        assert!(entries[0]["MESSAGE"].len() > LONGEST - 3);
    }
}
