//! Looks at the pages of the book in a browser, as a reader does.
//!
//! `cargo xtask test book` makes the pages and starts the browser's driver, and says by environment
//! variables where they are. What is checked of a page is in [`site`], how it is looked at in
//! [`reader`].

mod reader;
mod site;

use std::fs;
use std::path::PathBuf;

use reader::Reader;
use site::Site;

/// The pages on this machine, and in the browser's view.
struct Place {
    here: PathBuf,
    there: String,
}

impl Place {
    /// The place with all pages, of the book and of tests.
    fn root() -> Self {
        let variable = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| panic!("{name}: use cargo xtask test book"))
        };
        Self {
            here: variable("VIRTIO_HMM_BOOK").into(),
            there: format!("file://{}", variable("VIRTIO_HMM_BOOK_IN_BROWSER")),
        }
    }

    fn below(&self, name: &str) -> Site {
        Site {
            directory: self.here.join(name),
            address: format!("{}/{name}", self.there),
        }
    }
}

/// The book.
fn book() -> Site {
    Place::root().below("html")
}

#[test]
fn all_pages_render_and_no_link_is_dead() {
    let book = book();
    let visited = reader::with(async |reader| book.visit(reader).await);
    assert_eq!(book.complaints(&visited), [""; 0]);
    // Otherwise little was looked at.
    let links: usize = visited.iter().map(|page| page.links.len()).sum();
    assert!(visited.len() > 50, "{} pages", visited.len());
    assert!(links > 3000, "{links} links");
}

#[test]
fn what_is_dead_or_broken_on_a_page_is_told() {
    let place = Place::root();
    let directory = place.here.join("broken");
    fs::create_dir_all(directory.join("sub")).unwrap();
    let page = |body: &str| {
        format!(
            "<!doctype html><title>Page - {}</title><main><h1>T</h1>{body}</main>",
            body.len()
        )
    };
    let text = "<p style='height: 9em'>text</p>";
    for (name, body) in [
        (
            "index.html",
            "<a href='sub/a.html#there'>a</a> <a href='sub/a.html#nowhere'>b</a> \
             <a href='absent.html'>c</a> <img src='absent.svg'> <script>absent()</script>",
        ),
        (
            "sub/a.html",
            "<p id='there'>x <a href='../index.html'>up</a> <a href='https://a.b/'>o</a>",
        ),
        ("alone.html", "nothing leads here"),
    ] {
        fs::write(directory.join(name), page(&format!("{text}{body}"))).unwrap();
    }
    fs::write(directory.join("empty.html"), "<title>Empty</title>").unwrap();
    let site = place.below("broken");
    let visited = reader::with(async |reader| site.visit(reader).await);
    let complaints = site.complaints(&visited);
    for told in [
        "index.html: the link to sub/a.html#nowhere leads to no such place",
        "index.html: the link to absent.html leads to no file",
        "index.html: the picture absent.svg is not shown",
        "index.html: the browser says: ",
        "alone.html: no link leads here",
        "empty.html: there is no heading",
    ] {
        let is_told = complaints
            .iter()
            .any(|complaint| complaint.starts_with(told));
        assert!(is_told, "{told}: {complaints:#?}");
    }
    let is_right = |complaint: &String| {
        complaint.contains("#there") || complaint.starts_with("sub/") || complaint.contains("a.b")
    };
    assert!(!complaints.iter().any(is_right), "{complaints:#?}");
}

#[test]
fn the_search_finds_words_on_the_pages_where_they_are() {
    let book = book();
    let hits = |word: &'static str| {
        let book = &book;
        reader::with(async move |reader: &Reader| reader.search(&book.address, word).await)
    };
    for (word, page) in [
        ("migrate_vma", "docs/contract.html"),
        ("VIRTIO_HMM_IOC_BIND", "docs/languages.html"),
        ("WaitAny", "spec/uapi.html"),
        ("promise of invalidation", "spec/virtio-hmm.html"),
        ("virtme-ng", "docs/virtme-ng.html"),
        ("lesson", "book/pages/readers/teaching.html"),
        ("numpy", "docs/languages.html"),
    ] {
        let found = hits(word);
        let is_found = found.iter().any(|address| address.contains(page));
        assert!(is_found, "{word} is not found on {page}, but: {found:#?}");
    }
    assert_eq!(hits("xyzzyplugh"), [""; 0]);
}
