//! Which directories lie on the way to a file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::path::{Component, Path, PathBuf};

/// What leads to a set of files: where an entry that is added, replaced or removed leads somewhere else.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Trail {
    /// The directories that hold a file, a symlink on the way to one, or the first part of a path that is missing.
    /// None of these paths has a symlink in it.
    pub(crate) directories: BTreeMap<PathBuf, Identity>,
    /// The names that were looked up in them, and their own.
    pub(crate) names: BTreeSet<OsString>,
}

/// Tells a directory from another one that took its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Trail {
    /// Walks the way to each of the files.
    pub(crate) fn of<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        let mut trail = Self::default();
        for file in files {
            trail.walk(file);
        }
        trail
    }

    /// Walks the way to one file, symlinks included. A path as Kubernetes mounts it, `wsc.yaml` → `..data/wsc.yaml`
    /// with `..data` → `..2026_11_20`, leads through two directories.
    fn walk(&mut self, file: &Path) {
        /// The kernel's own limit for a path.
        const MOST_LINKS: usize = 40;

        let mut at = PathBuf::new();
        let mut ahead = Vec::new();
        push_parts(&mut ahead, file);
        let mut links = 0;
        while let Some(part) = ahead.pop() {
            let name = match part {
                Part::Top(top) => {
                    at = top;
                    continue;
                }
                Part::Up => {
                    at.pop();
                    continue;
                }
                Part::Name(name) => name,
            };
            let here = at.join(&name);
            self.names.insert(name);
            match fs::symlink_metadata(&here) {
                Err(_) => return self.hold(at),
                Ok(metadata) if metadata.is_symlink() => {
                    links += 1;
                    self.hold(at.clone());
                    match fs::read_link(&here) {
                        Ok(target) if links <= MOST_LINKS => push_parts(&mut ahead, &target),
                        _ => return,
                    }
                }
                Ok(_) if ahead.is_empty() => return self.hold(at),
                Ok(_) => at = here,
            }
        }
    }

    fn hold(&mut self, directory: PathBuf) {
        if let Ok(metadata) = fs::metadata(&directory) {
            self.directories.insert(directory, Identity::of(&metadata));
        }
    }
}

enum Part {
    Top(PathBuf),
    Up,
    Name(OsString),
}

/// Puts the parts of a path on a stack, the first on top.
fn push_parts(stack: &mut Vec<Part>, path: &Path) {
    let mut top = PathBuf::new();
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Prefix(_) | Component::RootDir => top.push(part),
            Component::CurDir => {}
            Component::ParentDir => parts.push(Part::Up),
            Component::Normal(name) => parts.push(Part::Name(name.to_owned())),
        }
    }
    stack.extend(parts.into_iter().rev());
    if top.has_root() {
        stack.push(Part::Top(top));
    }
}

impl Identity {
    #[cfg(unix)]
    fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    /// Without numbers from the file system, directories of one path are one.
    #[cfg(not(unix))]
    fn of(_: &Metadata) -> Self {
        Self { device: 0, inode: 0 }
    }
}
