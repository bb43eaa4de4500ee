//! A run as a page for people.

use std::fmt::{self, Write};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use hmm_bench::{Measurement, Spread};

use super::record::Record;

/// Writes the page.
pub(super) fn write(record: &Record, path: &Path) -> Result<()> {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = record_page(record, &mut page);
    fs::write(path, page).with_context(|| format!("writing {}", path.display()))
}

fn record_page(record: &Record, page: &mut String) -> fmt::Result {
    let (machine, versions) = (&record.machine, &record.versions);
    writeln!(page, "# What things cost: a run of {}\n", record.date)?;
    writeln!(
        page,
        "`cargo xtask bench --markdown PATH` has written this. [benchmarks.md](benchmarks.md) says\n\
         what is measured and how: a value is a median, with its quartiles behind it; a ratio is\n\
         the value divided by that of its reference, which took turns with it.\n"
    )?;
    writeln!(page, "| | |\n| --- | --- |")?;
    let mut row = |name: &str, value: &str| writeln!(page, "| {name} | {} |", cell(value));
    row("processor", &machine.processor)?;
    row("processors", &machine.processors.to_string())?;
    row("memory", &format!("{} MiB", machine.memory >> 20))?;
    row("kernel", &machine.kernel)?;
    row("load before", &machine.load.to_string())?;
    row(
        "virtio-hmm",
        &format!("{} {}", versions.project, versions.commit),
    )?;
    row("compiler", &versions.rustc)?;
    if let Some(guest) = &versions.guest {
        row("guest", &guest.kernel)?;
        row("QEMU", &guest.qemu)?;
        row("accelerator", &guest.accelerator)?;
    }
    for group in record.measurements.chunk_by(|a, b| a.group == b.group) {
        let Some(first) = group.first() else { continue };
        writeln!(page, "\n## {}\n", first.group)?;
        writeln!(page, "| | value | quartiles | ratio | to |")?;
        writeln!(page, "| --- | ---: | ---: | ---: | --- |")?;
        for measurement in group {
            measurement_row(measurement, page)?;
        }
    }
    if !record.failures.is_empty() {
        writeln!(page, "\n## Not measured\n\n| | why |\n| --- | --- |")?;
        for failure in &record.failures {
            let name = format!("{}: {}", failure.group, failure.name.trim_start());
            writeln!(page, "| {} | {} |", cell(&name), cell(&failure.reason))?;
        }
    }
    Ok(())
}

fn measurement_row(measurement: &Measurement, page: &mut String) -> fmt::Result {
    // A name that belongs to the row above is indented, which in a table needs this form.
    let name = measurement.name.trim_start();
    let mark = if name.len() < measurement.name.len() {
        "– "
    } else {
        ""
    };
    let unit = measurement.unit.name();
    let (value, quartiles) = spread(&measurement.value);
    let value = format!("{value} {unit}");
    let (ratio, reference) = match &measurement.reference {
        None => Default::default(),
        Some(reference) => (
            format!("**{}**", digits(reference.ratio.median)),
            format!(
                "{} ({} {unit})",
                reference.name,
                digits(reference.value.median)
            ),
        ),
    };
    writeln!(
        page,
        "| {mark}{} | {} | {quartiles} | {ratio} | {} |",
        cell(name),
        value.trim_end(),
        cell(&reference)
    )
}

/// A median, and the quartiles if they differ.
fn spread(spread: &Spread) -> (String, String) {
    let quartiles = if spread.low < spread.high {
        format!("{} … {}", digits(spread.low), digits(spread.high))
    } else {
        String::new()
    };
    (digits(spread.median), quartiles)
}

/// Three digits or so, as in the other tables.
fn digits(number: f64) -> String {
    hmm_bench::Digits(number).to_string()
}

/// Text that cannot end its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::record;
    use hmm_bench::{Better, Failure, Reference, Unit};

    #[test]
    fn a_page_has_the_machine_every_row_and_what_is_lacking() {
        let measurement = Measurement {
            group: "dma".into(),
            name: "  copy".into(),
            unit: Unit::GigabytesPerSecond,
            better: Better::Higher,
            repetitions: 3,
            value: Spread {
                median: 9.5,
                low: 9.0,
                high: 10.0,
            },
            reference: Reference::of("memcpy", &[(9.5, 10.0)]),
        };
        let record = Record {
            measurements: vec![measurement],
            failures: vec![Failure {
                group: "dma".into(),
                name: "clear".into(),
                reason: "a|b\nc".into(),
            }],
            ..record()
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("page.md");
        write(&record, &path).unwrap();
        let page = fs::read_to_string(path).unwrap();
        for line in [
            "# What things cost: a run of 2026-01-02T03:04:05Z",
            "| processor | one |",
            "## dma",
            "| – copy | 9.50 GB/s | 9.00 … 10.0 | **0.950** | memcpy (10.0 GB/s) |",
            "| dma: clear | a\\|b c |",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }
}
