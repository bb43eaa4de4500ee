//! The header of the ioctls, seen by compilers: it says what the crate says of itself.
//!
//! The expected sizes, offsets and numbers come from the compiled crate. They do not pass through
//! the text from which the header was generated.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hmm_headers::snake;
use virtio_hmm_spec::uapi::{self, migrate_flags, page_state, submit_flags, CALLS};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::config::capability;
use virtio_hmm_spec::wire::fault::Reason;
use virtio_hmm_spec::wire::job::{self, JobDescriptor, JobReply};
use virtio_hmm_spec::wire::operation::{Element, Operation};
use virtio_hmm_spec::wire::statistics::Statistics;
use virtio_hmm_spec::wire::{rights, Layout, Values};

/// The languages in which the header must be understood: the compiler, and its options.
const LANGUAGES: [(&str, &[&str]); 4] = [
    ("cc", &["-x", "c", "-std=c99"]),
    ("cc", &["-x", "c", "-std=c11"]),
    ("cc", &["-x", "c", "-std=gnu17"]),
    ("c++", &["-x", "c++", "-std=c++11"]),
];

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("uapi")
}

/// Compiles a program that includes the header. Returns the compiler's messages if it fails.
fn compile(program: &str, (compiler, options): (&str, &[&str])) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("program.c");
    fs::write(&source, format!("#include <virtio_hmm.h>\n{program}")).unwrap();
    let output = Command::new(compiler)
        .args(options)
        .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror"])
        .arg("-I")
        .arg(directory())
        .args(["-c", "-o"])
        .arg(folder.path().join("program.o"))
        .arg(&source)
        .output()
        .unwrap_or_else(|error| panic!("{compiler} cannot be run, which Rust needs too: {error}"));
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// What must be true of the header, as C.
#[derive(Default)]
struct Claims {
    text: String,
    /// The tags of structures and enumerations about which there are claims.
    tags: BTreeSet<String>,
    /// The names about whose numbers there are claims.
    names: BTreeSet<String>,
}

impl Claims {
    fn of_the_crate() -> Self {
        let mut claims = Self {
            text: "#include <stddef.h>\n".to_owned(),
            ..Self::default()
        };
        claims.structures();
        claims.enumerations();
        claims.constants();
        for &(number, name, code) in CALLS {
            let name = format!("IOC_{}", snake(name).to_uppercase());
            claims.number(&name, code.into());
            claims.claim(&format!("_IOC_NR(VIRTIO_HMM_{name}) == {number}"));
        }
        claims
    }

    fn claim(&mut self, condition: &str) {
        writeln!(self.text, "_Static_assert({condition}, \"\");").unwrap();
    }

    fn number(&mut self, name: &str, number: u64) {
        self.claim(&format!("VIRTIO_HMM_{name} == {number}ULL"));
        self.names.insert(format!("VIRTIO_HMM_{name}"));
    }

    fn structures(&mut self) {
        self.structure::<JobDescriptor>();
        self.structure::<JobReply>();
        self.structure::<Statistics>();
        self.structure::<uapi::Info>();
        self.structure::<uapi::Bind>();
        self.structure::<uapi::Submit>();
        self.structure::<uapi::Wait>();
        self.structure::<uapi::Cancel>();
        self.structure::<uapi::WaitAny>();
        self.structure::<uapi::BindProcess>();
        self.structure::<uapi::SpaceCounters>();
        self.structure::<uapi::Migrate>();
        self.structure::<uapi::Residency>();
        self.structure::<uapi::Counters>();
        self.structure::<uapi::DriverStatistics>();
    }

    fn structure<T: Layout>(&mut self) {
        let tag = format!("struct virtio_hmm_{}", snake(T::NAME));
        self.claim(&format!("sizeof({tag}) == {}", T::SIZE));
        for field in T::FIELDS {
            let name = field.name;
            self.claim(&format!("offsetof({tag}, {name}) == {}", field.offset));
            let of_nothing = format!("(({tag} *)0)->{name}");
            self.claim(&format!("sizeof({of_nothing}) == {}", field.size));
            if matches!(field.type_name, "i32" | "i64") {
                self.claim(&format!("(__typeof__({of_nothing}))-1 < 0"));
            } else if matches!(field.type_name, "u32" | "u64" | "U32" | "U64") {
                self.claim(&format!("(__typeof__({of_nothing}))-1 > 0"));
            }
        }
        self.tags.insert(tag);
    }

