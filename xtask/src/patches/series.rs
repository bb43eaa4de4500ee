//! What the series consists of: which sources of this repository become which files of the kernel,
//! in which patches, and what is inserted into the kernel's own files.
//!
//! It knows names and texts, not how a patch is made of them.

use crate::patches::rust::Rules;

/// The kernel's file that the helpers of a patch are in, and its beginning.
pub(super) const HELPERS: &str = "rust/helpers/hmm.c";
pub(super) const HELPERS_HEAD: &str = include_str!("text/helpers.c");

/// Where the driver's C functions are, in the order in which helpers are written.
pub(super) const C_SOURCES: &[&str] = &[
    "guest-driver/shim.c",
    "guest-driver/tables.c",
    "guest-driver/quirks.c",
];

/// Where each source comes from that must be in the series; a new file there needs a patch.
pub(super) const WHOLE_FOLDERS: &[&str] = &["guest-driver/mm", "samples/rust_test_hmm"];

/// What the cover letter says. The first line is its subject.
pub(super) const COVER_LETTER: &str = include_str!("text/cover-letter.txt");

/// A patch.
#[derive(Debug)]
pub(super) struct Patch {
    pub(super) title: &'static str,
    pub(super) body: &'static str,
    pub(super) steps: &'static [Step],
}

/// A part of a patch.
#[derive(Debug)]
pub(super) enum Step {
    /// A source of this repository becomes a file of the kernel.
    Source {
        from: &'static str,
        to: &'static str,
        rules: &'static Rules,
    },
    /// Text of a file of the kernel has more text before it. It must be there once.
    Before {
        file: &'static str,
        anchor: &'static str,
        text: &'static str,
    },
    /// The same with text behind it.
    After {
        file: &'static str,
        anchor: &'static str,
        text: &'static str,
    },
    /// A new file.
    New {
        file: &'static str,
        text: &'static str,
    },
}

/// Sources that become a part of the kernel crate. What is in `mm` here is in `device` there, which
/// `mm` has all names of.
const KERNEL: Rules = Rules {
    paths: &[
        ("crate::sys", "crate::bindings"),
        ("sys", "bindings"),
        ("crate::wait::Event", "crate::sync::Completion"),
        ("crate::wait::jiffies", "crate::time::delta_to_jiffies"),
        ("kernel", "crate"),
    ],
    text: &[],
    dropped: &[],
    is_public: true,
};

/// The same for what waits for events.
const KERNEL_EVENTS: Rules = Rules {
    text: &[
        ("Arc<Event>", "Arc<Completion>"),
        (".wait_timeout(", ".wait_for_completion_timeout("),
    ],
    ..KERNEL
};

/// The same for what counts in jiffies.
const KERNEL_JIFFIES: Rules = Rules {
    text: &[(" jiffies(", " delta_to_jiffies(")],
    ..KERNEL
};

/// Sources of the sample.
const SAMPLE: Rules = Rules {
    paths: &[
        ("crate::sys", "kernel::bindings"),
        ("sys", "bindings"),
        ("crate::wait::Event", "kernel::sync::Completion"),
        ("crate::mm", "kernel::mm"),
        ("crate::chardev::ioctl", "crate::ioctl"),
        ("crate::chardev::kernel_tests", "crate::kernel_tests"),
        ("crate::uapi::dmirror", "crate::uapi"),
    ],
    text: &[],
    dropped: &[],
    is_public: false,
};

/// The file that puts the sample together. In the kernel it has fewer parts.
const SAMPLE_MAIN: Rules = Rules {
    paths: &[("mm", "kernel::mm")],
    text: &[
        (" See README.md.", ""),
        ("mod dmirror;\n", include_str!("text/sample-modules.rs")),
        ("mod mirror;\n", include_str!("text/sample-modules-2.rs")),
    ],
    dropped: &[
        "pub mod wire;",
        "pub mod uapi;",
        "mod shared {",
        "use shared::",
    ],
    ..SAMPLE
};

const SAMPLE_IOCTL: Rules = Rules {
    text: &[("use crate::process;\n", "")],
    dropped: &["pub(crate) fn process_range(", "pub(crate) fn zero("],
    ..SAMPLE
};

