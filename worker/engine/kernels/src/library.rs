//! NVIDIA's libraries, of which none need be there: found by the loader, else in folders.
#![allow(unsafe_code)] // reason: loading a library runs its initialisers

use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Where drivers and toolkits put libraries without telling the loader.
const USUAL: [&str; 4] =
    ["/usr/local/cuda/lib64", "/usr/local/nvidia/lib64", "/usr/lib/wsl/lib", "/usr/lib/x86_64-linux-gnu"];

/// A library by its name.
pub struct Name {
    /// Before `.so`.
    pub stem: &'static str,
    /// What may follow it: interfaces that we call, the best first.
    versions: &'static [u32],
}

/// The driver.
pub const DRIVER: Name = Name { stem: "libcuda", versions: &[1] };
/// Products of matrices.
pub const BLAS: Name = Name { stem: "libcublasLt", versions: &[13, 12] };
/// The compiler of kernels.
pub const COMPILER: Name = Name { stem: "libnvrtc", versions: &[13, 12] };

impl Name {
    fn files(&self) -> impl Iterator<Item = String> {
        self.versions.iter().map(|version| format!("{}.so.{version}", self.stem))
    }

    /// As the loader finds it.
    #[must_use]
    pub fn known(&self) -> Option<Library> {
        self.files().find_map(|file| open(Path::new(&file)))
    }

    /// In the first of the folders that has it, with the folder.
    #[must_use]
    pub fn within(&self, folders: &[PathBuf]) -> Option<(Library, PathBuf)> {
        folders.iter().find_map(|folder| {
            let candidates = self.files().map(|file| folder.join(file));
            let library = candidates.filter(|file| file.is_file()).find_map(|file| open(&file))?;
            Some((library, folder.clone()))
        })
    }

    /// Makes sure that it is found when it is asked for by its name: a library that is loaded answers to its name,
    /// wherever it lies. False where there is none.
    pub fn provide(&self, first: &[PathBuf]) -> bool {
        let lying = || self.within(&folders(first)).map(|(library, _)| library);
        let Some(library) = self.known().or_else(lying) else { return false };
        keep(library);
        true
    }
}

/// These folders, then the usual ones.
#[must_use]
pub fn folders(first: &[PathBuf]) -> Vec<PathBuf> {
    first.iter().cloned().chain(USUAL.iter().map(PathBuf::from)).collect()
}

/// Loads what others of the same folder search by name, where it is there.
pub fn companions(stem: &str, folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let prefix = format!("{stem}.so.");
    let wanted =
        |file: &PathBuf| file.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&prefix));
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    files.filter(wanted).filter_map(|file| open(&file)).for_each(keep);
}

/// Leaves a library loaded: what it has started may not outlive it.
pub fn keep(library: Library) {
    let _ = library.into_raw();
}

fn open(file: &Path) -> Option<Library> {
    // SAFETY: the file is one of NVIDIA's libraries by its name; their initialisers touch nothing of ours.
    unsafe { Library::open(Some(file), RTLD_NOW | RTLD_GLOBAL) }.ok()
}
