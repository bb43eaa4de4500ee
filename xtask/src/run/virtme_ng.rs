//! The recipe of docs/virtme-ng.md, run as the page says it, where virtme-ng is installed.
//!
//! It knows virtme-ng's command line, and nothing of what the device does.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{ensure, Context, Result};
use hmm_vm::artifacts::{Artifacts, Kernel};
use hmm_vm::daemon::{Daemon, Settings};
use hmm_vm::kconfig::Options;
use hmm_vm::pace::Pace;

use crate::setup::{host, out, progress};

/// virtme-ng's program.
const VNG: &str = "vng";

/// What it prepares a tree's modules with.
const DEPMOD: &str = "depmod";

/// How long a guest may take, in seconds: far more than an emulated one needs.
const LIMIT: &str = "300";

/// What `hmm run list` prints when the device's answers are right.
const RIGHT: &str = " right ";

/// What virtme-ng's first process says at the end of a script without an error.
const ENDED_WELL: &str = "script exited with code 0";

/// What must be built into a kernel for it to begin on the host's files. Without overlays virtme-ng's
/// guest looks for their module for each directory that it makes writable, which takes minutes where it
/// is emulated.
const OPTIONS: [&str; 5] = [
    "NET_9P",
    "NET_9P_VIRTIO",
    "9P_FS",
    "OVERLAY_FS",
    "VIRTIO_PCI",
];

const NOT_INSTALLED: &str = "as virtme-ng is not installed";
const NO_DEPMOD: &str = "as depmod is missing, which virtme-ng needs (package kmod)";
const MODULES: &str = "as the kernel cannot begin on the host's files without modules";

/// Why the recipe cannot be run on this machine with a kernel of these options, if it cannot.
pub(crate) fn obstacle(options: &Options) -> Option<&'static str> {
    if host::find_program(VNG).is_none() {
        Some(NOT_INSTALLED)
    } else if host::find_program(DEPMOD).is_none() {
        Some(NO_DEPMOD)
    } else if !OPTIONS.iter().all(|option| options.is_built_in(option)) {
        Some(MODULES)
    } else {
        None
    }
}

/// Boots a kernel by virtme-ng with a device, loads the driver, and runs a job.
pub(crate) fn run(artifacts: &Artifacts, kernel: &Kernel, directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", directory.display()));
        }
        _ => {}
    }
    out::write(artifacts, kernel, directory)?;
    let seen = |file: &str| directory.join(file).display().to_string();
    let socket = directory.join("hmm0.sock");
    let daemon = Daemon::start(
        &directory.join("vhost-device-hmm"),
        &socket,
        &Settings::default(),
        &directory.join("daemon.log"),
        Pace::new(artifacts.kvm, false),
    )?;
    let devices = format!(
        "-object memory-backend-memfd,id=ram,size=2G,share=on -machine memory-backend=ram \
         -chardev socket,id=hmm,path={} \
         -device vhost-user-test-device-pci,chardev=hmm,virtio-id=37,num_vqs=4,vq_size=256,\
         config_size=56",
        socket.display()
    );
    let script = format!(
        "insmod {} && {hmm} info && {hmm} run list",
        seen("virtio_hmm.ko"),
        hmm = seen("hmm")
    );
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=10", LIMIT, VNG, "--verbose", "--run"])
        .arg(&kernel.image)
        .args(["--qemu", &seen("qemu-system-x86_64")])
        .args(["--disable-microvm", "--force-9p", "--user", "root"])
        .args(["--memory", "2G"]);
    if !artifacts.kvm {
        command.arg("--disable-kvm");
    }
    command
        .arg(format!("--qemu-opts={devices}"))
        .args(["--", &script])
        .current_dir(directory);
    let finished = progress::run(
        "booting by virtme-ng",
        &mut command,
        &directory.join("vng.log"),
    )?;
    let output = finished.output()?;
    // The status comes back by a port that udev names. A small kernel has no udev.
    if !output.contains(ENDED_WELL) {
        finished.check()?;
    }
    let complaints = daemon.complaints()?;
    ensure!(complaints.is_empty(), "the daemon says {complaints:?}");
    ensure!(
        output.contains(RIGHT),
        "the guest ended well, but no job was right:\n{output}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_with_9p_as_a_module_is_not_booted() {
        let whole = OPTIONS
            .map(|option| format!("CONFIG_{option}=y\n"))
            .concat();
        // Nothing else is asked of this machine.
        let possible = obstacle(&Options::parse(&whole));
        assert!(matches!(possible, None | Some(NOT_INSTALLED | NO_DEPMOD)));
        let modules = whole.replace("9P_FS=y", "9P_FS=m");
        let obstacle = obstacle(&Options::parse(&modules));
        assert!(matches!(
            obstacle,
            Some(MODULES | NOT_INSTALLED | NO_DEPMOD)
        ));
    }
}
