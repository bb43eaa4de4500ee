//! Puts the series together: the kernel's files that it touches, after each patch.
//!
//! It knows the steps of a patch, not what they are for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};

use crate::patches::helpers;
use crate::patches::rust::{self, Converted, Formatter, Rules};
use crate::patches::series::{Patch, Step, C_SOURCES, HELPERS, HELPERS_HEAD, WHOLE_FOLDERS};

/// Files of the kernel by their paths.
pub(super) type Files = BTreeMap<String, String>;

/// The series as the files that it touches.
#[derive(Debug)]
pub(super) struct Assembled {
    /// The files that the kernel has already, as they are there.
    pub(super) before: Files,
    /// All files of the series after each patch.
    pub(super) after: Vec<Files>,
}

/// A source that has become a file of the kernel.
struct Placed {
    from: &'static str,
    to: &'static str,
    rules: &'static Rules,
}

/// Applies the patches, one after the other, to the kernel's files in `tree`.
///
/// # Errors
///
/// If a step does not fit its file.
pub(super) fn assemble(
    checkout: &Path,
    tree: &Path,
    patches: &'static [Patch],
) -> Result<Assembled> {
    let read = |root: &Path, path: &str| {
        fs::read_to_string(root.join(path)).with_context(|| format!("reading {path}"))
    };
    let c_sources: Vec<String> = C_SOURCES
        .iter()
        .map(|path| read(checkout, path))
        .collect::<Result<_>>()?;
    let mut before = Files::new();
    let mut edited = Files::new();
    let mut placed: Vec<Placed> = Vec::new();
    let mut after = Vec::new();
    let mut formatter = Formatter::default();
    for patch in patches {
        for step in patch.steps {
            match *step {
                Step::Source { from, to, rules } => placed.push(Placed { from, to, rules }),
                Step::New { file, text } => {
                    edited.insert(file.to_owned(), text.to_owned());
                }
                Step::Before { file, anchor, text } | Step::After { file, anchor, text } => {
                    if !edited.contains_key(file) {
                        let content = read(tree, file)?;
                        before.insert(file.to_owned(), content.clone());
                        edited.insert(file.to_owned(), content);
                    }
                    let content = edited.get_mut(file).context("it was just inserted")?;
                    let count = content.matches(anchor).count();
                    ensure!(count == 1, "{file} has {anchor:?} {count} times, not once");
                    let new = match step {
                        Step::Before { .. } => format!("{text}{anchor}"),
                        _ => format!("{anchor}{text}"),
                    };
                    *content = content.replace(anchor, &new);
                }
            }
        }
        let mut files = edited.clone();
        let mut functions = BTreeSet::new();
        for Placed { from, to, rules } in &placed {
            let source = read(checkout, from)?;
            let has_module = |module: &str| {
                let inner = format!("{}/{module}.rs", to.trim_end_matches(".rs"));
                let beside = Path::new(to).with_file_name(format!("{module}.rs"));
                let is_there = |path: &str| {
                    edited.contains_key(path) || placed.iter().any(|placed| placed.to == path)
                };
                is_there(&inner) || is_there(&beside.to_string_lossy())
            };
            let Converted {
                text,
                functions: used,
            } = rust::convert(from, &source, rules, has_module)?;
            functions.extend(used);
            files.insert((*to).to_owned(), formatter.format(from, text)?);
        }
        if !functions.is_empty() {
            let helpers = helpers::file(HELPERS_HEAD, &c_sources, &functions)?;
            files.insert(HELPERS.to_owned(), helpers);
        }
        after.push(files);
    }
    for folder in WHOLE_FOLDERS {
        for path in rust_files(&checkout.join(folder))? {
            let path = path.strip_prefix(checkout)?;
            ensure!(
                placed.iter().any(|placed| Path::new(placed.from) == path),
                "no patch of the series has {}",
                path.display()
            );
        }
    }
    Ok(Assembled { before, after })
}

/// The Rust sources below a directory.
fn rust_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)
        .with_context(|| format!("reading the directory {}", directory.display()))?
    {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}
