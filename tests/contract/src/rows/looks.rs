//! Which processes may ask where the pages of another one are.

use anyhow::{ensure, Context, Result};
use hmm::Device;

use crate::area::Area;
use crate::bound::Bound;
use crate::child::Child;
use crate::row::{cannot_run, Chapter, Row};
use crate::sys;

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Looking at others",
    rows: &[
        Row {
            name: "a-look-needs-the-right-to-read",
            duty: "a process may ask where the pages of another one are if it may read that one's \
                   memory: of its own user, unless that one hides what it has or has a capability that the \
                   caller lacks, and not of others",
            source: "kernel/ptrace.c: __ptrace_may_access; spec/uapi.md: Residency",
            run: a_look_needs_the_right_to_read,
        },
        Row {
            name: "a-look-is-by-the-callers-numbers",
            duty: "in a namespace of its own a process is found by the number that it has there, \
                   and what is outside cannot be named",
            source: "kernel/pid.c: find_vpid; pid_namespaces(7)",
            run: a_look_is_by_the_callers_numbers,
        },
    ],
};

const ONE: u32 = 2001;
const OTHER: u32 = 2002;

/// The error when a process asks for the pages of another one; `None` if it is answered.
fn asks(device: &Device, id: i32, area: &Area) -> Option<i32> {
    match device.residency_of(id, area.range(area.all())) {
        Ok(_) => None,
        Err(error) => error.errno(),
    }
}

fn a_look_needs_the_right_to_read() -> Result<()> {
    let area = Area::small(2)?;
    area.write(area.all(), 1);
    for (hides, keeps) in [(false, false), (true, false), (false, true)] {
        let mut watched = Child::fork(|turns| {
            let device = Device::open("/dev/hmm0")?;
            sys::keep_capabilities(keeps)?;
            sys::become_user(ONE).context("becoming another user")?;
            let _bound = Bound::to(device)?;
            sys::hide(hides)?;
            turns.pass_and_wait()
        })?;
        watched.wait()?;
        let id = watched.id();
        let as_user = |user: u32, wanted: Option<i32>| {
            Child::fork(|_| {
                let device = Device::open("/dev/hmm0")?;
                sys::become_user(user).context("becoming another user")?;
                let told = asks(&device, id, &area);
                ensure!(
                    told == wanted,
                    "hides {hides}, keeps {keeps}: user {user} is told {told:?}"
                );
                Ok(())
            })?
            .end()
        };
        as_user(ONE, (hides || keeps).then_some(libc::EACCES))?;
        as_user(OTHER, Some(libc::EACCES))?;
        let told = asks(&Device::open("/dev/hmm0")?, id, &area);
        ensure!(
            told.is_none(),
            "a process that may trace all is told {told:?}"
        );
        watched.pass_and_end()?;
    }
    Ok(())
}

fn a_look_is_by_the_callers_numbers() -> Result<()> {
    let area = Area::small(2)?;
    area.write(area.all(), 1);
    let bound = Bound::new()?;
    let outer = i32::try_from(std::process::id())?;
    ensure!(
        asks(bound.space().device(), outer, &area).is_none(),
        "a process finds itself"
    );
    let mut parent = Child::fork(|turns| {
        sys::own_process_numbers()
            .map_err(|error| cannot_run(format!("no namespace of processes: {error}")))?;
        let inner = Child::fork(|inside| {
            let bound = Bound::new()?;
            let device = bound.space().device();
            // The child is the first process of the namespace.
            ensure!(asks(device, 1, &area).is_none(), "its own number");
            let told = asks(device, outer, &area);
            ensure!(
                told == Some(libc::ESRCH),
                "of a process outside it is told {told:?}"
            );
            inside.pass_and_wait()
        })?;
        let mut inner = inner;
        inner.wait()?;
        // Outside the namespace it has another number.
        let told = asks(bound.space().device(), inner.id(), &area);
        ensure!(told.is_none(), "its number outside: {told:?}");
        inner.pass_and_end()?;
        turns.pass_and_wait()
    })?;
    parent.wait()?;
    parent.pass_and_end()
}
