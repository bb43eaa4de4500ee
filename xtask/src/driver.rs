//! Builds `virtio_hmm.ko` in the toolbox, for one kernel.
//!
//! The toolbox sees a copy of the sources, renewed file by file, so that Kbuild
//! rebuilds what changed. It knows nothing of what the driver does.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};
use sha2::{Digest, Sha256};

use crate::cargo::Checkout;
use crate::kernel::Kernel;
use crate::toolbox::Toolbox;
use crate::{cache, host, progress};

/// The driver's directory in the checkout.
const DRIVER: &str = "guest-driver";
/// The wire format, whose sources the driver includes.
const SPEC: &str = "spec/src";

const MODULE: &str = "virtio_hmm.ko";

/// Arguments: the tree, the sources, the output, jobs, then make's own.
const MAKE: &str = "tree=$1 sources=$2 output=$3 jobs=$4; shift 4; \
     exec make -C \"$tree\" \"-j$jobs\" M=\"$sources\" MO=\"$output\" \"$@\"";

/// Sources by their path relative to the checkout.
type Sources = BTreeMap<PathBuf, Vec<u8>>;

/// What to make of the driver.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Goal {
    Module,
    Lints,
    /// As `Module`, from nothing.
    Anew,
}

/// The driver for `kernel`, built when its sources or the kernel changed.
pub(crate) fn build(toolbox: &Toolbox, kernel: &Kernel, checkout: &Checkout) -> Result<PathBuf> {
    make(toolbox, kernel, checkout, Goal::Module)
}

/// Builds the driver once more, from nothing and beside the one that is used.
pub(crate) fn build_anew(toolbox: &Toolbox, kernel: &Kernel, checkout: &Checkout) -> Result<()> {
    make(toolbox, kernel, checkout, Goal::Anew).map(drop)
}

/// Passes the driver through Clippy; its findings are an error.
pub(crate) fn lint(toolbox: &Toolbox, kernel: &Kernel, checkout: &Checkout) -> Result<()> {
    make(toolbox, kernel, checkout, Goal::Lints).map(drop)
}

/// The command that checks the format of the driver's Rust files, which Cargo does
/// not know.
pub(crate) fn format_check(checkout: &Checkout) -> Result<Command> {
    let files = files_below(&checkout.root.join(DRIVER))?
        .into_iter()
        .filter(|path| path.extension() == Some(OsStr::new("rs")) && is_source(path));
    let mut command = Command::new("rustfmt");
    command
        .args(["--check", "--edition", "2021", "--"])
        .args(files)
        .current_dir(&checkout.root);
    Ok(command)
}

