//! Builds `virtio_hmm.ko`, and the sample that is made of the same sources, for one kernel, where
//! that kernel's compilers are.
//!
//! They see a copy of the sources, updated file by file, so that Kbuild rebuilds only what
//! changed. It does not know what the driver does.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};
use hmm_cli::remark;
use sha2::{Digest, Sha256};

use crate::setup::cache::Cache;
use crate::setup::cargo::Checkout;
use crate::setup::kernel::{Build, Kernel};
use crate::setup::release::EARLIER_SERIES;
use crate::setup::toolbox::{Toolbox, KERNEL_SERIES};
use crate::setup::{cache, host, panics, progress};

/// The driver's directory in the checkout.
const DRIVER: &str = "guest-driver";
/// The directory of modules that are made of the driver's sources and their own.
const SAMPLES: &str = "samples";
/// The wire format, whose sources the modules include.
const SPEC: &str = "spec/src";

/// A module that is built.
#[derive(Clone, Copy, Debug)]
struct Module {
    /// What it is called in messages.
    what: &'static str,
    /// Begins the names of its logs, and tells its output from that of the driver.
    name: &'static str,
    /// Where its Kbuild is.
    directory: &'static str,
    file: &'static str,
}

const VIRTIO_HMM: Module = Module {
    what: "the driver",
    name: "driver",
    directory: DRIVER,
    file: "virtio_hmm.ko",
};

const TEST_HMM: Module = Module {
    what: "the sample",
    name: "sample",
    directory: "samples/rust_test_hmm",
    file: "rust_test_hmm.ko",
};

impl Module {
    /// The first page of its documentation, in the output.
    fn page(&self) -> PathBuf {
        let crate_name = Path::new(self.file).with_extension("");
        Path::new(PAGES).join(crate_name).join("index.html")
    }
}

/// Where `Makefile.bindings` has the documentation made, in the output.
const PAGES: &str = "doc";

/// Arguments: the tree, the sources, the output, jobs, then make's own.
const MAKE: &str = "tree=$1 sources=$2 output=$3 jobs=$4; shift 4; \
     exec make -C \"$tree\" \"-j$jobs\" M=\"$sources\" MO=\"$output\" \"$@\"";

/// Sources by their path relative to the checkout.
type Sources = BTreeMap<PathBuf, Vec<u8>>;

/// What to build of a module.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Goal {
    Module,
    Lints,
    /// Like `Module`, from nothing.
    Anew,
    /// The module, and the pages of `rustdoc` beside it.
    Documentation,
}

/// The driver for `kernel`, built if its sources or the kernel changed.
pub(crate) fn build(toolbox: &Toolbox, kernel: &Kernel, checkout: &Checkout) -> Result<PathBuf> {
    make(toolbox, kernel, checkout, &VIRTIO_HMM, Goal::Module)
}

/// The same of the sample.
pub(crate) fn build_sample(
    toolbox: &Toolbox,
    kernel: &Kernel,
    checkout: &Checkout,
) -> Result<PathBuf> {
    make(toolbox, kernel, checkout, &TEST_HMM, Goal::Module)
}

/// Builds the driver once more, from nothing and beside the one in use.
pub(crate) fn build_anew(toolbox: &Toolbox, kernel: &Kernel, checkout: &Checkout) -> Result<()> {
    make(toolbox, kernel, checkout, &VIRTIO_HMM, Goal::Anew).map(drop)
}

/// Runs Clippy on the modules. Its findings are an error, and so is any place where those for
/// Debian's own kernels may panic. Other kernels' modules are not checked: for KASAN the compiler
/// places constants differently, so that such places cannot be found, and what may be ruled out is
/// known of one compiler's output.
pub(crate) fn lint(toolbox: &Toolbox, kernel: &Kernel, checkout: &Checkout) -> Result<()> {
    for module in [&VIRTIO_HMM, &TEST_HMM] {
        if kernel.is_stock() || kernel.is_earlier() {
            panics::check(&make(toolbox, kernel, checkout, module, Goal::Module)?)?;
        }
        make(toolbox, kernel, checkout, module, Goal::Lints)?;
    }
    Ok(())
}

