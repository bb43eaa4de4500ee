//! The driver's C functions as helpers of the kernel crate, `rust/helpers/hmm.c`.
//!
//! It knows C as the driver's files write it: definitions begin and end at the margin. It does not
//! know what the functions do.

use std::collections::BTreeSet;

use anyhow::{ensure, Result};

use crate::patches::names;

/// How the names of helpers begin in C; Rust sees them without.
const HELPER: &str = "rust_helper_";

/// The longest line of a signature, in columns.
const COLUMNS: usize = 100;

/// A definition of a C file, with the comment before it.
#[derive(Debug)]
struct Item {
    name: String,
    comment: String,
    text: String,
}

/// The helper file with those functions, and what they need, of the driver's C sources.
///
/// # Errors
///
/// If a function is not there.
pub(super) fn file(head: &str, sources: &[String], functions: &BTreeSet<String>) -> Result<String> {
    let items: Vec<Item> = sources.iter().flat_map(|source| items(source)).collect();
    for function in functions {
        ensure!(
            items.iter().any(|item| item.name == *function),
            "Rust sources of the series use {function}, which no C file defines"
        );
    }
    let mut needed = functions.clone();
    loop {
        let others: Vec<_> = items
            .iter()
            .filter(|item| !needed.contains(&item.name))
            .filter(|item| {
                let mut users = items.iter().filter(|user| needed.contains(&user.name));
                users.any(|user| has_word(&user.text, &item.name))
            })
            .map(|item| item.name.clone())
            .collect();
        if others.is_empty() {
            break;
        }
        needed.extend(others);
    }
    let mut out = head.to_owned();
    for item in items.iter().filter(|item| needed.contains(&item.name)) {
        out.push('\n');
        out.push_str(&item.convert(functions));
    }
    Ok(out)
}

impl Item {
    /// The definition in the kernel: a helper, or something that only helpers use.
    fn convert(&self, helpers: &BTreeSet<String>) -> String {
        let name = |name: &str| {
            let kernels = names::of_function(name);
            if helpers.contains(name) {
                format!("{HELPER}{kernels}")
            } else {
                kernels
            }
        };
        let rename = |text: &str| names::replace(text, |end| name(&format!("virtio_hmm_{end}")));
        let comment = rename(&self.comment);
        let is_ours = self.name.starts_with("virtio_hmm_");
        let body = self.text.find("\n{").filter(|_| is_ours);
        let Some(body) = body else {
            return format!("{comment}{}", rename(&self.text));
        };
        let (signature, body) = self.text.split_at(body);
        let storage = if helpers.contains(&self.name) {
            "__rust_helper"
        } else {
            "static"
        };
        let signature = format!("{storage} {}", rename(signature));
        format!("{comment}{}{}", wrap(&signature), rename(body))
    }
}

/// Whether a word is in a text, not as a part of another one.
fn has_word(text: &str, word: &str) -> bool {
    let is_of_name = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(is_of_name) && !text[at + word.len()..].starts_with(is_of_name)
    })
}

/// The definitions of a C file.
fn items(source: &str) -> Vec<Item> {
    let mut items = Vec::new();
    let (mut comment, mut text) = (String::new(), String::new());
    let mut in_comment = false;
    for line in source.lines() {
        if text.is_empty() {
            if line.starts_with("#include") || line.is_empty() {
                // A comment that stands alone is about no definition.
                comment.clear();
                continue;
            }
            in_comment |= line.starts_with("/*");
            if in_comment || line.starts_with("//") {
                comment.push_str(line);
                comment.push('\n');
                in_comment &= !line.ends_with("*/");
                continue;
            }
        }
        text.push_str(line);
        text.push('\n');
        let is_simple = !text.contains("\n{") && !text.contains(" {\n");
        let ends = match line {
            "}" | "};" => true,
            _ => is_simple && (line.ends_with(';') || line.starts_with("#define")),
        };
        if ends {
            let text = std::mem::take(&mut text);
            let comment = std::mem::take(&mut comment);
            items.push(Item {
                name: name(&text),
                comment,
                text,
            });
        }
    }
    items
}

