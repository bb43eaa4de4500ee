//! Leaves what was built in a directory, for machines that are not ours.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use hmm_cli::say;
use hmm_vm::artifacts::{Artifacts, Kernel};

/// The script that starts QEMU.
const QEMU: &str = "qemu-system-x86_64";

/// Copies the driver for a kernel, the daemon and the guest's `hmm`, and writes a script that starts
/// QEMU. Prints where they are.
pub(crate) fn write(artifacts: &Artifacts, kernel: &Kernel, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    for file in [&kernel.driver, &artifacts.daemon, &artifacts.hmm] {
        let name = file.file_name().context("a file has a name")?;
        let copy = directory.join(name);
        // A program that runs cannot be written, but replaced.
        if copy.exists() {
            fs::remove_file(&copy).with_context(|| format!("replacing {}", copy.display()))?;
        }
        fs::copy(file, &copy).with_context(|| format!("writing {}", copy.display()))?;
        say!("out     {}", copy.display());
    }
    let script = directory.join(QEMU);
    write_script(&artifacts.qemu, &script)?;
    say!("out     {}", script.display());
    Ok(())
}

/// Writes a script that runs a command, with more arguments.
fn write_script(command: &[String], path: &Path) -> Result<()> {
    let quoted = |word: &String| format!("'{}'", word.replace('\'', r"'\''"));
    let words: Vec<_> = command.iter().map(quoted).collect();
    let script = format!(
        "#!/bin/sh\n# The QEMU of virtio-hmm's toolbox, which must stay where it is.\nexec {} \"$@\"\n",
        words.join(" ")
    );
    fs::write(path, script)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_script_runs_the_command_with_more_arguments() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("script");
        let command = ["printf", "%s|", "it's one", "$HOME"].map(str::to_owned);
        write_script(&command, &path).unwrap();
        let output = Command::new(&path)
            .args(["two words", "*"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, "it's one|$HOME|two words|*|");
    }
}
