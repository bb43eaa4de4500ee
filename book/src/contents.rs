//! The table of contents: which pages are chapters, and in which order.
//!
//! It does not know what is on them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};

use crate::page::{self, Page, Target};

/// The table of contents, from the root of the repository.
pub const PATH: &str = "book/SUMMARY.md";

/// The chapters, from the root of the repository.
#[derive(Debug)]
pub struct Contents {
    /// Each chapter.
    pub chapters: BTreeSet<PathBuf>,
    /// The table, with links from the root of the tree.
    pub text: String,
}

impl Contents {
    /// Reads the table of a checkout.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or a page is a chapter twice.
    pub fn read(checkout: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(checkout.join(PATH)).with_context(|| format!("reading {PATH}"))?;
        let mut chapters = BTreeSet::new();
        let mut written = String::new();
        let mut rest = 0;
        for link in Page::read(&text).links {
            let Target::Inside(path, None) = page::target(Path::new(PATH), &link.destination)
            else {
                bail!("{PATH}: {} is no page of this repository", link.destination);
            };
            let place = text[link.range.clone()]
                .rfind(&link.destination)
                .with_context(|| format!("{PATH}: {} is not one link", link.destination))?;
            let begin = link.range.start + place;
            written.push_str(&text[rest..begin]);
            written.push_str(&in_tree(&path).display().to_string());
            rest = begin + link.destination.len();
            ensure!(
                chapters.insert(path),
                "{PATH}: {} is a chapter twice",
                link.destination
            );
        }
        written.push_str(&text[rest..]);
        Ok(Self {
            chapters,
            text: written,
        })
    }

    /// The chapter that a link to a file or a directory leads to: a directory's is its README.
    #[must_use]
    pub fn chapter(&self, path: &Path) -> Option<PathBuf> {
        let readme = path.join("README.md");
        let mut both = [path, &readme].into_iter();
        both.find(|path| self.chapters.contains(*path))
            .map(Path::to_owned)
    }
}

/// The name of a chapter in the tree: mdBook calls the first page of a directory `index`.
#[must_use]
pub fn in_tree(chapter: &Path) -> PathBuf {
    if chapter.ends_with("README.md") {
        chapter.with_file_name("index.md")
    } else {
        chapter.to_owned()
    }
}