/// The name that a definition defines.
fn name(text: &str) -> String {
    let words = |text: &str| {
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        words
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let name = if let Some(rest) = text.strip_prefix("#define ") {
        words(rest).into_iter().next()
    } else {
        let end = text.find(['(', '=', '{', ';']).unwrap_or(text.len());
        words(&text[..end]).pop()
    };
    name.unwrap_or_default()
}

/// A signature in as few lines as it needs, the arguments aligned.
fn wrap(signature: &str) -> String {
    let words: Vec<&str> = signature.split_whitespace().collect();
    let one = words.join(" ");
    let Some((head, arguments)) = one.split_once('(').filter(|_| one.len() > COLUMNS) else {
        return one;
    };
    let margin = head.len() + 1;
    let indent = format!("{}{}", "\t".repeat(margin / 8), " ".repeat(margin % 8));
    let mut out = format!("{head}(");
    let mut column = margin;
    let parts: Vec<&str> = arguments.split(", ").collect();
    for (number, part) in parts.iter().enumerate() {
        let end = if number + 1 == parts.len() { "" } else { "," };
        if number > 0 {
            if column + 1 + part.len() + end.len() > COLUMNS {
                out.push('\n');
                out.push_str(&indent);
                column = margin;
            } else {
                out.push(' ');
                column += 1;
            }
        }
        out.push_str(part);
        out.push_str(end);
        column += part.len() + end.len();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "// SPDX-License-Identifier: GPL-2.0\n/* See shim.h. */\n\
        #include <linux/mm.h>\n\n/*\n * A heading.\n */\n\nstruct waker {\n\tint a;\n};\n\n\
        #define MOST 3\n\nstatic bool is_in(int a)\n{\n\treturn a < MOST;\n}\n\n\
        /* As virtio_hmm_other() does. */\nbool virtio_hmm_get_page(int a,\n\t\t\t int b)\n{\n\t\
        struct waker waker;\n\n\treturn is_in(a) && virtio_hmm_inner(b);\n}\n\n\
        bool virtio_hmm_inner(int b)\n{\n\treturn b;\n}\n\nvoid virtio_hmm_unused(void)\n{\n}\n";

    #[test]
    fn a_helper_comes_with_what_it_needs_and_nothing_else() {
        let functions = BTreeSet::from(["virtio_hmm_get_page".to_owned()]);
        let file = file("/* Head. */\n", &[SOURCE.to_owned()], &functions).unwrap();
        let expected = "/* Head. */\n\nstruct waker {\n\tint a;\n};\n\n#define MOST 3\n\n\
            static bool is_in(int a)\n{\n\treturn a < MOST;\n}\n\n/* As hmm_other() does. */\n\
            __rust_helper bool rust_helper_get_page(int a, int b)\n{\n\tstruct waker waker;\n\n\t\
            return is_in(a) && hmm_inner(b);\n}\n\nstatic bool hmm_inner(int b)\n{\n\treturn b;\n}\n";
        assert_eq!(file, expected);
    }

    #[test]
    fn a_function_that_is_not_there_is_named() {
        let functions = BTreeSet::from(["virtio_hmm_absent".to_owned()]);
        let error = file("", &[SOURCE.to_owned()], &functions).unwrap_err();
        assert!(error.to_string().contains("virtio_hmm_absent"), "{error}");
    }

    #[test]
    fn a_long_signature_is_aligned() {
        let wrapped = wrap(&format!(
            "int f({}int last)",
            "unsigned long argument, ".repeat(5)
        ));
        let lines: Vec<_> = wrapped.lines().collect();
        assert_eq!(lines.len(), 2, "{wrapped}");
        assert!(
            lines[1].starts_with("      unsigned long argument"),
            "{wrapped}"
        );
    }
}
