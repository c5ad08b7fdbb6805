//! The keys about many operations at once: `[limits]`, `[[window]]` and `[[wave]]`.

use super::many::{DAYS, WaveSpec, Who, WindowSpec};
use super::policy::Limits;
use super::read::small;
use super::section::Section;

/// Enough to be quick, few enough that a person can follow what fails.
const OPERATIONS: u32 = 20;
const MOST: u64 = 100_000;

pub(super) fn limits(mut section: Section<'_, '_>) -> Limits {
    let operations = section.optional_number("operations", 1, MOST).map_or(OPERATIONS, small);
    let per_rack = section.optional_number("per_rack", 1, MOST).map(small);
    section.finish();
    Limits { operations: Some(operations), per_rack }
}

pub(super) fn window(mut section: Section<'_, '_>) -> WindowSpec {
    let clusters = section.list("clusters", "[\"ledger\"]");
    let days = section.list("days", "[\"sat\", \"sun\"]");
    if let Some(day) = days.iter().find(|day| !DAYS.contains(&day.as_str())) {
        section.fault("days", format!("\"{day}\" is no day"), format!("use {}", DAYS.join(", ")));
    }
    let from = time(&mut section, "from", "\"22:00\"");
    let to = time(&mut section, "to", "\"04:00\"");
    let zone = section.text("zone", "\"Europe/Zurich\"");
    section.finish();
    WindowSpec { clusters, days, from, to, zone }
}

/// `22:00` as minutes of the day; 24:00 is its end.
fn time(section: &mut Section<'_, '_>, key: &'static str, example: &str) -> u16 {
    let text = section.text(key, example);
    let parsed = text.split_once(':').and_then(|(hours, minutes)| {
        let digits = |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        let (hours, minutes) =
            (digits(hours) && digits(minutes)).then(|| (hours.parse::<u16>(), minutes.parse::<u16>()))?;
        let (hours, minutes) = (hours.ok()?, minutes.ok()?);
        (minutes < 60 && hours * 60 + minutes <= 1440).then_some(hours * 60 + minutes)
    });
    if parsed.is_none() && !text.is_empty() {
        section.fault(key, format!("\"{text}\" is no time of day"), format!("write {key} = {example}"));
    }
    parsed.unwrap_or_default()
}

pub(super) fn wave(mut section: Section<'_, '_>) -> WaveSpec {
    let clusters = section.list("clusters", "[\"canary\"]");
    let percent = section.optional_number("percent", 1, 100).map(small);
    let rest = section.optional_truth("rest");
    let soak_ms = section.optional_duration_or_none_ms("soak").unwrap_or_default();
    let who = match (clusters.is_empty(), percent, rest) {
        (false, None, false) => Who::Clusters(clusters),
        (true, Some(percent), false) => Who::Percent(percent),
        (true, None, true) => Who::Rest,
        _ => {
            let cure = "give it one of clusters = [\"canary\"], percent = 5 and rest = true";
            section.fault("clusters", "a wave is made of exactly one of clusters, percent and rest", cure);
            Who::default()
        }
    };
    section.finish();
    WaveSpec { who, soak_ms }
}
