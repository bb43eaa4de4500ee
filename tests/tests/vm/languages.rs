//! Programs in C, Python and Rust: what `docs/languages.md` shows is built as it says, and runs in a
//! guest.

mod page;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command as HostCommand;

use hmm_vm::artifacts::Artifacts;
use hmm_vm::guest::Command;
use hmm_vm::vm::{Vm, SHARED};
use tempfile::TempDir;

use self::page::{Page, Step};
use super::support::assert_nothing_left_or_lost;

/// How the checkout and Cargo's output are called in commands for people.
const LIBRARY: &str = "target/virtio-hmm/libhmm";
const GUEST_PROGRAMS: &str = "target/x86_64-unknown-linux-gnu/release";

/// What a tour prints, whatever language it is in. The numbers of pages depend on where the array
/// begins.
const TOUR: [&str; 8] = [
    "device: 256 MiB",
    "moved: N of N pages",
    "sum: 549755289600",
    "on the device: N",
    "sum by the CPU: 549755289600",
    "on the device: 0",
    "list: 1000 nodes, sum 499500, 7 is in node 7",
    "cancelled: ",
];

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A directory that looks like the checkout to the commands of a page, with the library and the
/// programs built.
fn scratch(artifacts: &Artifacts) -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    let link = |to: &Path, name: &str| {
        let from = scratch.path().join(name);
        fs::create_dir_all(from.parent().unwrap()).unwrap();
        symlink(to, from).unwrap();
    };
    link(&checkout().join("examples"), "examples");
    link(library(artifacts), LIBRARY);
    link(artifacts.agent.parent().unwrap(), GUEST_PROGRAMS);
    scratch
}

fn library(artifacts: &Artifacts) -> &Path {
    let library = artifacts.libhmm.as_deref();
    library.expect("libhmm is among the artifacts")
}

/// Runs a command for the host's shell.
fn shell(directory: &Path, command: &str) {
    let output = HostCommand::new("sh")
        .args(["-euc", command])
        .current_dir(directory)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}\n{text}");
}

/// A machine with these files, libhmm at [`SHARED`], and Debian's programs.
fn machine(artifacts: &Artifacts, files: &[PathBuf]) -> Vm {
    let machine = Vm::builder(artifacts)
        .check()
        .userland()
        .share(library(artifacts));
    let machine = files
        .iter()
        .fold(machine, |machine, file| machine.file(file));
    machine.start().unwrap()
}

/// The lines of a tour without its numbers of pages, except zero.
fn without_pages(text: &str) -> Vec<String> {
    let digits = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
    let line = |line: &str| {
        let is_of_pages = line.starts_with("moved: ") || line.starts_with("on the device: ");
        let words = line.split(' ').map(|word| match word {
            word if is_of_pages && digits(word) && word != "0" => "N",
            word => word,
        });
        words.collect::<Vec<_>>().join(" ")
    };
    text.lines().map(line).collect()
}

#[test]
fn the_examples_are_built_as_the_page_says_and_run_in_a_guest() {
    let artifacts = Artifacts::required();
    let page = Page::read(&checkout().join("docs/languages.md"));
    let scratch = scratch(&artifacts);
    let mut files: Vec<PathBuf> = Vec::new();
    let mut commands = Vec::new();
    let mut variables = String::new();
    for step in page.steps() {
        match step {
            // The preparation of the tests has built this.
            Step::Built => {}
            Step::Variable(assignment) => variables = format!("export {assignment}; "),
            Step::Host(command) => shell(scratch.path(), &format!("{variables}{command}")),
            Step::Guest(guest) => {
                assert!(guest.share.is_none_or(|share| share == LIBRARY));
                files.extend(guest.files.iter().map(|file| scratch.path().join(file)));
                commands.push(guest.command);
            }
        }
    }
    // C, static and shared; Python; Rust.
    assert_eq!(commands.len(), 4, "{commands:?}");
    let vm = machine(&artifacts, &files);
    for command in commands {
        let output = vm.run(&*command).unwrap();
        let text = output
            .succeeded()
            .unwrap_or_else(|error| panic!("{command:?}: {error:#}"));
        let lines = without_pages(&text);
        assert_eq!(lines.len(), TOUR.len(), "{command:?}: {text}");
        for (line, expected) in lines.iter().zip(TOUR) {
            let is_right = match expected.ends_with(' ') {
                true => line.starts_with(expected),
                false => line == expected,
            };
            assert!(is_right, "{command:?}: {line} and not {expected}");
        }
    }
    assert_nothing_left_or_lost(&vm, 0);
    vm.finish().unwrap();
}

