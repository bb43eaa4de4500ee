//! Virtual machines with accelerators, for tests and for people.
//!
//! A [`Vm`](vm::Vm) is a QEMU with a stock kernel, an [agent](hmm_agent) as its first process and a
//! daemon for each accelerator. A test describes the machine that it needs, runs programs in it and
//! calls [`finish`](vm::Vm::finish). That fails if the kernel, the daemon or QEMU has complained of
//! anything.
//!
//! The layers; none of them knows those before it:
//!
//! * [`session`]: the machine of a person, for `cargo xtask vm`;
//! * [`vm`]: a machine with its devices, from start to finish;
//! * [`guest`], [`qemu`], [`daemon`] with its [`control`] socket: its parts;
//! * [`initramfs`], `strip`, [`klog`], [`monitor`], [`process`], [`logs`], [`pace`]: what
//!   parts are made of;
//! * [`kselftest`]: what the kernel's own test programs print;
//! * [`kconfig`]: which options a kernel has;
//! * [`cases`]: what a test tries one after the other.
//!
//! Nothing here knows how an artifact was built or what the device does.

pub mod artifacts;
pub mod cases;
pub mod control;
pub mod daemon;
pub mod guest;
pub mod initramfs;
pub mod kconfig;
pub mod klog;
pub mod kselftest;
pub mod logs;
pub mod monitor;
pub mod pace;
pub mod process;
pub mod qemu;
pub mod session;
mod strip;
pub mod vm;
