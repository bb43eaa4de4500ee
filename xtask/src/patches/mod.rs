//! `cargo xtask patches`: the abstractions of `guest-driver/mm`, and the sample, as a series of
//! patches for the kernel.
//!
//! [`series`] says what is in it, [`rust`] and [`helpers`] convert sources, [`assemble`] puts them
//! together, [`git`] writes and applies patches, and [`proof`] builds and runs the result.

mod assemble;
mod git;
mod helpers;
mod imports;
mod ktap;
mod names;
mod proof;
mod rust;
mod series;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{ensure, Context, Result};
use hmm_cli::say;

use crate::args::{KernelChoice, PatchesArgs};
use crate::patches::assemble::Assembled;
use crate::patches::git::Repository;
use crate::patches::series::{COVER_LETTER, PATCHES};
use crate::setup::cache::Cache;
use crate::setup::cargo::Checkout;
use crate::setup::kernel::Kernel;
use crate::setup::toolbox::Toolbox;

pub(crate) use git::Person;

/// `cargo xtask patches`.
pub(crate) fn patches(args: &PatchesArgs) -> Result<ExitCode> {
    let checkout = Checkout::locate()?;
    let person = match &args.signoff {
        Some(person) => person.clone(),
        None => Person::of_git(&checkout.root)?,
    };
    let toolbox = Toolbox::prepare(&Cache::of_user()?)?;
    let kernel = Kernel::prepare(&toolbox, &KernelChoice::Stock, &checkout.root)?;
    let series = Series::of(&checkout, &kernel.build.tree)?;
    for patch in series.write(&args.out, person)? {
        say!("{}", patch.display());
    }
    if args.prove {
        let passed = proof::prove(&toolbox, &series)?;
        say!(
            "they apply to Linux {}, build, and {passed} KUnit tests pass",
            toolbox.release()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Proves that the series of this checkout applies, builds and passes its tests.
pub(crate) fn prove(toolbox: &Toolbox, checkout: &Checkout, tree: &Path) -> Result<()> {
    let passed = proof::prove(toolbox, &Series::of(checkout, tree)?)?;
    say!("{passed} KUnit tests have passed");
    Ok(())
}

/// The series of a checkout.
#[derive(Debug)]
struct Series(Assembled);

impl Series {
    /// Puts it together for the kernel whose source is in `tree`.
    fn of(checkout: &Checkout, tree: &Path) -> Result<Self> {
        assemble::assemble(&checkout.root, tree, PATCHES).map(Self)
    }

    /// Its files in the end, by their paths.
    fn files(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.after.iter().last().into_iter().flatten()
    }

    /// All that determines the patches.
    fn ingredients(&self) -> impl Iterator<Item = &str> {
        let files = self.0.after.iter().flatten();
        let texts = files.flat_map(|(path, text)| [path.as_str(), text.as_str()]);
        texts.chain(PATCHES.iter().flat_map(|patch| [patch.title, patch.body]))
    }

    /// Writes the patches into a directory, which must be empty or missing; returns their paths.
    fn write(&self, directory: &Path, person: Person) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        let directory = directory.canonicalize()?;
        ensure!(
            fs::read_dir(&directory)?.next().is_none(),
            "{} is not empty: patches of another series would stay among these",
            directory.display()
        );
        let work = tempfile::tempdir().context("making a directory for a repository")?;
        git::write(work.path(), &self.0.before)?;
        let repository = Repository::new(work.path(), person, self.0.before.keys())?;
        for (patch, files) in PATCHES.iter().zip(&self.0.after) {
            repository.commit(files, patch.title, patch.body)?;
        }
        repository.format(COVER_LETTER, &directory)?;
        let mut patches = Vec::new();
        for entry in fs::read_dir(&directory)? {
            patches.push(entry?.path());
        }
        patches.sort();
        Ok(patches)
    }

    /// Applies patches to the kernel's source in a tree.
    fn apply(&self, tree: &Path, patches: &[PathBuf]) -> Result<()> {
        let repository = Repository::new(tree, Person::maintainer(), self.0.before.keys())?;
        let is_patch =
            |path: &&PathBuf| !path.to_string_lossy().ends_with("0000-cover-letter.patch");
        repository.apply(&patches.iter().filter(is_patch).cloned().collect::<Vec<_>>())?;
        // Otherwise the kernel's version would tell of uncommitted files.
        fs::remove_dir_all(tree.join(".git")).context("removing the repository")
    }
}
