//! The uses between the modules of a package: every path that begins in its crate, or in the library
//! beside its program, in imports, in code and in arguments of macros. Tests do not count.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::iter::Peekable;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, ensure, Context, Result};
use proc_macro2::token_stream::IntoIter;
use proc_macro2::{Delimiter, Group, Ident, Spacing, TokenStream, TokenTree};

/// The modules of a package and the uses between them.
#[derive(Debug)]
pub(super) struct Source {
    /// The file of each module, by its path in the crate with `/` between the names. The path of a
    /// root is empty: a library and its program count as one.
    files: BTreeMap<String, String>,
    imports: Vec<Import>,
}

/// A use of a module by another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Import {
    /// The module that uses.
    pub(super) user: String,
    /// The module that is used.
    pub(super) used: String,
    /// The path that is used, as written but from the root on.
    what: String,
    file: String,
    line: usize,
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file, line, what, ..
        } = self;
        write!(f, "{file}:{line} uses crate::{what}")
    }
}

/// A path that begins in the crate, from the root on, and what follows it.
#[derive(Debug)]
struct Named {
    module: Vec<String>,
    path: Vec<String>,
    line: usize,
}

/// The library that a program has beside itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Library<'a> {
    /// The name by which the program's paths begin in it.
    pub(super) name: &'a str,
    /// The file of its root, in the folder of the program's.
    pub(super) root: &'a str,
}

impl Source {
    /// Reads a crate, beginning with the file of its root, and a library in the same folder.
    pub(super) fn read(root: &Path, library: Option<Library<'_>>) -> Result<Self> {
        let folder = root.parent().context("a file is in a folder")?;
        let mut reader = Reader {
            folder: folder.to_owned(),
            library: None,
            files: BTreeMap::new(),
            named: Vec::new(),
        };
        if let Some(Library { name, root }) = library {
            reader.file(&folder.join(root), Vec::new())?;
            reader.library = Some(name.to_owned());
        }
        reader.file(root, Vec::new())?;
        let Reader { files, named, .. } = reader;
        let imports = named.into_iter().filter_map(|named| resolve(&files, named));
        let imports = imports.collect();
        Ok(Self { files, imports })
    }

    /// The paths of all modules that are files.
    pub(super) fn modules(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// The uses between them.
    pub(super) fn imports(&self) -> &[Import] {
        &self.imports
    }
}

/// Finds the modules of a path; `None` if it stays within one.
fn resolve(files: &BTreeMap<String, String>, named: Named) -> Option<Import> {
    let file_of = |path: &[String]| {
        (0..=path.len())
            .rev()
            .map(|end| path[..end].join("/"))
            .find(|module| files.contains_key(module))
    };
    let user = file_of(&named.module)?;
    let used = file_of(&named.path)?;
    (user != used).then(|| Import {
        file: files[&user].clone(),
        user,
        used,
        what: named.path.join("::"),
        line: named.line,
    })
}

struct Reader {
    folder: PathBuf,
    /// The name of the library whose modules have been read.
    library: Option<String>,
    files: BTreeMap<String, String>,
    named: Vec<Named>,
}

impl Reader {
    /// Reads the file of a module, and the files of the modules that it declares.
    fn file(&mut self, path: &Path, module: Vec<String>) -> Result<()> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let tokens: TokenStream = text
            .parse()
            .map_err(|error| anyhow!("{}: {error}", path.display()))?;
        let name = path.strip_prefix(&self.folder).unwrap_or(path);
        let name = name.display().to_string();
        let before = self.files.insert(module.join("/"), name);
        ensure!(
            module.is_empty() || before.is_none(),
            "both the library and the program have a module `{}`",
            module.join("/")
        );
        self.items(tokens, &module)
    }

