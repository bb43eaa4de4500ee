//! Rewrites the paths of a Rust source: its imports, and the paths in its code.
//!
//! It knows `use` declarations as rustfmt writes them, not what is imported.

use std::collections::BTreeMap;

/// A path, and what it is called elsewhere. The first one that a path begins with counts.
pub(super) type Renames = &'static [(&'static str, &'static str)];

/// A source whose imports have other paths.
///
/// Declarations that follow each other become one for each root, one name a line, as the kernel's
/// guidelines ask for.
pub(super) fn rewrite(source: &str, renames: Renames) -> String {
    let mut out = String::new();
    let mut block: Vec<String> = Vec::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if !line.starts_with("use ") {
            if !block.is_empty() && !line.is_empty() {
                out.push_str(&declarations(&block, renames));
                block.clear();
                // The blank line behind the imports.
                out.push('\n');
            }
            if block.is_empty() {
                out.push_str(&code(line, renames));
                out.push('\n');
            }
            continue;
        }
        let mut declaration = line["use ".len()..].to_owned();
        while !declaration.trim_end().ends_with(';') {
            let Some(more) = lines.next() else { break };
            declaration.push_str(more.trim());
        }
        flatten("", declaration.trim_end_matches(';'), &mut block);
    }
    if !block.is_empty() {
        out.push_str(&declarations(&block, renames));
    }
    out
}

/// A line of code, or of an example in the documentation, with other paths.
fn code(line: &str, renames: Renames) -> String {
    if line.trim_start().starts_with("//") {
        // Only links are paths there.
        let links = renames
            .iter()
            .filter(|(from, _)| from.starts_with("crate::"));
        return links.fold(line.to_owned(), |line, (from, to)| {
            line.replace(&format!("]({from}::"), &format!("]({to}::"))
        });
    }
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("::") {
        let start = rest[..at]
            .rfind(|c: char| !is_of_name(c))
            .map_or(0, |before| before + 1);
        let end = rest[start..]
            .char_indices()
            .find(|&(at, c)| !(is_of_name(c) || c == ':' && is_inside_path(&rest[start..], at)))
            .map_or(rest.len(), |(at, _)| start + at);
        out.push_str(&rest[..start]);
        out.push_str(&renamed(&rest[start..end], renames));
        rest = &rest[end..];
        if end == 0 {
            // A path without a root, such as in `<T>::f`.
            let (first, others) = rest.split_at(2);
            out.push_str(first);
            rest = others;
        }
    }
    out.push_str(rest);
    out
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether the colon at an offset belongs to a `::` with a name behind it.
fn is_inside_path(text: &str, at: usize) -> bool {
    let bytes = text.as_bytes();
    let is_colon = |at: usize| bytes.get(at) == Some(&b':');
    let pair = if is_colon(at + 1) {
        at
    } else if at > 0 && is_colon(at - 1) {
        at - 1
    } else {
        return false;
    };
    let next = bytes.get(pair + 2).copied().map(char::from);
    pair > 0 && next.is_some_and(is_of_name)
}

/// The new name of a path.
fn renamed(path: &str, renames: Renames) -> String {
    for (from, to) in renames {
        let rest = path.strip_prefix(from);
        if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with("::")) {
            return format!("{to}{rest}");
        }
    }
    path.to_owned()
}

/// The paths of a use tree, each with all its parts.
fn flatten(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        if !tree.is_empty() {
            paths.push(format!("{prefix}{tree}"));
        }
        return;
    };
    let prefix = format!("{prefix}{}", tree[..open].trim());
    let inner = tree[open + 1..].trim_end().trim_end_matches('}');
    // The brace of an inner list may have been cut off with the last one.
    let missing = inner.matches('{').count() - inner.matches('}').count();
    let inner = format!("{inner}{}", "}".repeat(missing));
    let (mut depth, mut start) = (0_usize, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                flatten(&prefix, &inner[start..at], paths);
                start = at + 1;
            }
            _ => {}
        }
    }
    flatten(&prefix, &inner[start..], paths);
}

/// Names that are imported, by the first part of their paths. A name without further parts is kept
/// under an empty one.
#[derive(Debug, Default)]
struct Tree(BTreeMap<(u8, String), Tree>);

