//! The figures as tables for people.

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};

use super::figures::{Cost, Figures, Spread, Whole};

/// All tables, one after another.
pub fn tables(whole: &Whole) -> String {
    let disk = whole.disk_sync_ms;
    let head = format!(
        "{} processors for everything; a write of one page with fdatasync takes {:.2} ms (p99 {:.2})",
        whole.processors, disk.p50, disk.p99
    );
    let [short, long] = whole.step_ms;
    format!(
        "{head}\n\nAll operations at once, steps of {short} ms\n{}\n\nWhat the group takes for it\n{}\n\n\
         The leader killed again and again, steps of {long} ms\n{}",
        load(&whole.sizes),
        costs(&whole.sizes),
        deaths(&whole.sizes)
    )
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(header);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn pair(spread: &Spread) -> String {
    format!("{:.0} / {:.0}", spread.p50, spread.p99)
}

fn load(sizes: &[Figures]) -> Table {
    let mut table = table(&[
        "agents",
        "operations",
        "steps",
        "all started, s",
        "all at gate, s",
        "steps/s",
        "step to step, ms",
        "commit, ms",
        "status, ms",
        "status of all, ms",
    ]);
    for size in sizes {
        let run = &size.undisturbed;
        table.add_row([
            size.agents.to_string(),
            size.operations.to_string(),
            size.steps.to_string(),
            format!("{:.1}", run.start_seconds),
            format!("{:.1}", run.seconds),
            format!("{:.0}", run.steps_per_second),
            pair(&run.turnaround_ms),
            pair(&run.commit_ms),
            pair(&run.status_ms),
            pair(&run.status_all_ms),
        ]);
    }
    table
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1024.0 / 1024.0)
}

fn costs(sizes: &[Figures]) -> Table {
    let mut table = table(&[
        "agents",
        "member",
        "at rest, MB",
        "at gate, MB",
        "peak, MB",
        "processor, s",
        "file, MB",
        "snapshot, MB",
        "entries kept",
        "entries, MB",
        "agreed on",
    ]);
    for size in sizes {
        for (cost, file) in size.undisturbed.processes.iter().zip(&size.undisturbed.files) {
            let Cost { member, led, at_rest, at_gate, peak, cpu_seconds } = cost;
            let role = if *led { "leader" } else { "" };
            table.add_row([
                size.agents.to_string(),
                format!("{role} {member}").trim().to_owned(),
                megabytes(*at_rest),
                megabytes(*at_gate),
                megabytes(*peak),
                format!("{cpu_seconds:.1}"),
                megabytes(file.file_bytes),
                megabytes(file.snapshot_bytes),
                file.entries.to_string(),
                megabytes(file.entry_bytes),
                file.last_index.to_string(),
            ]);
        }
    }
    table
}

fn deaths(sizes: &[Figures]) -> Table {
    let mut table = table(&[
        "agents",
        "deaths",
        "next answer, ms",
        "at most",
        "next step, ms",
        "at most",
        "steps joined",
        "old fences refused",
        "all at gate, s",
    ]);
    for size in sizes {
        let run = &size.disturbed;
        let answers = Spread::of(&run.failovers.iter().map(|one| one.answer_ms).collect::<Vec<_>>());
        let steps = Spread::of(&run.failovers.iter().filter_map(|one| one.step_ms).collect::<Vec<_>>());
        table.add_row([
            size.agents.to_string(),
            answers.count.to_string(),
            format!("{:.0}", answers.p50),
            format!("{:.0}", answers.max),
            format!("{:.0}", steps.p50),
            format!("{:.0}", steps.max),
            run.joined.to_string(),
            run.refused.to_string(),
            format!("{:.1}", run.seconds),
        ]);
    }
    table
}