/// Makes the documentation of every item of the modules, and copies it to our output. A link that
/// does not resolve is an error. Returns the first page of each module.
pub(crate) fn document(
    toolbox: &Toolbox,
    kernel: &Kernel,
    checkout: &Checkout,
) -> Result<Vec<PathBuf>> {
    let directory = checkout.output.join(PAGES);
    remove_directory(&directory)?;
    let mut pages = Vec::new();
    for module in [&VIRTIO_HMM, &TEST_HMM] {
        let built = make(toolbox, kernel, checkout, module, Goal::Documentation)?;
        let page = module.page();
        let made = built.ancestors().nth(page.iter().count());
        let made = made.context("the page is in the output")?.join(PAGES);
        let copy = directory.join(module.name);
        for from in files_below(&made)? {
            let to = copy.join(from.strip_prefix(&made)?);
            fs::create_dir_all(to.parent().context("a file has a directory")?)?;
            fs::copy(&from, &to).with_context(|| format!("copying to {}", to.display()))?;
        }
        pages.push(copy.join(page.strip_prefix(PAGES)?));
    }
    Ok(pages)
}

/// The command that checks the format of the modules' Rust files, which Cargo does not know.
pub(crate) fn format_check(checkout: &Checkout) -> Result<Command> {
    let mut files = files_below(&checkout.root.join(DRIVER))?;
    files.extend(files_below(&checkout.root.join(SAMPLES))?);
    let files = files
        .into_iter()
        .filter(|path| path.extension() == Some(OsStr::new("rs")) && is_source(path));
    let mut command = Command::new("rustfmt");
    command
        .args(["--check", "--edition", "2021", "--"])
        .args(files)
        .current_dir(&checkout.root);
    Ok(command)
}

fn make(
    toolbox: &Toolbox,
    kernel: &Kernel,
    checkout: &Checkout,
    module: &Module,
    goal: Goal,
) -> Result<PathBuf> {
    let workshop = Workshop::open(toolbox, checkout)?;
    let sources = read_sources(&checkout.root)?;
    write_sources(&sources, &workshop.sources)?;

    // A separate output for each kernel, build of it, module and goal, so that none damages
    // another. The documentation is made from what the module is built from, and lies beside it.
    let build = &kernel.build;
    let tree_name = &build.name;
    let Module {
        what, name, file, ..
    } = module;
    let (what, suffix) = match goal {
        Goal::Module => (format!("building {what}"), ""),
        Goal::Lints => (format!("linting {what}"), "-clippy"),
        Goal::Anew => (format!("building {what} anew"), "-anew"),
        Goal::Documentation => (format!("documenting {what}"), "-doc"),
    };
    let (place, built, mark) = match goal {
        Goal::Documentation => ("", module.page(), "documented-from"),
        _ => (suffix, PathBuf::from(file), "built-from"),
    };
    let output = workshop
        .directory
        .join(format!("{name}-{tree_name}{place}"));
    if goal == Goal::Anew {
        remove_directory(&output)?;
    }
    if build.is_of_user {
        workshop.forget_earlier(name, build, place)?;
    }
    fs::create_dir_all(&output).with_context(|| format!("creating {}", output.display()))?;
    let (built, mark) = (output.join(built), output.join(mark));
    let fingerprint = fingerprint(&sources, kernel);
    let is_known = mark_of(&fingerprint, &built).is_some_and(|expected| is_text(&mark, &expected));
    // Whether a header of a tree of the user's has changed is the kernel's build to find out.
    if is_known && !build.is_of_user {
        return Ok(built);
    }

    let site = build.site.with(toolbox, &workshop.directory);
    let seen = |path: &Path| site.path(toolbox, path);
    let jobs = host::parallelism().to_string();
    let arguments = [
        seen(&build.tree)?.into_os_string(),
        seen(&workshop.sources.join(module.directory))?.into_os_string(),
        seen(&output)?.into_os_string(),
        jobs.into(),
    ];
    let mut command = site.script(toolbox, MAKE, arguments);
    command.args(&build.arguments);
    match goal {
        Goal::Lints => {
            command.arg("CLIPPY=1");
        }
        Goal::Documentation => {
            // Otherwise pages of items that are gone would stay.
            remove_directory(&output.join(PAGES))?;
            command.arg("VIRTIO_HMM_DOC=1");
        }
        Goal::Module | Goal::Anew => {}
    }
    command.arg("modules");
    let what = format!("{what} for the {} kernel", kernel.name);
    let log = toolbox.log(&format!("{name}-{}{suffix}", kernel.name));
    let finished = progress::run(&what, &mut command, &log)?;
    let output = finished.output()?;
    let messages = compiler_messages(&output);
    if !finished.succeeded() {
        bail!(
            "{what} failed:\n{messages}\n{}the whole log is {}",
            explanation(kernel),
            finished.log().display()
        );
    }
    if has_findings(&output, goal) {
        match goal {
            Goal::Lints => bail!("Clippy has findings:\n{messages}"),
            Goal::Documentation => bail!("rustdoc has findings:\n{messages}"),
            Goal::Module | Goal::Anew => remark!("{messages}"),
        }
    }
    if let Some(mark_text) = mark_of(&fingerprint, &built) {
        fs::write(&mark, mark_text).with_context(|| format!("writing {}", mark.display()))?;
    } else {
        bail!(
            "{what} made no {}; the whole log is {}",
            built.display(),
            finished.log().display()
        );
    }
    Ok(built)
}