fn make(toolbox: &Toolbox, kernel: &Kernel, checkout: &Checkout, goal: Goal) -> Result<PathBuf> {
    let workshop = Workshop::open(toolbox, checkout)?;
    let sources = read_sources(&checkout.root)?;
    write_sources(&sources, &workshop.sources)?;

    // One output for each kernel, build of it and goal: none spoils another.
    let tree_name = kernel
        .tree
        .file_name()
        .context("the tree has a name")?
        .to_string_lossy();
    let (what, suffix) = match goal {
        Goal::Module => ("building the driver", ""),
        Goal::Lints => ("linting the driver", "-clippy"),
        Goal::Anew => ("building the driver anew", "-anew"),
    };
    let output = workshop.directory.join(format!("{tree_name}{suffix}"));
    if goal == Goal::Anew && output.exists() {
        fs::remove_dir_all(&output).with_context(|| format!("removing {}", output.display()))?;
    }
    fs::create_dir_all(&output).with_context(|| format!("creating {}", output.display()))?;
    let module = output.join(MODULE);
    let mark = output.join("built-from");
    let fingerprint = fingerprint(&sources, kernel);
    if mark_of(&fingerprint, &module).is_some_and(|expected| is_text(&mark, &expected)) {
        return Ok(module);
    }

    let jobs = host::parallelism().to_string();
    let arguments = [
        toolbox.inside(&kernel.tree)?.into_os_string(),
        toolbox
            .inside(&workshop.sources.join(DRIVER))?
            .into_os_string(),
        toolbox.inside(&output)?.into_os_string(),
        jobs.into(),
    ];
    let mut command = toolbox.script(MAKE, arguments);
    command.args(&kernel.make_arguments);
    if goal == Goal::Lints {
        command.arg("CLIPPY=1");
    }
    command.arg("modules");
    let what = format!("{what} for the {} kernel", kernel.name);
    let log = toolbox.log(&format!("driver-{}{suffix}", kernel.name));
    let finished = progress::run(&what, &mut command, &log)?;
    let output = finished.output()?;
    let messages = compiler_messages(&output);
    if !finished.succeeded() {
        bail!(
            "{what} failed:\n{messages}\nthe whole log is {}",
            finished.log().display()
        );
    }
    if has_findings(&output, goal) {
        if goal == Goal::Lints {
            bail!("Clippy has findings:\n{messages}");
        }
        eprintln!("{messages}");
    }
    if let Some(mark_text) = mark_of(&fingerprint, &module) {
        fs::write(&mark, mark_text).with_context(|| format!("writing {}", mark.display()))?;
    } else {
        bail!(
            "{what} made no {MODULE}; the whole log is {}",
            finished.log().display()
        );
    }
    Ok(module)
}

/// A directory of the toolbox for the driver of one checkout, locked while in use.
#[derive(Debug)]
struct Workshop {
    directory: PathBuf,
    sources: PathBuf,
    _lock: cache::Lock,
}

impl Workshop {
    fn open(toolbox: &Toolbox, checkout: &Checkout) -> Result<Self> {
        let digest = Sha256::digest(checkout.root.as_os_str().as_encoded_bytes());
        let name = format!(
            "driver-{:02x}{:02x}{:02x}{:02x}",
            digest[0], digest[1], digest[2], digest[3]
        );
        let builds = toolbox.builds()?;
        let lock = builds.lock(&name)?;
        let directory = builds.directory().join(name);
        let sources = directory.join("sources");
        fs::create_dir_all(&sources).with_context(|| format!("creating {}", sources.display()))?;
        Ok(Self {
            directory,
            sources,
            _lock: lock,
        })
    }
}

/// The files of the checkout that a driver is made of.
fn read_sources(checkout: &Path) -> Result<Sources> {
    let mut sources = Sources::new();
    for directory in [DRIVER, SPEC] {
        for path in files_below(&checkout.join(directory))? {
            if is_source(&path) {
                let content =
                    fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
                sources.insert(path.strip_prefix(checkout)?.to_owned(), content);
            }
        }
    }
    Ok(sources)
}

