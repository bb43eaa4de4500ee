//! The modules of a stock kernel that a virtual machine needs before ours and for its tests.
//!
//! It knows how Debian packs modules and the format of `modules.dep`.

use std::fs;
use std::path::PathBuf;

use anyhow::{bail, Context, Result};

use crate::setup::cache::Recipe;
use crate::setup::needs::{MODULES, SHARE_MODULES};
use crate::setup::progress;
use crate::setup::release::Release;
use crate::setup::toolbox::Toolbox;

const UNPACK: &str = include_str!("scripts/unpack-modules.sh");

/// The modules, unpacked, in load order: those of every machine, and those that only one with a
/// directory of the host needs besides.
pub(crate) fn prepare(
    toolbox: &Toolbox,
    release: &Release,
) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let directory = release.modules();
    let read = |name: &str| {
        let path = toolbox.path(directory.join(name));
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let (dependencies, built_in) = (read("modules.dep")?, read("modules.builtin")?);
    let mut wanted: Vec<_> = MODULES.iter().map(|(_, module)| *module).collect();
    let always = load_order(&dependencies, &built_in, &wanted)?.len();
    wanted.extend(SHARE_MODULES.iter().map(|(_, module)| *module));
    let order = load_order(&dependencies, &built_in, &wanted)?;
    let names: Vec<PathBuf> = order.iter().map(|path| unpacked_name(path)).collect();

    let recipe = Recipe::new("boot-modules")
        .with(&release.name)
        .with(order.join("\n"))
        .with(UNPACK);
    let entry = toolbox.builds().entry(&recipe, |partial| {
        let target = toolbox.inside(partial)?;
        let arguments = [&target, &directory];
        let mut command = toolbox.script(UNPACK, arguments);
        command.args(&order);
        progress::run(
            "unpacking the guest's modules",
            &mut command,
            &toolbox.log("boot-modules"),
        )?
        .check()?;
        Ok(names.clone())
    })?;
    let mut modules: Vec<_> = names.iter().map(|name| entry.join(name)).collect();
    let share = modules.split_off(always);
    Ok((modules, share))
}

/// The packed modules to load for `wanted`, dependencies first, without built-ins.
fn load_order(dependencies: &str, built_in: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        if built_in.lines().any(|path| module_name(path) == *name) {
            continue;
        }
        let line = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| module_name(path) == *name);
        let Some((path, needs)) = line else {
            bail!("the stock kernel has no module {name}");
        };
        // modules.dep lists first what must load last.
        for path in needs.split_whitespace().rev().chain([path]) {
            if !order.iter().any(|present| present == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// `kernel/drivers/virtio/virtio-pci.ko.xz` is the module `virtio_pci`.
fn module_name(path: &str) -> String {
    unpacked_name(path)
        .with_extension("")
        .display()
        .to_string()
        .replace('-', "_")
}

/// The file name without its directory and its packing suffix.
fn unpacked_name(path: &str) -> PathBuf {
    let name = path.rsplit('/').next().unwrap_or(path);
    let end = name.find(".ko").map_or(name.len(), |dot| dot + ".ko".len());
    PathBuf::from(&name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "\
kernel/drivers/virtio/virtio_ring.ko.xz: kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/legacy.ko.xz \
kernel/drivers/virtio/virtio_ring.ko.xz kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/char/virtio-console.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz \
kernel/drivers/virtio/virtio.ko.xz
";

    #[test]
    fn what_a_module_needs_loads_before_it_and_only_once() {
        let order = load_order(DEPENDENCIES, "", &["virtio_pci", "virtio_console"]).unwrap();
        let names: Vec<_> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(
            names,
            [
                "virtio",
                "virtio_ring",
                "legacy",
                "virtio_pci",
                "virtio_console"
            ]
        );
    }

    #[test]
    fn a_built_in_module_is_not_loaded() {
        let built_in = "kernel/drivers/virtio/virtio_pci.ko\n";
        let order = load_order(DEPENDENCIES, built_in, &["virtio_pci"]).unwrap();
        assert!(order.is_empty());
    }

    #[test]
    fn a_module_that_the_kernel_lacks_is_an_error_that_names_it() {
        let error = load_order(DEPENDENCIES, "", &["virtio_moon"]).unwrap_err();
        assert!(error.to_string().contains("virtio_moon"));
    }
}
