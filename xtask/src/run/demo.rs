//! `cargo xtask demo`: runs every workload in a guest, and prints one table of the results.
//!
//! The guest's `hmm` command does the work and checks it; this file reads its lines, and shows them
//! as that command does. It does not know what a workload does.

use std::process::ExitCode;

use anyhow::{bail, Context, Result};
use hmm_cli::{output, say};
use hmm_tool::report::Report;
use hmm_vm::guest::{Command, Status, Stream};
use hmm_vm::vm::{Vm, GIB, MIB};

use crate::args::{DemoArgs, KernelChoice};
use crate::setup::cargo::{Checkout, Purpose};
use crate::setup::prepare::Prepared;
use crate::setup::progress;

/// Room for the largest workload, and for one that exceeds the device.
const MEMORY: u64 = 2 * GIB;
const DEVICE_MEMORY: u64 = 512 * MIB;

/// The rows so far, and the part of a line whose end has not arrived.
#[derive(Debug, Default)]
struct Table {
    rest: Vec<u8>,
    rows: Vec<Report>,
}

/// Runs the workloads and prints the table.
pub(crate) fn demo(args: &DemoArgs) -> Result<ExitCode> {
    let (prepared, kernel) =
        Prepared::for_kernel(&Checkout::locate()?, &args.kernel, Purpose::Machine)?;
    let artifacts = &prepared.artifacts;
    let image = &artifacts.kernels[&kernel].image;
    let image_name = image
        .file_name()
        .context("a kernel's image has a name")?
        .to_string_lossy();
    let guest = match args.kernel {
        KernelChoice::Stock => "Debian's kernel".to_owned(),
        KernelChoice::Debug => "the debug kernel".to_owned(),
        KernelChoice::Earlier => format!("Debian's {}", artifacts.kernels[&kernel].release),
        KernelChoice::Built(_) => format!("Linux {kernel}"),
    };
    progress::announce(
        &format!("starting {guest} with the device"),
        if artifacts.kvm {
            "with KVM"
        } else {
            "emulated, because KVM does not work here"
        },
    );
    let vm = Vm::builder(artifacts)
        .name("demo")
        .kernel(&kernel)
        .memory(MEMORY)
        .device_memory(DEVICE_MEMORY)
        .file(image)
        .start()?;

    say!("{}", Report::header());
    let mut table = Table::default();
    let mut unreadable = None;
    let file = format!("/root/{image_name}");
    let status = vm
        .spawn(
            Command::new("hmm")
                .arguments(["--json", "run", "all", "--file", &file])
                .unlimited(),
        )?
        .stream(|stream, bytes| match stream {
            Stream::Output => {
                if let Err(error) = table.add(bytes, |row| say!("{row}")) {
                    unreadable.get_or_insert(error);
                }
            }
            Stream::Error => output::errors(bytes),
        })?;
    let logs = vm.logs().directory().to_owned();
    vm.switch_off()?;
    if let Some(error) = unreadable {
        return Err(error);
    }
    table
        .verdict(&status)
        .with_context(|| format!("the demonstration failed; logs: {}", logs.display()))?;
    say!(
        "\nevery answer of {} workloads was checked and right",
        table.rows.len()
    );
    Ok(ExitCode::SUCCESS)
}

impl Table {
    /// Takes output of the guest, and shows each row that is complete.
    fn add(&mut self, bytes: &[u8], mut show: impl FnMut(&Report)) -> Result<()> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let row: Report = serde_json::from_slice(&line).with_context(|| {
                format!(
                    "the guest printed no result but: {}",
                    String::from_utf8_lossy(&line).trim()
                )
            })?;
            show(&row);
            self.rows.push(row);
        }
        Ok(())
    }

    /// An error unless all workloads ran and every answer was right.
    fn verdict(&self, status: &Status) -> Result<()> {
        let wrong = self.rows.iter().filter(|row| !row.right).count();
        if wrong > 0 {
            bail!("{wrong} of {} workloads went wrong", self.rows.len());
        }
        if !matches!(status, Status::Exited(0)) || self.rows.is_empty() || !self.rest.is_empty() {
            bail!("the guest's command did not come to its end: {status:?}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(right: bool) -> String {
        let mistakes = if right { "[]" } else { "[\"2 before 1\"]" };
        format!(
            "{{\"workload\":\"sort\",\"size\":4,\"unit\":\"integers\",\"right\":{right},\
             \"mistakes\":{mistakes},\"failure\":null,\"faults\":3,\"pages_to_device\":0,\
             \"pages_to_system\":0,\"device_ns\":1500000,\"cpu_ns\":null,\"seed\":1,\"note\":\"\"}}\n"
        )
    }

    fn table(text: &str) -> Table {
        let mut table = Table::default();
        // In pieces, as a pipe delivers it.
        for piece in text.as_bytes().chunks(7) {
            table.add(piece, |_| ()).unwrap();
        }
        table
    }

    #[test]
    fn right_answers_of_a_command_that_ended_well_are_a_success() {
        let table = table(&line(true).repeat(2));
        assert_eq!(table.rows.len(), 2);
        table.verdict(&Status::Exited(0)).unwrap();
    }

    #[test]
    fn a_wrong_answer_fails_whatever_the_exit_status_says() {
        let table = table(&line(false));
        assert!(table.verdict(&Status::Exited(0)).is_err());
        let shown = table.rows[0].to_string();
        assert!(
            shown.contains("WRONG") && shown.contains("wrong: 2 before 1"),
            "{shown}"
        );
    }

    #[test]
    fn a_command_that_died_or_said_nothing_fails() {
        assert!(table(&line(true)).verdict(&Status::Signalled(9)).is_err());
        assert!(table(&line(true)).verdict(&Status::Exited(1)).is_err());
        assert!(table("").verdict(&Status::Exited(0)).is_err());
        assert!(table("{\"half").verdict(&Status::Exited(0)).is_err());
    }

    #[test]
    fn what_is_no_result_is_an_error_that_quotes_it() {
        let error = Table::default().add(b"Killed\n", |_| ()).unwrap_err();
        assert!(error.to_string().contains("Killed"));
    }
}
