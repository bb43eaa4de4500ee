//! A page of the documentation: the commands and the programs that it shows.
//!
//! It knows Markdown's blocks of code, and which commands a page may show; it runs none.

use std::fs;
use std::path::{Path, PathBuf};

/// A page.
#[derive(Debug)]
pub(crate) struct Page {
    /// Its blocks of code, each with its language.
    blocks: Vec<(String, String)>,
}

/// What a command of the page is to a test.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It builds what the preparation of the tests builds.
    Built,
    /// It sets a variable for the commands after it.
    Variable(String),
    /// It runs on the host.
    Host(String),
    /// It runs a command in a guest.
    Guest(Guest),
}

/// A command of `cargo xtask vm`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) share: Option<String>,
    pub(crate) command: Vec<String>,
}

impl Page {
    pub(crate) fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path);
        Self::parse(&text.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn parse(text: &str) -> Self {
        let mut blocks: Vec<(String, String)> = Vec::new();
        let mut inside = false;
        for line in text.lines() {
            match line.strip_prefix("```") {
                Some(_) if inside => inside = false,
                Some(language) => {
                    inside = true;
                    blocks.push((language.to_owned(), String::new()));
                }
                None => {
                    if let Some((_, code)) = blocks.last_mut().filter(|_| inside) {
                        code.push_str(line);
                        code.push('\n');
                    }
                }
            }
        }
        assert!(!inside, "a block has no end");
        Self { blocks }
    }

    /// The blocks in a language.
    pub(crate) fn code(&self, language: &str) -> Vec<&str> {
        let blocks = self.blocks.iter().filter(|(of, _)| of == language);
        blocks.map(|(_, code)| code.as_str()).collect()
    }

    /// The commands for a shell, in order.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let text = self.code("sh").concat().replace("\\\n", " ");
        text.lines().map(step).collect()
    }
}

fn step(line: &str) -> Step {
    let words: Vec<&str> = line.split_whitespace().collect();
    match &words[..] {
        ["cargo", "xtask", "libhmm"] => Step::Built,
        [flags, "cargo", "build", ..] | [flags, _, "cargo", "build", ..]
            if flags.starts_with("RUSTFLAGS=") && words.contains(&"hmm-tour") =>
        {
            Step::Built
        }
        ["export", assignment] => Step::Variable((*assignment).to_owned()),
        ["cc", ..] => Step::Host(line.to_owned()),
        ["cargo", "xtask", "vm", arguments @ ..] => Step::Guest(guest(arguments)),
        _ => panic!("no test knows the command {line:?}"),
    }
}

fn guest(arguments: &[&str]) -> Guest {
    let mut guest = Guest::default();
    let mut words = arguments.iter();
    let mut has_tools = false;
    while let Some(&word) = words.next() {
        let mut value = || (*words.next().expect("the option has a value")).to_owned();
        match word {
            "--file" => guest.files.push(value().into()),
            "--share" => guest.share = Some(value()),
            "--tools" => has_tools = true,
            "--" => guest.command = words.by_ref().map(|&word| word.to_owned()).collect(),
            other => panic!("no test knows the option {other}"),
        }
    }
    // Nothing else brings the libraries of a shared program, or Python.
    assert_eq!(has_tools, guest.share.is_some(), "{arguments:?}");
    guest
}

#[test]
fn a_page_has_the_commands_of_its_blocks_in_order() {
    let page = Page::parse(
        "text\n```sh\ncargo xtask libhmm\ncc -o a \\\n    a.c\n```\n```c\nint a;\n```\nmore\n```sh\n\
         cargo xtask vm --file a -- a b\n```\n",
    );
    assert_eq!(page.code("c"), ["int a;\n"]);
    let guest = Guest {
        files: vec!["a".into()],
        share: None,
        command: vec!["a".into(), "b".into()],
    };
    let steps = [
        Step::Built,
        Step::Host("cc -o a      a.c".into()),
        Step::Guest(guest),
    ];
    assert_eq!(page.steps(), steps);
}
