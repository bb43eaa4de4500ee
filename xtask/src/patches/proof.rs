//! Applies the series to the kernel's source as it was released, builds it, boots it, and reads its
//! KUnit tests.
//!
//! A kernel is built once for each content of the series. It does not know what the patches do.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};
use hmm_vm::klog;

use crate::patches::ktap::{self, Results};
use crate::patches::{Person, Series};
use crate::setup::cache::Recipe;
use crate::setup::toolbox::{Toolbox, KERNEL_SERIES};
use crate::setup::{host, kvm, progress};

const UNPACK: &str = "tar xf \"/usr/src/linux-source-$2.tar.xz\" --strip-components=1 -C \"$1\"";
const BUILD: &str = include_str!("text/build-kernel.sh");
const CONFIG: &str = include_str!("text/proof.config");

/// How long the tests may take from the start of the machine; emulated they need seconds.
const BOOT_LIMIT: &str = "300s";

/// Proves that the series is good. Returns how many KUnit tests have passed.
///
/// # Errors
///
/// If it does not apply, does not build, or complains; if a test fails or does not run.
pub(super) fn prove(toolbox: &Toolbox, series: &Series) -> Result<usize> {
    let image = kernel(toolbox, series)?;
    let console = boot(toolbox, &image)?;
    let complaints: Vec<_> = console
        .lines()
        .filter_map(klog::judge)
        .map(|complaint| complaint.line)
        .collect();
    ensure!(
        complaints.is_empty(),
        "the kernel complains:\n{}",
        complaints.join("\n")
    );
    let cases = series.files().flat_map(|(path, source)| {
        let crate_path = path.strip_prefix("rust/kernel/");
        let examples = crate_path.map(|path| ktap::examples(path, source));
        ktap::declared(source)
            .into_iter()
            .chain(examples.into_iter().flatten())
    });
    let expected: BTreeSet<_> = cases.collect();
    Results::read(&console).check(&expected)
}

/// The kernel with the series, built if it is missing.
fn kernel(toolbox: &Toolbox, series: &Series) -> Result<PathBuf> {
    let recipe = series
        .ingredients()
        .fold(Recipe::new("series-kernel"), |recipe, text| {
            recipe.with(text)
        })
        .with(toolbox.release())
        .with(BUILD)
        .with(CONFIG);
    let entry = toolbox.builds().entry(&recipe, |partial| {
        progress::announce(
            "building a kernel with the patches",
            "they must apply to the kernel's source, build and pass their tests (about 4 minutes)",
        );
        let tree = partial.join("linux");
        fs::create_dir(&tree)?;
        let inside = toolbox.inside(&tree)?;
        let mut unpack = toolbox.script(UNPACK, [inside.as_os_str(), KERNEL_SERIES.as_ref()]);
        progress::run(
            "unpacking the kernel",
            &mut unpack,
            &toolbox.log("series-source"),
        )?
        .check()?;

        let patches = partial.join("patches");
        let patches = series.write(&patches, Person::maintainer())?;
        series.apply(&tree, &patches)?;

        fs::write(tree.join("proof.config"), CONFIG)?;
        let jobs = host::parallelism().to_string();
        let mut build = toolbox.script(BUILD, [inside.as_os_str(), jobs.as_ref()]);
        let finished = progress::run(
            "building a kernel with the patches",
            &mut build,
            &toolbox.log("series-kernel"),
        )?;
        finished.check()?;
        let output = finished.output()?;
        let warnings = warnings(&output);
        ensure!(
            warnings.is_empty(),
            "the compilers warn:\n{}",
            warnings.join("\n")
        );
        fs::rename(tree.join("arch/x86/boot/bzImage"), partial.join("bzImage"))?;
        host::remove_tree(&tree)?;
        Ok(vec!["bzImage".into()])
    })?;
    Ok(entry.join("bzImage"))
}

/// The file that the kernel's build makes of all examples. In a kernel without modules, the Rust
/// compiler warns of a type in its preamble (7.3).
const EXAMPLES: &str = "rust/doctests_kernel_generated.rs";

/// The warnings of compilers, except those that are not about the series.
fn warnings(output: &str) -> Vec<&str> {
    let mut warnings = Vec::new();
    let mut lines = output.lines().peekable();
    while let Some(line) = lines.next() {
        // rustc says the place on the next line, and the number of its warnings at the end.
        let is_of_examples = lines.peek().is_some_and(|next| next.contains(EXAMPLES));
        let is_sum = line.contains(" warning emitted") || line.contains(" warnings emitted");
        if line.contains("warning") && !is_of_examples && !is_sum {
            warnings.push(line);
        }
    }
    warnings
}

/// What the kernel prints until its tests are over.
fn boot(toolbox: &Toolbox, image: &Path) -> Result<String> {
    let (accelerator, processor) = match kvm::works(toolbox)? {
        true => ("kvm", "host"),
        false => ("tcg", "max"),
    };
    // timeout(1) ends a machine that hangs; -no-reboot ends one that panics.
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5s", BOOT_LIMIT])
        .args(toolbox.qemu())
        .args(["-machine", "q35", "-accel", accelerator, "-cpu", processor])
        .args(["-smp", "1", "-m", "1G", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-serial", "stdio", "-no-reboot"])
        .args([
            "-append",
            "console=ttyS0 panic=-1 kunit_shutdown=reboot",
            "-kernel",
        ])
        .arg(image);
    let log = toolbox.log("series-boot");
    let finished = progress::run("running the KUnit tests", &mut command, &log)?;
    finished.check()?;
    finished.output().context("reading the console")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_warnings_about_the_series_count() {
        let theirs = "warning: struct `LocalModule` is never constructed\n \
            --> rust/doctests_kernel_generated.rs:6:8\nwarning: 1 warning emitted\n";
        assert!(warnings(theirs).is_empty());
        let ours = "warning: missing documentation for a method\n \
            --> rust/kernel/mm/device/memremap.rs:124:5\nwarning: 1 warning emitted\n";
        assert_eq!(warnings(ours).len(), 1);
        assert_eq!(
            warnings("rust/helpers/mm.c:3:1: warning: unused\n").len(),
            1
        );
    }
}
