//! The module of Python, seen by Python: it says what the crate says of itself.
//!
//! The expected sizes, offsets and numbers come from the compiled crate.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use hmm_headers::snake;
use virtio_hmm_spec::uapi::{self, migrate_flags, page_state, submit_flags};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::config::capability;
use virtio_hmm_spec::wire::fault::Reason;
use virtio_hmm_spec::wire::job::{self, JobDescriptor, JobReply};
use virtio_hmm_spec::wire::operation::{Element, Operation};
use virtio_hmm_spec::wire::statistics::Statistics;
use virtio_hmm_spec::wire::{rights, Layout, Values};

/// Runs claims about the module, in whose namespace they are.
fn run(claims: &str) -> Result<(), String> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest/python/hmm/_uapi.py");
    let program = format!(
        "import runpy, ctypes, enum\nglobals().update(runpy.run_path({module:?}))\n{claims}"
    );
    let output = Command::new("python3")
        .args(["-B", "-c", &program])
        .output()
        .unwrap_or_else(|error| panic!("python3 cannot be run: {error}"));
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn structure<T: Layout>(claims: &mut String) {
    let name = T::NAME;
    writeln!(
        claims,
        "assert ctypes.sizeof({name}) == {}, '{name}'",
        T::SIZE
    )
    .unwrap();
    writeln!(claims, "assert len({name}._fields_) == {}", T::FIELDS.len()).unwrap();
    for field in T::FIELDS {
        let place = format!("({name}.{0}.offset, {name}.{0}.size)", field.name);
        let expected = format!("({}, {})", field.offset, field.size);
        writeln!(
            claims,
            "assert {place} == {expected}, '{name}.{}'",
            field.name
        )
        .unwrap();
    }
}

fn enumeration<T: Values>(claims: &mut String) {
    let values = T::VALUES.iter().map(|&(name, value)| (name, value));
    numbers(claims, T::NAME, values);
}

fn numbers<'a>(claims: &mut String, name: &str, values: impl Iterator<Item = (&'a str, u32)>) {
    let values = values.map(|(name, value)| format!("'{}': {value}", snake(name).to_uppercase()));
    let values = values.collect::<Vec<_>>().join(", ");
    let there = format!("{{each.name: each.value for each in {name}}}");
    writeln!(claims, "assert {there} == {{{values}}}, '{name}'").unwrap();
}

#[test]
fn python_sees_the_sizes_the_offsets_and_the_numbers_of_the_crate() {
    let mut claims = String::new();
    let it = &mut claims;
    structure::<JobDescriptor>(it);
    structure::<JobReply>(it);
    structure::<Statistics>(it);
    structure::<uapi::Info>(it);
    structure::<uapi::Bind>(it);
    structure::<uapi::Submit>(it);
    structure::<uapi::Wait>(it);
    structure::<uapi::Cancel>(it);
    structure::<uapi::WaitAny>(it);
    structure::<uapi::BindProcess>(it);
    structure::<uapi::SpaceCounters>(it);
    structure::<uapi::Migrate>(it);
    structure::<uapi::Residency>(it);
    structure::<uapi::Counters>(it);
    structure::<uapi::DriverStatistics>(it);
    enumeration::<uapi::DeviceState>(it);
    enumeration::<uapi::Destination>(it);
    enumeration::<Element>(it);
    enumeration::<Status>(it);
    enumeration::<Reason>(it);
    let all = Operation::DESCRIPTIONS;
    numbers(it, "Operation", all.iter().map(|it| (it.name, it.code)));
    for operation in all {
        let name = snake(operation.name).to_uppercase();
        let arguments = operation.arguments.iter();
        let arguments: String = arguments
            .map(|(name, kind)| format!("('{name}', '{kind}'), "))
            .collect();
        writeln!(
            it,
            "assert ARGUMENTS[Operation.{name}] == ({arguments}), '{name}'"
        )
        .unwrap();
    }
    for (name, number) in [
        ("VERSION", u64::from(uapi::VERSION)),
        ("IOCTL_TYPE", uapi::IOCTL_TYPE.into()),
        ("MAX_DEVICES", uapi::MAX_DEVICES.into()),
        ("MAX_SUBMIT", uapi::MAX_SUBMIT.into()),
        ("MAX_WAIT", uapi::MAX_WAIT.into()),
        ("MAX_RESIDENCY_PAGES", uapi::MAX_RESIDENCY_PAGES),
        ("MAX_ARGUMENTS", job::MAX_ARGUMENTS as u64),
        ("CAPABILITY_CHECK", capability::CHECK),
        ("CAPABILITY_COHERENT", capability::COHERENT),
        ("SUBMIT_EVENTFD", submit_flags::EVENTFD.into()),
        ("SUBMIT_ALL", submit_flags::ALL.into()),
        ("MIGRATE_POPULATE", migrate_flags::POPULATE.into()),
        ("PAGE_PLACE", page_state::PLACE.into()),
        ("PAGE_NONE", page_state::NONE.into()),
        ("PAGE_SYSTEM", page_state::SYSTEM.into()),
        ("PAGE_DEVICE", page_state::DEVICE.into()),
        ("PAGE_OTHER", page_state::OTHER.into()),
        ("PAGE_WRITABLE", page_state::WRITABLE.into()),
        ("PAGE_HUGE", page_state::HUGE.into()),
        ("PAGE_MAPPED", page_state::MAPPED.into()),
        ("RIGHT_READ", rights::READ.into()),
        ("RIGHT_WRITE", rights::WRITE.into()),
        ("RIGHT_ATOMIC", rights::ATOMIC.into()),
        ("RIGHT_ALL", rights::ALL.into()),
    ] {
        writeln!(it, "assert {name} == {number}, '{name}'").unwrap();
    }
    if let Err(messages) = run(&claims) {
        panic!("{messages}");
    }
}

#[test]
fn a_wrong_claim_about_the_module_is_noticed() {
    let mut claims = String::new();
    numbers(&mut claims, "Element", [("U32", 2)].into_iter());
    assert!(run(&claims).unwrap_err().contains("AssertionError"));
}
