//! The commands that pages show, so that a program can try whether it would understand them.
//!
//! It knows how a shell reads a line as far as the pages need it, and nothing of what a command does.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::links;
use crate::page::Page;

/// The page that also shows commands of earlier versions.
const HISTORY: &str = "CHANGELOG.md";

/// Languages of blocks that are typed into a shell.
const OF_SHELLS: [&str; 2] = ["sh", "console"];

/// What stands for a value of the user's, and a value that is possible.
const PLACEHOLDERS: [(&str, &str); 6] = [
    ("N", "1"),
    ("PID", "1"),
    ("SECONDS", "60"),
    ("SIZE", "64M"),
    ("RULE", "delay=1ms@dma"),
    ("NAME <ADDRESS>", "A Person <person@example.org>"),
];

/// A command that a page shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The page, from the root of the repository.
    pub page: PathBuf,
    /// The line on which the code with the command begins.
    pub line: usize,
    /// The words after the program's name.
    pub arguments: Vec<String>,
    /// Whether it is in a block, and so complete; in a sentence a command may be only named.
    pub is_complete: bool,
}

/// The commands of a program that the pages of a checkout show. `cargo xtask` is a program here.
///
/// # Errors
///
/// When a page cannot be read.
pub fn shown(checkout: &Path, program: &str) -> Result<Vec<Shown>> {
    let mut found = Vec::new();
    for (path, text) in links::pages(checkout)? {
        found.extend(on_page(&path, &text, program));
    }
    Ok(found)
}

/// What a program does not understand: a line for each of these commands.
///
/// `parse` gets the arguments, and returns the parser's verdict. `replace` gives the value for a
/// word, if the tests need another one.
pub fn misunderstood(
    shown: &[Shown],
    replace: impl Fn(&str) -> Option<String>,
    parse: impl Fn(&[String]) -> Result<(), clap::Error>,
) -> Vec<String> {
    use clap::error::ErrorKind;
    let mut found = Vec::new();
    for command in shown {
        // The name of any command is none.
        let words = command.arguments.iter();
        let words: Vec<_> = words
            .filter(|word| command.arguments[0] != "help" || *word != "COMMAND")
            .map(|word| replace(word).unwrap_or_else(|| value(word)))
            .collect();
        let Err(error) = parse(&words) else {
            continue;
        };
        let is_fine = match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
            ErrorKind::MissingRequiredArgument
            | ErrorKind::MissingSubcommand
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => !command.is_complete,
            _ => false,
        };
        if !is_fine {
            let (page, line) = (command.page.display(), command.line);
            let words = command.arguments.join(" ");
            found.push(format!("{page}:{line}: {words}\n{error}"));
        }
    }
    found
}

/// A value for a placeholder; any other word stays.
fn value(word: &str) -> String {
    let mut known = PLACEHOLDERS.iter();
    let known = known.find(|(placeholder, _)| *placeholder == word);
    known.map_or(word, |(_, value)| value).to_owned()
}

fn on_page(path: &Path, text: &str, program: &str) -> Vec<Shown> {
    let is_history = path.ends_with(HISTORY);
    let code = Page::read(text).code.into_iter();
    let relevant = code.filter(|code| match &code.language {
        Some(language) => OF_SHELLS.contains(&language.as_str()),
        // What is left out in a sentence cannot be tried.
        None => !is_history && code.text.contains(' ') && !code.text.contains('…'),
    });
    let mut found = Vec::new();
    for code in relevant {
        let is_complete = code.language.is_some();
        let text = if is_complete {
            code.text
        } else {
            code.text.replace(['[', ']'], "")
        };
        for command in commands(&text) {
            let arguments = of_program(&command, program).into_iter();
            found.extend(arguments.map(|arguments| Shown {
                page: path.to_owned(),
                line: code.line,
                arguments,
                is_complete,
            }));
        }
    }
    found
}

/// The arguments of a program in a command, if it is this program's, or runs it in a guest.
fn of_program(command: &[String], program: &str) -> Vec<Vec<String>> {
    let is_set = |word: &&String| word.contains('=') && !word.starts_with('-');
    let words = &command[command.iter().take_while(is_set).count()..];
    let is_before = |word: &str| matches!(word, "if" | "then" | "!" | "sudo" | "exec" | "nice");
    let words = &words[words.iter().take_while(|word| is_before(word)).count()..];
    let is_xtask = matches!(words, [cargo, xtask, ..] if cargo == "cargo" && xtask == "xtask");
    let mut found = Vec::new();
    if is_xtask && program == "cargo xtask" {
        found.push(words[2..].to_vec());
    } else if is_xtask && words.get(2).is_some_and(|command| command == "vm") {
        let place = words.iter().position(|word| word == program);
        found.extend(place.map(|place| words[place + 1..].to_vec()));
    } else if let Some((first, rest)) = words.split_first() {
        // It may be named by its path.
        if first.rsplit('/').next() == Some(program) {
            found.push(rest.to_vec());
        }
    }
    found
}

