//! mdBook, from its package, once for each version.
//!
//! It knows nothing of the book.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::setup::cache::{Cache, Recipe};
use crate::setup::cargo::Checkout;
use crate::setup::progress;

/// The version. Another one may draw pages in another way.
const VERSION: &str = "0.5.4";

/// The program in its entry.
const PROGRAM: &str = "bin/mdbook";

/// The path of the program, which is built if it is missing.
pub(crate) fn prepare(cache: &Cache, checkout: &Checkout) -> Result<PathBuf> {
    let recipe = Recipe::new("mdbook").with(VERSION);
    let entry = cache.entry(&recipe, |partial| {
        progress::announce(
            &format!("building mdBook {VERSION}"),
            "it makes the pages of the book (about 3 minutes)",
        );
        install(checkout, partial, &cache.logs().join("mdbook.log"))?;
        Ok(vec![PROGRAM.into()])
    })?;
    Ok(entry.join(PROGRAM))
}

fn install(checkout: &Checkout, directory: &Path, log: &Path) -> Result<()> {
    let target = directory.join("target");
    let mut cargo = checkout.cargo();
    cargo
        .args(["install", "mdbook", "--locked", "--version", VERSION])
        .args(["--no-default-features", "--features", "search", "--root"])
        .arg(directory)
        .arg("--target-dir")
        .arg(&target)
        // Flags for our programs are not meant for it.
        .env_remove("RUSTFLAGS");
    progress::run("building mdBook", &mut cargo, log)?.check()?;
    Ok(std::fs::remove_dir_all(&target)?)
}
