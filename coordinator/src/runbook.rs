//! Keeps `docs/runbook.md` whole: what can stop an operation by name has its place there. It decides nothing.

use std::collections::BTreeSet;
use std::path::Path;

use crate::api::REHEARSAL;
use crate::check::{NOT_CHECKED, TABLE as CHECKS};
use crate::plan::table;

const FILE: &str = "docs/runbook.md";

fn runbook() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(FILE)).unwrap()
}

/// What stands in backticks, outside of blocks of code.
fn quoted(text: &str) -> BTreeSet<&str> {
    let prose = text.split("\n```").step_by(2);
    prose.flat_map(|part| part.lines().flat_map(|line| line.split('`').skip(1).step_by(2))).collect()
}

/// The address of a heading, as renderers of Markdown make it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

#[test]
fn every_finding_of_a_check_is_in_the_runbook() {
    let text = runbook();
    let quoted = quoted(&text);
    let names = CHECKS.iter().map(|check| check.name).chain([NOT_CHECKED, REHEARSAL]);
    let missing: Vec<_> = names.filter(|name| !quoted.contains(name)).collect();
    assert!(
        missing.is_empty(),
        "{FILE}: say under \"Check refused\" what to do at `{}`",
        missing.join("`, `")
    );
}

/// As `status` prints it at the head of the reason. A step without a row would leave its reader with nothing to look for.
#[test]
fn every_step_is_in_the_runbook_and_no_other() {
    let text = runbook();
    let quoted = quoted(&text);
    let names: BTreeSet<String> = table::rows().map(|row| format!("{}.{}", row.phase, row.name)).collect();
    let missing: Vec<_> = names.iter().filter(|name| !quoted.contains(name.as_str())).cloned().collect();
    assert!(
        missing.is_empty(),
        "{FILE}: say under \"A step failed\" what to do at `{}`",
        missing.join("`, `")
    );

    let phases: BTreeSet<String> = table::rows().map(|row| row.phase.to_string()).collect();
    let of_a_phase = |name: &&&str| name.split_once('.').is_some_and(|(phase, _)| phases.contains(phase));
    // Of a text that is quoted, the name at its head.
    let known = |text: &str| text.split(['/', ':']).next().is_some_and(|name| names.contains(name));
    let gone: Vec<_> = quoted.iter().filter(of_a_phase).filter(|text| !known(text)).collect();
    assert!(gone.is_empty(), "{FILE} speaks of steps that are not in the step table: {gone:?}");
}

#[test]
fn every_link_within_the_runbook_leads_to_a_heading() {
    let text = runbook();
    let headings: BTreeSet<String> = text
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches(['#', ' '])))
        .collect();
    let links = text.split("](#").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
    let broken: Vec<_> = links.filter(|link| !headings.contains(*link)).collect();
    assert!(broken.is_empty(), "{FILE}: no such heading: {broken:?}");
}