impl Tree {
    fn add(&mut self, path: &str) {
        let (first, rest) = path.split_once("::").unwrap_or((path, ""));
        let branch = self.0.entry((class(first), first.to_owned())).or_default();
        if rest.is_empty() {
            branch.0.entry((0, String::new())).or_default();
        } else {
            branch.add(rest);
        }
    }

    /// The names, for a line that is indented by so many blanks.
    fn print(&self, indent: usize) -> String {
        let item = |indent| {
            move |((_, name), tree): (&(u8, String), &Self)| match (name.as_str(), tree.is_leaf()) {
                ("", _) => "self".to_owned(),
                (name, true) => name.to_owned(),
                (name, false) => format!("{name}::{}", tree.print(indent)),
            }
        };
        if self.0.len() == 1 {
            return self.0.iter().map(item(indent)).collect();
        }
        let margin = " ".repeat(indent + 4);
        let items: Vec<String> = self.0.iter().map(item(indent + 4)).collect();
        // The comment keeps rustfmt from putting several names on a line.
        let items = items.join(&format!(",\n{margin}"));
        format!("{{\n{margin}{items}, //\n{}}}", " ".repeat(indent))
    }

    /// Whether a name ends here, and no other one continues.
    fn is_leaf(&self) -> bool {
        self.0.keys().eq([&(0, String::new())])
    }
}

/// In which of rustfmt's groups a name is: functions and modules, types, constants.
fn class(name: &str) -> u8 {
    let name = name.split(' ').next().unwrap_or(name);
    if name == "self" || name.starts_with(|c: char| c.is_lowercase() || c == '_') {
        0
    } else if name == "*" {
        3
    } else if name.chars().any(char::is_lowercase) {
        1
    } else {
        2
    }
}

/// The declarations that import these paths, one for each root.
fn declarations(paths: &[String], renames: Renames) -> String {
    let mut roots: BTreeMap<String, Tree> = BTreeMap::new();
    for path in paths {
        let (path, alias) = path
            .split_once(" as ")
            .map_or((path.as_str(), None), |(p, a)| (p, Some(a)));
        let mut path = renamed(path, renames);
        let last = path.rsplit("::").next().unwrap_or_default();
        if let Some(alias) = alias.filter(|alias| *alias != last) {
            path = format!("{path} as {alias}");
        }
        match path.split_once("::") {
            Some((root, rest)) => roots.entry(root.to_owned()).or_default().add(rest),
            None => roots.entry(path).or_default().add("self"),
        }
    }
    let mut out = String::new();
    for (root, tree) in &roots {
        out.push_str(&format!("use {root}::{};\n", tree.print(0)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const RENAMES: Renames = &[
        ("crate::sys", "crate::bindings"),
        ("crate::mm", "crate::mm::hmm"),
        ("kernel", "crate"),
    ];

    #[test]
    fn imports_are_renamed_and_joined_by_their_root() {
        let source = "//! Text.\n\nuse super::Owner;\nuse crate::{sys as bindings, mm::turn::{Look, Turn}};\n\
                      use core::{ffi::c_int, ops::Range};\nuse kernel::{\n    prelude::*,\n    \
                      sync::{Arc, Mutex},\n};\n\nfn f() {}\n";
        let expected = "//! Text.\n\nuse core::{\n    ffi::c_int,\n    ops::Range, //\n};\n\
                        use crate::{\n    bindings,\n    mm::hmm::turn::{\n        Look,\n        Turn, //\n    },\n    \
                        prelude::*,\n    sync::{\n        Arc,\n        Mutex, //\n    }, //\n};\n\
                        use super::Owner;\n\nfn f() {}\n";
        assert_eq!(rewrite(source, RENAMES), expected);
    }

    #[test]
    fn paths_in_code_are_renamed_as_a_whole_and_comments_are_left_alone() {
        let code = |line| code(line, RENAMES);
        assert_eq!(
            code("    f(kernel::error::x(1));"),
            "    f(crate::error::x(1));"
        );
        assert_eq!(code("my_kernel::x()"), "my_kernel::x()");
        assert_eq!(
            code("<T as crate::mm::X>::f(a::<B>(c))"),
            "<T as crate::mm::hmm::X>::f(a::<B>(c))"
        );
        assert_eq!(code("    // as kernel::x does"), "    // as kernel::x does");
        assert_eq!(code("crate::sysfs::x"), "crate::sysfs::x");
        assert_eq!(code("Self::f(), T::Ptr::g"), "Self::f(), T::Ptr::g");
    }
}