/// The commands in a piece of shell, in words.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut characters = text.chars().peekable();
    // What follows a redirection is a file.
    let mut is_file = false;
    while let Some(c) = characters.next() {
        if let Some(mark) = quote {
            if c == mark {
                quote = None;
            } else {
                word.get_or_insert_default().push(c);
            }
            continue;
        }
        let ends_word = c.is_whitespace() || matches!(c, '|' | '&' | ';' | '(' | ')' | '<' | '>');
        if ends_word {
            if let Some(word) = word.take() {
                // The number of a descriptor is a part of its redirection.
                let is_descriptor = c == '>' && word.chars().all(|c| c.is_ascii_digit());
                if !is_file && !is_descriptor && word != "$" {
                    commands.last_mut().expect("there is one").push(word);
                }
                is_file = false;
            }
        }
        match c {
            '\\' if characters.next_if_eq(&'\n').is_some() => {}
            '\\' => word.get_or_insert_default().extend(characters.next()),
            '\'' | '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            '#' if word.is_none() => while characters.next_if(|c| *c != '\n').is_some() {},
            '\n' | '|' | '&' | ';' | '(' | ')' => commands.push(Vec::new()),
            '>' | '<' => is_file = true,
            c if c.is_whitespace() => {}
            c => word.get_or_insert_default().push(c),
        }
    }
    if let (Some(word), false) = (word, is_file) {
        commands.last_mut().expect("there is one").push(word);
    }
    commands.retain(|command| !command.is_empty());
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_of_shell_is_read_in_commands_and_words() {
        for (text, read) in [
            ("$ a b # c\nd", vec![vec!["a", "b"], vec!["d"]]),
            ("a \\\n  'b c' \"d\"e", vec![vec!["a", "b c", "de"]]),
            (
                "a | b && c; d &",
                vec![vec!["a"], vec!["b"], vec!["c"], vec!["d"]],
            ),
            ("a >f b 2>/dev/null", vec![vec!["a", "b"]]),
            ("x=$(a -b) c", vec![vec!["x=$"], vec!["a", "-b"], vec!["c"]]),
            ("a#b ''", vec![vec!["a#b", ""]]),
        ] {
            assert_eq!(commands(text), read, "{text}");
        }
    }

    #[test]
    fn the_commands_of_a_program_are_found_in_blocks_and_sentences() {
        let text = "`hmm info` `hmm stats [--all]` `hmm run …` `hmm`\n\n```sh\n\
                    FOO=1 target/release/hmm run list | head\ncargo xtask vm --cpus N -- hmm info --json\n```\n\n\
                    ```text\nhmm draws a picture\n```\n";
        let page = Path::new("a.md");
        let words = |program| {
            let shown = on_page(page, text, program).into_iter();
            shown
                .map(|s| (s.arguments.join(" "), s.is_complete))
                .collect::<Vec<_>>()
        };
        let of_hmm = [
            ("info", false),
            ("stats --all", false),
            ("run list", true),
            ("info --json", true),
        ];
        assert_eq!(words("hmm"), of_hmm.map(|(w, c)| (w.to_owned(), c)));
        let of_xtask = ("vm --cpus N -- hmm info --json".to_owned(), true);
        assert_eq!(words("cargo xtask"), [of_xtask]);
        let old = on_page(Path::new(HISTORY), text, "hmm");
        assert!(old.iter().all(|command| command.is_complete));
    }

    #[test]
    fn a_command_that_the_parser_refuses_is_told_with_its_page() {
        let parser = clap::Command::new("p")
            .arg(
                clap::Arg::new("n")
                    .long("n")
                    .value_parser(clap::value_parser!(u8)),
            )
            .arg(clap::Arg::new("must").required(true));
        let parse = |words: &[String]| {
            let words = ["p"].into_iter().chain(words.iter().map(String::as_str));
            parser.clone().try_get_matches_from(words).map(drop)
        };
        let told = |text: &str| {
            let shown = on_page(Path::new("a.md"), text, "p");
            assert_eq!(shown.len(), 1, "{text}");
            misunderstood(&shown, |_| None, parse)
        };
        assert!(told("`p --n N x`").is_empty());
        assert!(told("`p --n 3`").is_empty(), "only named");
        assert!(told("```sh\np --n 3\n```")[0].starts_with("a.md:1: --n 3\n"));
        assert!(told("`p --m 3 x`")[0].contains("'--m'"));
        assert!(told("`p --n x x`")[0].contains("'--n <n>'"));
    }

    #[test]
    fn every_block_of_code_says_its_language() {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let pages = links::pages(&checkout).unwrap();
        let silent = pages.iter().flat_map(|(path, text)| {
            let code = Page::read(text).code.into_iter();
            let silent = code.filter(|code| code.language.as_deref() == Some(""));
            silent.map(move |code| format!("{}:{}", path.display(), code.line))
        });
        let silent: Vec<_> = silent.collect();
        assert!(silent.is_empty(), "{silent:?}");
    }
}
