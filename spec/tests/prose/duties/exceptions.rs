//! Duties that lack a citation, and why.

use super::{Exception, Lacks};

/// All of them.
pub(crate) const EXCEPTIONS: &[Exception] = &[
    Exception {
        label: "dev-unmap-more",
        lacks: Lacks::Code,
        reason: "the daemon sets memory aside for each large leaf that it may have to split, so \
                 that it need not make use of this",
    },
    Exception {
        label: "dev-unmap-more",
        lacks: Lacks::Test,
        reason: "there is no code: no device removes more than it is asked for",
    },
    Exception {
        label: "drv-config-width",
        lacks: Lacks::Test,
        reason: "QEMU reads the whole configuration space from the device and answers the guest \
                 itself, so that nothing outside of the guest sees the width of its accesses",
    },
    Exception {
        label: "drv-region-after-init",
        lacks: Lacks::Test,
        reason: "what a CPU loads from the region before that is undefined and looks right, and a \
                 front end maps the region, so that nothing outside of the guest sees an access",
    },
];
