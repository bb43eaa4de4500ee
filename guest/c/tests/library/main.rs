//! `hmm.h` and the two forms of the library agree, as C programs find out.
//!
//! It knows nothing of devices: there is none here.

mod built;
mod python;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use object::elf::{FileHeader64, DT_SONAME};
use object::read::elf::{Dyn, ElfFile64, FileHeader};
use object::{Endianness, Object, ObjectSymbol};

use built::{libraries, succeeded};

const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn with_headers(compiler: &str) -> Command {
    let mut command = Command::new(compiler);
    command.args(STRICT);
    command.arg("-I").arg(folder().join("include"));
    command.arg("-I").arg(folder().join("../../include/uapi"));
    command
}

/// The functions that the header declares.
fn declared() -> BTreeSet<String> {
    let text = fs::read_to_string(folder().join("include/hmm.h")).unwrap();
    let code = text.lines().filter(|line| {
        let line = line.trim_start();
        !line.starts_with('*') && !line.starts_with("/*") && !line.starts_with('#')
    });
    let names = code.filter_map(|line| {
        let before = line.split_once('(')?.0;
        let name = before.rsplit([' ', '*']).next()?;
        name.starts_with("hmm_").then(|| name.to_owned())
    });
    let mut declared = BTreeSet::new();
    for name in names {
        assert!(!declared.contains(&name), "{name} is declared twice");
        declared.insert(name);
    }
    declared
}

#[test]
fn the_header_declares_exactly_what_the_shared_library_exports() {
    let bytes = fs::read(&libraries().shared).unwrap();
    let library = ElfFile64::<Endianness>::parse(&*bytes).unwrap();
    let exported: BTreeSet<String> = library
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition() && symbol.is_global())
        .map(|symbol| symbol.name().unwrap().to_owned())
        .collect();
    assert_eq!(exported, declared());
    assert!(exported.contains("hmm_open"), "{exported:?}");
}

#[test]
fn every_example_compiles_and_is_linked_as_its_page_says() {
    let examples = folder().join("../../examples/c");
    let directory = tempfile::tempdir().unwrap();
    let mut count = 0;
    for entry in fs::read_dir(examples).unwrap() {
        let source = entry.unwrap().path();
        let program = directory.path().join(source.file_stem().unwrap());
        let mut compiler = with_headers("cc");
        compiler.args(["-std=c11", "-static", "-o"]);
        compiler.arg(&program).arg(&source).arg(&libraries().fixed);
        succeeded(&mut compiler);
        count += 1;
    }
    assert_eq!(count, 2);
}

#[test]
fn the_first_hour_shows_an_example_as_it_is() {
    let checkout = folder().join("../..");
    let page = fs::read_to_string(checkout.join("book/pages/first-hour.md")).unwrap();
    let source = fs::read_to_string(checkout.join("examples/c/first.c")).unwrap();
    let (_, source) = source.split_once('\n').unwrap();
    let (_, shown) = page.split_once("```c\n").unwrap();
    let (shown, _) = shown.split_once("```").unwrap();
    assert_eq!(shown, source);
}

#[test]
fn the_shared_library_is_known_by_the_first_number_of_its_version() {
    let bytes = fs::read(&libraries().shared).unwrap();
    let header = FileHeader64::<Endianness>::parse(&*bytes).unwrap();
    let endian = header.endian().unwrap();
    let sections = header.sections(endian, &*bytes).unwrap();
    let (entries, strings) = sections.dynamic(endian, &*bytes).unwrap().unwrap();
    let strings = sections.strings(endian, &*bytes, strings).unwrap();
    let mut names = entries
        .iter()
        .filter(|entry| entry.tag32(endian) == Some(DT_SONAME));
    let name = names
        .next()
        .expect("it has a name")
        .string(endian, strings)
        .unwrap();
    let expected = format!("libhmm.so.{}", env!("CARGO_PKG_VERSION_MAJOR"));
    assert_eq!(String::from_utf8_lossy(name), expected);
}

#[test]
fn a_c_program_finds_in_both_libraries_what_the_header_promises() {
    let scratch = tempfile::tempdir().unwrap();
    let soname = format!("libhmm.so.{}", env!("CARGO_PKG_VERSION_MAJOR"));
    std::os::unix::fs::symlink(&libraries().shared, scratch.path().join(soname)).unwrap();
    let source = folder().join("tests/api.c");
    let compile = |name: &str| {
        let program = scratch.path().join(name);
        let mut command = with_headers("cc");
        command.arg("-std=c99").arg("-o").arg(&program).arg(&source);
        (program, command)
    };

    let (program, mut command) = compile("shared");
    succeeded(command.arg(&libraries().shared));
    succeeded(Command::new(program).env("LD_LIBRARY_PATH", scratch.path()));

    let (program, mut command) = compile("static");
    succeeded(command.arg("-static").arg(&libraries().fixed));
    succeeded(&mut Command::new(program));
}

#[test]
fn the_header_is_good_cpp() {
    let scratch = tempfile::tempdir().unwrap();
    let source = scratch.path().join("program.cc");
    fs::write(
        &source,
        "#include <hmm.h>\nint main() { return hmm_fd(nullptr) >= 0; }\n",
    )
    .unwrap();
    let program = scratch.path().join("program");
    let mut command = with_headers("c++");
    command
        .args(["-std=c++11", "-o"])
        .arg(&program)
        .arg(&source);
    // A C++ program finds the functions by their names in C.
    succeeded(command.arg("-static").arg(&libraries().fixed));
    succeeded(&mut Command::new(program));
}
