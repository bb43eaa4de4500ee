//! Finds out whether KVM really runs the guest's kernel on this machine.
//!
//! A `/dev/kvm` that opens proves nothing: on some machines it makes a virtual machine and then
//! cannot run a stock kernel. So a test boot decides, and its result is kept until the host
//! reboots.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::setup::progress;
use crate::setup::release::Release;
use crate::setup::toolbox::Toolbox;

/// How long the smallest guest may take; emulated it needs 4 seconds.
const BOOT_LIMIT: Duration = Duration::from_secs(30);

/// The smallest guest prints this when its first process runs.
const PROOF: &str = "userspace reached";

const DEVICE: &str = "/dev/kvm";

/// A probe's result, and the boot of the host for which it holds.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Finding {
    boot: String,
    kvm: bool,
}

/// Whether guests can run with KVM; otherwise they are emulated.
pub(crate) fn works(toolbox: &Toolbox) -> Result<bool> {
    if File::options().read(true).write(true).open(DEVICE).is_err() {
        return Ok(false);
    }
    let processor = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    if !has_virtualization(&processor) {
        return Ok(false);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .context("reading the machine's boot id")?;
    let memory = toolbox.path("/kvm-probe.json");
    if let Some(known) = recall(&memory, &boot) {
        return Ok(known);
    }
    progress::announce(
        "trying KVM",
        "one short boot tells whether guests run with it or are emulated",
    );
    let finding = Finding {
        kvm: boots(toolbox, "kvm", "host")?,
        boot,
    };
    // A toolbox that cannot be written forgets it.
    if toolbox.builds().is_writable() {
        fs::write(&memory, serde_json::to_vec(&finding)?)
            .with_context(|| format!("writing {}", memory.display()))?;
    }
    Ok(finding.kvm)
}

/// The result of an earlier probe, if it was made since the host booted.
fn recall(memory: &Path, boot: &str) -> Option<bool> {
    let finding: Finding = serde_json::from_slice(&fs::read(memory).ok()?).ok()?;
    (finding.boot == boot).then_some(finding.kvm)
}

/// Whether the smallest guest reaches its first process.
fn boots(toolbox: &Toolbox, accelerator: &str, processor: &str) -> Result<bool> {
    // timeout(1) ends a guest that hangs; -no-reboot ends one that panics.
    let mut command = Command::new("timeout");
    command
        .arg("--kill-after=5s")
        .arg(format!("{}s", BOOT_LIMIT.as_secs()))
        .args(toolbox.qemu())
        .args([
            "-machine",
            "q35",
            "-accel",
            accelerator,
            "-cpu",
            processor,
            "-m",
            "512M",
        ])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-serial",
            "stdio",
        ])
        .args(["-no-reboot", "-append", "console=ttyS0 panic=-1", "-kernel"])
        .arg(toolbox.path(Release::of_stock(toolbox).image()))
        .arg("-initrd")
        .arg(toolbox.path("/probe.cpio"));
    let log = toolbox.log(&format!("boot-{accelerator}"));
    let finished = progress::run("booting the smallest guest", &mut command, &log)?;
    Ok(finished.succeeded() && finished.output()?.contains(PROOF))
}

/// Whether the processor says that it can run virtual machines.
fn has_virtualization(processor: &str) -> bool {
    processor
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "flags")
        .flat_map(|(_, flags)| flags.split_whitespace())
        .any(|flag| flag == "vmx" || flag == "svm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_flag_of_the_processor_counts() {
        assert!(has_virtualization("flags\t\t: fpu vmx sse\n"));
        assert!(has_virtualization("flags\t\t: fpu svm\n"));
        assert!(!has_virtualization("flags\t\t: fpu svm_lock\n"));
        assert!(!has_virtualization(
            "vmx flags\t: vnmi ept\nmodel name: svm\n"
        ));
    }

    #[test]
    fn a_finding_ends_with_the_boot_it_was_made_in() {
        let directory = tempfile::tempdir().unwrap();
        let memory = directory.path().join("finding");
        assert_eq!(recall(&memory, "one"), None);
        let finding = Finding {
            boot: "one".to_owned(),
            kvm: true,
        };
        fs::write(&memory, serde_json::to_vec(&finding).unwrap()).unwrap();
        assert_eq!(recall(&memory, "one"), Some(true));
        assert_eq!(recall(&memory, "two"), None);
        fs::write(&memory, "{").unwrap();
        assert_eq!(recall(&memory, "one"), None);
    }
}
