//! The modules of a kernel that the user has built which a virtual machine needs before ours.
//!
//! They are taken from the tree, where they were built; nothing is installed. It knows the tree's
//! list of modules, and how a module says which others it needs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use hmm_vm::kconfig::Options;
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection};

use crate::setup::needs::{MODULES, SHARE_MODULES};

/// The tree's list of its modules: the object file of each.
const LIST: &str = "modules.order";

/// The section of a module with what it says of itself.
const SAYINGS: &str = ".modinfo";

/// The modules in load order: those of the options that this kernel has as modules, and what they
/// need; then what only a machine with a directory of the host needs besides.
pub(crate) fn prepare(tree: &Path, options: &Options) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let of = |modules: &[(&str, &'static str)]| {
        let modules = modules
            .iter()
            .filter(|(option, _)| options.is_module(option));
        modules.map(|(_, module)| *module).collect::<Vec<_>>()
    };
    let always = of(MODULES);
    let wanted = [always.clone(), of(SHARE_MODULES)].concat();
    if wanted.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let path = tree.join(LIST);
    let list = fs::read_to_string(&path).with_context(|| {
        format!(
            "reading {}: the machine needs {}, which this kernel has as modules; `make modules` \
             builds them",
            path.display(),
            wanted.join(", ")
        )
    })?;
    let needs = |module: &Path| {
        let path = tree.join(module);
        let data = fs::read(&path)
            .with_context(|| format!("reading {}: `make modules` builds it", path.display()))?;
        needs_of(&data).with_context(|| format!("{} is no module", path.display()))
    };
    let always = load_order(&list, &always, needs)?.len();
    let order = load_order(&list, &wanted, needs)?;
    let mut modules: Vec<_> = order.iter().map(|module| tree.join(module)).collect();
    let share = modules.split_off(always);
    Ok((modules, share))
}

/// The modules to load for `wanted`, what each needs first.
fn load_order(
    list: &str,
    wanted: &[&str],
    needs: impl Fn(&Path) -> Result<Vec<String>>,
) -> Result<Vec<PathBuf>> {
    let mut order = Vec::new();
    for name in wanted {
        add(name, list, &needs, &mut Vec::new(), &mut order)?;
    }
    Ok(order)
}

/// Adds what a module needs to the order, and then the module. `above` are the modules for which it
/// is added.
fn add(
    name: &str,
    list: &str,
    needs: &impl Fn(&Path) -> Result<Vec<String>>,
    above: &mut Vec<String>,
    order: &mut Vec<PathBuf>,
) -> Result<()> {
    let path = list
        .lines()
        .map(|line| Path::new(line).with_extension("ko"))
        .find(|path| module_name(path).as_deref() == Some(name))
        .with_context(|| format!("{LIST} has no module {name}; `make modules` builds it"))?;
    if order.contains(&path) {
        return Ok(());
    }
    ensure!(
        !above.iter().any(|module| module == name),
        "the modules {} need each other",
        above.join(", ")
    );
    above.push(name.to_owned());
    for need in needs(&path)? {
        add(&need, list, needs, above, order)?;
    }
    above.pop();
    order.push(path);
    Ok(())
}

/// `drivers/virtio/virtio-pci.ko` is the module `virtio_pci`.
fn module_name(path: &Path) -> Option<String> {
    Some(path.file_stem()?.to_str()?.replace('-', "_"))
}

/// The names of the modules that a module needs.
fn needs_of(module: &[u8]) -> Option<Vec<String>> {
    let file: ElfFile64 = ElfFile64::parse(module).ok()?;
    let sayings = file.section_by_name(SAYINGS)?.data().ok()?;
    let depends = sayings
        .split(|&byte| byte == 0)
        .find_map(|saying| std::str::from_utf8(saying).ok()?.strip_prefix("depends="))?;
    let names = depends.split(',').filter(|name| !name.is_empty());
    Some(names.map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    const ORDER: &str = "drivers/virtio/virtio.o\ndrivers/virtio/virtio_ring.o\n\
        drivers/virtio/virtio_pci.o\ndrivers/char/virtio_console.o\nlib/zstd/zstd-compress.o\n\
        drivers/block/zram/zram.o\nround/a.o\nround/b.o\n";

    fn needs(path: &Path) -> Result<Vec<String>> {
        let names: &[&str] = match path.to_str() {
            Some("drivers/virtio/virtio_ring.ko") => &["virtio"],
            Some("drivers/virtio/virtio_pci.ko") => &["virtio_ring", "virtio"],
            Some("drivers/char/virtio_console.ko") => &["virtio_ring", "virtio"],
            Some("drivers/block/zram/zram.ko") => &["zstd_compress"],
            Some("drivers/virtio/virtio.ko" | "lib/zstd/zstd-compress.ko") => &[],
            Some("round/a.ko") => &["b"],
            Some("round/b.ko") => &["a"],
            other => bail!("no such module: {other:?}"),
        };
        Ok(names.iter().map(|&name| name.to_owned()).collect())
    }

    fn order(wanted: &[&str]) -> Result<Vec<String>> {
        let order = load_order(ORDER, wanted, needs)?;
        Ok(order
            .iter()
            .map(|path| module_name(path).unwrap())
            .collect())
    }

    #[test]
    fn what_a_module_needs_loads_before_it_and_only_once() {
        assert_eq!(
            order(&["virtio_pci", "virtio_console", "zram"]).unwrap(),
            [
                "virtio",
                "virtio_ring",
                "virtio_pci",
                "virtio_console",
                "zstd_compress",
                "zram"
            ]
        );
    }

    #[test]
    fn a_wanted_module_that_another_one_needs_is_loaded_once_too() {
        let order = order(&["virtio_pci", "virtio", "virtio_ring"]).unwrap();
        assert_eq!(order, ["virtio", "virtio_ring", "virtio_pci"]);
    }

    #[test]
    fn modules_that_need_each_other_are_an_error() {
        let error = order(&["a"]).unwrap_err().to_string();
        assert!(error.contains("need each other"), "{error}");
    }

    #[test]
    fn a_module_that_was_not_built_is_an_error_that_names_it() {
        let error = order(&["virtio_moon"]).unwrap_err().to_string();
        assert!(error.contains("virtio_moon"), "{error}");
    }

    #[test]
    fn a_kernel_that_has_all_built_in_needs_no_list() {
        let directory = tempfile::tempdir().unwrap();
        let built_in = Options::parse("CONFIG_VIRTIO_PCI=y\n");
        let (modules, share) = prepare(directory.path(), &built_in).unwrap();
        assert!(modules.is_empty() && share.is_empty());
        let module = Options::parse("CONFIG_VIRTIO_PCI=m\n");
        let error = format!("{:#}", prepare(directory.path(), &module).unwrap_err());
        assert!(
            error.contains("virtio_pci") && error.contains("make modules"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_module_needs_nothing() {
        assert_eq!(needs_of(b"no module"), None);
    }
}