    /// Reads the contents of a pair of braces, or of a file.
    fn items(&mut self, tokens: TokenStream, module: &[String]) -> Result<()> {
        let mut tokens = tokens.into_iter().peekable();
        // The attributes of the next item.
        let (mut is_test, mut is_elsewhere) = (false, false);
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == '#' => {
                    tokens.next_if(|token| is_punct(token, '!'));
                    let attribute = tokens.next().context("an attribute has a text")?;
                    let attribute = attribute.to_string().replace(' ', "");
                    is_test |= attribute == "[cfg(test)]";
                    is_elsewhere |= attribute.starts_with("[path=");
                }
                TokenTree::Punct(punct) if punct.as_char() == ';' => {
                    (is_test, is_elsewhere) = (false, false);
                }
                TokenTree::Group(group) => {
                    if !is_test {
                        self.items(group.stream(), module)?;
                    }
                    if group.delimiter() == Delimiter::Brace {
                        (is_test, is_elsewhere) = (false, false);
                    }
                }
                TokenTree::Ident(_) if is_test => {}
                TokenTree::Ident(ident) if ident == "mod" => {
                    let name = tokens.next().context("a module has a name")?;
                    let inner = [module, &[name.to_string()]].concat();
                    match tokens.next() {
                        Some(TokenTree::Group(group)) => self.items(group.stream(), &inner)?,
                        _ if is_elsewhere => {}
                        _ => self.declared(inner)?,
                    }
                    (is_test, is_elsewhere) = (false, false);
                }
                TokenTree::Ident(ident) => self.word(&ident, module, &mut tokens),
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads the file of a module that is declared in another one.
    fn declared(&mut self, module: Vec<String>) -> Result<()> {
        let stem = self.folder.join(module.join("/"));
        let [plain, folder] = [stem.with_extension("rs"), stem.join("mod.rs")];
        let path = if plain.exists() { plain } else { folder };
        self.file(&path, module)
    }

    /// Reads a word, and the rest of the path if it begins one.
    fn word(&mut self, word: &Ident, module: &[String], tokens: &mut Peekable<IntoIter>) {
        if skip_colons(tokens) {
            let line = word.span().start().line;
            self.path(vec![word.to_string()], module, line, tokens);
        }
    }

    /// Reads the rest of a path, after a `::`, with all its branches.
    fn path(
        &mut self,
        start: Vec<String>,
        module: &[String],
        line: usize,
        tokens: &mut Peekable<IntoIter>,
    ) {
        let mut path = start;
        loop {
            match tokens.peek() {
                Some(TokenTree::Ident(ident)) => {
                    path.push(ident.to_string());
                    tokens.next();
                    if !skip_colons(tokens) {
                        break;
                    }
                }
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    let group = group.clone();
                    tokens.next();
                    return self.branches(&path, module, &group);
                }
                // The path has ended, or a type's arguments follow.
                _ => break,
            }
        }
        self.name(&path, module, line);
    }

    fn branches(&mut self, start: &[String], module: &[String], group: &Group) {
        let mut tokens = group.stream().into_iter().peekable();
        while let Some(token) = tokens.peek() {
            let line = token.span().start().line;
            if matches!(token, TokenTree::Ident(_)) {
                self.path(start.to_vec(), module, line, &mut tokens);
            } else {
                tokens.next();
                continue;
            }
            // An alias.
            while tokens.next_if(|token| !is_punct(token, ',')).is_some() {}
        }
    }

    fn name(&mut self, path: &[String], module: &[String], line: usize) {
        let is_root = |word: &String| word == "crate" || self.library.as_ref() == Some(word);
        let (mut from_root, path) = match path {
            [first, rest @ ..] if is_root(first) => (Vec::new(), rest),
            _ => (module.to_vec(), path),
        };
        for word in path {
            match word.as_str() {
                "crate" | "self" => {}
                "super" => {
                    from_root.pop();
                }
                word => from_root.push(word.to_owned()),
            }
        }
        self.named.push(Named {
            module: module.to_vec(),
            path: from_root,
            line,
        });
    }
}

fn is_punct(token: &TokenTree, which: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == which)
}

/// Takes a `::`, if it comes next.
fn skip_colons(tokens: &mut Peekable<IntoIter>) -> bool {
    let is_joint = |token: &TokenTree| {
        matches!(token, TokenTree::Punct(punct)
            if punct.as_char() == ':' && punct.spacing() == Spacing::Joint)
    };
    tokens.next_if(is_joint).is_some() && tokens.next().is_some()
}