/// Why a build may have failed that succeeds for our own kernels.
fn explanation(kernel: &Kernel) -> String {
    if !kernel.build.is_of_user {
        return String::new();
    }
    format!(
        "It is written for Linux {KERNEL_SERIES} and {EARLIER_SERIES}, and this kernel is {}: what \
         the compiler does not find above, or finds different, is what the kernel's Rust crate or \
         its memory management lacks or has changed. Where a patch of yours changes such an interface, the driver needs \
         the same change, as drivers in the kernel do.\n",
        kernel.release
    )
}

/// A directory for the modules of one checkout, locked while in use: in the toolbox or, if that
/// cannot be written, among Cargo's output.
#[derive(Debug)]
struct Workshop {
    directory: PathBuf,
    sources: PathBuf,
    _lock: cache::Lock,
}

impl Workshop {
    fn open(toolbox: &Toolbox, checkout: &Checkout) -> Result<Self> {
        let digest = Sha256::digest(checkout.root.as_os_str().as_encoded_bytes());
        let name = format!("driver-{}", cache::hex(&digest[..4]));
        let builds = Some(toolbox.builds()).filter(Cache::is_writable);
        let builds = builds.unwrap_or_else(|| Cache::at(checkout.output.join("modules")));
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

impl Workshop {
    /// Removes what was built for earlier builds of a user's tree, which are not to come back.
    fn forget_earlier(&self, module: &str, build: &Build, place: &str) -> Result<()> {
        let current = format!("{module}-{}{place}", build.name);
        for found in fs::read_dir(&self.directory)? {
            let path = found?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if is_earlier(&name, &current, place) {
                remove_directory(&path)?;
            }
        }
        Ok(())
    }
}

/// Whether a directory's name is that of an earlier build of the same tree for the same use. The
/// names differ in the last digits before the use.
fn is_earlier(name: &str, current: &str, place: &str) -> bool {
    let tree = |name: &str| {
        let (tree, _) = name.strip_suffix(place)?.rsplit_once('-')?;
        Some(tree.to_owned())
    };
    name != current && name.len() == current.len() && tree(name) == tree(current)
}

/// The files of the checkout that the modules are built from.
fn read_sources(checkout: &Path) -> Result<Sources> {
    let mut sources = Sources::new();
    for directory in [DRIVER, SAMPLES, SPEC] {
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

/// Makes `directory` hold exactly `sources`, without touching files that are equal.
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

/// Whether a file is a source: the checkout may hold build output too.
fn is_source(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    name == "Kbuild" || name.starts_with("Makefile") || matches!(extension, "rs" | "c" | "h")
}

/// Removes a directory, if it exists.
fn remove_directory(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("removing {}", directory.display()))?;
    }
    Ok(())
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
    hasher.update(kernel.build.tree.as_os_str().as_encoded_bytes());
    for (path, content) in sources {
        hasher.update(path.as_os_str().as_encoded_bytes());
        hasher.update((content.len() as u64).to_le_bytes());
        hasher.update(content);
    }
    cache::hex(&hasher.finalize())
}

/// The note beside a module that was built from sources with that fingerprint.
fn mark_of(fingerprint: &str, module: &Path) -> Option<String> {
    let (_, digest) = cache::digest(module).ok()?;
    Some(format!("{fingerprint}\n{digest}\n"))
}

fn is_text(file: &Path, expected: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text == expected)
}

/// The compilers' messages, without Kbuild's lines about its steps.
fn compiler_messages(log: &str) -> String {
    log.lines()
        .filter(|line| !is_kbuild_step(line))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Whether a successful build printed warnings.
///
/// With Clippy the compiler optimises less, and then objtool does not know all called functions
/// that never return. So objtool's warnings count only for the module that is loaded.
fn has_findings(log: &str, goal: Goal) -> bool {
    let is_loaded = matches!(goal, Goal::Module | Goal::Anew);
    log.lines()
        .filter(|line| is_loaded || !line.contains("warning: objtool:"))
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
    fn only_earlier_builds_of_the_same_tree_are_forgotten() {
        let current = "driver-tree-0a0a0a0a-111111111111-clippy";
        for (name, is) in [
            (current, false),
            ("driver-tree-0a0a0a0a-222222222222-clippy", true),
            ("driver-tree-0a0a0a0a-222222222222", false),
            ("driver-tree-0b0b0b0b-222222222222-clippy", false),
            ("sample-tree-0a0a0a0a-222222222222-clippy", false),
            ("driver-stock-tree-333333333333-clippy", false),
        ] {
            assert_eq!(is_earlier(name, current, "-clippy"), is, "{name}");
        }
        assert!(is_earlier("driver-tree-0a-22", "driver-tree-0a-11", ""));
        assert!(!is_earlier(
            "driver-tree-0a-22-clippy",
            "driver-tree-0a-11",
            ""
        ));
    }

    #[test]
    fn build_output_in_the_checkout_is_not_a_source() {
        for name in ["main.o", ".main.o.cmd", "virtio_hmm.mod", "Module.symvers"] {
            assert!(!is_source(Path::new(name)), "{name}");
        }
        for name in [
            "Kbuild",
            "Makefile",
            "Makefile.bindings",
            "main.rs",
            "shim.c",
            "shim.h",
        ] {
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
        assert!(!has_findings(log, Goal::Documentation));
        let html = "warning: unclosed HTML tag `T`\n";
        assert!(has_findings(html, Goal::Documentation));
    }

    #[test]
    fn a_link_to_nothing_fails_the_documentation_and_one_to_a_private_item_does_not() {
        let makefile = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../guest-driver/Makefile.bindings"
        );
        let makefile = fs::read_to_string(makefile).unwrap();
        let flags: Vec<&str> = makefile
            .split_whitespace()
            .filter(|word| word.starts_with("-Drustdoc::") || word.starts_with("--document-"))
            .collect();
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("planted.rs");
        let succeeds = |link: &str| {
            fs::write(&source, format!("//! See [`{link}`].\nfn private() {{}}\n")).unwrap();
            let mut rustdoc = Command::new("rustdoc");
            rustdoc.args(&flags).arg("--out-dir").arg(directory.path());
            rustdoc.arg(&source).output().unwrap().status.success()
        };
        assert!(succeeds("private"));
        assert!(!succeeds("absent"));
    }

    #[test]
    fn workarounds_name_findings_that_are_written_down() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let findings = fs::read_to_string(root.join("docs/kernel-findings.md")).unwrap();
        let headings: Vec<&str> = findings
            .lines()
            .filter_map(|line| line.strip_prefix("## "))
            .collect();
        let mut files = files_below(&root.join(DRIVER).join("quirks")).unwrap();
        files.push(root.join(DRIVER).join("quirks.c"));
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let comments: Vec<&str> = text
                .lines()
                .filter_map(|line| line.strip_prefix("//!").or(line.strip_prefix(" *")))
                .map(str::trim)
                .collect();
            let comments = comments.join(" ");
            let mut named = comments.split('"').skip(1).step_by(2).peekable();
            assert!(named.peek().is_some(), "{} names none", file.display());
            for name in named {
                assert!(headings.contains(&name), "{}: {name:?}", file.display());
            }
        }
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
