//! The kernel's own tests of HMM from its source: the program, the kernel's test driver, and what
//! else the program needs of a kernel.
//!
//! It knows how they are built and that they are unchanged, not what they test.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use hmm_vm::kconfig::Options;

use crate::setup::cache::{self, Recipe};
use crate::setup::kernel::Build;
use crate::setup::site::Site;
use crate::setup::toolbox::Toolbox;
use crate::setup::{host, progress};

const BUILD_PROGRAM: &str = include_str!("scripts/hmm-tests.sh");
const BUILD_MODULES: &str = include_str!("scripts/test-modules.sh");
const GLUE: &str = include_str!("scripts/gup-test-glue.c");

/// The program's source, in a kernel's tree and in an entry of ours.
const IN_TREE: &str = "tools/testing/selftests/mm/hmm-tests.c";
const SOURCE: &str = "hmm-tests.c";

/// What the program is made of besides the kernel's headers, and what tells its own from others.
const PROGRAM_SOURCES: &[&str] = &[
    IN_TREE,
    "tools/testing/selftests/mm/vm_util.c",
    "tools/testing/selftests/mm/vm_util.h",
    "tools/testing/selftests/mm/hugepage_settings.c",
    "tools/testing/selftests/kselftest_harness.h",
    "lib/test_hmm_uapi.h",
    "mm/gup_test.h",
];

/// The kernel's own test driver in the tree of a kernel that was built with it.
pub(crate) const TEST_HMM: &str = "lib/test_hmm.ko";

/// The sources of the modules: their paths in a tree, and their names here.
const MODULE_SOURCES: &[(&str, &str)] = &[
    ("lib/test_hmm.c", "test_hmm.c"),
    ("lib/test_hmm_uapi.h", "test_hmm_uapi.h"),
    ("mm/gup_test.c", "gup_test.c"),
    ("mm/gup_test.h", "gup_test.h"),
];

/// The kernel's test program.
#[derive(Debug)]
pub(crate) struct Program {
    /// The program, statically linked.
    pub(crate) program: PathBuf,
    /// The source that it was compiled from.
    source: PathBuf,
    /// The digest of that source.
    pub(crate) source_sha256: String,
}

/// What the program needs of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Modules {
    /// The kernel's own test driver.
    pub(crate) test_hmm: PathBuf,
    /// Modules for the tests that are not built into the kernel.
    pub(crate) helpers: Vec<PathBuf>,
}

impl Program {
    /// The program from the sources of a kernel, built if it is missing.
    pub(crate) fn prepare(toolbox: &Toolbox, build: &Build) -> Result<Self> {
        let recipe = Recipe::new("hmm-tests").with(BUILD_PROGRAM);
        let (site, source, recipe) = match &build.archive {
            // The same source: that of the package is in the toolbox, whole and as it was.
            Some(archive) => {
                let recipe = recipe.with(archive.as_os_str().as_encoded_bytes());
                let recipe = recipe.with(toolbox.release());
                (Site::Toolbox(Vec::new()), archive.clone(), recipe)
            }
            None => {
                let site = Site::toolbox(toolbox, &[&build.source]);
                let source = site.path(toolbox, &build.source)?;
                let recipe = recipe.with(digest_of_all(&build.source, PROGRAM_SOURCES)?);
                (site, source, recipe)
            }
        };
        let entry = toolbox.builds().entry(&recipe, |partial| {
            let what = "building the kernel's tests of HMM";
            progress::announce(what, "they judge the device and the driver (half a minute)");
            let jobs = host::parallelism().to_string();
            let directory = toolbox.inside(partial)?;
            let arguments = [directory.as_os_str(), source.as_os_str(), jobs.as_ref()];
            let mut command = site.script(toolbox, BUILD_PROGRAM, arguments);
            progress::run(what, &mut command, &toolbox.log("hmm-tests"))?.check()?;
            Ok(vec!["hmm-tests".into(), SOURCE.into()])
        })?;
        let source = entry.join(SOURCE);
        let program = Self {
            program: entry.join("hmm-tests"),
            source_sha256: cache::digest(&source)?.1,
            source,
        };
        program.must_be_of(&build.source)?;
        Ok(program)
    }

    /// Checks that the compiled source is the one in a kernel's tree.
    fn must_be_of(&self, tree: &Path) -> Result<()> {
        must_be_equal(&self.source, &tree.join(IN_TREE))
    }
}

