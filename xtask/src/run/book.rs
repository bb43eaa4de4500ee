//! `cargo xtask book`: makes the pages of the book, and what the tests need to look at them.
//!
//! The package `hmm-book` writes the tree, and mdBook draws it. This file does not know what is in
//! the book.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{ensure, Context, Result};
use hmm_cli::say;

use crate::args::BookArgs;
use crate::setup::browser::{self, Browser, Driver};
use crate::setup::cache::Cache;
use crate::setup::cargo::Checkout;
use crate::setup::{mdbook, progress};

/// The package of the book.
const PACKAGE: &str = "hmm-book";

/// The directory of the pages, below ours.
const PAGES: &str = "html";

/// `cargo xtask book`.
pub(crate) fn book(args: &BookArgs) -> Result<ExitCode> {
    let checkout = Checkout::locate()?;
    let pages = match &args.out {
        None => directory(&checkout).join(PAGES),
        Some(out) => {
            // mdBook removes what is there.
            let is_free =
                fs::read_dir(out).map_or(!out.exists(), |mut files| files.next().is_none());
            ensure!(is_free, "{} is not empty", out.display());
            std::path::absolute(out)?
        }
    };
    make(&checkout, &pages, args.open)?;
    say!("{}", pages.join("index.html").display());
    Ok(ExitCode::SUCCESS)
}

/// The test of the pages by a browser.
#[derive(Debug)]
pub(crate) struct Reading {
    /// Runs it.
    pub(crate) command: Command,
    /// Must live as long as it runs.
    _driver: Driver,
}

impl Reading {
    /// Makes the pages, and starts the browser's driver.
    pub(crate) fn prepare(checkout: &Checkout) -> Result<Self> {
        let directory = directory(checkout);
        make(checkout, &directory.join(PAGES), false)?;
        let driver = Browser::prepare(&Cache::of_user()?)?.start(&directory)?;
        let mut command = checkout.cargo();
        command
            .args(["test", "--package", PACKAGE, "--test", "browser"])
            .env("VIRTIO_HMM_BOOK", &directory)
            .env("VIRTIO_HMM_BOOK_IN_BROWSER", browser::PAGES)
            .env("VIRTIO_HMM_WEBDRIVER", &driver.address);
        Ok(Self {
            command,
            _driver: driver,
        })
    }
}

/// Our directory: the tree and the pages, and what the test writes beside them.
fn directory(checkout: &Checkout) -> PathBuf {
    checkout.output.join("book")
}

/// Makes the pages in a directory.
fn make(checkout: &Checkout, pages: &Path, open: bool) -> Result<()> {
    let mdbook = mdbook::prepare(&Cache::of_user()?, checkout)?;
    let directory = directory(checkout);
    let tree = directory.join("tree");
    let mut writer = checkout.cargo();
    writer.args(["run", "--quiet", "--package", PACKAGE, "--"]);
    let status = writer
        .arg(&tree)
        .stdout(std::process::Stdio::null())
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "the chapters could not be put together");
    let mut command = Command::new(mdbook);
    command.arg("build").arg(&tree).arg("--dest-dir").arg(pages);
    if open {
        command.arg("--open");
    }
    let drawn = progress::run("drawing the pages", &mut command, &directory.join("log"))?;
    drawn.check()?;
    let output = drawn.output()?;
    let remarks = output.lines().filter(|line| !line.contains("INFO"));
    let remarks: Vec<_> = remarks.collect();
    ensure!(
        remarks.is_empty(),
        "mdBook remarks:\n{}",
        remarks.join("\n")
    );
    Ok(())
}
