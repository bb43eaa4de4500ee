//! Checks the links of the repository's pages, as a viewer of the repository follows them.
//!
//! It does not know which pages are chapters of the book.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::page::{self, Page, Target};

/// Directories without pages of ours.
const LEFT_OUT: [&str; 2] = ["target", ".git"];

/// All pages of a checkout, by their paths from its root.
///
/// # Errors
///
/// When one cannot be read.
pub fn pages(checkout: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut pages = BTreeMap::new();
    collect(checkout, Path::new(""), &mut pages)?;
    Ok(pages)
}

fn collect(checkout: &Path, folder: &Path, pages: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    let directory = checkout.join(folder);
    let entries = fs::read_dir(&directory);
    for entry in entries.with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let path = folder.join(&name);
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if !LEFT_OUT.iter().any(|left_out| name == *left_out) {
                collect(checkout, &path, pages)?;
            }
        } else if kind.is_file() && path.extension().is_some_and(|kind| kind == "md") {
            let text = fs::read_to_string(checkout.join(&path))
                .with_context(|| format!("reading {}", path.display()))?;
            pages.insert(path, text);
        }
    }
    Ok(())
}

/// What is wrong with the links of a checkout: a line for each one that leads nowhere.
///
/// # Errors
///
/// When a page cannot be read.
pub fn dead(checkout: &Path) -> Result<Vec<String>> {
    let pages = pages(checkout)?;
    let read = |text: &String| Page::read(text);
    let parsed: BTreeMap<_, _> = pages
        .iter()
        .map(|(path, text)| (path, read(text)))
        .collect();
    let mut found = Vec::new();
    for (path, page) in &parsed {
        for link in &page.links {
            let Target::Inside(to, anchor) = page::target(path, &link.destination) else {
                continue;
            };
            let file = if checkout.join(&to).is_dir() {
                to.join("README.md")
            } else {
                to.clone()
            };
            let has = |anchor: &String| match parsed.get(&file) {
                Some(page) => page.anchors.contains(anchor),
                None => false,
            };
            if !checkout.join(&to).exists() || anchor.as_ref().is_some_and(|anchor| !has(anchor)) {
                let line = page::line(&pages[*path], link.range.start);
                found.push(format!("{}:{line}: {}", path.display(), link.destination));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_of_this_repository_leads_somewhere() {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        assert_eq!(dead(&checkout).unwrap(), [""; 0]);
        // Otherwise nothing was looked at.
        assert!(pages(&checkout).unwrap().len() > 40);
    }

    #[test]
    fn dead_links_are_told_with_their_lines() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("a")).unwrap();
        fs::write(directory.path().join("a/README.md"), "# Title\n").unwrap();
        let text = "\n[x](a) [x](a#title) [x](a/README.md#title)\n[x](a#none) [x](b.md)\n[x](#x)";
        fs::write(directory.path().join("c.md"), text).unwrap();
        let dead = dead(directory.path()).unwrap();
        assert_eq!(dead, ["c.md:3: a#none", "c.md:3: b.md", "c.md:4: #x"]);
    }
}