    fn enumerations(&mut self) {
        self.enumeration::<uapi::DeviceState>();
        self.enumeration::<uapi::Destination>();
        self.enumeration::<Element>();
        self.enumeration::<Status>();
        self.enumeration::<Reason>();
        for operation in Operation::DESCRIPTIONS {
            let name = format!("OPERATION_{}", snake(operation.name).to_uppercase());
            self.number(&name, operation.code.into());
        }
        self.tags.insert("enum virtio_hmm_operation".to_owned());
    }

    fn enumeration<T: Values>(&mut self) {
        for &(name, value) in T::VALUES {
            let name = format!("{}_{}", snake(T::NAME), snake(name)).to_uppercase();
            self.number(&name, value.into());
        }
        self.tags
            .insert(format!("enum virtio_hmm_{}", snake(T::NAME)));
    }

    fn constants(&mut self) {
        self.number("VERSION", uapi::VERSION.into());
        self.number("IOCTL_TYPE", uapi::IOCTL_TYPE.into());
        self.number("MAX_DEVICES", uapi::MAX_DEVICES.into());
        self.number("MAX_SUBMIT", uapi::MAX_SUBMIT.into());
        self.number("MAX_WAIT", uapi::MAX_WAIT.into());
        self.number("MAX_RESIDENCY_PAGES", uapi::MAX_RESIDENCY_PAGES);
        self.number("MAX_ARGUMENTS", job::MAX_ARGUMENTS as u64);
        self.number("CAPABILITY_CHECK", capability::CHECK);
        self.number("CAPABILITY_COHERENT", capability::COHERENT);
        self.number("SUBMIT_EVENTFD", submit_flags::EVENTFD.into());
        self.number("SUBMIT_ALL", submit_flags::ALL.into());
        self.number("MIGRATE_POPULATE", migrate_flags::POPULATE.into());
        self.number("PAGE_PLACE", page_state::PLACE.into());
        self.number("PAGE_NONE", page_state::NONE.into());
        self.number("PAGE_SYSTEM", page_state::SYSTEM.into());
        self.number("PAGE_DEVICE", page_state::DEVICE.into());
        self.number("PAGE_OTHER", page_state::OTHER.into());
        self.number("PAGE_WRITABLE", page_state::WRITABLE.into());
        self.number("PAGE_HUGE", page_state::HUGE.into());
        self.number("PAGE_MAPPED", page_state::MAPPED.into());
        self.number("RIGHT_READ", rights::READ.into());
        self.number("RIGHT_WRITE", rights::WRITE.into());
        self.number("RIGHT_ATOMIC", rights::ATOMIC.into());
        self.number("RIGHT_ALL", rights::ALL.into());
    }
}

#[test]
fn the_header_compiles_without_a_warning_in_every_language() {
    for language in LANGUAGES {
        if let Err(messages) = compile("", language) {
            panic!("{language:?}: {messages}");
        }
    }
}

#[test]
fn c_sees_the_sizes_the_offsets_and_the_numbers_of_the_crate() {
    let claims = Claims::of_the_crate();
    // ISO C has no typeof, which only the claims need.
    if let Err(messages) = compile(&claims.text, ("cc", &["-x", "c", "-std=gnu11"])) {
        panic!("{messages}");
    }
}

#[test]
fn a_wrong_claim_about_the_header_is_noticed() {
    let language = ("cc", &["-x", "c", "-std=gnu11"][..]);
    let mut claims = Claims::default();
    claims.number("MAX_WAIT", u64::from(uapi::MAX_WAIT) + 1);
    assert!(compile(&claims.text, language).is_err());
}

#[test]
fn nothing_in_the_header_is_without_a_claim() {
    let claims = Claims::of_the_crate();
    let text = fs::read_to_string(directory().join("virtio_hmm.h")).unwrap();
    let (mut tags, mut names) = (BTreeSet::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(tag) = line.strip_suffix(" {") {
            tags.insert(tag.to_owned());
        } else if let Some(rest) = line.strip_prefix("#define VIRTIO_HMM_") {
            let name = rest.split_whitespace().next().unwrap();
            names.insert(format!("VIRTIO_HMM_{name}"));
        } else if let Some((name, _)) = line.split_once(" = ") {
            if let Some(name) = name.strip_prefix("\tVIRTIO_HMM_") {
                names.insert(format!("VIRTIO_HMM_{name}"));
            }
        }
    }
    assert_eq!(claims.tags, tags);
    assert_eq!(claims.names, names);
}
