//! Documentation of Rust as comments of C, in the form that the kernel's documentation tools read.

use anyhow::{bail, Context, Result};

use crate::names::Names;

/// The greatest width of a line; a tab counts as eight.
const WIDTH: usize = 80;

/// The paragraphs of a documentation comment, each as one line of text. Names become those of C;
/// `fields` are the names that mean a member of what is described.
///
/// # Errors
///
/// When a link leads out of the header.
pub(crate) fn paragraphs(doc: &[String], names: &Names, fields: &[&str]) -> Result<Vec<String>> {
    let mut paragraphs = Vec::new();
    for lines in doc.split(String::is_empty) {
        if !lines.is_empty() {
            paragraphs.push(translate(&lines.join(" "), names, fields)?);
        }
    }
    Ok(paragraphs)
}

/// A text with the names of C.
pub(crate) fn translate(text: &str, names: &Names, fields: &[&str]) -> Result<String> {
    let mut translated = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('`') {
        let is_link = rest[..start].ends_with('[');
        translated.push_str(&rest[..start - usize::from(is_link)]);
        let (code, after) = rest[start + 1..]
            .split_once('`')
            .with_context(|| format!("a ` is not closed in: {text}"))?;
        if is_link {
            let after = after
                .strip_prefix(']')
                .with_context(|| format!("a link is not closed in: {text}"))?;
            let (path, after) = match after.strip_prefix('(').and_then(|it| it.split_once(')')) {
                Some((path, after)) => (path, after),
                None => (code, after),
            };
            if after.starts_with(char::is_alphabetic) {
                bail!("a name that a letter follows would become another name in: {text}");
            }
            translated.push_str(names.link(path)?);
            rest = after;
        } else {
            translated.push_str(&span(code, names, fields));
            rest = after;
        }
    }
    translated.push_str(rest);
    Ok(translated)
}

/// A piece of code within documentation.
fn span(code: &str, names: &Names, fields: &[&str]) -> String {
    let is_constant = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    if fields.contains(&code) {
        return format!("@{code}");
    }
    if let Some(reference) = names.get(code) {
        return reference.to_owned();
    }
    match code {
        "u8" | "u16" | "u32" | "u64" => format!("__{code}"),
        "u32::MAX" => "%UINT32_MAX".to_owned(),
        _ if code.chars().all(is_constant) => format!("%{code}"),
        _ => format!("``{code}``"),
    }
}

/// A comment that documentation tools read: a title, and what belongs to it.
#[derive(Debug)]
pub(crate) struct Comment {
    indent: &'static str,
    text: String,
}

impl Comment {
    /// Begins a comment whose lines begin with `indent`.
    pub(crate) fn new(indent: &'static str) -> Self {
        Self {
            indent,
            text: format!("{indent}/**\n"),
        }
    }

    /// Adds a text that begins with `first`; its further lines begin with `rest`.
    pub(crate) fn add(&mut self, first: &str, rest: &str, text: &str) -> &mut Self {
        let start = format!("{} * ", self.indent);
        let lines = wrap(
            text,
            &format!("{start}{first}"),
            &format!("{start}{rest}"),
            WIDTH,
        );
        self.text.push_str(&lines);
        self
    }

    /// Adds paragraphs, each after an empty line.
    pub(crate) fn paragraphs(&mut self, paragraphs: &[String]) -> &mut Self {
        for paragraph in paragraphs {
            self.gap().add("", "", paragraph);
        }
        self
    }

    /// Adds an empty line.
    pub(crate) fn gap(&mut self) -> &mut Self {
        self.text.push_str(self.indent);
        self.text.push_str(" *\n");
        self
    }

    /// The whole comment.
    pub(crate) fn end(&self) -> String {
        format!("{}{} */\n", self.text, self.indent)
    }
}

/// A comment for people alone, as before a `#define`: without the marks for documentation tools.
pub(crate) fn plain(text: &str) -> String {
    let text = text.replace("``", "").replace(['&', '%'], "");
    let line = format!("/* {text} */\n");
    if width(line.trim_end()) <= WIDTH {
        return line;
    }
    format!("/*\n{} */\n", wrap(&text, " * ", " * ", WIDTH))
}

/// Breaks a text into lines of at most `limit` columns, each with its end. A longer word has a line of
/// its own.
pub(crate) fn wrap(text: &str, first: &str, rest: &str, limit: usize) -> String {
    let mut lines = String::new();
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && width(&line) + 1 + width(word) > limit {
            lines.push_str(line.trim_end());
            lines.push('\n');
            line = rest.to_owned();
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push_str(line.trim_end());
    lines.push('\n');
    lines
}

fn width(line: &str) -> usize {
    let tab = |column: usize| (column / 8 + 1) * 8;
    line.chars().fold(
        0,
        |column, c| if c == '\t' { tab(column) } else { column + 1 },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let mut names = Names::default();
        names.insert("Status::Fault", "%STATUS_FAULT".to_owned());
        names.insert("MAX_WAIT", "%MAX_WAIT_OF_C".to_owned());
        names
    }

    #[test]
    fn names_become_those_of_c() {
        let text = "1 to [`MAX_WAIT`], of `count`; with [`Status::Fault`](super::Status::Fault) \
                    a `u64` or `ENOMEM`, `x + 1` long";
        assert_eq!(
            translate(text, &names(), &["count"]).unwrap(),
            "1 to %MAX_WAIT_OF_C, of @count; with %STATUS_FAULT a __u64 or %ENOMEM, ``x + 1`` long"
        );
    }

    #[test]
    fn a_link_that_leads_nowhere_or_would_change_its_name_is_an_error() {
        for text in [
            "see [`Elsewhere`]",
            "two [`MAX_WAIT`]s",
            "`open",
            "[`MAX_WAIT`",
        ] {
            assert!(translate(text, &names(), &[]).is_err(), "{text}");
        }
    }

    #[test]
    fn long_lines_are_broken_between_words_and_never_within() {
        let mut comment = Comment::new("\t");
        let text = "word ".repeat(30);
        comment.add("@x: ", "     ", &text).gap().add("", "", "end");
        let text = comment.end();
        assert!(text.lines().all(|line| width(line) <= WIDTH), "{text}");
        assert_eq!(text.matches("word").count(), 30);
        assert!(text.starts_with("\t/**\n\t * @x: word"), "{text}");
        assert!(text.ends_with("word\n\t *\n\t * end\n\t */\n"), "{text}");
    }

    #[test]
    fn a_short_comment_takes_one_line() {
        assert_eq!(plain("Short."), "/* Short. */\n");
        assert_eq!(plain("``/dev`` of &struct x."), "/* /dev of struct x. */\n");
        assert!(plain(&"word ".repeat(20)).starts_with("/*\n * word"));
    }
}