/// What a piece of C of the page needs around it, to be a program: `/*piece*/` and `/*include*/` are
/// replaced.
const JOB: &str = "
#include <endian.h>
#include <hmm.h>
#include <stdint.h>
#include <stdio.h>
/*include*/
int main(void)
{
	struct virtio_hmm_job_descriptor job;
	struct virtio_hmm_job_reply reply;
	uint64_t numbers[1000], count = 1000, sum = 0;
	struct hmm_device *device;
	int error;

	for (uint64_t i = 0; i < count; i++)
		numbers[i] = i;
	if (hmm_open(\"/dev/hmm0\", &device) || hmm_bind(device))
		return 1;
	/*piece*/
	printf(\"%d %llu\\n\", error, (unsigned long long)sum);
	return 0;
}
";
const CALL: &str = "
#include <errno.h>
#include <stdio.h>
/*include*/
int main(void)
{
	errno = 0;
	/*piece*/
	printf(\"%d\\n\", errno);
	return file < 0;
}
";

#[test]
fn the_pieces_of_programs_on_the_page_do_what_it_says() {
    let artifacts = Artifacts::required();
    let page = Page::read(&checkout().join("docs/languages.md"));
    let scratch = scratch(&artifacts);
    let mut files = Vec::new();
    let [job, call] = &page.code("c")[..] else {
        panic!("the page has two pieces of C");
    };
    for (name, around, piece) in [("job", JOB, job), ("call", CALL, call)] {
        let (include, piece): (Vec<_>, Vec<_>) =
            piece.lines().partition(|line| line.starts_with("#include"));
        let program = around
            .replace("/*include*/", &include.join("\n"))
            .replace("/*piece*/", &piece.join("\n"));
        fs::write(scratch.path().join(format!("{name}.c")), program).unwrap();
        shell(
            scratch.path(),
            &format!(
                "cc -Wall -Werror -Wno-misleading-indentation -static -o {name} {name}.c -I {LIBRARY}/include/hmm \
                 {LIBRARY}/lib/libhmm.a"
            ),
        );
        files.push(scratch.path().join(name));
    }
    let [python] = &page.code("python")[..] else {
        panic!("the page has one program in Python");
    };
    let program = scratch.path().join("page.py");
    fs::write(&program, python).unwrap();
    files.push(program);

    let vm = machine(&artifacts, &files);
    let run = |command: Command| vm.run(command).unwrap().succeeded().unwrap();
    assert_eq!(run(Command::new("job")), "0 499500\n");
    assert_eq!(run(Command::new("call")), "0\n");
    let text = run(python_with_library().argument("page.py"));
    assert!(text.starts_with("499999500000 "), "{text}");
    assert_nothing_left_or_lost(&vm, 0);
    vm.finish().unwrap();
}

/// Python, which finds the package and the library.
fn python_with_library() -> Command {
    Command::new("python3")
        .variable("PYTHONPATH", format!("{SHARED}/lib/hmm/python"))
        .variable("HMM_LIBRARY", format!("{SHARED}/lib/libhmm.so"))
}

#[test]
fn arrays_of_numpy_and_other_buffers_are_worked_on_where_they_are() {
    let artifacts = Artifacts::required();
    let tests = checkout().join("guest/python/tests/on_device.py");
    let vm = machine(&artifacts, &[tests]);
    let command =
        python_with_library().arguments(["-W", "error", "-m", "unittest", "-v", "on_device"]);
    let output = vm.run(command).unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.success(), "{text}");
    assert!(text.ends_with("OK\n"), "none is skipped: {text}");
    assert_nothing_left_or_lost(&vm, 0);
    vm.finish().unwrap();
}
