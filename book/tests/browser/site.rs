//! A directory of pages: which there are, and what must be true of each.
//!
//! It does not know how they are shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

use crate::reader::{Reader, Seen};

/// Pages that are parts of others, or for the servers of pages only.
const PARTS: [&str; 2] = ["404.html", "toc.html"];

/// The least height of a page with anything on it.
const LEAST_HEIGHT: f64 = 50.0;

/// A directory of pages.
pub(crate) struct Site {
    /// On this machine.
    pub(crate) directory: PathBuf,
    /// In the browser.
    pub(crate) address: String,
}

impl Site {
    /// Looks at all pages.
    pub(crate) async fn visit(&self, reader: &Reader) -> Vec<Seen> {
        let mut paths = Vec::new();
        pages(&self.directory, Path::new(""), &mut paths);
        let mut seen = Vec::new();
        for path in paths {
            let address = format!("{}/{}", self.address, path.display());
            seen.push(reader.look(&address).await);
        }
        seen
    }

    /// What is wrong with these pages, a line each.
    pub(crate) fn complaints(&self, pages: &[Seen]) -> Vec<String> {
        let anchors: BTreeMap<&str, BTreeSet<&str>> = pages
            .iter()
            .map(|page| {
                let anchors = page.anchors.iter().map(String::as_str);
                (page.address.as_str(), anchors.collect())
            })
            .collect();
        let mut led_to = BTreeSet::from([format!("{}/index.html", self.address)]);
        let mut titles = BTreeSet::new();
        let mut found = Vec::new();
        for page in pages {
            let mut complain =
                |text: String| found.push(format!("{}: {text}", self.name(&page.address)));
            if page.title.is_empty() || !titles.insert(&page.title) {
                complain(format!(
                    "the title {:?} is empty or another page's",
                    page.title
                ));
            }
            if page.heading.is_empty() {
                complain("there is no heading".to_owned());
            }
            if page.height < LEAST_HEIGHT {
                complain(format!("it is {} pixels high", page.height));
            }
            for picture in &page.missing_pictures {
                complain(format!("the picture {} is not shown", self.name(picture)));
            }
            for report in &page.reports {
                complain(format!("the browser says: {report}"));
            }
            let links: BTreeSet<_> = page.links.iter().collect();
            for link in links {
                let (address, anchor) = match link.split_once('#') {
                    Some((address, anchor)) => (address, Some(decoded(anchor))),
                    None => (link.as_str(), None),
                };
                if address.starts_with("https://") || address.starts_with("http://") {
                    continue;
                }
                let Some(path) = address.strip_prefix(&self.address) else {
                    complain(format!("the link to {link} leads out of the book"));
                    continue;
                };
                let file = self.directory.join(decoded(path).trim_start_matches('/'));
                if !file.is_file() {
                    complain(format!("the link to {} leads to no file", self.name(link)));
                    continue;
                }
                if address != page.address {
                    led_to.insert(address.to_owned());
                }
                let places = anchors.get(address);
                let has = |anchor: &String| {
                    anchor.is_empty()
                        || places.is_some_and(|places| places.contains(anchor.as_str()))
                };
                if !anchor.as_ref().is_none_or(has) {
                    complain(format!(
                        "the link to {} leads to no such place",
                        self.name(link)
                    ));
                }
            }
        }
        let lost = pages.iter().filter(|page| !led_to.contains(&page.address));
        found.extend(lost.map(|page| format!("{}: no link leads here", self.name(&page.address))));
        found
    }

    /// An address, from the root of the pages.
    fn name<'a>(&self, address: &'a str) -> &'a str {
        let name = address.strip_prefix(&self.address).unwrap_or(address);
        name.trim_start_matches('/')
    }
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The pages below a directory, from the root of the pages.
fn pages(root: &Path, folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root.join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = folder.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            pages(root, &path, found);
        } else if path.extension().is_some_and(|kind| kind == "html")
            && !PARTS.iter().any(|part| path == Path::new(part))
        {
            found.push(path);
        }
    }
    found.sort();
}
