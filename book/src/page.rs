//! A page of Markdown: its links, its headings and its code.
//!
//! It knows no file but the text that it is given.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, LinkType, Options, Parser, Tag, TagEnd};

/// A link or a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Where it leads, as it is written.
    pub destination: String,
    /// All of it in the text.
    pub range: Range<usize>,
    /// Whether it is a picture.
    pub is_picture: bool,
    /// Whether text and destination are written in one place.
    pub is_inline: bool,
}

/// Code, in a block or within a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// The text.
    pub text: String,
    /// The line of the page on which it begins.
    pub line: usize,
    /// The language of a block, which may be empty. Within a sentence there is none.
    pub language: Option<String>,
}

/// A page, read.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Its links, in their order.
    pub links: Vec<Link>,
    /// What a link within the page may lead to.
    pub anchors: Vec<String>,
    /// Its code, in its order.
    pub code: Vec<Code>,
}

impl Page {
    /// Reads a page.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let mut page = Self::default();
        let mut uses = HashMap::new();
        let mut heading: Option<String> = None;
        let mut block: Option<Code> = None;
        let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
        for (event, range) in Parser::new_ext(text, options).into_offset_iter() {
            match event {
                Event::Start(
                    ref tag @ (Tag::Link {
                        link_type,
                        ref dest_url,
                        ..
                    }
                    | Tag::Image {
                        link_type,
                        ref dest_url,
                        ..
                    }),
                ) => page.links.push(Link {
                    destination: dest_url.to_string(),
                    range,
                    is_picture: matches!(tag, Tag::Image { .. }),
                    is_inline: link_type == LinkType::Inline,
                }),
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let title = heading.take().unwrap_or_default();
                    page.anchors.push(anchor(&title, &mut uses));
                }
                Event::Start(Tag::CodeBlock(kind)) => {
                    let language = match kind {
                        CodeBlockKind::Fenced(language) => language.to_string(),
                        CodeBlockKind::Indented => String::new(),
                    };
                    block = Some(Code {
                        text: String::new(),
                        line: line(text, range.start),
                        language: Some(language),
                    });
                }
                Event::End(TagEnd::CodeBlock) => page.code.extend(block.take()),
                Event::Code(code) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&code);
                    }
                    page.code.push(Code {
                        text: code.to_string(),
                        line: line(text, range.start),
                        language: None,
                    });
                }
                Event::Text(part) => {
                    if let Some(block) = &mut block {
                        block.text.push_str(&part);
                    } else if let Some(heading) = &mut heading {
                        heading.push_str(&part);
                    }
                }
                _ => {}
            }
        }
        page
    }
}

/// The line on which a place of a text is, from one.
#[must_use]
pub fn line(text: &str, place: usize) -> usize {
    1 + text[..place].matches('\n').count()
}

/// What a link to a heading is called, by the rule of GitHub and of mdBook: letters, digits, `-` and
/// `_` stay, a space becomes `-`, and all else goes. A title that is there again has a number.
fn anchor(title: &str, uses: &mut HashMap<String, usize>) -> String {
    let plain: String = title
        .trim()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            '-' | '_' => Some(c),
            _ => c.is_alphanumeric().then_some(c),
        })
        .flat_map(char::to_lowercase)
        .collect();
    let count = uses.entry(plain.clone()).or_default();
    *count += 1;
    match *count {
        1 => plain,
        n => format!("{plain}-{}", n - 1),
    }
}

/// Where a link leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Out of the repository.
    Outside,
    /// To a file or a directory, from the root of the repository, and maybe to a place in it.
    Inside(PathBuf, Option<String>),
}

/// Where a link on a page leads, which has its path from the root of the repository.
#[must_use]
pub fn target(page: &Path, destination: &str) -> Target {
    let is_address = |(scheme, _): (&str, &str)| scheme.chars().all(|c| c.is_ascii_alphabetic());
    if destination.split_once(':').is_some_and(is_address) {
        return Target::Outside;
    }
    let (path, anchor) = match destination.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor.to_owned())),
        None => (destination, None),
    };
    if path.is_empty() {
        return Target::Inside(page.to_owned(), anchor);
    }
    let folder = page.parent().unwrap_or(Path::new(""));
    Target::Inside(plain(&folder.join(path)), anchor)
}

/// A path without `.` and `..`. One that leaves the root keeps its first `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if plain.file_name().is_some() => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

/// The way from a page to a path; both are from the root of the repository.
#[must_use]
pub fn relative(page: &Path, path: &Path) -> PathBuf {
    let from: Vec<_> = page
        .parent()
        .unwrap_or(Path::new(""))
        .components()
        .collect();
    let to: Vec<_> = path.components().collect();
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = from[common..].iter().map(|_| Component::ParentDir);
    up.chain(to[common..].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# A `b/c`: d

See [there](../x.md#y) and <https://example.org>, `hmm info`.

## Twice
## Twice

```sh
hmm run all
```

![p](p.svg) [r][r]

[r]: r.md
";

    #[test]
    fn links_headings_and_code_are_found() {
        let page = Page::read(TEXT);
        let links: Vec<_> = page.links.iter().map(|l| &*l.destination).collect();
        assert_eq!(links, ["../x.md#y", "https://example.org", "p.svg", "r.md"]);
        assert_eq!(&TEXT[page.links[0].range.clone()], "[there](../x.md#y)");
        assert!(page.links[2].is_picture && !page.links[3].is_inline);
        assert_eq!(page.anchors, ["a-bc-d", "twice", "twice-1"]);
        let code: Vec<_> = page.code.iter().map(|c| (&*c.text, c.line)).collect();
        assert_eq!(code, [("b/c", 1), ("hmm info", 3), ("hmm run all\n", 8)]);
        assert_eq!(page.code[2].language.as_deref(), Some("sh"));
    }

    #[test]
    fn a_link_is_followed_from_its_page_and_found_again() {
        let page = Path::new("docs/a.md");
        let inside = |path: &str, anchor: Option<&str>| {
            Target::Inside(path.into(), anchor.map(str::to_owned))
        };
        assert_eq!(target(page, "https://x.org/a"), Target::Outside);
        assert_eq!(target(page, "mailto:a@b.org"), Target::Outside);
        assert_eq!(target(page, "#b"), inside("docs/a.md", Some("b")));
        assert_eq!(
            target(page, "../spec/u.md#b"),
            inside("spec/u.md", Some("b"))
        );
        assert_eq!(target(page, "../.."), inside("..", None));
        for path in ["docs/b.md", "spec/u.md", "README.md", "docs/x/y.md"] {
            let way = relative(page, Path::new(path));
            let way = way.to_str().unwrap();
            assert_eq!(target(page, way), inside(path, None), "{way}");
        }
    }
}