/// Makes `directory` hold exactly `sources`, without touching what is equal.
fn write_sources(sources: &Sources, directory: &Path) -> Result<()> {
    for path in files_below(directory)? {
        if !sources.contains_key(path.strip_prefix(directory)?) {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    for (name, content) in sources {
        let path = directory.join(name);
        if fs::read(&path).ok().as_ref() == Some(content) {
            continue;
        }
        fs::create_dir_all(path.parent().context("a file has a directory")?)?;
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Whether a file is written by people: the checkout may hold build output too.
fn is_source(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    matches!(name, "Kbuild" | "Makefile") || matches!(extension, "rs" | "c" | "h")
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("reading the directory {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

fn fingerprint(sources: &Sources, kernel: &Kernel) -> String {
    let mut hasher = Sha256::new();
    hasher.update(kernel.tree.as_os_str().as_encoded_bytes());
    for (path, content) in sources {
        hasher.update(path.as_os_str().as_encoded_bytes());
        hasher.update((content.len() as u64).to_le_bytes());
        hasher.update(content);
    }
    format!("{:x}", hasher.finalize())
}

/// What is noted beside a module that was built from sources with that fingerprint.
fn mark_of(fingerprint: &str, module: &Path) -> Option<String> {
    let (_, digest) = cache::digest(module).ok()?;
    Some(format!("{fingerprint}\n{digest}\n"))
}

fn is_text(file: &Path, expected: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text == expected)
}

/// What compilers said, without Kbuild's account of its steps.
fn compiler_messages(log: &str) -> String {
    log.lines()
        .filter(|line| !is_kbuild_step(line))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Whether a successful build had something to say.
///
/// Clippy makes the compiler optimise less, and objtool does not know all functions that
/// never return which are then called: what it says counts for what is loaded only.
fn has_findings(log: &str, goal: Goal) -> bool {
    log.lines()
        .filter(|line| goal != Goal::Lints || !line.contains("warning: objtool:"))
        .any(|line| line.contains("warning"))
}

/// Kbuild names a step as `  CC [M]  file.o`; make announces its directories.
fn is_kbuild_step(line: &str) -> bool {
    let step = line.strip_prefix("  ").is_some_and(|rest| {
        let verb = rest.split_whitespace().next().unwrap_or_default();
        verb.len() > 1 && verb.chars().all(|c| c.is_ascii_uppercase())
    });
    let directory = line.starts_with("make") && line.contains(" directory '");
    step || directory || line.trim().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[(&str, &str)]) -> Sources {
        files
            .iter()
            .map(|(path, text)| (path.into(), text.as_bytes().to_vec()))
            .collect()
    }

    #[test]
    fn equal_files_are_left_alone_and_vanished_ones_removed() {
        let directory = tempfile::tempdir().unwrap();
        let first = sources(&[("guest-driver/a.rs", "a"), ("guest-driver/b.rs", "b")]);
        write_sources(&first, directory.path()).unwrap();
        let untouched = fs::metadata(directory.path().join("guest-driver/a.rs")).unwrap();

        let second = sources(&[("guest-driver/a.rs", "a"), ("spec/src/c.rs", "c")]);
        write_sources(&second, directory.path()).unwrap();
        let after = fs::metadata(directory.path().join("guest-driver/a.rs")).unwrap();
        assert_eq!(untouched.modified().unwrap(), after.modified().unwrap());
        assert!(!directory.path().join("guest-driver/b.rs").exists());
        assert!(directory.path().join("spec/src/c.rs").exists());
    }

    #[test]
    fn build_output_in_the_checkout_is_not_a_source() {
        for name in ["main.o", ".main.o.cmd", "virtio_hmm.mod", "Module.symvers"] {
            assert!(!is_source(Path::new(name)), "{name}");
        }
        for name in ["Kbuild", "Makefile", "main.rs", "shim.c", "shim.h"] {
            assert!(is_source(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn what_objtool_says_counts_for_the_module_that_is_loaded() {
        let log = "  CLIPPY [M] main.o\nmain.o: warning: objtool: f() falls through\n";
        assert!(has_findings(log, Goal::Module));
        assert!(!has_findings(log, Goal::Lints));
        assert!(has_findings("warning: unused variable: `x`\n", Goal::Lints));
        assert!(!has_findings("  CLIPPY [M] main.o\n", Goal::Lints));
    }

    #[test]
    fn a_failed_build_shows_the_compilers_words_alone() {
        let log = "make: Entering directory '/build/tree'\n  \
                   RUSTC [M] space.o\nerror[E0425]: cannot find value `x`\n --> space.rs:3:5\n\
                   make[2]: *** [Makefile:1: space.o] Error 1\nmake: Leaving directory '/build/tree'\n";
        let messages = compiler_messages(log);
        assert!(messages.starts_with("error[E0425]"), "{messages}");
        assert!(messages.contains(" --> space.rs:3:5"));
        assert!(!messages.contains("RUSTC") && !messages.contains("directory"));
    }
}