const SAMPLE_EVENTS: Rules = Rules {
    text: &[
        ("Arc<Event>", "Arc<Completion>"),
        ("Event::new()", "Completion::new()"),
        (".over.set()", ".over.complete_all()"),
        ("other.wait()", "other.wait_for_completion()"),
    ],
    ..SAMPLE
};

/// Sources of the specification, which have another licence.
const SAMPLE_LAYOUT: Rules = Rules {
    text: &[
        (
            "//! Types that",
            "// SPDX-License-Identifier: BSD-3-Clause\n\n//! Types that",
        ),
        ("$crate::wire::", "$crate::layout::"),
    ],
    ..SAMPLE
};

const SAMPLE_UAPI: Rules = Rules {
    text: &[
        (
            "//! The interface of",
            "// SPDX-License-Identifier: BSD-3-Clause\n\n//! The interface of",
        ),
        ("; the meaning is in\n//! `uapi.md`.", "."),
        (
            "super::read_write_code::<DmirrorCommand>(IOCTL_TYPE, self.raw().to_le_bytes()[0])",
            "kernel::ioctl::_IOWR::<DmirrorCommand>(IOCTL_TYPE as u32, self.raw())",
        ),
    ],
    ..SAMPLE
};

/// The patches, in their order.
pub(super) const PATCHES: &[Patch] = &[
    Patch {
        title: "rust: time: convert Delta to jiffies",
        body: "\
Functions of the kernel that wait take jiffies, while spans of time in Rust
are a Delta. Add delta_to_jiffies().",
        steps: &[Step::After {
            file: "rust/kernel/time.rs",
            anchor: "    unsafe { bindings::__msecs_to_jiffies(msecs) }\n}\n",
            text: include_str!("text/time.rs"),
        }],
    },
    Patch {
        title: "rust: sync: completion: wait with a timeout",
        body: "\
A notifier of changes of an address space that has to wait must not do so
for ever, because the thread that makes the change may hold locks that
others need.

Add Completion::wait_for_completion_timeout().",
        steps: &[
            Step::Before {
                file: "rust/kernel/sync/completion.rs",
                anchor: "use crate::{bindings, prelude::*, types::Opaque};\n",
                text: "use crate::time::{delta_to_jiffies, Delta};\n",
            },
            Step::After {
                file: "rust/kernel/sync/completion.rs",
                anchor: "        unsafe { bindings::wait_for_completion(self.as_raw()) };\n    }\n",
                text: include_str!("text/completion.rs"),
            },
        ],
    },
    Patch {
        title: "rust: mm: device: addresses, and the lock of an address space",
        body: "\
Add a module for devices that use the addresses of a process, and what its
parts have in common: arithmetic of addresses and pages, the proof that an
address space is locked while one of its VMAs is used, and the identity of
a device's memory.",
        steps: &[
            Step::Before {
                file: "mm/Kconfig",
                anchor: "config VMAP_PFN\n",
                text: include_str!("text/mm.kconfig"),
            },
            Step::Before {
                file: "rust/kernel/mm.rs",
                anchor: "pub mod virt;\n",
                text: include_str!("text/mm.rs"),
            },
            Step::After {
                file: "rust/helpers/helpers.c",
                anchor: "#include \"gpu.c\"\n",
                text: "#ifdef CONFIG_RUST_HMM_ABSTRACTIONS\n#include \"hmm.c\"\n#endif\n",
            },
            Step::Source {
                from: "guest-driver/mm.rs",
                to: "rust/kernel/mm/device.rs",
                rules: &KERNEL,
            },
            Step::Source {
                from: "guest-driver/mm/locked.rs",
                to: "rust/kernel/mm/device/locked.rs",
                rules: &KERNEL,
            },
        ],
    },
    Patch {
        title: "rust: mm: device: turns",
        body: "\
Threads that change an address space all the time keep a mirror from
looking at it. Make them pause on their way back to user mode while a
mirror waits for its turn.",
        steps: &[Step::Source {
            from: "guest-driver/mm/turn.rs",
            to: "rust/kernel/mm/device/turn.rs",
            rules: &KERNEL_JIFFIES,
        }],
    },
    Patch {
        title: "rust: mm: device: interval notifiers",
        body: "\
Add an abstraction of struct mmu_interval_notifier: a mirror of an address
space learns of each change before it happens, and delays it until the
mirror is invalidated. The notifier owns the lock of the mirrored state and
sets the sequence under it.",
        steps: &[
            Step::Source {
                from: "guest-driver/mm/exclusive_seq.rs",
                to: "rust/kernel/mm/device/exclusive_seq.rs",
                rules: &KERNEL,
            },
            Step::Source {
                from: "guest-driver/mm/mmu_notifier.rs",
                to: "rust/kernel/mm/device/mmu_notifier.rs",
                rules: &KERNEL_EVENTS,
            },
        ],
    },
    Patch {
        title: "rust: mm: device: range faults",
        body: "\
Add an abstraction of hmm_range_fault(). What it has found cannot be read
before it was checked, under the lock of the mirrored state, that nothing
has changed since.",
        steps: &[
            Step::After {
                file: "rust/bindings/bindings_helper.h",
                anchor: "#include <linux/fs.h>\n",
                text: "#include <linux/hmm.h>\n",
            },
            Step::Source {
                from: "guest-driver/mm/hmm.rs",
                to: "rust/kernel/mm/device/hmm.rs",
                rules: &KERNEL_JIFFIES,
            },
        ],
    },
    Patch {
        title: "rust: mm: device: exclusive access",
        body: "\
Add an abstraction of make_device_exclusive(): a page is taken away from
the CPUs for a device until one of them wants it.",
        steps: &[
            Step::After {
                file: "rust/bindings/bindings_helper.h",
                anchor: "#include <linux/regulator/consumer.h>\n",
                text: "#include <linux/rmap.h>\n",
            },
            Step::Source {
                from: "guest-driver/mm/exclusive.rs",
                to: "rust/kernel/mm/device/exclusive.rs",
                rules: &KERNEL,
            },
        ],
    },
    Patch {
        title: "rust: mm: device: migration",
        body: "\
Add an abstraction of migrate_vma_setup() and its kin. A migration is a
value that each step consumes, so that steps can neither be left out nor be
repeated.",
        steps: &[
            Step::After {
                file: "rust/bindings/bindings_helper.h",
                anchor: "#include <linux/mdio.h>\n",
                text: "#include <linux/migrate.h>\n",
            },
            Step::Source {
                from: "guest-driver/mm/migrate.rs",
                to: "rust/kernel/mm/device/migrate.rs",
                rules: &KERNEL,
            },
            Step::Source {
                from: "guest-driver/mm/migrate/folio.rs",
                to: "rust/kernel/mm/device/migrate/folio.rs",
                rules: &KERNEL,
            },
            Step::Source {
                from: "guest-driver/mm/migrate/lost.rs",
                to: "rust/kernel/mm/device/migrate/lost.rs",
                rules: &KERNEL,
            },
            Step::Source {
                from: "guest-driver/mm/migrate/pfns.rs",
                to: "rust/kernel/mm/device/migrate/pfns.rs",
                rules: &KERNEL,
            },
        ],
    },
    Patch {
        title: "rust: mm: device: migrations that invalidate the mirror themselves",
        body: "\
A driver that migrates pages of its own device may invalidate its mirror
together with the copy, instead of once more by the notifier.",
        steps: &[Step::Source {
            from: "guest-driver/mm/self_invalidate.rs",
            to: "rust/kernel/mm/device/self_invalidate.rs",
            rules: &KERNEL,
        }],
    },
    Patch {
        title: "rust: mm: device: pages of device memory",
        body: "\
Add an abstraction of struct dev_pagemap for device memory, private or
coherent. The driver turns unused frames into folios, and gets the frames
back when the folio is free. If a CPU accesses a page in private memory,
the driver is called to move it back.",
        steps: &[
            Step::Before {
                file: "rust/bindings/bindings_helper.h",
                anchor: "#include <linux/migrate.h>\n",
                text: "#include <linux/memremap.h>\n",
            },
            Step::Source {
                from: "guest-driver/mm/memremap.rs",
                to: "rust/kernel/mm/device/memremap.rs",
                rules: &KERNEL,
            },
            Step::Source {
                from: "guest-driver/mm/memremap/collect.rs",
                to: "rust/kernel/mm/device/memremap/collect.rs",
                rules: &KERNEL,
            },
            Step::Source {
                from: "guest-driver/mm/memremap/cpu_fault.rs",
                to: "rust/kernel/mm/device/memremap/cpu_fault.rs",
                rules: &KERNEL,
            },
            Step::Source {
                from: "guest-driver/mm/memremap/unused.rs",
                to: "rust/kernel/mm/device/memremap/unused.rs",
                rules: &KERNEL,
            },
            Step::Source {
                from: "guest-driver/mm/frames.rs",
                to: "rust/kernel/mm/device/frames.rs",
                rules: &KERNEL,
            },
        ],
    },
    Patch {
        title: "rust: mm: device: KUnit tests",
        body: "\
They need no device. One of them uses device memory, the contents of which
are in ordinary kernel memory.",
        steps: &[Step::Source {
            from: "guest-driver/mm/tests.rs",
            to: "rust/kernel/mm/device/tests.rs",
            rules: &KERNEL,
        }],
    },
    Patch {
        title: "samples: rust: add a test driver for HMM",
        body: "\
It does what lib/test_hmm.c does, on the abstractions of the kernel crate:
tools/testing/selftests/mm/hmm-tests.c runs on it unchanged, except for the
cases of coherent memory.

Workarounds for bugs of the kernel that concern huge pages in device memory
are in quirks/ and in the helpers that only these use.",
        steps: &[
            Step::Before {
                file: "samples/rust/Kconfig",
                anchor: "config SAMPLE_RUST_HOSTPROGS\n",
                text: include_str!("text/sample.kconfig"),
            },
            Step::After {
                file: "samples/rust/Makefile",
                anchor: "obj-$(CONFIG_SAMPLE_RUST_SOC)\t\t\t+= rust_soc.o\n",
                text: "obj-$(CONFIG_SAMPLE_RUST_TEST_HMM)\t\t+= rust_test_hmm/\n",
            },
            Step::New {
                file: "samples/rust/rust_test_hmm/Makefile",
                text: include_str!("text/sample.makefile"),
            },
            Step::Source {
                from: "samples/rust_test_hmm/rust_test_hmm_main.rs",
                to: "samples/rust/rust_test_hmm/rust_test_hmm_main.rs",
                rules: &SAMPLE_MAIN,
            },
            Step::Source {
                from: "samples/rust_test_hmm/dmirror.rs",
                to: "samples/rust/rust_test_hmm/dmirror.rs",
                rules: &SAMPLE,
            },
            Step::Source {
                from: "samples/rust_test_hmm/device_memory.rs",
                to: "samples/rust/rust_test_hmm/device_memory.rs",
                rules: &SAMPLE,
            },
            Step::Source {
                from: "samples/rust_test_hmm/mirror.rs",
                to: "samples/rust/rust_test_hmm/mirror.rs",
                rules: &SAMPLE,
            },
            Step::Source {
                from: "guest-driver/poll.rs",
                to: "samples/rust/rust_test_hmm/poll.rs",
                rules: &SAMPLE,
            },
            Step::Source {
                from: "guest-driver/chardev/ioctl.rs",
                to: "samples/rust/rust_test_hmm/ioctl.rs",
                rules: &SAMPLE_IOCTL,
            },
            Step::Source {
                from: "guest-driver/chardev/kernel_tests.rs",
                to: "samples/rust/rust_test_hmm/kernel_tests.rs",
                rules: &SAMPLE,
            },
            Step::Source {
                from: "spec/src/wire/layout.rs",
                to: "samples/rust/rust_test_hmm/layout.rs",
                rules: &SAMPLE_LAYOUT,
            },
            Step::Source {
                from: "spec/src/uapi/dmirror.rs",
                to: "samples/rust/rust_test_hmm/uapi.rs",
                rules: &SAMPLE_UAPI,
            },
            Step::Source {
                from: "guest-driver/quirks.rs",
                to: "samples/rust/rust_test_hmm/quirks.rs",
                rules: &SAMPLE,
            },
            Step::Source {
                from: "guest-driver/quirks/skip.rs",
                to: "samples/rust/rust_test_hmm/quirks/skip.rs",
                rules: &SAMPLE,
            },
            Step::Source {
                from: "guest-driver/quirks/split_fault.rs",
                to: "samples/rust/rust_test_hmm/quirks/split_fault.rs",
                rules: &SAMPLE,
            },
            Step::Source {
                from: "guest-driver/quirks/zap_moving.rs",
                to: "samples/rust/rust_test_hmm/quirks/zap_moving.rs",
                rules: &SAMPLE_EVENTS,
            },
        ],
    },
];
