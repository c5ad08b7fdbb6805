//! Reads typed values out of a TOML tree, table by table; what is wrong with one becomes a fault, and reading goes on.

use std::collections::BTreeMap;

use pgleap_proto::bounds::MAX_VALUE_BYTES;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::reader::{Reader, without_indices};
use super::suggest::nearest;

/// Elements of one list.
const MAX_LIST: usize = 1000;

/// One table of the file, read key by key; [`Section::finish`] refuses the keys nobody asked for.
pub(super) struct Section<'r, 't> {
    pub(super) reader: &'r Reader<'t>,
    /// For example `cluster[0].new`.
    pub(super) path: String,
    table: Option<&'r DeTable<'t>>,
    known: Vec<&'static str>,
}

impl<'r, 't> Section<'r, 't> {
    pub(super) fn top(reader: &'r Reader<'t>, table: &'r DeTable<'t>) -> Self {
        Section { reader, path: String::new(), table: Some(table), known: Vec::new() }
    }

    /// Path of a key in this table.
    pub(super) fn at(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// A fault of a key of this table.
    pub(super) fn fault(&self, key: &str, message: impl Into<String>, cure: impl Into<String>) {
        self.reader.fault(&self.at(key), message, cure);
    }

    fn find(&mut self, key: &'static str) -> Option<&'r Spanned<DeValue<'t>>> {
        self.known.push(key);
        let value = self.table?.get(key)?;
        self.reader.remember(&self.at(key), value.span());
        Some(value)
    }

    fn wrong_type(&self, key: &str, found: &DeValue<'_>, wanted: &str, example: &str) {
        let message = format!("expected {wanted}, found {} {}", article(found.type_str()), found.type_str());
        self.fault(key, message, format!("write {key} = {example}"));
    }

    fn missing(&self, key: &str, example: &str) {
        // Under a table that is itself missing or mistyped this would only repeat that fault.
        if self.table.is_some() {
            self.fault(key, "is required and missing", format!("add {key} = {example}"));
        }
    }

    /// A text that may be left out.
    pub(super) fn optional_text(&mut self, key: &'static str, example: &str) -> Option<String> {
        let value = self.find(key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, value.get_ref(), "a text", example);
            return None;
        };
        if let Some(fault) = too_long(text) {
            self.fault(key, fault, "shorten it");
            return None;
        }
        if text.trim().is_empty() {
            self.fault(key, "is empty", format!("write {key} = {example}, or leave the key out"));
        } else if text.chars().any(char::is_control) {
            self.fault(key, "contains a control character", "remove it");
        }
        Some(text.to_owned())
    }

    /// A text that must be there; empty after a fault.
    pub(super) fn text(&mut self, key: &'static str, example: &str) -> String {
        let there = self.table.is_some_and(|table| table.contains_key(key));
        let text = self.optional_text(key, example);
        if !there {
            self.missing(key, example);
        }
        text.unwrap_or_default()
    }

