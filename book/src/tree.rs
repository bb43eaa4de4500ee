//! Writes the tree that mdBook reads: the chapters at the places that they have in the repository,
//! so that links between them are the same in both.
//!
//! Only these links change: those to a file that is no chapter lead to a copy of it, those to a
//! directory lead to its README, and those to a directory without one become plain text. It does not
//! know what mdBook makes of the tree.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};

use crate::contents::{self, Contents};
use crate::page::{self, Link, Page, Target};

/// Files that mdBook reads beside the chapters, from the root of the repository.
const BESIDE: [&str; 2] = ["book/book.toml", "book/style.css"];

/// Writes the tree of a checkout into a directory, whose contents it replaces. Returns how many
/// chapters there are.
///
/// # Errors
///
/// When a page cannot be read, when a link leads nowhere, or to a page that is no chapter.
pub fn write(checkout: &Path, directory: &Path) -> Result<usize> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("emptying {}", directory.display()))?;
    }
    let contents = Contents::read(checkout)?;
    let tree = Tree {
        checkout,
        root: directory.join("src"),
        contents: &contents,
    };
    tree.put(Path::new("SUMMARY.md"), contents.text.as_bytes())?;
    for chapter in &contents.chapters {
        let path = checkout.join(chapter);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("reading {}, of {}", path.display(), contents::PATH))?;
        let text = tree
            .rewritten(chapter, &text)
            .with_context(|| chapter.display().to_string())?;
        tree.put(&contents::in_tree(chapter), text.as_bytes())?;
    }
    for file in BESIDE {
        let name = Path::new(file).file_name().context("a file has a name")?;
        fs::copy(checkout.join(file), directory.join(name))
            .with_context(|| format!("copying {file}"))?;
    }
    Ok(contents.chapters.len())
}

/// A tree that is being written.
struct Tree<'a> {
    checkout: &'a Path,
    root: PathBuf,
    contents: &'a Contents,
}

impl Tree<'_> {
    /// The text of a chapter with the links of the book. What it links to is copied.
    fn rewritten(&self, chapter: &Path, text: &str) -> Result<String> {
        let mut written = String::new();
        let mut rest = 0;
        for link in Page::read(text).links {
            let Some(instead) = self.instead(chapter, &link, &text[link.range.clone()])? else {
                continue;
            };
            ensure!(link.range.start >= rest, "a link is within another one");
            written.push_str(&text[rest..link.range.start]);
            written.push_str(&instead);
            rest = link.range.end;
        }
        written.push_str(&text[rest..]);
        Ok(written)
    }

    /// What stands in the book instead of a link, if it is to change.
    fn instead(&self, chapter: &Path, link: &Link, text: &str) -> Result<Option<String>> {
        let Target::Inside(path, anchor) = page::target(chapter, &link.destination) else {
            return Ok(None);
        };
        let there = self.checkout.join(&path);
        ensure!(there.exists(), "{} leads nowhere", link.destination);
        ensure!(
            link.is_inline,
            "{} is not written as [text](destination)",
            link.destination
        );
        let (label, _) = text
            .rsplit_once("](")
            .with_context(|| format!("{text} is no link"))?;
        let to = if let Some(chapter) = self.contents.chapter(&path) {
            contents::in_tree(&chapter)
        } else if there.is_dir() {
            return Ok(Some(label.trim_start_matches('[').to_owned()));
        } else if path.extension().is_some_and(|kind| kind == "md") {
            bail!(
                "{} is linked to, and no chapter of {}",
                path.display(),
                contents::PATH
            );
        } else {
            let bytes = fs::read(&there).with_context(|| format!("reading {}", path.display()))?;
            let copy = shown(&path);
            self.put(&copy, &bytes)?;
            copy
        };
        let way = page::relative(chapter, &to).display().to_string();
        let anchor = anchor.map(|anchor| format!("#{anchor}"));
        let anchor = anchor.unwrap_or_default();
        Ok(Some(format!("{label}]({way}{anchor})")))
    }

    fn put(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let path = self.root.join(path);
        let folder = path.parent().context("a file is in a directory")?;
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, bytes))
            .with_context(|| format!("writing {}", path.display()))
    }
}

/// The name of a copy: a browser shows text as such by its name.
fn shown(path: &Path) -> PathBuf {
    let is_picture = path.extension().is_some_and(|kind| kind == "svg");
    if is_picture {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".txt");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes the tree of a checkout with these pages, and returns what a chapter became.
    fn chapter(text: &str) -> Result<String> {
        let directory = tempfile::tempdir().unwrap();
        let checkout = directory.path().join("checkout");
        for (path, text) in [
            ("README.md", "# Root\n"),
            ("docs/a.md", text),
            ("docs/no-chapter.md", ""),
            ("spec/README.md", ""),
            ("spec/code.rs", "fn f() {}\n"),
            ("bench/code.rs", ""),
            ("book/pictures/p.svg", "<svg/>"),
            ("book/book.toml", ""),
            ("book/style.css", ""),
            (
                contents::PATH,
                "# Summary\n\n[R](../README.md)\n- [A](../docs/a.md)\n- [S](../spec/README.md)\n",
            ),
        ] {
            let path = checkout.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let tree = directory.path().join("tree");
        assert_eq!(write(&checkout, &tree)?, 3);
        let summary = fs::read_to_string(tree.join("src/SUMMARY.md")).unwrap();
        assert!(summary.contains("[R](index.md)\n- [A](docs/a.md)\n- [S](spec/index.md)"));
        assert!(tree.join("src/index.md").exists() && tree.join("book.toml").exists());
        if text.contains("code.rs") {
            let copy = fs::read_to_string(tree.join("src/spec/code.rs.txt")).unwrap();
            assert_eq!(copy, "fn f() {}\n");
        }
        Ok(fs::read_to_string(tree.join("src/docs/a.md")).unwrap())
    }

    #[test]
    fn links_lead_to_chapters_and_copies_as_they_did_to_files() {
        for (repository, book) in [
            ("[r](../README.md#root)", "[r](../index.md#root)"),
            ("[`s`](../spec)", "[`s`](../spec/index.md)"),
            ("[c](../spec/code.rs)", "[c](../spec/code.rs.txt)"),
            ("[b](../bench), c", "b, c"),
            (
                "![p](../book/pictures/p.svg)",
                "![p](../book/pictures/p.svg)",
            ),
            ("[o](https://example.org)", "[o](https://example.org)"),
            ("[here](#a)", "[here](a.md#a)"),
        ] {
            assert_eq!(chapter(repository).unwrap(), book);
        }
    }

    #[test]
    fn a_link_to_nothing_or_to_a_page_that_is_no_chapter_is_an_error() {
        for (text, told) in [
            ("[x](absent.md)", "docs/a.md: absent.md leads nowhere"),
            ("[x](no-chapter.md)", "no chapter of book/SUMMARY.md"),
            ("[x][x]\n\n[x]: ../spec/code.rs", "[text](destination)"),
        ] {
            let error = format!("{:#}", chapter(text).unwrap_err());
            assert!(error.contains(told), "{error}");
        }
    }
}
