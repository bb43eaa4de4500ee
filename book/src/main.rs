//! Writes the tree that mdBook reads into a directory; `cargo xtask book` runs it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use hmm_cli::{remark, say};

fn main() -> ExitCode {
    match write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            remark!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn write() -> Result<()> {
    let directory = std::env::args_os().nth(1);
    let directory = PathBuf::from(directory.context("the directory for the tree is missing")?);
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the package is in the checkout")?;
    let chapters = hmm_book::tree::write(checkout, &directory)?;
    say!("{chapters} chapters in {}", directory.display());
    Ok(())
}