impl Modules {
    /// The modules for a kernel that was built without them.
    pub(crate) fn prepare(toolbox: &Toolbox, build: &Build) -> Result<Self> {
        let seen = |path: &Path| build.site.path(toolbox, path);
        let (tree, source) = (seen(&build.tree)?, seen(&build.source)?);
        let mut recipe = Recipe::new("test-modules")
            .with(tree.as_os_str().as_encoded_bytes())
            .with(build.arguments.join(" "))
            .with(BUILD_MODULES)
            .with(GLUE);
        if build.is_of_user {
            let sources = MODULE_SOURCES.iter().map(|(in_tree, _)| *in_tree);
            let sources: Vec<_> = sources.collect();
            recipe = recipe
                .with(&build.name)
                .with(digest_of_all(&build.source, &sources)?);
        }
        let modules = ["test_hmm.ko", "gup_test_module.ko"];
        let entry = toolbox.builds().entry(&recipe, |partial| {
            fs::write(partial.join("glue.c"), GLUE)?;
            let jobs = host::parallelism().to_string();
            let directory = seen(partial)?;
            let arguments = [
                directory.as_os_str(),
                tree.as_os_str(),
                source.as_os_str(),
                jobs.as_ref(),
            ];
            let mut command = build.site.script(toolbox, BUILD_MODULES, arguments);
            command.args(&build.arguments);
            progress::run(
                "building the kernel's test drivers",
                &mut command,
                &toolbox.log("test-modules"),
            )?
            .check()?;
            let sources = MODULE_SOURCES.iter().map(|(_, name)| *name);
            Ok(modules.into_iter().chain(sources).map(Into::into).collect())
        })?;
        for (in_tree, name) in MODULE_SOURCES {
            must_be_equal(&entry.join(name), &build.source.join(in_tree))?;
        }
        let [test_hmm, gup_test] = modules.map(|name| entry.join(name));
        Ok(Self {
            test_hmm,
            helpers: vec![gup_test],
        })
    }

    /// The same for a kernel that may have some of them.
    pub(crate) fn of_tree(toolbox: &Toolbox, build: &Build, options: &Options) -> Result<Self> {
        let own = Some(build.tree.join(TEST_HMM)).filter(|_| options.is_module("TEST_HMM"));
        if let Some(own) = &own {
            ensure!(
                own.is_file(),
                "the kernel in {} has no {TEST_HMM}, though its configuration says so: \
                 `make modules` builds it",
                build.tree.display()
            );
        }
        let has_gup_test = options.is_built_in("GUP_TEST");
        match own {
            Some(test_hmm) if has_gup_test => Ok(Self {
                test_hmm,
                helpers: Vec::new(),
            }),
            own => {
                let mut modules = Self::prepare(toolbox, build)?;
                if let Some(own) = own {
                    modules.test_hmm = own;
                }
                if has_gup_test {
                    modules.helpers.clear();
                }
                Ok(modules)
            }
        }
    }
}

/// A digest of files of a kernel's sources.
fn digest_of_all(source: &Path, paths: &[&str]) -> Result<String> {
    let mut digests = Vec::new();
    for path in paths {
        let path = source.join(path);
        let (_, digest) = cache::digest(&path)
            .with_context(|| format!("reading {}, of the kernel's tests of HMM", path.display()))?;
        digests.push(digest);
    }
    Ok(digests.join(" "))
}

/// Checks that two files are equal: the kernel's tests are only worth something as its developers
/// wrote them.
fn must_be_equal(compiled: &Path, in_tree: &Path) -> Result<()> {
    ensure!(
        cache::digest(compiled)? == cache::digest(in_tree)?,
        "{} differs from {}: the kernel's tests are used unchanged or not at all",
        compiled.display(),
        in_tree.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_differs_from_the_kernels_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        let in_tree = tree.join(IN_TREE);
        fs::create_dir_all(in_tree.parent().unwrap()).unwrap();
        fs::write(&in_tree, "as written").unwrap();
        let source = directory.path().join(SOURCE);
        fs::write(&source, "as written").unwrap();
        let program = Program {
            program: PathBuf::new(),
            source: source.clone(),
            source_sha256: String::new(),
        };
        program.must_be_of(&tree).unwrap();

        fs::write(&source, "as Written").unwrap();
        let error = program.must_be_of(&tree).unwrap_err();
        assert!(error.to_string().contains(IN_TREE), "{error}");
        fs::remove_file(&in_tree).unwrap();
        assert!(program.must_be_of(&tree).is_err(), "absent is not equal");
    }
}