    /// A whole number within bounds that may be left out.
    pub(super) fn optional_number(&mut self, key: &'static str, least: u64, most: u64) -> Option<u64> {
        let value = self.find(key)?;
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong_type(key, value.get_ref(), "a whole number", &least.to_string());
            return None;
        };
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        let fits = number.and_then(|n| u64::try_from(n).ok()).filter(|n| (least..=most).contains(n));
        if fits.is_none() {
            let bounds = format!("a number from {least} to {most}");
            let bounds = if most == u64::MAX { format!("{least} or more") } else { bounds };
            self.fault(key, format!("{integer} is out of range"), format!("write {bounds}"));
        }
        fits
    }

    /// A whole number that must be there; 0 after a fault.
    pub(super) fn number(&mut self, key: &'static str, least: u64, most: u64, example: &str) -> u64 {
        let there = self.table.is_some_and(|table| table.contains_key(key));
        let number = self.optional_number(key, least, most);
        if !there {
            self.missing(key, example);
        }
        number.unwrap_or_default()
    }

    /// A duration such as "10m", in milliseconds, that may be left out. Never zero.
    pub(super) fn optional_duration_ms(&mut self, key: &'static str) -> Option<u64> {
        self.optional_duration(key, "a duration above zero", |ms| ms > 0)
    }

    /// As [`Section::optional_duration_ms`], and may be `"0s"`.
    pub(super) fn optional_duration_or_none_ms(&mut self, key: &'static str) -> Option<u64> {
        self.optional_duration(key, "a duration", |_| true)
    }

    fn optional_duration(&mut self, key: &'static str, wanted: &str, good: fn(u64) -> bool) -> Option<u64> {
        let value = self.find(key)?;
        let parsed = value.get_ref().as_str().and_then(duration_ms).filter(|ms| good(*ms));
        if parsed.is_none() {
            let shown = value.get_ref().as_str().map_or_else(
                || format!("{} {}", article(value.get_ref().type_str()), value.get_ref().type_str()),
                |text| format!("\"{text}\""),
            );
            self.fault(
                key,
                format!("expected {wanted}, found {shown}"),
                format!("write {key} = \"10m\" (units: ms, s, m, h)"),
            );
        }
        parsed
    }

    /// A table under this one. An absent one reads as an empty table that raises no faults of its own.
    pub(super) fn section(&mut self, key: &'static str, required: Option<&str>) -> Section<'r, 't> {
        let path = self.at(key);
        let table = match self.find(key).map(Spanned::get_ref) {
            Some(DeValue::Table(table)) => Some(table),
            Some(other) => {
                self.wrong_type(key, other, "a table", "{ ... }");
                None
            }
            None => {
                if let Some(cure) = required.filter(|_| self.table.is_some()) {
                    self.fault(key, "is required and missing", cure);
                }
                None
            }
        };
        Section { reader: self.reader, path, table, known: Vec::new() }
    }

    /// A list of tables under this one; `cure` when it must not be empty.
    pub(super) fn sections(&mut self, key: &'static str, required: Option<&str>) -> Vec<Section<'r, 't>> {
        let path = self.at(key);
        let array = match self.find(key).map(Spanned::get_ref) {
            Some(DeValue::Array(array)) => Some(array),
            Some(other) => {
                self.wrong_type(
                    key,
                    other,
                    "a list of tables",
                    &format!("[{{ ... }}], or [[{}]]", without_indices(&path)),
                );
                return Vec::new();
            }
            None => None,
        };
        if array.is_none_or(|array| array.is_empty())
            && let Some(cure) = required.filter(|_| self.table.is_some())
        {
            self.fault(key, "is required and missing", cure);
        }
        let mut sections = Vec::new();
        for (index, value) in array.into_iter().flat_map(|array| array.iter()).enumerate() {
            let path = format!("{path}[{index}]");
            self.reader.remember(&path, value.span());
            match value.get_ref() {
                DeValue::Table(table) => sections.push(Section {
                    reader: self.reader,
                    path,
                    table: Some(table),
                    known: Vec::new(),
                }),
                other => {
                    let found =
                        format!("expected a table, found {} {}", article(other.type_str()), other.type_str());
                    self.reader.fault(&path, found, "write { key = value, ... }");
                }
            }
        }
        sections
    }

    /// Names and texts of a table whose keys are free; absent reads as empty.
    pub(super) fn texts(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let section = self.section(key, None);
        let mut texts = BTreeMap::new();
        for (name, value) in section.table.into_iter().flat_map(|table| table.iter()) {
            let name = name.get_ref().to_string();
            section.reader.remember(&section.at(&name), value.span());
            match value.get_ref().as_str() {
                Some(text) if name.len() + text.len() <= MAX_VALUE_BYTES => {
                    texts.insert(name, text.to_owned());
                }
                Some(_) => section.fault("", "has a name or text that is too long", "shorten it"),
                None => section.wrong_type(&name, value.get_ref(), "a text", "\"...\""),
            }
        }
        texts
    }

    /// A list of texts that may be left out: it then reads as empty.
    pub(super) fn list(&mut self, key: &'static str, example: &str) -> Vec<String> {
        let Some(value) = self.find(key) else { return Vec::new() };
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(key, value.get_ref(), "a list of texts", example);
            return Vec::new();
        };
        let mut texts = Vec::new();
        if array.len() > MAX_LIST {
            let message = format!("lists {} things, at most {MAX_LIST} are possible", array.len());
            self.fault(key, message, "shorten it");
            return texts;
        }
        for element in array.iter().map(Spanned::get_ref) {
            match element.as_str() {
                Some(text) if text.len() > MAX_VALUE_BYTES => {
                    self.fault(key, "has an element that is too long", "shorten it");
                }
                Some(text) if !text.trim().is_empty() && !text.chars().any(char::is_control) => {
                    texts.push(text.to_owned());
                }
                Some(_) => {
                    self.fault(key, "has an element that is empty or has a control character", "remove it")
                }
                None => self.wrong_type(key, element, "a text in the list", example),
            }
        }
        texts
    }

    /// One of these texts, that may be left out.
    pub(super) fn optional_choice(
        &mut self,
        key: &'static str,
        choices: &[&'static str],
    ) -> Option<&'static str> {
        let example = choices.first().map_or_else(String::new, |first| format!("\"{first}\""));
        let text = self.optional_text(key, &example)?;
        let found = choices.iter().find(|choice| **choice == text).copied();
        if found.is_none() {
            let known: Vec<String> = choices.iter().map(|choice| format!("\"{choice}\"")).collect();
            self.fault(key, format!("\"{text}\" is not known"), format!("write {}", known.join(" or ")));
        }
        found
    }

    /// True or false; false when left out.
    pub(super) fn optional_truth(&mut self, key: &'static str) -> bool {
        let Some(value) = self.find(key) else { return false };
        let truth = value.get_ref().as_bool();
        if truth.is_none() {
            self.wrong_type(key, value.get_ref(), "true or false", "true");
        }
        truth.unwrap_or_default()
    }

    /// Whether the table stands in the file.
    pub(super) fn exists(&self) -> bool {
        self.table.is_some()
    }

    /// Refuses every key that nothing has read.
    pub(super) fn finish(self) {
        for (key, _) in self.table.into_iter().flat_map(|table| table.iter()) {
            let name = key.get_ref().as_ref();
            if self.known.contains(&name) {
                continue;
            }
            let path = self.at(name);
            self.reader.remember(&path, key.span());
            let cure = match nearest(name, &self.known) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("remove it; known here: {}", self.known.join(", ")),
            };
            self.reader.fault(&path, "unknown key", cure);
        }
    }
}

fn too_long(text: &str) -> Option<String> {
    let length = text.len();
    (length > MAX_VALUE_BYTES).then(|| format!("has {length} bytes, at most {MAX_VALUE_BYTES} are possible"))
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// `250ms`, `90s`, `10m`, `2h`; none when it is not a duration, or beyond reason.
fn duration_ms(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale).filter(|ms| *ms <= 86_400_000 * 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration_ms("10m"), Some(600_000));
        assert_eq!(duration_ms("250 ms"), Some(250));
        assert_eq!(duration_ms("0s"), Some(0));
        for text in ["", "10", "m", "-1s", "1.5h", "10 weeks", "99999999999999999999s", "9000h"] {
            assert_eq!(duration_ms(text), None, "{text}");
        }
    }
}
